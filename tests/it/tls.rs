//! TLS to PostgreSQL, with certificates of an authority of the tests' own; and https to a feed.
//!
//! A connection string must mean what it means in libpq: the tests compare with `psql`.

use std::net::TcpListener;
use std::process::Command;

use signal_feed::db::{Connection, Settings};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::authority::make_certificates;
use crate::support::database::Database;
use crate::support::directory::Directory;
use crate::support::program::{command, signal_feed};
use crate::support::server::Server;
use crate::support::wait::until;

/// The rules per user. `allow` and `prefer` differ only if the server refuses one of the two ways.
const ACCESS: &str = "local all all trust
hostssl all encrypted 127.0.0.1/32 trust
hostnossl all clear 127.0.0.1/32 trust
hostssl all secret 127.0.0.1/32 scram-sha-256
host all postgres 127.0.0.1/32 trust
host all feed 127.0.0.1/32 trust
";

/// A cluster that speaks TLS on a port of 127.0.0.1.
struct Secured {
    cluster: PrivatePostgres,
    port: u16,
}

impl Secured {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [("listen_addresses", "127.0.0.1"), ("port", &port.to_string())];
        let cluster = PrivatePostgres::start(&settings).unwrap();
        make_certificates(cluster.command("sh"), cluster.dir());
        std::fs::write(cluster.dir().join("data/pg_hba.conf"), ACCESS).unwrap();
        let secured = Self { cluster, port };
        secured.sql("create role encrypted login; create role clear login; create role secret login password 'geheim'");
        secured.show("good");
        secured
    }

    fn sql(&self, statements: &str) {
        let mut client = postgres::Client::connect(&self.cluster.url("postgres"), postgres::NoTls).unwrap();
        for statement in statements.split("; ") {
            client.batch_execute(statement).unwrap();
        }
    }

    /// From now on the server shows this certificate.
    fn show(&self, certificate: &str) {
        let file = self.file(&format!("{certificate}.crt"));
        self.sql(&format!(
            "alter system set ssl_cert_file = '{file}'; alter system set ssl_key_file = '{}'; alter system set ssl = on; \
             select pg_reload_conf()",
            self.file(&format!("{certificate}.key"))
        ));
        self.wait_setting("ssl_cert_file", &file);
    }

    /// From now on it speaks no TLS.
    fn speak_clear(&self) {
        self.sql("alter system set ssl = off; select pg_reload_conf()");
        self.wait_setting("ssl", "off");
    }

    fn wait_setting(&self, name: &str, value: &str) {
        until(&format!("the server has read {name} = {value}"), || {
            let mut client = postgres::Client::connect(&self.cluster.url("postgres"), postgres::NoTls).unwrap();
            let row = client.query_one("select current_setting($1)", &[&name]).unwrap();
            (row.get::<_, String>(0) == value).then_some(())
        });
    }

    fn file(&self, name: &str) -> String {
        self.cluster.dir().join(name).to_str().unwrap().to_owned()
    }

    /// The connection string of a user, by the name that the good certificate has, with more of it.
    fn string(&self, user: &str, more: &str) -> String {
        format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user={user} {more}", self.port)
    }
}

const IS_ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

/// Whether our session is encrypted; the error's text if there is no session.
fn ours(string: &str) -> Result<bool, String> {
    let settings: Settings = string.parse().map_err(|error: signal_feed::db::Error| error.to_string())?;
    let mut connection = Connection::open(&settings, "test").map_err(|error| error.to_string())?;
    Ok(connection.query_one(IS_ENCRYPTED, &[]).unwrap().get(0))
}

