//! Containers: files that hold a disk, or other files, in a format of their own.
//!
//! A file that is no VHD is a raw disk where nothing else is said. Taken for one, a container gives a disk of its own
//! bytes, and no error. What guests put onto their disks is no container: partitions, file systems, ISO 9660, LUKS.

use std::path::Path;

use vhd_core::{FileOffset, FileStorage, Lock, Storage};

use crate::error::{CommandError, Refusal};
use crate::stream::tar;

/// The bytes from the start of a file by which containers are recognised.
pub(crate) const HEAD: usize = 1024;

/// A format of containers, and how to get at the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// What a file of this format is.
    pub(crate) name: &'static str,
    /// What gives the disk that it holds.
    advice: &'static str,
}

const CONVERT: &str = "`qemu-img convert -O raw FILE DISK` makes the disk that it holds";
const UNPACK: &str = "unpack it first; what comes out may be piped to `serve`";
const TAKE_OUT: &str =
    "take the disk out of it first; disks in blocks, as in an XVA, are for `serve --source-protocol tar`";

const VHD: Container =
    Container { name: "a VHD, or what is left of one", advice: "--source-format vhd takes the disk that it holds" };
const APPLE: Container = Container { name: "an Apple disk image", advice: CONVERT };
const TAR: Container = Container { name: "a tar archive", advice: TAKE_OUT };

/// Where a format has its mark, the mark, what it is called, what to do.
type Mark = (usize, &'static [u8], &'static str, &'static str);

const MARKS: &[Mark] = &[
    (0, b"vhdxfile", "a VHDX image", CONVERT),
    (0, b"QFI\xfb", "a QCOW image", CONVERT),
    (0, b"QED\0", "a QED image", CONVERT),
    (0, b"KDMV", "a VMDK image", CONVERT),
    (0, b"COWD", "a VMDK image", CONVERT),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", "a VMDK image", CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK image", CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", CONVERT),
    (0, b"\x1f\x8b\x08", "compressed by gzip", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", UNPACK),
    // After the digit of its level.
    (4, b"1AY&SY", "compressed by bzip2", UNPACK),
    (0, b"PK\x03\x04", "a zip archive", TAKE_OUT),
    (0, b"PK\x05\x06", "a zip archive", TAKE_OUT),
    (0, b"PK\x07\x08", "a zip archive", TAKE_OUT),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", TAKE_OUT),
    (0, b"Rar!\x1a\x07", "a rar archive", TAKE_OUT),
    (257, b"ustar", TAR.name, TAR.advice),
];

const VHD_FOOTER: &[u8] = b"conectix";
const VHD_HEADER: &[u8] = b"cxsparse";
/// What blktap calls a footer while it resizes.
const VHD_POISONED: &[u8] = b"v_poison";

impl Container {
    /// Recognises one by its first bytes, of which [`HEAD`] are enough.
    pub(crate) fn of_head(head: &[u8]) -> Option<Self> {
        let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
        if has(0, VHD_FOOTER) || has(0, VHD_POISONED) || has(512, VHD_HEADER) {
            return Some(VHD);
        }
        let known = MARKS.iter().find(|(at, mark, ..)| has(*at, mark));
        let known = known.map(|&(_, _, name, advice)| Self { name, advice });
        // Older archives have no mark, but a checksum.
        known.or_else(|| tar::starts(head).then_some(TAR))
    }

    /// Recognises one by the start and the end of a file.
    fn of_file(file: &FileStorage) -> std::io::Result<Option<Self>> {
        let len = file.len()?.0;
        let mut head = vec![0; len.min(HEAD as u64) as usize];
        file.read_at(&mut head, FileOffset(0))?;
        if let Some(found) = Self::of_head(&head) {
            return Ok(Some(found));
        }
        // A disk ends with a whole sector; what comes after may be a footer that was cut.
        let length = if len.is_multiple_of(512) { len.min(512) } else { len % 512 };
        let mut tail = vec![0; length as usize];
        file.read_at(&mut tail, FileOffset(len - length))?;
        let of_footer = &VHD_FOOTER[..VHD_FOOTER.len().min(tail.len())];
        let is_vhd = !tail.is_empty() && (tail.starts_with(of_footer) || tail.starts_with(VHD_POISONED));
        Ok(if is_vhd { Some(VHD) } else { tail.starts_with(b"koly").then_some(APPLE) })
    }

    /// Recognises one.
    ///
    /// # Errors
    /// What cannot be opened or read.
    pub(crate) fn at(path: &Path) -> Result<Option<Self>, CommandError> {
        let found = FileStorage::open(path, Lock::None).and_then(|file| Self::of_file(&file));
        Ok(found.map_err(Refusal::io(path, "look at it"))?)
    }

    /// Whether it is a VHD.
    pub(crate) fn is_vhd(self) -> bool {
        self == VHD
    }

    /// The error of taking the file at `path` for a raw disk; `option` is what does that all the same.
    pub(crate) fn refused(self, path: &Path, option: &'static str) -> CommandError {
        let refusal = Refusal::Container { path: path.into(), name: self.name };
        CommandError::from(refusal).hint(self.advice).hint(option)
    }
}
