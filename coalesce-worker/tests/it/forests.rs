//! Random forests to which things happen from outside: files are restored from backups in place, cut, replaced by links that
//! lead nowhere, and written to, while merges are interrupted. Whatever a volume reads as just after that, as a reader says that
//! shares nothing with the engine, it reads as after each recovery and collection.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coalesce_worker::{Abort, Coalesce, Repository, Survey};
use testkit::poorfs::{PoorFs, Refusal};
use testkit::random::Random;
use testkit::scene::Scene;
use testkit::{pattern, plain, worker};
use vhd_core::{BlockSize, ByteCount, ChainOptions, Sector, SectorCount, SectorRange, Volume};

/// The sectors of the disks: two units of a merge and a bit.
const SECTORS: u64 = 2 * 4096 + 200;
const MOST_VOLUMES: usize = 6;

/// A folder, what volumes are known to read as, and what a backup holds.
struct World {
    folder: PathBuf,
    random: Random,
    expected: BTreeMap<String, Vec<u8>>,
    backup: BTreeMap<PathBuf, Vec<u8>>,
    tag: u16,
    counts: BTreeMap<&'static str, usize>,
}

/// Images by their ids, with their names: a backup brings back who has another name by now.
type ById<'i> = HashMap<&'i [u8], Vec<(&'i str, &'i [u8])>>;

/// Reads every volume of a folder that has all its parents.
fn volumes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let images = paths.filter(|path| path.extension().is_some_and(|it| it == "vhd") && path.is_file());
    let images: Vec<(String, Vec<u8>)> =
        images.map(|path| (path.file_name().unwrap().to_string_lossy().into(), fs::read(path).unwrap())).collect();
    let mut by_id = ById::new();
    for (name, image) in images.iter().filter(|(_, image)| image.len() > 2048) {
        by_id.entry(&image[image.len() - 512..][68..84]).or_default().push((name, image));
    }
    let is_volume = |image: &[u8]| image.len() > 2048 && image[image.len() - 512 + 85] == 0;
    let visible = images.iter().filter(|(_, image)| is_volume(image));
    visible.filter_map(|(name, image)| Some((name.clone(), content(image, &by_id, 0)?))).collect()
}

