//! From the payload of a `deliver` frame to a message: its class, and where its fields may stand. Tables, no state.

use serde_json::Value;

use crate::wire::node::Deliver;

/// What is done with a payload type. Exact match; there is no filter on the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Shown to the agent.
    Inject,
    /// Acknowledged only, by contract.
    AckOnly,
    /// Acknowledged only, because nobody knows it: counted and logged.
    AckUnknown,
}

const INJECT: &[&str] = &[
    "",
    "message.created",
    "message.received",
    "message.new",
    "message.sent",
    "message.delivered",
    "thread.reply",
    "thread.message.created",
    "thread.message.sent",
    "dm.received",
    "dm.created",
    "dm.new",
    "dm.sent",
    "dm.message.created",
    "direct_message.received",
    "direct_message.created",
    "direct_message.new",
    "direct_message.sent",
    "group_dm.received",
    "group_dm.created",
    "group_dm.new",
    "group_dm.sent",
    "group_dm.message.created",
    "action.completed",
    "action.failed",
    "action.denied",
];

const ACK_ONLY: &[&str] = &["message.reacted", "message.read"];

const BODY: &[&str] = &[
    "/data/text",
    "/text",
    "/body",
    "/content",
    "/message/text",
    "/payload/text",
    "/data/message/text",
    "/data/output",
    "/data/error",
];
const FROM: &[&str] = &[
    "/data/agent_name",
    "/data/from_name",
    "/from",
    "/sender",
    "/author",
    "/message/agent_name",
    "/message/from",
    "/payload/from",
    // The DM payloads of the engine carry the sender in their message alone.
    "/data/message/agent_name",
];
const TARGET: &[&str] = &["/target", "/to", "/recipient", "/message/target"];
const CHANNEL: &[&str] = &["/data/channel_name", "/channel", "/message/channel"];
const THREAD: &[&str] = &["/data/thread_id", "/thread_id", "/threadId", "/data/parent_id"];
const PRIORITY: &[&str] = &["/data/priority", "/priority"];
const PRIORITY_LABEL: &[&str] = &["/data/metadata/priority", "/metadata/priority"];

/// The payload's `type`; empty when absent.
pub fn kind(payload: &Value) -> &str {
    payload.get("type").and_then(Value::as_str).unwrap_or("")
}

pub fn class(kind: &str) -> Class {
    if INJECT.contains(&kind) {
        Class::Inject
    } else if ACK_ONLY.contains(&kind) {
        Class::AckOnly
    } else {
        Class::AckUnknown
    }
}

/// What an agent is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub body: String,
    pub from: String,
    /// `#channel`, or the recipient's name for direct messages.
    pub target: String,
    pub thread_id: Option<String>,
    /// 0 (low) to 4 (urgent), as far as the sender said.
    pub priority: Option<u8>,
}

