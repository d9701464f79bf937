//! Calls at once, and calls that are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::disks::{collect, content, contents, image, verify, write};
use crate::plugin::{Plugin, arguments, ended, program};

const MIB: u64 = 1 << 20;

#[test]
fn a_hundred_calls_at_once_leave_a_correct_repository() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let (one, two) = (plugin.create(&sr, "one", 2 * MIB), plugin.create(&sr, "two", 2 * MIB));
    write(&sr, &one, 0, 500, 1);
    write(&sr, &two, 100, 500, 2);
    let before = [content(&sr.folder, &one), content(&sr.folder, &two)];
    let calls: Vec<_> = (0..100)
        .map(|i: u64| {
            let key = if i.is_multiple_of(2) { &one } else { &two };
            let call = |method: &str, others: &Value| (method.to_owned(), arguments(&sr, key, others));
            match i % 10 {
                0..=3 => call("Volume.snapshot", &json!({})),
                4 | 5 => call("Volume.clone", &json!({})),
                6 => call("Volume.set", &json!({ "k": format!("k{i}"), "v": i.to_string() })),
                7 => call("Volume.stat", &json!({})),
                8 => ("SR.ls".into(), json!({ "sr": sr.id })),
                _ => {
                    let arguments =
                        json!({ "sr": sr.id, "name": "new", "description": "", "size": 2 * MIB, "sharable": false });
                    ("Volume.create".into(), arguments)
                }
            }
        })
        .collect();
    let collecting = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            for _ in 0..20 {
                collect(&sr);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let children: Vec<_> =
            calls.iter().map(|(method, arguments)| (method, plugin.start(method, arguments))).collect();
        for (method, child) in children {
            ended(child).unwrap_or_else(|error| panic!("{method}: {error:?}"));
        }
        collector.join()
    });
    collecting.unwrap();

    // 40 snapshots and 20 clones of two volumes, 10 new ones, and the two.
    let all = contents(&plugin, &sr);
    assert_eq!(all.len(), 72);
    let of = |content: &Vec<u8>| all.values().filter(|other| *other == content).count();
    assert_eq!((of(&before[0]), of(&before[1]), of(&vec![0; 2 * MIB as usize])), (31, 31, 10));
    // None of the ten keys was lost to another call.
    let keys = [&one, &two].map(|key| plugin.volume(&sr, "stat", key, &json!({}))["keys"].as_object().unwrap().len());
    assert_eq!(keys.iter().sum::<usize>(), 10);
    verify(&plugin, &sr);

    let children: Vec<_> = all
        .keys()
        .filter(|key| **key != one)
        .map(|key| plugin.start("Volume.destroy", &arguments(&sr, key, &json!({}))))
        .collect();
    for child in children {
        ended(child).unwrap();
    }
    collect(&sr);
    assert_eq!(contents(&plugin, &sr), BTreeMap::from([(one, before[0].clone())]));
    verify(&plugin, &sr);
}

/// Whatever the moment of a kill, the next call finds all of what was asked for, or nothing.
#[test]
fn calls_that_are_killed_leave_nothing_half_done() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    write(&sr, &volume, 0, 100, 1);
    let base = plugin.new_volume(&sr, "snapshot", &volume);
    let parent_content = content(&sr.folder, &base);
    let mut killed: BTreeMap<&str, u32> = BTreeMap::new();
    let mut random = random_numbers();
    for round in 0..160_u64 {
        write(&sr, &volume, (round * 7) % 1500, 5, round as u16 + 2);
        let before = contents(&plugin, &sr);
        let (extra, doomed) = (plugin.create(&sr, "extra", MIB), plugin.new_volume(&sr, "snapshot", &volume));
        write(&sr, &extra, 3, 4, 7);
        let extra_content = content(&sr.folder, &extra);
        let (method, call) = match round % 8 {
            0 => ("Volume.snapshot", arguments(&sr, &volume, &json!({}))),
            1 => ("Volume.clone", arguments(&sr, &volume, &json!({}))),
            2 => ("Volume.destroy", arguments(&sr, &doomed, &json!({}))),
            3 => ("Volume.revert", arguments(&sr, &volume, &json!({ "snapshot": base }))),
            4 => ("Volume.resize", arguments(&sr, &extra, &json!({ "new_size": 40 * MIB }))),
            5 => ("Volume.compose", arguments(&sr, &extra, &json!({ "key2": doomed }))),
            6 => ("Volume.data_destroy", arguments(&sr, &doomed, &json!({}))),
            _ => {
                let new = json!({ "sr": sr.id, "name": "n", "description": "", "size": MIB, "sharable": true });
                ("Volume.create", new)
            }
        };
        let mut child = plugin.start(method, &call);
        thread::sleep(Duration::from_micros(random() % 6_000));
        let was_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        *killed.entry(method).or_default() += u32::from(was_running);

        // Any call that changes something finishes what is half done; so does attaching.
        plugin.volume(&sr, "set", &volume, &json!({ "k": "round", "v": round.to_string() }));
        let after = contents(&plugin, &sr);
        for (key, content) in &before {
            let reverted = method == "Volume.revert" && *key == volume;
            assert!(
                after.get(key) == Some(content) || reverted && after[key] == parent_content,
                "{round}: {method}: {key}"
            );
        }
        let mine = &after[&extra];
        match method {
            "Volume.resize" => {
                assert!(mine.starts_with(&extra_content) && mine[extra_content.len()..].iter().all(|&byte| byte == 0));
            }
            "Volume.compose" if !after.contains_key(&doomed) => assert_ne!(mine, &extra_content),
            _ => assert_eq!(mine, &extra_content, "{round}: {method}"),
        }
        verify(&plugin, &sr);
        // What was killed can be asked for again; and the repository is made small again.
        for key in plugin.keys(&sr).into_iter().filter(|key| *key != volume && *key != base) {
            plugin.volume(&sr, "destroy", &key, &json!({}));
        }
        collect(&sr);
        assert!(image(&sr, &base).exists());
        verify(&plugin, &sr);
    }
    let all: u32 = killed.values().sum();
    testkit::tell!("{all} of 160 calls were killed as they ran: {killed:?}");
    assert!(all >= 16, "{killed:?}");
}

