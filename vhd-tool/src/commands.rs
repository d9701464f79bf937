//! The commands, a file each: its arguments and one function that runs it.

pub(crate) mod check;
pub(crate) mod clone;
pub(crate) mod coalesce;
pub(crate) mod compact;
pub(crate) mod compare;
pub(crate) mod contents;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod delete;
mod destination;
pub(crate) mod gc;
pub(crate) mod get;
pub(crate) mod info;
pub(crate) mod map;
pub(crate) mod read;
pub(crate) mod read_headers;
pub(crate) mod repair;
pub(crate) mod resize;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod stream;
pub(crate) mod tree;
pub(crate) mod write;

/// The option of commands that print data.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Format {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
