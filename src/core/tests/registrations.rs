//! `agent.register` and its ways out: errors, silence, lost connections, late answers, HTTP.

use super::*;

fn http_identity() -> Value {
    json!({"id": "id-al", "name": "al", "token": "at_live_http"})
}

/// A spawn that waits for the answer to its `agent.register`.
fn registering(by: &str) -> (Bench, Ticket) {
    let mut bench = Bench::online();
    let ticket = ask(&mut bench, by);
    bench.prepared("al");
    bench.take();
    (bench, ticket)
}

fn ask(bench: &mut Bench, by: &str) -> Ticket {
    if by == "api" {
        return bench.ask_spawn("al");
    }
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    0
}

/// The one error of the spawn, `None` while or if it has none.
#[track_caller]
fn error_of(seen: &Seen, by: &str, ticket: Ticket) -> Option<String> {
    if by == "api" {
        seen.answer(ticket)?;
        let (status, error) = seen.outcome(ticket);
        return (status != 200).then_some(error);
    }
    let results = seen.results();
    assert!(results.len() <= 1, "{seen:?}");
    results.into_iter().next()?.1.err()
}

#[test]
fn f12_the_broker_answers_while_a_registration_is_open() {
    let (mut bench, _) = registering("api");
    let body = bench.status();
    assert_eq!(body["agent_count"], 0, "{body}");
    assert_eq!(bench.ask(ApiCall::ListAgents).body, json!({"agents": []}));
    bench.spawn_running("bo");
    assert_eq!(bench.status()["agent_count"], 1);
}

#[test]
fn f33_silence_fails_the_spawn_and_a_late_success_is_undone() {
    for by in ["api", "invoke"] {
        let (mut bench, ticket) = registering(by);
        bench.pass(9_999);
        assert_eq!(error_of(&bench.take(), by, ticket), None, "{by}");
        bench.pass(1);
        let seen = bench.take();
        let error = error_of(&seen, by, ticket).expect("an error after 10 s");
        assert!(error.contains("agent_register_timeout"), "{error}");
        assert!(!seen.calls().iter().any(is_register), "no second way while the first may still succeed:\n{seen:?}");
        bench.settle();
        bench.nothing_left(by);
        let id = bench.register_id("al");
        bench.take();
        bench.registered("al");
        let frames = bench.take().frames();
        let deregisters: Vec<_> = frames.iter().filter(|frame| matches!(frame, ToEngine::AgentDeregister(_))).collect();
        let [ToEngine::AgentDeregister(frame)] = deregisters[..] else { panic!("{frames:?}") };
        assert_eq!((frame.id.as_deref(), frame.agent_id.as_str()), (Some(id.as_str()), "id-al"));
        // Once.
        bench.registered("al");
        assert!(bench.take().deregistered().is_empty());
    }
}

#[test]
fn f33_an_answer_in_time_is_never_undone() {
    let (mut bench, ticket) = registering("api");
    bench.pass(9_999);
    bench.registered("al");
    bench.started("al");
    bench.pass(60_000);
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200);
    assert!(seen.deregistered().is_empty(), "{seen:?}");
}

#[test]
fn f33_a_late_answer_does_not_undo_the_next_life_of_its_name() {
    for next in ["registering", "registering without a name", "running"] {
        let (mut bench, _) = registering("api");
        bench.pass(10_000);
        let late = bench.register_id("al");
        bench.ask_spawn("al");
        bench.prepared("al");
        let id = bench.register_id("al");
        assert_ne!(late, id);
        if next == "running" {
            bench.registered("al");
            bench.started("al");
        }
        bench.take();
        let mut data = registration("al");
        if next == "registering without a name" {
            data["name"] = Value::Null;
        }
        bench.reply(&late, data);
        if next != "running" {
            bench.registered("al");
            bench.started("al");
        }
        let seen = bench.take();
        assert!(seen.deregistered().is_empty(), "{next}: the engine knows one agent of that name:\n{seen:?}");
        assert_eq!(bench.agents(), ["al"], "{next}");
    }
}

