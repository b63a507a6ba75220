//! Bodies of the local API: what the core answers and what the API room answers itself.
//!
//! Member order is free and extra members are allowed; removals and type changes break 9.1.6 clients. Where a member may
//! be `null` on the wire, its field is an `Option` that is written as `null`; where it is left out instead, the field says
//! so.
//!
//! Errors come in two families. **S** (spawn, send, release): `{"success":false,"error":…}`, to which we add `message`
//! with the same text, because some clients read only that. **C** (everything else): `{"code":…,"message":…}`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::events::Ending;

mod broker;

pub use broker::*;

/// `protocol_version` of `GET /api/session`.
pub const PROTOCOL_VERSION: u64 = 2;

// -------------------------------------------------------------------------------------------------------------- errors

/// Family S.
pub fn failure(message: &str) -> Value {
    json!({"success": false, "error": message, "message": message})
}

/// Family S with the agent's name: spawn and release.
pub fn failure_of(name: &str, message: &str) -> Value {
    json!({"success": false, "name": name, "error": message, "message": message})
}

/// Family S with the target: send.
pub fn failure_to(to: &str, message: &str) -> Value {
    json!({"success": false, "to": to, "error": message, "message": message})
}

/// Family C.
pub fn coded(code: &str, message: &str) -> Value {
    json!({"code": code, "message": message})
}

/// Family C, 404: what 9.1.6 says on routes that reach for a terminal.
pub fn agent_not_found(name: &str) -> Value {
    coded("agent_not_found", &format!("agent_not_found: no worker named '{name}'"))
}

/// Family C, 409.
pub fn unsupported_runtime(name: &str) -> Value {
    coded("unsupported_runtime", &format!("unsupported_runtime: agent '{name}' has no terminal"))
}

/// The body of a 401. `error` is what 9.1.6 sends; `code` and `message` are what its clients look for.
pub fn unauthorized() -> Value {
    let (code, message) = ("unauthorized", "Missing or invalid API key");
    json!({
        "error": {"code": code, "message": message, "retryable": false, "statusCode": 401},
        "code": code,
        "message": message,
    })
}

// -------------------------------------------------------------------------------------------------------------- agents

/// A row of `GET /api/spawned` and `GET /api/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentRow {
    pub name: String,
    /// `pty` or `headless`.
    pub runtime: String,
    pub provider: Option<String>,
    pub cli: Option<String>,
    pub model: Option<String>,
    #[serde(rename = "sessionId")]
    pub session_id: Option<String>,
    pub team: Option<String>,
    pub channels: Vec<String>,
    /// `Dashboard` (API, sidecar) or `Relaycast` (engine).
    pub parent: Option<String>,
    pub pid: Option<u32>,
    /// The reference's wrapper process; here the same as `pid`.
    #[serde(rename = "workerPid")]
    pub worker_pid: Option<u32>,
    pub last_activity_ms: u64,
    /// RFC 3339.
    pub last_activity_at: String,
    pub context_budget_pct: Option<u8>,
    /// `starting`, `ready`, `unrecognised` (25 s have passed) or `blocked` (ours).
    pub readiness: String,
    /// The question that blocks it.
    pub blocked_by: Option<String>,
    /// `working`, `idle` or `blocked_on_send`.
    pub current_state: String,
    pub pending_messages: u64,
}

/// `GET /api/spawned`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentsBody {
    pub agents: Vec<AgentRow>,
}

/// `POST /api/spawn`, 200. Clients check the types of all members but `pre_registered`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnedBody {
    pub success: bool,
    pub name: String,
    pub runtime: String,
    pub model: Option<String>,
    #[serde(rename = "sessionId")]
    pub session_id: Option<String>,
    pub pid: Option<u32>,
    pub pre_registered: bool,
    pub warning: Option<String>,
    /// The same text under the name of the event's member; left out without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_warning: Option<String>,
}

/// `DELETE /api/spawned/{n}`, 200, also for unknown names.
///
/// `end`: how the program has ended, if one ran for this release.
pub fn released(name: &str, end: Option<&Ending>) -> Value {
    let mut body = json!({"success": true, "name": name});
    if let (Some(body), Some(Ok(Value::Object(end)))) = (body.as_object_mut(), end.map(serde_json::to_value)) {
        body.extend(end);
    }
    body
}

