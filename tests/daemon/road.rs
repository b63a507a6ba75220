//! The road of a message, and the life of an agent: spawned, written to, released.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::broker::{Broker, Start};
use crate::client;
use crate::engine::Engine;
use crate::house::House;

fn pair() -> (Engine, Broker) {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    (engine, broker)
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).expect("the agent is there");
}

pub fn is_gone(pid: u32) -> Option<()> {
    (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
}

#[test]
fn a_message_between_agents_is_typed_once_and_then_acknowledged() {
    let (engine, broker) = pair();
    broker.spawn("ann");
    let spawned = engine.spawn(&broker.node_name(), "bert", &broker.house.agent());
    // Either the result or the inventory, which lists the agent, completes it.
    assert_eq!((&spawned["status"], &spawned["error"]), (&json!("completed"), &json!(null)), "{spawned}");
    let (ann, bert) = (broker.token_of("ann"), broker.token_of("bert"));
    engine.dm(&ann, "bert", "first word to bert");
    engine.dm(&bert, "ann", "first word to ann");
    for (name, token, text) in [("ann", &ann, "first word to ann"), ("bert", &bert, "first word to bert")] {
        broker.until_read(name, text);
        broker.until(&format!("an ack for {name}"), || (engine.unacked(token) == 0).then_some(()));
        broker.until_told("delivery_acked", name);
        assert_eq!(broker.times_read(name, text), 1, "{}", broker.house.read_by(name));
        assert_eq!(broker.told("delivery_injected", name).len(), 1);
    }
}

#[test]
fn an_ack_waits_until_the_program_has_read() {
    let (engine, broker) = pair();
    let pid = broker.spawn("ann");
    let (token, bob) = (broker.token_of("ann"), engine.stranger("bob"));
    signal(pid, Signal::STOP);
    engine.dm(&bob, "ann", "for a sleeper");
    broker.until_told("delivery_injected", "ann");
    // Five seconds unread are told; all that time there is no ack.
    broker.until_told("delivery_stalled", "ann");
    assert_eq!(engine.unacked(&token), 1, "acknowledged before it was read\n{}", broker.seen());
    assert!(broker.told("delivery_acked", "ann").is_empty());
    signal(pid, Signal::CONT);
    broker.until_read("ann", "for a sleeper");
    broker.until("the ack", || (engine.unacked(&token) == 0).then_some(()));
    assert_eq!(broker.times_read("ann", "for a sleeper"), 1);
    assert_eq!(broker.told("delivery_injected", "ann").len(), 1, "never typed again");
}

#[test]
fn a_release_over_http_ends_the_program_and_the_enrolment() {
    let (engine, broker) = pair();
    let pid = broker.spawn("ann");
    let token = broker.token_of("ann");
    broker.ok("DELETE", "/api/spawned/ann", None);
    assert!(is_gone(pid).is_some(), "the program runs when the answer is out");
    assert!(broker.listed().is_empty());
    broker.until("an agent that is gone at the engine", || {
        engine.agent("ann").filter(|row| row["node_id"].is_null() && row["status"] == "offline")
    });
    assert_eq!(engine.call("GET", "/v1/agent", &token, None).status, 401, "the token is dead");
    broker.until_told("agent_released", "ann");
    assert!(broker.told("agent_exited", "ann").is_empty());
    // The name is free.
    broker.spawn("ann");
}

#[test]
fn f10_a_release_by_invoke_cleans_up_however_often_it_comes() {
    let (engine, broker) = pair();
    let pid = broker.spawn("ann");
    let token = broker.token_of("ann");
    let released = engine.release("ann");
    assert_eq!(
        (&released["status"], &released["output"]),
        (&json!("completed"), &json!({"released": true, "name": "ann"}))
    );
    assert!(is_gone(pid).is_some());
    assert_eq!(engine.call("GET", "/v1/agent", &token, None).status, 401);
    assert!(broker.listed().is_empty());
    // The engine completes a second one itself or refuses it; the broker's own answer to a second DELETE is the same.
    broker.ok("DELETE", "/api/spawned/ann", None);
    assert_eq!(broker.status()["pending_delivery_count"], 0);
}

#[test]
fn f2_a_program_gets_its_own_identity_and_no_keys_of_the_broker() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).env("CLAUDECODE", "1").online();
    broker.spawn("ann");
    let token = broker.token_of("ann");
    let environment = broker.environment_of("ann");
    for absent in ["RELAY_BROKER_API_KEY", "RELAY_NODE_TOKEN", "CLAUDECODE"] {
        assert!(!environment.contains_key(absent), "{absent} reached the program");
    }
    let own = broker.ok("GET", "/api/session", None);
    for (name, value) in [
        ("RELAY_AGENT_NAME", "ann"),
        ("RELAY_AGENT_TYPE", "agent"),
        ("RELAY_STRICT_AGENT_NAME", "1"),
        ("RELAY_BASE_URL", &engine.url()),
        ("RELAY_API_KEY", &engine.key),
        ("RELAY_WORKSPACE_ID", own["default_workspace_id"].as_str().unwrap()),
    ] {
        assert_eq!(environment.get(name).map(String::as_str), Some(value), "{name}");
    }
    let result_url = format!("http://{}/api/agent-result", broker.address);
    assert_eq!(environment["AGENT_RELAY_RESULT_URL"], result_url);
    // It acts as the agent with that token, also in the channels that agents join without being asked.
    let me = engine.data("GET", "/v1/agent", &token, None);
    assert_eq!(me["name"], "ann");
    let channels = || engine.data("GET", "/v1/agent", &token, None)["channels"].clone();
    broker.until("membership of both channels", || {
        let joined = channels();
        let has = |name: &str| joined.as_array().is_some_and(|rows| rows.iter().any(|row| row["name"] == name));
        (has("general") && has("engineering")).then_some(())
    });
    engine.data("POST", "/v1/channels/general/messages", &token, Some(&json!({"text": "ann was here"})));
}

