//! Parent locators: the names under which a differencing image looks for its parent.
//!
//! A locator comes with the image, so whoever made the image chose it. Nothing here opens a path; see [`crate::gate`].

use std::path::{Component, Path, PathBuf};

use crate::format::RawLocator;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// The most bytes of a locator's text that are read.
pub const MAX_LOCATOR_LENGTH: ByteCount = ByteCount(16 << 10);

/// The platform codes, four characters as stored.
///
/// Source: Microsoft VHD specification, "Parent Locator Entries".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlatformCode {
    /// `MacX`: a file URL, UTF-8.
    MacX,
    /// `W2ku`: an absolute Windows path, UTF-16LE (blktap stores a relative one).
    W2ku,
    /// `W2ru`: a Windows path relative to the child, UTF-16LE.
    W2ru,
    /// `Wi2k`: deprecated absolute Windows path.
    Wi2k,
    /// `Wi2r`: deprecated relative Windows path.
    Wi2r,
    /// One that we keep and do not read.
    Other([u8; 4]),
}

impl PlatformCode {
    /// Takes the stored characters.
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        match &bytes {
            b"MacX" => Self::MacX,
            b"W2ku" => Self::W2ku,
            b"W2ru" => Self::W2ru,
            b"Wi2k" => Self::Wi2k,
            b"Wi2r" => Self::Wi2r,
            _ => Self::Other(bytes),
        }
    }

    /// Reads a locator's text as the paths that it may mean, likeliest first; none where it is not text of its kind.
    pub fn paths(self, text: &[u8]) -> Vec<PathBuf> {
        decode_paths(self, text)
    }

    /// Gives the stored characters.
    pub const fn to_bytes(self) -> [u8; 4] {
        match self {
            Self::MacX => *b"MacX",
            Self::W2ku => *b"W2ku",
            Self::W2ru => *b"W2ru",
            Self::Wi2k => *b"Wi2k",
            Self::Wi2r => *b"Wi2r",
            Self::Other(bytes) => bytes,
        }
    }
}

/// A header's entry for one locator: what kind, and where its text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorEntry {
    /// What the text is.
    pub code: PlatformCode,
    /// The room kept for the text.
    pub space: ByteCount,
    /// The text's length.
    pub length: ByteCount,
    /// Where the text is.
    pub offset: FileOffset,
    raw_space: u32,
    reserved: u32,
}

impl LocatorEntry {
    /// Describes text of `length` bytes at `offset`, with the room that whole sectors give it.
    pub(crate) fn new(code: PlatformCode, length: ByteCount, offset: FileOffset) -> Self {
        let space = ByteCount(length.0.next_multiple_of(SECTOR_SIZE));
        let raw_space = u32::try_from(space.0).expect("locator text is limited to 16 KiB");
        Self { code, space, length, offset, raw_space, reserved: 0 }
    }

    /// The same entry at another place.
    pub(crate) fn moved(self, offset: FileOffset) -> Self {
        Self { offset, ..self }
    }

    /// The same entry with text of another length, which its room holds.
    pub(crate) fn with_length(self, length: ByteCount) -> Self {
        Self { length, ..self }
    }

    /// Reads an entry; `None` where it is not used.
    pub(crate) fn from_raw(raw: &RawLocator) -> Option<Self> {
        if raw.platform_code == [0; 4] {
            return None;
        }
        let raw_space = raw.data_space.get();
        // The specification counts sectors in one place and bytes in another, and so do writers.
        let space = u64::from(raw_space) * if raw_space < 512 { SECTOR_SIZE } else { 1 };
        Some(Self {
            code: PlatformCode::from_bytes(raw.platform_code),
            space: ByteCount(space),
            length: ByteCount(u64::from(raw.data_length.get())),
            offset: FileOffset(raw.data_offset.get()),
            raw_space,
            reserved: raw.reserved.get(),
        })
    }

    /// The room as stored: bytes, or sectors where it is below 512.
    pub fn stored_space(&self) -> u32 {
        self.raw_space
    }

    /// The same with its room counted in sectors, as in streams: Xen Orchestra reads nothing else.
    pub(crate) fn in_sectors(self) -> Self {
        Self { raw_space: self.raw_space / SECTOR_SIZE as u32, ..self }
    }

    /// Tells whether the room is stored in bytes.
    pub(crate) fn counts_bytes(&self) -> bool {
        u64::from(self.raw_space) >= SECTOR_SIZE
    }

    /// Where its room ends, or its text where that is longer; `None` for one that does not lie within the file.
    pub(crate) fn end_within(&self, len: ByteCount) -> Option<FileOffset> {
        let end_of = |length: ByteCount| self.offset.0.checked_add(length.0).filter(|&end| end <= len.0);
        let text = end_of(self.length)?;
        Some(FileOffset(end_of(self.space).unwrap_or(text).max(text)))
    }

    pub(crate) fn to_raw(self) -> RawLocator {
        RawLocator {
            platform_code: self.code.to_bytes(),
            data_space: self.raw_space.into(),
            data_length: (self.length.0 as u32).into(),
            reserved: self.reserved.into(),
            data_offset: self.offset.0.into(),
        }
    }
}

