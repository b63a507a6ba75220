//! The state without sockets: time is set by hand, frames are read from the out list.

use serde_json::{Map, Value, json};

use super::*;
use crate::sys::clock::Now;

/// An engine with a workspace, driven like a client would.
struct World {
    engine: Engine,
    ws: u64,
    mono: u64,
}

const EPOCH: u64 = 1_764_000_000_000;

impl World {
    fn new() -> World {
        let mut world = World { engine: Engine::new(true), ws: 0, mono: 0 };
        let made = world.ask(Engine::create_workspace, Call { body: object(json!({"name": "w"})), ..Call::default() });
        world.ws = made.unwrap().data.unwrap()["workspace_id"].as_str().unwrap().parse().unwrap();
        world
    }

    fn now(&self) -> Now {
        Now { mono: self.mono, unix: EPOCH + self.mono }
    }

    fn ask(&mut self, route: fn(&mut Engine, &Call) -> Outcome, call: Call) -> Outcome {
        let now = self.now();
        route(self.engine.at(now), &call)
    }

    /// A call with a body by `agent` (0 = the workspace key).
    fn call(&mut self, route: fn(&mut Engine, &Call) -> Outcome, agent: u64, args: &[&str], body: Value) -> Outcome {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        let call = Call { ws: self.ws, agent, args, body: object(body), ..Call::default() };
        self.ask(route, call)
    }

    fn data(&mut self, route: fn(&mut Engine, &Call) -> Outcome, agent: u64, args: &[&str], body: Value) -> Value {
        self.call(route, agent, args, body).unwrap_or_else(|fail| panic!("{fail:?}")).data.unwrap_or_default()
    }

    fn agent(&mut self, name: &str) -> u64 {
        self.data(Engine::register_agent, 0, &[], json!({"name": name}))["id"].as_str().unwrap().parse().unwrap()
    }

    fn mint(&mut self, name: &str, id: &str) -> String {
        let node = self.data(Engine::mint_node, 0, &[], json!({"name": name, "node_id": id}));
        node["token"].as_str().unwrap().to_string()
    }

    /// A node that is connected and registered.
    fn node(&mut self, name: &str, id: &str, capabilities: Value) -> LinkId {
        let token = self.mint(name, id);
        let link = self.open(&token);
        self.register(link, name, id, capabilities);
        link
    }

    fn open(&mut self, token: &str) -> LinkId {
        let now = self.now();
        self.engine.at(now).open_link(Some(token)).unwrap()
    }

    fn register(&mut self, link: LinkId, name: &str, id: &str, capabilities: Value) {
        self.hear(
            link,
            json!({"type": "node.register", "v": 1, "id": "r", "name": name, "node_id": id, "capabilities": capabilities,
                   "max_agents": 0, "tags": [], "version": "t", "resume_cursor": null}),
        );
    }

    fn beat(&mut self, link: LinkId) {
        self.hear(
            link,
            json!({"type": "node.heartbeat", "v": 1, "load": 0, "active_agents": 0, "handlers_live": true}),
        );
    }

    fn hear(&mut self, link: LinkId, frame: Value) {
        let now = self.now();
        self.engine.at(now).hear(link, &frame.to_string());
    }

    /// Registers an agent over the link; its id.
    fn located(&mut self, link: LinkId, name: &str) -> u64 {
        self.hear(link, json!({"type": "agent.register", "v": 1, "id": "ar", "name": name}));
        let frames = self.frames();
        let reply = frames.iter().find(|(_, f)| f["id"] == "ar").unwrap_or_else(|| panic!("{frames:?}"));
        reply.1["data"]["agent_id"].as_str().unwrap_or_else(|| panic!("{reply:?}")).parse().unwrap()
    }

    fn frames(&mut self) -> Vec<(LinkId, Value)> {
        let out = self.engine.take_out().into_iter();
        out.map(|out| match out {
            Out::Frame { link, text } => (link, serde_json::from_str(&text).unwrap()),
            Out::Close { link, code, reason } => (link, json!({"close": code, "reason": reason})),
        })
        .collect()
    }

