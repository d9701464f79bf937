//! Where a repository is: a folder, or a device that is mounted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Seek};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use percent_encoding::percent_decode_str;
use uuid::Uuid;
use vhd_core::{Image, Lock, NewFile, explain_lock, sync_folder};

use crate::failure::{Failure, Number};
use crate::host::Host;
use crate::sr::SrRecord;

/// Where programs of the system are, whatever is left of the environment.
const TOOLS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of either end of a device is looked at for data.
const EDGE: usize = 64 << 10;

/// Trees of folders that belong to the system.
const OF_THE_SYSTEM: &[&str] =
    &["/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"];
/// A file system for any use within one of them.
const SHARED_MEMORY: &str = "/dev/shm";
/// Folders that are no place for a repository, though what is in them is.
const TOO_HIGH: &[&str] = &["/", "/run", "/var", SHARED_MEMORY];

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A folder, on whatever is mounted there.
    Folder(PathBuf),
    /// A block device.
    Device(PathBuf),
}

/// A place whose folder can be reached. What was mounted for it is unmounted again unless it is [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Open {
    folder: PathBuf,
    mounted: Option<PathBuf>,
    /// It was mounted just now.
    ours: bool,
}

/// Reads a UUID that the toolstack gives.
///
/// # Errors
/// What is none.
pub(crate) fn parse_uuid(text: &str) -> Result<Uuid, Failure> {
    text.parse().map_err(|error| Failure::numbered(Number::BadRequest, format!("{text}: no UUID: {error}")))
}

impl Place {
    /// Reads it from a device configuration.
    ///
    /// # Errors
    /// One that names no place, or two, or one that is no absolute path.
    pub(crate) fn of(configuration: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let refused = |detail: String| Failure::numbered(Number::BadRequest, detail);
        match (configuration.get("uri"), configuration.get("device")) {
            (Some(uri), None) => {
                let folder = folder_of_uri(uri);
                folder.map(Self::Folder).ok_or_else(|| refused(format!("uri: {uri}: not of the form file:///PATH")))
            }
            (None, Some(device)) if Path::new(device).is_absolute() => Ok(Self::Device(device.into())),
            (None, Some(device)) => Err(refused(format!("device: {device}: no absolute path"))),
            (Some(_), Some(_)) => Err(refused("the configuration has both `uri` and `device`; give one".into())),
            (None, None) => Err(refused("the configuration has neither `uri` nor `device`; give one".into())),
        }
    }

