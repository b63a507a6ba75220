//! Envelopes on `/api/fleet/ws`: `{"v":2,"type","request_id","payload"}`, between the broker and a fleet sidecar.
//!
//! Inbound is lenient (unknown payload keys are ignored), except in `handler_result`: there exactly one of `output` and
//! `error` is present and nothing unknown beside them, because the result goes to the engine verbatim.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::node::Capability;

/// The envelope version this broker speaks.
pub const ENVELOPE_VERSION: u64 = 2;

/// What a sidecar says of the node in `register_node`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Overrides the node's name when not blank.
    pub name: String,
    /// Ignored when it differs from the node's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// 0 = unlimited.
    #[serde(default)]
    pub max_agents: u64,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Overrides the broker's version when not blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How the broker starts the sidecar again when it is gone without having said so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Supervision {
    pub argv: Vec<String>,
    pub cwd: String,
    /// Overlays the broker's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub restart_policy: RestartPolicy,
}

/// When something that ended is started again, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub enabled: bool,
    pub max_restarts: u32,
    /// Milliseconds between the end and the next start.
    pub cooldown_ms: u64,
    pub max_consecutive_failures: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy { enabled: true, max_restarts: 5, cooldown_ms: 2_000, max_consecutive_failures: 3 }
    }
}
