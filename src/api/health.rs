//! `GET /health`, which never asks the loop: a stuck broker must still say that it is there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crossbeam_channel::Sender;

use crate::http::{Handler, Reply, Request, Response};
use crate::sys::clock;
use crate::wire::api::{HealthBody, Membership, NodeDelivery, body};

/// What the loop knows; it stores the whole of it after a turn that changed something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthFacts {
    /// `None`: not known yet.
    pub workspace_id: Option<String>,
    pub default_workspace_id: Option<String>,
    pub memberships: Vec<Membership>,
    pub agent_count: usize,
    pub pending_delivery_count: usize,
    /// The node link is open and registered.
    pub node_connected: bool,
    /// State of the node link; blank before there is one.
    pub node_state: &'static str,
    pub node_token_present: bool,
    pub dead_letter_count: usize,
}

/// A shared snapshot of the broker's state, and the count of WebSockets.
#[derive(Debug, Default)]
pub struct Health {
    facts: Mutex<HealthFacts>,
    websockets: AtomicUsize,
    startup_error: OnceLock<String>,
}

impl Health {
    fn facts(&self) -> MutexGuard<'_, HealthFacts> {
        // Facts are replaced as a whole.
        self.facts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn store(&self, facts: HealthFacts) {
        *self.facts() = facts;
    }

    /// Whoever started this process knows of a trouble of an earlier start (`AGENT_RELAY_STARTUP_ERROR_CODE`).
    pub fn tell_startup_error(&self, code: &str) {
        // The first one counts; there is only one start.
        let _ = self.startup_error.set(code.to_string());
    }

    /// The body of `GET /health` at this moment. Uptime counts from the start of the process's clock.
    pub fn body(&self) -> HealthBody {
        let facts = self.facts().clone();
        let startup_error = self.startup_error.get().map(String::as_str);
        HealthBody {
            status: if startup_error == Some("rate_limit_exceeded") { "degraded" } else { "ok" }.into(),
            service: "agent-relay-listen".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: clock::now().mono,
            workspace_id: facts.workspace_id.unwrap_or_else(|| "ws_unknown".into()),
            default_workspace_id: facts.default_workspace_id,
            memberships: facts.memberships,
            agent_count: facts.agent_count as u64,
            pending_delivery_count: facts.pending_delivery_count as u64,
            ws_connections: self.websockets.load(Ordering::Relaxed) as u64,
            memory_mb: resident_bytes("self") >> 20,
            relaycast_connected: facts.node_connected && startup_error.is_none(),
            node_connected: facts.node_connected,
            node_state: if facts.node_state.is_empty() { "connecting" } else { facts.node_state }.into(),
            node_delivery: NodeDelivery { token_present: facts.node_token_present, connected: facts.node_connected },
            dead_letter_count: facts.dead_letter_count as u64,
        }
    }

    pub(super) fn response(&self) -> Response {
        Response::json(200, &body(&self.body()))
    }

    /// Counts one WebSocket until it is dropped.
    pub(super) fn count_websocket(self: &Arc<Health>) -> Counted {
        self.websockets.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

/// One open WebSocket; dropped with its session, also by a panic.
pub(super) struct Counted(Arc<Health>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.websockets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resident memory in bytes of a process, by its id or `self`; 0 when the kernel does not say, or it has ended.
pub(super) fn resident_bytes(process: &str) -> u64 {
    std::fs::read_to_string(format!("/proc/{process}/status"))
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib << 10)
}

/// What the port answers between its bind and the end of the engine's handshake. Clients know this state only by the words
/// `503` and `Service Unavailable` in their error message, which a JSON body would replace: so it is plain text.
pub struct Warmup {
    pub health: Arc<Health>,
    /// Takes one note, of the first client that was told to come again.
    pub turned_away: Sender<()>,
}

impl Handler for Warmup {
    fn precheck(&self, head: &Request) -> Option<Response> {
        if head.path == "/health" && matches!(head.method.as_str(), "GET" | "HEAD") {
            return None;
        }
        let _ = self.turned_away.try_send(());
        Some(Response::text(503, "Broker is starting, please retry").closing())
    }

    fn body_limit(&self, _head: &Request) -> usize {
        0
    }

    fn handle(&self, _request: Request) -> Reply {
        Reply::Response(self.health.response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_start_shows() {
        for (code, status, connected) in
            [(None, "ok", true), (Some("x"), "ok", false), (Some("rate_limit_exceeded"), "degraded", false)]
        {
            let health = Health::default();
            health.store(HealthFacts { node_connected: true, ..HealthFacts::default() });
            code.inspect(|code| health.tell_startup_error(code));
            let body = health.body();
            assert_eq!((body.status.as_str(), body.relaycast_connected), (status, connected), "{code:?}");
        }
    }

    #[test]
    fn health_is_what_was_stored_and_counted() {
        let health = Arc::new(Health::default());
        assert_eq!(health.body().workspace_id, "ws_unknown");
        assert!(!health.body().relaycast_connected);
        assert_eq!(health.body().node_state, "connecting");
        health.store(HealthFacts {
            workspace_id: Some("ws_1".into()),
            agent_count: 2,
            node_connected: true,
            node_state: "online",
            ..HealthFacts::default()
        });
        let (one, two) = (health.count_websocket(), health.count_websocket());
        drop(one);
        let body = health.body();
        assert_eq!((body.workspace_id.as_str(), body.agent_count, body.ws_connections), ("ws_1", 2, 1));
        assert!(body.relaycast_connected && body.node_delivery.connected);
        assert_eq!(body.node_state, "online");
        assert!(body.memory_mb >= 1, "{}", body.memory_mb);
        drop(two);
        assert_eq!(health.body().ws_connections, 0);
    }
}