    /// Makes a folder that is not there, in one that is; makes a file system on a device that has nothing on it.
    ///
    /// # Errors
    /// What the system answers; a device with something that is no file system.
    pub(crate) fn make(&self) -> Result<(), Failure> {
        match self {
            Self::Folder(folder) => {
                check_folder(folder)?;
                match fs::create_dir(folder) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    made => {
                        made.map_err(Failure::io(folder, "make the folder"))?;
                        Ok(sync_folder(vhd_core::folder_of(folder))?)
                    }
                }
            }
            Self::Device(device) => {
                check_device(device)?;
                check_unmounted(device)?;
                if type_on(device)?.is_none() {
                    make_file_system(device)?;
                }
                Ok(())
            }
        }
    }

    /// Finds its folder; mounts a device.
    ///
    /// # Errors
    /// A folder that is not there; a device that cannot be mounted.
    pub(crate) fn open(&self, host: &Host, sr: Uuid) -> Result<Open, Failure> {
        self.open_with(host, sr, "rw")
    }

    /// As [`open`](Self::open), only to look: a device is mounted so that nothing on it changes, for another host may have
    /// it mounted, too.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn open_to_look(&self, host: &Host) -> Result<Open, Failure> {
        let options = match self {
            Self::Folder(_) => "ro",
            Self::Device(device) => match type_on(device)?.as_deref() {
                Some("ext3" | "ext4") => "ro,noload",
                Some("xfs") => "ro,norecovery",
                _ => "ro",
            },
        };
        self.open_with(host, Uuid::new_v4(), options)
    }

    fn open_with(&self, host: &Host, sr: Uuid, options: &str) -> Result<Open, Failure> {
        match self {
            Self::Folder(folder) => match check_folder(folder).map(|()| folder.canonicalize())? {
                Ok(folder) if folder.is_dir() => Ok(Open { folder, mounted: None, ours: false }),
                _ => Err(Failure::sr_does_not_exist(&folder.display().to_string())),
            },
            Self::Device(device) => {
                let folder = host.mount_point(sr);
                fs::create_dir_all(&folder).map_err(Failure::io(&folder, "make the folder to mount at"))?;
                let folder = folder.canonicalize().map_err(Failure::io(&folder, "find it"))?;
                let ours = !is_mounted(&folder)?;
                if ours
                    && let Err(failure) = check_device(device).and_then(|()| match options {
                        "rw" => check_unmounted(device),
                        _ => Ok(()),
                    })
                {
                    let _ = fs::remove_dir(&folder);
                    return Err(failure);
                }
                if ours
                    && let Err(failure) =
                        run(Command::new("mount").args(["-o", options, "--"]).arg(device).arg(&folder))
                {
                    let _ = fs::remove_dir(&folder);
                    return Err(failure);
                }
                Ok(Open { mounted: Some(folder.clone()), folder, ours })
            }
        }
    }

    /// Finds out who the repository is where nobody tells: what its record says, or what its folder is called; else a
    /// name that is always made of its path in the same way.
    ///
    /// # Errors
    /// A place that cannot be reached.
    pub(crate) fn find_uuid(&self, host: &Host) -> Result<Uuid, Failure> {
        if let Self::Device(device) = self {
            check_device(device)?;
            check_unmounted(device)?;
        }
        let open = self.open_to_look(host)?;
        let found = uuid_of(open.folder(), self);
        open.close()?;
        found
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Device(path) => path,
        }
    }
}

/// Finds out who the repository in a folder is.
///
/// # Errors
/// A record that cannot be read.
pub(crate) fn uuid_of(folder: &Path, place: &Place) -> Result<Uuid, Failure> {
    if let Some(uuid) = SrRecord::read(folder)?.and_then(|record| record.uuid) {
        return Ok(uuid);
    }
    let name = place.path().file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    Ok(name.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, place.path().as_os_str().as_encoded_bytes())))
}

/// Refuses a folder on a file system without file locks: without them nothing could be changed there later.
///
/// # Errors
/// Such a folder, or one in which no file can be made.
pub(crate) fn check_locks(folder: &Path) -> Result<(), Failure> {
    let failed = |error| {
        let failure = Failure::io(folder, "use it as a repository")(error);
        Failure::numbered(Number::SrUnavailable, failure.parameters.last().map_or("", String::as_str))
    };
    // Of a file that goes when this returns.
    let tried = NewFile::start(&folder.join(".sr.lock")).map_err(failed)?;
    tried.file().try_lock().map_err(|error| failed(explain_lock(error.into())))
}

/// Tells whether a folder is a repository: ours, or one that another tool has made.
pub(crate) fn is_repository(folder: &Path) -> bool {
    SrRecord::read(folder).is_ok_and(|record| record.is_some()) || holds_images(folder)
}

/// Tells whether there are images in a folder.
pub(crate) fn holds_images(folder: &Path) -> bool {
    let is_image = |path: &Path| {
        path.extension().is_some_and(|extension| extension == "vhd") && Image::open(path, Lock::None).is_ok()
    };
    fs::read_dir(folder).is_ok_and(|entries| entries.flatten().any(|entry| is_image(&entry.path())))
}

impl Open {
    /// Its folder, without links.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its device is mounted at.
    pub(crate) fn mounted(&self) -> Option<&Path> {
        self.mounted.as_deref()
    }

    /// Leaves it mounted.
    pub(crate) fn keep(self) {}

