//! The client against a scripted engine on loopback.

mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::script::{Reply, Script, Seen, error, ok};
use super::*;
use crate::core::ports::{EngineCall, EngineError, Secret};
use crate::wire::node::DeliveryMode;

fn client(base: &str) -> Client {
    let client = Client::new(Settings::new(base, "9.1.6")).expect("a client");
    client.enrol(Enrolment {
        own: vec![
            OwnAgent {
                workspace_key: Secret::new("rk_live_1"),
                name: "brk one".into(),
                token: Secret::new("at_live_old"),
            },
            OwnAgent {
                workspace_key: Secret::new("rk_live_2"),
                name: "brk two".into(),
                token: Secret::new("at_live_two"),
            },
        ],
        home: 0,
        node_id: "node_ours".into(),
    });
    client
}

fn dm() -> EngineCall {
    EngineCall::PostDm {
        workspace: 0,
        to: "bob".into(),
        text: "hi".into(),
        mode: DeliveryMode::Steer,
        idempotency_key: "key-1".into(),
    }
}

fn in_s(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Runs one call against a script and gives back its outcome, the requests, and how long it took.
fn run(
    call: &EngineCall,
    seconds: u64,
    answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
) -> (Result<Value, EngineError>, Vec<Seen>, Duration) {
    let script = Script::serve(answer);
    let began = Instant::now();
    let outcome = client(&script.base).perform_until(call, in_s(seconds));
    (outcome, script.seen(), began.elapsed())
}

#[test]
fn a_message_post_carries_what_the_engine_expects() {
    let (outcome, seen, _) = run(&dm(), 5, |_, _| ok(201, json!({"id": "m1"})));
    assert_eq!(outcome, Ok(json!({"id": "m1"})));
    let request = &seen[0];
    assert_eq!(request.line(), "POST /v1/dm");
    assert_eq!(request.json(), json!({"to": "bob", "text": "hi", "mode": "steer"}));
    for (name, value) in [
        ("authorization", "Bearer at_live_old"),
        ("x-sdk-version", "9.1.6"),
        ("x-relaycast-origin-client", "agent-relay-broker"),
        ("x-relaycast-origin-version", "9.1.6"),
        ("x-relaycast-origin-actor", "agent-relay-cli/cli"),
        ("idempotency-key", "key-1"),
        ("user-agent", "agent-relay-broker/9.1.6"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
}

#[test]
fn paths_are_encoded_and_a_path_of_the_base_is_kept() {
    let script = Script::serve(|_, _| ok(201, json!({})));
    let client = client(&format!("{}/relay//", script.base));
    let key = || "k".to_string();
    let calls = [
        (
            EngineCall::PostChannel {
                workspace: 0,
                channel: "#gen eral".into(),
                text: "t".into(),
                mode: DeliveryMode::Wait,
                idempotency_key: key(),
            },
            "POST /relay/v1/channels/gen%20eral/messages",
            json!({"text": "t", "mode": "wait"}),
        ),
        (
            EngineCall::PostReply { workspace: 0, message_id: "1/2".into(), text: "t".into(), idempotency_key: key() },
            "POST /relay/v1/messages/1%2F2/replies",
            json!({"text": "t"}),
        ),
        (
            EngineCall::BindAgent { node_name: "vm-0123".into(), name: "w1".into(), session_ref: Some("s".into()) },
            "POST /relay/v1/nodes/vm-0123/agents",
            json!({"agent_name": "w1", "session_ref": "s"}),
        ),
        (EngineCall::Heartbeat { workspace: 0 }, "POST /relay/v1/agents/heartbeat", json!({})),
        (EngineCall::Disconnect { workspace: 0 }, "POST /relay/v1/agents/disconnect", json!({})),
    ];
    for (call, line, body) in calls {
        client.perform(&call).unwrap_or_else(|e| panic!("{call:?}: {e}"));
        let last = script.seen().pop().unwrap();
        assert_eq!((last.line().as_str(), last.json()), (line, body));
    }
}

#[test]
fn a_join_has_neither_body_nor_content_type_and_conflicts_are_success() {
    let call = EngineCall::JoinChannel { channel: "#Dev".into(), token: Secret::new("at_live_w") };
    let (outcome, seen, _) = run(&call, 5, |_, _| error(409, "channel_already_exists"));
    assert_eq!(outcome, Ok(Value::Null));
    assert_eq!(seen[0].line(), "POST /v1/channels");
    assert_eq!(seen[0].json(), json!({"name": "dev"}));
    assert_eq!(seen[1].line(), "POST /v1/channels/dev/join");
    assert_eq!(seen[1].header("authorization"), Some("Bearer at_live_w"));
    for (name, value) in [("content-type", None), ("transfer-encoding", None), ("content-length", Some("0"))] {
        assert_eq!(seen[1].header(name), value, "{name}");
    }
    let call = EngineCall::JoinChannel { channel: "a b".into(), token: Secret::new("at_live_w") };
    let (outcome, seen, _) = run(&call, 5, |_, _| ok(200, json!({})));
    assert_eq!(outcome.unwrap_err().code, "invalid_channel_name");
    assert!(seen.is_empty(), "refused before anything is sent");
}

#[test]
fn who_leaves_a_channel_twice_has_left_it() {
    let call = EngineCall::LeaveChannel { channel: "#Dev".into(), token: Secret::new("at_live_w") };
    for answer in [|| Reply::Text(204, String::new()), || error(404, "not_a_member"), || error(409, "not_a_member")] {
        let (outcome, seen, _) = run(&call, 5, move |_, _| answer());
        assert_eq!(outcome, Ok(Value::Null));
        assert_eq!((seen.len(), seen[0].line().as_str()), (1, "POST /v1/channels/dev/leave"));
        assert_eq!(seen[0].header("authorization"), Some("Bearer at_live_w"));
    }
    // Twin: what keeps it in is told.
    let (outcome, ..) = run(&call, 5, |_, _| error(403, "forbidden"));
    assert_eq!(outcome.unwrap_err().status, 403);
}

#[test]
fn server_errors_are_repeated_four_times_and_the_last_one_survives() {
    let (outcome, seen, _) = run(&dm(), 10, |_, n| match n {
        0 => error(500, "internal_error"),
        1 => Reply::Text(502, "<html>".into()),
        2 => error(504, "x"),
        _ => error(503, "node_dispatch_unavailable"),
    });
    let failed = outcome.unwrap_err();
    assert_eq!((failed.status, failed.code.as_str()), (503, "node_dispatch_unavailable"));
    assert_eq!(failed.message, "says node_dispatch_unavailable");
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|request| request.header("idempotency-key") == Some("key-1")));
    for (pair, nominal) in seen.windows(2).zip([200.0, 400.0, 800.0]) {
        let gap = pair[1].at.duration_since(pair[0].at).as_secs_f64() * 1000.0;
        assert!(gap >= nominal * 0.8 - 1.0 && gap < nominal * 1.2 + 400.0, "{gap} ms instead of {nominal}");
    }
}

#[test]
fn a_repeat_that_works_is_a_success() {
    for first in [1, 2, 3] {
        let (outcome, seen, _) = run(&dm(), 10, move |_, n| match (n, first) {
            (0, 1) => Reply::Cut,
            (0, 2) => Reply::Half,
            (0, _) => error(409, "idempotency_in_progress"),
            _ => ok(201, json!({"id": "m"})),
        });
        assert_eq!(outcome, Ok(json!({"id": "m"})), "{first}");
        assert_eq!(seen.len(), 2, "{first}");
    }
}

#[test]
fn definite_answers_are_final() {
    for (status, code) in [(400, "invalid_request"), (403, "forbidden"), (404, "agent_not_found"), (409, "conflict")] {
        let (outcome, seen, _) = run(&dm(), 5, move |_, _| error(status, code));
        let failed = outcome.unwrap_err();
        assert_eq!((failed.status, failed.code.as_str(), seen.len()), (status, code, 1));
    }
    let (outcome, seen, _) = run(&dm(), 5, |_, _| Reply::Text(404, "not here".into()));
    assert_eq!((outcome.unwrap_err().code.as_str(), seen.len()), ("http_404", 1));
    let (outcome, seen, _) = run(&dm(), 5, |_, _| Reply::With(302, ("Location", "/elsewhere".into()), String::new()));
    assert_eq!((outcome.unwrap_err().code.as_str(), seen.len()), ("http_302", 1), "redirects are not followed");
}

/// A post that the engine could not recognise as a repeat.
fn unkeyed() -> EngineCall {
    EngineCall::PostReply { workspace: 0, message_id: "1".into(), text: "t".into(), idempotency_key: String::new() }
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    let without_key = unkeyed();
    for reply in [|| Reply::Cut, || Reply::Half, || error(503, "handler_unavailable")] {
        let (outcome, seen, _) = run(&without_key, 5, move |_, _| reply());
        assert!(outcome.is_err());
        assert_eq!(seen.len(), 1);
    }
    let (_, seen, _) = run(&without_key, 5, |_, _| error(503, "x"));
    assert_eq!((seen.len(), seen[0].header("idempotency-key")), (1, None));
}

#[test]
fn a_refused_connection_is_tried_again_for_any_call() {
    // At an address of its own: nobody else takes the port once it is free.
    let listener = std::net::TcpListener::bind("127.9.8.7:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let began = Instant::now();
    let failed = client(&base).perform_until(&unkeyed(), in_s(10)).unwrap_err();
    assert_eq!((failed.status, failed.code.as_str()), (0, "transport"));
    assert!(began.elapsed() >= Duration::from_millis(1100), "three pauses: {:?}", began.elapsed());
    let began = Instant::now();
    let failed = client("http://does-not-exist.invalid").perform_until(&unkeyed(), in_s(3)).unwrap_err();
    assert_eq!((failed.status, failed.code.as_str()), (0, "transport"));
    assert!(began.elapsed() >= Duration::from_millis(450), "a failed look-up too: {:?}", began.elapsed());
}

#[test]
fn a_limit_that_fits_is_waited_for_and_one_that_does_not_is_an_error() {
    let limited = |wait: &'static str| {
        move |_: &Seen, n: usize| match n {
            0 => Reply::With(
                429,
                ("Retry-After", wait.into()),
                r#"{"ok":false,"error":{"code":"rate_limit_exceeded"}}"#.into(),
            ),
            _ => ok(201, json!(1)),
        }
    };
    let (outcome, seen, took) = run(&dm(), 5, limited("1"));
    assert_eq!((outcome, seen.len()), (Ok(json!(1)), 2));
    assert!(took >= Duration::from_secs(1), "{took:?}");
    let (outcome, seen, took) = run(&dm(), 5, limited("30"));
    let failed = outcome.unwrap_err();
    assert_eq!((failed.status, failed.retry_after_ms, seen.len()), (429, Some(30_000), 1));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_limit_pauses_its_class_and_no_other() {
    let script = Script::serve(|seen, _| match seen.path.as_str() {
        "/v1/dm" => error(429, "rate_limit_exceeded"),
        _ => ok(200, json!({})),
    });
    let client = client(&script.base);
    for _ in 0..3 {
        assert_eq!(client.perform_until(&dm(), in_s(2)).unwrap_err().status, 429);
    }
    client.perform_until(&EngineCall::Heartbeat { workspace: 0 }, in_s(2)).expect("another class");
    assert_eq!(script.lines(), ["POST /v1/dm", "POST /v1/agents/heartbeat"]);
}

#[test]
fn a_hanging_engine_costs_the_deadline_and_not_more() {
    let (outcome, seen, took) = run(&dm(), 1, |_, _| Reply::Hang);
    assert_eq!(outcome.unwrap_err().message, "no answer in time");
    assert_eq!(seen.len(), 1);
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_lost_own_token_is_rotated_once() {
    let script = Script::serve(|seen, _| match (seen.line().as_str(), seen.header("authorization")) {
        ("POST /v1/agents/brk%20one/rotate-token", Some("Bearer rk_live_1")) => {
            ok(200, json!({"token": "at_live_new"}))
        }
        ("POST /v1/dm", Some("Bearer at_live_new")) => ok(201, json!(1)),
        ("POST /v1/dm", _) => error(401, "agent_token_invalid"),
        _ => error(400, "unexpected"),
    });
    let client = client(&script.base);
    assert_eq!(client.perform_until(&dm(), in_s(5)), Ok(json!(1)));
    assert_eq!(client.own_token(0).unwrap(), Secret::new("at_live_new"));
    assert_eq!(client.perform_until(&dm(), in_s(5)), Ok(json!(1)));
    assert_eq!(script.lines(), ["POST /v1/dm", "POST /v1/agents/brk%20one/rotate-token", "POST /v1/dm", "POST /v1/dm"]);
}

#[test]
fn each_workspace_is_served_with_the_token_of_its_own_agent() {
    let script = Script::serve(|seen, _| match (seen.line().as_str(), seen.header("authorization")) {
        ("POST /v1/agents/brk%20two/rotate-token", Some("Bearer rk_live_2")) => ok(200, json!({"token": "at_live_2b"})),
        (_, Some("Bearer at_live_two")) => error(401, "agent_token_invalid"),
        (_, Some("Bearer at_live_old")) => ok(200, json!("first")),
        (_, Some("Bearer at_live_2b")) => ok(200, json!("second")),
        _ => error(400, "unexpected"),
    });
    let client = client(&script.base);
    let second = |call: EngineCall| client.perform_until(&call, in_s(5));
    let in_second = |mut call: EngineCall| {
        let (EngineCall::PostDm { workspace, .. }
        | EngineCall::Heartbeat { workspace }
        | EngineCall::Disconnect { workspace }) = &mut call
        else {
            panic!("{call:?}")
        };
        *workspace = 1;
        call
    };
    for call in [dm(), EngineCall::Heartbeat { workspace: 0 }, EngineCall::Disconnect { workspace: 0 }] {
        assert_eq!(second(call.clone()), Ok(json!("first")), "{call:?}");
        assert_eq!(second(in_second(call.clone())), Ok(json!("second")), "{call:?}");
    }
    assert_eq!(client.own_token(0).unwrap(), Secret::new("at_live_old"), "the other agent's token is left alone");
    assert_eq!(client.own_token(1).unwrap(), Secret::new("at_live_2b"));
    assert_eq!(script.lines().iter().filter(|line| line.contains("rotate")).count(), 1);
    assert_eq!(second(EngineCall::Heartbeat { workspace: 2 }).unwrap_err().code, "not_enrolled");
}

#[test]
fn d8_two_calls_with_a_lost_token_rotate_it_once() {
    let (rotations, met) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Barrier::new(2)));
    let counted = rotations.clone();
    let script = Script::serve(move |seen, _| match seen.header("authorization") {
        Some("Bearer rk_live_1") => {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            ok(200, json!({"token": format!("at_live_new{n}")}))
        }
        Some("Bearer at_live_old") => {
            // Both calls are refused before either rotates.
            met.wait();
            error(401, "agent_token_invalid")
        }
        Some("Bearer at_live_new0") => ok(201, json!(1)),
        _ => error(401, "agent_token_invalid"),
    });
    let client = client(&script.base);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..2).map(|_| scope.spawn(|| client.perform_until(&dm(), in_s(10)))).collect();
        for call in calls {
            assert_eq!(call.join().unwrap(), Ok(json!(1)));
        }
    });
    assert_eq!(rotations.load(Ordering::SeqCst), 1);
}

