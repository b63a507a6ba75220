use super::*;
use crate::core::ports::{SendRequest, SpawnRequest};
use crate::wire::node::DeliveryMode;

fn ask(kind: &str, payload: Value) -> Result<Request, String> {
    request(&Envelope { kind: kind.into(), request_id: None, payload }, 7)
}

fn call(kind: &str, payload: Value) -> ApiCall {
    match ask(kind, payload.clone()) {
        Ok(Request::Call(call)) => *call,
        other => panic!("{kind} {payload}: {other:?}"),
    }
}

fn texts(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| item.to_string()).collect()
}

#[test]
fn every_type_has_its_call() {
    assert_eq!(ask("hello", json!({"client_name": "c", "client_version": "1", "more": 1})), Ok(Request::Hello));
    let name = || "a/b ".to_string();
    let output = |output| ApiCall::HandlerResult {
        sidecar: 7,
        invocation_id: "i1".into(),
        outcome: ActionOutcome::Output(output),
    };
    let table = [
        ("register_handlers", json!({"names": [" x ", "", "  ", "y", "x"]}), {
            ApiCall::RegisterHandlers { sidecar: 7, names: texts(&["x", "y", "x"]) }
        }),
        ("register_handlers", json!({"names": []}), ApiCall::RegisterHandlers { sidecar: 7, names: vec![] }),
        ("handler_result", json!({"invocation_id": "i1", "output": {"a": [null]}}), output(json!({"a": [null]}))),
        ("handler_result", json!({"invocation_id": "i1", "output": null}), output(Value::Null)),
        ("handler_result", json!({"invocation_id": "i1", "error": ""}), {
            let outcome = ActionOutcome::Error(String::new());
            ApiCall::HandlerResult { sidecar: 7, invocation_id: "i1".into(), outcome }
        }),
        ("deregister_node", json!({}), ApiCall::DeregisterNode { sidecar: 7 }),
        ("release_agent", json!({"name": "a/b "}), ApiCall::Release { name: name(), reason: None }),
        ("release_agent", json!({"name": "a/b ", "reason": " r "}), {
            ApiCall::Release { name: name(), reason: Some("r".into()) }
        }),
        ("send_input", json!({"name": "a/b ", "data": "ä"}), ApiCall::Type { name: name(), bytes: vec![0xc3, 0xa4] }),
        ("subscribe_channels", json!({"name": "a/b ", "channels": ["c"]}), {
            ApiCall::Subscribe { name: name(), channels: texts(&["c"]) }
        }),
        ("unsubscribe_channels", json!({"name": "a/b ", "channels": []}), {
            ApiCall::Unsubscribe { name: name(), channels: vec![] }
        }),
        ("list_agents", json!({"unknown": true}), ApiCall::ListAgents),
        ("shutdown", json!({}), ApiCall::Shutdown),
    ];
    for (kind, payload, expected) in table {
        assert_eq!(call(kind, payload.clone()), expected, "{kind} {payload}");
    }
}

#[test]
fn a_manifest_is_read_with_its_defaults() {
    let bare = call("register_node", json!({"manifest": {"name": ""}, "supervision": null}));
    let expected = ApiCall::RegisterNode { sidecar: 7, manifest: Manifest::default(), supervision: None };
    assert_eq!(bare, expected);
    let full = json!({
        "manifest": {"name": "n", "node_id": "node_1", "version": "v", "max_agents": 3, "tags": ["t"], "unknown": 1,
            "capabilities": [{"name": "spawn:x", "kind": "spawn", "metadata": {"m": 1}, "unknown": 1}, {"name": "y"}]},
        "supervision": {"argv": ["sh", ""], "cwd": "/w", "env": {"A": "b"}, "restart_policy": {"max_restarts": 9}},
    });
    let ApiCall::RegisterNode { manifest, supervision: Some(supervision), .. } = call("register_node", full) else {
        panic!("no supervision")
    };
    assert_eq!((manifest.name.as_str(), manifest.node_id.as_deref(), manifest.max_agents), ("n", Some("node_1"), 3));
    assert_eq!((manifest.version.as_deref(), manifest.tags), (Some("v"), texts(&["t"])));
    assert_eq!(
        serde_json::to_value(manifest.capabilities).unwrap(),
        json!([{"name": "spawn:x", "kind": "spawn", "metadata": {"m": 1}}, {"name": "y"}])
    );
    assert_eq!((supervision.argv, supervision.cwd.as_str()), (texts(&["sh", ""]), "/w"));
    assert_eq!(supervision.env, [("A".to_string(), "b".to_string())].into());
    assert_eq!(supervision.restart_policy, RestartPolicy { max_restarts: 9, ..RestartPolicy::default() });
}

