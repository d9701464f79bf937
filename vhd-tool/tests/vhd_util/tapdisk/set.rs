//! A leaf that tapdisk has open is hidden, or shown again.

use std::fs;

use testkit::scratch;

use super::guest::{BLOCK, Content, Guest};
use crate::program::{done, ended};

/// At each moment of a guest's first write to a block, and before and after it: only footers that are there change.
#[test]
fn changes_no_byte_but_of_footers() {
    for (gib, moment) in [1, 50, 60].into_iter().flat_map(|gib| (0..5).map(move |moment| (gib, moment))) {
        let case = format!("{gib} GiB, moment {moment}");
        let folder = scratch::folder();
        let (here, leaf) = (folder.path(), folder.path().join("leaf.vhd"));
        done(here, &["create", "-n", "base.vhd", "-s", &(gib << 10).to_string()]);
        done(here, &["snapshot", "-n", "leaf.vhd", "-p", "base.vhd"]);
        let mut guest = Guest::start(&leaf, Content::new(gib << 21));
        guest.fill(1);
        let mut moments = 0;
        let mut set = || {
            let before = fs::read(&leaf).expect("the leaf is there");
            if moments == moment {
                ended(here, &["set", "--debug", "-n", "leaf.vhd", "-f", "hidden", "-v", "1"], 0);
                let after = fs::read(&leaf).expect("the leaf is there");
                assert_eq!(after.len(), before.len(), "{case}: the length of the file");
                let sectors = (0..before.len()).step_by(512);
                let changed = sectors.filter(|&at| before[at..at + 512] != after[at..at + 512]);
                let is_footer = |at: usize| before[at..].starts_with(b"conectix");
                let elsewhere: Vec<usize> = changed.filter(|&at| !is_footer(at)).collect();
                assert_eq!(elsewhere, [0; 0], "{case}: sectors that are no footer");
                assert_eq!(after[85], 1, "{case}: it is hidden");
            }
            moments += 1;
        };
        set();
        guest.write_beside(9 * BLOCK + 100..9 * BLOCK + 200, &mut set);
        guest.assert(&case);
        guest.fill(9);
        guest.touch();
        guest.assert(&case);
        guest.disk.pause().expect("the leaf is writable");
        guest.content.assert_file(&case, &leaf);
        done(here, &["check", "-n", "leaf.vhd"]);
    }
}