#[test]
fn a_token_that_stays_refused_is_an_error_after_one_rotation() {
    let rotations = Arc::new(AtomicUsize::new(0));
    let counted = rotations.clone();
    let script = Script::serve(move |seen, _| {
        if seen.path.ends_with("rotate-token") {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            return ok(200, json!({"token": format!("at_live_{n}")}));
        }
        Reply::Text(401, r#"{"ok":false,"error":{"code":"unauthorized","message":"Invalid agent token"}}"#.into())
    });
    assert_eq!(
        client(&script.base).perform_until(&EngineCall::Heartbeat { workspace: 0 }, in_s(5)).unwrap_err().status,
        401
    );
    assert_eq!(rotations.load(Ordering::SeqCst), 1);
    let (outcome, seen, _) = run(&dm(), 5, |_, _| error(401, "unauthorized"));
    assert_eq!((outcome.unwrap_err().status, seen.len()), (401, 1), "another 401 rotates nothing");
}

#[test]
fn a_spawned_agent_is_registered_or_taken_over() {
    let call = EngineCall::RegisterAgent { name: "w 1".into(), cli: "/bin/codex --x".into() };
    let (outcome, seen, _) = run(&call, 5, |_, _| ok(201, json!({"id": "7", "name": "w 1", "token": "at_live_w"})));
    assert_eq!(outcome, Ok(json!({"id": "7", "name": "w 1", "token": "at_live_w"})));
    assert_eq!(seen[0].json(), json!({"name": "w 1", "type": "agent", "metadata": {"cli": "codex"}}));
    let (outcome, seen, _) = run(&call, 5, |seen, _| match seen.line().as_str() {
        "POST /v1/agents" => error(409, "agent_already_exists"),
        "GET /v1/agents/w%201" => ok(200, json!({"id": "8", "name": "w 1", "status": "offline"})),
        _ => ok(200, json!({"name": "w 1", "token": "at_live_r"})),
    });
    assert_eq!(outcome, Ok(json!({"id": "8", "name": "w 1", "token": "at_live_r"})));
    assert_eq!(seen[2].line(), "POST /v1/agents/w%201/rotate-token");
    assert_eq!(seen[2].json(), json!({}));
    let (outcome, ..) = run(&call, 5, |_, _| ok(201, json!({"id": "7", "token": " "})));
    assert_eq!(outcome.unwrap_err().code, "invalid_answer");
}

#[test]
fn tokens_never_show() {
    let client = client("http://127.0.0.1:1");
    let failed = client.perform_until(&dm(), in_s(1)).unwrap_err();
    assert!(!format!("{failed:?} {failed}").contains("at_live"), "{failed:?}");
    let odd = Client::new(Settings::new("http://127.0.0.1:1", "9.1.6")).unwrap();
    let failed = odd.get_agent(&Secret::new("rk_live_\n1"), "a", in_s(1)).unwrap_err();
    assert!(!failed.to_string().contains("rk_live"), "{failed}");
    assert_eq!(odd.perform(&EngineCall::Heartbeat { workspace: 0 }).unwrap_err().code, "not_enrolled");
}

#[test]
fn bases_that_are_no_urls_are_refused() {
    for base in ["", "cast.example", "ftp://h", "http://"] {
        assert!(Client::new(Settings::new(base, "1")).is_err(), "{base}");
    }
}

#[test]
fn tls_uses_the_roots_that_it_is_given() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::io::{Read, Write};
    let chain = vec![CertificateDer::from_pem_slice(include_bytes!("../../fixtures/tls/server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../fixtures/tls/server.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let Ok(session) = rustls::ServerConnection::new(config.clone()) else { return };
            let mut stream = rustls::StreamOwned::new(session, socket);
            let mut head = Vec::new();
            let mut byte = [0u8];
            while !head.ends_with(b"\r\n\r\n{}") {
                match stream.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    _ => break,
                }
            }
            let body = r#"{"ok":true,"data":"secure"}"#;
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.flush();
        }
    });
    let root = CertificateDer::from_pem_slice(include_bytes!("../../fixtures/tls/ca.pem")).unwrap();
    for (roots, works) in [(vec![root], true), (vec![], false)] {
        let settings = Settings {
            trust: Some(Arc::new(crate::sys::tls::trusting(roots))),
            ..Settings::new(&format!("https://localhost:{port}"), "9.1.6")
        };
        let client = Client::new(settings).unwrap();
        client.enrol(Enrolment {
            own: vec![OwnAgent {
                workspace_key: Secret::new("rk_live_1"),
                name: "b".into(),
                token: Secret::new("at_live_1"),
            }],
            home: 0,
            node_id: "n".into(),
        });
        let outcome = client.perform_until(&EngineCall::Heartbeat { workspace: 0 }, in_s(5));
        match works {
            true => assert_eq!(outcome, Ok(json!("secure"))),
            false => assert!(outcome.unwrap_err().message.contains("certificate")),
        }
    }
}

