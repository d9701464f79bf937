//! What a call answers when it fails: a XenAPI error code and its parameters.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

use coalesce_worker::{ComposeError, DeleteError, ResizeError, RevertError};
use serde_json::{Value, json};
use vhd_core::{ChainError, CreateError, FileError, FolderError, MetadataError, OpenError, ReadError, WriteError};

/// A failed call.
///
/// Source of the codes: the interface's own errors come as `SR_BACKEND_FAILURE` with the error's name as the first
/// parameter; the numbered ones are those of the storage manager that xapi has always had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// XenAPI's error code.
    pub code: String,
    /// Its parameters.
    pub parameters: Vec<String>,
}

/// The numbered errors, with the short text that clients know them by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// The repository is in use.
    SrInUse,
    /// The volume is in use.
    VolumeInUse,
    /// The repository still has volumes.
    SrNotEmpty,
    /// There is a repository already.
    SrExists,
    /// The file system is full.
    NoSpace,
    /// The repository cannot be reached.
    SrUnavailable,
    /// A disk cannot have this size.
    InvalidSize,
    /// The chain would be too long.
    ChainTooLong,
    /// The volume cannot get another size.
    CannotResize,
    /// The arguments make no sense.
    BadRequest,
    /// Whatever has no number of its own.
    General,
    /// Changed blocks cannot be told.
    ChangedBlocks,
    /// A volume cannot be written.
    NotWritable,
}

impl Number {
    fn known(self) -> (u32, &'static str) {
        match self {
            Self::SrInUse => (16, "The SR is currently in use"),
            Self::VolumeInUse => (24, "The VDI is currently in use"),
            Self::SrNotEmpty => (39, "The SR is not empty"),
            Self::SrExists => (42, "The SR already exists"),
            Self::NoSpace => (44, "There is insufficient space"),
            Self::SrUnavailable => (47, "The SR is not available"),
            Self::InvalidSize => (79, "The size is invalid"),
            Self::ChainTooLong => (109, "The snapshot chain is too long"),
            Self::CannotResize => (110, "The VDI cannot be resized"),
            Self::BadRequest => (143, "The request is invalid"),
            Self::General => (202, "General backend error"),
            Self::ChangedBlocks => (460, "Changed blocks cannot be calculated"),
            Self::NotWritable => (461, "The VDI is not writable"),
        }
    }
}

impl Failure {
    /// A numbered error; `detail` says what is wrong and what to do.
    pub fn numbered(number: Number, detail: impl Display) -> Self {
        let (number, short) = number.known();
        Self { code: format!("SR_BACKEND_FAILURE_{number}"), parameters: vec![short.into(), detail.to_string()] }
    }

    fn named(name: &str, argument: &str) -> Self {
        Self { code: "SR_BACKEND_FAILURE".into(), parameters: vec![name.into(), argument.into()] }
    }

    /// The repository is not attached to this host.
    pub fn sr_not_attached(sr: &str) -> Self {
        Self::named("Sr_not_attached", sr)
    }

    /// There is no repository there.
    pub fn sr_does_not_exist(place: &str) -> Self {
        Self::named("SR_does_not_exist", place)
    }

    /// There is no such volume.
    pub fn volume_does_not_exist(key: &str) -> Self {
        Self::named("Volume_does_not_exist", key)
    }

    /// Something on a file or folder failed.
    pub fn io<'a>(path: &'a Path, action: &'a str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |error| Self::of(&Step { path: path.into(), action: action.into(), source: error })
    }

    /// An error and all its causes, with the number that its cause has.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = || std::iter::successors(Some(error), |error| error.source());
        let system = causes().find_map(|cause| cause.downcast_ref::<io::Error>());
        let number = match system.map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Number::NoSpace,
            Some(io::ErrorKind::ResourceBusy) => Number::VolumeInUse,
            _ => Number::General,
        };
        let text: Vec<String> = causes().map(ToString::to_string).collect();
        let hint = if number == Number::VolumeInUse { "; close whatever uses it and try again" } else { "" };
        Self::numbered(number, format!("{}{hint}", text.join(": ")))
    }

    /// Tells whether the file system was full.
    pub fn is_no_space(&self) -> bool {
        self.code == format!("SR_BACKEND_FAILURE_{}", Number::NoSpace.known().0)
    }

    /// What goes to standard output in the JSON form. All members are mandatory there.
    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code,
            "params": self.parameters,
            "backtrace": { "error": self.to_string(), "files": [], "lines": [] },
        })
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.parameters.join(": "))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}", path.display())]
struct Step {
    path: PathBuf,
    action: String,
    source: io::Error,
}

macro_rules! failures {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::of(&error)
            }
        })*
    };
}

failures!(
    ChainError,
    ComposeError,
    DeleteError,
    FileError,
    FolderError,
    MetadataError,
    OpenError,
    ReadError,
    ResizeError,
    RevertError,
    WriteError,
    vhd_core::StorageError,
);

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Size { .. } => Self::numbered(Number::InvalidSize, error),
            other => Self::of(&other),
        }
    }
}
