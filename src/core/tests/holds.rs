//! Hold mode, flush, eviction, and the initial task.

use super::*;

fn running() -> (Bench, Generation) {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    (bench, generation)
}

fn hold(bench: &mut Bench) {
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.take();
}

fn pending(bench: &mut Bench) -> Vec<String> {
    let body = bench.ask(ApiCall::Pending { name: "al".into() }).body;
    let rows = body["pending"].as_array().cloned().unwrap_or_default();
    rows.iter().map(|row| row["body"].as_str().unwrap_or_default().to_string()).collect()
}

fn flush(bench: &mut Bench) -> Value {
    bench.ask(ApiCall::Flush { name: "al".into() }).body
}

fn with_task() -> SpawnRequest {
    SpawnRequest { name: "al".into(), cli: "codex".into(), task: Some("do it".into()), ..SpawnRequest::default() }
}

#[test]
fn a_mode_change_is_told_once() {
    let (mut bench, _) = running();
    let answer = bench.set_mode("al", InboundMode::ManualFlush);
    assert_eq!((&answer.body["mode"], &answer.body["flushed"]), (&json!("manual_flush"), &json!(0)));
    let seen = bench.take();
    let told = seen.event("agent_inbound_delivery_mode_changed");
    assert_eq!(told.len(), 1, "{seen:?}");
    assert_eq!((&told[0]["previous_mode"], &told[0]["mode"]), (&json!("auto_inject"), &json!("manual_flush")));
    bench.set_mode("al", InboundMode::ManualFlush);
    assert!(bench.take().events().is_empty(), "only on a real change");
    let now = bench.ask(ApiCall::DeliveryMode { name: "al".into() }).body;
    assert_eq!(now, json!({"mode": "manual_flush", "revision": answer.body["revision"]}));
    assert_eq!(bench.set_mode("ghost", InboundMode::AutoInject).status, 404);
}

#[test]
fn a_change_that_expects_something_else_is_not_made() {
    let (mut bench, _) = running();
    let revision = |body: &Value| body["revision"].as_str().and_then(|text| text.parse::<u64>().ok()).expect("a text");
    let first = revision(&bench.ask(ApiCall::DeliveryMode { name: "al".into() }).body);
    let set = |bench: &mut Bench, mode, expected| {
        bench.ask(ApiCall::SetDeliveryMode { name: "al".into(), mode, expected }).body
    };
    let (auto, hold) = (InboundMode::AutoInject, InboundMode::ManualFlush);
    let held = set(&mut bench, hold, Expected { mode: Some(auto), revision: Some(first) });
    assert_eq!((&held["matched"], &held["mode"]), (&json!(true), &json!("manual_flush")));
    assert!(revision(&held) > first, "{held}");
    bench.send_to("al", "one");
    bench.take();
    for expected in [
        Expected { mode: Some(auto), revision: None },
        Expected { mode: None, revision: Some(first) },
        Expected { mode: Some(hold), revision: Some(first) },
    ] {
        let answer = set(&mut bench, auto, expected);
        let unchanged = json!({"mode": "manual_flush", "matched": false, "flushed": 0, "revision": held["revision"]});
        assert_eq!(answer, unchanged, "{expected:?}");
        assert!(bench.take().events().is_empty(), "{expected:?}");
    }
    // The same mode again is no change.
    let again = set(&mut bench, hold, Expected { mode: None, revision: Some(revision(&held)) });
    assert_eq!((&again["matched"], &again["revision"]), (&json!(true), &held["revision"]));
    let back = set(&mut bench, auto, Expected { mode: Some(hold), revision: Some(revision(&held)) });
    assert_eq!((&back["matched"], &back["flushed"]), (&json!(true), &json!(1)));
    // The next life of the name has a revision of its own.
    let generation = bench.generation("al");
    bench.exited(generation);
    bench.spawn_running("al");
    assert!(revision(&bench.ask(ApiCall::DeliveryMode { name: "al".into() }).body) > revision(&back));
}

