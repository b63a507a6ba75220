//! What the engine remembers: one struct per kind of row, and [`Row`], the unit of change and of the journal.
//!
//! A change of state is a list of rows, each put over the one with the same key, or taken away. The journal is that list;
//! replaying it is putting the rows again, in order. Credentials appear as digests only.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::wire::node::{Capability, DeliveryMode};

/// Milliseconds since 1970.
pub type Unix = u64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workspace {
    pub id: u64,
    pub name: String,
    pub key_digest: String,
    pub system_prompt: Option<String>,
    pub metadata: Map<String, Value>,
    pub created_at: Unix,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    pub id: u64,
    pub ws: u64,
    pub name: String,
    /// `agent`, `human` or `system`.
    pub kind: String,
    pub persona: Option<String>,
    pub metadata: Map<String, Value>,
    pub capabilities: Map<String, Value>,
    /// `None`: no token is valid (released).
    pub token_digest: Option<String>,
    pub online: bool,
    /// The node the agent is located at; `None`: reachable over HTTP only.
    pub node: Option<String>,
    pub session_ref: Option<String>,
    /// The last session that can be taken up again, and the node that has it. Outlives a release.
    #[serde(default)]
    pub origin: Option<Origin>,
    pub binding_at: Unix,
    pub priority: i64,
    pub last_seen: Unix,
    pub created_at: Unix,
}

/// Where a session was recorded: only that node can resume it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub session_ref: String,
    pub node: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelKind {
    Public,
    /// Between two agents.
    Direct,
    Group,
}

/// A channel, or a conversation: a channel without a public name. The id of a conversation is the id of its channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    pub id: u64,
    pub ws: u64,
    pub kind: ChannelKind,
    /// Empty for a conversation without a name.
    pub name: String,
    pub topic: Option<String>,
    pub metadata: Map<String, Value>,
    pub created_by: Option<u64>,
    pub created_at: Unix,
    pub archived: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub channel: u64,
    pub agent: u64,
    pub owner: bool,
    pub joined_at: Unix,
    pub last_read: u64,
    pub last_read_at: Option<Unix>,
    pub muted: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub id: u64,
    pub ws: u64,
    pub channel: u64,
    pub agent: u64,
    pub agent_name: String,
    pub agent_kind: String,
    pub text: String,
    pub blocks: Value,
    pub metadata: Map<String, Value>,
    /// The first message of the thread.
    pub thread: Option<u64>,
    pub mentions: Vec<String>,
    pub attachments: Vec<Value>,
    pub mode: DeliveryMode,
    pub created_at: Unix,
}

impl Message {
    /// Bytes that the author decides about.
    pub fn weight(&self) -> usize {
        let parts = self.attachments.iter().chain(std::iter::once(&self.blocks)).map(json_weight);
        self.text.len()
            + parts.sum::<usize>()
            + self.metadata.iter().map(|(k, v)| k.len() + json_weight(v)).sum::<usize>()
    }
}

/// About the length of its JSON.
pub fn json_weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|item| 1 + json_weight(item)).sum(),
        Value::Object(map) => map.iter().map(|(key, item)| 4 + key.len() + json_weight(item)).sum(),
        _ => 4,
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reaction {
    pub id: u64,
    pub message: u64,
    pub agent: u64,
    pub agent_name: String,
    pub emoji: String,
    pub created_at: Unix,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Read {
    pub message: u64,
    pub agent: u64,
    pub agent_name: String,
    pub at: Unix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    Queued,
    Delivered,
    Acked,
    Failed,
    DeadLettered,
}

impl DeliveryStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryStatus::Queued => "queued",
            DeliveryStatus::Delivered => "delivered",
            DeliveryStatus::Acked => "acked",
            DeliveryStatus::Failed => "failed",
            DeliveryStatus::DeadLettered => "dead_lettered",
        }
    }

    /// Still to be acknowledged.
    pub fn open(self) -> bool {
        matches!(self, DeliveryStatus::Queued | DeliveryStatus::Delivered)
    }
}

