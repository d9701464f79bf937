//! The worker that merges in the background: one that looks after the host's repositories, or one for each.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coalesce_worker::{Command as Ask, RepositoryStatus, Status, ask};
use rustix::process::{Pid, Signal, kill_process};

use crate::host::Host;
use crate::sr::Sr;

/// Where xcp-rrdd looks for files of metrics.
const METRICS: &str = "/dev/shm/metrics";
/// How long a worker may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

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
    let Some(worker) = &host.settings.worker else { return };
    if status(host, sr).is_ok_and(|(_, repository)| repository.is_some()) {
        return;
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
    // Without one the images wait; what was asked for is done all the same.
    let _ = command.spawn();
}

/// Ends the worker that was started for a repository.
pub(crate) fn stop(host: &Host, sr: &Sr) {
    let socket = host.worker_socket_of(sr.uuid());
    let Ok(status) = status_at(&socket) else { return };
    let Some(pid) = i32::try_from(status.pid).ok().and_then(Pid::from_raw) else { return };
    let told = Instant::now();
    let sent: io::Result<()> = kill_process(pid, Signal::TERM).map_err(Into::into);
    while sent.is_ok() && status_at(&socket).is_ok() && told.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
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
