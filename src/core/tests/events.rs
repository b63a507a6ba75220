//! The events of the local API: every kind has exactly its members, and the lives of messages and agents keep their order.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::wire::events::Event;

/// What each kind carries besides `kind` and the number that the hub adds. `?` = not always.
const MEMBERS: &[(&str, &str)] = &[
    ("agent_spawned", "name runtime provider cli model sessionId pid source pre_registered registration_warning?"),
    ("worker_ready", "name runtime provider cli model sessionId pid"),
    ("worker_stream", "name stream chunk offset"),
    ("agent_idle", "name idle_secs since"),
    ("agent_blocked_on_send", "name blocked_secs pending_delivery_count"),
    ("agent_context_low", "name pct"),
    ("agent_exit", "name reason"),
    ("agent_exited", "name code signal reason uptime_secs cli output"),
    ("agent_restarting", "name code signal reason uptime_secs cli output restart_count delay_ms"),
    ("agent_restarted", "name restart_count"),
    ("agent_permanently_dead", "name reason"),
    ("agent_released", "name"),
    ("agent_result", "name result_id data final metadata"),
    ("relay_inbound", "event_id from target body thread_id workspace_id workspace_alias"),
    // Queued: with id and time. Held: with sender, target and reason.
    ("delivery_queued", "name event_id delivery_id? timestamp? from? target? reason?"),
    ("delivery_injected", "name delivery_id event_id timestamp"),
    ("delivery_read", "name delivery_id event_id timestamp"),
    ("delivery_ack", "name delivery_id event_id timestamp"),
    ("delivery_acked", "name up_to_seq timestamp"),
    ("delivery_verified", "name delivery_id event_id timestamp verification reason?"),
    ("delivery_waiting", "name delivery_id event_id reason timestamp"),
    ("delivery_turn_started", "name delivery_id event_id timestamp"),
    ("delivery_active", "name delivery_id event_id pattern"),
    ("delivery_failed", "name delivery_id event_id reason"),
    ("delivery_retry", "name delivery_id event_id attempts"),
    ("delivery_stalled", "name delivery_id event_id"),
    ("delivery_dropped", "name count reason"),
    ("message_delivery_confirmed", "name delivery_id event_id from to"),
    ("message_delivery_failed", "name delivery_id event_id from to attempts lastError"),
    ("dead_letter_added", "name delivery_id event_id from to attempts reason"),
    ("delivery_read_ack", "name delivery_id event_id status reason?"),
    ("agent_inbound_delivery_mode_changed", "name previous_mode mode"),
    ("agent_pending_drained", "name count reason"),
    ("channel_subscribed", "name channels"),
    ("channel_unsubscribed", "name channels"),
    ("worker_error", "name error"),
];

fn channel(name: &str, joins: bool) -> ApiCall {
    let channels = vec!["dev".to_string()];
    if joins {
        ApiCall::Subscribe { name: name.into(), channels }
    } else {
        ApiCall::Unsubscribe { name: name.into(), channels }
    }
}

