//! What the file descriptors of the traced processes are open on, and the folders that the processes work in.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::tree::Inode;

/// An open file, which several descriptors may share.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) inode: Inode,
    pub(super) position: u64,
    pub(super) append: bool,
}

/// A descriptor's open file.
pub(super) type Shared = Rc<RefCell<OpenFile>>;

/// What a thread knows; threads of one process share both.
#[derive(Clone, Debug)]
struct Process {
    table: Rc<RefCell<HashMap<u64, Shared>>>,
    cwd: Rc<RefCell<PathBuf>>,
}

/// All threads.
#[derive(Debug)]
pub(super) struct Processes {
    threads: HashMap<u32, Process>,
    /// The working directory of the first.
    cwd: PathBuf,
}

impl Processes {
    pub(super) fn new(cwd: PathBuf) -> Self {
        Self { threads: HashMap::new(), cwd }
    }

    fn of(&mut self, thread: u32) -> &Process {
        let new = || Process { table: Rc::default(), cwd: Rc::new(RefCell::new(self.cwd.clone())) };
        self.threads.entry(thread).or_insert_with(new)
    }

    /// Gives what a descriptor is open on, if that is of interest.
    pub(super) fn find(&mut self, thread: u32, descriptor: u64) -> Option<Shared> {
        self.of(thread).table.borrow().get(&descriptor).cloned()
    }

    /// Notes what a descriptor is open on from now on; `None` for what is of no interest.
    pub(super) fn set(&mut self, thread: u32, descriptor: u64, file: Option<Shared>) {
        let mut table = self.of(thread).table.borrow_mut();
        match file {
            Some(file) => table.insert(descriptor, file),
            None => table.remove(&descriptor),
        };
    }

    /// Notes that a range of descriptors is closed.
    pub(super) fn close(&mut self, thread: u32, first: u64, last: u64) {
        self.of(thread).table.borrow_mut().retain(|number, _| !(first..=last).contains(number));
    }

    /// Gives the working directory.
    pub(super) fn cwd(&mut self, thread: u32) -> PathBuf {
        self.of(thread).cwd.borrow().clone()
    }

    /// Notes another working directory.
    pub(super) fn change_cwd(&mut self, thread: u32, path: &Path) {
        let mut cwd = self.of(thread).cwd.borrow_mut();
        *cwd = cwd.join(path);
    }

    /// Notes a new thread, or a new process with copies of what the flags of `clone` do not share.
    pub(super) fn start(&mut self, parent: u32, child: u32, flags: &str) {
        let mut process = self.of(parent).clone();
        if !flags.contains("CLONE_FILES") {
            process.table = Rc::new((*process.table).clone());
        }
        if !flags.contains("CLONE_FS") {
            process.cwd = Rc::new((*process.cwd).clone());
        }
        self.threads.insert(child, process);
    }
}
