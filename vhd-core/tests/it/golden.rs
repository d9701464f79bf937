//! Real images from other programs, with known content.

use std::path::Path;
use std::sync::Arc;

use testkit::{golden, guest_sha256, sha256};
use vhd_core::check::{self, Depth, Severity};
use vhd_core::{Chain, ChainOptions, Container, Footer, FooterOrigin, Header, Image, MemoryStorage, ReadOnly};

fn open(name: &str) -> Image<ReadOnly> {
    let storage = MemoryStorage::new(golden::bytes(name));
    Image::from_container(Container::new(name, Arc::new(storage))).unwrap()
}

#[test]
fn files_are_what_the_manifest_says() {
    for image in golden::manifest() {
        let bytes = golden::bytes(&image.file);
        assert_eq!((bytes.len() as u64, sha256(&bytes)), (image.bytes, image.sha256), "{}", image.file);
    }
}

#[test]
fn footers_and_headers_encode_to_the_bytes_they_were_read_from() {
    for image in golden::manifest() {
        let bytes = golden::bytes(&image.file);
        let read = open(&image.file);
        let at = match read.footer_origin() {
            FooterOrigin::End => bytes.len() - 512,
            FooterOrigin::End511 => bytes.len() - 511,
            FooterOrigin::Start => 0,
        };
        let length = if read.footer_origin() == FooterOrigin::End511 { 511 } else { 512 };
        assert_eq!(read.footer().to_bytes()[..length], bytes[at..at + length], "{}", image.file);
        let decoded = Footer::try_from(&read.footer().to_bytes()).unwrap();
        assert_eq!(&decoded, read.footer());
        if let Some(header) = read.header() {
            let at = read.footer().header_offset().unwrap().0 as usize;
            assert_eq!(header.to_bytes(), bytes[at..at + 1024], "{}", image.file);
            assert_eq!(&Header::try_from(&header.to_bytes()).unwrap(), header);
        }
    }
}

#[test]
fn guest_content_through_the_chain() {
    let mut checked = 0;
    for image in golden::manifest() {
        let Some(expected) = image.guest_sha256 else { continue };
        let names = golden::chain_of(&image.file);
        let folder = golden::unpack(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let chain = Chain::open(&folder.path().join(&image.file), &ChainOptions::default()).unwrap();
        assert_eq!(chain.layers().len(), names.len(), "{}", image.file);
        assert_eq!(guest_sha256(&chain).unwrap(), expected, "{}", image.file);
        checked += 1;
    }
    assert_eq!(checked, 9);
}

#[test]
fn damaged_copies_that_are_still_whole_read_the_same() {
    let manifest = golden::manifest();
    let expected = manifest.iter().find(|image| image.file == "base.vhd").unwrap().guest_sha256.clone().unwrap();
    for name in ["no-end-footer.vhd", "footer-511.vhd", "no-first-footer.vhd", "torn-batmap.vhd"] {
        let folder = golden::unpack(&[name]);
        let chain = Chain::open(&folder.path().join(name), &ChainOptions::default()).unwrap();
        assert_eq!(guest_sha256(&chain).unwrap(), expected, "{name}");
    }
}

#[test]
fn check_explains_each_damage() {
    let codes = |name: &str| -> Vec<_> {
        let folder = golden::unpack(&[name]);
        let report = check::file(&folder.path().join(name)).unwrap();
        report.findings().iter().map(|finding| (finding.severity, finding.code)).collect()
    };
    for name in [
        "empty-10m.vhd",
        "fixed-4m.vhd",
        "base.vhd",
        "mid.vhd",
        "leaf.vhd",
        "sibling.vhd",
        "on-raw.vhd",
        "prealloc.vhd",
        "meta.vhd",
        "odd-blocks.vhd",
        "max-2040g.vhd",
    ] {
        assert_eq!(codes(name), [], "{name}");
    }
    assert_eq!(codes("no-end-footer.vhd"), [(Severity::Error, "footer-end-lost")]);
    assert_eq!(codes("footer-511.vhd"), [(Severity::Warning, "footer-511")]);
    assert_eq!(codes("no-first-footer.vhd"), [(Severity::Warning, "footer-copy-lost")]);
    assert_eq!(codes("torn-batmap.vhd"), [(Severity::Warning, "batmap-checksum")]);
    assert!(codes("overlapping-blocks.vhd").contains(&(Severity::Error, "block-overlap")));
    assert!(codes("bat-beyond-eof.vhd").contains(&(Severity::Error, "bat-entry")));
    assert!(codes("poisoned.vhd").contains(&(Severity::Error, "resize-unfinished")));
    let folder = golden::unpack(&["poisoned.vhd"]);
    let options = ChainOptions::default();
    let (of_parents, _) = check::chain(&folder.path().join("poisoned.vhd"), &options, Depth::Structure).unwrap();
    assert_eq!(of_parents.findings(), [], "it has no parent");
    let report = check::file(&folder.path().join("poisoned.vhd")).unwrap();
    assert!(!report.findings()[0].text.contains("other than"), "what stands there is no footer: {report:?}");
}

#[test]
fn marker_and_key_hash_are_read() {
    let meta = open("meta.vhd");
    let batmap = meta.batmap().unwrap();
    assert!(meta.footer().hidden());
    assert_eq!(batmap.marker(), 5);
    let key = batmap.key_hash().unwrap();
    assert_eq!((key.nonce, key.hash), ([1; 32], [0xab; 32]));
    assert!(open("base.vhd").batmap().unwrap().key_hash().is_none());
}

#[test]
fn an_unfinished_resize_is_refused_unless_asked_for() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    let path = folder.path().join("poisoned.vhd");
    let refused = Chain::open(&path, &ChainOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("resize was interrupted"), "{refused}");
    let accept = vhd_core::UnfinishedResize::Accept;
    Chain::open(&path, &ChainOptions { unfinished_resize: accept, ..ChainOptions::default() }).unwrap();
    assert!(Image::open_writable(Path::new(&path)).is_err());
}

#[test]
fn writing_keeps_what_it_does_not_mean_to_change() {
    let folder = golden::unpack(&["meta.vhd"]);
    let path = folder.path().join("meta.vhd");
    let before = Image::open(&path, vhd_core::Lock::None).unwrap();
    let mut image = Image::open_writable(&path).unwrap();
    let block = vhd_core::SectorRange::new(vhd_core::Sector(0), vhd_core::SectorCount(4096));
    image.write(block, &testkit::pattern::fill(block, 3)).unwrap();
    image.set_size(vhd_core::ByteCount(4 << 30), vhd_core::ByteCount(0)).unwrap();
    image.close().unwrap();
    let after = Image::open(&path, vhd_core::Lock::None).unwrap();
    assert_ne!(
        after.batmap().unwrap().map_offset(),
        before.batmap().unwrap().map_offset(),
        "it has moved with the BAT"
    );
    assert_eq!(after.batmap().unwrap().marker(), 5);
    assert_eq!(after.batmap().unwrap().key_hash(), before.batmap().unwrap().key_hash());
    assert_eq!(after.footer().unique_id(), before.footer().unique_id());
    assert_eq!(after.footer().timestamp(), before.footer().timestamp());
    assert_eq!(after.footer().original_size(), before.footer().original_size());
    assert!(after.footer().hidden());
    assert_eq!(check::file(&path).unwrap().findings(), []);
}
