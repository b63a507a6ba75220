//! The end of an agent: release from every state, twice, by several at once; exits.

use super::*;

#[test]
fn a_release_answers_when_the_process_is_gone() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let ticket = bench.release("al");
    let seen = bench.take();
    assert_eq!(seen.releases(), [generation], "{seen:?}");
    assert!(seen.answers().is_empty(), "{seen:?}");
    assert!(seen.listed().is_empty(), "no longer a place for messages:\n{seen:?}");
    bench.note(generation, AgentNote::Ending { reason: "pty_closed" });
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200);
    assert_eq!(seen.event_kinds(), ["agent_released"], "{seen:?}");
    assert_eq!(seen.deregistered(), [("id-al".to_string(), "al".to_string())], "{seen:?}");
    assert_eq!(seen.count("node.heartbeat"), 1, "{seen:?}");
    bench.nothing_left("released");
}

#[test]
fn a_release_by_the_engine_answers_and_does_not_deregister() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.invoke("r1", "release", json!({"name": "al"}));
    assert!(bench.take().results().is_empty());
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.results(), [("r1".to_string(), Ok(json!({"released": true, "name": "al"})))]);
    assert!(seen.deregistered().is_empty(), "the engine unbinds on the result:\n{seen:?}");
    assert!(seen.listed().is_empty());
    bench.nothing_left("released by the engine");
}

#[test]
fn releases_at_once_are_each_answered_once() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let first = bench.release("al");
    bench.invoke("r1", "release", json!({"name": "al"}));
    let second = bench.release("al");
    bench.invoke("r2", "release", json!({"name": "al"}));
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.releases(), [generation], "ended once:\n{seen:?}");
    assert_eq!((seen.outcome(first).0, seen.outcome(second).0), (200, 200));
    assert_eq!(seen.results().len(), 2, "{seen:?}");
    assert!(seen.results().iter().all(|(_, outcome)| outcome.is_ok()), "{seen:?}");
    assert!(seen.deregistered().is_empty(), "{seen:?}");
    assert_eq!(seen.event("agent_released").len(), 1, "{seen:?}");
    bench.nothing_left("released four times");
}

#[test]
fn f10_f29_what_is_gone_is_released_once_more_with_success_and_what_never_was_is_not() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.exited(generation);
    bench.settle();
    bench.take();
    for round in 1..=2 {
        let ticket = bench.release("al");
        bench.invoke(&format!("r{round}"), "release", json!({"name": "al"}));
        let seen = bench.take();
        assert_eq!(seen.outcome(ticket).0, 200, "{seen:?}");
        assert_eq!(seen.results()[0].1, Ok(json!({"released": true, "name": "al"})), "{seen:?}");
        bench.nothing_left("released after its end");
    }
    bench.invoke("g1", "release", json!({"name": "ghost"}));
    bench.invoke("g2", "release", json!({"name": "Broker"}));
    bench.invoke("g3", "release", json!({}));
    let results = bench.take().results();
    assert_eq!(results[0].1, Err("release_failed: unknown agent 'ghost'".to_string()));
    assert!(results[1].1.is_ok(), "the broker's own name is a no-op: {results:?}");
    assert_eq!(results[2].1, Err("release_missing_agent_name".to_string()));
    let ticket = bench.release("ghost");
    assert_eq!(bench.take().outcome(ticket).0, 200, "the local API answers as ever");
}

#[test]
fn a_release_finds_its_agent_by_id() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.frame(FromEngine::ActionInvoke(ActionInvoke {
        invocation_id: "r1".into(),
        action: "release".into(),
        input: json!({}),
        agent_id: Some("id-al".into()),
        agent_name: None,
    }));
    assert_eq!(bench.take().releases(), [generation]);
}

