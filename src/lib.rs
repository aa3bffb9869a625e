//! signal-feed: a PostgreSQL table of trading signals as a gapless, commit-ordered log over Server-Sent Events.
//!
//! # The way of one event
//!
//! ```text
//! INSERT/UPDATE signal → triggers (sql/): outbox, numbered at commit → signal_feed_event + NOTIFY
//!   → thread `listen`     feed::listen     a notification becomes a wake-up (bounded(1), try_send)
//!   → thread `reader`     feed::reader     reads rows above the head in pages (feed::pages, db::event_log),
//!                                          renders each once (feed::render) into batches (feed::batch)
//!   → broadcast           feed::broadcast  into memory (feed::tail), and to every client: a small batch into the socket of
//!                                          a stream that sleeps (feed::loan), else into its queue (feed::queue), oldest dropped
//!   → thread `client`     feed::stream     catches up, registers, then queue → socket (http::outlet)
//! ```
//!
//! # Threads
//!
//! | thread | module | owns | woken by |
//! |---|---|---|---|
//! | `accept` | [`http::accept`] | the feed's listening sockets | connections, a pipe that closes when the server stops |
//! | `ops` | [`http::accept`] for [`ops`] | the operator's listening socket | the same, but to the very end |
//! | `client`, one a connection | [`listener`], [`feed::stream`], [`ops::routes`] | one socket | its queue's bell, the heartbeat |
//! | `listen` | [`feed::listen`] | the LISTEN connection | notifications, its own probe; on a standby a timer |
//! | `reader` | [`feed::reader`] | the live head, one connection | `listen`, `--poll-interval` and, on a standby, far sooner |
//! | `replay-…`, one a replay connection | [`feed::ahead`] | nothing | streams that read the log page by page |
//! | `tier-…`, one a delay in use | [`feed::delayed`] | a delayed head | what is due |
//! | `keys` | [`feed::keys`] | one connection | notifications, requests with unknown keys, a timer |
//! | `upkeep` | [`feed::upkeep`] | one connection, which may be missing | what is to be recorded, a timer |
//!
//! [`serve`] starts them; a core thread (all but `client`) that ends before the server does ends the process with an error.
//! Its own thread then waits for a signal, and meanwhile tells the service manager how things are (`service`) and lets the
//! log tell of floods (`logging`).
//!
//! # Shutdown
//!
//! A signal: the listening sockets close; nobody is answered any more; every stream gets its last block, `closing`; the
//! process ends when the last of them is written, at the latest after `--shutdown-grace`.
//!
//! # Invariants
//!
//! * A batch goes to a tier's clients, and its head moves, under one lock ([`feed::tier`]), so registering is atomic: up to
//!   the head that the client is told, the log is its own to read; above it everything comes by its queue.
//! * Every batch names the row before it. Whoever writes one checks it against its own cursor: there is no other proof of
//!   completeness, and no other is needed.
//! * One at a time writes to a socket: the stream's thread, or, while that sleeps and has lent it, the reader.
//! * No thread that serves many ever waits for one: the reader never blocks on a queue or a socket, a replay never holds a database
//!   connection while its socket blocks.
//! * Every call to the database has a deadline ([`db::Connection`]); a connection that missed one is never used again.
//! * Nobody is refused (401, 403) from knowledge older than the request, nor while the database is away.
//! * [`consumer`] imports nothing of the server; `db` and `http` know nothing of threads.

mod alert;
pub mod cli;
pub mod config;
pub mod consumer;
pub mod db;
pub mod demo;
mod error;
pub mod event;
pub mod feed;
pub mod http;
pub mod listener;
mod logging;
pub mod ops;
mod options;
mod program;
pub mod random;
pub mod serve;
mod service;
mod sync;
mod text;
pub mod trader_bot;

pub use error::{Doing, Error};
