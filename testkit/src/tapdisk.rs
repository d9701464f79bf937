//! A double of tapdisk, the program that serves a guest's disk from a chain of images while other programs change them.
//!
//! What it does to the files is what blktap's `block-vhd.c` and `libvhd.c` do, on a folder (not NFS, not LVM):
//! - It opens the leaf for writing, the parents for reading, and locks none. BATs and batmaps are read once, bitmaps when
//!   they are needed, and the last 32 of each image are kept: what others write meanwhile, it does not see.
//! - A new block goes behind the last of the tables and blocks *as known when it was opened*, its data at a multiple of
//!   4 KiB: zeros over the gap, the bitmap and the block; then the sector of the BAT, from memory; the data; the bitmap.
//! - Where a guest writes the first sector of a full block, that does not lie where the first block may be, its bitmap is
//!   written again, with zeros over the **seven sectors before it**.
//! - The first new block overwrites the end footer. An image that is opened again after a pause loses it at once. When it
//!   is closed, footer and batmap are written from memory, and the file ends behind the footer.
//!
//! The real one issues the writes of a request side by side; the double has one order, and lets a test act between them.
//! Files are not opened with `O_DIRECT`, which the memory file systems that tests use lack. What is dropped without
//! [`Tapdisk::close`] is left as by a killed process.

pub(crate) mod headers;
mod image;
mod parent;
pub mod real;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use headers::{Footer, SECTOR, refuse};
use image::{Image, Parent};

/// `EMEDIUMTYPE`: the disk has another size than before the pause.
pub const ANOTHER_SIZE: i32 = 124;
/// Longer chains are not opened.
const DEEPEST: usize = 256;

/// A disk that a guest uses: by the double, or by the real one. Places and lengths are in sectors.
pub trait Disk: std::fmt::Debug {
    /// The size of the disk.
    fn sectors(&self) -> u64;

    /// Reads, as the guest does.
    ///
    /// # Errors
    /// A failed read of a file.
    fn read(&mut self, sectors: Range<u64>) -> io::Result<Vec<u8>>;

    /// Writes whole sectors, as the guest does, and calls `between` at moments in the middle of that, at which other
    /// programs may act.
    ///
    /// # Errors
    /// A failed write to the leaf's file.
    fn write_beside(&mut self, sector: u64, bytes: &[u8], between: &mut dyn FnMut()) -> io::Result<()>;

    /// Closes all files; the guest waits.
    ///
    /// # Errors
    /// A failed write to the leaf's file.
    fn pause(&mut self) -> io::Result<()>;

    /// Opens the chain again, by name.
    ///
    /// # Errors
    /// What cannot be opened, and [`ANOTHER_SIZE`]; it stays paused then.
    fn unpause(&mut self) -> io::Result<()>;
}

/// The double, which does in one process and in a known order what a tapdisk does.
#[derive(Debug)]
pub struct Tapdisk {
    path: PathBuf,
    sectors: u64,
    /// The leaf first; none while it is paused.
    layers: Vec<Layer>,
}

impl Tapdisk {
    /// Opens the chain of an image, as `tap-ctl open` does.
    ///
    /// # Errors
    /// What tapdisk refuses: damaged tables, a parent that is not there or is another, an unfinished resize.
    pub fn open(leaf: &Path) -> io::Result<Self> {
        let layers = open_chain(leaf)?;
        Ok(Self { path: leaf.to_path_buf(), sectors: layers[0].sectors(), layers })
    }

    /// As [`write_beside`](Disk::write_beside), with nothing beside it.
    ///
    /// # Errors
    /// A failed write to the leaf's file.
    ///
    /// # Panics
    /// If it is paused, or the disk ends before.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_beside(sector, bytes, &mut || ())
    }

    /// As [`unpause`](Disk::unpause), with the chain of another image.
    ///
    /// # Errors
    /// As [`unpause`](Disk::unpause).
    ///
    /// # Panics
    /// If it is not paused.
    pub fn unpause_as(&mut self, leaf: &Path) -> io::Result<()> {
        self.path = leaf.to_path_buf();
        self.unpause()
    }

    /// Ends the guest's use of the disk.
    ///
    /// # Errors
    /// A failed write to the leaf's file.
    pub fn close(mut self) -> io::Result<()> {
        self.pause()
    }
}

