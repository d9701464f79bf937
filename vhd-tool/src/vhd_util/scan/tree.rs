//! Images below their parents, each level further to the right.

use std::collections::HashMap;
use std::io::{self, Write};

use super::entry::Found;
use super::{Args, Line, Listed, plain};

const INDENT: usize = 3;
const NOT_FOUND: &str = " (not found in scan)";

/// Prints all images, each once, whatever they say of their parents: first those that cannot be read, then trees by the
/// names of their roots, the hidden roots first; below each image its visible children come before the hidden ones.
pub(super) fn print(out: &mut dyn Write, images: &[Listed], args: &Args) -> io::Result<()> {
    for image in images.iter().filter(|image| image.found.is_err()) {
        writeln!(out, "{}", Line { image, args, note: "" })?;
    }
    let mut readable: Vec<(&Listed, &Found)> =
        images.iter().filter_map(|image| Some((image, image.found.as_ref().ok()?))).collect();
    readable.sort_by_key(|(image, _)| plain(&image.path).into_os_string());
    let numbers: HashMap<_, _> =
        readable.iter().enumerate().map(|(number, (image, _))| (plain(&image.path), number)).collect();
    let is_hidden = |number: usize| readable[number].1.hidden > 0;
    let mut roots = Vec::new();
    let mut children = vec![Vec::new(); readable.len()];
    for (number, (image, _)) in readable.iter().enumerate() {
        match image.parent.as_ref().map(|parent| numbers.get(parent)) {
            Some(Some(&parent)) => children[parent].push(number),
            Some(None) => roots.push((number, NOT_FOUND)),
            None => roots.push((number, "")),
        }
    }
    roots.sort_by_key(|&(number, _)| !is_hidden(number));
    children.iter_mut().for_each(|children| children.sort_by_key(|&child| is_hidden(child)));
    let mut printed = vec![false; readable.len()];
    // Parents that go round in circles hang below no root.
    let rest = (0..readable.len()).map(|number| (number, ""));
    for (root, note) in roots.into_iter().chain(rest) {
        let mut open = vec![(root, 0, note)];
        while let Some((number, depth, note)) = open.pop() {
            if std::mem::replace(&mut printed[number], true) {
                continue;
            }
            let line = Line { image: readable[number].0, args, note };
            writeln!(out, "{:indent$}{line}", "", indent = depth * INDENT)?;
            open.extend(children[number].iter().rev().map(|&child| (child, depth + 1, "")));
        }
    }
    Ok(())
}
