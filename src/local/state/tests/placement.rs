//! Two nodes: which of them gets a spawn or an invocation, and what becomes of it when one of them dies.

use super::*;

const SPAWN_CAT: &str = "spawn:cat";

fn cat() -> Value {
    json!([{"name": SPAWN_CAT, "kind": "spawn"}])
}

/// Status and code of the refusal, or the node that got it.
fn place(w: &mut World, input: Value) -> Result<String, (u16, &'static str)> {
    let made = w.call(Engine::spawn_agent, 0, &[], input).map_err(|fail| (fail.status, fail.code))?;
    Ok(made.data.unwrap()["dispatched_node_id"].as_str().unwrap_or("nobody").to_string())
}

fn status_of(w: &mut World, action: &str, id: &str) -> (Value, Value, Value) {
    let view = w.data(Engine::get_invocation, 0, &[action, id], json!({}));
    (view["status"].clone(), view["output"].clone(), view["dispatched_node_id"].clone())
}

fn came_back(w: &mut World, name: &str, id: &str, capabilities: Value) -> LinkId {
    let link = w.node(name, id, capabilities);
    w.beat(link);
    link
}

#[test]
fn the_roster_answers_by_capability_and_shows_what_heartbeats_say() {
    let mut w = World::new();
    let one = w.limited("one", "node_1", cat(), 4);
    w.limited("two", "node_2", json!([{"name": "greet"}]), 0);
    w.beat_with(one, 0.25, 1);
    let mut names = |key: &str, value: &str| {
        let query = [(key.to_string(), value.to_string())].into();
        let call = Call { ws: w.ws, query, ..Call::default() };
        let rows = w.ask(Engine::list_nodes, call).unwrap().data.unwrap();
        rows.as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("capability", SPAWN_CAT), ["one"]);
    assert_eq!(names("capability", "greet"), ["two"]);
    assert_eq!(names("capability", "spawn"), Vec::<String>::new(), "no prefix matches");
    assert_eq!(names("name", "two"), ["two"]);
    let row = w.data(Engine::get_node, 0, &["one"], json!({}));
    let seen = ["live", "handlers_live", "load", "active_agents", "max_agents"].map(|key| row[key].clone());
    assert_eq!(seen, [json!(true), json!(true), json!(0.25), json!(1), json!(4)]);
    w.hear(
        one,
        json!({"type": "node.heartbeat", "v": 1, "load": 0, "active_agents": 0, "handlers_live": false,
                       "capabilities": [{"name": "greet"}], "max_agents": 2}),
    );
    let row = w.data(Engine::get_node, 0, &["one"], json!({}));
    assert_eq!((&row["capabilities"], &row["max_agents"]), (&json!([{"name": "greet"}]), &json!(2)));
    w.engine.close_link(one);
    let row = w.data(Engine::get_node, 0, &["one"], json!({}));
    assert_eq!((&row["status"], &row["handlers_live"]), (&json!("offline"), &json!(false)));
}

#[test]
fn a_refused_token_brings_nobody_online() {
    let mut w = World::new();
    let old = w.mint("one", "node_1");
    w.mint("one", "node_1");
    for token in [None, Some(""), Some("nt_live_wrong"), Some(old.as_str())] {
        assert_eq!(w.engine.open_link(token).unwrap_err().code, "node_token_invalid", "{token:?}");
    }
    let row = w.data(Engine::get_node, 0, &["one"], json!({}));
    assert_eq!((&row["live"], &row["last_heartbeat_at"]), (&json!(false), &Value::Null));
}

#[test]
fn a_named_node_must_declare_the_capability_unless_it_declares_nothing() {
    let mut w = World::new();
    w.limited("one", "node_1", cat(), 0);
    w.limited("bare", "node_2", json!([]), 0);
    let input = |name: &str, cli: &str, node: &str| json!({"name": name, "cli": cli, "node": node});
    assert_eq!(place(&mut w, input("a", "cat", "one")), Ok("node_1".into()));
    assert_eq!(place(&mut w, input("b", "dog", "one")), Err((409, "capability_mismatch")));
    assert_eq!(place(&mut w, input("c", "dog", "bare")), Ok("node_2".into()));
    assert_eq!(place(&mut w, json!({"name": "d", "cli": "dog"})), Err((503, "handler_unavailable")));
    assert_eq!(place(&mut w, json!({"name": "e", "capability": SPAWN_CAT, "target_node": "one"})), Ok("node_1".into()));
}

