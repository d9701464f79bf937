//! The storage manager's command lines on file systems that can less: texts and exit codes are the same.

use testkit::poorfs::{Errno, PoorFs, Refusal};

use crate::life_cycle::{grown, merged_away};
use crate::program::{done, ended, files, refused, write};

#[test]
fn lives_without_any_one_ability() {
    for refusal in Refusal::BEARABLE {
        testkit::tell!("without {refusal}");
        merged_away(PoorFs::new(&[refusal]).path());
    }
}

#[test]
fn lives_without_all_of_them() {
    merged_away(PoorFs::new(&Refusal::BEARABLE).path());
    grown(PoorFs::new(&Refusal::BEARABLE).path());
}

#[test]
fn without_locks_what_changes_an_image_says_so_and_changes_nothing() {
    let here = tempfile::tempdir().unwrap();
    done(here.path(), &["create", "--debug", "-n", "base.vhd", "-s", "4"]);
    done(here.path(), &["snapshot", "--debug", "-n", "disk.vhd", "-p", "base.vhd", "-e"]);
    write(here.path(), "disk.vhd", 512, &[1; 512]);
    for errno in [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP] {
        let poor = PoorFs::new(&[Refusal::Flock(errno)]);
        for name in ["base.vhd", "disk.vhd"] {
            std::fs::copy(here.path().join(name), poor.real().join(name)).unwrap();
        }
        let before = files(poor.path());
        for args in [
            &["snapshot", "-n", "new.vhd", "-p", "disk.vhd"][..],
            &["coalesce", "-n", "disk.vhd"],
            &["set", "-n", "disk.vhd", "-f", "hidden", "-v", "1"],
            &["modify", "-n", "disk.vhd", "-p", "base.vhd"],
            &["resize", "-n", "disk.vhd", "-s", "8", "-j", "journal"],
        ] {
            // What the system said is what the program ends with.
            let said = refused(poor.path(), args, errno.raw_os_error());
            assert!(said.contains("its file system has no file locks (flock)"), "{args:?}: {said}");
            assert_eq!(files(poor.path()), before, "{args:?}");
        }
        // Looking needs no lock.
        assert_eq!(done(poor.path(), &["query", "-v", "-n", "disk.vhd"]), "4\n");
        assert_eq!(ended(poor.path(), &["check", "-n", "disk.vhd"], 0).0, "disk.vhd is valid\n");
        done(poor.path(), &["create", "-n", "other.vhd", "-s", "4"]);
    }
}
