//! Calls of the engine's HTTP API.

use super::{Ms, Secret, WorkspaceNo};
use crate::wire::node::DeliveryMode;

/// Calls of the engine's HTTP API that the running broker makes. Start-up calls are made before the loop.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineCall {
    /// `POST /v1/nodes` under the name by which the engine knows this node now, after a look-up by that name. Answers `{"token"}`; the token is cached by the daemon.
    MintNodeToken { node_name: String },
    /// `POST /v1/agents` (workspace key); a conflict rotates the token. Answers `{"id","name","token"}`.
    RegisterAgent { name: String, cli: String },
    /// `GET /v1/agents/:name` (workspace key). Answers `{"id","name"}`.
    LookUpAgent { name: String },
    /// `POST /v1/nodes/:name/agents`, under the name that this node is registered by now.
    BindAgent { node_name: String, name: String, session_ref: Option<String> },
    /// `POST /v1/channels` and `/join` with the agent's own token; "exists" and "already member" are success.
    JoinChannel { channel: String, token: Secret },
    /// `POST /v1/channels/:name/leave` with the agent's own token; "no such channel" and "no member" are success.
    LeaveChannel { channel: String, token: Secret },
    /// `POST /v1/channels/:name/messages` as the broker's agent of that workspace.
    PostChannel { workspace: WorkspaceNo, channel: String, text: String, mode: DeliveryMode, idempotency_key: String },
    /// `POST /v1/dm` as the broker's agent of that workspace.
    PostDm { workspace: WorkspaceNo, to: String, text: String, mode: DeliveryMode, idempotency_key: String },
    /// `POST /v1/messages/:id/replies` as the broker's agent of that workspace.
    PostReply { workspace: WorkspaceNo, message_id: String, text: String, idempotency_key: String },
    /// `POST /v1/agents/heartbeat` for the broker's agent of that workspace.
    Heartbeat { workspace: WorkspaceNo },
    /// `POST /v1/agents/disconnect` for the broker's agent of that workspace, at an orderly stop.
    Disconnect { workspace: WorkspaceNo },
}

/// A failed engine call: the last status, code and message survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineError {
    /// 0 = no HTTP answer (DNS, TCP, TLS, time-out).
    pub status: u16,
    /// The engine's code, `http_<status>` for a body that is not its JSON, `transport` without an answer.
    pub code: String,
    pub message: String,
    pub retry_after_ms: Option<Ms>,
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.status == 0 {
            write!(f, "{}", self.message)
        } else {
            write!(f, "{} (HTTP {}, code: {})", self.message, self.status, self.code)
        }
    }
}

impl std::error::Error for EngineError {}
