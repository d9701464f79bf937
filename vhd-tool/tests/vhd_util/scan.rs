use std::fs;
use std::path::Path;

use testkit::golden;

use crate::program::{done, ended, process, refused};

fn line(name: &str, capacity: u64, size: u64, hidden: u8, parent: &str) -> String {
    format!("vhd={name} capacity={capacity} size={size} hidden={hidden} parent={parent}\n")
}

/// A folder with a chain, a child of it, and an image that stands alone.
fn family() -> (tempfile::TempDir, [String; 5]) {
    let folder = golden::unpack(&["base.vhd", "leaf.vhd", "meta.vhd", "mid.vhd", "sibling.vhd"]);
    let lines = [
        line("base.vhd", 64 << 20, 50_430_464, 0, "none"),
        line("leaf.vhd", 64 << 20, 42_029_568, 0, "mid.vhd"),
        line("meta.vhd", 10 << 20, 2_101_760, 1, "none"),
        line("mid.vhd", 64 << 20, 52_535_808, 0, "base.vhd"),
        line("sibling.vhd", 64 << 20, 16_814_592, 0, "mid.vhd"),
    ];
    (folder, lines)
}

#[test]
fn every_image_has_a_line_in_the_order_of_the_names() {
    let (folder, lines) = family();
    let glob = folder.path().join("*.vhd").display().to_string();
    for args in [
        &["scan", "-f", "-m", &glob][..],
        &["scan", "-f", "-c", "-m", &glob, "--debug"],
        &["--debug", "scan", "-fcm", "*.vhd"],
        &["scan", "-m", "*.vhd"],
        &["scan", "-f", "-m", "{base,leaf,m*,sibling}.vhd"],
        &["scan", "-a", "-m", "*.vhd"],
        &["scan", "-f", "base.vhd", "leaf.vhd", "meta.vhd", "mid.vhd", "sibling.vhd"],
        &["scan", "-f", "-m", "[bl]*.vhd", "meta.vhd", "mid.vhd", "./sibling.vhd", "base.vhd"],
    ] {
        assert_eq!(done(folder.path(), args), lines.concat(), "{args:?}");
    }
}

#[test]
fn nothing_that_matches_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    for pattern in ["*.vhd", "none/*.vhd", "none.vhd", "{a,b}.vhd", "/none/{a,b}*.vhd", "[a"] {
        assert_eq!(done(folder.path(), &["scan", "-f", "-m", pattern]), "");
    }
    refused(folder.path(), &["scan", "-f"], 22);
    assert!(ended(folder.path(), &["scan", "-h"], 0).0.contains("-m"));
}

#[test]
fn parents_that_did_not_match_are_added_where_that_is_wanted() {
    let (folder, [base, leaf, _, mid, _]) = family();
    assert_eq!(done(folder.path(), &["scan", "-f", "-m", "leaf.vhd"]), leaf);
    assert_eq!(done(folder.path(), &["scan", "-f", "-a", "-m", "leaf.vhd"]), [&*leaf, &mid, &base].concat());
    let path = folder.path().join("leaf.vhd").display().to_string();
    assert_eq!(done(Path::new("/"), &["scan", "-f", "-a", "-m", &path]), [&*leaf, &mid, &base].concat());
    assert_eq!(done(folder.path(), &["scan", "-f", "-a", "-m", "{leaf,base}.vhd"]), [&*leaf, &base, &mid].concat());
}

