//! Frames on `/v1/node/ws`: one JSON object per text message, always with `type` and `v: 1`.
//!
//! Outbound is strict, because the engine's schema is: an unknown key, a wrong type or a `null` loses the whole frame.
//! `resume_cursor` is the only nullable field. Inbound is lenient: unknown keys are ignored at every level, an absent or
//! `null` optional takes its default, an unknown `type` is kept as a name.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The frame version this broker speaks.
pub const FRAME_VERSION: u64 = 1;
/// The engine's limit for one message, in bytes.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// Something this node can be asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capability {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// What the node says of itself in `node.register`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRegister {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub name: String,
    pub node_id: String,
    pub capabilities: Vec<Capability>,
    /// 0 = unlimited.
    pub max_agents: u64,
    pub tags: Vec<String>,
    pub version: String,
    /// Always `null` in 5.x: the engine keeps the cursor. Present, never omitted.
    pub resume_cursor: Option<String>,
}

/// Sign of life every 12 s and at once on change. Never carries `tags` or `last_heartbeat_at` (engine schema is strict).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeHeartbeat {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub name: String,
    pub node_id: String,
    pub capabilities: Vec<Capability>,
    pub max_agents: u64,
    pub version: String,
    /// active / max, clamped to 0..=1; 0 when unlimited.
    pub load: f64,
    pub active_agents: u64,
    pub handlers_live: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentRegister {
    pub id: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_ref: Option<String>,
    /// `true` exactly when `session_ref` is given, else omitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumable: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentDeregister {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub agent_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeliveryAck {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The agent's **name**: acks are resolved by name at the engine.
    pub agent: String,
    pub up_to_seq: u64,
}

/// Exactly one of `output` (any JSON, also `null`) and `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionOutcome {
    Output(Value),
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub invocation_id: String,
    #[serde(flatten)]
    pub outcome: ActionOutcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InventoryEntry {
    pub agent_id: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_ref: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InventorySync {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub agents: Vec<InventoryEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct NodeDeregister {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Broker → engine. `Deserialize` serves the embedded engine and the simulator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ToEngine {
    #[serde(rename = "node.register")]
    NodeRegister(NodeRegister),
    #[serde(rename = "node.heartbeat")]
    NodeHeartbeat(NodeHeartbeat),
    #[serde(rename = "node.deregister")]
    NodeDeregister(NodeDeregister),
    #[serde(rename = "agent.register")]
    AgentRegister(AgentRegister),
    #[serde(rename = "agent.deregister")]
    AgentDeregister(AgentDeregister),
    #[serde(rename = "delivery.ack")]
    DeliveryAck(DeliveryAck),
    #[serde(rename = "action.result")]
    ActionResult(ActionResult),
    #[serde(rename = "inventory.sync")]
    InventorySync(InventorySync),
}

impl ToEngine {
    /// The frame as one JSON text, `v` included.
    pub fn encode(&self) -> String {
        #[derive(Serialize)]
        struct Versioned<'a> {
            v: u64,
            #[serde(flatten)]
            frame: &'a ToEngine,
        }
        serde_json::to_string(&Versioned { v: FRAME_VERSION, frame: self })
            .expect("frames hold no map with non-text keys")
    }

    /// The value of `type`, for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            ToEngine::NodeRegister(_) => "node.register",
            ToEngine::NodeHeartbeat(_) => "node.heartbeat",
            ToEngine::NodeDeregister(_) => "node.deregister",
            ToEngine::AgentRegister(_) => "agent.register",
            ToEngine::AgentDeregister(_) => "agent.deregister",
            ToEngine::DeliveryAck(_) => "delivery.ack",
            ToEngine::ActionResult(_) => "action.result",
            ToEngine::InventorySync(_) => "inventory.sync",
        }
    }
}

/// How urgently a delivery is surfaced: `wait` for the prompt or `steer` a running turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryMode {
    #[default]
    Wait,
    Steer,
}

impl DeliveryMode {
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryMode::Wait => "wait",
            DeliveryMode::Steer => "steer",
        }
    }
}

