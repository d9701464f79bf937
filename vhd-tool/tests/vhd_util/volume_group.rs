//! Scans of a volume group: a real one, whose volumes are inactive; and one of which tools tell that answer as those of LVM
//! do, with plain files for its physical volumes. The first needs root and the tools of LVM, and no device mapper.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use testkit::golden;
use testkit::loop_device::LoopDevice;

use crate::program::{command, done};

const EXTENT: usize = 1 << 20;
const START: usize = 64 << 10;

/// Writes a tool that checks what it is asked and answers it.
fn tool(folder: &Path, name: &str, fields: &str, answer: &str) {
    let script = format!(
        "#!/bin/sh\nset -eu\n\
         [ \"$*\" = '--noheadings --nosuffix --units b --separator | --options {fields} -- {GROUP}' ] || {{ echo \"{name}: $*\" >&2; exit 5; }}\n\
         cat <<'END'\n{answer}END\n"
    );
    let path = folder.join(name);
    fs::write(&path, script).expect("the folder is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the folder is writable");
}

const GROUP: &str = "VG_XenStorage-1";

/// A group of two physical volumes: an image in two segments, its parent as an active device, one that is striped.
fn group(folder: &Path) {
    fs::create_dir(folder.join("bin")).expect("the folder is writable");
    let pv = |name: &str| folder.join(name).display().to_string();
    let (a, b) = (pv("pv-a"), pv("pv-b"));
    let leaf = {
        // An image as large as its volume: the end footer is at the end of that.
        let bytes = golden::bytes("sibling.vhd");
        let end = bytes.len() - 512;
        let mut leaf = bytes[..end].to_vec();
        leaf.resize(17 * EXTENT - 512, 0);
        leaf.extend(&bytes[end..]);
        leaf
    };
    let (first, second) = leaf.split_at(9 * EXTENT);
    for (path, at, bytes) in [(&a, 3, first), (&b, 1, second)] {
        let file = File::create(path).expect("the folder is writable");
        file.write_all_at(bytes, (START + at * EXTENT) as u64).expect("the folder is writable");
        file.set_len((START + 20 * EXTENT) as u64).expect("the folder is writable");
    }
    golden::unpack_into(folder, &["mid.vhd", "base.vhd"]);
    let mib = |count: usize| (count * EXTENT).to_string();
    let vgs = format!("  {EXTENT}|{a}|{START}\n  {EXTENT}|{b}|{START}\n");
    tool(&folder.join("bin"), "vgs", "vg_extent_size,pv_name,pe_start", &vgs);
    let missing = "/dev/VG_XenStorage-1/VHD-none";
    let lvs = format!(
        "  VHD-leaf|{whole}|{missing}|linear|{nine}|{eight}|{b}(1)\n\
         \n  VHD-leaf|{whole}|{missing}|linear|0|{nine}|{a}(3)\n\
         \n  base.vhd|{base}|{base_path}|linear|0|{base}|{a}(0)\n\
         \n  mid.vhd|{mid}|{mid_path}|striped|0|{mid}|{a}(0),{b}(9)\n\
         \n  VHD-striped|{one}|{missing}|striped|0|{one}|{a}(0),{b}(0)\n\
         \n  VHD-empty|{one}|{missing}|linear|0|{one}|{a}(0)\n\
         \n  MGT|{one}|{missing}|linear|0|{one}|{a}(1)\n",
        whole = mib(17),
        nine = mib(9),
        eight = mib(8),
        one = mib(1),
        base = 52_428_800,
        mid = 54_525_952,
        base_path = pv("base.vhd"),
        mid_path = pv("mid.vhd"),
    );
    let fields = "lv_name,lv_size,lv_path,segtype,seg_start,seg_size,devices";
    tool(&folder.join("bin"), "lvs", fields, &lvs.replace("\n\n", "\n"));
}

fn scan(folder: &Path, args: &[&str], code: i32) -> (String, String) {
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").expect("there is a path"));
    let mut command = command(folder, args);
    let output = command.env("PATH", path).assert().code(code).get_output().clone();
    let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
    (text(output.stdout), text(output.stderr))
}

const LEAF: &str = "vhd=VHD-leaf capacity=67108864 size=17825792 hidden=0 parent=mid.vhd\n";
const MID: &str = "vhd=mid.vhd capacity=67108864 size=54525952 hidden=0 parent=base.vhd\n";
const BASE: &str = "vhd=base.vhd capacity=67108864 size=52428800 hidden=0 parent=none\n";

#[test]
fn volumes_are_read_whether_they_are_active_or_not() {
    let folder = tempfile::tempdir().unwrap();
    group(folder.path());
    let scan = |args: &[&str]| scan(folder.path(), args, 0).0;
    assert_eq!(scan(&["scan", "-f", "-m", "VHD-leaf", "-l", GROUP]), LEAF);
    assert_eq!(scan(&["scan", "-f", "-m", "*.vhd", "-l", GROUP]), [BASE, MID].concat());
    assert_eq!(scan(&["scan", "-f", "-a", "-m", "VHD-le*", "-l", GROUP]), [LEAF, MID, BASE].concat());
    assert_eq!(scan(&["scan", "-f", "-c", "-m", "{mid*,VHD-leaf}", "-l", GROUP]), [MID, LEAF].concat());
    assert_eq!(scan(&["scan", "-f", "-m", "LV-*", "-l", GROUP]), "");
    assert_eq!(scan(&["scan", "-f", "-p", "-a", "-m", "VHD-leaf", "-l", GROUP]), format!("{BASE}   {MID}      {LEAF}"));
}

