//! Frames of every kind, in the order and under the names that make brokers stumble: what is typed, and what is
//! acknowledged.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::link::{ack_of, scripted_pair};
use crate::road::signal;
use crate::scripted::{Log, Scripted};

/// A frame for ann with a payload of its own.
fn frame(seq: u64, msg_id: &str, delivery_id: &str, payload: &Value) -> String {
    json!({"v": 1, "type": "deliver", "agent": "ann", "agent_id": "id_ann", "delivery_id": delivery_id,
        "msg_id": msg_id, "seq": seq, "mode": "wait", "payload": payload})
    .to_string()
}

fn created(text: &str) -> Value {
    json!({"type": "message.created", "data": {"agent_name": "bob", "channel_name": "general", "text": text}})
}

#[track_caller]
fn until_acked(engine: &Scripted, agent: &str, seq: u64) {
    engine.until(&format!("ack {seq} for {agent}"), |log| (ack_of(log, agent) == Some(seq)).then_some(()));
}

/// The lines of ann that are messages, once the last of them is `last`: what was read is written down a moment later.
#[track_caller]
fn messages(broker: &Broker, last: &str) -> Vec<String> {
    broker.until_read("ann", last);
    broker.house.read_by("ann").lines().filter(|line| line.starts_with("Relay message from ")).map(Into::into).collect()
}

#[test]
fn f3_an_object_is_typed_without_its_envelope() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    let failed = json!({"type": "action.failed", "data": {"invocation_id": "i1", "action_name": "x", "status": "failed",
        "output": null, "error": {"code": "no_room", "n": 1}}});
    engine.send(&frame(0, "i1", "evt_action.failed_i1_id_ann", &failed));
    let [line] = &messages(&broker, "no_room")[..] else { panic!("{}", broker.house.read_by("ann")) };
    assert!(line.ends_with(r#"]: {"code":"no_room","n":1}"#), "{line}");
}

#[test]
fn f5_a_reaction_to_a_message_does_not_hide_the_message() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    let reacted = json!({"type": "message.reacted", "data": {"message_id": "m4", "emoji": "+1", "agent_name": "bob"}});
    engine.send(&frame(0, "m4", "evt_message.reacted_m4_id_ann", &reacted));
    engine.send(&frame(4, "m4", "del_m4_id_ann", &created("the fourth")));
    engine.send(&frame(5, "m5", "del_m5_id_ann", &created("the fifth")));
    broker.until_read("ann", "the fifth");
    until_acked(&engine, "ann", 5);
    // The same message again under a new number is known: acknowledged, not typed.
    engine.send(&frame(6, "m4", "del_m4_id_ann", &created("the fourth")));
    engine.send(&frame(7, "m7", "del_m7_id_ann", &created("the seventh")));
    until_acked(&engine, "ann", 7);
    let lines = messages(&broker, "the seventh");
    let texts: Vec<&str> = lines.iter().map(|line| line.rsplit("]: ").next().unwrap()).collect();
    assert_eq!(texts, ["the fourth", "the fifth", "the seventh"]);
}

#[test]
fn f6_the_next_life_of_a_name_hears_whatever_number_comes_first() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    // What has no number says nothing of numbers.
    let done = json!({"type": "action.completed", "data": {"invocation_id": "i1", "output": "an unnumbered one"}});
    engine.send(&frame(0, "i1", "evt_action.completed_i1_id_ann", &done));
    engine.send(&frame(43, "m43", "del_m43_id_ann", &created("the forty-third")));
    broker.until_read("ann", "the forty-third");
    until_acked(&engine, "ann", 43);
    broker.until_read("ann", "an unnumbered one");
    broker.ok("DELETE", "/api/spawned/ann", None);
    broker.spawn("ann");
    engine.send(&frame(47, "m47", "del_m47_id_ann", &created("the forty-seventh")));
    broker.until_read("ann", "the forty-seventh");
    until_acked(&engine, "ann", 47);
    // In the same life the number counts on: a gap is no beginning.
    engine.send(&frame(49, "m49", "del_m49_id_ann", &created("the forty-ninth")));
    engine.send(&frame(48, "m48", "del_m48_id_ann", &created("the forty-eighth")));
    until_acked(&engine, "ann", 49);
    broker.until_read("ann", "the forty-ninth");
    let read = broker.house.read_by("ann");
    assert!(read.find("the forty-eighth") < read.find("the forty-ninth"), "{read}");
}

