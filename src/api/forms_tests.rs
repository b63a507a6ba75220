//! Every rule of the two forms.

use super::*;
use serde_json::json;

fn spawn(body: &Value) -> Result<SpawnRequest, Response> {
    super::spawn(body, |_| None)
}

/// Status and error text of a refusal.
fn refused<T: std::fmt::Debug>(outcome: Result<T, Response>) -> (u16, String) {
    let refusal = outcome.expect_err("a refusal");
    let body: Value = serde_json::from_slice(&refusal.body).expect("family S");
    assert_eq!(body["success"], json!(false));
    assert_eq!(body["error"], body["message"]);
    assert!(body.get("code").is_none());
    (refusal.status, body["error"].as_str().expect("a text").into())
}

#[test]
fn a_name_is_enough() {
    let request = spawn(&json!({"name": "a"})).expect("a spawn");
    assert_eq!(request, SpawnRequest { name: "a".into(), cli: "claude".into(), ..SpawnRequest::default() });
}

#[test]
fn names_keep_the_one_rule_of_agent_names() {
    for name in [" ", "a/b", "..", "a\u{7}"] {
        assert_eq!(refused(spawn(&json!({"name": name}))).0, 400, "{name:?}");
    }
    let (status, error) = refused(spawn(&json!({"name": "x".repeat(256)})));
    assert_eq!((status, error.contains("255")), (400, true), "{error}");
}

#[test]
fn all_members_arrive() {
    let request = spawn(&json!({
        "name": "a", "cli": "codex --x", "transport": " PTY ", "model": "m", "cwd": "/", "team": "t",
        "args": ["1", 2, "3"], "task": "do it", "channels": ["c", null, "d"], "idleThresholdSecs": 7,
        "skipRelayPrompt": true, "agentToken": "at_1", "restartPolicy": {"enabled": false, "max_restarts": 1},
        "spawnMode": "interactive", "harnessConfig": null,
    }));
    let expected = SpawnRequest {
        name: "a".into(),
        cli: "codex --x".into(),
        args: vec!["1".into(), "3".into()],
        model: Some("m".into()),
        cwd: Some("/".into()),
        team: Some("t".into()),
        task: Some("do it".into()),
        channels: vec!["c".into(), "d".into()],
        idle_threshold_secs: Some(7),
        skip_relay_prompt: true,
        agent_token: Some(Secret::new("at_1")),
        restart_policy: Some(RestartPolicy { enabled: false, max_restarts: 1, ..RestartPolicy::default() }),
        ..SpawnRequest::default()
    };
    assert_eq!(request, Ok(expected));
}

