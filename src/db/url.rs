//! Connection strings, as libpq reads them (PostgreSQL documentation, 34.1.1): a URL or `key=value` pairs.
//!
//! Everything that can be wrong with one is found here, before anything is tried. What is not supported is refused by
//! name, so that nobody believes in an option that does nothing. No error repeats a value that may be a secret.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;

/// The options that are taken, in the order in which an error names them.
const SUPPORTED: &str = "host, hostaddr, port, dbname, user, password, connect_timeout, options, application_name, \
    sslmode, sslrootcert, channel_binding, target_session_attrs, tcp_user_timeout, keepalives, keepalives_idle, \
    keepalives_interval, keepalives_count";
const DEFAULT_PORT: u16 = 5432;

/// How much TLS is asked for (PostgreSQL documentation, 34.19.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// Each with the word for it.
    const WORDS: [(&str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// The word for it.
    #[cfg(not(feature = "tls"))]
    pub(super) fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, mode)| *mode == self).map_or("", |(word, _)| word)
    }
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RootCertificates {
    /// The certificates in a file; nobody is asked for a chain where the file is not there.
    File(PathBuf),
    /// The same of libpq's own place below the home directory.
    Home(PathBuf),
    /// What the system trusts.
    System,
    /// Nothing was said, and there is no home directory to look into.
    None,
}

/// What the server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// A place where a server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// A name, an address, or the directory of a unix socket; `None` for this machine.
    pub(super) host: Option<String>,
    /// Where to connect instead of looking up the name.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

/// What a connection string says, checked.
#[derive(Clone)]
pub(super) struct Target {
    /// Everything that the driver takes as it is: user, password, database, keep-alive and so on, but no host.
    pub(super) config: Config,
    /// At least one, in the order in which they are tried.
    pub(super) places: Vec<Place>,
    pub(super) application_name: Option<String>,
    /// Longest time for one place; `None` shares the deadline among them.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) session: TargetSession,
    pub(super) ssl_mode: SslMode,
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS there is nobody to trust"))]
    pub(super) roots: RootCertificates,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
            Some(rest) => url_pairs(rest)?,
            None => keyword_pairs(text)?,
        };
        Options::collect(pairs)?.into_target()
    }
}

/// The options as text, the last of a name; what is empty counts as not given.
#[derive(Default)]
struct Options(Vec<(String, String)>);

impl Options {
    fn collect(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in pairs {
            // As libpq has it, for URLs that were written for JDBC.
            let (key, value) = if key == "ssl" && value == "true" {
                ("sslmode".to_owned(), "require".to_owned())
            } else {
                (key, value)
            };
            if !SUPPORTED.split(", ").any(|known| known == key) {
                return Err(unsupported(&key));
            }
            options.0.retain(|(known, _)| *known != key);
            options.0.push((key, value));
        }
        Ok(options)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, value)| known == key && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// A choice of words, each with what it means; the first is the default.
    fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], default: T) -> Result<T, String> {
        let Some(value) = self.text(key) else { return Ok(default) };
        choices.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            format!("{key}={value}: expected {}", words.join(", "))
        })
    }

    /// A whole number; `None` where it is not given.
    fn number(&self, key: &str) -> Result<Option<i32>, String> {
        let Some(value) = self.text(key) else { return Ok(None) };
        value.trim().parse().map(Some).map_err(|_| format!("{key}={value}: expected a whole number"))
    }

    /// The items of a list; none where it is not given.
    fn list(&self, key: &str) -> Vec<&str> {
        self.text(key).map(|value| value.split(',').map(str::trim).collect()).unwrap_or_default()
    }

    fn into_target(self) -> Result<Target, String> {
        let mut config = Config::new();
        if let Some(user) = self.text("user") {
            config.user(user);
        }
        if let Some(password) = self.text("password") {
            config.password(password);
        }
        if let Some(dbname) = self.text("dbname") {
            config.dbname(dbname);
        }
        if let Some(options) = self.text("options") {
            config.options(options);
        }
        self.set_tcp_options(&mut config)?;
        use tokio_postgres::config::ChannelBinding::{Disable, Prefer, Require};
        let channel_bindings = [("disable", Disable), ("prefer", Prefer), ("require", Require)];
        config.channel_binding(self.choice("channel_binding", &channel_bindings, Prefer)?);
        let connect_timeout = self.number("connect_timeout")?.and_then(|seconds| u64::try_from(seconds).ok());
        let (ssl_mode, roots) = self.trust()?;
        let sessions = [
            ("any", TargetSession::Any),
            ("read-write", TargetSession::ReadWrite),
            ("read-only", TargetSession::ReadOnly),
            ("primary", TargetSession::Primary),
            ("standby", TargetSession::Standby),
            ("prefer-standby", TargetSession::PreferStandby),
        ];
        Ok(Target {
            config,
            places: self.places()?,
            application_name: self.text("application_name").map(ToOwned::to_owned),
            connect_timeout: connect_timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs),
            session: self.choice("target_session_attrs", &sessions, TargetSession::Any)?,
            ssl_mode,
            roots,
        })
    }

    /// What is not given is such that a dead host is noticed in seconds; zero is the system's default, as in libpq.
    fn set_tcp_options(&self, config: &mut Config) -> Result<(), String> {
        let positive = |key: &str, default: i32| -> Result<Option<u32>, String> {
            Ok(u32::try_from(self.number(key)?.unwrap_or(default)).ok().filter(|number| *number > 0))
        };
        if let Some(seconds) = positive("keepalives_idle", 10)? {
            config.keepalives_idle(Duration::from_secs(seconds.into()));
        }
        if let Some(seconds) = positive("keepalives_interval", 5)? {
            config.keepalives_interval(Duration::from_secs(seconds.into()));
        }
        if let Some(count) = positive("keepalives_count", 3)? {
            config.keepalives_retries(count);
        }
        if let Some(milliseconds) = positive("tcp_user_timeout", 10_000)? {
            config.tcp_user_timeout(Duration::from_millis(milliseconds.into()));
        }
        config.keepalives(self.number("keepalives")? != Some(0));
        Ok(())
    }

    fn trust(&self) -> Result<(SslMode, RootCertificates), String> {
        let roots = match self.text("sslrootcert") {
            Some("system") => RootCertificates::System,
            Some(file) => RootCertificates::File(file.into()),
            None => std::env::var_os("HOME").filter(|home| !home.is_empty()).map_or(RootCertificates::None, |home| {
                RootCertificates::Home(PathBuf::from(home).join(".postgresql/root.crt"))
            }),
        };
        // Anybody can get a certificate that the system trusts, so only the name proves anything (libpq has it so too).
        let is_system = roots == RootCertificates::System;
        let default = if is_system { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = self.choice("sslmode", &SslMode::WORDS, default)?;
        if is_system && mode != SslMode::VerifyFull {
            return Err("sslrootcert=system: expected sslmode=verify-full with it".to_owned());
        }
        Ok((mode, roots))
    }

    fn places(&self) -> Result<Vec<Place>, String> {
        let (hosts, addresses, ports) = (self.list("host"), self.list("hostaddr"), self.list("port"));
        let count = hosts.len().max(addresses.len()).max(1);
        for (key, list) in [("host", &hosts), ("hostaddr", &addresses)] {
            if !list.is_empty() && list.len() != count {
                return Err(format!("{key}: {} given, expected {count}: one for each host", list.len()));
            }
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(format!("port: {} given, expected one, or {count}: one for each host", ports.len()));
        }
        let place = |index: usize| {
            let host = hosts.get(index).filter(|host| !host.is_empty());
            let address = addresses.get(index).filter(|address| !address.is_empty());
            let address = address.map(|address| {
                address.parse().map_err(|_| format!("hostaddr={address}: expected the address of a host"))
            });
            let port = ports.get(index).or(ports.first()).filter(|port| !port.is_empty()).map_or(
                Ok(DEFAULT_PORT),
                |port| match port.parse() {
                    Ok(0) | Err(_) => Err("port: expected a number from 1 to 65535".to_owned()),
                    Ok(port) => Ok(port),
                },
            )?;
            Ok(Place { host: host.map(|host| (*host).to_owned()), address: address.transpose()?, port })
        };
        (0..count).map(place).collect()
    }
}

