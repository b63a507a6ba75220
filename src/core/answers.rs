//! The answers of the local API, filled from the broker's state into the bodies of `wire::api`.

use serde::Serialize;
use serde_json::Value;

use super::Broker;
use super::dead::DeadLetters;
use super::ports::{ApiAnswer, ApiCall, Config, InboundMode, Ms, Snapshot, SnapshotFormat, Verdict, Workspace};
use super::roster::{Agent, Delivery, Roster};
use crate::wire::api::{
    self, AgentRow, AgentsBody, ConfigBody, Counters, DeadLetterRow, DeadLettersBody, NodeDelivery, NodeStatus,
    PendingBody, PendingDelivery, PendingRow, ReceiptBody, RenewedBody, SentBody, SessionBody, SnapshotBody,
    SpawnedBody, StatusBody,
};
use crate::wire::events::Ending;
use crate::wire::time::rfc3339;

pub(super) fn ok(body: Value) -> ApiAnswer {
    ApiAnswer { status: 200, body }
}

pub(super) fn whole<T: Serialize>(body: &T) -> ApiAnswer {
    ok(api::body(body))
}

/// Error family S without a name.
pub(super) fn refused(status: u16, error: &str) -> ApiAnswer {
    ApiAnswer { status, body: api::failure(error) }
}

pub(super) fn model_set(name: &str, model: &str) -> ApiAnswer {
    ok(api::model_set(name, model))
}

pub(super) fn threads(threads: Vec<api::ThreadRow>) -> ApiAnswer {
    whole(&api::ThreadsBody { threads })
}

/// Error family C.
pub(super) fn code(status: u16, code: &str, message: &str) -> ApiAnswer {
    ApiAnswer { status, body: api::coded(code, message) }
}

pub(super) fn no_agent(name: &str) -> ApiAnswer {
    ApiAnswer { status: 404, body: api::agent_not_found(name) }
}

/// In the error family of the route that was called.
pub(super) fn shutting_down(call: &ApiCall) -> ApiAnswer {
    const WHY: &str = "the broker is shutting down; start it again to use it";
    let body = match call {
        ApiCall::Spawn(request) => api::failure_of(&request.name, WHY),
        ApiCall::Release { name, .. } => api::failure_of(name, WHY),
        ApiCall::Send(request) => api::failure_to(&request.to, WHY),
        _ => api::coded("shutting_down", WHY),
    };
    ApiAnswer { status: 503, body }
}

pub(super) fn spawn_error(name: &str, error: &str) -> ApiAnswer {
    ApiAnswer { status: 500, body: api::failure_of(name, error) }
}

pub(super) fn send_error(status: u16, to: &str, error: &str) -> ApiAnswer {
    ApiAnswer { status, body: api::failure_to(to, error) }
}

pub(super) fn spawned(agent: &Agent) -> ApiAnswer {
    whole(&SpawnedBody {
        success: true,
        name: agent.name.clone(),
        runtime: agent.request.runtime().into(),
        model: agent.request.model.clone(),
        session_id: agent.session_id.clone(),
        pid: agent.pid,
        pre_registered: agent.pre_registered,
        warning: agent.warning.clone(),
        registration_warning: agent.warning.clone(),
    })
}

pub(super) fn released(name: &str, end: Option<&Ending>) -> ApiAnswer {
    ok(api::released(name, end))
}

fn agent_row(agent: &Agent) -> AgentRow {
    AgentRow {
        name: agent.name.clone(),
        runtime: agent.request.runtime().into(),
        provider: agent.request.provider(),
        cli: agent.request.row_cli(),
        model: agent.request.model.clone(),
        session_id: agent.session_id.clone(),
        team: agent.request.team.clone(),
        channels: agent.channels.clone(),
        parent: Some(if agent.from_engine { "Relaycast" } else { "Dashboard" }.into()),
        pid: agent.pid,
        worker_pid: agent.pid,
        last_activity_ms: agent.last_activity_unix,
        last_activity_at: rfc3339(agent.last_activity_unix),
        context_budget_pct: agent.context_pct,
        readiness: match agent.verdict {
            // Without a screen nothing is judged.
            Verdict::Starting if agent.ready => "ready",
            Verdict::Starting => "starting",
            Verdict::Ready => "ready",
            Verdict::Unrecognised => "unrecognised",
            Verdict::Blocked(_) => "blocked",
        }
        .into(),
        blocked_by: match agent.verdict {
            Verdict::Blocked(question) => Some(question.into()),
            _ => None,
        },
        current_state: agent.state.into(),
        pending_messages: agent.outstanding_count() as u64,
    }
}

