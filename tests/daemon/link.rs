//! The link to the engine when it does not do what it should.

use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::road::is_gone;
use crate::scripted::Scripted;

pub fn scripted_pair() -> (Scripted, Broker) {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    (engine, broker)
}

pub fn ack_of(log: &crate::scripted::Log, agent: &str) -> Option<u64> {
    log.frames_of("delivery.ack")
        .iter()
        .filter(|frame| frame["agent"] == agent)
        .filter_map(|f| f["up_to_seq"].as_u64())
        .max()
}

#[test]
fn f30_the_first_frames_claim_nothing_that_others_could_run() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    let register = engine.frame("node.register", 0);
    assert_eq!(register["capabilities"], json!([]));
    assert_eq!(engine.log().frames[0]["type"], "node.register");
    assert_eq!(register["resume_cursor"], Value::Null);
    assert!(register["version"].as_str().unwrap().starts_with("relay-broker/"));
    engine.frame("node.heartbeat", 0);
    let listed = |log: &crate::scripted::Log| {
        let last = log.frames_of("inventory.sync").pop()?;
        (last["agents"][0]["agent_id"] == "id_ann").then_some(())
    };
    engine.until("ann in the inventory", listed);
    // No optional is ever null: the engine's schema refuses the frame.
    for frame in &engine.log().frames {
        let nulls = frame.as_object().unwrap().iter().filter(|(key, value)| value.is_null() && *key != "resume_cursor");
        assert_eq!(nulls.count(), 0, "{frame}");
    }
}

#[test]
fn f14_a_handshake_that_succeeds_forgives_the_refusals_before() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([
        {"route": "/v1/node/ws", "count": 2, "kind": "status", "status": 401},
        {"route": "/v1/node/ws", "nth": 1, "count": 1, "kind": "status", "status": 503},
        {"route": "/v1/nodes", "method": "POST", "nth": 1000, "kind": "cut"},
    ]));
    let broker = Start::on(&house, &engine).online();
    assert_eq!(engine.matched(2), 3, "the start's token and one per refusal");
    broker.spawn("ann");
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "after the refusals");
    broker.until_read("ann", "after the refusals");
}

#[test]
fn f17_a_refused_registration_is_not_online() {
    let house = House::new();
    let engine = Scripted::start();
    engine.log().answer_register = Some(("node_id_mismatch".into(), "another id".into()));
    let broker = Start::at(&house, &engine.url(), "").ready();
    broker.until("the cause", || {
        let node = broker.status()["node"].take();
        let told = node["last_error"].as_str().is_some_and(|error| error.contains("node_id_mismatch"));
        assert_ne!(node["state"], "online", "{node}");
        told.then_some(())
    });
    assert_eq!(broker.ok("GET", "/health", None)["nodeConnected"], false);
    engine.log().answer_register = None;
    broker.until_online();
}

#[test]
fn f15_a_dropped_connection_is_made_again_and_nothing_is_lost_or_doubled() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    engine.send(&engine.message("ann", 1, "before the cut"));
    engine.until("its ack", |log| (ack_of(log, "ann") == Some(1)).then_some(()));
    engine.cut();
    engine.until("another registration", |log| (log.frames_of("node.register").len() == 2).then_some(()));
    broker.until_online();
    // The engine repeats what it believes open; the second one is new.
    engine.send(&engine.message("ann", 1, "before the cut"));
    engine.send(&engine.message("ann", 2, "behind the cut"));
    engine.until("the second ack", |log| (ack_of(log, "ann") == Some(2)).then_some(()));
    broker.until_read("ann", "behind the cut");
    assert_eq!(broker.times_read("ann", "before the cut"), 1);
    assert_eq!(broker.times_read("ann", "behind the cut"), 1);
    assert_eq!(engine.log().frames_of("agent.register").len(), 1, "a second one would kill the program's token");
    let acks: Vec<u64> =
        engine.log().frames_of("delivery.ack").iter().filter_map(|f| f["up_to_seq"].as_u64()).collect();
    assert!(acks.is_sorted(), "{acks:?}");
}

#[test]
fn f7_a_gap_is_waited_for_and_then_passed_over() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    broker.spawn("bert");
    engine.send(&engine.message("ann", 1, "number one"));
    engine.send(&engine.message("ann", 3, "number three"));
    for seq in [1, 3, 2] {
        engine.send(&engine.message("bert", seq, &format!("to bert {seq}")));
    }
    engine.until("an ack for bert", |log| (ack_of(log, "bert") == Some(3)).then_some(()));
    broker.until_read("bert", "to bert 3");
    let read = broker.house.read_by("bert");
    let places: Vec<_> = (1..=3).map(|seq| read.find(&format!("to bert {seq}"))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{read}");
    // Two seconds to ask again, five to give up.
    engine.until("an ack for ann", |log| (ack_of(log, "ann") == Some(3)).then_some(()));
    broker.until_read("ann", "number three");
    broker.until_told("delivery_gap", "ann");
    assert!(engine.log().frames_of("node.register").len() >= 2, "the engine was asked to repeat");
}

