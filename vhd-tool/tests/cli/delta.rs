//! Differences as a VHD: whole blocks, as readers need them that look at no bitmap, and sectors where asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use testkit::seal;

use crate::program::{done, ended, json, json_ended, refused, space, write};
use crate::stream::{chain, raw, same, shell};

const BLOCK: usize = 2 << 20;

/// What the disks of [`chain`] hold, by what is written to them.
fn contents() -> BTreeMap<&'static str, Vec<u8>> {
    const MIB: usize = 1 << 20;
    let mut disk = vec![0; 13 * MIB];
    disk[..3 * MIB].fill(1);
    disk[12 * MIB + 512..12 * MIB + 512 + 4096].fill(1);
    let base = disk.clone();
    disk[512..1536].fill(2);
    disk[MIB..MIB + 2048].fill(0);
    disk[9 * MIB + 1536..9 * MIB + 2048].fill(2);
    let mid = disk.clone();
    disk[1024..1536].fill(3);
    disk[13 * MIB - 512..].fill(3);
    disk[12 * MIB + 512..12 * MIB + 1024].fill(0);
    BTreeMap::from([("base", base), ("mid", mid), ("leaf", disk)])
}

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("they are four")) as usize
}

/// The blocks of an image: each one's bitmap and data.
fn blocks(image: &[u8]) -> BTreeMap<usize, (&[u8], &[u8])> {
    let (table, entries) = (number(image, 512 + 20), number(image, 512 + 28));
    let placed = (0..entries).map(|block| (block, number(image, table + block * 4)));
    let placed = placed.filter(|&(_, sector)| sector != u32::MAX as usize);
    placed
        .map(|(block, sector)| {
            let at = sector * 512;
            (block, (&image[at..at + 512], &image[at + 512..at + 512 + BLOCK]))
        })
        .collect()
}

/// A block of a disk, with zeros beyond its end.
fn block_of(disk: &[u8], block: usize) -> Vec<u8> {
    let mut bytes = disk[block * BLOCK..disk.len().min((block + 1) * BLOCK)].to_vec();
    bytes.resize(BLOCK, 0);
    bytes
}

/// Restores as a reader that takes every block for whole: over what is in the base.
fn restored(base: &[u8], image: &[u8], size: usize) -> Vec<u8> {
    let mut disk = base.to_vec();
    disk.resize(size.next_multiple_of(BLOCK), 0);
    for (block, (_, data)) in blocks(image) {
        disk[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(data);
    }
    disk.truncate(size);
    disk
}

fn is_whole(image: &[u8], disk: &[u8], expected: &[usize]) {
    let found = blocks(image);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), expected);
    for (block, (bitmap, data)) in found {
        assert!(bitmap.iter().all(|&byte| byte == 0xff), "block {block} has all its bits");
        assert!(data == block_of(disk, block), "block {block}");
    }
}

fn sent(folder: &Path, options: &str) -> Vec<u8> {
    shell(folder, &format!("$TOOL stream {options} --destination-format vhd | cat"))
}

#[test]
fn a_difference_is_sent_in_whole_blocks() {
    let folder = chain();
    let (at, disks) = (folder.path(), contents());
    for (name, over, expected) in [
        ("leaf", "mid", &[0, 6][..]),
        ("leaf", "base", &[0, 4, 6]),
        ("mid", "base", &[0, 4]),
        ("mid", "leaf", &[0, 6]),
        ("leaf", "leaf", &[]),
    ] {
        assert!(fs::read(at.join(format!("{name}.img"))).unwrap() == disks[name]);
        for source in [
            format!("--source-format vhd --source {name}.vhd"),
            format!("--source-format hybrid --source {name}.img:{name}.vhd"),
        ] {
            let delta = sent(at, &format!("{source} --relative-to {over}.vhd"));
            is_whole(&delta, &disks[name], expected);
            assert!(restored(&disks[over], &delta, 13 << 20) == disks[name], "{source} over {over}");
        }
    }
}

#[test]
fn images_that_are_sent_whole_have_all_bits_too() {
    let folder = chain();
    let (at, disks) = (folder.path(), contents());
    for source in [
        "--source-format vhd --source leaf.vhd",
        "--source-format hybrid --source leaf.img:leaf.vhd",
        "--source-format raw --source leaf.img",
    ] {
        let image = sent(at, source);
        is_whole(&image, &disks["leaf"], &[0, 1, 4, 6]);
    }
}

