//! What is told to have changed, held against what differs, in trees that grow at random.
//!
//! The content of each volume is kept by the test itself, and that of a snapshot from when it was taken. Too little must
//! never be told; that not everything is told each time is checked, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use testkit::pattern;
use testkit::random::Random;
use vhd_core::{Sector, SectorCount, SectorRange};

use crate::disks::{bits, changed, collect, content, image, write};
use crate::plugin::{Plugin, Sr, arguments, program};

const MIB: u64 = 1 << 20;
/// Sectors in a block of 64 KiB.
const BLOCK: u64 = 128;

/// The blocks in which two disks differ; the shorter goes on with zeros.
fn differing(one: &[u8], other: &[u8]) -> BTreeSet<u64> {
    let length = one.len().max(other.len());
    let padded = |disk: &[u8]| disk.iter().copied().chain(std::iter::repeat(0)).take(length).collect::<Vec<u8>>();
    crate::disks::differing(&padded(one), &padded(other))
}

/// What a volume or snapshot must read as.
#[derive(Clone)]
struct Disk {
    /// Keys are made by the plugin: the same in no two runs, so that disks are picked in the order in which they came.
    number: usize,
    content: Vec<u8>,
    is_snapshot: bool,
    has_data: bool,
    is_tracked: bool,
}

struct Forest {
    plugin: Plugin,
    sr: Sr,
    disks: BTreeMap<String, Disk>,
    random: Random,
    written: u16,
    steps: Vec<String>,
    told: usize,
    exact: usize,
}

impl Forest {
    fn new(seed: u64) -> Self {
        let plugin = Plugin::install();
        let sr = plugin.sr("sr");
        let (random, disks, steps) = (Random::new(seed), BTreeMap::new(), Vec::new());
        let mut forest = Self { plugin, sr, disks, random, written: 0, steps, told: 0, exact: 0 };
        let volume = forest.plugin.create(&forest.sr, "volume", 4 * MIB);
        let empty =
            Disk { number: 0, content: vec![0; 4 << 20], is_snapshot: false, has_data: true, is_tracked: false };
        forest.disks.insert(volume.clone(), empty);
        forest.track(&volume, true);
        forest.write(&volume);
        forest
    }

    /// Adds what was made of another disk.
    fn add(&mut self, key: String, of: &str, is_snapshot: bool) {
        let Disk { content, is_tracked, .. } = self.disks[of].clone();
        let (number, is_tracked) = (self.steps.len() + 1, is_snapshot && is_tracked);
        self.disks.insert(key, Disk { number, content, is_snapshot, has_data: true, is_tracked });
    }

    fn keys(&self, fits: impl Fn(&Disk) -> bool) -> Vec<String> {
        let mut keys: Vec<_> = self.disks.iter().filter(|(_, disk)| fits(disk)).collect();
        keys.sort_by_key(|(_, disk)| disk.number);
        keys.into_iter().map(|(key, _)| key.clone()).collect()
    }

    fn track(&mut self, key: &str, is_tracked: bool) {
        let method = if is_tracked { "enable_cbt" } else { "disable_cbt" };
        self.plugin.volume(&self.sr, method, key, &json!({}));
        self.disks.get_mut(key).unwrap().is_tracked = is_tracked;
    }

    /// Picks one that is, or is not, a snapshot, and has its data.
    fn pick(&mut self, snapshot: Option<bool>) -> Option<String> {
        let fits = |disk: &Disk| disk.has_data && snapshot.is_none_or(|snapshot| snapshot == disk.is_snapshot);
        let keys = self.keys(fits);
        let index = self.random.below(keys.len() as u64) as usize;
        keys.get(index).cloned()
    }

    fn write(&mut self, key: &str) {
        let sectors = self.disks[key].content.len() as u64 / 512;
        let start = self.random.below(sectors);
        let count = (1 + self.random.below(3 * BLOCK)).min(sectors - start);
        if self.random.chance(64) {
            let volume = vhd_core::Volume::open(&image(&self.sr, key), &vhd_core::ChainOptions::default()).unwrap();
            let range = SectorRange::new(Sector(start), SectorCount(count));
            volume.write(range, &vec![0; count as usize * 512]).unwrap();
            volume.close().unwrap();
            self.fill(key, start, &vec![0; count as usize * 512]);
        } else {
            self.written += 1;
            write(&self.sr, key, start, count, self.written);
            let data = pattern::fill(SectorRange::new(Sector(start), SectorCount(count)), self.written);
            self.fill(key, start, &data);
        }
    }

