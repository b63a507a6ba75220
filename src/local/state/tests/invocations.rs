//! Actions, spawns and releases, and who gets them.

use super::*;

#[test]
fn inventory_decides_who_is_online_and_what_is_done() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([{"name": "spawn:cat"}, {"name": "work"}]));
    w.beat(link);
    let bob = w.agent("bob");
    let (a, _) = (w.located(link, "a"), w.located(link, "b"));
    w.dm(bob, "a", "hi");
    let spawn = w.data(Engine::spawn_agent, bob, &[], json!({"name": "s", "cli": "cat", "task": ""}));
    let work = w.data(Engine::invoke_action, bob, &["work"], json!({"input": {"k": 1}}));
    let (spawn, work) = (spawn["invocation_id"].as_str().unwrap(), work["invocation_id"].as_str().unwrap());
    let s = w.located(link, "s");
    w.frames();
    w.hear(
        link,
        json!({"type": "inventory.sync", "v": 1, "id": "i", "agents": [
            {"agent_id": a.to_string(), "name": "a"},
            {"agent_id": s.to_string(), "name": "s", "invocation_id": spawn}]}),
    );
    let frames = w.frames();
    assert_eq!(frames[0].1["data"]["offline"], 1, "{frames:?}");
    assert_eq!(frames[0].1["data"]["completed_invocations"], 1);
    assert!(frames.iter().any(|(_, f)| f["seq"] == 1 && f["agent"] == "a"), "unacked rows are repeated: {frames:?}");
    assert_eq!((w.status("a"), w.status("b")), (json!("online"), json!("offline")));
    let state = |w: &mut World, name: &str, id: &str| {
        w.data(Engine::get_invocation, 0, &[name, id], json!({}))["status"].clone()
    };
    assert_eq!(state(&mut w, "spawn", spawn), "completed");
    let again: Vec<&Value> = frames.iter().map(|(_, f)| f).filter(|f| f["type"] == "action.invoke").collect();
    assert_eq!((again.len(), &again[0]["invocation_id"]), (1, &json!(work)), "not listed: the same id again, here");
    assert_eq!(state(&mut w, "work", work), "dispatched");
    let two = w.node("n2", "node_2", json!([]));
    w.hear(
        two,
        json!({"type": "inventory.sync", "v": 1, "id": "j", "agents": [{"agent_id": a.to_string(), "name": "a"}]}),
    );
    assert_eq!(w.error(), "agent_location_conflict");
}

#[test]
fn a_release_goes_to_the_node_waits_for_it_and_unbinds() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    w.agent("loose");
    let fails =
        |w: &mut World, name: &str| w.call(Engine::release_agent, 0, &[], json!({"name": name})).unwrap_err().code;
    assert_eq!(fails(&mut w, "nobody"), "agent_not_found");
    assert_eq!(fails(&mut w, "loose"), "agent_not_node_bound");
    w.located(link, "al");
    w.engine.close_link(link);
    let answer = w.call(Engine::release_agent, 0, &[], json!({"name": "al", "delete_agent": true})).unwrap();
    let data = answer.data.unwrap();
    assert_eq!((answer.status, &data["status"], &data["handler_node_id"]), (201, &json!("pending"), &json!("node_1")));
    let token = w.mint("n", "node_1");
    let link = w.open(&token);
    w.register(link, "n", "node_1", json!([]));
    let frames = w.frames();
    let invoke = &frames.iter().find(|(_, f)| f["type"] == "action.invoke").unwrap().1;
    assert_eq!(
        (&invoke["action"], &invoke["input"]),
        (&json!("release"), &json!({"name": "al", "delete_agent": true}))
    );
    w.hear(link, json!({"type": "action.result", "v": 1, "invocation_id": invoke["invocation_id"], "output": {"released": true}}));
    assert_eq!(w.call(Engine::get_agent, 0, &["al"], json!({})).unwrap_err().code, "agent_not_found");
}

