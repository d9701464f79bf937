//! NBD: a disk that is sent to a server, and one that a client writes to us.

use std::io;

use vhd_core::{ByteCount, Container, FileOffset};

use super::failure::StreamFailure;
use super::meter::Meter;
use super::peer::Duplex;
use super::pump::Destination;
use crate::error::CommandError;
use crate::nbd::{Client, Export, NbdError, serve};
use crate::transport::PATIENCE;

/// Writes to the default export of a server.
pub(crate) struct NbdWriter<'a> {
    client: Option<Client<&'a mut dyn Duplex>>,
    /// The server has nothing but zeros already.
    prezeroed: bool,
}

impl<'a> NbdWriter<'a> {
    /// Greets the server.
    ///
    /// # Errors
    /// Fails if it speaks no NBD, or its disk is smaller than `size`.
    pub(crate) fn new(stream: &'a mut dyn Duplex, size: ByteCount, prezeroed: bool) -> Result<Self, CommandError> {
        stream.limit(Some(PATIENCE)).map_err(NbdError::Io)?;
        let mut client = Client::connect(stream, "")?;
        client.stream().limit(None).map_err(NbdError::Io)?;
        let length = client.size();
        if length < size {
            return Err(StreamFailure::TooSmall { path: "the NBD export".into(), length, size }.into());
        }
        Ok(Self { client: Some(client), prezeroed })
    }

    fn client(&mut self) -> &mut Client<&'a mut dyn Duplex> {
        self.client.as_mut().expect("nothing is written after the end")
    }
}

impl Destination for NbdWriter<'_> {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        Ok(self.client().write_at(FileOffset(at.0), bytes)?)
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        if self.prezeroed {
            return Ok(());
        }
        Ok(self.client().zero(FileOffset(at.0), length)?)
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        client.flush()?;
        Ok(client.disconnect()?)
    }
}

/// Lets a client write to a file or device, which is synced at the end.
///
/// # Errors
/// Fails if the client breaks off, or the disk fails; a device that is smaller than `size`.
pub(crate) fn receive(
    mut stream: &mut dyn Duplex,
    container: Container,
    size: ByteCount,
    meter: Meter,
) -> Result<(), CommandError> {
    let length = container.len()?;
    if size > length {
        if container.has_fixed_size() {
            return Err(StreamFailure::TooSmall { path: container.path().into(), length, size }.into());
        }
        container.set_len(size)?;
    }
    let mut disk = ServedDisk { container, size, meter, end: ByteCount(0) };
    serve(&mut stream, &mut disk)?;
    disk.container.sync()?;
    disk.meter.finish();
    Ok(())
}

/// A file or device as a client sees it.
struct ServedDisk {
    container: Container,
    size: ByteCount,
    meter: Meter,
    /// How far it was written, for clients that begin at the start.
    end: ByteCount,
}

impl ServedDisk {
    fn note(&mut self, offset: FileOffset, length: u64) {
        self.end = self.end.max(ByteCount(offset.0 + length));
        self.meter.set(self.end);
    }
}

impl Export for ServedDisk {
    fn size(&self) -> ByteCount {
        self.size
    }

    fn read_at(&mut self, offset: FileOffset, bytes: &mut [u8]) -> io::Result<()> {
        self.container.storage().read_at(bytes, offset)
    }

    fn write_at(&mut self, offset: FileOffset, bytes: &[u8]) -> io::Result<()> {
        self.container.storage().write_at(bytes, offset)?;
        self.note(offset, bytes.len() as u64);
        Ok(())
    }

    fn zero(&mut self, offset: FileOffset, length: ByteCount, _may_be_hole: bool) -> io::Result<()> {
        self.container.storage().zero_range(offset, length)?;
        self.note(offset, length.0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.container.storage().sync()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use testkit::crash::{Options, PowerStorage};

    use super::*;

    impl Duplex for UnixStream {
        fn limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
            self.set_read_timeout(limit)
        }

        fn end(&mut self) -> io::Result<()> {
            self.shutdown(Shutdown::Write)
        }
    }

    /// A connection that keeps the limits it is given.
    struct Limited(UnixStream, Vec<Option<Duration>>);

    impl Read for Limited {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    impl Duplex for Limited {
        fn limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
            self.1.push(limit);
            Ok(())
        }

        fn end(&mut self) -> io::Result<()> {
            self.0.end()
        }
    }

    /// What a server has been asked.
    #[derive(Default)]
    struct Asked(Vec<(&'static str, u64, u64)>);

    impl Export for Asked {
        fn size(&self) -> ByteCount {
            ByteCount(8192)
        }

        fn read_at(&mut self, _: FileOffset, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }

        fn write_at(&mut self, offset: FileOffset, bytes: &[u8]) -> io::Result<()> {
            self.0.push(("write", offset.0, bytes.len() as u64));
            Ok(())
        }

        fn zero(&mut self, offset: FileOffset, length: ByteCount, _: bool) -> io::Result<()> {
            self.0.push(("zero", offset.0, length.0));
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.0.push(("sync", 0, 0));
            Ok(())
        }
    }

    /// A server that does not answer the greeting is not waited for; a disk may take as long as it takes, and is durable in
    /// the end.
    #[test]
    fn only_the_greeting_has_a_limit_and_the_end_is_a_flush() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut asked = Asked::default();
            serve(&mut ours, &mut asked).unwrap();
            asked.0
        });
        let mut limited = Limited(theirs, Vec::new());
        let mut writer = NbdWriter::new(&mut limited, ByteCount(4096), false).unwrap();
        writer.data(ByteCount(1024), &[1; 512]).unwrap();
        writer.zeros(ByteCount(2048), ByteCount(512)).unwrap();
        writer.finish().unwrap();
        drop(writer);
        assert_eq!(limited.1, [Some(PATIENCE), None]);
        assert_eq!(server.join().unwrap(), [("write", 1024, 512), ("zero", 2048, 512), ("sync", 0, 0)]);
    }

    /// A client that never asks for a flush has been told that its writes are done.
    #[test]
    fn what_a_client_has_written_is_durable_at_the_end() {
        let storage = Arc::new(PowerStorage::new(vec![9; 4096]));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let client = std::thread::spawn(move || {
            let mut client = Client::connect(theirs, "").unwrap();
            assert_eq!(client.size(), ByteCount(8192));
            client.write_at(FileOffset(512), &[1; 1024]).unwrap();
            client.write_at(FileOffset(4096), &[2; 4096]).unwrap();
            client.zero(FileOffset(2048), ByteCount(512)).unwrap();
            client.disconnect().unwrap();
        });
        let container = Container::new(Path::new("disk"), storage.clone());
        receive(&mut ours, container, ByteCount(8192), Meter::None).unwrap();
        storage.promise();
        client.join().unwrap();
        let mut expected = [vec![9; 4096], vec![2; 4096]].concat();
        expected[512..1536].fill(1);
        expected[2048..2560].fill(0);
        let ended = storage.states(Options::default()).filter(|state| state.promises_made() == 1);
        let found: Vec<_> = ended.map(|state| state.read(PowerStorage::NAME).unwrap()).collect();
        assert!(!found.is_empty());
        for bytes in found {
            let wrong = bytes.iter().zip(&expected).position(|(found, expected)| found != expected);
            assert!(bytes.len() == expected.len() && wrong.is_none(), "{} bytes, wrong at {wrong:?}", bytes.len());
        }
    }
}