#[test]
fn f27_every_kind_of_message_is_typed_and_every_notice_is_not() {
    let prefixes = [
        ("message.", &["created", "received", "new", "sent", "delivered"][..]),
        ("thread.", &["reply", "message.created", "message.sent"]),
        ("dm.", &["received", "created", "new", "sent", "message.created"]),
        ("direct_message.", &["received", "created", "new", "sent"]),
        ("group_dm.", &["received", "created", "new", "sent", "message.created"]),
        ("action.", &["completed", "failed", "denied"]),
        ("", &[""]),
    ];
    let typed: Vec<String> =
        prefixes.iter().flat_map(|(prefix, kinds)| kinds.iter().map(move |kind| format!("{prefix}{kind}"))).collect();
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    let mut seq = 0;
    for kind in
        typed.iter().map(String::as_str).chain(["message.reacted", "message.read", "agent.novel", "Dm.received"])
    {
        seq += 1;
        let payload = json!({"type": kind, "data": {"agent_name": "bob", "text": format!("<{kind}> said")}});
        engine.send(&frame(seq, &format!("m{seq}"), &format!("del_m{seq}"), &payload));
    }
    until_acked(&engine, "ann", seq);
    let lines = messages(&broker, "<> said");
    let texts: Vec<&str> = lines.iter().map(|line| line.rsplit("]: ").next().unwrap()).collect();
    let expected: Vec<String> = typed.iter().map(|kind| format!("<{kind}> said")).collect();
    assert_eq!(texts, expected);
}

#[test]
fn what_was_written_to_a_sleeper_is_acknowledged_in_order_when_it_has_read() {
    let (engine, broker) = scripted_pair();
    let pid = broker.spawn("ann");
    broker.token_of("ann");
    signal(pid, Signal::STOP);
    for seq in 1..=3 {
        engine.send(&engine.message("ann", seq, &format!("number {seq}")));
    }
    broker.until("an injection", || (!broker.told("delivery_injected", "ann").is_empty()).then_some(()));
    // Five seconds unread are told; all that time there is no ack.
    broker.until_told("delivery_stalled", "ann");
    assert_eq!(ack_of(&engine.log(), "ann").unwrap_or(0), 0, "acknowledged before it was read");
    signal(pid, Signal::CONT);
    until_acked(&engine, "ann", 3);
    let lines = messages(&broker, "number 3");
    let texts: Vec<&str> = lines.iter().map(|line| line.rsplit("]: ").next().unwrap()).collect();
    assert_eq!(texts, ["number 1", "number 2", "number 3"]);
}

#[test]
fn an_identity_that_contradicts_is_neither_typed_nor_acknowledged() {
    let (engine, broker) = scripted_pair();
    broker.spawn("ann");
    let mut foreign: Value = serde_json::from_str(&engine.message("ann", 1, "for another ann")).unwrap();
    foreign["agent_id"] = json!("id_of_another");
    engine.send(&foreign.to_string());
    let mut renamed: Value = serde_json::from_str(&engine.message("ann", 1, "under another name")).unwrap();
    renamed["agent"] = json!("bert");
    engine.send(&renamed.to_string());
    broker.spawn("carl");
    engine.send(&engine.message("carl", 1, "for carl"));
    until_acked(&engine, "carl", 1);
    assert_eq!(engine.log().frames_of("delivery.ack").len(), 1, "{:?}", engine.log().frames_of("delivery.ack"));
    // The right one is the first of its number.
    engine.send(&engine.message("ann", 1, "for this ann"));
    until_acked(&engine, "ann", 1);
    broker.until_read("ann", "for this ann");
    let read = broker.house.read_by("ann");
    assert!(!read.contains("another"), "{read}");
    assert_eq!(ack_of(&engine.log(), "bert"), None);
}