/// A day of three agents, in which all of that happens.
fn everything() -> Vec<Value> {
    let mut bench = Bench::online();
    bench.ask_spawn_of(SpawnRequest {
        name: "al".into(),
        cli: "codex".into(),
        result_schema: Some(json!({})),
        ..SpawnRequest::default()
    });
    bench.prepared("al");
    bench.registered("al");
    let env = bench.out.clone();
    let token =
        Seen(env).environment().into_iter().find(|(key, _)| key == "AGENT_RELAY_RESULT_TOKEN").expect("a token").1;
    let al = bench.started("al");
    bench.note(al, AgentNote::Ready);
    bench.settle();
    bench.ask(ApiCall::Result(ResultReport {
        token: Secret::new(token),
        name: None,
        data: json!(1),
        is_final: true,
        metadata: None,
    }));
    bench.ask(channel("al", true));
    bench.ask(channel("al", false));
    bench.note(al, AgentNote::Output { chunk: "hi".into(), offset: 2 });
    bench.note(al, AgentNote::Idle { idle_secs: 30, since_unix: UNIX });
    bench.note(al, AgentNote::ContextLeft { pct: 9 });
    // A message of the engine and one of the API, typed, stuck, read, echoed.
    bench.deliver(message("al", 1, "m1"));
    let id = bench.flights[&al].delivery_id.clone();
    bench.inject_failed(al);
    bench.pass(1_000);
    bench.note(al, AgentNote::Waiting { delivery_id: id.clone() });
    bench.note(al, AgentNote::Stalled { delivery_id: id.clone() });
    bench.note(al, AgentNote::Idle { idle_secs: 120, since_unix: UNIX });
    bench.read(al);
    bench.note(al, AgentNote::Verified { delivery_id: id, echo: false });
    bench.send_to("al", "near");
    let id = bench.flights[&al].delivery_id.clone();
    bench.read(al);
    bench.note(al, AgentNote::Verified { delivery_id: id.clone(), echo: true });
    bench.note(al, AgentNote::TurnStarted { delivery_id: id });
    // Held, flushed, dropped.
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.send_to("al", "held");
    bench.ask(ApiCall::Flush { name: "al".into() });
    bench.api(ApiCall::Type { name: "al".into(), bytes: b"x".to_vec() });
    let ticket = bench.tickets;
    bench.note(al, AgentNote::TypeDone { ticket, result: Err("EIO".into()) });
    bench.release("al");
    bench.exited(al);
    let mut told = bench.take().events();
    let bo = bench.spawn_running("bo");
    bench.note(bo, AgentNote::Ending { reason: "child_exited" });
    bench.note(bo, AgentNote::Exited { code: None, signal: Some(9) });
    told.extend(bench.take().events());
    // Started again once, and no more.
    let policy = crate::wire::fleet::RestartPolicy { max_restarts: 1, ..Default::default() };
    bench.ask_spawn_of(SpawnRequest {
        name: "cy".into(),
        cli: "codex".into(),
        restart_policy: Some(policy),
        ..SpawnRequest::default()
    });
    let cy = bench.run("cy");
    bench.exited(cy);
    bench.pass(policy.cooldown_ms);
    bench.prepared("cy");
    bench.registered("cy");
    let cy = bench.started("cy");
    bench.exited(cy);
    told.extend(bench.take().events());
    // Without terminal.
    bench.ask_spawn_of(SpawnRequest {
        name: "di".into(),
        cli: "claude".into(),
        headless: true,
        task: Some("do it".into()),
        ..SpawnRequest::default()
    });
    let di = bench.generation("di");
    for note in [AgentNote::Prepared, AgentNote::Serving { pid: None }, AgentNote::Ready] {
        bench.note(di, note.clone());
        if note == AgentNote::Prepared {
            bench.registered("di");
        }
    }
    let delivery_id = bench.flights[&di].delivery_id.clone();
    bench.note(di, AgentNote::Taken { delivery_id: delivery_id.clone(), pid: 5 });
    bench.note(di, AgentNote::Finished { delivery_id, result: Err("claude exited with code 7".into()) });
    told.extend(bench.take().events());
    told.iter().map(|event| serde_json::to_value(event).expect("JSON")).collect()
}

#[test]
fn every_event_has_exactly_its_members() {
    let table: BTreeMap<&str, Vec<&str>> =
        MEMBERS.iter().map(|(kind, members)| (*kind, members.split(' ').collect())).collect();
    let mut seen = BTreeSet::new();
    for event in everything() {
        let object = event.as_object().expect("an object");
        let kind = event["kind"].as_str().expect("a kind").to_string();
        let members = table.get(kind.as_str()).unwrap_or_else(|| panic!("not in the table: {event}"));
        for key in object.keys().filter(|key| *key != "kind") {
            assert!(members.iter().any(|member| member.trim_end_matches('?') == key), "`{key}` is too much: {event}");
        }
        for member in members.iter().filter(|member| !member.ends_with('?')) {
            assert!(object.contains_key(*member), "`{member}` is missing: {event}");
        }
        if kind == "delivery_queued" {
            let held = object.contains_key("reason");
            for (member, is_there) in
                [("delivery_id", !held), ("timestamp", !held), ("from", held), ("target", held), ("reason", held)]
            {
                assert_eq!(object.contains_key(member), is_there, "{member}: {event}");
            }
        }
        seen.insert(kind);
    }
    let missing: Vec<&&str> = table.keys().filter(|kind| !seen.contains(**kind)).collect();
    assert!(missing.is_empty(), "nobody was told of {missing:?}");
}

#[test]
fn the_values_are_those_that_clients_know() {
    let all = everything();
    let of = |kind: &str| all.iter().find(|event| event["kind"] == kind).cloned().expect(kind);
    let table = [
        (
            "agent_spawned",
            json!({"runtime": "pty", "provider": null, "source": "http_api", "pre_registered": true, "sessionId": null}),
        ),
        ("worker_ready", json!({"runtime": "pty", "provider": null, "cli": "codex", "model": null})),
        ("worker_stream", json!({"stream": "stdout", "chunk": "hi"})),
        ("agent_idle", json!({"idle_secs": 30, "since": crate::wire::time::rfc3339(UNIX)})),
        ("agent_blocked_on_send", json!({"blocked_secs": 120, "pending_delivery_count": 1})),
        ("agent_exit", json!({"name": "bo", "reason": "child_exited"})),
        (
            "agent_exited",
            json!({"name": "bo", "code": null, "signal": "9", "reason": "child_exited", "uptime_secs": 0,
               "cli": "codex", "output": ""}),
        ),
        ("delivery_ack", json!({"timestamp": null})),
        (
            "delivery_verified",
            json!({"verification": "timeout_fallback", "reason": "echo not detected within 5s window"}),
        ),
        ("delivery_retry", json!({"attempts": 1})),
        ("delivery_dropped", json!({"count": 1, "reason": "agent_released"})),
        ("message_delivery_failed", json!({"to": "al"})),
        ("delivery_read_ack", json!({"status": "skipped_synthetic", "reason": "http_api_synthetic_event_id"})),
        ("worker_error", json!({"error": {"code": "pty_write_failed", "message": "EIO", "retryable": true}})),
    ];
    for (kind, wanted) in table {
        let event = of(kind);
        for (member, value) in wanted.as_object().expect("members") {
            assert_eq!(&event[member], value, "{member} of {event}");
        }
    }
}

