//! The listener, the register of connections, and the orderly stop.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::Connection;
use super::{Handler, Limits, Response, Waker};
use crate::sys::threads::{self, Thread, doing};

/// Pause after an accept error, so that a full descriptor table does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refused sockets are kept so long, and so many of them, that the peer can read its 503 before the close.
const REFUSED_KEPT: Duration = Duration::from_millis(500);
const REFUSED_MOST: usize = 16;

/// The times of an orderly stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// When WebSockets send Close, whatever is still queued.
    pub flush_by: Instant,
}

struct Entry {
    stream: Arc<TcpStream>,
    /// Set once it is a WebSocket.
    waker: Option<Waker>,
    thread: Option<Thread>,
}

#[derive(Default)]
struct Register {
    entries: HashMap<u64, Entry>,
    stop: Option<Stop>,
}

/// What the acceptor, the connections and the owner share.
pub(super) struct Shared {
    pub limits: Limits,
    prefix: String,
    handler: RwLock<Arc<dyn Handler>>,
    register: Mutex<Register>,
    /// Notified when a connection leaves the register.
    left: Condvar,
    /// Ends the acceptor.
    stop_signal: Waker,
}

impl Shared {
    pub fn handler(&self) -> Arc<dyn Handler> {
        self.handler.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        // Every critical section is a single insertion or removal.
        self.register.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait_until_empty(&self, until: Instant) -> bool {
        let mut register = self.register();
        while !register.entries.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            register = self.left.wait_timeout(register, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        true
    }

    pub fn stopping(&self) -> Option<Stop> {
        self.register().stop
    }

    /// Connection `id` becomes a WebSocket: a stop wakes it instead of cutting its input. `false`: a stop has begun and
    /// has cut the input already.
    pub fn becomes_websocket(&self, id: u64, waker: &Waker) -> bool {
        let mut register = self.register();
        if let Some(entry) = register.entries.get_mut(&id) {
            entry.waker = Some(waker.clone());
        }
        register.stop.is_none()
    }
}

/// Takes its connection out of the register when its thread ends, also by a panic.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Dropped outside the lock.
        let entry = self.shared.register().entries.remove(&self.id);
        drop(entry);
        self.shared.left.notify_all();
    }
}

/// A bound port that nobody serves yet: connects wait in the kernel's queue.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Starts to accept. Threads are called `<prefix>accept` and `<prefix>1`, `<prefix>2`, …
    ///
    /// # Errors
    /// The system's, when there is no thread or descriptor for it.
    pub fn serve(self, limits: Limits, handler: Arc<dyn Handler>, prefix: &str) -> io::Result<Server> {
        let shared = Arc::new(Shared {
            limits,
            prefix: prefix.into(),
            handler: RwLock::new(handler),
            register: Mutex::default(),
            left: Condvar::new(),
            stop_signal: Waker::new()?,
        });
        let listener = self.listener;
        let for_thread = shared.clone();
        let acceptor = threads::spawn(&format!("{prefix}accept"), move || accept_loop(&listener, &for_thread))?;
        Ok(Server { shared, acceptor: Mutex::new(Some(acceptor)), address: self.address })
    }
}

/// A running listener. Dropping it without [`Server::stop`] leaves it running.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Mutex<Option<Thread>>,
    address: SocketAddr,
}

