//! `/api/fleet/ws`: one local program, the sidecar, that declares what this node can do and carries it out.
//!
//! Each frame becomes a call of its own at once, in order of arrival; answers come in any order, so that a handler's
//! `spawn_agent` does not hold up the result of another. While [`CALLS`] wait for their answers the socket is not read.
//! What the broker says waits in a queue of [`FRAMES`]; a sidecar that lets it fill is no use any more and is cut.
//!
//! Which connection is the newest is the core's business. It hears of them in the queue of the calls: a generation's
//! [`SidecarNote::Attached`] comes before its first call, [`SidecarNote::Gone`] after its last, and generations are
//! numbered in the order of that queue.

mod requests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::calls::{Calls, NoAnswer};
use super::health::{Counted, Health};
use crate::core::ports::{ApiAnswer, ApiCall, Input, SidecarCommand, SidecarGeneration, SidecarNote, Ticket};
use crate::http::{Outbox, Outgoing, Session, Waker};
use crate::wire::api::PROTOCOL_VERSION;
use crate::wire::fleet::{self, Envelope, ErrorCode};
use requests::Request;

/// Calls of one connection that wait for their answers.
const CALLS: usize = 64;
/// Frames that wait for the sidecar to take them.
const FRAMES: usize = 128;
/// Their bytes: an input of an action can be as long as a frame of the engine.
const BYTES: usize = 32 << 20;
/// Pause before what found the loop's queue full is offered again.
const RETRY: Duration = Duration::from_millis(20);

/// The connections that the loop knows of.
#[derive(Default)]
pub(super) struct Sidecars(Mutex<Known>);

#[derive(Default)]
struct Known {
    newest: SidecarGeneration,
    lanes: HashMap<SidecarGeneration, Arc<Lane>>,
}

impl Sidecars {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Critical sections change one entry and its number together.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes a connection known to the loop. Under one lock, so that the numbers are in the order of the notes.
    fn attach(&self, lane: &Arc<Lane>, calls: &Calls) -> Result<SidecarGeneration, NoAnswer> {
        let mut known = self.known();
        let generation = known.newest + 1;
        calls.note(Input::Sidecar { generation, note: SidecarNote::Attached })?;
        known.newest = generation;
        known.lanes.insert(generation, lane.clone());
        Ok(generation)
    }

    fn forget(&self, generation: SidecarGeneration) {
        self.known().lanes.remove(&generation);
    }

    /// On the loop's thread; never waits.
    pub fn command(&self, generation: SidecarGeneration, command: SidecarCommand) {
        let Some(lane) = self.known().lanes.get(&generation).cloned() else { return };
        match command {
            SidecarCommand::Invoke { invocation_id, name, input } => {
                lane.push(fleet::invoke_handler(&invocation_id, &name, input));
            }
            SidecarCommand::Close { reason } => lane.close(reason),
        }
    }
}

/// A call that waits for its answer.
struct Asked {
    request_id: Option<String>,
    ticket: Option<Ticket>,
    deadline: Instant,
}

#[derive(Default)]
struct State {
    /// Calls are numbered as they arrive.
    last: u64,
    waiting: BTreeMap<u64, Asked>,
    /// Why this side ends the connection, or that it has ended.
    end: Option<String>,
}

/// One connection, shared between its session, the answers and the core's commands.
struct Lane {
    outbox: Outbox,
    state: Mutex<State>,
}

