//! Recovery: what the stream cannot bring any more is read from the database, in one snapshot, and caught up with.

use std::time::Duration;

use super::bot::{Acted, Bot, Halt, Unsent};
use super::clock;
use super::follow::{Follower, Happening};
use super::message::Connected;
use super::order::Signal;
use super::state::Mode;
use super::stream::Cursor;
use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};
use serde_json::value::RawValue;

/// The snapshot may read a whole table without a fitting index.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(600);
/// Clocks of writers differ, and a transaction may be long: the rows are looked for from this much before the last event.
const OVERLAP: &str = "1 hour";
/// What recovery cannot do without.
const COLUMNS: [&str; 4] = ["id", "action", "created_at", "updated_at"];

/// Where to catch up from, and how far back.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The database, for the role `signal_feed_bot`.
    pub database: Settings,
    /// Rows created or updated this long ago or later; further back where the bot has missed more.
    pub lookback: Duration,
}

struct Snapshot {
    feed_id: String,
    cursor: i64,
    rows: Vec<String>,
}

/// Catches up, and leaves close-only mode. What the journal knows is not placed again, so it may be repeated.
pub(super) fn run(bot: &mut Bot<'_>, recovery: &Recovery) -> Result<(), Halt> {
    // An outcome that is unknown is asked for before anything is sent; what was not sent waits for the snapshot.
    bot.settle(None, Unsent::Keep)?;
    let connected = read_connected(bot)?;
    if connected.has_delay {
        return Err(Error::Failed("recovery is for keys without a delay, and this one has one".to_owned()).into());
    }
    bot.bind(connected.feed_id.as_deref())?;
    let missed_since = match &bot.state.mode {
        Mode::CloseOnly { missed_since, .. } => Some(missed_since.clone()),
        // The cursor jumps to the snapshot, so a bot that was away for longer than the look-back reaches back to its last event.
        Mode::Normal => bot.journal.ledger().last_event_time.clone().filter(|time| clock::instant(time).is_some()),
    };
    let snapshot = read_snapshot(recovery, missed_since)?;
    if connected.feed_id.as_ref().is_some_and(|feed_id| *feed_id != snapshot.feed_id) {
        let feed_id = connected.feed_id.unwrap_or_default();
        let message =
            format!("this feed streams the log {feed_id}, but the database holds the log {}", snapshot.feed_id);
        return Err(Error::Failed(message).into());
    }
    bot.bind(Some(&snapshot.feed_id))?;
    log::info!("recovery: {} rows to look at, then the stream after {}", snapshot.rows.len(), snapshot.cursor);
    bot.is_recovering = true;
    bot.settle(None, Unsent::Send)?;
    for row in &snapshot.rows {
        dispatch(bot, row)?;
    }
    let cursor = Cursor { feed_seq: snapshot.cursor, event_time: None };
    bot.set_mode(Mode::Normal, Some(cursor.clone()))?;
    bot.is_recovering = false;
    bot.follower.acknowledge(cursor);
    log::info!("recovery succeeded: entries and exits are placed");
    Ok(())
}

fn read_connected(bot: &mut Bot<'_>) -> Result<Connected, Halt> {
    let mut follower = Follower::new(&bot.options.follow, None, bot.stop.clone());
    loop {
        match follower.next_happening().map_err(|end| bot.unauthorized_or_stopped(end))? {
            Happening::Connected(connected) => return Ok(connected),
            Happening::Interrupted(interruption) => bot.interrupted(&interruption),
            _ => {}
        }
    }
}