    /// Leaves it as it was found.
    ///
    /// # Errors
    /// What cannot be unmounted.
    pub(crate) fn close(self) -> Result<(), Failure> {
        match self.mounted.filter(|_| self.ours) {
            Some(mounted) => unmount(&mounted),
            None => Ok(()),
        }
    }
}

/// Unmounts a device and removes the folder that it was mounted at.
///
/// # Errors
/// One that is in use.
pub(crate) fn unmount(mounted: &Path) -> Result<(), Failure> {
    if is_mounted(mounted)? {
        run(Command::new("umount").arg("--").arg(mounted)).map_err(|failure| {
            let detail = failure.parameters.last().cloned().unwrap_or_default();
            Failure::numbered(Number::SrInUse, format!("{detail}; detach its volumes first"))
        })?;
    }
    // Whatever is left in it was there before, and is nobody's business here.
    let _ = fs::remove_dir(mounted);
    Ok(())
}

/// Tells whether something is mounted at a folder.
fn is_mounted(folder: &Path) -> Result<bool, Failure> {
    use std::os::unix::fs::MetadataExt;
    let Some(above) = folder.parent() else { return Ok(true) };
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    match device(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => {
            let found = found.map_err(Failure::io(folder, "look at it"))?;
            Ok(found != device(above).map_err(Failure::io(above, "look at it"))?)
        }
    }
}

/// Tells what is on a device; `None` where there is nothing.
///
/// # Errors
/// A device that cannot be read, or with several things on it.
pub(crate) fn type_on(device: &Path) -> Result<Option<String>, Failure> {
    let mut blkid = Command::new("blkid");
    blkid.args(["-p", "-o", "value", "-s", "TYPE", "--"]).arg(device).stdin(Stdio::null()).env("PATH", TOOLS);
    let output = blkid.output().map_err(Failure::io(Path::new("blkid"), "run it"))?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) if !found.is_empty() => Ok(Some(found)),
        // Nothing was found; but a device that cannot be read ends like that, too.
        Some(2) if !holds_data(device).map_err(Failure::io(device, "read it"))? => Ok(None),
        _ => {
            let detail = format!(
                "{}: holds something that is no file system; if nobody needs that, clear it with `blkdiscard -z`",
                device.display()
            );
            Err(Failure::numbered(Number::SrUnavailable, detail))
        }
    }
}

/// Tells whether anything is on a device that `blkid` does not know, such as a disk image: whether it starts or ends with
/// anything but zeros.
fn holds_data(device: &Path) -> io::Result<bool> {
    let file = fs::File::open(device)?;
    let end = (&file).seek(io::SeekFrom::End(0))?;
    let mut bytes = vec![0; EDGE];
    for offset in [0, end.saturating_sub(EDGE as u64)] {
        let read = file.read_at(&mut bytes, offset)?;
        if bytes[..read].iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the file system that merges are cheapest on, where its tools are installed: one that shares blocks.
fn make_file_system(device: &Path) -> Result<(), Failure> {
    let mut xfs = Command::new("mkfs.xfs");
    match run(xfs.args(["-q", "-m", "reflink=1"]).arg(device)) {
        Err(failure) if failure.parameters.iter().any(|text| text.contains("run it")) => {
            run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device))
        }
        made => made,
    }
}

/// Runs a program of the system.
fn run(command: &mut Command) -> Result<(), Failure> {
    let program = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).env("PATH", TOOLS).output().map_err(Failure::io(&program, "run it"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::numbered(Number::SrUnavailable, format!("{}: {}", program.display(), said.trim())))
}

/// Free and total bytes of the file system that a folder is on.
///
/// # Errors
/// What the system answers.
pub(crate) fn space(folder: &Path) -> Result<(i64, i64), Failure> {
    let stat = rustix::fs::statvfs(folder).map_err(io::Error::from);
    let stat = stat.map_err(Failure::io(folder, "tell its space"))?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
    Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
}

