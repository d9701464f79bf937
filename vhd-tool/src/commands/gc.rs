//! `gc`: whole repositories collected, as by `coalesce-worker once`.

use coalesce_worker::program::once;

use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Delete what nobody needs in a folder, and merge what can be merged
///
/// The same as `coalesce-worker once`. Trees are merged side by side, and one that cannot be merged hinders no other.
/// Volumes in use are not touched. Whatever happens, every volume reads as before, and the next collection goes on where
/// this one stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool gc . --dry-run
  vhd-tool gc /srv/vhd --rate 100M")]
pub(crate) struct Args {
    #[command(flatten)]
    once: once::Args,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let ending = once::run(&args.once, &context.chain_options(), context.is_quiet()).map_err(CommandError::stdout)?;
    Ok(match ending {
        once::Ending::Done => Status::Done,
        once::Ending::Left => Status::Left,
        once::Ending::Failed => Status::Failed,
    })
}