/// `GET /api/spawned/{n}/snapshot`. `cursor` is row and column, 1-based; `screen` is plain text or base64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotBody {
    /// `plain` or `ansi`.
    pub format: String,
    pub rows: u16,
    pub cols: u16,
    pub cursor: (u16, u16),
    pub screen: String,
    /// Cumulative bytes of output that the picture includes.
    pub offset: u64,
}

/// `POST /api/input/{n}`; the same members in the acks of the input stream.
pub fn typed(name: &str, bytes_written: usize) -> Value {
    json!({"name": name, "bytes_written": bytes_written})
}

/// `POST /api/resize/{n}` with `release`. `released`: the session had the size and has it no more.
pub fn size_released(name: &str, released: bool) -> Value {
    json!({"name": name, "released": released})
}

/// `POST /api/resize/{n}`.
pub fn resized(name: &str, rows: u16, cols: u16) -> Value {
    json!({"name": name, "rows": rows, "cols": cols})
}

// ------------------------------------------------------------------------------------------------------------ messages

/// `GET /api/spawned/{n}/delivery-mode`. The revision is a decimal text: it may outgrow what a client's numbers hold.
pub fn delivery_mode(mode: &str, revision: u64) -> Value {
    json!({"mode": mode, "revision": revision.to_string()})
}

/// `PUT /api/spawned/{n}/delivery-mode`: mode and revision as they are now. `flushed` > 0 only from `manual_flush` to
/// `auto_inject`; not `matched`: something else was expected, and nothing was changed.
pub fn delivery_mode_set(mode: &str, revision: u64, matched: bool, flushed: usize) -> Value {
    json!({"mode": mode, "revision": revision.to_string(), "matched": matched, "flushed": flushed})
}

/// `POST /api/spawned/{n}/flush`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlushedBody {
    pub flushed: u64,
    /// Given up by this flush: none ever is here.
    pub dead_lettered: u64,
    /// Still held afterwards.
    pub held: u64,
    /// Why nothing of it is typed for now: `agent_starting`, `agent_not_reading`, `agent_releasing`.
    pub blocked_reason: Option<String>,
}

/// A row of `GET /api/spawned/{n}/pending`, oldest first. Absent optionals are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingRow {
    pub from: String,
    pub body: String,
    pub target: String,
    /// Always 2 in 9.1.6.
    pub priority: u8,
    /// `wait` or `steer`.
    pub mode: String,
    pub queued_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_alias: Option<String>,
}

/// `GET /api/spawned/{n}/pending`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingBody {
    pub pending: Vec<PendingRow>,
}

/// `POST /api/send`, 200. `delivered` when local agents took it, `relaycast_published` when the engine did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SentBody {
    pub success: bool,
    pub event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relaycast_published: Option<bool>,
    pub local: bool,
    /// What the engine calls the message: text, number or `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<Value>,
    pub workspace_id: Option<String>,
    pub workspace_alias: Option<String>,
    /// Promised by the client's type, never sent by 9.1.6.
    pub targets: Vec<String>,
}

/// A row of `GET /api/dead-letters`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterRow {
    pub delivery_id: String,
    pub worker_name: String,
    pub event_id: String,
    pub from: String,
    pub to: String,
    pub body: String,
    pub attempts: u32,
    pub reason: String,
    pub queued_at_ms: u64,
    pub failed_at_ms: u64,
    pub age_ms: u64,
}

/// `GET /api/dead-letters`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLettersBody {
    pub count: u64,
    pub dead_letters: Vec<DeadLetterRow>,
}

/// `GET /api/deliveries/{id}`: what became of one message. Times are Unix milliseconds, null until it has come so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReceiptBody {
    pub delivery_id: String,
    pub event_id: String,
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
    /// `queued`, `held`, `waiting`, `typed`, `read`, `echoed` or `window` (shown or not, within its window), `turn_started`;
    /// `done` of an agent without terminal; `dead`.
    pub state: String,
    pub attempts: u32,
    /// Why it waits or is dead.
    pub reason: Option<String>,
    pub queued_at: Option<u64>,
    pub waiting_since: Option<u64>,
    pub typed_at: Option<u64>,
    pub read_at: Option<u64>,
    pub verified_at: Option<u64>,
    pub verification: Option<String>,
    pub turn_started_at: Option<u64>,
    pub failed_at: Option<u64>,
}

