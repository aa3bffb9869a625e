//! The benchmark: `cargo bench --bench feed`. On a private PostgreSQL, with the server and the client as processes of
//! their own, it measures what an operator wants to know before relying on the feed, and prints a table. `-- --help`
//! tells the options. It exits 1 if an event was missing or came twice.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark that fails says so by panicking"
)]

mod client;
mod scenario;
#[allow(dead_code, reason = "shared with the integration tests, which use more of it")]
#[path = "../../it/support/mod.rs"]
mod support;
mod table;
mod usage;
mod world;

use clap::{Parser, Subcommand};
use signal_feed::demo::postgres::PrivatePostgres;

use self::table::Table;

/// Measures the feed on a private PostgreSQL and prints a table: the median of the runs, and least and most.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo bench --bench feed --")]
struct Options {
    /// Numbers of streams for the latency; the last is also that of the burst, the reconnects and the memory.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    streams: Vec<usize>,
    /// Rows inserted a second, one by one, for the latency.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// How long rows are inserted for each figure of the latency.
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// Rows of the burst, which is one INSERT.
    #[arg(long, default_value_t = 2_000)]
    burst: usize,
    /// Rows of the log that is replayed.
    #[arg(long, default_value_t = 200_000)]
    log_rows: usize,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// What is measured: some of latency, disturbed, burst, reconnect, replay, producer.
    #[arg(long, value_delimiter = ',', default_values_t = ["latency", "disturbed", "burst", "reconnect", "replay", "producer"].map(String::from))]
    only: Vec<String>,
    /// cargo bench passes it.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The client, which the benchmark starts as a process of its own.
    #[command(hide = true)]
    Client(client::Task),
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    raise_descriptor_limit();
    if let Some(Role::Client(task)) = &options.role {
        client::run(task);
        return std::process::ExitCode::SUCCESS;
    }
    // As PostgreSQL comes: a commit waits for the disk.
    let postgres = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let mut table = Table::default();
    let replay = options.wants("replay").then(|| scenario::fill_log(&postgres, options.log_rows));
    for run in 1..=options.runs {
        eprintln!("run {run} of {}", options.runs);
        if options.wants("latency") {
            scenario::latency(&options, &postgres, &mut table);
        }
        if options.wants("disturbed") {
            scenario::disturbed(&options, &postgres, &mut table);
        }
        if options.wants("burst") {
            scenario::burst(&options, &postgres, &mut table);
        }
        if options.wants("reconnect") {
            scenario::reconnect(&options, &postgres, &mut table);
        }
        if let Some(world) = &replay {
            scenario::replay(&options, world, &mut table);
        }
        if options.wants("producer") {
            scenario::producer(&options, &postgres, &mut table);
        }
    }
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "\nMedian of {} runs (least–most), {processors} processors shared by PostgreSQL, server and client.\n\n{table}",
        options.runs
    );
    if table.missing + table.repeated > 0 {
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}

impl Options {
    fn wants(&self, scenario: &str) -> bool {
        self.only.iter().any(|wanted| wanted == scenario)
    }

    fn most_streams(&self) -> usize {
        self.streams.last().copied().unwrap_or(1)
    }

    fn rows(&self) -> usize {
        (self.rate * self.seconds) as usize
    }
}

/// A descriptor a stream, here as in the server.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