#[test]
fn f33_a_late_answer_before_the_next_life_registers_is_undone() {
    let (mut bench, _) = registering("api");
    bench.pass(10_000);
    bench.ask_spawn("al");
    bench.take();
    bench.registered("al");
    assert_eq!(bench.take().deregistered().len(), 1);
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    bench.take();
    bench.reconnect();
    assert!(bench.take().deregistered().is_empty());
}

#[test]
fn a_refusal_goes_on_by_http_and_binds() {
    for by in ["api", "invoke"] {
        let (mut bench, ticket) = registering(by);
        let id = bench.register_id("al");
        bench.error(&id, "agent_location_conflict");
        let seen = bench.take();
        assert_eq!(
            seen.calls(),
            [EngineCall::RegisterAgent { name: "al".into(), cli: "codex".into() }],
            "{by}:\n{seen:?}"
        );
        bench.engine(is_register, Ok(http_identity()));
        bench.engine(is_bind, Ok(json!({})));
        let seen = bench.take();
        assert!(
            seen.environment().contains(&("RELAY_AGENT_TOKEN".to_string(), "at_live_http".to_string())),
            "{seen:?}"
        );
        bench.started("al");
        let seen = bench.take();
        assert_eq!(error_of(&seen, by, ticket), None, "{by}:\n{seen:?}");
        assert_eq!(seen.listed(), ["al"], "{by}");
        // The refused request is settled: nothing of it is remembered.
        assert!(bench.broker.abandoned.is_empty(), "{:?}", bench.broker.abandoned);
    }
}

/// `wrap`: two users of one name must not take it from each other.
#[test]
fn who_yields_a_name_is_told_that_it_is_taken_and_takes_nothing() {
    let mut bench = Bench::online();
    let request = SpawnRequest { name: "al".into(), cli: "codex".into(), yields_name: true, ..SpawnRequest::default() };
    let ticket = bench.ask_spawn_of(request);
    bench.prepared("al");
    bench.take();
    let id = bench.register_id("al");
    bench.error(&id, "agent_location_conflict");
    let seen = bench.take();
    let (status, error) = seen.outcome(ticket);
    assert!(status == 500 && error.starts_with("agent_location_conflict: "), "{status} {error}");
    assert!(seen.calls().is_empty() && seen.deregistered().is_empty(), "{seen:?}");
    bench.settle();
    bench.nothing_left("al");
}

#[test]
fn the_outcomes_of_the_http_way() {
    /// Statuses of registration and bind (0 = not called, 200 = success), what the caller gets.
    struct Row {
        by: &'static str,
        register: u16,
        bind: u16,
        starts: bool,
        text: &'static str,
        deregistered: bool,
    }
    let row = |by, register, bind, starts, text, deregistered| Row { by, register, bind, starts, text, deregistered };
    let rows = [
        row("api", 200, 200, true, "", false),
        row("api", 200, 500, true, "failed (no luck (HTTP 500", false),
        row("api", 503, 0, true, "failed to pre-register worker 'al'", false),
        row("api", 429, 0, true, "failed to pre-register worker 'al'", false),
        row("api", 408, 0, true, "failed to pre-register worker 'al'", false),
        row("api", 400, 0, false, "failed to pre-register worker 'al'", false),
        row("invoke", 200, 200, true, "", false),
        row("invoke", 200, 500, false, "failed (no luck (HTTP 500", true),
        row("invoke", 503, 0, false, "failed to pre-register worker 'al'", false),
        row("invoke", 400, 0, false, "failed to pre-register worker 'al'", false),
    ];
    for row in rows {
        let what = format!("f11: {} register {} bind {}", row.by, row.register, row.bind);
        let (mut bench, ticket) = registering(row.by);
        let id = bench.register_id("al");
        bench.error(&id, "internal_error");
        let outcome = |status, data| if status == 200 { Ok(data) } else { Err(engine_error(status)) };
        bench.engine(is_register, outcome(row.register, http_identity()));
        if row.bind != 0 {
            bench.engine(is_bind, outcome(row.bind, json!({})));
        }
        if row.starts {
            bench.started("al");
        }
        let seen = bench.take();
        assert_eq!(!seen.starts().is_empty(), row.starts, "{what}:\n{seen:?}");
        assert_eq!(!seen.deregistered().is_empty(), row.deregistered, "{what}:\n{seen:?}");
        if row.starts {
            assert_eq!(error_of(&seen, row.by, ticket), None, "{what}:\n{seen:?}");
            if row.by == "api" {
                let body = seen.answer(ticket).expect("an answer").body;
                let warning = body["warning"].as_str().unwrap_or_default();
                assert_eq!(warning.is_empty(), row.text.is_empty(), "{what}: {body}");
                assert!(warning.contains(row.text), "{what}: {body}");
                assert_eq!(body["pre_registered"], row.register == 200, "{what}: {body}");
            }
        } else {
            let error = error_of(&seen, row.by, ticket).unwrap_or_else(|| panic!("{what}: no error\n{seen:?}"));
            assert!(error.contains(row.text), "{what}: {error}");
            bench.settle();
            bench.nothing_left(&what);
        }
    }
}

