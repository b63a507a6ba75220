//! What goes into the core and what comes out of it: the contract between the pure broker and the rooms that own sockets,
//! terminals and files. Plain data, no behaviour.

mod agent;
mod api;
mod engine;
mod link;
mod records;
mod secret;

use serde_json::Value;

use crate::wire::events::Event;
use crate::wire::node::ToEngine;

pub use crate::sys::clock::Now;
pub use agent::{
    AgentCommand, AgentNote, AppServer, Continuity, Injection, LAST_WORDS_MAX, LastWords, Launch, ReleasePolicy,
    ServerAuth, Snapshot, SnapshotFormat, Variables, Verdict,
};
pub use api::{ApiAnswer, ApiCall, Expected, InboundMode, ResultReport, SendRequest, SpawnRequest};
pub use engine::{EngineCall, EngineError};
pub use link::{NodeCommand, NodeNote, ProcessNote, Refusal, SidecarCommand, SidecarNote, SuperviseCommand};
pub use records::{DeadLetter, Record, Session, StoredDelivery};
pub use secret::Secret;

/// Milliseconds, monotonic unless the name says `unix`.
pub type Ms = u64;

/// At this much of the context window or less an agent's state is told.
pub const LOW_PCT: u8 = 10;
/// Seconds of silence that are told even while a message is under way.
pub const LONG_SILENCE_SECS: u64 = 120;

/// The whole of a spawn, whatever it waits for; clients give up after 25 s.
pub const SPAWN_MS: Ms = 22_000;
/// Matches the answer to a call: made by the daemon for local API calls, by the core for engine calls.
pub type Ticket = u64;
/// One life of one agent process. A name is never an identity: what an older generation says is dropped.
pub type Generation = u64;
/// Position in [`Config::workspaces`].
pub type WorkspaceNo = usize;
/// One connection of the node socket.
pub type LinkGeneration = u64;
/// One connection of a fleet sidecar, numbered upwards by the API room: the newest wins.
pub type SidecarGeneration = u64;

/// What the broker is born with; fixed for its life.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub node_id: String,
    pub node_name: String,
    pub node_token: Secret,
    /// The token came from `RELAY_NODE_TOKEN`: never re-minted, never stored.
    pub token_pinned: bool,
    /// `relay-broker/<semver>`.
    pub node_version: String,
    pub broker_version: String,
    /// The workspaces that the broker is a member of: at least one.
    pub workspaces: Vec<Workspace>,
    /// Which of them agents, node and keys belong to.
    pub home: WorkspaceNo,
    /// The home is the default workspace: it is the only one, or was chosen. Otherwise it merely comes first.
    pub has_default: bool,
    pub base_url: Option<String>,
    /// Other names by which the broker knows itself.
    pub self_aliases: Vec<String>,
    /// Channels of agents spawned without any.
    pub default_channels: Vec<String>,
    /// `http://<callback host>:<port>/api/agent-result`; empty: there is no API.
    pub result_url: String,
    /// Lock, state file and journal of cursors: `--persist` or `--state-dir`.
    pub durable: bool,
    /// `--persist`: no owner lease, mode `persist`.
    pub persist: bool,
    /// Whole milliseconds before an `agent.register` without answer fails the spawn (10 s).
    pub register_timeout_ms: Ms,
    /// Twenty-five times this long a message of the local API waits for an agent that has gone with an earlier life.
    pub delivery_retry_ms: Ms,
}

/// A workspace and the broker's own agent there.
#[derive(Debug, Clone, PartialEq)]
pub struct Workspace {
    pub id: String,
    pub alias: Option<String>,
    pub key: Secret,
    pub self_name: String,
    pub self_agent_id: String,
}

/// Everything that can happen to the broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The first input: connect.
    Start,
    /// A deadline asked for by [`super::Broker::next_deadline`] may have passed.
    Tick,
    Node(NodeNote),
    Agent {
        generation: Generation,
        note: AgentNote,
    },
    Engine {
        ticket: Ticket,
        outcome: Result<Value, EngineError>,
    },
    Api {
        ticket: Ticket,
        call: Box<ApiCall>,
    },
    Sidecar {
        generation: SidecarGeneration,
        note: SidecarNote,
    },
    /// The supervised process of the sidecar.
    Supervised(ProcessNote),
    /// The answer to [`Effect::Recall`]: what was left, as text for the agent; `None`: nothing that can be read.
    Recalled {
        generation: Generation,
        block: Option<String>,
    },
    /// The journal could not be written. The daemon keeps the records and tries again; until then it withholds the
    /// acknowledgements and results of this and later turns, and sends them once the records are on disk.
    JournalFailed {
        error: String,
    },
    /// SIGTERM, SIGINT, SIGHUP or `POST /api/shutdown`.
    Stop {
        reason: &'static str,
    },
}

/// Everything that the broker can do. The daemon carries effects out in order, except that all journal records of one
/// turn are on disk before anything else of that turn leaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Node(NodeCommand),
    /// Starts the thread of a new agent, which looks for the program and reports [`AgentNote::Prepared`] or `Refused`.
    Launch(Launch),
    Agent {
        generation: Generation,
        command: AgentCommand,
    },
    Engine {
        ticket: Ticket,
        call: EngineCall,
    },
    Reply {
        ticket: Ticket,
        answer: ApiAnswer,
    },
    /// Dropped silently if that connection is gone.
    Sidecar {
        generation: SidecarGeneration,
        command: SidecarCommand,
    },
    Supervise(SuperviseCommand),
    Event(Event),
    /// Keep what a session leaves, in place of what it left before. Done when the next effect is.
    Leave(Session),
    /// Read what the last session of that name has left; answered by [`Input::Recalled`].
    Recall {
        generation: Generation,
        name: String,
    },
    Journal(Record),
    Log {
        level: log::Level,
        text: String,
    },
    /// Everything that an orderly stop waits for is done.
    Exit,
}

impl Effect {
    /// While the journal cannot be written: whether this has to wait for it. What says that something is on disk does; once
    /// something waits, so do the registrations of agents, or they would overtake a release that is to be answered.
    pub fn waits_for_journal(&self, something_waits: bool) -> bool {
        match self {
            Effect::Event(Event::DeliveryAcked { .. }) => true,
            // A message that is accepted here must not be lost.
            Effect::Reply { answer, .. } => answer.status == 200 && answer.body["local"] == true,
            Effect::Node(NodeCommand::Send { frame, .. }) => match frame {
                ToEngine::DeliveryAck(_) | ToEngine::ActionResult(_) => true,
                ToEngine::AgentRegister(_) => something_waits,
                _ => false,
            },
            _ => false,
        }
    }
}
