//! Which volumes share data, by `.sr.trees` instead of a look at all of them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::inject::{CHANGING, kill_at};
use vhd_core::{BlockSize, ByteCount, Existing, NewImage, NewKind, create_file};

use crate::disks::{collect, image, write};
use crate::plugin::{Plugin, Sr, program};

const MIB: u64 = 1 << 20;

/// A repository in which the trees have been written down.
struct Scene {
    plugin: Plugin,
    sr: Sr,
    volume: String,
    unrelated: String,
}

impl Scene {
    /// With a volume that holds something, and another.
    fn new() -> Self {
        let plugin = Plugin::install();
        let sr = plugin.sr("sr");
        let [volume, unrelated] = ["volume", "unrelated"].map(|name| {
            let key = plugin.create(&sr, name, 4 * MIB);
            write(&sr, &key, 0, 4000, 1);
            key
        });
        let scene = Self { plugin, sr, volume, unrelated };
        assert_eq!(scene.similar(&scene.volume), BTreeSet::new());
        assert!(scene.trees().exists());
        scene
    }

    fn trees(&self) -> PathBuf {
        self.sr.folder.join(".sr.trees")
    }

    /// What shows that the file has been replaced or written to.
    fn state_of_trees(&self) -> (u64, u64, i64, i64) {
        let found = fs::metadata(self.trees()).unwrap();
        (found.ino(), found.len(), found.mtime(), found.mtime_nsec())
    }

    fn similar(&self, key: &str) -> BTreeSet<String> {
        let answer = self.plugin.volume(&self.sr, "similar_content", key, &json!({}));
        answer.as_array().unwrap().iter().map(|key| key.as_str().unwrap().into()).collect()
    }

    fn new_volume(&self, method: &str, key: &str) -> String {
        self.plugin.new_volume(&self.sr, method, key)
    }

    fn volume(&self, method: &str, key: &str, others: &Value) {
        self.plugin.volume(&self.sr, method, key, others);
    }

    fn list(&self) -> Vec<String> {
        self.plugin.keys(&self.sr)
    }

    /// Makes a clone as somebody does who knows nothing of the plugin.
    fn foreign_clone(&self, key: &str, new: &str) {
        let mut tool = Command::new(program("vhd-tool"));
        tool.args(["--quiet", "clone"]).arg(image(&self.sr, key)).arg(image(&self.sr, new));
        assert!(tool.status().unwrap().success());
    }

    /// Checks that the volumes are similar to each other, and to nothing else.
    #[track_caller]
    fn check(&self, keys: &[&String]) {
        for key in keys {
            let others: BTreeSet<String> = keys.iter().filter(|other| other != &key).copied().cloned().collect();
            assert_eq!(self.similar(key), others, "{key}");
        }
    }
}

#[test]
fn whoever_is_made_is_known_at_once() {
    let scene = Scene::new();
    let trees = scene.state_of_trees();
    let (volume, unrelated) = (&scene.volume, &scene.unrelated);
    let snapshot = scene.new_volume("snapshot", volume);
    scene.check(&[volume, &snapshot]);
    write(&scene.sr, volume, 0, 100, 2);
    let clone = scene.new_volume("clone", volume);
    scene.check(&[volume, &snapshot, &clone]);
    let of_clone = scene.new_volume("clone", &clone);
    scene.check(&[volume, &snapshot, &clone, &of_clone]);
    scene.check(&[unrelated]);
    let under = scene.new_volume("snapshot", unrelated);
    scene.check(&[unrelated, &under]);
    scene.volume("revert", volume, &json!({ "snapshot": snapshot }));
    scene.check(&[volume, &snapshot, &clone, &of_clone]);
    // To what is no snapshot of it.
    scene.volume("revert", volume, &json!({ "snapshot": under }));
    scene.check(&[volume, unrelated, &under]);
    scene.check(&[&snapshot, &clone, &of_clone]);
    assert_eq!(trees.0, scene.state_of_trees().0, "it was not replaced meanwhile");
    scene.list();
    assert_ne!(trees.0, scene.state_of_trees().0, "now it was, as it told too much");
    scene.check(&[volume, unrelated, &under]);
    scene.check(&[&snapshot, &clone, &of_clone]);
}

#[test]
fn a_composition_joins_trees() {
    let scene = Scene::new();
    let snapshot = scene.new_volume("snapshot", &scene.volume);
    let child = scene.plugin.create(&scene.sr, "child", 4 * MIB);
    scene.volume("compose", &child, &json!({ "key2": scene.volume }));
    scene.check(&[&child, &snapshot]);
    scene.list();
    scene.check(&[&child, &snapshot]);
}