    /// `seq` of the deliveries that left since the last look.
    fn seqs(&mut self) -> Vec<u64> {
        let frames = self.frames().into_iter();
        frames.filter(|(_, f)| f["type"] == "deliver").map(|(_, f)| f["seq"].as_u64().unwrap()).collect()
    }

    /// Invokes that left: link, id, action.
    fn invokes(&mut self) -> Vec<(LinkId, String, String)> {
        let frames = self.frames().into_iter().filter(|(_, f)| f["type"] == "action.invoke");
        frames
            .map(|(link, f)| {
                (link, f["invocation_id"].as_str().unwrap().to_string(), f["action"].as_str().unwrap().to_string())
            })
            .collect()
    }

    fn pass(&mut self, ms: u64) {
        self.mono += ms;
        let now = self.now();
        self.engine.fire(now);
    }

    fn dm(&mut self, from: u64, to: &str, text: &str) -> Value {
        self.data(Engine::send_dm, from, &[], json!({"to": to, "text": text}))
    }

    fn ack(&mut self, link: LinkId, agent: &str, up_to: u64) {
        self.hear(link, json!({"type": "delivery.ack", "v": 1, "agent": agent, "up_to_seq": up_to}));
    }

    fn status(&mut self, agent: &str) -> Value {
        self.data(Engine::get_agent, 0, &[agent], json!({}))["status"].clone()
    }

    fn error(&mut self) -> Value {
        let frames = self.frames();
        let error = frames.iter().find(|(_, f)| f["type"] == "error");
        error.map(|(_, f)| f["code"].clone()).unwrap_or_else(|| panic!("no error in {frames:?}"))
    }