#[test]
fn a_failed_bind_is_tried_again_and_then_listed() {
    let (mut bench, _) = registering("api");
    let id = bench.register_id("al");
    bench.error(&id, "internal_error");
    bench.engine(is_register, Ok(http_identity()));
    bench.engine(is_bind, Err(engine_error(500)));
    bench.started("al");
    bench.settle();
    let seen = bench.take();
    assert!(seen.listed().is_empty(), "the engine cannot deliver to it yet:\n{seen:?}");
    bench.pass(15_000);
    bench.engine(is_bind, Err(engine_error(500)));
    bench.pass(15_000);
    bench.take();
    bench.engine(is_bind, Ok(json!({})));
    let seen = bench.take();
    assert_eq!(seen.listed(), ["al"], "{seen:?}");
    bench.pass(60_000);
    assert!(!bench.take().calls().iter().any(is_bind), "bound once");
}

#[test]
fn a_lost_connection_asks_again_on_the_next_one_or_by_http() {
    let (mut bench, ticket) = registering("api");
    let first = bench.register_id("al");
    bench.close("reset");
    bench.wait_connect();
    bench.open();
    assert_eq!(bench.take().count("agent.register"), 1);
    assert_ne!(bench.register_id("al"), first);
    bench.registered("al");
    bench.started("al");
    assert_eq!(bench.take().outcome(ticket).0, 200);
    // Twin: no next one in time.
    let (mut bench, ticket) = registering("api");
    bench.close("reset");
    bench.refuse(Refusal::Io("down".into()));
    bench.pass(2_000);
    assert!(bench.take().calls().iter().any(is_register));
    bench.engine(is_register, Ok(http_identity()));
    bench.engine(is_bind, Ok(json!({})));
    bench.started("al");
    bench.refuse(Refusal::Io("down".into()));
    bench.wait_connect();
    bench.open();
    bench.accept();
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200);
    assert_eq!(seen.count("agent.register"), 0, "f33: no late registration:\n{seen:?}");
    assert!(seen.deregistered().is_empty(), "{seen:?}");
    assert_eq!(seen.listed(), ["al"]);
}

#[test]
fn f33_link_down_a_spawn_waits_shortly_and_then_goes_by_http() {
    let mut bench = Bench::online();
    bench.close("reset");
    bench.refuse(Refusal::Io("down".into()));
    bench.take();
    let ticket = bench.ask_spawn("al");
    bench.prepared("al");
    bench.pass(1_999);
    assert!(!bench.take().calls().iter().any(is_register));
    bench.pass(1);
    assert!(bench.take().calls().iter().any(is_register));
    bench.engine(is_register, Ok(http_identity()));
    bench.engine(is_bind, Err(engine_error(0)));
    bench.started("al");
    bench.refuse(Refusal::Io("down".into()));
    bench.wait_connect();
    bench.open();
    bench.accept();
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 200);
    assert_eq!(seen.count("agent.register"), 0, "{seen:?}");
}

