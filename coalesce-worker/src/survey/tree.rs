//! In which ways a run can be merged as things are: pure decisions.

use std::path::PathBuf;

use crate::record::Direction;

/// The longest run from an image upwards in which every image but the newest is hidden and has one child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Newest first.
    pub(crate) images: Vec<PathBuf>,
    pub(crate) top: Top,
    /// The lowest is a disk's bytes and nothing else: it cannot take the name of a VHD.
    pub(crate) lowest_is_raw: bool,
    /// All of its sectors would have to move up.
    pub(crate) lowest_has_no_blocks: bool,
}

/// The newest image of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Top {
    pub(crate) hidden: bool,
    pub(crate) children: Vec<PathBuf>,
}

/// A run, and the ways in which it can be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choices {
    /// Newest first.
    pub(crate) images: Vec<PathBuf>,
    pub(crate) directions: Vec<Direction>,
}

impl Candidate {
    /// Finds the runs of which one is to be merged, each at least two images long; or the image whose user is to be waited
    /// for.
    ///
    /// A volume in use is not touched. So a run below one, and one whose newest image has a child in use, can only be
    /// merged up: then no image above it changes.
    pub(crate) fn choices(self, is_busy: impl Fn(&PathBuf) -> bool) -> Result<Vec<Choices>, PathBuf> {
        let Self { mut images, top, lowest_is_raw, lowest_has_no_blocks } = self;
        let is_leaf = top.children.is_empty();
        let mut down;
        let mut user = None;
        if top.hidden {
            // A hidden leaf is garbage, and no candidate.
            user = top.children.into_iter().find(&is_busy);
            down = user.is_none();
        } else if is_busy(&images[0]) {
            user = Some(images.remove(0));
            down = false;
        } else {
            // A volume with children keeps its name, and a raw disk cannot take that of a leaf.
            down = is_leaf && !lowest_is_raw;
        }
        if user.is_none() && !down && lowest_has_no_blocks {
            // The leaf stays, and what lies between it and the disk goes.
            images.remove(0);
            down = true;
        }
        let mut choices = Vec::new();
        if down {
            let directions =
                if lowest_has_no_blocks { vec![Direction::Down] } else { vec![Direction::Down, Direction::Up] };
            choices.push(Choices { images, directions });
        } else {
            if lowest_has_no_blocks {
                images.pop();
            }
            choices.push(Choices { images, directions: vec![Direction::Up] });
        }
        choices.retain(|choice| choice.images.len() >= 2);
        match (choices.is_empty(), user) {
            (true, Some(user)) => Err(user),
            _ => Ok(choices),
        }
    }
}
