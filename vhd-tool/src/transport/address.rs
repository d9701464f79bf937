//! Where a peer is: the text of an address, taken apart once.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, InvalidUri};
use percent_encoding::percent_decode_str;

/// Where a peer is. Shown without what is secret in it: credentials, and the query, which holds session ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// `tcp://host:port`
    Tcp {
        /// Name or address, IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `unix://path`
    Unix(PathBuf),
    /// `http://` or `https://`
    Http(Url),
}

/// Where an HTTP peer is, and what is asked of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether to speak TLS.
    pub(super) secure: bool,
    /// Name or address, IPv6 without brackets.
    pub(super) host: String,
    /// The port.
    pub(super) port: u16,
    /// `user:password`, decoded.
    pub(super) credentials: Option<Vec<u8>>,
    /// Path and query, as given.
    pub(super) target: String,
}

/// A text that is no address of a peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// It does not begin with a scheme that we know.
    #[error("{shown}: not tcp://, unix://, http:// or https://")]
    Scheme {
        /// The text, without what is secret.
        shown: String,
    },
    /// It breaks the rules of URLs.
    #[error("{shown}: not a URL")]
    Url {
        /// The text, without what is secret.
        shown: String,
        /// Which rule.
        #[source]
        source: InvalidUri,
    },
    /// It names no peer.
    #[error("{shown}: no host")]
    Host {
        /// The text, without what is secret.
        shown: String,
    },
    /// It has no port, or one that there cannot be.
    #[error("{shown}: no port, or not one from 1 to 65535")]
    Port {
        /// The text, without what is secret.
        shown: String,
    },
    /// It names no socket.
    #[error("unix://: no path")]
    Path,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() { Err(AddressError::Path) } else { Ok(Self::Unix(path.into())) };
        }
        let shown = || without_secrets(text);
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        let default_port = match scheme {
            Some("tcp") => None,
            Some("http") => Some(80),
            Some("https") => Some(443),
            _ => return Err(AddressError::Scheme { shown: shown() }),
        };
        let uri: Uri = text.parse().map_err(|source| AddressError::Url { shown: shown(), source })?;
        let authority = uri.authority().ok_or_else(|| AddressError::Host { shown: shown() })?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(AddressError::Host { shown: shown() });
        }
        let port = port_of(authority, default_port).ok_or_else(|| AddressError::Port { shown: shown() })?;
        if scheme == Some("tcp") {
            return Ok(Self::Tcp { host, port });
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self::Http(Url {
            secure: scheme == Some("https"),
            host,
            port,
            credentials: userinfo(authority).map(|text| percent_decode_str(text).collect()),
            target: format!("{slash}{target}"),
        }))
    }
}

/// What stands before the `@`.
fn userinfo(authority: &Authority) -> Option<&str> {
    authority.as_str().rsplit_once('@').map(|(userinfo, _)| userinfo)
}

/// The port that is given, or else `default`; none if what is given is no port.
fn port_of(authority: &Authority, default: Option<u16>) -> Option<u16> {
    let place = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, place)| place);
    let given = if place == authority.host() { default } else { authority.port_u16() };
    given.filter(|&port| port != 0)
}

/// A text that may be shown whatever it is.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    // A password may hold a question mark, wrongly: what is secret before the `@` goes first.
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { place.to_owned() } else { format!("{scheme}://{place}") }
}

impl Url {
    /// The place as a `Host` field has it: IPv6 in brackets, and no port where it is the usual one.
    pub(super) fn place(&self) -> String {
        let host = bracketed(&self.host);
        if self.port == if self.secure { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    /// Finds where a peer sends us with `location`: another place, or another path of the same.
    ///
    /// The credentials go along: whoever redirects has been told them.
    pub(super) fn redirected(&self, location: &str) -> Result<Self, AddressError> {
        let scheme = if self.secure { "https" } else { "http" };
        let absolute = if location.starts_with('/') && !location.starts_with("//") {
            format!("{scheme}://{}{location}", self.place())
        } else {
            location.to_owned()
        };
        match absolute.parse()? {
            Address::Http(url) => Ok(Self { credentials: url.credentials.or_else(|| self.credentials.clone()), ..url }),
            _ => Err(AddressError::Scheme { shown: without_secrets(location) }),
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.place())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{}:{port}", bracketed(host)),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(url) => url.fmt(f),
        }
    }
}
