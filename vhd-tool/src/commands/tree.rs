//! `tree`: the images of a folder, and who is whose parent.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use coalesce_worker::Repository;
use serde::Serialize;
use vhd_core::{ByteCount, DiskType, Files, Folder, Node, NodeId, Uuid};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::{CommandError, with_causes};
use coalesce_worker::size::Human;

/// Show the images of a folder as the forest that they are
///
/// Images are the files named *.vhd and their raw parents. Damaged files are listed apart, and are no failure of this
/// command: `check` tells about one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool tree /srv/vhds")]
pub(crate) struct Args {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Forest {
    images: Vec<Image>,
    damaged: Vec<Damaged>,
}

/// An image; parents come before their children.
#[derive(Serialize)]
struct Image {
    file: String,
    #[serde(rename = "type")]
    kind: &'static str,
    uuid: Uuid,
    size: u64,
    own_size: u64,
    hidden: bool,
    depth: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent_parent: Option<AbsentParent>,
}

/// A parent that is none of the images of the folder.
#[derive(Clone, Serialize)]
struct AbsentParent {
    uuid: Uuid,
    /// Where the child would look, as far as there is a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<String>,
}

#[derive(Serialize)]
struct Damaged {
    file: String,
    reason: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    // A snapshot whose process has died shows as one file too many, or too few.
    match Repository::open(&args.folder, context.chain_options()) {
        Ok((_, recovered)) => context.tell_recovered(&recovered),
        Err(error) => context.note(&with_causes(&error)),
    }
    let folder = Folder::scan(&args.folder, Files::Images)?;
    let damaged = folder
        .damaged()
        .iter()
        .map(|damaged| Damaged { file: damaged.path.display().to_string(), reason: with_causes(&damaged.error) });
    let forest = Forest { images: images(&folder), damaged: damaged.collect() };
    context.output(args.format.json).data(&forest, |out| print(&forest, out))?;
    Ok(Status::Done)
}

/// Lists the images, each tree from its root down.
fn images(folder: &Folder) -> Vec<Image> {
    let mut children: BTreeMap<Option<NodeId>, Vec<NodeId>> = BTreeMap::new();
    for (id, _) in folder.nodes() {
        children.entry(folder.parent(id)).or_default().push(id);
    }
    let mut listed = Vec::new();
    // Not by recursion: a chain may be as long as a folder has files.
    let mut open: Vec<(NodeId, usize)> = Vec::new();
    let mut push = |open: &mut Vec<_>, parent, depth| {
        open.extend(children.remove(&parent).unwrap_or_default().into_iter().rev().map(|id| (id, depth)));
    };
    push(&mut open, None, 1);
    while let Some((id, depth)) = open.pop() {
        listed.push(describe(folder, id, depth));
        push(&mut open, Some(id), depth + 1);
    }
    // What no root leads to is its own ancestor, or descends from one that is.
    listed.extend(children.into_values().flatten().map(|id| describe(folder, id, 0)));
    listed
}

fn describe(folder: &Folder, id: NodeId, depth: usize) -> Image {
    let node = folder.node(id);
    let parent = folder.parent(id).map(|parent| folder.node(parent).path.display().to_string());
    Image {
        file: node.path.display().to_string(),
        kind: kind(node),
        uuid: node.unique_id,
        size: node.size.0,
        own_size: node.own_size.0,
        hidden: node.hidden,
        depth,
        absent_parent: node.parent.as_ref().filter(|_| parent.is_none()).map(|parent| AbsentParent {
            uuid: parent.unique_id,
            elsewhere: parent.existing.first().map(|path| path.display().to_string()),
        }),
        parent,
    }
}

fn kind(node: &Node) -> &'static str {
    match node.disk_type {
        None => "raw",
        Some(DiskType::Fixed) => "fixed",
        Some(DiskType::Dynamic) => "dynamic",
        Some(DiskType::Differencing) => "differencing",
    }
}

fn print(forest: &Forest, out: &mut dyn Write) -> io::Result<()> {
    if forest.images.is_empty() && forest.damaged.is_empty() {
        return writeln!(out, "no images");
    }
    let name = |file: &str| PathBuf::from(file).file_name().map_or(file.into(), |name| name.display().to_string());
    let width =
        forest.images.iter().map(|image| 2 * image.depth.saturating_sub(1) + name(&image.file).chars().count()).max();
    let width = width.unwrap_or(0);
    if width > 0 {
        writeln!(out, "{:<width$} {:>10} {:>10}  depth  type", "image", "size", "on disk")?;
    }
    for image in &forest.images {
        let Image { file, kind, size, own_size, hidden, depth, absent_parent, parent, .. } = image;
        let (size, own_size) = (Human(ByteCount(*size)), Human(ByteCount(*own_size)));
        let name = format!("{:indent$}{}", "", name(file), indent = 2 * depth.saturating_sub(1));
        let hidden = if *hidden { ", hidden" } else { "" };
        write!(out, "{name:<width$} {size:>10} {own_size:>10}  {depth:>5}  {kind}{hidden}")?;
        match absent_parent {
            Some(AbsentParent { elsewhere: Some(path), .. }) => write!(out, ", parent in another place: {path}")?,
            Some(AbsentParent { uuid, .. }) => write!(out, ", parent {uuid} is missing")?,
            None => {}
        }
        if *depth == 0 && parent.is_some() {
            write!(out, ", among its own ancestors")?;
        }
        writeln!(out)?;
    }
    for (i, Damaged { reason, .. }) in forest.damaged.iter().enumerate() {
        let head = if i == 0 { "\ndamaged:\n" } else { "" };
        writeln!(out, "{head}  {reason}")?;
    }
    Ok(())
}