#[test]
fn a_disk_that_has_grown_is_sent_with_what_was_added() {
    let folder = chain();
    let at = folder.path();
    let mut disk = contents()["leaf"].clone();
    done(at, &["resize", "leaf.vhd", "19M"]);
    disk.resize(19 << 20, 0);
    write(at, "leaf.vhd", (13 << 20) - 512, &[7; 1024]);
    disk[(13 << 20) - 512..(13 << 20) + 512].fill(7);
    write(at, "leaf.vhd", (19 << 20) - 512, &[8; 512]);
    disk[(19 << 20) - 512..].fill(8);
    let delta = sent(at, "--source-format vhd --source leaf.vhd --relative-to mid.vhd");
    is_whole(&delta, &disk, &[0, 6, 9]);
    assert!(restored(&contents()["mid"], &delta, 19 << 20) == disk);
}

#[test]
fn any_difference_restores_by_blocks_and_by_sectors() {
    let mut state = 20_u64;
    let mut below = |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    for round in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let size = (3 + below(9) as usize) * (1 << 20) + below(7) as usize * 512;
        let mut disks = vec![vec![0; size]];
        done(at, &["create", "v0.vhd", "--size", &size.to_string()]);
        for layer in 0..4 {
            if layer > 0 {
                done(at, &["create", &format!("v{layer}.vhd"), "--parent", &format!("v{}.vhd", layer - 1), "-q"]);
                disks.push(disks[layer - 1].clone());
            }
            for _ in 0..below(5) {
                let (start, byte) = (below(size as u64 - 4096) as usize, below(3) as u8);
                let length = 1 + below(if byte == 0 { 4096 } else { 300_000 }.min((size - start) as u64)) as usize;
                write(at, &format!("v{layer}.vhd"), start as u64, &vec![byte; length]);
                disks[layer][start..start + length].fill(byte);
            }
        }
        for (name, over) in [(3, 0), (3, 2), (2, 1), (1, 3)] {
            let source = format!("--source-format vhd --source v{name}.vhd --relative-to v{over}.vhd");
            let whole = sent(at, &source);
            assert!(restored(&disks[over], &whole, size) == disks[name], "round {round}: {name} over {over}");
            assert!(blocks(&whole).values().all(|(bitmap, _)| bitmap.iter().all(|&byte| byte == 0xff)));
            for (delta, image) in
                [("whole.vhd", whole), ("sectors.vhd", sent(at, &format!("{source} --sector-deltas")))]
            {
                fs::write(at.join(delta), image).unwrap();
                fs::write(at.join("copy.img"), &disks[over]).unwrap();
                done(at, &["serve", "--source-format", "vhd", "--source", delta, "--destination", "copy.img"]);
                assert!(
                    fs::read(at.join("copy.img")).unwrap() == disks[name],
                    "round {round}: {delta} {name} over {over}"
                );
                done(at, &["convert", delta, "chain.img", "--to", "raw", "--force"]);
                assert!(fs::read(at.join("chain.img")).unwrap() == disks[name], "round {round}: {delta} as a child");
            }
        }
    }
}

#[test]
fn only_differences_that_are_vhds_have_sectors() {
    let folder = chain();
    let leaf = ["stream", "--source", "leaf.vhd", "--source-format", "vhd", "--destination", "x", "--sector-deltas"];
    refused(folder.path(), &leaf, 2, &["--relative-to"]);
    let chunked = ["--relative-to", "mid.vhd", "--destination-protocol", "chunked"];
    refused(folder.path(), &[&leaf[..], &chunked].concat(), 2, &["--destination-format vhd"]);
}

#[test]
fn zeros_that_a_source_has_stored_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let size = (33 << 20) + 512;
    let mut disk = vec![0; size];
    disk[5 * BLOCK - 512..5 * BLOCK].fill(1);
    disk[7 * BLOCK + 70_000] = 1;
    disk[12 * BLOCK] = 1;
    let expected = [4, 7, 12];
    fs::write(at.join("disk.img"), &disk).unwrap();
    assert!(space(&at.join("disk.img")) >= size as u64, "the zeros are no holes");
    done(at, &["create", "fixed.vhd", "--size", &size.to_string(), "--type", "fixed"]);
    let mut fixed = disk.clone();
    fixed.extend(fs::read(at.join("fixed.vhd")).unwrap()[size..].to_vec());
    fs::write(at.join("fixed.vhd"), fixed).unwrap();
    done(at, &["create", "child.vhd", "--parent", "disk.img", "--parent-raw"]);
    for source in ["raw --source disk.img", "vhd --source fixed.vhd", "vhd --source child.vhd"] {
        let image = sent(at, &format!("--source-format {source}"));
        is_whole(&image, &disk, &expected);
        fs::write(at.join("sent.vhd"), &image).unwrap();
        done(at, &["check", "sent.vhd"]);
        shell(at, "rm -f back.img; $TOOL serve --source-format vhd --destination back.img < sent.vhd");
        same(at, "back.img", "disk.img");
    }
    // What is left out of a difference stays as it was: there zeros are content.
    raw(at, "ones.img", size as u64, &[(9 * BLOCK as u64, 100)]);
    let delta = sent(at, "--source-format raw --source disk.img --relative-to ones.img");
    assert!(restored(&fs::read(at.join("ones.img")).unwrap(), &delta, size) == disk);
    // Nothing but zeros is tables and a footer.
    fs::write(at.join("zeros.img"), vec![0; 64 << 20]).unwrap();
    assert!(sent(at, "--source zeros.img").len() < 4096);
}

