//! Our client against `qemu-nbd`, and our server against `qemu-img` and `qemu-io`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Disk, MIB, PATIENCE, pattern};
use crate::nbd::{Client, HybridError, HybridSource, NbdError, serve};
use vhd_core::{ByteCount, FileOffset, Sector, SectorCount, SectorRange};

/// A `qemu-nbd` that is killed at the end of the test.
struct QemuNbd {
    process: Child,
    socket: PathBuf,
}

impl QemuNbd {
    fn start(image: &Path, format: &str) -> Self {
        let socket = image.with_extension("socket");
        let mut command = Process::new("qemu-nbd");
        command.args(["-t", "-e", "8", "-x", "disk", "-f", format, "-k"]);
        let process = command.arg(&socket).arg(image).spawn().expect("`make setup` installs qemu-nbd");
        let server = Self { process, socket };
        let start = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "qemu-nbd does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn connect(&self, export: &str) -> Result<Client<UnixStream>, NbdError> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::connect(stream, export)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    // Should our server hang, the test must not.
    let output = Process::new("timeout").args(["60", program]).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("failed"), "{program} {args:?}: {said}");
}

/// A raw image of 16 MiB, all hole but for 64 KiB from the first MiB.
fn sparse(folder: &Path) -> PathBuf {
    let path = folder.join("disk.raw");
    let file = File::create(&path).unwrap();
    file.set_len(16 * MIB).unwrap();
    file.write_all_at(&pattern(65536, 1), MIB).unwrap();
    path
}

fn range(start: u64, end: u64) -> std::ops::Range<FileOffset> {
    FileOffset(start)..FileOffset(end)
}

#[test]
fn a_raw_disk_of_qemu_is_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let image = sparse(folder.path());
    let server = QemuNbd::start(&image, "raw");
    let mut client = server.connect("disk").unwrap();
    assert_eq!(client.size(), ByteCount(16 * MIB));
    assert!(client.can_zero());
    let all = client.allocated(FileOffset(0), ByteCount(16 * MIB)).unwrap();
    assert_eq!(all, [range(MIB, MIB + 65536)]);
    let some = client.allocated(FileOffset(MIB + 4096), ByteCount(8 * MIB)).unwrap();
    assert_eq!(some, [range(MIB + 4096, MIB + 65536)]);
    let mut bytes = vec![9; 65536 + 1024];
    client.read_at(FileOffset(MIB - 512), &mut bytes).unwrap();
    assert!(
        bytes[..512] == [0; 512] && bytes[512..65536 + 512] == pattern(65536, 1) && bytes[65536 + 512..] == [0; 512]
    );
    let data = pattern(5 * MIB, 2);
    client.write_at(FileOffset(4 * MIB), &data).unwrap();
    client.zero(FileOffset(5 * MIB), ByteCount(MIB)).unwrap();
    for sector in 0..200_u64 {
        client.write_at(FileOffset(10 * MIB + sector * 1024), &[sector as u8; 512]).unwrap();
    }
    client.flush().unwrap();
    let mut back = vec![9; data.len()];
    client.read_at(FileOffset(4 * MIB), &mut back).unwrap();
    client.disconnect().unwrap();
    let written = std::fs::read(&image).unwrap();
    let mut expected = data;
    expected[1 << 20..2 << 20].fill(0);
    assert!(back == expected && written[4 << 20..9 << 20] == expected);
    for sector in 0..200 {
        assert_eq!(written[(10 << 20) + sector * 1024], sector as u8);
    }
}

#[test]
fn a_vhd_served_by_qemu_tells_its_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.vhd");
    run("qemu-img", &["create", "-q", "-f", "vpc", "-o", "force_size=on", image.to_str().unwrap(), "16M"]);
    let server = QemuNbd::start(&image, "vpc");
    let mut client = server.connect("disk").unwrap();
    let size = client.size();
    assert_eq!(size, ByteCount(16 * MIB));
    assert_eq!(client.allocated(FileOffset(0), size).unwrap(), []);
    client.write_at(FileOffset(3 * MIB), &[1; 512]).unwrap();
    client.write_at(FileOffset(11 * MIB), &[2; 512]).unwrap();
    client.flush().unwrap();
    let blocks = [range(2 * MIB, 4 * MIB), range(10 * MIB, 12 * MIB)];
    assert_eq!(client.allocated(FileOffset(0), size).unwrap(), blocks);
    let mut sectors = [9; 1024];
    client.read_at(FileOffset(3 * MIB), &mut sectors).unwrap();
    assert!(sectors[..512] == [1; 512] && sectors[512..] == [0; 512]);
    client.disconnect().unwrap();
}

#[test]
fn an_export_that_qemu_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = QemuNbd::start(&sparse(folder.path()), "raw");
    assert!(matches!(server.connect("other"), Err(NbdError::Refused { .. })));
}

#[test]
fn a_hybrid_source_asks_its_server_for_the_allocation() {
    let folder = tempfile::tempdir().unwrap();
    let server = QemuNbd::start(&sparse(folder.path()), "raw");
    let socket = server.socket.display();
    let source: HybridSource = format!("/dev/raw:{socket}:disk:{}", 8 * MIB).parse().unwrap();
    let allocation = source.allocation().unwrap();
    let sectors = |start, count| SectorRange::new(Sector(start), SectorCount(count));
    assert_eq!(allocation.within(sectors(0, 16384)), [sectors(2048, 128)]);
    let larger = HybridSource { size: ByteCount(17 * MIB), ..source.clone() };
    assert!(matches!(larger.allocation(), Err(HybridError::Nbd { source: NbdError::Outside { .. }, .. })));
    let nowhere = HybridSource { server: folder.path().join("nowhere"), ..source };
    assert!(matches!(nowhere.allocation(), Err(HybridError::Connect(_))));
}

/// Serves a disk at a socket to one client.
fn serving_at(socket: &Path, mut disk: Disk) -> JoinHandle<Disk> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        serve(&mut stream, &mut disk).unwrap();
        disk
    })
}

#[test]
fn qemu_img_writes_a_disk_to_our_server() {
    let folder = tempfile::tempdir().unwrap();
    let image = sparse(folder.path());
    let socket = folder.path().join("ours");
    let server = serving_at(&socket, Disk::new(16 * MIB));
    let uri = format!("nbd+unix:///any?socket={}", socket.display());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image.to_str().unwrap(), &uri]);
    let disk = server.join().unwrap();
    assert!(disk.bytes == std::fs::read(image).unwrap());
    assert!(disk.zeroed > 0);
}

#[test]
fn qemu_io_finds_at_our_server_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ours");
    let server = serving_at(&socket, Disk::new(64 * MIB));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let commands = [
        "write -P 7 0 33M",
        "write -z 1M 64k",
        "write -z -u 40M 1M",
        "discard 34M 64k",
        "write -f -P 9 512 512",
        "flush",
        "read -P 7 0 512",
        "read -P 9 512 512",
        "read -P 0 1M 64k",
        "read -P 7 2M 31M",
        "read -P 0xee 50M 1M",
    ];
    let args: Vec<&str> =
        ["-f", "raw"].into_iter().chain(commands.iter().flat_map(|command| ["-c", command])).collect();
    run("qemu-io", &[&args[..], &[&uri]].concat());
    let disk = server.join().unwrap();
    assert!(disk.bytes[512..1024] == [9; 512] && disk.bytes[40 << 20..41 << 20].iter().all(|&byte| byte == 0));
    assert!(disk.synced >= 2);
}