/// The folder that a URI names. What leads to another than it seems to is none: a host, an escaped slash, or `..`.
fn folder_of_uri(uri: &str) -> Option<PathBuf> {
    let path = uri.strip_prefix("file://").filter(|path| path.starts_with('/'))?;
    let decode = |part: &str| Some(percent_decode_str(part).collect::<Vec<u8>>()).filter(|part| part != b"..");
    let parts: Vec<Vec<u8>> = path.split('/').map(decode).collect::<Option<_>>()?;
    let is_plain = |part: &Vec<u8>| !part.contains(&b'/') && !part.contains(&0);
    parts.iter().all(is_plain).then(|| OsString::from_vec(parts.join(&b'/')).into())
}

/// Refuses folders that belong to the system, wherever links lead: a repository makes, hides and deletes files by their
/// names, and its worker takes all images of a folder for its own.
fn check_folder(folder: &Path) -> Result<(), Failure> {
    let real = folder.canonicalize().or_else(|_| {
        let above = folder.parent().unwrap_or(folder).canonicalize()?;
        Ok(folder.file_name().map_or(above.clone(), |name| above.join(name)))
    });
    // What is not there is told of when it is opened.
    let Ok(real) = real.map_err(|_: io::Error| ()) else { return Ok(()) };
    let is_systems = OF_THE_SYSTEM.iter().any(|system| real.starts_with(system)) && !real.starts_with(SHARED_MEMORY);
    if is_systems || TOO_HIGH.iter().any(|high| real == Path::new(high)) {
        let detail = format!("{} belongs to the system; choose a folder for images alone, as in /srv", real.display());
        return Err(Failure::numbered(Number::BadRequest, detail));
    }
    Ok(())
}

/// Refuses what is no block device: a file would be taken for one by the tools, and a new file system be made in it.
fn check_device(device: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileTypeExt;
    if fs::metadata(device).is_ok_and(|found| found.file_type().is_block_device()) {
        return Ok(());
    }
    Err(Failure::numbered(Number::BadRequest, format!("device: {}: no block device", device.display())))
}

/// Refuses a device that is mounted elsewhere: its folders belong to whatever has mounted it.
fn check_unmounted(device: &Path) -> Result<(), Failure> {
    let real = device.canonicalize().map_err(Failure::io(device, "find it"))?;
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let words = mounts.lines().filter_map(|line| line.split_once(' '));
    // The kernel names a root device as it was told at its start.
    let same = |source: &str| Path::new(source).canonicalize().is_ok_and(|source| source == real);
    match words.into_iter().find(|(source, _)| source.starts_with('/') && same(source)) {
        Some((_, at)) => {
            let at = at.split(' ').next().unwrap_or_default();
            let detail = format!("{} is mounted at {at}; unmount it, or give a folder as uri", device.display());
            Err(Failure::numbered(Number::SrInUse, detail))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(members: &[(&str, &str)]) -> Result<Place, Failure> {
        Place::of(&members.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_configuration_names_one_place() {
        assert_eq!(place(&[("uri", "file:///srv/v%20h")]), Ok(Place::Folder("/srv/v h".into())));
        assert_eq!(place(&[("device", "/dev/sdb")]), Ok(Place::Device("/dev/sdb".into())));
        for wrong in [
            &[][..],
            &[("uri", "/srv")],
            &[("uri", "nfs://host/srv")],
            &[("uri", "file://host/srv")],
            &[("uri", "file://%2fsrv")],
            &[("uri", "file:///srv/a%2Fb")],
            &[("uri", "file:///srv/%2e%2E/a")],
            &[("uri", "file:///srv/../a")],
            &[("uri", "file:///srv/%00")],
            &[("device", "sdb")],
            &[("uri", "file:///srv"), ("device", "/dev/sdb")],
        ] {
            assert_eq!(place(wrong).unwrap_err().code, "SR_BACKEND_FAILURE_143", "{wrong:?}");
        }
    }
}