#[test]
fn the_pool_works_beside_the_caller_and_refuses_past_its_bound() {
    let (tx, outcomes) = crossbeam_channel::unbounded();
    let (release, gate) = crossbeam_channel::bounded::<()>(0);
    let script = Script::serve(move |_, _| {
        let _ = gate.recv();
        ok(200, json!({}))
    });
    let pool = Pool::start(Arc::new(client(&script.base)), move |ticket, outcome| {
        let _ = tx.send((ticket, outcome.is_ok()));
    });
    let mut refused = 0;
    for ticket in 0..300 {
        if let Err(error) = pool.submit(ticket, EngineCall::Heartbeat { workspace: 0 }) {
            assert_eq!(error.code, "queue_full");
            refused += 1;
        }
    }
    let accepted = 300 - refused;
    assert!((pool::QUEUE..=pool::QUEUE + pool::WORKERS).contains(&accepted), "{accepted}");
    // Four at work at the same time: four requests are at the gate before any was answered.
    let began = Instant::now();
    while script.seen().len() < pool::WORKERS {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", script.lines());
        std::thread::yield_now();
    }
    drop(release);
    for _ in 0..accepted {
        let (_, success) = outcomes.recv_timeout(Duration::from_secs(20)).expect("every accepted call has an outcome");
        assert!(success);
    }
    pool.stop(Duration::from_secs(2));
    assert!(outcomes.recv_timeout(Duration::from_millis(10)).is_err(), "exactly one outcome each");
}