/// Reads a locator's text as the paths it may mean, likeliest first; none where it is not text of its kind.
///
/// Backslashes become slashes, a drive letter is dropped, and a URL is tried as it stands before its `%xx` are decoded
/// (blktap writes URLs without encoding them).
pub(crate) fn decode_paths(code: PlatformCode, text: &[u8]) -> Vec<PathBuf> {
    match code {
        PlatformCode::MacX => decode_url(text),
        PlatformCode::W2ku | PlatformCode::W2ru => {
            decode_utf16(text).map(|path| windows_path(&path)).into_iter().collect()
        }
        PlatformCode::Wi2k | PlatformCode::Wi2r => decode_utf16(text)
            .filter(|_| text.iter().skip(1).step_by(2).any(|&byte| byte == 0))
            .or_else(|| String::from_utf8(text.to_vec()).ok())
            .map(|path| windows_path(path.trim_end_matches('\0')))
            .into_iter()
            .collect(),
        PlatformCode::Other(_) => Vec::new(),
    }
}

fn decode_utf16(text: &[u8]) -> Option<String> {
    let units = text.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let path: String = char::decode_utf16(units.take_while(|&unit| unit != 0)).collect::<Result<_, _>>().ok()?;
    Some(path).filter(|path| !path.is_empty())
}

fn windows_path(path: &str) -> PathBuf {
    let path = path.replace('\\', "/");
    let bytes = path.as_bytes();
    let has_drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    PathBuf::from(if has_drive { &path[2..] } else { &path })
}

fn decode_url(text: &[u8]) -> Vec<PathBuf> {
    let Ok(url) = std::str::from_utf8(text) else { return Vec::new() };
    let url = url.trim_end_matches('\0');
    let path = url.strip_prefix("file://").unwrap_or(url);
    let path = path.strip_prefix("localhost").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    if path.is_empty() {
        return Vec::new();
    }
    let mut paths = vec![PathBuf::from(path)];
    paths.extend(percent_decoded(path).map(PathBuf::from));
    paths
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match digits.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok().filter(|decoded| decoded != text)
}

/// The three locators that blktap writes, in its order, for a parent at `path` relative to the child's folder.
///
/// Returns `None` for a path that has no such form: not UTF-8, absolute, or longer than [`MAX_LOCATOR_LENGTH`].
pub(crate) fn encode_relative(path: &Path) -> Option<[(PlatformCode, Vec<u8>); 3]> {
    if path.is_absolute() || path.as_os_str().is_empty() {
        return None;
    }
    let path = path.to_str()?;
    let path = if path.starts_with("../") { path.to_owned() } else { format!("./{path}") };
    let utf16: Vec<u8> = path.replace('/', "\\").encode_utf16().flat_map(u16::to_le_bytes).collect();
    if utf16.len() as u64 > MAX_LOCATOR_LENGTH.0 {
        return None;
    }
    let url = format!("file://{path}").into_bytes();
    Some([(PlatformCode::MacX, url), (PlatformCode::W2ku, utf16.clone()), (PlatformCode::W2ru, utf16)])
}

/// The path from a folder to a file, both absolute and without links or dots.
pub(crate) fn relative_path(folder: &Path, file: &Path) -> PathBuf {
    let shared = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(file.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(code: PlatformCode, text: &[u8]) -> Vec<String> {
        decode_paths(code, text).into_iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn written_locators_read_back() {
        for name in ["base.vhd", "Größe 磁盘 💾.vhd", "100%25.vhd", "../other/base.vhd"] {
            let locators = encode_relative(Path::new(name)).unwrap();
            let expected = if name.starts_with("..") { name.to_owned() } else { format!("./{name}") };
            for (code, text) in locators {
                assert_eq!(decode(code, &text)[0], expected, "{code:?}");
            }
        }
    }

    #[test]
    fn foreign_forms_are_understood() {
        assert_eq!(decode(PlatformCode::W2ku, &utf16("C:\\disks\\base.vhd\0")), ["/disks/base.vhd"]);
        assert_eq!(decode(PlatformCode::W2ru, &utf16(".\\base.vhd")), ["./base.vhd"]);
        assert_eq!(
            decode(PlatformCode::MacX, b"file://localhost/Disks/My%20base.vhd"),
            ["/Disks/My%20base.vhd", "/Disks/My base.vhd"]
        );
        assert_eq!(decode(PlatformCode::Wi2r, b".\\base.vhd\0"), ["./base.vhd"]);
        assert_eq!(decode(PlatformCode::Wi2k, &utf16("D:\\b.vhd")), ["/b.vhd"]);
        assert!(decode(PlatformCode::W2ru, &[0xd8, 0xd8]).is_empty());
        assert!(decode(PlatformCode::Other(*b"Mac "), b"x").is_empty());
    }

    #[test]
    fn small_spaces_are_sectors() {
        let raw = |space: u32| RawLocator {
            platform_code: *b"W2ru",
            data_space: space.into(),
            data_length: 20.into(),
            reserved: 0.into(),
            data_offset: 3072.into(),
        };
        for (stored, bytes) in [(1, 512), (2, 1024), (512, 512), (1024, 1024)] {
            let entry = LocatorEntry::from_raw(&raw(stored)).unwrap();
            assert_eq!(entry.space, ByteCount(bytes));
            assert_eq!(entry.to_raw(), raw(stored), "kept as stored");
        }
    }

    #[test]
    fn relative_paths() {
        let relative = |folder: &str, file: &str| relative_path(Path::new(folder), Path::new(file));
        assert_eq!(relative("/a/b", "/a/b/c.vhd"), Path::new("c.vhd"));
        assert_eq!(relative("/a/b", "/a/d/c.vhd"), Path::new("../d/c.vhd"));
    }
}
