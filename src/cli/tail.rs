//! `signal-feed tail`: a consumer for the shell.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::consumer::follow::{End, FollowOptions, Follower, Happening};
use crate::consumer::stop::Stop;
use crate::consumer::stream::{ApiKey, Cursor, FeedUrl};
use crate::error::{Doing, Error};
use crate::options::parse_number_from;

/// Print every event of a feed as one JSON line
///
/// Notices go to standard error. It reconnects like trader-bot, so nothing is missed or printed twice. Exit code 1 where
/// the feed said that events are lost for good, 77 where it does not accept the key. It ends well when its reader does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed tail --feed-url http://feed:8080/feed --feed-api-key-file bot.key | jq .signal.symbol
  signal-feed tail --feed-url http://feed:8080/feed --feed-api-key-file bot.key --cursor 0 | head -n 5")]
pub(super) struct Args {
    /// Address of the stream; repeat it for more feeds of the same log, tried in turn
    #[arg(long, value_name = "URL", env = "SIGNAL_FEED_FEED_URL", required = true, value_delimiter = ',')]
    feed_url: Vec<FeedUrl>,
    /// File with the API key
    #[arg(long, value_name = "FILE", env = "SIGNAL_FEED_FEED_API_KEY_FILE")]
    feed_api_key_file: PathBuf,
    /// Begin after this event [default: from now]
    #[arg(long, value_name = "N", env = "SIGNAL_FEED_CURSOR", value_parser = |text: &str| parse_number_from(0, text))]
    cursor: Option<i64>,
    /// End after this many events [default: never]
    #[arg(long, value_name = "N", env = "SIGNAL_FEED_COUNT", value_parser = |text: &str| parse_number_from(1, text))]
    count: Option<i64>,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let key = ApiKey::from_file(&args.feed_api_key_file)?;
    let stop = Stop::new();
    let asked = stop.clone();
    ctrlc::set_handler(move || asked.ask())
        .map_err(|error| Error::Failed(format!("set up the handler of SIGINT: {error}")))?;
    let nobody_reads = Arc::new(AtomicBool::new(false));
    watch_reader(stop.clone(), nobody_reads.clone())?;
    let cursor = args.cursor.map(|feed_seq| Cursor { feed_seq, event_time: None });
    let mut follower = Follower::new(&FollowOptions::new(args.feed_url, key), cursor, stop);
    let mut missed = None;
    let mut left = args.count;
    while left != Some(0) {
        let happening = match follower.next_happening() {
            Ok(happening) => happening,
            Err(End::Stopped) if nobody_reads.load(Ordering::Relaxed) => return Ok(()),
            Err(End::Stopped) => break,
            Err(End::Unauthorized { url, answer }) => return Err(Error::Refused(format!("{url}: {answer}"))),
        };
        match happening {
            Happening::Signal(event) => {
                if !print(&event.data)? {
                    return Ok(());
                }
                follower.acknowledge(Cursor { feed_seq: event.feed_seq, event_time: event.event_time });
                left = left.map(|left| left - 1);
            }
            Happening::Unreadable { feed_seq, why, .. } => {
                notice(&format!("an event was passed over: {why}"));
                if let Some(feed_seq) = feed_seq {
                    follower.acknowledge(Cursor { feed_seq, event_time: None });
                }
            }
            Happening::Quarantined(event) => {
                notice(&format!("event {} cannot be delivered to anybody: {}", event.feed_seq, event.error));
                follower.acknowledge(Cursor { feed_seq: event.feed_seq, event_time: None });
            }
            Happening::Missed(reason) => {
                notice(&format!("{}: events were missed for good", reason.reason()));
                missed = Some(reason);
            }
            Happening::Notice(text) => notice(&format!("the feed says {text}")),
            Happening::Connected(connected) => {
                let cursor = connected.cursor.map_or("now".to_owned(), |cursor| cursor.to_string());
                notice(&format!("connected, streaming after {cursor}"));
            }
            Happening::Interrupted(interruption) => {
                let seconds = interruption.wait.as_secs_f64();
                notice(&format!("{}: {}; trying again in {seconds:.1} s", interruption.url, interruption.cause));
            }
            Happening::Nothing => {}
        }
    }
    match missed {
        None => Ok(()),
        Some(missed) => Err(Error::Failed(format!("{}: events were missed for good", missed.reason()))),
    }
}

/// Asks to stop as soon as nobody reads standard output any more: on a quiet feed, `| head` would otherwise keep the shell
/// waiting until the next event cannot be written.
fn watch_reader(stop: Stop, nobody_reads: Arc<AtomicBool>) -> Result<(), Error> {
    let watch = move || {
        let output = io::stdout();
        // Nothing is asked for: the other end's closing is told unasked, and a file never says anything (poll(2)).
        let mut descriptors = [PollFd::new(&output, PollFlags::empty())];
        while let Err(Errno::INTR) = poll(&mut descriptors, None) {}
        if descriptors[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            nobody_reads.store(true, Ordering::Relaxed);
            stop.ask();
        }
    };
    thread::Builder::new().name("output".into()).spawn(watch).map(drop).doing("start the thread output")
}

/// False where nobody reads any more (`| head`), which is a normal end.
fn print(data: &str) -> Result<bool, Error> {
    let mut line = data.replace(['\n', '\r'], " ");
    line.push('\n');
    match io::stdout().write_all(line.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(cause) => Err(Error::Io { doing: "write to standard output".to_owned(), cause }),
    }
}

fn notice(text: &str) {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr(), "{line}");
}