#[test]
fn a_flush_tells_what_stands_in_its_way() {
    let (mut bench, generation) = running();
    bench.send_to("al", "stuck");
    let stuck = bench.flights[&generation].delivery_id.clone();
    hold(&mut bench);
    bench.send_to("al", "one");
    assert_eq!(flush(&mut bench)["blocked_reason"], json!(null), "it is being typed");
    bench.note(generation, AgentNote::Typed { delivery_id: stuck.clone() });
    bench.note(generation, AgentNote::Stalled { delivery_id: stuck });
    assert_eq!(flush(&mut bench)["blocked_reason"], "agent_not_reading");
    bench.send_to("al", "two");
    bench.release("al");
    let body = flush(&mut bench);
    assert_eq!(body, json!({"flushed": 0, "dead_lettered": 0, "held": 1, "blocked_reason": "agent_releasing"}));
    bench.ask_spawn("bo");
    let body = bench.ask(ApiCall::Flush { name: "bo".into() }).body;
    assert_eq!(body["blocked_reason"], "agent_starting");
}

#[test]
fn held_messages_tell_their_workspace() {
    for alias in [None, Some("team".to_string())] {
        let mut bench = Bench::with(|config| config.workspaces[0].alias.clone_from(&alias)).go_online();
        bench.spawn_running("al");
        hold(&mut bench);
        bench.send_to("al", "one");
        bench.deliver(message("al", 1, "m1"));
        let body = bench.ask(ApiCall::Pending { name: "al".into() }).body;
        for row in body["pending"].as_array().expect("rows") {
            assert_eq!(row["workspace_id"], "ws1", "{row}");
            assert_eq!(row.get("workspace_alias").and_then(Value::as_str), alias.as_deref(), "{row}");
        }
    }
}

#[test]
fn a_flush_lets_through_what_is_held_at_that_moment() {
    let (mut bench, generation) = running();
    hold(&mut bench);
    bench.send_to("al", "one");
    bench.deliver(message("al", 1, "m1"));
    bench.send_to("al", "two");
    assert_eq!(pending(&mut bench), ["one", "text of m1", "two"], "one inbound road, oldest first");
    bench.take();
    assert_eq!(flush(&mut bench), json!({"flushed": 3, "dead_lettered": 0, "held": 0, "blocked_reason": null}));
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["one"], "{seen:?}");
    let kinds = seen.event_kinds();
    assert_eq!(
        kinds,
        ["delivery_queued", "delivery_queued", "delivery_queued", "agent_pending_drained"],
        "the drain is told after what it queued"
    );
    assert_eq!(seen.event("agent_pending_drained")[0]["reason"], "explicit_flush");
    bench.send_to("al", "later");
    assert_eq!(pending(&mut bench), ["later"]);
    for _ in 0..3 {
        bench.read(generation);
    }
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["text of m1", "two"], "and not what came later:\n{seen:?}");
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    assert_eq!(flush(&mut bench)["flushed"], 1);
    assert_eq!(bench.take().bodies(), ["later"]);
    assert_eq!(flush(&mut bench)["flushed"], 0);
    assert!(bench.take().events().is_empty(), "nothing was drained");
}

#[test]
fn a_flush_in_auto_mode_finds_nothing_held() {
    let (mut bench, _) = running();
    for text in ["one", "two", "three"] {
        bench.send_to("al", text);
    }
    bench.take();
    assert_eq!(flush(&mut bench)["flushed"], 0);
    let seen = bench.take();
    assert!(seen.events().is_empty(), "what waits its turn is not queued again:\n{seen:?}");
}

#[test]
fn going_back_to_auto_drains() {
    let (mut bench, generation) = running();
    hold(&mut bench);
    bench.send_to("al", "one");
    bench.send_to("al", "two");
    bench.take();
    let answer = bench.set_mode("al", InboundMode::AutoInject);
    assert_eq!((&answer.body["mode"], &answer.body["flushed"]), (&json!("auto_inject"), &json!(2)));
    let seen = bench.take();
    assert_eq!(seen.event("agent_pending_drained")[0]["reason"], "delivery_mode_transition");
    bench.read(generation);
    assert_eq!(bench.take().bodies(), ["two"]);
}

