//! What goes into the core and what comes out of it: the contract between the pure broker and the rooms that own sockets,
//! terminals and files. Plain data, no behaviour.

use serde_json::Value;

pub use crate::sys::clock::Now;
use crate::wire::events::Event;
use crate::wire::fleet::{Manifest, Supervision};
use crate::wire::node::{ActionOutcome, DeliveryMode, FrameError, FromEngine, ToEngine};

/// Milliseconds, monotonic unless the name says `unix`.
pub type Ms = u64;

/// Seconds of silence that are told even while a message is under way.
pub const LONG_SILENCE_SECS: u64 = 120;
/// Matches the answer to a call: made by the daemon for local API calls, by the core for engine calls.
pub type Ticket = u64;
/// One life of one agent process. A name is never an identity: what an older generation says is dropped.
pub type Generation = u64;
/// Position in [`Config::workspaces`].
pub type WorkspaceNo = usize;
/// One connection of the node socket.
pub type LinkGeneration = u64;
/// One connection of a fleet sidecar, numbered upwards by the API room: the newest wins.
pub type SidecarGeneration = u64;

/// What the broker is born with; fixed for its life.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub node_id: String,
    pub node_name: String,
    pub node_token: Secret,
    /// The token came from `RELAY_NODE_TOKEN`: never re-minted, never stored.
    pub token_pinned: bool,
    /// `relay-broker/<semver>`.
    pub node_version: String,
    pub broker_version: String,
    /// The workspaces that the broker is a member of: at least one.
    pub workspaces: Vec<Workspace>,
    /// Which of them agents, node and keys belong to.
    pub home: WorkspaceNo,
    /// The home is the default workspace: it is the only one, or was chosen. Otherwise it merely comes first.
    pub has_default: bool,
    pub base_url: Option<String>,
    /// Other names by which the broker knows itself.
    pub self_aliases: Vec<String>,
    /// Channels of agents spawned without any.
    pub default_channels: Vec<String>,
    /// `http://<callback host>:<port>/api/agent-result`.
    pub result_url: String,
    /// Lock, state file and journal of cursors: `--persist` or `--state-dir`.
    pub durable: bool,
    /// `--persist`: no owner lease, mode `persist`.
    pub persist: bool,
    /// Whole milliseconds before an `agent.register` without answer fails the spawn (10 s).
    pub register_timeout_ms: Ms,
    /// Forty-six times this long a message of the local API waits for an agent that has gone with an earlier life.
    pub delivery_retry_ms: Ms,
}

/// A workspace and the broker's own agent there.
#[derive(Debug, Clone, PartialEq)]
pub struct Workspace {
    pub id: String,
    pub alias: Option<String>,
    pub key: Secret,
    pub self_name: String,
    pub self_agent_id: String,
}

/// Everything that can happen to the broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The first input: connect.
    Start,
    /// A deadline asked for by [`super::Broker::next_deadline`] may have passed.
    Tick,
    Node(NodeNote),
    Agent {
        generation: Generation,
        note: AgentNote,
    },
    Engine {
        ticket: Ticket,
        outcome: Result<Value, EngineError>,
    },
    Api {
        ticket: Ticket,
        call: Box<ApiCall>,
    },
    Sidecar {
        generation: SidecarGeneration,
        note: SidecarNote,
    },
    /// The supervised process of the sidecar.
    Supervised(ProcessNote),
    /// The journal could not be written. The daemon keeps the records and tries again; until then it withholds the
    /// acknowledgements and results of this and later turns, and sends them once the records are on disk.
    JournalFailed {
        error: String,
    },
    /// SIGTERM, SIGINT, SIGHUP or `POST /api/shutdown`.
    Stop {
        reason: &'static str,
    },
}

