//! The connection whose every call has a deadline.

use std::time::{Duration, Instant};

use signal_feed::db::{Connection, Error, Settings};

use crate::support::database::Database;

#[test]
fn a_call_that_is_not_answered_ends_at_its_deadline_and_the_connection_is_not_used_again() {
    let database = Database::empty();
    let settings: Settings = database.url.parse().unwrap();
    let mut connection = Connection::open(&settings, "test").unwrap();
    let pid: i32 = connection.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let kill = |signal: &str| {
        assert!(std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    };
    connection.set_deadline(Duration::from_millis(300));
    kill("-STOP");
    let began = Instant::now();
    let outcome = connection.query("select 1", &[]);
    kill("-CONT");
    assert!(matches!(outcome, Err(Error::TimedOut(_))), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(connection.is_lost());
    assert!(matches!(connection.query("select 1", &[]), Err(Error::Closed)));
}

#[test]
fn a_failed_statement_leaves_the_connection_usable_and_names_the_whole_cause() {
    let database = Database::empty();
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    let error = connection.query("select 1 / 0", &[]).unwrap_err();
    assert_eq!(error.to_string(), "division by zero (SQLSTATE 22012)");
    assert!(error.is_fault_of_data());
    assert!(!connection.is_lost());
    assert_eq!(connection.query_one("select 2", &[]).unwrap().get::<_, i32>(0), 2);
}

#[test]
fn a_session_that_was_exchanged_is_named_as_a_poolers_doing_and_is_no_fault_of_data() {
    let database = Database::empty();
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    connection.query("select 1", &[]).unwrap();
    connection.batch("deallocate all").unwrap();
    let error = connection.query("select 1", &[]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("26000") && text.contains("PgBouncer in transaction mode"), "{text}");
    assert!(!error.is_fault_of_data());
}

#[test]
fn notifications_arrive_while_waiting_and_while_querying() {
    let database = Database::empty();
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    connection.batch("listen news").unwrap();
    let mut other = database.connect();
    other.batch_execute("notify news, 'one'").unwrap();
    let heard = connection.wait_notification(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!((heard.channel(), heard.payload()), ("news", "one"));
    other.batch_execute("notify news, 'two'").unwrap();
    connection.query("select 1", &[]).unwrap();
    assert_eq!(connection.wait_notification(Duration::from_secs(10)).unwrap().unwrap().payload(), "two");
    assert!(connection.wait_notification(Duration::from_millis(1)).unwrap().is_none());
}

#[test]
fn a_session_that_the_server_has_ended_is_an_error_at_once_and_not_at_the_deadline() {
    let database = Database::empty();
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    let pid: i32 = connection.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let mut other = database.connect();
    other.execute("select pg_terminate_backend($1)", &[&pid]).unwrap();
    crate::support::wait::until("the session is gone", || {
        let rows = other.query("select from pg_stat_activity where pid = $1", &[&pid]).unwrap();
        rows.is_empty().then_some(())
    });
    let began = Instant::now();
    let error = connection.query("select 1", &[]).unwrap_err();
    // The deadline is 10 s.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}: {error}", began.elapsed());
    assert!(error.to_string().contains("57P01"), "{error}");
    assert!(connection.is_lost());
}
