//! Questions to the broker's loop: each has a ticket, each is answered once or given up by its asker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{SendTimeoutError, TrySendError, bounded};

use crate::core::ports::{ApiAnswer, ApiCall, Input, Ticket};
use crate::sys::bell::Caller;
use crate::sys::threads::doing;

/// How often somebody who waits for room looks whether the loop has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The loop's queue took no more; the call was not made.
    Full,
    /// The loop did not answer in time. What was asked may still happen.
    Late,
    /// The broker stops.
    Closed,
}

type Waiter = Box<dyn FnOnce(Result<ApiAnswer, NoAnswer>) + Send>;

struct State {
    next_ticket: Ticket,
    waiters: HashMap<Ticket, Waiter>,
    closed: bool,
}

/// The way to the loop and back. Clones share it. The table of waiters is bounded by the askers: a connection thread waits
/// for one answer, an input stream for a fixed number.
#[derive(Clone)]
pub struct Calls {
    loop_: Caller<Input>,
    state: Arc<Mutex<State>>,
}

impl Calls {
    /// Calls go into `loop_` as [`Input::Api`]; a full queue refuses them at once.
    pub fn new(loop_: Caller<Input>) -> Calls {
        let state = State { next_ticket: 1, waiters: HashMap::new(), closed: false };
        Calls { loop_, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No waiter runs under the lock, so nothing in there can panic half-way.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes a call whose answer `then` gets, on the loop's thread: it must not wait for anything.
    ///
    /// # Errors
    /// [`NoAnswer::Full`] and [`NoAnswer::Closed`], with `then` not called; the call comes back.
    pub fn post(
        &self,
        call: ApiCall,
        then: impl FnOnce(Result<ApiAnswer, NoAnswer>) + Send + 'static,
    ) -> Result<Ticket, (NoAnswer, Box<ApiCall>)> {
        let ticket = {
            let mut state = self.state();
            if state.closed {
                return Err((NoAnswer::Closed, Box::new(call)));
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            // Before the send: the answer may be faster than this thread.
            state.waiters.insert(ticket, Box::new(then));
            ticket
        };
        match self.loop_.try_send(Input::Api { ticket, call: Box::new(call) }) {
            Ok(()) => Ok(ticket),
            Err(error) => {
                let waiter = self.state().waiters.remove(&ticket);
                drop(waiter);
                Err(match error {
                    TrySendError::Full(input) => (NoAnswer::Full, call_of(input)),
                    TrySendError::Disconnected(input) => (NoAnswer::Closed, call_of(input)),
                })
            }
        }
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// See [`NoAnswer`]. After [`NoAnswer::Late`] an answer is dropped.
    pub fn ask(&self, call: ApiCall, limit: Duration) -> Result<ApiAnswer, NoAnswer> {
        let (sender, answer) = bounded(1);
        let ticket = self.post(call, move |outcome| drop(sender.try_send(outcome))).map_err(|(why, _)| why)?;
        doing("waiting for the loop");
        match answer.recv_timeout(limit) {
            Ok(outcome) => outcome,
            Err(_) => {
                let waiter = self.state().waiters.remove(&ticket);
                if waiter.is_none() {
                    // It was answered at the last moment, or the broker stops.
                    return answer.try_recv().unwrap_or(Err(NoAnswer::Closed));
                }
                Err(NoAnswer::Late)
            }
        }
    }

    /// Makes a call whose answer nobody wants, and waits at most `limit` for room in the queue.
    ///
    /// # Errors
    /// When there was none, or the loop is gone.
    pub fn tell(&self, call: ApiCall, limit: Duration) -> Result<(), NoAnswer> {
        let ticket = {
            let mut state = self.state();
            state.next_ticket += 1;
            state.next_ticket - 1
        };
        self.loop_.send_deadline(Input::Api { ticket, call: Box::new(call) }, Instant::now() + limit).map_err(|error| {
            match error {
                SendTimeoutError::Timeout(_) => NoAnswer::Full,
                SendTimeoutError::Disconnected(_) => NoAnswer::Closed,
            }
        })
    }

    /// Puts a note into the queue of the calls, and so in order with them, if there is room.
    ///
    /// # Errors
    /// [`NoAnswer::Full`] and [`NoAnswer::Closed`].
    pub fn note(&self, note: Input) -> Result<(), NoAnswer> {
        if self.state().closed {
            return Err(NoAnswer::Closed);
        }
        self.loop_.try_send(note).map_err(|error| match error {
            TrySendError::Full(_) => NoAnswer::Full,
            TrySendError::Disconnected(_) => NoAnswer::Closed,
        })
    }

    /// The same for a note that must not be lost: waits for room until the loop has ended.
    pub fn note_surely(&self, mut note: Input) {
        doing("waiting for the loop");
        while !self.state().closed {
            match self.loop_.send_deadline(note, Instant::now() + LOOK_AGAIN) {
                Err(SendTimeoutError::Timeout(back)) => note = back,
                Ok(()) | Err(SendTimeoutError::Disconnected(_)) => return,
            }
        }
    }

    /// The loop's answer. `false`: nobody waits for it.
    pub fn answer(&self, ticket: Ticket, answer: ApiAnswer) -> bool {
        let waiter = self.state().waiters.remove(&ticket);
        let waited = waiter.is_some();
        if let Some(waiter) = waiter {
            waiter(Ok(answer));
        }
        waited
    }

    /// Nobody wants the answer of that call any more. What was asked still happens.
    pub fn forget(&self, ticket: Ticket) {
        let waiter = self.state().waiters.remove(&ticket);
        drop(waiter);
    }

    /// The loop has ended: whoever waits is told so, and so is everybody who asks later.
    pub fn close(&self) {
        let waiters = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.waiters)
        };
        waiters.into_values().for_each(|waiter| waiter(Err(NoAnswer::Closed)));
    }

    /// Calls that wait for their answer.
    pub fn waiting(&self) -> usize {
        self.state().waiters.len()
    }
}

fn call_of(input: Input) -> Box<ApiCall> {
    match input {
        Input::Api { call, .. } => call,
        other => unreachable!("the input that came back is not the one sent: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> ApiAnswer {
        ApiAnswer { status: 200, body: json!({}) }
    }

    #[test]
    fn tickets_start_at_one_and_answers_find_their_asker() {
        let (sender, queue) = bounded(2);
        let calls = Calls::new(sender.into());
        let (seen, outcomes) = bounded(2);
        for n in [1, 2] {
            let seen = seen.clone();
            let ticket = calls.post(ApiCall::Status, move |outcome| seen.send((n, outcome)).unwrap());
            assert_eq!(ticket, Ok(n));
        }
        assert_eq!(queue.recv().unwrap(), Input::Api { ticket: 1, call: Box::new(ApiCall::Status) });
        assert!(calls.answer(2, answer()));
        assert!(!calls.answer(2, answer()), "an answer counts once");
        assert!(!calls.answer(77, answer()), "and only for who asked");
        assert_eq!(outcomes.recv().unwrap(), (2, Ok(answer())));
        calls.close();
        assert_eq!(outcomes.recv().unwrap(), (1, Err(NoAnswer::Closed)));
        assert_eq!(calls.ask(ApiCall::Status, Duration::from_secs(9)), Err(NoAnswer::Closed));
    }

    #[test]
    fn a_full_queue_refuses_at_once() {
        let (sender, _queue) = bounded(1);
        let calls = Calls::new(sender.into());
        calls.post(ApiCall::Status, |_| {}).expect("room for one");
        let begun = Instant::now();
        assert_eq!(calls.ask(ApiCall::Config, Duration::from_secs(9)), Err(NoAnswer::Full));
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(calls.waiting(), 1);
    }

    #[test]
    fn a_late_answer_is_not_waited_for() {
        let (sender, queue) = bounded(2);
        let calls = Calls::new(sender.into());
        assert_eq!(calls.ask(ApiCall::Status, Duration::from_millis(20)), Err(NoAnswer::Late));
        assert_eq!(queue.recv().unwrap(), Input::Api { ticket: 1, call: Box::new(ApiCall::Status) });
        assert!(!calls.answer(1, answer()));
        assert_eq!(calls.waiting(), 0);
    }
}
