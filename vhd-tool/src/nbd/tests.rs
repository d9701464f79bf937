mod qemu;

use std::io::{self, Cursor, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::hybrid::Allocation;
use super::wire::{self, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Request, reply};
use super::{Client, Command, Export, HybridError, HybridSource, NbdError, serve};
use crate::transport::{Address, ConnectOptions, Connection};
use vhd_core::{ByteCount, FileOffset, Sector, SectorRange};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk in memory, of which a part can be out of order.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    broken: Range<usize>,
    zeroed: u64,
    synced: usize,
}

impl Disk {
    fn new(size: u64) -> Self {
        Self { bytes: vec![0xee; usize::try_from(size).unwrap()], ..Self::default() }
    }

    fn part(&mut self, offset: FileOffset, length: usize) -> io::Result<&mut [u8]> {
        assert!(length > 0);
        let start = usize::try_from(offset.0).unwrap();
        if start < self.broken.end && self.broken.start < start + length {
            return Err(io::Error::other("out of order"));
        }
        Ok(&mut self.bytes[start..start + length])
    }
}

impl Export for Disk {
    fn size(&self) -> ByteCount {
        ByteCount(self.bytes.len() as u64)
    }

    fn read_at(&mut self, offset: FileOffset, bytes: &mut [u8]) -> io::Result<()> {
        bytes.copy_from_slice(self.part(offset, bytes.len())?);
        Ok(())
    }