/// Changes the header or both footers of an image, checksums included.
fn patched(path: &Path, change: impl Fn(&mut [u8], &mut [u8])) {
    let mut image = fs::read(path).expect("the image is there");
    let mut header = image[512..1536].to_vec();
    let mut footer = image[..512].to_vec();
    change(&mut header, &mut footer);
    seal(&mut header, 36);
    seal(&mut footer, 64);
    let end = image.len() - 512;
    image[512..1536].copy_from_slice(&header);
    image[..512].copy_from_slice(&footer);
    image[end..].copy_from_slice(&footer);
    fs::write(path, image).expect("the folder is writable");
}

#[test]
fn streams_that_count_the_room_of_locators_in_bytes_are_read_and_told_of() {
    let folder = chain();
    let (at, disks) = (folder.path(), contents());
    let image = at.join("delta.vhd");
    fs::write(&image, sent(at, "--source-format vhd --source leaf.vhd --relative-to mid.vhd")).unwrap();
    for in_bytes in [false, true] {
        if in_bytes {
            patched(&image, |header, _| {
                (0..3)
                    .for_each(|slot| header[580 + slot * 24..584 + slot * 24].copy_from_slice(&512_u32.to_be_bytes()));
            });
        }
        fs::write(at.join("copy.img"), &disks["mid"]).unwrap();
        let serve = ["serve", "--source-format", "vhd", "--source", "delta.vhd", "--destination", "copy.img"];
        let (_, told) = ended(at, &serve, 0);
        assert_eq!(told.contains("room of its parent locators in bytes"), in_bytes, "{told}");
        assert!(fs::read(at.join("copy.img")).unwrap() == disks["leaf"]);
        assert_eq!(json_ended(at, &["check", "delta.vhd"], 0).to_string().contains("locator-bytes"), in_bytes);
    }
}

/// Xen Orchestra relinks a child by its header alone, and keeps the creator without the batmap.
#[test]
fn chains_that_xen_orchestra_has_relinked_are_sound() {
    let folder = chain();
    let (at, disks) = (folder.path(), contents());
    for (name, over) in [("leaf", "mid"), ("mid", "base")] {
        let delta = sent(at, &format!("--source-format vhd --source {name}.vhd --relative-to {over}.vhd"));
        fs::write(at.join(format!("new-{name}.vhd")), delta).unwrap();
    }
    fs::write(at.join("new-base.vhd"), sent(at, "--source-format vhd --source base.vhd")).unwrap();
    for name in ["base", "mid", "leaf"] {
        fs::remove_file(at.join(format!("{name}.vhd"))).unwrap();
        patched(&at.join(format!("new-{name}.vhd")), |header, footer| {
            footer[32..36].copy_from_slice(&0x0001_0003_u32.to_be_bytes());
            let parent = match name {
                "leaf" => "new-mid.vhd",
                "mid" => "new-base.vhd",
                _ => return,
            };
            header[64..576].fill(0);
            for (i, unit) in parent.encode_utf16().enumerate() {
                header[64 + i * 2..66 + i * 2].copy_from_slice(&unit.to_be_bytes());
            }
        });
    }
    let checked = json_ended(at, &["check", "new-leaf.vhd", "--chain"], 0);
    let text = checked.to_string();
    assert!(text.contains("locator-differs") && text.contains("batmap-lost"), "{text}");
    assert!(!text.contains("\"warning\"") && !text.contains("\"error\""), "{text}");
    assert_eq!(text.matches("locator-differs").count(), 2, "one for each child: {text}");
    done(at, &["convert", "new-leaf.vhd", "x.img", "--to", "raw"]);
    assert!(fs::read(at.join("x.img")).unwrap() == disks["leaf"]);
    assert_eq!(json(at, &["info", "new-leaf.vhd"])["type"], "differencing");
}
