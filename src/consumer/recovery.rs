//! Reads what the stream cannot deliver any more from the database, in one snapshot.

use std::time::Duration;

use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};

/// Longest time for the snapshot: it may read a whole table without an index.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(600);
/// How long before the last event the search begins: writers' clocks differ, and a transaction may be long.
const OVERLAP: &str = "1 hour";

#[derive(Debug, Clone)]
pub(crate) struct Recovery {
    /// The database, for the role `signal_feed_bot`.
    pub(crate) database: Settings,
    /// Rows created or updated this long ago or later; further back if the bot has missed more.
    pub(crate) lookback: Duration,
}

pub(super) struct Snapshot {
    pub(super) feed_id: String,
    /// Where the stream continues.
    pub(super) cursor: i64,
    /// The rows of `signal`, oldest first.
    pub(super) rows: Vec<String>,
}

/// Reads the rows within the look-back, and further back if events were missed since `missed_since`, an instant.
/// Blocks. `Err` if the database cannot be asked, or would not show every row.
pub(super) fn read_snapshot(recovery: &Recovery, missed_since: Option<&str>) -> Result<Snapshot, Error> {
    let mut connection = Connection::open(&recovery.database, "trader-bot").doing("connect to the database")?;
    connection.set_deadline(SNAPSHOT_PATIENCE);
    // The log renders rows under the same settings. Row security that would hide rows must be an error.
    let settings = format!(
        "set statement_timeout = {}; set row_security = off; set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; \
         set extra_float_digits = 1; set bytea_output = 'hex'; begin isolation level repeatable read read only",
        SNAPSHOT_PATIENCE.as_millis()
    );
    connection.batch(&settings).doing("begin the snapshot")?;
    check_columns(&mut connection)?;
    let feed_id = connection
        .query_one("select feed_id::text from stock_market.signal_feed_identity", &[])
        .doing("read the identity of the log")?
        .get(0);
    // The counter is above the log only after `signal-feed restored` skipped numbers. A cursor in the skipped range
    // gets `history_rewritten`; the log's last event is a good cursor.
    let sql = "select coalesce((select max(feed_seq) from stock_market.signal_feed_event), \
                               (select max(value) from stock_market.signal_feed_counter))";
    let cursor: Option<i64> = connection.query_one(sql, &[]).doing("read the counter")?.get(0);
    let cursor = cursor.ok_or_else(|| Error::Failed("recovery: the counter has no row".to_owned()))?;
    // json, not jsonb: no row's content makes it fail.
    let sql = format!(
        "select row_to_json(s)::text from stock_market.signal s, \
                (select least(now() - make_interval(secs => $1), $2::text::timestamptz - interval '{OVERLAP}') as since) w \
          where s.created_at >= w.since or s.updated_at >= w.since \
          order by s.created_at, s.id"
    );
    let lookback = recovery.lookback.as_secs_f64();
    let rows = connection.query(&sql, &[&lookback, &missed_since]).doing("read the signals")?;
    let rows = rows.iter().filter_map(|row| row.get(0)).collect();
    connection.batch("rollback").doing("end the snapshot")?;
    Ok(Snapshot { feed_id, cursor, rows })
}

/// Checks the columns that recovery needs. Times without a zone would depend on the reader's settings.
fn check_columns(connection: &mut Connection) -> Result<(), Error> {
    let sql = "select c.name, a.attnum is not null, \
                      c.is_time and coalesce(nullif(t.typbasetype, 0), t.oid) is distinct from 'timestamptz'::regtype::oid \
               from (values ('id', false), ('action', false), ('created_at', true), ('updated_at', true)) c (name, is_time) \
               left join pg_catalog.pg_attribute a on a.attrelid = to_regclass('stock_market.signal') \
                    and a.attname = c.name and a.attnum > 0 and not a.attisdropped \
               left join pg_catalog.pg_type t on t.oid = a.atttypid";
    for row in connection.query(sql, &[]).doing("read the columns of stock_market.signal")? {
        let (column, exists, has_no_zone): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if !exists {
            return Err(Error::Failed(format!("recovery needs a column {column} in stock_market.signal")));
        }
        if has_no_zone {
            return Err(Error::Failed(format!(
                "recovery needs stock_market.signal.{column} to be of type timestamp with time zone"
            )));
        }
    }
    Ok(())
}
