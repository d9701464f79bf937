//! Power failures in the middle of whatever changes an image: each of many states that they may leave is looked at, and
//! then the same command is given again, as the storage manager does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use testkit::crash::{Options, Recording};
use testkit::scratch;
use vhd_core::{Chain, ChainOptions, Image, Lock, ReadOnly};

use crate::program::{done, guest, process, write};

/// A command, and what must hold whatever is lost.
struct Case {
    name: &'static str,
    build: fn(&Path),
    args: &'static [&'static str],
    /// What is compared, which must be as it was before or as it is afterwards.
    look: fn(&Path) -> String,
}

/// Three levels: a base, an inner node, a leaf.
fn chain(here: &Path) {
    done(here, &["create", "-n", "base.vhd", "-s", "8"]);
    write(here, "base.vhd", 0, &[1; 6000]);
    done(here, &["snapshot", "-n", "mid.vhd", "-p", "base.vhd"]);
    write(here, "mid.vhd", 3000, &[2; 6000]);
    write(here, "mid.vhd", 5 << 20, &[2; 600]);
    done(here, &["snapshot", "-n", "leaf.vhd", "-p", "mid.vhd"]);
    write(here, "leaf.vhd", 1 << 20, &[3; 600]);
}

fn merged(here: &Path) {
    chain(here);
    done(here, &["coalesce", "-n", "mid.vhd"]);
}

/// A BAT of several sectors, and blocks in more than one of them.
fn large(here: &Path) {
    done(here, &["create", "-n", "base.vhd", "-s", "300"]);
    write(here, "base.vhd", 0, &[1; 6000]);
    done(here, &["snapshot", "-n", "leaf.vhd", "-p", "base.vhd"]);
    write(here, "leaf.vhd", 0, &[2; 600]);
    write(here, "leaf.vhd", 280 << 20, &[2; 600]);
}

fn read(here: &Path, name: &str) -> String {
    guest(here, name)
}

/// What the leaf reads; one whose header is torn is repaired, which finds the parent by its id.
fn leaf(here: &Path) -> String {
    if Image::<ReadOnly>::open(&here.join("leaf.vhd"), Lock::None).is_err() {
        let repaired = std::process::Command::new(assert_cmd::cargo::cargo_bin!("vhd-tool"))
            .args(["repair", "leaf.vhd"])
            .current_dir(here)
            .output()
            .expect("the program can be started");
        assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
    }
    Chain::open(&here.join("leaf.vhd"), &ChainOptions::default()).expect("the parent is there");
    read(here, "leaf.vhd")
}

const CASES: &[Case] = &[
    Case {
        name: "create",
        build: chain,
        args: &["create", "-n", "leaf.vhd", "-s", "8"],
        look: |here| read(here, "leaf.vhd"),
    },
    Case {
        name: "snapshot",
        build: chain,
        args: &["snapshot", "-n", "new.vhd", "-p", "leaf.vhd"],
        look: |here| if here.join("new.vhd").exists() { read(here, "new.vhd") } else { read(here, "leaf.vhd") },
    },
    Case {
        name: "coalesce",
        build: chain,
        args: &["coalesce", "-n", "mid.vhd"],
        look: |here| [read(here, "mid.vhd"), read(here, "leaf.vhd")].concat(),
    },
    Case { name: "modify -p", build: merged, args: &["modify", "-n", "leaf.vhd", "-p", "base.vhd"], look: leaf },
    Case { name: "modify -z", build: chain, args: &["modify", "-n", "leaf.vhd", "-z"], look: leaf },
    Case { name: "modify -z, large", build: large, args: &["modify", "-n", "leaf.vhd", "-z"], look: leaf },
    Case { name: "modify -s, larger", build: chain, args: &["modify", "-n", "leaf.vhd", "-s", "3145728"], look: leaf },
    Case {
        name: "modify -s, smaller",
        build: |here| {
            chain(here);
            done(here, &["modify", "-n", "leaf.vhd", "-s", "3145728"]);
        },
        args: &["modify", "-n", "leaf.vhd", "-s", "2106880"],
        look: leaf,
    },
    Case { name: "set hidden", build: chain, args: &["set", "-n", "leaf.vhd", "-f", "hidden", "-v", "1"], look: leaf },
    Case {
        name: "set marker",
        build: chain,
        args: &["set", "-n", "leaf.vhd", "-f", "marker", "-v", "9"],
        look: |here| [leaf(here), done(here, &["query", "-m", "-n", "leaf.vhd"])].concat(),
    },
    Case {
        name: "key",
        build: |here| {
            done(here, &["create", "-n", "base.vhd", "-s", "8"]);
            done(here, &["snapshot", "-n", "leaf.vhd", "-p", "base.vhd"]);
        },
        args: &["key", "-s", "-H", HASH, "-n", "leaf.vhd"],
        look: |here| [leaf(here), done(here, &["key", "-p", "-n", "leaf.vhd"])].concat(),
    },
    Case { name: "fill", build: chain, args: &["fill", "-n", "leaf.vhd"], look: leaf },
    Case { name: "fill -b", build: chain, args: &["fill", "-b", "-n", "leaf.vhd"], look: leaf },
    Case {
        name: "repair",
        build: |here| {
            chain(here);
            // The end footer, with nothing left of it.
            let file = File::options().write(true).open(here.join("leaf.vhd")).expect("it is there");
            file.write_all_at(&[0; 512], file.metadata().expect("it is open").len() - 512).expect("it is writable");
        },
        args: &["repair", "-n", "leaf.vhd"],
        look: leaf,
    },
];

const HASH: &str = "abababababababababababababababababababababababababababababababab";

fn try_case(case: &Case) -> usize {
    let folder = scratch::folder();
    (case.build)(folder.path());
    let before = (case.look)(folder.path());
    let recording = Recording::of(folder.path(), &process(folder.path(), case.args));
    let after = (case.look)(folder.path());
    let mut count = 0;
    for state in recording.states(Options { singles: 16, random: 120, seed: 1 }) {
        let found = scratch::folder();
        state.write_to(found.path());
        let look = (case.look)(found.path());
        let is_whole = look == after || look == before && !state.has_ended();
        assert!(is_whole, "{}: {}", case.name, state.describe());
        // To look may have repaired it.
        let again = scratch::folder();
        state.write_to(again.path());
        done(again.path(), case.args);
        assert_eq!((case.look)(again.path()), after, "{}, again: {}", case.name, state.describe());
        count += 1;
    }
    count
}

#[test]
fn power_failures_lose_nothing() {
    let counts: Vec<_> = CASES.iter().map(|case| (case.name, try_case(case))).collect();
    let total: usize = counts.iter().map(|(_, count)| count).sum();
    let each: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    testkit::tell!("{total} crash states tried: {}", each.join(", "));
    // How many differs with how the threads of the merge take turns.
    assert!(total > 80, "{total} states");
}
