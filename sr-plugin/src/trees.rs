//! Which volumes may share data: `.sr.trees`, so that a question about one volume needs no look at all of them.
//!
//! A line for each group of volumes that are related, their keys escaped as in URIs, with spaces between. What several lines
//! name is one group. `*` is related to all: it stands for the parents that images have elsewhere, or that cannot be told,
//! of which nobody knows whose they are as well.
//!
//! ```text
//!   base one two          a tree
//!   * imported            its parent is in another folder
//!   two three             appended when `three` was made of `two`
//! ```
//!
//! It is a hint: whoever asks opens the volumes and sees what they share, so names too many harm nobody. None may be missing
//! that this plugin has made: who makes relatives appends them before (under `.sr.lock`), and the file is replaced only by
//! what a look under that lock has found. What others have made is missing until the next listing, as it is to the toolstack.
//! The file need not be there.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::{iter, mem};

use memchr::memmem::Finder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustix::fs::OFlags;
use vhd_core::{Files, Folder, MAX_CHAIN_DEPTH};

use crate::change::Locked;
use crate::failure::Failure;
use crate::metadata::is_key;
use crate::sr::{Sr, key_of};
use crate::store;

/// What is not escaped in a key.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Stands for all parents that are elsewhere; no key looks like that when it is escaped.
const ELSEWHERE: &str = "*";
/// Bytes of most keys, which are UUIDs, in a text.
const LENGTH_OF_KEY: usize = 37;
/// The most of a group that lines are searched for one by one.
const FEW: usize = 64;
/// Bytes that the file may have grown by before it is worth writing again.
const SLACK: usize = 4096;

fn escaped(key: &str) -> String {
    utf8_percent_encode(key, PLAIN).to_string()
}

