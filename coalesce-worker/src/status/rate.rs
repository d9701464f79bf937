//! The rate of the last seconds.

use std::collections::VecDeque;
use std::time::Duration;

/// The time that the rate is told for.
const WINDOW: Duration = Duration::from_secs(5);
/// The time between two marks.
const STEP: Duration = Duration::from_millis(250);

/// Marks of how much had been done when, all times since some start.
#[derive(Debug)]
pub(crate) struct Rate {
    /// In order; all but the first are within the window.
    marks: VecDeque<(Duration, u64)>,
}

impl Rate {
    /// Starts with nothing done.
    pub(crate) fn new(now: Duration) -> Self {
        Self { marks: VecDeque::from([(now, 0)]) }
    }

    /// When the next mark is due.
    pub(crate) fn next_mark(&self) -> Duration {
        self.marks.back().map_or(Duration::ZERO, |mark| mark.0) + STEP
    }

    /// Remembers that `done` had been done by `now`.
    pub(crate) fn mark(&mut self, now: Duration, done: u64) {
        self.forget(now);
        self.marks.push_back((now, done));
    }

    /// Tells how much has been done per second in the last seconds.
    pub(crate) fn per_second(&mut self, now: Duration, done: u64) -> u64 {
        self.forget(now);
        let Some(&(since, before)) = self.marks.front() else { return 0 };
        let seconds = now.saturating_sub(since).as_secs_f64();
        if seconds > 0.0 { (done.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }

    fn forget(&mut self, now: Duration) {
        let start = now.saturating_sub(WINDOW);
        while self.marks.get(1).is_some_and(|mark| mark.0 <= start) {
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn it_is_that_of_the_last_seconds() {
        let mut rate = Rate::new(at(0));
        let mut done = 0;
        for step in 1..=80 {
            done += if step <= 40 { 1000 } else { 250 };
            rate.mark(at(step * 250), done);
            match step {
                1 => assert_eq!(rate.per_second(at(250), done), 4000),
                40 => assert_eq!(rate.per_second(at(10_000), done), 4000),
                50 => assert_eq!(rate.per_second(at(12_500), done), 2500, "half of the window is slow"),
                60.. => assert_eq!(rate.per_second(at(step * 250), done), 1000),
                _ => {}
            }
        }
        assert!(rate.marks.len() <= 22);
    }

    #[test]
    fn it_falls_to_nothing_when_nothing_moves() {
        let mut rate = Rate::new(at(0));
        rate.mark(at(1000), 1 << 20);
        assert!(rate.per_second(at(4000), 1 << 20) > 0);
        assert_eq!(rate.per_second(at(20_000), 1 << 20), 0);
    }

    #[test]
    fn it_is_nothing_at_the_very_start() {
        assert_eq!(Rate::new(at(5)).per_second(at(5), 0), 0);
    }
}
