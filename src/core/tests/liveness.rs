//! Who is alive: programs that fail at once, that are slow, silent, or gone; by the numbers of the hardening list.

use super::*;
use crate::core::ports::LastWords;
use crate::core::spawn::SPAWN_MS;

/// A spawn whose program has been started this moment, and the ticket of the API or 0.
fn just_started(bench: &mut Bench, by: &str, name: &str) -> (Generation, Ticket) {
    let ticket = match by {
        "api" => bench.ask_spawn(name),
        _ => {
            bench.invoke("i1", "spawn:codex", json!({"name": name}));
            0
        }
    };
    bench.prepared(name);
    bench.registered(name);
    bench.out.clear();
    (bench.just_started(name), ticket)
}

/// The error that the spawn has ended in.
#[track_caller]
fn error_of(seen: &Seen, by: &str, ticket: Ticket) -> String {
    if by == "api" {
        let (status, error) = seen.outcome(ticket);
        assert_eq!(status, 500, "{seen:?}");
        return error;
    }
    let results = seen.results();
    assert_eq!(results.len(), 1, "one result:\n{seen:?}");
    results[0].1.clone().expect_err("an error")
}

#[test]
fn r5_a_start_that_is_never_reported_fails_and_leaves_nothing() {
    for by in ["api", "invoke"] {
        let mut bench = Bench::online();
        let ticket = match by {
            "api" => bench.ask_spawn("al"),
            _ => {
                bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
                0
            }
        };
        bench.prepared("al");
        bench.registered("al");
        let begun = bench.now.mono;
        bench.take();
        bench.pass(SPAWN_MS - 1);
        let seen = bench.take();
        assert!(seen.answers().is_empty() && seen.results().is_empty(), "{seen:?}");
        bench.pass(90_000 - SPAWN_MS);
        let seen = bench.take();
        let error = error_of(&seen, by, ticket);
        assert!(error.contains("spawn_timeout") && error.contains("22 s"), "{error}");
        assert_eq!(seen.deregistered(), [("id-al".to_string(), "al".to_string())], "{seen:?}");
        assert!(bench.now.mono - begun <= 90_000);
        bench.settle();
        bench.nothing_left(by);
    }
}

#[test]
fn r6_a_slow_program_that_lives_is_left_alone() {
    let mut bench = Bench::online();
    let (generation, ticket) = just_started(&mut bench, "api", "al");
    bench.pass(STABLE_MS);
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200, "{seen:?}");
    bench.settle();
    // An hour without a sign of readiness.
    bench.pass(3_600_000);
    let seen = bench.take();
    assert!(
        seen.event_kinds().is_empty() && seen.0.iter().all(|effect| !matches!(effect, Effect::Agent { .. })),
        "{seen:?}"
    );
    let rows = bench.ask(ApiCall::ListAgents).body;
    assert_eq!(
        (&rows["agents"][0]["pid"], &rows["agents"][0]["readiness"]),
        (&json!(101), &json!("starting")),
        "{rows}"
    );
    bench.note(generation, AgentNote::Ready);
    assert_eq!(bench.take().event("worker_ready").len(), 1);
}

#[test]
fn r7_silence_is_never_taken_for_death() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    let id = bench.flights[&generation].delivery_id.clone();
    bench.note(generation, AgentNote::Typed { delivery_id: id.clone() });
    bench.read(generation);
    bench.note(generation, AgentNote::Verified { delivery_id: id, echo: true });
    bench.take();
    bench.note(generation, AgentNote::Idle { idle_secs: 30, since_unix: bench.now.unix });
    bench.pass(3_600_000);
    let seen = bench.take();
    for kind in ["agent_exit", "agent_exited", "agent_restarting", "agent_released"] {
        assert!(seen.event(kind).is_empty(), "{seen:?}");
    }
    assert!(
        seen.0.iter().all(|effect| !matches!(effect, Effect::Agent { .. })) && seen.deregistered().is_empty(),
        "{seen:?}"
    );
    assert_eq!(bench.ask(ApiCall::ListAgents).body["agents"][0]["name"], "al");
    // And it still gets what comes.
    bench.deliver(message("al", 2, "m2"));
    assert_eq!(bench.take().bodies(), ["text of m2"]);
}

