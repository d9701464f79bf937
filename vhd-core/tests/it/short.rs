//! Files that hold less than their disk: a footer, or nothing at all, stands where the guest's last bytes should.

use std::error::Error;
use std::iter::successors;
use std::sync::Arc;

use proptest::prelude::*;
use testkit::loop_device::LoopDevice;
use testkit::pattern;
use vhd_core::check;
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, Extents, Image, Layer, Lock, MemoryStorage, MergeMark, NewKind, OpenError,
    ParentLink, ReadOnly, ReadWrite, Sector, Timestamp, Uuid,
};

use super::{container, new_image, open_writable, sectors};

const FOOTER: usize = 512;
/// The sectors of the disks.
const DISK: u64 = 128;

fn content() -> Vec<u8> {
    pattern::fill(sectors(0, DISK), 3)
}

fn fixed() -> Vec<u8> {
    let memory = new_image(DISK * 512, NewKind::Fixed);
    let image = open_writable(&memory);
    image.write(sectors(0, DISK), &content()).unwrap();
    image.close().unwrap();
    memory.to_vec()
}

/// Takes `count` bytes away from before the last `footer`.
fn shortened(mut bytes: Vec<u8>, count: usize, footer: usize) -> Arc<MemoryStorage> {
    let end = bytes.len() - footer;
    bytes.drain(end - count..end);
    Arc::new(MemoryStorage::new(bytes))
}

fn text(error: &OpenError) -> String {
    let first: &dyn Error = error;
    successors(Some(first), |&error| error.source()).map(|error| format!("{error}: ")).collect()
}

fn codes(memory: &Arc<MemoryStorage>) -> Vec<&'static str> {
    check::container(container(memory)).unwrap().findings().iter().map(|finding| finding.code).collect()
}

#[test]
fn a_fixed_disk_without_its_last_bytes_is_not_opened() {
    for footer in [FOOTER, FOOTER - 1] {
        let whole = fixed()[..fixed().len() - (FOOTER - footer)].to_vec();
        let memory = Arc::new(MemoryStorage::new(whole.clone()));
        let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(super::open(&memory)))]);
        let mut read = vec![0; content().len()];
        chain.read(sectors(0, DISK), &mut read).unwrap();
        assert!(read == content(), "a footer of {footer} bytes is no harm");
        for missing in (1..=514).chain([4096, 60_000]) {
            let short = shortened(whole.clone(), missing, footer);
            let told = format!(
                "memory.vhd: the fixed disk has 65536 bytes, but the file only {} before its footer: {missing} are missing",
                65536 - missing
            );
            let error = text(&Image::<ReadOnly>::from_container(container(&short)).unwrap_err());
            assert!(error.contains(&told), "{missing}: {error}");
            let error = text(&Image::writable_from_container(container(&short)).unwrap_err());
            assert!(error.contains(&told), "{missing}: {error}");
            assert!(codes(&short).contains(&"fixed-short"), "{missing}: {:?}", codes(&short));
        }
    }
}

/// What is left of a footer is never taken for one.
#[test]
fn a_fixed_disk_whose_footer_was_cut_is_whole_or_no_image() {
    for missing in 1..=514 {
        let mut bytes = fixed();
        bytes.truncate(bytes.len() - missing);
        let memory = Arc::new(MemoryStorage::new(bytes));
        match Image::<ReadOnly>::from_container(container(&memory)) {
            Ok(_) => assert_eq!(missing, 1, "511 bytes are a footer of Virtual PC"),
            Err(error) => assert!(text(&error).contains("not a VHD, or its footer is lost"), "{missing}: {error}"),
        }
    }
}

#[test]
fn a_device_too_small_for_its_fixed_disk_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("disk"), 1 << 20);
    let footer = new_image(1 << 20, NewKind::Fixed).to_vec().split_off(1 << 20);
    let mut bytes = vec![5; 1 << 20];
    bytes[(1 << 20) - FOOTER..].copy_from_slice(&footer);
    std::fs::write(&device.path, bytes).unwrap();
    let error = text(&Image::<ReadOnly>::open(&device.path, Lock::None).unwrap_err());
    assert!(error.contains("512 are missing"), "{error}");
}

/// A block of 16 KiB that ends with the disk and with the file, over a parent or not.
fn block(kind: impl Fn(BlockSize) -> NewKind, written: u64) -> Vec<u8> {
    let memory = new_image(32 << 10, kind(BlockSize::new(16 << 10).unwrap()));
    let image = open_writable(&memory);
    image.write(sectors(32, written), &pattern::fill(sectors(32, written), 3)).unwrap();
    image.close().unwrap();
    memory.to_vec()
}

fn dynamic(block_size: BlockSize) -> NewKind {
    NewKind::Dynamic { block_size }
}

fn differencing(block_size: BlockSize) -> NewKind {
    let parent = ParentLink::to_named("parent.vhd".as_ref(), Uuid::from_u128(7), Timestamp(1)).unwrap();
    NewKind::Differencing { block_size, parent }
}

/// Reads a sector by its extents, as merges do; `None` where the image does not hold it.
fn read_sector<E>(
    sector: u64,
    resolve: impl Fn(&mut Extents) -> Result<(), E>,
    bytes: &[u8],
) -> Result<Option<Vec<u8>>, E> {
    let mut extents = Extents::default();
    resolve(&mut extents)?;
    let [extent] = extents.as_slice() else { panic!("sector {sector} has one extent") };
    Ok(match extent.source {
        vhd_core::Source::Data(at) => bytes.get(at.0 as usize..at.0 as usize + 512).map(<[u8]>::to_vec),
        _ => None,
    })
}

