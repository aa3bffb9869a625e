//! API keys in memory, which the thread `upkeep` keeps fresh.
//!
//! The server never refuses a key on stale knowledge: a request with a key that is not known to be live waits for a
//! refresh that began after the request arrived. All waiting requests share one refresh, and refreshes begin at least
//! 100 ms apart, so a flood of wrong keys costs ten queries a second.
//!
//! A hot standby does not notify, so it is polled. It may lack a key that its primary has, so there the server never
//! calls a key unknown.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::client::Client;
use super::reason::End;
use super::{Channel, Feed};
use crate::db::keys::{Key, KeyHash, KeyState};
use crate::db::{self, Connection};
use crate::error::Error;
use crate::event::EventTime;
use crate::sync::lock;

/// How long a session cookie lasts: 7 days.
pub(crate) const SESSION_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a session token that are signed: the key's hash, and the session's end in PostgreSQL's microseconds. An
/// HMAC-SHA-256 of them follows.
const SIGNED_BYTES: usize = 32 + 8;

#[derive(Debug, Default)]
struct KnownKeys {
    by_hash: HashMap<KeyHash, Arc<Key>>,
    secret: Option<Vec<u8>>,
    /// When the newest completed refresh began.
    fresh_from: Option<Instant>,
    /// Whether it ran on a standby, which may not have replayed a key yet.
    is_standby: bool,
}

/// All keys, as the newest refresh found them.
#[derive(Debug)]
pub(crate) struct KeyRing {
    /// Locked to look up one credential, to list the keys, or to replace them all.
    known: Mutex<KnownKeys>,
    refreshed: Condvar,
    /// Asks the thread `upkeep` for a refresh.
    pub(super) wakes: Channel<()>,
}

/// How a request authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// The key; only its hash is kept.
    Key(KeyHash),
    Session(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    Unknown,
    /// The key or the session has expired.
    Expired,
    Revoked,
    /// Authentication is pending: memory does not accept it, but the database may.
    Pending,
}

impl Default for KeyRing {
    fn default() -> Self {
        Self { known: Mutex::default(), refreshed: Condvar::new(), wakes: Channel::bounded(1) }
    }
}

impl Credential {
    pub(crate) fn from_key(key: &str) -> Self {
        Self::Key(hash_of(key))
    }
}

impl KeyRing {
    /// Asks for a refresh; returns at once.
    pub(crate) fn ask_refresh(&self) {
        let _ = self.wakes.sender.try_send(());
    }

    /// Whether the keys have ever been read.
    pub(crate) fn is_filled(&self) -> bool {
        lock(&self.known).fresh_from.is_some()
    }

    /// Every key that is live, as memory has them. Never asks the database.
    pub(crate) fn live(&self, now: EventTime) -> Vec<Arc<Key>> {
        lock(&self.known).by_hash.values().filter(|key| key.state(now) == KeyState::Live).cloned().collect()
    }

    /// The key of a credential that arrived at `arrived`. Never asks the database.
    ///
    /// # Errors
    /// Why it is not accepted. If memory does not accept it, it is pending until a refresh that began after `arrived` has
    /// completed.
    pub(crate) fn check(&self, credential: &Credential, arrived: Instant, now: EventTime) -> Result<Arc<Key>, Denied> {
        let known = lock(&self.known);
        known.look(credential, now).map_err(|why| {
            let is_fresh = known.fresh_from.is_some_and(|from| from >= arrived);
            if is_fresh { why } else { Denied::Pending }
        })
    }

    /// The name of a credential's key, live or not, if memory has it. Never asks the database.
    pub(crate) fn name_of(&self, credential: &Credential) -> Option<String> {
        let known = lock(&self.known);
        let (hash, _) = known.hash_and_end(credential)?;
        known.by_hash.get(&hash).map(|key| key.name.clone())
    }

    /// Asks for a refresh, and waits for it, at most `patience`.
    pub(crate) fn wait_refreshed(&self, patience: Duration) {
        let known = lock(&self.known);
        self.ask_refresh();
        let _unused = self.refreshed.wait_timeout(known, patience);
    }

    /// A session token for a key, valid for [`SESSION_LASTS`]; `None` before the keys were first read.
    pub(crate) fn session_token(&self, key: &Key, now: EventTime) -> Option<String> {
        make_token(&key.hash, now.plus(SESSION_LASTS), lock(&self.known).secret.as_ref()?)
    }

    /// Tells a stream that its key has ended, or that its expiry has changed.
    pub(crate) fn tell(&self, client: &Client, now: EventTime) {
        let (key, is_standby) = {
            let known = lock(&self.known);
            // By its hash: a restore can give the number of a key to another one.
            (known.by_hash.get(&client.key.hash).cloned(), known.is_standby)
        };
        match (key, is_standby) {
            // If the feed has just switched to this standby, the key may not be replayed yet.
            (None, true) => {}
            // A deleted key counts as revoked.
            (None, false) => client.end(End::KeyRevoked),
            (Some(key), _) if key.state(now) == KeyState::Revoked => client.end(End::KeyRevoked),
            (Some(key), _) => client.set_expiry(key.expires_at),
        }
    }
}

