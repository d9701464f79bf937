//! Power failures at every moment of a repair, and of taking one back, with what was not synced lost, kept and torn.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use testkit::crash::{Options as States, Recording};
use testkit::scratch;
use vhd_core::repair::{self, Options, RepairError, UndoError};
use vhd_core::{
    BlockSize, ByteCount, ChainOptions, Existing, Image, Lock, NewImage, NewKind, OpenError, Sector, SectorRange,
    Volume, create_file,
};

use crate::case::End;
use crate::program::vhd_tool;
use crate::states::{side_by_side, torture};
use crate::table;

type Damage = fn(&mut Vec<u8>);

/// Damage to an image of which more or less is lost.
const DAMAGES: [(&str, Damage); 3] = [
    ("a footer", |bytes| bytes[..512].fill(0)),
    ("the end", |bytes| bytes.truncate(bytes.len() - 512 - 2500)),
    ("much", |bytes| {
        bytes[512..520].fill(7);
        bytes[1536 + 8..1536 + 12].fill(0x33);
        bytes[1536 + 512..1536 + 1536].fill(1);
        bytes.truncate(bytes.len() - 100);
    }),
];

fn image(folder: &Path) -> PathBuf {
    folder.join("disk.vhd")
}

/// A folder with a damaged image of some blocks.
fn damaged(damage: Damage) -> TempDir {
    let folder = scratch::folder();
    let path = image(folder.path());
    let kind = NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() };
    create_file(&path, &NewImage::new(ByteCount(512 << 10), kind), Existing::Keep).unwrap();
    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    for (start, end) in [(0, 8), (17, 30), (800, 806)] {
        let range = SectorRange::between(Sector(start), Sector(end));
        volume.write(range, &testkit::pattern::fill(range, 1)).unwrap();
    }
    volume.close().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    folder
}

/// The damaged image, and what a repair makes of it.
struct Known {
    damaged: Vec<u8>,
    mended: Vec<u8>,
}

impl Known {
    /// Checks what is left in a folder by taking the repair back there, and by repairing it in a copy; tells whether
    /// something had been interrupted.
    fn check(&self, folder: &Path, other: &Path) -> bool {
        let (path, copy) = (image(folder), image(other));
        match repair::take_back(&path, &Options::default()) {
            Ok(_) | Err(RepairError::Undo(UndoError::Missing { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(fs::read(&path).unwrap() == self.damaged, "not what it was");
        let resumed = repair::file(&copy, &Options::default()).unwrap().resumed;
        assert!(fs::read(&copy).unwrap() == self.mended, "not what it should be");
        resumed
    }
}

fn try_states(what: &str, folder: &Path, arguments: &[&str], known: &Known, after: &[u8]) -> usize {
    let recording = Recording::of(folder, vhd_tool(arguments).current_dir(folder));
    assert!(recording.output().status.success(), "{what}: {:?}", recording.output());
    let (states, resumed, failures) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    side_by_side(recording.states(States { singles: 24, random: 300 * torture(), seed: 1 }), |state| {
        let folders = [scratch::folder(), scratch::folder()];
        folders.iter().for_each(|folder| state.write_to(folder.path()));
        let checked = catch_unwind(AssertUnwindSafe(|| {
            if state.has_ended() {
                assert!(fs::read(image(folders[0].path())).unwrap() == after, "not durable");
            }
            known.check(folders[0].path(), folders[1].path())
        }));
        states.fetch_add(1, Ordering::Relaxed);
        match checked {
            Ok(was) => _ = resumed.fetch_add(usize::from(was), Ordering::Relaxed),
            Err(panic) => {
                let why = panic.downcast_ref::<String>().cloned();
                let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned())).unwrap_or_default();
                failures.lock().unwrap().push(format!("{what}: {why}\n{}", state.describe()));
            }
        }
    });
    let (states, resumed) = (states.into_inner(), resumed.into_inner());
    testkit::tell!("{what}: {states} crash states tried, {resumed} of them interrupted repairs");
    assert!(resumed > 0, "{what}: nothing was interrupted");
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures, such as\n{}", failures.len(), failures.join("\n"));
    states
}

#[test]
fn power_failures_lose_neither_the_old_nor_the_new() {
    let mut states = 0;
    for (what, damage) in DAMAGES {
        let folder = damaged(damage);
        let path = image(folder.path());
        let damaged = fs::read(&path).unwrap();
        repair::file(&path, &Options::default()).unwrap();
        let mended = fs::read(&path).unwrap();
        repair::take_back(&path, &Options::default()).unwrap();
        assert!(fs::read(&path).unwrap() == damaged);
        let known = Known { damaged, mended };
        let (before, after) = (known.damaged.clone(), known.mended.clone());

        states += try_states(what, folder.path(), &["repair", "disk.vhd"], &known, &after);
        let back = format!("{what}, taken back");
        states += try_states(&back, folder.path(), &["repair", "disk.vhd", "--undo"], &known, &before);
    }
    assert!(states >= 80, "{states} states");
}

/// A header half of which is from before a merge has linked its image to another parent: the repository's record knows
/// the other half.
#[test]
fn a_torn_change_of_the_parent_is_finished_by_its_record() {
    let case = table::relink();
    let prepared = case.prepare();
    let copy = prepared.copy();
    let recording = Recording::of(copy.path(), &prepared.case.program.command(copy.path()));
    let torn = AtomicUsize::new(0);
    side_by_side(recording.states(States { singles: 24, random: 400 * torture(), seed: 1 }), |state| {
        let folder = scratch::folder();
        state.write_to(folder.path());
        let path = folder.path().join("leaf.vhd");
        if !matches!(Image::open(&path, Lock::None), Err(OpenError::Header { .. })) {
            return;
        }
        torn.fetch_add(1, Ordering::Relaxed);
        let output = vhd_tool(&["repair", "leaf.vhd"]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", state.describe());
        Image::open(&path, Lock::None).unwrap();
        prepared.verify(folder.path(), End::Unknown);
    });
    testkit::tell!("{} torn headers finished", torn.load(Ordering::Relaxed));
    assert!(torn.into_inner() > 0);
}
