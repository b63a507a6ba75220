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

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::Value;

use crate::core::ports::{EngineError, Input, Ticket};

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
    pub api: Sender<Input>,
    pub agents: Sender<Box<Input>>,
    pub node: Sender<Box<Input>>,
    pub engine: Sender<Outcome>,
    pub control: Sender<Control>,
}

/// The loop's side.
pub struct Doors {
    pub api: Receiver<Input>,
    pub agents: Receiver<Box<Input>>,
    pub node: Receiver<Box<Input>>,
    pub engine: Receiver<Outcome>,
    pub control: Receiver<Control>,
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
    let (api_tx, api) = bounded(API);
    let (agents_tx, agents) = bounded(AGENTS);
    let (node_tx, node) = bounded(NODE);
    let (engine_tx, engine) = bounded(ENGINE);
    let (control_tx, control) = bounded(CONTROL);
    let bells = Bells { api: api_tx, agents: agents_tx, node: node_tx, engine: engine_tx, control: control_tx };
    (bells, Doors { api, agents, node, engine, control, turn: 0, node_shut: false })
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
        if let Some(arrival) = self.try_next() {
            return Some(arrival);
        }
        let mut select = crossbeam_channel::Select::new();
        select.recv(&self.control);
        if !self.node_shut {
            select.recv(&self.node);
        }
        select.recv(&self.agents);
        select.recv(&self.api);
        select.recv(&self.engine);
        // Only waits: which door it was is found out by looking, in turn.
        match until {
            Some(until) => {
                let _ = select.ready_deadline(until);
            }
            None => {
                let _ = select.ready();
            }
        }
        drop(select);
        self.try_next()
    }
}