impl Server {
    /// Binds `addr:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// The system's: address in use, not ours, or unknown.
    pub fn bind(addr: &str, port: u16) -> io::Result<Bound> {
        let listener = TcpListener::bind((addr, port))?;
        // The acceptor waits in poll: a connect that is reset before the accept must not block it.
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Bound { listener, address })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Every request whose head is complete from now on goes to `handler`.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) {
        *self.shared.handler.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = handler;
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.register().entries.len()
    }

    /// Closes the port, lets requests that are being answered finish, sends Close 1000 to the WebSockets after what is
    /// queued for them, and joins all threads within `deadline`. `false`: something was cut, or still runs. A second call
    /// finds nothing to do.
    pub fn stop(&self, deadline: Duration) -> bool {
        let begun = Instant::now();
        let end = begun + deadline;
        self.shared.register().stop = Some(Stop { flush_by: begun + deadline / 2 });
        self.shared.stop_signal.wake();
        let acceptor = self.acceptor.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let mut clean = acceptor.is_none_or(|thread| thread.join(deadline));
        let (streams, running) = {
            let mut register = self.shared.register();
            for entry in register.entries.values() {
                match &entry.waker {
                    Some(waker) => waker.wake(),
                    // Wakes who waits for a request; answers can still be written.
                    None => drop(entry.stream.shutdown(Shutdown::Read)),
                }
            }
            let streams: Vec<_> = register.entries.values().map(|entry| entry.stream.clone()).collect();
            let running: Vec<_> = register.entries.values_mut().filter_map(|entry| entry.thread.take()).collect();
            (streams, running)
        };
        // The last tenth is for those that have to be cut.
        if !self.shared.wait_until_empty(end - deadline / 10) {
            clean = false;
            streams.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
        for thread in running {
            clean &= thread.join(end.saturating_duration_since(Instant::now()));
        }
        clean
    }
}

#[inline(never)]
fn accept_loop(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut last_id = 0;
    let mut refused: VecDeque<(Instant, TcpStream)> = VecDeque::new();
    let mut failing = false;
    let mut reported = false;
    loop {
        doing("waiting for a connection");
        let now = Instant::now();
        while refused.len() > REFUSED_MOST || refused.front().is_some_and(|(until, _)| *until <= now) {
            refused.pop_front();
        }
        let timeout = match failing {
            true => Some(ACCEPT_PAUSE),
            false => refused.front().map(|(until, _)| until.saturating_duration_since(now)),
        };
        if wait(listener, &shared.stop_signal, !failing, timeout) {
            return;
        }
        failing = false;
        match listener.accept() {
            Ok((stream, peer)) => {
                reported = false;
                last_id += 1;
                if let Some(stream) = admit(shared, stream, peer, last_id) {
                    refused.push_back((Instant::now() + REFUSED_KEPT, stream));
                }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                _ => {
                    // Once per episode: it is tried twenty times a second.
                    if !reported {
                        log::warn!("no connection can be accepted, trying on: {error}");
                    }
                    (failing, reported) = (true, true);
                }
            },
        }
    }
}

/// Waits for a connection or the stop (`true`), at most `timeout`.
fn wait(listener: &TcpListener, stop: &Waker, accepting: bool, timeout: Option<Duration>) -> bool {
    let interest = if accepting { PollFlags::IN } else { PollFlags::empty() };
    let mut fds = [
        PollFd::from_borrowed_fd(stop.descriptor(), PollFlags::IN),
        PollFd::from_borrowed_fd(listener.as_fd(), interest),
    ];
    let timeout = timeout.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
    let _ = poll(&mut fds, timeout.as_ref());
    !fds[0].revents().is_empty()
}

/// Starts the thread of a new connection; gives the socket back when it had to be refused.
fn admit(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, id: u64) -> Option<TcpStream> {
    let stream = {
        let mut register = shared.register();
        if register.entries.len() >= shared.limits.connections {
            drop(register);
            return refuse(stream);
        }
        let stream = Arc::new(stream);
        register.entries.insert(id, Entry { stream: stream.clone(), waker: None, thread: None });
        stream
    };
    let registered = Registered { shared: shared.clone(), id };
    let connection = Connection { shared: shared.clone(), id, stream, peer };
    let started = threads::spawn(&format!("{}{id}", shared.prefix), move || {
        let _registered = registered;
        connection.run();
    });
    match started {
        // If it has ended already, its entry is gone and nothing is left to join.
        Ok(thread) => {
            if let Some(entry) = shared.register().entries.get_mut(&id) {
                entry.thread = Some(thread);
            }
        }
        // The closure was dropped, and with it the entry and the socket.
        Err(error) => log::warn!("no thread for a connection: {error}"),
    }
    None
}

/// Never waits: this is the acceptor's thread.
fn refuse(stream: TcpStream) -> Option<TcpStream> {
    stream.set_nonblocking(true).ok()?;
    let answer = Response::text(503, "too many connections").closing().render(false);
    (&stream).write_all(&answer).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    Some(stream)
}