#[test]
fn a_tree_shows_children_under_their_parents() {
    let (folder, [base, leaf, meta, mid, sibling]) = family();
    // The hidden ones first, and below their parent last.
    let tree = format!("{meta}{base}   {mid}      {leaf}      {sibling}");
    assert_eq!(done(folder.path(), &["scan", "-f", "-p", "-m", "*.vhd"]), tree);
    let lonely = |line: &str| line.replace('\n', " (not found in scan)\n");
    let tree = format!("{}{}", lonely(&leaf), lonely(&sibling));
    assert_eq!(done(folder.path(), &["scan", "-f", "-p", "-m", "{leaf,sibling}.vhd"]), tree);
    let tree = format!("{base}   {mid}      {leaf}");
    assert_eq!(done(folder.path(), &["scan", "-fpa", "-m", "leaf.vhd"]), tree);
    done(folder.path(), &["set", "-n", "leaf.vhd", "-f", "hidden", "-v", "1"]);
    let tree = format!("{meta}{base}   {mid}      {sibling}      {}", leaf.replace("hidden=0", "hidden=1"));
    assert_eq!(done(folder.path(), &["scan", "-f", "-p", "-m", "*.vhd"]), tree);
}

#[test]
fn whole_paths_marker_and_key_are_printed_where_wanted() {
    let folder = golden::unpack(&["meta.vhd", "mid.vhd", "fixed-4m.vhd"]);
    let key = "ab".repeat(32);
    let text = done(folder.path(), &["scan", "-f", "-M", "-m", "*.vhd"]);
    let expected = format!(
        "vhd=fixed-4m.vhd capacity=4194304 size=4194816 hidden=0 marker=0 keyhash= parent=none\n\
         vhd=meta.vhd capacity=10485760 size=2101760 hidden=1 marker=5 keyhash={key} parent=none\n\
         vhd=mid.vhd capacity=67108864 size=52535808 hidden=0 marker=0 keyhash= parent=base.vhd\n"
    );
    assert_eq!(text, expected);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mid = line(&path("mid.vhd"), 64 << 20, 52_535_808, 0, &path("base.vhd"));
    assert_eq!(done(Path::new("/"), &["scan", "-fv", "-m", &path("mi*.vhd")]), mid);
}

#[test]
fn a_raw_parent_counts_as_hidden() {
    let folder = golden::unpack(&["on-raw.vhd", "raw-parent.img"]);
    let on_raw = line("on-raw.vhd", 5_000_192, 2_105_856, 0, "raw-parent.img");
    assert_eq!(done(folder.path(), &["scan", "-f", "-m", "*.vhd"]), on_raw);
    let size = fs::metadata(folder.path().join("raw-parent.img")).unwrap().len();
    let raw = line("raw-parent.img", size, size, 1, "none");
    assert_eq!(done(folder.path(), &["scan", "-f", "-a", "-m", "*.vhd"]), [&*on_raw, &raw].concat());
    // One that is not there is told, and stops nothing.
    fs::remove_file(folder.path().join("raw-parent.img")).unwrap();
    let text = done(folder.path(), &["scan", "-f", "-a", "-m", "*.vhd"]);
    assert!(text.starts_with(&on_raw) && text.contains("raw-parent.img scan-error=-2 "), "{text}");
}

#[test]
fn one_that_cannot_be_read_stops_the_scan_or_has_a_line_of_its_own() {
    let (folder, [base, leaf, ..]) = family();
    fs::write(folder.path().join("bad.vhd"), "nothing").unwrap();
    let text = done(folder.path(), &["scan", "-f", "-c", "-m", "{bad,base,none,leaf}.vhd", "none.vhd"]);
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("vhd=bad.vhd scan-error=-22 error-message='"), "{text}");
    assert!(lines[0].ends_with("'\n") && lines[0].matches('\'').count() == 2, "{text}");
    assert_eq!(lines[1..3].concat(), [&*base, &leaf].concat());
    assert!(lines[3].starts_with("vhd=none.vhd scan-error=-2 error-message='"), "{text}");

    let (text, error) = ended(folder.path(), &["scan", "-f", "-m", "{base,bad,leaf}.vhd"], 22);
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    assert_eq!((lines.len(), lines[0]), (2, &*base), "it stops there");
    assert!(lines[1].starts_with("vhd=bad.vhd scan-error=-22 "), "{text}");
    assert!(error.contains("bad.vhd"), "{error}");
    let (text, _) = ended(folder.path(), &["scan", "-f", "none.vhd"], 2);
    assert!(text.starts_with("vhd=none.vhd scan-error=-2 "), "{text}");
}

