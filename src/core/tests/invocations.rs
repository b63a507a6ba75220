//! `action.invoke`: exactly one result, and the same one when asked again.

use super::*;

#[test]
fn f1_the_cli_of_an_invoke_may_come_from_the_action() {
    let mut bench = Bench::online();
    bench.invoke("i1", "spawn:stub", json!({"name": "al"}));
    let launches = bench.take().launches();
    assert_eq!((launches[0].name.as_str(), launches[0].cli.as_str()), ("al", "stub"));
    bench.run("al");
}

#[test]
fn an_open_invocation_asked_again_is_silent_and_a_finished_one_answers_the_same() {
    let mut bench = Bench::online();
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    bench.take();
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    let seen = bench.take();
    assert!(seen.0.is_empty(), "open:\n{seen:?}");
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    let first = bench.take().results();
    assert_eq!(first.len(), 1);
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    let seen = bench.take();
    assert_eq!(seen.results(), first, "f32: a repeated id");
    assert!(seen.launches().is_empty(), "{seen:?}");
    // Also after its agent is gone.
    let generation = bench.generation("al");
    bench.exited(generation);
    bench.take();
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    let seen = bench.take();
    assert_eq!((seen.results(), seen.launches().len()), (first, 0));
    // Twin: another id is another spawn.
    bench.invoke("i2", "spawn:codex", json!({"name": "al"}));
    assert_eq!(bench.take().launches().len(), 1);
}

#[test]
fn the_report_of_a_release_is_not_repeated_over_the_next_life() {
    let mut bench = Bench::online();
    bench.invoke("i0", "spawn:stub", json!({"name": "al"}));
    bench.run("al");
    bench.invoke("i1", "release", json!({"name": "al"}));
    let generation = bench.generation("al");
    bench.exited(generation);
    let first = bench.take().results();
    // Twin: while nobody bears the name, the same answer.
    bench.invoke("i1", "release", json!({"name": "al"}));
    assert_eq!(bench.take().results(), first);
    // Nor is it said before it is settled whether there is a next life: if not, the report is still wanted.
    bench.invoke("i2", "spawn:stub", json!({"name": "al"}));
    bench.prepared("al");
    bench.take();
    bench.invoke("i1", "release", json!({"name": "al"}));
    assert!(bench.take().results().is_empty());
    let generation = bench.generation("al");
    bench.error(&bench.register_id("al"), "no");
    bench.note(generation, AgentNote::Exited { code: None, signal: None });
    bench.pass(25_000);
    let seen = bench.take();
    assert!(!seen.inventories().is_empty(), "has the engine ask again:\n{seen:?}");
    bench.invoke("i1", "release", json!({"name": "al"}));
    assert_eq!(bench.take().results(), first);
    bench.invoke("i3", "spawn:stub", json!({"name": "al"}));
    bench.run("al");
    bench.take();
    bench.invoke("i1", "release", json!({"name": "al"}));
    let seen = bench.take();
    let told = "release_superseded: agent 'al' was released, and runs again since";
    assert_eq!(seen.results(), [("i1".to_string(), Err(told.to_string()))], "{seen:?}");
}

#[test]
fn a_result_is_on_disk_before_it_is_sent() {
    let mut bench = Bench::online();
    bench.invoke("i1", "release", json!({"name": "ghost"}));
    let seen = bench.take();
    let record = seen.at("the record", |effect| matches!(effect, Effect::Journal(Record::Invocation { .. })));
    assert!(record < seen.at("the result", seen::sends("action.result")), "{seen:?}");
}

#[test]
fn what_nobody_here_can_do_is_answered_by_its_kind() {
    let mut bench = Bench::online();
    bench.invoke("i1", "deploy", json!({}));
    bench.frame(FromEngine::ActionInvoke(ActionInvoke {
        invocation_id: "i2".into(),
        action: "deploy".into(),
        input: Value::Null,
        agent_id: Some("id-al".into()),
        agent_name: None,
    }));
    let results = bench.take().results();
    assert_eq!(results[0].1, Err("handler_unavailable".to_string()));
    assert_eq!(results[1].1, Err("agent_action_unsupported: deploy".to_string()), "the other one would come back");
}

#[test]
fn names_that_would_be_paths_are_refused() {
    let mut bench = Bench::online();
    for (n, name) in ["a/b", "..", "a\u{1b}b"].iter().enumerate() {
        bench.invoke(&format!("i{n}"), "spawn:codex", json!({"name": name}));
        let seen = bench.take();
        assert!(seen.launches().is_empty(), "{name:?}");
        assert!(seen.results()[0].1.as_ref().is_err_and(|error| error.starts_with("spawn_failed: ")), "{seen:?}");
    }
}

#[test]
fn finished_invocations_are_forgotten_after_1024_others_but_not_within_15_minutes() {
    let mut bench = Bench::online();
    bench.invoke("first", "release", json!({"name": "ghost"}));
    bench.pass(14 * 60_000);
    bench.invoke("second", "release", json!({"name": "ghost"}));
    let finished = |bench: &Bench| bench.broker.invocations.open().len();
    assert_eq!(finished(&bench), 0, "none is open");
    bench.spawn_running("ghost");
    let is_repeated = |bench: &mut Bench, id: &str| {
        bench.take();
        bench.invoke(id, "release", json!({"name": "other"}));
        let error = bench.take().results().remove(0).1.expect_err("an error");
        error.contains("'ghost'")
    };
    assert!(is_repeated(&mut bench, "first"), "within 15 minutes");
    for n in 0..1023 {
        bench.invoke(&format!("n{n}"), "release", json!({"name": "other"}));
    }
    assert!(!is_repeated(&mut bench, "first"), "1024 later ones have pushed it out");
    bench.pass(16 * 60_000);
    bench.invoke("last", "release", json!({"name": "other"}));
    assert!(!is_repeated(&mut bench, "n1022"), "or its age");
}

#[test]
fn an_invocation_that_found_no_handler_is_open_to_a_later_one() {
    let mut bench = Bench::online();
    for _ in 0..2 {
        bench.invoke("i1", "deploy", json!({}));
        let seen = bench.take();
        assert_eq!(seen.results(), [("i1".to_string(), Err("handler_unavailable".to_string()))]);
        assert!(seen.journal().is_empty(), "it is not finished:\n{seen:?}");
    }
    bench.attach(1);
    bench.ask(ApiCall::RegisterHandlers { sidecar: 1, names: vec!["deploy".into()] });
    bench.take();
    bench.invoke("i1", "deploy", json!({}));
    let seen = bench.take();
    assert!(seen.results().is_empty(), "not the old refusal:\n{seen:?}");
    // Twin: any other error is final.
    bench.invoke("i2", "release", json!({"name": "ghost"}));
    let first = bench.take().results();
    bench.spawn_running("ghost");
    bench.invoke("i2", "release", json!({"name": "ghost"}));
    let seen = bench.take();
    assert_eq!((seen.results(), seen.releases().len()), (first, 0), "{seen:?}");
}