/// One message for one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    pub agent: u64,
    pub seq: u64,
    pub message: u64,
    pub status: DeliveryStatus,
    pub attempts: u64,
    pub error: Option<String>,
    pub retryable: Option<bool>,
    pub reason: Option<String>,
    pub available_at: Option<Unix>,
    pub created_at: Unix,
    pub updated_at: Option<Unix>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: String,
    pub ws: u64,
    pub name: String,
    pub kind: String,
    pub role: String,
    pub adapter: String,
    pub delivery: Value,
    pub capabilities: Vec<Capability>,
    pub tags: Vec<String>,
    pub version: String,
    /// 0 = unlimited.
    pub max_agents: u64,
    pub token_digest: String,
    pub created_at: Unix,
    /// The implicit node of one agent that connects by itself.
    pub direct_agent: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub ws: u64,
    pub id: String,
    pub name: String,
    pub description: String,
    pub handler_agent: Option<u64>,
    pub handler_node: Option<String>,
    pub input_schema: Value,
    pub output_schema: Value,
    /// Agent names; `None` = everybody.
    pub available_to: Option<Vec<String>>,
    /// Made by a `node.register` that declared it; goes when the node no longer does.
    pub declared: bool,
    pub created_at: Unix,
}

/// A rule that invokes an action when a message is posted in a channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    pub id: u64,
    pub ws: u64,
    /// As the client wrote it, with or without `#`; `None`: every channel.
    pub channel: Option<String>,
    /// A regular expression; `None`: every text.
    pub pattern: Option<String>,
    /// `true`: somebody is mentioned; a name: that agent is; else no condition.
    pub mention: Value,
    pub action_name: String,
    pub enabled: bool,
    pub last_triggered_at: Option<Unix>,
    pub created_at: Unix,
    pub updated_at: Option<Unix>,
}

/// Who is to run an invocation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handler {
    /// The node where this agent is located; the frame names the agent.
    Agent(u64),
    /// Any live node with this capability, `pinned` first.
    Capability { name: String, pinned: Option<String> },
    /// A spawn, placed by capability; `target` names the one node that may take it.
    Spawn { cli: String, target: Option<String> },
    /// A release, by the node that has the agent.
    Release { agent: u64, node: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvocationStatus {
    Pending,
    Dispatched,
    Completed,
    Failed,
}

impl InvocationStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            InvocationStatus::Pending => "pending",
            InvocationStatus::Dispatched => "dispatched",
            InvocationStatus::Completed => "completed",
            InvocationStatus::Failed => "failed",
        }
    }

    pub fn open(self) -> bool {
        matches!(self, InvocationStatus::Pending | InvocationStatus::Dispatched)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Invocation {
    pub id: String,
    pub ws: u64,
    pub action: String,
    pub caller: Option<u64>,
    pub caller_name: Option<String>,
    pub handler: Handler,
    pub input: Value,
    pub status: InvocationStatus,
    pub output: Value,
    pub error: Option<String>,
    pub dispatched_node: Option<String>,
    pub dispatched_at: Option<Unix>,
    pub attempts: u32,
    pub created_at: Unix,
    pub completed_at: Option<Unix>,
    pub duration_ms: Option<u64>,
}

/// The remembered answer of a request with an idempotency key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    pub agent: u64,
    pub key: String,
    /// Digest of method, path and body: the same key with another request is an error.
    pub request: String,
    pub status: u16,
    pub body: Value,
    pub at: Unix,
}

/// The unit of change and of the journal. The kind is the key, `{"agent":{…}}`: a tag beside the content could come after
/// it, and the code to read either order is a quarter of a megabyte for rows as many as these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    Workspace(Workspace),
    WorkspaceGone {
        id: u64,
    },
    Agent(Agent),
    AgentGone {
        id: u64,
    },
    Channel(Channel),
    Member(Member),
    MemberGone {
        channel: u64,
        agent: u64,
    },
    Message(Message),
    MessageGone {
        id: u64,
    },
    Reaction(Reaction),
    ReactionGone {
        message: u64,
        agent: u64,
        emoji: String,
    },
    Read(Read),
    Delivery(Delivery),
    /// Every open delivery of the agent up to `seq` is acknowledged.
    Acked {
        agent: u64,
        seq: u64,
        at: Unix,
    },
    /// Written by compaction: the highest `seq` ever given, also when its row is gone.
    Mailbox {
        agent: u64,
        last_seq: u64,
        acked: u64,
    },
    Node(Node),
    NodeGone {
        id: String,
    },
    Action(Action),
    ActionGone {
        ws: u64,
        name: String,
    },
    Trigger(Trigger),
    TriggerGone {
        id: u64,
    },
    Invocation(Invocation),
    Remembered(Remembered),
}
