//! Programs that fail at once, that are killed, that end: what their callers learn, by the numbers of the hardening list.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::road::signal;

fn pair() -> (Engine, Broker) {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).arg("--persist").online();
    (engine, broker)
}

fn sleepers(broker: &Broker) -> usize {
    broker.house.processes().iter().filter(|(_, line)| line == "sleep 1000").count()
}

#[test]
fn r4_a_killed_program_is_gone_from_the_list_within_two_seconds() {
    let (engine, broker) = pair();
    let pid = broker.spawn_program("ann", "sh -c 'sleep 1000 & setsid sleep 1000 & echo up; wait'");
    broker.until("its children", || (sleepers(&broker) == 2).then_some(()));
    let killed = Instant::now();
    signal(pid, Signal::KILL);
    let exit = broker.until_told("agent_exited", "ann");
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    assert_eq!((&exit["code"], &exit["signal"]), (&Value::Null, &json!("9")), "{exit}");
    assert!(broker.listed().is_empty());
    assert_eq!(sleepers(&broker), 0, "its tree ends with it");
    broker.until("offline at the engine", || {
        engine.agent("ann").is_none_or(|row| row["status"] == "offline").then_some(())
    });
}

#[test]
fn r8_a_program_that_fails_at_once_fails_its_spawn_and_leaves_nothing() {
    let (engine, broker) = pair();
    for (name, script, how) in [
        ("ann", "sleep 1000 & echo no such model; exit 3", "exited with code 3"),
        ("bob", "sleep 1000 & echo no such model; kill -11 $$", "was killed by signal 11"),
    ] {
        let answer = broker.spawn_with(&json!({"name": name, "cli": format!("sh -c '{script}'")}));
        let body = answer.json();
        assert_eq!(answer.status, 500, "{body}");
        let error = body["error"].as_str().expect("a text");
        for part in [how, "no such model", "all of its output: "] {
            assert!(error.contains(part), "'{error}' does not tell '{part}'");
        }
        let log = error.rsplit("all of its output: ").next().expect("a path");
        assert_eq!(std::fs::read_to_string(log).expect(log), "no such model\r\n");
        assert!(broker.listed().is_empty());
        assert_eq!(sleepers(&broker), 0, "half-started");
        broker.until("nothing at the engine", || {
            engine.agent(name).is_none_or(|row| row["status"] == "offline").then_some(())
        });
        // The name is free, and r13: the answer knows the process.
        let pid = broker.spawn_program(name, "sh -c 'exec sleep 1000'");
        assert!(pid > 1);
        broker.ok("DELETE", &format!("/api/spawned/{name}"), None);
    }
}

#[test]
fn r8_twin_a_program_that_has_done_its_work_at_once_was_a_success() {
    let (_engine, broker) = pair();
    let answer = broker.spawn_with(&json!({"name": "ann", "cli": "sh -c 'echo done'"}));
    assert_eq!(answer.status, 200, "{}", answer.json());
    let exit = broker.until_told("agent_exited", "ann");
    assert_eq!((&exit["code"], &exit["output"]), (&json!(0), &json!("done")), "{exit}");
}

#[test]
fn r14_an_end_is_told_whole_in_events_insights_and_releases() {
    let (_engine, broker) = pair();
    let script = "printf \"\\033[31mout of tokens\\033[0m\\n\"; sleep 1.2; exit 3";
    broker.spawn_program("ann", &format!("sh -c '{script}'"));
    let exit = broker.until_told("agent_exited", "ann");
    let crash = broker.ok("GET", "/api/crash-insights", None)["recent"][0].clone();
    for (member, of_crash) in
        [("code", "exit_code"), ("signal", "signal"), ("reason", "reason"), ("cli", "cli"), ("output", "output")]
    {
        assert_eq!(exit[member], crash[of_crash], "{member} of {exit} and {crash}");
    }
    assert_eq!((&exit["code"], &exit["output"]), (&json!(3), &json!("out of tokens")), "{exit}");
    assert!(exit["cli"].as_str().is_some_and(|cli| cli.starts_with("sh -c")), "{exit}");
    assert!((1..=3).contains(&exit["uptime_secs"].as_u64().unwrap_or(0)), "{exit}");
    assert_eq!(exit["uptime_secs"], crash["uptime_secs"], "{crash}");
    broker.spawn_program("bob", "sh -c 'trap \"echo bye; exit 5\" HUP; echo up; while :; do sleep 0.1; done'");
    broker.until("its start", || {
        broker.told("worker_stream", "bob").iter().any(|e| e["chunk"] == "up\r\n").then_some(())
    });
    let released = broker.ok("DELETE", "/api/spawned/bob", None);
    assert_eq!((&released["code"], &released["reason"]), (&json!(5), &json!("agent_released")), "{released}");
    assert!(released["output"].as_str().is_some_and(|output| output.starts_with("up")), "{released}");
}
