use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Address, AddressError, ConnectError, ConnectOptions, Connection, TlsOptions};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn open(text: &str) -> Result<Connection, ConnectError> {
    Connection::open(&address(text), &ConnectOptions::default())
}

/// A stream that a test server may have.
trait Peer: Read + Write + Send {}
impl<T: Read + Write + Send> Peer for T {}

/// Reads up to the empty line.
fn read_head(stream: &mut dyn Peer) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A server, which gives the heads and bodies that it was sent.
type Serving = JoinHandle<Vec<(String, Vec<u8>)>>;

/// Serves connections one after the other: each is asked for its head, told the next answer, and read to its end.
fn http_server(answers: Vec<Vec<u8>>) -> (u16, Serving) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let serve = |answer: Vec<u8>| {
            let (mut stream, _) = listener.accept().unwrap();
            let head = read_head(&mut stream);
            // A client that has read enough may have gone.
            let _ = stream.write_all(&answer);
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body);
            (head, body)
        };
        answers.into_iter().map(serve).collect()
    });
    (port, server)
}

#[test]
fn addresses_are_taken_apart() {
    let tcp = |host: &str, port| Address::Tcp { host: host.into(), port };
    assert_eq!(address("tcp://example.org:10809"), tcp("example.org", 10809));
    assert_eq!(address("tcp://[::1]:8080"), tcp("::1", 8080));
    assert_eq!(address("unix:///run/a:b"), Address::Unix("/run/a:b".into()));
    let Address::Http(url) = address("https://us%40er:p%3Aw@[fe80::1]/import_raw_vdi?session_id=s&vdi=v") else {
        panic!("not HTTP")
    };
    assert_eq!((url.secure, url.host.as_str(), url.port), (true, "fe80::1", 443));
    assert_eq!(url.credentials.as_deref(), Some(b"us@er:p:w".as_slice()));
    assert_eq!(url.target, "/import_raw_vdi?session_id=s&vdi=v");
    let Address::Http(url) = address("http://host:81?a=b") else { panic!("not HTTP") };
    assert_eq!((url.port, url.target.as_str(), url.place().as_str()), (81, "/?a=b", "host:81"));
}

#[test]
fn what_is_no_address_is_refused() {
    let refused = |text: &str| text.parse::<Address>().unwrap_err();
    for text in ["", "host:80", "ftp://host/", "file:///dev/sda"] {
        assert!(matches!(refused(text), AddressError::Scheme { .. }), "{text}");
    }
    for text in ["tcp://host", "tcp://host:", "tcp://host:0", "http://host:99999/", "http://host:x/", "tcp://::1:5"] {
        assert!(matches!(refused(text), AddressError::Port { .. } | AddressError::Url { .. }), "{text}");
    }
    for text in ["http://", "http:///path", "http:// a/", "https://user:pass@", "tcp://:80"] {
        assert!(matches!(refused(text), AddressError::Host { .. } | AddressError::Url { .. }), "{text}");
    }
    assert!(matches!(refused("unix://"), AddressError::Path));
}

#[test]
fn secrets_are_never_shown() {
    let text = "https://root:SECRET@host:8443/import_raw_vdi?session_id=SECRET";
    assert_eq!(address(text).to_string(), "https://host:8443/import_raw_vdi");
    assert!(!format!("{:?}", address(text)).contains("SECRET"));
    for text in ["ftp://root:SECRET@host/?q=SECRET", "http://root:SECRET@ho st/?SECRET", "http://r:SEC?SECRET@host:x/"]
    {
        let error = text.parse::<Address>().unwrap_err();
        assert!(!format!("{error}{error:?}").contains("SECRET"), "{error:?}");
    }
}

/// Sends back all it is sent, once the other side has ended.
fn echo(stream: &mut dyn Peer) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
}

