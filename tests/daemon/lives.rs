//! Agents one by one: how they are started, typed to and looked at.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::road::signal;
use crate::scripted::{Deed, Scripted};

fn pair() -> (Engine, Broker) {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    (engine, broker)
}

#[test]
fn of_spawns_of_one_name_at_the_same_time_exactly_one_succeeds() {
    let (engine, broker) = pair();
    let body = json!({"name": "ann", "cli": broker.house.agent()});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let spawns: Vec<_> = (0..6).map(|_| scope.spawn(|| broker.spawn_with(&body))).collect();
        spawns.into_iter().map(|spawn| spawn.join().unwrap()).collect()
    });
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 5, "{answers:?}");
    assert_eq!(broker.listed(), ["ann"]);
    // The one that runs holds the token that counts.
    let token = broker.token_of("ann");
    assert_eq!(engine.data("GET", "/v1/agent", &token, None)["name"], "ann");
    assert_eq!(broker.told("agent_spawned", "ann").len(), 1);
}

#[test]
fn a_task_is_typed_first_and_messages_after_it() {
    let (engine, broker) = pair();
    let body = json!({"name": "ann", "cli": broker.house.agent(), "task": "the first thing", "channels": ["Quarry"]});
    assert_eq!(broker.spawn_with(&body).status, 200);
    let (token, bob) = (broker.token_of("ann"), engine.stranger("bob"));
    // The task waits until the program can take input, and everything later waits for the task.
    broker.until_told("worker_ready", "ann");
    engine.dm(&bob, "ann", "the second thing");
    broker.until_read("ann", "the second thing");
    let read = broker.house.read_by("ann");
    assert_eq!(broker.times_read("ann", "the first thing"), 1, "{read}");
    assert!(read.find("the first thing") < read.find("the second thing"), "{read}");
    // A channel that nobody made yet is made by whoever joins first, or stays a warning; the agent works either way.
    assert_eq!(broker.ok("GET", "/api/spawned", None)["agents"][0]["channels"], json!(["Quarry"]));
    broker.until("the ack", || (engine.unacked(&token) == 0).then_some(()));
}

#[test]
fn local_sends_reach_channels_and_names_and_not_the_sender() {
    let (_engine, broker) = pair();
    for name in ["ann", "bert", "carl"] {
        let channels = if name == "carl" { json!(["else"]) } else { json!(["general"]) };
        let body = json!({"name": name, "cli": broker.house.agent(), "channels": channels});
        assert_eq!(broker.spawn_with(&body).status, 200);
    }
    let sent = broker.ok("POST", "/api/send", Some(&json!({"to": "#general", "message": "to all", "from": "ann"})));
    assert_eq!((&sent["delivered"], &sent["targets"]), (&json!(1), &json!(["bert"])), "{sent}");
    broker.until_read("bert", "to all");
    let sent = broker.ok("POST", "/api/send", Some(&json!({"to": "@CARL", "message": "to one"})));
    assert_eq!(sent["targets"], json!(["carl"]));
    broker.until_read("carl", "to one");
    assert_eq!(broker.times_read("ann", "to all") + broker.times_read("carl", "to all"), 0);
    let unknown = broker.call("POST", "/api/send", Some(&json!({"to": "nobody", "message": "x"})));
    assert_eq!(unknown.status, 404, "{}", unknown.text);
    assert!(unknown.json()["error"].as_str().unwrap().starts_with("Agent \"nobody\" not found"), "{}", unknown.text);
}

#[test]
fn keystrokes_arrive_and_the_screen_shows_them() {
    let (_engine, broker) = pair();
    broker.spawn("ann");
    broker.token_of("ann");
    let typed = broker.ok("POST", "/api/input/ann", Some(&json!({"data": "h\u{e9}llo\r"})));
    assert_eq!(typed["bytes_written"], 7);
    broker.until_read("ann", "h\u{e9}llo");
    let screen = || broker.ok("GET", "/api/spawned/ann/snapshot?format=plain", None);
    broker.until("the echo on the screen", || screen()["screen"].as_str()?.contains("h\u{e9}llo").then_some(()));
    broker.ok("POST", "/api/resize/ann", Some(&json!({"rows": 17, "cols": 61})));
    let after = screen();
    assert_eq!((&after["rows"], &after["cols"]), (&json!(17), &json!(61)));
    let chunks: String =
        broker.told("worker_stream", "ann").iter().map(|e| e["chunk"].as_str().unwrap().to_string()).collect();
    assert!(chunks.contains("h\u{e9}llo"), "{chunks:?}");
    let replay = broker.ok("GET", "/api/events/replay?sinceSeq=0", None);
    let numbers: Vec<u64> = replay["events"].as_array().unwrap().iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{replay}");
    assert_eq!(replay["gap"], false);
}

