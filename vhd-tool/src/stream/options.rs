//! The options that sending and receiving have in common.

use vhd_core::ByteCount;

use super::meter::Meter;
use crate::cli::Context;

/// How a transfer is shown, and how members of archives are named.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The start of the names of archive members, right before their numbers: `Ref:7/`; without it, those in the folder of
    /// the first are received
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub(crate) tar_filename_prefix: String,
    /// Show how far the transfer is
    #[arg(long)]
    progress: bool,
    /// Show it as three digits for each percent (000001002…100), on standard output
    #[arg(long)]
    machine: bool,
}

impl Options {
    /// Starts to show how far a transfer is.
    pub(crate) fn meter(
        &self,
        action: &'static str,
        total: Option<ByteCount>,
        stdout_is_taken: bool,
        context: &Context,
    ) -> Meter {
        match (self.progress, self.machine) {
            (true, true) => Meter::machine(total, stdout_is_taken),
            (true, false) => Meter::Human(context.progress(action, total)),
            (false, _) => Meter::None,
        }
    }
}