/// Any of the bodies above as a [`Value`].
pub fn body<T: Serialize>(body: &T) -> Value {
    serde_json::to_value(body).expect("bodies hold no map with non-text keys")
}

// -------------------------------------------------------------------------------------------------------- input stream

/// The first frame of `/api/input/{n}/stream`.
pub fn input_ready(name: &str) -> Value {
    json!({"type": "pty_input_ready", "name": name})
}

/// Exactly one per input frame, in order of arrival.
pub fn input_ack(name: &str, bytes_written: u64) -> Value {
    json!({"type": "pty_input_ack", "name": name, "bytes_written": bytes_written})
}

/// 9.1.6 clients take any of these for fatal.
pub fn input_error(code: &str, message: &str, status: u16) -> Value {
    json!({"type": "pty_input_error", "code": code, "message": message, "retryable": status >= 500, "statusCode": status})
}

// -------------------------------------------------------------------------------------------------------------- events

/// Sent when durable events are lost to a client. `seq` is the last one that it cannot have any more.
pub fn replay_gap(requested: u64, oldest_available: u64, dropped: u64) -> Value {
    json!({
        "kind": "replay_gap",
        "requestedSinceSeq": requested,
        "oldestAvailable": oldest_available,
        "seq": oldest_available.saturating_sub(1),
        "droppedCount": dropped,
    })
}

/// One row of `/api/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsOfAgent {
    pub name: String,
    pub pid: u32,
    /// Resident memory of the agent's process.
    pub memory_bytes: u64,
    pub uptime_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsOfBroker {
    pub uptime_secs: u64,
    pub total_agents_spawned: u64,
    pub total_crashes: u64,
    pub total_restarts: u64,
    pub active_agents: u64,
}

/// `GET /api/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsBody {
    pub agents: Vec<MetricsOfAgent>,
    pub broker: MetricsOfBroker,
}

/// One end of an agent that was no clean one; also a row of `crash-insights.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrashRecord {
    pub agent_name: String,
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The number, as text.
    #[serde(default)]
    pub signal: Option<String>,
    /// Seconds since 1970.
    pub timestamp: u64,
    pub uptime_secs: u64,
    /// `oom`, `segfault`, `error`, `signal`, `unknown`.
    pub category: String,
    pub description: String,
    /// As the event of the end has them; not in the files of 9.1.6.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub cli: String,
    #[serde(default)]
    pub output: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrashPattern {
    pub category: String,
    pub count: u64,
    pub agents: Vec<String>,
}

/// `GET /api/crash-insights`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrashInsightsBody {
    pub total_crashes: u64,
    pub recent: Vec<CrashRecord>,
    pub patterns: Vec<CrashPattern>,
    /// 0 to 100.
    pub health_score: u64,
}

/// One conversation of `/api/threads`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThreadRow {
    pub thread_id: String,
    pub name: String,
    pub unread_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_message_at: Option<String>,
}

/// `GET /api/threads`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThreadsBody {
    pub threads: Vec<ThreadRow>,
}

/// A dead letter that could not be put back on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SkippedLetter {
    pub delivery_id: String,
    pub worker_name: String,
    pub reason: String,
}

/// `POST /api/dead-letters/redeliver`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RedeliveredBody {
    pub redelivered: Vec<String>,
    pub skipped: Vec<SkippedLetter>,
}

/// `POST /api/spawned/:name/model`.
pub fn model_set(name: &str, model: &str) -> Value {
    json!({"name": name, "model": model, "success": true})
}

/// `POST /api/agent-result`.
pub fn result_taken(name: &str, result_id: &str) -> Value {
    json!({"success": true, "name": name, "result_id": result_id})
}

/// `GET /api/history/stats`: 9.1.6 keeps no history and says so in zeros.
pub fn history_stats() -> Value {
    json!({"messageCount": 0, "sessionCount": 0, "activeSessions": 0, "uniqueAgents": 0, "oldestMessageDate": null})
}

#[cfg(test)]
mod tests;
