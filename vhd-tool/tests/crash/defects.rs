//! Ways in which another collector has been seen to lose data, each tried on ours. Those that need no dying process are
//! among the worker's own tests of behaviour.

use std::process::Command;

use coalesce_worker::Repository;
use testkit::crash::Recording;
use testkit::inject::{fail_from, kill_at};
use testkit::scene::{self, Scene};
use vhd_core::ChainOptions;
use vhd_core::check::{self, Severity};

use crate::program::{collect, vhd_tool};

const TAKE_NAME: [&str; 6] = ["coalesce", "leaf.vhd", "--into", "base.vhd", "--threads", "1"];

fn chain() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 256);
    scene.write("base.vhd", 0..60, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 30..175, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 100..210, 3);
    scene.settle();
    scene
}

fn command(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = vhd_tool(arguments);
    command.current_dir(scene.path());
    command
}

/// The first: killed after the merged image got the leaf's name, and then collected with what was known before.
#[test]
fn killed_around_the_rename_of_a_leaf_and_collected() {
    for call in ["rename", "fsync", "fdatasync", "unlink"] {
        for number in 1.. {
            let scene = chain();
            let before = scene::volumes(scene.path());
            // The stale view: a repository that has been opened, and has looked, before.
            let (repository, _) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
            repository.scan().unwrap();
            let hit = kill_at(&command(&scene, &TAKE_NAME), call, number).hit;
            repository.recover().unwrap();
            assert!(scene::volumes(scene.path()) == before, "{call} {number}");
            collect(scene.path()).unwrap();
            assert!(scene::volumes(scene.path()) == before, "{call} {number}, collected");
            assert_eq!(scene::images(scene.path()), 1, "{call} {number}");
            scene::check(scene.path());
            if !hit {
                break;
            }
        }
    }
}

/// The second: killed right after the volume's file got its second name.
#[test]
fn killed_right_after_the_hard_link_of_a_snapshot() {
    let scene = chain();
    let before = scene::volumes(scene.path());
    assert!(kill_at(&command(&scene, &["snapshot", "leaf.vhd", "new.vhd"]), "rename", 1).hit);
    assert_eq!(scene::images(scene.path()), 4, "the base is there under its second name");
    Repository::open(scene.path(), ChainOptions::default()).unwrap();
    assert!(scene::volumes(scene.path()) == before, "one volume, not two on one file");
    assert_eq!(scene::images(scene.path()), 3);
}

/// The sixth: what a journal says is durable, and so is its name, before anything else is done.
#[test]
fn journals_are_synced_before_the_first_step() {
    for arguments in [&["snapshot", "leaf.vhd", "new.vhd"][..], &["delete", "leaf.vhd"], &TAKE_NAME] {
        let scene = chain();
        let recording = Recording::of(scene.path(), &command(&scene, arguments));
        let log: Vec<&str> = recording.log().collect();
        let named = log.iter().position(|text| text.contains(".journal")).unwrap();
        let written = log[..named].iter().rposition(|text| text.starts_with("write")).unwrap();
        assert!(log[written..named].iter().any(|text| text.contains("sync")), "{log:#?}");
        assert!(log[named + 1].contains("sync") && log[named + 1].contains(".vhd"), "{log:#?}");
        let images = ["base.vhd", "mid.vhd", "leaf.vhd", "new.vhd"];
        let touched = log[..=named].iter().find(|text| images.iter().any(|image| text.ends_with(image)));
        assert_eq!(touched, None, "{log:#?}");
    }
}

/// The seventh: space runs out in mid-merge, and the parent has its footer all the same.
#[test]
fn no_space_in_mid_merge_leaves_every_footer_in_place() {
    let mut failed = 0;
    for call in ["pwrite64", "ftruncate", "fallocate"] {
        for number in 1.. {
            let scene = chain();
            let before = scene::volumes(scene.path());
            let injected = fail_from(&command(&scene, &TAKE_NAME), call, number, "ENOSPC");
            if !injected.hit {
                break;
            }
            failed += usize::from(!injected.output.status.success());
            let now = scene::volumes(scene.path());
            assert!(before.iter().all(|(name, content)| now[name] == *content), "{call} {number}");
            let (_, recovered) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
            assert!(recovered.waiting.is_empty(), "{recovered:?}");
            for name in ["base.vhd", "mid.vhd", "leaf.vhd"].map(|name| scene.file(name)).iter().filter(|it| it.exists())
            {
                let report = check::file(name).unwrap();
                assert!(report.worst() < Some(Severity::Warning), "{call} {number}: {:?}", report.findings());
            }
            assert!(scene::volumes(scene.path()) == before);
        }
    }
    assert!(failed > 10, "{failed} merges ran out of space");
}
