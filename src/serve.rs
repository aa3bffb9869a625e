//! `serve`: its threads, the channels between them, and the order in which they start and end.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::ServeOptions;
use crate::db::Settings;
use crate::error::{Doing, Error};
use crate::feed::reader::Reader;
use crate::feed::reason::End;
use crate::feed::{Feed, listen, upkeep};
use crate::http;
use crate::http::accept::bind;
use crate::http::connections::{BESIDE_CLIENTS, Connections, HttpConnection};
use crate::listener::routes;
use crate::logging;
use crate::ops;
use crate::service::{self, ServiceManager};

/// Longest time for a database call of `serve`: it takes this long to notice a silent database.
const DATABASE_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait for the core threads at the end. One that still waits for the database is left behind.
const JOIN_PATIENCE: Duration = Duration::from_millis(500);
const JOIN_LOOK: Duration = Duration::from_millis(2);
/// 4 MiB: several times a page of the log.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK_BYTES: i32 = 4 << 20;
/// Descriptors beside those of the connections: the database's, the listening sockets, standard ones.
const OTHER_DESCRIPTORS: u64 = 128;

/// Runs the feed until `stop` gets a message (a signal came). Then blocks until every stream has ended, at most for
/// `--shutdown-grace`.
///
/// # Errors
/// If an address cannot be bound, the schema is not the one that this program knows, or a core thread died.
pub(crate) fn serve(options: ServeOptions, settings: &Settings, stop: &Receiver<()>) -> Result<(), Error> {
    let settings = settings.clone().with_deadline(DATABASE_DEADLINE);
    raise_descriptor_limit(options.max_clients);
    #[cfg(target_env = "gnu")]
    give_back_large_blocks();
    let listeners = listeners(&options)?;
    let operator_listeners = operator_listeners(options.ops_listen)?;
    let address = listeners.first().and_then(|listener| listener.local_addr().ok());
    let (fatal, died) = bounded(1);
    let feed = Arc::new(Feed::new(options, &settings, fatal));
    // A thread that waits for the database gives up when the server stops.
    let watched_feed = feed.clone();
    let settings = settings.with_watch(Some(Arc::new(move || !watched_feed.health.is_stopping())));

    // The operator's port answers from the start to the end.
    let (shown_feed, instance) = (feed.clone(), ops::instance(address));
    let handler = move |connection: &HttpConnection| ops::routes::serve(&shown_feed, &instance, connection);
    let connections = Connections::new(ops::MOST_CONNECTIONS, feed.stats.evicted.clone());
    let (operator, stop_operator) = accept(&feed, "ops", operator_listeners, connections, handler)?;
    let mut running = vec![operator];

    let database = settings.clone();
    running.push(start(&feed, "reader", move |feed| Reader::new(feed, &database).run())?);
    let database = settings.clone();
    running.push(start(&feed, "listen", move |feed| listen::run(feed, &database))?);
    running.push(start(&feed, "upkeep", move |feed| upkeep::run(feed, settings))?);
    if let Some(program) = feed.options.alert_command.clone() {
        running.push(start(&feed, "alerts", move |feed| ops::alerts::run(feed, program))?);
    }
    let limit = feed.options.max_clients.saturating_add(BESIDE_CLIENTS);
    let connections = Connections::new(limit, feed.stats.evicted.clone());
    let handler_feed = feed.clone();
    let handler = move |connection: &HttpConnection| routes::serve(&handler_feed, connection);
    let (accept, stop_accept) = accept(&feed, "accept", listeners, connections.clone(), handler)?;
    running.push(accept);

    let mut manager = ServiceManager::default();
    let outcome = loop {
        select! {
            recv(stop) -> _ => break Ok(()),
            recv(died) -> why => break Err(Error::Failed(why.unwrap_or_else(|_| "the server ended".into()))),
            default(service::TURN_EVERY) => {}
        }
        manager.turn(&feed);
        logging::turn();
    };

    service::stopping(&feed);
    log::info!("stopping: closing {} streams", feed.clients.count());
    let began = Instant::now();
    feed.stop();
    drop(stop_accept);
    connections.stop();
    for client in feed.clients.all().iter() {
        client.end(End::Shutdown);
    }
    let left = connections.wait_empty(feed.options.shutdown_grace);
    if left > 0 {
        log::warn!("{left} connections did not take their last block within --shutdown-grace");
    }
    drop(stop_operator);
    join(running);
    log::info!("stopped after {:.2} s", began.elapsed().as_secs_f64());
    outcome
}

/// Starts a core thread. If it ends while the server runs, the server ends too.
fn start(
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

/// Starts a thread that accepts connections. It ends when the returned pipe is dropped.
fn accept(
    feed: &Arc<Feed>,
    name: &'static str,
    listeners: Vec<TcpListener>,
    connections: Arc<Connections>,
    handler: impl Fn(&HttpConnection) + Clone + Send + 'static,
) -> Result<(JoinHandle<()>, OwnedFd), Error> {
    let (stop, stopper) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(std::io::Error::from).doing("make a pipe")?;
    let thread = start(feed, name, move |feed| {
        http::accept::run(listeners, stop, &connections, &feed.stats.accept_errors, handler);
    })?;
    Ok((thread, stopper))
}

fn operator_listeners(address: Option<SocketAddr>) -> Result<Vec<TcpListener>, Error> {
    let Some(address) = address else { return Ok(Vec::new()) };
    let listener = bind(address, &[])?;
    let address = listener.local_addr().unwrap_or(address);
    log::info!("status page and metrics at http://{address}/");
    if !address.ip().to_canonical().is_loopback() {
        log::warn!("--ops-listen {address} is not loopback: anyone who reaches it sees key names and client addresses");
    }
    Ok(vec![listener])
}

fn join(threads: Vec<JoinHandle<()>>) {
    let until = Instant::now() + JOIN_PATIENCE;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(JOIN_LOOK);
        }
        if !thread.is_finished() {
            log::debug!("thread {} is left behind in a database call", thread.thread().name().unwrap_or_default());
        }
    }
}

fn listeners(options: &ServeOptions) -> Result<Vec<TcpListener>, Error> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..passed.len() {
        match passed.take_tcp_listener(index).doing("take a socket from the service manager")? {
            Some(listener) => listeners.push(listener),
            None => log::warn!("socket {index} from the service manager is not a TCP listener"),
        }
    }
    let origin = if listeners.is_empty() { "" } else { " (passed by the service manager)" };
    if listeners.is_empty() {
        listeners = options.listen.iter().map(|address| bind(*address, &options.listen)).collect::<Result<_, _>>()?;
    }
    for address in listeners.iter().flat_map(TcpListener::local_addr) {
        log::info!("listening on {address}{origin}");
    }
    Ok(listeners)
}

/// Has freed blocks of memory above [`LARGE_BLOCK_BYTES`] go back to the system. Otherwise glibc keeps them in arenas, some
/// 30 MiB in each of several after one row of 16 MiB (mallopt(3), M_MMAP_THRESHOLD).
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no safe wrapper exists for mallopt")]
fn give_back_large_blocks() {
    // SAFETY: it only sets two numbers of the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES);
    }
}

fn raise_descriptor_limit(max_clients: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("raise the limit of descriptors: {error}");
    }
    let needed = max_clients as u64 + BESIDE_CLIENTS as u64 + OTHER_DESCRIPTORS;
    if let Some(most) = getrlimit(Resource::Nofile).current
        && most < needed
    {
        log::warn!("--max-clients {max_clients} needs {needed} descriptors, the limit is {most}: raise LimitNOFILE");
    }
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
        let feed = Arc::new(Feed::new(options, &settings, fatal));
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
