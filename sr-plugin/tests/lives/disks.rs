//! What volumes hold, seen without the plugin.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;

use coalesce_worker::Collected;
use serde_json::{Value, json};
use testkit::model::read_all;
use testkit::pattern;
use testkit::scene::patiently;
use vhd_core::{Chain, ChainOptions, Sector, SectorCount, SectorRange, Volume};

use crate::plugin::{Plugin, Sr, program};

/// Where a volume's image is, by its URI.
pub(crate) fn image(sr: &Sr, key: &str) -> PathBuf {
    sr.folder.join(format!("{key}.vhd"))
}

/// Writes a pattern, as a guest would.
pub(crate) fn write(sr: &Sr, key: &str, start: u64, count: u64, tag: u16) {
    let range = SectorRange::new(Sector(start), SectorCount(count));
    // A collection may have it for a moment.
    let volume = patiently(|| Volume::open(&image(sr, key), &ChainOptions::default())).unwrap();
    volume.write(range, &pattern::fill(range, tag)).unwrap();
    volume.close().unwrap();
}

/// Writes a pattern by the command line.
pub(crate) fn write_by_command(sr: &Sr, key: &str, start: u64, count: u64, tag: u16) {
    let mut command = Command::new(program("vhd-tool"));
    command.args(["--quiet", "write"]).arg(image(sr, key)).arg("--offset").arg((start * 512).to_string());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let range = SectorRange::new(Sector(start), SectorCount(count));
    child.stdin.take().unwrap().write_all(&pattern::fill(range, tag)).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Runs the worker once, by the command line.
pub(crate) fn collect_by_command(sr: &Sr) {
    let output = Command::new(program("coalesce-worker")).arg("once").arg(&sr.folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The content of a volume.
pub(crate) fn content(folder: &Path, key: &str) -> Vec<u8> {
    let path = folder.join(format!("{key}.vhd"));
    read_all(
        &Chain::open(&path, &ChainOptions::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
}

/// The content of all volumes that have data.
pub(crate) fn contents(plugin: &Plugin, sr: &Sr) -> BTreeMap<String, Vec<u8>> {
    let there = plugin.keys(sr).into_iter().filter(|key| image(sr, key).exists());
    there.map(|key| (key.clone(), content(&sr.folder, &key))).collect()
}

/// Merges whatever can be merged.
pub(crate) fn collect(sr: &Sr) -> Collected {
    let collected = testkit::worker::collect(&sr.folder);
    assert!(collected.failed.is_empty() && collected.isolated.is_empty(), "{collected:?}");
    collected
}

/// Checks every image of a repository.
pub(crate) fn check(sr: &Sr) {
    testkit::scene::check(&sr.folder);
}

/// Checks that what is listed is there, and that nothing is there besides.
pub(crate) fn verify(plugin: &Plugin, sr: &Sr) {
    let keys: BTreeSet<String> = plugin.keys(sr).into_iter().collect();
    for key in &keys {
        plugin.volume(sr, "stat", key, &json!({}));
    }
    for entry in std::fs::read_dir(&sr.folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = name.starts_with('.') || name == "sr.json" || keys.contains(name.split(".vhd").next().unwrap());
        let hidden = || {
            name.ends_with(".vhd") && {
                let path = sr.folder.join(&name);
                let image = vhd_core::Image::<vhd_core::ReadOnly>::open(&path, vhd_core::Lock::None).unwrap();
                image.footer().hidden()
            }
        };
        assert!(known || hidden(), "{name} belongs to nothing");
    }
    check(sr);
}

/// The blocks that are told to have changed from one volume to another.
pub(crate) fn changed(plugin: &Plugin, sr: &Sr, from: &str, to: &str) -> BTreeSet<u64> {
    let answer = plugin.volume(sr, "list_changed_blocks", from, &json!({ "key2": to, "offset": 0, "length": -1 }));
    assert_eq!(answer["granularity"], 65536);
    bits(&answer)
}

/// The blocks that an answer names.
pub(crate) fn bits(answer: &Value) -> BTreeSet<u64> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(answer["bitmap"].as_str().unwrap()).unwrap();
    let bit = |block: &u64| bytes[(block / 8) as usize] & (0x80 >> (block % 8)) != 0;
    (0..bytes.len() as u64 * 8).filter(bit).collect()
}

/// The blocks in which two contents differ.
pub(crate) fn differing(one: &[u8], other: &[u8]) -> BTreeSet<u64> {
    let blocks = one.chunks(65536).zip(other.chunks(65536)).enumerate();
    blocks.filter(|(_, (one, other))| one != other).map(|(block, _)| block as u64).collect()
}