#[test]
fn f36_the_invocation_and_the_session_are_forwarded() {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    let input = json!({"name": "al", "harnessConfig": {"runtime": "pty", "command": "cat", "sessionId": "s1"}});
    engine.send(
        &json!({"v": 1, "type": "action.invoke", "invocation_id": "i1", "action": "spawn:cat", "input": input})
            .to_string(),
    );
    let register = engine.frame("agent.register", 0);
    let fields = ["name", "invocation_id", "session_ref", "resumable"].map(|key| register[key].clone());
    assert_eq!(fields, [json!("al"), json!("i1"), json!("s1"), json!(true)], "{register}");
    engine.frame("action.result", 0);
    let listed = engine.until("al in the inventory", |log| {
        log.frames_of("inventory.sync").pop()?["agents"].get(0).filter(|row| row["name"] == "al").cloned()
    });
    assert_eq!((&listed["invocation_id"], &listed["session_ref"]), (&json!("i1"), &json!("s1")));
    assert_eq!(broker.listed(), ["al"]);
    // What there is nothing to say of is left out.
    broker.spawn("ann");
    let register = engine.frame("agent.register", 1);
    let keys: Vec<&String> = register.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "name", "type", "v"], "{register}");
}

#[test]
fn f11_a_failed_binding_fails_an_invoke_and_warns_a_client() {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    engine.log().answer_agent = Some(("node_capacity_exceeded".into(), "no room".into()));
    let bind = format!("POST /v1/nodes/{}/agents", broker.node_name());
    let refusal: Value = json!({"ok": false, "error": {"code": "internal_error", "message": "no"}});
    engine.rule(&bind, Deed::Answer(500, refusal));
    let input = json!({"name": "al", "cli": house.agent()});
    engine.send(
        &json!({"v": 1, "type": "action.invoke", "invocation_id": "i1", "action": "spawn", "input": input}).to_string(),
    );
    let result = engine.frame("action.result", 0);
    assert!(result["error"].as_str().is_some_and(|error| error.starts_with("spawn_failed")), "{result}");
    assert!(broker.listed().is_empty());
    assert!(broker.told("agent_spawned", "al").is_empty());
    let answer = broker.ok("POST", "/api/spawn", Some(&json!({"name": "ann", "cli": house.agent()})));
    let warning = answer["warning"].as_str().unwrap_or_default();
    assert!(warning.contains("binding it to node") && warning.contains("will NOT reach"), "{answer}");
    assert_eq!(broker.listed(), ["ann"]);
}