proptest! {
    /// Each sector of a block that the file's end cuts short reads as what was written, or is an error; never as the footer.
    #[test]
    fn no_footer_is_read_as_the_end_of_a_block(
        missing in prop_oneof![1_usize..=513, 1_usize..=(17 << 10)],
        footer in prop_oneof![Just(FOOTER), Just(FOOTER - 1), Just(0)],
        written in 1_u64..=32,
        is_child in any::<bool>(),
    ) {
        let whole = if is_child { block(differencing, written) } else { block(dynamic, written) };
        let whole = whole[..whole.len() - (FOOTER - footer)].to_vec();
        let data = whole.len() - footer - (16 << 10);
        let short = shortened(whole, missing, footer);
        let kept = (16_usize << 10).saturating_sub(missing) as u64;
        let reader = super::open(&short);
        // Where nothing is left of the block it is not opened at all.
        let writer = Image::writable_from_container(container(&short));
        let bytes = short.to_vec();
        for sector in 0..written {
            let range = sectors(32 + sector, 1);
            let written = match &writer {
                Ok(writer) => read_sector(sector, |extents| writer.resolve(range, extents), &bytes).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let read = read_sector(sector, |extents| reader.resolve(range, extents), &bytes).map_err(|e| e.to_string());
            for found in [read, written] {
                if sector * 512 + 512 <= kept {
                    prop_assert_eq!(found.unwrap().unwrap(), pattern::fill(range, 3));
                } else {
                    let error = found.unwrap_err();
                    let told = format!("the BAT puts block 1 at offset {}, but", data - 512);
                    prop_assert!(error.contains(&told), "{}", error);
                }
            }
        }
    }
}

/// What can be done to an image.
type Operation = fn(Image<ReadWrite>) -> bool;

/// Operations by name; each tells whether it was done.
const OPERATIONS: [(&str, Operation); 17] = [
    ("write into the block", |image| image.write(sectors(32, 1), &[1; 512]).is_ok()),
    ("write a new block", |image| image.write(sectors(0, 1), &[1; 512]).is_ok()),
    ("a place in the block", |image| image.place_for(sectors(32, 1)).is_ok()),
    ("write zeros", |image| image.write_zeroes(sectors(0, 64)).is_ok()),
    ("write zeros over nothing", |image| image.write_zeroes(sectors(0, 8)).is_ok()),
    ("reserve", |image| image.reserve(&[BlockIndex(0)]).is_ok()),
    ("grow", |mut image| image.set_size(ByteCount(1 << 20), ByteCount(0)).is_ok()),
    ("shrink", |mut image| image.set_size(ByteCount(16 << 10), ByteCount(0)).is_ok()),
    ("compact", |mut image| image.compact(None, |_| {}).is_ok()),
    ("lay out", |mut image| image.lay_out().is_ok()),
    ("drop leftovers", |mut image| image.drop_leftovers().is_ok()),
    ("another length", |image| image.set_physical_size(ByteCount(1 << 20)).is_ok()),
    ("renew the footers", |mut image| image.renew_footers().is_ok()),
    ("hide", |mut image| image.set_hidden(true).is_ok()),
    ("trim", |mut image| image.trim_tail().is_ok()),
    ("mark a merge", |image| {
        image.set_merge_mark(Some(MergeMark { merge: Uuid::nil(), merged_before: Sector(1) })).is_ok()
    }),
    ("close", |image| image.close().is_ok()),
];

/// Whatever is done to an image that has lost its end, the loss stays to be found. A volume can be hidden, and so deleted.
#[test]
fn a_loss_is_never_turned_into_zeros() {
    for footer in [FOOTER, 0] {
        for kind in [dynamic as fn(BlockSize) -> NewKind, differencing] {
            let whole = block(kind, 32);
            let whole = whole[..whole.len() - (FOOTER - footer)].to_vec();
            for (name, operation) in OPERATIONS {
                let short = shortened(whole.clone(), 3000, footer);
                let length = short.to_vec().len();
                let done = operation(open_writable(&short));
                let may_be_done = ["lay out", "hide", "trim", "mark a merge", "close"].contains(&name);
                assert_eq!(done, may_be_done, "{name}");
                assert!(codes(&short).contains(&"block-truncated"), "{name}: {:?}", codes(&short));
                assert_eq!(short.to_vec().len(), length, "{name}");
                let image = super::open(&short);
                assert_eq!(image.footer().hidden(), name == "hide", "{name}");
                image.resolve(sectors(32 + 31, 1), &mut Extents::default()).unwrap_err();
            }
        }
    }
}

/// Another program adds a block where the footer was, as one does that writes the footer only when it closes the image.
#[test]
fn a_block_that_was_added_since_is_read_up_to_the_end_of_the_file() {
    let memory = Arc::new(MemoryStorage::new(block(dynamic, 32)));
    let reader = super::open(&memory);
    let mut bytes = memory.to_vec();
    let at = bytes.len() as u64 / 512 - 1;
    bytes.truncate(bytes.len() - 512);
    bytes.extend([[0xff; 512].to_vec(), pattern::fill(sectors(0, 32), 9)].concat());
    bytes[1536..1540].copy_from_slice(&u32::try_from(at).unwrap().to_be_bytes());
    let storage: &dyn vhd_core::Storage = &*memory;
    storage.write_at(&bytes, vhd_core::FileOffset(0)).unwrap();
    let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(reader))]);
    let mut read = vec![0; 16 << 10];
    chain.read(sectors(0, 32), &mut read).unwrap();
    assert!(read == pattern::fill(sectors(0, 32), 9));
}
