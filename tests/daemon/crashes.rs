//! What ends without warning: brokers, engines, programs. Messages outlive all of them and are typed once.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::broker::{Broker, Start};
use crate::client;
use crate::engine::Engine;
use crate::house::House;
use crate::process::has_ended;
use crate::road::{is_gone, signal};
use crate::scripted::Scripted;
use crate::until::LONG;

#[track_caller]
fn kill(mut broker: Broker) {
    broker.process.signal(Signal::KILL);
    broker.process.wait(LONG);
}

/// Read by this life of the agent, so and so often.
#[track_caller]
fn read_once_by(broker: &Broker, agent: &str, pid: u32, texts: &[&str]) {
    let read = || broker.house.read_by_life(agent, pid).unwrap_or_default();
    for text in texts {
        broker.until(&format!("{text:?} read by the new {agent}"), || read().contains(text).then_some(()));
    }
    for text in texts {
        assert_eq!(read().matches(text).count(), 1, "{text:?} in {}", read());
    }
}

#[test]
fn f35_what_was_unread_when_the_broker_was_killed_is_typed_once_in_the_next_life() {
    for args in [&["--persist"][..], &[]] {
        let house = House::new();
        let engine = Engine::start(&house);
        let start = || args.iter().fold(Start::on(&house, &engine), |start, arg| start.arg(arg));
        let bob = engine.stranger("bob");
        let broker = start().online();
        let first = broker.spawn("ann");
        let token = broker.token_of("ann");
        engine.dm(&bob, "ann", "read and done");
        broker.until_read("ann", "read and done");
        broker.until("its ack", || (engine.unacked(&token) == 0).then_some(()));
        signal(first, Signal::STOP);
        engine.dm(&bob, "ann", "typed but unread");
        broker.until("an injection", || (broker.told("delivery_injected", "ann").len() == 2).then_some(()));
        engine.dm(&bob, "ann", "queued behind it");
        broker.until("it in the queue", || (broker.status()["pending_delivery_count"] == 2).then_some(()));
        kill(broker);

        let broker = start().online();
        // Its terminal is gone, and it with it.
        broker.within(Duration::from_secs(3), "the end of the old program", || has_ended(first));
        assert!(!house.read_by("ann").contains("typed but unread"));
        // Sent while nobody has that name: kept by the engine.
        engine.dm(&bob, "ann", "sent in between");
        let second = broker.spawn("ann");
        let token = broker.token_of("ann");
        read_once_by(&broker, "ann", second, &["typed but unread", "queued behind it", "sent in between"]);
        assert!(!house.read_by_life("ann", second).unwrap().contains("read and done"), "{args:?}: typed again");
        broker.until("all acks", || (engine.unacked(&token) == 0).then_some(()));
        assert_eq!(broker.ok("GET", "/api/dead-letters", None)["count"], 0);
    }
}

#[test]
fn agents_die_with_a_broker_that_is_killed_and_the_next_one_starts_at_once() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).arg("--persist").online();
    let pids: Vec<u32> = (0..3).map(|number| broker.spawn(&format!("a{number}"))).collect();
    let file = broker.connection_file();
    kill(broker);
    assert!(file.exists(), "a killed broker cleans nothing up");
    let mut broker = Start::on(&house, &engine).arg("--persist").online();
    for pid in pids {
        broker.within(Duration::from_secs(3), "the end of an agent", || has_ended(pid));
    }
    assert!(broker.listed().is_empty(), "agents are not started again by themselves");
    broker.until("agents offline at the engine", || {
        (0..3).all(|n| engine.agent(&format!("a{n}")).is_none_or(|row| row["status"] == "offline")).then_some(())
    });
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    assert!(!file.exists());
}

/// The state file, once it says something.
#[track_caller]
fn until_in_state_file(broker: &Broker, text: &str) -> std::path::PathBuf {
    let directory = broker.connection_file().parent().expect("a directory").to_path_buf();
    broker.until("the agent in the state file", || {
        let mut files = fs::read_dir(&directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let file = files.find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("state-")))?;
        fs::read_to_string(&file).ok()?.contains(text).then_some(file)
    })
}

