//! Images below their parents, each level further to the right.

use std::collections::HashMap;
use std::io::{self, Write};

use super::{Args, Line, Listed, plain};

const INDENT: usize = 3;
const NOT_FOUND: &str = " (not found in scan)";

/// Prints all images, each once, whatever they say of their parents.
pub(super) fn print(out: &mut dyn Write, images: &[Listed], args: &Args) -> io::Result<()> {
    let numbers: HashMap<_, _> =
        images.iter().enumerate().map(|(number, image)| (plain(&image.path), number)).collect();
    let mut roots = Vec::new();
    let mut children = vec![Vec::new(); images.len()];
    for (number, image) in images.iter().enumerate() {
        match image.parent.as_ref().map(|parent| numbers.get(parent)) {
            Some(Some(&parent)) => children[parent].push(number),
            Some(None) => roots.push((number, NOT_FOUND)),
            None => roots.push((number, "")),
        }
    }
    let mut printed = vec![false; images.len()];
    // Parents that go round in circles hang below no root.
    let rest = (0..images.len()).map(|number| (number, ""));
    for (root, note) in roots.into_iter().chain(rest) {
        let mut open = vec![(root, 0, note)];
        while let Some((number, depth, note)) = open.pop() {
            if std::mem::replace(&mut printed[number], true) {
                continue;
            }
            writeln!(out, "{:indent$}{}", "", Line { image: &images[number], args, note }, indent = depth * INDENT)?;
            open.extend(children[number].iter().rev().map(|&child| (child, depth + 1, "")));
        }
    }
    Ok(())
}
