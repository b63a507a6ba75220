//! The engine's HTTP bodies as this broker uses them.
//!
//! Requests are strict: an absent optional is omitted, never `null` (engine schema is strict). Answers are read leniently:
//! unknown fields are ignored, identifiers may be text or number, only what is used must be there.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::node::DeliveryMode;

/// `POST /v1/workspaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateWorkspace {
    pub name: String,
}

/// `POST /v1/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterAgent {
    pub name: String,
    /// `agent`, `human` or `system`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<AgentMetadata>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentMetadata {
    pub cli: String,
}

/// `POST /v1/nodes`: makes the node, or finds it by its **name** in the workspace and rotates its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MintNode {
    pub node_id: String,
    pub name: String,
    /// `ws`.
    pub kind: String,
    /// `broker`.
    pub role: String,
    pub version: String,
}

/// `POST /v1/nodes/:name/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindAgent {
    pub agent_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_ref: Option<String>,
}

/// `POST /v1/channels`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateChannel {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// `POST /v1/channels/:name/messages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostMessage {
    pub text: String,
    pub mode: DeliveryMode,
}

/// `POST /v1/dm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostDm {
    pub to: String,
    pub text: String,
    pub mode: DeliveryMode,
}

/// `POST /v1/messages/:id/replies`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostReply {
    pub text: String,
}

/// The body of calls that say nothing: rotate-token, heartbeat, disconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Nothing {}

/// `data` of a created workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceCreated {
    pub workspace_id: Option<String>,
    pub api_key: String,
}

/// `data` of an agent: registered, looked up, or with a rotated token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentRow {
    pub id: Option<String>,
    pub name: Option<String>,
    pub token: Option<String>,
    pub workspace_id: Option<String>,
}

/// `data` of a node: looked up or minted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    pub id: String,
    pub name: Option<String>,
    pub token: Option<String>,
}

/// Text that is not blank, or a number as text.
fn usable(object: &Map<String, Value>, key: &str) -> Option<String> {
    match object.get(key)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

impl WorkspaceCreated {
    /// `None` without a key.
    pub fn from_data(data: &Value) -> Option<WorkspaceCreated> {
        let object = data.as_object()?;
        Some(WorkspaceCreated {
            workspace_id: usable(object, "workspace_id").or_else(|| usable(object, "id")),
            api_key: usable(object, "api_key")?,
        })
    }
}

impl AgentRow {
    /// `None` for anything but an object.
    pub fn from_data(data: &Value) -> Option<AgentRow> {
        let object = data.as_object()?;
        Some(AgentRow {
            id: usable(object, "id").or_else(|| usable(object, "agent_id")),
            name: usable(object, "name"),
            token: usable(object, "token"),
            workspace_id: usable(object, "workspace_id"),
        })
    }
}

impl NodeRow {
    /// `None` without an id.
    pub fn from_data(data: &Value) -> Option<NodeRow> {
        let object = data.as_object()?;
        Some(NodeRow {
            id: usable(object, "id").or_else(|| usable(object, "node_id"))?,
            name: usable(object, "name"),
            token: usable(object, "token"),
        })
    }
}

/// What an error answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: String,
    pub message: String,
}

/// Opens the envelope `{"ok":true,"data":…}`. Success is a 2xx status **and** `ok`; `data` may be absent (`null` then),
/// as may the body of a 204. Anything that is not this JSON has the code `http_<status>`.
///
/// # Errors
/// What the engine said, or that it said nothing readable.
pub fn open_envelope(status: u16, body: &[u8]) -> Result<Value, Refused> {
    let success = (200..300).contains(&status);
    if status == 204 {
        return Ok(Value::Null);
    }
    let Ok(Value::Object(mut object)) = serde_json::from_slice::<Value>(body) else {
        return Err(foreign(status));
    };
    match object.get("ok") {
        Some(Value::Bool(true)) if success => Ok(object.remove("data").unwrap_or(Value::Null)),
        Some(Value::Bool(_)) => {
            let error = object.get("error").and_then(Value::as_object);
            let said = |key| error.and_then(|error| usable(error, key));
            Err(Refused {
                code: said("code").unwrap_or_else(|| "unknown_error".into()),
                message: said("message").unwrap_or_else(|| format!("the engine answered HTTP {status}")),
            })
        }
        _ => Err(foreign(status)),
    }
}

fn foreign(status: u16) -> Refused {
    Refused {
        code: format!("http_{status}"),
        message: format!("the engine answered HTTP {status} with a body that is not its JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn envelopes() {
        let refused = |code: &str, message: &str| Err(Refused { code: code.into(), message: message.into() });
        let not_json = |status: u16| Err(foreign(status));
        for (status, body, expected) in [
            (200, r#"{"ok":true,"data":{"a":1},"cursor":{}}"#, Ok(json!({"a":1}))),
            (201, r#"{"ok":true}"#, Ok(Value::Null)),
            (204, "", Ok(Value::Null)),
            (202, " \n", not_json(202)),
            (200, "", not_json(200)),
            (200, r#"{"ok":false,"error":{"code":"c","message":"m"}}"#, refused("c", "m")),
            (404, r#"{"ok":true,"data":{}}"#, refused("unknown_error", "the engine answered HTTP 404")),
            (409, r#"{"ok":false}"#, refused("unknown_error", "the engine answered HTTP 409")),
            (
                409,
                r#"{"ok":false,"error":{"code":"x","message":null,"more":1}}"#,
                refused("x", "the engine answered HTTP 409"),
            ),
            (502, "<html>", not_json(502)),
            (500, r#""text""#, not_json(500)),
            (500, r#"{"error":"x"}"#, not_json(500)),
        ] {
            assert_eq!(open_envelope(status, body.as_bytes()), expected, "{status} {body}");
        }
    }

    #[test]
    fn rows_need_only_what_is_used() {
        assert_eq!(NodeRow::from_data(&json!({"name":"n"})), None);
        let row = NodeRow::from_data(&json!({"id":"node_1","token":" ","live":null})).unwrap();
        assert_eq!(row, NodeRow { id: "node_1".into(), name: None, token: None });
        assert_eq!(
            WorkspaceCreated::from_data(&json!({"api_key":"rk_live_1","workspace_id":17})).unwrap().workspace_id,
            Some("17".into())
        );
        assert_eq!(WorkspaceCreated::from_data(&json!({"workspace_id":"1"})), None);
        assert_eq!(AgentRow::from_data(&json!({})), Some(AgentRow::default()));
    }
}