#[test]
fn d9_a_program_that_ignored_the_hangup_is_ended_by_the_next_start() {
    for is_the_same in [true, false] {
        let house = House::new();
        let engine = Engine::start(&house);
        let start = || Start::on(&house, &engine).arg("--persist").online();
        let broker = start();
        let script = "trap '' HUP; sleep 1000 & setsid sleep 1000 & while :; do sleep 1; done";
        let pid = broker.spawn_program("ann", &format!("/bin/sh -c \"{script}\""));
        let sleepers = || house.processes().iter().filter(|(_, line)| line == "sleep 1000").count();
        broker.until("both children", || (sleepers() == 2).then_some(()));
        let state = until_in_state_file(&broker, "process_start");
        kill(broker);
        assert_eq!((has_ended(pid), sleepers()), (None, 2), "the hang-up is ignored");
        if !is_the_same {
            // As if the id belonged to another process by now.
            let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
            text["agents"]["ann"]["process_start"] = json!(1);
            text["agents"]["ann"]["mark"] = json!("another");
            fs::write(&state, text.to_string()).unwrap();
        }
        let broker = start();
        if is_the_same {
            assert_eq!((has_ended(pid), sleepers()), (Some(()), 0), "{}", broker.seen());
        } else {
            assert_eq!((has_ended(pid), sleepers()), (None, 2), "{}", broker.seen());
        }
        assert!(broker.listed().is_empty());
    }
}

#[test]
fn d9_what_a_program_has_started_and_left_is_ended_by_the_next_start() {
    let house = House::new();
    let engine = Engine::start(&house);
    let start = || Start::on(&house, &engine).arg("--persist").online();
    let broker = start();
    // The program ends with its terminal; a server that it started, and one of another session, do not.
    let script = "(trap '' HUP; exec sleep 1000) & setsid sleep 1000 & while :; do sleep 1; done";
    let pid = broker.spawn_program("ann", &format!("/bin/sh -c \"{script}\""));
    let sleepers = || house.processes().iter().filter(|(_, line)| line == "sleep 1000").count();
    broker.until("both children", || (sleepers() == 2).then_some(()));
    until_in_state_file(&broker, "\"mark\"");
    kill(broker);
    crate::until::until(
        LONG,
        "the end of the program",
        || house.processes().iter().map(|(_, line)| format!("{line}\n")).collect(),
        || has_ended(pid),
    );
    assert_eq!(sleepers(), 2);
    let broker = start();
    assert_eq!(sleepers(), 0, "{}", broker.seen());
}

#[test]
fn an_engine_that_is_killed_and_comes_back_delivers_what_it_kept_and_what_came_since() {
    let house = House::new();
    let data = house.dir("engine-data");
    let mut engine = Engine::open(&house, "127.0.0.1:0", Some(&data));
    engine.key = engine.make_workspace("kept");
    let broker = Start::on(&house, &engine).online();
    let pid = broker.spawn("ann");
    let (token, bob) = (broker.token_of("ann"), engine.stranger("bob"));
    signal(pid, Signal::STOP);
    engine.dm(&bob, "ann", "before the crash");
    broker.until_told("delivery_injected", "ann");
    let (address, key) = (engine.address.clone(), engine.key.clone());
    engine.kill();
    broker.until_node("connecting");
    signal(pid, Signal::CONT);
    broker.until_read("ann", "before the crash");
    assert_eq!(broker.listed(), ["ann"], "agents go on without an engine");

    let mut engine = Engine::open(&house, &address, Some(&data));
    engine.key = key;
    engine.dm(&bob, "ann", "after the crash");
    broker.until_online();
    broker.until_read("ann", "after the crash");
    broker.until("all acks", || (engine.unacked(&token) == 0).then_some(()));
    for text in ["before the crash", "after the crash"] {
        assert_eq!(broker.times_read("ann", text), 1, "{}", broker.house.read_by("ann"));
    }
    // The token that the program has is still good.
    engine.dm(&token, "bob", "I live");
}

