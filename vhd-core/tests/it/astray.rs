//! Parents that lead astray: to devices, FIFOs, sockets, folders and files elsewhere, by name and by link, and parents that
//! are exchanged while they are looked for.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, RenameFlags, mknodat, renameat_with};
use tempfile::TempDir;
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainError, ChainOptions, Existing, GateError, Image, NewImage, NewKind, ParentLink,
    ParentPlaces, ParentRefusal, Timestamp, Uuid, Volume, create_file,
};

use super::sectors;

const SIZE: usize = 64 << 10;

/// A folder `disks` for images, and what lies beside it.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(testkit::scratch::folder());
        fs::create_dir(scene.disks()).unwrap();
        fs::create_dir(scene.beside("outside")).unwrap();
        fs::write(scene.beside("outside/secret.img"), vec![b's'; SIZE]).unwrap();
        fs::write(scene.disk("fine.img"), vec![b'f'; SIZE]).unwrap();
        scene
    }

    fn disks(&self) -> PathBuf {
        self.0.path().join("disks")
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.disks().join(name)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a child that names a parent by locators and by its name; nil stands for a raw one.
    fn child(&self, parent: &str, unique_id: Uuid) -> PathBuf {
        let path = self.disk("child.vhd");
        let parent = ParentLink::to_named(Path::new(parent), unique_id, Timestamp(0)).unwrap();
        let kind = NewKind::Differencing { block_size: BlockSize::new(4096).unwrap(), parent };
        create_file(&path, &NewImage::new(ByteCount(SIZE as u64), kind), Existing::Replace).unwrap();
        path
    }

    /// Makes a child whose locators hold any text at all; `text` is as long as that of a relative path.
    fn child_with_text(&self, text: &str) -> PathBuf {
        let placeholder = "x".repeat(text.len());
        let path = self.child(&placeholder, Uuid::nil());
        let mut bytes = fs::read(&path).unwrap();
        let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let url = if text.starts_with("file://") { text.to_owned() } else { format!("file://{text}") };
        replace(&mut bytes, format!("file://./{placeholder}").as_bytes(), url.as_bytes());
        replace(&mut bytes, &wide(&format!(".\\{placeholder}")), &wide(&text.replace('/', "\\")));
        fs::write(&path, bytes).unwrap();
        path
    }

    fn open(path: &Path) -> Result<Chain, ChainError> {
        let started = Instant::now();
        let opened = Chain::open(path, &ChainOptions::default());
        assert!(started.elapsed() < Duration::from_secs(2), "{}", path.display());
        assert!(Volume::open(path, &ChainOptions::default()).is_ok() == opened.is_ok());
        opened
    }
}

/// Puts a text in the place of a longer one; zeros fill the rest.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert!(from.len() >= to.len());
    let places: Vec<_> = (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    assert!(!places.is_empty(), "the text is there");
    for at in places {
        bytes[at..at + from.len()].fill(0);
        bytes[at..at + to.len()].copy_from_slice(to);
    }
}

fn refusals(error: ChainError) -> Vec<ParentRefusal> {
    match error {
        ChainError::Parent { tried, .. } => tried,
        error => panic!("{error}"),
    }
}

#[test]
fn locators_lead_nowhere_else() {
    let scene = Scene::new();
    let secret = scene.beside("outside/secret.img");
    let up = "../".repeat(30);
    for text in [
        "/etc/passwd",
        "/etc/shadow",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "C:/etc/passwd",
        "../outside/secret.img",
        "../../../../../../../../../etc/passwd",
        "/proc/self/environ",
        "/proc/self/mem",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/fd/0",
        &format!("{up}etc/passwd"),
        secret.to_str().unwrap(),
        &format!("file://{}", secret.display()),
        &format!("/proc/self/root{}", secret.display()),
        &format!("/proc/self/cwd/{up}{}", secret.display()),
    ] {
        let path = scene.child_with_text(text);
        let tried = refusals(Scene::open(&path).unwrap_err());
        let is_gate = |refusal: &ParentRefusal| matches!(refusal, ParentRefusal::Gate(_));
        assert!(!tried.is_empty() && tried.iter().all(is_gate), "{text}: {tried:?}");
    }
}

#[test]
fn encoded_dots_lead_nowhere_else() {
    let scene = Scene::new();
    let path = scene.child_with_text("file://%2e%2e/outside/secret.img");
    let tried = refusals(Scene::open(&path).unwrap_err());
    assert!(tried.iter().any(|it| matches!(it, ParentRefusal::Gate(GateError::Outside { .. }))), "{tried:?}");
}

