//! How far the work is: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vhd_core::ByteCount;

use crate::output;
use coalesce_worker::size::Human;

/// The least time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Shows on standard error how many bytes are done, how fast, and the time left.
///
/// Dropped before its end, as when the work fails, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Progress(Kind);

#[derive(Debug)]
enum Kind {
    None,
    Bar { bar: ProgressBar, action: &'static str, start: Instant },
    Lines(Mutex<Lines>),
}

#[derive(Debug)]
struct Lines {
    action: &'static str,
    total: Option<ByteCount>,
    done: ByteCount,
    start: Instant,
    last: Instant,
}

impl Progress {
    /// Shows nothing.
    pub(crate) fn none() -> Self {
        Self(Kind::None)
    }

    /// Starts the clock.
    pub(crate) fn start(action: &'static str, total: Option<ByteCount>) -> Self {
        let now = Instant::now();
        if io::stderr().is_terminal() {
            return Self(Kind::Bar { bar: bar(action, total), action, start: now });
        }
        Self(Kind::Lines(Mutex::new(Lines { action, total, done: ByteCount(0), start: now, last: now })))
    }

    /// Tells that so much is done since the start. From several threads, the largest number counts.
    pub(crate) fn set(&self, done: ByteCount) {
        match &self.0 {
            Kind::None => {}
            Kind::Bar { bar, .. } => {
                if done.0 > bar.position() {
                    bar.set_position(done.0);
                }
            }
            Kind::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.done = lines.done.max(done);
                if lines.last.elapsed() >= BETWEEN_LINES {
                    lines.last = Instant::now();
                    output::to_stderr(&lines.running());
                }
            }
        }
    }

    /// Shows the last line.
    pub(crate) fn finish(self) {
        match self.0 {
            Kind::None => {}
            Kind::Bar { bar, action, start } => {
                let done = ByteCount(bar.position());
                bar.finish_and_clear();
                output::to_stderr(&finished(action, done, start.elapsed()));
            }
            Kind::Lines(lines) => {
                let lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
                output::to_stderr(&finished(lines.action, lines.done, lines.start.elapsed()));
            }
        }
    }
}

fn bar(action: &'static str, total: Option<ByteCount>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total.0),
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left",
        ),
        None => (ProgressBar::no_length(), "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(template).expect("the templates are well-formed");
    bar.with_style(style).with_message(action)
}

impl Lines {
    fn running(&self) -> String {
        let Self { action, done, .. } = self;
        let elapsed = self.start.elapsed();
        let rate = rate(*done, elapsed);
        match self.total {
            Some(total) if total.0 > 0 => {
                let left = total.0.saturating_sub(done.0).checked_div(rate.0).unwrap_or(0);
                let percent = u128::from(done.0) * 100 / u128::from(total.0);
                format!(
                    "{action}: {} of {} ({percent} %), {}/s, {left} s left",
                    Human(*done),
                    Human(total),
                    Human(rate)
                )
            }
            _ => format!("{action}: {}, {}/s", Human(*done), Human(rate)),
        }
    }
}

fn rate(done: ByteCount, elapsed: Duration) -> ByteCount {
    // Casting rounds down and saturates, which is all that a rate for people needs.
    ByteCount((done.0 as f64 / elapsed.as_secs_f64().max(1e-3)) as u64)
}

fn finished(action: &str, done: ByteCount, elapsed: Duration) -> String {
    format!("{action}: {} in {:.1} s, {}/s", Human(done), elapsed.as_secs_f64(), Human(rate(done, elapsed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_line_has_bytes_rate_and_time_left() {
        let start = Instant::now() - Duration::from_secs(10);
        let total = Some(ByteCount(40 << 20));
        let lines = Lines { action: "copy", total, done: ByteCount(10 << 20), start, last: start };
        let line = lines.running();
        assert!(line.starts_with("copy: 10.0 MiB of 40.0 MiB (25 %), 10"), "{line}");
        assert!(line.ends_with(" s left"), "{line}");
    }

    #[test]
    fn templates_are_well_formed() {
        bar("x", None);
        bar("x", Some(ByteCount(1)));
    }

    #[test]
    fn the_largest_number_counts() {
        let lines = Progress::start("copy", None);
        lines.set(ByteCount(7));
        lines.set(ByteCount(3));
        if let Kind::Lines(lines) = &lines.0 {
            assert_eq!(lines.lock().unwrap().done, ByteCount(7));
        }
    }
}
