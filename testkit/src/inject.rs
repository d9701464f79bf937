//! Real programs whose system calls fail, or that are killed in one.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use crate::crash::strace;

/// The system calls that our programs change files and names with, and the syncs.
pub const CHANGING: [&str; 14] = [
    "pwrite64",
    "write",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "fsync",
    "fdatasync",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
];

/// How a run ended that was interfered with.
#[derive(Debug)]
pub struct Injected {
    /// The program got so far that it was interfered with.
    pub hit: bool,
    /// How it ended, and what it printed.
    pub output: Output,
}

/// Runs a program in which one call of a thread fails, with the name of an error such as `ENOSPC`, without being done.
/// Calls are counted from 1, in each thread on its own.
///
/// # Panics
/// If strace is missing.
pub fn fail_at(program: &Command, call: &str, number: usize, error: &str) -> Injected {
    let (output, trace) = run(program, call, &format!("error={error}:when={number}"));
    Injected { hit: trace.contains("(INJECTED)"), output }
}

/// As [`fail_at`], and all later calls of that name fail, too.
///
/// # Panics
/// As there.
pub fn fail_from(program: &Command, call: &str, number: usize, error: &str) -> Injected {
    let (output, trace) = run(program, call, &format!("error={error}:when={number}+"));
    Injected { hit: trace.contains("(INJECTED)"), output }
}

/// Runs a program and kills it as a thread of it enters its `number`th call of `call`, which is not done.
///
/// # Panics
/// If strace is missing, or the program fails by itself.
pub fn kill_at(program: &Command, call: &str, number: usize) -> Injected {
    let (output, _) = run(program, call, &format!("signal=SIGKILL:when={number}"));
    let hit = output.status.signal() == Some(9) || output.status.code() == Some(137);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(hit || output.status.success(), "{program:?} at {call} {number}: {}\n{errors}", output.status);
    Injected { hit, output }
}

/// Runs a program of which one call takes a second longer, in which something is done.
///
/// # Panics
/// If strace is missing.
pub fn while_waiting_in(program: &Command, call: &str, number: usize, work: impl FnOnce()) -> Injected {
    let (output, trace) = thread::scope(|scope| {
        let what = format!("delay_exit=1s:when={number}");
        let run = scope.spawn(move || run(program, call, &what));
        // It has come to that call long before; and if not, something else is tried.
        thread::sleep(Duration::from_millis(500));
        work();
        run.join().expect("strace runs")
    });
    Injected { hit: trace.contains("(DELAYED)"), output }
}

fn run(program: &Command, call: &str, what: &str) -> (Output, String) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let file = folder.path().join("trace");
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{what}"));
    let name = file.to_str().expect("temporary folders have plain names");
    let output = strace::run(strace::command(program, &["-s", "0", "-o", name, "-e", &trace, "-e", &inject]));
    let trace = fs::read(&file).expect("strace has written it");
    (output, String::from_utf8_lossy(&trace).into_owned())
}
