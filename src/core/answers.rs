//! The bodies of the local API's answers, made from the broker's state. Shapes as 9.1.6 clients read them.

use serde_json::{Value, json};

use super::Broker;
use super::dead::DeadLetters;
use super::ports::{ApiAnswer, Config, InboundMode, Ms, Snapshot, SnapshotFormat};
use super::roster::{Agent, Delivery, Roster};
use crate::wire::time::rfc3339;

/// The version of the client protocol, as `/api/session` tells it.
const PROTOCOL_VERSION: u64 = 2;

pub(super) fn ok(body: Value) -> ApiAnswer {
    ApiAnswer { status: 200, body }
}

/// Error family S with its `message` twin: clients read either.
fn failure(status: u16, error: &str, key: &str, value: &str) -> ApiAnswer {
    ApiAnswer { status, body: json!({"success": false, "error": error, "message": error, key: value}) }
}

/// Error family C.
pub(super) fn code(status: u16, code: &str, message: &str) -> ApiAnswer {
    ApiAnswer { status, body: json!({"code": code, "message": message}) }
}

pub(super) fn no_agent(name: &str) -> ApiAnswer {
    code(404, "agent_not_found", &format!("agent_not_found: no worker named '{name}'"))
}

pub(super) fn shutting_down() -> ApiAnswer {
    code(503, "shutting_down", "the broker is shutting down; start it again to use it")
}

pub(super) fn spawn_error(name: &str, error: &str) -> ApiAnswer {
    failure(500, error, "name", name)
}

pub(super) fn send_error(status: u16, to: &str, error: &str) -> ApiAnswer {
    failure(status, error, "to", to)
}

pub(super) fn spawned(agent: &Agent) -> ApiAnswer {
    let mut body = json!({
        "success": true,
        "name": agent.name,
        "runtime": "pty",
        "model": agent.request.model,
        "sessionId": agent.request.session_ref,
        "pid": agent.pid,
        "pre_registered": agent.pre_registered,
        "warning": agent.warning,
    });
    if let Some(warning) = &agent.warning {
        body["registration_warning"] = json!(warning);
    }
    ok(body)
}

pub(super) fn released(name: &str) -> ApiAnswer {
    ok(json!({"success": true, "name": name}))
}

pub(super) fn agent_row(agent: &Agent) -> Value {
    json!({
        "name": agent.name,
        "runtime": "pty",
        "provider": null,
        "cli": agent.request.cli,
        "model": agent.request.model,
        "sessionId": agent.request.session_ref,
        "team": agent.request.team,
        "channels": agent.channels,
        "parent": if agent.from_engine { "Relaycast" } else { "Dashboard" },
        "pid": agent.pid,
        "workerPid": agent.pid,
        "last_activity_ms": agent.last_activity_unix,
        "last_activity_at": rfc3339(agent.last_activity_unix),
        "context_budget_pct": null,
        "current_state": agent.state,
        "pending_messages": agent.outstanding().count(),
    })
}

fn agent_rows(roster: &Roster) -> Vec<Value> {
    roster.iter().filter(|agent| agent.pid.is_some()).map(agent_row).collect()
}

pub(super) fn agents(roster: &Roster) -> ApiAnswer {
    ok(json!({"agents": agent_rows(roster)}))
}

pub(super) fn typed(name: &str, bytes: usize) -> ApiAnswer {
    ok(json!({"name": name, "bytes_written": bytes}))
}

pub(super) fn resized(name: &str, rows: u16, cols: u16) -> ApiAnswer {
    ok(json!({"name": name, "rows": rows, "cols": cols}))
}

pub(super) fn snapshot(format: SnapshotFormat, snapshot: &Snapshot) -> ApiAnswer {
    ok(json!({
        "format": match format { SnapshotFormat::Plain => "plain", SnapshotFormat::Ansi => "ansi" },
        "rows": snapshot.rows,
        "cols": snapshot.cols,
        "cursor": [snapshot.cursor.0, snapshot.cursor.1],
        "screen": snapshot.screen,
        "offset": snapshot.offset,
    }))
}

pub(super) fn delivery_mode(mode: InboundMode) -> ApiAnswer {
    ok(json!({"mode": mode.as_str()}))
}

pub(super) fn mode_set(mode: InboundMode, flushed: usize) -> ApiAnswer {
    ok(json!({"mode": mode.as_str(), "flushed": flushed}))
}

pub(super) fn flushed(count: usize) -> ApiAnswer {
    ok(json!({"flushed": count}))
}

pub(super) fn pending(agent: &Agent) -> ApiAnswer {
    let held = agent.mode == InboundMode::ManualFlush;
    let rows: Vec<Value> = agent.queue.iter().filter(|delivery| held && !delivery.exempt).map(pending_row).collect();
    ok(json!({"pending": rows}))
}

fn pending_row(delivery: &Delivery) -> Value {
    let mut row = json!({
        "from": delivery.from,
        "body": delivery.body,
        "target": delivery.target,
        "priority": delivery.priority,
        "mode": delivery.mode.as_str(),
        "queued_at_ms": delivery.queued_at_unix,
        "event_id": delivery.event_id,
    });
    if let Some(thread) = &delivery.thread_id {
        row["thread_id"] = json!(thread);
    }
    row
}