/// One message for one agent. Only `agent`, `msg_id`, `seq` and `payload` are required.
#[derive(Debug, Clone, PartialEq)]
pub struct Deliver {
    pub agent: String,
    /// Empty when the engine did not say.
    pub agent_id: String,
    /// Empty when the engine did not say.
    pub delivery_id: String,
    pub msg_id: String,
    /// 0 = not stored by the engine, never repeated.
    pub seq: u64,
    pub mode: DeliveryMode,
    pub payload: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ActionInvoke {
    pub invocation_id: String,
    pub action: String,
    pub input: Value,
    pub agent_id: Option<String>,
    pub agent_name: Option<String>,
}

/// Engine → broker.
#[derive(Debug, Clone, PartialEq)]
pub enum FromEngine {
    Deliver(Deliver),
    ActionInvoke(ActionInvoke),
    /// No pong frame exists; a sign of life.
    Ping,
    Reply {
        id: String,
        data: Value,
    },
    Error {
        id: String,
        code: String,
        message: String,
    },
    /// Ignored silently.
    ContextUpdate,
    Unknown {
        kind: String,
    },
}

/// Why an inbound text is not a frame that can be used. The connection stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    NotJson(String),
    NotAnObject,
    Version(String),
    Missing { kind: &'static str, field: &'static str },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::NotJson(why) => write!(f, "not JSON: {why}"),
            FrameError::NotAnObject => write!(f, "not a JSON object"),
            FrameError::Version(v) => write!(f, "frame version {v} instead of {FRAME_VERSION}"),
            FrameError::Missing { kind, field } => write!(f, "{kind} without a usable `{field}`"),
        }
    }
}

impl std::error::Error for FrameError {}

fn text(object: &Map<String, Value>, key: &str) -> Option<String> {
    match object.get(key) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

fn required(object: &Map<String, Value>, kind: &'static str, key: &'static str) -> Result<String, FrameError> {
    text(object, key).filter(|value| !value.is_empty()).ok_or(FrameError::Missing { kind, field: key })
}

impl FromEngine {
    /// Reads one text message.
    ///
    /// # Errors
    /// When it is not a JSON object of version 1, or lacks what its type cannot do without.
    pub fn decode(raw: &str) -> Result<FromEngine, FrameError> {
        let value: Value = serde_json::from_str(raw).map_err(|e| FrameError::NotJson(e.to_string()))?;
        let Value::Object(mut object) = value else {
            return Err(FrameError::NotAnObject);
        };
        if object.get("v").and_then(Value::as_u64) != Some(FRAME_VERSION) {
            return Err(FrameError::Version(object.get("v").map_or("(none)".into(), Value::to_string)));
        }
        let kind = text(&object, "type").unwrap_or_default();
        Ok(match kind.as_str() {
            "deliver" => FromEngine::Deliver(Deliver {
                agent: required(&object, "deliver", "agent")?,
                agent_id: text(&object, "agent_id").unwrap_or_default(),
                delivery_id: text(&object, "delivery_id").unwrap_or_default(),
                msg_id: required(&object, "deliver", "msg_id")?,
                seq: object
                    .get("seq")
                    .and_then(Value::as_u64)
                    .ok_or(FrameError::Missing { kind: "deliver", field: "seq" })?,
                mode: match object.get("mode").and_then(Value::as_str) {
                    Some("steer") => DeliveryMode::Steer,
                    _ => DeliveryMode::Wait,
                },
                payload: object
                    .remove("payload")
                    .filter(|payload| !payload.is_null())
                    .ok_or(FrameError::Missing { kind: "deliver", field: "payload" })?,
            }),
            "action.invoke" => FromEngine::ActionInvoke(ActionInvoke {
                invocation_id: required(&object, "action.invoke", "invocation_id")?,
                action: required(&object, "action.invoke", "action")?,
                agent_id: text(&object, "agent_id"),
                agent_name: text(&object, "agent_name"),
                input: object.remove("input").unwrap_or(Value::Null),
            }),
            "ping" => FromEngine::Ping,
            "reply" => FromEngine::Reply {
                id: text(&object, "id").unwrap_or_default(),
                data: object.remove("data").unwrap_or(Value::Null),
            },
            "error" => FromEngine::Error {
                id: text(&object, "id").unwrap_or_default(),
                code: text(&object, "code").unwrap_or_else(|| "unknown_error".into()),
                message: text(&object, "message").unwrap_or_default(),
            },
            "context.update" => FromEngine::ContextUpdate,
            _ => FromEngine::Unknown { kind },
        })
    }
}

/// `data` of the reply to `agent.register`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRegistered {
    pub agent_id: String,
    pub token: String,
    pub name: Option<String>,
    /// Later engines: the cursor they hold for this agent.
    pub delivery_ack_seq: Option<u64>,
}

impl AgentRegistered {
    /// `None` without an `agent_id` or a token. Extra keys are ignored.
    pub fn from_data(data: &Value) -> Option<AgentRegistered> {
        let object = data.as_object()?;
        let usable = |key| text(object, key).filter(|value| !value.trim().is_empty());
        Some(AgentRegistered {
            agent_id: usable("agent_id")?,
            token: usable("token")?,
            name: usable("name"),
            delivery_ack_seq: object.get("delivery_ack_seq").and_then(Value::as_u64),
        })
    }
}
