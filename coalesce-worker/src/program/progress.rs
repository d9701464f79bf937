//! How far a collection is: a bar on a terminal, lines now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::status::{Board, RepositoryStatus};

/// How often a bar is drawn.
const REDRAW: Duration = Duration::from_millis(200);
/// The time between two lines.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

const TEMPLATE: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";

/// Does some work, and shows meanwhile on standard error what the board says of its progress.
pub(super) fn shown<T>(board: &Board, quiet: bool, work: impl FnOnce() -> T) -> T {
    if quiet {
        return work();
    }
    let bar = io::stderr().is_terminal().then(bar);
    let (working, over) = mpsc::channel::<()>();
    let show = || {
        let interval = if bar.is_some() { REDRAW } else { BETWEEN_LINES };
        let over = over;
        while over.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            for repository in &board.status().repositories {
                match &bar {
                    Some(bar) => draw(bar, repository),
                    None => lines(repository),
                }
            }
        }
    };
    let result = thread::scope(|scope| {
        scope.spawn(show);
        // Gone however the work ends.
        let _working = working;
        work()
    });
    bar.iter().for_each(ProgressBar::finish_and_clear);
    result
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE).expect("the template is well-formed");
    ProgressBar::no_length().with_style(style)
}

fn draw(bar: &ProgressBar, repository: &RepositoryStatus) {
    let left: u64 = repository.runs.iter().map(|run| run.bytes_total.saturating_sub(run.bytes_done)).sum();
    let done = repository.bytes_moved_total;
    // What comes up on the way is added.
    let total = repository.backlog_bytes.max(done + left).max(bar.length().unwrap_or(0));
    bar.set_length(total);
    bar.set_position(done);
    bar.set_message(match &*repository.runs {
        [] => "looking".into(),
        [run] => format!("merging {} images", run.nodes),
        runs => format!("merging {} runs", runs.len()),
    });
}

fn lines(repository: &RepositoryStatus) {
    for run in &repository.runs {
        // Where nobody listens any more, there is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{run}");
    }
}
