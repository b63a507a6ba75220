//! The wire types against recorded JSON: `fixtures/wire/`.

use std::collections::BTreeMap;

use agent_relay_broker::wire::engine::*;
use agent_relay_broker::wire::fleet;
use agent_relay_broker::wire::node::*;
use serde_json::{Map, Value, json};

fn recorded(name: &str) -> BTreeMap<String, Value> {
    let path = format!("{}/fixtures/wire/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every recorded entry must have its counterpart here and the other way round.
fn same_names<T>(recorded: &BTreeMap<String, Value>, ours: &[(&str, T)]) {
    let mut names: Vec<&str> = ours.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(names, recorded.keys().map(String::as_str).collect::<Vec<_>>());
}

/// Paths of all `null`s, as JSON pointers.
fn nulls(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Null => found.push(at.to_string()),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, item)| nulls(item, &format!("{at}/{n}"), found)),
        Value::Object(map) => map.iter().for_each(|(key, item)| nulls(item, &format!("{at}/{key}"), found)),
        _ => {}
    }
}

fn cap(name: &str, kind: Option<&str>, metadata: Option<Value>) -> Capability {
    let metadata: Option<Map<String, Value>> = metadata.and_then(|value| value.as_object().cloned());
    Capability { name: name.into(), kind: kind.map(Into::into), metadata }
}

fn register(id: Option<&str>, name: &str, node_id: &str) -> NodeRegister {
    NodeRegister {
        id: id.map(Into::into),
        name: name.into(),
        node_id: node_id.into(),
        capabilities: vec![],
        max_agents: 0,
        tags: vec![],
        version: "relay-broker/9.1.6".into(),
        resume_cursor: None,
    }
}

fn heartbeat(name: &str, node_id: &str) -> NodeHeartbeat {
    NodeHeartbeat {
        id: None,
        name: name.into(),
        node_id: node_id.into(),
        capabilities: vec![],
        max_agents: 0,
        version: "relay-broker/9.1.6".into(),
        load: 0.0,
        active_agents: 0,
        handlers_live: false,
    }
}

fn entry(agent_id: &str, name: &str, invocation_id: Option<&str>, session_ref: Option<&str>) -> InventoryEntry {
    InventoryEntry {
        agent_id: agent_id.into(),
        name: name.into(),
        invocation_id: invocation_id.map(Into::into),
        session_ref: session_ref.map(Into::into),
    }
}

fn deregister(id: Option<&str>, name: Option<&str>) -> ToEngine {
    ToEngine::AgentDeregister(AgentDeregister {
        id: id.map(Into::into),
        agent_id: "a1".into(),
        name: name.map(Into::into),
    })
}

fn result(id: Option<&str>, outcome: ActionOutcome) -> ToEngine {
    ToEngine::ActionResult(ActionResult { id: id.map(Into::into), invocation_id: "i1".into(), outcome })
}

