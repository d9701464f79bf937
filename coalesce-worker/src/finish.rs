//! What follows a merge: children get their new parent, or the target the node's name, and the merged files go.
//!
//! The same steps are taken by whoever has merged and by whoever finds the journal of a process that died.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use vhd_core::{
    ByteCount, FileError, FileIdentity, FileStorage, HeaderChange, Image, ParentLink, ReadWrite, folder_of, sync_folder,
};

use crate::delete::remove_durably;
use crate::error::CoalesceError;
use crate::in_use::first_in_use;
use crate::journal::Journal;
use crate::merge::MergeError;
use crate::record::{Direction, FileId, HeaderRecord, MergeIntent, Record};
use crate::repository::{Repository, StructureLock};
use crate::run::{Neighbours, check_all_known, open_child};
use crate::target::Target;

/// A run whose data has been merged, durably.
pub(crate) struct Finish<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) intent: &'a MergeIntent,
    /// Children that have their new parent already.
    pub(crate) relinked: BTreeSet<PathBuf>,
    pub(crate) target: Target,
    /// The locks on the sources.
    pub(crate) locks: Vec<Arc<FileStorage>>,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) target: PathBuf,
    pub(crate) relinked: Vec<PathBuf>,
    pub(crate) deleted: Vec<PathBuf>,
    /// An image that somebody uses; the journal stays.
    pub(crate) waits_for: Option<PathBuf>,
}