#[test]
fn trees_hold_together_when_their_middle_is_gone() {
    let scene = Scene::new();
    let mut all = vec![scene.volume.clone()];
    for level in 0..4 {
        all.push(scene.new_volume("clone", &all[level]));
        write(&scene.sr, &all[level + 1], 100 * level as u64, 10, 7);
    }
    scene.volume("destroy", &all[1], &json!({}));
    scene.volume("destroy", &all[2], &json!({}));
    let left = [&all[0], &all[3], &all[4]];
    scene.check(&left);
    assert!(!collect(&scene.sr).merged.is_empty());
    scene.check(&left);
    scene.list();
    scene.check(&left);
    let text = fs::read_to_string(scene.trees()).unwrap();
    collect(&scene.sr);
    scene.check(&left);
    scene.list();
    assert_eq!(fs::read_to_string(scene.trees()).unwrap(), text);
}

#[test]
fn what_others_make_is_known_from_the_next_listing() {
    let scene = Scene::new();
    // Names may be anything.
    let odd = ["with spaces", "*", "über\n"].map(str::to_owned);
    for key in &odd {
        scene.foreign_clone(&scene.volume, key);
    }
    scene.list();
    let listed = scene.state_of_trees();
    let [one, two, three] = &odd;
    scene.check(&[&scene.volume, one, two, three]);
    scene.check(&[&scene.unrelated]);
    let of_odd = scene.new_volume("clone", two);
    scene.check(&[&scene.volume, one, two, three, &of_odd]);
    let appended = scene.state_of_trees();
    assert_ne!(appended, listed);
    for _ in 0..2 {
        scene.list();
        scene.check(&[&scene.volume, one, two, three, &of_odd]);
        assert_eq!(scene.state_of_trees(), appended, "it tells the same, and is not written again");
    }
}

#[test]
fn a_torn_line_harms_only_itself() {
    let scene = Scene::new();
    let clone = scene.new_volume("clone", &scene.volume);
    let mut file = File::options().append(true).open(scene.trees()).unwrap();
    file.write_all(format!("\n../x /etc/passwd \0\u{fffd} {}", &scene.unrelated[..7]).as_bytes()).unwrap();
    file.write_all(b"\xff\xfe").unwrap();
    let another = scene.new_volume("snapshot", &scene.volume);
    scene.check(&[&scene.volume, &clone, &another]);
    scene.check(&[&scene.unrelated]);
}

#[test]
fn a_listing_replaces_what_has_grown_or_is_wrong() {
    let scene = Scene::new();
    let clone = scene.new_volume("clone", &scene.volume);
    let right = fs::metadata(scene.trees()).unwrap().len();
    for _ in 0..200 {
        let mut file = File::options().append(true).open(scene.trees()).unwrap();
        file.write_all(format!("\n{} {}", scene.volume, clone).as_bytes()).unwrap();
    }
    scene.list();
    assert!(fs::metadata(scene.trees()).unwrap().len() <= right + 8);
    scene.check(&[&scene.volume, &clone]);
    for wrong in ["", "\n", "no such", &format!("{} {}\n", scene.volume, scene.unrelated)] {
        fs::write(scene.trees(), wrong).unwrap();
        scene.list();
        let text = fs::read_to_string(scene.trees()).unwrap();
        assert!(text.contains(&clone) && !text.contains(&scene.unrelated), "{wrong:?}: {text}");
        scene.check(&[&scene.volume, &clone]);
    }
    // While somebody else changes something nobody waits to write it; but what is wrong does not stay.
    fs::write(scene.trees(), "").unwrap();
    let lock = File::options().write(true).open(scene.sr.folder.join(".sr.lock")).unwrap();
    lock.lock().unwrap();
    scene.list();
    scene.check(&[&scene.volume, &clone]);
    assert!(!scene.trees().exists());
    drop(lock);
    scene.list();
    assert!(!scene.trees().exists(), "where nobody asks for it, nobody writes it");
    scene.check(&[&scene.volume, &clone]);
    assert!(scene.trees().exists());
}

#[test]
fn volumes_with_parents_elsewhere_may_share_them() {
    let scene = Scene::new();
    let elsewhere = scene.plugin.sr("elsewhere");
    let volume = scene.plugin.create(&elsewhere, "volume", 4 * MIB);
    write(&elsewhere, &volume, 0, 100, 3);
    let clone = scene.plugin.new_volume(&elsewhere, "clone", &volume);
    for (key, name) in [(&volume, "one"), (&clone, "two")] {
        fs::copy(image(&elsewhere, key), image(&scene.sr, name)).unwrap();
        fs::remove_file(image(&elsewhere, key)).unwrap();
    }
    scene.list();
    let [one, two] = ["one", "two"].map(str::to_owned);
    assert!(fs::read_to_string(scene.trees()).unwrap().contains("* one two\n"));
    scene.check(&[&scene.volume]);
    // Then their parent comes.
    let images = fs::read_dir(&elsewhere.folder).unwrap().flatten().map(|entry| entry.path());
    let parent = images.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "vhd")).unwrap();
    fs::copy(&parent, scene.sr.folder.join(parent.file_name().unwrap())).unwrap();
    scene.check(&[&one, &two]);
    scene.check(&[&scene.volume]);
}

