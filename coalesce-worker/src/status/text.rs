//! A status for people.

use std::fmt::{self, Display, Formatter};

use super::{Direction, Phase, RepositoryStatus, RunStatus, State, Status};

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Idle => "idle",
            State::Working => "working",
            State::Paused => "paused",
        };
        write!(f, "{state} (process {})", self.pid)?;
        if let Some(rate) = self.bytes_per_second {
            write!(f, ", at most {}/s", Bytes(rate.get()))?;
        }
        if let Some(in_flight) = self.in_flight {
            write!(f, ", at most {in_flight} operations at once")?;
        }
        write!(f, "\n{} merged, {} moved", nodes(self.nodes_merged_total), Bytes(self.bytes_moved_total))?;
        match self.errors_total {
            0 => {}
            1 => write!(f, ", 1 error")?,
            errors => write!(f, ", {errors} errors")?,
        }
        writeln!(f)?;
        self.repositories.iter().try_for_each(|repository| write!(f, "\n{repository}"))
    }
}

impl Display for RepositoryStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Plain(self.path.display()))?;
        match (&self.unreachable, self.last_scan) {
            (Some(why), _) => writeln!(f, "  unreachable: {}", Plain(why))?,
            (None, Some(_)) => writeln!(
                f,
                "  {} to merge, {}; deepest chain {}; {} used, {} free",
                nodes(self.backlog_nodes),
                Bytes(self.backlog_bytes),
                self.deepest_chain,
                Bytes(self.physical_bytes),
                Bytes(self.free_bytes)
            )?,
            (None, None) => writeln!(f, "  not scanned yet")?,
        }
        for run in &self.runs {
            writeln!(f, "  {run}")?;
        }
        for waiting in &self.waiting {
            writeln!(f, "  waiting   {}: {}", Plain(waiting.path.display()), Plain(&waiting.reason))?;
        }
        for isolated in &self.isolated {
            writeln!(f, "  isolated  {}: {}", Plain(isolated.path.display()), Plain(&isolated.reason))?;
        }
        self.last_error.iter().try_for_each(|error| writeln!(f, "  last error: {}", Plain(error)))
    }
}

impl Display for RunStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let percent = (u128::from(self.bytes_done) * 100).checked_div(self.bytes_total.into()).unwrap_or(100).min(100);
        let (from, to) = match self.direction {
            Direction::Down => (&self.node, &self.target),
            Direction::Up => (&self.target, &self.node),
        };
        write!(f, "{percent:>3} %  {} -> {}", Plain(from.display()), Plain(to.display()))?;
        write!(f, " ({}): {} of {}", nodes(self.nodes.into()), Bytes(self.bytes_done), Bytes(self.bytes_total))?;
        match (self.phase, self.seconds_left) {
            (Phase::Finishing, _) => write!(f, ", finishing"),
            (Phase::Copying, Some(seconds)) => {
                write!(f, ", {}/s, {} left", Bytes(self.bytes_per_second), Seconds(seconds))
            }
            (Phase::Copying, None) => write!(f, ", nothing moves"),
        }
    }
}

fn nodes(count: u64) -> String {
    if count == 1 { "1 node".into() } else { format!("{count} nodes") }
}

/// A size with three digits that count.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let (mut size, mut unit) = (self.0 as f64 / 1024.0, 0);
        while size >= 999.5 {
            size /= 1024.0;
            unit += 1;
        }
        let decimals = if size < 9.995 { 2 } else { usize::from(size < 99.95) };
        write!(f, "{size:.decimals$} {}", units[unit])
    }
}

/// A time in its two largest units.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds @ ..60 => write!(f, "{seconds} s"),
            seconds @ 60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            seconds @ 3600..86400 => write!(f, "{} h {} min", seconds / 3600, seconds / 60 % 60),
            seconds => write!(f, "{} d {} h", seconds / 86400, seconds / 3600 % 24),
        }
    }
}

/// Text from elsewhere: whoever names a file must not be able to steer the terminal.
pub(crate) struct Plain<T>(pub(crate) T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        text.chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::example;

    #[test]
    fn a_status_reads_like_this() {
        let expected = "\
working (process 23), at most 200 MiB/s, at most 4 operations at once
19 nodes merged, 17.0 GiB moved, 1 error

/sr
  5 nodes to merge, 7.00 GiB; deepest chain 9; 13.0 GiB used, 11.0 GiB free
   25 %  /sr/base.vhd -> /sr/node.vhd (3 nodes): 1.50 GiB of 6.00 GiB, 100 MiB/s, 47 s left
  waiting   /sr/leaf.vhd: in use
  isolated  /sr/odd.vhd: its footer is damaged
  last error: /sr/odd.vhd: cannot open it
";
        assert_eq!(example().to_string(), expected);
    }

    #[test]
    fn an_idle_worker_says_so() {
        let mut status = example();
        status.state = State::Idle;
        (status.bytes_per_second, status.in_flight, status.errors_total) = (None, None, 0);
        status.nodes_merged_total = 1;
        status.repositories[0].last_scan = None;
        let repository = &mut status.repositories[0];
        (repository.runs, repository.waiting, repository.isolated) = (Vec::new(), Vec::new(), Vec::new());
        repository.last_error = None;
        assert_eq!(status.to_string(), "idle (process 23)\n1 node merged, 17.0 GiB moved\n\n/sr\n  not scanned yet\n");
    }

    #[test]
    fn what_cannot_be_reached_is_not_called_empty() {
        let mut repository = example().repositories.remove(0);
        (repository.runs, repository.waiting, repository.isolated) = (Vec::new(), Vec::new(), Vec::new());
        repository.unreachable = Some("what was mounted at /sr is gone".into());
        repository.last_error = None;
        assert_eq!(repository.to_string(), "/sr\n  unreachable: what was mounted at /sr is gone\n");
    }

    #[test]
    fn a_run_without_data_or_near_its_end_has_no_odd_numbers() {
        let mut run = example().repositories.remove(0).runs.remove(0);
        run.direction = Direction::Down;
        (run.bytes_done, run.bytes_total, run.phase) = (0, 0, Phase::Finishing);
        assert_eq!(run.to_string(), "100 %  /sr/node.vhd -> /sr/base.vhd (3 nodes): 0 B of 0 B, finishing");
        (run.phase, run.seconds_left) = (Phase::Copying, None);
        assert!(run.to_string().ends_with(", nothing moves"));
    }

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [0, 1023, 1024, 10 << 10, 1023 << 10, 1 << 20, 123_456_789, u64::MAX];
        let texts = ["0 B", "1023 B", "1.00 KiB", "10.0 KiB", "1.00 MiB", "1.00 MiB", "118 MiB", "16.0 EiB"];
        assert_eq!(sizes.map(|size| Bytes(size).to_string()), texts);
        let times = [0, 59, 60, 3599, 3600, 86399, 86400, 200_000];
        let texts = ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 0 h", "2 d 7 h"];
        assert_eq!(times.map(|time| Seconds(time).to_string()), texts);
    }

    #[test]
    fn a_name_does_not_steer_the_terminal() {
        assert_eq!(Plain("a\u{1b}[2J\nb\u{e9}").to_string(), "a\\u{1b}[2J\\nb\u{e9}");
    }
}