impl Finish<'_> {
    /// Does what is left to do.
    ///
    /// # Errors
    /// A failed step: the journal stays, and it can be done again. A run that has got other children meanwhile: every leaf
    /// reads as before, and the merge is forgotten.
    pub(crate) fn run(mut self, mut journal: Journal, structure: &StructureLock) -> Result<Finished, CoalesceError> {
        match self.link(&mut journal, structure) {
            Ok(Linked::Waits(image)) => {
                let target = self.target.container().path().to_path_buf();
                self.target.close()?;
                Ok(Finished { target, waits_for: Some(image), ..Finished::default() })
            }
            Ok(Linked::Done { target, obsolete, readers }) => {
                let relinked = self.relinked.iter().cloned().collect();
                let Self { repository, target: image, locks, .. } = self;
                image.close()?;
                repository.keep_parents_of(self.relinked.iter().chain([&target]).map(PathBuf::as_path));
                let (deleted, waits_for) = remove_obsolete(repository, journal, &obsolete, readers, structure)?;
                drop(locks);
                Ok(Finished { target, relinked, deleted, waits_for })
            }
            Err(error) => {
                if error.is_final() {
                    self.take_back()?;
                    journal.remove()?;
                }
                Err(error)
            }
        }
    }

    fn path(&self, file: &FileId) -> PathBuf {
        self.repository.absolute(&file.path)
    }

    /// The images of the run and who they are, newest first.
    fn identities(&self) -> Vec<(PathBuf, Uuid)> {
        let target = std::iter::once(&self.intent.target);
        let files: Vec<&FileId> = match self.intent.direction {
            Direction::Down => self.intent.sources.iter().chain(target).collect(),
            Direction::Up => target.chain(&self.intent.sources).collect(),
        };
        files.into_iter().map(|file| (self.path(file), file.unique_id)).collect()
    }

    /// Takes the sources out of every chain.
    fn link(&mut self, journal: &mut Journal, structure: &StructureLock) -> Result<Linked, CoalesceError> {
        let run = self.identities();
        let paths = run.iter().map(|(path, _)| path.as_path());
        let neighbours = Neighbours::of(self.repository, paths, structure.abort())?;
        neighbours.check_only_children(&run, &self.relinked)?;
        let (node, node_id) = run[0].clone();
        if self.intent.keep {
            self.target.forget_merge()?;
            return Ok(Linked::done(self.path(&self.intent.target), Vec::new()));
        }
        if self.intent.direction == Direction::Up {
            let readers = neighbours.descendants_of(&BTreeSet::from([node.clone()]))?;
            self.stand(journal)?;
            return self.linked(journal, node, &self.intent.sources, readers);
        }
        self.check_names()?;
        let size = node_size(&node)?;
        self.target.cut(size)?;
        let children = neighbours.children_of(&node, node_id)?;
        if let Some(child) = children.first().filter(|_| self.intent.takes_name && self.intent.node_is_volume) {
            // The volume has got a child since, and must stay.
            return Err(CoalesceError::OtherChild { node, child: child.clone() });
        }
        if children.is_empty() && self.relinked.is_empty() {
            self.take_place_of(&node)?;
            return self.linked(journal, node, &self.intent.sources[1..], BTreeSet::new());
        }
        for path in &children {
            structure.abort().check().map_err(MergeError::Aborted)?;
            let Some(child) = open_child(&node, node_id, path)? else { return Ok(Linked::Waits(path.clone())) };
            self.relink(child, journal)?;
            self.relinked.insert(path.clone());
        }
        let readers = neighbours.descendants_of(&self.relinked)?;
        self.linked(journal, self.path(&self.intent.target), &self.intent.sources, readers)
    }

    /// Records that no image names the sources any more. Once that is recorded, or the target has the node's name, recovery
    /// looks at the target no more, and a guest may have it: so the mark goes before.
    fn linked(
        &self,
        journal: &mut Journal,
        target: PathBuf,
        obsolete: &[FileId],
        readers: BTreeSet<PathBuf>,
    ) -> Result<Linked, CoalesceError> {
        self.target.forget_merge()?;
        let relative = readers.iter().map(|path| self.repository.relative(path)).collect();
        journal.append(&Record::Linked { obsolete: obsolete.to_vec(), readers: relative })?;
        Ok(Linked::Done { target, obsolete: obsolete.to_vec(), readers })
    }

    /// Refuses a run of which somebody has put another file in the place of an image: what is locked has lost its name.
    fn check_names(&self) -> Result<(), CoalesceError> {
        let target = self.target.container().storage().as_file().map(FileStorage::identity);
        let locked = self.locks.iter().map(|lock| Some(lock.identity())).chain([target]);
        for (file, identity) in self.intent.files().zip(locked) {
            let path = self.path(file);
            let found = FileIdentity::at(&path).map_err(FileError::when(&path, "look at it"))?;
            if identity.is_some_and(|identity| identity != found) {
                return Err(CoalesceError::Changed { node: path });
            }
        }
        Ok(())
    }

    /// Makes an image a child of the target.
    fn relink(&self, mut child: Image<ReadWrite>, journal: &mut Journal) -> Result<(), CoalesceError> {
        let target = &self.intent.target;
        let link = ParentLink::new(folder_of(child.path()), &self.path(target), target.unique_id)?;
        let record = record_in::<CoalesceError>(self.repository, journal, child.path());
        child.relink_recorded(&link, record)?;
        Ok(child.close()?)
    }

    /// Makes the target a child of what lies beneath the run.
    fn stand(&mut self, journal: &mut Journal) -> Result<(), CoalesceError> {
        let repository = self.repository;
        let path = self.target.container().path().to_path_buf();
        let Target::Vhd(image) = &mut self.target else { return Err(CoalesceError::FlatSource { path }) };
        let record = record_in::<CoalesceError>(repository, journal, &path);
        match &self.intent.beneath {
            Some(beneath) => {
                let link = ParentLink::new(folder_of(&path), &repository.absolute(&beneath.path), beneath.unique_id)?;
                image.relink_recorded(&link, record)
            }
            None => image.detach(record),
        }
    }

    /// Gives the target the node's hidden state, owner and name. The rename decides.
    fn take_place_of(&mut self, node: &Path) -> Result<(), CoalesceError> {
        let hidden = !self.intent.node_is_volume;
        self.target.forget_merge()?;
        let Target::Vhd(target) = &mut self.target else {
            let target = self.target.container().path().into();
            return Err(CoalesceError::RawTarget { target, node: node.into() });
        };
        let path = target.path().to_path_buf();
        crate::snapshot::copy_owner(node, &path)?;
        target.set_hidden(hidden)?;
        if let Err(error) = fs::rename(&path, node) {
            // It is no volume yet. The first error is the one to tell.
            let _ = target.set_hidden(self.intent.target_hidden);
            return Err(FileError::when(node, "put the merged image in its place")(error).into());
        }
        Ok(sync_folder(folder_of(node))?)
    }

    /// Makes the target what it was to others than the node.
    fn take_back(&mut self) -> Result<(), CoalesceError> {
        self.target.forget_merge()?;
        if let Target::Vhd(image) = &mut self.target {
            image.set_hidden(self.intent.target_hidden)?;
        }
        Ok(())
    }
}