#[test]
fn a_release_in_every_state_of_a_spawn_leaves_nothing() {
    let states = ["preparing", "waiting for the link", "registering", "http", "binding", "starting"];
    for state in states {
        for by in ["api", "invoke"] {
            let what = format!("{state}, released by {by}");
            let mut bench = Bench::online();
            if state == "waiting for the link" {
                bench.close("reset");
            }
            let spawn = bench.ask_spawn("al");
            if state != "preparing" {
                bench.prepared("al");
            }
            if ["http", "binding"].contains(&state) {
                let id = bench.register_id("al");
                bench.error(&id, "internal_error");
            }
            if state == "binding" {
                bench.engine(is_register, Ok(json!({"id": "id-al", "name": "al", "token": "t"})));
            }
            if state == "starting" {
                bench.registered("al");
            }
            bench.take();
            let release = if by == "api" {
                bench.release("al")
            } else {
                bench.invoke("r1", "release", json!({"name": "al"}));
                0
            };
            let seen = bench.take();
            assert_eq!(seen.outcome(spawn).0, 500, "the spawn is answered, {what}:\n{seen:?}");
            assert_eq!(seen.releases().len(), 1, "{what}:\n{seen:?}");
            // What was on the way arrives, and is no way back.
            bench.prepared("al");
            if state == "registering" {
                bench.registered("al");
            }
            if state == "http" {
                bench.engine(is_register, Ok(json!({"id": "id-al", "name": "al", "token": "t"})));
            }
            if state == "binding" {
                bench.engine(is_bind, Ok(json!({})));
            }
            let generation = bench.generation("al");
            bench.exited(generation);
            let rest = bench.take();
            assert!(rest.starts().is_empty(), "{what}:\n{rest:?}");
            assert_eq!(rest.count("agent.register"), 0, "{what}:\n{rest:?}");
            if by == "api" {
                assert_eq!(rest.outcome(release).0, 200, "{what}");
            } else if state != "waiting for the link" {
                assert_eq!(rest.results().len(), 1, "{what}:\n{rest:?}");
            }
            let registered = ["registering", "http", "binding", "starting"].contains(&state);
            let gone = !rest.deregistered().is_empty();
            // A release by the engine unbinds by its result what the engine knows as this agent.
            let expected = registered && (by == "api" || state == "registering");
            assert_eq!(gone, expected, "deregistered, {what}:\n{rest:?}");
            bench.settle();
            bench.nothing_left(&what);
            assert!(bench.broker.abandoned.is_empty(), "{what}: {:?}", bench.broker.abandoned);
        }
    }
}

#[test]
fn a_registration_that_outlives_its_agent_is_undone() {
    for (state, outcome) in [("http", "register"), ("binding", "bind")] {
        let mut bench = Bench::online();
        bench.ask_spawn("al");
        bench.prepared("al");
        let id = bench.register_id("al");
        bench.error(&id, "internal_error");
        if state == "binding" {
            bench.engine(is_register, Ok(json!({"id": "id-al", "name": "al", "token": "t"})));
        }
        bench.release("al");
        let generation = bench.generation("al");
        bench.exited(generation);
        bench.settle();
        bench.take();
        if outcome == "register" {
            bench.engine(is_register, Ok(json!({"id": "id-al", "name": "al", "token": "t"})));
        } else {
            bench.engine(is_bind, Ok(json!({})));
        }
        let seen = bench.take();
        assert_eq!(seen.deregistered(), [("id-al".to_string(), "al".to_string())], "{state}:\n{seen:?}");
        assert!(seen.starts().is_empty(), "{state}");
    }
}

#[test]
fn a_program_that_starts_while_it_is_released_is_still_released() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.registered("al");
    let ticket = bench.release("al");
    let generation = bench.started("al");
    let seen = bench.take();
    assert!(seen.event("agent_spawned").is_empty(), "{seen:?}");
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200);
    assert_eq!(seen.deregistered().len(), 1, "{seen:?}");
    bench.nothing_left("started while released");
}

