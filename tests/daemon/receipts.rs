//! What became of a message: asked for by its id, and waiting for a human who has not sent their line yet.

use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;

fn pair() -> (Engine, Broker) {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    (engine, broker)
}

/// Sends over the API; the id of the delivery.
fn send(broker: &Broker, text: &str) -> String {
    let before = broker.told("delivery_queued", "ann").len();
    let answer = broker.call("POST", "/api/send", Some(&json!({"to": "ann", "text": text})));
    assert_eq!(answer.status, 200, "{}", answer.json());
    let queued = broker.until("queued", || broker.told("delivery_queued", "ann").get(before).cloned());
    queued["delivery_id"].as_str().expect("an id").to_string()
}

fn receipt(broker: &Broker, id: &str) -> Value {
    broker.ok("GET", &format!("/api/deliveries/{id}"), None)
}

#[track_caller]
fn until_state(broker: &Broker, id: &str, state: &str) -> Value {
    broker
        .until(&format!("the state {state}"), || Some(receipt(broker, id)).filter(|receipt| receipt["state"] == state))
}

#[test]
fn a_receipt_tells_the_whole_chain_of_a_message() {
    // Each prints "up" when it reads; the last only takes.
    let slow = "printf up; IFS= read -r x; while IFS= read -r x; do case $x in *Relay\\ message*) printf 'my answer\\n';; esac; done";
    for (program, verification, state) in [
        ("stty raw -echo; printf up; exec cat".to_string(), "echo", "echoed"),
        (format!("stty -echo; {slow}"), "timeout_fallback", "turn_started"),
        ("stty -echo; printf up; exec cat >/dev/null".to_string(), "timeout_fallback", "window"),
    ] {
        let (_engine, broker) = pair();
        broker.spawn_program("ann", &format!("sh -c \"{program}\""));
        broker.until("its start", || {
            broker.told("worker_stream", "ann").iter().any(|e| e["chunk"] == "up").then_some(())
        });
        let id = send(&broker, "please");
        broker.until_told("delivery_verified", "ann");
        let receipt = until_state(&broker, &id, state);
        assert_eq!(receipt["verification"], verification, "{program}: {receipt}");
        let time = |key: &str| receipt[key].as_u64().unwrap_or_else(|| panic!("no {key}: {receipt}"));
        assert!(time("queued_at") <= time("typed_at") && time("typed_at") <= time("read_at"), "{receipt}");
        assert!(time("typed_at") <= time("verified_at"), "{receipt}");
        assert_eq!(receipt["turn_started_at"].is_u64(), state == "turn_started", "{receipt}");
        let turns = broker.told("delivery_turn_started", "ann").len();
        assert_eq!(turns, usize::from(state == "turn_started"), "{program}");
    }
}

#[test]
fn the_receipt_of_a_message_of_the_engine_and_of_an_unknown_one() {
    let (engine, broker) = pair();
    broker.spawn("ann");
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "from afar");
    let read = broker.until_told("delivery_read", "ann");
    let receipt = receipt(&broker, read["delivery_id"].as_str().expect("an id"));
    assert_eq!((&receipt["from"], &receipt["event_id"]), (&json!("bob"), &read["event_id"]), "{receipt}");
    let answer = broker.call("GET", "/api/deliveries/nothing", None);
    assert_eq!(answer.status, 404);
    assert!(answer.json()["message"].as_str().is_some_and(|text| text.contains("'nothing'")), "{}", answer.json());
}

#[test]
fn d11_a_steer_does_not_wait_for_a_message_that_waits_at_the_terminal() {
    let (_engine, broker) = pair();
    // A suggestion of the CLI in its composer holds a message for ten seconds.
    let suggestion = r"stty raw -echo; printf '\033[7mT\033[27m\033[2mry it\033[0m'; exec cat -v";
    broker.spawn_program("ann", &format!("sh -c \"{suggestion}\""));
    let shown = |event: &Value| event["chunk"].as_str().is_some_and(|chunk| chunk.contains("ry it"));
    broker.until("its start", || broker.told("worker_stream", "ann").iter().any(shown).then_some(()));
    send(&broker, "it can wait");
    broker.until("at the terminal", || (broker.told("delivery_queued", "ann").len() == 1).then_some(()));
    let begun = std::time::Instant::now();
    let steer = json!({"to": "ann", "text": "stop that", "mode": "steer"});
    broker.ok("POST", "/api/send", Some(&steer));
    let read = broker.until_told("delivery_read", "ann");
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    let steered = broker.until("both", || {
        let told = broker.told("delivery_read", "ann");
        (told.len() == 2).then_some(told)
    });
    let queued = broker.told("delivery_queued", "ann");
    assert_eq!(steered[0], read);
    assert_eq!(read["delivery_id"], queued[1]["delivery_id"], "the steer first: {queued:?}");
}

#[test]
fn t11_a_message_waits_until_a_human_has_sent_their_line() {
    let (_engine, broker) = pair();
    broker.spawn("ann");
    let typed = |text: &str| {
        let body = json!({ "data": text });
        assert_eq!(broker.call("POST", "/api/input/ann", Some(&body)).status, 200);
    };
    typed("half a li");
    let id = send(&broker, "the message");
    let waiting = broker.until_told("delivery_waiting", "ann");
    assert_eq!((&waiting["delivery_id"], &waiting["reason"]), (&json!(id), &json!("human_draft")), "{waiting}");
    until_state(&broker, &id, "waiting");
    typed("ne\n");
    broker.until_read("ann", "the message");
    let read = broker.house.read_by("ann");
    assert!(read.contains("half a line\n"), "{read}");
    // Twin: with an empty line nothing waits. And switched off it does not either.
    send(&broker, "the second");
    broker.until_read("ann", "the second");
    assert_eq!(broker.told("delivery_waiting", "ann").len(), 1);
    let body = json!({"name": "bo", "cli": "cat", "draft_safety": false});
    assert_eq!(broker.spawn_with(&body).status, 200);
    assert_eq!(broker.call("POST", "/api/input/bo", Some(&json!({"data": "half"}))).status, 200);
    assert_eq!(broker.call("POST", "/api/send", Some(&json!({"to": "bo", "text": "glued"}))).status, 200);
    broker.until_told("delivery_read", "bo");
    assert!(broker.told("delivery_waiting", "bo").is_empty());
}