#[test]
fn what_cannot_be_read_has_a_line() {
    let folder = tempfile::tempdir().unwrap();
    group(folder.path());
    let (text, _) = scan(folder.path(), &["scan", "-f", "-c", "-m", "VHD-*", "-l", GROUP], 0);
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    assert_eq!((lines.len(), lines[1]), (3, LEAF), "{text}");
    assert!(lines[0].starts_with("vhd=VHD-empty scan-error=-22 "), "{text}");
    assert!(lines[2].starts_with("vhd=VHD-striped scan-error=-95 "), "{text}");
    assert!(scan(folder.path(), &["scan", "-f", "-m", "VHD-*", "-l", GROUP], 22).1.contains("VHD-empty"));
}

#[test]
fn a_group_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    group(folder.path());
    let (text, error) = scan(folder.path(), &["scan", "-f", "-m", "VHD-*", "-l", "other"], 5);
    assert!(text.is_empty() && error.contains("vgs"), "{error}");
    fs::remove_dir_all(folder.path().join("bin")).unwrap();
    let mut command = command(folder.path(), &["scan", "-f", "-m", "VHD-*", "-l", GROUP]);
    command.env("PATH", folder.path()).assert().code(2);
    assert_eq!(done(folder.path(), &["scan", "-f", "-m", "base.vhd"]), BASE.replace("52428800", "50430464"));
}

/// What the tools of LVM make on a device, without its volumes ever being active.
#[test]
fn a_real_group_is_read_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("pv"), 64 << 20);
    let group = format!("VG_XenStorage-{}", std::process::id());
    let only = format!("^{}$", device.path.display());
    let config = format!(
        "devices {{\n use_devicesfile = 0\n global_filter = [ \"a|{only}|\", \"r|.*|\" ]\n}}\n\
         backup {{\n backup = 0\n archive = 0\n}}\n"
    );
    fs::write(folder.path().join("lvm.conf"), config).unwrap();
    let lvm = |tool: &str, args: &[&str]| {
        let mut command = std::process::Command::new(tool);
        command.env("LVM_SYSTEM_DIR", folder.path()).args(["--yes", "--driverloaded", "n"]).args(args);
        let output = command.output().expect("the tools of LVM are there (make setup)");
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    };
    lvm("vgcreate", &["--physicalextentsize", "4m", &group, device.path.to_str().unwrap()]);
    let create = ["--activate", "n", "--zero", "n", "--wipesignatures", "n", "--extents"];
    lvm("lvcreate", &[&create[..], &["4", "--name", "VHD-leaf", &group]].concat());
    lvm("lvcreate", &[&create[..], &["1", "--name", "VHD-small", &group]].concat());
    // The first volume goes on after the second.
    lvm("lvextend", &["--extents", "5", &format!("{group}/VHD-leaf")]);

    let mut leaf = golden::bytes("sibling.vhd");
    let footer = leaf.split_off(leaf.len() - 512);
    leaf.resize((20 << 20) - 512, 0);
    leaf.extend(&footer);
    let mut small = golden::bytes("empty-10m.vhd");
    small.truncate(3072);
    let physical = fs::OpenOptions::new().write(true).open(&device.path).unwrap();
    let extent = |number: u64| (1 << 20) + number * (4 << 20);
    physical.write_all_at(&leaf[..16 << 20], extent(0)).unwrap();
    physical.write_all_at(&leaf[16 << 20..], extent(5)).unwrap();
    // Its copy of the footer is all that it has.
    physical.write_all_at(&small, extent(4)).unwrap();
    physical.sync_all().unwrap();

    let run = |args: &[&str], code| {
        let output = command(folder.path(), args).env("LVM_SYSTEM_DIR", folder.path()).assert().code(code);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let lines = "vhd=VHD-leaf capacity=67108864 size=20971520 hidden=0 parent=mid.vhd\n\
                 vhd=VHD-small capacity=10485760 size=4194304 hidden=0 parent=none\n";
    assert_eq!(run(&["scan", "-f", "-c", "-m", "VHD-*", "-l", &group], 0), lines);
    let with_parents = run(&["scan", "-f", "-a", "-c", "-m", "VHD-*", "-l", &group], 0);
    let missing = "vhd=mid.vhd scan-error=-2 error-message='mid.vhd: no such volume'\n";
    assert_eq!(with_parents, [lines, missing].concat());
    assert_eq!(run(&["scan", "-f", "-c", "-m", "LV-*", "-l", &group], 0), "");
    run(&["scan", "-f", "-c", "-m", "VHD-*", "-l", "none"], 5);
}
