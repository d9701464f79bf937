//! Measures what a command line cannot, and prints JSON.
//!
//! `measure-chain read LEAF COUNT`: the mean time of `COUNT` random reads of 4 KiB of data, once resolved.
//! `measure-chain open LEAF`: the time to open a chain and read one page of it, and the memory that this took.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use benches::{PAGE, Random, pages_with_data, resident};
use vhd_core::{Chain, ChainError, ChainOptions, ReadError, Sector, SectorRange};

#[derive(Debug)]
enum Failure {
    Open(ChainError),
    Read(ReadError),
}

impl From<ChainError> for Failure {
    fn from(error: ChainError) -> Self {
        Self::Open(error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match arguments[..] {
        ["read", leaf, count] => count.parse().map(|count| read(Path::new(leaf), count)).ok(),
        ["open", leaf] => Some(open(Path::new(leaf))),
        _ => None,
    };
    match measured {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(Failure::Open(error))) => failed(&error),
        Some(Err(Failure::Read(error))) => failed(&error),
        None => {
            eprintln!("usage: measure-chain read LEAF COUNT\n       measure-chain open LEAF");
            ExitCode::from(2)
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}

fn read(leaf: &Path, count: u64) -> Result<(), Failure> {
    let chain = Chain::open(leaf, &ChainOptions::default())?;
    let mut buffer = vec![0; PAGE.bytes().0 as usize];
    let pages = pages_with_data(&chain)?;
    for &page in &pages {
        chain.read(page, &mut buffer)?;
    }
    let mut random = Random::new(7);
    let start = Instant::now();
    for _ in 0..count {
        chain.read(random.choose(&pages), &mut buffer)?;
    }
    let seconds = start.elapsed().as_secs_f64() / count as f64;
    println!("{{\"seconds\": {seconds:e}}}");
    Ok(())
}

fn open(leaf: &Path) -> Result<(), Failure> {
    let before = resident();
    let start = Instant::now();
    let chain = Chain::open(leaf, &ChainOptions::default())?;
    let opened = start.elapsed().as_secs_f64();
    let mut page = vec![0; PAGE.bytes().0 as usize];
    chain.read(SectorRange::new(Sector(chain.sectors().0 / 2), PAGE), &mut page)?;
    let read = start.elapsed().as_secs_f64();
    let memory = resident();
    let grown = memory.0.saturating_sub(before.0);
    println!("{{\"seconds\": {opened:e}, \"seconds_with_read\": {read:e}, \"rss\": {memory}, \"grown\": {grown}}}");
    Ok(())
}
