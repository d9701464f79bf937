use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::*;
use crate::status::example;

fn at(seconds: f64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs_f64(seconds)
}

/// A reader that shares nothing with the writer, CRC included.
#[derive(Debug, PartialEq)]
struct Parsed {
    timestamp: f64,
    sources: Vec<(String, i64, BTreeMap<String, String>)>,
}

fn parse(bytes: &[u8]) -> Parsed {
    let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(&bytes[..11], b"DATASOURCES");
    assert_eq!(bytes.len() % 4096, 0);
    let n = u32_at(19) as usize;
    assert_eq!(u32_at(11), crc32(&bytes[23..31 + 8 * n]), "CRC of the values");
    let timestamp = f64::from_be_bytes(bytes[23..31].try_into().unwrap());
    let value = |i: usize| i64::from_be_bytes(bytes[31 + 8 * i..][..8].try_into().unwrap());
    let length = u32_at(31 + 8 * n) as usize;
    let metadata = &bytes[35 + 8 * n..][..length];
    assert_eq!(u32_at(15), crc32(metadata), "CRC of the metadata");
    assert!(bytes[35 + 8 * n + length..].iter().all(|&byte| byte == 0));
    let text: Text = serde_json::from_slice(metadata).expect("every value is a string");
    assert_eq!(text.datasources.0.len(), n);
    let sources = text.datasources.0.into_iter().enumerate();
    Parsed { timestamp, sources: sources.map(|(i, (name, about))| (name, value(i), about)).collect() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    datasources: Pairs,
}

/// The members of an object, in their order.
struct Pairs(Vec<(String, BTreeMap<String, String>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// zlib's CRC-32, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn the_readers_crc_is_that_of_zlib() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_status_is_told_byte_for_byte_like_this() {
    let bytes = encode(&example(), at(1_800_000_000.5));
    assert_eq!(bytes.len(), 4096);
    let head = "44415441534f5552434553\
        62791282\
        d9385b87\
        00000006\
        41dad27480200000\
        0000000000000005\
        00000001c0000000\
        0000000440000000\
        0000000000000009\
        00000002c0000000\
        0000000340000000";
    let hex: String = bytes[..79].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, head);
    let metadata = concat!(
        r#"{"datasources":{"coalesce_backlog_nodes_01234567":{"description":"Images that are to be merged","#,
        r#""owner":"sr 01234567-89ab-cdef-0123-456789abcdef","value_type":"int64","type":"gauge","default":"true","#,
        r#""units":"nodes","min":"0.0","max":"inf"},"coalesce_backlog_bytes_01234567":{"#
    );
    assert!(bytes[83..].starts_with(metadata.as_bytes()), "{}", String::from_utf8_lossy(&bytes[83..]));
}

#[test]
fn another_reader_finds_what_was_written() {
    let mut status = example();
    let mut second = status.repositories[0].clone();
    (second.uuid, second.path, second.free_bytes) = (None, "/other".into(), u64::MAX);
    status.repositories.push(second);
    let parsed = parse(&encode(&status, at(1_800_000_000.25)));
    assert_eq!(parsed.timestamp, 1_800_000_000.25);
    let seen: Vec<_> = parsed
        .sources
        .iter()
        .map(|(name, value, about)| (name.as_str(), *value, about["type"].as_str(), about["units"].as_str()))
        .collect();
    assert_eq!(
        seen[..6],
        [
            ("coalesce_backlog_nodes_01234567", 5, "gauge", "nodes"),
            ("coalesce_backlog_bytes_01234567", 7 << 30, "gauge", "B"),
            ("coalesce_copied_01234567", 17 << 30, "derive", "B/s"),
            ("chain_depth_max_01234567", 9, "gauge", "nodes"),
            ("free_space_01234567", 11 << 30, "gauge", "B"),
            ("physical_utilisation_01234567", 13 << 30, "gauge", "B"),
        ]
    );
    let (name, value, about) = &parsed.sources[10];
    assert_eq!((name.as_str(), *value), (format!("free_space_{:08x}", crc32(b"/other")).as_str(), i64::MAX));
    assert_eq!(about["owner"], "host");
    assert_eq!(parsed.sources[0].2["owner"], "sr 01234567-89ab-cdef-0123-456789abcdef");
    assert!(parsed.sources.iter().all(|(_, _, about)| about["value_type"] == "int64" && about["default"] == "true"));
}

#[test]
fn names_differ_even_where_repositories_do_not() {
    let mut status = example();
    status.repositories = vec![status.repositories[0].clone(); 3];
    let parsed = parse(&encode(&status, at(1.0)));
    let names: HashSet<_> = parsed.sources.iter().map(|source| &source.0).collect();
    assert_eq!(names.len(), 18);
    assert!(names.contains(&"free_space_01234567_3".to_string()));
}

#[test]
fn values_change_in_place_and_other_sources_make_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("coalesce-worker");
    fs::write(&path, "of a worker that has died").unwrap();
    let stale = fs::metadata(&path).unwrap().ino();
    let (mut rrd, mut status) = (RrdFile::new(&path), example());

    // As the daemon does it: opened once, and read again and again.
    rrd.update(&status, at(5.0)).unwrap();
    let reader = File::open(&path).unwrap();
    assert_ne!(reader.metadata().unwrap().ino(), stale);
    let read = |file: &File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        parse(&bytes)
    };
    status.repositories[0].bytes_moved_total += 1;
    rrd.update(&status, at(10.0)).unwrap();
    let parsed = read(&reader);
    assert_eq!((parsed.timestamp, parsed.sources[2].1), (10.0, (17 << 30) + 1));

    status.repositories.push(example().repositories.remove(0));
    rrd.update(&status, at(15.0)).unwrap();
    assert_eq!(read(&reader).timestamp, 10.0, "the old file is left as it was");
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    let reader = File::open(&path).unwrap();
    assert_eq!(read(&reader).sources.len(), 12);

    fs::remove_file(&path).unwrap();
    rrd.update(&status, at(20.0)).unwrap();
    assert_eq!(parse(&fs::read(&path).unwrap()).timestamp, 20.0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    rrd.remove().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_ours_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("coalesce-worker");
    fs::write(&path, "of another").unwrap();
    RrdFile::new(&path).remove().unwrap();
    assert!(path.exists());
    let mut rrd = RrdFile::new(&path);
    rrd.update(&example(), at(1.0)).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "of another").unwrap();
    rrd.remove().unwrap();
    assert!(path.exists());
}
