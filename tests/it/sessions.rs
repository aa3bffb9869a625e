//! The server's own sessions in the database: what could end them, and how they log in again.

use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::{Database, insert_signals};
use crate::support::directory::Directory;
use crate::support::program::{command, signal_feed};
use crate::support::server::Server;
use crate::support::wait::until;

/// The server's sessions, as process ids.
fn sessions(database: &Database) -> Vec<i32> {
    let query = "select pid from pg_stat_activity \
        where datname = current_database() and application_name like 'signal-feed %' order by pid";
    database.connect().query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn time_outs_of_the_database_do_not_end_the_servers_sessions() {
    let database = Database::migrated();
    let key = database.mint("bot");
    for (setting, value) in [
        ("idle_session_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "1s"),
        ("lock_timeout", "1ms"),
        ("statement_timeout", "1s"),
    ] {
        database.sql(&format!("alter database {} set {setting} = '{value}'", database.name));
    }
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    let before = sessions(&database);
    assert!(before.len() >= 3, "{before:?}");
    // A session of another client that begins after the server's is ended by the setting.
    let mut idle = database.connect();
    let pid: i32 = idle.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let alive = format!("select count(*) from pg_stat_activity where pid = {pid}");
    until("another client's idle session has been ended", || (database.number(&alive) == 0).then_some(()));
    let after = sessions(&database);
    assert!(before.iter().all(|pid| after.contains(pid)), "{before:?}, {after:?}: {:?}", server.log());
    // The settings are for every session of the database; this one writes without them.
    database.sql(&format!("set lock_timeout = 0; set statement_timeout = 0; {}", insert_signals(1)));
    stream.signals(1);
    assert!(!server.log().iter().any(|line| line.contains("degraded")), "{:?}", server.log());
}

#[test]
fn a_new_password_in_the_file_is_used_after_the_old_one_is_rejected() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    database.sql("create role feed login password 'first'; grant signal_feed_server, signal_feed_admin to feed");
    let rules = "local all postgres trust\nlocal all all scram-sha-256\n";
    std::fs::write(cluster.dir().join("data/pg_hba.conf"), rules).unwrap();
    database.sql("select pg_reload_conf()");
    let directory = Directory::new();
    let file = directory.file("url");
    let write = |password: &str| {
        let host = cluster.dir().display();
        let url = format!("host={host} dbname={} user=feed password={password}\n", database.name);
        std::fs::write(&file, url).unwrap();
    };
    write("wrong");
    let list = ["key", "list", "--database-url-file", &file];
    until("passwords are demanded", || {
        let outcome = signal_feed("", &list);
        (outcome.code == 1 && outcome.stderr.contains("28P01")).then_some(())
    });
    write("first");
    signal_feed("", &list).ok();
    let mut serve = command("");
    serve.args(["serve", "--listen", "127.0.0.1:0", "--database-url-file", &file]);
    let server = Server::spawn(serve);
    server.wait_ready();
    database.sql("alter role feed password 'second'");
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'feed'";
    database.connect().query(end, &[]).unwrap();
    server.wait_log(&["password authentication failed"]);
    write("second");
    server.wait_ready();
    assert!(!server.log().iter().any(|line| line.contains("first") || line.contains("second")), "{:?}", server.log());
}

#[test]
fn a_file_that_is_empty_or_a_pipe_when_it_is_read_again_changes_nothing() {
    let database = Database::migrated();
    let directory = Directory::new();
    let file = directory.file("url");
    std::fs::write(&file, &database.url).unwrap();
    let serve = |file: &str| {
        let mut serve = command("");
        serve.args(["serve", "--listen", "127.0.0.1:0", "--database-url-file", file]);
        serve
    };
    let from_file = Server::spawn(serve(&file));
    from_file.wait_ready();
    let fifo = directory.file("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Opening a pipe to write waits for its reader.
    let (pipe, url) = (fifo.clone(), database.url.clone());
    let writer = std::thread::spawn(move || std::fs::write(pipe, url).unwrap());
    let from_pipe = Server::spawn(serve(&fifo));
    writer.join().unwrap();
    from_pipe.wait_ready();
    std::fs::write(&file, "").unwrap();
    database.lock_out();
    for server in [&from_file, &from_pipe] {
        server.wait_log(&["read the log: ", "is not currently accepting connections"]);
    }
    database.let_in();
    from_file.wait_ready();
    from_pipe.wait_ready();
}
