//! Calls of the plugin: lives of volumes, and arguments that are none.

use super::Seed;
use crate::fuzz::plugin::SR;

pub(super) fn calls() -> Vec<Seed> {
    let lives = [
        ("life", &["create 1048576", "stat $0", "set_name $0 new", "snapshot $0", "ls", "destroy $0", "ls"][..]),
        (
            "snapshots",
            &["create 1048576", "snapshot $0", "snapshot $0", "clone $1", "revert $1 $0", "destroy $2", "ls"],
        ),
        (
            "tracked",
            &["create 1048576", "enable_cbt $0", "snapshot $0", "snapshot $0", "data_destroy $1", "changes $1 $2"],
        ),
        ("copied", &["create 1048576", "copy $0", "compare $0 $1", "similar_content $0", "resize $0 2097152"]),
        ("composed", &["create 1048576", "create 1048576", "compose $0 $1", "stat $0", "ls"]),
        (
            "there-before",
            &["stat leaf", "snapshot leaf", "resize leaf 1048576", "revert mid leaf", "destroy leaf", "ls"],
        ),
        ("keys", &["set $0 k v", "create 4096", "set $0 k v", "set $0 k w", "unset $0 k", "unset $0 j", "stat $0"]),
        (
            "largest",
            &["create 2190433320960", "create 2190433320961", "create 9223372036854775807", "create -1", "create 0"],
        ),
        (
            "elsewhere",
            &["stat ../../outside/secret", "destroy ../secret", "destroy /etc/passwd", "snapshot link", "destroy link"],
        ),
    ];
    let words = lives.map(|(name, lines)| (name.to_owned(), lines.iter().map(|line| words(line)).collect::<String>()));
    let json = lives.map(|(name, lines)| (format!("{name}-json"), lines.iter().map(|line| json(line)).collect()));
    let others = [
        ("empty", String::new()),
        ("plugin", "Plugin.Query d\nPlugin.ls d\nPlugin.diagnostics d\nPlugin.Query {\"dbg\":\"d\"}\n".into()),
        ("repositories", repositories()),
        (
            "no-arguments",
            "SR.stat\nSR.stat {}\nSR.stat []\nSR.stat {\"dbg\":1,\"sr\":{}}\nSR.stat --x\nSR.stat d -- -- x\n".into(),
        ),
        ("nested", format!("SR.stat {}\nVolume.stat {{\"dbg\":\"\\ud800\"}}\n", "[".repeat(3000))),
    ];
    let others = others.map(|(name, text)| (name.to_owned(), text));
    let all = words.into_iter().chain(json).chain(others);
    all.map(|(name, text)| ("plugin", name, text.into_bytes())).collect()
}

/// The method that a line is about, and its arguments by name.
fn method(line: &str) -> (String, Vec<(&str, &str)>) {
    let mut parts = line.split(' ');
    let what = parts.next().unwrap_or_default();
    let names: &[&str] = match what {
        "ls" => return ("SR.ls".into(), Vec::new()),
        "create" => {
            let size = parts.next().unwrap_or_default();
            let all = vec![("name", "n"), ("description", "of-a-test"), ("size", size), ("sharable", "false")];
            return ("Volume.create".into(), all);
        }
        "changes" => {
            let mut found: Vec<_> = ["key", "key2"].into_iter().zip(parts).collect();
            found.extend([("offset", "0"), ("length", "-1")]);
            return ("Volume.list_changed_blocks".into(), found);
        }
        "copy" => &["key"],
        "revert" => &["snapshot", "key"],
        "set_name" => &["key", "new_name"],
        "set" => &["key", "k", "v"],
        "unset" => &["key", "k"],
        "resize" => &["key", "new_size"],
        _ => &["key", "key2"],
    };
    let mut found: Vec<_> = names.iter().copied().zip(parts).collect();
    if what == "copy" {
        found.push(("dest_sr", "00000000-0000-0000-0000-00000000000a"));
    }
    (format!("Volume.{what}"), found)
}

fn words(line: &str) -> String {
    let (name, arguments) = method(line);
    let words: String = arguments.iter().map(|(_, value)| format!(" {value}")).collect();
    format!("{name} d {SR}{words}\n")
}

fn json(line: &str) -> String {
    let (name, arguments) = method(line);
    let members = arguments.iter().map(|(name, value)| match *name {
        "size" | "new_size" | "sharable" | "offset" | "length" => format!(",\"{name}\":{value}"),
        _ => format!(",\"{name}\":\"{value}\""),
    });
    format!("{name} {{\"dbg\":\"d\",\"sr\":\"{SR}\"{}}}\n", members.collect::<String>())
}

fn repositories() -> String {
    let configuration = r#""configuration":{"uri":"file:///x/new"}"#;
    let uuid = "00000000-0000-0000-0000-0000000000bb";
    [
        format!(r#"SR.create {{"dbg":"d","uuid":"{uuid}",{configuration},"name":"n","description":"d"}}"#),
        format!(r#"SR.attach {{"dbg":"d",{configuration}}}"#),
        format!(r#"SR.probe {{"dbg":"d",{configuration}}}"#),
        format!("Volume.create d {uuid} n d 4096 false"),
        format!("SR.set_name d {uuid} name\nSR.stat d {uuid}\nSR.ls d {uuid}\nVolume.destroy d {uuid} $0\nSR.destroy d {uuid}"),
        format!("SR.attach d --configuration uri file:///x/sr\nSR.detach d {SR}\nSR.detach d {SR}\n"),
    ]
    .join("\n")
}