fn assert_echoes(mut connection: Connection) {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
    connection.write_all(&bytes).unwrap();
    connection.shutdown_write().unwrap();
    let mut back = Vec::new();
    connection.read_to_end(&mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn tcp_and_unix_streams_carry_bytes_both_ways() {
    for place in ["127.0.0.1", "[::1]"] {
        let listener = TcpListener::bind(format!("{place}:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || echo(&mut listener.accept().unwrap().0));
        assert_echoes(open(&format!("tcp://{place}:{port}")).unwrap());
        server.join().unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || echo(&mut listener.accept().unwrap().0));
    assert_echoes(open(&format!("unix://{}", path.display())).unwrap());
    server.join().unwrap();
}

#[test]
fn nobody_there_is_an_error() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for text in [format!("tcp://127.0.0.1:{port}"), format!("http://127.0.0.1:{port}/"), "unix:///nowhere".into()] {
        assert!(matches!(open(&text), Err(ConnectError::Io { action: "connect", .. })), "{text}");
    }
}

#[test]
fn a_limit_ends_waiting_however_the_peer_drips() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut connection = open(&format!("tcp://127.0.0.1:{port}")).unwrap();
    connection.limit(Some(Duration::from_millis(200))).unwrap();
    let start = Instant::now();
    let error = connection.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(5));
    connection.limit(None).unwrap();
    connection.read_exact(&mut [0]).unwrap();
    drop(connection);
    server.join().unwrap();
}

#[test]
fn a_request_is_as_importers_expect_it() {
    let (port, server) = http_server(vec![OK.into(), OK.into()]);
    let place = format!("127.0.0.1:{port}");
    let text = format!("http://root:pass%20word@{place}/import_raw_vdi?session_id=OpaqueRef:1&vdi=2");
    let options = ConnectOptions { chunked_cookie: true, ..ConnectOptions::default() };
    let mut connection = Connection::open(&address(&text), &options).unwrap();
    connection.write_all(b"the disk").unwrap();
    connection.shutdown_write().unwrap();
    drop(connection);
    drop(open(&format!("http://{place}")).unwrap());
    let seen = server.join().unwrap();
    let expected = format!(
        "PUT /import_raw_vdi?session_id=OpaqueRef:1&vdi=2 HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\
         Authorization: Basic cm9vdDpwYXNzIHdvcmQ=\r\nCookie: chunked=true\r\n\r\n"
    );
    assert_eq!(seen[0], (expected, b"the disk".to_vec()));
    assert_eq!(seen[1].0, format!("PUT / HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n"));
}

#[test]
fn an_answer_may_come_byte_by_byte_and_what_follows_it_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        read_head(&mut stream);
        for byte in OK.iter().chain(b"after") {
            stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut connection = open(&format!("http://127.0.0.1:{port}/")).unwrap();
    let mut after = String::new();
    connection.read_to_string(&mut after).unwrap();
    assert_eq!(after, "after");
    server.join().unwrap();
}

fn moved(location: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n").into_bytes()
}

#[test]
fn redirections_are_followed_with_the_credentials() {
    let (master, master_server) = http_server(vec![OK.into()]);
    let to_master = moved(&format!("http://127.0.0.1:{master}/there?x=y"));
    let (port, server) = http_server(vec![moved("/here?a=b"), to_master]);
    drop(open(&format!("http://u:p@127.0.0.1:{port}/first")).unwrap());
    let seen = server.join().unwrap();
    assert!(seen[0].0.starts_with("PUT /first ") && seen[1].0.starts_with("PUT /here?a=b "));
    let head = &master_server.join().unwrap()[0].0;
    assert!(head.starts_with("PUT /there?x=y HTTP/1.1\r\n") && head.contains("\r\nAuthorization: Basic dTpw\r\n"));
}

#[test]
fn redirections_end() {
    let (port, server) = http_server(vec![moved("/again"); 4]);
    assert!(matches!(open(&format!("http://127.0.0.1:{port}/")), Err(ConnectError::Redirects { limit: 3, .. })));
    assert_eq!(server.join().unwrap().len(), 4);
    for location in ["ftp://host/", "tcp://host:1", ""] {
        let (port, server) = http_server(vec![moved(location)]);
        assert!(matches!(open(&format!("http://127.0.0.1:{port}/")), Err(ConnectError::Location { .. })));
        server.join().unwrap();
    }
    let (port, server) = http_server(vec![b"HTTP/1.1 302 Found\r\n\r\n".into()]);
    assert!(matches!(open(&format!("http://127.0.0.1:{port}/")), Err(ConnectError::NoLocation { .. })));
    server.join().unwrap();
}

#[test]
fn refusals_and_nonsense_are_errors() {
    let fails = |answer: &[u8]| {
        let (port, server) = http_server(vec![answer.into()]);
        let error = open(&format!("http://127.0.0.1:{port}/")).unwrap_err();
        server.join().unwrap();
        error
    };
    let refused = fails(b"HTTP/1.1 500 Internal Error\r\ncontent-length: 0\r\n\r\n");
    assert!(matches!(&refused, ConnectError::Status { code: 500, reason, .. } if reason == "Internal Error"));
    assert!(refused.to_string().ends_with("answers 500 Internal Error"));
    assert!(matches!(fails(b"HTTP/1.1 401 \r\n\r\n"), ConnectError::Status { code: 401, .. }));
    assert!(matches!(fails(b"SSH-2.0-OpenSSH\r\n\r\n"), ConnectError::Head { .. }));
    assert!(matches!(fails(&b"\0".repeat(20_000)), ConnectError::LongHead { limit: 16384, .. }));
    let long = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(5_000)].concat();
    assert!(matches!(fails(&long), ConnectError::LongHead { .. }));
    let many = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(200), b"\r\n".to_vec()].concat();
    assert!(matches!(fails(&many), ConnectError::Head { .. }));
}