/// Everything that the broker can do. The daemon carries effects out in order, except that all journal records of one
/// turn are on disk before anything else of that turn leaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Node(NodeCommand),
    /// Starts the thread of a new agent, which looks for the program and reports [`AgentNote::Prepared`] or `Refused`.
    Launch(Launch),
    Agent {
        generation: Generation,
        command: AgentCommand,
    },
    Engine {
        ticket: Ticket,
        call: EngineCall,
    },
    Reply {
        ticket: Ticket,
        answer: ApiAnswer,
    },
    /// Dropped silently if that connection is gone.
    Sidecar {
        generation: SidecarGeneration,
        command: SidecarCommand,
    },
    Supervise(SuperviseCommand),
    Event(Event),
    Journal(Record),
    Log {
        level: log::Level,
        text: String,
    },
    /// Everything that an orderly stop waits for is done.
    Exit,
}

impl Effect {
    /// While the journal cannot be written: whether this has to wait for it. What says that something is on disk does; once
    /// something waits, so do the registrations of agents, or they would overtake a release that is to be answered.
    pub fn waits_for_journal(&self, something_waits: bool) -> bool {
        match self {
            Effect::Event(Event::DeliveryAcked { .. }) => true,
            // A message that is accepted here must not be lost.
            Effect::Reply { answer, .. } => answer.status == 200 && answer.body["local"] == true,
            Effect::Node(NodeCommand::Send { frame, .. }) => match frame {
                ToEngine::DeliveryAck(_) | ToEngine::ActionResult(_) => true,
                ToEngine::AgentRegister(_) => something_waits,
                _ => false,
            },
            _ => false,
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- node

/// What the core tells the node link.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeCommand {
    /// Connect now. A link that is open under an older generation is dropped first.
    Connect { generation: LinkGeneration, token: Secret },
    /// Dropped silently if that connection is gone.
    Send { generation: LinkGeneration, frame: ToEngine },
    /// A WebSocket Ping, so that a half-open connection shows.
    Ping { generation: LinkGeneration },
    /// Send what is queued, Close 1000, wait for the peer's close at most a second.
    Close { generation: LinkGeneration },
}

/// What the node link tells the core.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeNote {
    /// The handshake ended in 101.
    Opened {
        generation: LinkGeneration,
    },
    /// The handshake did not end in 101.
    Refused {
        generation: LinkGeneration,
        why: Refusal,
    },
    Frame {
        generation: LinkGeneration,
        frame: FromEngine,
    },
    /// An inbound message that is no usable frame. The connection stays.
    Garbage {
        generation: LinkGeneration,
        error: FrameError,
    },
    /// The connection ended, by whatever side. `reason` is the close reason (`superseded`) or what went wrong.
    Closed {
        generation: LinkGeneration,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unauthorized,
    Status(u16),
    /// DNS, TCP, TLS, time-out: in words.
    Io(String),
}

// ------------------------------------------------------------------------------------------------------------- sidecar

/// What the API room tells of a sidecar's connection. What the sidecar asks for comes as [`ApiCall`]s with tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SidecarNote {
    /// The handshake ended in 101. An older connection is superseded by it.
    Attached,
    /// The connection ended by whatever side and reason, a full queue (128 frames) included. The last note of a generation.
    Gone { reason: String },
}

/// What the core tells a sidecar's connection.
#[derive(Debug, Clone, PartialEq)]
pub enum SidecarCommand {
    /// `invoke_handler`; answered by [`ApiCall::HandlerResult`].
    Invoke { invocation_id: String, name: String, input: Value },
    /// Write what is queued, then close with 1000 and this reason.
    Close { reason: &'static str },
}

/// The child that runs a sidecar again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuperviseCommand {
    /// stdin null, output to the broker's stderr, the broker's secrets taken out of its environment.
    Start { argv: Vec<String>, cwd: String, env: Vec<(String, String)> },
    /// TERM, 3 s, KILL, for the whole tree. Answered by [`ProcessNote::Ended`] when one runs.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessNote {
    Started {
        pid: u32,
    },
    /// It could not be started.
    Failed {
        error: String,
    },
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
}

// --------------------------------------------------------------------------------------------------------------- agent

/// What a new agent thread is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    pub generation: Generation,
    pub name: String,
    /// The command line as asked for (`cli` or `harnessConfig.command`); split shell-like by the agent room.
    pub cli: String,
    pub args: Vec<String>,
    pub model: Option<String>,
    /// Session of the CLI, when it is known.
    pub session_ref: Option<String>,
    /// Whether the CLI is told to resume it; otherwise the arguments do.
    pub resumes: bool,
    /// Absolute existing directory, or the broker's own when `None`.
    pub cwd: Option<String>,
    pub skip_relay_prompt: bool,
    /// Seconds of silence before `agent_idle`; 0 = never.
    pub idle_threshold_secs: u64,
    /// No terminal: the first message becomes the prompt of the one run of its program.
    pub headless: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum AgentCommand {
    /// Start the prepared program. `set` overlays the broker's environment, then `remove` is taken out.
    Start {
        set: Variables,
        remove: Vec<String>,
        pre_registered: bool,
    },
    /// Type one message: body, 50 ms, Enter. At most one is in flight per agent: the next follows [`AgentNote::Read`].
    Inject(Injection),
    /// `true`: a human works at the terminal. No question is answered, no Enter repeated, and a message that has not begun
    /// is given back unless it is exempt ([`AgentNote::GivenBack`]); one that has begun is finished. `false`, as at the
    /// start: all goes on.
    Hold(bool),
    /// Keystrokes, verbatim, in order.
    Type {
        ticket: Ticket,
        bytes: Vec<u8>,
    },
    Resize {
        ticket: Ticket,
        rows: u16,
        cols: u16,
    },
    Snapshot {
        ticket: Ticket,
        format: SnapshotFormat,
    },
    /// End the whole process tree: HUP and CONT, TERM at 1 s, KILL at 2 s. Also ends a thread that has not started its
    /// program. Answered by `Exited`.
    Release,
}

/// Variables of a program's environment. `Debug` shows their names only: among the values are keys and tokens.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Variables(pub Vec<(String, String)>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// One message to be typed. The agent room makes the text (hint, prefix, control bytes stripped).
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    pub delivery_id: String,
    pub event_id: String,
    pub from: String,
    /// `#channel` or a name.
    pub target: String,
    pub body: String,
    /// Alias, else id, of the workspace the message belongs to.
    pub workspace: Option<String>,
    pub mode: DeliveryMode,
    /// Passes [`AgentCommand::Hold`]: the initial task, and what an explicit flush found waiting.
    pub exempt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotFormat {
    Plain,
    Ansi,
}

/// A picture of the terminal. `cursor` is 1-based.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub rows: u16,
    pub cols: u16,
    pub cursor: (u16, u16),
    /// Plain text, or base64 of the ANSI picture.
    pub screen: String,
    /// Cumulative bytes of output that the picture includes.
    pub offset: u64,
}