pub(super) fn status(broker: &Broker) -> ApiAnswer {
    let config = &broker.config;
    let now = broker.now.unix;
    let pending: Vec<Value> = broker
        .roster
        .iter()
        .flat_map(|agent| agent.outstanding().map(move |delivery| (agent, delivery)))
        .map(|(agent, delivery)| {
            json!({
                "delivery_id": delivery.delivery_id,
                "worker_name": agent.name,
                "event_id": delivery.event_id,
                "from": delivery.from,
                "to": delivery.target,
                "attempts": delivery.attempts,
                "queued_at_ms": delivery.queued_at_unix,
                "age_ms": now.saturating_sub(delivery.queued_at_unix),
                "last_error": delivery.last_error,
            })
        })
        .collect();
    let rows = agent_rows(&broker.roster);
    ok(json!({
        "agent_count": rows.len(),
        "agents": rows,
        "pending_delivery_count": pending.len(),
        "pending_deliveries": pending,
        "auth": {
            "authenticated": true,
            "workspace_count": 1,
            "default_workspace_id": config.workspace_id,
            "workspaces": [{
                "workspace_id": config.workspace_id,
                "workspace_alias": config.workspace_alias,
                "self_name": config.self_name,
                "self_agent_id": config.self_agent_id,
                "authenticated": true,
                "default": true,
            }],
        },
        "node": {
            "node_id": config.node_id,
            "name": broker.link.node_name(),
            "state": broker.link.state.as_str(),
            "last_error": broker.link.last_error,
        },
        "nodeConnected": broker.link.state == super::link::LinkState::Online,
        "nodeDelivery": {"tokenPresent": true, "connected": broker.link.is_open()},
        "deadLetterCount": broker.dead.len(),
        "counters": {
            "garbage_frames": broker.counters.garbage_frames,
            "foreign_frames": broker.counters.foreign_frames,
            "unknown_payloads": broker.counters.unknown_payloads,
            "agents_spawned": broker.counters.spawned,
            "agents_exited": broker.counters.exits,
        },
    }))
}

pub(super) fn session(broker: &Broker) -> ApiAnswer {
    let config = &broker.config;
    ok(json!({
        "broker_version": config.broker_version,
        "protocol_version": PROTOCOL_VERSION,
        "workspace_key": config.workspace_key.expose(),
        "relay_base_url": config.base_url,
        "default_workspace_id": config.workspace_id,
        "mode": if config.persist { "persist" } else { "ephemeral" },
        "uptime_secs": broker.now.mono / 1000,
    }))
}

pub(super) fn config(config: &Config) -> ApiAnswer {
    ok(json!({
        "workspaceKey": config.workspace_key.expose(),
        "defaultWorkspaceId": config.workspace_id,
        "memberships": memberships(config),
    }))
}

/// The workspaces that this broker is attached to.
pub fn memberships(config: &Config) -> Value {
    let mut membership = json!({"workspace_id": config.workspace_id, "is_default": true});
    if let Some(alias) = &config.workspace_alias {
        membership["workspace_alias"] = json!(alias);
    }
    json!([membership])
}

pub(super) fn renewed(persist: bool) -> ApiAnswer {
    let secs = if persist { 0 } else { super::LEASE_MS / 1000 };
    ok(json!({"renewed": true, "expires_in_secs": secs, "persist": persist}))
}

pub(super) fn dead_letters(dead: &DeadLetters, now_unix: Ms) -> ApiAnswer {
    let rows: Vec<Value> = dead
        .iter()
        .map(|letter| {
            json!({
                "delivery_id": letter.delivery_id,
                "worker_name": letter.worker_name,
                "event_id": letter.event_id,
                "from": letter.from,
                "to": letter.to,
                "body": letter.body,
                "attempts": letter.attempts,
                "reason": letter.reason,
                "queued_at_ms": letter.queued_at_ms,
                "failed_at_ms": letter.failed_at_ms,
                "age_ms": now_unix.saturating_sub(letter.failed_at_ms),
            })
        })
        .collect();
    ok(json!({"count": rows.len(), "dead_letters": rows}))
}

pub(super) fn sent_locally(config: &Config, event_id: &str, names: &[String]) -> ApiAnswer {
    ok(json!({
        "success": true,
        "event_id": event_id,
        "delivered": names.len(),
        "local": true,
        "targets": names,
        "workspace_id": config.workspace_id,
        "workspace_alias": config.workspace_alias,
    }))
}

pub(super) fn sent_by_engine(config: &Config, event_id: &str, data: &Value) -> ApiAnswer {
    let message_id = data.get("id").or_else(|| data.pointer("/message/id")).cloned().unwrap_or(Value::Null);
    ok(json!({
        "success": true,
        "event_id": event_id,
        "relaycast_published": true,
        "local": false,
        "targets": [],
        "message_id": message_id,
        "workspace_id": config.workspace_id,
        "workspace_alias": config.workspace_alias,
    }))
}

/// Why an id made by the broker has no read mark at the engine.
pub(super) fn synthetic_reason(event_id: &str) -> Option<&'static str> {
    const REASONS: &[(&str, &str)] = &[
        ("http_", "http_api_synthetic_event_id"),
        ("init_", "initial_task_synthetic_event_id"),
        ("cont_load_", "continuity_synthetic_event_id"),
        ("flush_", "manual_flush_synthetic_event_id"),
    ];
    if event_id.trim().is_empty() {
        return Some("blank_event_id");
    }
    REASONS.iter().find(|(prefix, _)| event_id.starts_with(prefix)).map(|(_, reason)| *reason)
}
