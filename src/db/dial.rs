//! From a connection string to a session: which host, which address, with TLS or without, and whether it is the one wanted.
//!
//! As libpq does it (PostgreSQL documentation, 34.1.1.3): in the order given, until one succeeds; where authentication
//! fails the others are not tried.

use std::future::{Future as _, poll_fn};
use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::config::SslMode as DriverMode;
use tokio_postgres::{Client, Config, SimpleQueryMessage, Socket};

use super::Error;
#[cfg(feature = "tls")]
use super::tls::{Connector, Stream};
use super::url::{Place, SslMode, Target, TargetSession};
#[cfg(not(feature = "tls"))]
use tokio_postgres::{NoTls as Connector, tls::NoTlsStream as Stream};

/// What moves a session's bytes.
pub(super) type Driver = tokio_postgres::Connection<Socket, Stream>;
type Session = (Client, Driver);

/// Where a server of this machine may have its socket: Debian's place, and PostgreSQL's own.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Whether the connection string can work in this build, with the files as they are now.
///
/// # Errors
/// A text naming the option, and what would do.
#[cfg(feature = "tls")]
pub(super) fn check(target: &Target) -> Result<(), String> {
    Connector::new(target)?;
    if let super::url::RootCertificates::File(path) = &target.roots
        && target.ssl_mode != SslMode::Disable
        && !path.exists()
    {
        log::warn!("sslrootcert {} does not exist: the server's certificate is not checked", path.display());
    }
    Ok(())
}

/// Whether the connection string can work in this build.
///
/// # Errors
/// A text naming the option, and what would do.
#[cfg(not(feature = "tls"))]
pub(super) fn check(target: &Target) -> Result<(), String> {
    match target.ssl_mode {
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            let word = target.ssl_mode.word();
            Err(format!(
                "sslmode={word}: this build has no TLS; expected disable, allow or prefer, or a build with the feature tls"
            ))
        }
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => Ok(()),
    }
}

/// Connects to the first place that answers and is what was asked for. Takes at most `deadline`, of which every place has
/// its share: one whose host is dead leaves time for the others.
///
/// # Errors
/// The server's own error, or [`Error::Unreachable`].
pub(super) async fn dial(target: &Target, name: &str, deadline: Duration) -> Result<Session, Error> {
    let until = Instant::now() + deadline;
    #[cfg(feature = "tls")]
    let connector = Connector::new(target).map_err(Error::Settings)?;
    #[cfg(not(feature = "tls"))]
    let connector = Connector;
    let mut config = target.config.clone();
    config.application_name(target.application_name.as_deref().unwrap_or(name));
    let mut dialer = Dialer { target, config, connector, failures: Vec::new(), answers: Vec::new() };
    let wanted: &[TargetSession] = match &target.session {
        // Any will do where no standby is to be had.
        TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
        session => std::slice::from_ref(session),
    };
    let mut tries_left = wanted.len() * target.places.len();
    for wanted in wanted {
        for place in &target.places {
            let until = Instant::now() + share(until, tries_left);
            tries_left -= 1;
            if let Some(session) = dialer.try_place(place, *wanted, until).await? {
                return Ok(session);
            }
        }
    }
    Err(dialer.failed())
}

/// SQLSTATE class 28: another host would say the same, and count it as one more failed login.
fn is_refusal_of_the_user(error: &Error) -> bool {
    error.sql_state().is_some_and(|state| state.code().starts_with("28"))
}

/// What each of so many may take of the time until then.
fn share(until: Instant, parts: usize) -> Duration {
    until.saturating_duration_since(Instant::now()) / u32::try_from(parts.max(1)).unwrap_or(u32::MAX)
}

struct Dialer<'a> {
    target: &'a Target,
    /// Everything but where to connect.
    config: Config,
    connector: Connector,
    /// What was tried, and why it gave no session.
    failures: Vec<String>,
    /// What servers answered where that was all there is to say of them.
    answers: Vec<Error>,
}