/// A certificate and its key.
struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

impl Identity {
    /// One for `name`, signed by itself.
    fn new(name: &str) -> Self {
        Self::with(&CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    fn with(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), key }
    }

    /// Options that trust nobody but this one.
    fn trusted(&self, folder: &Path) -> TlsOptions {
        let bundle = folder.join("bundle.pem");
        std::fs::write(&bundle, self.certificate.pem()).unwrap();
        TlsOptions { verify: true, bundle: Some(bundle), ..TlsOptions::default() }
    }
}

/// A server that takes one body from one client.
fn tls_server(identity: &Identity) -> (u16, JoinHandle<io::Result<Vec<u8>>>) {
    tls_server_that_reads(identity, u64::MAX)
}

/// As [`tls_server`], but it reads no more than `most` bytes, and then hangs up.
fn tls_server_that_reads(identity: &Identity, most: u64) -> (u16, JoinHandle<io::Result<Vec<u8>>>) {
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let chain = vec![identity.certificate.der().clone()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut session = ServerConnection::new(Arc::new(config)).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        let mut stream = StreamOwned::new(session, stream);
        read_head(&mut stream);
        stream.write_all(OK)?;
        let mut body = Vec::new();
        stream.take(most).read_to_end(&mut body)?;
        Ok(body)
    });
    (port, server)
}

fn open_tls(port: u16, tls: TlsOptions) -> Result<Connection, ConnectError> {
    let options = ConnectOptions { tls, ..ConnectOptions::default() };
    Connection::open(&address(&format!("https://127.0.0.1:{port}/")), &options)
}

#[test]
fn tls_carries_the_body_and_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let ciphers = Some("HIGH:ECDHE-ECDSA-AES256-GCM-SHA384".to_owned());
    let known = |tls: TlsOptions| TlsOptions { ciphers: ciphers.clone(), ..tls };
    let anyone = |_| TlsOptions::default();
    let named = |tls| TlsOptions { sni: Some("pool".into()), ..tls };
    let kinds: [(&str, &dyn Fn(TlsOptions) -> TlsOptions); 4] =
        [("127.0.0.1", &known), ("elsewhere", &anyone), ("pool", &named), ("elsewhere", &named)];
    for (name, kind) in kinds {
        let identity = Identity::new(name);
        let (port, server) = tls_server(&identity);
        let mut connection = open_tls(port, kind(identity.trusted(folder.path()))).unwrap();
        connection.write_all(&[7; 100_000]).unwrap();
        connection.shutdown_write().unwrap();
        assert!(server.join().unwrap().unwrap() == [7; 100_000], "{name}");
    }
}

