//! `resize`, and `revert` of what it leaves where it is interrupted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use testkit::crash::{Options, Recording};
use testkit::inject::{CHANGING, fail_at, fail_from, kill_at};
use testkit::{golden, pattern, scratch};
use vhd_core::repair::revert_resize;
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, ParentLink, ReadOnly, Sector,
    SectorRange, Volume, create_file,
};

use crate::program::{done, ended, files, guest, refused};

fn header(path: &Path) -> (u64, u32) {
    let image: Image<ReadOnly> = Image::open(path, Lock::None).unwrap();
    (image.footer().current_size().0, image.header().unwrap().max_table_entries())
}

#[test]
fn a_disk_grows_under_a_journal() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "empty-10m.vhd"]);
    let before = done(folder.path(), &["read", "-r", "0", "-c", "131072", "-x", "-n", "leaf.vhd"]);
    let grow = ["resize", "--debug", "-s", "8193", "-n", "leaf.vhd", "-j", "jrnl"];
    assert_eq!(done(folder.path(), &grow), "");
    assert!(!folder.path().join("jrnl").exists());
    assert_eq!(header(&folder.path().join("leaf.vhd")), (8194 << 20, 4097));
    let now = done(folder.path(), &["read", "-r", "0", "-c", "131072", "-x", "-n", "leaf.vhd"]);
    assert!(now == before);
    done(folder.path(), &["check", "-t", "-b", "-n", "leaf.vhd"]);
    // It has that size already.
    done(folder.path(), &grow);

    done(folder.path(), &["resize", "-s", "2088960", "-n", "empty-10m.vhd", "-j", "jrnl"]);
    done(folder.path(), &["check", "-n", "empty-10m.vhd"]);
    assert!(!folder.path().join("jrnl").exists());
}

#[test]
fn within_the_bat_it_is_fast() {
    let folder = golden::unpack(&["prealloc.vhd", "empty-10m.vhd"]);
    let length = fs::metadata(folder.path().join("prealloc.vhd")).unwrap().len();
    assert_eq!(done(folder.path(), &["resize", "--debug", "-s", "4096", "-n", "prealloc.vhd", "-f"]), "");
    assert_eq!(header(&folder.path().join("prealloc.vhd")), (4 << 30, 2048));
    assert_eq!(fs::metadata(folder.path().join("prealloc.vhd")).unwrap().len(), length);
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "prealloc.vhd"]), "17 5\n");
    let before = files(folder.path());
    refused(folder.path(), &["resize", "-s", "4098", "-n", "prealloc.vhd", "-f"], 22);
    refused(folder.path(), &["resize", "-s", "12", "-n", "empty-10m.vhd", "-f"], 22);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn what_cannot_be_resized_is_left_alone() {
    let folder = golden::unpack(&["fixed-4m.vhd", "empty-10m.vhd", "poisoned.vhd", "meta.vhd", "mid.vhd"]);
    let before = files(folder.path());
    let cases: [(&[&str], i32); 9] = [
        (&["-s", "8", "-n", "empty-10m.vhd", "-j", "new"], 38),
        (&["-s", "8", "-n", "empty-10m.vhd", "-f"], 38),
        (&["-s", "8", "-n", "fixed-4m.vhd", "-j", "new"], 22),
        (&["-s", "100", "-n", "empty-10m.vhd", "-j", "meta.vhd"], 17),
        (&["-s", "2088962", "-n", "empty-10m.vhd", "-j", "new"], 22),
        (&["-s", "18446744073709551615", "-n", "empty-10m.vhd", "-j", "new"], 22),
        (&["-s", "200", "-n", "poisoned.vhd", "-j", "new"], 22),
        (&["-s", "200", "-n", "mid.vhd", "-j", "new"], 22),
        (&["-s", "100", "-n", "none.vhd", "-j", "new"], 2),
    ];
    for (args, code) in cases {
        refused(folder.path(), &[&["resize"], args].concat(), code);
    }
    refused(folder.path(), &["resize", "-s", "100", "-n", "empty-10m.vhd"], 22);
    refused(folder.path(), &["resize", "-s", "100", "-n", "empty-10m.vhd", "-j", "no/folder"], 2);
    assert_eq!(files(folder.path()), before);
}

/// A link by which the program has its other name, and what runs it in a folder.
struct Program(TempDir);

