//! blktap's own tapdisk, where it is installed: what the double does is held against it.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use super::headers::{SECTOR, be32, be64};
use super::{Disk, pieces};

/// The most sectors of a request.
const REQUEST: u64 = 2048;

/// Whether `tapdisk` and `tap-ctl` are on the PATH; says so where they are not.
pub fn is_installed() -> bool {
    let is_there = |program: &str, argument: &str| Command::new(program).arg(argument).output().is_ok();
    let found = is_there("tapdisk", "-h") && is_there("tap-ctl", "help");
    if !found {
        crate::tell!("tapdisk and tap-ctl are not on the PATH: nothing is compared with them");
    }
    found
}

/// A process of tapdisk, and the disk that it serves over NBD.
#[derive(Debug)]
pub struct RealTapdisk {
    pid: String,
    minor: String,
    guest: UnixStream,
    sectors: u64,
}

impl RealTapdisk {
    /// Starts a tapdisk, and opens the chain of an image.
    ///
    /// # Errors
    /// What tapdisk refuses.
    ///
    /// # Panics
    /// If what the programs print cannot be understood.
    pub fn open(leaf: &Path) -> io::Result<Self> {
        let text = |output: Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let started = text(ended(Command::new("tapdisk").output()?)?);
        let pid = started.rsplit_once("/ctl").expect("it prints its control socket").1.to_owned();
        let allocated = text(ended(Command::new("tap-ctl").arg("allocate").output()?)?);
        let minor = allocated.rsplit_once('-').expect("it prints a device").1.to_owned();
        tap_ctl("attach", &pid, &minor, &[])?;
        tap_ctl("open", &pid, &minor, &["-a", &format!("vhd:{}", leaf.display())])?;
        let guest = UnixStream::connect(format!("/run/blktap-control/nbd{pid}.{minor}"))?;
        let mut tapdisk = Self { pid, minor, guest, sectors: 0 };
        tapdisk.shake_hands()?;
        Ok(tapdisk)
    }

    /// Takes the only export: the server greets, the client says what it can, asks, and is told size and flags.
    fn shake_hands(&mut self) -> io::Result<()> {
        self.guest.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut greeting = [0; 18];
        self.guest.read_exact(&mut greeting)?;
        assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "an NBD server");
        // No padding after the flags; option 1, an export by name; the name is empty.
        let (flags, option, length) = (3_u32, 1_u32, 0_u32);
        let answer = [&flags.to_be_bytes()[..], b"IHAVEOPT", &option.to_be_bytes(), &length.to_be_bytes()].concat();
        self.guest.write_all(&answer)?;
        let mut export = [0; 10];
        self.guest.read_exact(&mut export)?;
        self.sectors = be64(&export, 0) / SECTOR;
        Ok(())
    }

    fn request(&mut self, kind: u32, sectors: &Range<u64>, data: &[u8]) -> io::Result<()> {
        let mut request = vec![0x25, 0x60, 0x95, 0x13];
        request.extend(kind.to_be_bytes());
        request.extend([7; 8]);
        request.extend((sectors.start * SECTOR).to_be_bytes());
        request.extend((((sectors.end - sectors.start) * SECTOR) as u32).to_be_bytes());
        request.extend(data);
        self.guest.write_all(&request)
    }

    fn reply(&mut self) -> io::Result<()> {
        let mut reply = [0; 16];
        self.guest.read_exact(&mut reply)?;
        match be32(&reply, 4) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error.cast_signed())),
        }
    }
}

impl Disk for RealTapdisk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read(&mut self, sectors: Range<u64>) -> io::Result<Vec<u8>> {
        self.request(0, &sectors, &[])?;
        self.reply()?;
        let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR) as usize];
        self.guest.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// In requests of at most 1 MiB, as kernels give them: one for two new blocks at once waits for a timer of tapdisk's.
    /// `between` is called a few times while each may be under way.
    fn write_beside(&mut self, sector: u64, bytes: &[u8], between: &mut dyn FnMut()) -> io::Result<()> {
        let end = sector + bytes.len() as u64 / SECTOR;
        pieces(sector..end, |piece, within| {
            let count = (piece.end - piece.start).min(REQUEST - piece.start % REQUEST);
            let data = &bytes[within..][..(count * SECTOR) as usize];
            self.request(1, &(piece.start..piece.start + count), data)?;
            for _ in 0..3 {
                between();
            }
            self.reply()?;
            Ok(count)
        })
    }

    fn pause(&mut self) -> io::Result<()> {
        tap_ctl("pause", &self.pid, &self.minor, &[])
    }

    fn unpause(&mut self) -> io::Result<()> {
        tap_ctl("unpause", &self.pid, &self.minor, &[])
    }
}

impl Drop for RealTapdisk {
    fn drop(&mut self) {
        // Without a disk the process ends. One that is paused has closed its files already.
        for command in ["close", "detach"] {
            let _ = tap_ctl(command, &self.pid, &self.minor, &[]);
        }
        let _ = Command::new("tap-ctl").args(["free", "-m", &self.minor]).output();
    }
}

fn tap_ctl(command: &str, pid: &str, minor: &str, more: &[&str]) -> io::Result<()> {
    ended(Command::new("tap-ctl").args([command, "-p", pid, "-m", minor]).args(more).output()?).map(|_| ())
}

/// The programs end with the number of the error.
fn ended(output: Output) -> io::Result<Output> {
    match output.status.code() {
        Some(0) => Ok(output),
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        None => Err(io::Error::other(format!("{output:?}"))),
    }
}