fn agent_rows(roster: &Roster) -> Vec<AgentRow> {
    roster.iter().filter(|agent| agent.has_begun()).map(agent_row).collect()
}

pub(super) fn agents(roster: &Roster) -> ApiAnswer {
    whole(&AgentsBody { agents: agent_rows(roster) })
}

pub(super) fn typed(name: &str, bytes: usize) -> ApiAnswer {
    ok(api::typed(name, bytes))
}

pub(super) fn resized(name: &str, rows: u16, cols: u16) -> ApiAnswer {
    ok(api::resized(name, rows, cols))
}

pub(super) fn snapshot(format: SnapshotFormat, snapshot: &Snapshot) -> ApiAnswer {
    let format = match format {
        SnapshotFormat::Plain => "plain",
        SnapshotFormat::Ansi => "ansi",
    };
    whole(&SnapshotBody {
        format: format.into(),
        rows: snapshot.rows,
        cols: snapshot.cols,
        cursor: snapshot.cursor,
        screen: snapshot.screen.clone(),
        offset: snapshot.offset,
    })
}

pub(super) fn size_released(name: &str, released: bool) -> ApiAnswer {
    ok(api::size_released(name, released))
}

pub(super) fn delivery_mode(agent: &Agent) -> ApiAnswer {
    ok(api::delivery_mode(agent.mode.as_str(), agent.mode_revision))
}

pub(super) fn mode_set(agent: &Agent, matched: bool, flushed: usize) -> ApiAnswer {
    ok(api::delivery_mode_set(agent.mode.as_str(), agent.mode_revision, matched, flushed))
}

pub(super) fn pending(config: &Config, agent: &Agent) -> ApiAnswer {
    let held = agent.mode == InboundMode::ManualFlush;
    let waiting = agent.queue.iter().filter(|delivery| held && !delivery.exempt);
    whole(&PendingBody { pending: waiting.map(|delivery| pending_row(config, delivery)).collect() })
}

fn pending_row(config: &Config, delivery: &Delivery) -> PendingRow {
    // Agents belong to the home; what the broker made itself belongs to no workspace.
    let home = delivery.workspace.as_ref().map(|_| config.home());
    PendingRow {
        from: delivery.from.clone(),
        body: delivery.body.clone(),
        target: delivery.target.clone(),
        priority: delivery.priority,
        mode: delivery.mode.as_str().into(),
        queued_at_ms: delivery.queued_at_unix,
        event_id: Some(delivery.event_id.clone()),
        thread_id: delivery.thread_id.clone(),
        workspace_id: home.map(|home| home.id.clone()),
        workspace_alias: home.and_then(|home| home.alias.clone()),
    }
}

