//! Calls of the local API, and their answers.

use serde_json::Value;

use super::{AppServer, Secret, SidecarGeneration, SnapshotFormat};
use crate::wire::fleet::{Manifest, RestartPolicy, Supervision};
use crate::wire::node::{ActionOutcome, DeliveryMode};

/// A call of the local API that the core answers. Routing, keys, limits and JSON are the API room's.
#[derive(Debug, Clone, PartialEq)]
pub enum ApiCall {
    Spawn(SpawnRequest),
    ListAgents,
    Release {
        name: String,
        reason: Option<String>,
    },
    Send(SendRequest),
    Type {
        name: String,
        bytes: Vec<u8>,
    },
    Resize {
        name: String,
        rows: u16,
        cols: u16,
        /// The session that claims the size for itself; without one the size is set as it is asked for.
        session: Option<String>,
    },
    /// A session lets go of the size that it has claimed.
    ReleaseSize {
        name: String,
        session: String,
    },
    Snapshot {
        name: String,
        format: SnapshotFormat,
    },
    DeliveryMode {
        name: String,
    },
    SetDeliveryMode {
        name: String,
        mode: InboundMode,
        expected: Expected,
    },
    Pending {
        name: String,
    },
    Flush {
        name: String,
    },
    Status,
    Session,
    Config,
    RenewLease,
    DeadLetters,
    /// What became of one message.
    Receipt {
        delivery_id: String,
    },
    /// `POST /api/dead-letters/redeliver`: one by its delivery id, or all.
    Redeliver {
        delivery_id: Option<String>,
    },
    /// `GET /api/metrics`, of one agent or all; `memory_bytes` is the API room's to fill.
    Metrics {
        agent: Option<String>,
    },
    CrashInsights,
    Threads,
    /// `POST /api/spawned/:name/model`: types `/model m` and Enter.
    SetModel {
        name: String,
        model: String,
    },
    /// `POST /api/agent-result`.
    Result(ResultReport),
    Shutdown,
    /// `POST /api/spawned/:name/subscribe`. Answers `{name, channels: [all after the change]}`.
    Subscribe {
        name: String,
        channels: Vec<String>,
    },
    Unsubscribe {
        name: String,
        channels: Vec<String>,
    },
    /// `register_node`. Answers `{registered: true}`; of a superseded connection an error.
    RegisterNode {
        sidecar: SidecarGeneration,
        manifest: Manifest,
        supervision: Option<Supervision>,
    },
    /// `register_handlers`: trimmed, without blanks; replaces. Answers `{handlers_live}`.
    RegisterHandlers {
        sidecar: SidecarGeneration,
        names: Vec<String>,
    },
    /// `handler_result`. Answers `{completed: true}`, or 404 with code `unknown_invocation`.
    HandlerResult {
        sidecar: SidecarGeneration,
        invocation_id: String,
        outcome: ActionOutcome,
    },
    /// `deregister_node`. Answers `{deregistered: true}`; the core then closes the connection.
    DeregisterNode {
        sidecar: SidecarGeneration,
    },
}

/// What a caller believes of an agent's delivery mode; a change that rests on an error is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    pub mode: Option<InboundMode>,
    pub revision: Option<u64>,
}

/// What an agent reports of its work.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultReport {
    /// The proof of who reports.
    pub token: Secret,
    /// Who claims to report; must be the token's agent.
    pub name: Option<String>,
    pub data: Value,
    pub is_final: bool,
    pub metadata: Option<Value>,
}

/// What the API room sends back: a status and JSON, made by the core with the constructors of `wire::api`.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiAnswer {
    pub status: u16,
    pub body: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InboundMode {
    #[default]
    AutoInject,
    ManualFlush,
}

impl InboundMode {
    pub fn as_str(self) -> &'static str {
        match self {
            InboundMode::AutoInject => "auto_inject",
            InboundMode::ManualFlush => "manual_flush",
        }
    }

    /// Trimmed, case-free.
    pub fn parse(text: &str) -> Option<InboundMode> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto_inject" => Some(InboundMode::AutoInject),
            "manual_flush" => Some(InboundMode::ManualFlush),
            _ => None,
        }
    }
}

/// `POST /api/spawn` after its form checks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SpawnRequest {
    pub name: String,
    /// The command line that is started.
    pub cli: String,
    /// Shown instead of the command: the `cli` given beside a `harnessConfig`.
    pub label: Option<String>,
    pub args: Vec<String>,
    pub model: Option<String>,
    pub cwd: Option<String>,
    pub team: Option<String>,
    pub task: Option<String>,
    /// Of the task what its caller has written, without what was put around it for this one spawn; none: all of it.
    pub own_task: Option<Box<str>>,
    /// Empty: the configured default channels.
    pub channels: Vec<String>,
    /// `harnessConfig.env`.
    pub env: Vec<(String, String)>,
    /// `harnessConfig.sessionId` or the input's `session_ref`.
    pub session_ref: Option<String>,
    /// It came as the input's `session_ref`: the CLI has to be told to resume it. A harness configuration carries its own
    /// arguments for that.
    pub resumes: bool,
    pub skip_relay_prompt: bool,
    /// `None`: 30 s.
    pub idle_threshold_secs: Option<u64>,
    /// Used as it is, no registration.
    pub agent_token: Option<Secret>,
    /// The agent reports results of this shape, with a token that it is given.
    pub result_schema: Option<Value>,
    /// `None`: its end is final.
    pub restart_policy: Option<RestartPolicy>,
    /// The sidecar that asks, by `spawn_agent`: no fallback to HTTP registration.
    pub sidecar: Option<SidecarGeneration>,
    /// The invocation that a sidecar's spawn belongs to; goes into registration and inventory.
    pub invocation_id: Option<String>,
    /// A message may be glued to a human's unsent text.
    pub ignores_drafts: bool,
    /// No terminal: `cli` names the provider that is run once.
    pub headless: bool,
    /// No program: a session of this server.
    pub app_server: Option<Box<AppServer>>,
    /// As its user typed it: nothing is added to its arguments. It has its identity in any case; `skip_relay_prompt` then
    /// means that messages come without a hint how to answer.
    pub bare: bool,
    /// A live agent of this name elsewhere keeps it: no way around the link, the caller is told.
    pub yields_name: bool,
}

impl SpawnRequest {
    /// The CLI as rows and events name it.
    pub fn shown_cli(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.cli)
    }

    /// The task in its caller's words.
    pub fn words(&self) -> Option<&str> {
        self.own_task.as_deref().or(self.task.as_deref()).filter(|words| !words.trim().is_empty())
    }

    /// Its program is given the token that it is registered with.
    pub fn tells_token(&self) -> bool {
        !self.skip_relay_prompt || self.bare
    }

    /// The CLI of rows and events: of an agent without terminal that is its provider, elsewhere.
    pub fn row_cli(&self) -> Option<String> {
        (!self.headless).then(|| self.shown_cli().to_string())
    }

    pub fn provider(&self) -> Option<String> {
        self.headless.then(|| self.cli.trim().to_string())
    }

    /// As rows and events name it.
    pub fn runtime(&self) -> &'static str {
        if self.headless { "headless" } else { "pty" }
    }
}

/// `POST /api/send` after its form checks; `to` and `text` are trimmed and not blank.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SendRequest {
    pub to: String,
    pub text: String,
    pub from: Option<String>,
    pub thread_id: Option<String>,
    pub workspace_id: Option<String>,
    pub workspace_alias: Option<String>,
    pub mode: DeliveryMode,
}
