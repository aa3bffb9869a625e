//! Consuming a feed: what `trader-bot` and `signal-feed tail` are made of, for other Rust bots too.
pub mod backoff;
mod clock;
mod files;
pub mod follow;
mod journal;
mod ledger;
pub mod message;
pub mod order;
pub mod sse;
pub mod state;
pub mod stop;
pub mod stream;
