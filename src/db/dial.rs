//! From a connection string to a session: the hosts are tried in order, within one deadline.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::config::SslMode as DriverMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Socket};

use super::Error;
#[cfg(not(feature = "tls"))]
use clap::ValueEnum as _;

#[cfg(not(feature = "tls"))]
use super::connection_string::SslMode;
use super::connection_string::Target;
#[cfg(feature = "tls")]
use super::tls;
#[cfg(feature = "tls")]
pub(super) use super::tls::connector;

#[cfg(not(feature = "tls"))]
type Connector = tokio_postgres::NoTls;
#[cfg(feature = "tls")]
type Connector = tokio_postgres_rustls::MakeRustlsConnect;
type TlsStream = <Connector as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream;

/// The future that moves a session's bytes.
pub(super) type Driver = tokio_postgres::Connection<Socket, TlsStream>;
type Session = (Client, Driver);

/// Longest time for one of several addresses of a name, unless `connect_timeout` says otherwise.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// The TLS side of connections: none in this build.
///
/// # Errors
/// A text that names the option, if the connection string asks for TLS.
#[cfg(not(feature = "tls"))]
pub(super) fn connector(target: &Target) -> Result<Connector, String> {
    let option = match target.ssl_mode {
        SslMode::Disable | SslMode::Prefer if target.ssl_root_cert.is_some() => "sslrootcert".to_owned(),
        SslMode::Disable | SslMode::Prefer => return Ok(tokio_postgres::NoTls),
        mode => mode.to_possible_value().map_or_else(String::new, |word| format!("sslmode={}", word.get_name())),
    };
    Err(format!(
        "{option}: this build has no TLS; expected sslmode=disable or prefer and no sslrootcert, or a build with the feature tls"
    ))
}

/// Connects to the first host that answers and matches `target_session_attrs`. It takes at most `deadline`; each
/// host gets its share, so that a silent host leaves time for the others.
///
/// # Errors
/// The server's own error if there is one host, else [`Error::Unreachable`] with each host and its error.
pub(super) async fn dial(target: &Target, name: &str, deadline: Duration) -> Result<Session, Error> {
    let until = Instant::now() + deadline;
    let connector = connector(target).map_err(Error::Unreachable)?;
    let mut failures = Vec::new();
    for (index, host) in target.hosts.iter().enumerate() {
        let mut config = host.config.clone();
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        let hosts_left = u32::try_from(target.hosts.len() - index).unwrap_or(u32::MAX);
        let share = until.saturating_duration_since(Instant::now()) / hosts_left;
        let patience = target.connect_timeout.map_or(share, |limit| limit.min(share));
        config.connect_timeout(target.connect_timeout.unwrap_or(ADDRESS_TIMEOUT));
        let attempt = timeout(patience, connect(config, &connector)).await;
        let error = match attempt.unwrap_or_else(|_| Err(Error::TimedOut(patience))) {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        failures.push(format!("{}: {error}", host.label));
        // As in libpq, a rejected login ends the search: another host would reject it too, and count one more failure.
        let is_rejected = error.sql_state().is_some_and(|state| state.code().starts_with("28"));
        if target.hosts.len() == 1 && error.sql_state().is_some() || is_rejected {
            return Err(error);
        }
    }
    Err(Error::Unreachable(failures.join("; ")))
}

/// Connects to one host. `prefer` tries again without TLS if TLS or the server's rules for it failed. If that fails too,
/// the cause is the first error, unless only the second one comes from PostgreSQL.
async fn connect(mut config: Config, connector: &Connector) -> Result<Session, Error> {
    let error = match config.connect(Connector::clone(connector)).await {
        Ok(session) => return Ok(session),
        Err(error) => explained(error),
    };
    let is_wrong_password = error.sql_state() == Some(&SqlState::INVALID_PASSWORD);
    if cfg!(not(feature = "tls")) || config.get_ssl_mode() != DriverMode::Prefer || is_wrong_password {
        return Err(error);
    }
    config.ssl_mode(DriverMode::Disable);
    config.connect(Connector::clone(connector)).await.map_err(|second| {
        let second = explained(second);
        if error.sql_state().is_none() && second.sql_state().is_some() { second } else { error }
    })
}

/// The driver's error, with advice if the error has none.
fn explained(error: tokio_postgres::Error) -> Error {
    let Some(cause) = std::error::Error::source(&error) else { return Error::from(error) };
    // The driver calls a missing password an invalid configuration.
    if cause.to_string() == "password missing" {
        return Error::Unreachable("the server asks for a password, and the connection string has none".to_owned());
    }
    #[cfg(feature = "tls")]
    if let Some(advice) = tls::advice(cause) {
        return Error::Unreachable(format!("{}; {advice}", Error::from(error)));
    }
    Error::from(error)
}
