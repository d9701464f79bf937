//! A storage manager at work while a guest writes: commands at random moments, some of them in the middle of its writes.
//! The same is done with blktap's own programs, where they are on the PATH (`blktap-vhd-util`; `tapdisk` and `tap-ctl`): they
//! hold double and tests to be right.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use testkit::layout::assert_layout;
use testkit::random::Random;
use testkit::scratch;
use testkit::tapdisk::real::{self, RealTapdisk};
use testkit::tapdisk::{ANOTHER_SIZE, Tapdisk};

use super::guest::{Content, Guest, Opener};
use crate::program;

const LEAF: &str = "disk.vhd";

/// Whose vhd-util.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Util {
    Ours,
    Blktaps,
}

impl Util {
    fn run(self, here: &Path, args: &[&str]) {
        let mut command = match self {
            Self::Ours => program::process(here, args),
            Self::Blktaps => Command::new("blktap-vhd-util"),
        };
        let output = command.current_dir(here).args(if self == Self::Ours { &[] } else { args }).output();
        let output = output.expect("the program starts");
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

/// A node of the tree: its parent, and what a volume holds.
#[derive(Debug)]
struct Node {
    parent: Option<String>,
    content: Option<Content>,
}

/// A repository in which one volume is used by a guest.
struct Manager {
    util: Util,
    open: Opener,
    folder: TempDir,
    random: Random,
    guest: Guest,
    nodes: BTreeMap<String, Node>,
    /// The disk's size and the largest it can have, in MiB.
    size: u64,
    room: u64,
    made: usize,
    log: Vec<String>,
}

impl Manager {
    fn new(util: Util, open: Opener, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let folder = scratch::folder();
        let size = [64, 254, 30 << 10, 60 << 10, 1 << 20][random.below(5) as usize];
        let room = size + [0, 64, 10 << 10][random.below(3) as usize];
        util.run(folder.path(), &["create", "-n", LEAF, "-s", &size.to_string(), "-S", &room.to_string()]);
        let guest = Guest::start_by(open, &folder.path().join(LEAF), Content::new(size * 2048));
        let nodes = BTreeMap::from([(LEAF.to_owned(), Node { parent: None, content: None })]);
        Self { util, open, folder, random, guest, nodes, size, room, made: 0, log: Vec::new() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&mut self, args: &[&str]) {
        self.log.push(args.join(" "));
        self.util.run(self.folder.path(), args);
    }

    fn children(&self, name: &str) -> Vec<String> {
        let of = |node: &Node| node.parent.as_deref() == Some(name);
        self.nodes.iter().filter(|(_, node)| of(node)).map(|(name, _)| name.clone()).collect()
    }

    fn pick(&mut self, names: &[String]) -> Option<String> {
        (!names.is_empty()).then(|| names[self.random.below(names.len() as u64) as usize].clone())
    }

    /// A command that changes nothing of what is read, whatever it is given for. Of the leaf the end footer is missing.
    fn harmless(&mut self) -> Vec<String> {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        let any = self.pick(&names).unwrap_or_default();
        let parent = self.nodes[LEAF].parent.clone();
        let hidden = (self.random.below(2)).to_string();
        let command = match (self.random.below(6), &parent) {
            (0, _) => vec!["query", "--debug", "-vsafp", "-n", &any],
            (1, _) => vec!["check", "--debug", "-i", "-n", &any],
            (2, _) => vec!["scan", "-f", "-m", "*.vhd"],
            (3, Some(parent)) => vec!["modify", "--debug", "-p", parent, "-n", LEAF],
            (4, _) => vec!["set", "--debug", "-n", LEAF, "-f", "hidden", "-v", &hidden],
            _ => vec!["set", "--debug", "-n", &any, "-f", "hidden", "-v", &hidden],
        };
        command.into_iter().map(str::to_owned).collect()
    }

    /// The guest writes, and in the middle of it, perhaps, something happens.
    fn write(&mut self) {
        let sectors = self.guest.somewhere(&mut self.random);
        let command = self.harmless();
        // A check finds a block that is not whole yet.
        let is_apt = command[0] != "check";
        let mut moment = if is_apt { self.random.below(6) } else { 9 };
        self.log.push(format!("write {sectors:?}, after {moment}: {command:?}"));
        let (util, here) = (self.util, self.folder.path().to_path_buf());
        self.guest.write_beside(sectors, &mut || {
            if moment == 0 {
                util.run(&here, &command.iter().map(String::as_str).collect::<Vec<_>>());
            }
            moment = moment.wrapping_sub(1);
        });
    }

    fn unpause(&mut self) {
        self.guest.disk.unpause().unwrap_or_else(|error| panic!("{error} after {:#?}", self.log));
    }

    fn refresh(&mut self) {
        self.log.push("refresh".into());
        self.guest.disk.pause().expect("the leaf is writable");
        self.unpause();
    }

    fn snapshot(&mut self) {
        self.made += 1;
        let (base, snapshot) = (format!("base{}.vhd", self.made), format!("snapshot{}.vhd", self.made));
        self.guest.disk.pause().expect("the leaf is writable");
        fs::rename(self.at(LEAF), self.at(&base)).expect("the leaf is there");
        let room = self.room.to_string();
        for child in [LEAF, &snapshot] {
            self.run(&["snapshot", "--debug", "-n", child, "-p", &base, "-S", &room]);
        }
        self.run(&["set", "--debug", "-n", &base, "-f", "hidden", "-v", "1"]);
        let parent = self.nodes.get_mut(LEAF).and_then(|leaf| leaf.parent.replace(base.clone()));
        // An empty leaf stands for its parent: the snapshot's parent is that then.
        let actual = |name: &str| parent_of(&self.at(name)).unwrap_or_else(|| base.clone());
        let (of_leaf, of_snapshot) = (actual(LEAF), actual(&snapshot));
        self.nodes.insert(LEAF.into(), Node { parent: Some(of_leaf), content: None });
        self.nodes.insert(snapshot, Node { parent: Some(of_snapshot), content: Some(self.guest.content.clone()) });
        self.nodes.insert(base.clone(), Node { parent, content: None });
        if self.children(&base).is_empty() {
            fs::remove_file(self.at(&base)).expect("the file is there");
            self.nodes.remove(&base);
        }
        self.unpause();
    }

    fn delete(&mut self) {
        let snapshots: Vec<String> = self.nodes.keys().filter(|name| name.starts_with("snapshot")).cloned().collect();
        let Some(snapshot) = self.pick(&snapshots) else { return };
        self.log.push(format!("delete {snapshot}"));
        fs::remove_file(self.at(&snapshot)).expect("the file is there");
        self.nodes.remove(&snapshot);
    }

    /// Merges an inner node into its parent, which has no other child and is made as large: data first, then each child is
    /// relinked, and the guest writes all the time. Last the leaf's tapdisk is made to open its chain again, and the node is deleted.
    fn coalesce(&mut self) {
        let is_only = |parent: &Option<String>| parent.as_ref().is_some_and(|parent| self.children(parent).len() == 1);
        let inner = self.nodes.iter().filter(|(name, node)| name.starts_with("base") && is_only(&node.parent));
        let inner: Vec<String> = inner.map(|(name, _)| name.clone()).collect();
        let Some(node) = self.pick(&inner) else { return };
        let parent = self.nodes[&node].parent.clone().expect("it was chosen for that");
        self.run(&["check", "--debug", "-n", &node]);
        self.run(&["check", "--debug", "-n", &parent]);
        let size = size_of(&self.at(&node));
        if size_of(&self.at(&parent)) < size {
            self.run(&["resize", "--debug", "-s", &size.to_string(), "-n", &parent, "-f"]);
        }
        self.run(&["coalesce", "--debug", "-n", &node]);
        self.assert();
        for child in self.children(&node) {
            self.write();
            self.run(&["modify", "--debug", "-p", &parent, "-n", &child]);
            if let Some(child) = self.nodes.get_mut(&child) {
                child.parent = Some(parent.clone());
            }
            self.assert();
        }
        self.write();
        self.refresh();
        fs::remove_file(self.at(&node)).expect("the file is there");
        self.nodes.remove(&node);
    }

    /// A disk of another size is a disk for a new tapdisk.
    fn resize(&mut self) {
        if self.size == self.room {
            return;
        }
        self.size = (self.size + 2 * (1 + self.random.below(40))).min(self.room);
        self.guest.disk.pause().expect("the leaf is writable");
        let size = self.size.to_string();
        self.run(&["resize", "--debug", "-s", &size, "-n", LEAF, "-f"]);
        let error = self.guest.disk.unpause().expect_err("its size has changed");
        assert_eq!(error.raw_os_error(), Some(ANOTHER_SIZE));
        let mut content = self.guest.content.clone();
        content.grow(self.size * 2048);
        self.guest = Guest::start_by(self.open, &self.at(LEAF), content);
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..8 => self.write(),
            8 => self.snapshot(),
            9 => self.delete(),
            10 | 11 => self.coalesce(),
            12 => self.refresh(),
            13 => self.resize(),
            _ => {
                let command = self.harmless();
                self.run(&command.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
        self.assert();
    }

    /// Compares all disks, the guest's with the eyes of its tapdisk and with those of the library.
    fn assert(&mut self) {
        let what = format!("after {:#?}", self.log);
        self.guest.assert(&what);
        self.guest.content.assert_file(&what, &self.at(LEAF));
        for (name, node) in &self.nodes {
            if let Some(content) = &node.content {
                content.assert_file(&what, &self.at(name));
            }
        }
    }

    fn end(mut self) {
        self.guest.disk.pause().expect("the leaf is writable");
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            self.run(&["check", "--debug", "-n", &name]);
            assert_layout(&self.at(&name));
        }
        let what = format!("at the end of {:#?}", self.log);
        self.guest.content.assert_tapdisk(&what, &self.at(LEAF));
        self.guest.content.assert_file(&what, &self.at(LEAF));
    }
}

/// The name of the parent that an image's header has.
fn parent_of(path: &Path) -> Option<String> {
    let bytes = fs::read(path).expect("the image is there");
    let units = bytes[512 + 64..512 + 576].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let name: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    (!name.is_empty()).then(|| String::from_utf16(&name).expect("tests use UTF-8 names"))
}

/// The size in MiB that the copy of an image's footer has.
fn size_of(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("the image is there");
    bytes[48..56].iter().fold(0, |size, &byte| size << 8 | u64::from(byte)) >> 20
}

const DOUBLE: Opener = |path| Ok(Box::new(Tapdisk::open(path)?));
const REAL: Opener = |path| Ok(Box::new(RealTapdisk::open(path)?));

/// Tries seeds; TORTURE times as many, and others by SEED.
fn at_work(util: Util, open: Opener, seeds: std::ops::Range<u64>) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (other, torture) = (number("SEED").unwrap_or(0), number("TORTURE").unwrap_or(1));
    let count = (seeds.end - seeds.start) * torture;
    let first = seeds.start + 1000 * other;
    for seed in first..first + count {
        let mut manager = Manager::new(util, open, seed);
        for _ in 0..30 {
            manager.step();
        }
        manager.end();
    }
}

fn blktaps_program_is_there() -> bool {
    let is_there = Command::new("blktap-vhd-util").arg("query").output().is_ok();
    if !is_there {
        testkit::tell!("blktap-vhd-util is not on the PATH: nothing is done with it");
    }
    is_there
}

#[test]
fn a_manager_with_our_program() {
    at_work(Util::Ours, DOUBLE, 0..8);
}

#[test]
fn a_manager_with_our_program_again() {
    at_work(Util::Ours, DOUBLE, 8..16);
}

#[test]
fn a_manager_with_our_program_and_the_real_tapdisk() {
    if real::is_installed() {
        at_work(Util::Ours, REAL, 16..20);
    }
}

#[test]
fn a_manager_with_blktaps_program() {
    if blktaps_program_is_there() {
        at_work(Util::Blktaps, DOUBLE, 0..6);
    }
}

#[test]
fn a_manager_with_blktaps_programs_only() {
    if blktaps_program_is_there() && real::is_installed() {
        at_work(Util::Blktaps, REAL, 0..2);
    }
}
