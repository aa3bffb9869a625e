//! Connection strings in libpq's two forms (PostgreSQL documentation, 34.1.1): a URL or `key=value` pairs.
//!
//! Errors never repeat a word of the string, because any word may be a piece of a password that was not quoted. They
//! give the kind of mistake and its position, and name only keys and values that libpq itself knows.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode as DriverMode, TargetSessionAttrs};

/// The supported keys, each with the values it takes.
const SUPPORTED: [(&str, &str); 18] = [
    ("host", "host names, addresses or socket directories, separated by commas"),
    ("hostaddr", "IP addresses, separated by commas, one for each host"),
    ("port", "numbers from 1 to 65535, separated by commas, one for each host or one for all"),
    ("dbname", "a name"),
    ("user", "a name"),
    ("password", "a password"),
    ("options", "options of the server"),
    ("application_name", "a name"),
    ("connect_timeout", "a whole number of seconds"),
    ("sslmode", "disable, prefer, require, verify-ca or verify-full"),
    ("sslrootcert", "a file, or system together with sslmode=verify-full"),
    ("channel_binding", "disable, prefer or require"),
    ("target_session_attrs", "any, read-write or read-only"),
    ("tcp_user_timeout", "a whole number of milliseconds"),
    ("keepalives", "0 or 1"),
    ("keepalives_idle", "a whole number of seconds"),
    ("keepalives_interval", "a whole number of seconds"),
    ("keepalives_count", "a whole number"),
];
/// Keys that libpq knows (PostgreSQL 18) and this program does not support: an error may name them.
const UNSUPPORTED: &str = "passfile require_auth client_encoding fallback_application_name replication gssencmode \
    requiressl ssl sslnegotiation sslcompression sslcert sslkey sslkeylogfile sslpassword sslcertmode sslcrl sslcrldir \
    sslsni requirepeer ssl_min_protocol_version ssl_max_protocol_version min_protocol_version max_protocol_version \
    krbsrvname gsslib gssdelegation scram_client_key scram_server_key service servicefile load_balance_hosts \
    oauth_issuer oauth_client_id oauth_client_secret oauth_scope";
/// Values that libpq knows and this program does not support: an error may name these too.
const UNSUPPORTED_VALUES: [&str; 5] = ["allow", "primary", "standby", "prefer-standby", "system"];

const DEFAULT_PORT: u16 = 5432;
/// Where the socket is if no host is given: Debian's directory if there is one, else PostgreSQL's own default, /tmp.
const DEBIAN_SOCKETS: &str = "/var/run/postgresql";

/// How much TLS the connection string asks for (PostgreSQL documentation, 34.19.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A checked connection string.
#[derive(Clone, PartialEq)]
pub(super) struct Target {
    /// The servers, at least one, in the order in which they are tried. Each configuration has one host and one port. Its
    /// `connect_timeout` is the longest time for the host; `None` shares the deadline among all.
    pub(super) servers: Vec<Config>,
    pub(super) ssl_mode: SslMode,
    /// The file with the certificates of trusted authorities, or `system`; `None` means libpq's default file.
    pub(super) ssl_root_cert: Option<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
            Some(rest) => Pairs::from_url(text, rest)?,
            None => Pairs::from_keywords(text)?,
        };
        pairs.into_target()
    }
}

