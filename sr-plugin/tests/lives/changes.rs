//! Which blocks have changed, and which differ.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::disks::{bits, changed, collect, content, differing, image, write};
use crate::plugin::{Plugin, arguments};

const MIB: u64 = 1 << 20;
/// Sectors in a block of 64 KiB.
const BLOCK: u64 = 128;

#[test]
fn changed_blocks_are_told_whatever_becomes_of_the_snapshots() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 8 * MIB);
    write(&sr, &volume, 0, 400, 1);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    let mut snapshots = Vec::new();
    let mut contents = Vec::new();
    for level in 0..5_u64 {
        if level != 3 {
            write(&sr, &volume, 1000 + level * 5 * BLOCK, 3 * BLOCK + 1, 2 + level as u16);
        }
        snapshots.push(plugin.new_volume(&sr, "snapshot", &volume));
        contents.push(content(&sr.folder, snapshots.last().unwrap()));
    }
    write(&sr, &volume, 0, 1, 9);
    let now = content(&sr.folder, &volume);
    let expect = |from: usize, to: usize, why: &str| {
        assert_eq!(
            changed(&plugin, &sr, &snapshots[from], &snapshots[to]),
            differing(&contents[from], &contents[to]),
            "{why}"
        );
    };
    let all = |why: &str| {
        for (from, to) in [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4), (4, 0), (1, 4), (2, 2)] {
            expect(from, to, why);
        }
    };
    all("as they were taken");
    assert_eq!(changed(&plugin, &sr, &snapshots[4], &volume), BTreeSet::from([0]));
    assert_eq!(changed(&plugin, &sr, &snapshots[0], &volume), differing(&contents[0], &now));

    let stat = plugin.volume(&sr, "stat", &snapshots[1], &json!({}));
    assert_eq!((&stat["cbt_enabled"], stat.get("volume_type")), (&json!(true), None));
    for level in [1, 2] {
        for _ in 0..2 {
            plugin.volume(&sr, "data_destroy", &snapshots[level], &json!({}));
        }
    }
    all("when data has been destroyed");
    let stat = plugin.volume(&sr, "stat", &snapshots[1], &json!({}));
    assert_eq!((&stat["volume_type"], &stat["virtual_size"]), (&json!(["CBT_Metadata", null]), &json!(8 * MIB)));
    assert_eq!(plugin.keys(&sr).len(), 6);
    assert!(!collect(&sr).merged.is_empty());
    all("when it has been merged away");

    // One in between goes altogether: what it told of is told by the next.
    plugin.volume(&sr, "destroy", &snapshots[2], &json!({}));
    for (from, to) in [(0, 4), (1, 3), (3, 4), (1, 4)] {
        expect(from, to, "without the one in between");
    }
    // So does the last.
    plugin.volume(&sr, "destroy", &snapshots[4], &json!({}));
    let told = changed(&plugin, &sr, &snapshots[3], &volume);
    assert!(told.is_superset(&differing(&contents[3], &now)), "{told:?}");
    assert_eq!(told, differing(&contents[3], &contents[4]).into_iter().chain([0]).collect());
    plugin.volume(&sr, "disable_cbt", &volume, &json!({}));
    assert_eq!(plugin.volume(&sr, "stat", &volume, &json!({}))["cbt_enabled"], false);
    let refused = arguments(&sr, &snapshots[3], &json!({ "key2": volume, "offset": 0, "length": -1 }));
    assert!(plugin.try_call("Volume.list_changed_blocks", &refused).unwrap_err()[1].contains("not tracked"));
}