#[test]
fn wrongly_typed_options_are_ignored_and_the_first_name_wins() {
    let request = spawn(&json!({
        "name": "a", "cli": 7, "args": "x", "channels": "y", "task": " ", "model": [], "skip_relay_prompt": "yes",
        "idle_threshold_secs": 3, "idleThresholdSecs": 4, "spawn_mode": 9,
    }))
    .expect("a spawn");
    let expected = SpawnRequest {
        name: "a".into(),
        cli: "claude".into(),
        idle_threshold_secs: Some(3),
        ..SpawnRequest::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn a_pty_harness_config_replaces_the_command() {
    let request = spawn(&json!({
        "name": "a", "cli": "label", "args": ["ignored"], "cwd": "/a",
        "harnessPlan": {"runtime": "pty", "command": "bash -l", "args": ["-c", "x"], "cwd": "/b", "env": {"K": "v"},
                        "sessionId": "s", "delivery": {"mode": "pty-injection", "format": "relay-block"},
                        "metadata": {"any": 1}},
    }))
    .expect("a spawn");
    let expected = SpawnRequest {
        name: "a".into(),
        cli: "bash -l".into(),
        label: Some("label".into()),
        args: vec!["-c".into(), "x".into()],
        cwd: Some("/a".into()),
        env: vec![("K".into(), "v".into())],
        session_ref: Some("s".into()),
        ..SpawnRequest::default()
    };
    assert_eq!(request, expected);
    let fills = spawn(&json!({"name": "a", "harness_config": {"runtime": "pty", "command": "c", "cwd": "/b"}}));
    assert_eq!(fills.expect("a spawn").cwd.as_deref(), Some("/b"));
}

#[test]
fn an_agent_that_shall_exit_is_told_so() {
    for body in [
        json!({"name": "a", "task": "t", "exitAfterTask": true}),
        json!({"name": "a", "task": "t", "spawnMode": "task-exit"}),
        json!({"name": "a", "task": "t", "spawn_mode": "single_shot"}),
    ] {
        let task = spawn(&body).expect("a spawn").task.expect("a task");
        assert!(task.starts_with("t\n\n") && task.contains("/exit"), "{task}");
        // A line that is nothing but the command would be taken for the agent's own.
        assert!(task.lines().all(|line| line.trim() != "/exit"), "{task}");
    }
    assert_eq!(spawn(&json!({"name": "a", "exit_after_task": true})).expect("a spawn").task, None);
}

#[test]
fn refusals_come_in_their_order() {
    let mut body = json!({
        "spawnMode": "forever", "harnessId": null, "harnessConfig": {"runtime": "tty"}, "name": "a/b",
        "transport": "smoke", "restart_policy": 3,
    });
    let step = |body: &Value| refused(spawn(body));
    assert_eq!(step(&body), (400, "unsupported spawnMode 'forever' (expected 'interactive' or 'task_exit')".into()));
    body["spawnMode"] = json!(null);
    body["harnessId"] = json!("h");
    assert_eq!(step(&body), (400, "harnessId is not supported by the broker API; send harnessConfig".into()));
    body["harnessId"] = json!(null);
    assert_eq!(
        step(&body),
        (400, "Invalid harnessConfig: unknown runtime 'tty' (expected 'pty', 'headless' or 'app_server')".into())
    );
    body["harnessConfig"] = json!({"runtime": "pty", "command": "c"});
    assert_eq!(step(&body).0, 400);
    body["name"] = json!("a");
    assert_eq!(step(&body), (500, "unsupported transport 'smoke' (expected 'pty' or 'headless')".into()));
    body["transport"] = json!("headless");
    assert_eq!(step(&body), (500, "harnessConfig runtime 'pty' does not match requested transport 'headless'".into()));
    body["transport"] = json!("pty");
    assert_eq!(step(&body), (500, "invalid restart_policy".into()));
    for bad in
        [json!([true, 1, 1, 1]), json!({"max_restarts": -1}), json!({"enabled": "yes"}), json!({"cooldown_ms": null})]
    {
        body["restart_policy"] = bad;
        assert_eq!(step(&body), (500, "invalid restart_policy".into()), "{body}");
    }
    body["restart_policy"] = json!({"cooldown_ms": 5});
    let policy = spawn(&body).expect("a spawn").restart_policy;
    assert_eq!(policy, Some(RestartPolicy { cooldown_ms: 5, ..RestartPolicy::default() }));
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    for name in ["", "  ", "a/b", "a\\b", ".", "..", "a\nb", "a\u{7f}", "\u{85}", "/", "a\0"] {
        let (status, text) = refused(spawn(&json!({ "name": name })));
        assert_eq!(status, 400, "{name:?}: {text}");
    }
    assert_eq!(refused(spawn(&json!({}))), (400, "Missing required field: name".into()));
    assert_eq!(refused(spawn(&json!([]))), (400, "Missing required field: name".into()));
    for name in ["a", "Ä b", "...", ".a", "a:b", "#x"] {
        assert_eq!(spawn(&json!({ "name": name })).expect(name).name, name);
    }
}

#[test]
fn an_agent_without_terminal_needs_a_provider_that_runs_once() {
    for (body, provider) in [
        (json!({"name": "a", "transport": "headless"}), Some("claude")),
        (json!({"name": "a", "runtime": " Headless ", "cli": "opencode"}), Some("opencode")),
        (json!({"name": "a", "transport": "pty", "cli": "opencode"}), None),
        (json!({"name": "a", "transport": " "}), None),
    ] {
        let request = spawn(&body).expect("a request");
        assert_eq!(request.provider().as_deref(), provider, "{body}");
        assert_eq!(request.runtime(), if provider.is_some() { "headless" } else { "pty" });
    }
    for body in [
        json!({"name": "a", "harnessConfig": {"runtime": "app_server", "protocol": "opencode",
               "endpoint": "http://localhost:1", "sessionId": "s"}}),
        json!({"name": "a", "transport": "headless", "harnessConfig": {"runtime": "headless", "protocol": "opencode",
               "endpoint": "http://[::1]:1", "sessionId": "s", "auth": {"type": "bearer", "token": "t"},
               "host": {"pid": 77}, "release": "abort"}}),
    ] {
        let request = spawn(&body).expect("a request");
        let server = request.app_server.clone().expect("a server");
        assert_eq!((request.runtime(), request.provider().as_deref()), ("headless", Some("opencode")), "{body}");
        assert_eq!((server.session_id.as_str(), server.host_pid.is_some()), ("s", body["transport"] == "headless"));
        assert!(request.session_ref.is_none(), "nobody but the server resumes it");
    }
    assert_eq!(
        refused(spawn(&json!({"name": "a", "transport": "headless", "cli": "codex"}))),
        (500, "provider 'codex' does not support headless transport (supported: claude, opencode)".into())
    );
}

#[test]
fn a_server_that_cannot_be_attached_to_is_named_before_anything_else_of_it() {
    let config =
        json!({"runtime": "headless", "protocol": "smoke", "endpoint": "http://localhost:1", "sessionId": "s"});
    let mut body = json!({"name": "a", "harnessConfig": config, "transport": "pty", "restart_policy": 3});
    let step = |body: &Value| refused(spawn(body));
    assert_eq!(step(&body), (500, "harnessConfig runtime 'headless' does not match requested transport 'pty'".into()));
    body["transport"] = json!(null);
    assert_eq!(step(&body), (500, "invalid restart_policy".into()));
    body["restart_policy"] = json!(null);
    assert_eq!(step(&body), (500, "unsupported app_server protocol 'smoke' (supported: opencode)".into()));
    body["harnessConfig"]["sessionId"] = json!(null);
    assert_eq!(step(&body), (400, "Invalid harnessConfig: missing field `sessionId`".into()));
}

#[test]
fn a_successor_is_told_what_came_before() {
    let earlier = |name: &str| (name == "old").then(|| "## Before".to_string());
    let task = |body: Value| super::spawn(&body, earlier).expect("a spawn").task;
    let current = "## Before\n\n## Current Task\n\ngo on";
    for key in ["continue_from", "continueFrom"] {
        assert_eq!(task(json!({"name": "a", "task": "go on", key: " old "})).as_deref(), Some(current));
    }
    assert_eq!(task(json!({"name": "a", "continue_from": "old"})).as_deref(), Some("## Before"));
    assert_eq!(task(json!({"name": "a", "task": "t", "continue_from": "nobody"})).as_deref(), Some("t"));
    assert_eq!(task(json!({"name": "a", "task": "t", "continue_from": 7})).as_deref(), Some("t"));
    let exits = task(json!({"name": "a", "task": "go on", "continue_from": "old", "exit_after_task": true}));
    assert!(exits.expect("a task").starts_with(&format!("{current}\n\n## When")));
    for name in ["../old", "a/b", "..", "a\\b"] {
        let (status, text) = refused(spawn(&json!({"name": "a", "continueFrom": name})));
        assert_eq!((status, text.starts_with("continueFrom: ")), (400, true), "{name}: {text}");
    }
}

#[test]
fn harness_configs_are_typed() {
    for config in [
        json!("pty"),
        json!({}),
        json!({"runtime": "pty"}),
        json!({"runtime": "pty", "command": 1}),
        json!({"runtime": "pty", "command": "c", "args": "x"}),
        json!({"runtime": "pty", "command": "c", "args": [1]}),
        json!({"runtime": "pty", "command": "c", "env": {"A": 1}}),
        json!({"runtime": "pty", "command": "c", "env": {"A=B": "x"}}),
        json!({"runtime": "pty", "command": "c", "delivery": {"mode": "telepathy"}}),
    ] {
        let (status, text) = refused(spawn(&json!({"name": "a", "harnessConfig": config})));
        assert!(status == 400 && text.starts_with("Invalid harnessConfig: "), "{config}: {status} {text}");
    }
}

#[test]
fn sends_take_their_aliases() {
    let request = send(&json!({
        "to": " b ", "text": " hi ", "from": "c", "threadId": "t", "workspace_id": "w", "workspaceAlias": "x",
        "injectionMode": "Steer", "priority": 1, "data": {},
    }));
    let expected = SendRequest {
        to: "b".into(),
        text: "hi".into(),
        from: Some("c".into()),
        thread_id: Some("t".into()),
        workspace_id: Some("w".into()),
        workspace_alias: Some("x".into()),
        mode: DeliveryMode::Steer,
    };
    assert_eq!(request, Ok(expected));
    let first = send(&json!({"to": "b", "content": "4", "body": "3", "text": "2", "message": "1", "mode": 7}));
    assert_eq!(first, Ok(SendRequest { to: "b".into(), text: "1".into(), ..SendRequest::default() }));
}

#[test]
fn sends_without_target_text_or_mode_are_refused() {
    let missing = (400, "Missing required fields: to, message".to_string());
    for body in
        [json!({}), json!([]), json!({"to": "b"}), json!({"to": " ", "text": "x"}), json!({"to": "b", "text": "  "})]
    {
        assert_eq!(refused(send(&body)), missing, "{body}");
    }
    let shouted = send(&json!({"to": "b", "text": "x", "mode": "shout"}));
    let body: Value = serde_json::from_slice(&shouted.clone().expect_err("a refusal").body).expect("JSON");
    assert_eq!(body["to"], "b");
    assert_eq!(refused(shouted), (400, "invalid mode 'shout'. expected 'wait' or 'steer'".into()));
}
