//! signal-feed: a PostgreSQL table of trading signals as a gapless, commit-ordered log over Server-Sent Events.
//!
//! # The way of one event
//!
//! ```text
//! INSERT or UPDATE of signal
//!   → triggers (sql/)      put the row into an outbox; at COMMIT number it, append it to signal_feed_event, NOTIFY
//!   → thread `listen`      feed::listen    receives the notification, wakes the reader (bounded(1), try_send)
//!   → thread `reader`      feed::reader    reads the new rows, one page at a time (feed::pages, db::event_log);
//!                                          renders each row once (feed::render) into a batch (feed::batch);
//!                                          adds the batch to the tail, the newest part of the log in memory (feed::tail);
//!                                          offers it to every client (feed::client)
//!   → thread `client`      feed::stream    writes what follows its cursor to one socket (feed::writer)
//! ```
//!
//! A client's thread runs one loop. The next event after its cursor is in the tail, or in an older page of the log, or not
//! there yet. In the last case the thread waits on its channel of batches; if the channel is full, the reader drops the
//! oldest batch. The thread subscribes before it reads anything, so no event is lost between replay and live events. If a
//! batch does not follow the cursor, the thread reads the tail again.
//!
//! Waking a thread costs more than writing a small batch. So the reader writes a small batch directly to the socket of a
//! client that waits: it tries the lock of the client's writer, and never waits for it. Bytes that the socket does not
//! take stay in the writer, and the channel wakes the client's thread.
//!
//! A key with a delay uses the same loop with another head: the newest event that is old enough.
//!
//! # Threads
//!
//! | thread | module | owns | wakes for |
//! |---|---|---|---|
//! | `accept` | `http::accept` | the feed's listening sockets | a connection, the stop |
//! | `ops` | `http::accept` for `ops` | the operator's listening socket | a connection, the stop |
//! | `listen` | `feed::listen` | the LISTEN connection | a notification, its own probe; on a standby a timer |
//! | `reader` | `feed::reader` | the tail, one connection | `listen`, `--poll-interval`; on a standby a short timer |
//! | `alerts` | `ops::alerts` | the runs of `--alert-command` | a second; only if that option is given |
//! | `upkeep` | `feed::upkeep`, `feed::keys` | one connection | a key that is not known, an event to record, a timer |
//! | `client`, one per connection | `listener`, `feed::stream`, `ops::routes` | one socket | its channel, the heartbeat |
//!
//! `serve` starts the threads and joins them. If a core thread (any but `client`) ends before the server stops, the
//! process ends with an error that names it. If a `client` thread panics, one stream ends. The main thread waits for a
//! signal, reports to the service manager (`service`), and writes the summaries of repeated log lines (`logging`).
//!
//! # Locks
//!
//! No thread holds a lock during a database call, a system call that can block, or while it takes another lock. The
//! comment beside each lock says what it guards.
//!
//! # Invariants
//!
//! * The reader adds a batch to the tail before it offers it. So what a client's channel drops, the client finds in the
//!   tail or in the log.
//! * Every batch carries the number of the row before it. Before a thread writes a batch, it compares that number with
//!   the client's cursor. This comparison alone proves that nothing is missing.
//! * The reader never waits for a client. A client never holds a replay connection while its socket blocks.
//! * A replaced log (a restore) is a new generation of the tail. A client whose cursor belongs to an older generation
//!   checks its last event before it continues.
//! * A page of the log is bounded by bytes, for replay and for live events. One row may exceed the bound alone.
//! * Every database call has a deadline ([`db::Connection`]). A connection that missed one is never used again.
//! * The server refuses a key (401, 403) only after it has asked the database since the request came, and never while the
//!   database is away.
//! * What a delayed key receives, and when, depends only on events that are due for it.
//!
//! # Layers
//!
//! Each layer uses only those to its right.
//!
//! ```text
//! cli, demo → serve → ops, listener → feed → config → options, db, http → event, error, logging
//! trader_bot → options, consumer → db (for recovery only) → event, error, logging
//! ```
//!
//! `http` knows requests, responses and limits, and nothing of the feed. [`consumer`] uses nothing of the server.
//!
//! This crate is two programs. Public are [`consumer`], for other bots in Rust, and what the tests use.

mod alert;
pub mod cli;
mod config;
pub mod consumer;
pub mod db;
pub mod demo;
mod error;
mod event;
mod feed;
mod http;
mod listener;
mod logging;
mod ops;
mod options;
mod program;
pub mod random;
mod serve;
mod service;
mod sync;
mod text;
pub mod trader_bot;

pub use error::{Doing, Error};