impl Dialer<'_> {
    /// A server's own answer where nothing else was tried, else everything.
    fn failed(&mut self) -> Error {
        match (self.failures.as_slice(), self.answers.pop()) {
            ([_], Some(answer)) => answer,
            (failures, _) => Error::Unreachable(failures.join("; ")),
        }
    }

    /// The session, or none where another place may have it.
    async fn try_place(
        &mut self,
        place: &Place,
        wanted: TargetSession,
        until: Instant,
    ) -> Result<Option<Session>, Error> {
        let port = place.port;
        if let Some(directory) = socket_directory(place) {
            let mut config = self.config.clone();
            config.host_path(directory).port(port);
            // TLS is not spoken over a socket of this machine, whatever is asked for.
            let at = format!("{directory}/.s.PGSQL.{port}");
            return self.try_server(&at, config, SslMode::Disable, wanted, share(until, 1)).await;
        }
        let literal = place.address.map(|address| address.to_string());
        let name = place.host.as_deref().or(literal.as_deref()).unwrap_or("localhost");
        let addresses = match place.address {
            Some(address) => vec![address],
            None => match look_up(name, port, share(until, 1)).await {
                Ok(addresses) => addresses,
                Err(why) => {
                    self.failures.push(why);
                    return Ok(None);
                }
            },
        };
        for (index, address) in addresses.iter().enumerate() {
            let mut config = self.config.clone();
            config.host(name).hostaddr(*address).port(port);
            let at = if address.to_string() == name {
                format!("{name}, port {port}")
            } else {
                format!("{name} ({address}), port {port}")
            };
            let patience = share(until, addresses.len() - index);
            let tried = self.try_server(&at, config, self.target.ssl_mode, wanted, patience).await?;
            if tried.is_some() {
                return Ok(tried);
            }
        }
        Ok(None)
    }

    async fn try_server(
        &mut self,
        at: &str,
        config: Config,
        mode: SslMode,
        wanted: TargetSession,
        patience: Duration,
    ) -> Result<Option<Session>, Error> {
        let patience = self.target.connect_timeout.map_or(patience, |limit| limit.min(patience));
        let mut errors = match timeout(patience, self.connect(config, mode, wanted)).await {
            Ok(Ok(session)) => return Ok(Some(session)),
            Ok(Err(errors)) => errors,
            Err(_) => vec![Error::TimedOut(Duration::from_millis(u64::try_from(patience.as_millis()).unwrap_or(0)))],
        };
        let causes: Vec<String> = errors.iter().map(ToString::to_string).collect();
        self.failures.push(match causes.as_slice() {
            [clear, tls] if mode == SslMode::Allow => format!("{at}: in clear: {clear}; with TLS: {tls}"),
            [tls, clear] => format!("{at}: with TLS: {tls}; in clear: {clear}"),
            causes => format!("{at}: {}", causes.join("; ")),
        });
        let is_final = errors.iter().any(is_refusal_of_the_user);
        if errors.len() == 1 && errors[0].sql_state().is_some() {
            self.answers.append(&mut errors);
        }
        if is_final { Err(self.failed()) } else { Ok(None) }
    }

    /// One server, with TLS or without as the mode has it; what each try failed with where none succeeded.
    async fn connect(&self, mut config: Config, mode: SslMode, wanted: TargetSession) -> Result<Session, Vec<Error>> {
        let tries: &[DriverMode] = match mode {
            SslMode::Disable => &[DriverMode::Disable],
            SslMode::Allow => &[DriverMode::Disable, DriverMode::Require],
            SslMode::Prefer => &[DriverMode::Prefer, DriverMode::Disable],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[DriverMode::Require],
        };
        let mut errors = Vec::new();
        for mode in tries {
            config.ssl_mode(*mode);
            match config.connect(Connector::clone(&self.connector)).await {
                Ok((client, mut driver)) => {
                    return match check_session(&client, &mut driver, wanted).await {
                        Ok(()) => Ok((client, driver)),
                        Err(error) => Err(vec![error]),
                    };
                }
                Err(error) => {
                    // The other way is of no use where nobody listens, or where clear was what failed.
                    let other_way = match mode {
                        DriverMode::Prefer => was_encrypted(&self.connector),
                        _ => error.as_db_error().is_some(),
                    };
                    errors.push(named(error));
                    if !other_way {
                        break;
                    }
                }
            }
        }
        Err(errors)
    }
}

/// The driver calls a password that the server asks for, and that is not there, an invalid configuration.
fn named(error: tokio_postgres::Error) -> Error {
    match std::error::Error::source(&error) {
        Some(cause) if cause.to_string() == "password missing" => {
            Error::Unreachable("the server asks for a password, and the connection string has none".to_owned())
        }
        _ => Error::from(error),
    }
}

#[cfg(feature = "tls")]
fn was_encrypted(connector: &Connector) -> bool {
    connector.take_was_used()
}

#[cfg(not(feature = "tls"))]
fn was_encrypted(_: &Connector) -> bool {
    false
}

/// The directory of a unix socket, where the place has one: the one that was given, or where no host was given at all,
/// one of this machine that is there.
fn socket_directory(place: &Place) -> Option<&str> {
    match &place.host {
        Some(host) => host.starts_with('/').then_some(host.as_str()),
        None if place.address.is_some() => None,
        None => SOCKET_DIRECTORIES
            .into_iter()
            .find(|directory| Path::new(directory).join(format!(".s.PGSQL.{}", place.port)).exists()),
    }
}

async fn look_up(name: &str, port: u16, patience: Duration) -> Result<Vec<IpAddr>, String> {
    match timeout(patience, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(found)) => {
            let addresses: Vec<IpAddr> = found.map(|found| found.ip()).collect();
            if addresses.is_empty() { Err(format!("look up {name}: no address")) } else { Ok(addresses) }
        }
        Ok(Err(error)) => Err(format!("look up {name}: {error}")),
        Err(_) => Err(format!("look up {name}: no answer")),
    }
}

/// Whether the server is what `target_session_attrs` wants.
async fn check_session(client: &Client, driver: &mut Driver, wanted: TargetSession) -> Result<(), Error> {
    if wanted == TargetSession::Any {
        return Ok(());
    }
    let question = "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on'";
    let mut asked = pin!(client.simple_query(question));
    let answer = poll_fn(|cx| {
        loop {
            // The driver first: it moves the bytes that the question waits for.
            match driver.poll_message(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Error::from(error))),
                Poll::Ready(None) => return Poll::Ready(Err(Error::Closed)),
                Poll::Pending => return asked.as_mut().poll(cx).map_err(Error::from),
            }
        }
    });
    let answer = answer.await?;
    let truths = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0) == Some("t"), row.get(1) == Some("t"))),
        _ => None,
    });
    let (is_standby, is_read_only) = truths.ok_or(Error::Closed)?;
    let why = match wanted {
        TargetSession::ReadWrite if is_read_only => "the session is read-only",
        TargetSession::ReadOnly if !is_read_only => "the session is not read-only",
        TargetSession::Primary if is_standby => "the server is a standby",
        TargetSession::Standby if !is_standby => "the server is no standby",
        _ => return Ok(()),
    };
    Err(Error::Unreachable(why.to_owned()))
}