#[test]
fn a_link_that_returns_within_the_grace_takes_the_registration() {
    let mut bench = Bench::online();
    bench.close("reset");
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.wait_connect();
    bench.open();
    let seen = bench.take();
    assert_eq!(seen.count("agent.register"), 1, "{seen:?}");
    bench.pass(5_000);
    assert!(!bench.take().calls().iter().any(is_register), "one way only");
    bench.registered("al");
    assert_eq!(bench.take().starts().len(), 1);
}

#[test]
fn f24_answers_under_foreign_ids_go_by_name() {
    let mut bench = Bench::online();
    for name in ["al", "bo"] {
        bench.ask_spawn(name);
        bench.prepared(name);
    }
    bench.take();
    bench.reply("req-7", registration("bo"));
    assert_eq!(bench.take().starts(), [bench.generation("bo")]);
    // Twins: neither an answer for a name nobody waits for, nor one that is no registration.
    bench.reply("req-8", registration("cy"));
    bench.reply("req-9", json!({"name": "al"}));
    let seen = bench.take();
    assert!(seen.starts().is_empty(), "{seen:?}");
    bench.registered("al");
    assert_eq!(bench.take().starts(), [bench.generation("al")]);
}

#[test]
fn an_answer_without_a_token_fails_the_spawn_and_what_it_made() {
    let (mut bench, ticket) = registering("api");
    let id = bench.register_id("al");
    bench.reply(&id, json!({"agent_id": "id-al", "token": " ", "name": "al"}));
    let seen = bench.take();
    let (status, error) = seen.outcome(ticket);
    assert_eq!((status, error.as_str()), (500, "invalid_agent_register_reply_data"));
    assert_eq!(seen.deregistered(), [("id-al".to_string(), "al".to_string())], "{seen:?}");
    bench.settle();
    bench.nothing_left("no token");
}

#[test]
fn h10_an_error_that_names_the_request_fails_the_oldest_at_once() {
    let mut bench = Bench::online();
    for name in ["al", "bo"] {
        bench.ask_spawn(name);
        bench.prepared(name);
    }
    bench.take();
    let error = |message: &str| FromEngine::Error {
        id: "unknown".into(),
        code: "invalid_message".into(),
        message: message.into(),
    };
    // Twin: what names another request fails none.
    bench.frame(error("delivery.ack: unrecognized key"));
    assert!(bench.take().calls().is_empty());
    bench.frame(error("agent.register: unrecognized key"));
    let seen = bench.take();
    let names: Vec<_> = seen
        .calls()
        .iter()
        .filter_map(|call| match call {
            EngineCall::RegisterAgent { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["al"], "the oldest takes the other way:\n{seen:?}");
}

#[test]
fn f25_answers_to_other_requests_are_not_warned_about() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    bench.accept();
    bench.spawn_running("al");
    bench.pass(120_000);
    let seen = bench.take();
    assert!(seen.logs(log::Level::Warn).is_empty() && seen.logs(log::Level::Error).is_empty(), "{seen:?}");
}

/// The old deregistration and the new registration travel on two roads: the first must not arrive last.
#[test]
fn an_old_deregistration_waits_for_the_name_that_registers_again_by_http() {
    for lives in [true, false] {
        let mut bench = Bench::online();
        let first = bench.spawn_running("al");
        bench.close("connection reset");
        bench.exited(first);
        let ticket = bench.ask_spawn("al");
        bench.prepared("al");
        bench.pass(2_000);
        assert!(bench.take().calls().iter().any(is_register), "the link is down: by HTTP");
        bench.open();
        bench.accept();
        let seen = bench.take();
        assert!(seen.deregistered().is_empty(), "it could hit the new life:\n{seen:?}");
        if lives {
            bench.engine(is_register, Ok(http_identity()));
            bench.engine(is_bind, Ok(json!({})));
            bench.started("al");
        } else {
            bench.engine(is_register, Err(engine_error(400)));
        }
        bench.settle();
        let seen = bench.take();
        assert_eq!(seen.outcome(ticket).0, if lives { 200 } else { 500 });
        assert_eq!(seen.deregistered().len(), usize::from(!lives), "lives: {lives}\n{seen:?}");
    }
}
