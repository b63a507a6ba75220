//! Plain requests.

use super::*;
use crate::core::ports::{Expected, InboundMode, ResultReport, SendRequest, SnapshotFormat, SpawnRequest};

#[test]
fn the_warm_up_answers_health_and_nothing_else() {
    let rig = Rig::answering(|_| ok(json!({})));
    rig.server.set_handler(rig.api.warmup());
    for line in ["GET /health", "GET /health?x=1", "HEAD /health"] {
        let answer = rig.raw(line, "");
        assert_eq!(answer.status, 200, "{line}");
    }
    let health = rig.raw("GET /health", "").json();
    assert_eq!(
        (&health["status"], &health["workspaceId"], &health["defaultWorkspaceId"], &health["memberships"]),
        (&json!("ok"), &json!("ws_unknown"), &Value::Null, &json!([]))
    );
    for line in ["GET /api/session", "GET /", "GET /ws", "POST /health", "GET /health/"] {
        for key in ["", "\nX-API-Key: br_test", "\nX-API-Key: wrong"] {
            let answer = rig.raw(&format!("{line}{key}"), if line.starts_with("POST") { "{}" } else { "" });
            assert_eq!((answer.status, answer.body.as_str()), (503, "Broker is starting, please retry"), "{line}");
            assert!(answer.head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer:?}");
            assert!(answer.head.contains("Content-Type: text/plain"), "{answer:?}");
            assert!(answer.has("Connection: close"), "{answer:?}");
        }
    }
    assert!(rig.asked().is_empty());
    rig.server.set_handler(rig.api.clone());
    assert_eq!(rig.send("GET /api/session", "").status, 200);
}

#[test]
fn the_key_opens_everything_but_health() {
    let rig = Rig::answering(|_| ok(json!({"fine": true})));
    let with = |line: &str, header: &str| rig.raw(&format!("{line}{header}"), "").status;
    for (header, expected) in [
        ("", 401),
        ("\nX-API-Key: br_test", 200),
        ("\nAuthorization: bearer br_test", 200),
        ("\nX-API-Key: wrong\nAuthorization: Bearer br_test", 401),
        ("\nX-API-Key:  \nAuthorization: Bearer br_test", 200),
        ("\nAuthorization: Bearer wrong", 401),
    ] {
        assert_eq!(with("GET /api/session", header), expected, "{header:?}");
        assert_eq!(with("GET /health", header), 200, "{header:?}");
    }
    assert_eq!(with("GET /api/session?api_key=br_test&token=br_test", ""), 401);
    for line in ["GET /nowhere", "GET /", "DELETE /api/session", "GET /ws", "POST /api/shutdown"] {
        assert_eq!(with(line, ""), 401, "{line}");
    }
    let refusal = rig.raw("GET /api/session", "").json();
    assert_eq!(
        refusal,
        json!({"error": {"code": "unauthorized", "message": "Missing or invalid API key", "retryable": false,
                         "statusCode": 401},
               "code": "unauthorized", "message": "Missing or invalid API key"})
    );
}

#[test]
fn unknown_paths_methods_and_hosts() {
    let rig = Rig::answering(|_| ok(json!({})));
    for line in ["GET /nowhere", "GET /api/session/", "POST /api/spawned/a/nothing", "GET /api/spawned//pending"] {
        let answer = rig.send(line, "");
        assert_eq!((answer.status, answer.body.as_str()), (404, ""), "{line}");
    }
    let answer = rig.send("PATCH /api/spawned/a/delivery-mode", "");
    assert_eq!((answer.status, answer.body.as_str()), (405, ""));
    assert!(answer.has("Allow: GET,HEAD,PUT"), "{answer:?}");
    assert_eq!(rig.raw("POST /health", "").status, 405, "an open path needs no key to refuse a method");
    let head = rig.send("HEAD /api/session", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.has("Content-Length: 2"), "{head:?}");
    for (host, expected) in [("localhost:1", 200), ("127.0.0.1", 200), ("Dev.Box:9", 200), ("evil.example", 403)] {
        assert_eq!(rig.raw(&format!("GET /health\nHost: {host}"), "").status, expected, "{host}");
        assert_eq!(rig.send(&format!("GET /api/session\nHost: {host}"), "").status, expected, "{host}");
    }
}

