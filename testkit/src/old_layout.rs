//! Images as a version before this laid them out: with BAT and batmap behind the blocks.

use crate::seal;

const FOOTER: usize = 512;
const HEADER: usize = 512;

fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes[at..at + length].iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// Moves BAT and batmap of an image behind its blocks, and the footer behind those, as an older resize did.
///
/// # Panics
/// If the bytes are no image with a batmap.
pub fn tables_behind_blocks(image: &mut Vec<u8>) {
    let footer = image.split_off(image.len() - FOOTER);
    let (table, entries) = (number(image, HEADER + 16, 8), number(image, HEADER + 28, 4));
    let bat_length = (entries * 4).next_multiple_of(512);
    let batmap = table + bat_length;
    assert_eq!(&image[batmap..batmap + 8], b"tdbatmap", "an image with a batmap");
    let (map, map_length) = (number(image, batmap + 8, 8), number(image, batmap + 16, 4) * 512);
    let (bat, mut batmap_header) = (image[table..batmap].to_vec(), image[batmap..batmap + 512].to_vec());
    let bits = image[map..map + map_length].to_vec();

    image.resize((image.len() + 512).next_multiple_of(4096), 0);
    let moved = image.len() as u64;
    let map = moved + bat_length as u64 + 512;
    batmap_header[8..16].copy_from_slice(&map.to_be_bytes());
    for part in [bat, batmap_header, bits, footer] {
        image.extend(part);
    }
    image[HEADER + 16..HEADER + 24].copy_from_slice(&moved.to_be_bytes());
    seal(&mut image[HEADER..HEADER + 1024], 36);
}
