//! Core threads. If one ends while the server runs, the server ends too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Feed;
use crate::error::{Doing, Error};

/// A running core thread.
#[derive(Debug)]
pub struct CoreThread {
    name: String,
    handle: JoinHandle<()>,
    /// Disconnected when the thread ends; nothing is ever sent.
    end: Receiver<()>,
}

/// Starts a core thread.
///
/// # Errors
/// If the system cannot start a thread.
pub fn start(
    feed: &Arc<Feed>,
    name: impl Into<String>,
    work: impl FnOnce(&Arc<Feed>) + Send + 'static,
) -> Result<CoreThread, Error> {
    let name = name.into();
    let feed = feed.clone();
    let (ended, end): (Sender<()>, _) = bounded(1);
    let own_name = name.clone();
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&feed)));
        if !feed.health.is_stopping() {
            let how = if outcome.is_err() { "panicked" } else { "ended" };
            feed.fail(format!("run the thread {own_name}: it {how}"));
        }
        drop(ended);
    };
    let handle = Builder::new().name(name.clone()).spawn(body).doing(format!("start the thread {name}"))?;
    Ok(CoreThread { name, handle, end })
}

impl CoreThread {
    /// Waits for its end.
    ///
    /// # Errors
    /// Its name, if it has not ended by then.
    pub fn join_until(self, deadline: Instant) -> Result<(), String> {
        match self.end.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => Err(self.name),
            _ => {
                let _ = self.handle.join();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let until = Instant::now() + Duration::from_secs(30);
        start(&feed, "reader", |_| panic!("as if by a fault of its own")).unwrap().join_until(until).unwrap();
        assert_eq!(died.try_recv().unwrap(), "run the thread reader: it panicked");
        start(&feed, "keys", |_| ()).unwrap().join_until(until).unwrap();
        assert_eq!(died.try_recv().unwrap(), "run the thread keys: it ended");
        // While the server stops, threads end normally.
        feed.stop();
        start(&feed, "listen", |_| ()).unwrap().join_until(until).unwrap();
        assert!(died.try_recv().is_err());
    }
}
