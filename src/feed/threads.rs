//! Core threads. If one ends while the server runs, the server ends too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::Feed;
use crate::error::{Doing, Error};

/// Starts a core thread.
///
/// # Errors
/// If the system has no thread to give.
pub fn start(
    feed: &Arc<Feed>,
    name: &'static str,
    work: impl FnOnce(&Arc<Feed>) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let feed = feed.clone();
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&feed)));
        if !feed.health.is_stopping() {
            let how = if outcome.is_err() { "panicked" } else { "ended" };
            feed.fail(format!("run the thread {name}: it {how}"));
        }
    };
    Builder::new().name(name.to_owned()).spawn(body).doing(format!("start the thread {name}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::config::ServeOptions;
    use crate::db::Settings;

    #[test]
    fn a_core_thread_that_panics_or_ends_ends_the_server_and_is_named() {
        let options = ServeOptions {
            listen: Vec::new(),
            ops_listen: None,
            replay_window: Duration::from_secs(1),
            queue_capacity: 1,
            heartbeat: Duration::from_secs(1),
            max_clients: 1,
            max_clients_per_key: 1,
            write_timeout: Duration::from_secs(1),
            max_stream_age: None,
            poll_interval: Duration::from_secs(1),
            replay_connections: 1,
            degraded_hold: Duration::ZERO,
            shutdown_grace: Duration::ZERO,
            alert_command: None,
            trusted_proxies: Vec::new(),
        };
        let settings: Settings = "postgres://nobody@localhost/none".parse().unwrap();
        let (fatal, died) = bounded(1);
        let (feed, _inlets) = Feed::new(options, &settings, fatal);
        let feed = Arc::new(feed);
        start(&feed, "reader", |_| panic!("as if by a fault of its own")).unwrap().join().unwrap();
        assert_eq!(died.try_recv().unwrap(), "run the thread reader: it panicked");
        start(&feed, "keys", |_| ()).unwrap().join().unwrap();
        assert_eq!(died.try_recv().unwrap(), "run the thread keys: it ended");
        // While the server stops, threads end normally.
        feed.stop();
        start(&feed, "listen", |_| ()).unwrap().join().unwrap();
        assert!(died.try_recv().is_err());
    }
}
