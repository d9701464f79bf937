//! The fault matrix: each field of each golden image is damaged in turn. Either everything reads as before, or a finding
//! says where the damage is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use testkit::golden;
use vhd_core::check::{self, Depth};
use vhd_core::{Chain, ChainExtent, ChainOptions, DiskType, Image, Lock, ReadOnly, Sector, SectorRange};

/// The images, each with the files that it reads through.
const IMAGES: &[&[&str]] = &[
    &["empty-10m.vhd"],
    &["fixed-4m.vhd"],
    &["base.vhd"],
    &["mid.vhd", "base.vhd"],
    &["leaf.vhd", "mid.vhd", "base.vhd"],
    &["sibling.vhd", "mid.vhd", "base.vhd"],
    &["on-raw.vhd", "raw-parent.img"],
    &["prealloc.vhd"],
    &["meta.vhd"],
    &["odd-blocks.vhd"],
    &["max-2040g.vhd"],
];

const FOOTER: &[(&str, Range<u64>)] = &[
    ("cookie", 0..8),
    ("features", 8..12),
    ("version", 12..16),
    ("data_offset", 16..24),
    ("timestamp", 24..28),
    ("creator_application", 28..32),
    ("creator_version", 32..36),
    ("creator_host_os", 36..40),
    ("original_size", 40..48),
    ("current_size", 48..56),
    ("cylinders", 56..58),
    ("heads", 58..59),
    ("sectors_per_track", 59..60),
    ("disk_type", 60..64),
    ("checksum", 64..68),
    ("unique_id", 68..84),
    ("saved_state", 84..85),
    ("hidden", 85..86),
    ("reserved", 86..512),
];

const HEADER: &[(&str, Range<u64>)] = &[
    ("cookie", 0..8),
    ("data_offset", 8..16),
    ("table_offset", 16..24),
    ("version", 24..28),
    ("max_table_entries", 28..32),
    ("block_size", 32..36),
    ("checksum", 36..40),
    ("parent_unique_id", 40..56),
    ("parent_timestamp", 56..60),
    ("reserved", 60..64),
    ("parent_name", 64..576),
    ("reserved_end", 768..1024),
];

const LOCATOR: &[(&str, Range<u64>)] =
    &[("code", 0..4), ("space", 4..8), ("length", 8..12), ("reserved", 12..16), ("offset", 16..24)];

const BATMAP: &[(&str, Range<u64>)] = &[
    ("cookie", 0..8),
    ("map_offset", 8..16),
    ("map_sectors", 16..20),
    ("version", 20..24),
    ("checksum", 24..28),
    ("marker", 28..29),
    ("key_hash", 29..94),
];

/// A field of a file.
struct Field {
    /// As the matrix calls it.
    name: String,
    at: Range<u64>,
    /// The record that has a checksum over it, and where in it that is.
    sealed: Option<(Range<u64>, u64)>,
    /// What a finding may call it: any of these.
    called: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    LowestBit,
    HighestBit,
    Zeros,
}

impl Fault {
    fn on(self, bytes: &mut [u8]) {
        match self {
            Self::LowestBit => *bytes.last_mut().unwrap() ^= 1,
            Self::HighestBit => bytes[0] ^= 0x80,
            Self::Zeros => bytes.fill(0),
        }
    }
}

/// An image, its fields, and what it reads while it is whole.
struct Subject {
    path: PathBuf,
    file: File,
    fields: Vec<Field>,
    whole: Vec<ChainExtent>,
    found: BTreeSet<String>,
}

fn extents(path: &Path) -> Option<Vec<ChainExtent>> {
    let chain = Chain::open(path, &ChainOptions::default()).ok()?;
    chain.extents(SectorRange::between(Sector(0), Sector(chain.sectors().0))).collect::<Result<_, _>>().ok()
}

fn findings(path: &Path) -> BTreeSet<String> {
    let line = |finding: &check::Finding| format!("{}: {}", finding.code, finding.text);
    let own = check::file_to(path, Depth::Data).unwrap();
    let (chain, _) = check::chain(path, &ChainOptions::default(), Depth::Data).unwrap();
    own.findings().iter().chain(chain.findings()).map(line).collect()
}

impl Subject {
    fn new(path: PathBuf) -> Self {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let (whole, found) = (extents(&path).unwrap(), findings(&path));
        let fields = fields(&path);
        Self { path, file, fields, whole, found }
    }

    /// Damages a field, looks, and puts it right again; tells what came of it.
    fn damage(&self, field: &Field, fault: Fault, seal: bool) -> &'static str {
        let record = if seal { field.sealed.clone().unwrap().0 } else { field.at.clone() };
        let mut before = vec![0; (record.end - record.start) as usize];
        self.file.read_exact_at(&mut before, record.start).unwrap();
        let mut after = before.clone();
        fault.on(&mut after[(field.at.start - record.start) as usize..(field.at.end - record.start) as usize]);
        if after == before {
            return "as it was";
        }
        if let Some((_, checksum)) = field.sealed.as_ref().filter(|_| seal) {
            testkit::seal(&mut after, *checksum as usize);
        }
        let modified = fs::metadata(&self.path).unwrap().modified().unwrap();
        self.file.write_all_at(&after, record.start).unwrap();
        let result = self.result(field);
        self.file.write_all_at(&before, record.start).unwrap();
        self.file.set_modified(modified).unwrap();
        result
    }

    fn result(&self, field: &Field) -> &'static str {
        let found = findings(&self.path);
        let is_named = |line: &&String| field.called.iter().any(|name| line.contains(name));
        let is_found = found.difference(&self.found).any(|line| is_named(&line));
        let reads_as_before = extents(&self.path).is_some_and(|now| now == self.whole);
        match (reads_as_before, is_found) {
            (true, true) => "reads as before, found",
            (true, false) => "reads as before",
            (false, true) => "found",
            (false, false) => {
                eprintln!("{}: {}: {:?}", self.path.display(), field.name, found.difference(&self.found));
                "SILENT"
            }
        }
    }
}