#[test]
fn a_spawn_is_placed_by_capability_target_and_room() {
    let mut w = World::new();
    let spawn = |w: &mut World, body: Value| w.call(Engine::spawn_agent, 0, &[], body);
    let bare = w.node("bare", "node_0", json!([]));
    let input = json!({"name": "a", "cli": "codex", "task": "t"});
    let fail = spawn(&mut w, input.clone()).unwrap_err();
    assert_eq!((fail.status, fail.code), (503, "handler_unavailable"));
    let one = w.node("one", "node_1", json!([{"name": "spawn:codex", "kind": "spawn"}]));
    assert_eq!(spawn(&mut w, input.clone()).unwrap_err().code, "handler_unavailable", "handlers are not live");
    w.beat(one);
    w.frames();
    assert_eq!(spawn(&mut w, input.clone()).unwrap().data.unwrap()["dispatched_node_id"], "node_1");
    let sent = w.invokes();
    assert_eq!((sent[0].0, sent[0].2.as_str()), (one, "spawn:codex"));
    spawn(&mut w, json!({"name": "b", "cli": "cat", "node": "bare"})).unwrap();
    let sent = w.invokes();
    assert_eq!((sent[0].0, sent[0].2.as_str()), (bare, "spawn:cat"), "a named broker needs no capability");
    assert_eq!(
        spawn(&mut w, json!({"name": "b", "cli": "cat", "node": "nope"})).unwrap_err().code,
        "handler_unavailable"
    );
    w.located(one, "a");
    assert_eq!(spawn(&mut w, input.clone()).unwrap_err().code, "agent_already_exists");
    let two = w.node("two", "node_2", json!([{"name": "spawn"}]));
    w.beat(two);
    w.frames();
    spawn(&mut w, json!({"name": "c", "cli": "codex"})).unwrap();
    let sent = w.invokes();
    assert_eq!((sent[0].0, sent[0].2.as_str()), (two, "spawn"), "a bare spawn takes every spawn");
}

#[test]
fn an_unanswered_invocation_is_offered_elsewhere_then_again() {
    let mut w = World::new();
    let links = [w.node("n1", "node_1", json!([{"name": "work"}])), w.node("n2", "node_2", json!([{"name": "work"}]))];
    let bob = w.located(links[0], "bob");
    w.beat(links[0]);
    w.beat(links[1]);
    w.frames();
    let id = w.data(Engine::invoke_action, bob, &["work"], json!({"input": {}}))["invocation_id"].clone();
    assert_eq!(w.invokes()[0].0, links[0], "the node that declared it first");
    let pass = |w: &mut World, ms: u64| {
        w.beat(links[0]);
        w.beat(links[1]);
        w.pass(ms);
        w.invokes()
    };
    assert_eq!(pass(&mut w, 29_999), []);
    assert_eq!(pass(&mut w, 1)[0].0, links[1], "after 30 s another node");
    assert_eq!(pass(&mut w, 30_000), [], "both have had it");
    let again = pass(&mut w, 10_000);
    assert_eq!((again[0].0, &json!(again[0].1)), (links[0], &id), "then the same id again");
    w.hear(links[0], json!({"type": "action.result", "v": 1, "invocation_id": id, "error": "handler_unavailable"}));
    assert_eq!(w.invokes()[0].0, links[1], "an unavailable handler: at once elsewhere");
    w.hear(links[1], json!({"type": "action.result", "v": 1, "invocation_id": id, "output": {"k": 1}}));
    let frames = w.frames();
    let told = &frames.iter().find(|(_, f)| f["payload"]["type"] == "action.completed").unwrap().1;
    assert_eq!((&told["seq"], &told["msg_id"], &told["agent"]), (&json!(0), &id, &json!("bob")));
    assert_eq!(told["payload"]["data"]["output"], json!({"k": 1}));
    w.hear(links[0], json!({"type": "action.result", "v": 1, "invocation_id": id, "error": "late"}));
    let view = w.data(Engine::get_invocation, bob, &["work", id.as_str().unwrap()], json!({}));
    assert_eq!((&view["status"], &view["error"]), (&json!("completed"), &Value::Null), "the first result counts");
}

