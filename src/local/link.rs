//! The skin of one node socket: inbound texts go to the state, outbound frames come from its lane.
//!
//! A lane is filled under the engine's lock, in the order of the decisions, and drained by the thread of the connection,
//! which lets a frame go only when what it depends on is on disk. Bound: [`LANE_BYTES`]; a node that does not keep up is
//! closed with 1013, and its unacknowledged rows wait for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::server::Shared;
use super::state::LinkId;
use crate::http::{Outgoing, Session, Waker};

/// Frames that wait for one node, in bytes.
const LANE_BYTES: usize = 64 << 20;

#[derive(Default)]
struct State {
    /// With the journal line that must be on disk before.
    frames: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
    end: Option<Outgoing>,
    waker: Option<Waker>,
}

/// What waits for one node socket.
#[derive(Clone, Default)]
pub(super) struct Lane(Arc<Mutex<State>>);

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn push(&self, after: u64, text: String) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        if state.bytes + text.len() > LANE_BYTES && !state.frames.is_empty() {
            log::warn!("a node does not take its frames, closing its socket");
            state.end = Some(Outgoing::Close { code: 1013, reason: "too slow".into() });
            state.frames.clear();
            state.bytes = 0;
        } else {
            state.bytes += text.len();
            state.frames.push_back((after, text.into()));
        }
        wake(&state);
    }

    /// A Close after what waits.
    pub fn close(&self, code: u16, reason: &str) {
        self.end(Outgoing::Close { code, reason: reason.into() });
    }

    /// The end of the connection without a Close.
    pub fn cut(&self) {
        self.end(Outgoing::Cut);
    }

    fn end(&self, end: Outgoing) {
        let mut state = self.state();
        state.end.get_or_insert(end);
        wake(&state);
    }

    fn opened(&self, waker: Waker) {
        let mut state = self.state();
        state.waker = Some(waker);
        wake(&state);
    }

    fn pop(&self) -> Result<(u64, Arc<str>), Option<Outgoing>> {
        let mut state = self.state();
        match state.frames.pop_front() {
            Some((after, text)) => {
                state.bytes -= text.len();
                Ok((after, text))
            }
            None => Err(state.end.clone()),
        }
    }
}

fn wake(state: &State) {
    if let Some(waker) = &state.waker {
        waker.wake();
    }
}

/// A node's connection.
pub(super) struct NodeSession {
    pub shared: Arc<Shared>,
    pub link: LinkId,
    pub lane: Lane,
    /// Injected: the connection is cut so long after it opened.
    pub drop_after: Option<Duration>,
    pub drop_at: Option<Instant>,
}

impl Session for NodeSession {
    fn opened(&mut self, waker: Waker) {
        self.drop_at = self.drop_after.map(|after| Instant::now() + after);
        self.lane.opened(waker);
    }

    fn text(&mut self, text: String) {
        let link = self.link;
        self.shared.act(|engine| engine.hear(link, &text));
    }

    fn binary(&mut self, _: Vec<u8>) {}

    fn next(&mut self) -> Outgoing {
        if self.drop_at.is_some_and(|at| at <= Instant::now()) {
            return Outgoing::Cut;
        }
        match self.lane.pop() {
            Ok((after, text)) if self.shared.sync_to(after) => Outgoing::Message(text),
            Ok(_) => Outgoing::Close { code: 1011, reason: "storage failed".into() },
            Err(Some(end)) => end,
            Err(None) => self.drop_at.map_or(Outgoing::Nothing, Outgoing::Wait),
        }
    }

    fn closed(&mut self) {
        self.shared.link_closed(self.link);
    }
}

impl Drop for NodeSession {
    /// Also when the upgrade failed and the session was never opened; a second time is no news.
    fn drop(&mut self) {
        self.shared.link_closed(self.link);
    }
}

/// Injected: a socket that is open and says nothing.
pub(super) struct SilentSession;

impl Session for SilentSession {
    fn opened(&mut self, _: Waker) {}

    fn text(&mut self, _: String) {}

    fn binary(&mut self, _: Vec<u8>) {}

    fn next(&mut self) -> Outgoing {
        Outgoing::Nothing
    }

    fn closed(&mut self) {}
}
