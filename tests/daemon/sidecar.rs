//! Fleet sidecars: what they declare, what is asked of them, and what becomes of it when they go.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::{Broker, KEY, STOP, Start};
use crate::engine::Engine;
use crate::fleet::Sidecar;
use crate::house::House;
use crate::road::{is_gone, signal};
use crate::scripted::Scripted;

fn pair() -> (Scripted, Broker) {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    (engine, broker)
}

fn capabilities() -> Value {
    json!([{"name": "spawn:stub", "kind": "spawn", "metadata": {"cli": "stub"}}, {"name": "deploy", "kind": "action"}])
}

impl Scripted {
    fn invoke(&self, id: &str, action: &str, input: Value) {
        let frame = json!({"v": 1, "type": "action.invoke", "invocation_id": id, "action": action, "input": input});
        self.send(&frame.to_string());
    }

    /// The result of an invocation.
    #[track_caller]
    fn result(&self, id: &str) -> Value {
        self.until(&format!("the result of {id}"), |log| {
            log.frames_of("action.result").into_iter().find(|frame| frame["invocation_id"] == id)
        })
    }

    /// The next heartbeat, after the first `skip`, that says whether handlers are there.
    #[track_caller]
    fn heartbeat(&self, live: bool, skip: usize) -> Value {
        self.until(&format!("a heartbeat with handlers_live {live}"), |log| {
            let heartbeats = log.frames_of("node.heartbeat");
            heartbeats.into_iter().skip(skip).find(|frame| frame["handlers_live"] == live)
        })
    }

    fn heartbeats(&self) -> usize {
        self.log().frames_of("node.heartbeat").len()
    }
}

#[test]
fn a_sidecar_declares_the_node_and_answers_what_is_asked_of_it() {
    let (engine, broker) = pair();
    let first = engine.frame("node.register", 0);
    assert_eq!(first["capabilities"], json!([]), "nothing is claimed before somebody can do it");
    assert_eq!(engine.frame("node.heartbeat", 0)["handlers_live"], false);
    let mut sidecar = Sidecar::connect(&broker);
    let hello = sidecar.ask("hello", json!({"client_name": "c", "client_version": "1"}));
    assert_eq!(hello, json!({"broker_version": env!("CARGO_PKG_VERSION"), "protocol_version": 2}));
    let manifest = json!({"name": "gpu-box", "capabilities": capabilities(), "max_agents": 4, "tags": ["gpu"],
        "version": "fleet/2"});
    assert_eq!(sidecar.ask("register_node", json!({"manifest": manifest})), json!({"registered": true}));
    let register = engine.frame("node.register", 1);
    for key in ["name", "capabilities", "max_agents", "tags", "version"] {
        assert_eq!(register[key], manifest[key], "{register}");
    }
    assert_eq!(register["node_id"], first["node_id"]);
    assert_eq!(sidecar.ask("register_handlers", json!({"names": ["deploy", " "]})), json!({"handlers_live": true}));
    let heartbeat = engine.heartbeat(true, 0);
    assert_eq!(heartbeat["capabilities"], manifest["capabilities"], "{heartbeat}");

    engine.invoke("i1", "deploy", json!({"to": ["a", null]}));
    assert_eq!(sidecar.invoked(), ("i1".into(), "deploy".into(), json!({"to": ["a", null]})));
    let output = json!({"done": [1, null, {"x": null}]});
    let answer = sidecar.ask("handler_result", json!({"invocation_id": "i1", "output": output}));
    assert_eq!(answer, json!({"completed": true}));
    let result = engine.result("i1");
    assert_eq!((&result["output"], result.get("error")), (&output, None), "{result}");

    engine.invoke("i2", "deploy", Value::Null);
    assert_eq!(sidecar.invoked().0, "i2");
    sidecar.ask("handler_result", json!({"invocation_id": "i2", "error": "no disk"}));
    let result = engine.result("i2");
    assert_eq!((result.get("output"), &result["error"]), (None, &json!("no disk")), "{result}");

    // An answer to nothing, and what the handlers do not cover.
    let (code, _) = sidecar.fails("handler_result", json!({"invocation_id": "i2", "output": 1}));
    assert_eq!(code, "unknown_invocation");
    engine.invoke("i3", "destroy", Value::Null);
    assert_eq!(engine.result("i3")["error"], "handler_unavailable");
    assert_eq!(engine.log().frames_of("action.result").len(), 3);
}

