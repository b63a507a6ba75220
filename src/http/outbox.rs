//! A ready-made outbound queue for sessions whose messages come from other threads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Outgoing, Waker};

/// The queue has no room, or the socket is closing or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the outbound queue takes no more")
    }
}

impl std::error::Error for Full {}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Arc<str>>,
    bytes: usize,
    /// What comes after the queue.
    end: Option<Outgoing>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Inner {
    messages: usize,
    bytes: usize,
    state: Mutex<State>,
}

/// A bounded queue of text messages with the waker of its pump. Any thread pushes; the session hands [`Outbox::opened`] and
/// [`Outbox::next`] on to it. Clones share the queue. When it is full a push is refused: the pusher decides what that means.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Inner>);

impl Outbox {
    /// Room for so many messages and so many bytes; one message is taken by an empty queue whatever its length.
    pub fn new(messages: usize, bytes: usize) -> Outbox {
        Outbox(Arc::new(Inner { messages, bytes, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole.
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Queues one message.
    ///
    /// # Errors
    /// [`Full`]; the message is not queued.
    pub fn push(&self, message: impl Into<Arc<str>>) -> Result<(), Full> {
        let message = message.into();
        let mut state = self.state();
        let over = state.queue.len() >= self.0.messages || state.bytes + message.len() > self.0.bytes;
        if state.end.is_some() || (over && !state.queue.is_empty()) {
            return Err(Full);
        }
        state.bytes += message.len();
        state.queue.push_back(message);
        wake(&state);
        Ok(())
    }

    /// A Close frame after what is queued. The first end wins.
    pub fn close(&self, code: u16, reason: &str) {
        self.end(Outgoing::Close { code, reason: reason.into() });
    }

    /// Ends the connection without a Close frame, and without what is queued.
    pub fn cut(&self) {
        let mut state = self.state();
        state.queue.clear();
        state.bytes = 0;
        state.end = Some(Outgoing::Cut);
        wake(&state);
    }

    /// To be called in [`super::Session::is_cut`].
    pub fn is_cut(&self) -> bool {
        self.state().end == Some(Outgoing::Cut)
    }

    fn end(&self, end: Outgoing) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some(end);
            wake(&state);
        }
    }

    /// To be called in [`super::Session::opened`].
    pub fn opened(&self, waker: Waker) {
        let mut state = self.state();
        state.waker = Some(waker);
        wake(&state);
    }

    /// To be called in [`super::Session::next`].
    pub fn next(&self) -> Outgoing {
        let mut state = self.state();
        match state.queue.pop_front() {
            Some(message) => {
                state.bytes -= message.len();
                Outgoing::Message(message)
            }
            None => state.end.clone().unwrap_or(Outgoing::Nothing),
        }
    }

    /// To be called in [`super::Session::closed`]: later pushes are refused, the pump's descriptor is given back.
    pub fn closed(&self) {
        let mut state = self.state();
        *state = State { end: Some(Outgoing::Cut), ..State::default() };
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.state().queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn wake(state: &State) {
    if let Some(waker) = &state.waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_is_bounded_and_ends_in_order() {
        let outbox = Outbox::new(2, 10);
        assert_eq!(outbox.push("a very long first message"), Ok(()));
        assert_eq!(outbox.push("b"), Err(Full));
        assert!(matches!(outbox.next(), Outgoing::Message(_)));
        assert_eq!((outbox.push("b"), outbox.push("c"), outbox.push("d")), (Ok(()), Ok(()), Err(Full)));
        outbox.close(1000, "bye");
        assert_eq!(outbox.next(), Outgoing::Message("b".into()));
        assert_eq!(outbox.push("e"), Err(Full));
        assert_eq!(outbox.next(), Outgoing::Message("c".into()));
        assert_eq!(outbox.next(), Outgoing::Close { code: 1000, reason: "bye".into() });
    }
}
