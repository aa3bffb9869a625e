//! From a connection string to a session: the hosts are tried in order, within one deadline.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::config::SslMode as DriverMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Socket};

use super::Error;
use super::connection_string::{Target, label};
use super::tls::{self, Connector};

type TlsStream = <Connector as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream;

/// The future that moves a session's bytes.
pub(super) type Driver = tokio_postgres::Connection<Socket, TlsStream>;
type Session = (Client, Driver);

/// Longest time for one of several addresses of a name, unless `connect_timeout` says otherwise.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects to the first host that answers and matches `target_session_attrs`. It takes at most `deadline`; each
/// host gets its share, so that a silent host leaves time for the others.
///
/// # Errors
/// The server's own error if there is one host, else [`Error::Unreachable`] with each host and its error.
pub(super) async fn dial(target: &Target, name: &str, deadline: Duration) -> Result<Session, Error> {
    let until = Instant::now() + deadline;
    let connector = tls::connector(target).map_err(Error::Unreachable)?;
    let mut failures = Vec::new();
    for (index, server) in target.servers.iter().enumerate() {
        let mut config = server.clone();
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        let servers_left = u32::try_from(target.servers.len() - index).unwrap_or(u32::MAX);
        let share = until.saturating_duration_since(Instant::now()) / servers_left;
        let limit = server.get_connect_timeout().copied();
        let patience = limit.map_or(share, |limit| limit.min(share));
        config.connect_timeout(limit.unwrap_or(ADDRESS_TIMEOUT));
        let attempt = timeout(patience, connect(config, &connector)).await;
        let error = match attempt.unwrap_or_else(|_| Err(Error::TimedOut(patience))) {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        failures.push(format!("{}: {error}", label(server)));
        // As in libpq, a rejected login ends the search: another host would reject it too, and count one more failure.
        let is_rejected = error.sql_state().is_some_and(|state| state.code().starts_with("28"));
        if target.servers.len() == 1 && error.sql_state().is_some() || is_rejected {
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
    if let Some(advice) = tls::advice(cause) {
        return Error::Unreachable(format!("{}; {advice}", Error::from(error)));
    }
    Error::from(error)
}
