//! Installing: a folder with all executables, which appears complete under its name.

use std::fs::{self, Permissions};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;
use vhd_core::{folder_of, sync_folder};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::extension::EXTENSIONS;
use crate::failure::Failure;
use crate::host::{SETTINGS, Settings};
use crate::interface::{methods, plugin};
use crate::store;

/// What the daemon's tracing runs instead of the executable: it feeds the file to Python, which finds this in it.
const LAUNCHER: &str = "import os, sys\nos.execv(sys.argv[0], sys.argv)\n";
/// The executable that all names lead to.
const BINARY: &str = "sr-plugin";

/// Makes the plugin's folder beneath the daemon's root, `volume/org.xen.xapi.storage.vhd`, in the place of one that is
/// there; and links for the extensions. Gives the folder.
///
/// # Errors
/// What the system answers. What was there before is there still.
///
/// # Crash safety
/// One rename decides; what it replaced may be left beside it, under a name that starts with a dot. Where renames take no
/// flags (NFS, FUSE) it is two: a crash between leaves the plugin away, and installing again mends that.
pub fn install(root: &Path, settings: &Settings, extensions: Option<&Path>) -> Result<PathBuf, Failure> {
    let volume = root.join("volume");
    fs::create_dir_all(&volume).map_err(Failure::io(&volume, "make the folder"))?;
    // The daemon takes every folder that appears in there for a plugin.
    let made =
        tempfile::Builder::new().prefix(".sr-plugin-").tempdir_in(root).map_err(Failure::io(root, "make a folder"))?;
    fill(made.path(), settings)?;

    let folder = volume.join(format!("org.xen.xapi.storage.{}", plugin::query().plugin));
    put_in_place(made, &folder).map_err(Failure::io(&folder, "put the plugin in its place"))?;
    sync_folder(&volume)?;
    sync_folder(root)?;
    if let Some(extensions) = extensions {
        link_extensions(extensions, &folder.join(BINARY))?;
    }
    Ok(folder)
}

fn put_in_place(made: TempDir, folder: &Path) -> io::Result<()> {
    let rename = |flags| renameat_with(CWD, made.path(), CWD, folder, flags);
    match rename(RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => match rename(RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            exchanged => return Ok(exchanged?),
        },
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        renamed => return Ok(renamed.map(|()| drop(made.keep()))?),
    }
    // A folder replaces none but an empty one: what is there goes into a folder that goes when this returns.
    let before = tempfile::Builder::new().prefix(".sr-plugin-").tempdir_in(folder_of(made.path()))?;
    let aside = before.path().join("before");
    match fs::rename(folder, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        moved => moved?,
    }
    fs::rename(made.path(), folder).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::rename(&aside, folder);
    })?;
    drop(made.keep());
    Ok(())
}

fn fill(folder: &Path, settings: &Settings) -> Result<(), Failure> {
    let failed = |error| Failure::io(folder, "fill it")(error);
    fs::set_permissions(folder, Permissions::from_mode(0o755)).map_err(failed)?;
    let binary = folder.join(BINARY);
    let bytes = fs::read("/proc/self/exe").map_err(Failure::io(Path::new("/proc/self/exe"), "read it"))?;
    let mut file = fs::File::create_new(&binary).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    if !ends_with_launcher(&bytes) {
        file.write_all(&launcher().map_err(failed)?).map_err(failed)?;
    }
    file.set_permissions(Permissions::from_mode(0o755)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    for method in methods() {
        symlink(BINARY, folder.join(method.name)).map_err(failed)?;
    }
    store::write_beside_others(&folder.join(SETTINGS), settings)
}

/// Tells whether a program that is installed has been installed from an installation.
fn ends_with_launcher(bytes: &[u8]) -> bool {
    zip::ZipArchive::new(Cursor::new(bytes)).is_ok_and(|archive| archive.index_for_name("__main__.py").is_some())
}

/// An archive that Python runs. Put at the end of a program, it hinders nobody.
fn launcher() -> io::Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("__main__.py", options)?;
    archive.write_all(LAUNCHER.as_bytes())?;
    Ok(archive.finish()?.into_inner())
}

fn link_extensions(folder: &Path, binary: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(Failure::io(folder, "make the folder"))?;
    let binary = binary.canonicalize().map_err(Failure::io(binary, "find it"))?;
    for extension in EXTENSIONS {
        let (link, new) = (folder.join(extension.name), folder.join(format!(".{}.new", extension.name)));
        store::remove(&new)?;
        symlink(&binary, &new).and_then(|()| fs::rename(&new, &link)).map_err(Failure::io(&link, "make the link"))?;
    }
    Ok(sync_folder(folder)?)
}