/// What an agent thread tells the core. Per thread the order of the notes is the order of the facts.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentNote {
    /// The program exists and can be executed; nothing runs yet.
    Prepared,
    /// The program cannot be started. The thread has ended; no `Exited` follows.
    Refused {
        error: String,
    },
    /// What the CLI will be started with, as far as it became known only now: told before `Started`, when there is news.
    Outfitted {
        session_id: Option<String>,
        /// The model that takes the place of the one that was asked for.
        model: Option<String>,
    },
    Started {
        pid: u32,
    },
    /// In place of `Started`: an agent without terminal takes its message; no program runs yet.
    Serving,
    /// The program of an agent without terminal runs, with this message as its prompt.
    Taken {
        delivery_id: String,
        pid: u32,
    },
    /// One line of such a program, without its end.
    Line {
        /// `stdout` or `stderr`.
        stream: &'static str,
        chunk: String,
        offset: u64,
    },
    /// Such a program has ended well; or why not, also when it could not be started at all.
    Finished {
        delivery_id: String,
        result: Result<(), String>,
    },
    /// The terminal shows that the CLI takes input, or 25 s have passed.
    Ready,
    /// Terminal output, cut at UTF-8 boundaries; `offset` = cumulative bytes after this chunk.
    Output {
        chunk: String,
        offset: u64,
    },
    /// There was output, but nobody watches: at most one per 250 ms, instead of `Output`.
    Active,
    /// Body and Enter are written to the terminal, every byte.
    Typed {
        delivery_id: String,
    },
    /// The program has taken every byte of it from the terminal: the kernel says so.
    Read {
        delivery_id: String,
    },
    /// 5 s after `Typed` the program has not read it. Told once; still watched, never typed again.
    Stalled {
        delivery_id: String,
    },
    /// Input was thrown away in the terminal before it was proved: the program may have read it, in part or not at all. No
    /// proof can follow, and it is never typed again.
    Lost {
        delivery_id: String,
    },
    /// The echo was seen, or its window (5 s) is over. Decides events only, never the engine's ack.
    Verified {
        delivery_id: String,
        echo: bool,
    },
    /// No byte of it reached the terminal; it may be injected again.
    InjectFailed {
        delivery_id: String,
        error: String,
    },
    /// A human has taken the terminal before the message had begun: it is the core's again, to be held.
    GivenBack {
        delivery_id: String,
    },
    /// The answer to `Type`: all bytes are in the terminal, or the error.
    TypeDone {
        ticket: Ticket,
        result: Result<usize, String>,
    },
    Resized {
        ticket: Ticket,
        rows: u16,
        cols: u16,
    },
    Pictured {
        ticket: Ticket,
        format: SnapshotFormat,
        snapshot: Snapshot,
    },
    /// No output for `idle_secs`: the agent's threshold, with no message under way; or [`LONG_SILENCE_SECS`], in any case.
    Idle {
        idle_secs: u64,
        since_unix: Ms,
    },
    /// The CLI ends (`pty_closed`, `child_exited`) or asks to (`agent_requested`).
    Ending {
        reason: &'static str,
    },
    /// The process is reaped and its tree is gone. The last note of a generation.
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
    },
}