impl Program {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink(assert_cmd::cargo::cargo_bin!("vhd-tool"), folder.path().join("vhd-util")).unwrap();
        Self(folder)
    }

    fn command(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(self.0.path().join("vhd-util"));
        command.current_dir(folder).args(args);
        command
    }
}

const RESIZE: [&str; 7] = ["resize", "-s", "4", "-n", "disk.vhd", "-j", "jrnl"];
const REVERT: [&str; 5] = ["revert", "-n", "disk.vhd", "-j", "jrnl"];

/// An image of small blocks, and what `RESIZE` makes of it.
struct Case {
    name: &'static str,
    folder: TempDir,
    before: Vec<u8>,
    after: Vec<u8>,
    /// Entries of the journal with pieces of blocks.
    pieces: bool,
    locators: usize,
}

fn create(folder: &Path, name: &str, sectors: u64, parent: Option<&str>) -> Volume {
    let (path, block_size) = (folder.join(name), BlockSize::new(4096).unwrap());
    let kind = match parent {
        None => NewKind::Dynamic { block_size },
        Some(parent) => {
            let path = folder.join(parent);
            let id = Image::<ReadOnly>::open(&path, Lock::None).unwrap().footer().unique_id();
            NewKind::Differencing { block_size, parent: ParentLink::new(folder, &path, id).unwrap() }
        }
    };
    create_file(&path, &NewImage::new(ByteCount(sectors * 512), kind), Existing::Keep).unwrap();
    Volume::open(&path, &ChainOptions::default()).unwrap()
}

fn write(volume: &Volume, start: u64, end: u64) {
    let range = SectorRange::between(Sector(start), Sector(end));
    volume.write(range, &pattern::fill(range, 1)).unwrap();
}

impl Case {
    fn new(name: &'static str, program: &Program, pieces: bool, make: impl FnOnce(&Path)) -> Self {
        let folder = scratch::folder();
        make(folder.path());
        let image = || fs::read(folder.path().join("disk.vhd")).unwrap();
        let before = image();
        assert!(program.command(folder.path(), &RESIZE).status().unwrap().success(), "{name}");
        let after = image();
        fs::write(folder.path().join("disk.vhd"), &before).unwrap();
        let opened: Image<ReadOnly> = Image::open(&folder.path().join("disk.vhd"), Lock::None).unwrap();
        let locators = opened.header().unwrap().locators().count();
        Self { name, folder, before, after, pieces, locators }
    }

    fn all(program: &Program) -> [Self; 3] {
        let plain = |folder: &Path| {
            let volume = create(folder, "disk.vhd", 2048, None);
            [(0, 8), (17, 30), (2000, 2048)].into_iter().for_each(|(start, end)| write(&volume, start, end));
            volume.close().unwrap();
        };
        // Beyond the end of the disk, which is within a block, it holds what the disk held when it was larger.
        let leftovers = |folder: &Path| {
            let mut volume = create(folder, "disk.vhd", 2048, None);
            [(0, 8), (1000, 1100), (2000, 2048)].into_iter().for_each(|(start, end)| write(&volume, start, end));
            volume.set_size(ByteCount(1003 * 512)).unwrap();
            volume.close().unwrap();
        };
        // The larger parent must not show where the disk grows.
        let child = |folder: &Path| {
            let parent = create(folder, "parent.vhd", 6000, None);
            write(&parent, 900, 5000);
            parent.close().unwrap();
            let volume = create(folder, "disk.vhd", 1003, Some("parent.vhd"));
            [(3, 12), (999, 1003)].into_iter().for_each(|(start, end)| write(&volume, start, end));
            volume.close().unwrap();
        };
        [
            Self::new("plain", program, false, plain),
            Self::new("leftovers", program, true, leftovers),
            Self::new("child", program, true, child),
        ]
    }

    fn copy(&self) -> TempDir {
        let folder = scratch::folder();
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        folder
    }

