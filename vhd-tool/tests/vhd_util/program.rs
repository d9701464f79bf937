//! Running the program by its other name, and looking at what it did with other eyes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use assert_cmd::Command;
use tempfile::TempDir;
use testkit::layout::kept;
use vhd_core::{Chain, ChainOptions, ParentPlaces, Sector, SectorRange, Volume};

/// A link to the program that has the name; processes that run tests make one each.
static LINK: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let link = folder.path().join("vhd-util");
    symlink(assert_cmd::cargo::cargo_bin!("vhd-tool"), &link).expect("the folder is writable");
    (folder, link)
});

/// The program, about to be started in a folder.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(&LINK.1);
    command.current_dir(folder).args(args);
    command
}

/// The same, for those who start it by other means.
pub(crate) fn process(folder: &Path, args: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(&LINK.1);
    command.current_dir(folder).args(args);
    command
}

/// Runs it, expects an exit code, and gives standard output and standard error.
pub(crate) fn ended(folder: &Path, args: &[&str], code: i32) -> (String, String) {
    let output = kept(folder, || command(folder, args).assert().code(code).get_output().clone());
    let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
    (text(output.stdout), text(output.stderr))
}

/// Runs it, expects success and nothing on standard error, and gives what it printed.
pub(crate) fn done(folder: &Path, args: &[&str]) -> String {
    let (stdout, stderr) = ended(folder, args, 0);
    assert_eq!(stderr, "", "a command that succeeds has nothing to tell: {args:?}");
    stdout
}

/// Runs it, expects an exit code and an error, and no output.
pub(crate) fn refused(folder: &Path, args: &[&str], code: i32) -> String {
    let (stdout, stderr) = ended(folder, args, code);
    assert_eq!(stdout, "", "a refused command prints nothing: {args:?}");
    assert_ne!(stderr, "", "a refused command tells why: {args:?}");
    stderr
}

/// Writes to a disk, as a guest would.
pub(crate) fn write(folder: &Path, image: &str, offset: u64, bytes: &[u8]) {
    let volume = Volume::open(&folder.join(image), &anywhere()).expect("the image opens");
    let end = (offset + bytes.len() as u64).div_ceil(512);
    let range = SectorRange::between(Sector(offset / 512), Sector(end));
    let mut sectors = vec![0; range.count().bytes().0 as usize];
    volume.read(range, &mut sectors).expect("the image is readable");
    let within = (offset % 512) as usize;
    sectors[within..][..bytes.len()].copy_from_slice(bytes);
    volume.write(range, &sectors).and_then(|()| volume.close()).expect("the image is writable");
}

fn anywhere() -> ChainOptions {
    ChainOptions { parents: ParentPlaces::Anywhere, ..ChainOptions::default() }
}

/// The hash of the whole disk, read with the library.
pub(crate) fn guest(folder: &Path, image: &str) -> String {
    let chain = Chain::open(&folder.join(image), &anywhere()).expect("the image opens");
    testkit::guest_sha256(&chain).expect("the image is readable")
}

/// All files of a folder by name, with the hash of their content: equal before and after where nothing changed.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it is readable"));
    let of = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("tests use UTF-8 names");
        let is_file = entry.file_type().expect("it is readable").is_file();
        let hash = if is_file {
            testkit::sha256(&testkit::read_beside(&entry.path()).expect("it is readable"))
        } else {
            String::new()
        };
        (name, hash)
    };
    entries.map(of).collect()
}
