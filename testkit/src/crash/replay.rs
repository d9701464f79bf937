//! Turns the calls of a trace into operations on the model.

mod names;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::content;
use super::operation::{Change, Operation};
use super::processes::{Processes, Shared};
use super::strace::{self, Call, Moment};
use super::tree::{DataChange, Inode, Portion, Tree};

/// The model while it follows a trace.
pub(super) struct Replay {
    /// The folder, by the paths that programs may call it.
    folders: Vec<PathBuf>,
    pub(super) tree: Tree,
    next_inode: u32,
    processes: Processes,
    pub(super) operations: Vec<Operation>,
    /// How many operations there were when a sync began, by the number of the call.
    began: HashMap<usize, usize>,
}

impl Replay {
    pub(super) fn new(folder: &Path, cwd: &Path, tree: Tree) -> Self {
        let folders =
            [folder.canonicalize(), std::path::absolute(folder)].map(|path| path.expect("the folder is there"));
        let next_inode = tree.names.values().map(|entry| entry.inode.0 + 1).max().unwrap_or(1);
        Self {
            folders: folders.into(),
            tree,
            next_inode,
            processes: Processes::new(cwd.canonicalize().expect("the working directory is there")),
            operations: Vec::new(),
            began: HashMap::new(),
        }
    }

    /// Follows a trace from beginning to end.
    pub(super) fn run(&mut self, trace: &str) {
        let (calls, moments) = strace::parse(trace);
        for moment in moments {
            match moment {
                Moment::Start(number) => self.start(number, &calls[number]),
                Moment::End(number) => {
                    if let Some(returned) = calls[number].returned() {
                        self.end(number, &calls[number], returned);
                    }
                }
            }
        }
    }

    /// Does what takes effect when a call begins, or could: descriptors are free, children run, while it still lasts.
    fn start(&mut self, number: usize, call: &Call<'_>) {
        let arguments = call.arguments();
        match call.name {
            "fsync" | "fdatasync" | "syncfs" | "sync" => {
                self.began.insert(number, self.operations.len());
            }
            "close" => {
                let descriptor = strace::descriptor(arguments[0]);
                self.processes.close(call.thread, descriptor, descriptor);
            }
            "close_range" if !arguments[2].contains("CLOEXEC") => {
                self.processes.close(call.thread, strace::number(arguments[0]), strace::number(arguments[1]));
            }
            "clone" | "clone3" | "fork" | "vfork" => {
                if let Some(child) = call.returned() {
                    let child = u32::try_from(child).expect("threads have small numbers");
                    self.processes.start(call.thread, child, &arguments.concat());
                }
            }
            _ => {}
        }
    }

    /// Does what has taken effect when a call ends.
    fn end(&mut self, number: usize, call: &Call<'_>, returned: u64) {
        let arguments = call.arguments();
        match call.name {
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" => self.write(call, &arguments, returned),
            "read" | "readv" => {
                if let Some(file) = self.open_file(call, arguments[0]) {
                    file.borrow_mut().position += returned;
                }
            }
            "lseek" => {
                if let Some(file) = self.open_file(call, arguments[0]) {
                    file.borrow_mut().position = returned;
                }
            }
            "ftruncate" => {
                if let Some(file) = self.open_file(call, arguments[0]) {
                    self.set_len(file.borrow().inode, strace::number(arguments[1]));
                }
            }
            "fallocate" => self.fallocate(call, &arguments),
            "copy_file_range" => {
                let from = (arguments[0], arguments[1]);
                self.copy(call, from, (arguments[2], arguments[3]), returned);
            }
            "sendfile" => self.copy(call, (arguments[1], arguments[2]), (arguments[0], "NULL"), returned),
            "ioctl" => self.ioctl(call, &arguments),
            "fsync" | "fdatasync" => {
                if let Some(file) = self.open_file(call, arguments[0]) {
                    self.sync(call.name, Some(file.borrow().inode), self.began[&number]);
                }
            }
            "sync" => self.sync("sync", None, self.began[&number]),
            "syncfs" if self.open_file(call, arguments[0]).is_some() => self.sync("syncfs", None, self.began[&number]),
            "dup" | "dup2" | "dup3" => self.duplicate(call, arguments[0], returned),
            "fcntl" if arguments[1].starts_with("F_DUPFD") => self.duplicate(call, arguments[0], returned),
            "fcntl" if arguments[1] == "F_SETFL" => {
                if let Some(file) = self.open_file(call, arguments[0]) {
                    file.borrow_mut().append = arguments[2].contains("O_APPEND");
                }
            }
            "mmap" if arguments[2].contains("PROT_WRITE") && arguments[3].contains("MAP_SHARED") => {
                let file = if arguments[4] == "-1" { None } else { self.open_file(call, arguments[4]) };
                assert!(file.is_none(), "writes to mapped memory cannot be recorded");
            }
            "splice" => assert!(self.open_file(call, arguments[2]).is_none(), "splice is not modelled"),
            "chdir" => self.processes.change_cwd(call.thread, Path::new(&strace::text(arguments[0]))),
            "fchdir" => {
                let path = strace::path_of_descriptor(arguments[0]).expect("processes work in folders");
                self.processes.change_cwd(call.thread, Path::new(&path));
            }
            "io_uring_setup" | "io_submit" => panic!("{} is not modelled", call.name),
            _ => self.end_of_names(call, &arguments, returned),
        }
    }

