//! Envelopes on `/api/fleet/ws`: `{"v":2,"type","request_id","payload"}`, between the broker and a fleet sidecar.
//!
//! Inbound is lenient (unknown payload keys are ignored), except in `handler_result`: there exactly one of `output` and
//! `error` is present and nothing unknown beside them, because the result goes to the engine verbatim.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::node::Capability;

/// The envelope version this broker speaks.
pub const ENVELOPE_VERSION: u64 = 2;

/// An inbound envelope in order; what its payload must hold depends on its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    pub kind: String,
    /// Comes back in the answer.
    pub request_id: Option<String>,
    /// An empty object when there was none.
    pub payload: Value,
}

impl Envelope {
    /// # Errors
    /// What is wrong with the envelope, for an [`ErrorCode::InvalidFrame`].
    pub fn read(text: &str) -> Result<Envelope, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("the frame is not JSON: {error}"))?;
        let Value::Object(mut members) = value else { return Err("the frame is not a JSON object".into()) };
        if members.get("v").and_then(Value::as_u64) != Some(ENVELOPE_VERSION) {
            return Err(format!("`v` must be {ENVELOPE_VERSION}"));
        }
        let kind = match members.remove("type") {
            Some(Value::String(kind)) if !kind.is_empty() => kind,
            _ => return Err("`type` must be a text".into()),
        };
        let request_id = match members.remove("request_id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id),
            Some(_) => return Err("`request_id` must be a text or null".into()),
        };
        let payload = members.remove("payload").filter(|payload| !payload.is_null()).unwrap_or_else(|| json!({}));
        Ok(Envelope { kind, request_id, payload })
    }
}

/// Why a sidecar's frame was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// No envelope; answered with a null request id.
    InvalidFrame,
    /// A bad payload, or an operation that failed.
    FrameFailed,
    UnknownInvocation,
    ConnectFailed,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidFrame => "invalid_frame",
            ErrorCode::FrameFailed => "frame_failed",
            ErrorCode::UnknownInvocation => "unknown_invocation",
            ErrorCode::ConnectFailed => "connect_failed",
        }
    }

    /// The code of a failed operation by the code that the operation failed with.
    pub fn of(code: Option<&str>) -> ErrorCode {
        [ErrorCode::UnknownInvocation, ErrorCode::ConnectFailed]
            .into_iter()
            .find(|known| code == Some(known.as_str()))
            .unwrap_or(ErrorCode::FrameFailed)
    }
}

fn envelope(kind: &str, request_id: Option<&str>, payload: Value) -> String {
    json!({"v": ENVELOPE_VERSION, "type": kind, "request_id": request_id, "payload": payload}).to_string()
}

/// The answer to a frame that was carried out.
pub fn ok(request_id: Option<&str>, result: Value) -> String {
    envelope("ok", request_id, json!({"result": result}))
}

/// The answer to one that was not.
pub fn error(request_id: Option<&str>, code: ErrorCode, message: &str) -> String {
    envelope("error", request_id, json!({"code": code.as_str(), "message": message, "retryable": false}))
}

/// Asks a handler; `handler_result` is the answer.
pub fn invoke_handler(invocation_id: &str, name: &str, input: Value) -> String {
    envelope("invoke_handler", None, json!({"invocation_id": invocation_id, "name": name, "input": input}))
}

/// What a sidecar says of the node in `register_node`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Overrides the node's name when not blank.
    pub name: String,
    /// Ignored when it differs from the node's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// 0 = unlimited.
    #[serde(default)]
    pub max_agents: u64,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Overrides the broker's version when not blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How the broker starts the sidecar again when it is gone without having said so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Supervision {
    pub argv: Vec<String>,
    pub cwd: String,
    /// Overlays the broker's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub restart_policy: RestartPolicy,
}

/// When something that ended is started again, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub enabled: bool,
    pub max_restarts: u32,
    /// Milliseconds between the end and the next start.
    pub cooldown_ms: u64,
    pub max_consecutive_failures: u32,
}

impl RestartPolicy {
    /// Of an object, in which what is missing has its default.
    pub fn of_json(value: &Value) -> Option<RestartPolicy> {
        value.is_object().then(|| RestartPolicy::deserialize(value).ok())?
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy { enabled: true, max_restarts: 5, cooldown_ms: 2_000, max_consecutive_failures: 3 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_envelope_is_told_so() {
        let table = [
            ("", "the frame is not JSON"),
            ("{", "the frame is not JSON"),
            ("[]", "the frame is not a JSON object"),
            ("\"x\"", "the frame is not a JSON object"),
            ("{}", "`v` must be 2"),
            (r#"{"v":1,"type":"hello"}"#, "`v` must be 2"),
            (r#"{"v":"2","type":"hello"}"#, "`v` must be 2"),
            (r#"{"v":2}"#, "`type` must be a text"),
            (r#"{"v":2,"type":""}"#, "`type` must be a text"),
            (r#"{"v":2,"type":7}"#, "`type` must be a text"),
            (r#"{"v":2,"type":"hello","request_id":7}"#, "`request_id` must be a text or null"),
            (r#"{"v":2,"type":"hello","request_id":{}}"#, "`request_id` must be a text or null"),
        ];
        for (text, expected) in table {
            let why = Envelope::read(text).expect_err(text);
            assert!(why.starts_with(expected), "{text}: {why}");
        }
    }

    #[test]
    fn an_envelope_may_leave_out_what_is_empty() {
        let envelope = |request_id: Option<&str>, payload| Envelope {
            kind: "hello".into(),
            request_id: request_id.map(Into::into),
            payload,
        };
        let table = [
            (r#"{"v":2,"type":"hello"}"#, envelope(None, json!({}))),
            (r#"{"v":2,"type":"hello","request_id":null,"payload":null,"x":1}"#, envelope(None, json!({}))),
            (r#" {"v":2,"type":"hello","request_id":"","payload":{"a":1}}"#, envelope(Some(""), json!({"a": 1}))),
            // The payload is its type's business.
            (r#"{"v":2,"type":"hello","payload":[]}"#, envelope(None, json!([]))),
        ];
        for (text, expected) in table {
            assert_eq!(Envelope::read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn only_codes_that_sidecars_know_reach_them() {
        let table = [
            (None, ErrorCode::FrameFailed),
            (Some("agent_not_found"), ErrorCode::FrameFailed),
            (Some("invalid_frame"), ErrorCode::FrameFailed),
            (Some("unknown_invocation"), ErrorCode::UnknownInvocation),
            (Some("connect_failed"), ErrorCode::ConnectFailed),
        ];
        for (code, expected) in table {
            assert_eq!(ErrorCode::of(code), expected, "{code:?}");
        }
    }
}
