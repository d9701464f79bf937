//! The calls that deal in names.

use std::cell::RefCell;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::Replay;
use crate::crash::operation::{Change, Operation};
use crate::crash::processes::{OpenFile, Shared};
use crate::crash::strace::{self, Call};
use crate::crash::tree::{Entry, Inode, NameChange, Place};

/// What a path argument means.
#[derive(Debug)]
enum Located {
    /// Something outside the folder.
    Outside,
    /// The folder itself.
    Root,
    /// A name in it, there or not.
    Name(Place),
    /// What a descriptor is open on.
    Open(Inode),
}

impl Replay {
    /// Does what has taken effect when a call ends that deals in names.
    pub(super) fn end_of_names(&mut self, call: &Call<'_>, arguments: &[&str], returned: u64) {
        let now = "AT_FDCWD";
        match call.name {
            "open" => self.open(call, now, arguments[0], arguments[1], returned),
            "creat" => self.open(call, now, arguments[0], "O_CREAT|O_WRONLY|O_TRUNC", returned),
            "openat" | "openat2" => self.open(call, arguments[0], arguments[1], arguments[2], returned),
            "truncate" => {
                let located = self.locate(call, now, arguments[0]);
                if let Some(entry) = self.existing(&located) {
                    self.set_len(entry.inode, strace::number(arguments[1]));
                }
            }
            "link" => self.link(call, (now, arguments[0]), (now, arguments[1])),
            "linkat" => self.link(call, (arguments[0], arguments[1]), (arguments[2], arguments[3])),
            "rename" => self.rename(call, (now, arguments[0]), (now, arguments[1]), "0"),
            "renameat" => self.rename(call, (arguments[0], arguments[1]), (arguments[2], arguments[3]), "0"),
            "renameat2" => self.rename(call, (arguments[0], arguments[1]), (arguments[2], arguments[3]), arguments[4]),
            "unlink" | "rmdir" => self.remove(call, now, arguments[0]),
            "unlinkat" => self.remove(call, arguments[0], arguments[1]),
            "mkdir" => self.make_folder(call, now, arguments[0]),
            "mkdirat" => self.make_folder(call, arguments[0], arguments[1]),
            "symlink" | "mknod" | "symlinkat" | "mknodat" => {
                let (folder, path) = match call.name {
                    "symlink" => (now, arguments[1]),
                    "symlinkat" => (arguments[1], arguments[2]),
                    "mknod" => (now, arguments[0]),
                    _ => (arguments[0], arguments[1]),
                };
                let located = self.locate(call, folder, path);
                assert!(matches!(located, Located::Outside), "{} is not modelled", call.name);
            }
            _ => {}
        }
    }

    /// Finds what a path argument means, beside the descriptor of a folder.
    fn locate(&mut self, call: &Call<'_>, folder: &str, path: &str) -> Located {
        let path = PathBuf::from(strace::text(path));
        let descriptor = if path.as_os_str().is_empty() {
            Some(folder)
        } else {
            let fd = path.parent().is_some_and(|parent| parent.starts_with("/proc") && parent.ends_with("fd"));
            path.file_name().and_then(|name| name.to_str()).filter(|_| fd)
        };
        if let Some(descriptor) = descriptor {
            let open = self.processes.find(call.thread, strace::descriptor(descriptor));
            return open.map_or(Located::Outside, |file| Located::Open(file.borrow().inode));
        }
        let base = strace::path_of_descriptor(folder).map_or_else(|| self.processes.cwd(call.thread), PathBuf::from);
        self.locate_path(&base.join(path))
    }