#[test]
fn a_spawn_uses_the_form_of_the_route() {
    let spawn = |payload| match call("spawn_agent", payload) {
        ApiCall::Spawn(request) => request,
        other => panic!("{other:?}"),
    };
    let bare = spawn(json!({"agent": {"name": "a", "cli": "codex", "runtime": "pty", "restart_policy": null}}));
    let expected = SpawnRequest { name: "a".into(), cli: "codex".into(), sidecar: Some(7), ..SpawnRequest::default() };
    assert_eq!(bare, expected);
    let full = spawn(json!({
        "agent": {"name": "a", "cli": "codex", "model": "m", "cwd": "/w", "team": "t", "shadow_of": "x",
            "shadow_mode": "y", "args": ["-v"], "channels": ["c"], "session_id": "s1",
            "restart_policy": {"enabled": false}},
        "initial_task": "do", "skip_relay_prompt": true, "invocation_id": "i1",
    }));
    let expected = SpawnRequest {
        name: "a".into(),
        cli: "codex".into(),
        model: Some("m".into()),
        cwd: Some("/w".into()),
        team: Some("t".into()),
        args: texts(&["-v"]),
        restart_policy: Some(RestartPolicy { enabled: false, ..RestartPolicy::default() }),
        channels: texts(&["c"]),
        task: Some("do".into()),
        session_ref: Some("s1".into()),
        skip_relay_prompt: true,
        sidecar: Some(7),
        invocation_id: Some("i1".into()),
        ..SpawnRequest::default()
    };
    assert_eq!(full, expected);
}

#[test]
fn f36_the_session_is_that_of_the_spec_or_of_the_harness_under_any_of_their_names() {
    let session = |agent: Value| match call("spawn_agent", json!({"agent": agent})) {
        ApiCall::Spawn(request) => (request.cli, request.label, request.session_ref),
        other => panic!("{other:?}"),
    };
    let expected = |session: &str| ("run".to_string(), Some("x".to_string()), Some(session.to_string()));
    for name in ["harnessConfig", "harness_config", "harnessPlan", "harness_plan"] {
        let agent = json!({"name": "a", "cli": "x", name: {"runtime": "pty", "command": "run", "sessionId": "h"}});
        assert_eq!(session(agent), expected("h"), "{name}");
    }
    for name in ["session_id", "sessionId"] {
        let harness = json!({"runtime": "pty", "command": "run", "sessionId": "h"});
        let agent = json!({"name": "a", "provider": "x", name: "s", "harnessConfig": harness});
        assert_eq!(session(agent), expected("s"), "{name}");
    }
}

#[test]
fn a_message_uses_the_form_of_the_route() {
    let payload = json!({"to": " a ", "text": " hi ", "from": "f", "thread_id": "t", "workspace_id": "w",
        "workspace_alias": "l", "mode": "Steer", "priority": "x", "data": {"ignored": true}});
    let expected = SendRequest {
        to: "a".into(),
        text: "hi".into(),
        from: Some("f".into()),
        thread_id: Some("t".into()),
        workspace_id: Some("w".into()),
        workspace_alias: Some("l".into()),
        mode: DeliveryMode::Steer,
    };
    assert_eq!(call("send_message", payload), ApiCall::Send(expected));
}

