use crate::program::{done, guest, json, names, write};

/// The life of a volume: every command that changes something, and after each all disks as they must be.
#[test]
fn create_write_snapshot_clone_coalesce_compare() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    done(here, &["create", "disk.vhd", "--size", "32M"]);
    write(here, "disk.vhd", 1000, &[1; 5000]);
    let monday = guest(here, "disk.vhd");
    done(here, &["convert", "disk.vhd", "monday.img", "--to", "raw"]);

    done(here, &["snapshot", "disk.vhd", "monday.vhd"]);
    write(here, "disk.vhd", 3000, &[2; 3_000_000]);
    let tuesday = guest(here, "disk.vhd");
    done(here, &["clone", "disk.vhd", "copy.vhd"]);
    write(here, "copy.vhd", 0, &[3; 10]);
    let copy = guest(here, "copy.vhd");
    write(here, "disk.vhd", 31 << 20, &[4; 512]);
    let wednesday = guest(here, "disk.vhd");
    assert_eq!(names(here).len(), 6, "three volumes, two bases, the raw copy");
    assert_eq!(guest(here, "monday.vhd"), monday);
    done(here, &["compare", "monday.vhd", "monday.img"]);
    assert_ne!(tuesday, wednesday);

    // Without Monday, the two bases are a run with one child each way but the last.
    std::fs::remove_file(here.join("monday.vhd")).unwrap();
    let upper = json(here, &["info", "disk.vhd", "--chain"])[1]["file"].as_str().unwrap().to_owned();
    let merged = json(here, &["coalesce", &upper]);
    assert_eq!(merged["relinked"].as_array().unwrap().len(), 2);
    assert_eq!((guest(here, "disk.vhd"), guest(here, "copy.vhd")), (wednesday.clone(), copy));

    std::fs::remove_file(here.join("copy.vhd")).unwrap();
    done(here, &["coalesce", "disk.vhd"]);
    assert_eq!(names(here), ["disk.vhd", "monday.img"]);
    assert_eq!(guest(here, "disk.vhd"), wednesday);
    assert_eq!(done(here, &["check", "disk.vhd"]), "disk.vhd: nothing found\n");
}