    fn write_at(&mut self, offset: FileOffset, bytes: &[u8]) -> io::Result<()> {
        self.part(offset, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, offset: FileOffset, length: ByteCount, _may_be_hole: bool) -> io::Result<()> {
        self.zeroed += length.0;
        self.part(offset, usize::try_from(length.0).unwrap())?.fill(0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.synced += 1;
        Ok(())
    }
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (ours, theirs)
}

/// A stream on which the peer says some bytes, whatever it is told, and then hangs up.
#[derive(Debug)]
struct Told(Cursor<Vec<u8>>);

fn told(bytes: &[u8]) -> Told {
    Told(Cursor::new(bytes.to_vec()))
}

impl Read for Told {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A server, which gives its disk back with how it ended.
type Serving = JoinHandle<(Disk, Result<(), NbdError>)>;

/// Serves a disk to whoever has the stream.
fn serving(mut disk: Disk) -> (UnixStream, Serving) {
    let (ours, mut theirs) = pair();
    let server = thread::spawn(move || {
        let result = serve(&mut theirs, &mut disk);
        (disk, result)
    });
    (ours, server)
}

fn pattern(length: u64, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i / 7) as u8 ^ seed).collect()
}

#[test]
fn our_client_and_our_server_agree() {
    let (stream, server) = serving(Disk::new(64 * MIB));
    let mut client = Client::connect(stream, "any name").unwrap();
    assert_eq!(client.size(), ByteCount(64 * MIB));
    assert!(client.can_zero());
    let data = pattern(40 * MIB, 3);
    client.write_at(FileOffset(MIB + 5), &data).unwrap();
    client.zero(FileOffset(2 * MIB), ByteCount(MIB)).unwrap();
    client.flush().unwrap();
    let mut back = vec![1; data.len()];
    client.read_at(FileOffset(MIB + 5), &mut back).unwrap();
    let mut expected = vec![0xee; 64 << 20];
    expected[(1 << 20) + 5..][..data.len()].copy_from_slice(&data);
    expected[2 << 20..3 << 20].fill(0);
    assert!(back == expected[(1 << 20) + 5..][..data.len()]);
    // Our server tells nothing of holes.
    let all = client.allocated(FileOffset(0), ByteCount(64 * MIB)).unwrap();
    assert_eq!(all, [FileOffset(0)..FileOffset(64 * MIB)]);
    client.disconnect().unwrap();
    let (disk, result) = server.join().unwrap();
    result.unwrap();
    assert!(disk.bytes == expected);
    assert_eq!((disk.zeroed, disk.synced), (MIB, 1));
}

#[test]
fn ranges_past_the_end_are_refused_by_the_client() {
    let (stream, _server) = serving(Disk::new(1000));
    let mut client = Client::connect(stream, "").unwrap();
    for (offset, length) in [(0, 1001), (1000, 1), (u64::MAX, 1), (u64::MAX - 5, 100)] {
        let (offset, length) = (FileOffset(offset), ByteCount(length));
        let bytes = vec![0; usize::try_from(length.0).unwrap()];
        assert!(matches!(client.write_at(offset, &bytes), Err(NbdError::Outside { .. })));
        assert!(matches!(client.read_at(offset, &mut bytes.clone()), Err(NbdError::Outside { .. })));
        assert!(matches!(client.zero(offset, length), Err(NbdError::Outside { .. })));
        assert!(matches!(client.allocated(offset, length), Err(NbdError::Outside { .. })));
    }
    client.write_at(FileOffset(1000), &[]).unwrap();
    client.disconnect().unwrap();
}

#[test]
fn a_failure_of_the_disk_reaches_both_sides() {
    let (stream, server) = serving(Disk { broken: 5000..5001, ..Disk::new(MIB) });
    let mut client = Client::connect(stream, "").unwrap();
    client.write_at(FileOffset(0), &[1; 4096]).unwrap();
    let failed = client.write_at(FileOffset(4096), &[2; 4096]).and_then(|()| client.flush());
    let is_io = |error: &NbdError, asked| matches!(error, NbdError::Command { command, code: wire::errno::IO, .. } if *command == asked);
    assert!(is_io(&failed.unwrap_err(), Command::Write));
    assert!(is_io(&client.read_at(FileOffset(4999), &mut [0; 2]).unwrap_err(), Command::Read));
    client.read_at(FileOffset(0), &mut [0; 4096]).unwrap();
    client.disconnect().unwrap();
    let (_, result) = server.join().unwrap();
    assert!(matches!(result, Err(NbdError::Disk { command: Command::Write, offset: FileOffset(4096), .. })));
}

/// Takes the export by its name alone, as the oldest clients do, and swallows what the server says to that.
fn take_export(stream: &mut UnixStream) {
    let option = [&1_u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    stream.write_all(&option).unwrap();
    let mut said = [0; 18 + 10 + 124];
    stream.read_exact(&mut said).unwrap();
    assert!(said[28..].iter().all(|&byte| byte == 0));
}

fn request(stream: &mut UnixStream, flags: u16, command: Command, offset: u64, length: u32) {
    let request = Request { flags, command, cookie: 7, offset: FileOffset(offset), length };
    request.write_to(stream).unwrap();
}

/// Reads the error number of a reply.
fn replied(stream: &mut UnixStream) -> u32 {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes[..4], &bytes[8..]), (&[0x67, 0x44, 0x66, 0x98][..], &7_u64.to_be_bytes()[..]));
    u32::from_be_bytes(bytes[4..8].try_into().unwrap())
}

