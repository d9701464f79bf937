//! `copy`: another image that holds the same.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use vhd_core::{
    ByteCount, Container, CreateError, Existing, FileOffset, FileStorage, Image, Lock, OpenError, ParentLink, ReadOnly,
    StorageError, Uuid, folder_of, write_new_file,
};

use super::{Failure, Refused, chain_options};

/// The most that is copied at once where the kernel does not do it.
const STEP: u64 = 1 << 20;

/// Copy an image, without its parents, to a new file
///
/// The copy has the same blocks, size, key hash and parent, and a unique id of its own. It appears when it is whole.
/// Content is copied as it is: nothing is encrypted or decrypted.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// The new file
    #[arg(short = 'N', value_name = "NEW")]
    new: PathBuf,
    /// Encrypt the copy: refused, as this program does not encrypt
    #[arg(short, value_name = "KEYFILE")]
    key: Option<PathBuf>,
    /// Encrypt the copy with a key from standard input: refused likewise
    #[arg(short = 'E')]
    key_from_stdin: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.key.is_some() || args.key_from_stdin {
        return Err(Refused::image(&args.name, Errno::OPNOTSUPP, "a copy cannot be encrypted").into());
    }
    let file = FileStorage::open(&args.name, Lock::Shared);
    let file = file.map_err(|source| StorageError {
        path: args.name.clone(),
        action: "open".into(),
        offset: FileOffset(0),
        source,
    })?;
    let source = Container::new(&*args.name, Arc::new(file));
    let image = Image::<ReadOnly>::from_container(source.clone())?;
    if image.footer().poisoned() {
        return Err(OpenError::UnfinishedResize { path: args.name.clone() }.into());
    }
    let link = parent_from(&image, &args.name, &args.new)?;
    let (marker, key_hash) = (image.marker()?, image.key_hash()?);
    write_new_file(&args.new, Existing::Keep, |new| {
        copy(&source, new)?;
        let mut copy = Image::writable_from_container(new.clone())?;
        copy.renew_footers()?;
        copy.set_unique_id(Uuid::new_v4())?;
        if let Some(link) = &link {
            copy.relink(link)?;
        }
        // Where there is no batmap, they are attributes of the file.
        if copy.marker()? != marker {
            copy.set_marker(marker)?;
        }
        if let Some(key) = key_hash.filter(|_| copy.batmap().is_none()) {
            copy.set_key_hash(key)?;
        }
        copy.close()?;
        new.sync()?;
        Ok::<_, Failed>(())
    })
    .map_err(|Failed(failure)| failure)
}

/// A failure, as an error that is made from any other.
struct Failed(Failure);

macro_rules! failed_from {
    ($($error:ty)*) => {
        $(impl From<$error> for Failed {
            fn from(error: $error) -> Self {
                Self(error.into())
            }
        })*
    };
}

failed_from! { CreateError StorageError OpenError vhd_core::MetadataError vhd_core::WriteError }

/// The link to its parent for a copy in another folder: that in the image is relative.
fn parent_from(image: &Image<ReadOnly>, name: &Path, new: &Path) -> Result<Option<ParentLink>, Failure> {
    let same_folder = folder_of(name).canonicalize()? == folder_of(new).canonicalize()?;
    let Some(header) = image.header().filter(|_| image.is_differencing() && !same_folder) else { return Ok(None) };
    let parents = chain_options().open_parents(image, name)?;
    let parent = parents.as_ref().map(|parents| parents.top().path());
    let link = parent.map(|parent| ParentLink::new(folder_of(new), parent, header.parent_unique_id()));
    Ok(link.transpose()?)
}

/// Copies a whole store, holes as holes.
fn copy(source: &Container, new: &Container) -> Result<(), StorageError> {
    let len = source.len()?;
    new.set_len(len)?;
    let mut at = FileOffset(0);
    while let Some(data) = source.next_data(at)? {
        let (start, end) = (data.start.max(at), data.end.min(FileOffset(len.0)));
        if start >= end {
            break;
        }
        match new.copy_range(source, start, start, end - start) {
            Err(error) if matches!(error.source.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {
                for step in (start.0..end.0).step_by(STEP as usize) {
                    let mut bytes = vec![0; (end.0 - step).min(STEP) as usize];
                    source.read_at(&mut bytes, FileOffset(step))?;
                    new.write_at(&bytes, FileOffset(step))?;
                }
            }
            copied => copied?,
        }
        at = start + ByteCount(end.0 - start.0);
    }
    Ok(())
}