#[test]
fn r8_a_program_that_fails_at_once_is_a_failed_spawn() {
    let ends =
        [(Some(3), None, "exited with code 3"), (None, Some(11), "was killed by signal 11"), (None, None, "ended")];
    for by in ["api", "invoke"] {
        for (code, signal, how) in ends {
            let mut bench = Bench::online();
            let (generation, ticket) = just_started(&mut bench, by, "al");
            bench.pass(STABLE_MS - 1);
            let seen = bench.take();
            assert!(seen.answers().is_empty() && seen.results().is_empty(), "it may still fail:\n{seen:?}");
            assert!(seen.inventories().is_empty(), "the listing would complete the invocation:\n{seen:?}");
            let words = LastWords { output: "reading\nno such model\n".into(), log: Some("/logs/al.log".into()) };
            bench.note(generation, AgentNote::Ending { reason: "child_exited" });
            bench.note(generation, AgentNote::LastWords(words));
            bench.note(generation, AgentNote::Exited { code, signal });
            let seen = bench.take();
            let error = error_of(&seen, by, ticket);
            for part in ["'codex'", how, "250 ms", "no such model", "/logs/al.log"] {
                assert!(error.contains(part), "'{error}' does not tell '{part}'");
            }
            assert_eq!(seen.deregistered(), [("id-al".to_string(), "al".to_string())], "{seen:?}");
            // It was announced, so its end is told.
            assert_eq!(seen.event_kinds(), ["agent_exit", "agent_exited"], "{seen:?}");
            assert_eq!(seen.event("agent_exited")[0]["code"], json!(code));
            bench.settle();
            bench.nothing_left(how);
            assert_eq!(bench.ask(ApiCall::CrashInsights).body["total_crashes"], 1);
        }
    }
}

#[test]
fn r8_twin_what_stays_up_or_has_done_its_work_is_a_success() {
    for by in ["api", "invoke"] {
        for done in [false, true] {
            let mut bench = Bench::online();
            let (generation, ticket) = just_started(&mut bench, by, "al");
            let seen = bench.take();
            assert_eq!(seen.event_kinds(), ["agent_spawned"], "the others need not wait:\n{seen:?}");
            assert!(seen.answers().is_empty() && seen.results().is_empty(), "{seen:?}");
            if done {
                bench.exited(generation);
            } else {
                bench.pass(STABLE_MS);
            }
            let seen = bench.take();
            if by == "api" {
                let answer = seen.answer(ticket).expect("an answer");
                assert_eq!((answer.status, &answer.body["pid"]), (200, &json!(101)), "r13: {seen:?}");
            } else {
                assert_eq!(seen.results(), [("i1".to_string(), Ok(json!({"spawned": true, "name": "al"})))]);
            }
            let expected: &[&str] = if done { &["agent_exited"] } else { &[] };
            assert_eq!(seen.event_kinds(), expected, "{seen:?}");
            // A later failure is an end, not a failed spawn.
            if !done {
                bench.settle();
                bench.note(generation, AgentNote::Exited { code: Some(3), signal: None });
                let seen = bench.take();
                assert_eq!(seen.event("agent_exited")[0]["code"], 3);
                assert!(seen.answers().is_empty() && seen.results().is_empty(), "{seen:?}");
            }
        }
    }
}

#[test]
fn r8_an_inventory_within_the_window_does_not_take_the_agent_offline() {
    for by in ["api", "invoke"] {
        let mut bench = Bench::online();
        let bo = bench.spawn_running("bo");
        just_started(&mut bench, by, "al");
        bench.take();
        // Who comes or goes has all of them told.
        bench.exited(bo);
        let seen = bench.take();
        assert!(!seen.inventories().is_empty(), "{seen:?}");
        let listed = seen.inventories().iter().any(|agents| agents.iter().any(|agent| agent.name == "al"));
        assert_eq!(listed, by == "api", "a listing completes an invocation, and clears who is not listed:\n{seen:?}");
        bench.pass(STABLE_MS);
        let seen = bench.take();
        let last = seen.inventories().pop().unwrap_or_default();
        assert!(last.iter().any(|agent| agent.name == "al"), "{seen:?}");
    }
}

