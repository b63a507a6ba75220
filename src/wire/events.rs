//! Events of the local API: one JSON object per text message of `/ws`, tagged by `kind`.

use serde::{Deserialize, Serialize};

/// How a program has ended. 9.1.6 has the first three members.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ending {
    pub code: Option<i32>,
    /// The number, as text.
    pub signal: Option<String>,
    /// `agent_requested`, `pty_closed`, `child_exited`, `worker_exited`; `agent_released` after a release.
    pub reason: String,
    #[serde(default)]
    pub uptime_secs: u64,
    /// The command line it was asked for with, without the arguments of the request.
    #[serde(default)]
    pub cli: String,
    /// The end of what its terminal showed, or of its lines: at most 2 KiB of plain text.
    #[serde(default)]
    pub output: String,
}

/// `seq` is set by the event hub on durable events; `worker_stream` and `delivery_active` carry none and are not replayed.
/// Absent optionals are written as `null` where 9.1.6 does so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    AgentSpawned {
        name: String,
        runtime: String,
        provider: Option<String>,
        cli: Option<String>,
        model: Option<String>,
        #[serde(rename = "sessionId")]
        session_id: Option<String>,
        pid: Option<u32>,
        /// `http_api` or `relaycast_ws`.
        source: String,
        pre_registered: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        registration_warning: Option<String>,
    },
    WorkerReady {
        name: String,
        runtime: String,
        provider: Option<String>,
        cli: Option<String>,
        model: Option<String>,
        #[serde(rename = "sessionId")]
        session_id: Option<String>,
        pid: Option<u32>,
    },
    WorkerStream {
        name: String,
        stream: String,
        chunk: String,
        offset: u64,
    },
    AgentIdle {
        name: String,
        idle_secs: u64,
        since: String,
    },
    /// Long without output although messages are under way.
    AgentBlockedOnSend {
        name: String,
        blocked_secs: u64,
        pending_delivery_count: u64,
    },
    AgentExit {
        name: String,
        reason: String,
    },
    AgentExited {
        name: String,
        #[serde(flatten)]
        end: Box<Ending>,
    },
    /// Its CLI says that little of its context window is left.
    AgentContextLow {
        name: String,
        pct: u8,
    },
    /// Its program has ended, or could not be started, and is started again after the delay.
    AgentRestarting {
        name: String,
        #[serde(flatten)]
        end: Box<Ending>,
        restart_count: u32,
        delay_ms: u64,
    },
    AgentRestarted {
        name: String,
        restart_count: u32,
    },
    /// It is not started again.
    AgentPermanentlyDead {
        name: String,
        reason: String,
    },
    AgentReleased {
        name: String,
    },
    RelayInbound {
        event_id: String,
        from: String,
        target: String,
        body: String,
        thread_id: Option<String>,
        workspace_id: Option<String>,
        workspace_alias: Option<String>,
    },
    /// `delivery_id` and `timestamp` when it is in the agent's queue; `from`, `target`, `reason` when it is held.
    DeliveryQueued {
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        delivery_id: Option<String>,
        event_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        timestamp: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Body and Enter are written.
    DeliveryInjected {
        name: String,
        delivery_id: String,
        event_id: String,
        timestamp: u64,
    },
    /// The kernel shows that the program has read it (ours; 9.1.6 has no such fact).
    DeliveryRead {
        name: String,
        delivery_id: String,
        event_id: String,
        timestamp: u64,
    },
    DeliveryAck {
        name: String,
        delivery_id: String,
        event_id: String,
        timestamp: Option<u64>,
    },
    DeliveryVerified {
        name: String,
        delivery_id: String,
        event_id: String,
        /// Ours, as that of `delivery_read` is.
        timestamp: u64,
        /// `echo` or `timeout_fallback`; `exit_code` of an agent without terminal.
        verification: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It is not typed yet, for this reason (ours): `human_draft`, somebody's unsent text stands in the composer.
    DeliveryWaiting {
        name: String,
        delivery_id: String,
        event_id: String,
        reason: String,
        timestamp: u64,
    },
    /// The program has shown more than the message itself since its Enter (ours).
    DeliveryTurnStarted {
        name: String,
        delivery_id: String,
        event_id: String,
        timestamp: u64,
    },
    /// An agent without terminal works on it.
    DeliveryActive {
        name: String,
        delivery_id: String,
        event_id: String,
        pattern: String,
    },
    /// An agent without terminal could not be started with it, or ended badly.
    DeliveryFailed {
        name: String,
        delivery_id: String,
        event_id: String,
        reason: String,
    },
    /// `delivery.ack` was sent to the engine (ours; 9.1.6 has no such event).
    DeliveryAcked {
        name: String,
        up_to_seq: u64,
        timestamp: u64,
    },
    /// No byte of it reached the terminal; it is tried again after a pause.
    DeliveryRetry {
        name: String,
        delivery_id: String,
        event_id: String,
        /// Failed so far.
        attempts: u32,
    },
    DeliveryStalled {
        name: String,
        delivery_id: String,
        event_id: String,
    },
    /// A hole in the engine's numbering that nothing filled.
    DeliveryGap {
        name: String,
        from_seq: u64,
        to_seq: u64,
    },
    DeliveryDropped {
        name: String,
        count: u64,
        reason: String,
    },
    MessageDeliveryConfirmed {
        name: String,
        delivery_id: String,
        event_id: String,
        from: String,
        to: String,
    },
    MessageDeliveryFailed {
        name: String,
        delivery_id: String,
        event_id: String,
        from: String,
        to: String,
        attempts: u32,
        #[serde(rename = "lastError")]
        last_error: String,
    },
    DeliveryReadAck {
        name: String,
        delivery_id: String,
        event_id: String,
        status: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    DeadLetterAdded {
        name: String,
        delivery_id: String,
        event_id: String,
        from: String,
        to: String,
        attempts: u32,
        reason: String,
    },
    DeadLetterRedelivered {
        name: String,
        delivery_id: String,
        event_id: String,
    },
    /// What an agent has reported with its token.
    AgentResult {
        name: String,
        result_id: String,
        data: serde_json::Value,
        #[serde(rename = "final")]
        is_final: bool,
        metadata: serde_json::Value,
    },
    AgentInboundDeliveryModeChanged {
        name: String,
        previous_mode: String,
        mode: String,
    },
    AgentPendingDrained {
        name: String,
        count: u64,
        reason: String,
    },
    /// Channels that this change has added to the agent's.
    ChannelSubscribed {
        name: String,
        channels: Vec<String>,
    },
    ChannelUnsubscribed {
        name: String,
        channels: Vec<String>,
    },
    WorkerError {
        name: String,
        error: WorkerErrorDetail,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerErrorDetail {
    pub code: String,
    pub message: String,
    pub retryable: bool,
}

impl Event {
    /// A delivery is in the agent's queue.
    pub fn queued(name: &str, delivery_id: &str, event_id: &str, timestamp: u64) -> Event {
        Event::DeliveryQueued {
            name: name.to_string(),
            delivery_id: Some(delivery_id.to_string()),
            event_id: event_id.to_string(),
            timestamp: Some(timestamp),
            from: None,
            target: None,
            reason: None,
        }
    }

    /// The terminal does not take what is written to it.
    pub fn write_failed(name: &str, message: &str, retryable: bool) -> Event {
        let error = WorkerErrorDetail { code: "pty_write_failed".into(), message: message.to_string(), retryable };
        Event::WorkerError { name: name.to_string(), error }
    }

    /// Something about an agent without terminal went wrong.
    pub fn trouble(name: &str, code: &str, message: &str) -> Event {
        let error = WorkerErrorDetail { code: code.into(), message: message.to_string(), retryable: false };
        Event::WorkerError { name: name.to_string(), error }
    }

    /// A delivery is held until its agent's human lets it through.
    pub fn held(name: &str, event_id: &str, from: &str, target: &str) -> Event {
        Event::DeliveryQueued {
            name: name.to_string(),
            delivery_id: None,
            event_id: event_id.to_string(),
            timestamp: None,
            from: Some(from.to_string()),
            target: Some(target.to_string()),
            reason: Some("inbound_delivery_manual_flush".into()),
        }
    }

    /// Durable events are numbered and replayed; the others are shown to whoever watches at the moment.
    pub fn is_durable(&self) -> bool {
        !matches!(self, Event::WorkerStream { .. } | Event::DeliveryActive { .. })
    }
}
