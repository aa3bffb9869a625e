//! What survives when PostgreSQL is killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::database::Database;
use crate::support::wait::until;

use super::{SIGNAL, assert_nothing_left, assert_whole, count};

#[test]
fn a_delivered_number_survives_kill_9_even_if_the_writer_commits_asynchronously() {
    let cluster =
        PrivatePostgres::start(&[("fsync", "on"), ("wal_writer_delay", "10s"), ("restart_after_crash", "off")])
            .unwrap();
    let database = Database::empty_in(&cluster);
    database.migrate();
    for _ in 0..3 {
        let stop = AtomicBool::new(false);
        let (mut seen, written) = thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|_| {
                    let (database, stop) = (&database, &stop);
                    scope.spawn(move || {
                        let mut client = database.connect();
                        let mut written = 0_i64;
                        while !stop.load(Ordering::Relaxed) {
                            let work = format!(
                                "set synchronous_commit = off; {SIGNAL};
                                begin; {SIGNAL}; savepoint s; {SIGNAL}; rollback to s; {SIGNAL}; commit"
                            );
                            if client.batch_execute(&work).is_err() {
                                break;
                            }
                            written += 3;
                        }
                        written
                    })
                })
                .collect();
            let mut reader = database.connect();
            let first = count(&mut reader, "select count(*) from stock_market.signal_feed_event");
            let mut seen: Vec<(i64, String)> = Vec::new();
            until("some hundred events were seen", || {
                seen = reader
                    .query(
                        "select feed_seq, signal ->> 'id' from stock_market.signal_feed_event order by feed_seq",
                        &[],
                    )
                    .unwrap()
                    .iter()
                    .map(|row| (row.get(0), row.get(1)))
                    .collect();
                (i64::try_from(seen.len()).unwrap() > first + 300).then_some(())
            });
            // The server's processes die at once, without a word to each other.
            kill_all(&cluster);
            stop.store(true, Ordering::Relaxed);
            let written: i64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
            (seen, written)
        });
        cluster.start_again();
        let mut client = database.connect();
        let rows: Vec<(i64, String)> = client
            .query("select feed_seq, signal ->> 'id' from stock_market.signal_feed_event order by feed_seq", &[])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        assert!(rows.len() >= seen.len(), "{} < {}", rows.len(), seen.len());
        seen.truncate(rows.len());
        assert_eq!(rows[..seen.len()], seen[..]);
        assert!(i64::try_from(rows.len()).unwrap() >= written);
        assert_whole(&mut client);
        assert_nothing_left(&mut client);
    }
}

/// SIGKILL to the postmaster and to every process that it started.
fn kill_all(cluster: &PrivatePostgres) {
    let parent = cluster.pid().to_string();
    cluster.signal("STOP");
    let mut victims = vec![parent.clone()];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((_, rest)) = stat.rsplit_once(')')
            && rest.split_whitespace().nth(1) == Some(parent.as_str())
        {
            victims.push(entry.file_name().into_string().unwrap());
        }
    }
    let status = std::process::Command::new("kill").arg("-KILL").args(&victims).status().unwrap();
    assert!(status.success());
    until("the server is gone", || {
        victims
            .iter()
            .all(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
                    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
                })
            })
            .then_some(())
    });
    // Until somebody waits for the dead postmaster, its process id exists, and a new one would refuse to start.
    for file in ["data/postmaster.pid", ".s.PGSQL.5432.lock"] {
        std::fs::remove_file(cluster.dir().join(file)).unwrap();
    }
}