    /// Checks what an interrupted resize has left, and reverts it; tells whether there was a journal.
    fn settle(&self, folder: &Path) -> bool {
        let (path, journal) = (folder.join("disk.vhd"), folder.join("jrnl"));
        let found = fs::read(&path).unwrap();
        if !journal.exists() {
            assert!(found == self.before || found == self.after, "without a journal, neither the old nor the new");
            return false;
        }
        self.check_journal(&fs::read(&journal).unwrap());
        // Whoever can write to it meanwhile writes to the old image or to the new one.
        let whole = [&self.before, &self.after].into_iter().any(|whole| found.get(512..) == whole.get(512..));
        assert!(whole || Image::open_writable(&path).is_err(), "half a resize can be written to");
        revert_resize(&path, &journal).unwrap();
        assert!(fs::read(&path).unwrap() == self.before, "not what it was");
        assert!(!journal.exists());
        true
    }

    /// Checks a journal of ours field by field.
    fn check_journal(&self, bytes: &[u8]) {
        let journal = parse(bytes);
        assert_eq!(journal.id, self.before[68..84]);
        assert_eq!(journal.footer_at, self.before.len() as u64 - 512);
        let mut kinds = vec![1, 2, 3];
        kinds.extend(vec![4; self.locators]);
        kinds.extend([5, 6, 7]);
        let metadata: Vec<u32> = journal.entries.iter().map(|entry| entry.kind).filter(|&kind| kind < 8).collect();
        assert_eq!(metadata, kinds);
        assert_eq!(journal.entries.len() > kinds.len(), self.pieces);
        for entry in &journal.entries {
            let at = entry.at as usize;
            assert!(self.before[at..at + entry.bytes.len()] == entry.bytes, "old bytes at {at}");
        }
    }
}

#[derive(Debug)]
struct Journal {
    id: Vec<u8>,
    footer_at: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    kind: u32,
    at: u64,
    bytes: Vec<u8>,
}

/// Reads a journal by its description alone, blktap's or ours.
fn parse(bytes: &[u8]) -> Journal {
    let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..8], b"vjournal");
    assert_eq!(u64_at(48), 512, "the first entry of other things");
    let end = u64::from_ne_bytes(bytes[56..64].try_into().unwrap());
    assert_eq!(end, bytes.len() as u64);
    assert!(bytes[80..512].iter().all(|&byte| byte == 0));
    let (mut entries, mut at, mut first_data) = (Vec::new(), 512, None);
    while at < bytes.len() {
        assert_eq!(u64_at(at), 0xaaaa_1234_4321_aaaa);
        let (kind, length) = (u32_at(at + 8), u32_at(at + 12) as usize);
        let mut entry = bytes[at..at + 32 + length].to_vec();
        entry[24..28].fill(0);
        let sum: u32 = entry.iter().map(|&byte| u32::from(byte)).sum();
        assert_eq!(u32_at(at + 24), !sum);
        if kind == 8 {
            first_data.get_or_insert(at as u64);
        }
        entries.push(Entry { kind, at: u64_at(at + 16), bytes: entry.split_off(32) });
        at += 32 + length;
    }
    assert!(entries.is_sorted_by_key(|entry| entry.kind), "metadata first");
    assert_eq!(u64_at(40), first_data.unwrap_or(end), "the first piece of a block");
    let data = entries.iter().filter(|entry| entry.kind == 8).count();
    assert_eq!([u32_at(32), u32_at(36)], [data as u32, (entries.len() - data) as u32]);
    Journal { id: bytes[8..24].to_vec(), footer_at: u64_at(24), entries }
}

#[test]
fn blktaps_journal_reads_as_ours_are_written() {
    let journal = parse(&golden::bytes("poisoned.journal"));
    let kinds: Vec<u32> = journal.entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [1, 2, 3, 5, 6, 7, 8, 8]);
    assert_eq!(journal.footer_at, journal.entries[0].at);
}

/// Tries something with a case; collects what fails.
fn attempt(failures: &mut Vec<String>, what: &str, check: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().cloned();
        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned())).unwrap_or_default();
        failures.push(format!("{what}: {why}"));
        true
    })
}

#[track_caller]
fn assert_none(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} failures, such as\n{}",
        failures.len(),
        failures[..failures.len().min(8)].join("\n")
    );
}