#[test]
fn the_server_refuses_what_it_cannot_do_and_goes_on() {
    let (mut stream, server) = serving(Disk::new(8192));
    take_export(&mut stream);
    let (invalid, no_space) = (wire::errno::INVALID, wire::errno::NO_SPACE);
    let cases = [
        (0, Command::Read, 8000, 1000, invalid),
        (0, Command::Read, u64::MAX, 1, invalid),
        (0, Command::Read, 0, u32::MAX, invalid),
        (4, Command::Read, 0, 512, invalid),
        (0, Command::WriteZeroes, 8192, 1, no_space),
        (0, Command::WriteZeroes, 1, u32::MAX, no_space),
        (16, Command::WriteZeroes, 0, 512, invalid),
        (2, Command::Trim, 0, 512, invalid),
        (0, Command::BlockStatus, 0, 512, invalid),
        (0, Command::Unknown(5), 0, 512, invalid),
        (0, Command::Unknown(999), 0, u32::MAX, invalid),
        (0, Command::Read, 8192, 0, 0),
        (0, Command::WriteZeroes, 8192, 0, 0),
        (0, Command::Trim, 0, 8192, 0),
        (3, Command::WriteZeroes, 0, 8192, 0),
        (0, Command::Flush, 0, 0, 0),
    ];
    for (flags, command, offset, length, expected) in cases {
        request(&mut stream, flags, command, offset, length);
        assert_eq!(replied(&mut stream), expected, "{command} at {offset} of {length}");
    }
    for (flags, offset, expected) in [(0, 8000, no_space), (0, u64::MAX, no_space), (2, 0, invalid), (1, 0, 0)] {
        request(&mut stream, flags, Command::Write, offset, 1000);
        stream.write_all(&[5; 1000]).unwrap();
        assert_eq!(replied(&mut stream), expected, "write at {offset}");
    }
    request(&mut stream, 0, Command::Disconnect, 0, 0);
    let (disk, result) = server.join().unwrap();
    result.unwrap();
    assert!(disk.bytes[..1000] == [5; 1000] && disk.bytes[1000..].iter().all(|&byte| byte == 0));
    assert_eq!(disk.synced, 3);
}

