//! What will happen when: the simulation's only queue. Things due at one instant happen in the order they were entered.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use agent_relay_broker::core::ports::{
    AgentNote, EngineCall, EngineError, Generation, LinkGeneration, Ms, SidecarGeneration, Ticket,
};
use agent_relay_broker::wire::node::ActionOutcome;
use serde_json::Value;

#[derive(Debug)]
pub enum Happening {
    /// The dice decide what the outside does next.
    Stimulus,
    /// A handshake ends.
    ConnectEnds {
        link: LinkGeneration,
    },
    /// A frame of the broker reaches the engine.
    ToEngine {
        link: LinkGeneration,
        frame: Value,
    },
    /// The engine gets round to something that it put off.
    EngineEmits {
        link: LinkGeneration,
        frame: Value,
    },
    /// A frame of the engine reaches the broker.
    ToBroker {
        link: LinkGeneration,
        frame: Value,
    },
    CutSeenByEngine {
        link: LinkGeneration,
    },
    CutSeenByBroker {
        link: LinkGeneration,
        reason: String,
    },
    /// The link thread drops a connection on which nothing was heard.
    SilenceEnds {
        link: LinkGeneration,
    },
    /// An invocation has no answer yet.
    Redispatch {
        invocation: String,
        dispatch: u32,
    },
    Act {
        life: u32,
        generation: Generation,
        act: Act,
    },
    Note {
        life: u32,
        generation: Generation,
        note: AgentNote,
    },
    HttpArrives {
        life: u32,
        ticket: Ticket,
        call: EngineCall,
    },
    HttpAnswers {
        life: u32,
        ticket: Ticket,
        outcome: Result<Value, EngineError>,
    },
    Sidecar {
        life: u32,
        generation: SidecarGeneration,
        act: SidecarAct,
    },
    /// What the supervised process of a sidecar does.
    Child {
        life: u32,
        number: u32,
        act: ChildAct,
    },
    JournalFails {
        life: u32,
    },
    /// The disk takes what it refused before.
    JournalWorks {
        life: u32,
    },
    /// The owner of an ephemeral broker renews its lease.
    Renew,
    Reborn,
}

/// What a sidecar does by itself.
#[derive(Debug, Clone)]
pub enum SidecarAct {
    Declare,
    Handle,
    Spawn { invocation: String },
    Answer { invocation: String, outcome: ActionOutcome },
    End { reason: &'static str },
}

#[derive(Debug, Clone, Copy)]
pub enum ChildAct {
    Starts,
    Fails,
    Attaches,
    Ends,
}

/// What a terminal does by itself.
#[derive(Debug, Clone)]
pub enum Act {
    Prepare,
    Start,
    Ready,
    Write,
    Read { delivery_id: String },
    StallCheck { delivery_id: String },
    Verify { delivery_id: String },
    Exit { code: Option<i32>, signal: Option<i32> },
    Answer { note: AgentNote },
}

struct Entry {
    at: Ms,
    turn: u64,
    site: usize,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.at, self.turn) == (other.at, other.turn)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}

#[derive(Default)]
pub struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    entered: u64,
    /// Where what is entered will happen.
    pub site: usize,
}

impl Agenda {
    pub fn at(&mut self, at: Ms, what: Happening) {
        self.entered += 1;
        self.heap.push(Reverse(Entry { at, turn: self.entered, site: self.site, what }));
    }

    pub fn next(&self) -> Option<Ms> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub fn pop(&mut self) -> Option<(Ms, usize, Happening)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.site, entry.what))
    }
}