#[test]
fn r8_who_has_registered_an_agent_keeps_it_if_its_spawn_fails() {
    for supplied in [true, false] {
        let mut bench = Bench::online();
        bench.ask_spawn_of(SpawnRequest {
            name: "al".into(),
            cli: "codex".into(),
            agent_token: supplied.then(|| Secret::new("at_live_1")),
            ..SpawnRequest::default()
        });
        bench.prepared("al");
        if !supplied {
            bench.registered("al");
        }
        let generation = bench.just_started("al");
        if supplied {
            let known = Ok(json!({"id": "id-al", "name": "al"}));
            bench.engine(|call| matches!(call, EngineCall::LookUpAgent { .. }), known);
        }
        bench.note(generation, AgentNote::Exited { code: Some(1), signal: None });
        assert_eq!(bench.take().deregistered().len(), usize::from(!supplied), "supplied: {supplied}");
    }
}

#[test]
fn r8_a_policy_does_not_start_again_what_never_stood() {
    let mut bench = Bench::online();
    let request = SpawnRequest {
        restart_policy: Some(Default::default()),
        task: Some("the task".into()),
        ..SpawnRequest { name: "al".into(), cli: "codex".into(), ..SpawnRequest::default() }
    };
    let ticket = bench.api(ApiCall::Spawn(request));
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.just_started("al");
    bench.take();
    bench.note(generation, AgentNote::Exited { code: Some(1), signal: None });
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 500, "{seen:?}");
    assert!(seen.event("agent_restarting").is_empty(), "{seen:?}");
    bench.pass(60_000);
    assert!(bench.take().launches().is_empty());
    bench.settle();
    bench.nothing_left("policy");
}

#[test]
fn r8_messages_of_the_window_are_typed_at_once_and_on_record_if_it_fails() {
    let mut bench = Bench::online();
    let (generation, _) = just_started(&mut bench, "api", "al");
    bench.note(generation, AgentNote::Ready);
    bench.deliver(message("al", 1, "m1"));
    assert_eq!(bench.take().bodies(), ["text of m1"], "nobody waits for the window");
    bench.note(generation, AgentNote::Exited { code: Some(1), signal: None });
    let seen = bench.take();
    assert_eq!(seen.dead(), [("m1".to_string(), "spawn_failed".to_string())], "{seen:?}");
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
}

#[test]
fn r8_a_release_within_the_window_answers_both() {
    for by in ["api", "invoke"] {
        let mut bench = Bench::online();
        let (generation, ticket) = just_started(&mut bench, by, "al");
        bench.take();
        let release = bench.release("al");
        let seen = bench.take();
        if by == "api" {
            assert_eq!(seen.outcome(ticket).0, 200, "it had started:\n{seen:?}");
        } else {
            assert_eq!(seen.results().len(), 1, "{seen:?}");
            assert!(seen.results()[0].1.is_ok(), "{seen:?}");
        }
        bench.note(generation, AgentNote::Exited { code: None, signal: Some(1) });
        let seen = bench.take();
        assert_eq!(seen.outcome(release).0, 200, "{seen:?}");
        assert_eq!(seen.event_kinds(), ["agent_released"], "{seen:?}");
        bench.pass(STABLE_MS * 2);
        let seen = bench.take();
        assert!(seen.answers().is_empty() && seen.results().is_empty(), "{seen:?}");
        bench.settle();
        bench.nothing_left(by);
    }
}

#[test]
fn r9_what_an_earlier_life_of_the_name_still_says_is_nobodys_word() {
    let mut bench = Bench::online();
    let first = bench.spawn_running("al");
    bench.release("al");
    bench.exited(first);
    bench.settle();
    let (second, ticket) = just_started(&mut bench, "api", "al");
    bench.take();
    for note in [
        AgentNote::Ready,
        AgentNote::Ending { reason: "child_exited" },
        AgentNote::LastWords(LastWords { output: "old".into(), log: None }),
        AgentNote::Exited { code: Some(9), signal: None },
        AgentNote::Refused { error: "old".into() },
        AgentNote::Started { pid: 9 },
    ] {
        bench.note(first, note);
    }
    let seen = bench.take();
    assert!(seen.event_kinds().is_empty() && seen.answers().is_empty(), "{seen:?}");
    bench.pass(STABLE_MS);
    assert_eq!(bench.take().outcome(ticket).0, 200);
    let rows = bench.ask(ApiCall::ListAgents).body;
    assert_eq!(
        (&rows["agents"][0]["pid"], &rows["agents"][0]["readiness"]),
        (&json!(102), &json!("starting")),
        "{rows}"
    );
    bench.note(second, AgentNote::Exited { code: Some(0), signal: None });
    assert_eq!(bench.take().event("agent_exited")[0]["output"], "");
}

