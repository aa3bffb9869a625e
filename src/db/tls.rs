//! TLS to PostgreSQL (feature `tls`): rustls under the driver, with libpq's notion of whom to trust.
//!
//! libpq's three kinds of trust (PostgreSQL documentation, 34.19.1) are one verifier here: no chain is asked for, a chain
//! is, or a chain and the host's name are.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufReader};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::certificate::Certificate;
use super::url::{RootCertificates, SslMode, Target};

/// Makes the TLS side of connections, for one connection string.
#[derive(Clone)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    was_used: Arc<AtomicBool>,
}

impl Connector {
    /// Reads the root certificates, as they are now.
    ///
    /// # Errors
    /// Where they cannot be read, or there are none and the mode wants some; the text names the file.
    pub(super) fn new(target: &Target) -> Result<Self, String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier = Verifier {
            trusted: trusted(target.ssl_mode, &target.roots)?,
            wants_name: target.ssl_mode == SslMode::VerifyFull,
            algorithms: provider.signature_verification_algorithms,
        };
        let config = configure(provider, verifier).map_err(|error| format!("set up TLS: {error}"))?;
        Ok(Self { config: Arc::new(config), was_used: Arc::default() })
    }

    /// Whether a handshake was begun since the last call.
    pub(super) fn take_was_used(&self) -> bool {
        self.was_used.swap(false, Ordering::Relaxed)
    }
}

fn configure(provider: Arc<CryptoProvider>, verifier: Verifier) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Whose certificates are believed; `None` where anybody's are: a weak mode without a file, as libpq has it.
fn trusted(mode: SslMode, roots: &RootCertificates) -> Result<Option<Trusted>, String> {
    if mode == SslMode::Disable {
        return Ok(None);
    }
    let wants_chain = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let remedy = "name the file with the certificate of the authority that signed the server's, or sslrootcert=system";
    match roots {
        RootCertificates::System => read_system().map(Some),
        // A service's home may be one that it cannot look into.
        RootCertificates::File(path) | RootCertificates::Home(path) if !wants_chain && !path.exists() => Ok(None),
        RootCertificates::File(path) | RootCertificates::Home(path) => match File::open(path) {
            Ok(file) => read_file(path, file).map(Some),
            Err(error) => Err(format!("sslrootcert: read {}: {error}; {remedy}", path.display())),
        },
        RootCertificates::None if wants_chain => Err(format!("sslrootcert: none is given; {remedy}")),
        RootCertificates::None => Ok(None),
    }
}

fn read_file(path: &Path, file: File) -> Result<Trusted, String> {
    let mut trusted = Trusted { roots: RootCertStore::empty(), certificates: Vec::new() };
    let now = clock(UnixTime::now());
    for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
        let certificate = certificate.map_err(|error| format!("sslrootcert: read {}: {error}", path.display()))?;
        // rustls believes in an authority for ever, OpenSSL while its certificate is valid.
        if Certificate::read(&certificate).is_some_and(|parts| !parts.is_valid_at(&now)) {
            continue;
        }
        trusted
            .roots
            .add(certificate.clone())
            .map_err(|error| format!("sslrootcert: read {}: {error}", path.display()))?;
        trusted.certificates.push(certificate);
    }
    if trusted.roots.is_empty() {
        return Err(format!("sslrootcert: {} holds no certificate (PEM) that is valid now", path.display()));
    }
    Ok(trusted)
}

fn read_system() -> Result<Trusted, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let causes: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "sslrootcert=system: the system has no root certificates (Debian: apt-get install ca-certificates) {}",
            causes.join("; ")
        ));
    }
    Ok(Trusted { roots, certificates: Vec::new() })
}

/// A time as certificates write it.
fn clock(now: UnixTime) -> String {
    let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    now.unwrap_or(Timestamp::MAX).strftime("%Y%m%d%H%M%S").to_string()
}

/// Whose certificates are believed.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// The same as they were in the file; none of the system's.
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// Whether this very certificate is trusted, signed by itself, or is one of version 1 that a trusted one has signed.
    ///
    /// rustls takes neither, but OpenSSL does, and PostgreSQL's documentation (18.9.5) makes just these: a server's own
    /// self-signed certificate, and one by `openssl x509 -req`. Version 1 has no extensions, so that nothing is passed
    /// over here but what an authority may sign at all: where that is restricted, this way is closed.
    fn has_plain(&self, der: &CertificateDer<'_>, now: UnixTime, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let Some(certificate) = Certificate::read(der) else { return false };
        if !certificate.is_valid_at(&clock(now)) {
            return false;
        }
        if certificate.subject == certificate.issuer && self.certificates.iter().any(|trusted| trusted == der) {
            return true;
        }
        let is_restricted = self.roots.roots.iter().any(|anchor| anchor.name_constraints.is_some());
        certificate.is_version_1
            && !is_restricted
            && self
                .certificates
                .iter()
                .filter_map(|trusted| Certificate::read(trusted))
                .any(|authority| has_signed(&authority, &certificate, algorithms))
    }
}