#[test]
fn changed_blocks_of_a_part_and_of_one_that_was_reverted() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 2 * MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    let first = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 5 * BLOCK, BLOCK * 2, 1);
    let second = plugin.new_volume(&sr, "snapshot", &volume);
    let part = |offset: u64, length: i64| {
        let others = json!({ "key2": second, "offset": offset, "length": length });
        bits(&plugin.volume(&sr, "list_changed_blocks", &first, &others))
    };
    assert_eq!(part(0, -1), BTreeSet::from([5, 6]));
    assert_eq!(part(5 * 65536 + 100, 1), BTreeSet::from([0]), "grown to the block");
    assert_eq!(part(4 * 65536, 2 * 65536 + 1), BTreeSet::from([1, 2]));
    assert_eq!(part(2 * MIB, 100), BTreeSet::new());

    plugin.volume(&sr, "revert", &volume, &json!({ "snapshot": first }));
    write(&sr, &volume, 20 * BLOCK, 1, 2);
    let third = plugin.new_volume(&sr, "snapshot", &volume);
    assert_eq!(changed(&plugin, &sr, &first, &third), BTreeSet::from([20]));
    assert_eq!(changed(&plugin, &sr, &second, &third), BTreeSet::from([5, 6, 20]));
    assert_eq!(changed(&plugin, &sr, &third, &second), BTreeSet::from([5, 6, 20]));
}

/// The sectors that a block list names.
fn sectors(answer: &Value) -> BTreeSet<u64> {
    let size = answer["blocksize"].as_u64().unwrap() / 512;
    let ranges = answer["ranges"].as_array().unwrap().iter();
    ranges
        .flat_map(|range| (0..range[1].as_u64().unwrap() * size).map(move |i| range[0].as_u64().unwrap() * size + i))
        .collect()
}

#[test]
fn volumes_are_compared_by_sectors() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 4 * MIB);
    write(&sr, &volume, 0, 1000, 1);
    let snapshot = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 990, 20, 2);
    write(&sr, &volume, 5000, 1, 2);
    // What is written again as it was is no difference.
    write(&sr, &volume, 0, 10, 1);
    let other = plugin.create(&sr, "other", 4 * MIB);
    write(&sr, &other, 7, 2, 1);
    let compare = |one: &str, two: &str| sectors(&plugin.volume(&sr, "compare", one, &json!({ "key2": two })));
    let expected = |one: &str, two: &str| -> BTreeSet<u64> {
        let (one, two) = (content(&sr.folder, one), content(&sr.folder, two));
        (0..one.len() as u64 / 512)
            .filter(|i| one[*i as usize * 512..][..512] != two[*i as usize * 512..][..512])
            .collect()
    };
    assert_eq!(compare(&volume, &snapshot), expected(&volume, &snapshot));
    assert_eq!(compare(&snapshot, &volume), expected(&volume, &snapshot));
    assert_eq!(compare(&volume, &volume), BTreeSet::new());
    assert_eq!(compare(&other, &volume), BTreeSet::from([7, 8]), "what it holds, as they have nothing in common");
    assert_eq!(compare(&other, "gone"), BTreeSet::from([7, 8]));

    plugin.volume(&sr, "resize", &volume, &json!({ "new_size": 5 * MIB }));
    write(&sr, &volume, 9000, 3, 4);
    let grown: BTreeSet<u64> = expected(&snapshot, &volume).into_iter().chain([9000, 9001, 9002]).collect();
    assert_eq!(compare(&volume, &snapshot), grown);
}

#[test]
fn volumes_that_share_most_come_first() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 4 * MIB);
    write(&sr, &volume, 0, 4000, 1);
    let old = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 0, 3000, 2);
    let new = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 5000, 10, 3);
    let unrelated = plugin.create(&sr, "unrelated", 4 * MIB);
    write(&sr, &unrelated, 0, 4000, 1);
    let similar = |key: &str| plugin.volume(&sr, "similar_content", key, &json!({}));
    assert_eq!(similar(&volume), json!([new, old]));
    assert_eq!(similar(&unrelated), json!([]));
    // Of the first 4000 sectors of the oldest, the last 1000 are in both.
    let mut both = [volume, new];
    both.sort_unstable();
    assert_eq!(similar(&old), json!(both));
}

/// Nobody knows what it had changed: that is not told as nothing.
#[test]
fn a_volume_that_has_lost_its_image_has_no_list() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 8 * MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    let snapshot = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 0, 400, 1);
    std::fs::remove_file(image(&sr, &volume)).unwrap();
    let call = arguments(&sr, &snapshot, &json!({ "key2": volume, "offset": 0, "length": -1 }));
    plugin.try_call("Volume.list_changed_blocks", &call).unwrap_err();
}