// -------------------------------------------------------------------------------------------------------------- engine

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

// ----------------------------------------------------------------------------------------------------------- local API

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
    /// The sidecar that asks, by `spawn_agent`: no fallback to HTTP registration.
    pub sidecar: Option<SidecarGeneration>,
    /// The invocation that a sidecar's spawn belongs to; goes into registration and inventory.
    pub invocation_id: Option<String>,
    /// No terminal: `cli` names the provider that is run once.
    pub headless: bool,
}

impl SpawnRequest {
    /// The CLI as rows and events name it.
    pub fn shown_cli(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.cli)
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

// ------------------------------------------------------------------------------------------------------------- journal

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
    /// The former is typed and read, or dead.
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

/// A token or key. `Debug` shows only its prefix; expose it on purpose, and never to compare it: that has one way, here.
#[derive(Clone, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this was given, blanks around the secret aside. Takes a time that depends only on the length of what was
    /// given; a blank secret is never right.
    pub fn is(&self, given: &str) -> bool {
        let own = self.0.trim();
        !own.is_empty() && same(given.as_bytes(), own.as_bytes())
    }

    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }
}

/// The one comparison of secrets: how long it takes says nothing about where they differ.
fn same(given: &[u8], own: &[u8]) -> bool {
    let mut difference = given.len() ^ own.len();
    for (at, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ own.get(at % own.len().max(1)).unwrap_or(&0));
    }
    std::hint::black_box(difference) == 0
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        same(other.0.as_bytes(), self.0.as_bytes())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: String = self.0.chars().take(3).collect();
        write!(f, "Secret({shown}…)")
    }
}
