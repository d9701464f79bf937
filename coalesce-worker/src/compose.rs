//! Composing: an image becomes a child of another, whose content shows wherever the child holds nothing.
//!
//! ```text
//!   C            P ──▶ (its parent)           before: two volumes
//!   C ──▶ P hidden ──▶ (its parent)           after: one
//! ```
//!
//! Of a child without a parent its end footer decides, of another one its header. A process that dies before that leaves
//! a composition that is taken back, one that dies after it leaves one that is completed: the parent becomes hidden.
//!
//! A volume has no children: who reads through one reads whatever is written to it. Should it have some all the same,
//! they are to refuse rather than read something else, and so the child gets another id. To look for them would take a
//! look at every file.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{
    ByteCount, ChainError, DiskType, FileError, Header, HeaderChange, Image, LinkError, Lock, MetadataError, OpenError,
    ParentLink, ReadOnly, ReadWrite, StorageError,
};

use crate::delete::is_busy;
use crate::finish::record_in;
use crate::in_use::open_image;
use crate::journal::Journal;
use crate::record::{Direction, FileId, HeaderRecord, Record};
use crate::repository::{Repository, StructureLock};
use crate::run::is_child_of;
use crate::snapshot::is_same_file;

/// Why an image was not made a child of another, or that not finished.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// One of them, or a parent of the parent, cannot be opened, or somebody uses it. Or the chain would be too deep.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The parent cannot be recorded.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A step on an image failed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// One of them lies elsewhere.
    #[error("{}: not in the repository {}", path.display(), folder.display())]
    OtherFolder {
        /// The image.
        path: PathBuf,
        /// The repository.
        folder: PathBuf,
    },
    /// The child holds all of its disk.
    #[error("{}: a fixed image, which cannot have a parent", path.display())]
    Fixed {
        /// The child.
        path: PathBuf,
    },
    /// Chains do not go round in circles.
    #[error("{}: is {} or a copy of it, or reads through it, and cannot be its parent", parent.display(), child.display())]
    Cycle {
        /// The child.
        child: PathBuf,
        /// The parent asked for.
        parent: PathBuf,
    },
    /// A child that ends before its parent would hide the rest.
    #[error("{}: a disk of {child_size} bytes is smaller than {}, of {parent_size}, and cannot be its child", child.display(), parent.display())]
    Smaller {
        /// The child.
        child: PathBuf,
        /// Its size.
        child_size: ByteCount,
        /// The parent asked for.
        parent: PathBuf,
        /// Its size.
        parent_size: ByteCount,
    },
    /// The child is no volume.
    #[error("{}: a hidden base, not a volume, and whoever reads through it would read something else", path.display())]
    Hidden {
        /// The child.
        path: PathBuf,
    },
    /// What the image reads is, in part, in the files of an interrupted merge.
    #[error("{}: a merge of it was interrupted, and has to be finished first", path.display())]
    Unfinished {
        /// The image.
        path: PathBuf,
    },
}