#[test]
fn idle_workers_end_and_come_back() {
    let script = Script::serve(|_, _| ok(200, json!({})));
    let (tx, outcomes) = crossbeam_channel::unbounded();
    let shared = Arc::new(client(&script.base));
    let pool = Pool::start_with(shared.clone(), Duration::from_millis(30), move |ticket, outcome| {
        let _ = tx.send((ticket, outcome.is_ok()));
    });
    for ticket in 0..3 {
        pool.submit(ticket, EngineCall::Heartbeat { workspace: 0 }).unwrap();
        assert_eq!(outcomes.recv_timeout(Duration::from_secs(10)), Ok((ticket, true)));
        let began = Instant::now();
        // A worker holds the client; when the last has left, only the pool and this test do.
        while Arc::strong_count(&shared) > 2 {
            assert!(began.elapsed() < Duration::from_secs(10), "the idle worker must end");
            std::thread::yield_now();
        }
    }
    pool.stop(Duration::from_secs(2));
}

#[test]
fn a_stop_breaks_off_what_hangs() {
    let script = Script::serve(|_, _| Reply::Hang);
    let (tx, outcomes) = crossbeam_channel::unbounded();
    let pool = Pool::start(Arc::new(client(&script.base)), move |ticket, outcome| {
        let _ = tx.send((ticket, outcome.is_err()));
    });
    for ticket in 0..6 {
        pool.submit(ticket, dm()).unwrap();
    }
    let began = Instant::now();
    pool.stop(Duration::from_millis(600));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let mut seen: Vec<_> = (0..6).map(|_| outcomes.recv_timeout(Duration::from_secs(5)).expect("an outcome")).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..6).map(|ticket| (ticket, true)).collect::<Vec<_>>());
}
