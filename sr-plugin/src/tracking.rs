//! Changed-block tracking, from the chain itself: nothing is logged when a volume is written.
//!
//! What a volume has changed since its last snapshot is what its own image holds. When the next snapshot freezes that
//! image, which blocks those are is stored with the snapshot, `KEY.vhd.cbt`: a bit for each 64 KiB. So the changes between
//! any two snapshots of a volume are the union of what is stored with those in between, whatever merges and deletions do
//! to the images. Every step errs to the side of too many blocks: of a volume that has another image than it was left with,
//! or that a merge takes blocks out of, all counts that its whole chain holds, and all that the snapshot holds since which
//! changes count: two disks cannot differ where neither holds anything. Of a snapshot whose data goes, `KEY.vhd.held` keeps
//! which blocks those are. Each file ends in a checksum, and everything that is tracked has its `KEY.vhd.cbt`: where that is
//! lost, cut or damaged, nobody knows what has changed, and that is told, or counts as all of the disk.

use std::collections::BTreeSet;
use std::path::PathBuf;

use coalesce_worker::Repository;
use uuid::Uuid;
use vhd_core::{Chain, ChainOptions};

use crate::blocks::{Blocks, read_blocks, write_blocks};
use crate::change::Locked;
use crate::failure::{Failure, Number};
use crate::log::{self, Severity};
use crate::metadata::{Metadata, Tracking};
use crate::sr::Sr;
use crate::store;

impl Sr {
    pub(crate) fn changes_path(&self, key: &str) -> PathBuf {
        self.folder().join(format!("{key}.vhd.cbt"))
    }

    fn content_path(&self, key: &str) -> PathBuf {
        self.folder().join(format!("{key}.vhd.held"))
    }

    /// What is stored with a snapshot; or with a volume, of what its own image does not hold. `None` where the file is lost:
    /// all that is tracked has one, but for snapshots of snapshots, which have changed nothing.
    fn stored_changes(&self, key: &str) -> Result<Option<Blocks>, Failure> {
        let stored = read_blocks(&self.changes_path(key))?;
        let has_file = self.tracking(key)?.is_some_and(|tracking| tracking.image.is_some());
        Ok(stored.or_else(|| (!has_file).then(Blocks::default)))
    }

    /// As [`stored_changes`](Self::stored_changes), for what is to be added to: all of the disk where that is lost.
    fn stored_changes_or_all(&self, key: &str) -> Result<Blocks, Failure> {
        if let Some(stored) = self.stored_changes(key)? {
            return Ok(stored);
        }
        let chain = Chain::open(&self.image_path(key)?, &ChainOptions::default())?;
        Ok(Blocks::all(chain.sectors().0))
    }

