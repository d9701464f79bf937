//! Taking a repair back, and what speaks against it.

use std::fs;

use testkit::golden;
use testkit::loop_device::LoopDevice;
use vhd_core::repair::{self, Options, RepairError, TakenBack, UndoError};
use vhd_core::{FileOffset, FileStorage, Image, Storage};

use super::{Patient, small};
use crate::sectors;

fn damaged() -> Vec<u8> {
    let mut bytes = small();
    bytes[..512].fill(0);
    bytes
}

fn undo_error(result: Result<TakenBack, RepairError>) -> UndoError {
    match result.unwrap_err() {
        RepairError::Undo(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn without_an_undo_file_there_is_nothing_to_take_back() {
    let patient = Patient::new(damaged());
    let result = repair::container_taken_back(&patient.container(), &patient.undo());
    assert!(matches!(undo_error(result), UndoError::Missing { .. }));
}

#[test]
fn an_image_that_has_changed_since_is_not_taken_back() {
    for change in ["content", "length"] {
        let patient = Patient::new(damaged());
        patient.repair().unwrap();
        let mut bytes = patient.memory.to_vec();
        match change {
            "content" => patient.memory.write_at(&[1], FileOffset(100)).unwrap(),
            _ => patient.memory.write_at(&[1], FileOffset(bytes.len() as u64)).unwrap(),
        }
        bytes = patient.memory.to_vec();
        let result = repair::container_taken_back(&patient.container(), &patient.undo());
        assert!(matches!(undo_error(result), UndoError::Changed { .. }), "{change}");
        assert!(patient.memory.to_vec() == bytes && patient.undo().exists(), "{change}");
    }
}

/// The end of the last block was gone, and is a hole now, which a guest may write to: that is not cut off again.
#[test]
fn what_a_guest_has_written_into_what_was_added_is_kept() {
    let mut bytes = small();
    bytes.truncate(bytes.len() - 512 - 2048);
    let patient = Patient::new(bytes);
    patient.repair().unwrap();
    let image = Image::writable_from_container(patient.container()).unwrap();
    image.write(sectors(46, 1), &[9; 512]).unwrap();
    image.close().unwrap();
    let written = patient.memory.to_vec();
    let result = repair::container_taken_back(&patient.container(), &patient.undo());
    assert!(matches!(undo_error(result), UndoError::Changed { .. }));
    assert!(patient.memory.to_vec() == written);
}

/// Whatever byte of an undo file changes, nothing is written.
#[test]
fn a_damaged_undo_file_is_refused() {
    let patient = Patient::new(damaged());
    patient.repair().unwrap();
    let (repaired, undo) = (patient.memory.to_vec(), fs::read(patient.undo()).unwrap());
    let end = undo.len() - 512;
    for at in (0..60).chain(64..end) {
        let mut bad = undo.clone();
        bad[at] ^= 0x10;
        fs::write(patient.undo(), &bad).unwrap();
        let result = repair::container_taken_back(&patient.container(), &patient.undo());
        assert!(matches!(undo_error(result), UndoError::Damaged { .. }), "byte {at}");
        assert!(patient.memory.to_vec() == repaired, "byte {at}");
    }
    for length in [0, 8, 63, 64, 80, end - 1] {
        fs::write(patient.undo(), &undo[..length]).unwrap();
        let result = repair::container_taken_back(&patient.container(), &patient.undo());
        assert!(matches!(undo_error(result), UndoError::Damaged { .. }), "{length} bytes");
    }
    // Nor is it overwritten: it may be all there is of what was before.
    let error = patient.repair().unwrap_err();
    assert!(matches!(error, RepairError::Undo(UndoError::Damaged { .. })), "{error}");
}

#[test]
fn the_undo_file_of_another_image_is_refused() {
    let (patient, other) = (Patient::new(damaged()), Patient::new(damaged()));
    other.repair().unwrap();
    patient.repair().unwrap();
    let before = patient.memory.to_vec();
    let result = repair::container_taken_back(&patient.container(), &other.undo());
    assert!(matches!(undo_error(result), UndoError::OtherImage { .. }));
    assert!(patient.memory.to_vec() == before);
}

#[test]
fn a_second_repair_can_be_taken_back_and_not_the_first() {
    let patient = Patient::new(damaged());
    patient.repair().unwrap();
    patient.memory.write_at(&[0; 512], FileOffset(0)).unwrap();
    let before = patient.memory.to_vec();
    patient.repair().unwrap();
    repair::container_taken_back(&patient.container(), &patient.undo()).unwrap();
    assert!(patient.memory.to_vec() == before && !patient.undo().exists());
}

#[test]
fn a_preview_tells_the_same_and_changes_nothing() {
    let folder = golden::unpack(&["bat-beyond-eof.vhd"]);
    let path = folder.path().join("bat-beyond-eof.vhd");
    let before = fs::read(&path).unwrap();
    let preview = repair::preview(&path, &Options::default()).unwrap();
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let done = repair::file(&path, &Options::default()).unwrap();
    assert_eq!((preview.mended, preview.lost, preview.changed), (done.mended, done.lost, done.changed));
    assert_eq!((preview.undo, done.undo), (None, Some(folder.path().join("bat-beyond-eof.vhd.undo"))));
}

#[test]
fn an_image_in_use_is_not_repaired() {
    let folder = golden::unpack(&["no-first-footer.vhd"]);
    let path = folder.path().join("no-first-footer.vhd");
    let _user = FileStorage::open(&path, vhd_core::Lock::Shared).unwrap();
    let error = repair::file(&path, &Options::default()).unwrap_err();
    assert!(matches!(error, RepairError::Storage(_)), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The undo file is beside the image itself, and belongs to who may read that.
#[test]
fn a_link_to_an_image_leads_to_its_undo_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = golden::unpack(&["no-first-footer.vhd"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.vhd");
    std::os::unix::fs::symlink(folder.path().join("no-first-footer.vhd"), &link).unwrap();
    let undo = repair::file(&link, &Options::default()).unwrap().undo.unwrap();
    assert_eq!(undo, folder.path().canonicalize().unwrap().join("no-first-footer.vhd.undo"));
    assert_eq!(fs::metadata(&undo).unwrap().permissions().mode() & 0o777, 0o600);
    repair::take_back(&link, &Options::default()).unwrap();
}

/// Needs root, for a loop device.
#[test]
fn a_device_needs_a_folder_for_its_undo_file() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let device = LoopDevice::new(&folder.path().join("disk"), 1 << 20);
    let mut bytes = small();
    bytes.resize(1 << 20, 0);
    fs::write(&device.path, &bytes).unwrap();
    let refused = repair::file(&device.path, &Options::default()).unwrap_err();
    assert!(matches!(refused, RepairError::Undo(UndoError::Device { .. })), "{refused}");

    let options = Options { backup: Some(backup.path().into()), ..Options::default() };
    let repaired = repair::file(&device.path, &options).unwrap();
    assert_eq!(repaired.mended[0].code, "footer-end-lost");
    let after = fs::read(&device.path).unwrap();
    assert!(after[after.len() - 512..] == bytes[..512] && after[..after.len() - 512] == bytes[..after.len() - 512]);
    let undo = repaired.undo.unwrap();
    assert_eq!(undo.parent(), Some(backup.path().canonicalize().unwrap().as_path()));
    repair::take_back(&device.path, &options).unwrap();
    assert!(fs::read(&device.path).unwrap() == bytes && !undo.exists());
}