#[test]
fn a_thread_that_refuses_while_it_is_released_ends_the_release() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    let ticket = bench.release("al");
    let generation = bench.generation("al");
    bench.note(generation, AgentNote::Refused { error: "exec".into() });
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200, "{seen:?}");
    bench.nothing_left("refused while released");
}

#[test]
fn messages_for_an_agent_released_before_its_start_are_on_record() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.send_to("al", "by hand");
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.deliver(message("al", 1, "m1"));
    bench.release("al");
    bench.take();
    let generation = bench.generation("al");
    bench.exited(generation);
    let seen = bench.take();
    let reasons: Vec<String> = seen.dead().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["agent_released", "recipient gone"], "{seen:?}");
    assert!(seen.acks().is_empty(), "the numbered one stays at the engine:\n{seen:?}");
}

#[test]
fn an_exit_tells_the_truth_and_cleans_up() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.note(generation, AgentNote::Ending { reason: "pty_closed" });
    bench.note(generation, AgentNote::Ending { reason: "child_exited" });
    bench.note(generation, AgentNote::Exited { code: None, signal: Some(9) });
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["agent_exit", "agent_exited"], "{seen:?}");
    let exited = &seen.event("agent_exited")[0];
    assert_eq!((&exited["signal"], &exited["reason"]), (&json!("9"), &json!("pty_closed")));
    assert_eq!(seen.deregistered().len(), 1, "{seen:?}");
    assert!(seen.listed().is_empty());
    assert!(seen.journal().contains(&Record::Gone { agent_id: "id-al".into(), agent: "al".into() }), "{seen:?}");
    bench.nothing_left("exited");
    assert_eq!(bench.status()["counters"]["agents_exited"], 1);
}

#[test]
fn keystrokes_and_pictures_of_who_is_not_here_are_answered() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    for name in ["ghost", "al"] {
        let answer = bench.ask(ApiCall::Type { name: name.into(), bytes: b"x".to_vec() });
        assert_eq!((answer.status, &answer.body["code"]), (404, &json!("agent_not_found")), "{name}");
        assert_eq!(bench.ask(ApiCall::Resize { name: name.into(), rows: 1, cols: 1, session: None }).status, 404);
    }
    assert_eq!(bench.ask(ApiCall::Flush { name: "ghost".into() }).status, 404);
}

#[test]
fn d17_a_session_leaves_its_task_and_a_reason_that_is_never_empty() {
    for (said, reason, expected) in [
        (None, Some("enough"), "enough"),
        (None, Some(" "), "released"),
        (None, None, "released"),
        (Some("half done"), Some("enough"), "half done"),
    ] {
        let mut bench = Bench::online();
        bench.ask_spawn_of(SpawnRequest {
            name: "al".into(),
            cli: "codex".into(),
            task: Some("build it".into()),
            ..SpawnRequest::default()
        });
        let generation = bench.run("al");
        if let Some(agent) = bench.broker.roster.get_mut(generation) {
            agent.summary = said.map(str::to_string);
        }
        bench.pass(65_000);
        bench.take();
        bench.api(ApiCall::Release { name: "al".into(), reason: reason.map(str::to_string) });
        bench.exited(generation);
        let seen = bench.take();
        let left = Effect::Leave(Session {
            agent_name: "al".into(),
            cli: "codex".into(),
            initial_task: Some("build it".into()),
            released_at: Some(bench.now.unix / 1000),
            lifetime_seconds: Some(65),
            message_history: Vec::new(),
            summary: expected.into(),
        });
        let at = seen.at("what it leaves", |effect| *effect == left);
        assert!(at < seen.at("the answer", |effect| matches!(effect, Effect::Reply { .. })), "{seen:?}");
    }
    // An end that nobody asked for, and what never ran, leave nothing.
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.exited(generation);
    bench.ask_spawn("bo");
    bench.release("bo");
    let generation = bench.generation("bo");
    bench.exited(generation);
    let seen = bench.take();
    assert!(!seen.0.iter().any(|effect| matches!(effect, Effect::Leave(_))), "{seen:?}");
}