pub(super) fn status(broker: &Broker) -> ApiAnswer {
    let config = &broker.config;
    let now = broker.now.unix;
    let pending: Vec<PendingDelivery> = broker
        .roster
        .iter()
        .flat_map(|agent| agent.outstanding().map(move |delivery| (agent, delivery)))
        .map(|(agent, delivery)| PendingDelivery {
            delivery_id: delivery.delivery_id.clone(),
            worker_name: agent.name.clone(),
            event_id: delivery.event_id.clone(),
            from: delivery.from.clone(),
            to: delivery.target.clone(),
            attempts: delivery.attempts,
            queued_at_ms: delivery.queued_at_unix,
            age_ms: now.saturating_sub(delivery.queued_at_unix),
            last_error: delivery.last_error.clone(),
        })
        .collect();
    let rows = agent_rows(&broker.roster);
    whole(&StatusBody {
        agent_count: rows.len() as u64,
        agents: rows,
        pending_delivery_count: pending.len() as u64,
        pending_deliveries: pending,
        auth: config.auth(),
        node: NodeStatus {
            node_id: config.node_id.clone(),
            name: broker.link.node_name().to_string(),
            state: broker.link.state.as_str().into(),
            last_error: broker.link.last_error.clone(),
        },
        sidecar: broker.sidecar_status(),
        node_connected: broker.link.state == super::link::LinkState::Online,
        node_delivery: NodeDelivery { token_present: true, connected: broker.link.is_open() },
        dead_letter_count: broker.dead.len() as u64,
        counters: Counters {
            garbage_frames: broker.counters.garbage_frames,
            foreign_frames: broker.counters.foreign_frames,
            unknown_payloads: broker.counters.unknown_payloads,
            agents_spawned: broker.counters.spawned,
            agents_exited: broker.counters.exits,
        },
    })
}

pub(super) fn session(broker: &Broker) -> ApiAnswer {
    let config = &broker.config;
    whole(&SessionBody {
        broker_version: config.broker_version.clone(),
        protocol_version: api::PROTOCOL_VERSION,
        workspace_key: config.home().key.expose().into(),
        relay_base_url: config.base_url.clone(),
        default_workspace_id: config.default_workspace_id(),
        mode: if config.persist { "persist" } else { "ephemeral" }.into(),
        uptime_secs: broker.now.mono / 1000,
    })
}

pub(super) fn config(config: &Config) -> ApiAnswer {
    whole(&ConfigBody {
        workspace_key: config.home().key.expose().into(),
        default_workspace_id: config.default_workspace_id(),
        memberships: config.memberships(),
    })
}

pub(super) fn renewed(persist: bool) -> ApiAnswer {
    let expires_in_secs = if persist { 0 } else { super::LEASE_MS / 1000 };
    whole(&RenewedBody { renewed: true, expires_in_secs, persist })
}

pub(super) fn receipt(body: ReceiptBody) -> ApiAnswer {
    whole(&body)
}

pub(super) fn dead_letters(dead: &DeadLetters, now_unix: Ms) -> ApiAnswer {
    let rows: Vec<DeadLetterRow> = dead
        .iter()
        .map(|letter| DeadLetterRow {
            delivery_id: letter.delivery_id.clone(),
            worker_name: letter.worker_name.clone(),
            event_id: letter.event_id.clone(),
            from: letter.from.clone(),
            to: letter.to.clone(),
            body: letter.body.clone(),
            attempts: letter.attempts,
            reason: letter.reason.clone(),
            queued_at_ms: letter.queued_at_ms,
            failed_at_ms: letter.failed_at_ms,
            age_ms: now_unix.saturating_sub(letter.failed_at_ms),
        })
        .collect();
    whole(&DeadLettersBody { count: rows.len() as u64, dead_letters: rows })
}

pub(super) fn sent_locally(workspace: &Workspace, event_id: &str, names: &[String]) -> ApiAnswer {
    whole(&SentBody {
        success: true,
        event_id: event_id.to_string(),
        delivered: Some(names.len() as u64),
        relaycast_published: None,
        local: true,
        message_id: None,
        workspace_id: Some(workspace.id.clone()),
        workspace_alias: workspace.alias.clone(),
        targets: names.to_vec(),
    })
}

pub(super) fn sent_by_engine(workspace: &Workspace, event_id: &str, data: &Value) -> ApiAnswer {
    let message_id = data.get("id").or_else(|| data.pointer("/message/id")).cloned().unwrap_or(Value::Null);
    whole(&SentBody {
        success: true,
        event_id: event_id.to_string(),
        delivered: None,
        relaycast_published: Some(true),
        local: false,
        message_id: Some(message_id),
        workspace_id: Some(workspace.id.clone()),
        workspace_alias: workspace.alias.clone(),
        targets: Vec::new(),
    })
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