#[test]
fn a_release_while_the_engine_is_away_is_told_when_it_is_back() {
    let house = House::new();
    let data = house.dir("engine-data");
    let mut engine = Engine::open(&house, "127.0.0.1:0", Some(&data));
    engine.key = engine.make_workspace("kept");
    let broker = Start::on(&house, &engine).online();
    let pid = broker.spawn("ann");
    broker.token_of("ann");
    let (address, key) = (engine.address.clone(), engine.key.clone());
    engine.kill();
    broker.until_node("connecting");
    broker.ok("DELETE", "/api/spawned/ann", None);
    assert!(is_gone(pid).is_some());
    let mut engine = Engine::open(&house, &address, Some(&data));
    engine.key = key;
    broker.until_online();
    broker.until("an agent that is gone at the engine", || {
        engine.agent("ann").filter(|row| row["node_id"].is_null() && row["status"] == "offline")
    });
    broker.spawn("ann");
}

#[test]
fn dead_letters_and_cursors_survive_a_kill_also_with_a_torn_journal() {
    let house = House::new();
    let engine = Scripted::start();
    let start = || Start::at(&house, &engine.url(), "rk_live_given").arg("--persist").arg("--name").arg("b");
    let acked = |count: usize| {
        engine.until("an ack for the ghost", |log| {
            let acks = log.frames_of("delivery.ack");
            (acks.iter().filter(|ack| ack["agent"] == "ghost" && ack["up_to_seq"] == 1).count() >= count).then_some(())
        });
    };
    let broker = start().online();
    engine.frame("inventory.sync", 0);
    engine.send(&engine.message("ghost", 1, "boo"));
    acked(1);
    // It was on disk before the ack left.
    let cwd = broker.cwd.clone();
    kill(broker);
    let journal = cwd.join(".agentworkforce/relay/journal-b.jsonl");
    assert_eq!(crate::stops::mode(&journal), 0o600);
    let mut file = fs::OpenOptions::new().append(true).open(&journal).unwrap();
    file.write_all(b"{\"torn\": [1, 2").unwrap();
    drop(file);
    for life in 2..4 {
        let broker = start().online();
        let dead = broker.ok("GET", "/api/dead-letters", None);
        assert_eq!(dead["count"], 1, "life {life}: {dead}\n{}", broker.seen());
        // Repeated by the engine: a duplicate, not a second letter.
        engine.send(&engine.message("ghost", 1, "boo"));
        acked(life);
        assert_eq!(broker.ok("GET", "/api/dead-letters", None)["count"], 1);
        kill(broker);
    }
}

#[test]
fn a_program_that_ends_is_told_with_its_true_end_and_its_mail_waits() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    let script = house.path("three.sh");
    fs::write(&script, "read line; exit 3").unwrap();
    let pid = broker.spawn_program("ann", &format!("/bin/sh {}", script.display()));
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "go");
    let exited = broker.until_told("agent_exited", "ann");
    assert_eq!((&exited["code"], &exited["signal"]), (&json!(3), &json!(null)), "{exited}");
    assert!(is_gone(pid).is_some());
    assert!(broker.listed().is_empty());
    broker.until("offline at the engine", || engine.agent("ann").filter(|row| row["node_id"].is_null()));
    let pid = broker.spawn("bert");
    broker.token_of("bert");
    signal(pid, Signal::KILL);
    let exited = broker.until_told("agent_exited", "bert");
    assert_eq!((&exited["code"], &exited["signal"]), (&json!(null), &json!("9")), "{exited}");
    let kinds: Vec<_> = broker.events().iter().filter(|e| e["name"] == "bert").map(|e| e["kind"].clone()).collect();
    let place = |kind: &str| kinds.iter().position(|known| known == kind);
    assert_eq!(place("agent_spawned"), Some(0), "{kinds:?}");
    assert!(place("agent_exit") < place("agent_exited"), "{kinds:?}");
}

#[test]
fn f33_without_an_engine_a_spawn_is_answered_in_time_and_others_are_not_kept_waiting() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    broker.spawn("ann");
    engine.kill();
    broker.until_node("connecting");
    let body = json!({"name": "bert", "cli": house.agent()});
    std::thread::scope(|scope| {
        let spawn = scope.spawn(|| (Instant::now(), broker.spawn_with(&body), Instant::now()));
        while !spawn.is_finished() {
            let asked = Instant::now();
            assert_eq!(broker.listed().first().map(String::as_str), Some("ann"));
            assert!(asked.elapsed() < Duration::from_secs(2), "the list took {:?}", asked.elapsed());
        }
        let (began, answer, ended) = spawn.join().unwrap();
        assert!(ended - began < Duration::from_secs(25), "took {:?}", ended - began);
        let body = answer.json();
        // It runs, without an identity, and its starter is told.
        assert_eq!(answer.status, 200, "{body}");
        let warning = body["warning"].as_str().unwrap_or_default();
        assert!(warning.starts_with("failed to pre-register worker 'bert': "), "{body}");
        assert!(!body["pre_registered"].as_bool().unwrap_or_default());
    });
    // Those that run go on.
    broker.ok("POST", "/api/send", Some(&json!({"to": "ann", "message": "among ourselves"})));
    broker.until_read("ann", "among ourselves");
}

