//! Power failures, kills and failing calls in a resize and in a revert.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use tempfile::TempDir;
use testkit::crash::{Options, Recording};
use testkit::inject::{CHANGING, Injected, fail_at, fail_from, kill_at};
use testkit::scratch;

use super::cases::{Case, RESIZE, REVERT};
use crate::program::process;

/// Tries something with a case; collects what fails.
fn attempt(failures: &mut Vec<String>, what: &str, check: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().cloned();
        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned())).unwrap_or_default();
        failures.push(format!("{what}: {why}"));
        true
    })
}

#[track_caller]
fn assert_none(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} failures, such as\n{}",
        failures.len(),
        failures[..failures.len().min(8)].join("\n")
    );
}

#[test]
fn power_failures_leave_what_revert_takes_back() {
    let mut failures = Vec::new();
    for case in Case::all() {
        let folder = case.copy();
        let recording = Recording::of(folder.path(), &process(folder.path(), &RESIZE));
        let (mut states, mut journals) = (0, 0);
        for state in recording.states(Options { singles: 12, random: 24, seed: 1 }) {
            let found = scratch::folder();
            state.write_to(found.path());
            let what = format!("{}, {}", case.name, state.describe());
            let had_journal = attempt(&mut failures, &what, || {
                if state.has_ended() {
                    assert!(fs::read(found.path().join("disk.vhd")).unwrap() == case.after, "not durable");
                    assert!(!found.path().join("jrnl").exists(), "not durable");
                }
                case.settle(found.path())
            });
            (states, journals) = (states + 1, journals + usize::from(had_journal));
        }
        testkit::tell!("{}: {states} states after power failures, {journals} of them with a journal", case.name);
        assert!(journals > 10);
    }
    assert_none(&failures);
}

/// Stops a resize at each of its system calls by `interfere`, and gives what that leaves to `check`, with the exit code.
fn at_each_call(
    case: &Case,
    interfere: impl Fn(&Command, &str, usize) -> Injected,
    mut check: impl FnMut(&str, TempDir, Option<i32>),
) {
    for call in CHANGING {
        for number in 1.. {
            let folder = case.copy();
            let injected = interfere(&process(folder.path(), &RESIZE), call, number);
            if !injected.hit {
                break;
            }
            check(&format!("{}: {call} {number}", case.name), folder, injected.output.status.code());
        }
    }
}

#[test]
fn kills_leave_what_revert_takes_back_and_so_do_its_own() {
    let mut failures = Vec::new();
    let mut left: BTreeMap<Vec<u8>, TempDir> = BTreeMap::new();
    for case in Case::all() {
        let (mut kills, mut journals) = (0, 0);
        left.clear();
        at_each_call(&case, kill_at, |what, folder, _| {
            let copy = scratch::folder();
            for entry in fs::read_dir(folder.path()).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            let had_journal = attempt(&mut failures, what, || case.settle(folder.path()));
            (kills, journals) = (kills + 1, journals + usize::from(had_journal));
            if had_journal {
                left.insert(fs::read(copy.path().join("disk.vhd")).unwrap(), copy);
            }
        });
        // Power fails while what a kill has left is reverted.
        let mut states = 0;
        for found in left.values() {
            let recording = Recording::of(found.path(), &process(found.path(), &REVERT));
            for state in recording.states(Options { singles: 4, random: 6, seed: 1 }) {
                let folder = scratch::folder();
                state.write_to(folder.path());
                let what = format!("{}, reverting, {}", case.name, state.describe());
                attempt(&mut failures, &what, || {
                    let had_journal = case.settle(folder.path());
                    let now = fs::read(folder.path().join("disk.vhd")).unwrap();
                    assert!(now == case.before && (had_journal || !folder.path().join("jrnl").exists()));
                    true
                });
                states += 1;
            }
        }
        testkit::tell!(
            "{}: {kills} kills, {journals} of them with a journal; {states} states after power failures in the reverts of {} of them",
            case.name,
            left.len()
        );
        assert!(journals > 5 && states > 20, "{journals} {states}");
    }
    assert_none(&failures);
}

#[test]
fn failing_calls_leave_the_old_or_the_new_or_what_revert_takes_back() {
    let mut failures = Vec::new();
    for case in Case::all() {
        for (error, lasts) in [("EIO", false), ("ENOSPC", false), ("ENOSPC", true)] {
            let (mut failed, mut journals) = (0, 0);
            let inject = if lasts { fail_from } else { fail_at };
            let interfere = |command: &Command, call: &str, number: usize| inject(command, call, number, error);
            at_each_call(&case, interfere, |what, folder, code| {
                // The loader's calls are not ours.
                if code == Some(127) {
                    return;
                }
                let what = format!("{what}, {error} {lasts}");
                let had_journal = attempt(&mut failures, &what, || {
                    let now = fs::read(folder.path().join("disk.vhd")).unwrap();
                    match code {
                        Some(0) => assert!(now == case.after, "no error, and not the new"),
                        Some(5 | 28) => {}
                        code => panic!("{code:?}"),
                    }
                    case.settle(folder.path())
                });
                failed += usize::from(code != Some(0));
                journals += usize::from(had_journal);
            });
            let lasts = if lasts { "from then on" } else { "once" };
            testkit::tell!("{}: {error} {lasts}: {failed} failures, {journals} of them with a journal left", case.name);
            assert!(failed > 10);
        }
    }
    assert_none(&failures);
}