#[test]
fn the_least_loaded_node_with_room_gets_it() {
    let mut w = World::new();
    let one = w.limited("one", "node_1", cat(), 2);
    let two = w.limited("two", "node_2", cat(), 2);
    w.beat_with(one, 0.5, 1);
    w.beat_with(two, 0.0, 0);
    let spawn = |w: &mut World, name: &str| place(w, json!({"name": name, "cli": "cat"}));
    assert_eq!(spawn(&mut w, "a"), Ok("node_2".into()));
    w.located(two, "a");
    w.beat_with(two, 1.0, 2);
    assert_eq!(spawn(&mut w, "b"), Ok("node_1".into()));
    w.located(one, "b");
    assert_eq!(spawn(&mut w, "c"), Ok("node_1".into()), "the other one says that it is full");
    assert_eq!(spawn(&mut w, "d"), Err((503, "handler_unavailable")), "both are full");
    w.beat_with(two, 0.5, 1);
    assert_eq!(spawn(&mut w, "d"), Ok("node_2".into()));
}

#[test]
fn equally_loaded_nodes_share() {
    let mut w = World::new();
    w.limited("one", "node_1", cat(), 0);
    w.limited("two", "node_2", cat(), 0);
    let nodes: Vec<_> =
        (0..4).map(|i| place(&mut w, json!({"name": format!("a{i}"), "cli": "cat"})).unwrap()).collect();
    assert_eq!(nodes, ["node_1", "node_2", "node_1", "node_2"]);
}

#[test]
fn a_dead_nodes_invocation_moves_and_is_not_claimed_back() {
    let mut w = World::new();
    let work = || json!([{"name": "work"}]);
    let one = came_back(&mut w, "one", "node_1", work());
    let two = came_back(&mut w, "two", "node_2", work());
    let id = w.data(Engine::invoke_action, 0, &["work"], json!({}))["invocation_id"].as_str().unwrap().to_string();
    assert_eq!(w.invokes(), [(one, id.clone(), "work".into())]);
    w.engine.close_link(one);
    assert_eq!(w.invokes(), [(two, id.clone(), "work".into())]);
    let one = came_back(&mut w, "one", "node_1", work());
    assert_eq!(w.invokes(), [], "it stays where it is");
    w.hear(one, json!({"type": "action.result", "v": 1, "invocation_id": id, "output": "late"}));
    w.hear(one, json!({"type": "action.result", "v": 1, "invocation_id": id, "error": "handler_unavailable"}));
    assert_eq!(status_of(&mut w, "work", &id), (json!("dispatched"), Value::Null, json!("node_2")));
    assert_eq!(w.data(Engine::get_node, 0, &["one"], json!({}))["handlers_live"], true);
    w.hear(two, json!({"type": "action.result", "v": 1, "invocation_id": id, "output": "done"}));
    assert_eq!(status_of(&mut w, "work", &id).1, "done");
}

#[test]
fn while_nobody_has_it_the_result_of_the_one_that_had_it_counts() {
    let mut w = World::new();
    let one = came_back(&mut w, "one", "node_1", json!([{"name": "work"}]));
    let id = w.data(Engine::invoke_action, 0, &["work"], json!({}))["invocation_id"].as_str().unwrap().to_string();
    w.engine.close_link(one);
    let one = w.node("one", "node_1", json!([{"name": "work"}]));
    w.hear(one, json!({"type": "action.result", "v": 1, "invocation_id": id, "output": "kept"}));
    assert_eq!(status_of(&mut w, "work", &id).1, "kept");
}

#[test]
fn a_spawn_that_moved_is_not_claimed_by_an_inventory() {
    let mut w = World::new();
    let one = came_back(&mut w, "one", "node_1", cat());
    let two = came_back(&mut w, "two", "node_2", cat());
    let made = w.data(Engine::spawn_agent, 0, &[], json!({"name": "s", "cli": "cat"}));
    let id = made["invocation_id"].as_str().unwrap().to_string();
    let agent = w.located(one, "s");
    w.engine.close_link(one);
    assert_eq!(w.invokes(), [(two, id.clone(), SPAWN_CAT.into())]);
    let one = came_back(&mut w, "one", "node_1", cat());
    w.frames();
    w.hear(
        one,
        json!({"type": "inventory.sync", "v": 1, "id": "i",
               "agents": [{"agent_id": agent.to_string(), "name": "s", "invocation_id": id}]}),
    );
    assert_eq!(w.error(), "agent_location_conflict");
    assert_eq!(status_of(&mut w, "spawn", &id).0, "dispatched");
    assert_eq!(w.located(two, "s"), agent, "the same agent, at its new home");
    w.hear(two, json!({"type": "action.result", "v": 1, "invocation_id": id, "output": {"spawned": true}}));
    assert_eq!(status_of(&mut w, "spawn", &id), (json!("completed"), json!({"spawned": true}), json!("node_2")));
}