#[test]
fn f36_a_handler_spawns_while_another_answers_and_both_ids_reach_the_engine() {
    let (engine, broker) = pair();
    let mut sidecar = Sidecar::register(&broker, "box", &capabilities());
    // Its registration is answered later, by hand.
    engine.log().registers = false;
    engine.invoke("i1", "spawn:stub", json!({"name": "ann"}));
    engine.invoke("i2", "deploy", json!({}));
    assert_eq!(sidecar.invoked(), ("i1".into(), "spawn:stub".into(), json!({"name": "ann"})));
    assert_eq!(sidecar.invoked().0, "i2");
    let agent = json!({"name": "ann", "runtime": "pty", "cli": broker.house.agent(), "session_id": "s1"});
    let spawn = sidecar.say("spawn_agent", json!({"agent": agent, "invocation_id": "i1", "skip_relay_prompt": false}));
    let register = engine.frame("agent.register", 0);
    assert_eq!(
        (&register["name"], &register["invocation_id"], &register["session_ref"], &register["resumable"]),
        (&json!("ann"), &json!("i1"), &json!("s1"), &json!(true))
    );
    sidecar.ask("handler_result", json!({"invocation_id": "i2", "output": "between"}));
    assert_eq!(engine.result("i2")["output"], "between");
    let data = json!({"agent_id": "id_ann", "token": "at_live_ann", "name": "ann"});
    engine.send(&json!({"v": 1, "type": "reply", "id": register["id"], "ok": true, "data": data}).to_string());
    let answer = sidecar.answer(&spawn);
    let result = &answer["payload"]["result"];
    assert_eq!(
        (&result["success"], &result["name"], &result["sessionId"]),
        (&json!(true), &json!("ann"), &json!("s1"))
    );
    sidecar.ask("handler_result", json!({"invocation_id": "i1", "output": result}));
    engine.until("an inventory with it", |log| {
        let last = log.frames_of("inventory.sync").pop()?;
        let listed = json!([{"agent_id": "id_ann", "name": "ann", "invocation_id": "i1", "session_ref": "s1"}]);
        (last["agents"] == listed).then_some(())
    });
    engine.send(&engine.message("ann", 1, "to the spawned"));
    broker.until_read("ann", "to the spawned");
    // What the routes do, over the same socket.
    let agents = sidecar.ask("list_agents", json!({}));
    assert_eq!(agents["agents"][0]["name"], "ann");
    assert_eq!(sidecar.ask("send_input", json!({"name": "ann", "data": "typed\r"}))["bytes_written"], 6);
    broker.until_read("ann", "typed");
    let sent = sidecar.ask("send_message", json!({"to": "ann", "text": "a word", "from": "box", "data": {"k": 1}}));
    assert_eq!(sent["success"], true, "{sent}");
    broker.until_read("ann", "a word");
    let joined = sidecar.ask("subscribe_channels", json!({"name": "ann", "channels": ["ops"]}));
    assert!(joined["channels"].as_array().expect("a list").contains(&json!("ops")), "{joined}");
    let left = sidecar.ask("unsubscribe_channels", json!({"name": "ann", "channels": ["OPS"]}));
    assert!(!left["channels"].as_array().expect("a list").contains(&json!("ops")), "{left}");
    let (code, message) = sidecar.fails("send_input", json!({"name": "nobody", "data": "x"}));
    assert_eq!((code.as_str(), message.as_str()), ("frame_failed", "agent_not_found: no worker named 'nobody'"));
    let (code, message) = sidecar.fails("spawn_agent", json!({"agent": agent}));
    assert_eq!((code.as_str(), message.as_str()), ("frame_failed", "agent 'ann' already exists"));
    let released = sidecar.ask("release_agent", json!({"name": "ann"}));
    assert_eq!((&released["success"], &released["name"]), (&json!(true), &json!("ann")), "{released}");
    assert!(broker.listed().is_empty());
}