/// The value of each key and its position in the string, in characters from 1. The last value of a key counts, and an
/// empty value counts as not given.
#[derive(Default)]
struct Pairs(HashMap<&'static str, (String, usize)>);

impl Pairs {
    /// Parses `key = value` pairs. A value with spaces needs single quotes; a backslash escapes the next character.
    fn from_keywords(text: &str) -> Result<Self, String> {
        let mut pairs = Self::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let at = position(text, rest);
            let end = rest.find(|character: char| character == '=' || character.is_whitespace());
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            let after = after.trim_start().strip_prefix('=');
            let why = "expected postgres://… or key=value, values with spaces in '…'";
            let after = after.ok_or_else(|| format!("a word without = (position {at}): {why}"))?;
            let key = known(word, at)?;
            let value = keyword_value(after.trim_start());
            let (value, after) = value.ok_or_else(|| format!("{key}: no closing ' (position {at})"))?;
            pairs.0.insert(key, (value, at));
            rest = after.trim_start();
        }
        Ok(pairs)
    }

    /// `[user[:password]@][host][:port][,…][/dbname][?key=value[&…]]`, what follows `postgres://`.
    fn from_url(text: &str, rest: &str) -> Result<Self, String> {
        let mut pairs = Self::default();
        let mut push = |key: &'static str, piece: &str, value: &str| -> Result<(), String> {
            let at = position(text, piece);
            let value = percent_decoded(value).ok_or_else(|| {
                format!("{key}: a % without two hexadecimal digits, or no UTF-8 (position {at}); write % as %25")
            })?;
            pairs.0.insert(key, (value, at));
            Ok(())
        };
        // As in libpq, an @ ends the user and password only before the first slash.
        let (credentials, rest) = match rest.find(['@', '/']) {
            Some(at) if rest[at..].starts_with('@') => (&rest[..at], &rest[at + 1..]),
            _ => (&rest[..0], rest),
        };
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        push("user", credentials, user)?;
        push("password", credentials, password)?;
        let (hosts, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if let Some(at) = path.find('@') {
            let at = position(text, &path[at..]);
            let remedy = "write / in a password as %2F, and @ in a database name as %40";
            return Err(format!("an @ after the first / (position {at}): {remedy}"));
        }
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for item in hosts.split(',') {
            let (name, port) = match item.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
                Some((name, port)) => (name, port),
                None => item.split_at(item.find(':').unwrap_or(item.len())),
            };
            names.push(name);
            ports.push(port.strip_prefix(':').unwrap_or(port));
        }
        push("host", hosts, &names.join(","))?;
        push("port", hosts, &ports.join(","))?;
        push("dbname", path, path.strip_prefix('/').unwrap_or(path))?;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let at = position(text, parameter);
            let (key, value) =
                parameter.split_once('=').ok_or_else(|| format!("an option without = (position {at})"))?;
            push(known(key, at)?, parameter, value)?;
        }
        Ok(pairs)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|(value, _)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The meaning of the value; `None` if none is given.
    fn read<T>(&self, key: &str, meaning: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, String> {
        self.text(key).map(|value| meaning(value).ok_or_else(|| self.unusable(key))).transpose()
    }

    /// A whole number; `None` if it is zero or negative, which means no limit or the system's default, as in libpq.
    fn number(&self, key: &str, default: u32) -> Result<Option<u32>, String> {
        let number = self.read(key, |value| value.trim().parse::<i32>().ok())?;
        Ok(number.map_or(Some(default), |number| u32::try_from(number).ok()).filter(|number| *number > 0))
    }

    fn into_target(self) -> Result<Target, String> {
        let mode = self.read("sslmode", |word| SslMode::from_str(word, false).ok())?;
        let ssl_root_cert = self.text("sslrootcert").map(ToOwned::to_owned);
        // Anybody can get a certificate that the system trusts: only the name in it proves who the server is.
        let ssl_mode = match (ssl_root_cert.as_deref(), mode) {
            (Some("system"), None | Some(SslMode::VerifyFull)) => SslMode::VerifyFull,
            (Some("system"), Some(_)) => return Err("sslrootcert=system needs sslmode=verify-full".to_owned()),
            (_, mode) => mode.unwrap_or(SslMode::Prefer),
        };
        Ok(Target { servers: self.servers(&self.config(ssl_mode)?)?, ssl_mode, ssl_root_cert })
    }

    /// The configuration that all servers share.
    fn config(&self, ssl_mode: SslMode) -> Result<Config, String> {
        let mut config = Config::new();
        self.text("user").map(|user| config.user(user));
        self.text("password").map(|password| config.password(password));
        self.text("dbname").map(|name| config.dbname(name));
        self.text("options").map(|options| config.options(options));
        self.text("application_name").map(|name| config.application_name(name));
        config.ssl_mode(match ssl_mode {
            SslMode::Disable => DriverMode::Disable,
            SslMode::Prefer => DriverMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverMode::Require,
        });
        use ChannelBinding::{Disable, Prefer, Require};
        let bindings = [("disable", Disable), ("prefer", Prefer), ("require", Require)];
        self.read("channel_binding", one_of(&bindings))?.map(|binding| config.channel_binding(binding));
        use TargetSessionAttrs::{Any, ReadOnly, ReadWrite};
        let sessions = [("any", Any), ("read-write", ReadWrite), ("read-only", ReadOnly)];
        self.read("target_session_attrs", one_of(&sessions))?.map(|session| config.target_session_attrs(session));
        self.number("connect_timeout", 0)?.map(|number| config.connect_timeout(seconds(number)));
        // The defaults notice a dead host in seconds.
        self.number("keepalives_idle", 10)?.map(|number| config.keepalives_idle(seconds(number)));
        self.number("keepalives_interval", 5)?.map(|number| config.keepalives_interval(seconds(number)));
        self.number("keepalives_count", 3)?.map(|count| config.keepalives_retries(count));
        let milliseconds = self.number("tcp_user_timeout", 10_000)?;
        milliseconds.map(|number| config.tcp_user_timeout(Duration::from_millis(number.into())));
        config.keepalives(self.read("keepalives", |value| value.trim().parse::<i32>().ok())? != Some(0));
        Ok(config)
    }

    fn servers(&self, shared: &Config) -> Result<Vec<Config>, String> {
        let list = |key| -> Vec<&str> { self.text(key).unwrap_or_default().split(',').map(str::trim).collect() };
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        let count = names.len().max(addresses.len());
        for (key, given) in [("host", &names), ("hostaddr", &addresses), ("port", &ports)] {
            let is_one_for_all = *given == [""] || key == "port" && given.len() == 1;
            if given.len() != count && !is_one_for_all {
                return Err(format!("{key}: {} given, expected {count}, one for each host", given.len()));
            }
        }
        let server = |index: usize| {
            let [name, address, port] = [&names, &addresses, &ports].map(|list| list[index % list.len()]);
            self.server(shared, name, address, port)
        };
        (0..count).map(server).collect()
    }

    /// Adds one server's name, address and port, each of which may be empty.
    fn server(&self, shared: &Config, name: &str, address: &str, port: &str) -> Result<Config, String> {
        let mut config = shared.clone();
        if !is_host(name) {
            return Err(self.unusable("host"));
        }
        let name = match name {
            "" if !address.is_empty() => address,
            "" if Path::new(DEBIAN_SOCKETS).is_dir() => DEBIAN_SOCKETS,
            "" => "/tmp",
            _ => name,
        };
        config.host(name);
        if !address.is_empty() {
            config.hostaddr(address.parse().map_err(|_| self.unusable("hostaddr"))?);
        } else if name.starts_with('/') {
            // As in libpq, sslmode does not apply to a unix socket.
            config.ssl_mode(DriverMode::Disable);
        }
        let port = if port.is_empty() { Ok(DEFAULT_PORT) } else { port.parse().map(NonZeroU16::get) };
        config.port(port.map_err(|_| self.unusable("port"))?);
        Ok(config)
    }

    /// The message about the value of a key that cannot be used.
    fn unusable(&self, key: &str) -> String {
        let (value, at) = &self.0[key];
        let expected = SUPPORTED.iter().find(|(known, _)| *known == key).map_or("", |(_, expected)| expected);
        if UNSUPPORTED_VALUES.contains(&value.as_str()) {
            format!("{key}={value} is not supported; expected {expected}")
        } else {
            format!("{key} (position {at}): expected {expected}")
        }
    }
}

