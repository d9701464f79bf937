//! How volumes come, change and go.

use coalesce_worker::SnapshotError;
use serde::Deserialize;
use uuid::Uuid;
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, SECTOR_SIZE, SectorRange,
    create_file, write_new_file,
};

use super::{Named, Pair, done};
use crate::change::Intent;
use crate::failure::{Failure, Number};
use crate::host::Host;
use crate::metadata::{DataDestroyed, Metadata, Tracking, is_key};
use crate::sr::{Sr, is_file};
use crate::wire::Volume;

#[derive(Deserialize)]
pub(super) struct Create {
    sr: String,
    name: String,
    description: String,
    size: i64,
    sharable: bool,
}

/// Bytes of the least disk. Source: xapi's storage manager, which makes a smaller one as large as that.
const LEAST_SIZE: i64 = 2 << 20;

/// Makes a volume of at least `size` bytes.
///
/// Sizes are rounded up to the least one and to whole sectors, and no further, so that a volume of the size of another can be
/// had.
pub(super) fn create_volume(sr: &Sr, metadata: &Metadata, size: i64) -> Result<Volume, Failure> {
    let locked = sr.lock()?;
    let key = Uuid::new_v4().to_string();
    let size = if size < 0 { size } else { size.max(LEAST_SIZE) };
    let new = NewImage::new(disk_size(size)?, NewKind::Dynamic { block_size: BlockSize::DEFAULT });
    locked.change(&Intent::Create { key: key.clone() }, || {
        sr.set_metadata(&key, metadata)?;
        Ok(create_file(&sr.image_path(&key)?, &new, Existing::Keep)?)
    })?;
    sr.volume(&key)
}

pub(super) fn create(host: &Host, call: Create) -> Result<Volume, Failure> {
    let Create { sr, name, description, size, sharable } = call;
    create_volume(&host.sr(&sr)?, &Metadata { name, description, sharable, ..Metadata::default() }, size)
}

fn disk_size(size: i64) -> Result<ByteCount, Failure> {
    let refused = || Failure::numbered(Number::InvalidSize, format!("{size}: a disk has 1 byte to 2040 GiB"));
    let size = u64::try_from(size).ok().filter(|size| *size > 0).ok_or_else(refused)?;
    let rounded = ByteCount(size.next_multiple_of(SECTOR_SIZE));
    if rounded > vhd_core::MAX_VIRTUAL_SIZE { Err(refused()) } else { Ok(rounded) }
}

/// What is made of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twin {
    /// One that nobody writes to.
    Snapshot,
    /// One like any other.
    Clone,
}

pub(super) fn snapshot(host: &Host, call: &Named, twin: Twin) -> Result<Volume, Failure> {
    let sr = host.sr(&call.sr)?;
    let locked = sr.lock()?;
    let metadata = with_data(&sr, &call.key)?;
    let image = image_of(&sr, &call.key)?.footer().unique_id();
    let mut of_twin = metadata.for_twin();
    if twin == Twin::Snapshot {
        // What is a snapshot itself has not changed since it was taken.
        let since = |tracking: &Tracking| match metadata.read_only {
            true => Tracking { previous: Some(call.key.clone()), image: None },
            false => tracking.clone(),
        };
        let tracking = metadata.tracking.as_ref().map(since);
        of_twin = Metadata { read_only: true, snapshot_of: Some(call.key.clone()), tracking, ..of_twin };
    }
    let new = Uuid::new_v4().to_string();
    let intent = Intent::Snapshot { key: call.key.clone(), twin: new.clone(), image };
    let (from, to) = (sr.image_path(&call.key)?, sr.image_path(&new)?);
    locked.gather_changes(&call.key)?;
    locked.change(&intent, || {
        sr.set_metadata(&new, &of_twin)?;
        let taken = sr.repository()?.snapshot_within(&from, &to, sr.depth_limit());
        taken.map(drop).map_err(|error| match error {
            SnapshotError::TooDeep { .. } => Failure::numbered(Number::ChainTooLong, error),
            other => Failure::of(&other),
        })
    })?;
    let volume = sr.volume(&new)?;
    done(host, &sr);
    Ok(volume)
}

#[derive(Deserialize)]
pub(super) struct Copy {
    sr: String,
    key: String,
    dest_sr: String,
}

