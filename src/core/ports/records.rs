//! What is kept over the end of the process.

use serde_json::Value;

use super::Ms;
use crate::wire::node::DeliveryMode;

/// What a session leaves for its successor: the file `continuity/<name>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Session {
    pub agent_name: String,
    pub cli: String,
    pub initial_task: Option<String>,
    /// Seconds since 1970; none while it goes on.
    pub released_at: Option<u64>,
    pub lifetime_seconds: Option<u64>,
    /// No message is kept.
    pub message_history: Vec<Value>,
    pub summary: String,
}

/// What must survive a crash of this process. One JSON line each in the journal, `{"disposed":{…}}`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The agent's cursor: every sequenced frame up to `seq` is disposed. `msg_id` enters the ring of seen ids.
    Disposed { agent_id: String, agent: String, seq: u64, msg_id: String },
    /// A message that will not be delivered, with its reason.
    DeadLetter(DeadLetter),
    /// A message that nobody will repeat and that is not disposed yet: a frame without a number, one below what was
    /// acknowledged, or one of the local API.
    Unrepeated { agent_id: String, agent: String, key: String, delivery: StoredDelivery },
    /// A message of the local API is read and not confirmed yet: a next life does not type it again.
    UnrepeatedRead { agent_id: String, key: String },
    /// The first of these is over: confirmed, or dead.
    UnrepeatedDone { agent_id: String, key: String },
    /// A finished invocation, to be answered the same way again.
    Invocation { invocation_id: String, output: Option<Value>, error: Option<String>, at_unix: Ms },
    /// A dead letter was put back on its way; from then on [`Record::Unrepeated`] keeps it.
    Redelivered { delivery_id: String },
    /// The agent is gone for good: releasing it once more is a success, also after a restart.
    Gone { agent_id: String, agent: String },
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DeadLetter {
    pub delivery_id: String,
    pub worker_name: String,
    pub event_id: String,
    pub from: String,
    pub to: String,
    pub body: String,
    pub attempts: u32,
    pub reason: String,
    pub queued_at_ms: Ms,
    pub failed_at_ms: Ms,
}

/// A delivery as the journal keeps it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StoredDelivery {
    pub delivery_id: String,
    pub event_id: String,
    pub from: String,
    pub target: String,
    pub body: String,
    pub thread_id: Option<String>,
    #[serde(default = "usual_priority")]
    pub priority: u8,
    pub mode: DeliveryMode,
    pub queued_at_ms: Ms,
}

/// Of a direct message; what was journalled without one is shown with it.
fn usual_priority() -> u8 {
    2
}