fn to_engine() -> Vec<(&'static str, ToEngine)> {
    let agent = |full: bool| {
        ToEngine::AgentRegister(AgentRegister {
            id: "agent_register_fa48".into(),
            name: "al".into(),
            invocation_id: full.then(|| "i1".into()),
            session_ref: full.then(|| "s1".into()),
            resumable: full.then_some(true),
        })
    };
    let bootstrap = register(Some("node_register_0af1"), "n1", "node_59ec0102030405060708090a0b0c0d0e");
    let manifest = NodeRegister {
        capabilities: vec![
            cap("spawn:x", Some("spawn"), Some(json!({"models": ["a", "b"]}))),
            cap("deploy", None, None),
        ],
        max_agents: 8,
        tags: vec!["gpu".into(), "eu".into()],
        version: "fleet/2.0.0".into(),
        ..register(Some("node_register_0af2"), "fleet", "node_59ec")
    };
    let busy = NodeHeartbeat {
        capabilities: vec![cap("spawn:x", Some("spawn"), None)],
        max_agents: 8,
        load: 0.125,
        active_agents: 1,
        handlers_live: true,
        ..heartbeat("n1", "node_59ec")
    };
    vec![
        ("node.register bootstrap", ToEngine::NodeRegister(bootstrap)),
        ("node.register without id", ToEngine::NodeRegister(register(None, "vm", "node_377f"))),
        ("node.register manifest", ToEngine::NodeRegister(manifest)),
        ("node.heartbeat idle", ToEngine::NodeHeartbeat(heartbeat("vm", "node_377f"))),
        ("node.heartbeat busy", ToEngine::NodeHeartbeat(busy)),
        ("node.deregister", ToEngine::NodeDeregister(NodeDeregister { id: None })),
        ("node.deregister with id", ToEngine::NodeDeregister(NodeDeregister { id: Some("node_deregister_1".into()) })),
        ("agent.register plain", agent(false)),
        ("agent.register full", agent(true)),
        ("agent.deregister", deregister(None, Some("al"))),
        ("agent.deregister full", deregister(Some("agent_deregister_1"), Some("al"))),
        ("agent.deregister bare", deregister(None, None)),
        ("delivery.ack", ToEngine::DeliveryAck(DeliveryAck { id: None, agent: "al".into(), up_to_seq: 42 })),
        (
            "delivery.ack large",
            ToEngine::DeliveryAck(DeliveryAck {
                id: Some("ack_1".into()),
                agent: "grün".into(),
                up_to_seq: 9_007_199_254_740_991,
            }),
        ),
        ("action.result output", result(None, ActionOutcome::Output(json!({"k": 1, "deep": [null, {"x": null}]})))),
        ("action.result null output", result(None, ActionOutcome::Output(Value::Null))),
        ("action.result error", result(Some("result_1"), ActionOutcome::Error("handler_unavailable".into()))),
        (
            "inventory.sync",
            ToEngine::InventorySync(InventorySync {
                id: Some("inventory_sync_1".into()),
                agents: vec![
                    entry("a1", "al", Some("i1"), None),
                    entry("a2", "bo", None, Some("s2")),
                    entry("a3", "cy", None, None),
                ],
            }),
        ),
        ("inventory.sync empty", ToEngine::InventorySync(InventorySync { id: None, agents: vec![] })),
    ]
}

/// JSON numbers that mean the same are the same here: `0` and `0.0`.
fn normal(value: &Value) -> Value {
    match value {
        Value::Number(number) => number
            .as_f64()
            .filter(|n| n.fract() == 0.0 && n.abs() < 9e15)
            .map_or_else(|| value.clone(), |n| if number.is_f64() { json!(n as i64) } else { value.clone() }),
        Value::Array(items) => items.iter().map(normal).collect(),
        Value::Object(map) => Value::Object(map.iter().map(|(key, item)| (key.clone(), normal(item))).collect()),
        other => other.clone(),
    }
}

#[test]
fn frames_to_the_engine_are_as_recorded() {
    let recorded = recorded("node-to-engine");
    let ours = to_engine();
    same_names(&recorded, &ours);
    for (name, frame) in &ours {
        let text = frame.encode();
        let encoded: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(normal(&encoded), recorded[*name], "{name}");
        assert_eq!(encoded["type"], frame.kind(), "{name}");
        // Key sets are exact because the values are equal; a key twice would be lost in parsing.
        let keys = text.matches("\"v\":").count();
        assert_eq!(keys, 1, "{name}: {text}");
        let decoded: ToEngine = serde_json::from_str(&text).unwrap();
        assert_eq!(decoded, *frame, "{name}: the embedded engine reads what we write");
    }
}

#[test]
fn no_null_leaves_but_the_cursor_and_what_an_action_puts_out() {
    for (name, frame) in to_engine() {
        let mut found = Vec::new();
        nulls(&serde_json::from_str(&frame.encode()).unwrap(), "", &mut found);
        found.retain(|at| at != "/resume_cursor" && !at.starts_with("/output"));
        assert!(found.is_empty(), "{name}: {found:?}");
    }
}

