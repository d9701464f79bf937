//! The volumes of a volume group, whether they are active or not.
//!
//! What there is, and where, the tools of LVM tell. An active volume is a device. An inactive one has none, and is read
//! where it lies on the physical volumes; it must be linear for that, as those that hold images are.

mod segments;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::io::Errno;
use vhd_core::{ByteCount, Container, FileError, FileOffset};

use super::entry::{self, Found};
use super::peek::Peek;
use crate::vhd_util::{Failure, Refused};
use segments::{Segment, Segments};

/// The volumes of a group by their names.
#[derive(Debug)]
pub(super) struct VolumeGroup {
    volumes: BTreeMap<String, Volume>,
}

#[derive(Debug, Default)]
struct Volume {
    size: ByteCount,
    /// Its device, where it is active.
    device: PathBuf,
    /// `None` where a segment is not linear.
    segments: Option<Vec<Segment>>,
}

/// How a group is divided up.
struct Layout {
    extent: u64,
    /// Where the extents of each physical volume start.
    starts: BTreeMap<PathBuf, u64>,
}

impl VolumeGroup {
    /// Asks the tools of LVM for the volumes of a group.
    ///
    /// # Errors
    /// A tool that is not there, fails, or prints something else than it was asked for.
    pub(super) fn list(group: &str) -> Result<Self, Failure> {
        let layout = Layout::of(group)?;
        let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
        let fields = "lv_name,lv_size,lv_path,segtype,seg_start,seg_size,devices";
        for row in ask("lvs", fields, group)? {
            let [name, size, device, kind, start, length, devices] = &row[..] else {
                return Err(unexpected("lvs", &row));
            };
            let number = |text: &str| text.parse().map_err(|_| unexpected("lvs", &row));
            let volume = volumes.entry(name.clone()).or_insert_with(|| Volume {
                size: ByteCount::default(),
                device: device.into(),
                segments: Some(Vec::new()),
            });
            volume.size = ByteCount(number(size)?);
            let segment = layout.segment(number(start)?, number(length)?, devices).filter(|_| kind == "linear");
            match (&mut volume.segments, segment) {
                (Some(segments), Some(segment)) => segments.push(segment),
                (segments, _) => *segments = None,
            }
        }
        for segments in volumes.values_mut().filter_map(|volume| volume.segments.as_mut()) {
            segments.sort_unstable_by_key(|segment| segment.start);
        }
        Ok(Self { volumes })
    }

    /// The names of all volumes, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.volumes.keys().map(String::as_str)
    }

    /// Tells whether a volume of this name is there.
    pub(super) fn has(&self, name: &Path) -> bool {
        self.volume(name).is_ok()
    }

    /// Looks at a volume that is the raw parent of an image.
    ///
    /// # Errors
    /// A volume that is not there.
    pub(super) fn look_at_raw(&self, name: &Path, marks: bool) -> Result<Found, Failure> {
        Ok(entry::raw(self.volume(name)?.size, marks))
    }

    fn volume(&self, name: &Path) -> Result<&Volume, Failure> {
        let found = name.to_str().and_then(|name| self.volumes.get(name));
        Ok(found.ok_or_else(|| Refused::image(name, Errno::NOENT, "no such volume"))?)
    }

    /// Looks at the image in a volume.
    ///
    /// # Errors
    /// A volume that is not there, is neither active nor linear, or holds no image.
    pub(super) fn look(&self, name: &Path, marks: bool) -> Result<Found, Failure> {
        let refused = |errno, what: &str| Refused::image(name, errno, what);
        let volume = self.volume(name)?;
        let container = match Peek::open(&volume.device) {
            Ok(peek) => Container::new(name, Arc::new(peek)),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError::when(&volume.device, "open it")(error).into());
            }
            Err(_) => {
                let segments = volume.segments.as_ref();
                let segments = segments.ok_or_else(|| refused(Errno::OPNOTSUPP, "neither active nor linear"))?;
                let open = Segments::open(segments, volume.size);
                Container::new(name, Arc::new(open.map_err(FileError::when(name, "open its physical volume"))?))
            }
        };
        entry::look_at_volume(container, volume.size, marks)
    }
}

impl Layout {
    fn of(group: &str) -> Result<Self, Failure> {
        let mut layout = Self { extent: 0, starts: BTreeMap::new() };
        for row in ask("vgs", "vg_extent_size,pv_name,pe_start", group)? {
            let [extent, device, start] = &row[..] else { return Err(unexpected("vgs", &row)) };
            let number = |text: &str| text.parse().map_err(|_| unexpected("vgs", &row));
            layout.extent = number(extent)?;
            layout.starts.insert(device.into(), number(start)?);
        }
        Ok(layout)
    }

    /// Finds where a segment lies; `devices` is one device and the number of its extent, as in `/dev/sda(12)`.
    fn segment(&self, start: u64, length: u64, devices: &str) -> Option<Segment> {
        let (device, extent) = devices.strip_suffix(')')?.rsplit_once('(')?;
        let extent: u64 = extent.parse().ok()?;
        let at = extent.checked_mul(self.extent)?.checked_add(*self.starts.get(Path::new(device))?)?;
        Some(Segment { start, length, device: device.into(), at: FileOffset(at) })
    }
}

const SEPARATOR: char = '|';

/// Runs a tool of LVM; gives the fields of each line.
fn ask(tool: &str, fields: &str, group: &str) -> Result<Vec<Vec<String>>, Failure> {
    let mut command = Command::new(tool);
    command.args(["--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "--options", fields, "--", group]);
    let output = command.output().map_err(FileError::when(Path::new(tool), "run it"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Refused::image(tool, Errno::IO, format!("{}: {said}", output.status)).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(|line| line.split(SEPARATOR).map(|field| field.trim().to_owned()).collect()).collect())
}

fn unexpected(tool: &str, row: &[String]) -> Failure {
    Refused::image(tool, Errno::IO, format!("has answered {row:?}")).into()
}
