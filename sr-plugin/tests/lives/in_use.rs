//! Every call that changes volumes, beside a program that takes no locks and has one of the files open, as tapdisk has: that
//! file stays what it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::disks::{contents, write_by_command};
use crate::plugin::{Plugin, arguments, program};

const MIB: u64 = 1 << 20;

fn images(folder: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let images = paths.filter(|path| path.extension().is_some_and(|it| it == "vhd") && path.is_file());
    images.map(|path| (path.clone(), (fs::metadata(&path).unwrap().ino(), fs::read(&path).unwrap()))).collect()
}

#[test]
fn a_file_that_another_program_has_open_stays_as_it_is() {
    let (mut tried, mut refused) = (0, 0);
    for is_writer in [false, true] {
        for number in 0.. {
            let plugin = Plugin::install();
            let sr = plugin.sr("sr");
            let volume = plugin.create(&sr, "volume", 4 * MIB);
            write_by_command(&sr, &volume, 0, 300, 1);
            let first = plugin.new_volume(&sr, "snapshot", &volume);
            write_by_command(&sr, &volume, 100, 300, 2);
            let second = plugin.new_volume(&sr, "snapshot", &volume);
            let before = images(&sr.folder);
            let Some((held, state)) = before.iter().nth(number) else { break };
            let expected = contents(&plugin, &sr);
            let user = File::options().read(true).write(is_writer).open(held).unwrap();
            let calls: [(&str, &str, Value); 7] = [
                ("snapshot", &volume, json!({})),
                ("clone", &volume, json!({})),
                ("clone", &first, json!({})),
                ("resize", &volume, json!({ "new_size": 6 * MIB })),
                ("revert", &volume, json!({ "snapshot": first })),
                ("destroy", &second, json!({})),
                ("destroy", &volume, json!({})),
            ];
            for (method, key, others) in calls {
                let answer = plugin.try_call(&format!("Volume.{method}"), &arguments(&sr, key, &others));
                // This process has the file open itself, so another one collects.
                Command::new(program("coalesce-worker")).arg("once").arg(&sr.folder).output().unwrap();
                tried += 1;
                refused += usize::from(answer.is_err());
                let found = (fs::metadata(held).unwrap().ino(), fs::read(held).unwrap());
                assert!(found == *state, "{method} {key} has changed {}: {answer:?}", held.display());
            }
            drop(user);
            for (key, content) in contents(&plugin, &sr) {
                assert!(expected.get(&key).is_none_or(|before| content.starts_with(before)) || key == volume, "{key}");
            }
        }
    }
    assert!(tried > 40 && refused > 5, "{tried} calls, {refused} refused");
}
