//! Processes killed at random moments, again and again in one repository.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use testkit::{pattern, scene, scratch};
use vhd_core::{BlockSize, ByteCount, Existing, NewImage, NewKind, Sector, SectorRange, create_file};

use crate::case::open;
use crate::program::{Program, collect, vhd_tool};
use crate::states::torture;

/// The sectors of each volume.
const SECTORS: u64 = 40960;
/// Volumes at most; more only take time.
const MOST: usize = 6;

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a process may have changed when it was killed.
enum Change {
    Nothing,
    Appears(String, Vec<u8>),
    Disappears(String),
    Written(String, SectorRange, Vec<u8>),
}

struct Rounds {
    folder: tempfile::TempDir,
    model: BTreeMap<String, Vec<u8>>,
    random: Random,
    made: usize,
    tag: u16,
    in_merge: usize,
    resumed: usize,
    done: BTreeMap<&'static str, usize>,
}

impl Rounds {
    fn new() -> Self {
        let folder = scratch::folder();
        let mut rounds = Self {
            folder,
            model: BTreeMap::new(),
            random: Random(0x5eed_5eed_5eed_5eed),
            made: 0,
            tag: 0,
            in_merge: 0,
            resumed: 0,
            done: BTreeMap::new(),
        };
        for (name, kind) in [
            ("a.vhd", NewKind::Dynamic { block_size: BlockSize::new(65536).unwrap() }),
            ("b.vhd", NewKind::Dynamic { block_size: BlockSize::DEFAULT }),
            ("c.vhd", NewKind::Fixed),
        ] {
            let new = NewImage::new(ByteCount(SECTORS * 512), kind);
            create_file(&rounds.folder.path().join(name), &new, Existing::Keep).unwrap();
            rounds.model.insert(name.to_owned(), vec![0; SECTORS as usize * 512]);
        }
        rounds
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn pick(&mut self) -> String {
        let number = self.random.below(self.model.len() as u64) as usize;
        self.model.keys().nth(number).unwrap().clone()
    }

    fn range(&mut self) -> SectorRange {
        let start = self.random.below(SECTORS - 64);
        let count = 1 + self.random.below((SECTORS - start).min(20000));
        SectorRange::between(Sector(start), Sector(start + count))
    }

    fn start(&self, command: &mut Command) -> Child {
        command.current_dir(self.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn start_write(&mut self) -> (Child, Change) {
        let (volume, range) = (self.pick(), self.range());
        self.tag = self.tag.wrapping_add(1);
        let data = pattern::fill(range, self.tag);
        let offset = range.start.byte_offset().to_string();
        let mut child = self.start(vhd_tool(&["write", &volume, "--offset", &offset]).stdin(Stdio::piped()));
        let mut input = child.stdin.take().unwrap();
        let bytes = data.clone();
        // Whoever is killed does not read on.
        thread::spawn(move || _ = input.write_all(&bytes));
        let mut new = self.model[&volume].clone();
        new[range.start.byte_offset() as usize..][..data.len()].copy_from_slice(&data);
        (child, Change::Written(volume, range, new))
    }

    fn start_snapshot(&mut self) -> (Child, Change) {
        let volume = self.pick();
        self.made += 1;
        let name = format!("s{}.vhd", self.made);
        let verb = if self.made.is_multiple_of(2) { "snapshot" } else { "clone" };
        let child = self.start(&mut vhd_tool(&[verb, &volume, &name]));
        (child, Change::Appears(name, self.model[&volume].clone()))
    }

    fn start_delete(&mut self) -> (Child, Change) {
        let volume = self.pick();
        (self.start(&mut vhd_tool(&["delete", &volume])), Change::Disappears(volume))
    }

    fn start_collect(&mut self) -> (Child, Change) {
        let mut command = Program::CollectSlowly.command(self.path());
        (self.start(&mut command), Change::Nothing)
    }

    fn write(&mut self) {
        let (mut child, change) = self.start_write();
        assert!(child.wait().unwrap().success());
        if let Change::Written(name, _, new) = change {
            self.model.insert(name, new);
        }
    }

    /// Leaves something to be merged.
    fn make_work(&mut self) {
        let (mut child, change) = self.start_snapshot();
        assert!(child.wait().unwrap().success());
        for _ in 0..3 {
            self.write();
        }
        // What has just been written to cannot be told from what is being written to: its merge would not be resumed.
        thread::sleep(Duration::from_millis(60));
        if let Change::Appears(name, _) = change {
            assert!(vhd_tool(&["delete", &name]).current_dir(self.path()).status().unwrap().success());
        }
    }

    /// Starts something.
    fn start_any(&mut self) -> (&'static str, (Child, Change)) {
        match self.random.below(10) {
            0..=1 => ("write", self.start_write()),
            2..=3 if self.model.len() < MOST => ("snapshot", self.start_snapshot()),
            2..=4 if self.model.len() > 4 => ("delete", self.start_delete()),
            _ => {
                self.make_work();
                ("collect", self.start_collect())
            }
        }
    }

    fn kill(&mut self, mut child: Child, after: Duration) -> bool {
        thread::sleep(after);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        ended.is_none()
    }

    /// Opens the repository and checks everything; the model takes over what has happened.
    fn verify(&mut self, changes: Vec<Change>, context: &str) {
        let recovered = open(self.path());
        self.in_merge += usize::from(!recovered.interrupted.is_empty());
        let found = scene::volumes(self.path());
        for change in changes {
            match change {
                Change::Nothing => {}
                Change::Appears(name, content) => {
                    if found.contains_key(&name) {
                        self.model.insert(name, content);
                    }
                }
                Change::Disappears(name) => {
                    if !found.contains_key(&name) {
                        self.model.remove(&name);
                    }
                }
                Change::Written(name, range, new) => {
                    // Each sector is old or new. What was deleted meanwhile is not there.
                    let Some(now) = found.get(&name) else { continue };
                    let old = &self.model[&name];
                    for sector in range.start.0 as usize..range.end.0 as usize {
                        let at = sector * 512..sector * 512 + 512;
                        let is_either = now[at.clone()] == old[at.clone()] || now[at.clone()] == new[at];
                        assert!(is_either, "{context}: sector {sector} of {name}");
                    }
                    let mut settled = old.clone();
                    let bytes = range.start.byte_offset() as usize..range.end.byte_offset() as usize;
                    settled[bytes.clone()].copy_from_slice(&now[bytes]);
                    self.model.insert(name, settled);
                }
            }
        }
        assert!(found.keys().eq(self.model.keys()), "{context}: {:?}, not {:?}", found.keys(), self.model.keys());
        for (name, content) in &found {
            assert!(*content == self.model[name], "{context}: {name}");
        }
        self.check(context);
    }

    /// Checks all images, once the volumes have been opened, which mends what an interrupted write has left.
    fn check(&self, context: &str) {
        for name in self.model.keys() {
            let path = self.path().join(name);
            let volume = scene::patiently(|| vhd_core::Volume::open(&path, &vhd_core::ChainOptions::default()));
            volume.unwrap().close().unwrap_or_else(|error| panic!("{context}: {error}"));
        }
        scene::check(self.path());
    }

    fn round(&mut self, number: usize) {
        let context = |what: &str| format!("round {number}, {what}");
        let in_merge = self.in_merge;
        // Two at once in every fourth round: a collection, and somebody who needs what is being merged.
        if number.is_multiple_of(4) {
            self.make_work();
            let (collecting, _) = self.start_collect();
            let delay = Duration::from_millis(self.random.below(25));
            thread::sleep(delay);
            let (what, (child, change)) = match self.random.below(2) {
                0 if self.model.len() < MOST => ("snapshot", self.start_snapshot()),
                _ if self.model.len() > 3 => ("delete", self.start_delete()),
                _ => ("snapshot", self.start_snapshot()),
            };
            let delay = Duration::from_millis(self.random.below(40));
            self.kill(collecting, delay);
            let delay = Duration::from_millis(self.random.below(10));
            self.kill(child, delay);
            *self.done.entry("two at once").or_default() += 1;
            self.verify(vec![change], &context(&format!("collect with {what}")));
        } else {
            let (what, (child, change)) = self.start_any();
            let delay = Duration::from_millis(self.random.below(if what == "collect" { 300 } else { 10 }));
            if self.kill(child, delay) {
                *self.done.entry(what).or_default() += 1;
            } else {
                *self.done.entry("ended before").or_default() += 1;
            }
            self.verify(vec![change], &context(what));
        }
        // Now and then somebody has the time to finish.
        let interrupted = self.in_merge > in_merge;
        if number.is_multiple_of(10) || interrupted && number.is_multiple_of(2) {
            let collected = collect(self.path()).unwrap();
            assert!(collected.failed.is_empty(), "{collected:?}");
            self.resumed += collected.merged.iter().filter(|merged| merged.outcome.resumed.0 > 0).count();
            // A merge that cannot go on now, because its target has got another child for instance, may be resumed later.
            let recovered = open(self.path());
            assert_eq!(scene::state_files(self.path()).len(), recovered.interrupted.len(), "{recovered:?}");
            self.verify(Vec::new(), &context("collected"));
        }
        for _ in 0..2 {
            self.write();
        }
    }
}

#[test]
fn kills_lose_nothing() {
    let kills = 200 * torture().min(20);
    let mut rounds = Rounds::new();
    for number in 1..=kills {
        rounds.round(number);
    }
    let each: Vec<String> = rounds.done.iter().map(|(what, count)| format!("{what} {count}")).collect();
    testkit::tell!(
        "{kills} kills: {}; hit in mid-merge {}, merges resumed {}",
        each.join(", "),
        rounds.in_merge,
        rounds.resumed
    );
    assert!(rounds.in_merge > 10, "merges were hit {} times", rounds.in_merge);
}
