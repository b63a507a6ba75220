//! Threads for the engine calls of the running broker, so that no call ever runs on the core's thread.
//!
//! Up to [`WORKERS`] threads, `engine-1` …, started when a call finds none free and ended after [`IDLE`] without work.
//! [`QUEUE`] calls may wait; the next is refused at once with code `queue_full`, which the caller reports like any other
//! outcome.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde_json::Value;

use super::client::{Client, no_answer};
use crate::core::ports::{EngineCall, EngineError, Ticket};
use crate::sys::threads::{self, Thread};

pub const WORKERS: usize = 4;
pub const QUEUE: usize = 256;
const IDLE: Duration = Duration::from_secs(30);

type Notes = Arc<dyn Fn(Ticket, Result<Value, EngineError>) + Send + Sync>;

/// The pool. [`Pool::stop`] ends it.
pub struct Pool {
    client: Arc<Client>,
    notes: Notes,
    queue: Sender<(Ticket, EngineCall)>,
    waiting: Receiver<(Ticket, EngineCall)>,
    crew: Arc<Mutex<Crew>>,
    /// Each worker holds a sender: the receiver disconnects when the last has ended.
    alive: (Sender<()>, Receiver<()>),
    idle_limit: Duration,
}

/// Who works. Calls are queued and workers leave under this lock, so that no call is left without a worker.
#[derive(Default)]
struct Crew {
    threads: [Option<Thread>; WORKERS],
    at_work: [bool; WORKERS],
    /// Calls that wait or run.
    open: usize,
}

fn lock(crew: &Mutex<Crew>) -> MutexGuard<'_, Crew> {
    crew.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// No thread runs before the first call. `notes` is called from the worker's thread, once per accepted call.
    pub fn start(
        client: Arc<Client>,
        notes: impl Fn(Ticket, Result<Value, EngineError>) + Send + Sync + 'static,
    ) -> Pool {
        Pool::start_with(client, IDLE, notes)
    }

    pub(super) fn start_with(
        client: Arc<Client>,
        idle_limit: Duration,
        notes: impl Fn(Ticket, Result<Value, EngineError>) + Send + Sync + 'static,
    ) -> Pool {
        let (queue, waiting) = crossbeam_channel::bounded(QUEUE);
        let alive = crossbeam_channel::bounded(0);
        Pool { client, notes: Arc::new(notes), queue, waiting, crew: Arc::default(), alive, idle_limit }
    }

    /// Hands a call over. Never blocks.
    ///
    /// # Errors
    /// The outcome of a call that cannot be accepted: the queue is full, or there is no thread. No note follows.
    pub fn submit(&self, ticket: Ticket, call: EngineCall) -> Result<(), EngineError> {
        let mut crew = lock(&self.crew);
        if self.queue.try_send((ticket, call)).is_err() {
            return Err(no_answer("queue_full", format!("{QUEUE} calls to the engine are waiting already")));
        }
        crew.open += 1;
        let workers = crew.at_work.iter().filter(|at_work| **at_work).count();
        if workers < crew.open
            && let Some(at) = crew.at_work.iter().position(|at_work| !at_work)
        {
            // The place's former thread has ended or is about to: it left under this lock.
            crew.threads[at] = None;
            match self.worker(at) {
                Ok(thread) => {
                    crew.threads[at] = Some(thread);
                    crew.at_work[at] = true;
                }
                // With another worker alive the call is only late.
                Err(error) if crew.at_work.contains(&true) => log::warn!("no further engine thread: {error}"),
                Err(error) => {
                    // Nobody else takes from the queue: what comes out is the call just put in.
                    let _ = self.waiting.try_recv();
                    crew.open -= 1;
                    return Err(no_answer("no_thread", format!("no thread for engine calls: {error}")));
                }
            }
        }
        Ok(())
    }

    fn worker(&self, at: usize) -> std::io::Result<Thread> {
        let (client, notes, waiting) = (self.client.clone(), self.notes.clone(), self.waiting.clone());
        let (crew, idle_limit) = (self.crew.clone(), self.idle_limit);
        let alive = self.alive.0.clone();
        threads::spawn(&format!("engine-{}", at + 1), move || {
            let _alive = alive;
            let place = Place { crew, at, left: Cell::new(false) };
            work(&place, &client, &notes, &waiting, idle_limit);
        })
    }

    /// Accepts no more calls; gives those that wait or run until `limit` to end, then breaks them off.
    pub fn stop(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let Pool { client, queue, crew, alive: (alive, ended), .. } = self;
        drop(queue);
        drop(alive);
        // Breaking off is quick; the rest of the time is for orderly ends.
        let grace = Duration::from_millis(200).min(limit / 2);
        if let Err(RecvTimeoutError::Timeout) = ended.recv_deadline(deadline - grace) {
            client.shut_down();
        }
        let threads: Vec<Thread> = lock(&crew).threads.iter_mut().filter_map(Option::take).collect();
        for thread in threads {
            thread.join(deadline.saturating_duration_since(Instant::now()).max(grace));
        }
    }
}

/// A worker's place in the crew; given back also when a call panics.
struct Place {
    crew: Arc<Mutex<Crew>>,
    at: usize,
    /// Given back already, and perhaps taken by the next worker.
    left: Cell<bool>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.left.get() {
            lock(&self.crew).at_work[self.at] = false;
        }
    }
}

/// One accepted call; it counts as open until its outcome is reported, or its worker has panicked over it.
struct Open<'a>(&'a Mutex<Crew>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(self.0).open -= 1;
    }
}

#[inline(never)]
fn work(place: &Place, client: &Client, notes: &Notes, waiting: &Receiver<(Ticket, EngineCall)>, idle_limit: Duration) {
    threads::drains(waiting.clone());
    loop {
        threads::doing("waiting for a call");
        match waiting.recv_timeout(idle_limit) {
            Ok((ticket, call)) => {
                let _open = Open(&place.crew);
                threads::doing("calling the engine");
                // Whatever happens, the ticket gets its outcome.
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| client.perform(&call)));
                notes(ticket, outcome.unwrap_or_else(|_| Err(no_answer("internal", "the call failed in the broker"))));
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let mut crew = lock(&place.crew);
                // Calls are queued under this lock: one that came at the last moment is seen here.
                if waiting.is_empty() {
                    crew.at_work[place.at] = false;
                    place.left.set(true);
                    return;
                }
            }
        }
    }
}
