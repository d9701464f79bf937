//! Every system call that changes something, failing once, or from then on: nothing is lost, and the same command goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::inject::{CHANGING, Injected, fail_at, fail_from};

use crate::case::{Case, End, Prepared};
use crate::states::side_by_side;
use crate::table::test_each_case;

type Inject = fn(&std::process::Command, &str, usize, &str) -> Injected;

/// The errors, and whether they last.
const FAULTS: [(&str, &str, Inject); 3] =
    [("EIO", "once", fail_at), ("ENOSPC", "once", fail_at), ("ENOSPC", "from then on", fail_from)];

/// What has been tried of one operation.
#[derive(Debug, Default)]
struct Tried {
    failed: AtomicUsize,
    succeeded: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// Lets one call fail; tells whether the program got that far.
fn try_fault(prepared: &Prepared, call: &str, number: usize, fault: (&str, &str, Inject), tried: &Tried) -> bool {
    let (error, how, inject) = fault;
    let folder = prepared.copy();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let program = prepared.case.program;
        let injected = inject(&program.command(folder.path()), call, number, error);
        let text = String::from_utf8_lossy(&injected.output.stderr).into_owned();
        if !injected.hit {
            assert!(injected.output.status.success(), "{text}");
            return false;
        }
        match injected.output.status.code() {
            Some(0) => tried.succeeded.fetch_add(1, Ordering::Relaxed),
            // The loader's calls, of which there are as many as it has folders to search, are not ours.
            Some(127) if text.contains("loading shared libraries") => return true,
            // Nor are the shell's, which gives the program its input.
            Some(2) if text.contains("cannot open") => return true,
            Some(5) if !text.is_empty() => tried.failed.fetch_add(1, Ordering::Relaxed),
            _ => panic!("{}: {text}", injected.output.status),
        };
        prepared.verify_unopened(folder.path());
        prepared.verify(folder.path(), if injected.output.status.success() { End::Reached } else { End::Unknown });
        again(prepared, folder.path());
        prepared.verify(folder.path(), End::Reached);
        true
    }));
    result.unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        let failure = format!("{}: {call} {number}, {error} {how}: {why}", prepared.case.name);
        tried.failures.lock().unwrap().push(failure);
        true
    })
}

/// Gives the command again, unless recovery has done the rest.
fn again(prepared: &Prepared, folder: &Path) {
    if prepared.is_done(folder) {
        return;
    }
    let output = prepared.case.program.command(folder).output().unwrap();
    assert!(output.status.success(), "again: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets each call of an operation fail, in each way.
fn failing_calls_lose_nothing(case: Case) {
    let (prepared, tried) = (case.prepare(), Tried::default());
    // This binary prints by itself when it is another program.
    let calls = CHANGING.into_iter().chain(["openat"]);
    let calls = calls.filter(|call| *call != "write" || !prepared.case.program.is_this_binary());
    let all: Vec<_> = calls.flat_map(|call| FAULTS.map(|fault| (call, fault))).collect();
    side_by_side(all.into_iter(), |(call, fault)| {
        let first = if call == "openat" { OPENED_BY_ANY } else { 1 };
        let mut numbers = first..;
        while numbers.next().is_some_and(|number| try_fault(&prepared, call, number, fault, &tried)) {}
    });
    let (failed, succeeded) = (tried.failed.into_inner(), tried.succeeded.into_inner());
    testkit::tell!("{}: {} faults, of which {succeeded} did not stop it", prepared.case.name, failed + succeeded);
    let failures = tried.failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(failed > 2, "no call failed");
}

test_each_case!(failing_calls_lose_nothing);

/// What the loader and the standard library open before anything is ours.
const OPENED_BY_ANY: usize = 8;
