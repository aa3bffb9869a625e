//! Random transactions beside each other and a reader who polls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::{Client, Error};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::support::database::Database;

use super::{assert_nothing_left, assert_whole, count};

const WRITERS: usize = 4;
const ROUNDS: usize = 12;
const TRANSACTIONS: usize = 6;

/// One step of a writer's transaction.
#[derive(Debug, Clone)]
enum Step {
    Insert(u8),
    Update,
    Upsert,
    Copy,
    Merge,
    NoOp,
    Delete,
    Savepoint(Vec<Step>, bool),
    Failing,
    Immediate,
}

/// How a transaction is run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Flavour {
    Plain,
    RepeatableRead,
    Serializable,
    Asynchronous,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
    /// Refused after a signal was written: then as a rollback.
    Prepare,
}

type Plan = (Vec<Step>, Flavour, End);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leaf = prop_oneof![
        4 => (1..4_u8).prop_map(Step::Insert),
        3 => Just(Step::Update),
        2 => Just(Step::Upsert),
        1 => Just(Step::Copy),
        1 => Just(Step::Merge),
        1 => Just(Step::NoOp),
        1 => Just(Step::Delete),
        1 => Just(Step::Failing),
        1 => Just(Step::Immediate),
    ];
    prop::collection::vec(
        leaf.prop_recursive(2, 8, 4, |inner| {
            (prop::collection::vec(inner, 1..4), any::<bool>()).prop_map(|(steps, keep)| Step::Savepoint(steps, keep))
        }),
        1..6,
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let flavour = prop_oneof![
        3 => Just(Flavour::Plain), 1 => Just(Flavour::RepeatableRead), 1 => Just(Flavour::Serializable),
        1 => Just(Flavour::Asynchronous)
    ];
    let end = prop_oneof![8 => Just(End::Commit), 2 => Just(End::Rollback), 1 => Just(End::Prepare)];
    (steps(), flavour, end)
}

/// Which events a transaction should make, as `op id`, in the order of its writes.
type Events = Vec<String>;

/// Runs a statement that returns the ids it wrote.
fn write(client: &mut Client, op: &str, sql: &str) -> Result<Events, Error> {
    Ok(client.query(sql, &[])?.iter().map(|row| format!("{op} {}", row.get::<_, i64>(0))).collect())
}

/// Makes the steps in an open transaction. `tag` names the transaction in its rows, `mine` the writer.
fn take(client: &mut Client, steps: &[Step], tag: &str, mine: usize) -> Result<Events, Error> {
    let mut events = Events::new();
    let columns = "(symbol, action, side, quantity)";
    for step in steps {
        match step {
            Step::Insert(rows) => events.extend(write(
                client,
                "INSERT",
                &format!(
                    "insert into stock_market.signal {columns}
                    select '{tag}', 'entry', 'BUY', {mine} from generate_series(1, {rows}) returning id"
                ),
            )?),
            Step::Update => events.extend(write(
                client,
                "UPDATE",
                &format!(
                    "update stock_market.signal set price = coalesce(price, 0) + 1, symbol = '{tag}'
                    where id in (select id from stock_market.signal where quantity = {mine} order by id desc limit 2) returning id"
                ),
            )?),
            Step::Upsert => {
                // The row is there, or made now by the same statement.
                let there = format!("select from stock_market.signal where id = -{mine} - 1");
                let op = if client.query_opt(&there, &[])?.is_some() { "UPDATE" } else { "INSERT" };
                events.extend(write(
                    client,
                    op,
                    &format!(
                        "insert into stock_market.signal (id, symbol, action, side, quantity)
                        values (-{mine} - 1, '{tag}', 'entry', 'BUY', {mine})
                        on conflict (id) do update set symbol = '{tag}', price = coalesce(signal.price, 0) + 1 returning id"
                    ),
                )?);
            }
            Step::Copy => {
                let mut copy = client.copy_in(&format!("copy stock_market.signal {columns} from stdin"))?;
                std::io::Write::write_all(&mut copy, format!("{tag}\tentry\tBUY\t{mine}\n").as_bytes()).unwrap();
                copy.finish()?;
                events.extend(write(
                    client,
                    "INSERT",
                    &format!("select max(id) from stock_market.signal where quantity = {mine}"),
                )?);
            }
            Step::Merge => {
                // Before PostgreSQL 15 there is none; there the same is an UPDATE.
                let version: i32 =
                    client.query_one("select current_setting('server_version_num')::integer", &[])?.get(0);
                let newest = format!("select max(id) as id from stock_market.signal where quantity = {mine}");
                client.batch_execute(&if version >= 150_000 {
                    format!(
                        "merge into stock_market.signal as s using ({newest}) as n on s.id = n.id
                        when matched then update set price = coalesce(s.price, 0) + 1, symbol = '{tag}'"
                    )
                } else {
                    format!(
                        "update stock_market.signal set price = coalesce(price, 0) + 1, symbol = '{tag}' where id = ({newest})"
                    )
                })?;
                events.extend(write(client, "UPDATE", &format!("select id from ({newest}) as n where id is not null"))?);
            }
            Step::NoOp => {
                client.batch_execute(&format!("update stock_market.signal set price = price where quantity = {mine}"))?;
            }
            Step::Delete => client.batch_execute(&format!(
                "delete from stock_market.signal where id = (select min(id) from stock_market.signal where quantity = {mine} and id > 0)"
            ))?,
            Step::Savepoint(inner, keep) => {
                client.batch_execute("savepoint s")?;
                let inner = take(client, inner, tag, mine)?;
                if *keep {
                    client.batch_execute("release s")?;
                    events.extend(inner);
                } else {
                    client.batch_execute("rollback to s; release s")?;
                }
            }
            Step::Failing => {
                client.batch_execute("savepoint f")?;
                let wrong = format!("insert into stock_market.signal {columns} values ('x', 'entry', 'BUY', 0), ('x', 'wrong', 'BUY', 0)");
                client.batch_execute(&wrong).unwrap_err();
                client.batch_execute("rollback to f; release f")?;
            }
            Step::Immediate => client.batch_execute("set constraints all immediate")?,
        }
    }
    Ok(events)
}

