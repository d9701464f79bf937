//! Test doubles that all crates share: golden images, the pattern they are filled with, and readers that hash.

pub mod crash;
pub mod fault;
pub mod filesystem;
pub mod fuzz;
pub mod golden;
pub mod inject;
pub mod layout;
pub mod loop_device;
pub mod model;
pub mod old_layout;
pub mod pattern;
pub mod peers;
pub mod plain;
pub mod poorfs;
pub mod random;
pub mod scene;
pub mod scratch;
pub mod sparse;
pub mod tapdisk;
pub mod worker;

use sha2::{Digest, Sha256};
use vhd_core::{Chain, ReadError, Sector, SectorCount, SectorRange};

/// Prints a line that shows also where the test passes, whose output is kept back otherwise.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::tell_line(format_args!($($text)*))
    };
}

#[doc(hidden)]
pub fn tell_line(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // Where nobody listens any more, there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Sets the checksum right that a footer, header or batmap has at `field`, so that what else is wrong with it is seen.
pub fn seal(record: &mut [u8], field: usize) {
    record[field..field + 4].fill(0);
    let sum: u32 = record.iter().map(|&byte| u32::from(byte)).sum();
    record[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Opens a file that this process may hold a lease of: another descriptor would wait until the kernel takes that away.
///
/// # Errors
/// As [`FileStorage::open`](vhd_core::FileStorage::open).
pub fn open_beside(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    vhd_core::FileStorage::open(path, vhd_core::Lock::None)?.file().try_clone()
}

/// As [`open_beside`], the whole content.
///
/// # Errors
/// As there, and a failed read.
pub fn read_beside(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let file = open_beside(path)?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0)?;
    Ok(bytes)
}

/// Hashes bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes the whole disk as a guest reads it, in hexadecimal.
///
/// # Errors
/// A failed read.
pub fn guest_sha256(chain: &Chain) -> Result<String, ReadError> {
    let mut hash = Sha256::new();
    let disk = SectorRange::new(Sector(0), chain.sectors());
    for piece in disk.split_at_multiples(SectorCount(2048)) {
        let mut bytes = vec![0; piece.count().bytes().0 as usize];
        chain.read(piece, &mut bytes)?;
        hash.update(&bytes);
    }
    Ok(hex(&hash.finalize()))
}