    /// What a restart sees.
    fn restart(mut self) -> World {
        let mut engine = Engine::new(true);
        for line in self.engine.take_lines() {
            engine.replay(serde_json::from_str(&line).unwrap());
        }
        let mut world = World { engine, ..self };
        let now = world.now();
        world.engine.wake(now);
        world
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

#[test]
fn seq_survives_release_registration_and_restart() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let (bob, al) = (w.agent("bob"), w.located(link, "al"));
    w.dm(bob, "al", "one");
    w.dm(bob, "al", "two");
    assert_eq!(w.seqs(), [1, 2]);
    w.ack(link, "al", 2);
    w.hear(link, json!({"type": "agent.deregister", "v": 1, "agent_id": al.to_string()}));
    w.dm(bob, "al", "three");
    assert_eq!(w.seqs(), Vec::<u64>::new(), "nobody has it");
    let mut w = w.restart();
    let token = w.mint("n", "node_1");
    let link = w.open(&token);
    w.register(link, "n", "node_1", json!([]));
    w.hear(link, json!({"type": "agent.register", "v": 1, "id": "ar", "name": "al"}));
    assert_eq!(w.seqs(), [3], "the backlog follows the reply");
    w.dm(bob, "al", "four");
    assert_eq!(w.seqs(), [4]);
}

#[test]
fn an_ack_is_cumulative_and_by_name_at_this_node() {
    let mut w = World::new();
    let (one, two) = (w.node("n1", "node_1", json!([])), w.node("n2", "node_2", json!([])));
    let bob = w.agent("bob");
    w.located(one, "al");
    for text in ["a", "b", "c"] {
        w.dm(bob, "al", text);
    }
    assert_eq!(w.seqs(), [1, 2, 3]);
    let replay = |w: &mut World| {
        w.register(one, "n1", "node_1", json!([]));
        w.seqs()
    };
    w.ack(two, "al", 3);
    assert_eq!(replay(&mut w), [1, 2, 3], "an ack of another node is no news");
    w.ack(one, "nobody", 3);
    w.ack(one, "al", 2);
    assert_eq!(replay(&mut w), [3]);
    w.ack(one, "al", 1);
    assert_eq!(replay(&mut w), [3], "a lower ack takes nothing back");
    w.ack(one, "al", 3);
    assert_eq!(replay(&mut w), Vec::<u64>::new());
    let inbox = w.data(Engine::list_deliveries, 0, &[], json!({}));
    assert_eq!(inbox, json!([]));
}

#[test]
fn an_ack_marks_the_message_read() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    let al = w.located(link, "al");
    let sent = w.dm(bob, "al", "hi");
    assert_eq!(w.data(Engine::inbox, al, &[], json!({}))["unread_dms"][0]["unread_count"], 1);
    w.ack(link, "al", 1);
    assert_eq!(w.data(Engine::inbox, al, &[], json!({}))["unread_dms"], json!([]));
    let readers = w.data(Engine::readers, bob, &[sent["message"]["id"].as_str().unwrap()], json!({}));
    assert_eq!(readers[0]["agent_name"], "al");
}

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
    assert_eq!(state(&mut w, "work", work), "pending", "not listed: offered again after a pause");
    w.pass(5_000);
    assert_eq!(w.invokes(), [(link, work.to_string(), "work".to_string())], "the same id again");
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
fn payloads_have_the_keys_of_their_type() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    w.located(link, "al");
    let payload = |w: &mut World| {
        let frame = w.frames().remove(0).1;
        let mut keys: Vec<String> = frame["payload"]["data"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        (frame["payload"]["type"].as_str().unwrap().to_string(), keys.join(" "), frame)
    };
    let posted = w.data(Engine::post_to_channel, bob, &["general"], json!({"text": "hi @al", "mode": "steer"}));
    let (kind, keys, frame) = payload(&mut w);
    assert_eq!(kind, "message.created");
    assert_eq!(
        keys,
        "agent_id agent_name attachments blocks channel_id channel_name created_at from_name id injection_mode mentions metadata text thread_id"
    );
    assert_eq!((&frame["mode"], &frame["payload"]["data"]["mentions"]), (&json!("steer"), &json!(["al"])));
    let id = posted["id"].as_str().unwrap();
    w.data(Engine::reply, bob, &[id], json!({"text": "re"}));
    let (kind, keys, frame) = payload(&mut w);
    assert_eq!((kind.as_str(), &frame["payload"]["data"]["thread_id"]), ("thread.reply", &posted["id"]));
    assert!(!keys.contains("attachments"), "{keys}");
    w.dm(bob, "al", "psst");
    let (kind, keys, frame) = payload(&mut w);
    assert_eq!(kind, "dm.received");
    assert_eq!(keys, "agent_id attachments conversation_id created_at from_name id injection_mode message text to");
    assert_eq!(
        frame["delivery_id"],
        format!("del_{}_{}", frame["msg_id"].as_str().unwrap(), frame["agent_id"].as_str().unwrap())
    );
    let group = w.data(Engine::create_group, bob, &[], json!({"participants": ["al"]}))["id"].clone();
    w.data(Engine::post_to_conversation, bob, &[group.as_str().unwrap()], json!({"text": "all"}));
    let (kind, keys, _) = payload(&mut w);
    assert_eq!(kind, "group_dm.received");
    assert!(!keys.contains("to ") && !keys.ends_with(" to"), "{keys}");
    w.data(Engine::react, bob, &[id], json!({"emoji": "+1"}));
    let (kind, _, frame) = payload(&mut w);
    assert_eq!((kind.as_str(), &frame["seq"], &frame["msg_id"]), ("message.reacted", &json!(0), &posted["id"]));
}

#[test]
fn an_idempotency_key_has_one_effect() {
    let mut w = World::new();
    let bob = w.agent("bob");
    w.agent("al");
    let call = |w: &World| Call { ws: w.ws, agent: bob, ..Call::default() };
    let code = |claim: Result<idempotency::Claim, Fail>| claim.err().map(|fail| fail.code);
    let asking = call(&w);
    assert_eq!(w.engine.claim_key(&asking, "k", "r1"), Ok(idempotency::Claim::Fresh));
    assert_eq!(code(w.engine.claim_key(&asking, "k", "r1")), Some("idempotency_in_progress"));
    assert_eq!(code(w.engine.claim_key(&asking, "k", "r2")), Some("idempotency_key_reused"));
    w.engine.remember(&asking, "k", 201, json!({"ok": true}));
    let mut w = w.restart();
    let again = w.engine.claim_key(&asking, "k", "r1").unwrap();
    assert!(matches!(again, idempotency::Claim::Replay(known) if known.status == 201), "survives a restart");
    assert_eq!(code(w.engine.claim_key(&asking, "k", "r2")), Some("idempotency_key_reused"));
    assert_eq!(code(w.engine.claim_key(&asking, "", "r")), Some("invalid_request"));
    assert_eq!(code(w.engine.claim_key(&asking, "a b", "r")), Some("invalid_request"));
    w.mono += idempotency::REMEMBERED_MS + 1;
    let now = w.now();
    assert_eq!(w.engine.at(now).claim_key(&asking, "k", "r2"), Ok(idempotency::Claim::Fresh), "24 h later");
}

