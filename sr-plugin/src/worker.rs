//! The worker that merges in the background: one that looks after the host's repositories, or one for each.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coalesce_worker::{Command as Ask, RepositoryStatus, Status, ask};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Number};
use crate::host::Host;
use crate::log::{self, Severity};
use crate::sr::Sr;
use crate::store;

/// Where xcp-rrdd looks for files of metrics.
const METRICS: &str = "/dev/shm/metrics";
/// How long a worker may take to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// Asks whoever looks after a repository how everything stands; gives what concerns it, too.
///
/// # Errors
/// Nobody answers: why, for a person.
pub(crate) fn status(host: &Host, sr: &Sr) -> Result<(Status, Option<RepositoryStatus>), String> {
    let mut answer = Err("no worker answers".to_owned());
    for socket in sockets(host, sr) {
        match status_at(&socket) {
            Ok(status) => {
                let repository = repository_in(&status, sr.folder()).cloned();
                let found = repository.is_some();
                answer = Ok((status, repository));
                if found {
                    break;
                }
            }
            Err(error) if answer.is_err() => answer = Err(error),
            Err(_) => {}
        }
    }
    answer
}

/// Tells the worker something about a repository.
///
/// # Errors
/// Nobody answers, or not to that: why, for a person.
pub(crate) fn tell(host: &Host, sr: &Sr, command: &Ask) -> Result<(), String> {
    let mut result = Err("no worker looks after it".to_owned());
    for socket in sockets(host, sr) {
        if status_at(&socket).is_ok_and(|status| repository_in(&status, sr.folder()).is_some()) {
            result = ask(&socket, command).map(drop).map_err(|error| error.to_string());
        }
    }
    result
}

/// Has a repository collected: now, or with the worker's next poll.
pub(crate) fn wake(host: &Host, sr: &Sr) {
    if tell(host, sr, &Ask::Collect { path: Some(sr.folder().into()) }).is_err() {
        start(host, sr);
    }
}

/// Starts a worker for a repository that none looks after, where the settings name one. Nobody waits for it.
pub(crate) fn start(host: &Host, sr: &Sr) {
    if let Some(worker) = &host.settings.worker
        && let Err(failure) = start_one(host, sr, worker)
    {
        // Without one the images wait; what was asked for is done all the same.
        log::line(Severity::Error, &format!("{}: no worker: {failure}", sr.folder().display()));
    }
}

fn start_one(host: &Host, sr: &Sr, worker: &Path) -> Result<(), Failure> {
    let started = Started::lock(host, sr)?;
    // It may have been detached since, or another call have started one.
    let is_wanted = host.find(&sr.uuid().to_string())?.is_some() && started.process().is_none();
    if !is_wanted || status(host, sr).is_ok_and(|(_, repository)| repository.is_some()) {
        return Ok(());
    }
    let mut command = Command::new(worker);
    command.arg("run").arg(sr.folder()).arg("--idle").arg("--socket").arg(host.worker_socket_of(sr.uuid()));
    let mut named = sr.folder().as_os_str().to_owned();
    named.push(format!("={}", sr.uuid()));
    command.arg("--uuid").arg(named);
    if Path::new(METRICS).is_dir() {
        command.arg("--rrd").arg(Path::new(METRICS).join(metrics_name(sr)));
    }
    // Whoever called waits for the end of our output, and must not wait for the worker.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").process_group(0);
    let child = command.spawn().map_err(Failure::io(worker, "start it"))?;
    started.record(child.id())
}

/// Ends the worker that was started for a repository; none is started as long as the answer lives.
///
/// # Errors
/// A worker that cannot be ended; what the system answers.
pub(crate) fn stop(host: &Host, sr: &Sr) -> Result<Started, Failure> {
    let started = Started::lock(host, sr)?;
    // One that has just been started does not answer yet; of one by an earlier version nothing but its answer is known.
    let answers = || Process::of(status_at(&host.worker_socket_of(sr.uuid())).ok()?.pid);
    if let Some(process) = started.process().or_else(answers)
        && !process.end()
    {
        let detail = format!("the worker, process {}, does not end; its disk may hang", process.id);
        return Err(Failure::numbered(Number::SrInUse, detail));
    }
    Ok(started)
}

/// Which process was started for a repository: a file that is locked while that may change.
#[derive(Debug)]
pub(crate) struct Started {
    path: PathBuf,
    file: File,
}

impl Started {
    fn lock(host: &Host, sr: &Sr) -> Result<Self, Failure> {
        let path = host.worker_record_of(sr.uuid());
        let file = store::open_writable(&path).map_err(Failure::io(&path, "open it"))?;
        file.lock().map_err(Failure::io(&path, "lock it"))?;
        Ok(Self { path, file })
    }

    /// The process, while it runs. A record that was cut short is none.
    fn process(&self) -> Option<Process> {
        let recorded: Process = store::read(&self.path).ok().flatten()?;
        Process::of(recorded.id).filter(|running| *running == recorded)
    }

    fn record(&self, id: u32) -> Result<(), Failure> {
        let failed = |error| Failure::io(&self.path, "write it")(error);
        let text = serde_json::to_vec(&Process::of(id)).map_err(|error| Failure::of(&error))?;
        self.file.set_len(0).and_then(|()| self.file.write_all_at(&text, 0)).map_err(failed)
    }
}

/// A process, which another one of the same number is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    id: u32,
    /// When it started, in the kernel's ticks.
    start: u64,
}

impl Process {
    /// Finds one that runs. Source: proc_pid_stat(5); the name, in brackets, may hold anything.
    fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let words: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // One that has ended stays until its parent has asked for it.
        let runs = !["Z", "X"].contains(words.first()?);
        let start = words.get(19)?.parse().ok()?;
        runs.then_some(Self { id, start })
    }

    /// Ends it, however hard; tells whether it has ended.
    fn end(self) -> bool {
        [Signal::TERM, Signal::KILL].into_iter().any(|signal| {
            let (told, pid) = (Instant::now(), i32::try_from(self.id).ok().and_then(Pid::from_raw));
            // It may have ended by itself.
            let _ = pid.map(|pid| kill_process(pid, signal));
            while Self::of(self.id) == Some(self) {
                if told.elapsed() > PATIENCE {
                    return false;
                }
                thread::sleep(LOOK);
            }
            true
        })
    }
}

/// Where the metrics of a repository are to be found, by xapi's name for them.
pub(crate) fn datasource(sr: &Sr) -> String {
    format!("xeno+shm:///{}", metrics_name(sr))
}

fn metrics_name(sr: &Sr) -> String {
    format!("vhd-{}", sr.uuid())
}

fn sockets(host: &Host, sr: &Sr) -> [PathBuf; 2] {
    [host.worker_socket_of(sr.uuid()), host.settings.worker_socket.clone()]
}

fn status_at(socket: &Path) -> Result<Status, String> {
    let answer = ask(socket, &Ask::Status).map_err(|error| error.to_string())?;
    serde_json::from_value(answer).map_err(|error| error.to_string())
}

fn repository_in<'s>(status: &'s Status, folder: &Path) -> Option<&'s RepositoryStatus> {
    let is_it = |path: &Path| path.canonicalize().is_ok_and(|path| path == folder);
    status.repositories.iter().find(|repository| is_it(&repository.path))
}
