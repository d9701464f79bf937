//! Disks sent to and taken from peers on the network.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testkit::loop_device::LoopDevice;

use crate::program::{command, refused};

const MIB: u64 = 1 << 20;

/// A `qemu-nbd` that is killed at the end of the test.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(image: &Path, socket: &Path) -> Self {
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-e", "8", "-f", "raw", "-k"]).arg(socket).arg(image);
        let server = Self(command.spawn().expect("`make setup` installs qemu-nbd"));
        let start = Instant::now();
        while UnixStream::connect(socket).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "qemu-nbd does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A raw disk of 8 MiB, with 64 KiB of data after the first MiB.
fn sparse(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let file = File::create(&path).expect("the folder is writable");
    file.set_len(8 * MIB).expect("the folder is writable");
    file.write_all_at(&[7; 65536], MIB).expect("the folder is writable");
    path
}

#[test]
fn a_disk_is_sent_to_an_nbd_server() {
    let folder = tempfile::tempdir().unwrap();
    let source = sparse(folder.path(), "source");
    for prezeroed in [false, true] {
        let copy = folder.path().join("copy");
        std::fs::write(&copy, vec![if prezeroed { 0 } else { 9 }; 8 << 20]).unwrap();
        let socket = folder.path().join("socket");
        let _server = QemuNbd::start(&copy, &socket);
        let endpoint = format!("unix://{}", socket.display());
        let mut args =
            vec!["stream", "--source", "source", "--destination", &endpoint, "--destination-protocol", "nbd"];
        args.extend(prezeroed.then_some("--prezeroed"));
        command(folder.path(), &args).assert().success();
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&source).unwrap(), "prezeroed: {prezeroed}");
    }
}

#[test]
fn a_smaller_nbd_export_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    sparse(folder.path(), "source");
    let copy = folder.path().join("copy");
    File::create(&copy).unwrap().set_len(4 * MIB).unwrap();
    let socket = folder.path().join("socket");
    let _server = QemuNbd::start(&copy, &socket);
    let endpoint = format!("unix://{}", socket.display());
    let args = ["stream", "--source", "source", "--destination", &endpoint, "--destination-protocol", "nbd"];
    refused(folder.path(), &args, 5, &["4194304", "8388608"]);
}

#[test]
fn what_an_nbd_server_calls_data_is_read_from_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _server = QemuNbd::start(&sparse(folder.path(), "map"), &socket);
    std::fs::write(folder.path().join("device"), vec![5; 8 << 20]).unwrap();
    let source = format!("device:{}::{}", socket.display(), 8 * MIB);
    let format = ["--source-format", "nbdhybrid", "--destination", "copy"];
    command(folder.path(), &[&["stream", "--source", &source][..], &format].concat()).assert().success();
    let mut expected = vec![0; 8 << 20];
    expected[1 << 20..][..65536].fill(5);
    assert!(std::fs::read(folder.path().join("copy")).unwrap() == expected);
}

/// To a file, whatever its length was, to a new one, and to a device of just its size.
#[test]
fn an_nbd_client_writes_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    for there in [Some(8 * MIB), Some(3 * MIB), Some(0), None] {
        write_by_nbd(folder.path(), Path::new("copy"), there);
        std::fs::remove_file(folder.path().join("copy")).unwrap();
    }
    let device = LoopDevice::new(&folder.path().join("device"), 8 * MIB);
    write_by_nbd(folder.path(), &device.path, Some(8 * MIB));
}

/// Nobody is told that a disk of no size, or one that has no room, has been written.
#[test]
fn an_nbd_client_is_given_no_disk_without_room() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("device"), 4 * MIB);
    let device = device.path.to_str().unwrap();
    File::create(folder.path().join("empty")).unwrap();
    for (destination, code, text) in
        [(&["empty"][..], 2, "--destination-size"), (&[device, "--destination-size", "8388608"], 5, "4194304")]
    {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_vhd-tool"));
        server.current_dir(folder.path()).args(["serve", "--source-protocol", "nbd", "--source-fd", "0"]);
        let server = server.arg("--destination").args(destination).stdin(Stdio::from(OwnedFd::from(theirs)));
        let server = server.stderr(Stdio::piped()).spawn().unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let output = server.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(text), "{destination:?}: {said}");
    }
}

/// `there` is the length of what is there before.
fn write_by_nbd(folder: &Path, destination: &Path, there: Option<u64>) {
    let source = sparse(folder, "source");
    let socket = folder.join("socket");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("it works");
    // What the client says is zero replaces what was there.
    if let Some(length) = there {
        let there = File::options().create(true).truncate(false).write(true).open(folder.join(destination));
        there.expect("it works").write_all_at(&vec![9; length as usize], 0).expect("it works");
    }
    let uri = format!("nbd+unix:///any?socket={}", socket.display());
    let mut client = Command::new("timeout");
    client.args(["60", "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw"]).arg(&source).arg(uri);
    let mut client = client.spawn().expect("it works");
    let stream = OwnedFd::from(listener.accept().expect("it works").0);
    let mut server = Command::new(env!("CARGO_BIN_EXE_vhd-tool"));
    server.current_dir(folder).args(["serve", "--source-protocol", "nbd", "--source-fd", "0"]);
    server.args(["--destination-size", "8388608", "--progress", "--machine", "--destination"]).arg(destination);
    let server = server.stdin(Stdio::from(stream)).output().expect("it works");
    assert!(server.status.success(), "{}", String::from_utf8_lossy(&server.stderr));
    assert!(server.stdout.starts_with(b"000001") && server.stdout.ends_with(b"099100"));
    assert!(client.wait().expect("it works").success());
    assert!(std::fs::read(folder.join(destination)).expect("it works") == std::fs::read(source).expect("it works"));
}