enum Linked {
    /// No image names the sources any more.
    Done { target: PathBuf, obsolete: Vec<FileId>, readers: BTreeSet<PathBuf> },
    /// Somebody uses this child.
    Waits(PathBuf),
}

impl Linked {
    fn done(target: PathBuf, obsolete: Vec<FileId>) -> Self {
        Self::Done { target, obsolete, readers: BTreeSet::new() }
    }
}

fn node_size(node: &Path) -> Result<ByteCount, CoalesceError> {
    let image = Image::<vhd_core::ReadOnly>::open(node, vhd_core::Lock::None)?;
    Ok(image.footer().current_size())
}

/// Records the change of a header.
pub(crate) fn record_in<'j, E: From<FileError>>(
    repository: &Repository,
    journal: &'j mut Journal,
    image: &Path,
) -> impl FnOnce(&HeaderChange) -> Result<(), E> + use<'j, E> {
    let image = repository.relative(image);
    move |change| Ok(journal.append(&Record::Header(HeaderRecord::new(image, change)))?)
}

/// Deletes files that nobody names as a parent any more, newest first, once none of the readers can have them open.
///
/// Gives those that are gone, or a reader that still holds on.
///
/// # Errors
/// A failed step, or an abort between two: the journal stays, and recovery does the rest.
pub(crate) fn remove_obsolete(
    repository: &Repository,
    mut journal: Journal,
    obsolete: &[FileId],
    readers: BTreeSet<PathBuf>,
    structure: &StructureLock,
) -> Result<(Vec<PathBuf>, Option<PathBuf>), CoalesceError> {
    let mut waits_for = None;
    for reader in readers {
        match first_in_use([&reader])? {
            Some(reader) => waits_for = Some(reader),
            None => journal.append(&Record::Released { reader: repository.relative(&reader) })?,
        }
    }
    if waits_for.is_some() {
        return Ok((Vec::new(), waits_for));
    }
    let mut deleted = BTreeSet::new();
    if !obsolete.is_empty() {
        let forest = repository.scan_until(structure.abort())?;
        check_all_known(&forest)?;
        for file in obsolete {
            structure.abort().check().map_err(MergeError::Aborted)?;
            let path = repository.absolute(&file.path);
            let mut needed_by = forest.dependants(&path, file.unique_id).into_iter();
            // Somebody may have made a child of it, whom nothing but the lock on the file could have kept from that.
            let is_needed = needed_by.any(|child| !deleted.contains(child));
            if !is_needed && file.is_at(&path)? {
                remove_durably(&path)?;
                deleted.insert(path.clone());
                let parent = forest.find(&path).and_then(|id| Some(forest.node(id).parent.as_ref()?.unique_id));
                let is_last = |id: &Uuid| forest.dependants(Path::new(""), *id).iter().all(|it| deleted.contains(*it));
                repository.keep_freed(&path, parent.filter(is_last));
            }
        }
    }
    journal.remove()?;
    Ok((deleted.into_iter().collect(), None))
}