#[test]
fn every_kind_of_frame_is_recorded() {
    let mut kinds: Vec<&str> = to_engine().iter().map(|(_, frame)| frame.kind()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "action.result",
            "agent.deregister",
            "agent.register",
            "delivery.ack",
            "inventory.sync",
            "node.deregister",
            "node.heartbeat",
            "node.register"
        ]
    );
}

fn deliver() -> Deliver {
    Deliver {
        agent: "al".into(),
        agent_id: "a1".into(),
        delivery_id: "d".into(),
        msg_id: "m7".into(),
        seq: 7,
        mode: DeliveryMode::Wait,
        payload: json!({}),
    }
}

fn bare() -> Deliver {
    Deliver { agent_id: String::new(), delivery_id: String::new(), ..deliver() }
}

fn from_engine(recorded: &BTreeMap<String, Value>) -> Vec<(&'static str, Result<FromEngine, FrameError>)> {
    let payload = |name: &str| recorded[name]["payload"].clone();
    let d = |deliver: Deliver| Ok(FromEngine::Deliver(deliver));
    let missing = |field: &'static str| Err(FrameError::Missing { kind: "deliver", field });
    let invoke = |action: &str, input: Value, agent: bool| {
        Ok(FromEngine::ActionInvoke(ActionInvoke {
            invocation_id: "i1".into(),
            action: action.into(),
            input,
            agent_id: agent.then(|| "a1".into()),
            agent_name: agent.then(|| "al".into()),
        }))
    };
    let reply = |id: &str, data: Value| Ok(FromEngine::Reply { id: id.into(), data });
    let unknown = |kind: &str| Ok(FromEngine::Unknown { kind: kind.into() });
    let version = |seen: &str| Err(FrameError::Version(seen.into()));
    vec![
        ("deliver", d(Deliver { delivery_id: "del_m7_a1".into(), payload: payload("deliver"), ..deliver() })),
        ("deliver steer", d(Deliver { delivery_id: "del_m7_a1".into(), mode: DeliveryMode::Steer, ..deliver() })),
        (
            "deliver seq 0",
            d(Deliver {
                delivery_id: "evt_action.completed_i1_a1".into(),
                msg_id: "i1".into(),
                seq: 0,
                payload: payload("deliver seq 0"),
                ..deliver()
            }),
        ),
        ("deliver extra keys", d(Deliver { payload: payload("deliver extra keys"), ..deliver() })),
        ("deliver unknown mode", d(deliver())),
        ("deliver mode of another type", d(deliver())),
        ("deliver without optionals", d(bare())),
        ("deliver null optionals", d(bare())),
        ("deliver text payload", d(Deliver { payload: json!("plain"), ..bare() })),
        ("deliver numeric ids", d(Deliver { agent_id: "17".into(), msg_id: "123456789012345678".into(), ..bare() })),
        ("deliver without agent", missing("agent")),
        ("deliver empty msg_id", missing("msg_id")),
        ("deliver null msg_id", missing("msg_id")),
        ("deliver without seq", missing("seq")),
        ("deliver negative seq", missing("seq")),
        ("deliver without payload", missing("payload")),
        ("deliver null payload", missing("payload")),
        ("action.invoke", invoke("spawn:codex", json!({"name": "al", "cli": "codex"}), false)),
        ("action.invoke hosted", invoke("x", Value::Null, true)),
        ("action.invoke null optionals", invoke("x", Value::Null, false)),
        ("action.invoke without action", Err(FrameError::Missing { kind: "action.invoke", field: "action" })),
        ("action.invoke without id", Err(FrameError::Missing { kind: "action.invoke", field: "invocation_id" })),
        ("ping", Ok(FromEngine::Ping)),
        ("ping extra keys", Ok(FromEngine::Ping)),
        ("reply", reply("agent_register_fa48", recorded["reply"]["data"].clone())),
        ("reply extra keys", reply("agent_register_fa48", recorded["reply extra keys"]["data"].clone())),
        ("reply without data", reply("r1", Value::Null)),
        ("reply null id", reply("", json!({}))),
        (
            "error",
            Ok(FromEngine::Error {
                id: "agent_register_fa48".into(),
                code: "agent_location_conflict".into(),
                message: "elsewhere".into(),
            }),
        ),
        (
            "error bare",
            Ok(FromEngine::Error { id: String::new(), code: "unknown_error".into(), message: String::new() }),
        ),
        ("context.update", Ok(FromEngine::ContextUpdate)),
        ("unknown type", unknown("novel")),
        ("no type", unknown("")),
        ("null type", unknown("")),
        ("v 2", version("2")),
        ("v text", version("\"1\"")),
        ("no v", version("(none)")),
        ("null v", version("null")),
    ]
}