fn content(image: &[u8], by_id: &ById<'_>, depth: usize) -> Option<Vec<u8>> {
    let footer = image.get(image.len().checked_sub(512)?..)?;
    let is_child = footer.get(60..64)? == [0, 0, 0, 4];
    let parent = match is_child && depth < 40 {
        true => match by_id.get(image.get(512 + 40..512 + 56)?)?.as_slice() {
            [(_, only)] => content(only, by_id, depth + 1)?,
            several => {
                let name = image.get(512 + 64..512 + 576)?.chunks(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
                let name = String::from_utf16(&name.take_while(|&unit| unit != 0).collect::<Vec<_>>()).ok()?;
                content(several.iter().find(|(other, _)| *other == name)?.1, by_id, depth + 1)?
            }
        },
        false => Vec::new(),
    };
    plain::read(image, &parent)
}

impl World {
    fn new(folder: &Path, seed: u64) -> Self {
        let scene = Scene::with_blocks(BlockSize::new(64 << 10).unwrap());
        scene.dynamic("a.vhd", SECTORS);
        scene.dynamic("b.vhd", SECTORS);
        for name in ["a.vhd", "b.vhd"] {
            fs::copy(scene.file(name), folder.join(name)).unwrap();
        }
        let (random, expected) = (Random::new(seed), volumes(folder));
        Self { folder: folder.into(), random, expected, backup: BTreeMap::new(), tag: 0, counts: BTreeMap::new() }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn open(&self) -> Repository {
        Repository::open(&self.folder, ChainOptions::default()).unwrap().0
    }

    /// Takes what volumes read as now for what they have to be.
    fn happened(&mut self, what: &'static str) {
        self.count(what);
        self.expected = volumes(&self.folder);
    }

    fn verify(&self, why: &str) {
        let found = volumes(&self.folder);
        for (name, content) in &self.expected {
            let is_same = found.get(name).is_some_and(|found| found == content);
            assert!(is_same, "{why}: {name} has changed, or is gone; before: {:?}", self.counts);
        }
    }

    fn any_volume(&mut self) -> Option<PathBuf> {
        let number = self.random.below(self.expected.len().max(1) as u64) as usize;
        self.expected.keys().nth(number).map(|name| self.folder.join(name))
    }

    fn write(&mut self) {
        self.tag += 1;
        let start = self.random.below(SECTORS - 1);
        let count = (self.random.below(3000) + 1).min(SECTORS - start);
        let range = SectorRange::new(Sector(start), SectorCount(count));
        let data = pattern::fill(range, self.tag);
        let Some(path) = self.any_volume() else { return };
        // One whose parents have been restored to something else is not opened.
        let Ok(volume) = Volume::open(&path, &ChainOptions::default()) else { return };
        volume.write(range, &data).unwrap();
        volume.close().unwrap();
        self.happened("writes");
    }

    fn snapshot(&mut self) {
        let Some(path) = self.any_volume() else { return };
        let new = self.folder.join(format!("s{}.vhd", self.random.below(1 << 40)));
        if self.expected.len() < MOST_VOLUMES && self.open().snapshot(&path, &new).is_ok() {
            self.verify("a snapshot");
            self.happened("snapshots");
        }
    }

    fn delete(&mut self) {
        let Some(path) = self.any_volume() else { return };
        if self.expected.len() > 2 && self.open().delete(&path).is_ok() {
            self.expected.remove(&path.file_name().unwrap().to_string_lossy().into_owned());
            self.verify("a deletion");
            self.count("deletions");
        }
    }

    /// Begins any merge that could be done, and stops somewhere.
    fn interrupt(&mut self) {
        let repository = self.open();
        let survey = Survey::of(&repository).unwrap();
        let Some(request) = survey.runs().next().map(coalesce_worker::PlannedRun::request) else { return };
        let (abort, last) = (Abort::new(), AtomicU64::new(0));
        let stop_at = self.random.below(9 << 20);
        let progress = |moved: ByteCount| {
            if moved.0 >> 21 > last.swap(moved.0 >> 21, Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(40));
            }
            if moved.0 >= stop_at {
                abort.abort();
            }
        };
        let Ok(prepared) = Coalesce::prepare(&repository, &request) else { return };
        let merged = worker::interrupt(prepared, &progress, &abort);
        self.verify("an interrupted merge");
        self.count(if merged.is_ok() { "merges" } else { "interrupted merges" });
    }

    fn back_up(&mut self) {
        let paths = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        let images = paths.filter(|path| path.extension().is_some_and(|it| it == "vhd") && path.is_file());
        self.backup = images.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        self.count("backups");
    }

    /// Writes a backup over what is there: of all files, or of one.
    fn restore(&mut self) {
        let one = self.random.chance(128).then(|| self.random.below(self.backup.len().max(1) as u64) as usize);
        for (i, (path, content)) in self.backup.iter().enumerate() {
            if one.is_none_or(|one| one == i) {
                fs::write(path, content).unwrap();
            }
        }
        self.happened(if one.is_some() { "files restored" } else { "backups restored" });
    }

    /// A volume cannot be read while somebody collects, and then it can again.
    fn damage(&mut self) {
        let Some(path) = self.any_volume() else { return };
        worker::collect(&self.folder);
        self.verify("a collection");
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        match self.random.below(3) {
            0 => symlink("/nowhere/at/all", &path).unwrap(),
            1 => symlink(&path, &path).unwrap(),
            _ => fs::write(&path, &content[..self.random.below(1500) as usize]).unwrap(),
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let lost = self.expected.remove(&name).unwrap();
        worker::collect(&self.folder);
        self.verify("a collection beside a damaged volume");
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
        self.expected.insert(name, lost);
        self.verify("what was damaged for a while");
        self.count("damages");
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..=3 => self.write(),
            4..=5 => self.snapshot(),
            6..=7 => self.delete(),
            8..=10 => self.interrupt(),
            11 => self.back_up(),
            12 => self.restore(),
            13 => self.damage(),
            14 => {
                self.open();
                self.verify("a recovery");
            }
            _ => {
                worker::collect(&self.folder);
                self.verify("a collection");
                self.count("collections");
            }
        }
    }
}

#[test]
fn whatever_happens_to_its_files_a_volume_stays_what_it_was_then() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = (number("SEED").unwrap_or(1), 12 * number("TORTURE").unwrap_or(1));
    let mut total: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in first..first + count {
        let (poor, folder) = (PoorFs::new(&[Refusal::FineTimes]), testkit::scratch::folder());
        let place = if seed.is_multiple_of(4) { poor.path() } else { folder.path() };
        let mut world = World::new(place, seed);
        for _ in 0..40 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.step()));
            if let Err(panic) = result {
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
        world.counts.iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
    }
    testkit::tell!("{count} forests from SEED={first}: {total:?}");
    for what in ["interrupted merges", "backups restored", "files restored", "damages", "collections"] {
        assert!(total.get(what).is_some_and(|&count| count > 3), "{what}: {total:?}");
    }
}
