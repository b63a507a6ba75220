//! Agents without terminal: one message, one run of their program, one end.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;

/// A broker that finds this script as `claude`.
fn pair(script: &str) -> (Engine, Broker) {
    let house = House::new();
    let path = provider(&house, script);
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).env("PATH", &path).online();
    (engine, broker)
}

pub fn provider(house: &Arc<House>, script: &str) -> String {
    let claude = house.dir("bin").join("claude");
    // Renamed into place: a file that is open for writing anywhere cannot be executed.
    let made = std::process::Command::new("/bin/sh")
        .args(["-c", "printf '%s' \"$1\" > \"$2\"", "sh", &format!("#!/bin/sh\n{script}\n")])
        .arg(&claude)
        .status();
    assert!(made.expect("a shell").success());
    std::fs::set_permissions(&claude, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    format!("{}:/usr/bin:/bin", house.path("bin").display())
}

fn body(task: Option<&str>) -> Value {
    json!({"name": "ann", "cli": "claude", "transport": "headless", "task": task})
}

/// What was told of `ann`, without what belongs to other rooms.
fn kinds(broker: &Broker) -> Vec<String> {
    let all = broker.events().into_iter().filter(|event| event["name"] == "ann");
    all.filter_map(|event| event["kind"].as_str().map(str::to_string)).collect()
}

#[test]
fn the_task_is_the_prompt_and_its_end_is_the_agents() {
    let (_engine, broker) =
        pair(r#"for word; do last=$word; done; echo "got $last"; echo bad >&2; env | grep -c ^RELAY_AGENT_; exit 0"#);
    let answer = broker.spawn_with(&body(Some("the whole thing"))).json();
    assert_eq!(
        (&answer["runtime"], &answer["pid"], &answer["sessionId"]),
        (&json!("headless"), &Value::Null, &Value::Null)
    );
    let exited = broker.until_told("agent_exited", "ann");
    assert_eq!(exited["code"], 0, "{exited}");
    let order = [
        "agent_spawned",
        "worker_ready",
        "delivery_queued",
        "delivery_injected",
        "delivery_active",
        "delivery_ack",
        "worker_stream",
        "delivery_verified",
        "agent_exited",
    ];
    let told = kinds(&broker);
    let places: Vec<_> = order.iter().map(|kind| told.iter().position(|told| told == kind)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told:?}");
    for kind in ["agent_spawned", "worker_ready"] {
        let event = broker.told(kind, "ann").remove(0);
        let shown = [&event["runtime"], &event["provider"], &event["cli"], &event["pid"]];
        assert_eq!(shown, [&json!("headless"), &json!("claude"), &Value::Null, &Value::Null], "{event}");
    }
    assert_eq!(broker.told("delivery_active", "ann")[0]["pattern"], "headless:claude");
    let streams = broker.told("worker_stream", "ann");
    let said = |of: &str| -> Vec<Value> {
        streams.iter().filter(|line| line["stream"] == of).map(|line| line["chunk"].clone()).collect()
    };
    assert_eq!(said("stdout"), [json!("got the whole thing"), json!("0")]);
    assert_eq!(said("stderr"), [json!("bad")]);
    broker.until("the end of the row", || broker.listed().is_empty().then_some(()));
}

#[test]
fn messages_after_the_first_are_dead_letters_with_a_reason() {
    let (engine, broker) = pair(r#"while [ ! -e "$DAEMON_TEST_HOUSE/go" ]; do sleep 0.05; done; exit 7"#);
    assert_eq!(broker.spawn_with(&body(None)).status, 200);
    assert_eq!(broker.listed(), ["ann"]);
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "the first");
    broker.until_told("delivery_active", "ann");
    engine.dm(&bob, "ann", "the second");
    broker.until("both queued", || (broker.told("delivery_queued", "ann").len() == 2).then_some(()));
    std::fs::write(broker.house.path("go"), "").expect("a file");
    assert_eq!(broker.until_told("delivery_failed", "ann")["reason"], "claude exited with code 7");
    assert_eq!(broker.until_told("agent_exited", "ann")["code"], 7);
    let dead = broker.ok("GET", "/api/dead-letters", None);
    assert_eq!(dead["count"], 1, "{dead}");
    assert!(dead.to_string().contains("the second") && dead.to_string().contains("worker_exited"), "{dead}");
}

#[test]
fn there_is_no_terminal_to_look_at_or_to_type_into() {
    let (_engine, broker) = pair("sleep 1000");
    assert_eq!(broker.spawn_with(&body(None)).status, 200);
    for (method, path, body) in [
        ("GET", "/api/spawned/ann/snapshot", None),
        ("POST", "/api/input/ann", Some(json!({"data": "x"}))),
        ("POST", "/api/resize/ann", Some(json!({"rows": 24, "cols": 80}))),
    ] {
        let answer = broker.call(method, path, body.as_ref());
        assert_eq!((answer.status, &answer.json()["code"]), (409, &json!("unsupported_runtime")), "{path}");
    }
}

#[test]
fn a_release_ends_the_run_and_all_that_it_started() {
    let (_engine, mut broker) = pair("setsid sleep 1000 & sleep 1000");
    assert_eq!(broker.spawn_with(&body(Some("x"))).status, 200);
    let sleeping = |broker: &Broker| broker.house.processes().iter().filter(|(_, line)| line.contains("sleep")).count();
    broker.until("both processes", || (sleeping(&broker) == 2).then_some(()));
    assert_eq!(broker.call("DELETE", "/api/spawned/ann", None).status, 200);
    assert_eq!(sleeping(&broker), 0, "{:?}", broker.house.processes());
    assert_eq!(broker.told("delivery_failed", "ann"), Vec::<Value>::new());
    assert_eq!(broker.stop().0, Some(0));
}

#[test]
fn d9_the_run_of_a_killed_broker_is_ended_by_the_next_start() {
    let house = House::new();
    let path = provider(&house, "trap '' TERM; sleep 1000 & sleep 1000");
    let engine = Engine::start(&house);
    let start = || Start::on(&house, &engine).env("PATH", &path).arg("--persist").online();
    let mut broker = start();
    assert_eq!(broker.spawn_with(&body(Some("x"))).status, 200);
    let sleepers = || house.processes().iter().filter(|(_, line)| line == "sleep 1000").count();
    broker.until("both processes", || (sleepers() == 2).then_some(()));
    let directory = broker.connection_file().parent().expect("a directory").to_path_buf();
    let state = broker.until("it in the state file", || {
        let files = std::fs::read_dir(&directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let text =
            files.filter_map(|path| std::fs::read_to_string(path).ok()).find(|text| text.contains("process_start"))?;
        serde_json::from_str::<Value>(&text).ok()
    });
    assert_eq!(state["agents"]["ann"]["runtime"], "headless", "{state}");
    broker.process.signal(rustix::process::Signal::KILL);
    broker.process.wait(crate::until::LONG);
    assert_eq!(sleepers(), 2);
    let broker = start();
    assert_eq!(sleepers(), 0, "{}", broker.seen());
}

#[test]
fn k4_the_run_of_a_killed_broker_ends_with_it() {
    let house = House::new();
    let path = provider(&house, "exec sleep 1000");
    let engine = Engine::start(&house);
    let mut broker = Start::on(&house, &engine).env("PATH", &path).online();
    assert_eq!(broker.spawn_with(&body(Some("x"))).status, 200);
    let sleepers = || house.processes().iter().filter(|(_, line)| line == "sleep 1000").count();
    broker.until("the run", || (sleepers() == 1).then_some(()));
    broker.process.signal(rustix::process::Signal::KILL);
    broker.process.wait(crate::until::LONG);
    let seen = || format!("{:?}", house.processes());
    crate::until::until(crate::until::LONG, "its end", seen, || (sleepers() == 0).then_some(()));
}
