//! Telling the service manager how far the process is.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// How far the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeCycle {
    /// It has started, and works.
    Ready,
    /// It is about to end.
    Stopping,
}

/// Tells systemd, or whoever has started the process with `NOTIFY_SOCKET` set; without that, nobody.
///
/// Source: `sd_notify(3)`.
///
/// # Errors
/// What the system answers.
pub fn notify(life_cycle: LifeCycle) -> io::Result<()> {
    std::env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |socket| send(&socket, life_cycle))
}

fn send(socket: &OsStr, life_cycle: LifeCycle) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let message = match life_cycle {
        LifeCycle::Ready => "READY=1",
        LifeCycle::Stopping => "STOPPING=1",
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(receiver: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_with_a_path_and_one_without_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), LifeCycle::Ready).unwrap();
        assert_eq!(received(&receiver), "READY=1");

        let name = path.to_str().unwrap();
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), LifeCycle::Stopping).unwrap();
        assert_eq!(received(&receiver), "STOPPING=1");
    }

    #[test]
    fn nobody_there_is_an_error() {
        assert!(send(OsStr::new("/none/notify"), LifeCycle::Ready).is_err());
    }
}