    /// Removes what is stored with a volume or snapshot.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn remove_changes(&self, key: &str) -> Result<(), Failure> {
        store::remove(&self.content_path(key))?;
        store::remove(&self.changes_path(key))
    }

    /// Finds the blocks of which a snapshot holds, or held, something; `None` where nobody knows.
    fn content(&self, key: &str) -> Result<Option<Blocks>, Failure> {
        if self.image(key)?.is_some() {
            let chain = Chain::open(&self.image_path(key)?, &ChainOptions::default())?;
            return Blocks::held_by_layers(chain.layers()).map(Some);
        }
        read_blocks(&self.content_path(key))
    }

    fn tracking(&self, key: &str) -> Result<Option<Tracking>, Failure> {
        Ok(self.metadata(key)?.and_then(|metadata| metadata.tracking))
    }

    /// What was written between the snapshot before this one and this one; or since the last one, to a volume.
    fn own_changes(&self, key: &str) -> Result<Blocks, Failure> {
        let lost = || {
            let detail = format!("{key}: the file that says what it has changed is lost; make a full backup");
            Failure::numbered(Number::ChangedBlocks, detail)
        };
        let mut blocks = self.stored_changes(key)?.ok_or_else(lost)?;
        let metadata = self.metadata(key)?.unwrap_or_default();
        // A volume that has lost its image is an error: nobody knows what it had changed.
        if !metadata.read_only {
            let tracking = metadata.tracking.unwrap_or_default();
            let chain = Chain::open(&self.image_path(key)?, &ChainOptions::default())?;
            if self.holds_own_changes(&chain, &tracking)? {
                blocks.add_all(&Blocks::held_by_layers(&chain.layers()[..1])?);
                blocks.add_all(&self.dropped(&chain, &tracking)?);
            } else {
                blocks.add_all(&self.all_that_may_differ(&chain, &tracking)?);
            }
        }
        Ok(blocks)
    }

    /// Finds the blocks that only the snapshot before a volume held. Once the data of that is gone, its image may have been
    /// merged into the volume's; then zeros over it can be dropped, as a compaction does.
    fn dropped(&self, chain: &Chain, tracking: &Tracking) -> Result<Blocks, Failure> {
        match &tracking.previous {
            Some(previous) if self.image(previous)?.is_none() => {
                let held = read_blocks(&self.content_path(previous))?;
                let mut dropped = held.unwrap_or_else(|| Blocks::all(chain.sectors().0));
                dropped.remove_all(&Blocks::held_by_layers(chain.layers())?);
                Ok(dropped)
            }
            _ => Ok(Blocks::default()),
        }
    }

    /// Finds the blocks in which a volume of any content may differ from the snapshot before it.
    fn all_that_may_differ(&self, chain: &Chain, tracking: &Tracking) -> Result<Blocks, Failure> {
        let mut blocks = Blocks::held_by_layers(chain.layers())?;
        if let Some(previous) = &tracking.previous {
            match self.content(previous)? {
                Some(content) => blocks.add_all(&content),
                None => blocks.add_all(&Blocks::all(chain.sectors().0)),
            }
        }
        Ok(blocks)
    }

    /// Tells whether a volume's own image holds all that it has changed.
    fn holds_own_changes(&self, chain: &Chain, tracking: &Tracking) -> Result<bool, Failure> {
        let image = chain.top().as_vhd().map(|image| image.footer().unique_id());
        if image.is_none() || tracking.image != image {
            return Ok(false);
        }
        let repository = Repository::look_at(self.folder(), ChainOptions::default())?;
        Ok(!repository.is_merged_from(&repository.folder().join(chain.top().path().file_name().unwrap_or_default()))?)
    }

    fn image_id(&self, key: &str) -> Result<Option<Uuid>, Failure> {
        Ok(self.image(key)?.map(|image| image.footer().unique_id()))
    }

    /// A snapshot or volume, and the snapshots before it, newest first.
    fn history(&self, key: &str) -> Result<Vec<String>, Failure> {
        let not_tracked =
            || Failure::numbered(Number::ChangedBlocks, format!("{key}: changes are not tracked; enable it"));
        let mut history = vec![key.to_owned()];
        let mut tracking = self.tracking(key)?.ok_or_else(not_tracked)?;
        while let Some(previous) = tracking.previous.take().filter(|previous| !history.contains(previous)) {
            tracking = self.tracking(&previous)?.unwrap_or_default();
            history.push(previous);
        }
        Ok(history)
    }

    /// Finds the blocks that may differ between two snapshots, or a snapshot and the volume.
    ///
    /// # Errors
    /// Two that have no snapshot in common, or whose changes are not tracked.
    pub fn changes_between(&self, one: &str, other: &str) -> Result<Blocks, Failure> {
        let (ours, theirs) = (self.history(one)?, self.history(other)?);
        let in_theirs: BTreeSet<&String> = theirs.iter().collect();
        let common = ours.iter().find(|key| in_theirs.contains(key)).ok_or_else(|| {
            let detail = format!("{one} and {other} have no tracked snapshot in common; choose two of one volume");
            Failure::numbered(Number::ChangedBlocks, detail)
        })?;
        let mut changes = Blocks::default();
        for history in [&ours, &theirs] {
            for key in history.iter().take_while(|key| *key != common) {
                changes.add_all(&self.own_changes(key)?);
            }
        }
        Ok(changes)
    }
}

