//! Consuming a feed: what `trader-bot` and `signal-feed tail` are made of, for other Rust bots too.
//!
//! In the order in which an event goes through it:
//!
//! | module | what it does |
//! |---|---|
//! | [`stream`] | one HTTP connection, its answer judged |
//! | [`sse`] | bytes to events |
//! | [`message`] | events to signals and messages about the stream |
//! | [`follow`] | proves that nothing is missing, comes back after every interruption ([`backoff`]) |
//! | [`bot`] | decides what is placed, and settles what is open |
//! | [`order`], [`broker`] | the order, and where it goes |
//! | [`state`] | cursor and mode; the journal beside it alone suffices |
//! | [`recovery`] | catches up from the database |
//!
//! Nothing here imports anything of the server. [`stop::Stop`] ends it all from another thread.
//!
//! A bot of your own needs [`Follower`](follow::Follower): it moves its cursor only when it is told to, so whatever was
//! not acknowledged comes again after any interruption.
//!
//! ```no_run
//! use signal_feed::consumer::follow::{FollowOptions, Follower, FeedEvent};
//! use signal_feed::consumer::stop::Stop;
//! use signal_feed::consumer::stream::{ApiKey, Cursor};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let key = ApiKey::new(&std::fs::read_to_string("feed.key")?)?;
//!     let options = FollowOptions::new(vec!["http://feed:8080/feed".parse()?], key);
//!     // `None` begins now; a bot that was here before passes the cursor that it kept.
//!     let mut follower = Follower::new(&options, None, Stop::new());
//!     loop {
//!         match follower.next_event().map_err(|end| format!("{end:?}"))? {
//!             FeedEvent::Signal(event) => {
//!                 match &event.signal {
//!                     Ok(signal) => println!("{} {} {}", signal.action, signal.side, signal.symbol),
//!                     Err(why) => eprintln!("event {} cannot be used: {why}", event.feed_seq),
//!                 }
//!                 // Keep the cursor somewhere safe first, then acknowledge.
//!                 follower.acknowledge(Cursor { feed_seq: event.feed_seq, event_time: event.event_time });
//!             }
//!             FeedEvent::Quarantined(event) => {
//!                 follower.acknowledge(Cursor { feed_seq: event.feed_seq, event_time: None });
//!             }
//!             FeedEvent::Missed(missed) => eprintln!("signals were missed: {}", missed.reason()),
//!             FeedEvent::Interrupted(interruption) => eprintln!("{}", interruption.cause),
//!             _ => {}
//!         }
//!     }
//! }
//! ```

mod alert;
pub mod backoff;
pub mod bot;
pub mod broker;
mod clock;
mod decide;
mod files;
pub mod follow;
mod journal;
mod json;
mod ledger;
pub mod message;
pub mod order;
pub mod recovery;
pub mod sse;
pub mod state;
pub mod stop;
pub mod stream;