#[test]
fn f2_a_program_is_enrolled_once_and_its_token_is_used_for_it() {
    let (engine, broker) = scripted_pair();
    let enrolled = |log: &Log, name: &str| {
        log.requests.iter().filter(|(request, body)| request == "POST /v1/agents" && body["name"] == name).count()
    };
    let body = json!({"name": "ann", "cli": broker.house.agent(), "channels": ["quarry"]});
    assert_eq!(broker.spawn_with(&body).status, 200);
    engine.until("ann in her channel", |log| (log.requests_to("POST /v1/channels/quarry/join") == 1).then_some(()));
    engine.send(&engine.message("ann", 1, "for ann"));
    until_acked(&engine, "ann", 1);
    let post = json!({"to": "#elsewhere", "message": "from ann", "from": "ann"});
    broker.call("POST", "/api/send", Some(&post));
    assert_eq!(broker.token_of("ann"), "at_live_ann");
    assert_eq!(enrolled(&engine.log(), "ann"), 0, "{:?}", engine.log().requests);
    // Only a refusal makes it go the other way.
    engine.log().answer_agent = Some(("node_capacity_exceeded".into(), "no room".into()));
    broker.spawn("bert");
    assert_eq!(enrolled(&engine.log(), "bert"), 1, "{:?}", engine.log().requests);
}

#[test]
fn f9_agents_of_three_paths_are_in_the_inventory_also_after_a_reconnect() {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    broker.spawn("ann");
    let input = json!({"name": "bert", "cli": house.agent()});
    let invoke = json!({"v": 1, "type": "action.invoke", "invocation_id": "i1", "action": "spawn", "input": input});
    engine.send(&invoke.to_string());
    assert_eq!(engine.frame("action.result", 0)["output"]["spawned"], true);
    // Refused on the socket, so it is made and bound by HTTP.
    engine.log().answer_agent = Some(("agent_location_conflict".into(), "elsewhere".into()));
    let bind = format!("POST /v1/nodes/{}/agents", broker.node_name());
    engine.rule(&bind, crate::scripted::Deed::Answer(201, json!({"ok": true, "data": {}})));
    broker.spawn("carl");
    let listed = |log: &Log| -> Option<BTreeMap<String, Value>> {
        let last = log.frames_of("inventory.sync").pop()?;
        Some(last["agents"].as_array()?.iter().map(|row| (row["name"].as_str().unwrap().into(), row.clone())).collect())
    };
    let names = |log: &Log| listed(log).filter(|rows| rows.keys().eq(["ann", "bert", "carl"]));
    let before = engine.until("all three in the inventory", names);
    assert_eq!(before["bert"]["invocation_id"], "i1");
    assert_eq!((&before["ann"]["agent_id"], &before["ann"]["invocation_id"]), (&json!("id_ann"), &Value::Null));
    let syncs = engine.log().frames_of("inventory.sync").len();
    engine.cut();
    let after = engine.until("the inventory of the next connection", |log| {
        (log.frames_of("inventory.sync").len() > syncs && log.frames_of("node.register").len() == 2)
            .then(|| names(log))
            .flatten()
    });
    assert_eq!(after, before);
    // One that is gone is not listed any more.
    broker.ok("DELETE", "/api/spawned/bert", None);
    engine.until("two in the inventory", |log| listed(log).filter(|rows| rows.keys().eq(["ann", "carl"])));
}

#[test]
fn f10_f29_a_release_of_what_has_ended_succeeds_and_of_what_never_was_does_not() {
    let (engine, broker) = scripted_pair();
    let pid = broker.spawn("ann");
    signal(pid, Signal::KILL);
    broker.until_told("agent_exited", "ann");
    let release = |id: &str, name: &str| {
        let input = json!({"name": name});
        json!({"v": 1, "type": "action.invoke", "invocation_id": id, "action": "release", "input": input}).to_string()
    };
    for number in 0..2 {
        engine.send(&release(&format!("r{number}"), "ann"));
        let result = engine.frame("action.result", number);
        assert_eq!(result["output"], json!({"released": true, "name": "ann"}), "{result}");
    }
    engine.send(&release("r2", "ghost"));
    assert_eq!(engine.frame("action.result", 2)["error"], "release_failed: unknown agent 'ghost'");
    let status = broker.status();
    assert_eq!((&status["agent_count"], &status["pending_delivery_count"]), (&json!(0), &json!(0)), "{status}");
    assert_eq!(engine.log().frames_of("agent.deregister").len(), 1, "once, when it ended");
}

