//! In place of `tls` in a build without that feature: refuses connection strings that need TLS.

use tokio_postgres::NoTls;

use super::connection_string::{SslMode, Target};

pub(super) type Connector = NoTls;

pub(super) fn connector(target: &Target) -> Result<Connector, String> {
    let option = match target.ssl_mode {
        SslMode::Require => "sslmode=require",
        SslMode::VerifyCa => "sslmode=verify-ca",
        SslMode::VerifyFull => "sslmode=verify-full",
        SslMode::Disable | SslMode::Prefer if target.ssl_root_cert.is_some() => "sslrootcert",
        SslMode::Disable | SslMode::Prefer => return Ok(NoTls),
    };
    Err(format!(
        "{option}: this build has no TLS; expected sslmode=disable or prefer and no sslrootcert, or a build with the feature tls"
    ))
}

pub(super) fn advice(_: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    None
}
