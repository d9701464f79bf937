//! What must hold of where things lie in an image, so that tapdisk can go on with it: whatever has written it.
//!
//! ```text
//! copy of the footer | header | BAT | batmap header | batmap | locators | padding, bitmap, block | … | footer
//! ```
//! The rules are those that `tapdisk::Tapdisk` takes for granted, and those of blktap's `vhd-util check`; nothing of this
//! goes through the code under test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::tapdisk::headers::{BLOCK, Footer, Headers, PAGE, SECTOR, UNUSED, be32, read};

/// Checks the layout of an image.
///
/// # Panics
/// If a rule is broken, or the image cannot be read.
pub fn assert_layout(path: &Path) {
    let faults = faults(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(faults.is_empty(), "{}: {faults:#?}", path.display());
}

/// Runs a command, and checks the layout of all images that it leaves in a folder, but for those that broke a rule before.
///
/// # Panics
/// If a rule is broken.
pub fn kept<T>(folder: &Path, command: impl FnOnce() -> T) -> T {
    let keeps = |path: &Path| faults(path).is_ok_and(|faults| faults.is_empty());
    let before: BTreeMap<u64, bool> = images(folder).into_iter().map(|(file, path)| (file, keeps(&path))).collect();
    let answer = command();
    for (file, path) in images(folder) {
        if before.get(&file) != Some(&false) {
            assert_layout(&path);
        }
    }
    answer
}

/// The images of a folder, by the numbers of their files.
fn images(folder: &Path) -> Vec<(u64, PathBuf)> {
    let paths = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let named = paths.filter(|path| path.extension().is_some_and(|extension| extension == "vhd"));
    let found = named.filter_map(|path| Some((fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.ino(), path)));
    found.collect()
}

/// Lists the rules that an image breaks. A fixed image has only a footer.
///
/// # Errors
/// A failed read; what is no image.
pub fn faults(path: &Path) -> io::Result<Vec<String>> {
    let file = crate::open_beside(path)?;
    let length = file.metadata()?.len();
    let footer = Footer::read(&file)?;
    let mut faults = Faults(Vec::new());
    let at_end = Footer::read_at(&file, length.saturating_sub(SECTOR))?;
    faults.note(at_end.is_none(), || "no footer in the last sector".into());
    if footer.is_fixed() {
        return Ok(faults.0);
    }
    let copy = Footer::read_at(&file, 0)?;
    faults.note(copy.as_ref() != Some(&footer), || "the copy of the footer differs".into());
    let headers = Headers::read(&file, &footer)?;
    faults.note(!length.is_multiple_of(SECTOR), || format!("{length} bytes are not whole sectors"));
    order(&headers, &mut faults);
    locators(&headers, &footer, &mut faults);
    let disk_blocks = footer.disk_bytes().div_ceil(headers.block_bytes());
    faults.note(disk_blocks > headers.max_entries().into(), || "the disk is larger than the BAT".into());
    let table = read(&file, headers.table_at(), u64::from(headers.max_entries()) * 4)?;
    let entries: Vec<u32> = (0..table.len() / 4).map(|i| be32(&table, i * 4)).collect();
    blocks(&headers, &entries, length - SECTOR, &mut faults);
    for block in (disk_blocks as usize..entries.len()).filter(|&block| entries[block] != UNUSED) {
        // tapdisk reads no entries there, and puts its next block over what they point to.
        faults.0.push(format!("block {block} is behind the end of the disk"));
    }
    batmap(&file, &headers, &footer, &entries, &mut faults);
    Ok(faults.0)
}

struct Faults(Vec<String>);

impl Faults {
    fn note(&mut self, is_broken: bool, fault: impl FnOnce() -> String) {
        if is_broken {
            self.0.push(fault());
        }
    }
}

/// All that comes before the blocks, in its order. Images of other programs, which have no batmap, may have another order.
fn order(headers: &Headers, faults: &mut Faults) {
    let table = headers.table_at()..headers.batmap_header_at();
    let mut parts = vec![
        ("copy of the footer", 0..SECTOR),
        ("header", headers.header_at..headers.header_at + 1024),
        ("BAT", table),
    ];
    if let Some((at, bytes)) = headers.batmap_place() {
        parts.push(("batmap header", headers.batmap_header_at()..headers.batmap_header_at() + SECTOR));
        parts.push(("batmap", at..at + bytes));
    }
    let mut places: Vec<Range<u64>> =
        headers.locators().map(|entry| entry.offset..entry.offset + entry.space).collect();
    places.sort_unstable_by_key(|range| range.start);
    parts.extend(places.into_iter().map(|range| ("locator", range)));
    if headers.batmap.is_none() {
        parts.sort_by_key(|(_, range)| range.start);
    }
    for pair in parts.windows(2) {
        let [(one, before), (other, after)] = pair else { continue };
        faults.note(after.start < before.end, || format!("{other} at {after:?} before the end of {one} at {before:?}"));
    }
    for (what, range) in parts {
        faults.note(range.start % SECTOR != 0, || format!("{what} at {range:?}, not a whole sector"));
    }
}

fn locators(headers: &Headers, footer: &Footer, faults: &mut Faults) {
    let mut codes = Vec::new();
    for locator in headers.locators() {
        let is_odd = locator.offset == 0 || locator.space == 0 || locator.length == 0 || locator.length > locator.space;
        faults.note(is_odd, || format!("no text can be where {locator:?} says"));
        faults.note(codes.contains(&locator.code), || format!("two locators of the kind of {locator:?}"));
        codes.push(locator.code);
    }
    let unused = headers.header[576..768].chunks(24).filter(|entry| be32(entry, 0) == 0);
    faults.note(unused.flatten().any(|&byte| byte != 0), || "a locator of no kind".into());
    faults.note(!codes.is_empty() && !footer.is_differencing(), || "a locator without a parent".into());
    faults.note(codes.is_empty() && footer.is_differencing(), || "no locator of the parent".into());
}

/// Blocks lie behind the tables, each in a place of its own, and before the footer; before a bitmap, padding.
fn blocks(headers: &Headers, entries: &[u32], footer_at: u64, faults: &mut Faults) {
    let mut places: Vec<(u64, usize)> = (0..)
        .zip(entries)
        .filter(|(_, entry)| **entry != UNUSED)
        .map(|(block, &entry)| (u64::from(entry), block))
        .collect();
    places.sort_unstable();
    let headers_end = headers.end().div_ceil(SECTOR);
    let padding = if headers.batmap.is_some() { PAGE.saturating_sub(headers.bitmap_sectors()) } else { 0 };
    let mut before = (headers_end, "the tables".to_owned());
    for (entry, block) in places {
        let (end, what) = &before;
        faults.note(entry < headers_end, || {
            format!("block {block} at sector {entry}, before the tables end at {headers_end}")
        });
        faults.note(entry < *end, || format!("block {block} at sector {entry}, where {what} are until {end}"));
        // Only of an image with a batmap is the bitmap of a full block written again.
        let is_first = entry == headers.first_block();
        let room = entry.saturating_sub(*end);
        faults.note(!is_first && room < padding, || {
            format!("only {room} sectors between {what} and block {block} at sector {entry}")
        });
        before = (entry + headers.block_sectors(), format!("bitmap and data of block {block}"));
    }
    let (end, what) = before;
    faults.note(end * SECTOR > footer_at, || format!("the footer at {footer_at} in {what}, until sector {end}"));
}

fn batmap(file: &File, headers: &Headers, footer: &Footer, entries: &[u32], faults: &mut Faults) {
    let Some((_, space)) = headers.batmap_place() else { return };
    faults.note(space * 8 < headers.max_entries().into(), || "a batmap for fewer blocks than the BAT has".into());
    if headers.block_bytes() != BLOCK {
        // libvhd, which counts blocks of 2 MiB, sums another part of such a map.
        return;
    }
    match headers.read_batmap(file, footer.disk_bytes()) {
        Err(error) => faults.0.push(error.to_string()),
        Ok(map) => {
            let map = map.unwrap_or_default();
            let is_full = |block: usize| map.get(block / 8).is_some_and(|byte| byte << (block % 8) & 0x80 != 0);
            let wrong = (0..entries.len()).find(|&block| entries[block] == UNUSED && is_full(block));
            faults.note(wrong.is_some(), || format!("block {wrong:?} is full and not there"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::golden;

    #[test]
    fn blktaps_images_keep_the_rules() {
        let sound = ["base.vhd", "mid.vhd", "leaf.vhd", "empty-10m.vhd", "fixed-4m.vhd", "prealloc.vhd", "meta.vhd"];
        let folder = golden::unpack(&sound);
        for name in sound {
            assert_layout(&folder.path().join(name));
        }
    }

    /// Each a number in the header, the BAT or the batmap of an image, and what breaks with it.
    #[test]
    fn what_lies_elsewhere_is_told() {
        let folder = golden::unpack(&["mid.vhd"]);
        let path = folder.path().join("mid.vhd");
        let sound = fs::read(&path).unwrap();
        let headers = {
            let file = File::open(&path).unwrap();
            Headers::read(&file, &Footer::read(&file).unwrap()).unwrap()
        };
        let table = headers.table_at() as usize;
        let entry = |block: usize| be32(&sound, table + block * 4);
        let mut used: Vec<(u32, usize)> =
            (0..32).map(|block| (entry(block), block)).filter(|(entry, _)| *entry != UNUSED).collect();
        used.sort_unstable();
        let [(first, one), (second, other), ..] = used[..] else { panic!("the image has two blocks") };
        let mut cases: Vec<(usize, u32, &str)> = vec![
            (table + one * 4, 3, "before the tables end"),
            (table + other * 4, first + 4000, "bitmap and data of block"),
            (table + other * 4, first + 4098, "only 1 sectors between"),
            (table + one * 4, first + 1, "only 6 sectors between"),
            (table + other * 4, (sound.len() / 512 - 4000) as u32, "the footer at"),
        ];
        assert!(second >= first + 4104);
        for (field, value, fault) in [(580, 0, "no text"), (592 + 4, 1024, "before the end"), (576, 0, "of no kind")] {
            cases.push((512 + field, value, fault));
        }
        for (at, value, fault) in cases {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            crate::seal(&mut bytes[512..1536], 36);
            fs::write(&path, bytes).unwrap();
            let found = faults(&path).unwrap();
            assert!(found.iter().any(|found| found.contains(fault)), "{fault}: {found:?}");
        }
        fs::write(&path, &sound[..sound.len() - 512]).unwrap();
        assert!(faults(&path).unwrap()[0].contains("no footer"));
    }
}