#[test]
fn a_replayed_journal_is_the_same_state() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([{"name": "work"}]));
    let bob = w.agent("bob");
    w.located(link, "al");
    let posted = w.data(Engine::post_to_channel, bob, &["general"], json!({"text": "hi"}));
    w.data(Engine::react, bob, &[posted["id"].as_str().unwrap()], json!({"emoji": "x"}));
    w.dm(bob, "al", "a");
    w.ack(link, "al", 1);
    w.engine.close_link(link);
    let before: Vec<String> = w.engine.snapshot().map(|row| serde_json::to_string(&row).unwrap()).collect();
    let w = w.restart();
    let mut after: Vec<String> = w.engine.snapshot().map(|row| serde_json::to_string(&row).unwrap()).collect();
    // `delivered` is a fact of the connection, and `Acked` sets it back to nothing either way.
    let undelivered = |line: &String| !line.contains("\"delivered\"") && !line.contains("\"queued\"");
    let mut before: Vec<String> = before.into_iter().filter(undelivered).collect();
    after.retain(undelivered);
    before.iter_mut().chain(after.iter_mut()).for_each(|line| {
        // How often a row was handed out is not kept.
        *line = line.replace("\"attempts\":1", "\"attempts\":0");
    });
    before.sort();
    after.sort();
    assert_eq!(before, after);
}

#[test]
fn a_full_mailbox_buries_its_oldest() {
    let mut w = World::new();
    let bob = w.agent("bob");
    let al = w.agent("al");
    w.engine.durable = false;
    for _ in 0..MAILBOX_OPEN + 3 {
        w.dm(bob, "al", "x");
    }
    let mailbox = &w.engine.t.mailboxes[&al];
    assert_eq!((mailbox.open, mailbox.last_seq), (MAILBOX_OPEN, MAILBOX_OPEN as u64 + 3));
    assert_eq!(mailbox.rows[&3].status, rows::DeliveryStatus::DeadLettered);
    assert!(mailbox.rows[&4].status.open());
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

#[test]
fn a_broker_keeps_an_agent_that_also_connects_by_itself() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    let al = w.located(link, "al");
    let made = w.data(Engine::direct_node_token, al, &[], json!({}));
    let own = w.open(made["token"].as_str().unwrap());
    w.register(own, made["node_name"].as_str().unwrap(), made["node_id"].as_str().unwrap(), json!([]));
    w.frames();
    w.dm(bob, "al", "hi");
    assert_eq!(w.frames()[0].0, link);
    w.data(Engine::agent_disconnect, al, &[], json!({}));
    assert_eq!(w.status("al"), "online", "it follows its node");
    w.engine.close_link(own);
    assert_eq!(w.status("al"), "online");
}

#[test]
fn old_messages_go_and_bury_their_deliveries() {
    let mut w = World::new();
    w.engine.durable = false;
    let (bob, al) = (w.agent("bob"), w.agent("al"));
    let big = "x".repeat(MESSAGE_BYTES_KEPT / 4 + 1);
    for _ in 0..4 {
        w.dm(bob, "al", &big);
    }
    assert_eq!(w.engine.t.messages.len(), 3);
    let statuses: Vec<&str> = w.engine.t.mailboxes[&al].rows.values().map(|row| row.status.as_str()).collect();
    assert_eq!(statuses, ["dead_lettered", "queued", "queued", "queued"]);
}
