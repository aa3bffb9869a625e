//! Core threads: those whose end, while the server runs, is the server's end.

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
/// Where the system has no thread to give.
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
    /// Its name, where it has not ended by then.
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
