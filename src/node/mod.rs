//! The link to the engine: one WebSocket on `/v1/node/ws`, full duplex, split over two threads.
//!
//! Owns the socket and nothing else. When to connect, how long to back off, what a 401 means: the core decides, the link
//! does what a [`NodeCommand`] says and reports each fact as a [`NodeNote`].
//!
//! Threads, both for the life of the link: `node-reader` (dials, reads, reports) and `node-writer` (drains the queue).
//! They share the WebSocket under a mutex that neither holds while it waits; both wait in `poll`, so an idle link wakes
//! for data only.
//!
//! Bounds: [`QUEUE`] frames wait for the writer. When the queue is full the caller is refused and the connection is
//! ended, because an engine that reads nothing is no better than one that is gone and a frame must not be missing from
//! the middle of a connection that lives on. Dialling has 15 s in all, silence 48 s, a stalled write 10 s, a close 1 s.

mod address;
mod connection;
mod dial;
mod reader;
mod stream;
mod wait;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::core::ports::{LinkGeneration, NodeCommand, NodeNote, Secret};
use crate::sys::bell::{Bell, Caller};
use crate::sys::threads::{self, Thread};
use crate::wire::node::ToEngine;
use address::Address;
use connection::Connection;
use wait::Wake;

/// Frames that may wait for the writer.
pub const QUEUE: usize = 4096;
/// Connects that may wait for the reader; a newer one cancels the older.
const CONTROLS: usize = 16;

/// Time limits and trust, other than the defaults only in tests.
#[derive(Clone)]
pub struct Options {
    /// TCP, TLS and upgrade together.
    pub connect_limit: Duration,
    /// Without any inbound byte for this long the connection is half-open.
    pub silence: Duration,
    /// The peer must take a byte in this time while something waits to be written.
    pub stall: Duration,
    /// Instead of the bundled and system roots.
    pub trust: Option<Arc<rustls::ClientConfig>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_limit: Duration::from_secs(15),
            silence: Duration::from_secs(48),
            stall: writer::STALL_LIMIT,
            trust: None,
        }
    }
}

/// A queue of the link is full. The connection concerned, if any, is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the queue to the engine is full")
    }
}

impl std::error::Error for Full {}

/// For the reader.
enum Control {
    Connect { generation: LinkGeneration, token: Secret },
    Stop,
}

/// For the writer.
enum Outbound {
    Frame { generation: LinkGeneration, frame: Box<ToEngine> },
    Ping { generation: LinkGeneration },
    Close { generation: LinkGeneration },
}

impl Outbound {
    fn generation(&self) -> LinkGeneration {
        match self {
            Outbound::Frame { generation, .. } | Outbound::Ping { generation } | Outbound::Close { generation } => {
                *generation
            }
        }
    }
}

/// What both threads and the owner see.
struct Shared {
    address: Address,
    options: Options,
    wake: Arc<Wake>,
    controls: Receiver<Control>,
    current: Mutex<Option<Arc<Connection>>>,
    /// The generation of the newest `Connect`; an older dial is given up. `u64::MAX` before the first.
    newest: AtomicU64,
    /// The generation of the last `Close`; `u64::MAX` before the first.
    closed: AtomicU64,
    stopping: AtomicBool,
    /// Turns of the reader's loop, for the test that an idle link does not wake.
    #[cfg(test)]
    turns: AtomicU64,
}

impl Shared {
    /// The open connection, if it is of this generation.
    fn current(&self, generation: LinkGeneration) -> Option<Arc<Connection>> {
        let current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.as_ref().filter(|connection| connection.generation == generation).cloned()
    }

    /// Nobody waits for a dial of this generation any more.
    fn is_cancelled(&self, generation: LinkGeneration) -> bool {
        self.stopping.load(Ordering::SeqCst)
            || self.newest.load(Ordering::SeqCst) != generation
            || self.closed.load(Ordering::SeqCst) == generation
    }
}

/// The link. Dropping it without [`Link::stop`] leaves its threads to the end of the process.
pub struct Link {
    shared: Arc<Shared>,
    control: Sender<Control>,
    queue: Caller<Outbound>,
    reader: Thread,
    writer: Thread,
}

impl Link {
    /// Starts both threads; nothing connects before [`NodeCommand::Connect`]. `notes` is called from `node-reader`; while
    /// it blocks, nothing more is read.
    ///
    /// # Errors
    /// A base URL without a usable address, or no thread or descriptor to be had.
    pub fn start(base_url: &str, notes: impl Fn(NodeNote) + Send + Sync + Clone + 'static) -> io::Result<Link> {
        Link::start_with(base_url, Options::default(), notes)
    }