#[test]
fn f4_f6_strange_numbers_and_names_are_acknowledged() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    // The first of this life is number 43.
    engine.send(&engine.message("ann", 43, "the forty-third"));
    broker.until_read("ann", "the forty-third");
    engine.until("ack 43", |log| (ack_of(log, "ann") == Some(43)).then_some(()));
    engine.send(&engine.message("ghost", 1, "boo"));
    engine.until("an ack for the ghost", |log| (ack_of(log, "ghost") == Some(1)).then_some(()));
    let dead = broker.ok("GET", "/api/dead-letters", None);
    assert_eq!((&dead["count"], &dead["dead_letters"][0]["worker_name"]), (&json!(1), &json!("ghost")), "{dead}");
    assert!(dead["dead_letters"][0]["body"].as_str().unwrap().contains("boo"), "{dead}");
}

#[test]
fn f8_a_program_that_the_kernel_refuses_is_deregistered() {
    let (engine, broker) = scripted_pair();
    // The program is there, but no kernel takes an argument of this length: fails after the registration.
    let long = "x".repeat(200_000);
    let answer = broker.spawn_with(&json!({"name": "ann", "cli": "cat", "args": [long]}));
    assert_eq!(answer.status, 500, "{}", answer.text);
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("cat")), "{}", answer.text);
    engine.frame("agent.register", 0);
    assert_eq!(engine.frame("agent.deregister", 0)["agent_id"], "id_ann");
    assert!(broker.listed().is_empty());
    assert!(broker.told("agent_spawned", "ann").is_empty());
    // An invoke alike, with exactly one result.
    let input = json!({"name": "bert", "args": [long]});
    engine.send(
        &json!({"v": 1, "type": "action.invoke", "invocation_id": "i1", "action": "spawn:cat", "input": input})
            .to_string(),
    );
    let result = engine.frame("action.result", 0);
    assert_eq!(result["invocation_id"], "i1");
    assert!(result["error"].as_str().is_some_and(|error| error.starts_with("spawn_failed")), "{result}");
    assert_eq!(engine.frame("agent.deregister", 1)["agent_id"], "id_bert");
    let listed = engine.log().frames_of("inventory.sync").iter().any(|frame| frame["agents"] != json!([]));
    assert!(!listed, "an agent that never ran was in an inventory");
}

#[test]
fn f1_f32_invocations_are_answered_once_and_the_same_when_asked_again() {
    let (engine, broker) = scripted_pair();
    let invoke = |id: &str, action: &str, input: Value| {
        json!({"v": 1, "type": "action.invoke", "invocation_id": id, "action": action, "input": input}).to_string()
    };
    // The cli is the action's suffix.
    engine.send(&invoke("i1", "spawn:cat", json!({"name": "al"})));
    let first = engine.frame("action.result", 0);
    assert_eq!(first["output"], json!({"spawned": true, "name": "al"}));
    let pid = broker.ok("GET", "/api/spawned", None)["agents"][0]["pid"].as_u64().unwrap() as u32;
    engine.send(&invoke("i1", "spawn:cat", json!({"name": "al"})));
    assert_eq!(engine.frame("action.result", 1), first);
    engine.send(&invoke("i2", "spawn:cat", json!({"name": "al"})));
    let again = engine.frame("action.result", 2);
    assert_eq!(again["error"], "spawn_failed: agent 'al' already exists");
    engine.send(&invoke("i3", "release", json!({"name": "al"})));
    assert_eq!(engine.frame("action.result", 3)["output"], json!({"released": true, "name": "al"}));
    assert!(is_gone(pid).is_some());
    engine.send(&invoke("i4", "release", json!({"name": "al"})));
    assert_eq!(engine.frame("action.result", 4)["output"]["released"], true, "known and gone");
    engine.send(&invoke("i5", "release", json!({"name": "nobody"})));
    assert_eq!(engine.frame("action.result", 5)["error"], "release_failed: unknown agent 'nobody'");
    engine.send(&invoke("i6", "spawn", json!({"cli": "cat"})));
    assert_eq!(engine.frame("action.result", 6)["error"], "spawn_missing_agent_name");
    engine.send(&invoke("i7", "dance", json!({})));
    assert_eq!(engine.frame("action.result", 7)["error"], "handler_unavailable");
    // The name is free at once.
    engine.send(&invoke("i8", "spawn:cat", json!({"name": "al"})));
    assert_eq!(engine.frame("action.result", 8)["output"]["spawned"], true);
}

#[test]
fn a_start_whose_answers_are_lost_after_their_effect_goes_on() {
    for route in ["/v1/agents", "/v1/nodes"] {
        for persist in [true, false] {
            let house = House::new();
            let engine = Engine::start(&house);
            engine.faults(json!([{"route": route, "method": "POST", "kind": "lose_answer"}]));
            let start = Start::on(&house, &engine);
            let broker = if persist { start.arg("--persist").online() } else { start.online() };
            broker.spawn("ann");
            assert!(engine.matched(0) >= 2, "{route}: asked again");
            if persist && route == "/v1/agents" {
                let own = &broker.status()["auth"]["workspaces"][0]["self_name"];
                assert_eq!(own, "work", "the agent of the lost answer is taken over");
            }
        }
    }
}

#[test]
fn a_workspace_is_not_made_twice_when_the_answer_is_lost() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([{"route": "/v1/workspaces", "method": "POST", "kind": "lose_answer"}]));
    let (code, said) = Start::at(&house, &engine.url(), "").fails();
    assert_eq!(code, 1);
    assert!(said.contains("failed to create a workspace") && said.contains("POST /v1/workspaces"), "{said}");
    assert_eq!(engine.matched(0), 1, "the first may have made one");
    // The next start finds the name taken, and makes its own.
    Start::at(&house, &engine.url(), "").online();
}
