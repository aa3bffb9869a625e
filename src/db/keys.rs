//! API keys in the database, which stores only their SHA-256.

use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::{Connection, Error};
use crate::error::{self, Doing as _};
use crate::event::EventTime;

/// Whether a row of the key table is live.
pub(super) const LIVE: &str = "revoked_at is null and (expires_at is null or expires_at > clock_timestamp())";

pub(crate) type KeyHash = [u8; 32];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub id: i64,
    /// The name it was minted under; several rows may have it over time, and during a rotation.
    pub name: String,
    pub hash: KeyHash,
    pub created_at: EventTime,
    pub expires_at: Option<EventTime>,
    pub revoked_at: Option<EventTime>,
    /// How much later than others it gets events; zero for most keys.
    pub delay: Duration,
    /// When it was last used; recorded every few seconds.
    pub last_used_at: Option<EventTime>,
}

/// Whether a key opens the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeyState {
    Live,
    Expired,
    Revoked,
}

impl Key {
    pub(crate) fn state(&self, now: EventTime) -> KeyState {
        if self.revoked_at.is_some_and(|at| at <= now) {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|at| at <= now) {
            KeyState::Expired
        } else {
            KeyState::Live
        }
    }
}

/// Reads all keys, oldest first, and the database's clock.
///
/// # Errors
/// See [`Error`]; [`Error::Incomplete`] while a restore has yet to add the primary key, which it does after the keys.
pub(crate) fn read_all(connection: &mut Connection) -> Result<(Vec<Key>, EventTime), Error> {
    let rows = connection.query(
        "select k.id, k.name, k.key_sha256, k.created_at, k.expires_at, k.revoked_at, \
                (extract(epoch from k.delay) * 1000000)::bigint, k.last_used_at, t.now, t.has_primary_key \
         from (select clock_timestamp() as now, \
                      exists (select from pg_catalog.pg_constraint \
                              where conrelid = 'stock_market.signal_feed_api_key'::pg_catalog.regclass \
                                and contype = 'p') as has_primary_key) as t \
         left join stock_market.signal_feed_api_key as k on true order by k.id",
        &[],
    )?;
    let first = rows.first().ok_or(Error::Closed)?;
    if !first.try_get(9)? {
        return Err(Error::Incomplete("the keys have no primary key yet: a restore is not complete".into()));
    }
    let now = first.try_get(8)?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(id) = row.try_get(0)? else { continue };
        let hash: &[u8] = row.try_get(2)?;
        keys.push(Key {
            id,
            name: row.try_get(1)?,
            hash: hash.try_into().unwrap_or_default(),
            created_at: row.try_get(3)?,
            expires_at: row.try_get(4)?,
            revoked_at: row.try_get(5)?,
            delay: Duration::from_micros(u64::try_from(row.try_get::<_, i64>(6)?).unwrap_or(0)),
            last_used_at: row.try_get(7)?,
        });
    }
    Ok((keys, now))
}

/// Reads the secret that signs session cookies.
pub(crate) fn read_session_secret(connection: &mut Connection) -> Result<Vec<u8>, Error> {
    Ok(connection.query_one("select secret from signal_feed_private.signal_feed_session_secret", &[])?.try_get(0)?)
}

/// Adds a key unless a live one has its name. Returns whether it did.
pub(crate) fn insert(
    connection: &mut Connection,
    name: &str,
    hash: &KeyHash,
    expires_in: Option<Duration>,
    delay: Duration,
) -> Result<bool, error::Error> {
    add(
        connection,
        "mint a key",
        &format!(
            "insert into stock_market.signal_feed_api_key (name, key_sha256, expires_at, delay) \
             select $1, $2, clock_timestamp() + $3::float8 * interval '1 second', $4::float8 * interval '1 second' \
             where not exists (select from stock_market.signal_feed_api_key where name = $1 and {LIVE})"
        ),
        &[&name, &hash.as_slice(), &expires_in.map(|d| d.as_secs_f64()), &delay.as_secs_f64()],
    )
}

/// Revokes every live key of a name. Returns how many there were.
pub(crate) fn revoke(connection: &mut Connection, name: &str) -> Result<u64, Error> {
    let sql = "update stock_market.signal_feed_api_key set revoked_at = clock_timestamp() where name = $1 and";
    connection.execute(&format!("{sql} {LIVE}"), &[&name])
}

/// Adds a new key beside the newest live one of a name, with its delay and, unless `expires_in` says otherwise, its
/// lifetime counted from now; every live one ends after `overlap`, never later than it would have. Returns whether
/// there was one.
pub(crate) fn rotate(
    connection: &mut Connection,
    name: &str,
    hash: &KeyHash,
    overlap: Duration,
    expires_in: Option<Duration>,
) -> Result<bool, error::Error> {
    add(
        connection,
        "rotate a key",
        &format!(
            "with live as ( \
                 select id, name, expires_at, expires_at - created_at as lifetime, delay \
                 from stock_market.signal_feed_api_key where name = $1 and {LIVE} \
             ), ended as ( \
                 update stock_market.signal_feed_api_key as k \
                 set expires_at = least(k.expires_at, clock_timestamp() + $4::float8 * interval '1 second') \
                 from live where k.id = live.id \
             ) \
             insert into stock_market.signal_feed_api_key (name, key_sha256, expires_at, delay) \
             select name, $2, clock_timestamp() + coalesce($3::float8 * interval '1 second', lifetime), delay \
             from live order by id desc limit 1"
        ),
        &[&name, &hash.as_slice(), &expires_in.map(|d| d.as_secs_f64()), &overlap.as_secs_f64()],
    )
}

pub(crate) fn record_use(connection: &mut Connection, ids: &[i64]) -> Result<(), Error> {
    connection.execute(
        "update stock_market.signal_feed_api_key set last_used_at = clock_timestamp() where id = any($1)",
        &[&ids],
    )?;
    Ok(())
}

/// Runs a statement that adds at most one key, in a transaction that other mints wait for, so that two of one name cannot
/// both succeed. Readers of the table do not wait. Returns whether it added one.
fn add(
    connection: &mut Connection,
    doing: &str,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<bool, error::Error> {
    let lock = "begin; lock table stock_market.signal_feed_api_key in share row exclusive mode";
    let outcome = connection.batch(lock).and_then(|()| connection.execute(sql, parameters));
    let end = connection.batch(if outcome.is_ok() { "commit" } else { "rollback" });
    let added = outcome.doing(doing)?;
    end.doing(format!(
        "{doing}: the new key may be live but was not shown (see key list; end it with key revoke, or replace it with \
         key rotate)"
    ))?;
    Ok(added == 1)
}
