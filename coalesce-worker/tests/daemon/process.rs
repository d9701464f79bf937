//! A worker, and what is said to it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coalesce_worker::{RunStatus, Status};
use tempfile::TempDir;

/// A program that is not where it should be by then is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coalesce-worker"));
    command.args(args).env_remove("COALESCE_WORKER_SOCKET").env_remove("RUST_LOG");
    command
}

/// Looks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A worker process.
pub(crate) struct Worker {
    pub(crate) place: TempDir,
    pub(crate) child: Child,
}

impl Worker {
    /// Starts one, and waits until it answers.
    pub(crate) fn start(folders: &[&Path], options: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let log = File::create(place.path().join("log")).unwrap();
        let mut command = program(&["run", "--log-level", "debug"]);
        command.args(folders).args(options).arg("--socket").arg(place.path().join("socket"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut worker = Self { place, child };
        until("the worker answers", || {
            assert!(worker.child.try_wait().unwrap().is_none(), "the worker has ended");
            worker.socket().exists().then_some(())
        });
        worker
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.path().join("socket")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.place.path().join("log")).unwrap()
    }

    /// Gives a command to it.
    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        program(args).env("COALESCE_WORKER_SOCKET", self.socket()).output().unwrap()
    }

    /// Gives a command to it, expects that it is obeyed, and gives what is printed.
    pub(crate) fn told(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn status(&self) -> Status {
        serde_json::from_str(&self.told(&["status", "--json"])).unwrap()
    }

    /// Waits for a run that has moved something.
    pub(crate) fn merging(&self) -> RunStatus {
        until("something is merged", || {
            let runs = self.status().repositories.into_iter().flat_map(|repository| repository.runs);
            runs.into_iter().find(|run| run.bytes_done > 0)
        })
    }

    /// Waits until all repositories have been collected and nothing more is done.
    pub(crate) fn settled(&self) -> Status {
        let last = |log: &str| log.lines().rfind(|line| line.contains(" collected ")).map(str::to_owned);
        let quiet = |log: &str| last(log).is_some_and(|line| line.contains("Nothing"));
        until("the worker has nothing to do", || {
            let before = self.log();
            thread::sleep(Duration::from_millis(300));
            (self.log() == before && quiet(&before)).then(|| self.status())
        })
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; tells how long that took.
    pub(crate) fn ended(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let status = until("the worker ends", || self.child.try_wait().unwrap());
        (status, start.elapsed())
    }

    /// The processor time that it has used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
