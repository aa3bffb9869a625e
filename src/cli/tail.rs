//! `signal-feed tail`: a consumer for the shell.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;
use std::{process, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::consumer::follow::{FeedEvent, FollowEnd, FollowOptions, Follower, Reason};
use crate::consumer::stop::Stop;
use crate::consumer::stream::{ApiKey, Cursor, FeedUrl};
use crate::error::{Doing, Error};
use crate::logging::MOST_TEXT_BYTES;
use crate::options::{on_signal, output, parse_number};
use crate::text::{cut, one_line};

/// How long after a signal a blocked write may still end.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Print every event of a feed as one JSON line
///
/// Prints notices on standard error. Reconnects like trader-bot, so no event is missing or printed twice. Exits 0 after
/// --count events, on Ctrl-C, and when its output pipe is closed; 1 if the feed said that events are lost for good; 77
/// if the feed refuses the key.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed tail --feed-url http://feed:8080/feed --feed-api-key-file bot.key | jq .signal.symbol
  signal-feed tail --feed-url http://feed:8080/feed --feed-api-key-file bot.key --cursor earliest | head -n 5")]
pub(super) struct Args {
    /// URL of the stream, ending in /feed; repeat it for several feeds of the same log, tried in turn
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    feed_url: Vec<FeedUrl>,
    /// File with the API key
    #[arg(long, value_name = "FILE")]
    feed_api_key_file: PathBuf,
    /// Begin after this event, or with the earliest one there is [default: from now]
    #[arg(long, value_name = "N|earliest", value_parser = parse_start)]
    cursor: Option<Start>,
    /// End after this many events [default: never]
    #[arg(long, value_name = "N", value_parser = parse_number(1..=i64::MAX))]
    count: Option<i64>,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let key = ApiKey::from_file(&args.feed_api_key_file)?;
    let stop = Stop::new();
    let asked = stop.clone();
    on_signal(move || {
        asked.ask();
        // Nothing else ends a write to a full pipe.
        thread::sleep(LAST_PATIENCE);
        process::exit(0);
    })?;
    watch_reader(stop.clone())?;
    let cursor = args.cursor.map(|start| match start {
        Start::After(feed_seq) => Cursor { feed_seq, event_time: None },
        Start::Earliest => Cursor { feed_seq: 0, event_time: None },
    });
    let mut options = FollowOptions::new(args.feed_url, key);
    options.key_file = Some(args.feed_api_key_file);
    let mut follower = Follower::new(&options, cursor, stop);
    let mut missed = None;
    let mut left = args.count;
    while left != Some(0) {
        let event = match follower.next_event() {
            Ok(event) => event,
            Err(FollowEnd::Stopped) => break,
            Err(FollowEnd::KeyRefused(answer)) => return Err(Error::Refused(answer)),
        };
        match event {
            FeedEvent::Signal(event) => {
                // On one line: JSON has these characters only as white space. If the pipe is closed, the thread that
                // watches it asks to stop.
                output(event.data.replace(['\n', '\r', '\t'], " "))?;
                follower.acknowledge(Cursor { feed_seq: event.feed_seq, event_time: event.event_time });
                left = left.map(|left| left - 1);
            }
            FeedEvent::Unreadable { feed_seq, why, .. } => {
                notice(&format!("skipped an event that cannot be read: {why}"));
                if let Some(feed_seq) = feed_seq {
                    follower.acknowledge(Cursor { feed_seq, event_time: None });
                }
            }
            FeedEvent::Quarantined { feed_seq, error, .. } => {
                notice(&format!("the feed cannot deliver event {feed_seq}: {error}"));
                follower.acknowledge(Cursor { feed_seq, event_time: None });
            }
            // Nothing before the earliest event was wanted.
            FeedEvent::Missed(Reason::ReplayTruncated)
                if args.cursor == Some(Start::Earliest)
                    && follower.cursor().is_some_and(|cursor| cursor.feed_seq == 0) =>
            {
                notice("older events are outside the replay window; starting with the earliest there is");
            }
            FeedEvent::Missed(reason) => {
                notice(&format!("{reason}: events are lost for good"));
                missed = Some(reason);
            }
            FeedEvent::Notice(text) => notice(&text),
            FeedEvent::Connected(connected) => {
                notice(&format!("connected: streaming after {}", connected.cursor));
            }
            FeedEvent::Interrupted { url, cause, wait, .. } => {
                notice(&format!("{url}: {cause}; trying again in {:.1} s", wait.as_secs_f64()));
            }
            FeedEvent::Nothing => {}
        }
    }
    match missed {
        None => Ok(()),
        Some(missed) => Err(Error::Failed(format!("{missed}: events are lost for good"))),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    After(i64),
    Earliest,
}

fn parse_start(text: &str) -> Result<Start, String> {
    if text.trim() == "earliest" {
        return Ok(Start::Earliest);
    }
    parse_number(0..=i64::MAX)(text).map(Start::After).map_err(|why| format!("{why}, or earliest"))
}

/// Stops as soon as standard output is closed: on a quiet feed, `| head` would otherwise keep the shell
/// waiting for the next event.
fn watch_reader(stop: Stop) -> Result<(), Error> {
    let watch = move || {
        let output = io::stdout();
        // No events are requested: poll(2) reports a closed pipe anyway, and never reports anything about a file.
        let mut descriptors = [PollFd::new(&output, PollFlags::empty())];
        while let Err(Errno::INTR) = poll(&mut descriptors, None) {}
        if descriptors[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            stop.ask();
        }
    };
    thread::Builder::new().name("output".into()).spawn(watch).map(drop).doing("start the thread output")
}

fn notice(text: &str) {
    let _ = writeln!(io::stderr(), "{}", cut(one_line(text), MOST_TEXT_BYTES));
}