fn fields(path: &Path) -> Vec<Field> {
    let image: Image<ReadOnly> = Image::open(path, Lock::None).unwrap();
    let len = fs::metadata(path).unwrap().len();
    let mut fields = Vec::new();
    let mut record = |record: &str, start: u64, size: u64, list: &[(&str, Range<u64>)], checksum, called: &[&str]| {
        for (name, at) in list {
            let mut names: Vec<String> = called.iter().map(|&name| name.to_owned()).collect();
            names.push((*name).to_owned());
            fields.push(Field {
                name: format!("{record}: {name}"),
                at: start + at.start..start + at.end,
                sealed: (*name != "checksum").then_some((start..start + size, checksum)),
                called: names,
            });
        }
    };
    record("footer at the end", len - 512, 512, FOOTER, 64, &[]);
    let Some(header) = image.header() else {
        // A fixed disk has nothing to compare its one footer with.
        for field in &mut fields {
            field.called.push("footer".into());
        }
        return fields;
    };
    record("footer at the start", 0, 512, FOOTER, 64, &[]);
    // One sum says that the header is damaged, not where.
    record("header", 512, 1024, HEADER, 36, &["header-damaged", "parent-identity", "locator-differs"]);
    if image.footer().disk_type() == DiskType::Differencing {
        for (slot, _) in header.locators() {
            let at = 512 + 576 + slot as u64 * 24;
            for (name, place) in LOCATOR {
                fields.push(Field {
                    name: format!("header: locator {slot}: {name}"),
                    at: at + place.start..at + place.end,
                    sealed: Some((512..1536, 36)),
                    called: ["header-damaged", "parent-missing", "a parent locator"]
                        .map(str::to_owned)
                        .into_iter()
                        .chain([format!("parent locator {slot}")])
                        .collect(),
                });
            }
        }
    }
    let table = header.table_offset().0;
    let mut entry = [0; 4];
    let file = File::open(path).unwrap();
    let (mut unallocated, entries) = (0, header.max_table_entries());
    for block in 0..entries {
        file.read_exact_at(&mut entry, table + u64::from(block) * 4).unwrap();
        unallocated += u32::from(entry == [0xff; 4]);
        // Of those that say nothing, a few stand for all.
        if entry != [0xff; 4] || unallocated <= 3 {
            let at = table + u64::from(block) * 4;
            let called = vec![
                format!("block {block}"),
                format!("entry {block}"),
                format!("blocks {block}"),
                format!("and {block} "),
            ];
            fields.push(Field { name: format!("BAT: entry {block}"), at: at..at + 4, sealed: None, called });
        }
    }
    if image.batmap().is_some() {
        let at = (table + u64::from(entries) * 4).next_multiple_of(512);
        for (name, place) in BATMAP {
            let called = vec!["batmap".to_owned()];
            fields.push(Field {
                name: format!("batmap: {name}"),
                at: at + place.start..at + place.end,
                sealed: None,
                called,
            });
        }
        let mut map = [0; 8];
        file.read_exact_at(&mut map, at + 8).unwrap();
        let map = u64::from_be_bytes(map);
        fields.push(Field {
            name: "batmap: map".into(),
            at: map..map + 1,
            sealed: None,
            called: vec!["batmap".into()],
        });
    }
    fields
}

fn matrix_of(names: &[&str]) -> Vec<(String, &'static str)> {
    let folder = golden::unpack(names);
    let subject = Subject::new(folder.path().join(names[0]));
    let mut matrix = Vec::new();
    for field in &subject.fields {
        for fault in [Fault::LowestBit, Fault::HighestBit, Fault::Zeros] {
            for seal in [false, true].into_iter().filter(|seal| !seal || field.sealed.is_some()) {
                let sealed = if seal { ", checksum set right" } else { "" };
                let line = format!("{}: {}: {fault:?}{sealed}", names[0], field.name);
                matrix.push((line, subject.damage(field, fault, seal)));
            }
        }
    }
    assert_eq!(findings(&subject.path), subject.found, "all is put right again");
    matrix
}

#[test]
fn a_damaged_field_reads_as_before_or_is_found() {
    let parts = thread::scope(|scope| {
        let parts: Vec<_> = IMAGES.iter().map(|names| scope.spawn(|| matrix_of(names))).collect();
        parts.into_iter().map(|part| part.join().unwrap()).collect::<Vec<_>>()
    });
    let mut totals: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut matrix = String::new();
    for (line, result) in parts.into_iter().flatten() {
        writeln!(matrix, "{line}: {result}").unwrap();
        *totals.entry(result).or_default() += 1;
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fault-matrix.txt");
    fs::write(&place, matrix).unwrap();
    testkit::tell!("fault matrix: {totals:?}; all of it in {}", place.display());
    assert_eq!(totals.get("SILENT"), None);
}