/// The first pointer that holds a non-blank text (trimmed) or a number.
fn first(payload: &Value, pointers: &[&str]) -> Option<String> {
    pointers.iter().find_map(|pointer| match payload.pointer(pointer)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// Reads the fields of a payload; `recipient` is the target of a direct message.
pub fn message(frame: &Deliver) -> Message {
    let payload = &frame.payload;
    let target = first(payload, TARGET)
        .or_else(|| first(payload, CHANNEL).map(|channel| format!("#{}", channel.trim_start_matches('#'))))
        .unwrap_or_else(|| frame.agent.clone());
    Message {
        body: first(payload, BODY).or_else(|| attachments(payload)).unwrap_or_else(|| fallback_body(payload)),
        from: first(payload, FROM).unwrap_or_else(|| "relaycast".into()),
        target,
        thread_id: first(payload, THREAD),
        priority: priority(payload),
    }
}

fn attachments(payload: &Value) -> Option<String> {
    let names: Vec<&str> = payload
        .pointer("/data/attachments")?
        .as_array()?
        .iter()
        .filter_map(|attachment| attachment.get("filename")?.as_str())
        .filter(|name| !name.trim().is_empty())
        .collect();
    (!names.is_empty()).then(|| format!("[attachments: {}]", names.join(", ")))
}

/// Never the envelope: only what the sender put in.
fn fallback_body(payload: &Value) -> String {
    ["/data/output", "/data/error", "/data"]
        .iter()
        .find_map(|pointer| payload.pointer(pointer).filter(|value| !value.is_null()))
        .unwrap_or(payload)
        .to_string()
}

fn priority(payload: &Value) -> Option<u8> {
    PRIORITY.iter().find_map(|pointer| payload.pointer(pointer)?.as_u64().and_then(|n| u8::try_from(n).ok())).or_else(
        || match first(payload, PRIORITY_LABEL)?.to_ascii_lowercase().as_str() {
            "low" => Some(1),
            "normal" => Some(2),
            "high" => Some(3),
            "urgent" => Some(4),
            _ => None,
        },
    )
}

/// The identity of a frame that the engine does not number: its type, message and delivery.
pub fn unrepeated_key(frame: &Deliver) -> String {
    format!("{}|{}|{}", kind(&frame.payload), frame.msg_id, frame.delivery_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::node::DeliveryMode;
    use serde_json::json;

    fn frame(payload: Value) -> Deliver {
        Deliver {
            agent: "al".into(),
            agent_id: "a1".into(),
            delivery_id: "d".into(),
            msg_id: "m".into(),
            seq: 1,
            mode: DeliveryMode::Wait,
            payload,
        }
    }

    #[track_caller]
    fn check(payload: Value, body: &str, from: &str, target: &str) {
        let message = message(&frame(payload));
        assert_eq!((message.body.as_str(), message.from.as_str(), message.target.as_str()), (body, from, target));
    }

    #[test]
    fn every_alias_has_its_class() {
        for kind in INJECT {
            assert_eq!(class(kind), Class::Inject, "{kind}");
        }
        assert_eq!(class("message.reacted"), Class::AckOnly);
        assert_eq!(class("message.read"), Class::AckOnly);
        for unknown in ["message", "Message.created", "dm.received ", "agent.online"] {
            assert_eq!(class(unknown), Class::AckUnknown, "{unknown}");
        }
    }

    #[test]
    fn fields_come_from_the_first_pointer_that_holds_something() {
        check(
            json!({"type":"message.created","data":{"text":"hi","agent_name":"bob","channel_name":"general"}}),
            "hi",
            "bob",
            "#general",
        );
        check(json!({"data":{"text":"hi","channel_name":"#general"}}), "hi", "relaycast", "#general");
        check(json!({"text":" flat ","from":"bob","to":"al"}), "flat", "bob", "al");
        check(json!({"type":"dm.received","data":{"message":{"text":"psst","agent_name":"bob"}}}), "psst", "bob", "al");
        check(json!({"type":"dm.received","data":{"text":"psst","from_name":"bob","to":"al"}}), "psst", "bob", "al");
        check(json!({"data":{"text":7,"agent_name":"bob"}}), "7", "bob", "al");
        check(json!({"data":{"text":"  ","body":"x"},"body":"second"}), "second", "relaycast", "al");
    }

    #[test]
    fn f3_object_output_types_only_that_object() {
        check(
            json!({"type":"action.failed","data":{"invocation_id":"i","error":{"code":"x","n":1}}}),
            r#"{"code":"x","n":1}"#,
            "relaycast",
            "al",
        );
        check(
            json!({"type":"action.completed","data":{"output":{"k":[1]},"error":null}}),
            r#"{"k":[1]}"#,
            "relaycast",
            "al",
        );
        check(json!({"type":"action.completed","data":{"output":"done"}}), "done", "relaycast", "al");
        check(json!({"type":"message.created","data":{"x":1}}), r#"{"x":1}"#, "relaycast", "al");
    }

    #[test]
    fn blank_text_with_attachments_names_them() {
        check(
            json!({"data":{"text":"","agent_name":"bob","attachments":[{"filename":"a.txt"},{"filename":"b.png"},{}]}}),
            "[attachments: a.txt, b.png]",
            "bob",
            "al",
        );
    }

    #[test]
    fn priority_is_a_number_or_a_label() {
        for (payload, expected) in [
            (json!({"data":{"priority":3}}), Some(3)),
            (json!({"priority":0}), Some(0)),
            (json!({"data":{"metadata":{"priority":"Urgent"}}}), Some(4)),
            (json!({"data":{"priority":900}}), None),
            (json!({}), None),
        ] {
            assert_eq!(message(&frame(payload.clone())).priority, expected, "{payload}");
        }
    }

    #[test]
    fn thread_is_read_but_numbers_count() {
        let message = message(&frame(json!({"data":{"text":"x","thread_id":12345}})));
        assert_eq!(message.thread_id.as_deref(), Some("12345"));
    }
}
