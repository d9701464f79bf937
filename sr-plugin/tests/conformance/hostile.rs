//! A repository that somebody has filled who wants calls to reach further.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::scene::Scene;

const SECRET: &str = "what must not change";

#[test]
fn files_of_the_plugin_are_no_links() {
    for name in [".sr.new", ".sr.lock"] {
        let scene = Scene::new();
        let volume = scene.volume();
        let outside = scene.place().join("outside");
        fs::write(&outside, SECRET).expect("the place is writable");
        let link = scene.folder.join(name);
        let _ = fs::remove_file(&link);
        symlink(&outside, &link).expect("the place is writable");
        let arguments = scene.about(&volume, &serde_json::json!({ "new_name": "another" }));
        scene.json("Volume.set_name", &arguments).error();
        assert_eq!(fs::read_to_string(&outside).expect("it is there"), SECRET, "{name}");
        scene.call("Volume.stat", &volume);
    }
}

#[test]
fn what_an_earlier_call_had_in_mind_names_no_files_elsewhere() {
    let scene = Scene::new();
    let (volume, another) = (scene.volume(), scene.volume());
    let outside = scene.place().join("outside.vhd.json");
    fs::write(&outside, SECRET).expect("the place is writable");
    let intent = format!(
        r#"[{{"change":"snapshot","key":"../outside","twin":"{volume}","image":"{}"}},{{"change":"create","key":"../outside"}}]"#,
        uuid::Uuid::nil()
    );
    fs::write(scene.folder.join(".sr.intent"), intent).expect("the place is writable");
    scene.snapshot(&another);
    assert_eq!(fs::read_to_string(&outside).expect("it is there"), SECRET);
    let beside = fs::read_dir(scene.place()).expect("it is there").flatten();
    assert!(!beside.into_iter().any(|entry| entry.path().extension().is_some_and(|it| it == "cbt")));
}

/// What can be done is done and forgotten; what cannot is kept for a call that can.
#[test]
fn what_earlier_calls_had_in_mind_is_finished_once() {
    let scene = Scene::new();
    let (volume, another) = (scene.volume(), scene.volume());
    let written = scene.folder.join(".sr.intent");
    let done = format!(r#"{{"change":"resize","key":"{volume}"}}"#);
    fs::write(&written, format!("[{done}]")).expect("the place is writable");
    scene.snapshot(&another);
    assert!(!written.exists());
    fs::write(&written, format!(r#"[{done},{{"change":"create","key":"../outside"}}]"#))
        .expect("the place is writable");
    scene.snapshot(&another);
    let kept = fs::read_to_string(&written).expect("it is there");
    assert!(kept.contains("outside") && !kept.contains(&volume), "{kept}");
}

#[test]
fn a_fifo_is_not_waited_for() {
    let scene = Scene::new();
    let volume = scene.volume();
    for name in [".sr.intent".to_owned(), format!("{volume}.vhd.json")] {
        let path = scene.folder.join(name);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().expect("coreutils are there").success());
        scene.tried("Volume.snapshot", &volume).error();
        fs::remove_file(path).expect("it is there");
    }
}
