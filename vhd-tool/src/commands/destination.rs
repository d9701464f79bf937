//! What is allowed to be replaced by a new file.

use std::path::Path;

use coalesce_worker::check_not_served;
use vhd_core::{Chain, Existing, FileStorage};

use crate::error::{CommandError, Refusal};

/// Tells what to do about a file that is at `path` already. Only regular files are ever replaced: putting a new file in
/// the place of a device node or a link would not be what was meant. Nor is a file that somebody uses: what they
/// write would be lost with it.
pub(super) fn existing(path: &Path, force: bool) -> Result<Existing, CommandError> {
    if !force {
        return Ok(Existing::Keep);
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(Refusal::NotRegular { path: path.into() }.into()),
        Ok(_) => {
            FileStorage::open_writable(path).map_err(Refusal::io(path, "replace it"))?;
            check_not_served(path)?;
            Ok(Existing::Replace)
        }
        Err(_) => Ok(Existing::Replace),
    }
}

/// Refuses a new file that would take the place of one that `source` is read from.
pub(super) fn refuse_own_source(path: &Path, source: &Chain) -> Result<(), CommandError> {
    let Ok(real) = path.canonicalize() else { return Ok(()) };
    if source.layers().iter().any(|layer| layer.path().canonicalize().is_ok_and(|other| other == real)) {
        return Err(Refusal::OwnSource { path: path.into(), reader: source.top().path().into() }.into());
    }
    Ok(())
}