#[test]
fn a_spawn_of_the_engine_goes_through_the_sidecar() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    let mut sidecar = Sidecar::register(&broker, "box", &capabilities());
    broker.until("the node under its new name", || {
        engine.online_nodes().iter().any(|(_, name)| name == "box").then_some(())
    });
    let cli = house.agent();
    let spawned = std::thread::scope(|scope| {
        let spawn = scope.spawn(|| engine.spawn("box", "ann", "stub"));
        let (id, name, input) = sidecar.invoked();
        assert_eq!((name.as_str(), &input["name"]), ("spawn:stub", &json!("ann")));
        let agent = json!({"name": "ann", "cli": cli, "channels": ["general"]});
        let result = sidecar.ask("spawn_agent", json!({"agent": agent, "invocation_id": id}));
        // Its inventory has completed the invocation before, or this does.
        let told = sidecar.say("handler_result", json!({"invocation_id": id, "output": result}));
        sidecar.answer(&told);
        spawn.join().expect("no panic")
    });
    assert_eq!(spawned["status"], "completed", "{spawned}");
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "through the sidecar");
    broker.until_read("ann", "through the sidecar");
}

#[test]
fn f34_a_second_sidecar_takes_over_and_the_end_of_the_first_changes_nothing() {
    let (engine, broker) = pair();
    let mut first = Sidecar::register(&broker, "one", &capabilities());
    engine.invoke("i1", "deploy", json!({}));
    assert_eq!(first.invoked().0, "i1");
    let mut second = Sidecar::register(&broker, "two", &json!([{"name": "deploy"}]));
    assert_eq!(first.closed(), (1000, "superseded".into()));
    assert_eq!(engine.result("i1")["error"], "handler_unavailable");
    engine.until("the manifest of the second", |log| {
        (log.frames_of("node.register").last()?["name"] == "two").then_some(())
    });
    drop(first);
    engine.invoke("i2", "deploy", json!({}));
    assert_eq!(second.invoked().0, "i2");
    second.ask("handler_result", json!({"invocation_id": "i2", "output": 2}));
    assert_eq!(engine.result("i2")["output"], 2);
    broker.spawn("ann");
    engine.send(&engine.message("ann", 1, "still delivered"));
    broker.until_read("ann", "still delivered");
    let log = engine.log();
    assert_eq!((log.upgrades, log.closes.len()), (1, 0), "the node's own socket was left alone");
    assert!(log.frames_of("node.deregister").is_empty());
    assert_eq!(log.frames_of("node.heartbeat").last().expect("one")["handlers_live"], true);
}

#[test]
fn f34_a_sidecar_that_deregisters_leaves_the_node_deliverable() {
    let (engine, broker) = pair();
    let mut sidecar = Sidecar::register(&broker, "box", &capabilities());
    broker.spawn("ann");
    engine.invoke("i1", "deploy", json!({}));
    assert_eq!(sidecar.invoked().0, "i1");
    let heartbeats = engine.heartbeats();
    assert_eq!(sidecar.ask("deregister_node", json!({})), json!({"deregistered": true}));
    assert_eq!(sidecar.closed(), (1000, "deregistered".into()));
    assert_eq!(engine.result("i1")["error"], "handler_unavailable");
    let bootstrap = engine.frame("node.register", 0);
    let last = engine.until("the bootstrap manifest", |log| {
        log.frames_of("node.register").into_iter().skip(2).find(|frame| frame["capabilities"] == json!([]))
    });
    assert_eq!((&last["name"], &last["version"]), (&bootstrap["name"], &bootstrap["version"]), "{last}");
    assert_eq!(engine.heartbeat(false, heartbeats)["capabilities"], json!([]));
    engine.send(&engine.message("ann", 1, "after it"));
    broker.until_read("ann", "after it");
    let log = engine.log();
    assert_eq!((log.upgrades, log.closes.len(), log.frames_of("node.deregister").len()), (1, 0, 0));
}