#[test]
fn a_new_hold_holds_what_an_old_flush_had_let_through() {
    let (mut bench, generation) = running();
    hold(&mut bench);
    for text in ["one", "two", "three"] {
        bench.send_to("al", text);
    }
    flush(&mut bench);
    bench.set_mode("al", InboundMode::AutoInject);
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.take();
    bench.read(generation);
    assert!(bench.take().bodies().is_empty(), "the exemption ends at the boundary");
    assert_eq!(pending(&mut bench), ["two", "three"]);
}

#[test]
fn l11_a_new_hold_also_holds_what_waits_at_the_terminal() {
    let (mut bench, generation) = running();
    hold(&mut bench);
    bench.send_to("al", "one");
    flush(&mut bench);
    assert_eq!(bench.take().bodies(), ["one"]);
    let flight = bench.flights.remove(&generation).expect("handed to the terminal");
    bench.set_mode("al", InboundMode::AutoInject);
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.note(generation, AgentNote::GivenBack { delivery_id: flight.delivery_id });
    assert!(bench.take().bodies().is_empty(), "the exemption ends at the boundary");
    assert_eq!(pending(&mut bench), ["one"]);
    flush(&mut bench);
    assert_eq!(bench.take().bodies(), ["one"]);
}

#[test]
fn what_is_in_the_terminal_when_the_hold_begins_goes_through() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    hold(&mut bench);
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    assert!(seen.typed().is_empty(), "{seen:?}");
}

#[test]
fn the_257th_held_api_message_evicts_the_oldest_api_message() {
    let (mut bench, _) = running();
    hold(&mut bench);
    bench.deliver(message("al", 1, "m1"));
    for n in 1..=256 {
        bench.send_to("al", &format!("text {n}"));
    }
    let seen = bench.take();
    assert!(seen.event("delivery_dropped").is_empty(), "256 fit:\n{seen:?}");
    bench.send_to("al", "text 257");
    let seen = bench.take();
    let dropped = seen.event("delivery_dropped");
    assert_eq!(dropped.len(), 1, "{seen:?}");
    let text = "pending queue full (max 256); evicted oldest message from broker";
    assert_eq!((&dropped[0]["count"], &dropped[0]["reason"]), (&json!(1), &json!(text)));
    assert_eq!(seen.dead().len(), 1, "{seen:?}");
    assert!(seen.acks().is_empty(), "l6: the engine's message is never the one:\n{seen:?}");
    let bodies = pending(&mut bench);
    assert_eq!((bodies.len(), bodies[0].as_str(), bodies[1].as_str()), (257, "text of m1", "text 2"));
}

#[test]
fn steering_does_not_pass_a_hold_but_leads_a_flush() {
    let (mut bench, generation) = running();
    hold(&mut bench);
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(steer("al", 2, "s2"));
    assert!(bench.take().typed().is_empty());
    flush(&mut bench);
    assert_eq!(bench.take().typed(), ["s2"]);
    bench.read(generation);
    let seen = bench.take();
    assert!(seen.acks().is_empty(), "m1 is open:\n{seen:?}");
    bench.read(generation);
    assert_eq!(bench.take().acked("al"), [2]);
}

#[test]
fn l10_the_initial_task_waits_for_readiness_and_passes_the_hold() {
    let mut bench = Bench::online();
    bench.ask_spawn_of(with_task());
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    hold(&mut bench);
    bench.send_to("al", "held");
    bench.pass(24_000);
    let seen = bench.take();
    assert!(seen.bodies().is_empty(), "not ready:\n{seen:?}");
    bench.note(generation, AgentNote::Ready);
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["do it"], "{seen:?}");
    assert_eq!(seen.event_kinds(), ["worker_ready", "delivery_queued"], "{seen:?}");
    bench.note(generation, AgentNote::Ready);
    assert!(bench.take().event("worker_ready").is_empty(), "once per start");
    let event_id = bench.read(generation);
    assert!(event_id.starts_with("init_"), "{event_id}");
    assert!(bench.take().bodies().is_empty(), "the hold holds the rest");
}

