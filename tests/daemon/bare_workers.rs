//! `headless` and `app-server`: workers without a terminal, by frames.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::broker::Start;
use crate::engine::Engine;
use crate::headless::provider;
use crate::house::House;
use crate::pty::Worker;

fn once(script: &str, args: &[&str]) -> Worker {
    let house = House::new();
    let path = provider(&house, script);
    let words = [&["claude", "--"][..], args].concat();
    Worker::of("headless", &words, &house, &[("PATH", &path), ("RELAY_AGENT_NAME", "secret-name")])
}

fn kinds(worker: &Worker) -> Vec<String> {
    worker.frames().iter().filter_map(|frame| frame["type"].as_str().map(str::to_string)).collect()
}

fn last(worker: &Worker) -> Value {
    worker.hears("worker_exited", |_| true)
}

#[test]
fn a_provider_is_run_once_with_the_body_as_its_prompt() {
    let script = r#"for word; do echo "$word"; done; env | grep -c ^RELAY_AGENT_; echo oops >&2; printf 'no end'"#;
    let mut worker = once(script, &["--x"]);
    worker.ask("init_worker", "r0", json!({"agent": {"name": "ann"}}));
    let ready = worker.hears("worker_ready", |frame| frame["request_id"] == "r0");
    assert_eq!(ready["payload"], json!({"name": "ann", "runtime": "headless"}));
    worker.deliver("d1", "do it");
    let exited = last(&worker);
    assert_eq!(exited["payload"], json!({"code": 0, "signal": null}));
    assert_eq!(worker.wait().code(), Some(0));
    let told: Vec<String> = kinds(&worker).into_iter().filter(|kind| kind != "worker_stream").collect();
    let expected = [
        "worker_ready",
        "delivery_queued",
        "delivery_injected",
        "delivery_active",
        "delivery_ack",
        "delivery_verified",
        "worker_exited",
    ];
    assert_eq!(told, expected, "{}", worker.seen());
    assert_eq!(worker.hears("delivery_ack", |_| true)["request_id"], "d1");
    assert_eq!(worker.hears("delivery_active", |_| true)["payload"]["pattern"], "headless:claude");
    let lines = |of: &str| -> Vec<String> {
        let frames =
            worker.frames().into_iter().filter(|f| f["type"] == "worker_stream" && f["payload"]["stream"] == of);
        frames.filter_map(|frame| frame["payload"]["chunk"].as_str().map(str::to_string)).collect()
    };
    assert_eq!(lines("stdout"), ["-p", "--dangerously-skip-permissions", "--x", "do it", "0", "no end"]);
    assert_eq!(lines("stderr"), ["oops"]);
}

#[test]
fn a_bad_end_a_missing_provider_and_a_second_message_are_told() {
    let mut worker = once("sleep 0.2; exit 7", &[]);
    worker.deliver("d1", "first");
    worker.deliver("d2", "second");
    assert_eq!(last(&worker)["payload"]["code"], 7);
    assert_eq!(worker.wait().code(), Some(0), "the code is told, not taken over");
    let reason =
        |id: &str| worker.hears("delivery_failed", |f| f["payload"]["delivery_id"] == id)["payload"]["reason"].clone();
    assert!(reason("d1").as_str().is_some_and(|text| text.ends_with("claude exited with code 7")), "{}", worker.seen());
    assert_eq!(reason("d2"), "the worker has ended");

    let mut worker = Worker::of("headless", &["opencode"], &House::new(), &[("PATH", "/nowhere")]);
    worker.ask("init_worker", "r0", json!({}));
    let ready = worker.hears("worker_ready", |_| true);
    assert_eq!(ready["payload"]["name"], "headless-opencode");
    worker.deliver("d1", "x");
    worker.hears("delivery_failed", |frame| frame["payload"]["delivery_id"] == "d1");
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "spawn_failed");
    assert_eq!(last(&worker)["payload"]["code"], 1);
    assert_eq!(worker.wait().code(), Some(0));
}

