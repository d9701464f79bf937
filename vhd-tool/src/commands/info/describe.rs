//! What is shown of an image, as data.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use vhd_core::{
    Container, DiskType, FooterOrigin, Header, Image, Layer, LocatorEntry, PlatformCode, ReadError, ReadOnly,
    StorageError, Uuid,
};

use crate::date::iso_utc;
use crate::error::{CommandError, Refusal};

/// One file of a chain.
#[derive(Serialize)]
pub(super) struct Description {
    pub(super) file: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) size: u64,
    pub(super) file_length: u64,
    pub(super) own_size: u64,
    #[serde(flatten)]
    pub(super) vhd: Option<Vhd>,
}

#[derive(Serialize)]
pub(super) struct Vhd {
    pub(super) uuid: Uuid,
    pub(super) creator: Creator,
    pub(super) timestamp: String,
    pub(super) geometry: Shape,
    #[serde(skip)]
    pub(super) current_size: u64,
    pub(super) original_size: u64,
    pub(super) hidden: bool,
    pub(super) saved_state: bool,
    pub(super) resize_unfinished: bool,
    pub(super) footer: &'static str,
    #[serde(flatten)]
    pub(super) tables: Option<Tables>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<Parent>,
}

#[derive(Serialize)]
pub(super) struct Creator {
    pub(super) application: String,
    pub(super) version: String,
    pub(super) host_os: String,
}

#[derive(Serialize)]
pub(super) struct Shape {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors_per_track: u8,
}

#[derive(Serialize)]
pub(super) struct Tables {
    pub(super) block_size: u32,
    pub(super) bat_entries: u32,
    pub(super) bat_offset: u64,
    pub(super) blocks: u32,
    pub(super) allocated_blocks: u64,
    pub(super) bad_blocks: u64,
    pub(super) batmap: Batmap,
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum Batmap {
    Absent,
    /// The creator promises one, and something else is in its place.
    Lost,
    Present {
        offset: u64,
        version: String,
        marker: u8,
        key_hash: bool,
    },
}

#[derive(Serialize)]
pub(super) struct Parent {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) timestamp: String,
    pub(super) locators: Vec<Locator>,
}

#[derive(Serialize)]
pub(super) struct Locator {
    pub(super) slot: usize,
    pub(super) code: String,
    pub(super) offset: u64,
    pub(super) length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
}

impl Description {
    pub(super) fn of_layer(layer: &Layer) -> Result<Self, CommandError> {
        match layer {
            Layer::Vhd(image) => Self::of_vhd(image),
            Layer::Raw(disk) => Self::new(layer.path(), disk.container(), "raw", disk.size().0, None),
        }
    }

    pub(super) fn of_vhd(image: &Image<ReadOnly>) -> Result<Self, CommandError> {
        let kind = match image.footer().disk_type() {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        };
        let vhd = Vhd::of(image)?;
        Self::new(image.path(), image.container(), kind, vhd.current_size, Some(vhd))
    }

    fn new(
        path: &Path,
        container: &Container,
        kind: &'static str,
        size: u64,
        vhd: Option<Vhd>,
    ) -> Result<Self, CommandError> {
        let metadata = std::fs::metadata(path).map_err(Refusal::io(path, "read its metadata"))?;
        Ok(Self {
            file: path.display().to_string(),
            kind,
            size,
            file_length: container.len()?.0,
            own_size: metadata.blocks() * 512,
            vhd,
        })
    }
}

impl Vhd {
    fn of(image: &Image<ReadOnly>) -> Result<Self, ReadError> {
        let footer = image.footer();
        let geometry = footer.geometry();
        let text = |bytes: [u8; 4]| String::from_utf8_lossy(&bytes).trim_end_matches(['\0', ' ']).to_owned();
        Ok(Self {
            uuid: footer.unique_id(),
            creator: Creator {
                application: text(footer.creator_application()),
                version: format!("{:#010x}", footer.creator_version()),
                host_os: text(footer.creator_host_os()),
            },
            timestamp: iso_utc(footer.timestamp()),
            geometry: Shape {
                cylinders: geometry.cylinders,
                heads: geometry.heads,
                sectors_per_track: geometry.sectors_per_track,
            },
            current_size: footer.current_size().0,
            original_size: footer.original_size().0,
            hidden: footer.hidden(),
            saved_state: footer.saved_state(),
            resize_unfinished: footer.poisoned(),
            footer: match image.footer_origin() {
                FooterOrigin::End => "at the end",
                FooterOrigin::End511 => "at the end, 511 bytes",
                FooterOrigin::Start => "only at the start, the one at the end is lost",
            },
            tables: image.header().map(|header| Tables::of(image, header)).transpose()?,
            parent: match image.header().filter(|_| image.is_differencing()) {
                Some(header) => Some(Parent::of(image, header)?),
                None => None,
            },
        })
    }
}

impl Tables {
    fn of(image: &Image<ReadOnly>, header: &Header) -> Result<Self, ReadError> {
        let (mut allocated_blocks, mut bad_blocks) = (0, 0);
        for found in image.allocated_blocks() {
            match found {
                Ok(_) => allocated_blocks += 1,
                Err(ReadError::Block { .. }) => bad_blocks += 1,
                Err(error) => return Err(error),
            }
        }
        let batmap = match image.batmap() {
            Some(batmap) => Batmap::Present {
                offset: batmap.map_offset().0,
                version: format!("{:#010x}", batmap.version()),
                marker: batmap.marker(),
                key_hash: batmap.key_hash().is_some(),
            },
            None if image.batmap_overwritten() => Batmap::Lost,
            None => Batmap::Absent,
        };
        Ok(Self {
            block_size: header.block_size().get(),
            bat_entries: header.max_table_entries(),
            bat_offset: header.table_offset().0,
            blocks: image.blocks(),
            allocated_blocks,
            bad_blocks,
            batmap,
        })
    }
}

impl Parent {
    fn of(image: &Image<ReadOnly>, header: &Header) -> Result<Self, StorageError> {
        let locators = header.locators().map(|(slot, entry)| {
            Ok(Locator {
                slot,
                code: String::from_utf8_lossy(&entry.code.to_bytes()).into_owned(),
                offset: entry.offset.0,
                length: entry.length.0,
                text: text_of(image, &entry)?,
            })
        });
        Ok(Self {
            uuid: header.parent_unique_id(),
            name: header.parent_name(),
            timestamp: iso_utc(header.parent_timestamp()),
            locators: locators.collect::<Result<_, StorageError>>()?,
        })
    }
}

/// The text of a locator, for people to read; `None` where there is none, or none that we can read.
fn text_of(image: &Image<ReadOnly>, entry: &LocatorEntry) -> Result<Option<String>, StorageError> {
    let Some(bytes) = image.locator_text(entry)? else { return Ok(None) };
    let text = match entry.code {
        PlatformCode::MacX => String::from_utf8_lossy(&bytes).into_owned(),
        PlatformCode::W2ku | PlatformCode::W2ru => {
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        PlatformCode::Wi2k | PlatformCode::Wi2r | PlatformCode::Other(_) => return Ok(None),
    };
    Ok(Some(text.trim_end_matches('\0').to_owned()))
}