#[test]
fn a_broker_with_its_engine_inside_loses_nothing_either() {
    let house = House::new();
    let data = house.path("engine-data").display().to_string();
    let start = || Start::at(&house, "", "").arg("--local").arg("--persist").arg("--data").arg(&data);
    let engine_of = |broker: &Broker| {
        let session = broker.ok("GET", "/api/session", None);
        let base = session["relay_base_url"].as_str().unwrap().trim_start_matches("http://").to_string();
        (base, session["workspace_key"].as_str().unwrap().to_string())
    };
    let mut broker = start().online();
    let first = broker.spawn("ann");
    broker.spawn("bert");
    let credential = format!("Authorization: Bearer {}", broker.token_of("bert"));
    signal(first, Signal::STOP);
    let (base, key) = engine_of(&broker);
    let dm = json!({"to": "ann", "text": "over the crash of everything"});
    assert_eq!(client::call(&base, &credential, "POST", "/v1/dm", Some(&dm)).unwrap().status, 201);
    broker.until_told("delivery_injected", "ann");
    broker.process.signal(Signal::KILL);
    broker.process.wait(LONG);

    let mut broker = start().online();
    assert_eq!(engine_of(&broker).1, key, "the same workspace");
    let second = broker.spawn("ann");
    read_once_by(&broker, "ann", second, &["over the crash of everything"]);
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    // Read and acknowledged: not again after an orderly stop.
    let broker = start().online();
    let third = broker.spawn("ann");
    broker.until("the third life", || house.read_by_life("ann", third));
    broker.ok("POST", "/api/send", Some(&json!({"to": "ann", "message": "something new"})));
    read_once_by(&broker, "ann", third, &["something new"]);
    assert!(!house.read_by_life("ann", third).unwrap().contains("over the crash"));
}

/// What the pending file of the broker `work` says; nothing while it is not there.
fn pending(house: &House) -> Option<Vec<serde_json::Value>> {
    let text = fs::read(house.path("work/.agentworkforce/relay/pending-work.json")).ok()?;
    Some(serde_json::from_slice(&text).expect("a whole file at every moment"))
}

fn send(broker: &Broker, to: &str, text: &str) -> serde_json::Value {
    broker.ok("POST", "/api/send", Some(&json!({"to": to, "message": text, "from": "bob"})))["event_id"].clone()
}

