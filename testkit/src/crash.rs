//! Power failures: records what a real program does to a folder, and gives every state that the folder could be found in;
//! or the same of one image in memory ([`PowerStorage`]).
//!
//! The program runs under strace. What is recorded is checked: done again on the model of the folder as it was, it must
//! give the folder as it is.
//!
//! # What a power failure may leave
//! It happens between two operations. All that is durable by then is found; of the rest, any part that these rules allow:
//!
//! - Writes of data persist in any subset and any order, and each may be torn at the borders of sectors (512 bytes of the
//!   file). A write past the end makes the file as long as the last sector of it that is found, or its full length with
//!   zeros where data is lost.
//! - Truncations, extensions and holes of one file persist in their order: journalling file systems log such changes and
//!   replay the log from its beginning. A write persists only with those that made or freed the room that it is in.
//!   Holes may be torn at multiples of 4096 bytes.
//! - `fsync` and `fdatasync` make all earlier changes of that file durable, but not its name, be it a new file. The sync
//!   of a folder makes the changes of names in it durable; `sync` and `syncfs` make everything durable.
//!   `sync_file_range` promises nothing. A sync covers what had ended when it began.
//! - Files that are found as they were before the program ran have the time of their last change from then, too.
//! - Changes of names persist in any subset that can be done: one whose source was lost is lost, too. A rename is atomic
//!   and is durable after a sync of the folder that has the new name. No change of a name says anything of data.
//!
//! Source: open(2), fsync(2), rename(2). Treating each call as persistent in parts and out of order, with sectors that may
//! tear, is after Pillai et al., All File Systems Are Not Created Equal (OSDI 2014); lengths and holes are held to their
//! order here, as journalling file systems do.

mod choices;
mod content;
mod disk;
mod folder;
mod operation;
mod power;
mod processes;
mod replay;
mod states;
pub(crate) mod strace;
mod tree;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use folder::Times;
use operation::Operation;
pub use power::PowerStorage;
use replay::Replay;
pub use states::{Options, State, States};
use tree::Tree;

/// What a program did to a folder.
#[derive(Debug)]
pub struct Recording {
    initial: Tree,
    times: Arc<Times>,
    operations: Arc<[Operation]>,
    output: Output,
}

impl Recording {
    /// Runs a program to its end and records what it does to a folder. All that is there before counts as durable.
    ///
    /// # Panics
    /// If strace is missing, the program fails, it does something to the folder that is not modelled (symbolic links,
    /// mapped memory, `io_uring`), or the record does not explain what is in the folder afterwards.
    pub fn of(folder: &Path, program: &Command) -> Self {
        let initial = folder::read(folder);
        let times = folder::times(folder, &initial).into();
        let (output, trace) = strace::trace(program);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?}: {}\n{errors}", output.status);
        let here = std::env::current_dir().expect("there is a working directory");
        let mut replay = Replay::new(folder, program.get_current_dir().unwrap_or(&here), initial.clone());
        replay.run(&trace);
        let found = folder::read(folder);
        assert!(
            replay.tree.identity() == found.identity(),
            "{program:?}: the record says\n{}and the folder has\n{found}",
            replay.tree
        );
        Self { initial, times, operations: replay.operations.into(), output }
    }

    /// What the program printed.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Counts the operations: changes and syncs.
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// Says what each operation was.
    pub fn log(&self) -> impl Iterator<Item = &str> {
        self.operations.iter().map(|operation| &*operation.text)
    }

    /// Gives the distinct states in which a power failure, during or just after the program, may leave the folder.
    pub fn states(&self, options: Options) -> States {
        let end = Arc::new([self.operations.len()]);
        States::new(Arc::clone(&self.operations), self.initial.clone(), Arc::clone(&self.times), end, options)
    }
}
