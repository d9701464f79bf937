//! `make mutants`: how many wrong lines the tests notice.
//!
//! The repository is copied, every wrong line that the modules below can have is compiled in at once, and each test runs once as
//! it is, to find which lines it reaches. Then, for each line, the tests that reach it run with its number in the environment,
//! until one fails; the order is random, by MUTANTS_SEED, until MUTANTS_MINUTES are over. MUTANTS_ONLY, in each line a part of
//! a path or of `path:line`, asks for some of them. MUTANTS_EARLIER, what earlier runs have printed, leaves out what they
//! have caught. Those that no test notices, and that `docs/mutants.md` does not explain, may be one in twenty.

mod explained;
mod run;
mod sites;

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use explained::Explained;
use run::{Copy, Tests, UNIT, in_parallel, next};
use sites::Site;

/// Modules, and the tests that concern them: package, target, and filters.
const MODULES: [(&[&str], &[TestTarget]); 5] = [
    (
        &["vhd-core/src/write.rs", "vhd-core/src/write"],
        &[(
            "vhd-core",
            "it",
            &[
                "power", "states", "fault", "write", "compact", "resize", "link", "device", "short", "--skip",
                "any_disk",
            ],
        )],
    ),
    (
        &[
            "coalesce-worker/src/repository/recover.rs",
            "coalesce-worker/src/finish.rs",
            "coalesce-worker/src/delete.rs",
            "coalesce-worker/src/coalesce.rs",
            "coalesce-worker/src/snapshot.rs",
        ],
        &[MERGES, FORESTS, CRASHES],
    ),
    (&["coalesce-worker/src/survey.rs", "coalesce-worker/src/survey"], &[MERGES, FORESTS]),
    (
        &["sr-plugin/src/change.rs", "sr-plugin/src/tracking.rs", "sr-plugin/src/blocks.rs"],
        &[
            ("sr-plugin", UNIT, &[]),
            ("sr-plugin", "lives", &["--skip", "poor", "--skip", "in_use"]),
            ("sr-plugin", "conformance", &["errors", "hostile", "metadata", "repositories", "arguments"]),
        ],
    ),
    (
        &["vhd-tool/src/stream"],
        &[
            ("vhd-tool", UNIT, &["stream"]),
            (
                "vhd-tool",
                "cli",
                &["stream", "serve", "peers", "get", "convert", "places", "delta", "in_use", "--skip", "poor"],
            ),
        ],
    ),
];

const MERGES: TestTarget = (
    "coalesce-worker",
    "it",
    &["world", "locks", "review", "snapshot", "coalesce", "collect", "behaviours", "revert", "garbage", "survey"],
);
const FORESTS: TestTarget = ("coalesce-worker", "it", &["unreadable", "hostile", "compose", "forests", "restored"]);
/// Those of the crash states that are soon tried.
const CRASHES: TestTarget = (
    "vhd-tool",
    "crash",
    &[
        "defects",
        "full",
        "states::clone",
        "states::snapshot",
        "states::delete",
        "states::revert",
        "states::up_to_a_parent",
        "states::grow",
        "states::raw",
        "states::resize",
        "states::resume",
        "states::merge_in_steps",
        "states::collect_an_interrupted_merge",
    ],
);

/// A package, a target of it, and filters.
type TestTarget = (&'static str, &'static str, &'static [&'static str]);

/// What became of a wrong line.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Caught,
    Excused,
    Missed,
}

/// The part of the wrong lines that must be noticed.
const LEAST: f64 = 0.95;

fn main() -> ExitCode {
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
    }
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> Result<u64, Box<dyn Error>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => Ok(text.parse().map_err(|error| format!("{name}: {error}"))?),
        _ => Ok(default),
    }
}

/// How often each line was caught by earlier runs; a file may have a line more than once.
fn caught_earlier() -> Result<HashMap<String, usize>, Box<dyn Error>> {
    let mut caught = HashMap::new();
    let Some(path) = std::env::var_os("MUTANTS_EARLIER").filter(|path| !path.is_empty()) else { return Ok(caught) };
    for line in std::fs::read_to_string(path)?.lines() {
        if let Some((place, _)) = line.strip_prefix("caught  ").and_then(|line| line.rsplit_once("  by ")) {
            *caught.entry(without_number(place)).or_default() += 1;
        }
    }
    Ok(caught)
}

