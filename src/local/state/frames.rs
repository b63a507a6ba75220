//! The strict reading of what a node sends.
//!
//! Source: the published 5.x frame schema. An unknown key, a wrong type or a `null` makes the frame invalid
//! (`error/invalid_message`); `resume_cursor` alone may be `null`. In `action.result` exactly one of `output` and
//! `error` is present, and `output` may be any JSON.

use serde_json::{Map, Value};

use crate::wire::node::Capability;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    NullableText,
    /// An integer that is not negative.
    Count,
    /// A finite number that is not negative.
    Measure,
    Flag,
    Texts,
    Capabilities,
    Inventory,
    Any,
}

const fn need(key: &'static str, form: Form) -> (&'static str, Form, bool) {
    (key, form, true)
}

const fn may(key: &'static str, form: Form) -> (&'static str, Form, bool) {
    (key, form, false)
}

type Shape = &'static [(&'static str, Form, bool)];

/// Every frame a node may send, without `type`, `v` and `id`, which all have.
const FRAMES: &[(&str, Shape)] = &[
    (
        "node.register",
        &[
            need("name", Form::Text),
            need("node_id", Form::Text),
            need("capabilities", Form::Capabilities),
            need("max_agents", Form::Count),
            need("tags", Form::Texts),
            need("version", Form::Text),
            may("resume_cursor", Form::NullableText),
        ],
    ),
    (
        "node.heartbeat",
        &[
            need("load", Form::Measure),
            need("active_agents", Form::Count),
            need("handlers_live", Form::Flag),
            may("name", Form::Text),
            may("node_id", Form::Text),
            may("capabilities", Form::Capabilities),
            may("max_agents", Form::Count),
            may("version", Form::Text),
        ],
    ),
    ("node.deregister", &[]),
    (
        "agent.register",
        &[
            need("name", Form::Text),
            may("invocation_id", Form::Text),
            may("session_ref", Form::Text),
            may("resumable", Form::Flag),
        ],
    ),
    ("agent.deregister", &[need("agent_id", Form::Text), may("name", Form::Text)]),
    ("delivery.ack", &[need("agent", Form::Text), need("up_to_seq", Form::Count)]),
    ("action.result", &[need("invocation_id", Form::Text), may("output", Form::Any), may("error", Form::Text)]),
    ("inventory.sync", &[need("agents", Form::Inventory)]),
];

const CAPABILITY: Shape = &[need("name", Form::Text), may("kind", Form::Text), may("metadata", Form::Any)];
const INVENTORY_ITEM: Shape = &[
    need("agent_id", Form::Text),
    need("name", Form::Text),
    may("invocation_id", Form::Text),
    may("session_ref", Form::Text),
];

/// A frame that the schema accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub kind: &'static str,
    pub id: Option<String>,
    fields: Map<String, Value>,
}

/// Why a text is no frame. `id` is the sender's, when there was one to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub id: Option<String>,
    pub why: String,
}

impl Frame {
    /// Reads one text message.
    ///
    /// # Errors
    /// When the schema refuses it; the sender gets `invalid_message`.
    pub fn read(raw: &str) -> Result<Frame, Invalid> {
        let invalid = |id: Option<&str>, why: String| Invalid { id: id.map(str::to_string), why };
        let value: Value = serde_json::from_str(raw).map_err(|e| invalid(None, format!("not JSON: {e}")))?;
        let Value::Object(mut fields) = value else {
            return Err(invalid(None, "not a JSON object".into()));
        };
        let id = match fields.remove("id") {
            None => None,
            Some(Value::String(id)) => Some(id),
            Some(_) => return Err(invalid(None, "`id` must be a string".into())),
        };
        let refused = |why: String| invalid(id.as_deref(), why);
        if !fields.remove("v").is_some_and(|v| v.as_f64() == Some(1.0)) {
            return Err(refused("`v` must be 1".into()));
        }
        let kind = fields.remove("type");
        let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
        let (kind, shape) =
            *FRAMES.iter().find(|(name, _)| *name == kind).ok_or_else(|| refused("unknown `type`".into()))?;
        check(&fields, shape).map_err(refused)?;
        if kind == "action.result" && fields.contains_key("output") == fields.contains_key("error") {
            return Err(refused("exactly one of `output` and `error`".into()));
        }
        Ok(Frame { kind, id, fields })
    }

    pub fn text(&self, key: &str) -> &str {
        self.optional(key).unwrap_or_default()
    }

    pub fn optional(&self, key: &str) -> Option<&str> {
        self.fields.get(key).and_then(Value::as_str)
    }

    pub fn count(&self, key: &str) -> Option<u64> {
        self.fields.get(key).and_then(Value::as_f64).map(|n| n as u64)
    }

    pub fn measure(&self, key: &str) -> f64 {
        self.fields.get(key).and_then(Value::as_f64).unwrap_or(0.0)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.fields.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn texts(&self, key: &str) -> Vec<String> {
        let items = self.fields.get(key).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_string).collect()
    }

    pub fn capabilities(&self) -> Option<Vec<Capability>> {
        serde_json::from_value(self.fields.get("capabilities")?.clone()).ok()
    }

