//! Running the program, and looking at what it did with other eyes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use testkit::golden;
use testkit::layout::kept;
use vhd_core::{Chain, ChainOptions, ParentPlaces};

/// The program, about to be started in a folder.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("vhd-tool");
    command.current_dir(folder).args(args);
    command
}

/// Runs it, expects success, and gives what it printed.
pub(crate) fn done(folder: &Path, args: &[&str]) -> String {
    ended(folder, args, 0).0
}

/// Runs it, expects an exit code, and gives standard output and standard error.
pub(crate) fn ended(folder: &Path, args: &[&str], code: i32) -> (String, String) {
    let run = || command(folder, args).assert().code(code).get_output().clone();
    // What a repair has mended, it gives back as it was when it is undone.
    let output = if args.contains(&"--undo") { run() } else { kept(folder, run) };
    let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
    (text(output.stdout), text(output.stderr))
}

/// Runs it, expects an exit code and an error that has all of `parts`, and no output.
pub(crate) fn refused(folder: &Path, args: &[&str], code: i32, parts: &[&str]) {
    let (stdout, stderr) = ended(folder, args, code);
    assert_eq!(stdout, "", "a refused command prints nothing");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr:?}");
    }
}

/// Runs it with `--json`, expects an exit code, and gives what it printed.
pub(crate) fn json_ended(folder: &Path, args: &[&str], code: i32) -> Value {
    let (stdout, _) = ended(folder, &[args, &["--json"]].concat(), code);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

/// As [`json_ended`], for success.
pub(crate) fn json(folder: &Path, args: &[&str]) -> Value {
    json_ended(folder, args, 0)
}

/// Writes to a disk through the program.
pub(crate) fn write(folder: &Path, image: &str, offset: u64, bytes: &[u8]) {
    let offset = offset.to_string();
    command(folder, &["write", image, "--offset", &offset]).write_stdin(bytes).assert().success();
}

/// The hash of the whole disk, read with the library.
pub(crate) fn guest(folder: &Path, image: &str) -> String {
    let options = ChainOptions { parents: ParentPlaces::Anywhere, ..ChainOptions::default() };
    let chain = Chain::open(&folder.join(image), &options).expect("the image opens");
    testkit::guest_sha256(&chain).expect("the image is readable")
}

/// The hash that the manifest gives for a golden image's disk.
pub(crate) fn expected(name: &str) -> String {
    let image = golden::manifest().into_iter().find(|image| image.file == name);
    image.and_then(|image| image.guest_sha256).expect("the manifest has the hash")
}

/// All files of a folder by name, with the hash of their content: equal before and after where nothing changed.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it is readable").path());
    let of = |path: std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("tests use UTF-8 names").to_owned();
        (name, testkit::sha256(&testkit::read_beside(&path).expect("it is readable")))
    };
    entries.filter(|path| path.is_file()).map(of).collect()
}

/// The names of all files of a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    files(folder).into_keys().collect()
}

/// The space that a file takes.
pub(crate) fn space(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).expect("the file is there").blocks() * 512
}