pub(super) fn label(server: &Config) -> String {
    let port = server.get_ports()[0];
    match &server.get_hosts()[0] {
        Host::Tcp(name) => format!("{name}, port {port}"),
        Host::Unix(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
    }
}

/// The key, if it is supported.
fn known(word: &str, at: usize) -> Result<&'static str, String> {
    if let Some((key, _)) = SUPPORTED.iter().find(|(key, _)| *key == word) {
        return Ok(key);
    }
    let name = UNSUPPORTED.split(' ').find(|key| *key == word);
    let name =
        name.map_or_else(|| format!("the option at position {at} is unknown"), |key| format!("{key} is not supported"));
    let supported: Vec<&str> = SUPPORTED.iter().map(|(key, _)| *key).collect();
    Err(format!("{name}; expected some of {}", supported.join(", ")))
}

/// A reader of words, each with its meaning.
fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Option<T> {
    |word| words.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning)
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

/// Whether the text looks like a directory, a host name or an address. Errors show nothing else: it may be a piece of a
/// password.
fn is_host(name: &str) -> bool {
    name.starts_with('/') || name.chars().all(|character| character.is_alphanumeric() || "-._:%".contains(character))
}

/// The position of a piece of the text, in characters from 1.
fn position(text: &str, piece: &str) -> usize {
    let before = (piece.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    text.get(..before).map_or(0, |before| before.chars().count()) + 1
}

fn percent_decoded(text: &str) -> Option<String> {
    let is_sound = text.split('%').skip(1).all(|after| {
        after.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00")
    });
    is_sound.then(|| percent_decode_str(text).decode_utf8().ok().map(Into::into)).flatten()
}

/// The value at the beginning of the text, and what follows it; `None` if a quote is left open.
fn keyword_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut value = String::new();
    let mut characters = quoted.unwrap_or(text).chars();
    loop {
        let before = characters.as_str();
        match characters.next() {
            Some('\'') if quoted.is_some() => return Some((value, characters.as_str())),
            Some('\\') => value.extend(characters.next()),
            Some(space) if quoted.is_none() && space.is_whitespace() => return Some((value, before)),
            Some(character) => value.push(character),
            None => return quoted.is_none().then_some((value, before)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Pieces of a password that is neither encoded nor quoted can end up anywhere in the string.
        #[test]
        fn an_error_never_holds_a_piece_of_a_password(
            pieces in proptest::collection::vec(prop_oneof![
                Just("geheim"), Just("?"), Just("&"), Just("@"), Just("/"), Just("%"), Just(":"), Just("="), Just(" "),
                Just("'"), Just("\\"), Just(","), Just("["), Just("port="), Just("sslmode="), Just("hostaddr="),
            ], 1..12),
        ) {
            let password = pieces.concat();
            for string in [
                format!("postgres://user:{password}@127.0.0.1:5432/db?connect_timeout=1"),
                format!("postgres://127.0.0.1/db?user=x&password={password}&connect_timeout=1"),
                format!("host=127.0.0.1 user=x password={password} connect_timeout=1"),
                format!("host=127.0.0.1 user=x password='{password}' connect_timeout=1"),
                password.clone(),
            ] {
                if let Err(error) = string.parse::<Target>() {
                    prop_assert!(!error.contains("geheim"), "{string}: {error}");
                }
            }
        }
    }

    #[test]
    fn keep_alive_is_off_only_for_zero() {
        for (value, expected) in [("0", false), ("1", true), ("-1", true), ("", true)] {
            let target: Target = format!("host=a keepalives={value}").parse().unwrap();
            assert_eq!(target.servers[0].get_keepalives(), expected, "{value}");
        }
    }

    #[test]
    fn a_url_and_pairs_mean_the_same() {
        let labels =
            |string: &str| -> Vec<String> { string.parse::<Target>().unwrap().servers.iter().map(label).collect() };
        assert_eq!(labels("postgres://u:p%40@a:1,[::1]:2/db"), ["a, port 1", "::1, port 2"]);
        assert_eq!(labels("host=a,::1 port=1,2 password=p@"), ["a, port 1", "::1, port 2"]);
        assert_eq!(labels("postgres://%2Frun%2Fpg/db"), ["/run/pg/.s.PGSQL.5432"]);
        assert_eq!(labels("postgres:///db?host=/run/pg&port=7"), ["/run/pg/.s.PGSQL.7"]);
    }
}