#[test]
fn links_lead_nowhere_else() {
    let scene = Scene::new();
    for (name, to) in [
        ("file", "../outside/secret.img"),
        ("passwd", "/etc/passwd"),
        ("dangling", "../outside/missing"),
        ("loop", "loop"),
        ("second", "file"),
        ("folder", "../outside"),
        ("device", "/dev/zero"),
        ("descriptor", "/proc/self/fd/0"),
    ] {
        symlink(to, scene.disk(name)).unwrap();
    }
    for parent in
        ["file", "passwd", "dangling", "loop", "second", "folder", "folder/secret.img", "device", "descriptor"]
    {
        let path = scene.child(parent, Uuid::nil());
        let tried = refusals(Scene::open(&path).unwrap_err());
        assert!(tried.iter().all(|refusal| matches!(refusal, ParentRefusal::Gate(_))), "{parent}: {tried:?}");
    }
    symlink("fine.img", scene.disk("inside")).unwrap();
    assert_eq!(first_byte(&Scene::open(&scene.child("inside", Uuid::nil())).unwrap()), b'f');
}

#[test]
fn what_is_no_file_is_no_parent() {
    let scene = Scene::new();
    let node = |name: &str, kind, device| mknodat(CWD, scene.disk(name), kind, 0o600.into(), device);
    node("fifo", FileType::Fifo, 0).unwrap();
    let _socket = UnixListener::bind(scene.disk("socket")).unwrap();
    fs::create_dir(scene.disk("subfolder")).unwrap();
    // Only root makes device nodes, and not in every container.
    let zero = node("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5)).is_ok();
    let mut names = vec!["fifo", "socket", "subfolder"];
    names.extend(zero.then_some("zero"));
    for id in [Uuid::nil(), Uuid::from_u128(1)] {
        for name in &names {
            let tried = refusals(Scene::open(&scene.child(name, id)).unwrap_err());
            let is_none = |it: &ParentRefusal| matches!(it, ParentRefusal::Gate(GateError::NotAFile { .. }));
            assert!(tried.iter().any(is_none), "{name}: {tried:?}");
        }
    }
}

/// A device node within the folder is a parent like a file: who can make one is root already. One that no driver serves is
/// refused.
#[test]
fn a_device_without_a_driver_is_an_error() {
    let scene = Scene::new();
    let device = rustix::fs::makedev(259, 0xf_ff00);
    if mknodat(CWD, scene.disk("device"), FileType::BlockDevice, 0o600.into(), device).is_ok() {
        let tried = refusals(Scene::open(&scene.child("device", Uuid::nil())).unwrap_err());
        assert!(tried.iter().any(|it| matches!(it, ParentRefusal::Gate(GateError::Io { .. }))), "{tried:?}");
    }
}

#[test]
fn a_child_is_not_its_own_raw_parent() {
    let scene = Scene::new();
    for id in [Uuid::nil(), Uuid::from_u128(1)] {
        let path = scene.child("child.vhd", id);
        let tried = refusals(Scene::open(&path).unwrap_err());
        assert!(tried.iter().all(|it| !matches!(it, ParentRefusal::Gate(_))), "{tried:?}");
    }
}

#[test]
fn a_root_that_is_a_link_is_where_it_leads() {
    let scene = Scene::new();
    symlink("outside", scene.beside("elsewhere")).unwrap();
    let path = scene.child("../outside/secret.img", Uuid::nil());
    let parents = ParentPlaces::Within(vec![scene.beside("elsewhere")]);
    let options = ChainOptions { parents, ..ChainOptions::default() };
    assert_eq!(first_byte(&Chain::open(&path, &options).unwrap()), b's');
    // A folder is not beneath one that its name only begins with.
    fs::create_dir(scene.beside("disks-of-others")).unwrap();
    fs::write(scene.beside("disks-of-others/secret.img"), vec![b's'; SIZE]).unwrap();
    let path = scene.child("../disks-of-others/secret.img", Uuid::nil());
    let tried = refusals(Scene::open(&path).unwrap_err());
    assert!(tried.iter().any(|it| matches!(it, ParentRefusal::Gate(GateError::Outside { .. }))), "{tried:?}");
}

#[test]
fn folders_that_are_searched_come_after_the_images_own() {
    let scene = Scene::new();
    let elsewhere = scene.beside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let parent = Uuid::from_u128(7);
    let base = |path: &Path, unique_id: Uuid| {
        let new = NewImage {
            unique_id,
            ..NewImage::new(ByteCount(SIZE as u64), NewKind::Dynamic { block_size: BlockSize::DEFAULT })
        };
        create_file(path, &new, Existing::Replace).unwrap();
    };
    base(&elsewhere.join("base.vhd"), parent);
    let path = scene.child("base.vhd", parent);
    let parents = ParentPlaces::Within(vec![elsewhere.clone()]);
    let allowed = ChainOptions { parents: parents.clone(), ..ChainOptions::default() };
    assert!(Chain::open(&path, &allowed).is_err());
    let searched = ChainOptions { search: vec![elsewhere.clone()], ..allowed };
    let parent_of =
        |options: &ChainOptions| Chain::open(&path, options).map(|chain| chain.layers()[1].path().to_owned());
    assert_eq!(parent_of(&searched).unwrap(), elsewhere.canonicalize().unwrap().join("base.vhd"));
    // To be searched is not to be allowed.
    let forbidden = ChainOptions { search: vec![elsewhere.clone()], ..ChainOptions::default() };
    let tried = refusals(parent_of(&forbidden).unwrap_err());
    assert!(tried.iter().any(|it| matches!(it, ParentRefusal::Gate(GateError::Outside { .. }))), "{tried:?}");
    // A stranger of that name beside the child changes nothing, the parent does.
    let beside = path.with_file_name("base.vhd");
    base(&beside, Uuid::from_u128(8));
    assert_eq!(parent_of(&searched).unwrap(), elsewhere.canonicalize().unwrap().join("base.vhd"));
    base(&beside, parent);
    assert_eq!(parent_of(&searched).unwrap(), beside.canonicalize().unwrap());
}

#[test]
fn a_raw_parent_is_not_searched_for() {
    let scene = Scene::new();
    let path = scene.child("secret.img", Uuid::nil());
    let outside = scene.beside("outside");
    let parents = ParentPlaces::Within(vec![outside.clone()]);
    let options = ChainOptions { parents, search: vec![outside], ..ChainOptions::default() };
    assert!(Chain::open(&path, &options).is_err());
}

fn first_byte(chain: &Chain) -> u8 {
    let mut bytes = [0; 512];
    chain.read(sectors(0, 1), &mut bytes).unwrap();
    bytes[0]
}

/// While chains are opened, somebody exchanges what the parent's name leads to, all the time: for a link to a secret, and
/// the folder that it lies in for a link to one with a secret of the same name.
#[test]
fn an_exchange_between_the_look_and_the_opening_shows_nothing() {
    for (parent, exchanged) in [("fine.img", "fine.img"), ("sub/secret.img", "sub")] {
        let scene = Scene::new();
        fs::create_dir(scene.disk("sub")).unwrap();
        fs::write(scene.disk("sub/secret.img"), vec![b'f'; SIZE]).unwrap();
        let to = if exchanged == "sub" { "../outside" } else { "../outside/secret.img" };
        symlink(to, scene.disk("link")).unwrap();
        let path = scene.child(parent, Uuid::nil());
        let (ended, exchanges) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (mut opened, mut refused) = (0, 0);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let done =
                        renameat_with(CWD, scene.disk(exchanged), CWD, scene.disk("link"), RenameFlags::EXCHANGE);
                    done.map_err(io::Error::from).unwrap();
                    exchanges.fetch_add(1, Ordering::Relaxed);
                }
            });
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) || opened == 0 || refused == 0 {
                match Chain::open(&path, &ChainOptions::default()) {
                    Ok(chain) => {
                        assert_eq!(first_byte(&chain), b'f', "the secret shows");
                        opened += 1;
                    }
                    Err(_) => refused += 1,
                }
                assert!(start.elapsed() < Duration::from_secs(30), "{opened} opened, {refused} refused");
            }
            ended.store(true, Ordering::Relaxed);
        });
        let exchanges = exchanges.into_inner();
        testkit::tell!("{parent}: {exchanges} exchanges, {opened} times opened, {refused} refused");
        assert!(exchanges > 1000, "{exchanges} exchanges");
    }
}

/// The image itself may be a link: its parents lie where it really is.
#[test]
fn the_top_of_a_chain_by_a_link_brings_no_other_folder() {
    let scene = Scene::new();
    let child = scene.child("fine.img", Uuid::nil());
    let link = scene.beside("outside/link.vhd");
    symlink(&child, &link).unwrap();
    fs::write(scene.beside("outside/fine.img"), vec![b's'; SIZE]).unwrap();
    assert_eq!(first_byte(&Scene::open(&link).unwrap()), b'f');
    assert!(Image::open(&link, vhd_core::Lock::None).is_ok());
}