pub(super) fn copy(host: &Host, call: &Copy) -> Result<Volume, Failure> {
    let (sr, target) = (host.sr(&call.sr)?, host.sr(&call.dest_sr)?);
    let metadata = with_data(&sr, &call.key)?;
    // Nobody writes to it, or merges it away, meanwhile.
    let source = Chain::open_locked(&sr.image_path(&call.key)?, &ChainOptions::default(), Lock::Shared)?;
    let key = Uuid::new_v4().to_string();
    let new = NewImage::new(source.sectors().bytes(), NewKind::Dynamic { block_size: BlockSize::DEFAULT });
    // Without the lock: it takes its time. The copy has no name yet.
    let mut locked = None;
    write_new_file::<Failure>(&target.image_path(&key)?, Existing::Keep, |container| {
        vhd_core::create(container, &new)?;
        let image = Image::writable_from_container(container.clone())?;
        source.copy_data(|range: SectorRange, bytes: &[u8]| Ok::<_, Failure>(image.write(range, bytes)?), drop)?;
        image.close()?;
        let lock = locked.insert(target.lock()?);
        lock.begin(&Intent::Create { key: key.clone() })?;
        target.set_metadata(&key, &metadata.for_twin())
    })?;
    if let Some(lock) = locked {
        lock.end()?;
    }
    target.volume(&key)
}

