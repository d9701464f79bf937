//! How a disk or an image is put into a stream.

/// What is around the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// Nothing: the bytes in order
    None,
    /// Frames with their place, so that holes need not be sent
    Chunked,
    /// An archive of blocks of 1 MiB, each with its checksum
    Tar,
    /// The Network Block Device protocol
    Nbd,
    /// Lines for people, of what would be sent
    Human,
}

impl Protocol {
    /// As an error names it.
    pub(crate) fn means(self) -> &'static str {
        match self {
            Self::None => "without a protocol",
            Self::Chunked => "in chunks",
            Self::Tar => "as tar",
            Self::Nbd => "over NBD",
            Self::Human => "to people",
        }
    }
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the disk
    Raw,
    /// A VHD image
    Vhd,
}
