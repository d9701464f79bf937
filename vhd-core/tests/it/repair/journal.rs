//! A resize of blktap's that was interrupted.

use std::fs;
use std::path::Path;

use testkit::golden::{self, Golden};
use testkit::{guest_sha256, sha256};
use vhd_core::repair::{self, JournalError, Options, RepairError};
use vhd_core::{Chain, ChainOptions};

fn poisoned() -> Golden {
    golden::manifest().into_iter().find(|image| image.journal.is_some()).unwrap()
}

fn with_journal(journal: &Path) -> Options {
    Options { journal: Some(journal.into()), ..Options::default() }
}

/// Where the end of the journal is told, in the order of the host.
const END: std::ops::Range<usize> = 56..64;

#[test]
fn it_is_taken_back_with_the_journal_in_its_folder_in_either_byte_order() {
    let image = poisoned();
    for big_endian in [false, true] {
        let folder = golden::unpack(&["poisoned.vhd"]);
        let path = folder.path().join("poisoned.vhd");
        let mut journal = golden::bytes("poisoned.journal");
        if big_endian {
            journal[END].reverse();
        }
        fs::write(folder.path().join("whatever"), journal).unwrap();
        let before = sha256(&fs::read(&path).unwrap());
        let repaired = repair::file(&path, &Options::default()).unwrap();
        assert_eq!(repaired.mended[0].code, "resize-unfinished");
        assert_eq!(repaired.mended.len(), 1);
        assert_eq!(Some(sha256(&fs::read(&path).unwrap())), image.sha256_after_revert);
        let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
        assert_eq!(guest_sha256(&chain).ok(), image.guest_sha256_after_revert);
        assert!(folder.path().join("whatever").exists());
        drop(chain);

        repair::take_back(&path, &Options::default()).unwrap();
        assert_eq!(sha256(&fs::read(&path).unwrap()), before);
    }
}

/// What was logged and not yet counted has not been done.
#[test]
fn a_torn_last_entry_does_not_count() {
    let folder = golden::unpack(&["poisoned.vhd", "poisoned.journal"]);
    let (path, journal) = (folder.path().join("poisoned.vhd"), folder.path().join("poisoned.journal"));
    let mut bytes = golden::bytes("poisoned.journal");
    bytes.extend_from_slice(&[0xaa; 700]);
    fs::write(&journal, bytes).unwrap();
    repair::file(&path, &Options::default()).unwrap();
    assert_eq!(Some(sha256(&fs::read(&path).unwrap())), poisoned().sha256_after_revert);
}

#[test]
fn without_the_one_journal_that_is_its_own_nothing_is_done() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    let path = folder.path().join("poisoned.vhd");
    let before = fs::read(&path).unwrap();
    let refused = |options: &Options| match repair::file(&path, options).unwrap_err() {
        RepairError::Journal(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(refused(&Options::default()), JournalError::Missing { .. }));

    let mut other = golden::bytes("poisoned.journal");
    other[8] ^= 1;
    fs::write(folder.path().join("other"), &other).unwrap();
    assert!(matches!(refused(&Options::default()), JournalError::Missing { .. }));
    assert!(matches!(refused(&with_journal(&folder.path().join("other"))), JournalError::OtherImage { .. }));
    for name in ["one", "two"] {
        fs::write(folder.path().join(name), golden::bytes("poisoned.journal")).unwrap();
    }
    assert!(matches!(refused(&Options::default()), JournalError::Several { .. }));
    assert!(fs::read(&path).unwrap() == before);
    repair::file(&path, &with_journal(&folder.path().join("two"))).unwrap();
}

#[test]
fn a_damaged_journal_is_refused_before_anything_is_written() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    let (path, journal) = (folder.path().join("poisoned.vhd"), folder.path().join("journal"));
    let before = fs::read(&path).unwrap();
    let sound = golden::bytes("poisoned.journal");
    // A byte of: cookie, number of entries, end, an entry's cookie, kind, length, place, checksum, its bytes, the last.
    for at in [0, 35, 39, 57, 512, 523, 526, 535, 537, 600, 4288 + 100, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x81;
        fs::write(&journal, bytes).unwrap();
        let error = repair::file(&path, &with_journal(&journal)).unwrap_err();
        assert!(matches!(error, RepairError::Journal(JournalError::Damaged { .. })), "byte {at}: {error}");
        assert!(fs::read(&path).unwrap() == before, "byte {at}");
    }
    for length in [0, 63, 511, 512, 1000, sound.len() - 1] {
        fs::write(&journal, &sound[..length]).unwrap();
        let error = repair::file(&path, &with_journal(&journal)).unwrap_err();
        assert!(matches!(error, RepairError::Journal(JournalError::Damaged { .. })), "{length} bytes: {error}");
        assert!(fs::read(&path).unwrap() == before, "{length} bytes");
    }
    assert!(!folder.path().join("poisoned.vhd.undo").exists());
}
