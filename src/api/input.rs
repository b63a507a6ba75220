//! `/api/input/{n}/stream`: keystrokes in, one ack each, in order of arrival.
//!
//! Frames are pipelined: each becomes a call of its own at once, in order, and the loop serialises all writers of one
//! terminal. Answers may come in any order; each fills the slot that its frame took, and only the front slot is sent. While
//! [`FRAMES`] or [`BYTES`] wait for the terminal the socket is not read: that is the back-pressure.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::core::ports::{ApiAnswer, ApiCall, Ticket};
use crate::http::{Outgoing, Session, Waker};
use crate::wire::api::{agent_not_found, input_ack, input_error, input_ready};

use super::calls::{Calls, NoAnswer};
use super::health::{Counted, Health};

/// Frames on their way to the terminal.
const FRAMES: usize = 64;
/// Their bytes; one frame may exceed it alone.
const BYTES: usize = 64 << 10;
/// Pause before a frame that found the loop's queue full is offered again.
const RETRY: Duration = Duration::from_millis(20);
/// A terminal that takes nothing for so long ends the stream.
pub(super) const NO_PROGRESS: Duration = Duration::from_secs(10);

/// What is sent for one input frame.
struct Verdict {
    frame: Arc<str>,
    /// The stream ends after it.
    fatal: bool,
}

enum Slot {
    Waiting { ticket: Option<Ticket>, bytes: usize },
    Settled(Verdict),
}

struct State {
    waker: Option<Waker>,
    /// Number of the front slot; frames are numbered as they arrive.
    first: u64,
    slots: VecDeque<Slot>,
    /// Bytes in waiting slots.
    bytes: usize,
    /// When a slot was last settled, or began to wait while no other did.
    progress: Instant,
    /// The agent's process is gone.
    gone: bool,
}

/// The slots of one stream: shared between its session, the answers and the news of its agent.
struct Lane {
    state: Mutex<State>,
}

