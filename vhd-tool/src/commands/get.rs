//! `get`: one field of an image, under the names that xapi's tool gives them.

use std::path::PathBuf;

use vhd_core::{DiskType, Footer, Header, Image, LocatorEntry, Lock, PlatformCode, ReadOnly};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::{CommandError, Refusal};

const KEYS: [&str; 32] = [
    "features",
    "data-offset",
    "time-stamp",
    "creator-application",
    "creator_version",
    "creator-host-os",
    "original-size",
    "current-size",
    "geometry",
    "disk-type",
    "footer-checksum",
    "uuid",
    "saved-state",
    "table-offset",
    "max-table-entries",
    "block-size-sectors-shift",
    "header-checksum",
    "parent_unique_id",
    "parent-time-stamp",
    "parent-unicode-name",
    "parent-locator-0",
    "parent-locator-1",
    "parent-locator-2",
    "parent-locator-3",
    "parent-locator-4",
    "parent-locator-5",
    "parent-locator-6",
    "parent-locator-7",
    "batmap-version",
    "batmap-offset",
    "batmap-size-in-sectors",
    "batmap-checksum",
];

/// Print one field of an image, by its name
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
Keys, as xapi's tool names and prints them:
  {}

A key that there is not, or that the image has no value of, ends with exit code 124.

Example:
  vhd-tool get disk.vhd current-size", KEYS.join(", ")))]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
    /// The field
    key: String,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let image = Image::<ReadOnly>::open(&args.file, Lock::None)?;
    let Some(value) = value(&image, &args.key)? else {
        let keys = KEYS.into_iter().filter(|key| matches!(value(&image, key), Ok(Some(_))));
        return Err(Refusal::Key { key: args.key.clone(), known: keys.collect::<Vec<_>>().join(", ") }.into());
    };
    context.output(args.format.json).data(&value, |out| writeln!(out, "{value}"))?;
    Ok(Status::Done)
}

/// The value of a field as that tool prints it: numbers of 32 bits are signed.
fn value(image: &Image<ReadOnly>, key: &str) -> Result<Option<String>, CommandError> {
    if let Some(slot) = key.strip_prefix("parent-locator-") {
        return image.header().zip(slot.parse().ok()).map_or(Ok(None), |(header, slot)| locator(image, header, slot));
    }
    let of_header = || image.header().and_then(|header| header_field(header, key));
    Ok(footer_field(image.footer(), key).or_else(of_header).or_else(|| batmap_field(image, key)))
}

fn footer_field(footer: &Footer, key: &str) -> Option<String> {
    let host_os = footer.creator_host_os();
    Some(match key {
        "features" if footer.features() & 1 == 1 => "Temporary".into(),
        "features" => String::new(),
        "data-offset" => footer.header_offset().map_or("-1".into(), |offset| offset.to_string()),
        "time-stamp" => footer.timestamp().0.cast_signed().to_string(),
        "creator-application" => String::from_utf8_lossy(&footer.creator_application()).into_owned(),
        "creator_version" => footer.creator_version().cast_signed().to_string(),
        "creator-host-os" => match &host_os {
            b"Wi2k" => "Windows".into(),
            b"Mac " => "Macintosh".into(),
            other => format!("Other {:x}", u32::from_be_bytes(*other)),
        },
        "original-size" => footer.original_size().to_string(),
        "current-size" => footer.current_size().to_string(),
        "geometry" => {
            let shape = footer.geometry();
            let (cylinders, heads, sectors) = (shape.cylinders, shape.heads, shape.sectors_per_track);
            format!("{{ cylinders = {cylinders}; heads = {heads}; sectors = {sectors} }}")
        }
        "disk-type" => match footer.disk_type() {
            DiskType::Fixed => "Fixed_hard_disk".into(),
            DiskType::Dynamic => "Dynamic_hard_disk".into(),
            DiskType::Differencing => "Differencing_hard_disk".into(),
        },
        "footer-checksum" => footer.checksum().cast_signed().to_string(),
        "uuid" => footer.unique_id().to_string(),
        "saved-state" => footer.saved_state().to_string(),
        _ => return None,
    })
}

fn header_field(header: &Header, key: &str) -> Option<String> {
    Some(match key {
        "table-offset" => header.table_offset().to_string(),
        "max-table-entries" => header.max_table_entries().to_string(),
        "block-size-sectors-shift" => (header.block_size().get() / 512).ilog2().to_string(),
        "header-checksum" => header.checksum().cast_signed().to_string(),
        "parent_unique_id" => header.parent_unique_id().to_string(),
        "parent-time-stamp" => header.parent_timestamp().0.cast_signed().to_string(),
        "parent-unicode-name" => header.parent_name(),
        _ => return None,
    })
}

fn batmap_field(image: &Image<ReadOnly>, key: &str) -> Option<String> {
    let batmap = image.batmap()?;
    Some(match key {
        "batmap-version" => format!("{}.{}", batmap.version() >> 16, batmap.version() & 0xffff),
        "batmap-offset" => batmap.map_offset().to_string(),
        "batmap-size-in-sectors" => batmap.map_size().whole_sectors().to_string(),
        "batmap-checksum" => batmap.checksum().cast_signed().to_string(),
        _ => return None,
    })
}

/// The entry of a locator with its text as stored; one that is not used is all zeros.
fn locator(image: &Image<ReadOnly>, header: &Header, slot: usize) -> Result<Option<String>, CommandError> {
    if slot >= 8 {
        return Ok(None);
    }
    let Some((_, entry)) = header.locators().find(|&(i, _)| i == slot) else {
        return Ok(Some("(None 0 0, 0, 0x0, )".into()));
    };
    let LocatorEntry { code, space, length, offset, .. } = entry;
    let code = match code {
        PlatformCode::MacX => "MacX".into(),
        other => String::from_utf8_lossy(&other.to_bytes()).trim_end().to_owned(),
    };
    let text = image.locator_text(&entry)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Some(format!("({code} {:x} {:x}, {length}, {:#x}, {text})", space.0, entry.stored_space(), offset.0)))
}
