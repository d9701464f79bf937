//! `key`: the hash of the key that an image is encrypted with.
//!
//! The hash is SHA-256 of the nonce, 32 bytes, and then of the key as it is in the key file, 32 or 64 bytes. So an image
//! tells whether a key is the right one, and nothing of the key.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sha2::{Digest, Sha256};
use vhd_core::{FileError, Image, KeyHash, Lock, ReadOnly};

use super::{Failure, Refused};
use crate::output;

/// Set, check or print the hash of the key that an image is encrypted with
///
/// It can be set only while the image holds nothing.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("task").required(true))]
#[command(group = clap::ArgGroup::new("from"))]
#[expect(clippy::struct_excessive_bools, reason = "each is an option that blktap's program has")]
pub(super) struct Args {
    /// The image
    #[arg(short, required_unless_present = "calculate")]
    name: Option<PathBuf>,
    /// Set the hash
    #[arg(short, group = "task", requires = "from")]
    set: bool,
    /// Check that the image is encrypted with this key
    #[arg(short, group = "task", requires = "from")]
    check: bool,
    /// Print the hash that a key has with the nonce; without a key, check that the image is encrypted
    #[arg(short = 'C', group = "task")]
    calculate: bool,
    /// Print nonce and hash
    #[arg(short, group = "task")]
    print: bool,
    /// The file with the key, 32 or 64 bytes
    #[arg(short, group = "from")]
    key: Option<PathBuf>,
    /// The hash itself, in hexadecimal
    #[arg(short = 'H', group = "from", value_parser = parse_hex)]
    hash: Option<Hex>,
    /// The nonce, in hexadecimal; without it a new one is made for a key, and that of a hash is all zero
    #[arg(short = 'N', value_parser = parse_hex)]
    nonce: Option<Hex>,
}

/// The 32 bytes of a nonce or hash.
#[derive(Clone, Copy, Debug)]
struct Hex([u8; 32]);

const NO_NONCE: Hex = Hex([0; 32]);

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let (true, Some(key)) = (args.calculate, &args.key) {
        let Hex(nonce) = args.nonce.unwrap_or(NO_NONCE);
        return print(&hex(&hash_of(key, &nonce)?));
    }
    let refused = |what: &str| Refused::image(args.name.clone().unwrap_or_default(), Errno::INVAL, what);
    let name = args.name.as_ref().ok_or_else(|| refused("neither an image nor a key was given"))?;
    if args.set {
        return set(args, name);
    }
    let image: Image<ReadOnly> = Image::open(name, Lock::None)?;
    let found = image.key_hash()?;
    if args.print {
        return print(&found.map_or("none".into(), |key| format!("{} {}", hex(&key.nonce), hex(&key.hash))));
    }
    let found = found.ok_or_else(|| refused("records no key"))?;
    if args.check && given_hash(args, &found.nonce)? != found.hash {
        return Err(refused("is encrypted with another key").into());
    }
    Ok(())
}

/// Records a key. What an image holds already is not encrypted with it, and would be lost to whoever decrypts it.
fn set(args: &Args, name: &Path) -> Result<(), Failure> {
    let nonce = match args.nonce {
        Some(Hex(nonce)) => nonce,
        None if args.key.is_some() => random_nonce()?,
        None => NO_NONCE.0,
    };
    let key = KeyHash { nonce, hash: given_hash(args, &nonce)? };
    let mut image = Image::open_writable_beside(name)?;
    let is_empty = image.header().is_some() && image.allocated_blocks().next().transpose()?.is_none();
    if !is_empty {
        return Err(Refused::image(name, Errno::INVAL, "holds data, which is not encrypted with the key").into());
    }
    image.set_key_hash(key)?;
    Ok(image.close()?)
}

fn print(line: &str) -> Result<(), Failure> {
    let mut out = output::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The hash that was given, or that of the key that was given.
fn given_hash(args: &Args, nonce: &[u8; 32]) -> Result<[u8; 32], Failure> {
    match (&args.hash, &args.key) {
        (Some(Hex(hash)), _) => Ok(*hash),
        (None, Some(path)) => hash_of(path, nonce),
        (None, None) => {
            let name = args.name.clone().unwrap_or_default();
            Err(Refused::image(name, Errno::INVAL, "neither a key nor its hash was given").into())
        }
    }
}

fn hash_of(key: &Path, nonce: &[u8; 32]) -> Result<[u8; 32], Failure> {
    Ok(Sha256::new().chain_update(nonce).chain_update(read_key(key)?).finalize().into())
}

fn read_key(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut key = Vec::new();
    let read = File::open(path).and_then(|file| file.take(65).read_to_end(&mut key));
    read.map_err(FileError::when(path, "read the key"))?;
    if !matches!(key.len(), 32 | 64) {
        return Err(Refused::image(path, Errno::INVAL, "a key has 32 or 64 bytes").into());
    }
    Ok(key)
}

fn random_nonce() -> Result<[u8; 32], Failure> {
    let (path, mut nonce) = (Path::new("/dev/urandom"), [0; 32]);
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut nonce));
    read.map_err(FileError::when(path, "read a nonce"))?;
    Ok(nonce)
}

fn parse_hex(text: &str) -> Result<Hex, String> {
    let wrong = || "not 64 hexadecimal digits".to_owned();
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return Err(wrong());
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let (high, low) = value(pair[0]).zip(value(pair[1])).ok_or_else(wrong)?;
        *byte = high << 4 | low;
    }
    Ok(Hex(bytes))
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
