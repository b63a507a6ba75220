//! What runs out: descriptors. What cannot be done then is refused, what runs goes on, and it is over when there is room.

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use crate::broker::{Broker, Start};
use crate::client::connect;
use crate::engine::Engine;
use crate::house::House;

/// The running broker may use so much of something and no more; `None` = whatever the machine has.
pub fn limit(broker: &Broker, what: Resource, most: Option<u64>) {
    let before = rustix::process::getrlimit(what);
    let limit = Rlimit { current: most.or(before.current), maximum: before.maximum };
    prlimit(Pid::from_raw(broker.process.pid() as i32), what, limit).expect("a limit of a child of ours");
}

#[test]
fn without_descriptors_spawns_are_refused_and_agents_go_on() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    broker.spawn("ann");
    let (token, bob) = (broker.token_of("ann"), engine.stranger("bob"));
    let used = std::fs::read_dir(format!("/proc/{}/fd", broker.process.pid())).unwrap().count() as u64;
    // Enough for a call, not for an agent.
    limit(&broker, Resource::Nofile, Some(used + 3));
    let answer = broker.spawn_with(&json!({"name": "bert", "cli": house.agent()}));
    assert_eq!(answer.status, 500, "{}", answer.text);
    assert_eq!(answer.json()["success"], false, "{}", answer.text);
    assert_eq!(broker.listed(), ["ann"]);
    assert!(broker.told("agent_spawned", "bert").is_empty());
    // Connections beyond the limit wait, and take nothing from those that are open.
    let idle: Vec<_> = (0..20).filter_map(|_| connect(&broker.address).ok()).collect();
    engine.dm(&bob, "ann", "on the last descriptors");
    broker.until_read("ann", "on the last descriptors");
    drop(idle);
    limit(&broker, Resource::Nofile, None);
    broker
        .until("an answer to a call", || broker.try_call("GET", "/health", None).filter(|answer| answer.status == 200));
    broker.spawn("bert");
    engine.dm(&bob, "bert", "and again with enough");
    broker.until_read("bert", "and again with enough");
    broker.until("the ack", || (engine.unacked(&token) == 0).then_some(()));
    assert!(engine.agent("bert").is_some_and(|row| row["status"] == "online"));
}
