use std::fs;

use testkit::golden;

use crate::program::{done, ended, refused, write};

#[test]
fn answers_come_in_one_order_whatever_the_order_of_the_questions() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let parent = folder.path().canonicalize().unwrap().join("mid.vhd").display().to_string();
    let all = format!("64\n42029568\n{parent}\nhidden: 0\nmarker: 0\nchain depth: 3\n20\n64\n");
    for options in [&["-vspfmdaS"][..], &["-Sadmfpsv"], &["-S", "-v", "-p", "-a", "-s", "-d", "-f", "-m"]] {
        assert_eq!(done(folder.path(), &[&["query", "-n", "leaf.vhd"], options].concat()), all, "{options:?}");
    }
    let managers = format!("64\n42029568\n{parent}\nhidden: 0\n20\n");
    for args in [
        ["query", "--debug", "-vsafp", "-n", "leaf.vhd"],
        ["--debug", "query", "-vsafp", "-n", "leaf.vhd"],
        ["query", "-vsafp", "-n", "leaf.vhd", "--debug"],
        ["query", "-vsafp", "-n", "--debug", "leaf.vhd"],
    ] {
        assert_eq!(done(folder.path(), &args), managers);
    }
}

#[test]
fn every_question_can_be_asked_alone() {
    let folder = golden::unpack(&["meta.vhd", "prealloc.vhd", "fixed-4m.vhd"]);
    for (image, question, answer) in [
        ("meta.vhd", "-v", "10\n"),
        ("meta.vhd", "-s", "2101760\n"),
        ("meta.vhd", "-p", "meta.vhd has no parent\n"),
        ("meta.vhd", "-f", "hidden: 1\n"),
        ("meta.vhd", "-m", "marker: 5\n"),
        ("meta.vhd", "-d", "chain depth: 1\n"),
        ("meta.vhd", "-a", "1\n"),
        ("meta.vhd", "-S", "10\n"),
        ("prealloc.vhd", "-S", "4096\n"),
        ("prealloc.vhd", "-s", "2109952\n"),
        ("fixed-4m.vhd", "-vsfa", "4\n4194816\nhidden: 0\n0\n"),
        ("fixed-4m.vhd", "-pS", "fixed-4m.vhd has no parent\n0\n"),
    ] {
        assert_eq!(done(folder.path(), &["query", question, "-n", image]), answer, "{image} {question}");
    }
}

/// What the footer of golden images stands after is what they need, but where blktap lets a batmap reach under the footer.
#[test]
fn the_physical_size_is_that_of_the_file_where_nothing_is_beyond() {
    for image in golden::manifest() {
        let is_short = image.file == "odd-blocks.vhd";
        if is_short || image.damaged_from.is_some() || image.journal.is_some() || !image.file.ends_with(".vhd") {
            continue;
        }
        let folder = golden::unpack(&[&image.file]);
        assert_eq!(
            done(folder.path(), &["query", "-s", "-n", &image.file]),
            format!("{}\n", image.bytes),
            "{}",
            image.file
        );
    }
}

#[test]
fn the_name_that_is_printed_is_the_one_that_was_given() {
    let folder = golden::unpack(&["meta.vhd"]);
    let path = folder.path().join("meta.vhd").display().to_string();
    assert_eq!(done(folder.path(), &["query", "-p", "-n", &path]), format!("{path} has no parent\n"));
}

#[test]
fn without_its_parent_an_image_still_answers() {
    let folder = golden::unpack(&["leaf.vhd"]);
    assert_eq!(done(folder.path(), &["query", "-vsf", "-n", "leaf.vhd"]), "64\n42029568\nhidden: 0\n");
    let (answers, error) = ended(folder.path(), &["query", "-vspfdaS", "-n", "leaf.vhd"], 2);
    assert_eq!(answers, "64\n42029568\nquery failed\nhidden: 0\nerror checking chain depth: -2\n20\n64\n");
    assert!(error.contains("mid.vhd"), "{error}");
    assert_eq!(done(folder.path(), &["query", "-pu", "-n", "leaf.vhd"]), "./mid.vhd\n");
}

#[test]
fn a_raw_parent_counts_as_one() {
    let folder = golden::unpack(&["on-raw.vhd", "raw-parent.img"]);
    let parent = folder.path().canonicalize().unwrap().join("raw-parent.img");
    let answer = format!("{}\nchain depth: 2\n", parent.display());
    assert_eq!(done(folder.path(), &["query", "-pd", "-n", "on-raw.vhd"]), answer);
    assert_eq!(done(folder.path(), &["query", "-pu", "-n", "on-raw.vhd"]), "./raw-parent.img\n");
}

#[test]
fn what_a_crash_has_left_answers() {
    let folder = golden::unpack(&["poisoned.vhd", "no-end-footer.vhd", "torn-batmap.vhd", "bat-beyond-eof.vhd"]);
    for image in ["poisoned.vhd", "no-end-footer.vhd", "torn-batmap.vhd", "bat-beyond-eof.vhd"] {
        let lines = done(folder.path(), &["query", "-vsafp", "-n", image]).lines().count();
        assert_eq!(lines, 5, "{image}");
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = golden::unpack(&["raw-parent.img", "meta.vhd"]);
    fs::write(folder.path().join("empty.vhd"), "").unwrap();
    refused(folder.path(), &["query", "-v", "-n", "none.vhd"], 2);
    refused(folder.path(), &["query", "-v", "-n", "raw-parent.img"], 22);
    refused(folder.path(), &["query", "-v", "-n", "empty.vhd"], 22);
    refused(folder.path(), &["query", "-n", "meta.vhd"], 22);
    refused(folder.path(), &["query", "-v"], 22);
    refused(folder.path(), &["query", "-x", "-n", "meta.vhd"], 22);
    assert!(ended(folder.path(), &["query", "-h"], 0).0.contains("-n"));
}

#[test]
fn what_is_written_shows_in_the_blocks() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "-n", "a.vhd", "-s", "10"]);
    assert_eq!(done(folder.path(), &["query", "-sa", "-n", "a.vhd"]), "3584\n0\n");
    write(folder.path(), "a.vhd", 4 << 20, b"x");
    assert_eq!(done(folder.path(), &["query", "-sa", "-n", "a.vhd"]), format!("{}\n1\n", 4096 + (2 << 20) + 512));
}

/// As the storage manager asks where it does not trust the footer at the end.
#[test]
fn the_copy_of_the_footer_answers_where_that_is_wanted() {
    let folder = golden::unpack(&["meta.vhd", "fixed-4m.vhd"]);
    let path = folder.path().join("meta.vhd");
    let copy = fs::read(&path).unwrap()[..512].to_vec();
    done(folder.path(), &["set", "-n", "meta.vhd", "-f", "hidden", "-v", "0"]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[..512].copy_from_slice(&copy);
    fs::write(&path, bytes).unwrap();
    let answer = |hidden| format!("10\n2101760\nmeta.vhd has no parent\nhidden: {hidden}\n1\n");
    assert_eq!(done(folder.path(), &["query", "--debug", "-vsafp", "-n", "meta.vhd"]), answer(0));
    assert_eq!(done(folder.path(), &["query", "--debug", "-vsafpb", "-n", "meta.vhd"]), answer(1));
    refused(folder.path(), &["query", "-vb", "-n", "fixed-4m.vhd"], 22);
}
