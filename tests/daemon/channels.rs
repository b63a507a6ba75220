//! Channels of an agent: what a subscription changes at the engine, and what a successor is told.

use serde_json::{Value, json};

use crate::broker::Start;
use crate::engine::Engine;
use crate::house::House;

#[test]
fn a_subscription_joins_at_the_engine_and_its_end_leaves() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    broker.spawn("ann");
    let bob = engine.stranger("bob");
    engine.data("POST", "/v1/channels", &bob, Some(&json!({"name": "ops"})));
    engine.call("POST", "/v1/channels/ops/join", &bob, None);
    let post = |text: &str| {
        engine.data("POST", "/v1/channels/ops/messages", &bob, Some(&json!({"text": text})));
    };
    let members = || engine.data("GET", "/v1/channels/ops/members", &engine.key, None).to_string();
    let change = |what: &str| {
        let body = json!({"channels": ["#Ops"]});
        broker.ok("POST", &format!("/api/spawned/ann/{what}"), Some(&body))
    };
    post("said before she came");
    let joined = change("subscribe");
    assert!(joined["channels"].as_array().is_some_and(|all| all.contains(&json!("#Ops"))), "{joined}");
    broker.until(&format!("ann among {}", members()), || members().contains("\"ann\"").then_some(()));
    post("said while she is here");
    broker.until_read("ann", "said while she is here");
    let left = change("unsubscribe");
    assert!(left["channels"].as_array().is_some_and(|all| !all.contains(&json!("#Ops"))), "{left}");
    broker.until("ann gone from the members", || (!members().contains("\"ann\"")).then_some(()));
    post("said after she went");
    engine.dm(&bob, "ann", "the last word");
    broker.until_read("ann", "the last word");
    for text in ["said before she came", "said after she went"] {
        assert_eq!(broker.times_read("ann", text), 0, "{}", house.read_by("ann"));
    }
    assert_eq!(broker.times_read("ann", "said while she is here"), 1);
    let told = |kind: &str| -> Vec<Value> { broker.told(kind, "ann") };
    assert_eq!((told("channel_subscribed").len(), told("channel_unsubscribed").len()), (1, 1), "{}", broker.seen());
}

#[test]
fn a_successor_reads_what_the_session_before_has_left() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).arg("--persist").online();
    let kept = broker.cwd.join(".agentworkforce/relay/continuity");
    std::fs::create_dir_all(&kept).expect("a directory");
    std::fs::write(kept.join("old.json"), r#"{"agent_name":"old","summary":"half of it is done"}"#).expect("a file");
    for (name, continues) in [("ann", "old"), ("bea", "nobody")] {
        let body = json!({"name": name, "cli": house.agent(), "task": "do the rest", "continueFrom": continues});
        assert_eq!(broker.spawn_with(&body).status, 200, "{}", broker.seen());
        broker.until_read(name, "do the rest");
    }
    assert_eq!(broker.times_read("ann", "Session summary: half of it is done"), 1, "{}", house.read_by("ann"));
    assert_eq!(broker.times_read("bea", "Continuity Context"), 0, "{}", house.read_by("bea"));
    let refused = broker.spawn_with(&json!({"name": "cy", "cli": house.agent(), "continueFrom": "../old"}));
    assert_eq!((refused.status, broker.listed().len()), (400, 2), "{}", refused.text);
}