    fn fill(&mut self, key: &str, start: u64, data: &[u8]) {
        let disk = self.disks.get_mut(key).unwrap();
        disk.content[start as usize * 512..][..data.len()].copy_from_slice(data);
    }

    /// Does something; gives what, for whoever has to find out what went wrong.
    fn step(&mut self) {
        let number = self.random.below(100);
        let done = self.grow(number).or_else(|| self.change(number));
        if let Some(done) = done {
            self.steps.push(done);
        }
    }

    fn grow(&mut self, number: u64) -> Option<String> {
        match number {
            0..30 => {
                let key = self.pick(Some(false))?;
                self.write(&key);
                Some(format!("write {key}"))
            }
            30..48 => {
                let of = if self.random.chance(96) { Some(true) } else { Some(false) };
                let key = self.pick(of)?;
                let new = self.plugin.new_volume(&self.sr, "snapshot", &key);
                self.add(new.clone(), &key, true);
                Some(format!("snapshot {key} -> {new}"))
            }
            48..53 => {
                let key = self.pick(None)?;
                let new = self.plugin.new_volume(&self.sr, "clone", &key);
                self.add(new.clone(), &key, false);
                if self.random.chance(160) {
                    self.track(&new, true);
                }
                Some(format!("clone {key} -> {new}"))
            }
            53..57 => {
                // By another tool, which knows nothing of what is tracked.
                let key = self.pick(Some(false))?;
                let new = format!("foreign-{}", self.steps.len());
                let path = self.sr.folder.join(format!("{new}.vhd"));
                self.tool(&["snapshot"], &[&image(&self.sr, &key), &path]);
                self.add(new.clone(), &key, false);
                Some(format!("foreign snapshot {key} -> {new}"))
            }
            _ => None,
        }
    }

    fn change(&mut self, number: u64) -> Option<String> {
        match number {
            57..64 => {
                let (key, from) = (self.pick(Some(false))?, self.pick(None)?);
                if key == from || self.disks[&key].content.len() != self.disks[&from].content.len() {
                    return None;
                }
                self.plugin.volume(&self.sr, "revert", &key, &json!({ "snapshot": from }));
                self.disks.get_mut(&key)?.content = self.disks[&from].content.clone();
                Some(format!("revert {key} to {from}"))
            }
            64..71 => {
                let key = self.pick(None)?;
                self.plugin.volume(&self.sr, "destroy", &key, &json!({}));
                self.disks.remove(&key);
                Some(format!("destroy {key}"))
            }
            71..79 => {
                let key = self.pick(Some(true))?;
                self.plugin.try_call("Volume.data_destroy", &arguments(&self.sr, &key, &json!({}))).ok()?;
                self.disks.get_mut(&key)?.has_data = false;
                Some(format!("data_destroy {key}"))
            }
            79..90 => {
                collect(&self.sr);
                Some("collect".into())
            }
            90..93 => {
                let key = self.pick(Some(false))?;
                self.tool(&["compact"], &[&image(&self.sr, &key)]);
                Some(format!("compact {key}"))
            }
            93..95 => {
                let key = self.pick(Some(false))?;
                let size = self.disks[&key].content.len() + (1 << 20);
                if self.random.chance(128) {
                    self.plugin.volume(&self.sr, "resize", &key, &json!({ "new_size": size }));
                } else {
                    self.tool(&["resize"], &[&image(&self.sr, &key), &size.to_string().into()]);
                }
                self.disks.get_mut(&key)?.content.resize(size, 0);
                Some(format!("resize {key}"))
            }
            95..97 => self.merge_leaf(),
            97..99 => {
                let key = self.pick(None)?;
                let is_tracked = self.random.chance(192);
                self.track(&key, is_tracked);
                Some(format!("{key} is tracked: {is_tracked}"))
            }
            _ => self.restore(),
        }
    }

    /// Merges what can be merged into a volume's parent, by the command line.
    fn merge_leaf(&mut self) -> Option<String> {
        let key = self.pick(Some(false))?;
        let mut command = Command::new(program("vhd-tool"));
        let output = command.args(["--quiet", "coalesce"]).arg(image(&self.sr, &key)).output().unwrap();
        Some(format!("coalesce {key}: {}", output.status))
    }

