//! Every known input of the fuzz targets, and a short burst of changes to them: no panic, and little time and memory.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use testkit::fuzz::{TARGETS, corpus, mutations};

/// How long one input may take.
const LONGEST: Duration = Duration::from_secs(1);
/// How much memory this process may have in RAM more than before.
const MOST_MEMORY: u64 = 256 << 20;
/// How long changed inputs are tried.
const BURST: Duration = Duration::from_millis(600);
/// How many of them at most.
const MOST_CHANGES: usize = 3000;

/// One after the other, as the memory is that of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn replay(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = TARGETS.iter().find(|target| target.name == name).expect("there is such a target");
    let known = corpus(name);
    let before = forget_peak();
    for (input, bytes) in &known {
        timed(target.run, bytes, input);
    }
    let inputs: Vec<_> = known.into_iter().map(|(_, bytes)| bytes).collect();
    let start = Instant::now();
    let changed = mutations(&inputs, 1).take(MOST_CHANGES).take_while(|_| start.elapsed() < BURST);
    let mut tried = 0;
    for (number, bytes) in changed.enumerate() {
        timed(target.run, &bytes, &format!("change {number}"));
        tried += 1;
    }
    let grown = memory("VmHWM:").saturating_sub(before);
    testkit::tell!("{name}: {} inputs, {tried} changed ones, {} KiB of memory", inputs.len(), grown >> 10);
    assert!(tried > 10, "{tried} changed inputs");
    assert!(grown < MOST_MEMORY, "{name} takes {grown} bytes");
}

/// Runs an input; again where it took long, which may have been the machine.
fn timed(run: fn(&[u8]), bytes: &[u8], name: &str) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        run(bytes);
        took.push(start.elapsed());
        if start.elapsed() < LONGEST {
            return;
        }
    }
    panic!("{name}: took {took:?}");
}

/// Has the kernel count the largest memory anew, and tells what it is now.
fn forget_peak() -> u64 {
    fs::write("/proc/self/clear_refs", "5").expect("proc is mounted");
    memory("VmHWM:")
}

fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel counts memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("the kernel counts in kB") << 10
}

#[test]
fn footer() {
    replay("footer");
}

#[test]
fn header() {
    replay("header");
}

#[test]
fn image() {
    replay("image");
}

#[test]
fn chain() {
    replay("chain");
}

#[test]
fn operations() {
    replay("operations");
}

#[test]
fn journal() {
    replay("journal");
}

#[test]
fn plugin() {
    replay("plugin");
}

#[test]
#[should_panic(expected = "took")]
fn an_input_that_takes_long_is_noticed() {
    timed(|_| std::thread::sleep(LONGEST), &[], "slow");
}

#[test]
fn memory_that_has_been_given_back_is_noticed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = forget_peak();
    drop(std::hint::black_box(vec![1_u8; 64 << 20]));
    assert!(memory("VmHWM:") - before > 60 << 20);
}