#[test]
fn f9_agents_of_every_path_are_located_at_the_node_also_after_a_reconnect() {
    let (engine, broker) = pair();
    broker.spawn("ann");
    engine.spawn(&broker.node_name(), "bert", &broker.house.agent());
    // Registered at the engine beforehand and brought along with its token: bound by the broker's inventory or not at
    // all, but listed here like any other.
    let all_here = || {
        let path = format!("/v1/nodes/{}/agents", broker.node_name());
        let rows = engine.data("GET", &path, &engine.key, None);
        let names: Vec<&str> = rows.as_array().unwrap().iter().filter_map(|row| row["agent_name"].as_str()).collect();
        (names.contains(&"ann") && names.contains(&"bert")).then_some(())
    };
    broker.until("both at the node", all_here);
    let token = broker.token_of("ann");
    engine.data("POST", "/__faults/drop", "", None);
    broker.until("agents online again", || {
        let online = |name| engine.agent(name).is_some_and(|row| row["status"] == "online");
        (online("ann") && online("bert") && all_here().is_some()).then_some(())
    });
    // The token in the program still works: nothing was registered again.
    assert_eq!(engine.call("GET", "/v1/agent", &token, None).status, 200);
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "after the drop");
    broker.until_read("ann", "after the drop");
}

#[test]
fn d12_f37_held_messages_are_typed_by_a_flush_and_not_before() {
    let (engine, broker) = pair();
    broker.spawn("ann");
    let (token, bob) = (broker.token_of("ann"), engine.stranger("bob"));
    let mode = broker.ok("PUT", "/api/spawned/ann/delivery-mode", Some(&json!({"mode": "manual_flush"})));
    assert_eq!(mode["mode"], "manual_flush");
    engine.dm(&bob, "ann", "held by the engine");
    broker.ok("POST", "/api/send", Some(&json!({"to": "ann", "message": "held by the broker", "from": "x"})));
    let pending = || broker.ok("GET", "/api/spawned/ann/pending", None)["pending"].as_array().unwrap().len();
    broker.until("two held messages", || (pending() == 2).then_some(()));
    assert_eq!(broker.house.read_by("ann"), "");
    assert_eq!(engine.unacked(&token), 1);
    assert_eq!(broker.ok("POST", "/api/spawned/ann/flush", None)["flushed"], 2);
    broker.until_read("ann", "held by the engine");
    broker.until_read("ann", "held by the broker");
    broker.until("the ack", || (engine.unacked(&token) == 0).then_some(()));
    assert_eq!(pending(), 0);
}

#[test]
fn the_thread_report_names_every_thread_and_stdout_has_one_line() {
    let (_engine, mut broker) = pair();
    broker.spawn("ann");
    let report = broker.call("GET", "/api/debug/threads", None);
    assert_eq!(report.status, 200);
    let names = ["main", "broker", "node-reader", "node-writer", "http-accept", "pty-ann"];
    for name in names {
        assert!(report.text.lines().any(|line| line.contains(name)), "{name} is missing:\n{}", report.text);
    }
    broker.process.signal(Signal::USR1);
    for name in names {
        broker.process.says(name, crate::until::LONG);
    }
    assert_eq!(broker.ok("GET", "/api/session", None)["mode"], "ephemeral", "it lives on");
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    let expected = format!("[agent-relay] API listening on http://{}\n", broker.address);
    assert_eq!(broker.process.out(), expected);
}

#[test]
fn f25_a_clean_connect_logs_no_warning() {
    let (_engine, mut broker) = pair();
    broker.spawn("ann");
    broker.ok("DELETE", "/api/spawned/ann", None);
    assert_eq!(broker.stop().0, Some(0));
    let loud: Vec<String> =
        broker.process.err().lines().filter(|l| l.contains("WARN") || l.contains("ERROR")).map(Into::into).collect();
    assert!(loud.is_empty(), "{loud:#?}");
}

#[test]
fn an_engine_inside_the_broker_serves_agents_alike() {
    let house = House::new();
    let broker = Start::at(&house, "", "").arg("--local").online();
    broker.spawn("ann");
    broker.spawn("bert");
    let base = broker.ok("GET", "/api/session", None)["relay_base_url"].as_str().unwrap().replace("http://", "");
    let credential = format!("Authorization: Bearer {}", broker.token_of("ann"));
    let sent = client::call(&base, &credential, "POST", "/v1/dm", Some(&json!({"to": "bert", "text": "inside"})));
    assert_eq!(sent.unwrap().status, 201);
    broker.until_read("bert", "inside");
    broker.until_told("delivery_acked", "bert");
    assert_eq!(broker.times_read("bert", "inside"), 1);
}