    /// Puts a volume's image in the place of another's, as they do who restore one from elsewhere.
    fn restore(&mut self) -> Option<String> {
        let key = self.pick(Some(false))?;
        let flat = self.sr.folder.join(".restored");
        self.tool(&["convert", "--to", "dynamic"], &[&image(&self.sr, &key), &flat]);
        let other = self.pick(Some(false))?;
        std::fs::rename(&flat, image(&self.sr, &other)).unwrap();
        self.disks.get_mut(&other)?.content = self.disks[&key].content.clone();
        Some(format!("restore {other} from {key}"))
    }

    fn tool(&self, words: &[&str], paths: &[&PathBuf]) {
        let output = Command::new(program("vhd-tool")).arg("--quiet").args(words).args(paths).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    fn tracked(&self) -> Vec<String> {
        self.keys(|disk| disk.is_tracked)
    }

    /// Checks what is told between two of all that there are.
    fn check_some(&mut self) {
        let keys = self.tracked();
        if keys.len() > 1 {
            let [from, to] = [(); 2].map(|()| keys[self.random.below(keys.len() as u64) as usize].clone());
            self.check(&from, &to);
        }
    }

    fn check_all(&mut self) {
        let keys = self.tracked();
        for from in &keys {
            for to in keys.iter().filter(|to| *to != from) {
                self.check(from, to);
            }
        }
    }

    fn check(&mut self, from: &str, to: &str) {
        let call = arguments(&self.sr, from, &json!({ "key2": to, "offset": 0, "length": -1 }));
        let told = match self.plugin.try_call("Volume.list_changed_blocks", &call) {
            Ok(answer) => bits(&answer),
            Err(refused) => {
                assert!(refused[1].contains("tracked"), "{refused:?}");
                return;
            }
        };
        let truth = differing(&self.disks[from].content, &self.disks[to].content);
        let end = (self.disks[to].content.len() as u64).div_ceil(65536);
        // What the second has not is no block of it.
        let missing: Vec<u64> = truth.iter().copied().filter(|block| *block < end && !told.contains(block)).collect();
        assert!(missing.is_empty(), "{from} -> {to}: not told of {missing:?}\n{}", self.steps.join("\n"));
        self.told += 1;
        self.exact += usize::from(told == truth);
    }

    fn verify(&self) {
        for (key, disk) in self.disks.iter().filter(|(_, disk)| disk.has_data) {
            assert!(content(&self.sr.folder, key) == disk.content, "{key} reads wrong\n{}", self.steps.join("\n"));
        }
    }
}

#[test]
fn never_too_little_is_told_whatever_becomes_of_a_forest() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let (first, count) = (number("SEED").unwrap_or(1), 4 * number("TORTURE").unwrap_or(1));
    let (mut told, mut exact) = (0, 0);
    for seed in first..first + count {
        let mut forest = Forest::new(seed);
        forest.steps.push(format!("SEED={seed}"));
        for _ in 0..40 {
            forest.step();
            forest.check_some();
        }
        forest.check_all();
        forest.verify();
        (told, exact) = (told + forest.told, exact + forest.exact);
    }
    testkit::tell!("changed blocks: {told} answers, {exact} of them exact");
    // Forests differ: from 18 to 33 answers each have been seen.
    assert!(told > 10 * count as usize && exact * 3 > told, "{told} answers, {exact} of them exact");
}

#[test]
fn a_snapshot_of_a_snapshot_hides_no_changes() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 4 * MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    write(&sr, &volume, 0, 10, 1);
    let first = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 5 * BLOCK, 10, 2);
    let second = plugin.new_volume(&sr, "snapshot", &volume);
    let third = plugin.new_volume(&sr, "snapshot", &second);
    let fourth = plugin.new_volume(&sr, "snapshot", &third);
    for twin in [&second, &third, &fourth] {
        assert_eq!(changed(&plugin, &sr, &first, twin), BTreeSet::from([5]));
    }
    assert_eq!(changed(&plugin, &sr, &second, &fourth), BTreeSet::new());
    write(&sr, &volume, 9 * BLOCK, 10, 3);
    assert_eq!(changed(&plugin, &sr, &fourth, &volume), BTreeSet::from([9]));
    plugin.volume(&sr, "destroy", &second, &json!({}));
    assert_eq!(plugin.keys(&sr).len(), 4);
    for twin in [&third, &fourth] {
        assert_eq!(changed(&plugin, &sr, &first, twin), BTreeSet::from([5]), "without the one in between");
    }
    // Both are counted from what is left before the one that is gone.
    assert_eq!(changed(&plugin, &sr, &fourth, &volume), BTreeSet::from([5, 9]));
    // Reverted to one of them, the volume has changed what they have.
    plugin.volume(&sr, "revert", &volume, &json!({ "snapshot": fourth }));
    assert_eq!(changed(&plugin, &sr, &first, &volume), BTreeSet::from([5]));
}