/// The groups of volumes that a text tells of, each with more than one in it; as they are escaped there.
fn groups(text: &str) -> Vec<Vec<&str>> {
    let mut groups: Vec<Vec<&str>> = Vec::new();
    let mut group_of = HashMap::with_capacity(text.len() / LENGTH_OF_KEY);
    for line in text.lines() {
        let mut here = groups.len();
        groups.push(Vec::new());
        for key in line.split_ascii_whitespace() {
            let there = match group_of.entry(key) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    groups[here].push(key);
                    *entry.insert(here)
                }
            };
            if there != here {
                let (from, to) = if groups[here].len() > groups[there].len() { (there, here) } else { (here, there) };
                let moved = mem::take(&mut groups[from]);
                group_of.extend(moved.iter().map(|key| (*key, to)));
                groups[to].extend(moved);
                here = to;
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// The group of one key: itself, what is in a line with it, what is in a line with that; `None` where those are many, of
/// which each would take a search of its own.
fn small_group<'t>(text: &'t str, key: &'t str) -> Option<Vec<&'t str>> {
    let mut group = vec![key];
    let mut next = 0;
    while let Some(&key) = group.get(next) {
        let finder = Finder::new(key);
        let mut rest = text;
        while let Some(at) = finder.find(rest.as_bytes()).filter(|_| !rest.is_empty()) {
            let start = rest[..at].rfind('\n').map_or(0, |end| end + 1);
            let end = rest[at..].find('\n').map_or(rest.len(), |length| at + length);
            let line = &rest[start..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            // Else it is only a part of another.
            if line.split_ascii_whitespace().any(|word| word == key) {
                for word in line.split_ascii_whitespace() {
                    if !group.contains(&word) {
                        group.push(word);
                    }
                    if group.len() > FEW {
                        return None;
                    }
                }
            }
        }
        next += 1;
    }
    Some(group)
}

/// Finds whom a text tells to be a volume's relatives; `None` where that may be anybody.
fn relatives(text: &str, key: &str) -> Option<Vec<String>> {
    let ours = escaped(key);
    let mut found = BTreeSet::new();
    let small = small_group(text, &ours).zip(small_group(text, ELSEWHERE));
    for group in small.map_or_else(|| groups(text), |(ours, elsewhere)| vec![ours, elsewhere]) {
        let (is_ours, is_elsewhere) = (group.contains(&ours.as_str()), group.contains(&ELSEWHERE));
        if is_ours && is_elsewhere {
            return None;
        }
        if is_ours || is_elsewhere {
            found.extend(group.into_iter().filter(|other| *other != ours && *other != ELSEWHERE));
        }
    }
    Some(keys(found))
}

/// The keys that these are when they are not escaped. What can be none was written by nobody of us.
fn keys<'k>(escaped: impl IntoIterator<Item = &'k str>) -> Vec<String> {
    let decoded = escaped.into_iter().filter_map(|key| percent_decode_str(key).decode_utf8().ok());
    decoded.filter(|key| is_key(key)).map(Into::into).collect()
}

/// The trees of a folder.
struct Trees {
    /// The escaped keys of all volumes, and of images that cannot be read.
    volumes: BTreeSet<String>,
    /// The text that tells which of them are related, and no more.
    text: String,
}

impl Trees {
    fn of(folder: &Folder) -> Self {
        let mut volumes = BTreeSet::new();
        let mut groups: HashMap<_, Vec<String>> = HashMap::new();
        for (id, node) in folder.nodes().filter(|(_, node)| !node.hidden && node.disk_type.is_some()) {
            let Some(key) = key_of(&node.path).map(|key| escaped(&key)) else { continue };
            let chain = iter::successors(Some(id), |&node| folder.parent(node)).take(MAX_CHAIN_DEPTH);
            let lowest = chain.last().filter(|&lowest| folder.node(lowest).parent.is_none());
            volumes.insert(key.clone());
            groups.entry(lowest).or_default().push(key);
        }
        // One that cannot be read now may be whole again before the next look, and anybody's.
        for key in folder.damaged().iter().filter_map(|file| key_of(&file.path)).map(|key| escaped(&key)) {
            volumes.insert(key.clone());
            groups.entry(None).or_default().push(key);
        }
        if let Some(elsewhere) = groups.get_mut(&None) {
            elsewhere.push(ELSEWHERE.into());
        }
        let mut groups: Vec<Vec<String>> = groups.into_values().filter(|group| group.len() > 1).collect();
        for group in &mut groups {
            group.sort_unstable();
        }
        groups.sort_unstable();
        Self { volumes, text: groups.into_iter().map(|group| group.join(" ") + "\n").collect() }
    }

    /// Tells whether a text says the same of the volumes that there are.
    fn are_told_by(&self, text: &str) -> bool {
        let told = |text| -> HashSet<Vec<&str>> {
            let of_volumes = groups(text).into_iter().map(|mut group: Vec<&str>| {
                group.retain(|key| *key == ELSEWHERE || self.volumes.contains(*key));
                group.sort_unstable();
                group
            });
            of_volumes.filter(|group| group.len() > 1).collect()
        };
        self.text == text || told(text) == told(&self.text)
    }

    /// Tells whether a text is much longer than it need be.
    fn need_less_than(&self, text: &str) -> bool {
        text.len() > 2 * self.text.len() + SLACK
    }
}

impl Sr {
    fn trees_path(&self) -> PathBuf {
        self.folder().join(".sr.trees")
    }

    /// What is in the file; `None` where there is none that can be read.
    fn trees_text(&self) -> Option<String> {
        let bytes = store::read_bytes(&self.trees_path()).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Lists the volumes that may share a base with one: those of its tree, and those of trees whose lowest image has a
    /// parent elsewhere. Some of them may be gone.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn relatives(&self, key: &str) -> Result<Vec<String>, Failure> {
        let text = self.trees_text();
        if let Some(relatives) = text.as_ref().and_then(|text| relatives(text, key)) {
            return Ok(relatives);
        }
        let folder = Folder::scan(self.folder(), Files::Images)?;
        let trees = Trees::of(&folder);
        if text.is_none() {
            // Where it cannot be written now, the next call looks again.
            let _ = self.write_trees(&folder);
        }
        let ours = escaped(key);
        let all = || keys(trees.volumes.iter().map(String::as_str).filter(|other| *other != ours));
        Ok(relatives(&trees.text, key).unwrap_or_else(all))
    }

    /// Replaces the file, where there is one, if it does not tell what a look has found; where that is not possible now,
    /// removes it.
    pub(crate) fn correct_trees(&self, folder: &Folder) {
        let Some(text) = self.trees_text() else { return };
        let trees = Trees::of(folder);
        let is_right = trees.are_told_by(&text);
        if is_right && !trees.need_less_than(&text) {
            return;
        }
        let is_written = self.write_trees(folder).unwrap_or(false);
        if !is_right && !is_written {
            // Where nothing at all can be written there is nobody who could be told.
            let _ = self.forget_trees();
        }
    }

    /// Writes down how the volumes are related, after another look since the one that found `folder`; tells whether it could,
    /// as no other call is changing something.
    fn write_trees(&self, folder: &Folder) -> Result<bool, Failure> {
        // Of what cannot be finished yet nobody knows what will come of it.
        let Some(_locked) = self.try_lock()?.filter(Locked::is_settled) else { return Ok(false) };
        let trees = Trees::of(&self.look_again(folder)?);
        store::write_bytes(&self.trees_path(), trees.text.as_bytes())?;
        Ok(true)
    }

    /// Removes what is written down: whoever asks next looks at all volumes again. That needs no lock.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn forget_trees(&self) -> Result<(), Failure> {
        store::remove(&self.trees_path())
    }
}

impl Locked<'_> {
    /// Writes down that two volumes are going to share data, where anything is written down.
    ///
    /// # Errors
    /// What the system answers if what would be wrong now can neither be added to nor removed.
    pub(crate) fn relate(&self, one: &str, other: &str) -> Result<(), Failure> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = File::options().append(true).custom_flags(flags.bits().cast_signed()).open(self.sr().trees_path());
        // A line before it may have been cut short.
        let line = format!("\n{} {}", escaped(one), escaped(other));
        match opened.and_then(|mut file| file.write_all(line.as_bytes())) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(_) => self.sr().forget_trees(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(text: &str) -> Vec<Vec<&str>> {
        let mut groups = groups(text);
        for group in &mut groups {
            group.sort_unstable();
        }
        groups.sort_unstable();
        groups
    }

    #[test]
    fn what_several_lines_name_is_one_group() {
        assert_eq!(sorted(""), Vec::<Vec<&str>>::new());
        assert_eq!(sorted("a\n\nb b\n"), Vec::<Vec<&str>>::new());
        assert_eq!(sorted("a b c\nd e\na b"), [vec!["a", "b", "c"], vec!["d", "e"]]);
        assert_eq!(
            sorted("a b\nc d\ne f\nd e\n\nx y\ny x z y\nb f g b"),
            [vec!["a", "b", "c", "d", "e", "f", "g"], vec!["x", "y", "z"]]
        );
    }

    #[test]
    fn the_group_of_one_is_found_without_the_others() {
        let text = "aa b c\nd aab\nb* e\n\nx c y\ne z";
        for (key, expected) in [
            ("aa", vec!["aa", "b", "c", "x", "y"]),
            ("y", vec!["aa", "b", "c", "x", "y"]),
            ("a", vec!["a"]),
            ("z", vec!["b*", "e", "z"]),
        ] {
            let mut group = small_group(text, key).unwrap();
            group.sort_unstable();
            assert_eq!(group, expected);
        }
        let line = |count: usize| (0..count).map(|key| format!("k{key} ")).collect::<String>();
        assert_eq!(small_group(&line(FEW), "k7").map(|group| group.len()), Some(FEW));
        let many = line(FEW + 1);
        assert_eq!(small_group(&many, "k7"), None);
        assert_eq!(relatives(&many, "k7").map(|others| others.len()), Some(FEW), "they are found all the same");
    }

    #[test]
    fn whoever_has_a_parent_elsewhere_may_be_related_to_all() {
        let text = "a b\n* c d\nc e\nf%20g h%2A\n../x b";
        let of = |key| relatives(text, key);
        let found = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
        assert_eq!(of("a"), found(&["b", "c", "d", "e"]));
        assert_eq!(of("f g"), found(&["c", "d", "e", "h*"]));
        assert_eq!(of("unknown"), found(&["c", "d", "e"]));
        assert_eq!((of("c"), of("e")), (None, None));
        assert_eq!(of("*"), found(&["c", "d", "e"]), "a key that is called so is another");
    }

    #[test]
    fn only_volumes_that_there_are_count() {
        let trees =
            |text: &str| Trees { volumes: ["a", "b", "c", "d"].map(str::to_owned).into(), text: text.to_owned() };
        let right = trees("* d\na b\n");
        for same in ["* d\na b\n", "b gone\ngone a\n* lost d", "a b\nc gone\nd *"] {
            assert!(right.are_told_by(same), "{same}");
        }
        for other in ["", "a b", "* d\na b c", "* d a b", "* d", "* d\na gone\nb"] {
            assert!(!right.are_told_by(other), "{other}");
        }
        assert!(right.need_less_than(&"a b\n".repeat(SLACK)));
    }
}