    fn locate_path(&self, path: &Path) -> Located {
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::ParentDir => _ = plain.pop(),
                Component::CurDir => {}
                other => plain.push(other),
            }
        }
        let Some(inside) = self.folders.iter().find_map(|folder| plain.strip_prefix(folder).ok()) else {
            return Located::Outside;
        };
        let inside = inside.to_str().expect("file names are UTF-8");
        if inside.is_empty() {
            return Located::Root;
        }
        let (folder, name) = inside.rsplit_once('/').unwrap_or(("", inside));
        let folder = self.tree.find(folder).unwrap_or_else(|| panic!("{inside}: its folder is unknown"));
        Located::Name(Place { folder: folder.inode, name: name.into() })
    }

    /// Gives what is there; `None` outside the folder.
    fn existing(&self, located: &Located) -> Option<Entry> {
        match located {
            Located::Outside => None,
            Located::Root => Some(Entry { inode: Inode::ROOT, is_folder: true }),
            Located::Open(inode) => Some(Entry { inode: *inode, is_folder: false }),
            Located::Name(place) => match self.tree.names.get(place) {
                Some(entry) => Some(*entry),
                None => panic!("{place:?} was used, and nobody has seen it being made"),
            },
        }
    }

    fn new_inode(&mut self) -> Inode {
        self.next_inode += 1;
        Inode(self.next_inode - 1)
    }

    /// Gives a path of a file, for messages.
    pub(super) fn name_of(&self, inode: Inode) -> String {
        let found = self.tree.walk().into_iter().find(|(_, entry)| entry.inode == inode);
        match found {
            Some((path, _)) => path,
            None if inode == Inode::ROOT => "the folder".to_owned(),
            None => format!("the file without a name ({})", inode.0),
        }
    }

    /// Notes a change of names, and makes it.
    fn change_name(&mut self, change: NameChange, text: String) {
        assert!(self.tree.apply_name(&change), "{change:?} succeeded, but not in the model");
        self.operations.push(Operation { change: Change::Name(change), text });
    }

    fn path_of(&self, place: &Place) -> String {
        if place.folder == Inode::ROOT {
            place.name.to_string()
        } else {
            format!("{}/{}", self.name_of(place.folder), place.name)
        }
    }

    fn open(&mut self, call: &Call<'_>, folder: &str, path: &str, flags: &str, descriptor: u64) {
        let mut located = self.locate(call, folder, path);
        if matches!(located, Located::Outside)
            && !strace::text(path).starts_with("/proc/")
            && let Some(path) = call.returned_path()
        {
            // Symbolic links on the way to the folder.
            located = self.locate_path(Path::new(&path));
        }
        let has = |flag: &str| flags.contains(flag);
        let inode = match &located {
            Located::Outside => None,
            _ if has("O_TMPFILE") => Some(self.new_inode()),
            Located::Name(place) if has("O_CREAT") && !self.tree.names.contains_key(place) => {
                let entry = Entry { inode: self.new_inode(), is_folder: false };
                let text = format!("create {}", self.path_of(place));
                self.change_name(NameChange::Add { place: place.clone(), entry }, text);
                Some(entry.inode)
            }
            _ => self.existing(&located).map(|entry| entry.inode),
        };
        let file: Option<Shared> = inode.map(|inode| {
            assert!(!has("O_SYNC") && !has("O_DSYNC"), "{flags} is not modelled");
            if has("O_TRUNC") {
                self.set_len(inode, 0);
            }
            Rc::new(RefCell::new(OpenFile { inode, position: 0, append: has("O_APPEND") }))
        });
        self.processes.set(call.thread, descriptor, file);
    }

    fn link(&mut self, call: &Call<'_>, from: (&str, &str), to: (&str, &str)) {
        let source = self.locate(call, from.0, from.1);
        match (self.existing(&source), self.locate(call, to.0, to.1)) {
            (None, Located::Outside) => {}
            (Some(entry), Located::Name(place)) => {
                let text = format!("link {} as {}", self.name_of(entry.inode), self.path_of(&place));
                self.change_name(NameChange::Add { place, entry }, text);
            }
            other => panic!("links in and out of the folder are not modelled: {other:?}"),
        }
    }

    fn rename(&mut self, call: &Call<'_>, from: (&str, &str), to: (&str, &str), flags: &str) {
        let from = self.locate(call, from.0, from.1);
        let to = self.locate(call, to.0, to.1);
        let (from_place, to_place) = match (&from, &to) {
            (Located::Outside, Located::Outside) => return,
            (Located::Name(from), Located::Name(to)) => (from.clone(), to.clone()),
            other => panic!("moves in and out of the folder are not modelled: {other:?}"),
        };
        let entry = self.existing(&from).expect("it is in the folder");
        let other = self.tree.names.get(&to_place).copied();
        let text = format!("{} {} to {}", call.name, self.path_of(&from_place), self.path_of(&to_place));
        let (from, to) = (from_place, to_place);
        if flags.contains("RENAME_EXCHANGE") {
            let other = other.expect("exchanged names are both there");
            self.change_name(NameChange::Exchange { from, entry, to, other }, text);
        } else if other != Some(entry) {
            // (POSIX: names of one file stay as they are.)
            self.change_name(NameChange::Move { from, entry, to, replaced: other }, text);
        }
    }

    fn remove(&mut self, call: &Call<'_>, folder: &str, path: &str) {
        let located = self.locate(call, folder, path);
        if let (Some(entry), Located::Name(place)) = (self.existing(&located), located) {
            let text = format!("remove {}", self.path_of(&place));
            self.change_name(NameChange::Remove { place, entry }, text);
        }
    }

    fn make_folder(&mut self, call: &Call<'_>, folder: &str, path: &str) {
        if let Located::Name(place) = self.locate(call, folder, path) {
            let entry = Entry { inode: self.new_inode(), is_folder: true };
            let text = format!("make folder {}", self.path_of(&place));
            self.change_name(NameChange::Add { place, entry }, text);
        }
    }
}
