//! Standing back behind everybody else on the host.

use std::io;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// The niceness of those who stand back furthest.
const NICEST: i32 = 19;

/// Why the priority is what it was, or half of it.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    /// The system does not let the process have the lowest priority for the processor.
    #[error("cannot lower the priority to nice {NICEST}")]
    Nice(#[source] io::Error),
    /// The program that sets the I/O class cannot be run.
    #[error("cannot run ionice, which sets the I/O class")]
    Run(#[source] io::Error),
    /// That program fails.
    #[error("ionice cannot set the I/O class to idle ({status}): {message}")]
    Class {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
}

/// Gives the lowest priority for processor and disk to the calling thread and all that it starts from now on: called
/// before there are others, to the process. There is no way back without privileges.
///
/// The I/O class has a meaning only to some of the kernel's I/O schedulers, `bfq` and `mq-deadline` among them.
///
/// # Errors
/// What [`IdleError`] lists; what comes first, the priority for the processor, may have been lowered then.
pub fn enter_idle() -> Result<(), IdleError> {
    setpriority_process(None, NICEST).map_err(|errno| IdleError::Nice(errno.into()))?;
    // No safe call sets the class; its program is part of every distribution's base.
    let thread = gettid().as_raw_nonzero().to_string();
    let ionice = Command::new("ionice").args(["-c", "3", "-p", &thread]).stdin(Stdio::null()).output();
    let output = ionice.map_err(IdleError::Run)?;
    if output.status.success() {
        Ok(())
    } else {
        let message = String::from_utf8_lossy(&output.stderr).trim().into();
        Err(IdleError::Class { status: output.status, message })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::getpriority_process;

    use super::*;

    fn priorities() -> (i32, String) {
        let thread = gettid().as_raw_nonzero().to_string();
        let class = Command::new("ionice").args(["-p", &thread]).output().unwrap().stdout;
        (getpriority_process(None).unwrap(), String::from_utf8(class).unwrap().trim().into())
    }

    #[test]
    fn a_thread_and_those_it_starts_stand_back_and_others_do_not() {
        let before = priorities();
        let idle = (NICEST, "idle".to_string());
        let (own, of_child) = thread::spawn(|| {
            enter_idle().unwrap();
            (priorities(), thread::spawn(priorities).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((&own, &of_child), (&idle, &idle));
        assert_eq!(priorities(), before);
    }
}