#[test]
fn a_refusal_names_the_member_at_fault() {
    let agent = |change: Value| {
        let mut agent = json!({"name": "a", "cli": "x"});
        agent.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({"agent": agent})
    };
    let manifest = |key: &str, value: Value| json!({"manifest": {"name": "n", key: value}});
    let supervision = |value: Value| json!({"manifest": {"name": "n"}, "supervision": value});
    let table = [
        ("list_agents", json!([]), "`payload` must be an object"),
        ("dance", json!({}), "unknown frame `type` 'dance'"),
        ("hello", json!({"client_name": 7}), "`client_name`: invalid type: integer `7`, expected a string"),
        ("register_node", json!({}), "missing field `manifest`"),
        ("register_node", json!({"manifest": "n"}), "`manifest` must be an object"),
        ("register_node", json!({"manifest": {}}), "missing field `manifest.name`"),
        ("register_node", manifest("max_agents", json!(-1)), "`manifest.max_agents`: invalid value"),
        ("register_node", manifest("tags", json!("x")), "`manifest.tags`: invalid type"),
        ("register_node", manifest("capabilities", json!([{}])), "`manifest.capabilities`: missing field `name`"),
        ("register_node", manifest("capabilities", json!([{"name": " "}])), "`manifest.capabilities`: a capability"),
        ("register_node", supervision(json!({"cwd": "/"})), "missing field `supervision.argv`"),
        ("register_node", supervision(json!({"argv": [], "cwd": "/"})), "`supervision.argv` must begin"),
        ("register_node", supervision(json!({"argv": ["x"]})), "missing field `supervision.cwd`"),
        ("register_node", supervision(json!({"argv": ["x"], "cwd": "/", "env": {"A": 1}})), "`supervision.env`: "),
        ("register_handlers", json!({"names": ["x", 7]}), "`names`: invalid type"),
        ("register_handlers", json!({}), "missing field `names`"),
        ("handler_result", json!({"output": 1}), "missing field `invocation_id`"),
        ("handler_result", json!({"invocation_id": "i"}), "exactly one of `output` and `error`"),
        ("handler_result", json!({"invocation_id": "i", "output": null, "error": null}), "exactly one of `output`"),
        ("handler_result", json!({"invocation_id": "i", "error": null}), "`error` must be a text"),
        ("handler_result", json!({"invocation_id": "i", "error": {}}), "`error` must be a text"),
        ("handler_result", json!({"invocation_id": "i", "output": 1, "x": 1}), "unknown field `x`"),
        ("spawn_agent", json!({}), "missing field `agent`"),
        ("spawn_agent", json!({"agent": {"name": "a", "cli": " "}}), "missing field `agent.cli`"),
        ("spawn_agent", json!({"agent": {"cli": "x"}}), "missing field `agent.name`"),
        ("spawn_agent", agent(json!({"name": "a/b"})), "agent name 'a/b' cannot be used"),
        ("spawn_agent", agent(json!({"args": "x"})), "`agent.args`: invalid type"),
        ("spawn_agent", agent(json!({"session_id": 1})), "`agent.session_id`: invalid type"),
        ("spawn_agent", agent(json!({"runtime": "vm"})), "`agent.runtime` must be"),
        ("spawn_agent", agent(json!({"runtime": "headless"})), "provider 'x' does not support headless"),
        ("spawn_agent", agent(json!({"restart_policy": {"max_restarts": "x"}})), "`agent.restart_policy`: "),
        ("spawn_agent", agent(json!({"harness_config": {"runtime": "pty"}})), "Invalid harnessConfig: missing field"),
        ("release_agent", json!({}), "missing field `name`"),
        ("send_input", json!({"name": "a", "data": 1}), "`data`: invalid type"),
        ("send_message", json!({"to": "a", "text": " "}), "`text` is missing or blank"),
        ("send_message", json!({"to": "a", "text": "x", "mode": "later"}), "invalid mode 'later'"),
        ("send_message", json!({"to": "a", "text": "x", "thread_id": 4}), "`thread_id`: invalid type"),
        ("subscribe_channels", json!({"name": "a"}), "missing field `channels`"),
        ("unsubscribe_channels", json!({"name": "a", "channels": "x"}), "`channels`: invalid type"),
    ];
    for (kind, payload, message) in table {
        match ask(kind, payload.clone()) {
            Err(why) => assert!(why.starts_with(message), "{kind} {payload}: {why}"),
            Ok(request) => panic!("{kind} {payload}: {request:?}"),
        }
    }
}

#[test]
fn recorded_frames_are_understood() {
    let recorded: std::collections::BTreeMap<String, Value> =
        serde_json::from_str(include_str!("../../../fixtures/wire/fleet-from-sidecar.json")).expect("JSON");
    assert_eq!(recorded.len(), 15);
    for (name, frame) in recorded {
        let envelope = Envelope::read(&frame.to_string()).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(Some(envelope.kind.as_str()), name.split(' ').next());
        assert_eq!(json!(envelope.request_id), frame["request_id"]);
        request(&envelope, 1).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}
