//! TLS, and how far a peer's certificate is believed.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, io};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme, StreamOwned, SupportedCipherSuite,
};

use super::socket::Socket;

/// How to speak TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsOptions {
    /// Whether the peer must prove who it is. Without it, the connection is kept from those who only listen, not from
    /// one who takes the peer's place.
    pub(crate) verify: bool,
    /// The name that is asked for and looked for in the certificate, where it is not that of the host.
    pub(crate) sni: Option<String>,
    /// The certificates that are trusted, as PEM, instead of those of the system. The peer's own may be one of them:
    /// it is then known by its key, whatever names it carries, as members of a pool know each other.
    pub(crate) bundle: Option<PathBuf>,
    /// The cipher suites of TLS 1.2 that are offered, as OpenSSL names them, with colons between. Names that we do
    /// not know are passed over; where none is known, all of ours are offered. Those of TLS 1.3 always are.
    pub(crate) ciphers: Option<String>,
}

/// TLS cannot be set up as asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The file of trusted certificates is of no use.
    #[error("{}: cannot read its certificates", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// There is nobody to believe.
    #[error("no certificate is trusted that the peer's could be checked with")]
    NoRoots(#[source] VerifierBuilderError),
    /// That is not a name that a peer can have.
    #[error("{name}: neither a name nor an address of a host")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: InvalidDnsNameError,
    },
    /// The library refuses the settings.
    #[error("cannot set up TLS")]
    Settings(#[from] rustls::Error),
}

/// Makes our end of a session with `host`.
pub(super) fn session(host: &str, options: &TlsOptions) -> Result<ClientConnection, TlsError> {
    let provider = Arc::new(provider(options.ciphers.as_deref()));
    let verifier: Arc<dyn ServerCertVerifier> =
        if options.verify { Known::load(options, &provider)? } else { Arc::new(Anyone(Arc::clone(&provider))) };
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let name = options.sni.as_deref().unwrap_or(host);
    let server = ServerName::try_from(name.to_owned());
    let server = server.map_err(|source| TlsError::Name { name: name.to_owned(), source })?;
    Ok(ClientConnection::new(Arc::new(config), server)?)
}

/// Exchanges keys, and checks the peer as far as that was asked for.
pub(super) fn shake_hands(
    mut session: ClientConnection,
    mut socket: Socket,
) -> io::Result<StreamOwned<ClientConnection, Socket>> {
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(session, socket))
}

fn provider(ciphers: Option<&str>) -> CryptoProvider {
    let mut provider = ring::default_provider();
    let named: Vec<_> = ciphers.unwrap_or_default().split(':').collect();
    let is_named = |suite: &SupportedCipherSuite| openssl_name(suite.suite()).is_some_and(|name| named.contains(&name));
    if provider.cipher_suites.iter().any(is_named) {
        provider.cipher_suites.retain(|suite| openssl_name(suite.suite()).is_none() || is_named(suite));
    }
    provider
}

/// What OpenSSL calls a cipher suite of TLS 1.2.
fn openssl_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

/// Believes whoever can be reached by the chain of a trusted certificate, or is trusted by its own.
#[derive(Debug)]
struct Known {
    chains: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl Known {
    fn load(options: &TlsOptions, provider: &Arc<CryptoProvider>) -> Result<Arc<Self>, TlsError> {
        let mut roots = RootCertStore::empty();
        let pinned = match &options.bundle {
            Some(path) => {
                let failed = |source| TlsError::Bundle { path: path.clone(), source };
                let certificates = CertificateDer::pem_file_iter(path).map_err(failed)?;
                certificates.collect::<Result<Vec<_>, _>>().map_err(failed)?
            }
            None => Vec::new(),
        };
        if options.bundle.is_some() {
            roots.add_parsable_certificates(pinned.iter().cloned());
        } else {
            // Some that cannot be read are no loss as long as there are others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        Ok(Arc::new(Self { chains: chains.build().map_err(TlsError::NoRoots)?, pinned }))
    }
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let result = self.chains.verify_server_cert(own, others, name, ocsp, now);
        match &result {
            Err(rustls::Error::InvalidCertificate(error)) if self.pinned.contains(own) && !is_out_of_time(error) => {
                Ok(ServerCertVerified::assertion())
            }
            _ => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, own, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, own, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn is_out_of_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// Believes anyone, and checks nothing: not the certificate, nor that the peer has its key.
///
/// This is what was asked for where verification was not: hosts have certificates that they signed themselves, some in
/// forms that would not pass any check.
struct Anyone(Arc<CryptoProvider>);

impl fmt::Debug for Anyone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Anyone")
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _own: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _own: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _own: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