#[test]
fn an_open_action_of_a_busy_node_is_sent_again_to_it_alone() {
    let mut w = World::new();
    let one = came_back(&mut w, "one", "node_1", json!([{"name": "work"}]));
    came_back(&mut w, "two", "node_2", json!([{"name": "work"}]));
    let id = w.data(Engine::invoke_action, 0, &["work"], json!({}))["invocation_id"].as_str().unwrap().to_string();
    w.frames();
    w.hear(one, json!({"type": "inventory.sync", "v": 1, "id": "i", "agents": []}));
    assert_eq!(w.invokes(), [(one, id, "work".into())]);
}

#[test]
fn a_session_is_resumed_where_it_was_recorded() {
    let mut w = World::new();
    let one = came_back(&mut w, "one", "node_1", cat());
    let two = came_back(&mut w, "two", "node_2", cat());
    w.hear(
        two,
        json!({"type": "agent.register", "v": 1, "id": "ar", "name": "al", "session_ref": "s-1", "resumable": true}),
    );
    w.hear(two, json!({"type": "agent.register", "v": 1, "id": "ar", "name": "bo", "session_ref": "s-2"}));
    for name in ["al", "bo"] {
        let id = w.data(Engine::get_agent, 0, &[name], json!({}))["id"].clone();
        w.hear(two, json!({"type": "agent.deregister", "v": 1, "agent_id": id}));
    }
    w.beat_with(two, 0.9, 9);
    let resume = |session: &str| json!({"name": format!("again-{session}"), "cli": "cat", "session_ref": session});
    let mut w = w.restart();
    assert_eq!(place(&mut w, resume("s-1")), Err((503, "handler_unavailable")), "its node is away");
    let (_, two) = (came_back(&mut w, "one", "node_1", cat()), came_back(&mut w, "two", "node_2", cat()));
    w.beat_with(two, 0.9, 9);
    assert_eq!(place(&mut w, resume("s-1")), Ok("node_2".into()), "although the other one is idle");
    assert_eq!(place(&mut w, resume("s-2")), Ok("node_1".into()), "not resumable: like any other");
    assert_eq!(place(&mut w, resume("s-3")), Ok("node_1".into()), "unknown: like any other");
    let mut named = resume("s-1");
    (named["node"], named["name"]) = (json!("one"), json!("x"));
    assert_eq!(place(&mut w, named), Ok("node_1".into()), "who names a node gets it");
    w.data(Engine::delete_node, 0, &["two"], json!({}));
    let mut orphan = resume("s-1");
    orphan["name"] = json!("y");
    assert_eq!(place(&mut w, orphan), Ok("node_1".into()), "the node is gone for good");
    let _ = one;
}

#[test]
fn seq_goes_on_when_an_agent_changes_its_node() {
    let mut w = World::new();
    let (one, bob) = (w.node("one", "node_1", json!([])), w.agent("bob"));
    let al = w.located(one, "al");
    w.dm(bob, "al", "1");
    w.dm(bob, "al", "2");
    assert_eq!(w.seqs(), [1, 2]);
    w.ack(one, "al", 1);
    let two = w.node("two", "node_2", json!([]));
    w.engine.close_link(one);
    w.frames();
    w.hear(two, json!({"type": "agent.register", "v": 1, "id": "ar", "name": "al"}));
    assert_eq!(w.seqs(), [2], "what was open comes along");
    w.dm(bob, "al", "3");
    w.ack(two, "al", 3);
    assert_eq!(w.seqs(), [3]);
    w.node("one", "node_1", json!([]));
    w.frames();
    w.data(Engine::bind_agent, 0, &["one"], json!({"agent_name": "al"}));
    w.dm(bob, "al", "4");
    assert_eq!(w.seqs(), [4]);
    w.hear(two, json!({"type": "agent.deregister", "v": 1, "agent_id": al.to_string()}));
    assert_eq!(w.error(), "agent_location_conflict", "the old node has lost it");
}

#[test]
fn an_action_goes_to_the_other_node_that_declares_it() {
    let mut w = World::new();
    let one = came_back(&mut w, "one", "node_1", json!([{"name": "work"}]));
    let two = came_back(&mut w, "two", "node_2", json!([{"name": "work"}]));
    w.register(one, "one", "node_1", json!([]));
    w.frames();
    let made = w.data(Engine::invoke_action, 0, &["work"], json!({}));
    assert_eq!(made["handler_node_id"], "node_2");
    assert_eq!(w.invokes()[0].0, two);
    w.register(two, "two", "node_2", json!([]));
    assert_eq!(w.call(Engine::invoke_action, 0, &["work"], json!({})).unwrap_err().code, "action_not_found");
}
