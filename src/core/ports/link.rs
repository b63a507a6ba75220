//! The link to the engine, and the sidecar: what they are told, and what they tell.

use serde_json::Value;

use super::{LinkGeneration, Secret};
use crate::wire::node::{FrameError, FromEngine, ToEngine};

/// What the core tells the node link.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeCommand {
    /// Connect now. A link that is open under an older generation is dropped first.
    Connect { generation: LinkGeneration, token: Secret },
    /// Dropped silently if that connection is gone.
    Send { generation: LinkGeneration, frame: ToEngine },
    /// A WebSocket Ping, so that a half-open connection shows.
    Ping { generation: LinkGeneration },
    /// Send what is queued, Close 1000, wait for the peer's close at most a second.
    Close { generation: LinkGeneration },
}

/// What the node link tells the core.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeNote {
    /// The handshake ended in 101.
    Opened {
        generation: LinkGeneration,
    },
    /// The handshake did not end in 101.
    Refused {
        generation: LinkGeneration,
        why: Refusal,
    },
    Frame {
        generation: LinkGeneration,
        frame: FromEngine,
    },
    /// An inbound message that is no usable frame. The connection stays.
    Garbage {
        generation: LinkGeneration,
        error: FrameError,
    },
    /// The connection ended, by whatever side. `reason` is the close reason (`superseded`) or what went wrong.
    Closed {
        generation: LinkGeneration,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unauthorized,
    Status(u16),
    /// DNS, TCP, TLS, time-out: in words.
    Io(String),
}

/// What the API room tells of a sidecar's connection. What the sidecar asks for comes as [`ApiCall`]s with tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SidecarNote {
    /// The handshake ended in 101. An older connection is superseded by it.
    Attached,
    /// The connection ended by whatever side and reason, a full queue (128 frames) included. The last note of a generation.
    Gone { reason: String },
}

/// What the core tells a sidecar's connection.
#[derive(Debug, Clone, PartialEq)]
pub enum SidecarCommand {
    /// `invoke_handler`; answered by [`ApiCall::HandlerResult`].
    Invoke { invocation_id: String, name: String, input: Value },
    /// Write what is queued, then close with 1000 and this reason.
    Close { reason: &'static str },
}

/// The child that runs a sidecar again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuperviseCommand {
    /// stdin null, output to the broker's stderr, the broker's secrets taken out of its environment.
    Start { argv: Vec<String>, cwd: String, env: Vec<(String, String)> },
    /// TERM, 3 s, KILL, for the whole tree. Answered by [`ProcessNote::Ended`] when one runs.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessNote {
    Started {
        pid: u32,
    },
    /// It could not be started.
    Failed {
        error: String,
    },
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
}
