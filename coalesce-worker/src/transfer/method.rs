//! The ways to choose from.

use std::fmt;
use std::str::FromStr;

/// How bytes get from file to file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CopyMethod {
    /// The cheapest of the others that the file system has.
    #[default]
    Auto,
    /// Both files share the blocks (FICLONERANGE).
    Reflink,
    /// The kernel, or a server, copies (copy_file_range).
    CopyFileRange,
    /// Large reads and writes, which every store has.
    ReadWrite,
}

/// A name that no method has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no copy method {0:?}: auto, reflink, copy-file-range or read-write")]
pub struct UnknownMethod(pub String);

impl CopyMethod {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Reflink, Self::CopyFileRange, Self::ReadWrite];

    /// What it is called on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Reflink => "reflink",
            Self::CopyFileRange => "copy-file-range",
            Self::ReadWrite => "read-write",
        }
    }
}

impl fmt::Display for CopyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for CopyMethod {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        Self::ALL.into_iter().find(|method| method.name() == name).ok_or_else(|| UnknownMethod(name.into()))
    }
}
