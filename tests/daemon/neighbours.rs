//! Several brokers in one directory, under different names: each its own node, its own files, its own end.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;

fn node_id(broker: &Broker) -> String {
    broker.status()["node"]["node_id"].as_str().unwrap().to_string()
}

/// Whose port the directory's connection.json names, if there is one.
fn named(file: &PathBuf) -> Option<String> {
    let connection: Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    Some(format!("127.0.0.1:{}", connection["port"]))
}

#[test]
fn two_names_in_one_directory_are_two_nodes_and_one_outlives_the_other() {
    let house = House::new();
    let engine = Engine::start(&house);
    let bob = engine.stranger("bob");
    let start = |name: &str| Start::on(&house, &engine).arg("--persist").arg("--instance-name").arg(name).online();
    let reaches = |broker: &Broker, agent: &str, text: &str| {
        engine.dm(&bob, agent, text);
        broker.until_read(agent, text);
    };
    let mut one = start("one");
    one.spawn("ann");
    let mut two = start("two");
    two.spawn("bert");
    let file = one.connection_file();
    assert_eq!(named(&file), Some(two.address.clone()), "the last one that came");
    let (id_one, id_two) = (node_id(&one), node_id(&two));
    assert_ne!(id_one, id_two);
    assert!(two.process.err().contains(&format!("this one is {id_two}")), "{}", two.seen());
    assert!(!one.process.err().contains("this one is"), "{}", one.seen());
    reaches(&one, "ann", "to the first");
    reaches(&two, "bert", "to the second");
    assert_eq!(engine.online_nodes().len(), 2);
    let dir = house.path("work/.agentworkforce/relay");
    for name in ["broker-one.lock", "broker-two.lock", "journal-one.jsonl", "journal-two.jsonl", "state-one.json"] {
        one.until(name, || dir.join(name).exists().then_some(()));
    }

    // The first goes; the file is the second's.
    assert_eq!(one.stop().0, Some(0), "{}", one.seen());
    assert_eq!(named(&file), Some(two.address.clone()));
    assert!(!dir.join("state-one.json").exists() && dir.join("state-two.json").exists());
    reaches(&two, "bert", "to the one that is left");
    two.until_node("online");

    // It comes back as the node that it was, and the file is its own until it goes.
    let mut one = start("one");
    assert_eq!(node_id(&one), id_one);
    one.spawn("ann");
    assert_eq!(named(&file), Some(one.address.clone()));
    reaches(&one, "ann", "to the first again");
    reaches(&two, "bert", "to the second still");
    assert_eq!(one.stop().0, Some(0), "{}", one.seen());
    assert_eq!(named(&file), None);
    reaches(&two, "bert", "to the second for ever");
    two.until_node("online");
    assert_eq!(two.stop().0, Some(0), "{}", two.seen());

    // Also when the second starts first.
    let two = start("two");
    let one = start("one");
    assert_eq!((node_id(&one), node_id(&two)), (id_one, id_two));
    let words = "another broker instance is already running in this directory";
    let (code, said) = Start::on(&house, &engine).arg("--persist").arg("--instance-name").arg("two").fails();
    assert!(code == 1 && said.contains(words), "{said}");
    assert_eq!(named(&file), Some(one.address.clone()), "a start that fails takes nothing away");
}

#[test]
fn passing_brokers_of_one_directory_and_name_do_not_put_each_other_out() {
    let house = House::new();
    let engine = Engine::start(&house);
    let bob = engine.stranger("bob");
    let mut one = Start::on(&house, &engine).online();
    let two = Start::on(&house, &engine).online();
    one.spawn("ann");
    two.spawn("bert");
    assert_ne!(node_id(&one), node_id(&two));
    for (broker, agent) in [(&one, "ann"), (&two, "bert")] {
        engine.dm(&bob, agent, "hello");
        broker.until_read(agent, "hello");
        assert_eq!(broker.status()["node"]["last_error"], json!(null), "{}", broker.seen());
    }
    // Killed, the first leaves its place free at once.
    let id = node_id(&one);
    one.process.signal(rustix::process::Signal::KILL);
    one.process.wait(crate::until::LONG);
    let three = Start::on(&house, &engine).online();
    assert_eq!(node_id(&three), id);
    engine.dm(&bob, "bert", "still here");
    two.until_read("bert", "still here");
}
