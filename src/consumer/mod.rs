//! Consumes a feed: the parts of `trader-bot` and `signal-feed tail`, for other Rust bots too.
//!
//! An event passes [`stream`] (one HTTP connection), `sse` (bytes to events), [`message`] (events to orders, and to messages
//! about the stream) and [`follow`] (proves that nothing is missing, reconnects). In `trader-bot` it then passes `bot` and
//! `decide` (whether an order is placed), `journal` with `line` and `ledger` (each fact on one line, and what the lines add
//! up to), and `broker`. `recovery` catches up from the database.
//!
//! Nothing here imports anything of the server. [`stop::Stop`] ends everything from another thread.
//!
//! Your own bot needs [`Follower`](follow::Follower). It moves its cursor only when you acknowledge an event, so an
//! event that was not acknowledged comes again after any interruption.
//!
//! ```no_run
//! use signal_feed::consumer::follow::{FollowOptions, Follower, FeedEvent};
//! use signal_feed::consumer::stop::Stop;
//! use signal_feed::consumer::stream::{ApiKey, Cursor};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let key = ApiKey::new(&std::fs::read_to_string("feed.key")?)?;
//!     let options = FollowOptions::new(vec!["http://feed:8080/feed".parse()?], key);
//!     // `None` begins now. Pass the saved cursor to continue.
//!     let mut follower = Follower::new(&options, None, Stop::new());
//!     loop {
//!         match follower.next_event().map_err(|end| format!("{end:?}"))? {
//!             FeedEvent::Signal(event) => {
//!                 match &event.order {
//!                     Ok(order) => println!("{} {} {}", order.action, order.side, order.symbol),
//!                     Err(why) => eprintln!("event {} cannot be used: {why}", event.feed_seq),
//!                 }
//!                 // Save the cursor first, then acknowledge.
//!                 follower.acknowledge(Cursor { feed_seq: event.feed_seq, event_time: event.event_time });
//!             }
//!             FeedEvent::Quarantined { feed_seq, .. } => {
//!                 follower.acknowledge(Cursor { feed_seq, event_time: None });
//!             }
//!             FeedEvent::Missed(reason) => eprintln!("signals were missed: {reason}"),
//!             FeedEvent::Interrupted { cause, .. } => eprintln!("{cause}"),
//!             _ => {}
//!         }
//!     }
//! }
//! ```

mod address;
mod alert;
mod backoff;
pub(crate) mod bot;
pub(crate) mod broker;
mod clock;
mod decide;
mod files;
pub mod follow;
mod journal;
mod json;
mod ledger;
mod line;
pub mod message;
pub mod order;
pub(crate) mod recovery;
mod sse;
mod state;
pub mod stop;
pub mod stream;