/// The place of a line without its number, which changes with each line above it.
fn without_number(place: &str) -> String {
    let (path, rest) = place.split_once(':').unwrap_or((place, ""));
    format!("{path}:{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn work() -> Result<bool, Box<dyn Error>> {
    let (seed, minutes) = (setting("MUTANTS_SEED", 1)?, setting("MUTANTS_MINUTES", 30)?);
    let only = std::env::var("MUTANTS_ONLY").unwrap_or_default();
    let mut earlier = caught_earlier()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let explained = Explained::read(&root.join("docs/mutants.md"))?;
    let copy = Copy::of(&root)?;

    let mut sites: Vec<(PathBuf, Vec<Site>, usize)> = Vec::new();
    let mut count = 1;
    for (module, (files, _)) in MODULES.iter().enumerate() {
        let is_part_of =
            |file: &PathBuf, part: &str| file.to_string_lossy().contains(part.split(':').next().unwrap_or_default());
        let is_asked_for = |file: &PathBuf| only.is_empty() || only.lines().any(|part| is_part_of(file, part));
        for file in copy.files(files)?.into_iter().filter(is_asked_for) {
            let switch = if file.starts_with("vhd-core") { "crate::mutant" } else { "vhd_core::mutant" };
            let found = sites::find(&copy.original(&file)?, count, switch, (seed % 2) as usize)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            count += found.len();
            sites.push((file, found, module));
        }
    }
    let modules: Vec<usize> = (0..MODULES.len()).filter(|it| sites.iter().any(|(_, _, module)| module == it)).collect();
    let targets = modules.iter().flat_map(|&module| MODULES[module].1).copied().collect::<Vec<_>>();
    let (tests, unviable) = Tests::build(&copy, &mut sites, &targets)?;
    println!(
        "{} wrong lines, {unviable} more that do not compile; seed {seed}, {minutes} minutes",
        count - 1 - unviable
    );
    let reach = tests.reach(&targets)?;

    let is_asked_for = |place: &str| only.is_empty() || only.lines().any(|part| place.contains(part));
    let mut all: Vec<(&Path, &Site, String)> = Vec::new();
    for (file, found, _) in &sites {
        for site in found {
            let place = format!("{}:{}: {}: {}", file.display(), site.line, site.what, site.text);
            let was_caught = earlier.get_mut(&without_number(&place)).filter(|count| **count > 0);
            if let Some(count) = was_caught {
                *count -= 1;
            } else if is_asked_for(&place) {
                all.push((file.as_path(), site, place));
            }
        }
    }
    all.sort_by_key(|(_, site, _)| scramble(seed ^ scramble(site.number as u64)));
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let queue = Mutex::new(all.into_iter().take_while(|_| Instant::now() < end));
    let outcomes = in_parallel(|_| {
        let mut outcomes = Vec::new();
        while let Some((file, site, place)) = next(&queue) {
            if let Some(reason) = explained.reason(file, site) {
                println!("excused {place}  {reason}");
                outcomes.push(Outcome::Excused);
                continue;
            }
            outcomes.push(match reach.first_to_notice(site.number) {
                Ok(Some(test)) => {
                    println!("caught  {place}  by {test}");
                    Outcome::Caught
                }
                Ok(None) => {
                    println!("MISSED  {place}  by {} tests; VHD_MUTANT={}", reach.count(site.number), site.number);
                    Outcome::Missed
                }
                Err(error) => {
                    println!("MISSED  {place}  {error}");
                    Outcome::Missed
                }
            });
        }
        outcomes
    });
    let count = |kind| outcomes.iter().filter(|&&outcome| outcome == kind).count() as u32;
    let (caught, excused, missed) = (count(Outcome::Caught), count(Outcome::Excused), count(Outcome::Missed));
    let tried = caught + missed;
    let part = if tried == 0 { 1.0 } else { f64::from(caught) / f64::from(tried) };
    println!("{caught} caught, {missed} missed, {excused} excused, {unviable} unviable: {:.1} % caught", part * 100.0);
    Ok(part >= LEAST)
}

/// Source: the finaliser of `SplitMix64`.
fn scramble(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