/// Runs a transaction until it ends as planned, and returns the events that it should have made.
fn run(client: &mut Client, (steps, flavour, end): &Plan, tag: &str, mine: usize) -> Events {
    let begin = match flavour {
        Flavour::Plain => "begin",
        Flavour::RepeatableRead => "begin isolation level repeatable read",
        Flavour::Serializable => "begin isolation level serializable",
        Flavour::Asynchronous => "begin; set local synchronous_commit = off",
    };
    loop {
        let outcome =
            client.batch_execute(begin).and_then(|()| take(client, steps, tag, mine)).and_then(|events| match end {
                End::Commit => client.batch_execute("commit").map(|()| events),
                End::Rollback => client.batch_execute("rollback").map(|()| Events::new()),
                End::Prepare => {
                    // PostgreSQL refuses it once the transaction has notified, and rolls back.
                    let prepared = client.batch_execute(&format!("prepare transaction '{tag}'"));
                    match prepared {
                        Ok(()) => {
                            assert_eq!(events, Events::new());
                            client.batch_execute(&format!("rollback prepared '{tag}'"))?;
                        }
                        Err(error) if error.code().map(|code| code.code()) == Some("0A000") => {
                            assert_ne!(events, Events::new(), "{error:?}");
                            client.batch_execute("rollback")?;
                        }
                        Err(error) => return Err(error),
                    }
                    Ok(Events::new())
                }
            });
        match outcome {
            Ok(events) => return events,
            Err(error) => {
                // Only the strict levels may have to try again.
                assert_eq!(error.code().map(|code| code.code()), Some("40001"), "{error:?}");
                assert!(matches!(flavour, Flavour::RepeatableRead | Flavour::Serializable));
                client.batch_execute("rollback").unwrap();
            }
        }
    }
}

/// A reader that sees n sees every event below n, in every snapshot. Returns the head it saw last.
fn poll(database: &Database, before: i64, done: &AtomicBool) -> i64 {
    let mut client = database.connect();
    let mut head = before;
    loop {
        let last = done.load(Ordering::Acquire);
        let news = "select feed_seq from stock_market.signal_feed_event where feed_seq > $1 order by feed_seq";
        for row in client.query(news, &[&head]).unwrap() {
            assert_eq!(row.get::<_, i64>(0), head + 1);
            head += 1;
        }
        if last {
            return head;
        }
    }
}

#[test]
fn random_interleavings_keep_the_log_whole_for_a_reader_who_polls() {
    let cluster = signal_feed::demo::postgres::PrivatePostgres::start(&[("max_prepared_transactions", "10")]).unwrap();
    let database = Database::migrated_in(&cluster);
    let mut client = database.connect();
    client.batch_execute("create index on stock_market.signal (quantity)").unwrap();
    let mut runner = TestRunner::new(Config { cases: 1, failure_persistence: None, ..Config::default() });
    for round in 0..ROUNDS {
        let plans: Vec<Vec<Plan>> = (0..WRITERS)
            .map(|_| prop::collection::vec(plan(), TRANSACTIONS).new_tree(&mut runner).unwrap().current())
            .collect();
        let before = count(&mut client, "select value from stock_market.signal_feed_counter");
        let done = AtomicBool::new(false);
        let mut expected: Vec<(String, Events)> = Vec::new();
        let head = thread::scope(|scope| {
            let reader = scope.spawn(|| poll(&database, before, &done));
            let writers: Vec<_> = plans
                .iter()
                .enumerate()
                .map(|(writer, plans)| {
                    let database = &database;
                    scope.spawn(move || {
                        let mut client = database.connect();
                        let tags = (0..plans.len()).map(|number| format!("{round}-{writer}-{number}"));
                        tags.zip(plans)
                            .map(|(tag, plan)| (tag.clone(), run(&mut client, plan, &tag, writer)))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            expected.extend(writers.into_iter().flat_map(|writer| writer.join().unwrap()));
            done.store(true, Ordering::Release);
            reader.join().unwrap()
        });
        let made: usize = expected.iter().map(|(_, events)| events.len()).sum();
        assert_eq!(head, before + i64::try_from(made).unwrap(), "{plans:?}");
        for (tag, events) in expected {
            let logged = "select format('%s %s', op, signal ->> 'id'), feed_seq from stock_market.signal_feed_event
                where signal ->> 'symbol' = $1 order by feed_seq";
            let rows = client.query(logged, &[&tag]).unwrap();
            let logged: Events = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(logged, events, "{tag}: {plans:?}");
            // A transaction's events stand together.
            let numbers: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
            assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        }
    }
    assert_whole(&mut client);
    assert_nothing_left(&mut client);
}