#[test]
fn r11_a_start_that_succeeds_clears_the_end_before() {
    let mut bench = Bench::online();
    let policy =
        crate::wire::fleet::RestartPolicy { max_restarts: 9, max_consecutive_failures: 1, ..Default::default() };
    let mut life = bench.with_policy("al", policy);
    for n in 1..=4 {
        bench.note(life, AgentNote::LastWords(LastWords { output: format!("end {n}"), log: None }));
        bench.killed(life);
        let restarting = bench.take().event("agent_restarting");
        assert_eq!(restarting[0]["output"], format!("end {n}"), "of this life");
        life = bench.again("al");
        let seen = bench.take();
        assert!(seen.event("agent_permanently_dead").is_empty(), "{seen:?}");
        let rows = bench.ask(ApiCall::ListAgents).body;
        assert_eq!(rows["agents"][0]["current_state"], "working", "{rows}");
        // Up for long: the failure before counts no more.
        bench.pass(30_000);
        bench.take();
    }
    bench.note(life, AgentNote::Exited { code: Some(7), signal: None });
    let restarting = bench.take().event("agent_restarting");
    assert_eq!(
        (&restarting[0]["code"], &restarting[0]["signal"], &restarting[0]["reason"], &restarting[0]["output"]),
        (&json!(7), &json!(null), &json!("worker_exited"), &json!("")),
        "nothing of the lives before"
    );
}

#[test]
fn r14_an_end_is_told_whole_everywhere() {
    let words = || AgentNote::LastWords(LastWords { output: "out of tokens".into(), log: None });
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.pass(7_000 - STABLE_MS);
    bench.note(generation, AgentNote::Ending { reason: "child_exited" });
    bench.note(generation, words());
    bench.note(generation, AgentNote::Exited { code: Some(3), signal: None });
    assert_eq!(
        bench.take().event("agent_exited"),
        [json!({"kind": "agent_exited", "name": "al", "code": 3, "signal": null, "reason": "child_exited",
                "uptime_secs": 7, "cli": "codex", "output": "out of tokens"})]
    );
    let crash = &bench.ask(ApiCall::CrashInsights).body["recent"][0];
    for (member, value) in [
        ("exit_code", json!(3)),
        ("signal", json!(null)),
        ("reason", json!("child_exited")),
        ("uptime_secs", json!(7)),
        ("cli", json!("codex")),
        ("output", json!("out of tokens")),
    ] {
        assert_eq!(crash[member], value, "{member} of {crash}");
    }
    let generation = bench.spawn_running("bo");
    let ticket = bench.release("bo");
    bench.note(generation, words());
    bench.note(generation, AgentNote::Exited { code: None, signal: Some(1) });
    assert_eq!(
        bench.take().answer(ticket).expect("an answer").body,
        json!({"success": true, "name": "bo", "code": null, "signal": "1", "reason": "agent_released",
               "uptime_secs": 0, "cli": "codex", "output": "out of tokens"})
    );
}

#[test]
fn r14_the_last_words_are_the_last_2_kib_of_whole_characters() {
    let text = format!("first\n{}\n\n  \n", "ü".repeat(3_000));
    let words = LastWords::of(&text, None);
    assert!(words.output.len() <= 2_048 && words.output.len() > 2_040, "{}", words.output.len());
    assert!(words.output.chars().all(|c| c == 'ü'));
    assert_eq!(LastWords::of("\n\none\ntwo  \n\n\n", None).output, "one\ntwo");
    assert_eq!(LastWords::of("  \n\n", None).output, "");
}
