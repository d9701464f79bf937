//! One operation on a small repository: how it is set up, and what must hold however it is interrupted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use coalesce_worker::{Recovered, Repository, Survey};
use testkit::crash::Recording;
use testkit::filesystem::Tmpfs;
use testkit::scene::{self, Scene};
use testkit::{pattern, scratch};
use vhd_core::{BlockSize, ByteCount, ChainOptions, Sector, SectorRange, Volume};

use crate::program::{self, Program};

/// What the visible volumes of a folder hold.
pub(crate) type Volumes = BTreeMap<String, Vec<u8>>;

/// An operation.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) block_size: BlockSize,
    pub(crate) build: fn(&Scene),
    pub(crate) program: Program,
    pub(crate) change: Change,
    /// How many images there are when it has ended.
    pub(crate) images: usize,
    /// The space that is free as it runs, where there is little.
    pub(crate) free: Option<ByteCount>,
}

/// What it changes for those who look at volumes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// A volume appears, with the content of another or empty.
    Appears(&'static str, Option<&'static str>),
    /// A volume disappears.
    Disappears(&'static str),
    /// A volume gets the pattern of this tag in these sectors.
    Written(&'static str, Range<u64>, u16),
    /// Nothing, and nothing but the files tells that it has been done.
    Compacted,
    /// A volume gets, at once, so many sectors.
    Resized(&'static str, u64),
    /// A volume becomes, at once, what another is.
    Reverted(&'static str, &'static str),
    /// A volume shows, at once, what another holds, which disappears, in all but these sectors.
    Composed(&'static str, &'static str, &'static [Range<u64>]),
}

impl Change {
    /// Tells whether there is nothing between before and after.
    fn is_at_once(&self) -> bool {
        matches!(self, Self::Reverted(..) | Self::Composed(..) | Self::Resized(..))
    }
}

/// A case with its repository.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) case: Case,
    pub(crate) scene: Scene,
    before: Volumes,
    after: Volumes,
    /// How many images are left when everything has been collected: without the operation, and with it.
    collected: [usize; 2],
}

/// What is known about the end of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It has ended: its result must be there.
    Reached,
    /// It may have ended or not.
    Unknown,
}

/// How many sectors an empty new volume of the table has.
pub(crate) const SECTORS: u64 = 256;

impl Case {
    /// Makes the repository, and finds out what a collection makes of it by trying.
    pub(crate) fn prepare(self) -> Prepared {
        let scene = Scene::with_blocks(self.block_size);
        (self.build)(&scene);
        scene.settle();
        let before = scene::volumes(scene.path());
        let mut after = before.clone();
        match &self.change {
            Change::None | Change::Compacted => {}
            Change::Resized(name, sectors) => after.get_mut(*name).unwrap().resize(*sectors as usize * 512, 0),
            Change::Appears(name, like) => {
                let content =
                    like.map_or_else(|| vec![0; SECTORS as usize * 512], |like| scene::content(&scene.file(like)));
                after.insert((*name).to_owned(), content);
            }
            Change::Disappears(name) => _ = after.remove(*name).unwrap(),
            Change::Written(name, sectors, tag) => {
                let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
                let bytes = pattern::fill(range, *tag);
                let at = sectors.start as usize * 512;
                after.get_mut(*name).unwrap()[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Change::Reverted(name, like) => _ = after.insert((*name).to_owned(), before[*like].clone()),
            Change::Composed(child, parent, held) => {
                let (mut shown, own) = (after.remove(*parent).unwrap(), &before[*child]);
                shown.resize(own.len(), 0);
                for sectors in *held {
                    let bytes = sectors.start as usize * 512..sectors.end as usize * 512;
                    shown[bytes.clone()].copy_from_slice(&own[bytes]);
                }
                after.insert((*child).to_owned(), shown);
            }
        }
        let mut prepared = Prepared { case: self, scene, before, after, collected: [0; 2] };
        prepared.collected = [false, true].map(|run| {
            let copy = prepared.copy();
            if run {
                let output = prepared.case.program.command(copy.path()).output().unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{}: {errors}", prepared.case.name);
                prepared.verify(copy.path(), End::Reached);
            }
            program::collect(copy.path()).unwrap();
            scene::images(copy.path())
        });
        prepared
    }
}

/// Opens a repository, in which nothing may be left to wait for.
pub(crate) fn open(folder: &Path) -> Recovered {
    let recovered = scene::patiently(|| {
        let (_, recovered) = Repository::open(folder, ChainOptions::default()).unwrap();
        if recovered.waiting.is_empty() { Ok(recovered) } else { Err(recovered) }
    });
    recovered.unwrap_or_else(|recovered| panic!("{recovered:?}"))
}

/// What opening a repository after an interruption did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opened {
    /// Something was finished or taken back.
    pub(crate) finished: bool,
    /// A merge is to be resumed.
    pub(crate) interrupted: bool,
    /// An image got the name of another.
    pub(crate) name_taken: bool,
}

impl Prepared {
    /// Copies the repository.
    pub(crate) fn copy(&self) -> tempfile::TempDir {
        let folder = scratch::folder();
        self.copy_to(folder.path());
        folder
    }

    fn copy_to(&self, folder: &Path) {
        let from = self.scene.path().join(".");
        assert!(Command::new("cp").arg("-a").arg(from).arg(folder).status().unwrap().success());
    }

    /// Records what the operation does to a copy.
    pub(crate) fn record(&self) -> Recording {
        let Some(free) = self.case.free else {
            let copy = self.copy();
            return Recording::of(copy.path(), &self.case.program.command(copy.path()));
        };
        let small = Tmpfs::new(ByteCount(1 << 30));
        self.copy_to(small.path());
        small.leave_free(free);
        Recording::of(small.path(), &self.case.program.command(small.path()))
    }

    /// Checks that every volume that is not the operation's own reads as before, as things are.
    pub(crate) fn verify_unopened(&self, folder: &Path) {
        let found = scene::volumes(folder);
        for (name, content) in self.before.iter().filter(|(name, _)| self.after.contains_key(*name)) {
            let Some(now) = found.get(name) else { panic!("{name} is gone") };
            self.verify_content(name, now, content);
        }
    }

    /// Tells whether the operation has been done: there is no more to ask for.
    pub(crate) fn is_done(&self, folder: &Path) -> bool {
        let there = |name: &str| folder.join(name).exists();
        match &self.case.change {
            Change::Appears(name, _) => there(name),
            Change::Disappears(name) => !scene::volumes(folder).contains_key(*name),
            Change::Written(..) | Change::Compacted => false,
            Change::Reverted(..) | Change::Composed(..) | Change::Resized(..) => scene::volumes(folder) == self.after,
            Change::None => scene::images(folder) == self.case.images,
        }
    }

    fn verify_content(&self, name: &str, now: &[u8], before: &[u8]) {
        let after = self.after.get(name).map_or(before, Vec::as_slice);
        if self.case.change.is_at_once() {
            assert!(now == before || now == after, "{name} is neither what it was nor what it shall be");
            return;
        }
        assert_eq!(now.len(), before.len(), "size of {name}");
        let sectors = now.chunks(512).zip(before.chunks(512)).zip(after.chunks(512));
        let wrong = sectors.enumerate().find(|(_, ((now, before), after))| now != before && now != after);
        assert!(wrong.is_none(), "{name} differs in sector {}", wrong.unwrap().0);
    }

    /// Opens the repository as whoever comes next, and checks everything that is promised.
    pub(crate) fn verify(&self, folder: &Path, end: End) -> Opened {
        let names = |folder: &Path| -> Vec<String> { scene::files(folder).into_keys().collect() };
        let before = names(folder);
        let recovered = open(folder);
        let left = scene::state_files(folder);
        assert_eq!(left.len(), recovered.interrupted.len(), "left over: {left:?}, {recovered:?}");
        self.verify_volumes(folder, end);
        self.verify_images(folder);
        if end == End::Reached {
            assert_eq!(scene::images(folder), self.case.images, "images");
        }

        let bytes = scene::files(folder);
        let again = open(folder);
        assert_eq!(again.finished, 0, "{again:?}");
        let now = scene::files(folder);
        assert!(now.keys().eq(bytes.keys()), "a second recovery made {:?} of {:?}", now.keys(), bytes.keys());
        let changed: Vec<_> =
            bytes.iter().filter(|(name, bytes)| now[*name] != **bytes).map(|(name, _)| name).collect();
        assert!(changed.is_empty(), "a second recovery changed {changed:?}");
        self.opened(&recovered, &before, now.keys())
    }

    fn opened<'n>(&self, recovered: &Recovered, before: &[String], now: impl Iterator<Item = &'n String>) -> Opened {
        let images = |name: &&String| !name.contains('/');
        let now: Vec<_> = now.filter(images).collect();
        let gone: Vec<_> = before.iter().filter(images).filter(|name| !now.contains(name)).collect();
        let takes_name = matches!(self.case.program, Program::Tool([what, node, ..])
            if *what == "coalesce" && self.before.contains_key(*node));
        Opened {
            finished: recovered.finished > 0,
            interrupted: !recovered.interrupted.is_empty(),
            name_taken: takes_name && gone.iter().any(|name| *name == "base.vhd"),
        }
    }

    /// Checks that the images are sound. What an interrupted write leaves past the last block, and in the batmap, is mended
    /// by whoever opens the volume next.
    fn verify_images(&self, folder: &Path) {
        if let Change::Written(name, ..) = self.case.change {
            let volume = scene::patiently(|| Volume::open(&folder.join(name), &ChainOptions::default())).unwrap();
            volume.close().unwrap();
        }
        scene::check(folder);
    }

    fn verify_volumes(&self, folder: &Path, end: End) {
        let found = scene::volumes(folder);
        let expected = match end {
            End::Unknown if found.keys().eq(self.before.keys()) => &self.before,
            _ => &self.after,
        };
        assert!(found.keys().eq(expected.keys()), "the volumes are {:?}, not {:?}", found.keys(), expected.keys());
        if self.case.change.is_at_once() {
            let is_before = end == End::Unknown && found == self.before;
            assert!(is_before || found == self.after, "the volumes are neither as before nor as after");
            return;
        }
        for (name, content) in &found {
            match end {
                End::Unknown => {
                    let before = self.before.get(name).or_else(|| self.after.get(name));
                    self.verify_content(name, content, before.unwrap());
                }
                End::Reached => self.verify_content(name, content, &self.after[name]),
            }
        }
    }

    /// Collects everything, as the worker does, and checks that nothing is left to do.
    pub(crate) fn verify_collected(&self, folder: &Path, end: End) {
        let collected = scene::patiently(|| match program::collect(folder) {
            Ok(collected) if collected.failed.is_empty() && collected.waiting.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        });
        collected.unwrap_or_else(|left| panic!("left by a collection: {left}"));
        self.verify_volumes(folder, end);
        self.verify_images(folder);
        assert_eq!(scene::state_files(folder), <[String; 0]>::default());
        let images = scene::images(folder);
        let expected = if end == End::Reached { &self.collected[1..] } else { &self.collected };
        assert!(expected.contains(&images), "{images} images are left of a collection, not {expected:?}");
        let (repository, _) = Repository::open(folder, ChainOptions::default()).unwrap();
        assert!(Survey::of(&repository).unwrap().is_empty());
    }
}