impl Lane {
    fn new() -> Lane {
        let state =
            State { waker: None, first: 0, slots: VecDeque::new(), bytes: 0, progress: Instant::now(), gone: false };
        Lane { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Critical sections change a slot and its counters together and cannot panic between.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take_slot(&self, bytes: usize) -> u64 {
        let mut state = self.state();
        if !state.slots.iter().any(|slot| matches!(slot, Slot::Waiting { .. })) {
            state.progress = Instant::now();
        }
        state.bytes += bytes;
        state.slots.push_back(Slot::Waiting { ticket: None, bytes });
        state.first + state.slots.len() as u64 - 1
    }

    /// For a later [`Calls::forget`]; the answer may have been faster.
    fn asked(&self, number: u64, asked: Ticket) {
        if let Some(Slot::Waiting { ticket, .. }) = self.state().slot(number) {
            *ticket = Some(asked);
        }
    }

    fn settle(&self, number: u64, verdict: Verdict) {
        let mut state = self.state();
        let Some(slot) = state.slot(number) else {
            return;
        };
        if let Slot::Waiting { bytes, .. } = std::mem::replace(slot, Slot::Settled(verdict)) {
            state.bytes -= bytes;
        }
        state.progress = Instant::now();
        state.wake();
    }
}

impl State {
    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// The open streams by agent, so that they can be told of its end.
#[derive(Default)]
pub(super) struct Lanes(Mutex<HashMap<String, Vec<Weak<Lane>>>>);

impl Lanes {
    fn lanes(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<Lane>>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn enter(&self, name: &str) -> Arc<Lane> {
        let lane = Arc::new(Lane::new());
        let mut lanes = self.lanes();
        // Streams are few and open rarely: this is the time to forget the closed ones.
        lanes.retain(|_, of_agent| {
            of_agent.retain(|lane| lane.strong_count() > 0);
            !of_agent.is_empty()
        });
        lanes.entry(name.to_string()).or_default().push(Arc::downgrade(&lane));
        lane
    }

    /// The streams of that agent end now.
    pub fn agent_gone(&self, name: &str) {
        let lanes = self.lanes().remove(name).unwrap_or_default();
        for lane in lanes.iter().filter_map(Weak::upgrade) {
            let mut state = lane.state();
            state.gone = true;
            state.wake();
        }
    }
}

/// One open stream.
pub(super) struct InputStream {
    name: String,
    calls: Calls,
    health: Arc<Health>,
    lane: Arc<Lane>,
    no_progress: Duration,
    /// The first frame.
    greeting: Option<Arc<str>>,
    /// A frame with its slot that the loop's queue had no room for.
    held: Option<(u64, Box<ApiCall>)>,
    ended: bool,
    counted: Option<Counted>,
}

impl InputStream {
    /// Opens a stream: `ask` is what tells whether the agent is there, and is called once the stream cannot miss the
    /// agent's end any more.
    pub fn open(
        name: &str,
        lanes: &Lanes,
        calls: &Calls,
        health: &Arc<Health>,
        no_progress: Duration,
        ask: impl FnOnce() -> Result<ApiAnswer, NoAnswer>,
    ) -> Result<InputStream, NoAnswer> {
        let lane = lanes.enter(name);
        let answer = ask()?;
        let known = answer.status == 200;
        let greeting =
            if known { input_ready(name).to_string().into() } else { error_frame(answer.status, &answer.body) };
        Ok(InputStream {
            name: name.into(),
            calls: calls.clone(),
            health: health.clone(),
            lane,
            no_progress,
            greeting: Some(greeting),
            held: None,
            ended: !known,
            counted: None,
        })
    }

    fn submit(&mut self, bytes: Vec<u8>) {
        let number = self.lane.take_slot(bytes.len());
        self.post(number, Box::new(ApiCall::Type { name: self.name.clone(), bytes }));
    }

    fn post(&mut self, number: u64, call: Box<ApiCall>) {
        let (lane, name) = (self.lane.clone(), self.name.clone());
        let length = if let ApiCall::Type { bytes, .. } = &*call { bytes.len() } else { 0 };
        match self.calls.post(*call, move |outcome| lane.settle(number, verdict(&name, length, outcome))) {
            Ok(ticket) => self.lane.asked(number, ticket),
            Err((NoAnswer::Full, call)) => self.held = Some((number, call)),
            Err((why, _)) => self.lane.settle(number, verdict(&self.name, 0, Err(why))),
        }
    }

    fn refuse(&mut self, message: &str) {
        let number = self.lane.take_slot(0);
        let frame = input_error("invalid_input", message, 400).to_string().into();
        self.lane.settle(number, Verdict { frame, fatal: false });
    }

    fn end_with(&mut self, frame: Arc<str>) -> Outgoing {
        self.ended = true;
        Outgoing::Message(frame)
    }
}

impl Session for InputStream {
    fn opened(&mut self, waker: Waker) {
        self.counted = Some(self.health.count_websocket());
        self.lane.state().waker = Some(waker);
    }

    fn text(&mut self, text: String) {
        match envelope(&text) {
            None => self.submit(text.into_bytes()),
            Some(Some(data)) => self.submit(data.into_bytes()),
            Some(None) => self.refuse("pty_input needs a text member `data`"),
        }
    }

    fn binary(&mut self, bytes: Vec<u8>) {
        match std::str::from_utf8(&bytes) {
            Ok(_) => self.submit(bytes),
            Err(_) => self.refuse("binary input must be UTF-8"),
        }
    }

    fn next(&mut self) -> Outgoing {
        if let Some(greeting) = self.greeting.take() {
            return Outgoing::Message(greeting);
        }
        if self.ended {
            return Outgoing::Close { code: 1005, reason: String::new() };
        }
        if let Some((number, call)) = self.held.take() {
            self.post(number, call);
        }
        let now = Instant::now();
        let lane = self.lane.clone();
        let mut state = lane.state();
        if let Some(Slot::Settled(_)) = state.slots.front()
            && let Some(Slot::Settled(verdict)) = state.slots.pop_front()
        {
            state.first += 1;
            self.ended = verdict.fatal;
            return Outgoing::Message(verdict.frame);
        }
        if state.gone {
            return self.end_with(error_frame(404, &agent_not_found(&self.name)));
        }
        if state.slots.is_empty() {
            return Outgoing::Nothing;
        }
        let limit = state.progress + self.no_progress;
        if now >= limit {
            let message = format!("agent '{}' has taken no input for {} s", self.name, self.no_progress.as_secs());
            return self.end_with(input_error("pty_write_failed", &message, 503).to_string().into());
        }
        Outgoing::Wait(if self.held.is_some() { limit.min(now + RETRY) } else { limit })
    }

    fn closed(&mut self) {
        let mut state = self.lane.state();
        state.waker = None;
        let waiting: Vec<Ticket> = state
            .slots
            .drain(..)
            .filter_map(|slot| match slot {
                Slot::Waiting { ticket, .. } => ticket,
                Slot::Settled(_) => None,
            })
            .collect();
        // Answers on their way find no slot.
        state.first = u64::MAX;
        drop(state);
        waiting.into_iter().for_each(|ticket| self.calls.forget(ticket));
    }

    fn wants_input(&self) -> bool {
        if self.ended || self.held.is_some() {
            return false;
        }
        let state = self.lane.state();
        state.slots.len() < FRAMES && state.bytes < BYTES
    }
}

/// The `data` of a `pty_input` envelope: `None` for raw input, `Some(None)` for an envelope without usable data. Only a
/// frame that is that object as a whole is an envelope; any other JSON is what somebody types.
fn envelope(text: &str) -> Option<Option<String>> {
    let trimmed = text.trim();
    if !trimmed.starts_with('{') {
        return None;
    }
    let Ok(Value::Object(mut object)) = serde_json::from_str(trimmed) else {
        return None;
    };
    if object.get("type").and_then(Value::as_str) != Some("pty_input") {
        return None;
    }
    match object.remove("data") {
        Some(Value::String(data)) => Some(Some(data)),
        _ => Some(None),
    }
}

fn verdict(name: &str, length: usize, outcome: Result<ApiAnswer, NoAnswer>) -> Verdict {
    match outcome {
        Ok(answer) if answer.status == 200 => {
            let written = answer.body.get("bytes_written").and_then(Value::as_u64).unwrap_or(length as u64);
            Verdict { frame: input_ack(name, written).to_string().into(), fatal: false }
        }
        // Only a missing or unsuitable agent ends the stream; anything else fails this write alone.
        Ok(answer) => {
            Verdict { frame: error_frame(answer.status, &answer.body), fatal: matches!(answer.status, 404 | 409 | 410) }
        }
        Err(_) => Verdict {
            frame: input_error("pty_write_failed", "the broker is shutting down", 503).to_string().into(),
            fatal: true,
        },
    }
}

/// The error frame for an answer of either family.
fn error_frame(status: u16, body: &Value) -> Arc<str> {
    let text = |key| body.get(key).and_then(Value::as_str);
    let code = text("code").unwrap_or(if status == 404 { "agent_not_found" } else { "pty_write_failed" });
    let message = text("message").or_else(|| text("error")).unwrap_or("the terminal did not take the input");
    input_error(code, message, status).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_envelope_is_an_envelope() {
        let table = [
            ("ls\r", None),
            ("{", None),
            ("{\"a\":1}", None),
            ("{\"type\":\"other\",\"data\":\"x\"}", None),
            ("[{\"type\":\"pty_input\",\"data\":\"x\"}]", None),
            ("{\"type\":\"pty_input\",\"data\":\"x\"} y", None),
            (" {\"type\":\"pty_input\",\"data\":\"x\"}\n", Some(Some("x".to_string()))),
            ("{\"type\":\"pty_input\",\"data\":\"\"}", Some(Some(String::new()))),
            ("{\"type\":\"pty_input\"}", Some(None)),
            ("{\"type\":\"pty_input\",\"data\":7}", Some(None)),
        ];
        for (text, expected) in table {
            assert_eq!(envelope(text), expected, "{text}");
        }
    }
}
