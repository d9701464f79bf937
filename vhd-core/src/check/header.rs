//! The header, and the tables that it places.

use zerocopy::FromBytes;

use super::{Report, chain_of_causes, kind};
use crate::block_size::BlockSize;
use crate::footer::{DiskType, Footer};
use crate::format::{self, RawHeader};
use crate::header::{HEADER_SIZE, Header};
use crate::image::{Image, OpenError, ReadOnly};
use crate::storage::{Container, StorageError};
use crate::units::{FileOffset, SECTOR_SIZE};

/// Says why an image with a footer cannot be opened.
pub(super) fn explain(container: &Container, error: &OpenError, report: &mut Report) -> Result<(), StorageError> {
    let text = chain_of_causes(error);
    match error {
        OpenError::Header { offset, .. } => {
            let mut bytes = [0; HEADER_SIZE.0 as usize];
            container.read_at(&mut bytes, *offset)?;
            let odd = impossible(&bytes).join(", ");
            let odd = if odd.is_empty() { String::new() } else { format!("; cannot be so: {odd}") };
            report.add(&kind::HEADER_DAMAGED, Some(*offset), format!("{text}{odd}"));
        }
        OpenError::Outside { offset, part, .. } => {
            let field = if *part == "BAT" { "table_offset or max_table_entries" } else { "data_offset of the footer" };
            report.add(&kind::TABLE_OUTSIDE, Some(*offset), format!("{text}; says {field}"));
        }
        OpenError::FixedShort { room, .. } => {
            let text = format!("{text}; says current_size or disk_type of the footer");
            report.add(&kind::FIXED_SHORT, Some(*room), text);
        }
        OpenError::ShortBat { .. } => {
            let text = format!("{text}; current_size, max_table_entries or block_size is damaged");
            report.add(&kind::BAT_SHORT, None, text);
        }
        // The footers were whole a moment ago, and what else there is shows only when an image is opened for writing.
        _ => report.add(&kind::FOOTER_LOST, None, text),
    }
    Ok(())
}

/// Names the fields of a header that cannot be what they are.
fn impossible(bytes: &[u8; HEADER_SIZE.0 as usize]) -> Vec<&'static str> {
    let raw = RawHeader::read_from_bytes(bytes).expect("the sizes are equal");
    let tests = [
        ("cookie", raw.cookie != format::HEADER_COOKIE),
        ("data_offset", raw.data_offset != format::NO_OFFSET),
        ("table_offset", !raw.table_offset.get().is_multiple_of(SECTOR_SIZE) || raw.table_offset == 0),
        ("version", raw.version.get() >> 16 != format::FORMAT_VERSION >> 16),
        ("max_table_entries", raw.max_table_entries == 0),
        ("block_size", BlockSize::new(raw.block_size.get()).is_none()),
        ("reserved", raw.reserved != 0),
        ("reserved_end", raw.reserved_end != [0; 256]),
    ];
    tests.into_iter().filter_map(|(name, is_so)| is_so.then_some(name)).collect()
}

/// Checks the fields of a header that can be used, and that the tables have places of their own.
pub(super) fn check(image: &Image<ReadOnly>, report: &mut Report) {
    let Some(tables) = &image.tables else { return };
    let at = Some(tables.header_at);
    for name in impossible(&tables.header.to_bytes()) {
        report.add(&kind::HEADER_FIELD, at, format!("the header's field {name} has a value that no writer gives it"));
    }
    for name in parent_of_none(image.footer(), &tables.header) {
        let text = format!("the header's field {name} names a parent, and the disk type says that there is none");
        report.add(&kind::HEADER_FIELD, at, text);
    }
    let mut regions: Vec<_> = tables.regions().collect();
    regions.sort_by_key(|region| region.range.start);
    for pair in regions.windows(2) {
        if let [first, second] = pair
            && second.range.start < first.range.end
        {
            let text = format!("the {} and the {} overlap", first.name, second.name);
            report.add(&kind::TABLE_OVERLAP, Some(second.range.start), text);
        }
    }
    let end = FileOffset(tables.file_len().0);
    if let Some(region) = regions.last().filter(|region| region.range.end > end) {
        let text = format!("the {} would end at {}, the file ends at {end}", region.name, region.range.end);
        report.add(&kind::TABLE_OUTSIDE, Some(region.range.start), text);
    }
}

fn parent_of_none(footer: &Footer, header: &Header) -> Vec<&'static str> {
    if footer.disk_type() == DiskType::Differencing {
        return Vec::new();
    }
    let found = [
        ("parent_unique_id", !header.parent_unique_id().is_nil()),
        ("parent_name", !header.parent_name().is_empty()),
        ("locators", header.locators().next().is_some()),
    ];
    found.into_iter().filter_map(|(name, is_so)| is_so.then_some(name)).collect()
}