/// Numbers that are different in every run.
fn random_numbers() -> impl FnMut() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let (state, mut next) = (RandomState::new(), 0_u64);
    move || {
        next += 1;
        state.hash_one(next)
    }
}

#[test]
fn listings_show_nothing_half_done() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let make = |name: &str| {
        let key = plugin.create(&sr, name, MIB);
        write(&sr, &key, 0, 100, 1);
        key
    };
    let [one, two, three] = ["one", "two", "three"].map(make);
    let point = plugin.new_volume(&sr, "snapshot", &two);
    let fixed: Vec<&String> = vec![&one, &two, &three, &point];
    let end = AtomicBool::new(false);
    let (plugin, sr, end) = (&plugin, &sr, &end);
    let (one, two, three, point) = (&one, &two, &three, &point);
    let wrong = thread::scope(|scope| {
        let fixed = &fixed;
        let lists = scope.spawn(move || {
            let mut wrong = BTreeSet::new();
            while !end.load(Ordering::Relaxed) {
                let listed = plugin.call("SR.ls", &json!({ "sr": sr.id }));
                let listed = listed.as_array().unwrap();
                let keys: Vec<&str> = listed.iter().map(|it| it["key"].as_str().unwrap()).collect();
                for key in fixed {
                    let count = keys.iter().filter(|it| *it == key).count();
                    if count != 1 {
                        wrong.insert(format!("{key} is listed {count} times"));
                    }
                }
                for it in listed {
                    if !["one", "two", "three"].contains(&it["name"].as_str().unwrap()) {
                        wrong.insert(format!("a stranger is listed: {it}"));
                    }
                }
            }
            wrong
        });
        let works = [
            scope.spawn(move || {
                // Fewer than make a chain too long, should no collection come in between.
                for tag in 0..25 {
                    write(sr, one, tag, 3, 2 + tag as u16);
                    let key = plugin.new_volume(sr, "snapshot", one);
                    plugin.volume(sr, "destroy", &key, &json!({}));
                }
            }),
            scope.spawn(move || {
                for tag in 0..60 {
                    write(sr, two, tag, 3, 2 + tag as u16);
                    plugin.volume(sr, "revert", two, &json!({ "snapshot": point }));
                }
            }),
            scope.spawn(move || {
                for tag in 0..40 {
                    let path = sr.folder.join(format!("tool{tag}.vhd"));
                    let mut tool = Command::new(program("vhd-tool"));
                    assert!(
                        tool.args(["--quiet", "snapshot"]).arg(image(sr, three)).arg(&path).status().unwrap().success()
                    );
                    fs::write(sr.folder.join(format!("tool{tag}.vhd.json")), r#"{"name":"three"}"#).unwrap();
                }
            }),
            scope.spawn(move || {
                for _ in 0..40 {
                    let _ = testkit::worker::collect(&sr.folder);
                }
            }),
        ];
        let done: Vec<_> = works.into_iter().map(thread::ScopedJoinHandle::join).collect();
        // Whatever came of them: nobody lists for ever.
        end.store(true, Ordering::Relaxed);
        assert!(done.iter().all(Result::is_ok));
        lists.join().unwrap()
    });
    // The tool's snapshots are named after they have come.
    let wrong: Vec<&String> = wrong.iter().filter(|it| !it.contains("tool")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
