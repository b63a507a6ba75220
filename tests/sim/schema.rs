//! The engine's schema of what a node may send: strict. An unknown key, a wrong type or a `null` loses the whole frame,
//! and so it ends the simulation.

use serde_json::Value;

type Check = fn(&Value) -> bool;

fn text(value: &Value) -> bool {
    value.is_string()
}
fn filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}
fn count(value: &Value) -> bool {
    value.as_u64().is_some()
}
fn flag(value: &Value) -> bool {
    value.is_boolean()
}
fn truth(value: &Value) -> bool {
    value == &Value::Bool(true)
}
fn load(value: &Value) -> bool {
    value.as_f64().is_some_and(|load| load.is_finite() && load >= 0.0)
}
fn null_or_text(value: &Value) -> bool {
    value.is_null() || value.is_string()
}
fn anything(_: &Value) -> bool {
    true
}
fn texts(value: &Value) -> bool {
    value.as_array().is_some_and(|all| all.iter().all(Value::is_string))
}
fn capabilities(value: &Value) -> bool {
    const KEYS: &[Field] = &[must("name", filled), may("kind", text), may("metadata", Value::is_object)];
    value.as_array().is_some_and(|all| all.iter().all(|one| fields(one, KEYS).is_ok()))
}
fn inventory(value: &Value) -> bool {
    const KEYS: &[Field] =
        &[must("agent_id", filled), must("name", filled), may("invocation_id", filled), may("session_ref", filled)];
    value.as_array().is_some_and(|all| all.iter().all(|one| fields(one, KEYS).is_ok()))
}

struct Field {
    key: &'static str,
    required: bool,
    check: Check,
}

const fn must(key: &'static str, check: Check) -> Field {
    Field { key, required: true, check }
}
const fn may(key: &'static str, check: Check) -> Field {
    Field { key, required: false, check }
}

const NODE_REGISTER: &[Field] = &[
    may("id", filled),
    must("name", filled),
    must("node_id", filled),
    must("capabilities", capabilities),
    must("max_agents", count),
    must("tags", texts),
    must("version", filled),
    must("resume_cursor", null_or_text),
];
const NODE_HEARTBEAT: &[Field] = &[
    may("id", filled),
    must("name", filled),
    must("node_id", filled),
    must("capabilities", capabilities),
    must("max_agents", count),
    must("version", filled),
    must("load", load),
    must("active_agents", count),
    must("handlers_live", flag),
];
const NODE_DEREGISTER: &[Field] = &[may("id", filled)];
const AGENT_REGISTER: &[Field] = &[
    must("id", filled),
    must("name", filled),
    may("invocation_id", filled),
    may("session_ref", filled),
    may("resumable", truth),
];
const AGENT_DEREGISTER: &[Field] = &[may("id", filled), must("agent_id", filled), may("name", filled)];
const DELIVERY_ACK: &[Field] = &[may("id", filled), must("agent", filled), must("up_to_seq", count)];
const ACTION_RESULT: &[Field] =
    &[may("id", filled), must("invocation_id", filled), may("output", anything), may("error", filled)];
const INVENTORY_SYNC: &[Field] = &[may("id", filled), must("agents", inventory)];

fn fields(value: &Value, table: &[Field]) -> Result<(), String> {
    let object = value.as_object().ok_or("not an object")?;
    for field in table.iter().filter(|field| field.required) {
        if !object.contains_key(field.key) {
            return Err(format!("`{}` is missing", field.key));
        }
    }
    for (key, value) in object.iter().filter(|(key, _)| !matches!(key.as_str(), "type" | "v")) {
        let field = table.iter().find(|field| field.key == key).ok_or(format!("unknown key `{key}`"))?;
        if !(field.check)(value) {
            return Err(format!("`{key}` has no legal value: {value}"));
        }
    }
    Ok(())
}

/// Checks one frame as it went over the wire.
pub fn check(frame: &Value) -> Result<(), String> {
    if frame.get("v") != Some(&Value::from(1)) {
        return Err("no `v` of 1".into());
    }
    let table = match frame.get("type").and_then(Value::as_str).unwrap_or_default() {
        "node.register" => NODE_REGISTER,
        "node.heartbeat" => NODE_HEARTBEAT,
        "node.deregister" => NODE_DEREGISTER,
        "agent.register" => AGENT_REGISTER,
        "agent.deregister" => AGENT_DEREGISTER,
        "delivery.ack" => DELIVERY_ACK,
        "action.result" => ACTION_RESULT,
        "inventory.sync" => INVENTORY_SYNC,
        other => return Err(format!("unknown type `{other}`")),
    };
    fields(frame, table)?;
    let has = |key: &str| frame.get(key).is_some();
    match frame["type"].as_str() {
        Some("action.result") if has("output") == has("error") => Err("not exactly one of output and error".into()),
        Some("agent.register") if has("session_ref") != has("resumable") => {
            Err("`resumable` goes with `session_ref` and only with it".into())
        }
        _ => Ok(()),
    }
}

#[test]
fn the_schema_refuses_what_the_engine_refuses() {
    let frame = |text: &str| check(&serde_json::from_str(text).expect("JSON"));
    assert_eq!(frame(r#"{"type":"delivery.ack","v":1,"agent":"al","up_to_seq":42}"#), Ok(()));
    for bad in [
        r#"{"type":"delivery.ack","v":1,"agent":"al","up_to_seq":-1}"#,
        r#"{"type":"delivery.ack","v":1,"agent":"al","up_to_seq":1,"seq":1}"#,
        r#"{"type":"delivery.ack","agent":"al","up_to_seq":1}"#,
        r#"{"type":"agent.register","v":1,"id":"x","name":"al","session_ref":null}"#,
        r#"{"type":"agent.register","v":1,"id":"x","name":"al","session_ref":"s"}"#,
        r#"{"type":"action.result","v":1,"invocation_id":"i"}"#,
        r#"{"type":"action.result","v":1,"invocation_id":"i","output":null,"error":"e"}"#,
        r#"{"type":"pong","v":1}"#,
    ] {
        assert!(frame(bad).is_err(), "{bad}");
    }
}