pub(super) fn destroy(host: &Host, call: &Named) -> Result<(), Failure> {
    let sr = host.sr(&call.sr)?;
    let locked = sr.lock()?;
    // The clone that it runs on is forgotten by whoever made it. It goes first: a volume that is gone names none.
    let clone = sr.metadata(&call.key).ok().flatten().and_then(|metadata| metadata.keys.get("clone-on-boot").cloned());
    let is_clone = |key: &String| *key != call.key && sr.existing(key).is_ok_and(|metadata| !metadata.read_only);
    let keys = clone.filter(is_clone).into_iter().chain(Some(call.key.clone()).filter(|key| is_key(key)));
    for key in keys {
        locked.keep_content(&key);
        locked.change(&Intent::Destroy { key: key.clone() }, || {
            if sr.image(&key)?.is_some() {
                sr.repository()?.hide(&sr.image_path(&key)?)?;
            }
            Ok(())
        })?;
    }
    done(host, &sr);
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct Revert {
    sr: String,
    snapshot: String,
    key: String,
}

pub(super) fn revert(host: &Host, call: &Revert) -> Result<(), Failure> {
    let sr = host.sr(&call.sr)?;
    let locked = sr.lock()?;
    let of_snapshot = with_data(&sr, &call.snapshot)?;
    let key = volume_of(&sr, &call.key, &of_snapshot);
    writable(&sr, key)?;
    let new_image = Uuid::new_v4();
    let image = image_of(&sr, key)?.footer().unique_id();
    let intent = Intent::Revert { key: key.to_owned(), snapshot: call.snapshot.clone(), image, new_image };
    let (volume, snapshot) = (sr.image_path(key)?, sr.image_path(&call.snapshot)?);
    locked.change(&intent, || Ok(sr.repository()?.revert_as(&volume, &snapshot, new_image).map(drop)?))?;
    done(host, &sr);
    Ok(())
}

/// The volume that is meant to be reverted to a snapshot. The toolstack names it by its own UUID, which is the key only
/// where that is one; else the snapshot tells what it is of.
fn volume_of<'k>(sr: &Sr, key: &'k str, snapshot: &'k Metadata) -> &'k str {
    let is_uuid = |key: &str| key.parse::<Uuid>().is_ok();
    let told = snapshot.snapshot_of.as_ref().or_else(|| snapshot.keys.get("snapshot_of"));
    match told.filter(|told| is_uuid(key) && !is_uuid(told)) {
        Some(told) if matches!(sr.image(key), Ok(None)) && sr.existing(told).is_ok() => told,
        _ => key,
    }
}

#[derive(Deserialize)]
pub(super) struct Resize {
    sr: String,
    key: String,
    new_size: i64,
}

pub(super) fn resize(host: &Host, call: &Resize) -> Result<(), Failure> {
    let sr = host.sr(&call.sr)?;
    let locked = sr.lock()?;
    writable(&sr, &call.key)?;
    let size = disk_size(call.new_size)?;
    let present = image_of(&sr, &call.key)?.footer().current_size();
    if size < present {
        let detail = format!("{size} bytes are less than the {present} that it has; a disk is not made smaller");
        return Err(Failure::numbered(Number::InvalidSize, detail));
    }
    if size > present {
        let path = sr.image_path(&call.key)?;
        locked.change(&Intent::Resize { key: call.key.clone() }, || Ok(sr.repository()?.resize(&path, size)?))?;
    }
    Ok(())
}

pub(super) fn compose(host: &Host, call: &Pair) -> Result<(), Failure> {
    let Pair { sr, key, key2 } = call;
    let sr = host.sr(sr)?;
    let locked = sr.lock()?;
    writable(&sr, key)?;
    let (child, parent) = (sr.image_path(key)?, sr.image_path(key2)?);
    // Where it is done again, the parent is no volume any more.
    let is_done =
        sr.metadata(key2)?.is_none_or(|metadata| metadata.gone) && sr.image(key2)?.is_none() && is_file(&parent)?;
    if !is_done {
        with_data(&sr, key2)?;
        locked.keep_content(key2);
    }
    // What shows beneath it changes, too: of that nothing is tracked.
    locked.restart_changes(key, None)?;
    locked.change(&Intent::Compose { child: key.clone(), parent: key2.clone() }, || {
        Ok(sr.repository()?.compose(&child, &parent)?)
    })?;
    // It is another image now.
    locked.restart_changes(key, None)?;
    done(host, &sr);
    Ok(())
}

pub(super) fn data_destroy(host: &Host, call: &Named) -> Result<(), Failure> {
    let sr = host.sr(&call.sr)?;
    let locked = sr.lock()?;
    let metadata = sr.existing(&call.key)?;
    if metadata.data_destroyed.is_some() {
        return Ok(());
    }
    if !metadata.read_only || metadata.tracking.is_none() {
        let detail = format!("{}: no snapshot of a volume whose changes are tracked; destroy it instead", call.key);
        return Err(Failure::numbered(Number::ChangedBlocks, detail));
    }
    let virtual_size = image_of(&sr, &call.key)?.footer().current_size().0;
    locked.keep_content(&call.key);
    let destroyed = Metadata { data_destroyed: Some(DataDestroyed { virtual_size }), ..metadata };
    locked.change(&Intent::DestroyData { key: call.key.clone() }, || {
        // First, so that it is never missing from a list.
        sr.set_metadata(&call.key, &destroyed)?;
        sr.repository()?.hide(&sr.image_path(&call.key)?)?;
        Ok(())
    })?;
    done(host, &sr);
    Ok(())
}

/// What is known of a volume that has its data.
fn with_data(sr: &Sr, key: &str) -> Result<Metadata, Failure> {
    let metadata = sr.existing(key)?;
    if metadata.data_destroyed.is_some() {
        let detail = format!("{key}: its data has been destroyed, and only what has changed is known");
        return Err(Failure::numbered(Number::BadRequest, detail));
    }
    Ok(metadata)
}

fn writable(sr: &Sr, key: &str) -> Result<Metadata, Failure> {
    let metadata = with_data(sr, key)?;
    if metadata.read_only {
        return Err(Failure::numbered(Number::NotWritable, format!("{key}: a snapshot; make a clone of it")));
    }
    Ok(metadata)
}

fn image_of(sr: &Sr, key: &str) -> Result<Image<vhd_core::ReadOnly>, Failure> {
    sr.image(key)?.ok_or_else(|| Failure::volume_does_not_exist(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_sectors_within_the_format() {
        assert_eq!(disk_size(1), Ok(ByteCount(512)));
        assert_eq!(disk_size(1024), Ok(ByteCount(1024)));
        let largest = vhd_core::MAX_VIRTUAL_SIZE.0 as i64;
        assert_eq!(disk_size(largest), Ok(vhd_core::MAX_VIRTUAL_SIZE));
        for wrong in [i64::MIN, -1, 0, largest + 1, i64::MAX] {
            assert_eq!(disk_size(wrong).unwrap_err().code, "SR_BACKEND_FAILURE_79", "{wrong}");
        }
    }
}