/// Whether libpq's is.
fn libpq(string: &str) -> Result<bool, String> {
    let output = Command::new("psql").arg(string).args(["--no-psqlrc", "-Atc", IS_ENCRYPTED]).output().unwrap();
    match std::str::from_utf8(&output.stdout).unwrap().trim() {
        "t" => Ok(true),
        "f" => Ok(false),
        _ => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

const MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

#[test]
fn every_sslmode_with_every_certificate_does_what_libpq_does() {
    let secured = Secured::start();
    let compare = |user: &str, certificate: &str, roots: &[&str]| {
        for mode in MODES {
            for root in roots {
                let string = secured.string(user, &format!("sslmode={mode} sslrootcert={}", secured.file(root)));
                let (ours, libpq) = (ours(&string), libpq(&string));
                assert_eq!(ours.is_ok(), libpq.is_ok(), "{certificate}, {string}: {ours:?}, libpq: {libpq:?}");
                assert_eq!(ours.ok(), libpq.ok(), "{certificate}, {string}");
            }
        }
    };
    let roots = ["ours.crt", "other.crt", "impostor.crt", "missing.crt"];
    for certificate in ["good", "wrong_name", "expired", "chain"] {
        secured.show(certificate);
        compare("postgres", certificate, &roots);
    }
    // Debian's kind: self-signed, and not marked as an authority.
    secured.show("plain");
    compare("postgres", "plain", &["plain.crt", "other.crt", "missing.crt"]);
    secured.show("wildcard");
    for host in ["db.feed.example", "DB.FEED.example", "a.db.feed.example", "feed.example", "other.example"] {
        let full = format!("sslmode=verify-full sslrootcert={}", secured.file("ours.crt"));
        let string = secured.string("postgres", &full).replace("localhost", host);
        assert_eq!(ours(&string).ok(), libpq(&string).ok(), "{string}");
    }
    secured.show("good");
    for user in ["encrypted", "clear"] {
        compare(user, "good", &["ours.crt", "other.crt", "missing.crt"]);
    }
    secured.speak_clear();
    compare("postgres", "none", &roots);
}

#[test]
fn roots_that_cannot_be_read_are_found_out_before_anything_is_tried() {
    for (string, words) in [
        ("host=h sslmode=verify-full", "none is given"),
        ("host=h sslmode=verify-ca sslrootcert=/nowhere/root.crt", "read the file: No such file"),
        ("host=h sslmode=prefer sslrootcert=/dev/null", "holds no certificate"),
        ("host=h sslmode=require sslrootcert=/", "read the file: "),
    ] {
        let said = signal_feed(string, &["serve"]).failed(2);
        assert!(said.starts_with("error: --database-url: sslrootcert: ") && said.contains(words), "{said}");
    }
}

#[test]
fn a_certificate_error_comes_with_advice() {
    let secured = Secured::start();
    let say = |mode: &str, root: &str| {
        let string = secured.string("postgres", &format!("sslmode={mode} sslrootcert={}", secured.file(root)));
        signal_feed(&string, &["key", "list"]).failed(1)
    };
    assert!(say("require", "other.crt").contains("sslrootcert must hold the certificate of the authority"));
    secured.show("wrong_name");
    let said = say("verify-full", "ours.crt");
    assert!(said.contains("elsewhere.example") && said.contains("sslmode=verify-ca"), "{said}");
    secured.show("expired");
    assert!(say("verify-ca", "ours.crt").contains("expired"));
    secured.show("itself");
    let said = say("verify-ca", "itself.crt");
    assert!(
        said.contains("CaUsedAsEndEntity") && said.contains("-addext basicConstraints=critical,CA:FALSE"),
        "{said}"
    );
    secured.show("version_1");
    let said = say("verify-ca", "ours.crt");
    assert!(said.contains("no extensions") && said.contains("subjectAltName"), "{said}");
    secured.show("common_name");
    let said = say("verify-full", "ours.crt");
    assert!(said.contains("subjectAltName"), "{said}");
    secured.speak_clear();
    assert!(say("require", "ours.crt").contains("server does not support TLS"));
}

#[test]
fn roots_are_taken_from_the_home_directory_and_from_the_system_as_libpq_takes_them() {
    let secured = Secured::start();
    let database = Database::migrated_in(&secured.cluster);
    let string = |more: &str| secured.string("postgres", &format!("dbname={} {more}", database.name));
    let home = Directory::new();
    std::fs::create_dir(home.file(".postgresql")).unwrap();
    let list = |string: &str, variable: (&str, &str)| {
        let output = command(string).args(["key", "list"]).env(variable.0, variable.1).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for (root, code) in [("other.crt", 1), ("ours.crt", 0)] {
        std::fs::copy(secured.file(root), home.file(".postgresql/root.crt")).unwrap();
        let (ended, said) = list(&string("sslmode=require"), ("HOME", &home.file("")));
        assert_eq!(ended, code, "{said}");
        let (ended, said) = list(&string("sslrootcert=system"), ("SSL_CERT_FILE", &secured.file(root)));
        assert_eq!(ended, code, "{said}");
    }
    // A home directory that cannot be read (a service's) counts as one without the file.
    let (ended, said) = list(&string("sslmode=require"), ("HOME", "/dev/null"));
    assert_eq!(ended, 0, "{said}");
    // With the system's roots, which sign for anybody, the name must match.
    secured.show("wrong_name");
    let (ended, said) = list(&string("sslrootcert=system"), ("SSL_CERT_FILE", &secured.file("ours.crt")));
    assert_eq!(ended, 1, "{said}");
    let (ended, said) = list(&string("sslrootcert=system sslmode=require"), ("HOME", ""));
    assert_eq!(ended, 2, "{said}");
    assert!(said.contains("sslrootcert=system") && said.contains("verify-full"), "{said}");
}

#[test]
fn a_password_is_proven_only_to_the_server_that_showed_the_certificate() {
    let secured = Secured::start();
    for certificate in ["good", "itself"] {
        secured.show(certificate);
        let bound = |more: &str| ours(&secured.string("secret", &format!("channel_binding=require {more}")));
        assert_eq!(bound("sslmode=require password=geheim sslrootcert=/nowhere"), Ok(true));
        let said = bound("sslmode=require password=falsch sslrootcert=/nowhere").unwrap_err();
        assert!(said.contains("28P01") && !said.contains("falsch"), "{said}");
        let said = bound("sslmode=require sslrootcert=/nowhere").unwrap_err();
        assert!(said.contains("asks for a password"), "{said}");
    }
    // Without TLS there is nothing to bind to.
    let said = ours(&secured.string("postgres", "channel_binding=require sslmode=disable")).unwrap_err();
    assert!(said.contains("channel binding"), "{said}");
}

#[test]
fn the_feed_its_commands_and_the_bots_recovery_speak_tls_alone_where_they_are_told_to() {
    let secured = Secured::start();
    let database = Database::migrated_in(&secured.cluster);
    let root = secured.file("ours.crt");
    let url = format!(
        "postgresql://postgres@localhost:{}/{}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={root}",
        secured.port, database.name
    );
    let key = signal_feed(&url, &["key", "mint", "--name", "bot"]).ok();
    signal_feed(&url, &["doctor"]);
    let server = Server::spawn(Server::command(&url, "127.0.0.1:0"));
    server.wait_ready();
    let mut stream = server.stream(key.trim());
    stream.connected();
    database.insert(2);
    stream.signals(2);
    let sessions = "select count(*) from pg_stat_ssl as s join pg_stat_activity as a using (pid) \
        where a.application_name like 'signal-feed%'";
    assert_eq!(database.number(&format!("{sessions} and not s.ssl")), 0);
    for part in ["listen", "probe", "reader"] {
        assert_eq!(
            database.number(&format!("{sessions} and s.ssl and a.application_name like '%{part}'")),
            1,
            "{part}"
        );
    }

    let directory = Directory::new();
    std::fs::write(directory.file("key"), &key).unwrap();
    let mut bot = Command::new(env!("CARGO_BIN_EXE_trader-bot"));
    bot.current_dir(&directory.path).args(["--feed-api-key-file", "key", "--recovery", "--database-url", &url]);
    bot.args(["--feed-url", &format!("http://{}/feed", server.address())]);
    let log = std::fs::File::create(directory.file("log")).unwrap();
    let mut bot = bot.stderr(log).spawn().unwrap();
    let paper = || std::fs::read_to_string(directory.file("trader-bot.paper")).unwrap_or_default();
    until("the bot has recovered both signals", || (paper().lines().count() == 2).then_some(()));
    bot.kill().unwrap();
    bot.wait().unwrap();
}
