//! The running engine: one lock around the state and the lanes of its node sockets, one thread for its deadlines.
//!
//! [`Shared::act`] is the only way to the state. Under the lock it runs the call, hands the journal lines to the kernel
//! and fills the lanes; what waits for the disk waits outside, with the number that `act` returns.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::faults::Faults;
use super::front::Front;
use super::journal::Journal;
use super::link::Lane;
use super::state::{Engine, LinkId, Out};
use crate::http;
use crate::sys::clock;
use crate::sys::threads::{self, Thread, doing};
use crate::wire::node::MAX_FRAME_BYTES;

/// Connections at a time.
const CONNECTIONS: usize = 1024;
/// Longest body of a request.
pub(super) const BODY_BYTES: usize = 4 << 20;

/// How to start an engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address and port; port 0 takes a free one.
    pub listen: (String, u16),
    /// Where the journal lives; `None`: memory only.
    pub data: Option<PathBuf>,
    /// Whether `POST /__faults` is served.
    pub faults: bool,
}

struct Core {
    engine: Engine,
    lanes: HashMap<LinkId, Lane>,
    /// What the timer thread sleeps for; `None`: for ever.
    armed: Option<u64>,
    stopping: bool,
}

/// What connections, sockets and the timer share.
pub(super) struct Shared {
    core: Mutex<Core>,
    /// Wakes the timer thread and injected pauses.
    changed: Condvar,
    journal: Option<Journal>,
    /// `None`: not served.
    pub faults: Option<Faults>,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic inside a call is answered 500 by the listener; rows are put whole, so the tables stay usable.
        self.core.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs `call` on the state. The number is what [`Shared::sync_to`] wants before the answer leaves.
    pub fn act<T>(&self, call: impl FnOnce(&mut Engine) -> T) -> (T, u64) {
        let mut core = self.core();
        let result = call(core.engine.at(clock::now()));
        let number = self.settle(&mut core);
        (result, number)
    }

    /// As [`Shared::act`]; a link that the call opened has its lane before any frame can be meant for it.
    pub fn open_link<E>(&self, open: impl FnOnce(&mut Engine) -> Result<LinkId, E>) -> Result<(LinkId, Lane), E> {
        let mut core = self.core();
        let link = open(core.engine.at(clock::now()))?;
        let lane = Lane::default();
        core.lanes.insert(link, lane.clone());
        self.settle(&mut core);
        Ok((link, lane))
    }

    pub fn link_closed(&self, link: LinkId) {
        let mut core = self.core();
        if core.lanes.remove(&link).is_some() {
            core.engine.at(clock::now()).close_link(link);
            self.settle(&mut core);
        }
    }

    /// Cuts every node socket; gives their number.
    pub fn cut_links(&self) -> usize {
        let core = self.core();
        core.lanes.values().for_each(Lane::cut);
        core.lanes.len()
    }

    /// What a call left behind goes where it belongs.
    fn settle(&self, core: &mut Core) -> u64 {
        let lines = core.engine.take_lines();
        let number = self.journal.as_ref().map_or(0, |journal| journal.append(&lines));
        for out in core.engine.take_out() {
            match out {
                Out::Frame { link, text } => {
                    if let Some(lane) = core.lanes.get(&link) {
                        lane.push(number, text);
                    }
                }
                Out::Close { link, code, reason } => {
                    if let Some(lane) = core.lanes.get(&link) {
                        lane.close(code, reason);
                    }
                }
            }
        }
        if let Some(journal) = self.journal.as_ref().filter(|journal| journal.is_long())
            && let Err(error) = journal.rewrite(core.engine.snapshot())
        {
            log::warn!("the engine's journal could not be rewritten: {error}");
        }
        let due = core.engine.next_deadline();
        if due.is_some_and(|due| core.armed.is_none_or(|armed| due < armed)) {
            self.changed.notify_all();
        }
        number
    }

    /// Returns when what `act` numbered is on disk. `false`: it may not be, and nothing may be said.
    pub fn sync_to(&self, number: u64) -> bool {
        self.journal.as_ref().is_none_or(|journal| journal.sync_to(number))
    }

    /// Waits; `false` when the engine stops meanwhile.
    pub fn pause(&self, length: Duration) -> bool {
        let until = Instant::now() + length;
        let mut core = self.core();
        while !core.stopping {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            core = self.changed.wait_timeout(core, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        false
    }

    fn run_timer(&self) {
        let mut core = self.core();
        while !core.stopping {
            let now = clock::now();
            if core.engine.next_deadline().is_some_and(|due| due <= now.mono) {
                doing("carrying out deadlines");
                core.engine.fire(now);
                self.settle(&mut core);
                continue;
            }
            core.armed = core.engine.next_deadline();
            core = match core.armed {
                None => {
                    doing("nothing is due");
                    self.changed.wait(core).unwrap_or_else(|poisoned| poisoned.into_inner())
                }
                Some(due) => {
                    doing("waiting for a deadline");
                    let left = Duration::from_millis(due - now.mono);
                    self.changed.wait_timeout(core, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
            };
        }
    }

    fn stop(&self) {
        self.core().stopping = true;
        self.changed.notify_all();
    }
}

/// A running engine. Dropping it without [`Server::stop`] leaves it running.
pub struct Server {
    shared: Arc<Shared>,
    listener: http::Server,
    timer: Mutex<Option<Thread>>,
}

impl Server {
    /// Replays the journal, if there is one, and serves.
    ///
    /// # Errors
    /// The system's for address, port and files; `InvalidData` for a damaged journal; `WouldBlock` when another engine
    /// uses the directory.
    pub fn start(options: Options) -> io::Result<Server> {
        // Bound first: a port that is taken is told before a journal is touched.
        let bound = http::Server::bind(&options.listen.0, options.listen.1)?;
        let mut engine = Engine::new(options.data.is_some());
        let journal = match &options.data {
            None => None,
            Some(dir) => Some(Journal::open(dir, |row| engine.replay(row))?),
        };
        engine.wake(clock::now());
        if let Some(journal) = &journal {
            engine.take_lines();
            journal.rewrite(engine.snapshot())?;
        }
        let shared = Arc::new(Shared {
            core: Mutex::new(Core { engine, lanes: HashMap::new(), armed: None, stopping: false }),
            changed: Condvar::new(),
            journal,
            faults: options.faults.then(Faults::default),
        });
        let for_timer = shared.clone();
        let timer = threads::spawn("eng-timer", move || for_timer.run_timer())?;
        let limits = http::Limits {
            connections: CONNECTIONS,
            body_bytes: BODY_BYTES,
            ws_message_bytes: MAX_FRAME_BYTES,
            // A node proves that it lives by its heartbeats.
            ws_ping: None,
            ..http::Limits::default()
        };
        match bound.serve(limits, Arc::new(Front { shared: shared.clone() }), "eng-") {
            Ok(listener) => Ok(Server { shared, listener, timer: Mutex::new(Some(timer)) }),
            Err(error) => {
                shared.stop();
                timer.join(Duration::from_secs(1));
                Err(error)
            }
        }
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// `http://<address>:<port>`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.local_addr())
    }

    /// Closes the port, answers what is being answered, closes the node sockets with 1000 and ends all threads within
    /// `deadline`. `false`: something had to be cut.
    pub fn stop(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.shared.stop();
        let clean = self.listener.stop(deadline);
        let timer = self.timer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let joined = timer.is_none_or(|timer| timer.join(until.saturating_duration_since(Instant::now())));
        let (_, number) = self.shared.act(|_| ());
        self.shared.sync_to(number) && clean && joined
    }
}