/// What becomes of a file: it is restored without those beside it, cut, or damaged.
const LOSSES: [fn(&Path); 4] = [
    |path| std::fs::remove_file(path).unwrap(),
    |path| std::fs::write(path, "").unwrap(),
    |path| std::fs::write(path, &std::fs::read(path).unwrap()[1..]).unwrap(),
    |path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[0] ^= 0x20;
        std::fs::write(path, bytes).unwrap();
    },
];

/// Also once the snapshot itself is gone.
#[test]
fn a_snapshot_that_has_lost_its_changes_is_not_told_as_unchanged() {
    for lose in LOSSES {
        let plugin = Plugin::install();
        let sr = plugin.sr("sr");
        let volume = plugin.create(&sr, "volume", 8 * MIB);
        plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
        let snapshot = |tag: u16| {
            write(&sr, &volume, u64::from(tag) * BLOCK, 1, tag);
            plugin.new_volume(&sr, "snapshot", &volume)
        };
        let (first, second, third) = (snapshot(1), snapshot(2), snapshot(3));
        let told = |from: &str, to: &str| {
            let call = arguments(&sr, from, &json!({ "key2": to, "offset": 0, "length": -1 }));
            plugin.try_call("Volume.list_changed_blocks", &call)
        };
        assert_eq!(changed(&plugin, &sr, &first, &third), BTreeSet::from([2, 3]));
        lose(&sr.folder.join(format!("{second}.vhd.cbt")));
        told(&first, &third).unwrap_err();
        assert_eq!(changed(&plugin, &sr, &second, &third), BTreeSet::from([3]), "what is known is told");
        plugin.volume(&sr, "destroy", &second, &json!({}));
        collect(&sr);
        told(&first, &third).unwrap_err();
    }
}

/// Part of what it has changed is in an image that it shares with a clone. Its next snapshot counts as changed throughout.
#[test]
fn a_volume_that_has_lost_its_changes_is_not_told_as_unchanged() {
    for lose in LOSSES {
        let plugin = Plugin::install();
        let sr = plugin.sr("sr");
        let volume = plugin.create(&sr, "volume", 8 * MIB);
        plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
        let first = plugin.new_volume(&sr, "snapshot", &volume);
        write(&sr, &volume, 2 * BLOCK, 1, 2);
        plugin.new_volume(&sr, "clone", &volume);
        write(&sr, &volume, 3 * BLOCK, 1, 3);
        assert_eq!(changed(&plugin, &sr, &first, &volume), BTreeSet::from([2, 3]));
        lose(&sr.folder.join(format!("{volume}.vhd.cbt")));
        let call = arguments(&sr, &first, &json!({ "key2": volume, "offset": 0, "length": -1 }));
        plugin.try_call("Volume.list_changed_blocks", &call).unwrap_err();
        let second = plugin.new_volume(&sr, "snapshot", &volume);
        assert_eq!(changed(&plugin, &sr, &first, &second), (0..8 * MIB / 512 / BLOCK).collect());
        write(&sr, &volume, 5 * BLOCK, 1, 5);
        assert_eq!(changed(&plugin, &sr, &second, &volume), BTreeSet::from([5]));
    }
}

/// What is kept of changes goes with whatever it is about.
#[test]
fn a_volume_that_is_destroyed_leaves_nothing() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 8 * MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    write(&sr, &volume, 0, 1, 1);
    let snapshot = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 400, 1, 2);
    // What it had changed is now in an image that the clone shares.
    let clone = plugin.new_volume(&sr, "clone", &volume);
    let files = || {
        let names =
            std::fs::read_dir(&sr.folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    assert!(files().contains(&format!("{volume}.vhd.cbt")));
    for key in [&volume, &clone, &snapshot] {
        plugin.volume(&sr, "destroy", key, &json!({}));
    }
    collect(&sr);
    // What a snapshot had changed is added to what comes next by whoever lists.
    plugin.call("SR.ls", &json!({ "sr": sr.id }));
    let kept = files();
    let left: Vec<_> = kept.iter().filter(|name| !name.starts_with('.') && *name != "sr.json").collect();
    assert!(left.is_empty(), "{left:?}");
}