#[test]
fn a_disconnect_reschedules_and_the_node_gets_it_back() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([{"name": "work"}]));
    w.beat(link);
    w.frames();
    let bob = w.agent("bob");
    let id = w.data(Engine::invoke_action, bob, &["work"], json!({}))["invocation_id"].clone();
    w.engine.close_link(link);
    w.frames();
    let token = w.mint("n", "node_1");
    let link = w.open(&token);
    w.register(link, "n", "node_1", json!([{"name": "work"}]));
    assert_eq!(w.invokes(), []);
    w.beat(link);
    assert_eq!(w.invokes(), [(link, id.as_str().unwrap().to_string(), "work".into())]);
}

#[test]
fn an_action_not_for_everybody_is_denied() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    w.located(link, "al");
    let (bob, eve) = (w.agent("bob"), w.located(link, "eve"));
    w.frames();
    w.data(
        Engine::register_action,
        0,
        &[],
        json!({"name": "x", "description": "", "handler_agent": "al", "available_to": ["bob"]}),
    );
    let fail = w.call(Engine::invoke_action, eve, &["x"], json!({"input": {}})).unwrap_err();
    assert_eq!((fail.status, fail.code), (403, "action_denied"));
    let told = w.frames().remove(0).1;
    assert_eq!(
        (&told["payload"]["type"], &told["msg_id"], &told["seq"]),
        (&json!("action.denied"), &json!("x"), &json!(0))
    );
    w.call(Engine::invoke_action, bob, &["x"], json!({"input": {"q": 1}})).unwrap();
    let invoke = w.frames().remove(0).1;
    assert_eq!((&invoke["agent_name"], &invoke["input"]), (&json!("al"), &json!({"q": 1})));
    let id = invoke["invocation_id"].as_str().unwrap();
    let fail = w.call(Engine::complete_invocation, bob, &["x", id], json!({"output": 1})).unwrap_err();
    assert_eq!(fail.code, "forbidden", "only the handler");
}

#[test]
fn spawns_under_way_take_room() {
    let mut w = World::new();
    let token = w.mint("n", "node_1");
    let link = w.open(&token);
    w.hear(
        link,
        json!({"type": "node.register", "v": 1, "name": "n", "node_id": "node_1", "capabilities": [], "max_agents": 1,
               "tags": [], "version": "t"}),
    );
    let spawn = |w: &mut World, name: &str| {
        w.call(Engine::spawn_agent, 0, &[], json!({"name": name, "cli": "cat", "node": "n"})).map(|a| a.status)
    };
    assert_eq!(spawn(&mut w, "a"), Ok(201));
    assert_eq!(spawn(&mut w, "b").unwrap_err().code, "handler_unavailable");
    let (_, id, _) = w.invokes().remove(0);
    w.hear(link, json!({"type": "action.result", "v": 1, "invocation_id": id, "error": "spawn_failed"}));
    assert_eq!(spawn(&mut w, "b"), Ok(201), "the first has failed");
}

#[test]
fn an_agent_that_is_its_own_node_takes_its_time() {
    let mut w = World::new();
    let (al, bob) = (w.agent("al"), w.agent("bob"));
    let made = w.data(Engine::direct_node_token, al, &[], json!({}));
    let link = w.open(made["token"].as_str().unwrap());
    w.register(link, made["node_name"].as_str().unwrap(), made["node_id"].as_str().unwrap(), json!([]));
    w.data(Engine::register_action, al, &[], json!({"name": "slow"}));
    w.frames();
    w.data(Engine::invoke_action, bob, &["slow"], json!({"input": {}}));
    assert_eq!(w.invokes().len(), 1);
    for _ in 0..10 {
        w.hear(link, json!({"type": "node.heartbeat", "v": 1, "load": 0, "active_agents": 1, "handlers_live": false}));
        w.pass(30_000);
    }
    assert_eq!(w.invokes(), [], "not offered twice while it works");
}