#[test]
fn only_what_is_shown_is_ephemeral() {
    let shown = Event::WorkerStream { name: "al".into(), stream: "stdout".into(), chunk: "x".into(), offset: 1 };
    assert!(!shown.is_durable());
    let (name, delivery_id, event_id) = ("al".to_string(), "d".to_string(), "m".to_string());
    assert!(!Event::DeliveryActive { name, delivery_id, event_id, pattern: "headless:claude".into() }.is_durable());
    assert!(Event::AgentReleased { name: "al".into() }.is_durable());
}

#[test]
fn an_end_is_told_in_order_whether_asked_for_or_not() {
    for asked_for in [true, false] {
        let mut bench = Bench::online();
        let generation = bench.spawn_running("al");
        bench.set_mode("al", InboundMode::ManualFlush);
        bench.send_to("al", "one");
        bench.send_to("al", "two");
        bench.take();
        if asked_for {
            bench.release("al");
        } else {
            bench.note(generation, AgentNote::Ending { reason: "child_exited" });
        }
        bench.exited(generation);
        let seen = bench.take();
        let kinds: Vec<_> = seen.event_kinds().into_iter().filter(|kind| kind != "dead_letter_added").collect();
        let failed = ["delivery_dropped", "message_delivery_failed", "message_delivery_failed"];
        let expected: Vec<&str> = if asked_for {
            failed.into_iter().chain(["agent_released"]).collect()
        } else {
            ["agent_exit"].into_iter().chain(failed).chain(["agent_exited"]).collect()
        };
        assert_eq!(kinds, expected, "{seen:?}");
        assert_eq!(seen.event("delivery_dropped")[0]["count"], 2);
        let reason = if asked_for { "agent_released" } else { "worker_exited" };
        assert_eq!(seen.event("delivery_dropped")[0]["reason"], reason);
    }
}

#[test]
fn long_silence_with_a_message_under_way_is_told_as_being_blocked() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let silence = |idle_secs| AgentNote::Idle { idle_secs, since_unix: UNIX };
    let state = |bench: &mut Bench| bench.ask(ApiCall::ListAgents).body["agents"][0]["current_state"].clone();
    bench.send_to("al", "one");
    bench.send_to("al", "two");
    let ids: Vec<String> = bench
        .take()
        .event("delivery_queued")
        .iter()
        .filter_map(|event| event["delivery_id"].as_str().map(str::to_string))
        .collect();
    bench.note(generation, silence(30));
    assert!(bench.take().events().is_empty(), "a message on its way is no silence of the agent's choice");
    bench.note(generation, silence(120));
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["agent_blocked_on_send"], "{seen:?}");
    assert_eq!(seen.event("agent_blocked_on_send")[0]["pending_delivery_count"], 2);
    assert_eq!(state(&mut bench), "blocked_on_send");
    bench.read(generation);
    assert_eq!(state(&mut bench), "working");
    // It goes on being silent once all is read and confirmed.
    bench.read(generation);
    bench.take();
    for id in ids {
        bench.note(generation, AgentNote::Verified { delivery_id: id, echo: false });
    }
    let seen = bench.take();
    assert_eq!(seen.event_kinds().last().map(String::as_str), Some("agent_idle"), "{seen:?}");
    assert_eq!(seen.event("agent_idle").len(), 1, "{seen:?}");
    assert_eq!(state(&mut bench), "idle");
    // Twin: not if it has said something since.
    bench.send_to("al", "three");
    let id = bench.flights[&generation].delivery_id.clone();
    bench.note(generation, silence(120));
    bench.note(generation, AgentNote::Active);
    bench.read(generation);
    bench.note(generation, AgentNote::Verified { delivery_id: id, echo: true });
    assert!(bench.take().event("agent_idle").is_empty());
    // A message that is lost is on its way no more.
    bench.send_to("al", "lost");
    let id = bench.flights[&generation].delivery_id.clone();
    bench.note(generation, silence(120));
    bench.take();
    bench.note(generation, AgentNote::Lost { delivery_id: id });
    assert_eq!(bench.take().event("agent_idle").len(), 1);
    bench.flights.remove(&generation);
    // Twin: nor while a failed message waits for its next try.
    bench.send_to("al", "four");
    bench.inject_failed(generation);
    bench.take();
    bench.note(generation, silence(120));
    assert_eq!(bench.take().event_kinds(), ["agent_blocked_on_send"]);
    // Twin: with nothing under way it is idle, again.
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    for idle_secs in [30, 120] {
        bench.note(generation, silence(idle_secs));
        assert_eq!(bench.take().event_kinds(), ["agent_idle"]);
        assert_eq!(state(&mut bench), "idle");
    }
}