impl KnownKeys {
    /// The hash of a credential's key, and when the session ends; `None` for a session that this log did not begin.
    fn hash_and_end(&self, credential: &Credential) -> Option<(KeyHash, EventTime)> {
        match credential {
            Credential::Key(hash) => Some((*hash, EventTime(i64::MAX))),
            Credential::Session(token) => read_token(token, self.secret.as_ref()?),
        }
    }

    /// The key of a credential, or why it is not accepted. A key that a standby lacks is pending: its primary may have it.
    fn look(&self, credential: &Credential, now: EventTime) -> Result<Arc<Key>, Denied> {
        let (hash, end) = self.hash_and_end(credential).ok_or(Denied::Unknown)?;
        let absent = if self.is_standby { Denied::Pending } else { Denied::Unknown };
        let key = self.by_hash.get(&hash).ok_or(absent)?;
        match key.state(now) {
            KeyState::Revoked => Err(Denied::Revoked),
            KeyState::Live if now < end => Ok(key.clone()),
            KeyState::Live | KeyState::Expired => Err(Denied::Expired),
        }
    }
}

/// Reads the keys, and tells every stream what became of its own. Blocks for a few queries. Returns whether the database
/// is a standby.
pub(super) fn refresh(feed: &Feed, connection: &mut Connection) -> Result<bool, db::Error> {
    let began = Instant::now();
    let reading = db::standby::read(connection)?;
    feed.set_clock(reading.now);
    let is_standby = reading.standby.is_some();
    let (keys, _) = db::keys::read_all(connection)?;
    let by_hash = keys.into_iter().map(|key| (key.hash, Arc::new(key))).collect();
    let secret = Some(db::keys::read_session_secret(connection)?);
    *lock(&feed.keys.known) = KnownKeys { by_hash, secret, fresh_from: Some(began), is_standby };
    feed.keys.refreshed.notify_all();
    for client in feed.clients.all().iter() {
        feed.keys.tell(client, reading.now);
    }
    Ok(is_standby)
}

fn make_token(hash: &KeyHash, end: EventTime, secret: &[u8]) -> Option<String> {
    let mut token = [&hash[..], &end.0.to_be_bytes()].concat();
    let signature = mac(&token, secret)?.finalize().into_bytes();
    token.extend_from_slice(&signature);
    Some(URL_SAFE_NO_PAD.encode(token))
}

fn read_token(token: &str, secret: &[u8]) -> Option<(KeyHash, EventTime)> {
    let token = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (signed, signature) = token.split_at_checked(SIGNED_BYTES)?;
    mac(signed, secret)?.verify_slice(signature).ok()?;
    let (hash, end) = signed.split_at(32);
    Some((hash.try_into().ok()?, EventTime(i64::from_be_bytes(end.try_into().ok()?))))
}

fn mac(signed: &[u8], secret: &[u8]) -> Option<Hmac<Sha256>> {
    Some(Hmac::new_from_slice(secret).ok()?.chain_update(signed))
}

/// A new key, `sf_` and 32 random bytes, and the hash that the database stores.
pub(crate) fn new_key() -> Result<(String, KeyHash), Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::Failed(format!("get random bytes: {error}")))?;
    let key = format!("sf_{}", URL_SAFE_NO_PAD.encode(bytes));
    let hash = hash_of(&key);
    Ok((key, hash))
}

fn hash_of(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_session_token_is_read_back_with_its_secret_alone() {
        let token = make_token(&[42; 32], EventTime(7), b"secret").unwrap();
        assert_eq!(read_token(&token, b"secret"), Some(([42; 32], EventTime(7))));
        assert_eq!(read_token(&token, b"another"), None);
    }

    #[test]
    fn a_changed_or_truncated_token_is_refused() {
        let token = make_token(&[42; 32], EventTime(7), b"secret").unwrap();
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(read_token(&String::from_utf8(changed).unwrap(), b"secret"), None);
            assert_eq!(read_token(&token[..at], b"secret"), None);
        }
    }

    proptest! {
        #[test]
        fn a_token_gives_back_its_contents_and_nothing_else_is_a_token(hash: [u8; 32], end: i64, secret: Vec<u8>, text: String) {
            let token = make_token(&hash, EventTime(end), &secret).unwrap();
            prop_assert_eq!(read_token(&token, &secret), Some((hash, EventTime(end))));
            prop_assert_eq!(read_token(&text, &secret), None);
            prop_assert_eq!(read_token(&format!("{token}{text}A"), &secret), None);
        }
    }
}
