//! `scan`: all images of a folder or volume group, a line for each.

mod braces;
mod entry;
mod line;
mod lvm;
mod pattern;
mod peek;
mod tree;

use std::collections::HashSet;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use rustix::io::Errno;

use super::Failure;
use crate::output;
use entry::{Found, Parent};
use line::Line;
use lvm::VolumeGroup;

/// List images, a line for each
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("images").required(true).multiple(true))]
#[expect(clippy::struct_excessive_bools, reason = "each is an option that blktap's program has")]
pub(super) struct Args {
    /// Images
    #[arg(group = "images")]
    files: Vec<PathBuf>,
    /// Also those whose names match: with * ? [] and {,}
    #[arg(short, value_name = "GLOB", group = "images")]
    matching: Option<String>,
    /// The volumes of this volume group, whose names the pattern is for
    #[arg(short = 'l', value_name = "VG", group = "images")]
    group: Option<String>,
    /// Look at no more than is needed: always so
    #[arg(short)]
    fast: bool,
    /// Go on after an image that cannot be read
    #[arg(short = 'c')]
    go_on: bool,
    /// Print parents before their children, and these indented
    #[arg(short = 'p')]
    tree: bool,
    /// Also the parents of what was found
    #[arg(short = 'a')]
    parents: bool,
    /// Print whole paths
    #[arg(short)]
    verbose: bool,
    /// Print marker and key hash
    #[arg(short = 'M')]
    marks: bool,
}

/// An image that was looked at.
#[derive(Debug)]
struct Listed {
    /// Its path; of a volume of a group, its name.
    path: PathBuf,
    found: Result<Found, Failure>,
    /// The path of its parent, as far as that can be told.
    parent: Option<PathBuf>,
    /// It was not asked for, but is the parent of one that was.
    is_added: bool,
}

impl Listed {
    /// Whether it ends the scan: a parent that is not there does not.
    fn is_failure(&self) -> bool {
        self.found.as_ref().is_err_and(|failure| !(self.is_added && failure.errno() == Errno::NOENT))
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let group = args.group.as_deref().map(VolumeGroup::list).transpose()?;
    let paths = match &group {
        Some(group) => matching_volumes(args, group)?,
        None => matching_files(args)?,
    };
    let mut images = list(args, group.as_ref(), paths);
    let first = images.iter().position(Listed::is_failure).filter(|_| !args.go_on);
    if let Some(first) = first {
        images.truncate(first + 1);
    }
    let mut out = output::stdout();
    if args.tree {
        tree::print(&mut out, &images, args)?;
    } else {
        for image in &images {
            writeln!(out, "{}", Line { image, args, note: "" })?;
        }
    }
    out.flush()?;
    let failed = first.and_then(|_| images.pop()).and_then(|image| image.found.err());
    failed.map_or(Ok(()), Err)
}

/// Lists the files that match in the order of their names, then those that were named, each once.
fn matching_files(args: &Args) -> Result<Vec<PathBuf>, Failure> {
    let patterns = args.matching.as_deref().map(braces::expand).transpose()?.unwrap_or_default();
    let paths = patterns.iter().flat_map(|pattern| pattern::matching(pattern)).chain(args.files.iter().cloned());
    Ok(each_once(paths.collect()))
}

/// Lists the volumes that match, or that were named; without a pattern or a name, all.
fn matching_volumes(args: &Args, group: &VolumeGroup) -> Result<Vec<PathBuf>, Failure> {
    let everything = (args.matching.is_none() && args.files.is_empty()).then_some("*");
    let mut paths = Vec::new();
    for pattern in everything.or(args.matching.as_deref()).map(braces::expand).transpose()?.unwrap_or_default() {
        let pattern = glob::Pattern::new(&pattern)?;
        paths.extend(group.names().filter(|name| pattern.matches(name)).map(PathBuf::from));
    }
    paths.extend(args.files.iter().cloned());
    Ok(each_once(paths))
}

fn each_once(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::with_capacity(paths.len());
    paths.retain(|path| seen.insert(plain(path)));
    paths
}

/// Looks at the images, and where that is wanted at their parents, which come after them.
fn list(args: &Args, group: Option<&VolumeGroup>, paths: Vec<PathBuf>) -> Vec<Listed> {
    let mut known: HashSet<PathBuf> = paths.iter().map(|path| plain(path)).collect();
    let mut images: Vec<Listed> = Vec::with_capacity(paths.len());
    let mut next: Vec<(PathBuf, bool)> = paths.into_iter().map(|path| (path, false)).collect();
    let mut is_added = false;
    while !next.is_empty() {
        let look = |(path, is_raw): (PathBuf, bool)| {
            let found = match (group, is_raw) {
                (Some(group), false) => group.look(&path, args.marks),
                (Some(group), true) => group.look_at_raw(&path, args.marks),
                (None, false) => entry::look(&path, args.marks),
                (None, true) => entry::look_at_raw(&path, args.marks),
            };
            Listed { path, found, parent: None, is_added }
        };
        let mut batch: Vec<Listed> = std::mem::take(&mut next).into_par_iter().map(look).collect();
        for image in &mut batch {
            let Some(parent) = image.found.as_ref().ok().and_then(|found| found.parent.as_ref()) else { continue };
            let path = choose(parent, &known, group);
            if args.parents && known.insert(path.clone()) {
                next.push((path.clone(), parent.is_raw));
            }
            image.parent = Some(path);
        }
        images.append(&mut batch);
        is_added = true;
    }
    images
}

/// Tells which of the paths that an image has for its parent is meant: one that is listed, else one that is there.
fn choose(parent: &Parent, known: &HashSet<PathBuf>, group: Option<&VolumeGroup>) -> PathBuf {
    let exists = |path: &PathBuf| group.map_or_else(|| path.exists(), |group| group.has(path));
    let mut paths = parent.candidates.iter();
    let listed = paths.clone().find(|path| known.contains(*path));
    let found = listed.or_else(|| paths.clone().find(|path| exists(path))).or_else(|| paths.next());
    found.cloned().unwrap_or_default()
}

/// A path without the dots that change nothing, so that it can be compared.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}