#[test]
fn pings_are_answered_during_a_run_and_every_end_takes_the_program_along() {
    for end in ["shutdown", "closed", "signal"] {
        let mut worker = once("setsid sleep 1000 & sleep 1000", &[]);
        worker.deliver("d1", "x");
        worker.hears("delivery_ack", |_| true);
        worker.ask("ping", "p1", json!({"ts_ms": 5}));
        worker.hears("pong", |frame| frame["request_id"] == "p1");
        let house = worker.house.clone();
        let sleepers = move || house.processes().iter().filter(|(_, line)| line.contains("sleep 1000")).count();
        worker.until("both processes", || (sleepers() >= 2).then_some(()));
        match end {
            "shutdown" => worker.ask("shutdown_worker", "s", json!({})),
            "closed" => drop(worker.stdin.take()),
            _ => {
                let pid = Pid::from_child(&worker.child);
                kill_process(pid, Signal::TERM).expect("a signal");
            }
        }
        worker.wait();
        worker.hears("delivery_failed", |frame| frame["payload"]["delivery_id"] == "d1");
        assert_eq!(sleepers(), 0, "{end}: {}", worker.seen());
    }
}

/// Answers each request with this status; what was asked.
fn stub(status: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let into = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                    break;
                }
                let lower = line.to_lowercase();
                length = lower.strip_prefix("content-length:").and_then(|n| n.trim().parse().ok()).unwrap_or(length);
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap_or_default();
            into.lock().unwrap().push(head + &String::from_utf8_lossy(&body));
            let _ = write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        }
    });
    (endpoint, asked)
}

#[test]
fn messages_go_to_the_session_of_a_server() {
    let (endpoint, asked) = stub("200 OK");
    let args = ["--agent-name", "ann", "--protocol", "opencode", "--endpoint", &endpoint, "--session-id", "s 1"];
    let auth = [("AGENT_RELAY_APP_SERVER_AUTH_TYPE", "bearer"), ("AGENT_RELAY_APP_SERVER_AUTH_TOKEN", "t0ken")];
    let mut worker = Worker::of(
        "app-server",
        &[&args[..], &["--host-pid", "77", "--release", "abort"]].concat(),
        &House::new(),
        &auth,
    );
    worker.ask("init_worker", "r0", json!({}));
    let ready = worker.hears("worker_ready", |frame| frame["request_id"] == "r0");
    let expected = json!({"name": "ann", "runtime": "headless", "driver": "app_server", "sessionId": "s 1", "pid": 77});
    assert_eq!(ready["payload"], expected);
    worker.deliver("d1", "one");
    worker.hears("delivery_ack", |frame| frame["request_id"] == "d1");
    worker.deliver("d2", "two");
    worker.hears("delivery_ack", |frame| frame["request_id"] == "d2");
    // Accepted long ago: not once more.
    worker.deliver("d1", "one");
    worker.deliver("d3", "three");
    worker.hears("delivery_ack", |frame| frame["request_id"] == "d3");
    worker.ask("shutdown_worker", "s", json!({}));
    assert_eq!(last(&worker)["payload"], json!({"code": null, "signal": null}));
    assert_eq!(worker.wait().code(), Some(0));
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[0].starts_with("POST /session/s%201/prompt_async") && asked[0].contains("Bearer t0ken"), "{asked:?}");
    assert!(asked[0].contains(r"Relay message from bob to ann:\n\none"), "{asked:?}");
    assert!(asked[3].starts_with("POST /session/s%201/abort"), "{asked:?}");
    let told: Vec<String> = kinds(&worker);
    let expected = ["worker_ready", "delivery_queued", "delivery_injected", "delivery_ack"];
    assert_eq!(told[..4], expected, "{}", worker.seen());
}

