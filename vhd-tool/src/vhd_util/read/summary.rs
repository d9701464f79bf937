//! How headers are printed: `-p` of blktap's program, line by line.

use std::io::{self, Write};

use vhd_core::{Timestamp, Uuid};

use crate::date::ctime_utc;
use crate::vhd_util::key::hex;
use crate::vhd_util::printable;

use super::Numbers;

/// The bytes of a record of the image, whose numbers are big-endian.
pub(super) struct Record(Vec<u8>);

impl Record {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        self.0[at..at + 2].iter().fold(0, |number, &byte| number << 8 | u16::from(byte))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        self.0[at..at + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    fn uuid(&self, at: usize) -> Uuid {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[at..at + 16]);
        Uuid::from_bytes(id)
    }

    fn time(&self, at: usize) -> String {
        ctime_utc(Timestamp(self.u32(at)))
    }

    /// Some characters, up to a zero; what is no letter of a terminal is a dot.
    fn text(&self, at: usize, length: usize) -> String {
        let bytes = self.0[at..at + length].iter().take_while(|&&byte| byte != 0);
        bytes.map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' }).collect()
    }

    /// The checksum as it is stored and as it should be, which leaves out its own field.
    fn checksum(&self, field: usize) -> (u32, u32) {
        let own = byte_sum(&self.0[field..field + 4]);
        (self.u32(field), !byte_sum(&self.0).wrapping_sub(own))
    }
}

fn byte_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(byte.into()))
}

/// Prints a title, and then lines, the last of which is empty.
struct Section<'a> {
    out: &'a mut dyn Write,
    numbers: Numbers,
}

impl<'a> Section<'a> {
    fn begin(title: &str, numbers: Numbers, out: &'a mut dyn Write) -> io::Result<Self> {
        writeln!(out, "{title}\n{}", "-".repeat(title.len()))?;
        Ok(Self { out, numbers })
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{name:<20}: {value}")
    }

    fn number(&mut self, name: &str, value: impl Into<u64>) -> io::Result<()> {
        self.line(name, self.numbers.show(value.into()))
    }

    fn megabytes(&mut self, name: &str, before: &str, bytes: u64) -> io::Result<()> {
        let (mebibytes, bytes) = (self.numbers.show(bytes >> 20), self.numbers.show(bytes));
        self.line(name, format_args!("{before}{mebibytes} MB ({bytes} Bytes)"))
    }

    fn end(self) -> io::Result<()> {
        writeln!(self.out)
    }

    fn checksum(&mut self, (stored, expected): (u32, u32)) -> io::Result<()> {
        let verdict = if stored == expected { "Good!" } else { "Bad!" };
        self.line("Checksum", format_args!("0x{stored:x}|0x{expected:x} ({verdict})"))
    }
}

pub(super) fn footer(footer: &Record, numbers: Numbers, out: &mut dyn Write) -> io::Result<()> {
    let mut section = Section::begin("VHD Footer Summary:", numbers, out)?;
    let features = footer.u32(8);
    let named = |bit: u32, name| if features & bit == 0 { "" } else { name };
    section.line("Cookie", footer.text(0, 8))?;
    section.line("Features", format_args!("(0x{features:08x}) {}{}", named(1, "<TEMP>"), named(2, "<RESV>")))?;
    section.line("File format version", format_args!("Major: {}, Minor: {}", footer.u16(12), footer.u16(14)))?;
    section.number("Data offset", footer.u64(16))?;
    section.line("Timestamp", footer.time(24))?;
    section.line("Creator Application", format_args!("'{}'", footer.text(28, 4)))?;
    section.line("Creator version", format_args!("Major: {}, Minor: {}", footer.u16(32), footer.u16(34)))?;
    let system = match &footer.bytes()[36..40] {
        b"Wi2k" => "Windows",
        b"Mac " => "Macintosh",
        _ => "Unknown!",
    };
    section.line("Creator OS", system)?;
    section.megabytes("Original disk size", "", footer.u64(40))?;
    section.megabytes("Current disk size", "", footer.u64(48))?;
    let geometry = [footer.u16(56).into(), footer.bytes()[58].into(), footer.bytes()[59].into()];
    let [cylinders, heads, sectors] = geometry.map(|count| numbers.show(count));
    section.line("Geometry", format_args!("Cyl: {cylinders}, Hds: {heads}, Sctrs: {sectors}"))?;
    section.megabytes("", "= ", geometry.iter().product::<u64>() * 512)?;
    let kind = match footer.u32(60) {
        0 => "None",
        2 => "Fixed hard disk",
        3 => "Dynamic hard disk",
        4 => "Differencing hard disk",
        1 | 5 | 6 => "Reserved (deprecated)",
        _ => "Unknown type!",
    };
    section.line("Disk type", kind)?;
    section.checksum(footer.checksum(64))?;
    section.line("UUID", footer.uuid(68))?;
    section.line("Saved state", if footer.bytes()[84] == 0 { "No" } else { "Yes" })?;
    section.line("Hidden", footer.bytes()[85])?;
    section.end()
}