#[test]
fn power_failures_leave_what_revert_takes_back() {
    let (program, mut failures) = (Program::new(), Vec::new());
    for case in Case::all(&program) {
        let folder = case.copy();
        let recording = Recording::of(folder.path(), &program.command(folder.path(), &RESIZE));
        let (mut states, mut journals) = (0, 0);
        for state in recording.states(Options { singles: 12, random: 24, seed: 1 }) {
            let found = scratch::folder();
            state.write_to(found.path());
            let what = format!("{}, {}", case.name, state.describe());
            let had_journal = attempt(&mut failures, &what, || {
                if state.has_ended() {
                    assert!(fs::read(found.path().join("disk.vhd")).unwrap() == case.after, "not durable");
                    assert!(!found.path().join("jrnl").exists(), "not durable");
                }
                case.settle(found.path())
            });
            (states, journals) = (states + 1, journals + usize::from(had_journal));
        }
        testkit::tell!("{}: {states} states after power failures, {journals} of them with a journal", case.name);
        assert!(journals > 10);
    }
    assert_none(&failures);
}

/// Stops a resize at each of its system calls by `interfere`, and gives what that leaves to `check`, with the exit code.
fn at_each_call(
    program: &Program,
    case: &Case,
    interfere: impl Fn(&Command, &str, usize) -> testkit::inject::Injected,
    mut check: impl FnMut(&str, TempDir, Option<i32>),
) {
    for call in CHANGING {
        for number in 1.. {
            let folder = case.copy();
            let injected = interfere(&program.command(folder.path(), &RESIZE), call, number);
            if !injected.hit {
                break;
            }
            check(&format!("{}: {call} {number}", case.name), folder, injected.output.status.code());
        }
    }
}

#[test]
fn kills_leave_what_revert_takes_back_and_so_do_its_own() {
    let (program, mut failures) = (Program::new(), Vec::new());
    let mut left: BTreeMap<Vec<u8>, TempDir> = BTreeMap::new();
    for case in Case::all(&program) {
        let (mut kills, mut journals) = (0, 0);
        left.clear();
        at_each_call(&program, &case, kill_at, |what, folder, _| {
            let copy = scratch::folder();
            for entry in fs::read_dir(folder.path()).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            let had_journal = attempt(&mut failures, what, || case.settle(folder.path()));
            (kills, journals) = (kills + 1, journals + usize::from(had_journal));
            if had_journal {
                left.insert(fs::read(copy.path().join("disk.vhd")).unwrap(), copy);
            }
        });
        // Power fails while what a kill has left is reverted.
        let mut states = 0;
        for found in left.values() {
            let recording = Recording::of(found.path(), &program.command(found.path(), &REVERT));
            for state in recording.states(Options { singles: 4, random: 6, seed: 1 }) {
                let folder = scratch::folder();
                state.write_to(folder.path());
                let what = format!("{}, reverting, {}", case.name, state.describe());
                attempt(&mut failures, &what, || {
                    let had_journal = case.settle(folder.path());
                    let now = fs::read(folder.path().join("disk.vhd")).unwrap();
                    assert!(now == case.before && (had_journal || !folder.path().join("jrnl").exists()));
                    true
                });
                states += 1;
            }
        }
        testkit::tell!(
            "{}: {kills} kills, {journals} of them with a journal; {states} states after power failures in the reverts of {} of them",
            case.name,
            left.len()
        );
        assert!(journals > 5 && states > 20, "{journals} {states}");
    }
    assert_none(&failures);
}

#[test]
fn failing_calls_leave_the_old_or_the_new_or_what_revert_takes_back() {
    let (program, mut failures) = (Program::new(), Vec::new());
    for case in Case::all(&program) {
        for (error, lasts) in [("EIO", false), ("ENOSPC", false), ("ENOSPC", true)] {
            let (mut failed, mut journals) = (0, 0);
            let inject = if lasts { fail_from } else { fail_at };
            let interfere = |command: &Command, call: &str, number: usize| inject(command, call, number, error);
            at_each_call(&program, &case, interfere, |what, folder, code| {
                // The loader's calls are not ours.
                if code == Some(127) {
                    return;
                }
                let what = format!("{what}, {error} {lasts}");
                let had_journal = attempt(&mut failures, &what, || {
                    let now = fs::read(folder.path().join("disk.vhd")).unwrap();
                    match code {
                        Some(0) => assert!(now == case.after, "no error, and not the new"),
                        Some(5 | 28) => {}
                        code => panic!("{code:?}"),
                    }
                    case.settle(folder.path())
                });
                failed += usize::from(code != Some(0));
                journals += usize::from(had_journal);
            });
            let lasts = if lasts { "from then on" } else { "once" };
            testkit::tell!("{}: {error} {lasts}: {failed} failures, {journals} of them with a journal left", case.name);
            assert!(failed > 10);
        }
    }
    assert_none(&failures);
}