impl From<OpenError> for ComposeError {
    fn from(error: OpenError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<StorageError> for ComposeError {
    fn from(error: StorageError) -> Self {
        Self::Chain(error.into())
    }
}

impl Repository {
    /// Makes the volume `child` a child of `parent`, which then is a hidden base: the content of `parent` shows at every
    /// sector that `child` does not hold. A child that has a parent is taken from that. Done again it changes nothing.
    ///
    /// The child gets another unique id: an image that somebody made a child of it while it was a volume finds its parent
    /// no more, rather than reading something else.
    ///
    /// Zeros that were written to an image without a parent, at sectors that it did not hold, may not be held either.
    ///
    /// # Errors
    /// What [`ComposeError`] lists. Images in use are refused.
    ///
    /// # Crash safety
    /// Once the repository has been opened again, the child is what it was and the parent visible, or it is the whole
    /// composition and the parent hidden; between, the child is always one or the other.
    pub fn compose(&self, child: &Path, parent: &Path) -> Result<(), ComposeError> {
        let own = |path: &Path| {
            let other_folder = || ComposeError::OtherFolder { path: path.into(), folder: self.folder().into() };
            self.own_file(path)?.ok_or_else(other_folder)
        };
        let (child_path, parent_path) = (own(child)?, own(parent)?);
        if is_same_file(&child_path, &parent_path) {
            return Err(ComposeError::Cycle { child: child_path, parent: parent_path });
        }
        let (mut child, mut parent) = (self.claim(&child_path)?, self.claim(&parent_path)?);
        let structure = self.lock_structure()?;
        let unique_id = parent.footer().unique_id();
        if is_child_of(&child, &parent_path, unique_id)? {
            return Ok(parent.set_hidden(true)?);
        }
        self.check_composable(&child, &parent, &structure)?;
        let link = ParentLink::new(self.folder(), &parent_path, unique_id)?;
        let id = |path: &Path, image: &Image<ReadWrite>| FileId {
            path: self.relative(path),
            unique_id: image.footer().unique_id(),
        };
        let becomes = Uuid::new_v4();
        let intent = Record::Compose { child: id(&child_path, &child), becomes, parent: id(&parent_path, &parent) };
        let mut journal = Journal::begin(&self.state(), &intent)?;
        child.set_unique_id(becomes)?;
        child.attach::<ComposeError>(&link, record_in(self, &mut journal, &child_path))?;
        parent.set_hidden(true)?;
        self.keep_parents_of([&*child_path]);
        // What is left is a journal of something that has been done: whoever opens the repository next finds that.
        let _ = journal.remove();
        Ok(())
    }

    /// Links an image anew to its parent, which has got another name: the id in its header says that it is just that.
    ///
    /// # Crash safety
    /// As [`compose`](Self::compose). The image reads as its parent lets it, by the old name or the new.
    pub(crate) fn adopt(&self, child_path: &Path, parent_path: &Path) -> Result<(), ComposeError> {
        let _structure = self.lock_structure()?;
        let mut child = open_image(child_path)?;
        let parent = Image::<ReadOnly>::open(parent_path, Lock::Shared)?;
        let unique_id = parent.footer().unique_id();
        let is_its_parent = child.header().map(Header::parent_unique_id) == Some(unique_id);
        if !is_its_parent || !parent.footer().hidden() || child.footer().disk_type() != DiskType::Differencing {
            return Ok(());
        }
        let id = |path: &Path, unique_id| FileId { path: self.relative(path), unique_id };
        let stays = child.footer().unique_id();
        let intent =
            Record::Compose { child: id(child_path, stays), becomes: stays, parent: id(parent_path, unique_id) };
        let mut journal = Journal::begin(&self.state(), &intent)?;
        let link = ParentLink::new(self.folder(), parent_path, unique_id)?;
        child.relink_recorded::<ComposeError>(&link, record_in(self, &mut journal, child_path))?;
        child.close().map_err(MetadataError::from)?;
        self.keep_parents_of([child_path]);
        let _ = journal.remove();
        Ok(())
    }

    fn check_composable(
        &self,
        child: &Image<ReadWrite>,
        parent: &Image<ReadWrite>,
        structure: &StructureLock,
    ) -> Result<(), ComposeError> {
        let (path, parent_path) = (|| child.path().to_path_buf(), || parent.path().to_path_buf());
        if child.header().is_none() {
            return Err(ComposeError::Fixed { path: path() });
        }
        if child.footer().hidden() {
            return Err(ComposeError::Hidden { path: path() });
        }
        let (child_size, parent_size) = (child.footer().current_size(), parent.footer().current_size());
        if child_size < parent_size {
            return Err(ComposeError::Smaller { child: path(), child_size, parent: parent_path(), parent_size });
        }
        let unique_id = child.footer().unique_id();
        let beneath = self.options().open_parents(parent, parent.path())?;
        let layers = beneath.as_ref().map_or(&[][..], |chain| chain.layers());
        if parent.footer().unique_id() == unique_id || layers.iter().any(|layer| layer.path() == child.path()) {
            return Err(ComposeError::Cycle { child: path(), parent: parent_path() });
        }
        // Both of them, and what the parent stands on.
        let limit = self.options().max_depth;
        if 2 + layers.len() > limit {
            return Err(ChainError::TooDeep { top: path(), limit }.into());
        }
        self.check_not_half_merged(child.path(), parent.path(), structure)
    }

    /// Refuses a child whose data lies beneath it, where an interrupted merge has put it, and a parent that holds what an
    /// interrupted merge has put there for those above it.
    fn check_not_half_merged(&self, child: &Path, parent: &Path, _: &StructureLock) -> Result<(), ComposeError> {
        for journal in Journal::list(&self.state())? {
            let records = Journal::peek(&journal)?;
            let Some(Record::Merge(intent)) = records.first() else { continue };
            if records.iter().any(|record| matches!(record, Record::Linked { .. })) {
                continue;
            }
            let gives_blocks_back = records.iter().any(|it| matches!(it, Record::Holds { .. } | Record::Merged));
            if gives_blocks_back && intent.files().any(|file| self.absolute(&file.path) == child) {
                return Err(ComposeError::Unfinished { path: child.into() });
            }
            if intent.direction == Direction::Down && self.absolute(&intent.target.path) == parent {
                return Err(ComposeError::Unfinished { path: parent.into() });
            }
        }
        Ok(())
    }

    /// Finishes the composition of a process that died, or takes it back; gives an image that somebody uses.
    ///
    /// # Crash safety
    /// Can be repeated: the journal tells the header's bytes before and after.
    pub(crate) fn finish_compose(
        &self,
        child: &FileId,
        becomes: Uuid,
        parent: &FileId,
        header: Option<&HeaderRecord>,
        _: &StructureLock,
    ) -> Result<Option<PathBuf>, ComposeError> {
        if let Some(header) = header
            && let Some(image) = self.mend_header::<ComposeError>(header)?
        {
            return Ok(Some(image));
        }
        let (path, parent_path) = (self.absolute(&child.path), self.absolute(&parent.path));
        if !child.is_at(&path)? && !(FileId { unique_id: becomes, ..child.clone() }).is_at(&path)? {
            return Ok(None);
        }
        let Some(mut image) = open_unless_used(&path)? else { return Ok(Some(path)) };
        let is_composed = is_child_of(&image, &parent_path, parent.unique_id)?;
        if image.footer().disk_type() == DiskType::Dynamic
            && let Some(HeaderChange { at, old, new, .. }) = header.and_then(HeaderRecord::change)
        {
            let container = image.container().clone();
            HeaderChange { at, old: new, new: old, texts: Vec::new() }.finish(&container)?;
            image = Image::writable_from_container(container)?;
        }
        // The copy of the footer says the same as the footer before anything is cut off.
        image.set_unique_id(if is_composed { becomes } else { child.unique_id })?;
        image.trim_tail()?;
        image.lay_out()?;
        if is_composed && parent.is_at(&parent_path)? {
            let Some(mut parent) = open_unless_used(&parent_path)? else { return Ok(Some(parent_path)) };
            parent.set_hidden(true)?;
        }
        Ok(None)
    }
}

fn open_unless_used(path: &Path) -> Result<Option<Image<ReadWrite>>, OpenError> {
    match open_image(path) {
        Err(error) if is_busy(&error) => Ok(None),
        image => image.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vhd_core::ChainOptions;

    use super::*;
    use crate::record::MergeIntent;

    fn merge(node: &str, target: &str) -> Record {
        let file = |name: &str| FileId { path: name.into(), unique_id: Uuid::nil() };
        Record::Merge(MergeIntent {
            direction: Direction::Down,
            keep: false,
            target: file(target),
            target_length: 0,
            target_hidden: true,
            sources: vec![file(node)],
            node_is_volume: true,
            takes_name: false,
            beneath: None,
        })
    }

    #[test]
    fn what_an_interrupted_merge_has_spread_over_several_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::look_at(folder.path(), ChainOptions::default()).unwrap();
        let path = |name: &str| repository.folder().join(name);
        let structure = repository.lock_structure().unwrap();
        let linked = Record::Linked { obsolete: Vec::new(), readers: Vec::new() };
        let holds = || Record::Holds { images: Vec::new() };
        for (first, then, refused) in [
            (merge("child", "base"), vec![], None),
            (merge("child", "base"), vec![holds()], Some("child")),
            (merge("child", "base"), vec![Record::Merged], Some("child")),
            (merge("child", "base"), vec![Record::Merged, linked], None),
            (merge("parent", "base"), vec![holds()], None),
            (merge("other", "parent"), vec![], Some("parent")),
            (merge("other", "base"), vec![holds()], None),
        ] {
            let mut journal = Journal::begin(&repository.state(), &first).unwrap();
            then.iter().for_each(|record| journal.append(record).unwrap());
            let checked = repository.check_not_half_merged(&path("child"), &path("parent"), &structure);
            let found = checked.err().map(|error| match error {
                ComposeError::Unfinished { path } => path,
                other => panic!("{other}"),
            });
            assert_eq!(found, refused.map(path), "{first:?}, {then:?}");
            journal.remove().unwrap();
        }
    }
}
