//! TLS to PostgreSQL (feature `tls`): certificates are trusted as in libpq (PostgreSQL documentation, 34.19.1).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{self, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connection_string::{SslMode, Target};

pub(super) type Connector = MakeRustlsConnect;

/// Sets up TLS for connections, with the present root certificates.
///
/// # Errors
/// If the root certificates cannot be read, or the mode needs some and there are none; the text names the option.
pub(super) fn connector(target: &Target) -> Result<Connector, String> {
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier = Verifier {
        roots: roots(target)?,
        checks_name: target.ssl_mode == SslMode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("set up TLS: {error}"))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(MakeRustlsConnect::new(builder.with_no_client_auth()))
}

/// Advice on an error about the server's certificate.
pub(super) fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let rustls = error.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<Error>()?;
    matches!(rustls, Error::InvalidCertificate(_)).then_some(
        "the server's certificate must not have expired; sslrootcert must hold the certificate of the authority that signed \
         it; with sslmode=verify-full, unlike sslmode=verify-ca, its subjectAltName must name the host; if it has no \
         extensions or is marked as an authority's, make a new one: openssl req -x509 -addext \
         basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:HOST",
    )
}

/// The trusted authorities; `None` trusts every certificate: a mode below verify-ca does so if there is no file.
fn roots(target: &Target) -> Result<Option<RootCertStore>, String> {
    let is_required = matches!(target.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let file = match &target.ssl_root_cert {
        _ if target.ssl_mode == SslMode::Disable => return Ok(None),
        Some(name) if name == "system" => return read_system().map(Some),
        Some(name) => Some(PathBuf::from(name)),
        None => home.map(|home| PathBuf::from(home).join(".postgresql/root.crt")),
    };
    let found = match file {
        Some(file) if is_required || file.exists() => read_file(&file).map(Some),
        None if is_required => Err("none is given".to_owned()),
        Some(_) | None => Ok(None),
    };
    found.map_err(|why| {
        let file = "the file with the certificate of the authority that signed the server's";
        format!("sslrootcert: {why}; name {file}, or sslrootcert=system")
    })
}

fn read_file(file: &Path) -> Result<RootCertStore, String> {
    let pem = std::fs::read(file).map_err(|error| format!("read the file: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("read the file: {error}"))?;
        roots.add(certificate).map_err(|error| format!("read the file: {error}"))?;
    }
    if roots.is_empty() { Err("the file holds no certificate (PEM)".to_owned()) } else { Ok(roots) }
}

fn read_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable > 0 {
        return Ok(roots);
    }
    let causes: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    let remedy = "(Debian: apt-get install ca-certificates)";
    Err(format!("sslrootcert=system: the system has no root certificates {remedy} {}", causes.join("; ")))
}

/// Checks the server's certificate as `sslmode` requires: not at all, its chain, or its chain and the host's name.
#[derive(Debug)]
struct Verifier {
    roots: Option<RootCertStore>,
    checks_name: bool,
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
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
            if self.checks_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
