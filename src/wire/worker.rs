//! Frames of a worker on stdin and stdout: one JSON object per line, `{"v":2,"type","request_id","payload"}`.
//!
//! Inbound is lenient: `v` and `payload` are present, what `v` says is not looked at, unknown members are ignored. A line that
//! is no frame is answered by a `worker_error` and nothing else happens.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fleet::{ENVELOPE_VERSION, Envelope};
use super::node::DeliveryMode;

/// A longer line is no frame.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// What a worker is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum ToWorker {
    /// The name that it was given, if any; other members are the caller's.
    InitWorker {
        name: Option<String>,
    },
    DeliverRelay(RelayDelivery),
    WritePty {
        data: String,
    },
    ResizePty {
        rows: u16,
        cols: u16,
    },
    /// `None`: plain.
    SnapshotPty {
        format: Option<String>,
    },
    Ping {
        ts_ms: u64,
    },
    ShutdownWorker,
}

/// A message for the worker's agent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RelayDelivery {
    pub delivery_id: String,
    pub event_id: String,
    pub from: String,
    #[serde(default)]
    pub target: String,
    pub body: String,
    #[serde(default)]
    pub workspace_id: Option<String>,
    #[serde(default)]
    pub workspace_alias: Option<String>,
    #[serde(default, deserialize_with = "mode")]
    pub injection_mode: DeliveryMode,
}

/// What is no known mode, or `null`, is the default.
fn mode<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DeliveryMode, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// A frame in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Inbound {
    /// Comes back in the answer.
    pub request_id: Option<String>,
    pub asked: ToWorker,
}

/// A line that asks for nothing that can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub request_id: Option<String>,
    /// `invalid_frame`, `unknown_type` or `invalid_delivery`.
    pub code: &'static str,
    pub message: String,
}

impl Rejected {
    /// What is answered.
    pub fn answer(self) -> FromWorker {
        FromWorker::WorkerError { code: self.code.into(), message: self.message, retryable: false }
    }
}

/// Reads one line.
///
/// # Errors
/// What is to be answered instead.
pub fn read(line: &[u8]) -> Result<Inbound, Rejected> {
    let Envelope { kind, request_id, payload } =
        envelope(line).map_err(|message| Rejected { request_id: None, code: "invalid_frame", message })?;
    let asked = match kind.as_str() {
        "init_worker" => {
            let name = payload.pointer("/agent/name").or_else(|| payload.get("name")).and_then(Value::as_str);
            Ok(ToWorker::InitWorker { name: name.filter(|name| !name.trim().is_empty()).map(str::to_string) })
        }
        "deliver_relay" => part(payload).map(ToWorker::DeliverRelay).map_err(|why| ("invalid_delivery", why)),
        "write_pty" => part(payload).map(|Data { data }| ToWorker::WritePty { data }).map_err(bad),
        "resize_pty" => part(payload).map(|Size { rows, cols }| ToWorker::ResizePty { rows, cols }).map_err(bad),
        "snapshot_pty" => {
            Ok(ToWorker::SnapshotPty { format: payload.get("format").and_then(Value::as_str).map(str::to_string) })
        }
        "ping" => Ok(ToWorker::Ping { ts_ms: payload.get("ts_ms").and_then(Value::as_u64).unwrap_or(0) }),
        "shutdown_worker" => Ok(ToWorker::ShutdownWorker),
        other => Err(("unknown_type", format!("unknown frame type '{other}'"))),
    };
    match asked {
        Ok(asked) => Ok(Inbound { request_id, asked }),
        Err((code, message)) => Err(Rejected { request_id, code, message }),
    }
}

#[derive(Deserialize)]
struct Data {
    data: String,
}

#[derive(Deserialize)]
struct Size {
    rows: u16,
    cols: u16,
}

fn bad(why: String) -> (&'static str, String) {
    ("invalid_frame", why)
}

fn part<T: DeserializeOwned>(payload: Value) -> Result<T, String> {
    serde_json::from_value(payload).map_err(|error| format!("the payload is unusable: {error}"))
}