#[test]
fn f24_answers_under_foreign_ids_find_the_spawn_of_their_name() {
    let (engine, broker) = scripted_pair();
    engine.log().registers = false;
    std::thread::scope(|scope| {
        let spawns: Vec<_> = ["ann", "bert"]
            .map(|name| {
                let body = json!({"name": name, "cli": broker.house.agent()});
                let broker = &broker;
                scope.spawn(move || broker.spawn_with(&body))
            })
            .into();
        engine.frame("agent.register", 1);
        // A second one of a pending name is refused without asking the engine.
        let again = broker.spawn_with(&json!({"name": "ann", "cli": broker.house.agent()}));
        assert_eq!(again.status, 500, "{}", again.text);
        assert_eq!(engine.log().frames_of("agent.register").len(), 2);
        for name in ["bert", "ann"] {
            let data = json!({"agent_id": format!("id_{name}"), "token": format!("at_live_{name}"), "name": name});
            engine.send(&json!({"v": 1, "type": "reply", "id": "foreign", "ok": true, "data": data}).to_string());
        }
        for spawn in spawns {
            let answer = spawn.join().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    });
    for name in ["ann", "bert"] {
        assert_eq!(broker.token_of(name), format!("at_live_{name}"));
    }
}

#[test]
fn f33_a_registration_that_waited_for_the_link_is_not_sent_for_an_agent_that_runs() {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    engine.log().upgrade = crate::scripted::Upgrade::Refuse(503);
    engine.cut();
    broker.until_node("connecting");
    let bind = format!("POST /v1/nodes/{}/agents", broker.node_name());
    engine.rule(&bind, crate::scripted::Deed::Answer(201, json!({"ok": true, "data": {}})));
    // Over HTTP, after a while.
    broker.spawn("ann");
    engine.log().upgrade = crate::scripted::Upgrade::Serve;
    broker.until_online();
    let id = engine.until("ann in the inventory", |log| {
        let rows = log.frames_of("inventory.sync").pop()?["agents"].take();
        Some(rows.as_array()?.iter().find(|row| row["name"] == "ann")?["agent_id"].as_str()?.to_string())
    });
    let mut message: Value = serde_json::from_str(&engine.message("ann", 1, "for who runs")).unwrap();
    message["agent_id"] = json!(id);
    engine.send(&message.to_string());
    broker.until_read("ann", "for who runs");
    until_acked(&engine, "ann", 1);
    // Another spawn is registered on the socket, so whatever waited before it would have been sent.
    broker.spawn("bert");
    let registered = engine.log().frames_of("agent.register");
    assert!(registered.iter().all(|frame| frame["name"] == "bert"), "{registered:?}");
    assert!(engine.log().frames_of("agent.deregister").is_empty());
}

#[test]
fn a_name_lives_fifty_times_and_every_message_is_read_once() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    let bob = engine.stranger("bob");
    for life in 0..50 {
        broker.spawn("ann");
        // Only half of the lives end with everything read.
        engine.dm(&bob, "ann", &format!("message <{life}>"));
        if life % 2 == 0 {
            broker.until_read("ann", &format!("message <{life}>"));
        }
        broker.ok("DELETE", "/api/spawned/ann", None);
    }
    broker.spawn("ann");
    engine.dm(&bob, "ann", "the last of all");
    broker.until_read("ann", "the last of all");
    for life in (0..50).step_by(2) {
        assert_eq!(broker.times_read("ann", &format!("message <{life}>")), 1, "life {life}");
    }
    assert_eq!(broker.told("agent_spawned", "ann").len(), 51);
    let token = broker.token_of("ann");
    broker.until("all acks", || (engine.unacked(&token) == 0).then_some(()));
    assert_eq!(broker.listed(), ["ann"]);
}

#[test]
fn s14_8_ten_messages_at_once_are_read_in_order_and_once_each() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    broker.spawn("ann");
    let text = |number: usize| format!("message number {number} of ten");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..10 {
                let body = json!({"to": "ann", "text": text(number)});
                assert_eq!(broker.call("POST", "/api/send", Some(&body)).status, 200);
            }
        });
    });
    broker.until_read("ann", &text(9));
    let read = broker.house.read_by("ann");
    let places: Vec<_> = (0..10).map(|number| read.find(&text(number))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}: {read}");
    assert!((0..10).all(|number| read.matches(&text(number)).count() == 1), "{read}");
    // One at a time: each is injected only when the one before it was read.
    let kinds: Vec<String> =
        broker.events().iter().filter_map(|event| event["kind"].as_str().map(Into::into)).collect();
    let steps: Vec<&str> = kinds
        .iter()
        .map(String::as_str)
        .filter(|kind| matches!(*kind, "delivery_injected" | "delivery_read"))
        .collect();
    assert!(steps.chunks(2).all(|pair| pair[0] == "delivery_injected"), "{steps:?}");
}