/// A resize that has ended, but whose journal is still there: it is taken back only if nobody has used the image since.
#[test]
fn a_forgotten_journal_does_not_take_back_what_was_written_since() {
    let program = Program::new();
    let [case, ..] = Case::all(&program);
    let folder = case.copy();
    assert!(fail_at(&program.command(folder.path(), &RESIZE), "unlink", 1, "EIO").hit);
    let (path, journal) = (folder.path().join("disk.vhd"), folder.path().join("jrnl"));
    assert!(fs::read(&path).unwrap() == case.after);
    let kept = fs::read(&journal).unwrap();
    done(folder.path(), &REVERT);
    assert!(fs::read(&path).unwrap() == case.before);

    // As above, and a guest writes to a new block.
    fs::write(&path, &case.after).unwrap();
    fs::write(&journal, kept).unwrap();
    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    write(&volume, 4000, 4001);
    volume.close().unwrap();
    let before = files(folder.path());
    refused(folder.path(), &REVERT, 116);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn what_grows_reads_as_zeros() {
    let program = Program::new();
    for case in Case::all(&program) {
        let folder = case.copy();
        let path = folder.path().join("disk.vhd");
        let read = |sectors: u64| {
            let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
            let mut bytes = vec![0; sectors as usize * 512];
            chain.read(SectorRange::between(Sector(0), Sector(sectors)), &mut bytes).unwrap();
            bytes
        };
        let old_size = header(&path).0 / 512;
        let before = read(old_size);
        let hash = guest(folder.path(), "disk.vhd");
        ended(folder.path(), &RESIZE, 0);
        let now = read(8192);
        assert!(now[..before.len()] == before && now[before.len()..].iter().all(|&byte| byte == 0), "{}", case.name);
        assert_ne!(guest(folder.path(), "disk.vhd"), hash);
        ended(folder.path(), &["check", "-t", "-n", "disk.vhd"], 0);
    }
}

/// Logical volumes: the journal is one, too, and is not removed.
#[test]
fn image_and_journal_on_devices() {
    use testkit::loop_device::LoopDevice;
    let folder = tempfile::tempdir().unwrap();
    let disk = LoopDevice::new(&folder.path().join("disk"), 12 << 20);
    let journal = LoopDevice::new(&folder.path().join("journal"), 6 << 20);
    let image = golden::bytes("empty-10m.vhd");
    let mut device = vec![0; 12 << 20];
    device[..image.len()].copy_from_slice(&image);
    let footer = device.len() - 512..device.len();
    device[footer].copy_from_slice(&image[..512]);
    fs::write(&disk.path, device).unwrap();
    let paths: Vec<PathBuf> = vec![disk.path.clone(), journal.path.clone()];
    let [disk, log] = [0, 1].map(|i| paths[i].to_str().unwrap().to_owned());
    let grow = ["resize", "-s", "4096", "-n", &disk, "-j", &log];
    assert_eq!(done(folder.path(), &grow), "");
    assert_eq!(header(Path::new(&disk)).0, 4 << 30);
    assert!(fs::read(&log).unwrap()[..512].iter().all(|&byte| byte == 0));
    refused(folder.path(), &["revert", "-n", &disk, "-j", &log], 22);

    // Stopped half way: there is a journal, and no second one; it is taken back.
    let program = Program::new();
    let before = fs::read(&disk).unwrap();
    let grow = ["resize", "-s", "8192", "-n", &disk, "-j", &log];
    assert!(kill_at(&program.command(folder.path(), &grow), "fdatasync", 6).hit);
    refused(folder.path(), &["check", "-n", "none", "-j"], 22);
    ended(folder.path(), &["check", "-n", &disk], 22);
    refused(folder.path(), &["resize", "-f", "-s", "8192", "-n", &disk], 22);
    assert_eq!(done(folder.path(), &["revert", "-n", &disk, "-j", &log]), "");
    let now = fs::read(&disk).unwrap();
    let tables = header(Path::new(&disk)).1 as usize * 4;
    assert!(now[..1536 + tables.min(1536)] == before[..1536 + tables.min(1536)]);
    assert!(now[now.len() - 512..] == before[before.len() - 512..]);
    done(folder.path(), &["check", "-n", &disk]);
}