    /// As [`Link::start`], with other limits.
    ///
    /// # Errors
    /// As [`Link::start`].
    pub fn start_with(
        base_url: &str,
        options: Options,
        notes: impl Fn(NodeNote) + Send + Sync + Clone + 'static,
    ) -> io::Result<Link> {
        let address = Address::of_base(base_url)?;
        if let Some(variable) = address.ignored_proxy(|name| std::env::var(name).ok()) {
            log::warn!("{variable} is set, but the node link to {} goes direct: it honours no proxy", address.host);
        }
        let (control, controls) = crossbeam_channel::bounded(CONTROLS);
        // Bounded by `enqueue`: a bounded channel would allot and touch all its places at once, 128 KiB for a link that idles.
        let (queue, outbound) = crossbeam_channel::unbounded();
        let bell = Bell::default();
        let queue = Caller::new(queue, &bell);
        let shared = Arc::new(Shared {
            address,
            options,
            wake: Arc::new(Wake::new()?),
            controls,
            current: Mutex::new(None),
            newest: AtomicU64::new(u64::MAX),
            closed: AtomicU64::new(u64::MAX),
            stopping: AtomicBool::new(false),
            #[cfg(test)]
            turns: AtomicU64::new(0),
        });
        let reading = shared.clone();
        let reader = threads::spawn("node-reader", move || reader::run(&reading, &notes))?;
        let writing = shared.clone();
        // If this fails, dropping `control` ends the reader.
        let writer = threads::spawn("node-writer", move || writer::run(&writing, &outbound, &bell))?;
        Ok(Link { shared, control, queue, reader, writer })
    }

    /// Hands a command over. Never blocks.
    ///
    /// # Errors
    /// [`Full`] when a queue is; the connection that the frame was for is ended then.
    pub fn send(&self, command: NodeCommand) -> Result<(), Full> {
        match command {
            NodeCommand::Connect { generation, token } => {
                self.shared.newest.store(generation, Ordering::SeqCst);
                let handed = self.control.try_send(Control::Connect { generation, token }).map_err(|_| Full);
                self.shared.wake.signal();
                handed
            }
            NodeCommand::Send { generation, frame } => {
                self.enqueue(Outbound::Frame { generation, frame: Box::new(frame) })
            }
            NodeCommand::Ping { generation } => self.enqueue(Outbound::Ping { generation }),
            NodeCommand::Close { generation } => {
                self.shared.closed.store(generation, Ordering::SeqCst);
                let queued = self.enqueue(Outbound::Close { generation });
                self.shared.wake.signal();
                queued
            }
        }
    }

    fn enqueue(&self, item: Outbound) -> Result<(), Full> {
        let generation = item.generation();
        // Callers at the same time could overshoot by one each; the loop is the only one.
        if self.queue.len() < QUEUE {
            return self.queue.send(item).map_err(|_| Full);
        }
        if let Some(connection) = self.shared.current(generation) {
            connection.end("the queue to the engine is full");
            self.shared.wake.signal();
        }
        Err(Full)
    }

    /// Ends both threads within `limit`: what is queued is still written, a close that is under way still gets its
    /// answer, a dial is given up at once. After the limit the socket is shut whatever waits.
    pub fn stop(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let Link { shared, control, queue, reader, writer } = self;
        shared.stopping.store(true, Ordering::SeqCst);
        shared.wake.signal();
        drop(queue);
        let grace = Duration::from_millis(250).min(limit / 2);
        let stuck = !writer.join(limit.saturating_sub(grace));
        if !stuck {
            wait_for_close(&shared, deadline - grace);
        }
        // The queue of controls can only be full of connects that no longer matter; the reader is taking them out.
        let _ = control.send_timeout(Control::Stop, grace);
        shared.wake.signal();
        if stuck {
            let current = shared.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
            if let Some(connection) = current {
                connection.end("the link was stopped");
            }
        }
        reader.join(deadline.saturating_duration_since(Instant::now()).max(grace));
    }
}

/// Waits until a connection that is being closed has gone; one that is not being closed is not waited for.
fn wait_for_close(shared: &Shared, deadline: Instant) {
    let current = shared.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    let Some(connection) = current else {
        return;
    };
    if let Some(close_by) = connection.close_by() {
        connection.wait_for_end(close_by.min(deadline));
    }
}