#[test]
fn d20_an_agent_with_a_policy_is_started_again_and_reads_what_waited() {
    let (engine, broker) = pair();
    let body = json!({"name": "ann", "cli": broker.house.agent(), "task": "the first thing",
                      "restartPolicy": {"cooldown_ms": 300, "max_restarts": 2}});
    let answer = broker.spawn_with(&body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let pid_of = |broker: &Broker| {
        let rows = broker.ok("GET", "/api/spawned", None)["agents"].take();
        rows[0]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    };
    let first = pid_of(&broker).expect("a pid");
    let (token, bob) = (broker.token_of("ann"), engine.stranger("bob"));
    broker.until_read("ann", "the first thing");
    signal(first, Signal::STOP);
    engine.dm(&bob, "ann", "typed but unread");
    broker.until("its injection", || (broker.told("delivery_injected", "ann").len() == 2).then_some(()));
    engine.dm(&bob, "ann", "queued behind it");
    broker.until("it in the queue", || (broker.status()["pending_delivery_count"] == 2).then_some(()));
    signal(first, Signal::KILL);
    let told = broker.until_told("agent_restarting", "ann");
    let seen = ["code", "signal", "restart_count", "delay_ms"].map(|key| told[key].clone());
    assert_eq!(seen, [Value::Null, json!("9"), json!(1), json!(300)], "{told}");
    engine.dm(&bob, "ann", "sent in between");
    assert_eq!(broker.until_told("agent_restarted", "ann")["restart_count"], 1);
    let second = pid_of(&broker).expect("a pid");
    let read = || broker.house.read_by_life("ann", second).unwrap_or_default();
    let texts = ["the first thing", "typed but unread", "queued behind it", "sent in between"];
    for text in texts {
        broker.until(&format!("{text:?} read by the second life"), || read().contains(text).then_some(()));
    }
    for text in texts {
        assert_eq!(read().matches(text).count(), 1, "{text:?} in {}", read());
    }
    let renewed = broker.token_of("ann");
    assert_ne!(renewed, token, "a token of its own");
    broker.until("all acks", || (engine.unacked(&renewed) == 0).then_some(()));
    assert_eq!(broker.ok("GET", "/api/metrics", None)["broker"]["total_restarts"], 1);
    assert!(broker.told("agent_exited", "ann").is_empty());

    // Once more, and then never again.
    signal(second, Signal::KILL);
    let third = broker.until("the third life", || {
        pid_of(&broker).filter(|pid| *pid != second && broker.told("agent_restarted", "ann").len() == 2)
    });
    signal(third, Signal::KILL);
    assert_eq!(broker.until_told("agent_permanently_dead", "ann")["reason"], "exceeded max restarts (2)");
    assert_eq!(broker.told("agent_exited", "ann")[0]["signal"], "9");
    assert!(broker.listed().is_empty());
    let insights = broker.ok("GET", "/api/crash-insights", None);
    assert_eq!(insights["total_crashes"], 3, "{insights}");
}

#[test]
fn d17_what_a_session_leaves_at_its_release_is_told_to_its_successor() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).arg("--persist").online();
    let body = json!({"name": "ann", "cli": broker.house.agent(), "task": "the first half"});
    assert_eq!(broker.spawn_with(&body).status, 200);
    broker.until_read("ann", "the first half");
    broker.ok("DELETE", "/api/spawned/ann", Some(&json!({"reason": "the shift is over"})));
    let file = broker.connection_file().with_file_name("continuity").join("ann.json");
    let left: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    let words = ["agent_name", "initial_task", "summary"].map(|key| left[key].clone());
    assert_eq!(words, [json!("ann"), json!("the first half"), json!("the shift is over")], "{left}");
    assert!(left["released_at"].is_u64() && left["lifetime_seconds"].is_u64(), "{left}");
    let body = json!({"name": "bob", "cli": broker.house.agent(), "task": "the second half", "continueFrom": "ann"});
    assert_eq!(broker.spawn_with(&body).status, 200);
    for text in ["Previous task: the first half", "Session summary: the shift is over", "the second half"] {
        broker.until_read("bob", text);
    }
    // What was put around a task for one spawn is no part of it: a chain does not grow, and nobody is told to end.
    let body = json!({"name": "cy", "cli": broker.house.agent(), "task": "the rest", "exitAfterTask": true,
                      "continueFrom": "ann"});
    assert_eq!(broker.spawn_with(&body).status, 200);
    broker.until_read("cy", "the rest");
    broker.ok("DELETE", "/api/spawned/cy", None);
    let left: Value =
        serde_json::from_slice(&std::fs::read(file.with_file_name("cy.json")).expect("a file")).expect("JSON");
    assert_eq!(left["initial_task"], "the rest");
    let body = json!({"name": "di", "cli": broker.house.agent(), "continueFrom": "cy"});
    assert_eq!(broker.spawn_with(&body).status, 200);
    broker.until_read("di", "Previous task: the rest");
    assert!(!broker.house.read_by("di").contains("When the task is done"), "{}", broker.house.read_by("di"));
    broker.ok("DELETE", "/api/spawned/di", None);
    let left: Value =
        serde_json::from_slice(&std::fs::read(file.with_file_name("di.json")).expect("a file")).expect("JSON");
    assert_eq!(left["initial_task"], Value::Null, "it had none of its own");
}

#[test]
fn a_session_is_saved_by_its_agent_and_loaded_by_the_next() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).arg("--persist").online();
    // Prints what it is typed, without what the terminal itself would echo.
    broker.spawn_program("ann", "sh -c 'stty raw -echo; printf up; exec cat'");
    broker.until("its start", || broker.told("worker_stream", "ann").iter().any(|e| e["chunk"] == "up").then_some(()));
    let typed = |text: &str| {
        assert_eq!(broker.call("POST", "/api/input/ann", Some(&json!({ "data": text }))).status, 200);
    };
    typed("\r\nKIND: continuity\r\nACTION: save\r\nhalf");
    typed(" done\r\nContext 9% left\r\n");
    let low = broker.until_told("agent_context_low", "ann");
    assert_eq!(low["pct"], 9);
    let rows = broker.ok("GET", "/api/spawned", None);
    assert_eq!(rows["agents"][0]["context_budget_pct"], 9, "{rows}");
    let file = broker.connection_file().parent().expect("a directory").join("continuity/ann.json");
    broker.until("the saved session", || std::fs::read_to_string(&file).ok()?.contains("half done").then_some(()));
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!((&saved["released_at"], &saved["agent_name"]), (&Value::Null, &json!("ann")), "{saved}");
    typed("KIND: continuity\r\nACTION: load\r\n");
    let queued = broker.until_told("delivery_queued", "ann");
    assert!(queued["event_id"].as_str().is_some_and(|id| id.starts_with("cont_load_")), "{queued}");
    broker.until("the block in its terminal", || {
        let shown =
            |event: &Value| event["chunk"].as_str().is_some_and(|chunk| chunk.contains("## Continuity Context"));
        broker.told("worker_stream", "ann").iter().any(shown).then_some(())
    });
}
