//! Real folders, read into the model and written from it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::content::Content;
use super::tree::{Entry, Inode, Place, Tree};

/// Reads all that is in a folder, at any depth.
pub(super) fn read(folder: &Path) -> Tree {
    let mut tree = Tree::default();
    read_into(folder, Inode::ROOT, &mut tree, &mut HashMap::new());
    tree
}

fn read_into(folder: &Path, inode: Inode, tree: &mut Tree, known: &mut HashMap<u64, Inode>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder can be listed").path()).collect();
    paths.sort();
    for path in paths {
        let metadata = path.symlink_metadata().expect("the file is still there");
        assert!(metadata.is_file() || metadata.is_dir(), "{}: only files and folders are modelled", path.display());
        let next = Inode(u32::try_from(known.len() + 1).expect("few files"));
        let found = *known.entry(metadata.ino()).or_insert(next);
        let name = path.file_name().and_then(|name| name.to_str()).expect("file names are UTF-8");
        let place = Place { folder: inode, name: name.into() };
        tree.names.insert(place, Entry { inode: found, is_folder: metadata.is_dir() });
        if metadata.is_dir() {
            read_into(&path, found, tree, known);
        } else if found == next {
            tree.files.insert(found, Arc::new(Content::of(&fs::read(&path).expect("the file can be read"))));
        }
    }
}

/// When files were last changed, and the identity of what they held then.
pub(super) type Times = HashMap<Inode, (SystemTime, (u64, u64))>;

/// Reads when the files of a folder, which the model has been read from, were last changed.
pub(super) fn times(folder: &Path, tree: &Tree) -> Times {
    let time = |(path, entry): (String, Entry)| {
        let modified = folder.join(path).metadata().and_then(|metadata| metadata.modified());
        (entry.inode, (modified.expect("the file is still there"), tree.content(entry.inode).identity()))
    };
    tree.walk().into_iter().filter(|(_, entry)| !entry.is_folder).map(time).collect()
}

/// Makes a folder that holds what the model does, names for one file as hard links. Files that hold what they held at
/// one of `times` were last changed then.
pub(super) fn write(tree: &Tree, times: &Times, folder: &Path) {
    let path_of = |path: &str| folder.join(path);
    fs::create_dir_all(folder).expect("the folder can be made");
    let mut written: HashMap<Inode, PathBuf> = HashMap::new();
    for (path, entry) in tree.walk() {
        let path = path_of(&path);
        if entry.is_folder {
            fs::create_dir(&path).expect("the folder is new");
        } else if let Some(first) = written.get(&entry.inode) {
            fs::hard_link(first, &path).expect("the name is new");
        } else {
            let file = File::create_new(&path).expect("the file is new");
            if let Some(content) = tree.files.get(&entry.inode) {
                file.set_len(content.len()).expect("there is room");
                for (at, bytes) in content.data() {
                    file.write_all_at(&bytes, at).expect("there is room");
                }
            }
            let identity = tree.content(entry.inode).identity();
            if let Some((time, _)) = times.get(&entry.inode).filter(|(_, then)| *then == identity) {
                file.set_modified(*time).expect("the file is ours");
            }
            written.insert(entry.inode, path);
        }
    }
}