    /// Gives what a descriptor argument is open on, if that is in the folder.
    fn open_file(&mut self, call: &Call<'_>, argument: &str) -> Option<Shared> {
        let descriptor = strace::descriptor(argument);
        let file = self.processes.find(call.thread, descriptor);
        if !argument.contains('<') {
            return file;
        }
        let path = strace::path_of_descriptor(argument);
        if path.is_some_and(|path| Path::new(&path).starts_with(&self.folders[0])) {
            assert!(file.is_some(), "nobody has seen descriptor {descriptor} being opened for {call:?}");
            file
        } else {
            // Closed unseen, by `exec` for instance.
            self.processes.set(call.thread, descriptor, None);
            None
        }
    }

    fn duplicate(&mut self, call: &Call<'_>, argument: &str, new: u64) {
        let file = self.open_file(call, argument);
        self.processes.set(call.thread, new, file);
    }

    fn len(&self, inode: Inode) -> u64 {
        self.tree.files.get(&inode).map_or(0, |content| content.len())
    }

    /// Notes a change of a file, and makes it.
    fn change(&mut self, inode: Inode, change: DataChange, what: &str) {
        self.tree.apply_data(inode, &change, &Portion::Whole);
        let text = format!("{what} {}", self.name_of(inode));
        self.operations.push(Operation { change: Change::Data { inode, change }, text });
    }

    fn write_at(&mut self, inode: Inode, at: u64, bytes: &[u8], what: &str) {
        if !bytes.is_empty() {
            let pieces = content::pieces(at, bytes).into();
            self.change(inode, DataChange::Write { pieces }, &format!("{what} {} bytes at {at} of", bytes.len()));
        }
    }

    fn set_len(&mut self, inode: Inode, len: u64) {
        let old = self.len(inode);
        if len != old {
            self.change(inode, DataChange::SetLen { old, len }, &format!("set the length {len} (was {old}) of"));
        }
    }

    fn sync(&mut self, what: &str, inode: Option<Inode>, covers: usize) {
        let name = inode.map_or("everything".to_owned(), |inode| self.name_of(inode));
        self.operations.push(Operation { change: Change::Sync { inode, covers }, text: format!("{what} {name}") });
    }

    fn write(&mut self, call: &Call<'_>, arguments: &[&str], returned: u64) {
        let Some(file) = self.open_file(call, arguments[0]) else { return };
        let mut bytes =
            if call.name.contains('v') { strace::vector(arguments[1]) } else { strace::bytes(arguments[1]) };
        bytes.truncate(returned as usize);
        assert_eq!(bytes.len() as u64, returned, "all that was written is in the trace");
        assert!(arguments.get(4).is_none_or(|flags| *flags == "0"), "flags of pwritev2 are not modelled");
        let mut file = file.borrow_mut();
        let explicit =
            if call.name.starts_with('p') { arguments.get(3).filter(|offset| **offset != "-1") } else { None };
        // Linux appends even where an offset is given.
        let at = match explicit {
            _ if file.append => self.len(file.inode),
            Some(offset) => strace::number(offset),
            None => file.position,
        };
        if explicit.is_none() {
            file.position = at + returned;
        }
        self.write_at(file.inode, at, &bytes, "write");
    }

