//! Disks that are only read: VHD chains, and raw files where a command takes them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    Chain, ChainError, ChainOptions, Container, FileOffset, FileStorage, FooterError, Layer, Lock, OpenError, RawDisk,
    SectorCount, StorageError,
};

use crate::error::CommandError;
use crate::foreign;

/// The most that is read at once.
pub(crate) const CHUNK: SectorCount = SectorCount(2048);

/// What a file is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// The bytes of a disk, whatever they look like
    Raw,
    /// An image with its parents
    Vhd,
}

/// Opens a disk. Without a `form` that is a VHD with its parents, or a raw file: one that shows no footer, is not called
/// `*.vhd` and is no container of another kind. `raw_option` takes any file for raw.
///
/// Where nobody else has it locked, it is locked against whoever would take away what it reads.
pub(crate) fn open(
    path: &Path,
    form: Option<Form>,
    raw_option: &'static str,
    options: &ChainOptions,
) -> Result<Chain, CommandError> {
    if form == Some(Form::Raw) {
        return Ok(Chain::from_layers(vec![Layer::Raw(open_raw(path)?)]));
    }
    match open_vhd(path, options) {
        // Only where there is no trace of a footer. A damaged VHD must not be taken for the disk that it holds.
        Err(ChainError::Open(error @ OpenError::Footer { source: FooterError::Cookie { .. }, .. })) => {
            match foreign::Container::at(path)? {
                Some(container) if !container.is_vhd() => Err(container.refused(path, raw_option)),
                None if form.is_none() && !is_named_vhd(path) => {
                    Ok(Chain::from_layers(vec![Layer::Raw(open_raw(path)?)]))
                }
                _ => Err(CommandError::from(error).hint(raw_option)),
            }
        }
        result => Ok(result?),
    }
}

/// Opens a VHD and its parents.
///
/// Where nobody else has it locked, it is locked against whoever would take away what it reads.
pub(crate) fn open_vhd(path: &Path, options: &ChainOptions) -> Result<Chain, ChainError> {
    match Chain::open_locked(path, options, Lock::Shared) {
        Err(ChainError::Open(OpenError::Storage(error))) if error.source.kind() == io::ErrorKind::ResourceBusy => {
            Chain::open(path, options)
        }
        chain => chain,
    }
}

fn is_named_vhd(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhd"))
}

/// Opens a raw file as a disk of whole sectors, the last one padded with zeros.
pub(crate) fn open_raw(path: &Path) -> Result<RawDisk, StorageError> {
    let file = FileStorage::open(path, Lock::None);
    let file = file.map_err(|source| StorageError {
        path: path.into(),
        action: "open".into(),
        offset: FileOffset(0),
        source,
    })?;
    RawDisk::open(Container::new(path, Arc::new(file)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use vhd_core::{ByteCount, Sector, SectorRange};

    use super::*;

    fn sparse_raw(folder: &Path, len: u64, at: u64, bytes: &[u8]) -> std::path::PathBuf {
        let path = folder.join("disk.img");
        let mut file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
        path
    }

    #[test]
    fn a_raw_file_is_padded_to_a_sector() {
        let folder = tempfile::tempdir().unwrap();
        let path = sparse_raw(folder.path(), 700, 690, b"0123456789");
        let chain = open(&path, None, "", &ChainOptions::default()).unwrap();
        assert_eq!(chain.size(), ByteCount(1024));
        let mut bytes = [0xff; 512];
        chain.read(SectorRange::new(Sector(1), SectorCount(1)), &mut bytes).unwrap();
        assert_eq!(&bytes[178..188], b"0123456789");
        assert!(bytes[188..].iter().all(|&byte| byte == 0));
    }
}