#[test]
fn frames_from_the_engine_are_read_leniently() {
    let recorded = recorded("node-from-engine");
    let expected = from_engine(&recorded);
    same_names(&recorded, &expected);
    for (name, expected) in expected {
        assert_eq!(FromEngine::decode(&recorded[name].to_string()), expected, "{name}");
    }
    assert!(matches!(FromEngine::decode("{"), Err(FrameError::NotJson(_))));
    assert_eq!(FromEngine::decode("[1]"), Err(FrameError::NotAnObject));
    assert_eq!(FromEngine::decode("7"), Err(FrameError::NotAnObject));
    // Deeper than any parser should follow: an error, not an overflow of the stack.
    let deep = format!("{{\"v\":1,\"type\":\"ping\",\"x\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(matches!(FromEngine::decode(&deep), Err(FrameError::NotJson(_))));
}

#[test]
fn registrations_are_read_from_reply_data() {
    let recorded = recorded("node-from-engine");
    let read = |name: &str| AgentRegistered::from_data(&recorded[name]["data"]);
    let expected = AgentRegistered {
        agent_id: "a1".into(),
        token: "at_live_0".into(),
        name: Some("al".into()),
        delivery_ack_seq: None,
    };
    assert_eq!(read("reply"), Some(expected.clone()));
    assert_eq!(read("reply extra keys"), Some(AgentRegistered { name: None, delivery_ack_seq: Some(41), ..expected }));
    assert_eq!(read("reply null id"), None);
    for data in [json!({"agent_id": "a1"}), json!({"agent_id": "a1", "token": " "}), json!(null), json!([])] {
        assert_eq!(AgentRegistered::from_data(&data), None, "{data}");
    }
}

fn body(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn engine_requests_are_as_recorded() {
    let recorded = recorded("engine-requests");
    let bind = |session_ref: Option<&str>| {
        body(&BindAgent { agent_name: "w1".into(), session_ref: session_ref.map(Into::into) })
    };
    let agent = |name: &str, kind: &str, cli: Option<&str>| {
        let metadata = cli.map(|cli| AgentMetadata { cli: cli.into() });
        body(&RegisterAgent { name: name.into(), kind: kind.into(), metadata })
    };
    let channel =
        |name: &str, topic: Option<&str>| body(&CreateChannel { name: name.into(), topic: topic.map(Into::into) });
    let mint = MintNode {
        node_id: "node_377f".into(),
        name: "vm".into(),
        kind: "ws".into(),
        role: "broker".into(),
        version: "relay-broker/9.1.6".into(),
    };
    let ours = vec![
        ("POST /v1/workspaces", body(&CreateWorkspace { name: "relay-e7becc89".into() })),
        ("POST /v1/agents own", agent("brk-one", "human", None)),
        ("POST /v1/agents spawned", agent("w1", "agent", Some("claude"))),
        ("POST /v1/agents/:name/rotate-token", body(&Nothing {})),
        ("POST /v1/nodes", body(&mint)),
        ("POST /v1/nodes/:name/agents", bind(None)),
        ("POST /v1/nodes/:name/agents resumed", bind(Some("s1"))),
        ("POST /v1/channels", channel("general", Some("General discussion"))),
        ("POST /v1/channels bare", channel("ops", None)),
        ("POST /v1/channels/:name/messages", body(&PostMessage { text: "hi".into(), mode: DeliveryMode::Wait })),
        ("POST /v1/dm", body(&PostDm { to: "bob".into(), text: "hi".into(), mode: DeliveryMode::Steer })),
        ("POST /v1/messages/:id/replies", body(&PostReply { text: "hi".into() })),
    ];
    same_names(&recorded, &ours);
    for (name, ours) in ours {
        assert_eq!(ours, recorded[name], "{name}");
        let mut found = Vec::new();
        nulls(&ours, "", &mut found);
        assert!(found.is_empty(), "{name}: {found:?}");
    }
}

#[test]
fn engine_answers_are_read_leniently() {
    let recorded = recorded("engine-answers");
    let open = |name: &str| {
        let answer = &recorded[name];
        let status = u16::try_from(answer["status"].as_u64().unwrap()).unwrap();
        open_envelope(status, answer["body"].to_string().as_bytes())
    };
    let data = |name: &str| open(name).unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
    let code = |name: &str| open(name).map_err(|refused| refused.code).unwrap_err();
    let text = |text: &str| Some(text.to_string());

    let workspace = |name: &str| WorkspaceCreated::from_data(&data(name));
    assert_eq!(
        workspace("workspace"),
        Some(WorkspaceCreated { workspace_id: text("283074650112"), api_key: "rk_live_0".into() })
    );
    assert_eq!(
        workspace("workspace without id"),
        Some(WorkspaceCreated { workspace_id: None, api_key: "rk_live_0".into() })
    );
    assert_eq!(workspace("workspace without key"), None);

    let agent = |name: &str| AgentRow::from_data(&data(name)).unwrap();
    let row = AgentRow {
        id: text("283074650113"),
        name: text("brk-one"),
        token: text("at_live_0"),
        workspace_id: text("283074650112"),
    };
    assert_eq!(agent("agent"), row);
    assert_eq!(agent("agent looked up"), AgentRow { token: None, workspace_id: None, ..row });
    assert_eq!(agent("rotated"), AgentRow { name: text("brk-one"), token: text("at_live_1"), ..AgentRow::default() });

    let node = |name: &str| NodeRow::from_data(&data(name));
    let row = NodeRow { id: "node_377f".into(), name: text("vm"), token: text("nt_live_0") };
    assert_eq!(node("node"), Some(row.clone()));
    assert_eq!(node("node looked up"), Some(NodeRow { token: None, ..row }));
    assert_eq!(node("node without id"), None);

    assert_eq!(data("no data"), Value::Null);
    assert_eq!(data("list"), json!([]));
    assert_eq!(open("error"), Err(Refused { code: "agent_already_exists".into(), message: "Agent exists".into() }));
    for (name, expected) in [
        ("error with 200", "c"),
        ("ok with 404", "unknown_error"),
        ("error without error", "unknown_error"),
        ("null error", "unknown_error"),
        ("not the envelope", "http_502"),
        ("not an object", "http_503"),
    ] {
        assert_eq!(code(name), expected, "{name}");
    }
    assert_eq!(recorded.len(), 18, "every recorded answer is looked at");
}

#[test]
fn frames_to_a_sidecar() {
    let recorded = recorded("fleet-to-sidecar");
    let hello = json!({"broker_version": "9.1.6", "protocol_version": 2});
    let invalid = fleet::ErrorCode::InvalidFrame;
    let ours = [
        ("ok", fleet::ok(Some("fleet_1_1"), hello)),
        ("ok without id", fleet::ok(None, Value::Null)),
        ("error", fleet::error(Some("fleet_1_4"), fleet::ErrorCode::UnknownInvocation, "no such invocation")),
        ("error of a frame", fleet::error(None, invalid, "`v` must be 2")),
        ("invoke_handler", fleet::invoke_handler("inv_1", "deploy", json!({"a": [null]}))),
    ];
    same_names(&recorded, &ours);
    for (name, text) in &ours {
        let ours: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(ours, recorded[*name], "{name}");
    }
}