/// Reads the head of a request.
fn read_head(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the request has a head");
        head.push(byte[0]);
    }
    head
}

#[test]
fn chunks_are_put_to_an_http_server() {
    let folder = tempfile::tempdir().unwrap();
    sparse(folder.path(), "source");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://u:p@{}/import_raw_vdi?vdi=1", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap();
        (String::from_utf8(head).unwrap(), body)
    });
    // What goes to a handler of imports goes in chunks, unless something else is asked for.
    let args = ["stream", "--source", "source", "--destination", &endpoint, "--prezeroed"];
    command(folder.path(), &args).assert().success();
    let (head, body) = server.join().unwrap();
    assert!(
        head.starts_with("PUT /import_raw_vdi?vdi=1 HTTP/1.1\r\n") && head.contains("\r\nCookie: chunked=true\r\n")
    );
    let data = [&MIB.to_le_bytes()[..], &65536_u32.to_le_bytes(), &[7; 65536]].concat();
    // Where the disk ends is told by its last sector.
    let last = [&(8 * MIB - 512).to_le_bytes()[..], &512_u32.to_le_bytes(), &[0; 512]].concat();
    assert!(body == [&data[..], &last, &[0; 12]].concat());
}

#[test]
fn a_server_that_refuses_is_an_error_and_no_secret_is_told() {
    let folder = tempfile::tempdir().unwrap();
    sparse(folder.path(), "source");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://u:SECRET@{}/import_raw_vdi?session_id=SECRET", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 401 Unauthorised\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let output = command(folder.path(), &["stream", "--source", "source", "--destination", &endpoint]).assert().code(5);
    server.join().unwrap();
    let told = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(told.contains("401 Unauthorised") && !told.contains("SECRET"), "{told}");
}

/// A socket that is closed before all was read from it takes back what the peer has not read yet.
#[test]
fn a_peer_that_speaks_while_it_reads_gets_all() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Vec<u8> = (0..8 * MIB).map(|at| (at % 253) as u8).collect();
    std::fs::write(folder.path().join("source"), &disk).unwrap();
    for scheme in ["http", "tcp"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            if scheme == "http" {
                read_head(&mut stream);
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            }
            stream.write_all(b"and more").unwrap();
            thread::sleep(Duration::from_millis(500));
            let mut body: Vec<u8> = Vec::new();
            let mut piece = vec![0; 256 << 10];
            loop {
                match stream.read(&mut piece).expect("nothing is taken back") {
                    0 => return body,
                    read => body.extend(&piece[..read]),
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let args = ["stream", "--source", "source", "--destination", &endpoint, "--destination-protocol", "none"];
        command(folder.path(), &args).assert().success();
        assert!(server.join().unwrap() == disk, "{scheme}");
    }
}

/// Whoever shares a descriptor may have made it one that does not wait.
#[test]
fn descriptors_that_do_not_wait_are_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Vec<u8> = (0..3 * MIB).map(|at| (at % 251) as u8).collect();
    std::fs::write(folder.path().join("source"), &disk).unwrap();
    let start = |args: &[&str], stdin: Stdio, stdout: Stdio| {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_vhd-tool"));
        tool.current_dir(folder.path()).args(args).stdin(stdin).stdout(stdout).spawn().unwrap()
    };
    let pair = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, Stdio::from(OwnedFd::from(theirs)))
    };
    let (mut ours, theirs) = pair();
    let mut server = start(&["serve", "--destination", "served"], theirs, Stdio::null());
    for piece in disk.chunks(1 << 20) {
        thread::sleep(Duration::from_millis(200));
        ours.write_all(piece).unwrap();
    }
    drop(ours);
    assert!(server.wait().unwrap().success());
    assert!(std::fs::read(folder.path().join("served")).unwrap() == disk);

    let (mut ours, theirs) = pair();
    let raw = ["stream", "--source", "source", "--destination", "stdout:", "--destination-format", "raw"];
    let mut client = start(&raw, Stdio::null(), theirs);
    thread::sleep(Duration::from_millis(500));
    let mut sent = Vec::new();
    ours.read_to_end(&mut sent).unwrap();
    assert!(client.wait().unwrap().success());
    assert!(sent == disk);
}

#[test]
fn where_nobody_listens_a_source_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Vec<u8> = (0..3 * MIB).map(|at| (at % 251) as u8).collect();
    std::fs::write(folder.path().join("source"), &disk).unwrap();
    let socket = folder.path().join("socket");
    // What another listener has left.
    drop(UnixListener::bind(&socket).unwrap());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in [format!("unix://{}", socket.display()), format!("tcp://{free}")] {
        let serve = ["serve", "--source", &endpoint, "--destination", "served", "--destination-size", "3145728"];
        let mut server = Command::new(env!("CARGO_BIN_EXE_vhd-tool")).current_dir(folder.path()).args(serve).spawn();
        let stream = ["stream", "--source", "source", "--destination", &endpoint];
        let sent = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(50));
            command(folder.path(), &stream).output().unwrap().status.success()
        });
        assert!(sent && server.as_mut().unwrap().wait().unwrap().success(), "{endpoint}");
        assert!(std::fs::read(folder.path().join("served")).unwrap() == disk);
        std::fs::remove_file(folder.path().join("served")).unwrap();
        assert!(!socket.exists());
    }
}
