//! The host that a connection string leads to; it must mean what it means in libpq, so the tests compare with `psql`.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use signal_feed::db::{Connection, Settings};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::standby::Standby;

/// What a session says of itself.
const SESSION: &str = "select concat_ws(' ', current_user, current_database(), current_setting('application_name'), \
    current_setting('work_mem'))";

fn ours(string: &str, question: &str) -> Result<String, String> {
    let settings: Settings = string.parse().map_err(|error: signal_feed::db::Error| error.to_string())?;
    let mut connection = Connection::open(&settings, "test").map_err(|error| error.to_string())?;
    Ok(connection.query_one(question, &[]).unwrap().get(0))
}

fn libpq(string: &str, question: &str) -> Result<String, String> {
    let mut psql = Command::new("psql");
    let output = psql.arg(string).args(["--no-psqlrc", "-Atc", question]).env("PGAPPNAME", "test").output().unwrap();
    let said = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(said(output.stdout)) } else { Err(said(output.stderr)) }
}

#[test]
fn every_way_to_write_a_connection_string_means_what_libpq_takes_it_to_mean() {
    let database = Database::empty();
    let (_, query) = database.url.split_once('?').unwrap();
    let directory = query.split('&').find_map(|pair| pair.strip_prefix("host=")).unwrap();
    let encoded = directory.replace('/', "%2F");
    let name = &database.name;
    database.sql(
        "do $$ begin create role \"o'hara @x\" login superuser; exception when duplicate_object then null; end $$",
    );
    for string in [
        format!("host={directory} dbname={name} user=postgres"),
        format!("  host = {directory}\tdbname='{name}' user = 'postgres'  application_name='my \\'feed\\''"),
        format!("host={directory} dbname={name} user=o\\'hara\\ @x password='a b'"),
        format!("host={directory} dbname={name} user=nobody user=postgres options='-c work_mem=5MB'"),
        format!("postgresql://postgres@{encoded}/{name}"),
        format!("postgres://{encoded}:5432/{name}?user=postgres&application_name=a%20b"),
        format!("postgres:///{name}?host={directory}&user=o%27hara%20%40x&options=-cwork_mem%3D6MB"),
        format!("postgres://postgres:p%40ss@/{name}?host={directory}&port=5432"),
        format!("postgres://postgres@127.0.0.1:1,{encoded}:5432/{name}"),
        format!("host=127.0.0.1,{directory} port=1,5432 user=postgres dbname={name}"),
        format!("host={directory} dbname=no_such_database user=postgres"),
        // After a rejected login the next host is not tried.
        format!("host={directory},{directory} dbname={name} user=no_such_user"),
        format!("host={directory} port=5432,5433 dbname={name} user=postgres"),
        format!("postgres://postgres:a?b&c=d%25@{encoded}/{name}?application_name=x"),
        format!("postgres://postgres:a:b@{encoded}/{name}"),
        format!(
            "host={directory} dbname={name} user=postgres tcp_user_timeout=1 keepalives_count=0 connect_timeout=-1"
        ),
    ] {
        let (ours, libpq) = (ours(&string, SESSION), libpq(&string, SESSION));
        assert_eq!(ours.as_ref().ok(), libpq.as_ref().ok(), "{string}: {ours:?}, libpq: {libpq:?}");
    }
}

#[test]
fn target_session_attrs_finds_what_libpq_finds_among_a_primary_and_its_standby() {
    let primary = PrivatePostgres::start(&[("wal_level", "replica"), ("max_wal_senders", "4")]).unwrap();
    let standby = Standby::start(&primary, &[]);
    let directory = primary.dir().display().to_string();
    let other = PrivatePostgres::start(&[("default_transaction_read_only", "on")]).unwrap();
    let read_only = other.dir().display().to_string();
    let port = "select current_setting('data_directory')";
    for attribute in ["any", "read-write", "read-only"] {
        for hosts in [
            // The primary has port 5432, its standby 5433; the third is a primary whose sessions are read-only.
            format!("host={directory} port=5432"),
            format!("host={directory} port=5433"),
            format!("host={read_only} port=5432"),
            format!("host={directory},{directory} port=5432,5433"),
            format!("host={directory},{directory},{read_only} port=5433,5432,5432"),
            format!("host={read_only},/nowhere,{directory} port=5432"),
        ] {
            let string = format!("{hosts} user=postgres dbname=postgres target_session_attrs={attribute}");
            let (ours, libpq) = (ours(&string, port), libpq(&string, port));
            assert_eq!(ours.as_ref().ok(), libpq.as_ref().ok(), "{string}: {ours:?}, libpq: {libpq:?}");
        }
    }
    standby.stop();
}

#[test]
fn a_host_that_is_silent_leaves_the_next_one_time() {
    let database = Database::empty();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, query) = database.url.split_once('?').unwrap();
    let directory = query.split('&').find_map(|pair| pair.strip_prefix("host=")).unwrap();
    let port = silent.local_addr().unwrap().port();
    let both = format!("host=127.0.0.1,{directory} port={port},5432 user=postgres dbname={}", database.name);
    let settings: Settings = both.parse().unwrap();
    Connection::open(&settings.with_deadline(Duration::from_secs(4)), "test").unwrap();
    // With connect_timeout, no longer than that.
    let settings: Settings = format!("{both} connect_timeout=1").parse().unwrap();
    let began = Instant::now();
    Connection::open(&settings.with_deadline(Duration::from_secs(60)), "test").unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn an_error_names_each_host_that_cannot_be_reached_with_the_reason() {
    let none = "host=127.0.0.1,/nowhere port=1 user=nobody dbname=none password=geheim";
    let said = crate::support::program::signal_feed(none, &["key", "list"]).failed(1);
    for words in ["127.0.0.1, port 1", "Connection refused", "/nowhere/.s.PGSQL.1", "No such file"] {
        assert!(said.contains(words), "{said:?} lacks {words}");
    }
    assert!(!said.contains("geheim"), "{said}");
}