fn envelope(line: &[u8]) -> Result<Envelope, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("the line is not JSON: {error}"))?;
    let Value::Object(mut members) = value else { return Err("the line is not a JSON object".into()) };
    let has = |name: &str| members.contains_key(name);
    if !has("v") || !has("payload") {
        return Err("a frame has the members v, type and payload".into());
    }
    let Some(Value::String(kind)) = members.remove("type") else { return Err("`type` must be a text".into()) };
    let request_id = match members.remove("request_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id),
        Some(_) => return Err("`request_id` must be a text or null".into()),
    };
    Ok(Envelope { kind, request_id, payload: members.remove("payload").unwrap_or_default() })
}

/// What a worker says. The fields of an identity that a kind of worker has not are left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", content = "payload", rename_all = "snake_case")]
pub enum FromWorker {
    WorkerReady(WorkerReady),
    WorkerStream {
        /// `stdout` or `stderr`.
        stream: String,
        chunk: String,
    },
    DeliveryQueued(DeliveryStep),
    DeliveryInjected(DeliveryStep),
    DeliveryAck(DeliveryStep),
    DeliveryActive {
        delivery_id: String,
        event_id: String,
        pattern: String,
    },
    DeliveryVerified {
        delivery_id: String,
        event_id: String,
        /// `echo`, `timeout_fallback` or `exit_code`.
        verification: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    DeliveryFailed {
        delivery_id: String,
        event_id: String,
        reason: String,
    },
    AgentIdle {
        idle_secs: u64,
        since: String,
    },
    AgentBlockedOnSend {
        blocked_secs: u64,
        pending_delivery_count: u64,
    },
    AgentContextLow {
        pct: u8,
    },
    AgentExit {
        reason: String,
    },
    SnapshotResponse {
        format: String,
        rows: u16,
        cols: u16,
        cursor: (u16, u16),
        screen: String,
    },
    WorkerError {
        code: String,
        message: String,
        retryable: bool,
    },
    Pong {
        ts_ms: u64,
    },
    WorkerExited {
        code: Option<i32>,
        /// A decimal number.
        signal: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct WorkerReady {
    pub name: String,
    /// `pty` or `headless`.
    pub runtime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cli: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(rename = "sessionId", skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Something has become of a delivery.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryStep {
    pub delivery_id: String,
    pub event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
}

impl FromWorker {
    /// The line, with its end.
    pub fn line(&self, request_id: Option<&str>) -> String {
        #[derive(Serialize)]
        struct Outbound<'a> {
            v: u64,
            request_id: Option<&'a str>,
            #[serde(flatten)]
            frame: &'a FromWorker,
        }
        let outbound = Outbound { v: ENVELOPE_VERSION, request_id, frame: self };
        // Texts and numbers only: there is nothing that JSON could not say.
        serde_json::to_string(&outbound).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(kind: &str, payload: Value) -> Result<ToWorker, &'static str> {
        let line = json!({"v": 2, "type": kind, "request_id": "r", "payload": payload, "more": 1}).to_string();
        match read(line.as_bytes()) {
            Ok(inbound) => {
                assert_eq!(inbound.request_id.as_deref(), Some("r"));
                Ok(inbound.asked)
            }
            Err(rejected) => {
                assert_eq!(rejected.request_id.as_deref(), Some("r"));
                Err(rejected.code)
            }
        }
    }

    #[test]
    fn every_frame_is_read_and_what_is_unusable_is_named() {
        let init = |name: Option<&str>| Ok(ToWorker::InitWorker { name: name.map(str::to_string) });
        let snapshot = |format: Option<&str>| Ok(ToWorker::SnapshotPty { format: format.map(str::to_string) });
        for (kind, payload, expected) in [
            ("init_worker", json!({"agent": {"name": "a"}}), init(Some("a"))),
            ("init_worker", json!({"agent": {"name": " "}}), init(None)),
            ("init_worker", json!(null), init(None)),
            ("write_pty", json!({"data": "x\r"}), Ok(ToWorker::WritePty { data: "x\r".into() })),
            ("write_pty", json!({}), Err("invalid_frame")),
            ("resize_pty", json!({"rows": 5, "cols": 6}), Ok(ToWorker::ResizePty { rows: 5, cols: 6 })),
            ("resize_pty", json!({"rows": -5, "cols": 6}), Err("invalid_frame")),
            ("snapshot_pty", json!({}), snapshot(None)),
            ("snapshot_pty", json!({"format": "ansi"}), snapshot(Some("ansi"))),
            ("ping", json!({"ts_ms": 7}), Ok(ToWorker::Ping { ts_ms: 7 })),
            ("ping", json!({}), Ok(ToWorker::Ping { ts_ms: 0 })),
            ("shutdown_worker", json!({"reason": "x"}), Ok(ToWorker::ShutdownWorker)),
            ("deliver_relay", json!({"delivery_id": "d"}), Err("invalid_delivery")),
            ("deliver_relay", json!([]), Err("invalid_delivery")),
            ("other", json!({}), Err("unknown_type")),
        ] {
            assert_eq!(asked(kind, payload.clone()), expected, "{kind} {payload}");
        }
    }

    #[test]
    fn a_delivery_has_defaults() {
        let least = json!({"delivery_id": "d", "event_id": "e", "from": "bob", "body": "b"});
        let Ok(ToWorker::DeliverRelay(delivery)) = asked("deliver_relay", least.clone()) else { panic!("a delivery") };
        assert_eq!((&*delivery.target, delivery.injection_mode), ("", DeliveryMode::Wait));
        let modes = [json!("steer"), json!(null), json!("wait"), json!("odd")].map(|mode| {
            let mut full = least.clone();
            full["injection_mode"] = mode;
            let Ok(ToWorker::DeliverRelay(delivery)) = asked("deliver_relay", full) else { panic!("a delivery") };
            delivery.injection_mode
        });
        assert_eq!(modes, [DeliveryMode::Steer, DeliveryMode::Wait, DeliveryMode::Wait, DeliveryMode::Wait]);
    }

    #[test]
    fn a_line_without_an_envelope_is_no_frame() {
        for line in [
            "",
            "x",
            "[]",
            r#"{"type":"ping","payload":{}}"#,
            r#"{"v":2,"type":"ping"}"#,
            r#"{"v":2,"payload":{}}"#,
            r#"{"v":2,"type":1,"payload":{}}"#,
            r#"{"v":2,"type":"ping","request_id":1,"payload":{}}"#,
        ] {
            let rejected = read(line.as_bytes()).expect_err(line);
            assert_eq!((rejected.code, rejected.request_id), ("invalid_frame", None), "{line}");
        }
        assert!(read(&[0xff]).is_err());
        // What `v` says is not looked at.
        let asked = read(br#"{"v":"x","type":"shutdown_worker","payload":null}"#).expect("a frame").asked;
        assert_eq!(asked, ToWorker::ShutdownWorker);
    }

    #[test]
    fn frames_are_lines_of_four_members() {
        let step =
            DeliveryStep { delivery_id: "d".into(), event_id: "e".into(), agent: Some("a".into()), timestamp: None };
        for (frame, request_id, expected) in [
            (
                FromWorker::Pong { ts_ms: 7 },
                Some("r"),
                r#"{"v":2,"request_id":"r","type":"pong","payload":{"ts_ms":7}}"#,
            ),
            (
                FromWorker::WorkerExited { code: None, signal: Some("9".into()) },
                None,
                r#"{"v":2,"request_id":null,"type":"worker_exited","payload":{"code":null,"signal":"9"}}"#,
            ),
            (
                FromWorker::DeliveryQueued(step),
                None,
                r#"{"v":2,"request_id":null,"type":"delivery_queued","payload":{"delivery_id":"d","event_id":"e","agent":"a"}}"#,
            ),
            (
                FromWorker::WorkerReady(WorkerReady {
                    name: "a".into(),
                    runtime: "pty".into(),
                    pid: Some(5),
                    ..Default::default()
                }),
                None,
                r#"{"v":2,"request_id":null,"type":"worker_ready","payload":{"name":"a","runtime":"pty","pid":5}}"#,
            ),
        ] {
            assert_eq!(frame.line(request_id), format!("{expected}\n"));
        }
        let answer = read(b"x").expect_err("no frame").answer();
        assert!(matches!(answer, FromWorker::WorkerError { code, retryable: false, .. } if code == "invalid_frame"));
    }
}