/// The data of the snapshot that a volume's changes are counted from is gone, and the volume is another image altogether.
#[test]
fn what_only_a_destroyed_snapshot_held_has_changed() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let (volume, empty) = (plugin.create(&sr, "volume", 4 * MIB), plugin.create(&sr, "empty", 4 * MIB));
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    write(&sr, &volume, 5 * BLOCK, 10, 1);
    for method in ["data_destroy", "destroy"] {
        let first = plugin.new_volume(&sr, "snapshot", &volume);
        write(&sr, &volume, 7 * BLOCK, 10, 1);
        let second = plugin.new_volume(&sr, "snapshot", &volume);
        plugin.volume(&sr, method, &second, &json!({}));
        std::fs::copy(image(&sr, &empty), image(&sr, &volume)).unwrap();
        let told = changed(&plugin, &sr, &first, &volume);
        assert!(told.is_superset(&BTreeSet::from([5])), "{method}: {told:?}");
        if method == "data_destroy" {
            let told = changed(&plugin, &sr, &second, &volume);
            assert!(told.is_superset(&BTreeSet::from([5, 7])), "{told:?}");
        }
        write(&sr, &volume, 5 * BLOCK, 10, 1);
    }
}

/// Merged into the volume, the snapshot's data is under the volume's zeros, which a compaction drops.
#[test]
fn zeros_that_are_dropped_have_changed() {
    zeros_are_dropped(|_| ());
}

/// What nobody knows counts as all of the disk.
#[test]
fn zeros_that_are_dropped_have_changed_though_it_is_not_known_what_was_beneath() {
    zeros_are_dropped(|held| std::fs::remove_file(held).unwrap());
    zeros_are_dropped(|held| std::fs::write(held, [0; 40]).unwrap());
}

/// `then` becomes of the file that tells which blocks the snapshot held.
fn zeros_are_dropped(then: fn(held: &Path)) {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 16 * MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    let first = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 5 * BLOCK, 10, 1);
    let second = plugin.new_volume(&sr, "snapshot", &volume);
    let zeros = SectorRange::new(Sector(5 * BLOCK), SectorCount(10));
    let open = vhd_core::Volume::open(&image(&sr, &volume), &vhd_core::ChainOptions::default()).unwrap();
    open.write(zeros, &[0; 5120]).unwrap();
    open.close().unwrap();
    // So much that what is beneath is merged into it, and not the other way.
    write(&sr, &volume, 100 * BLOCK, 100 * BLOCK, 2);
    let before = content(&sr.folder, &second);
    plugin.volume(&sr, "data_destroy", &second, &json!({}));
    let id = || {
        let image = vhd_core::Image::<vhd_core::ReadOnly>::open(&image(&sr, &volume), vhd_core::Lock::None).unwrap();
        image.footer().unique_id()
    };
    let was = id();
    then(&sr.folder.join(format!("{second}.vhd.held")));
    collect(&sr);
    assert_eq!(id(), was, "it is merged up");
    let output = Command::new(program("vhd-tool")).args(["--quiet", "compact"]).arg(image(&sr, &volume)).output();
    assert!(output.unwrap().status.success());
    let truth = differing(&before, &content(&sr.folder, &volume));
    assert!(truth.contains(&5));
    let told = changed(&plugin, &sr, &second, &volume);
    assert!(told.is_superset(&truth), "{told:?}");
    let third = plugin.new_volume(&sr, "snapshot", &volume);
    assert!(changed(&plugin, &sr, &second, &third).is_superset(&truth));
    assert!(!changed(&plugin, &sr, &first, &third).is_empty());
}
