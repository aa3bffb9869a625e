//! From a write of `signal` to the log: what is captured, in which order, and that nobody can interfere.

use postgres::{Client, NoTls};

use crate::support::database::Database;

mod any_table;
mod attacks;
mod crash;
mod interleavings;
mod order;
mod replication;
mod rights;
mod transactions;

const SIGNAL: &str = "insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY')";

/// A database with the feed, and a session of its superuser.
fn migrated() -> (Database, Client) {
    let database = Database::migrated();
    let client = database.connect();
    (database, client)
}

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

/// The log as `number op symbol`, one a line.
fn log(client: &mut Client) -> Vec<String> {
    client
        .query("select format('%s %s %s', feed_seq, op, signal ->> 'symbol') from stock_market.signal_feed_event order by feed_seq", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// The invariants of the log that hold at any moment, in any snapshot.
fn assert_whole(client: &mut Client) {
    let row = client
        .query_one(
            "select count(*), coalesce(max(feed_seq), 0), coalesce(min(feed_seq), 1),
                (select value from stock_market.signal_feed_counter),
                (select count(*) from (select event_time < lag(event_time) over (order by feed_seq) as back
                    from stock_market.signal_feed_event) as t where back)
            from stock_market.signal_feed_event",
            &[],
        )
        .unwrap();
    let [rows, last, first, counter, back] = [0, 1, 2, 3, 4].map(|column| row.get::<_, i64>(column));
    assert_eq!((rows, first, counter, back), (last, 1, last, 0));
}

/// A commit leaves nothing behind.
fn assert_nothing_left(client: &mut Client) {
    let left = "select (select count(*) from signal_feed_private.signal_feed_outbox)
        + (select count(*) from signal_feed_private.signal_feed_first)";
    assert_eq!(count(client, left), 0);
}

/// A login with rights only on `signal`, in a database for one test.
struct Screener {
    database: Database,
    name: String,
}

impl Screener {
    fn new(setup: &str) -> Self {
        let database = Database::empty();
        let name = format!("{}_screener", database.name);
        let mut client = database.connect();
        client
            .batch_execute(&format!(
                "create role {name} login; create schema stock_market; grant usage on schema stock_market to {name}"
            ))
            .unwrap();
        client.batch_execute(&setup.replace("SCREENER", &name)).unwrap();
        database.migrate();
        client
            .batch_execute(&format!("grant select, insert, update, delete on stock_market.signal to {name}"))
            .unwrap();
        Self { database, name }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.database.url_as(&self.name), NoTls).unwrap()
    }
}

impl Drop for Screener {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.database.url, NoTls) {
            let _ = client.batch_execute(&format!("drop owned by {0} cascade; drop role {0}", self.name));
        }
    }
}
