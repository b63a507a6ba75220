//! Bodies about the broker itself: health, session, configuration, status, workspaces.

use super::AgentRow;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub workspace_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_alias: Option<String>,
    pub is_default: bool,
}

/// State of the link over which messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDelivery {
    pub token_present: bool,
    pub connected: bool,
}

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthBody {
    /// `ok`.
    pub status: String,
    /// `agent-relay-listen`.
    pub service: String,
    pub version: String,
    pub uptime_ms: u64,
    /// `ws_unknown` before the workspace is known.
    pub workspace_id: String,
    pub default_workspace_id: Option<String>,
    pub memberships: Vec<Membership>,
    pub agent_count: u64,
    pub pending_delivery_count: u64,
    pub ws_connections: u64,
    pub memory_mb: u64,
    pub relaycast_connected: bool,
    /// Later releases: the same fact under another name.
    pub node_connected: bool,
    /// As [`NodeStatus::state`] (ours).
    pub node_state: String,
    pub node_delivery: NodeDelivery,
    pub dead_letter_count: u64,
}

/// `GET /api/session`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionBody {
    pub broker_version: String,
    /// [`PROTOCOL_VERSION`].
    pub protocol_version: u64,
    pub workspace_key: String,
    pub relay_base_url: Option<String>,
    pub default_workspace_id: Option<String>,
    /// `persist` or `ephemeral`.
    pub mode: String,
    pub uptime_secs: u64,
}

/// `POST /api/session/renew`: 120 s, or 0 with `persist`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RenewedBody {
    pub renewed: bool,
    pub expires_in_secs: u64,
    pub persist: bool,
}

/// `GET /api/config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigBody {
    pub workspace_key: String,
    pub default_workspace_id: Option<String>,
    pub memberships: Vec<Membership>,
}

/// `GET /api/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusBody {
    pub agent_count: u64,
    pub agents: Vec<AgentRow>,
    pub pending_delivery_count: u64,
    pub pending_deliveries: Vec<PendingDelivery>,
    pub auth: AuthStatus,
    pub node: NodeStatus,
    pub sidecar: SidecarStatus,
    #[serde(rename = "nodeConnected")]
    pub node_connected: bool,
    #[serde(rename = "nodeDelivery")]
    pub node_delivery: NodeDelivery,
    #[serde(rename = "deadLetterCount")]
    pub dead_letter_count: u64,
    pub counters: Counters,
}

/// What the operator is told of the node link (ours).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node_id: String,
    pub name: String,
    /// `connecting`, `online`, `auth_rejected`, `superseded` or `closing`.
    pub state: String,
    pub last_error: Option<String>,
}

/// What the operator is told of the fleet sidecar (ours).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SidecarStatus {
    pub attached: bool,
    pub handlers: Vec<String>,
    /// It would be started again, were it gone.
    pub supervised: bool,
    /// Since it was well for a minute.
    pub restarts: u32,
    pub last_error: Option<String>,
}

/// Since the start (ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub garbage_frames: u64,
    pub foreign_frames: u64,
    pub unknown_payloads: u64,
    pub agents_spawned: u64,
    pub agents_exited: u64,
}

/// `doctor` calls a delivery stuck when `age_ms` ≥ 10000 or `last_error` is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingDelivery {
    pub delivery_id: String,
    pub worker_name: String,
    pub event_id: String,
    pub from: String,
    pub to: String,
    pub attempts: u32,
    pub queued_at_ms: u64,
    pub age_ms: u64,
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthStatus {
    pub authenticated: bool,
    pub workspace_count: u64,
    pub default_workspace_id: Option<String>,
    pub workspaces: Vec<AuthWorkspace>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthWorkspace {
    pub workspace_id: String,
    pub workspace_alias: Option<String>,
    pub self_name: String,
    pub self_agent_id: String,
    pub authenticated: bool,
    pub default: bool,
}
