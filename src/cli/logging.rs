//! Where log lines go: standard error, one line an occurrence.

use simplelog::{ConfigBuilder, LevelFilter, WriteLogger};

/// How much is logged.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Level {
    /// What needs somebody.
    Error,
    /// Also what may.
    Warn,
    /// Also what happens.
    Info,
    /// Also what is only of use to whoever looks for a fault.
    Debug,
}

/// Starts logging; a second call changes nothing.
pub(super) fn start(level: Level) {
    let filter = match level {
        Level::Error => LevelFilter::Error,
        Level::Warn => LevelFilter::Warn,
        Level::Info => LevelFilter::Info,
        Level::Debug => LevelFilter::Debug,
    };
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        // The driver's own debug lines hold every statement, and would hold keys' hashes.
        .add_filter_allow_str("signal_feed")
        .build();
    let _ = WriteLogger::init(filter, config, std::io::stderr());
}
