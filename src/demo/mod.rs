//! The parts of `signal-feed demo` that are not the feed: a private PostgreSQL, and a screener that writes signals.

pub mod postgres;
pub(crate) mod screener;