fn has_signed(
    authority: &Certificate<'_>,
    certificate: &Certificate<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let Some((key_algorithm, key)) = authority.public_key() else { return false };
    authority.subject == certificate.issuer
        && algorithms.all.iter().any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key_algorithm
                && algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                && algorithm.verify_signature(key, certificate.signed, certificate.signature).is_ok()
        })
}

/// Judges the server's certificate.
#[derive(Debug)]
struct Verifier {
    /// `None` where any certificate will do.
    trusted: Option<Trusted>,
    wants_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let chain = ParsedCertificate::try_from(end_entity).and_then(|parsed| {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.roots, intermediates, now, algorithms)
        });
        if let Err(error) = chain
            && !trusted.has_plain(end_entity, now, &self.algorithms)
        {
            return Err(error);
        }
        if self.wants_name {
            check_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // The certificate is judged; its key is taken as it is, because rustls reads none of version 1.
        let parts = Certificate::read(cert).ok_or(CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(parts.public_key_info);
        crypto::verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The host's name among the alternative names; where there are none, as the common name, as libpq has it.
fn check_name(certificate: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<(), TlsError> {
    let judgement =
        ParsedCertificate::try_from(certificate).and_then(|parsed| verify_server_name(&parsed, server_name));
    let has_alternatives = match &judgement {
        Err(TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
            !presented.is_empty()
        }
        // Version 1.
        Err(TlsError::InvalidCertificate(CertificateError::Other(_))) => false,
        _ => true,
    };
    if !has_alternatives && has_common_name(certificate, server_name) {
        return Ok(());
    }
    judgement
}

/// A star stands for one label, the first.
fn has_common_name(certificate: &CertificateDer<'_>, server_name: &ServerName<'_>) -> bool {
    let ServerName::DnsName(name) = server_name else { return false };
    let Some(common_name) = Certificate::read(certificate).and_then(|parts| parts.common_name()) else { return false };
    let name = name.as_ref().trim_end_matches('.');
    match common_name.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => name.eq_ignore_ascii_case(common_name),
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = Handshake;
    type Error = String;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, String> {
        Ok(Handshake { connector: self.clone(), host: host.to_owned() })
    }
}

/// A handshake to come.
pub(super) struct Handshake {
    connector: Connector,
    host: String,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Stream;
    type Error = String;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, String>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        self.connector.was_used.store(true, Ordering::Relaxed);
        Box::pin(async move {
            let name = ServerName::try_from(self.host.as_str())
                .map_err(|_| format!("{:?} is no name that a certificate could have", self.host))?
                .to_owned();
            let stream = TlsConnector::from(self.connector.config).connect(name, socket).await;
            stream.map(Stream).map_err(|error| explained(&error))
        })
    }
}

/// rustls' reason, and what to do about those that an operator meets.
fn explained(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let advice = match cause {
        Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; sslrootcert must hold the certificate of the authority that signed the server's"
        }
        Some(TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "; connect by a name that the certificate has, or use sslmode=verify-ca",
        _ => "",
    };
    format!("{error}{advice}")
}

/// An encrypted connection.
pub(super) struct Stream(tokio_rustls::client::TlsStream<Socket>);

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        let (_, session) = self.0.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        certificate
            .and_then(|certificate| end_point(certificate))
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// `tls-server-end-point` (RFC 5929, 4.1): the certificate's hash, by the algorithm that it is signed with, but never less
/// than SHA-256. `None` where that algorithm has no hash of its own (Ed25519).
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // 1.2.840.113549.1.1.N (RSA, PKCS #1) and 1.2.840.10045.4.3.N (ECDSA).
    const RSA: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let (last, family) = Certificate::read(certificate)?.signature_algorithm_name()?.split_last()?;
    match (family, last) {
        (family, 4 | 5 | 11) if family == RSA => Some(Sha256::digest(certificate).to_vec()),
        (family, 12) if family == RSA => Some(Sha384::digest(certificate).to_vec()),
        (family, 13) if family == RSA => Some(Sha512::digest(certificate).to_vec()),
        (family, 2) if family == ECDSA => Some(Sha256::digest(certificate).to_vec()),
        (family, 3) if family == ECDSA => Some(Sha384::digest(certificate).to_vec()),
        (family, 4) if family == ECDSA => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