    fn fallocate(&mut self, call: &Call<'_>, arguments: &[&str]) {
        let Some(file) = self.open_file(call, arguments[0]) else { return };
        let (mode, inode) = (arguments[1], file.borrow().inode);
        let (start, len) = (strace::number(arguments[2]), self.len(inode));
        let end = start + strace::number(arguments[3]);
        let known = ["0", "FALLOC_FL_KEEP_SIZE", "FALLOC_FL_PUNCH_HOLE", "FALLOC_FL_ZERO_RANGE"];
        assert!(mode.split('|').all(|flag| known.contains(&flag)), "fallocate {mode} is not modelled");
        if mode.contains("PUNCH_HOLE") || mode.contains("ZERO_RANGE") {
            let range = start.min(len)..end.min(len);
            if !range.is_empty() {
                let what = format!("zero {range:?} of");
                self.change(inode, DataChange::Zero { pieces: content::zeros(range).into() }, &what);
            }
        }
        if !mode.contains("KEEP_SIZE") {
            self.set_len(inode, len.max(end));
        }
    }

    /// Copies inside the kernel; an offset of `NULL` is the position of the descriptor.
    fn copy(&mut self, call: &Call<'_>, from: (&str, &str), to: (&str, &str), count: u64) {
        let source = self.open_file(call, from.0);
        let target = self.open_file(call, to.0);
        let place = |file: &Option<Shared>, offset: &str| match (offset, file) {
            ("NULL", Some(file)) => {
                let mut file = file.borrow_mut();
                let at = if file.append { None } else { Some(file.position) };
                file.position += count;
                at
            }
            ("NULL", None) => None,
            _ => Some(strace::number(offset)),
        };
        let (read_at, write_at) = (place(&source, from.1), place(&target, to.1));
        let Some(target) = target else { return };
        let bytes = match source {
            Some(source) => {
                let read_at = read_at.expect("who reads does not append");
                self.tree.content(source.borrow().inode).read(read_at..read_at + count)
            }
            None => {
                let read_at = read_at.expect("copies from other folders give an offset, or are not modelled");
                outside(from.0, read_at, count)
            }
        };
        let inode = target.borrow().inode;
        let at = write_at.unwrap_or_else(|| self.len(inode));
        target.borrow_mut().position = if to.1 == "NULL" { at + count } else { target.borrow().position };
        self.write_at(inode, at, &bytes, "copy");
    }

    fn ioctl(&mut self, call: &Call<'_>, arguments: &[&str]) {
        let Some(target) = self.open_file(call, arguments[0]) else { return };
        let inode = target.borrow().inode;
        let field = |name: &str| {
            let (_, rest) = arguments[2].split_once(name).expect("the fields of a clone are printed");
            rest.trim_start_matches('=').split([',', '}']).next().expect("split gives a first part")
        };
        // The old name of the request is printed, too.
        let request = arguments[1].rsplit(' ').next().expect("split gives a last part");
        let (source, start, count, at) = match request {
            "FICLONE" => (arguments[2], 0, 0, 0),
            "FICLONERANGE" => {
                let numbers = ["src_offset", "src_length", "dest_offset"].map(|name| strace::number(field(name)));
                (field("src_fd"), numbers[0], numbers[1], numbers[2])
            }
            _ => return,
        };
        let source = self.open_file(call, source).expect("clones from other folders are not modelled");
        let source = self.tree.content(source.borrow().inode);
        let count = if count == 0 { source.len() - start } else { count };
        self.write_at(inode, at, &source.read(start..start + count), "clone");
    }
}

/// Reads from a file that is not in the folder, and that nobody changes.
fn outside(argument: &str, at: u64, count: u64) -> Vec<u8> {
    let path = strace::path_of_descriptor(argument).expect("copies are from files");
    let mut bytes = vec![0; count as usize];
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, at));
    read.unwrap_or_else(|error| panic!("{path}: {error}"));
    bytes
}
