//! The integration tests: one binary, one module per subject, on a real private PostgreSQL.
//!
//! | subject | modules |
//! |---|---|
//! | from a write of `signal` to the log | `capture`, `poison` |
//! | connecting to PostgreSQL | `hosts`, `tls`, `database`, `sessions`, `pooler` |
//! | installation and administration | `migrate`, `upkeep`, `watch`, `keys`, `upgrade`, `usage`, `shell`, `demo` |
//! | streams: order, replay, delay, slow clients | `stream`, `live`, `truncation`, `tier`, `overload`, `storm` |
//! | outages, restores, several machines | `degraded`, `history`, `pitr`, `standby`, `failover`, `scale` |
//! | the HTTP port | `refusals`, `hostile`, `proxies`, `clients`, `pages` |
//! | running it | `shutdown`, `systemd`, `logs`, `ops`, `alerts`, `soak` |
//! | the consumer | `bot` |
//! | the README | `readme` |
//!
//! `support` holds shared helpers.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "a failing test panics"
)]

mod support;

mod alerts;
mod bot;
mod capture;
mod clients;
mod database;
mod degraded;
mod demo;
mod failover;
mod history;
mod hostile;
mod hosts;
mod keys;
mod live;
mod logs;
mod migrate;
mod ops;
mod overload;
mod pages;
mod pitr;
mod poison;
mod pooler;
mod proxies;
mod readme;
mod refusals;
mod scale;
mod sessions;
mod shell;
mod shutdown;
mod soak;
mod standby;
mod storm;
mod stream;
mod systemd;
mod tier;
#[cfg(feature = "tls")]
mod tls;
mod truncation;
mod upgrade;
mod upkeep;
mod usage;
mod watch;

#[test]
fn every_file_here_is_a_module_that_runs() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = std::fs::read_to_string(here.join("main.rs")).unwrap();
    for entry in std::fs::read_dir(here).unwrap() {
        let path = entry.unwrap().path();
        let is_module = path.join("mod.rs").exists() || path.extension().is_some_and(|extension| extension == "rs");
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            !is_module || name == "main" || main.contains(&format!("\nmod {name};\n")),
            "{path:?} is not in main.rs"
        );
    }
}