fn dispatch(bot: &mut Bot<'_>, row: &str) -> Result<(), Halt> {
    if bot.stop.is_asked() {
        return Err(Halt::Stopped);
    }
    let raw = RawValue::from_string(row.to_owned());
    let signal = match raw.map_err(|error| error.to_string()).and_then(|raw| Signal::from_row(&raw)) {
        Ok(signal) => signal,
        Err(why) => return Ok(bot.unusable(None, &format!("a row that recovery found: {why}"), row)?),
    };
    let made_at = signal.updated_at.as_deref().or(signal.created_at.as_deref()).and_then(clock::instant);
    let circumstances = bot.circumstances(false, made_at);
    match bot.act(&signal, signal.order(None, None), &circumstances, None)? {
        Acted::Done { .. } => Ok(()),
        Acted::Wait(trouble) => bot.settle(Some(trouble), Unsent::Send),
        Acted::Ask => bot.settle(None, Unsent::Send),
    }
}

fn read_snapshot(recovery: &Recovery, missed_since: Option<String>) -> Result<Snapshot, Error> {
    let mut connection = Connection::open(&recovery.database, "trader-bot").doing("connect to the database")?;
    connection.set_deadline(SNAPSHOT_PATIENCE);
    // The log renders rows under these settings too. Row security that would hide rows shall be an error.
    let settings = format!(
        "set statement_timeout = {}; set row_security = off; set datestyle = 'ISO'; set intervalstyle = 'postgres'; \
         set extra_float_digits = 1; set bytea_output = 'hex'; begin isolation level repeatable read read only",
        SNAPSHOT_PATIENCE.as_millis()
    );
    connection.batch(&settings).doing("begin the snapshot")?;
    check_columns(&mut connection)?;
    let feed_id = connection
        .query_one("select feed_id::text from stock_market.signal_feed_identity", &[])
        .doing("read the identity of the log")?
        .get(0);
    let cursor = read_cursor(&mut connection)?;
    let rows = read_rows(&mut connection, recovery, missed_since)?;
    connection.batch("rollback").doing("end the snapshot")?;
    Ok(Snapshot { feed_id, cursor, rows })
}

fn check_columns(connection: &mut Connection) -> Result<(), Error> {
    let sql = "select attname::text from pg_catalog.pg_attribute \
               where attrelid = to_regclass('stock_market.signal') and attnum > 0 and not attisdropped";
    let rows = connection.query(sql, &[]).doing("read the columns of stock_market.signal")?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let missing: Vec<&str> = COLUMNS.into_iter().filter(|column| !found.iter().any(|name| name == column)).collect();
    if found.is_empty() {
        return Err(Error::Failed("recovery: there is no table stock_market.signal in this database".to_owned()));
    }
    if !missing.is_empty() {
        return Err(Error::Failed(format!("recovery: stock_market.signal lacks {}", missing.join(", "))));
    }
    Ok(())
}

fn read_cursor(connection: &mut Connection) -> Result<i64, Error> {
    // The counter stands above the log only where `signal-feed restored` has skipped numbers: there a cursor in the
    // skipped range would be told that history was rewritten, while the log's last event is a good one.
    let sql = "select coalesce((select max(feed_seq) from stock_market.signal_feed_event), \
                               (select max(value) from stock_market.signal_feed_counter))";
    let row = connection.query_one(sql, &[]).doing("read the counter")?;
    row.get::<_, Option<i64>>(0).ok_or_else(|| Error::Failed("recovery: the counter has no row".to_owned()))
}

fn read_rows(
    connection: &mut Connection,
    recovery: &Recovery,
    missed_since: Option<String>,
) -> Result<Vec<String>, Error> {
    // As json and not jsonb: no row's content makes it fail.
    let sql = format!(
        "select row_to_json(s)::text from stock_market.signal s, \
                (select least(now() - make_interval(secs => $1), $2::text::timestamptz - interval '{OVERLAP}') as since) w \
          where s.created_at >= w.since or s.updated_at >= w.since \
          order by s.created_at, s.id"
    );
    let lookback = recovery.lookback.as_secs_f64();
    let rows = connection.query(&sql, &[&lookback, &missed_since]).doing("read the signals")?;
    Ok(rows.iter().filter_map(|row| row.get(0)).collect())
}