/// Whatever lies in a folder under the name of an image, and whatever is damaged in one.
#[test]
fn nothing_makes_it_stall_or_panic() {
    let names: Vec<_> = golden::manifest().into_iter().map(|image| image.file).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.ends_with(".vhd")).collect();
    let folder = golden::unpack(&names);
    let here = folder.path();
    fs::create_dir(here.join("folder.vhd")).unwrap();
    std::os::unix::fs::symlink("nowhere", here.join("dangling.vhd")).unwrap();
    std::os::unix::fs::symlink("loop.vhd", here.join("loop.vhd")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(here.join("fifo.vhd")).status().unwrap().success());
    fs::write(here.join("empty.vhd"), "").unwrap();
    let base = golden::bytes("mid.vhd");
    for length in [1, 511, 512, 513, 1024, 1535, 1536, 2048, 3072, 4608] {
        fs::write(here.join(format!("cut-{length}.vhd")), &base[..length]).unwrap();
        fs::write(here.join(format!("end-{length}.vhd")), &base[base.len() - length..]).unwrap();
    }
    for at in (0..4608).step_by(3) {
        let mut bytes = base[..8192].to_vec();
        bytes[at] ^= 0xff;
        bytes.extend(&base[base.len() - 512..]);
        fs::write(here.join(format!("flipped-{at}.vhd")), bytes).unwrap();
    }
    for options in ["-fcm", "-fcpm", "-fcaMm", "-fcvpam"] {
        let text = done(here, &["scan", options, "*.vhd"]);
        // A raw parent is not there, and has one all the same.
        let count = fs::read_dir(here).unwrap().count() + usize::from(options.contains('a'));
        assert_eq!(text.lines().count(), count, "each has a line");
        assert!(text.lines().all(|line| line.trim_start().starts_with("vhd=")), "{options}");
    }
}

#[test]
fn parents_in_a_circle_are_printed_once_each() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let here = folder.path();
    // Two names for the other one's file each.
    fs::copy(here.join("leaf.vhd"), here.join("x.vhd")).unwrap();
    fs::rename(here.join("leaf.vhd"), here.join("base.vhd")).unwrap();
    let text = done(here, &["scan", "-f", "-p", "-a", "-m", "*.vhd"]);
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = golden::unpack(&["base.vhd"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = process(folder.path(), &["scan", "-m", "*.vhd"]).stdout(writer).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn names_that_are_no_text_hinder_nobody() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "-n", "ok.vhd", "-s", "4"]);
    for name in [&b"x\xff.txt"[..], b"y\xff.vhd"] {
        fs::write(folder.path().join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
    }
    let listed = done(folder.path(), &["scan", "-f", "-c", "-m", "*.vhd"]);
    assert!(listed.contains("vhd=ok.vhd capacity=4194304 "), "{listed}");
    assert!(listed.contains("\u{fffd}.vhd scan-error=-22 "), "{listed}");
}

/// Whoever makes an image decides what it calls its parent.
#[test]
fn a_name_makes_no_line_of_its_own() {
    let folder = golden::unpack(&["base.vhd"]);
    let name = "a\nvhd=b capacity=1 size=1 hidden=1 parent=none";
    fs::rename(folder.path().join("base.vhd"), folder.path().join(name)).unwrap();
    done(folder.path(), &["snapshot", "-n", "child.vhd", "-p", name]);
    for args in [&["scan", "-f", "-c", "-m", "*"][..], &["scan", "-f", "-c", "-p", "-a", "child.vhd"]] {
        let lines = done(folder.path(), args);
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(!lines.lines().any(|line| line.starts_with("vhd=b ")), "{lines}");
    }
    let parent = done(folder.path(), &["query", "-p", "-n", "child.vhd"]);
    let unresolved = done(folder.path(), &["query", "-pu", "-n", "child.vhd"]);
    assert_eq!([parent.lines().count(), unresolved.lines().count()], [1, 1]);
}