impl Disk for Tapdisk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read(&mut self, sectors: Range<u64>) -> io::Result<Vec<u8>> {
        assert!(sectors.end <= self.sectors && !self.layers.is_empty(), "no guest can read {sectors:?}");
        let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR) as usize];
        read_layers(&mut self.layers, sectors, &mut bytes)?;
        Ok(bytes)
    }

    /// `between` is called between any two writes to the file.
    fn write_beside(&mut self, sector: u64, bytes: &[u8], between: &mut dyn FnMut()) -> io::Result<()> {
        let range = sector..sector + bytes.len() as u64 / SECTOR;
        assert!(range.end <= self.sectors && !self.layers.is_empty(), "no guest can write {range:?}");
        match &mut self.layers[0] {
            Layer::Flat { file, .. } => file.write_all_at(bytes, sector * SECTOR),
            Layer::Image(leaf) => pieces(range, |piece, within| {
                let (count, is_here) = leaf.span(&piece)?;
                leaf.write(piece.start, &bytes[within..][..(count * SECTOR) as usize], is_here, between)?;
                between();
                Ok(count)
            }),
        }
    }

    fn pause(&mut self) -> io::Result<()> {
        self.layers.drain(..).try_for_each(Layer::close)
    }

    fn unpause(&mut self) -> io::Result<()> {
        assert!(self.layers.is_empty(), "only a paused one can go on");
        let mut layers = open_chain(&self.path)?;
        if let Layer::Image(leaf) = &mut layers[0] {
            leaf.kill_footer()?;
        }
        if layers[0].sectors() != self.sectors {
            layers.into_iter().try_for_each(Layer::close)?;
            return Err(io::Error::from_raw_os_error(ANOTHER_SIZE));
        }
        self.layers = layers;
        Ok(())
    }
}

/// A file that is open.
#[derive(Debug)]
enum Layer {
    Image(Box<Image>),
    /// A fixed image or a raw disk.
    Flat {
        file: File,
        sectors: u64,
    },
}

impl Layer {
    fn sectors(&self) -> u64 {
        match self {
            Self::Image(image) => image.footer().disk_bytes() / SECTOR,
            Self::Flat { sectors, .. } => *sectors,
        }
    }

    fn close(self) -> io::Result<()> {
        match self {
            Self::Image(image) => image.close(),
            Self::Flat { .. } => Ok(()),
        }
    }
}

fn open_chain(leaf: &Path) -> io::Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut next = open_layer(leaf, None)?;
    while let (layer, Some(parent)) = next {
        layers.push(layer);
        if layers.len() == DEEPEST {
            return refuse("a chain without an end");
        }
        next = open_layer(&parent.path.clone(), Some(&parent))?;
    }
    layers.push(next.0);
    Ok(layers)
}

/// Opens the leaf, or the parent that an image names.
fn open_layer(path: &Path, expected: Option<&Parent>) -> io::Result<(Layer, Option<Parent>)> {
    let file = OpenOptions::new().read(true).write(expected.is_none()).open(path)?;
    if expected.is_some_and(Parent::is_raw) {
        let sectors = file.metadata()?.len() / SECTOR;
        return Ok((Layer::Flat { file, sectors }, None));
    }
    let footer = Footer::read(&file)?;
    if footer.is_poisoned() {
        return refuse(format!("{}: a resize was interrupted", path.display()));
    }
    if expected.is_some_and(|parent| !parent.is(&footer)) {
        return refuse(format!("{}: not the parent that its child had", path.display()));
    }
    if footer.is_fixed() {
        return Ok((Layer::Flat { file, sectors: footer.disk_bytes() / SECTOR }, None));
    }
    let image = Image::open(file, footer, expected.is_none())?;
    let parent = image.parent(path)?;
    Ok((Layer::Image(Box::new(image)), parent))
}

/// Reads from the first of some layers, and from those below what it does not hold. Past the end of a layer are zeros.
fn read_layers(layers: &mut [Layer], sectors: Range<u64>, bytes: &mut [u8]) -> io::Result<()> {
    let Some((top, below)) = layers.split_first_mut() else { return Ok(()) };
    let sectors = sectors.start..sectors.end.min(top.sectors()).max(sectors.start);
    let bytes = &mut bytes[..((sectors.end - sectors.start) * SECTOR) as usize];
    match top {
        Layer::Flat { file, .. } => file.read_exact_at(bytes, sectors.start * SECTOR),
        Layer::Image(image) => pieces(sectors, |piece, within| {
            let (count, is_here) = image.span(&piece)?;
            let bytes = &mut bytes[within..][..(count * SECTOR) as usize];
            if is_here {
                image.read(piece.start, bytes)?;
            } else {
                read_layers(below, piece.start..piece.start + count, bytes)?;
            }
            Ok(count)
        }),
    }
}

/// Gives what is left of a range, and the bytes before that, to `work`, which tells how many sectors it has dealt with.
fn pieces(range: Range<u64>, mut work: impl FnMut(Range<u64>, usize) -> io::Result<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        at += work(at..range.end, ((at - range.start) * SECTOR) as usize)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
