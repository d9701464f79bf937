//! Connections to peers, and what is told on the command line of how to make them.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::waiting::Descriptor;
use crate::transport::{ConnectOptions, Connection, TlsOptions};

/// How peers that are reached over TLS are known.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct PeerOptions {
    /// Refuse a peer whose certificate does not prove who it is
    #[arg(long)]
    verify_dest: bool,
    /// Ask for this name, and look for it in the certificate, instead of that of the host
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Trust these certificates (PEM) instead of those of the system; a peer that shows one of them need not have its name
    #[arg(long, value_name = "FILE")]
    cert_bundle_path: Option<PathBuf>,
    /// Offer only these cipher suites of TLS 1.2, by their names in OpenSSL, with colons between; names that are not known
    /// here, as of suites that are not safe, are passed over, and if none is known all safe ones are offered
    #[arg(long, value_name = "NAMES")]
    good_ciphersuites: Option<String>,
}

impl PeerOptions {
    /// What a connection is opened with.
    pub(crate) fn connecting(&self, chunked_cookie: bool) -> ConnectOptions {
        let tls = TlsOptions {
            verify: self.verify_dest,
            sni: self.sni.clone(),
            bundle: self.cert_bundle_path.clone(),
            ciphers: self.good_ciphersuites.clone(),
        };
        ConnectOptions { chunked_cookie, tls }
    }
}

/// A stream both ways, of which one knows when it has been sent all.
pub(crate) trait Duplex: Read + Write + Send {
    /// Makes all that follows end within `limit` of now, where that can be, or takes that back.
    ///
    /// # Errors
    /// Fails if the system refuses.
    fn limit(&mut self, limit: Option<Duration>) -> io::Result<()>;

    /// Tells the peer that all has been sent.
    ///
    /// # Errors
    /// Fails if what was written before cannot be sent.
    fn end(&mut self) -> io::Result<()>;
}

impl Duplex for Connection {
    fn limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.limit(limit)
    }

    fn end(&mut self) -> io::Result<()> {
        self.end()
    }
}

/// A descriptor that was left open: whoever opened it has set its time-outs, and sees its end when the program ends.
impl Duplex for Descriptor {
    fn limit(&mut self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}