impl Lane {
    fn new() -> Lane {
        Lane { outbox: Outbox::new(FRAMES, BYTES), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn push(&self, frame: String) {
        let mut state = self.state();
        if state.end.is_none() && self.outbox.push(frame).is_err() {
            state.end = Some("queue full".into());
            self.outbox.cut();
        }
    }

    fn close(&self, reason: &str) {
        self.state().end.get_or_insert_with(|| reason.into());
        self.outbox.close(1000, reason);
    }

    /// Enters a call that is about to be made.
    fn enter(&self, request_id: Option<String>, deadline: Instant) -> u64 {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.waiting.insert(number, Asked { request_id, ticket: None, deadline });
        number
    }

    /// For a later [`Calls::forget`]; the answer may have been faster.
    fn asked(&self, number: u64, ticket: Ticket) {
        if let Some(asked) = self.state().waiting.get_mut(&number) {
            asked.ticket = Some(ticket);
        }
    }

    fn answer(&self, number: u64, outcome: Result<ApiAnswer, NoAnswer>) {
        let asked = self.state().waiting.remove(&number);
        if let Some(asked) = asked {
            self.push(answer(asked.request_id.as_deref(), outcome));
        }
    }

    /// Takes out a call whose time is over. Numbers are in the order of deadlines: all calls have the same patience.
    fn overdue(&self, now: Instant) -> Option<(u64, Asked)> {
        let mut state = self.state();
        let first = state.waiting.first_entry().filter(|first| first.get().deadline <= now)?;
        Some(first.remove_entry())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.state().waiting.first_key_value().map(|(_, asked)| asked.deadline)
    }

    /// Nothing is pushed any more. Gives the reason and the calls that nobody waits for now.
    fn ended(&self) -> (String, Vec<Ticket>) {
        let mut state = self.state();
        let reason = state.end.get_or_insert_with(|| "the connection ended".into()).clone();
        let tickets = std::mem::take(&mut state.waiting).into_values().filter_map(|asked| asked.ticket).collect();
        self.outbox.closed();
        (reason, tickets)
    }
}

/// One connection of a sidecar.
pub(super) struct FleetSocket {
    sidecars: Arc<Sidecars>,
    calls: Calls,
    health: Arc<Health>,
    patience: Duration,
    lane: Arc<Lane>,
    /// Given when the loop has been told of the connection; nothing is read before.
    generation: Option<SidecarGeneration>,
    /// A call that the loop's queue had no room for.
    held: Option<(u64, Box<ApiCall>)>,
    counted: Option<Counted>,
}

impl FleetSocket {
    pub fn new(sidecars: &Arc<Sidecars>, calls: &Calls, health: &Arc<Health>, patience: Duration) -> FleetSocket {
        FleetSocket {
            sidecars: sidecars.clone(),
            calls: calls.clone(),
            health: health.clone(),
            patience,
            lane: Arc::new(Lane::new()),
            generation: None,
            held: None,
            counted: None,
        }
    }

    /// Offers the loop what waits for room in its queue.
    fn offer(&mut self) {
        if self.generation.is_none() {
            self.generation = self.sidecars.attach(&self.lane, &self.calls).ok();
        }
        if let Some((number, call)) = self.held.take() {
            self.post(number, call);
        }
    }

    fn post(&mut self, number: u64, call: Box<ApiCall>) {
        let lane = self.lane.clone();
        match self.calls.post(*call, move |outcome| lane.answer(number, outcome)) {
            Ok(ticket) => self.lane.asked(number, ticket),
            Err((NoAnswer::Full, call)) => self.held = Some((number, call)),
            Err((why, _)) => self.lane.answer(number, Err(why)),
        }
    }

    fn give_up_overdue(&mut self, now: Instant) {
        while let Some((number, asked)) = self.lane.overdue(now) {
            self.held.take_if(|(held, _)| *held == number);
            if let Some(ticket) = asked.ticket {
                self.calls.forget(ticket);
            }
            self.lane.push(answer(asked.request_id.as_deref(), Err(NoAnswer::Late)));
        }
    }

    fn end(&mut self) {
        let (reason, tickets) = self.lane.ended();
        tickets.into_iter().for_each(|ticket| self.calls.forget(ticket));
        self.held = None;
        self.counted = None;
        if let Some(generation) = self.generation.take() {
            self.sidecars.forget(generation);
            self.calls.note_surely(Input::Sidecar { generation, note: SidecarNote::Gone { reason } });
        }
    }
}

impl Session for FleetSocket {
    fn opened(&mut self, waker: Waker) {
        self.counted = Some(self.health.count_websocket());
        self.lane.outbox.opened(waker);
        self.offer();
    }

    fn text(&mut self, text: String) {
        // Nothing is read before the loop knows of the connection.
        let Some(generation) = self.generation else { return };
        let envelope = match Envelope::read(&text) {
            Ok(envelope) => envelope,
            Err(why) => return self.lane.push(fleet::error(None, ErrorCode::InvalidFrame, &why)),
        };
        match requests::request(&envelope, generation) {
            Ok(Request::Hello) => {
                let result = json!({"broker_version": env!("CARGO_PKG_VERSION"), "protocol_version": PROTOCOL_VERSION});
                self.lane.push(fleet::ok(envelope.request_id.as_deref(), result));
            }
            Ok(Request::Call(call)) => {
                let number = self.lane.enter(envelope.request_id, Instant::now() + self.patience);
                self.post(number, call);
            }
            Err(why) => {
                self.lane.push(fleet::error(envelope.request_id.as_deref(), ErrorCode::FrameFailed, &why));
            }
        }
    }

    fn binary(&mut self, _bytes: Vec<u8>) {
        self.lane.push(fleet::error(None, ErrorCode::InvalidFrame, "frames are text messages"));
    }

    fn next(&mut self) -> Outgoing {
        self.offer();
        let now = Instant::now();
        self.give_up_overdue(now);
        match self.lane.outbox.next() {
            Outgoing::Nothing => {}
            outgoing => return outgoing,
        }
        let retry = (self.generation.is_none() || self.held.is_some()).then(|| now + RETRY);
        let wake = [retry, self.lane.next_deadline()].into_iter().flatten().min();
        wake.map_or(Outgoing::Nothing, Outgoing::Wait)
    }

    /// A queue that is full belongs to a socket that takes nothing.
    fn is_cut(&self) -> bool {
        self.lane.outbox.is_cut()
    }

    fn closed(&mut self) {
        self.end();
    }

    fn wants_input(&self) -> bool {
        self.generation.is_some() && self.held.is_none() && self.lane.state().waiting.len() < CALLS
    }
}

impl Drop for FleetSocket {
    /// Also when its thread panicked.
    fn drop(&mut self) {
        self.end();
    }
}

/// The answer to one frame.
fn answer(request_id: Option<&str>, outcome: Result<ApiAnswer, NoAnswer>) -> String {
    let failed = |message| fleet::error(request_id, ErrorCode::FrameFailed, message);
    match outcome {
        Ok(ApiAnswer { status: 200, body }) => fleet::ok(request_id, body),
        Ok(ApiAnswer { status, body }) => {
            let text = |key| body.get(key).and_then(Value::as_str);
            match text("message").or_else(|| text("error")) {
                Some(message) => fleet::error(request_id, ErrorCode::of(text("code")), message),
                None => failed(&format!("the request failed with status {status}")),
            }
        }
        Err(NoAnswer::Closed) => failed("the broker is shutting down"),
        Err(NoAnswer::Late | NoAnswer::Full) => failed("broker request timed out"),
    }
}