#[test]
fn a_sidecar_that_just_goes_takes_its_handlers_with_it() {
    let (engine, broker) = pair();
    let mut sidecar = Sidecar::register(&broker, "box", &capabilities());
    engine.heartbeat(true, 0);
    engine.invoke("i1", "deploy", json!({}));
    assert_eq!(sidecar.invoked().0, "i1");
    let heartbeats = engine.heartbeats();
    drop(sidecar);
    assert_eq!(engine.result("i1")["error"], "handler_unavailable");
    let heartbeat = engine.heartbeat(false, heartbeats);
    assert_eq!(
        (&heartbeat["capabilities"], &heartbeat["name"]),
        (&capabilities(), &json!("box")),
        "the manifest stays"
    );
    engine.invoke("i2", "deploy", json!({}));
    assert_eq!(engine.result("i2")["error"], "handler_unavailable");
    // The next one goes on where it was.
    let mut next = Sidecar::register(&broker, "box", &capabilities());
    engine.invoke("i3", "deploy", json!({}));
    assert_eq!(next.invoked().0, "i3");
}

/// Writes down that it was started, how, and stays.
fn recorder(broker: &Broker, before: &str) -> Value {
    let house = &broker.house;
    let script = format!(
        "{before}\nenv > '{0}/sidecar-env.'$$\npwd > '{0}/sidecar-cwd'\necho 'the sidecar speaks'\necho $$ >> '{0}/started'\n\
         while :; do sleep 1; done\n",
        house.path("seen").display()
    );
    std::fs::write(house.path("recorder.sh"), script).unwrap();
    json!({"argv": ["/bin/sh", house.path("recorder.sh")], "cwd": house.dir("elsewhere"),
        "env": {"SIDECAR": "yes", "HOME": "/nowhere"}, "restart_policy": {"cooldown_ms": 100}})
}

/// Process ids of the starts so far.
fn starts(broker: &Broker) -> Vec<u32> {
    let text = std::fs::read_to_string(broker.house.path("seen/started")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[track_caller]
fn started(broker: &Broker, number: usize) -> u32 {
    broker.until(&format!("start number {number} of the sidecar"), || starts(broker).get(number - 1).copied())
}

fn supervised(broker: &Broker, supervision: &Value) -> Sidecar {
    let mut sidecar = Sidecar::connect(broker);
    let payload = json!({"manifest": {"name": "box", "capabilities": []}, "supervision": supervision});
    sidecar.ask("register_node", payload);
    sidecar
}

#[test]
fn a_supervised_sidecar_is_started_again_and_ends_with_the_broker() {
    let house = House::new();
    let engine = Scripted::start();
    let start = Start::at(&house, &engine.url(), "").env("SIDECAR", "no").env("RELAY_NODE_TOKEN", "nt_live_pinned");
    let mut broker = start.arg("--persist").online();
    let sidecar = supervised(&broker, &recorder(&broker, ""));
    assert!(starts(&broker).is_empty(), "it is there: nothing is to be started");
    drop(sidecar);
    let first = started(&broker, 1);
    let environment = std::fs::read_to_string(house.path(&format!("seen/sidecar-env.{first}"))).unwrap();
    assert!(environment.contains("SIDECAR=yes\n") && environment.contains("HOME=/nowhere\n"), "{environment}");
    for secret in [KEY, "RELAY_BROKER_API_KEY", "nt_live_pinned", "RELAY_NODE_TOKEN"] {
        assert!(!environment.contains(secret), "{environment}");
    }
    let cwd = std::fs::read_to_string(house.path("seen/sidecar-cwd")).unwrap();
    assert_eq!(cwd.trim(), house.path("elsewhere").display().to_string());
    signal(first, Signal::KILL);
    let second = started(&broker, 2);
    broker.until("the first to be buried", || is_gone(first));
    assert_ne!(first, second);
    broker.process.says("the sidecar speaks", STOP);
    assert_eq!(broker.process.out().lines().count(), 1, "stdout is not its place: {}", broker.process.out());
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}\n{}", broker.seen());
    assert_eq!(house.processes(), [], "{}", broker.seen());
    assert_eq!(starts(&broker), [first, second]);
}

#[test]
fn a_supervised_sidecar_that_will_not_end_is_killed_with_all_that_it_started() {
    let (_engine, mut broker) = pair();
    let stubborn = "trap '' TERM HUP INT\n(setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &)";
    drop(supervised(&broker, &recorder(&broker, stubborn)));
    started(&broker, 1);
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}\n{}", broker.seen());
    assert_eq!(broker.house.processes(), [], "{}", broker.seen());
}

