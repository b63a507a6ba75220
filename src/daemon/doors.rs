//! The doors of the loop: one bounded channel per kind of caller, so that none can starve or fill the others'.
//!
//! | door | bound | when full |
//! |---|---|---|
//! | api | 256 | the call is refused with 503 at once; a sidecar's socket is not read until there is room |
//! | agents | 1024 | the agent's thread waits, and with it the program's output; the sidecar's process knocks here too |
//! | node | 1024 | the reader waits, and with it the socket |
//! | engine | 256 | the worker waits with its answer |
//! | control | 16 | a signal while 16 wait changes nothing |
//!
//! A bounded channel allots and touches all its places at once. Inputs are large, so the two long ones hold boxes: a
//! pointer a place, 16 bytes instead of 300.

use crossbeam_channel::Receiver;
use serde_json::Value;

use crate::core::ports::{EngineError, Input, Ticket};
use crate::sys::bell::{Bell, Caller, channel};

const API: usize = 256;
const AGENTS: usize = 1024;
const NODE: usize = 1024;
const ENGINE: usize = 256;
const CONTROL: usize = 16;

/// What is asked of the process itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    Stop(&'static str),
    ThreadDied(String),
}

type Outcome = (Ticket, Result<Value, EngineError>);

/// The callers' side.
#[derive(Clone)]
pub struct Bells {
    pub api: Caller<Input>,
    pub agents: Caller<Box<Input>>,
    pub node: Caller<Box<Input>>,
    pub engine: Caller<Outcome>,
    pub control: Caller<Control>,
}

/// The loop's side.
pub struct Doors {
    pub api: Receiver<Input>,
    pub agents: Receiver<Box<Input>>,
    pub node: Receiver<Box<Input>>,
    pub engine: Receiver<Outcome>,
    pub control: Receiver<Control>,
    /// Rung by every caller.
    bell: Bell,
    /// The door to look at first next time.
    turn: usize,
    /// The node's door stays shut: the engine keeps its frames.
    pub node_shut: bool,
}

/// One thing that came in. It lives for one turn and is never queued, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub enum Arrival {
    Input(Input),
    /// An engine call ended: the daemon looks at it before the core does.
    Engine(Outcome),
    Control(Control),
}

pub fn doors() -> (Bells, Doors) {
    let bell = Bell::default();
    let (api_tx, api) = channel(API, &bell);
    let (agents_tx, agents) = channel(AGENTS, &bell);
    let (node_tx, node) = channel(NODE, &bell);
    let (engine_tx, engine) = channel(ENGINE, &bell);
    let (control_tx, control) = channel(CONTROL, &bell);
    let bells = Bells { api: api_tx, agents: agents_tx, node: node_tx, engine: engine_tx, control: control_tx };
    (bells, Doors { api, agents, node, engine, control, bell, turn: 0, node_shut: false })
}

impl Doors {
    /// What already waits, each door in its turn.
    pub fn try_next(&mut self) -> Option<Arrival> {
        for _ in 0..5 {
            self.turn = (self.turn + 1) % 5;
            let arrival = match self.turn {
                0 => self.control.try_recv().ok().map(Arrival::Control),
                1 if self.node_shut => None,
                1 => self.node.try_recv().ok().map(|input| Arrival::Input(*input)),
                2 => self.agents.try_recv().ok().map(|input| Arrival::Input(*input)),
                3 => self.api.try_recv().ok().map(Arrival::Input),
                _ => self.engine.try_recv().ok().map(Arrival::Engine),
            };
            if arrival.is_some() {
                return arrival;
            }
        }
        None
    }

    /// Waits for the next arrival; `None` when `until` has come first.
    pub fn next(&mut self, until: Option<std::time::Instant>) -> Option<Arrival> {
        self.bell.claim();
        loop {
            let arrival = self.try_next();
            if arrival.is_some() || until.is_some_and(|until| until <= std::time::Instant::now()) {
                return arrival;
            }
            self.bell.wait(until);
        }
    }
}
