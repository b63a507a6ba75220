//! Nodes, their sockets, and the agents located there.

use super::*;

#[test]
fn who_may_be_registered_by_a_node() {
    let mut w = World::new();
    let (one, two) = (w.node("n1", "node_1", json!([])), w.node("n2", "node_2", json!([])));
    w.agent("http");
    w.frames();
    let register = |w: &mut World, link, name: &str| {
        w.hear(link, json!({"type": "agent.register", "v": 1, "id": "x", "name": name}));
        let frames = w.frames();
        let answer = frames.iter().find(|(_, f)| f["id"] == "x").unwrap().1.clone();
        (answer["code"].as_str().unwrap_or("ok").to_string(), answer["data"]["token"].clone())
    };
    assert_eq!(register(&mut w, one, "http").0, "agent_location_conflict", "active without a node");
    let (first, token) = register(&mut w, one, "al");
    assert_eq!(first, "ok");
    let (again, other) = register(&mut w, one, "al");
    assert_eq!(again, "ok", "already here");
    assert_ne!(token, other, "always a new token");
    let authenticate = |w: &mut World, token: &Value| w.engine.authenticate(token.as_str()).err().map(|f| f.code);
    assert_eq!(authenticate(&mut w, &token), Some("agent_token_invalid"));
    assert_eq!(authenticate(&mut w, &other), None);
    assert_eq!(register(&mut w, two, "al").0, "agent_location_conflict");
    w.engine.close_link(one);
    assert_eq!(register(&mut w, two, "al").0, "ok", "its node is gone");
    let http = w.data(Engine::get_agent, 0, &["http"], json!({}))["id"].as_str().unwrap().parse().unwrap();
    w.call(Engine::direct_node_token, http, &[], json!({})).unwrap();
    assert_eq!(register(&mut w, two, "http").0, "ok", "it was only at its own implicit node");
}

#[test]
fn capacity_is_kept() {
    let mut w = World::new();
    let token = w.mint("n", "node_1");
    let link = w.open(&token);
    w.hear(
        link,
        json!({"type": "node.register", "v": 1, "name": "n", "node_id": "node_1", "capabilities": [], "max_agents": 1,
               "tags": [], "version": "t"}),
    );
    w.located(link, "a");
    w.located(link, "a");
    w.hear(link, json!({"type": "agent.register", "v": 1, "id": "x", "name": "b"}));
    assert_eq!(w.error(), "node_capacity_exceeded");
    w.agent("c");
    let fail = w.call(Engine::bind_agent, 0, &["n"], json!({"agent_name": "c"})).unwrap_err();
    assert_eq!((fail.status, fail.code), (409, "node_capacity_exceeded"));
}

#[test]
fn a_node_is_looked_up_by_name() {
    let mut w = World::new();
    let old = w.mint("n", "node_1");
    let again = w.data(Engine::mint_node, 0, &[], json!({"name": "n", "node_id": "node_other"}));
    assert_eq!(again["id"], "node_1", "its own id, whatever was asked");
    assert_eq!(w.engine.open_link(Some(&old)).unwrap_err().code, "node_token_invalid");
    let link = w.open(again["token"].as_str().unwrap());
    w.register(link, "n", "node_other", json!([]));
    assert_eq!(w.error(), "node_id_mismatch");
    w.mint("m", "node_2");
    w.register(link, "m", "node_1", json!([]));
    assert_eq!(w.error(), "node_name_conflict");
    assert_eq!(w.data(Engine::get_node, 0, &["n"], json!({}))["live"], false);
    w.register(link, "n", "node_1", json!([]));
    assert_eq!(w.data(Engine::get_node, 0, &["n"], json!({}))["live"], true);
    assert_eq!(w.call(Engine::get_node, 0, &["nope"], json!({})).unwrap_err().code, "node_not_found");
    let other = World::new();
    let ws = std::mem::replace(&mut w.ws, 1);
    assert_eq!(w.call(Engine::mint_node, 0, &[], json!({"name": "n", "node_id": "node_1"})).unwrap_err().status, 500);
    w.ws = ws;
    drop(other);
}

#[test]
fn a_later_socket_supersedes_and_a_late_close_of_the_first_changes_nothing() {
    let mut w = World::new();
    let first = w.node("n", "node_1", json!([]));
    w.located(first, "al");
    let token = w.mint("n", "node_1");
    let second = w.open(&token);
    assert_eq!(w.frames(), [(first, json!({"close": 1000, "reason": "superseded"}))]);
    assert_eq!(w.status("al"), "offline");
    w.register(second, "n", "node_1", json!([]));
    w.located(second, "al");
    w.engine.close_link(first);
    assert_eq!(w.status("al"), "online");
    w.hear(first, json!({"type": "node.deregister", "v": 1}));
    assert_eq!(w.status("al"), "online", "a closed link is not listened to");
}

#[test]
fn a_node_without_heartbeats_is_dead_after_45_s() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    w.located(link, "al");
    w.pass(40_000);
    w.beat(link);
    w.pass(44_000);
    assert_eq!(w.status("al"), "online");
    w.frames();
    w.pass(1_000);
    assert_eq!(w.frames(), [(link, json!({"close": 1001, "reason": "heartbeat timeout"}))]);
    assert_eq!(w.status("al"), "offline");
}

#[test]
fn an_agent_without_a_node_goes_offline_after_five_quiet_minutes() {
    let mut w = World::new();
    let token = w.data(Engine::register_agent, 0, &[], json!({"name": "al"}))["token"].clone();
    w.pass(200_000);
    let now = w.now();
    w.engine.at(now).authenticate(token.as_str()).unwrap();
    w.pass(200_000);
    assert_eq!(w.status("al"), "online");
    w.pass(100_000);
    assert_eq!(w.status("al"), "offline");
    assert_eq!(w.engine.next_deadline(), None, "nothing is due, nothing wakes");
}

#[test]
fn a_node_that_deregistered_may_come_back_on_the_same_socket() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    w.located(link, "al");
    w.hear(link, json!({"type": "node.deregister", "v": 1}));
    assert_eq!(w.status("al"), "offline");
    w.hear(link, json!({"type": "agent.register", "v": 1, "id": "x", "name": "al"}));
    assert_eq!(w.error(), "node_not_registered");
    w.register(link, "n", "node_1", json!([]));
    w.located(link, "al");
    assert_eq!(w.status("al"), "online");
    w.pass(NODE_DEAD_MS);
    assert_eq!(w.status("al"), "offline", "and is watched again");
}

#[test]
fn a_reconnecting_direct_node_leaves_one_deadline() {
    let mut w = World::new();
    let al = w.agent("al");
    for _ in 0..5 {
        let made = w.data(Engine::direct_node_token, al, &[], json!({}));
        let link = w.open(made["token"].as_str().unwrap());
        let (id, name) = (made["node_id"].as_str().unwrap(), made["node_name"].as_str().unwrap());
        w.register(link, name, id, json!([]));
        w.pass(1_000);
    }
    assert_eq!(w.engine.timers.len(), 2, "{:?}", w.engine.timers);
    assert_eq!(w.status("al"), "online");
}