/// Tells whether a server with this certificate is believed.
#[test]
fn a_tls_peer_that_knows_the_end_may_hang_up() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new("127.0.0.1");
    let sent = vec![7; 300_000];
    for _ in 0..5 {
        let (port, server) = tls_server_that_reads(&identity, sent.len() as u64);
        let mut connection = open_tls(port, identity.trusted(folder.path())).unwrap();
        connection.write_all(&sent).unwrap();
        connection.flush().unwrap();
        connection.end().unwrap();
        assert!(server.join().unwrap().unwrap() == sent);
    }
}

fn believes(identity: &Identity, tls: TlsOptions) -> bool {
    let (port, server) = tls_server(identity);
    match open_tls(port, tls) {
        Ok(connection) => {
            drop(connection);
            let _ = server.join().unwrap();
            true
        }
        Err(error) => {
            assert!(matches!(error, ConnectError::Io { action: "agree on TLS", .. }), "{error:?}");
            assert!(server.join().unwrap().is_err());
            false
        }
    }
}

#[test]
fn only_known_certificates_are_believed_when_verified() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (Identity::new("127.0.0.1"), Identity::new("127.0.0.1"));
    assert!(believes(&own, own.trusted(folder.path())));
    assert!(!believes(&own, other.trusted(folder.path())));
    assert!(believes(&own, TlsOptions::default()));
}

#[test]
fn a_certificate_signed_by_a_known_one_must_bear_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = Identity::with(&params);
    let trusted = authority.trusted(folder.path());
    let issuer = Issuer::new(params, authority.key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Identity { certificate: params.signed_by(&key, &issuer).unwrap(), key }
    };
    assert!(believes(&signed("127.0.0.1"), trusted.clone()));
    assert!(!believes(&signed("127.0.0.2"), trusted.clone()));
    assert!(!believes(&signed("127.0.0.1"), TlsOptions { sni: Some("pool".into()), ..trusted.clone() }));
    assert!(believes(&signed("pool"), TlsOptions { sni: Some("pool".into()), ..trusted }));
}

#[test]
fn a_certificate_in_the_bundle_is_known_by_its_key_while_it_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(vec!["elsewhere".into()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let valid = Identity::with(&params);
    assert!(believes(&valid, valid.trusted(folder.path())));
    params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    for is_ca in [params.is_ca, IsCa::NoCa] {
        params.is_ca = is_ca;
        let expired = Identity::with(&params);
        assert!(!believes(&expired, expired.trusted(folder.path())));
    }
}

#[test]
fn the_roots_of_the_system_do_not_know_a_self_signed_certificate() {
    let (port, _server) = tls_server(&Identity::new("127.0.0.1"));
    let result = open_tls(port, TlsOptions { verify: true, ..TlsOptions::default() });
    // Where the system has no roots, that is said instead.
    assert!(matches!(result, Err(ConnectError::Io { action: "agree on TLS", .. } | ConnectError::Tls(_))));
}

#[test]
fn a_bundle_of_no_use_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle.pem");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = TlsOptions { verify: true, bundle: Some(bundle.clone()), ..TlsOptions::default() };
    assert!(matches!(open_tls(port, tls.clone()), Err(ConnectError::Tls(_))));
    for text in ["", "-----BEGIN CERTIFICATE-----\n@@@\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&bundle, text).unwrap();
        assert!(matches!(open_tls(port, tls.clone()), Err(ConnectError::Tls(_))), "{text}");
    }
}

#[test]
fn a_peer_that_speaks_no_tls_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&[0x55; 4096]);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(matches!(open_tls(port, TlsOptions::default()), Err(ConnectError::Io { action: "agree on TLS", .. })));
    server.join().unwrap();
}