/// A key may be a piece of a password that was not quoted: only what looks like the name of an option is repeated.
fn unsupported(key: &str) -> String {
    let is_name = key.len() <= 32 && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let name = if is_name { key } else { "an option whose name is none" };
    format!("{name} is not supported; expected some of {SUPPORTED}")
}

/// `[user[:password]@][host][:port][,…][/dbname][?key=value[&…]]`, what `postgres://` is followed by.
fn url_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut push = |key: &str, encoded: &str| -> Result<(), String> {
        let value = percent_decoded(encoded).ok_or_else(|| format!("{key}: expected UTF-8 with % as %25"))?;
        pairs.push((key.to_owned(), value));
        Ok(())
    };
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    // An @ behind the first slash belongs to the database's name.
    let (authority, database) = text.split_once('/').unwrap_or((text, ""));
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    push("user", user)?;
    push("password", password)?;
    push("dbname", database)?;
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for item in hosts.split(',') {
        let (name, port) = host_and_port(item)?;
        names.push(name);
        ports.push(port);
    }
    push("host", &names.join(","))?;
    push("port", &ports.join(","))?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').ok_or("an option without = after the ?")?;
        let key = percent_decoded(key).ok_or("an option whose name is not UTF-8")?;
        push(&key, value)?;
    }
    Ok(pairs)
}

fn host_and_port(item: &str) -> Result<(&str, &str), String> {
    let (name, rest) = match item.strip_prefix('[') {
        Some(inside) => inside.split_once(']').ok_or("host: expected ] after an IPv6 address")?,
        None => item.split_at(item.find(':').unwrap_or(item.len())),
    };
    match rest.strip_prefix(':') {
        Some(port) => Ok((name, port)),
        None if rest.is_empty() => Ok((name, "")),
        None => Err("host: expected :PORT or nothing after ]".to_owned()),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().filter(|byte| *byte != 0)?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// `key = value` pairs; a value with spaces stands in single quotes, and a backslash takes the next character as it is.
fn keyword_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|character: char| character == '=' || character.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            // The word itself may be the second half of a password.
            let place = pairs.last().map_or("at the beginning".to_owned(), |(key, _)| format!("after {key}"));
            return Err(format!(
                "a word without = {place}: expected postgres://… or key=value, values with spaces in '…'"
            ));
        };
        if key.is_empty() {
            return Err("= without an option's name before it".to_owned());
        }
        let (value, after) = keyword_value(after.trim_start()).ok_or_else(|| format!("{key}: expected a closing '"))?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The value at the beginning of the text, and what follows it; `None` where a quote is left open.
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