#[test]
fn every_route_asks_its_question() {
    let rig = Rig::answering(|call| ok(json!({"echo": format!("{call:?}").len()})));
    let name = || "a b/c".to_string();
    let path = "a%20b%2Fc";
    let table: Vec<(String, &str, ApiCall)> = vec![
        ("GET /api/session".into(), "", ApiCall::Session),
        ("POST /api/session/renew".into(), "", ApiCall::RenewLease),
        ("GET /api/config".into(), "", ApiCall::Config),
        ("GET /api/spawned".into(), "", ApiCall::ListAgents),
        ("GET /api/status".into(), "", ApiCall::Status),
        ("GET /api/dead-letters".into(), "", ApiCall::DeadLetters),
        (
            "POST /api/spawn".into(),
            r#"{"name":"a"}"#,
            ApiCall::Spawn(SpawnRequest { name: "a".into(), cli: "claude".into(), ..SpawnRequest::default() }),
        ),
        (
            "POST /api/send".into(),
            r#"{"to":"a","text":"hi"}"#,
            ApiCall::Send(SendRequest { to: "a".into(), text: "hi".into(), ..SendRequest::default() }),
        ),
        (format!("DELETE /api/spawned/{path}"), "", ApiCall::Release { name: name(), reason: None }),
        (
            format!("DELETE /api/spawned/{path}"),
            r#"{"reason":"done"}"#,
            ApiCall::Release { name: name(), reason: Some("done".into()) },
        ),
        (
            format!("GET /api/spawned/{path}/snapshot"),
            "",
            ApiCall::Snapshot { name: name(), format: SnapshotFormat::Plain },
        ),
        (
            format!("GET /api/spawned/{path}/snapshot?format=ANSI"),
            "",
            ApiCall::Snapshot { name: name(), format: SnapshotFormat::Ansi },
        ),
        (format!("GET /api/spawned/{path}/delivery-mode"), "", ApiCall::DeliveryMode { name: name() }),
        (
            format!("PUT /api/spawned/{path}/delivery-mode"),
            r#"{"mode":" Manual_Flush "}"#,
            ApiCall::SetDeliveryMode { name: name(), mode: InboundMode::ManualFlush, expected: Expected::default() },
        ),
        (format!("GET /api/spawned/{path}/pending"), "", ApiCall::Pending { name: name() }),
        (format!("POST /api/spawned/{path}/flush"), "", ApiCall::Flush { name: name() }),
        (
            format!("POST /api/spawned/{path}/subscribe"),
            r#"{"channels":["Ops"," x "]}"#,
            ApiCall::Subscribe { name: name(), channels: vec!["Ops".into(), " x ".into()] },
        ),
        (
            format!("POST /api/spawned/{path}/unsubscribe"),
            r#"{"channels":[]}"#,
            ApiCall::Unsubscribe { name: name(), channels: vec![] },
        ),
        (
            "POST /api/dead-letters/redeliver".into(),
            r#"{"id":"d1"}"#,
            ApiCall::Redeliver { delivery_id: Some("d1".into()) },
        ),
        ("POST /api/dead-letters/redeliver".into(), r#"{"all":true}"#, ApiCall::Redeliver { delivery_id: None }),
        (
            format!("POST /api/spawned/{path}/model"),
            r#"{"model":" opus ","timeoutMs":5}"#,
            ApiCall::SetModel { name: name(), model: "opus".into() },
        ),
        ("GET /api/metrics".into(), "", ApiCall::Metrics { agent: None }),
        ("GET /api/metrics?agent=a%20b".into(), "", ApiCall::Metrics { agent: Some("a b".into()) }),
        ("GET /api/crash-insights".into(), "", ApiCall::CrashInsights),
        ("GET /api/threads".into(), "", ApiCall::Threads),
        (
            format!("POST /api/input/{path}"),
            r#"{"data":"ä"}"#,
            ApiCall::Type { name: name(), bytes: "ä".as_bytes().to_vec() },
        ),
        (
            format!("POST /api/resize/{path}"),
            r#"{"rows":24,"cols":65535}"#,
            ApiCall::Resize { name: name(), rows: 24, cols: 65535, session: None },
        ),
        (
            format!("POST /api/resize/{path}"),
            r#"{"rows":24,"cols":80,"session_id":" s1 ","release":false}"#,
            ApiCall::Resize { name: name(), rows: 24, cols: 80, session: Some("s1".into()) },
        ),
        (
            format!("POST /api/resize/{path}"),
            r#"{"rows":24,"cols":80,"session_id":" ","release":true}"#,
            ApiCall::Resize { name: name(), rows: 24, cols: 80, session: None },
        ),
        (
            format!("POST /api/resize/{path}"),
            r#"{"session_id":"s1","release":true}"#,
            ApiCall::ReleaseSize { name: name(), session: "s1".into() },
        ),
        (
            format!("PUT /api/spawned/{path}/delivery-mode"),
            r#"{"mode":"auto_inject","expected_mode":"manual_flush","expected_revision":"18446744073709551615"}"#,
            ApiCall::SetDeliveryMode {
                name: name(),
                mode: InboundMode::AutoInject,
                expected: Expected { mode: Some(InboundMode::ManualFlush), revision: Some(u64::MAX) },
            },
        ),
    ];
    for (line, body, call) in table {
        let answer = rig.send(&line, body);
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        assert_eq!(answer.json(), json!({"echo": format!("{call:?}").len()}), "{line}");
        assert_eq!(rig.asked(), [call], "{line}");
    }
}

#[test]
fn routes_that_ask_nobody() {
    let rig = Rig::answering(|_| panic!("nobody is asked"));
    let zeros = rig.send("GET /api/history/stats", "").json();
    assert_eq!((&zeros["messageCount"], &zeros["oldestMessageDate"]), (&json!(0), &json!(null)));
    let answer = rig.send("POST /api/agents/by-name/a%2Fb/interrupt", "");
    assert_eq!((answer.status, answer.json()["name"].clone()), (501, json!("a/b")));
    assert_eq!(rig.send("POST /api/preflight", r#"{"agents":[{"name":"a","cli":"b"}]}"#).json(), json!({"queued": 1}));
    for (line, body, status) in [
        ("POST /api/preflight", r#"{"agents":[{"name":"a"}]}"#, 422),
        ("POST /api/preflight", "{}", 422),
        ("POST /api/dead-letters/redeliver", "{}", 422),
        ("POST /api/dead-letters/redeliver", r#"{"all":true,"id":"x"}"#, 422),
        ("POST /api/spawned/a/model", r#"{"model":"  "}"#, 400),
        ("POST /api/spawned/a/model", r#"{"model":"a\rb"}"#, 400),
        ("POST /api/spawned/a/model", "{}", 422),
    ] {
        assert_eq!(rig.send(line, body).status, status, "{line} {body}");
    }
}

#[test]
fn a_result_needs_its_own_token_and_no_key() {
    let rig = Rig::answering(|_| ok(json!({"fine": true})));
    let send = |header: &str, body: &str| {
        rig.raw(&format!("POST /api/agent-result\nContent-Type: application/json{header}"), body)
    };
    let report = |token: &str, name: Option<&str>, data: Value, is_final: bool| {
        ApiCall::Result(ResultReport {
            token: Secret::new(token),
            name: name.map(str::to_string),
            data,
            is_final,
            metadata: None,
        })
    };
    // The token comes first: without one nothing else is looked at.
    let answer = send("", "{}");
    assert_eq!((answer.status, answer.json()["error"].clone()), (401, json!("missing_result_token")));
    let answer = send("\nX-Agent-Result-Token: t", "{}");
    assert_eq!((answer.status, answer.json()["error"].clone()), (400, json!("Missing required field: data")));
    assert!(rig.asked().is_empty());
    let table = [
        ("\nX-Agent-Result-Token: t", r#"{"data":null}"#, report("t", None, Value::Null, true)),
        ("\nAuthorization: bearer  t ", r#"{"result":[1],"agent":"a","final_result":false}"#, {
            report("t", Some("a"), json!([1]), false)
        }),
        ("\nX-Agent-Result-Token: t\nAuthorization: Bearer u", r#"{"data":1,"name":"a","agent":"b"}"#, {
            report("t", Some("a"), json!(1), true)
        }),
    ];
    for (header, body, call) in table {
        assert_eq!(send(header, body).status, 200, "{header} {body}");
        assert_eq!(rig.asked(), [call], "{header} {body}");
    }
}

#[test]
fn metrics_have_the_memory_of_each_process() {
    let own = std::process::id();
    let rig = Rig::answering(move |_| {
        ok(json!({"agents": [{"pid": own, "memory_bytes": 0}, {"pid": 0, "memory_bytes": 0}]}))
    });
    let body = rig.send("GET /api/metrics", "").json();
    assert!(body["agents"][0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{body}");
    assert_eq!(body["agents"][1]["memory_bytes"], 0);
}

#[test]
fn answers_of_the_loop_pass_unchanged() {
    let rig = Rig::answering(|_| {
        Some(ApiAnswer { status: 404, body: crate::wire::api::failure_to("x", "Agent \"x\" not found") })
    });
    let answer = rig.send("POST /api/send", r#"{"to":"x","text":"hi"}"#);
    assert_eq!(answer.status, 404);
    let text = "Agent \"x\" not found";
    assert_eq!(answer.json(), json!({"success": false, "to": "x", "error": text, "message": text}));
}

#[test]
fn bodies_are_checked_before_the_loop_is_asked() {
    let rig = Rig::answering(|_| ok(json!({})));
    let table = [
        ("POST /api/spawn", "{", 400, ""),
        ("POST /api/spawn", "{}", 400, ""),
        ("POST /api/send", "[]", 400, ""),
        ("PUT /api/spawned/a/delivery-mode", "{}", 422, ""),
        ("PUT /api/spawned/a/delivery-mode", r#"{"mode":"x"}"#, 400, "invalid_mode"),
        ("PUT /api/spawned/a/delivery-mode", r#"{"mode":"auto_inject","expected_mode":"x"}"#, 400, "invalid_mode"),
        ("PUT /api/spawned/a/delivery-mode", r#"{"mode":"auto_inject","expected_revision":3}"#, 422, ""),
        ("PUT /api/spawned/a/delivery-mode", r#"{"mode":"auto_inject","expected_revision":"3x"}"#, 422, ""),
        ("POST /api/resize/a", r#"{"rows":1,"cols":1,"session_id":7}"#, 422, ""),
        ("POST /api/resize/a", r#"{"rows":1,"cols":1,"session_id":"s","release":"yes"}"#, 422, ""),
        ("POST /api/resize/a", r#"{"rows":0,"cols":1,"session_id":"s"}"#, 400, "invalid_request"),
        ("GET /api/spawned/a/snapshot?format=png", "", 400, "invalid_format"),
        ("POST /api/input/a", r#"{"data":7}"#, 422, ""),
        ("POST /api/spawned/a/subscribe", "{}", 422, ""),
        ("POST /api/spawned/a/subscribe", r#"{"channels":"x"}"#, 422, ""),
        ("POST /api/spawned/a/unsubscribe", r#"{"channels":["x",1]}"#, 422, ""),
        ("POST /api/resize/a", r#"{"rows":1}"#, 422, ""),
        ("POST /api/resize/a", r#"{"rows":70000,"cols":1}"#, 422, ""),
        ("POST /api/resize/a", r#"{"rows":0,"cols":1}"#, 400, "invalid_request"),
        ("DELETE /api/spawned/a", "{", 400, ""),
        ("GET /api/events/replay?sinceSeq=x", "", 400, ""),
        ("GET /api/events/replay?since_seq=-1", "", 400, ""),
    ];
    for (line, body, status, code) in table {
        let answer = rig.send(line, body);
        assert_eq!(answer.status, status, "{line} {body}: {answer:?}");
        match code {
            "" if status == 422 => assert!(answer.head.contains("text/plain"), "{answer:?}"),
            "" => {}
            code => assert_eq!(answer.json()["code"], code, "{line}"),
        }
    }
    let untyped = rig.raw(&format!("POST /api/send\nX-API-Key: {KEY}"), r#"{"to":"a","text":"b"}"#);
    assert_eq!(untyped.status, 415);
    let long = format!(r#"{{"to":"a","text":"{}"}}"#, "x".repeat(2 << 20));
    assert_eq!(rig.send("POST /api/send", &long).status, 413);
    // An empty body is no body, whatever the content type says.
    let empty = rig.raw(&format!("DELETE /api/spawned/a\nX-API-Key: {KEY}\nContent-Type: application/json"), "");
    assert_eq!(empty.status, 200);
    assert_eq!(rig.asked(), [ApiCall::Release { name: "a".into(), reason: None }]);
}

#[test]
fn h9_a_full_queue_refuses_at_once_and_health_still_answers() {
    let rig = Rig::new(1, None, |patience| patience.call = Duration::from_millis(300));
    // Occupies the only place; nobody takes it out.
    rig.api.calls.post(ApiCall::Status, |_| {}).expect("room");
    let begun = Instant::now();
    let answer = rig.send("GET /api/status", "");
    assert_eq!(answer.status, 503);
    assert!(answer.json()["message"].as_str().unwrap().contains("busy"), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_millis(300));
    assert_eq!(rig.raw("GET /health", "").status, 200);
    assert_eq!(rig.send("GET /api/debug/threads", "").status, 200);
    // With room but no answer.
    rig.inputs.recv().expect("the first call");
    let answer = rig.send("GET /api/status", "");
    assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (504, "broker request timed out"));
}

#[test]
fn a_terminal_that_shows_nothing_is_a_worker_timeout() {
    let rig = Rig::new(9, None, |patience| patience.snapshot = Duration::from_millis(30));
    let answer = rig.send("GET /api/spawned/a/snapshot", "");
    assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (504, "worker_timeout"));
}

#[test]
fn requests_that_wait_end_when_the_loop_does() {
    let rig = Rig::new(9, None, |_| {});
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.send("GET /api/status", ""));
        rig.next_call();
        rig.api.close();
        assert_eq!(waiting.join().expect("no panic").status, 503);
    });
    assert_eq!(rig.send("GET /api/status", "").status, 503);
}

#[test]
fn h15_health_shows_what_was_stored() {
    let rig = Rig::new(1, None, |_| {});
    rig.api.health().store(HealthFacts { agent_count: 3, dead_letter_count: 1, ..HealthFacts::default() });
    let health = rig.raw("GET /health?probe", "").json();
    assert_eq!((&health["agentCount"], &health["deadLetterCount"]), (&json!(3), &json!(1)));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_thread_report_is_text() {
    let rig = Rig::new(1, None, |_| {});
    let report = rig.send("GET /api/debug/threads", "");
    assert!(report.head.contains("text/plain"), "{report:?}");
    assert!(report.body.contains("http-accept"), "{report:?}");
}

#[test]
fn replay_over_http() {
    let rig = Rig::new(1, None, |_| {});
    assert_eq!(
        rig.send("GET /api/events/replay", "").json(),
        json!({"events": [], "gap": false, "oldestAvailable": 0, "currentSeq": 0, "droppedCount": 0})
    );
    for n in 1..=1001 {
        rig.api.publish(&Event::AgentReleased { name: format!("a{n}") });
    }
    assert_eq!(
        rig.send("GET /api/events/replay?sinceSeq=999", "").json(),
        json!({"events": [{"kind": "agent_released", "name": "a1000", "seq": 1000},
                          {"kind": "agent_released", "name": "a1001", "seq": 1001}],
               "gap": false, "oldestAvailable": 999, "currentSeq": 1001, "droppedCount": 0})
    );
    let lost = rig.send("GET /api/events/replay?since_seq=0", "").json();
    assert_eq!(
        (&lost["gap"], &lost["oldestAvailable"], &lost["droppedCount"], lost["events"].as_array().unwrap().len()),
        (&json!(true), &json!(2), &json!(1), 1000)
    );
}

#[test]
fn a_shutdown_is_answered_before_it_begins() {
    let rig = Rig::new(1, None, |_| {});
    // No room: the stop has to wait, its answer does not.
    rig.api.calls.post(ApiCall::Status, |_| {}).expect("room");
    let answer = rig.send("POST /api/shutdown", "");
    assert_eq!((answer.status, answer.json()), (200, json!({"status": "shutting_down"})));
    assert_eq!(rig.next_call().1, ApiCall::Status);
    assert_eq!(rig.next_call().1, ApiCall::Shutdown);
}
