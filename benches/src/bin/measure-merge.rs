//! Times one merge, as JSON: `measure-merge LEAF BASE CHECKPOINT`, where CHECKPOINT is the least number of bytes between
//! two checkpoints; 0 stands for what the merge itself chooses. All files stay as they are, but for the content of BASE.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use coalesce_worker::{
    Abort, Budget, Coalesce, CoalesceError, CopyMethod, Direction, MergeOptions, Repository, Request,
};
use vhd_core::{ByteCount, ChainOptions, FileError, folder_of};

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Open(#[from] FileError),
    #[error(transparent)]
    Merge(#[from] CoalesceError),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [leaf, base, checkpoint] = &arguments[..] else { return usage() };
    let Ok(checkpoint) = checkpoint.parse() else { return usage() };
    match merge(leaf.into(), base.into(), checkpoint) {
        Ok(seconds) => {
            println!("{{\"seconds\": {seconds}}}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: measure-merge LEAF BASE CHECKPOINT");
    ExitCode::from(2)
}

fn merge(leaf: PathBuf, base: PathBuf, checkpoint: u64) -> Result<f64, Failure> {
    let (repository, _) = Repository::open(folder_of(&leaf), ChainOptions::default())?;
    let (budget, abort) = (Budget::default(), Abort::new());
    let request = Request { node: leaf, into: Some(base), direction: Direction::Down, keep: true };
    let options = MergeOptions {
        threads: None,
        progress: &|_| {},
        merged: &|| (),
        budget: &budget,
        abort: &abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        checkpoint_every: (checkpoint > 0).then_some(ByteCount(checkpoint)),
    };
    let start = Instant::now();
    Coalesce::prepare(&repository, &request)?.execute(&options)?;
    Ok(start.elapsed().as_secs_f64())
}
