//! The demo: one command runs the whole system and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::directory::Directory;
use crate::support::program::command;
use crate::support::sse::Request;
use crate::support::wait::until;

#[test]
fn demo_streams_signals_by_what_it_prints_and_leaves_nothing_behind() {
    let scratch = std::env::temp_dir().join(format!("signal-feed-demo-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    // If the tests run as root, PostgreSQL runs as another user and makes its directory in here.
    std::fs::set_permissions(&scratch, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut demo = command("")
        .args(["demo", "--rate", "50", "--listen", "127.0.0.1:0"])
        .env("TMPDIR", &scratch)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.into_iter().find(|line| line.contains("curl -N") && line.contains("cursor=0")).unwrap();

    // The line runs in a shell as it is printed, with the real port.
    let mut curl =
        Command::new("/bin/sh").args(["-c", line.trim()]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let seen = BufReader::new(curl.stdout.take().unwrap()).lines().map(Result::unwrap);
    let signals = seen.filter(|line| line.starts_with("data: {\"feed_seq\":")).take(20).count();
    assert_eq!(signals, 20);
    let _ = curl.kill();
    curl.wait().unwrap();
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    assert_eq!(Request::get("/").send(address.parse().unwrap()).status, 200);

    // It ends at once also while its own write waits for somebody's lock.
    let socket = std::fs::read_dir(&scratch).unwrap().next().unwrap().unwrap().path();
    let mut holder = postgres::Config::new().host_path(&socket).user("postgres").connect(postgres::NoTls).unwrap();
    holder.batch_execute("begin; lock table stock_market.signal").unwrap();
    let waits = "select from pg_stat_activity where application_name = 'screener' and wait_event_type = 'Lock'";
    until("its write waits", || holder.query_opt(waits, &[]).unwrap());
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "something was left behind");
    std::fs::remove_dir(&scratch).unwrap();
}

#[test]
fn demo_that_is_killed_leaves_no_postgresql_behind() {
    let scratch = std::env::temp_dir().join(format!("signal-feed-demo-killed-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::set_permissions(&scratch, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut demo = command("")
        .args(["demo", "--listen", "127.0.0.1:0"])
        .env("TMPDIR", &scratch)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("curl -N")));
    demo.kill().unwrap();
    demo.wait().unwrap();
    until("PostgreSQL ends and its directory goes", || {
        (std::fs::read_dir(&scratch).unwrap().count() == 0).then_some(())
    });
    std::fs::remove_dir(&scratch).unwrap();
}

#[test]
fn demo_that_is_killed_before_it_is_up_leaves_nothing_behind_either() {
    let scratch = std::env::temp_dir().join(format!("signal-feed-demo-early-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::set_permissions(&scratch, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let path = scratch.to_str().unwrap();
    // At many moments: while its files are made, while PostgreSQL starts, and a little later.
    for step in 0..8 {
        let mut demo = command("")
            .args(["demo", "--listen", "127.0.0.1:0"])
            .env("TMPDIR", &scratch)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(120) * step);
        demo.kill().unwrap();
        demo.wait().unwrap();
        until("its last process ends", || {
            let lines = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("cmdline"));
            let left = lines.flat_map(std::fs::read_to_string).any(|line| line.contains(path));
            (!left).then_some(())
        });
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "left behind at step {step}");
    }
    std::fs::remove_dir(&scratch).unwrap();
}

#[test]
fn demo_works_in_a_directory_of_any_name_whatever_the_environment_says_of_postgresql() {
    let directory = Directory::new();
    let scratch = directory.path.join("a b&c%d'e");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut demo = command("")
        .args(["demo", "--listen", "127.0.0.1:0"])
        .current_dir(&directory.path)
        .env("TMPDIR", "a b&c%d'e")
        .envs([("PGPORT", "9999"), ("PGHOST", "nowhere"), ("PGDATA", "/nowhere"), ("PGOPTIONS", "--nonsense")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("database ")).expect("it starts");
    let url = line.trim_start_matches("database").trim();
    let mut session = postgres::Client::connect(url, postgres::NoTls).unwrap();
    until("it writes signals", || session.query_opt("select from stock_market.signal limit 1", &[]).unwrap());
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "something was left behind");
}

#[test]
fn demo_on_a_taken_address_says_so_and_ends() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = command("").args(["demo", "--listen", &address]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&address) && said.trim_end().lines().count() == 1, "{said}");
}

#[test]
fn demo_of_root_works_also_if_only_root_may_use_the_directory_for_temporary_files() {
    // Only root runs PostgreSQL under another account, which cannot enter the first directory or write to the second.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for mode in [0o700, 0o755] {
        let directory = Directory::new();
        std::fs::set_permissions(&directory.path, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut demo = command("")
            .args(["demo", "--listen", "127.0.0.1:0"])
            .env("TMPDIR", &directory.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| line.starts_with("database ")).expect("it starts");
        let socket = line.split("host=").nth(1).unwrap().split('&').next().unwrap();
        assert!(std::path::Path::new(socket).exists());
        kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(0));
        assert!(!std::path::Path::new(socket).exists(), "something was left behind");
    }
}

#[test]
fn demo_in_a_directory_that_postgresql_cannot_use_leaves_nothing_behind() {
    let directory = Directory::new();
    for name in [&b"not utf-8 \xff"[..], b"com,ma", b"new\nline", &[b'x'; 100]] {
        let scratch = directory.path.join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir(&scratch).unwrap();
        std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o777)).unwrap();
        let output = command("").args(["demo", "--listen", "127.0.0.1:0"]).env("TMPDIR", &scratch).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "{said}");
        assert!(said.contains("start PostgreSQL") && said.trim_end().lines().count() == 1, "{said}");
    }
}