#[test]
fn how_a_supervised_sidecar_ended_is_told_and_it_is_given_up_in_the_end() {
    let (_engine, broker) = pair();
    let mut supervision = recorder(&broker, "");
    // Its orphan ends a moment later, as a child of the broker.
    let script = format!("(sleep 0.05 &)\necho $$ >> '{}'\nexit 7\n", broker.house.path("seen/started").display());
    std::fs::write(broker.house.path("recorder.sh"), script).unwrap();
    supervision["restart_policy"]["max_consecutive_failures"] = json!(2);
    drop(supervised(&broker, &supervision));
    let told = broker.until("the sidecar to be given up", || {
        let sidecar = broker.status()["sidecar"].take();
        (sidecar["supervised"] == false).then_some(sidecar)
    });
    assert!(told["last_error"].as_str().is_some_and(|error| error.contains("ended with code 7")), "{told}");
    assert_eq!(starts(&broker).len(), 2);
}

#[test]
fn a_sidecar_that_deregisters_is_not_started_again() {
    let (_engine, broker) = pair();
    let mut supervision = recorder(&broker, "");
    supervision["env"]["RELAY_BROKER_API_KEY"] = json!("its own");
    drop(supervised(&broker, &supervision));
    let pid = started(&broker, 1);
    let environment = std::fs::read_to_string(broker.house.path(&format!("seen/sidecar-env.{pid}"))).unwrap();
    assert!(environment.contains("RELAY_BROKER_API_KEY=its own\n"), "what it asked for it gets: {environment}");
    // The one that was started comes back, here by another hand, and says goodbye.
    let mut sidecar = supervised(&broker, &supervision);
    sidecar.ask("deregister_node", json!({}));
    assert_eq!(sidecar.closed().0, 1000);
    broker.until("its process to be gone", || is_gone(pid));
    // Longer than the cooldown: nothing follows.
    let deadline = std::time::Instant::now() + Duration::from_secs(1);
    broker.until("a second", || (std::time::Instant::now() > deadline).then_some(()));
    assert_eq!(starts(&broker), [pid]);
}

#[test]
fn a_sidecar_may_ask_for_the_end_and_is_told_of_it() {
    let (_engine, mut broker) = pair();
    let mut sidecar = Sidecar::register(&broker, "box", &capabilities());
    assert_eq!(sidecar.ask("shutdown", json!({})), json!({"status": "shutting_down"}));
    assert_eq!(sidecar.closed().0, 1000);
    assert_eq!(broker.process.wait(STOP).0, Some(0), "{}", broker.seen());
}

#[test]
fn health_and_status_say_how_the_node_is() {
    let (engine, broker) = pair();
    let health = || broker.ok("GET", "/health", None);
    broker.until("health to say that it is online", || (health()["nodeState"] == "online").then_some(()));
    for body in [health(), broker.status()] {
        assert_eq!(body["nodeConnected"], true, "{body}");
        assert_eq!(body["nodeDelivery"], json!({"tokenPresent": true, "connected": true}), "{body}");
        assert_eq!(body["deadLetterCount"], 0, "{body}");
    }
    engine.send(&engine.message("ghost", 1, "for nobody"));
    broker.until("a dead letter", || (health()["deadLetterCount"] == 1).then_some(()));
    assert_eq!(broker.status()["deadLetterCount"], 1);
    engine.log().upgrade = crate::scripted::Upgrade::Refuse(503);
    engine.cut();
    broker.until("health to say that it is not", || (health()["nodeConnected"] == false).then_some(()));
    let (health, status) = (health(), broker.status());
    assert_eq!((&health["nodeState"], &status["node"]["state"]), (&json!("connecting"), &json!("connecting")));
    assert_eq!(health["nodeDelivery"], json!({"tokenPresent": true, "connected": false}));
}
