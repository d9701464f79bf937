//! Folders as a power failure may leave them.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use super::choices::{self, Choice};
use super::disk::{Disk, Pending};
use super::folder::{self, Times};
use super::operation::Operation;
use super::tree::{Portion, Tree};
use crate::random::Random;

/// How many states to try, beside those that are always tried.
#[derive(Clone, Debug)]
pub struct Options {
    /// After each operation: at most so many pending ones are each lost alone, kept alone and torn.
    pub singles: usize,
    /// After each operation: so many random choices; all there are if those are fewer.
    pub random: usize,
    /// What the random choices start from; the same seed gives the same states.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { singles: 32, random: 64, seed: 1 }
    }
}

/// The distinct states of a recording, in the order of the moments at which power may have failed.
#[derive(Debug)]
pub struct States {
    options: Options,
    operations: Arc<[Operation]>,
    times: Arc<Times>,
    disk: Disk,
    done: usize,
    pending: Arc<[Pending]>,
    choices: std::vec::IntoIter<Choice>,
    /// Numbers of operations after each of which more is promised than before.
    promises: Arc<[usize]>,
    seen: HashSet<(u64, usize)>,
    random: Random,
    index: usize,
}

impl States {
    pub(super) fn new(
        operations: Arc<[Operation]>,
        initial: Tree,
        times: Arc<Times>,
        promises: Arc<[usize]>,
        options: Options,
    ) -> Self {
        let disk = Disk::new(Arc::clone(&operations), initial);
        let random = Random::new(options.seed);
        let choices = vec![Choice::new()].into_iter();
        let (pending, seen) = (Arc::new([]), HashSet::new());
        Self { options, operations, times, disk, done: 0, pending, choices, promises, seen, random, index: 0 }
    }
}

impl Iterator for States {
    type Item = State;

    fn next(&mut self) -> Option<State> {
        loop {
            for choice in self.choices.by_ref() {
                let tree = self.disk.found(&choice);
                let promised = self.promises.partition_point(|&made| made <= self.done);
                // After a promise they are given again: more may be asked of them.
                if self.seen.insert((tree.identity(), promised)) {
                    let index = self.index;
                    self.index += 1;
                    let (operations, pending) = (Arc::clone(&self.operations), Arc::clone(&self.pending));
                    let times = Arc::clone(&self.times);
                    return Some(State { index, done: self.done, promised, operations, times, pending, choice, tree });
                }
            }
            if self.done == self.operations.len() {
                return None;
            }
            self.disk.step(self.done);
            self.done += 1;
            self.pending = self.disk.pending.as_slice().into();
            self.choices = choices::choices(&self.disk, &self.options, &mut self.random).into_iter();
        }
    }
}

/// A folder as a power failure may leave it.
#[derive(Clone, Debug)]
pub struct State {
    index: usize,
    done: usize,
    promised: usize,
    operations: Arc<[Operation]>,
    times: Arc<Times>,
    pending: Arc<[Pending]>,
    choice: Choice,
    tree: Tree,
}

impl State {
    /// Counts the states before this one.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Counts the operations that the program had done.
    pub fn operations_done(&self) -> usize {
        self.done
    }

    /// Counts the promises that had been made: what they say must be there.
    pub fn promises_made(&self) -> usize {
        self.promised
    }

    /// Tells whether the program had ended: what it promised must be there.
    pub fn has_ended(&self) -> bool {
        self.done == self.operations.len()
    }

    /// Makes a folder that holds what was found. It is new, or empty.
    ///
    /// # Panics
    /// If a file is in the way, or there is no room.
    pub fn write_to(&self, folder: &Path) {
        folder::write(&self.tree, &self.times, folder);
    }

    /// Lists the files and folders, by their paths in the folder.
    pub fn paths(&self) -> Vec<String> {
        self.tree.walk().into_iter().map(|(path, _)| path).collect()
    }

    /// Reads a file; `None` if there is none of that name.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let entry = self.tree.find(path).filter(|entry| !entry.is_folder)?;
        let content = self.tree.content(entry.inode);
        Some(content.read(0..content.len()))
    }

    /// Says when power failed and which of the operations before were on the disk.
    pub fn describe(&self) -> String {
        let mut text =
            format!("state {}: power failed after {} of {} operations", self.index, self.done, self.operations.len());
        if let Some(last) = self.done.checked_sub(1) {
            _ = write!(text, ", the last being: {}", self.operations[last].text);
        }
        for (pending, portion) in self.pending.iter().zip(&self.choice) {
            let portion = match portion {
                _ if pending.durable => "synced".to_owned(),
                Portion::Nothing => "lost".to_owned(),
                Portion::Whole => "kept".to_owned(),
                Portion::Length => "kept the length, lost the data".to_owned(),
                Portion::Units(chosen) => {
                    let kept: Vec<String> =
                        chosen.iter().enumerate().filter(|(_, kept)| **kept).map(|(i, _)| i.to_string()).collect();
                    format!("kept parts {} of {}", kept.join(" "), chosen.len())
                }
            };
            _ = write!(text, "\n  {}: {}: {portion}", pending.number + 1, self.operations[pending.number].text);
        }
        text
    }
}
