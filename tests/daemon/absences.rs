//! What does not come: answers, handshakes, bytes. Each is waited for as long as the protocol says, so these take longest
//! and run first.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::broker::Start;
use crate::engine::Engine;
use crate::house::House;
use crate::link::scripted_pair;
use crate::scripted::{Scripted, Upgrade};

#[test]
fn f12_an_unanswered_registration_stalls_nobody_and_f33_leaves_nothing() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    engine.log().registers = false;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| broker.spawn_with(&json!({"name": "bert", "cli": broker.house.agent()})));
        let asked = engine.frame("agent.register", 1);
        engine.send(&engine.message("ann", 1, "meanwhile"));
        broker.until_read("ann", "meanwhile");
        assert_eq!(broker.listed(), ["ann"]);
        // A stalled loop would show in every call; one may be slow on a busy machine.
        let mut took: Vec<Duration> = (0..21)
            .map(|_| {
                let asked = Instant::now();
                broker.status();
                asked.elapsed()
            })
            .collect();
        took.sort();
        assert!(took[10] < Duration::from_millis(100), "/api/status took {took:?}");
        assert!(!waiting.is_finished(), "the spawn was answered before its registration");
        // Ten seconds.
        let answer = waiting.join().unwrap();
        assert_eq!(answer.status, 500, "{}", answer.text);
        assert!(answer.text.contains("agent_register_timeout"), "{}", answer.text);
        // The answer comes after all: told off, and nothing runs.
        let late = json!({"v": 1, "type": "reply", "id": asked["id"], "ok": true,
            "data": {"agent_id": "id_late", "token": "at_live_late", "name": "bert"}});
        engine.send(&late.to_string());
        engine.until("one deregistration", |log| {
            log.frames_of("agent.deregister").iter().any(|frame| frame["agent_id"] == "id_late").then_some(())
        });
        engine.send(&engine.message("ann", 2, "afterwards"));
        broker.until_read("ann", "afterwards");
        assert_eq!(engine.log().frames_of("agent.deregister").len(), 1);
    });
    assert_eq!(broker.listed(), ["ann"]);
    assert_eq!(broker.house.read_by("bert"), "");
}

#[test]
fn f13_f14_an_engine_that_refuses_every_token_is_asked_for_five_and_then_told_of() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([
        {"route": "/v1/node/ws", "count": 0, "kind": "status", "status": 401},
        {"route": "/v1/nodes", "method": "POST", "nth": 1000, "kind": "cut"},
    ]));
    let broker = Start::on(&house, &engine).ready();
    let at = |state: &str| (broker.status()["node"]["state"] == state).then_some(());
    // Pauses of 1, 2, 4, 8 and 16 s, each up to a fifth longer.
    broker.within(Duration::from_secs(60), "auth_rejected", || at("auth_rejected"));
    let error = broker.status()["node"]["last_error"].as_str().unwrap().to_string();
    assert!(error.contains("401"), "{error}");
    assert_eq!(broker.ok("GET", "/health", None)["relaycastConnected"], false);
    assert_eq!(engine.matched(0), 6, "one connect with the token of the start, one with each of five more");
    let mints = engine.matched(1);
    assert!(mints <= 7, "{mints} tokens minted: the start's, five, and the one kept for the try in 300 s");
    assert!(broker.process.err().contains("refuses every node token"), "{}", broker.seen());
    // It goes on serving its clients.
    assert!(broker.listed().is_empty());
}

#[test]
fn f31_a_connection_that_says_nothing_any_more_is_given_up() {
    // The twin: an engine that has nothing to say and answers pings.
    let (quiet, content) = scripted_pair();
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    engine.log().upgrade = Upgrade::Mute;
    engine.cut();
    engine.until("the second socket", |log| (log.upgrades == 2).then_some(()));
    engine.log().upgrade = Upgrade::Serve;
    // 48 s without a byte, then about two of pause.
    engine.within(Duration::from_secs(60), "a third socket", |log| (log.upgrades == 3).then_some(()));
    broker.until_online();
    engine.send(&engine.message("ann", 1, "after the silence"));
    broker.until_read("ann", "after the silence");
    assert_eq!(quiet.log().upgrades, 1, "a quiet connection was given up\n{}", content.seen());
    content.until_online();
}

#[test]
fn f31_a_silent_listener_is_given_up_and_tried_again() {
    let house = House::new();
    let engine = Scripted::start();
    engine.log().upgrade = Upgrade::Silent;
    let broker = Start::at(&house, &engine.url(), "").ready();
    engine.until("the first try", |log| (log.upgrades == 1).then_some(()));
    engine.log().upgrade = Upgrade::Serve;
    // 15 s for the handshake, about a second of pause.
    engine.within(Duration::from_secs(20), "a second try", |log| (log.upgrades >= 2).then_some(()));
    broker.until_online();
}