    pub fn inventory(&self) -> Vec<Map<String, Value>> {
        let items = self.fields.get("agents").and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_object).cloned().collect()
    }

    /// The outcome of an `action.result`.
    pub fn outcome(&self) -> Result<Value, String> {
        match self.optional("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(self.fields.get("output").cloned().unwrap_or_default()),
        }
    }
}

fn check(fields: &Map<String, Value>, shape: Shape) -> Result<(), String> {
    if let Some(unknown) = fields.keys().find(|key| !shape.iter().any(|(known, _, _)| known == key)) {
        return Err(format!("unknown key `{unknown}`"));
    }
    for (key, form, required) in shape {
        match fields.get(*key) {
            None if *required => return Err(format!("`{key}` is missing")),
            None => {}
            Some(value) => fits(value, *form).map_err(|why| format!("`{key}`: {why}"))?,
        }
    }
    Ok(())
}

fn fits(value: &Value, form: Form) -> Result<(), String> {
    let not_negative = value.as_f64().filter(|n| n.is_finite() && *n >= 0.0);
    let fitting = match form {
        Form::Text => value.is_string(),
        Form::NullableText => value.is_string() || value.is_null(),
        Form::Count => not_negative.is_some_and(|n| n.fract() == 0.0),
        Form::Measure => not_negative.is_some(),
        Form::Flag => value.is_boolean(),
        Form::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        Form::Capabilities => return each(value, CAPABILITY).and_then(|()| metadata_objects(value)),
        Form::Inventory => return each(value, INVENTORY_ITEM),
        Form::Any => true,
    };
    if fitting { Ok(()) } else { Err("wrong type".into()) }
}

fn each(value: &Value, shape: Shape) -> Result<(), String> {
    let items = value.as_array().ok_or("not a list")?;
    items.iter().try_for_each(|item| check(item.as_object().ok_or("not an object")?, shape))
}

fn metadata_objects(value: &Value) -> Result<(), String> {
    let items = value.as_array().into_iter().flatten();
    if items.filter_map(|item| item.get("metadata")).all(Value::is_object) {
        Ok(())
    } else {
        Err("`metadata` must be an object".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_strict() {
        let register = r#"{"type":"node.register","v":1,"name":"n","node_id":"x","capabilities":[],"max_agents":0,"tags":[],"version":"1""#;
        for (raw, accepted) in [
            (format!("{register}}}"), true),
            (format!(r#"{register},"resume_cursor":null}}"#), true),
            (format!(r#"{register},"id":"a"}}"#), true),
            (format!(r#"{register},"id":null}}"#), false),
            (format!(r#"{register},"extra":1}}"#), false),
            (register.replace("\"tags\":[]", "\"tags\":null") + "}", false),
            (register.replace("\"max_agents\":0", "\"max_agents\":-1") + "}", false),
            (register.replace("\"max_agents\":0", "\"max_agents\":1.5") + "}", false),
            (register.replace("\"v\":1", "\"v\":2") + "}", false),
            (
                register.replace("\"capabilities\":[]", r#""capabilities":[{"name":"spawn:x","kind":"spawn"}]"#) + "}",
                true,
            ),
            (register.replace("\"capabilities\":[]", r#""capabilities":[{"name":"x","metadata":null}]"#) + "}", false),
            (register.replace("\"capabilities\":[]", r#""capabilities":["x"]"#) + "}", false),
            (r#"{"type":"node.heartbeat","v":1,"load":0,"active_agents":1,"handlers_live":false}"#.into(), true),
            (
                r#"{"type":"node.heartbeat","v":1,"load":0,"active_agents":1,"handlers_live":false,"tags":[]}"#.into(),
                false,
            ),
            (r#"{"type":"agent.register","v":1,"id":"a","name":"al","session_ref":null}"#.into(), false),
            (r#"{"type":"delivery.ack","v":1,"agent":"al","up_to_seq":-1}"#.into(), false),
            (r#"{"type":"action.result","v":1,"invocation_id":"i","output":null}"#.into(), true),
            (r#"{"type":"action.result","v":1,"invocation_id":"i","error":"e"}"#.into(), true),
            (r#"{"type":"action.result","v":1,"invocation_id":"i","error":"e","output":1}"#.into(), false),
            (r#"{"type":"action.result","v":1,"invocation_id":"i"}"#.into(), false),
            (r#"{"type":"action.result","v":1,"invocation_id":"i","error":null}"#.into(), false),
            (r#"{"type":"inventory.sync","v":1,"agents":[{"agent_id":"1","name":"al"}]}"#.into(), true),
            (r#"{"type":"inventory.sync","v":1,"agents":[{"agent_id":"1"}]}"#.into(), false),
            (r#"{"type":"node.deregister","v":1}"#.into(), true),
            (r#"{"type":"deliver","v":1}"#.into(), false),
            ("[]".into(), false),
            ("{".into(), false),
        ] {
            assert_eq!(Frame::read(&raw).is_ok(), accepted, "{raw}: {:?}", Frame::read(&raw));
        }
    }
}