#[test]
fn the_server_hangs_up_on_nonsense() {
    let ends = |bytes: &[u8]| serve(&mut told(bytes), &mut Disk::new(8192)).unwrap_err();
    let option = |number: u32, length: u32| {
        [&3_u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &number.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    assert!(matches!(ends(b""), NbdError::Io(_)));
    assert!(matches!(ends(b"GET / HTTP/1.1\r\n\r\n"), NbdError::Protocol { .. }));
    assert!(matches!(ends(&[&[0, 0, 0, 3][..], &[9; 16]].concat()), NbdError::Magic { .. }));
    assert!(matches!(ends(&option(7, u32::MAX)), NbdError::Protocol { .. }));
    assert!(matches!(ends(&option(7, 1000)), NbdError::Io(_)));
    assert!(matches!(ends(&option(2, 0)), NbdError::Aborted));
    // A name longer than the option that holds it is answered, and the client may try again.
    assert!(matches!(ends(&[option(7, 4), vec![0xff; 4]].concat()), NbdError::Io(_)));
    let endless = [&[0, 0, 0, 3][..], &option(99, 0)[4..].repeat(65)].concat();
    assert!(matches!(ends(&endless), NbdError::Protocol { .. }));
    let taken = option(1, 0);
    assert!(matches!(ends(&taken), NbdError::Io(_)));
    assert!(matches!(ends(&[taken.clone(), vec![1; 28]].concat()), NbdError::Magic { .. }));
    let huge = Request { flags: 0, command: Command::Write, cookie: 7, offset: FileOffset(0), length: 33 << 20 };
    let mut bytes = taken;
    huge.write_to(&mut bytes).unwrap();
    assert!(matches!(ends(&bytes), NbdError::Protocol { .. }));
}

fn greeting(flags: u16) -> Vec<u8> {
    [&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data]
        .concat()
}

/// What a server says up to the requests: it has chunks, and block status as context 9.
fn agreeing(size: u64) -> Vec<u8> {
    let export = [&[0, 0][..], &size.to_be_bytes(), &0x45_u16.to_be_bytes()].concat();
    [
        greeting(3),
        answer(8, reply::ACK, &[]),
        answer(10, reply::META_CONTEXT, b"\0\0\0\x09base:allocation"),
        answer(10, reply::ACK, &[]),
        answer(7, reply::INFO, &export),
        answer(7, reply::ACK, &[]),
    ]
    .concat()
}

#[test]
fn older_servers_are_understood() {
    let old = [&MAGIC.to_be_bytes()[..], &wire::OLD_STYLE_MAGIC.to_be_bytes(), &5000_u64.to_be_bytes()].concat();
    let old = [&old[..], &[0, 0, 0, 3], &[0; 124]].concat();
    let mut client = Client::connect(told(&old), "x").unwrap();
    assert_eq!(client.size(), ByteCount(5000));
    assert!(matches!(client.write_at(FileOffset(0), &[1]), Err(NbdError::ReadOnly)));
    let export = [&5000_u64.to_be_bytes()[..], &[0, 1]].concat();
    let not_fixed = [&greeting(0)[..], &export, &[0; 124]].concat();
    assert_eq!(Client::connect(told(&not_fixed), "x").unwrap().size(), ByteCount(5000));
    let without_go = [greeting(3), answer(8, reply::UNSUPPORTED, b"?"), answer(7, reply::UNSUPPORTED, b""), export];
    let client = Client::connect(told(&without_go.concat()), "x").unwrap();
    assert!(!client.can_zero());
}

#[test]
fn hostile_servers_are_errors_in_the_negotiation() {
    let fails = |bytes: &[u8]| Client::connect(told(bytes), "x").unwrap_err();
    assert!(matches!(fails(b""), NbdError::Io(_)));
    assert!(matches!(fails(b"HTTP/1.1 400 Bad Request\r\n"), NbdError::Magic { .. }));
    assert!(matches!(fails(&[&MAGIC.to_be_bytes()[..], &[1; 8]].concat()), NbdError::Magic { .. }));
    let refused = [greeting(3), answer(8, reply::UNSUPPORTED, b""), answer(7, reply::ERROR + 6, b"no such")].concat();
    assert!(matches!(fails(&refused), NbdError::Refused { message, .. } if message == "no such"));
    let mut huge = [greeting(3), answer(8, reply::ACK, b"")].concat();
    let at = huge.len() - 4;
    huge[at..].fill(0xff);
    assert!(matches!(fails(&huge), NbdError::Protocol { .. }));
    assert!(matches!(fails(&[greeting(3), answer(5, reply::ACK, b"")].concat()), NbdError::Protocol { .. }));
    assert!(matches!(fails(&[greeting(3), answer(8, 3, b"").repeat(100)].concat()), NbdError::Protocol { .. }));
    let sizeless = [greeting(3), answer(8, reply::UNSUPPORTED, b""), answer(7, reply::ACK, b"")].concat();
    assert!(matches!(fails(&sizeless), NbdError::Protocol { .. }));
    let whole = agreeing(MIB);
    for length in 0..whole.len() {
        assert!(matches!(fails(&whole[..length]), NbdError::Io(_)), "cut to {length}");
    }
    assert!(matches!(Client::connect(told(&whole), &"x".repeat(5000)), Err(NbdError::LongName { .. })));
}

fn chunk(flags: u16, kind: u16, cookie: u64, length: u32, data: &[u8]) -> Vec<u8> {
    let head = [&[0x66, 0x8e, 0x33, 0xef][..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

#[test]
fn hostile_replies_are_errors() {
    let read = |bytes: &[u8]| {
        let mut client = Client::connect(told(&[agreeing(MIB), bytes.to_vec()].concat()), "x").unwrap();
        let mut buffer = [0xaa; 16];
        client.read_at(FileOffset(100), &mut buffer).map(|()| buffer)
    };
    let at = |offset: u64, rest: &[u8]| [&offset.to_be_bytes()[..], rest].concat();
    let good = [
        chunk(0, 1, 0, 12, &at(104, b"data")),
        chunk(0, 2, 0, 12, &at(100, &4_u32.to_be_bytes())),
        chunk(1, 1, 0, 16, &at(108, b"restrest")),
    ];
    assert_eq!(&read(&good.concat()).unwrap(), b"\0\0\0\0datarestrest");
    let error = chunk(1, 0x8001, 0, 10, b"\0\0\0\x05\0\x04oops");
    assert!(matches!(read(&error), Err(NbdError::Command { code: 5, message, .. }) if message == "oops"));
    let bad = [
        chunk(1, 0, 0, 0, b""),
        chunk(1, 1, 0, 12, &at(104, b"data")),
        chunk(1, 1, 0, 24, &at(101, &[1; 16])),
        chunk(1, 1, 0, 24, &at(99, &[1; 16])),
        chunk(1, 1, 0, 24, &at(u64::MAX, &[1; 16])),
        chunk(1, 1, 0, u32::MAX, &at(100, &[1; 16])),
        chunk(1, 1, 0, 3, b"abc"),
        chunk(1, 2, 0, 12, &at(100, &[0xff; 4])),
        chunk(1, 2, 0, 13, &at(100, &[0; 5])),
        chunk(1, 5, 0, 12, b"\0\0\0\x09\0\0\x10\0\0\0\0\0"),
        chunk(1, 0x8001, 0, u32::MAX, b""),
        chunk(1, 0x8001, 0, 2, b"ab"),
        chunk(1, 77, 0, 0, b""),
        chunk(1, 1, 1, 24, &at(100, &[1; 16])),
        [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &[0; 8], &[1; 16]].concat(),
    ];
    for bytes in bad {
        assert!(matches!(read(&bytes), Err(NbdError::Protocol { .. })), "{bytes:x?}");
    }
    assert!(matches!(read(&[0x11; 40]), Err(NbdError::Magic { .. })));
    assert!(matches!(read(&chunk(0, 0, 0, 0, b"").repeat(70_000)), Err(NbdError::Protocol { .. })));
    assert!(matches!(read(&chunk(0, 1, 0, 12, &at(104, b"dat"))), Err(NbdError::Io(_))));
}

#[test]
fn hostile_extents_are_errors() {
    let status = |bytes: &[u8]| {
        let mut client = Client::connect(told(&[agreeing(MIB), bytes.to_vec()].concat()), "x").unwrap();
        client.allocated(FileOffset(0), ByteCount(4096))
    };
    let extents = |context: u32, list: &[(u32, u32)]| {
        let list = list.iter().flat_map(|(length, state)| [length.to_be_bytes(), state.to_be_bytes()].concat());
        let data: Vec<u8> = context.to_be_bytes().into_iter().chain(list).collect();
        chunk(1, 5, 0, u32::try_from(data.len()).unwrap(), &data)
    };
    let range = |start, end| FileOffset(start)..FileOffset(end);
    // Data to whole sectors; the last extent may reach beyond.
    let good = extents(9, &[(700, 0), (1000, 3), (1, 1), (u32::MAX, 2)]);
    assert_eq!(status(&good).unwrap(), [range(0, 1024), range(1536, 2048)]);
    let bad = [
        extents(9, &[]),
        extents(8, &[(4096, 0)]),
        extents(9, &[(0, 0), (4096, 0)]),
        chunk(1, 0, 0, 0, b""),
        chunk(1, 5, 0, 8, &[0; 8]),
        chunk(1, 5, 0, 4 + 8 * 0x1000_0000, b""),
        [chunk(0, 5, 0, 12, b"\0\0\0\x09\0\0\x10\0\0\0\0\0"), extents(9, &[(4096, 0)])].concat(),
    ];
    for bytes in bad {
        assert!(matches!(status(&bytes), Err(NbdError::Protocol { .. })), "{bytes:x?}");
    }
}

/// Calls `check` with `bytes`, each of them changed in turn.
fn with_each_byte_changed(bytes: &[u8], check: impl Fn(&[u8])) {
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(1)] {
            changed[at] = value;
            check(&changed);
        }
        changed[at] = bytes[at];
    }
}

#[test]
fn no_changed_byte_makes_the_client_panic() {
    let reading = [agreeing(MIB), chunk(0, 1, 0, 12, b"\0\0\0\0\0\0\0\x68data"), chunk(1, 0x8001, 0, 6, &[5; 6])];
    with_each_byte_changed(&reading.concat(), |bytes| {
        let Ok(mut client) = Client::connect(told(bytes), "x") else { return };
        assert!(client.read_at(FileOffset(100), &mut [0; 16]).is_err());
    });
    let asking = [agreeing(MIB), chunk(1, 5, 0, 20, b"\0\0\0\x09\0\0\x02\0\0\0\0\0\0\0\x0e\0\0\0\0\x03")];
    with_each_byte_changed(&asking.concat(), |bytes| {
        let Ok(mut client) = Client::connect(told(bytes), "x") else { return };
        if let Ok(ranges) = client.allocated(FileOffset(0), ByteCount(4096)) {
            assert!(ranges.iter().all(|range| range.start < range.end && range.end.0 <= 4096));
        }
    });
}

#[test]
fn no_changed_byte_makes_the_server_panic() {
    let mut said = [&[0, 0, 0, 3][..], &OPTION_MAGIC.to_be_bytes(), b"\0\0\0\x07\0\0\0\x07\0\0\0\x01x\0\0"].concat();
    let requests = [(Command::Write, 4), (Command::WriteZeroes, 512), (Command::Read, 512), (Command::Disconnect, 0)];
    for (command, length) in requests {
        Request { flags: 1, command, cookie: 7, offset: FileOffset(512), length }.write_to(&mut said).unwrap();
        said.extend((command == Command::Write).then_some([7; 4]).into_iter().flatten());
    }
    serve(&mut told(&said), &mut Disk::new(8192)).unwrap();
    with_each_byte_changed(&said, |bytes| {
        let _ = serve(&mut told(bytes), &mut Disk::new(8192));
    });
}

#[test]
fn a_hybrid_source_is_taken_apart_from_both_ends() {
    let parse = |text: &str| text.parse::<HybridSource>();
    let source = |raw: &str, server: &str, export: &str, size| HybridSource {
        raw: raw.into(),
        server: server.into(),
        export: export.into(),
        size: ByteCount(size),
    };
    assert_eq!(parse("/dev/a:/run/b:c:512").unwrap(), source("/dev/a", "/run/b", "c", 512));
    let by_path = "/dev/disk/by-path/pci-0000:00:1f.2:/run/n:bd:e-1:9";
    assert_eq!(parse(by_path).unwrap(), source("/dev/disk/by-path/pci-0000:00:1f.2", "/run/n:bd", "e-1", 9));
    assert_eq!(parse("raw:socket::0").unwrap(), source("raw", "socket", "", 0));
    for text in ["", "/a", "/a:/b:c", ":/b:c:1", "/a::c:1", ":::"] {
        assert!(matches!(parse(text), Err(HybridError::Parts { .. })), "{text}");
    }
    for text in ["/a:/b:c:", "/a:/b:c:1K", "/a:/b:c:-1", "/a:/b:c:99999999999999999999"] {
        assert!(matches!(parse(text), Err(HybridError::Size { .. })), "{text}");
    }
}

#[test]
fn an_allocation_is_cut_to_a_window() {
    let range = |start, end| FileOffset(start)..FileOffset(end);
    // The disk ends within its last sector.
    let allocation = Allocation::new(&[range(512, 2048), range(4096, 4608), range(10240, 10241)]);
    let cut = |start, end| {
        let found = allocation.within(SectorRange::between(Sector(start), Sector(end)));
        found.into_iter().map(|range| (range.start.0, range.end.0)).collect::<Vec<_>>()
    };
    assert_eq!(cut(0, 100), [(1, 4), (8, 9), (20, 21)]);
    assert_eq!(cut(2, 8), [(2, 4)]);
    assert_eq!(cut(4, 8), []);
    assert_eq!(cut(8, 20), [(8, 9)]);
    assert_eq!(cut(3, 9), [(3, 4), (8, 9)]);
    assert_eq!(cut(30, 40), []);
}

#[test]
fn a_silent_server_is_not_waited_for_beyond_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("silent");
    // Nobody accepts, but the system lets connect and send.
    let _listener = UnixListener::bind(&path).unwrap();
    let mut connection = Connection::open(&Address::Unix(path), &ConnectOptions::default()).unwrap();
    connection.limit(Some(Duration::from_millis(50))).unwrap();
    let Err(NbdError::Io(error)) = Client::connect(connection, "") else { panic!("no failure of the stream") };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