#[test]
fn only_the_task_waits_for_readiness() {
    let mut bench = Bench::online();
    bench.ask_spawn_of(with_task());
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    bench.send_to("al", "one");
    bench.send_to("al", "two");
    assert_eq!(bench.take().bodies(), ["one"]);
    bench.note(generation, AgentNote::Ready);
    bench.read(generation);
    assert_eq!(bench.take().bodies(), ["do it"], "ahead of what waits");
}

#[test]
fn a_blank_task_is_none() {
    let mut bench = Bench::online();
    bench.ask_spawn_of(SpawnRequest { task: Some(" \n".into()), ..with_task() });
    bench.run("al");
    assert_eq!(bench.status()["pending_delivery_count"], 0);
}

#[test]
fn a_failed_injection_under_a_hold_waits_for_the_next_flush() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    hold(&mut bench);
    bench.inject_failed(generation);
    bench.pass(10_000);
    assert!(bench.take().typed().is_empty(), "the human asked for silence");
    assert_eq!(pending(&mut bench), ["text of m1"]);
    flush(&mut bench);
    bench.read(generation);
    assert_eq!(bench.take().acked("al"), [1]);
}

#[test]
fn d13_the_terminal_is_told_of_a_hold_before_what_it_lets_through() {
    let (mut bench, generation) = running();
    bench.take();
    for (mode, held) in [(InboundMode::ManualFlush, true), (InboundMode::AutoInject, false)] {
        bench.set_mode("al", mode);
        let told = bench.take().0;
        let at =
            told.iter().position(|effect| *effect == Effect::Agent { generation, command: AgentCommand::Hold(held) });
        let typed =
            told.iter().position(|effect| matches!(effect, Effect::Agent { command: AgentCommand::Inject(_), .. }));
        assert!(at.is_some() && typed.is_none_or(|typed| at < Some(typed)), "{told:?}");
        bench.send_to("al", "held");
    }
}

#[test]
fn f37_what_waits_at_the_terminal_when_a_human_takes_it_is_held_and_flushed_with_the_rest() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let flight = bench.flights.remove(&generation).expect("handed to the terminal");
    hold(&mut bench);
    bench.note(generation, AgentNote::GivenBack { delivery_id: flight.delivery_id.clone() });
    let seen = bench.take();
    assert_eq!(seen.event("delivery_queued")[0]["reason"], "inbound_delivery_manual_flush", "{seen:?}");
    assert!(seen.typed().is_empty() && seen.acks().is_empty(), "{seen:?}");
    assert_eq!(pending(&mut bench), ["text of m1", "text of m2"]);
    // Twin: what the terminal has begun is no longer the core's to hold.
    assert_eq!(flush(&mut bench)["flushed"], 2);
    assert_eq!(bench.take().bodies(), ["text of m1"]);
    assert_eq!(bench.read(generation), "m1");
    bench.note(generation, AgentNote::GivenBack { delivery_id: flight.delivery_id });
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    assert_eq!(seen.bodies(), ["text of m2"], "not m1 again");
}

#[test]
fn f37_a_flush_before_the_terminal_has_given_its_message_back_keeps_the_order() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let flight = bench.flights.remove(&generation).expect("handed to the terminal");
    hold(&mut bench);
    flush(&mut bench);
    bench.take();
    bench.note(generation, AgentNote::GivenBack { delivery_id: flight.delivery_id });
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["text of m1"], "let through like the rest, and before it:\n{seen:?}");
    bench.read(generation);
    assert_eq!(bench.take().bodies(), ["text of m2"]);
}