pub(super) fn header(header: &Record, numbers: Numbers, out: &mut dyn Write) -> io::Result<()> {
    let mut section = Section::begin("VHD Header Summary:", numbers, out)?;
    section.line("Cookie", header.text(0, 8))?;
    section.number("Data offset (unusd)", header.u64(8))?;
    section.number("Table offset", header.u64(16))?;
    section.line("Header version", format_args!("0x{:08x}", header.u32(24)))?;
    section.number("Max BAT size", header.u32(28))?;
    let [block_size, mebibytes] = [header.u32(32), header.u32(32) >> 20].map(|size| numbers.show(size.into()));
    section.line("Block size", format_args!("{block_size} ({mebibytes} MB)"))?;
    let units = (64..576).step_by(2).map(|at| header.u16(at)).take_while(|&unit| unit != 0);
    let name: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    section.line("Parent name", printable(&name))?;
    section.line("Parent UUID", header.uuid(40))?;
    section.line("Parent timestamp", header.time(56))?;
    section.checksum(header.checksum(36))?;
    section.end()
}

/// Prints what comes before the locators.
pub(super) fn locators(numbers: Numbers, out: &mut dyn Write) -> io::Result<()> {
    Section::begin("VHD Parent Locators:", numbers, out).map(drop)
}

/// Prints the locator whose entry is at `entry` in the header.
pub(super) fn locator(
    slot: usize,
    header: &Record,
    entry: usize,
    name: Option<&str>,
    numbers: Numbers,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut section = Section { out, numbers };
    section.line("locator:", slot)?;
    section.line("       code", format_args!("PLAT_CODE_{}", header.text(entry, 4).trim_end().to_uppercase()))?;
    section.number("       data_space", header.u32(entry + 4))?;
    section.number("       data_length", header.u32(entry + 8))?;
    section.number("       data_offset", header.u64(entry + 16))?;
    match name {
        Some(name) => section.line("       decoded name", printable(name))?,
        None => writeln!(section.out, "failed to read parent name")?,
    }
    section.end()
}

/// Prints a batmap; `map` is none where it cannot be read.
pub(super) fn batmap(batmap: &Record, map: Option<&[u8]>, numbers: Numbers, out: &mut dyn Write) -> io::Result<()> {
    let mut section = Section::begin("VHD Batmap Summary:", numbers, out)?;
    section.number("Batmap offset", batmap.u64(8))?;
    section.number("Batmap size (secs)", batmap.u32(16))?;
    let version = batmap.u32(20);
    section.line("Batmap version", format_args!("0x{version:08x}"))?;
    if batmap.bytes()[29] == 1 {
        writeln!(section.out, "Batmap keyhash nonce: {}", hex(&batmap.bytes()[30..62]))?;
        writeln!(section.out, "Batmap keyhash hash : {}", hex(&batmap.bytes()[62..94]))?;
    }
    let stored = batmap.u32(24);
    let Some(map) = map else {
        section.line("Checksum", format_args!("0x{stored:x}|unknown (Bad!)"))?;
        return section.end();
    };
    let sum = |map: &[u8]| match version {
        // The first version takes bytes for signed numbers.
        0x0001_0001 => !map.iter().fold(0, |sum: u32, &byte| sum.wrapping_add_signed(byte.cast_signed().into())),
        _ => !byte_sum(map),
    };
    // Some maps have a last sector that the checksum leaves out.
    let short = sum(&map[..map.len().saturating_sub(512)]);
    section.checksum((stored, if stored == short { short } else { sum(map) }))?;
    section.end()
}
