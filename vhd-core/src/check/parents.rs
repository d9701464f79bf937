//! What an image says of its parent, and whether that is so.

use std::path::Path;
use std::{fs, iter};

use super::{Depth, Kind, Report, chain_of_causes, kind};
use crate::chain::{Chain, ChainError, ChainOptions, ParentRefusal};
use crate::footer::Timestamp;
use crate::header::Header;
use crate::image::{Image, Layer, ReadOnly};
use crate::locator::{self, MAX_LOCATOR_LENGTH};
use crate::storage::{Lock, StorageError};
use crate::units::{ByteCount, FileOffset};

pub(super) fn check_locators(image: &Image<ReadOnly>, report: &mut Report) -> Result<(), StorageError> {
    let Some(header) = image.header().filter(|_| image.is_differencing()) else { return Ok(()) };
    let len = image.container().len()?;
    let mut names: Vec<(String, FileOffset)> = Vec::new();
    for (slot, entry) in header.locators() {
        let at = Some(entry.offset);
        let end = entry.offset.0.checked_add(entry.length.0);
        if entry.length > MAX_LOCATOR_LENGTH || end.is_none_or(|end| end > len.0) {
            let text =
                format!("parent locator {slot}: {} bytes at {} do not lie in the file", entry.length, entry.offset);
            report.add(&kind::LOCATOR_PLACE, at, text);
            continue;
        }
        if entry.length > entry.space {
            let text = format!("parent locator {slot}: text of {} bytes in room for {}", entry.length, entry.space);
            report.add(&kind::LOCATOR_ROOM, at, text);
        }
        if let Some(region) = image.regions().find(|region| {
            entry.offset < region.range.end && region.range.start < entry.offset + ByteCount(entry.length.0)
        }) {
            let text = format!("parent locator {slot} lies over the {}", region.name);
            report.add(&kind::LOCATOR_PLACE, at, text);
            continue;
        }
        let mut text = vec![0; entry.length.0 as usize];
        image.container().read_at(&mut text, entry.offset)?;
        let paths = locator::decode_paths(entry.code, &text);
        if paths.is_empty() && !matches!(entry.code, locator::PlatformCode::Other(_)) {
            let text = format!("parent locator {slot}: not text of its kind");
            report.add(&kind::LOCATOR_TEXT, at, text);
        }
        let name = paths.last().and_then(|path| path.file_name()).and_then(|name| name.to_str());
        names.extend(name.map(|name| (name.to_owned(), entry.offset)));
    }
    let in_header = header.parent_name();
    // Windows writes the whole path there.
    let name_in_header = in_header.rsplit(['/', '\\']).next().unwrap_or_default();
    let others: Vec<_> = names.iter().filter(|(name, _)| !in_header.is_empty() && name != name_in_header).collect();
    if let [(name, at), ..] = others[..] {
        let text = format!(
            "parent locators name {name:?}, the header {in_header:?}: relinked by the header alone, or a relink has not ended"
        );
        report.add(&kind::LOCATOR_DIFFERS, Some(*at), text);
    }
    check_room_of_stream(image, header, report);
    if names.is_empty() && in_header.is_empty() {
        report.add(&kind::LOCATOR_NONE, None, "nothing says where the parent is");
    }
    Ok(())
}

/// Finds locators whose room is counted in bytes where an image was streamed, for readers that count sectors there. Files
/// that blktap writes count bytes, too, and no such reader meets those.
fn check_room_of_stream(image: &Image<ReadOnly>, header: &Header, report: &mut Report) {
    let in_bytes = header.locators().find(|(_, entry)| entry.counts_bytes());
    if let Some((slot, entry)) = in_bytes.filter(|_| image.footer().is_of_stream()) {
        let text =
            format!("parent locator {slot}: its room is {} bytes, and is counted in sectors in streams", entry.space);
        report.add(&kind::LOCATOR_BYTES, Some(entry.offset), text);
    }
}

/// Checks that the parents of the image at `path` can be opened, are who their children say, and fit; and where data is
/// looked at, too, that their files have not changed since.
///
/// Gives the paths of the parents that are VHDs, so that each can be checked as a file.
///
/// # Errors
/// A file that cannot be read at all.
pub fn chain(
    path: &Path,
    options: &ChainOptions,
    depth: Depth,
) -> Result<(Report, Vec<std::path::PathBuf>), StorageError> {
    let mut report = Report::default();
    // Where the top cannot be used, its own report says so.
    let opened = Image::<ReadOnly>::open(path, Lock::None);
    let Some(top) = opened.ok().filter(|top| !top.footer().poisoned()) else { return Ok((report, Vec::new())) };
    let parents = match options.open_parents(&top, path) {
        Ok(parents) => parents,
        Err(ChainError::Open(crate::image::OpenError::Storage(error))) => return Err(error),
        Err(error) => {
            let of_top = top
                .header()
                .map(|header| format!("; by its header, parent_unique_id is {}", header.parent_unique_id()));
            let text = format!("{}{}", chain_of_causes(&error), of_top.unwrap_or_default());
            report.add(kind_of(&error), None, text);
            return Ok((report, Vec::new()));
        }
    };
    if depth == Depth::Data {
        check_timestamps(&top, parents.as_ref(), &mut report);
    }
    let layers: &[Layer] = parents.as_ref().map_or(&[], |chain| chain.layers());
    let mut child_size = top.footer().current_size();
    for layer in layers {
        if layer.size() > child_size {
            let text = format!("{} has {} bytes, its child only {child_size}", layer.path().display(), layer.size());
            report.add(&kind::PARENT_LARGER, None, text);
        }
        child_size = layer.size();
    }
    let paths = layers.iter().filter(|layer| layer.as_vhd().is_some()).map(|layer| layer.path().to_path_buf());
    Ok((report, paths.collect()))
}

fn kind_of(error: &ChainError) -> &'static Kind {
    match error {
        ChainError::Cycle { .. } => &kind::CHAIN_CYCLE,
        ChainError::TooDeep { .. } => &kind::CHAIN_DEPTH,
        ChainError::Open(_) | ChainError::Mend(_) => &kind::PARENT_UNREADABLE,
        ChainError::Parent { tried, .. } => {
            let any = |is: fn(&ParentRefusal) -> bool| tried.iter().any(is);
            if any(|it| matches!(it, ParentRefusal::Identity { .. } | ParentRefusal::NotRaw { .. })) {
                &kind::PARENT_IDENTITY
            } else if any(|it| matches!(it, ParentRefusal::Open(_))) {
                &kind::PARENT_UNREADABLE
            } else {
                &kind::PARENT_MISSING
            }
        }
    }
}

/// Compares the times that children have recorded with those of their parents' files.
fn check_timestamps(top: &Image<ReadOnly>, parents: Option<&Chain>, report: &mut Report) {
    let parents: &[Layer] = parents.map_or(&[], Chain::layers);
    let children = iter::once(top).chain(parents.iter().filter_map(Layer::as_vhd));
    for (child, parent) in children.zip(parents) {
        let modified = fs::metadata(parent.path()).and_then(|metadata| metadata.modified());
        let (Some(header), Ok(modified)) = (child.header(), modified) else { continue };
        // Some writers record nothing.
        let recorded = header.parent_timestamp();
        if recorded.0 != 0 && recorded != Timestamp::from(modified) {
            let name = parent.path().display();
            let text = format!("{name}: its file has changed since {} was linked to it", child.path().display());
            report.add(&kind::PARENT_MODIFIED, None, text);
        }
    }
}