#[test]
fn what_the_api_sent_outlives_a_kill_and_a_stop_and_is_shown_in_the_pending_file() {
    let house = House::new();
    let engine = Engine::start(&house);
    let start = || Start::on(&house, &engine).arg("--persist");
    let broker = start().online();
    let workspace = broker.ok("GET", "/api/session", None)["default_workspace_id"].clone();
    let first = broker.spawn("ann");
    broker.token_of("ann");
    let done = send(&broker, "ann", "read and done");
    broker.until_read("ann", "read and done");
    signal(first, Signal::STOP);
    let typed = send(&broker, "ann", "typed but unread");
    let queued = send(&broker, "ann", "queued behind it");
    let shown = |count: usize| {
        broker.until("the pending file", || pending(&house).filter(|list| list.len() == count));
        pending(&house).unwrap()
    };
    let list = shown(2);
    let file = house.path("work/.agentworkforce/relay/pending-work.json");
    assert_eq!(crate::stops::mode(&file), 0o600);
    let mut entry = list[1].clone();
    assert!(entry["delivery"]["delivery_id"].take().as_str().unwrap().starts_with("del_"), "{list:?}");
    assert!(entry["queued_at_ms"].take().as_u64().is_some(), "{list:?}");
    let delivery = json!({"delivery_id": null, "event_id": queued, "workspace_id": workspace, "workspace_alias": null,
        "from": "bob", "target": "ann", "body": "queued behind it", "thread_id": null, "priority": 2,
        "injection_mode": "wait"});
    let whole =
        json!({"worker_name": "ann", "delivery": delivery, "attempts": 0, "queued_at_ms": null, "last_error": null});
    assert_eq!(entry, whole);
    kill(broker);
    assert_eq!(pending(&house).unwrap().len(), 2, "kept over the kill");

    let mut broker = start().online();
    let second = broker.spawn("ann");
    read_once_by(&broker, "ann", second, &["typed but unread", "queued behind it"]);
    // The proof that it was read follows.
    let read = broker.until("both proofs", || Some(broker.told("delivery_read", "ann")).filter(|told| told.len() >= 2));
    let read: Vec<_> = read.iter().map(|event| event["event_id"].clone()).collect();
    assert_eq!(read, [typed, queued], "their own ids, in order; {done} was read before");
    broker.until("an empty file", || pending(&house).filter(Vec::is_empty));
    // Over an orderly stop: what is unread, and what is held.
    signal(second, Signal::STOP);
    send(&broker, "ann", "before the stop");
    broker.spawn("bert");
    broker.ok("PUT", "/api/spawned/bert/delivery-mode", Some(&json!({"mode": "manual_flush"})));
    send(&broker, "bert", "held at the stop");
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    assert_eq!(pending(&house).map(|list| list.len()), Some(2), "{}", broker.seen());

    let mut broker = start().online();
    let third = broker.spawn("ann");
    let bert = broker.spawn("bert");
    read_once_by(&broker, "ann", third, &["before the stop"]);
    read_once_by(&broker, "bert", bert, &["held at the stop"]);
    assert!(!house.read_by_life("ann", third).unwrap().contains("typed but unread"));
    assert_eq!(broker.ok("GET", "/api/dead-letters", None)["count"], 0);
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    assert_eq!(pending(&house), None, "nothing waits, nothing stays");
}

#[test]
fn what_the_api_sent_to_an_agent_that_does_not_come_back_ends_as_a_dead_letter() {
    let house = House::new();
    let engine = Engine::start(&house);
    let start = || Start::on(&house, &engine).arg("--persist").env("AGENT_RELAY_DELIVERY_RETRY_MS", "50");
    let broker = start().online();
    signal(broker.spawn("ann"), Signal::STOP);
    let id = send(&broker, "ann", "for nobody any more");
    kill(broker);
    let mut broker = start().online();
    let letters = broker.until("a dead letter", || {
        let answer = broker.ok("GET", "/api/dead-letters", None);
        (answer["count"] == 1).then_some(answer)
    });
    let letter = &letters["dead_letters"][0];
    assert_eq!(letter["event_id"], id, "{letters}");
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    assert_eq!(pending(&house), None);
}

#[test]
fn the_pending_file_of_a_broker_that_kept_no_journal_is_taken_over() {
    let house = House::new();
    let engine = Engine::start(&house);
    let dir = house.dir("work/.agentworkforce/relay");
    let entry = json!({"worker_name": "ann", "delivery": {"delivery_id": "del_old", "event_id": "http_old",
        "workspace_id": "ws", "workspace_alias": null, "from": "bob", "target": "ann", "body": "from before",
        "thread_id": null, "priority": 2, "injection_mode": "wait"}, "attempts": 3, "queued_at_ms": 5, "last_error": null});
    fs::write(dir.join("pending-work.json"), json!([entry]).to_string()).unwrap();
    let start = || Start::on(&house, &engine).arg("--persist");
    let broker = start().online();
    // Taken into the journal at once.
    kill(broker);
    let broker = start().online();
    let pid = broker.spawn("ann");
    read_once_by(&broker, "ann", pid, &["from before"]);
    broker.until_told("delivery_read", "ann");
    // The file is a view from now on: an old one brings nothing back.
    kill(broker);
    fs::write(dir.join("pending-work.json"), json!([entry]).to_string()).unwrap();
    let broker = start().online();
    let pid = broker.spawn("ann");
    send(&broker, "ann", "something new");
    read_once_by(&broker, "ann", pid, &["something new"]);
    assert!(!house.read_by_life("ann", pid).unwrap().contains("from before"));
}