impl Locked<'_> {
    /// Stores what a volume has changed where its own image does not hold all of it: before that gets out of sight.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn gather_changes(&self, key: &str) -> Result<(), Failure> {
        let sr = self.sr();
        let Some(metadata) = sr.metadata(key)?.filter(|metadata| !metadata.read_only) else { return Ok(()) };
        let Some(tracking) = &metadata.tracking else { return Ok(()) };
        let chain = Chain::open(&sr.image_path(key)?, &ChainOptions::default())?;
        let is_own = sr.holds_own_changes(&chain, tracking)?;
        let found = if is_own { sr.dropped(&chain, tracking)? } else { sr.all_that_may_differ(&chain, tracking)? };
        if !is_own || !found.is_empty() {
            let mut changes = sr.stored_changes_or_all(key)?;
            changes.add_all(&found);
            write_blocks(&sr.changes_path(key), &changes)?;
        }
        Ok(())
    }

    /// Stores what the image holds that a new snapshot or clone has frozen, `image`: with a tracked snapshot, since which the
    /// volume's changes then count; or else with the volume.
    pub(crate) fn freeze_changes(&self, key: &str, twin: &str, image: Uuid) -> Result<(), Failure> {
        let sr = self.sr();
        let Some(mut metadata) = sr.metadata(key)?.filter(|metadata| !metadata.read_only) else { return Ok(()) };
        let Some(tracking) = &mut metadata.tracking else { return Ok(()) };
        let now = sr.image_id(key)?;
        // Where nothing had been written, the volume keeps its image, and the snapshot shares the parent of that.
        let is_frozen = now != Some(image);
        let of_twin = sr.metadata(twin)?.unwrap_or_default();
        let is_snapshot = of_twin.read_only && of_twin.tracking.is_some();
        if is_snapshot && tracking.previous.as_deref() == Some(twin) || !is_snapshot && !is_frozen {
            return Ok(());
        }
        let mut changes = sr.stored_changes_or_all(key)?;
        if is_frozen {
            let chain = Chain::open(&sr.image_path(twin)?, &ChainOptions::default())?;
            // The frozen image may have been merged since, down or up, and then there is more in its place.
            changes.add_all(&Blocks::held_by_layers(chain.layers().iter().take(2))?);
        }
        tracking.image = now;
        if !is_snapshot {
            write_blocks(&sr.changes_path(key), &changes)?;
            return sr.set_metadata(key, &metadata);
        }
        write_blocks(&sr.changes_path(twin), &changes)?;
        tracking.previous = Some(twin.into());
        sr.set_metadata(key, &metadata)?;
        write_blocks(&sr.changes_path(key), &Blocks::default())
    }

    /// Forgets a volume that has been destroyed. What a snapshot has changed is kept until [`forget_gone`](Self::forget_gone).
    pub(crate) fn forget(&self, key: &str) -> Result<(), Failure> {
        let sr = self.sr();
        match sr.metadata(key)? {
            Some(metadata) if metadata.read_only && metadata.tracking.is_some() => {
                let Metadata { read_only, tracking, .. } = metadata;
                sr.set_metadata(key, &Metadata { read_only, tracking, gone: true, ..Metadata::default() })
            }
            _ => {
                sr.remove_changes(key)?;
                sr.remove_metadata(key)
            }
        }
    }

    /// Adds what is stored with snapshots that are gone to whatever came next, and removes it.
    ///
    /// Takes a look at all volumes for each.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Crash safety
    /// Can be done again: what is told may be added twice, which changes nothing.
    pub fn forget_gone(&self, gone: &[String]) -> Result<(), Failure> {
        let sr = self.sr();
        for key in gone {
            // Another call may have been here first.
            let Some(metadata) = sr.metadata(key)?.filter(|metadata| metadata.gone) else { continue };
            let stored = sr.stored_changes(key)?;
            for next in sr.keys_with_metadata()? {
                let Some(mut of_next) = sr.metadata(&next)? else { continue };
                let Some(tracking) = of_next.tracking.as_mut().filter(|it| it.previous.as_deref() == Some(key)) else {
                    continue;
                };
                let before = metadata.tracking.as_ref().and_then(|tracking| tracking.previous.clone());
                // Where one of the two is lost, nobody knows what has changed since the one before.
                tracking.previous = None;
                if let (Some(stored), Some(mut changes)) = (&stored, sr.stored_changes(&next)?) {
                    changes.add_all(stored);
                    write_blocks(&sr.changes_path(&next), &changes)?;
                    tracking.previous = before;
                }
                sr.set_metadata(&next, &of_next)?;
            }
            sr.remove_changes(key)?;
            sr.remove_metadata(key)?;
        }
        Ok(())
    }

    /// Keeps which blocks a tracked snapshot holds, before its data goes.
    pub(crate) fn keep_content(&self, key: &str) {
        let keep = || -> Result<(), Failure> {
            let sr = self.sr();
            let is_tracked = |metadata: &Metadata| metadata.read_only && metadata.tracking.is_some();
            if sr.metadata(key)?.as_ref().is_some_and(is_tracked)
                && let Some(content) = sr.content(key)?
            {
                write_blocks(&sr.content_path(key), &content)?;
            }
            Ok(())
        };
        if let Err(failure) = keep() {
            // What is not known counts as all of the disk; and what makes room must not fail for want of it.
            log::line(Severity::Error, &format!("{key}: what it holds is not kept: {failure}"));
        }
    }

    /// From now on the changes of a volume are those since `snapshot`, or nobody knows since when.
    pub(crate) fn restart_changes(&self, key: &str, snapshot: Option<&str>) -> Result<(), Failure> {
        let sr = self.sr();
        let image = sr.image_id(key)?;
        if let Some(mut metadata) = sr.metadata(key)?
            && let Some(tracking) = &mut metadata.tracking
        {
            let of_snapshot = snapshot.map(|snapshot| sr.metadata(snapshot)).transpose()?.flatten().unwrap_or_default();
            // What is still written to is no point in time.
            let counts = of_snapshot.read_only && of_snapshot.tracking.is_some();
            *tracking = Tracking { previous: snapshot.filter(|_| counts).map(str::to_owned), image };
            sr.set_metadata(key, &metadata)?;
            return write_blocks(&sr.changes_path(key), &Blocks::default());
        }
        store::remove(&sr.changes_path(key))
    }

    /// Tracks the changes of a volume, or does so no longer. What is stored with its snapshots stays.
    ///
    /// # Errors
    /// A volume that there is not.
    pub fn set_tracking(&self, key: &str, enabled: bool) -> Result<(), Failure> {
        let mut metadata = self.sr().existing(key)?;
        if metadata.tracking.is_some() == enabled {
            return Ok(());
        }
        let image = self.sr().image_id(key)?;
        metadata.tracking = enabled.then_some(Tracking { previous: None, image });
        if enabled {
            write_blocks(&self.sr().changes_path(key), &Blocks::default())?;
            return self.sr().set_metadata(key, &metadata);
        }
        self.sr().set_metadata(key, &metadata)?;
        store::remove(&self.sr().changes_path(key))
    }
}