#[test]
fn a_refusing_server_fails_messages_and_releases_with_its_words() {
    let (endpoint, asked) = stub("500 Internal Server Error");
    let args = ["--protocol", "opencode", "--endpoint", &endpoint, "--session-id", "s", "--release", "delete"];
    let mut worker = Worker::of("app-server", &args, &House::new(), &[]);
    worker.ask("init_worker", "r0", json!({}));
    assert_eq!(worker.hears("worker_ready", |_| true)["payload"]["name"], "app-server-opencode");
    worker.deliver("d1", "one");
    let failed = worker.hears("delivery_failed", |frame| frame["payload"]["delivery_id"] == "d1");
    assert_eq!(failed["payload"]["reason"], "app-server request failed with status 500 Internal Server Error: no");
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "app_server_delivery_failed");
    worker.ask("shutdown_worker", "s", json!({}));
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "app_server_release_failed");
    assert_eq!(last(&worker)["payload"]["code"], 1);
    assert_eq!(worker.wait().code(), Some(0));
    // Its caller's end alone releases nothing.
    let before = asked.lock().unwrap().len();
    let mut worker = Worker::of("app-server", &args, &House::new(), &[]);
    worker.ask("init_worker", "r0", json!({}));
    worker.hears("worker_ready", |_| true);
    drop(worker.stdin.take());
    last(&worker);
    worker.wait();
    assert_eq!(asked.lock().unwrap().len(), before);
}

#[test]
fn wrong_command_lines_are_named() {
    for (subcommand, args, part) in [
        ("headless", &["codex"][..], "possible values: claude, opencode"),
        ("headless", &[], "<PROVIDER>"),
        ("app-server", &["--protocol", "opencode", "--endpoint", "http://127.0.0.1:1"], "--session-id"),
        ("app-server", &["--protocol", "codex", "--endpoint", "http://127.0.0.1:1", "--session-id", "s"], "'codex'"),
        ("app-server", &["--protocol", "opencode", "--endpoint", "ftp://x", "--session-id", "s"], "'ftp://x'"),
        ("app-server", &["--release", "burn"], "possible values: abort, detach, delete"),
    ] {
        let mut worker = Worker::of(subcommand, args, &House::new(), &[]);
        assert_eq!(worker.wait().code(), Some(2), "{subcommand} {args:?}");
        let mut said = String::new();
        worker.child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
        assert!(said.contains(part), "{subcommand} {args:?}: {said}");
    }
}

#[test]
fn an_agent_of_the_broker_can_be_a_session_of_a_server() {
    for (status, works) in [("200 OK", true), ("500 Internal Server Error", false)] {
        let house = House::new();
        let engine = Engine::start(&house);
        let broker = Start::on(&house, &engine).online();
        let (endpoint, asked) = stub(status);
        let config = json!({"runtime": "headless", "protocol": "opencode", "endpoint": endpoint, "sessionId": "ses_1",
            "auth": {"type": "basic", "username": "u", "password": "hunter2-and-more"}, "host": {"pid": 77}, "release": "delete"});
        let body = json!({"name": "ann", "transport": "headless", "task": "the task", "harnessConfig": config});
        let answer = broker.spawn_with(&body).json();
        assert_eq!(
            (&answer["runtime"], &answer["pid"], &answer["sessionId"]),
            (&json!("headless"), &json!(77), &json!("ses_1"))
        );
        let bob = engine.stranger("bob");
        engine.dm(&bob, "ann", "from afar");
        if works {
            broker.until("both acknowledged", || (broker.told("delivery_ack", "ann").len() == 2).then_some(()));
            assert!(broker.told("delivery_verified", "ann").is_empty());
        } else {
            broker.until("both failed", || (broker.told("delivery_failed", "ann").len() == 2).then_some(()));
            let dead = broker.ok("GET", "/api/dead-letters", None);
            assert_eq!(dead["count"], 2, "{dead}");
            assert!(dead.to_string().contains("status 500"), "{dead}");
        }
        broker.until_told("delivery_acked", "ann");
        let asks = asked.lock().unwrap().clone();
        assert!(asks[0].contains("the task") && asks.iter().any(|ask| ask.contains("from afar")), "{asks:?}");
        assert_eq!(broker.call("DELETE", "/api/spawned/ann", None).status, 200);
        assert!(asked.lock().unwrap().last().is_some_and(|ask| ask.starts_with("DELETE /session/ses_1")));
        let told = broker.events().iter().map(|event| event.to_string()).collect::<String>();
        assert!(!told.contains("hunter2") && !broker.seen().contains("hunter2"), "a secret was told");
        let trouble = !broker.told("worker_error", "ann").is_empty();
        assert_eq!(trouble, !works, "{told}");
    }
}