#[test]
fn what_is_mended_is_known() {
    let scene = Scene::new();
    let clone = scene.new_volume("clone", &scene.volume);
    let (path, saved) = (image(&scene.sr, &clone), scene.plugin.path("saved.vhd"));
    fs::rename(&path, &saved).unwrap();
    fs::write(&path, [7; 65536]).unwrap();
    scene.list();
    assert!(fs::read_to_string(scene.trees()).unwrap().contains(&format!("* {clone}\n")));
    scene.check(&[&scene.volume]);
    fs::rename(&saved, &path).unwrap();
    scene.check(&[&scene.volume, &clone]);
    scene.check(&[&scene.unrelated]);
    scene.list();
    scene.check(&[&scene.volume, &clone]);
    assert!(!fs::read_to_string(scene.trees()).unwrap().contains('*'));
}

#[test]
fn the_trees_are_forgotten_with_the_repository() {
    let scene = Scene::new();
    scene.foreign_clone(&scene.volume, "foreign");
    let folder = format!("file://{}", scene.sr.folder.display());
    let again = scene.plugin.attach(&scene.sr.folder, &json!({ "uri": folder, "sr_uuid": scene.sr.id }));
    assert!(!scene.trees().exists());
    scene.check(&[&scene.volume, &"foreign".to_owned()]);
    for key in scene.list() {
        scene.volume("destroy", &key, &json!({}));
    }
    assert!(scene.trees().exists());
    scene.plugin.call("SR.destroy", &json!({ "sr": again.id }));
    assert_eq!(fs::read_dir(&scene.sr.folder).unwrap().count(), 0);
}

#[test]
fn calls_that_write_the_trees_may_be_killed() {
    let scene = Scene::new();
    let clone = scene.new_volume("clone", &scene.volume);
    let (mut tried, words) = (0, ["test", &scene.sr.id, &scene.volume]);
    for (method, count) in [("SR.ls", 2), ("Volume.similar_content", 3)] {
        for call in CHANGING {
            for number in 1.. {
                let _ = fs::remove_file(scene.trees());
                if method == "SR.ls" {
                    fs::write(scene.trees(), "wrong and\n").unwrap();
                }
                let mut command = Command::new(scene.plugin.executable(method));
                command.args(&words[..count]);
                if !kill_at(&command, call, number).hit {
                    break;
                }
                tried += 1;
                let what = format!("{method} killed at {call} {number}");
                scene.list();
                scene.check(&[&scene.volume, &clone]);
                scene.plugin.call("SR.set_name", &json!({ "sr": scene.sr.id, "new_name": "sr" }));
                let left = |name: &str| scene.sr.folder.join(name).exists();
                assert!(!left(".sr.new") && !left(".sr.intent"), "{what}");
            }
        }
    }
    testkit::tell!("{tried} kills");
    assert!(tried > 6, "{tried}");
}

#[test]
fn a_link_in_their_place_is_not_followed() {
    let scene = Scene::new();
    let outside = scene.plugin.path("outside");
    fs::write(&outside, "secret").unwrap();
    fs::remove_file(scene.trees()).unwrap();
    symlink(&outside, scene.trees()).unwrap();
    let clone = scene.new_volume("clone", &scene.volume);
    scene.list();
    scene.check(&[&scene.volume, &clone]);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "secret");
}

#[test]
fn a_call_opens_only_those_that_may_be_meant() {
    let scene = Scene::new();
    for number in 0..300 {
        let new = NewImage::new(ByteCount(MIB), NewKind::Dynamic { block_size: BlockSize::DEFAULT });
        create_file(&image(&scene.sr, &format!("other-{number}")), &new, Existing::Keep).unwrap();
    }
    let clone = scene.new_volume("clone", &scene.volume);
    scene.list();
    let opened = scene.plugin.path("opened");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=open,openat,openat2,stat,statx,newfstatat", "-o"]).arg(&opened);
    strace.arg(scene.plugin.executable("Volume.similar_content")).args(["test", &scene.sr.id, &scene.volume]);
    let output = strace.stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&clone), "{output:?}");
    let opened = fs::read_to_string(&opened).unwrap();
    let images: Vec<&str> = opened.lines().filter(|line| line.contains(".vhd\"")).collect();
    assert!((1..40).contains(&images.len()), "{}", images.join("\n"));
}
