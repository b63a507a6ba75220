//! From the terminal to the acknowledgement: what counts as disposed, and when it is said.

use super::*;

fn running() -> (Bench, Generation) {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    (bench, generation)
}

fn delivery_id(bench: &Bench, generation: Generation) -> String {
    bench.flights[&generation].delivery_id.clone()
}

#[test]
fn an_acknowledgement_follows_the_proof_of_reading_and_nothing_less() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    let id = delivery_id(&bench, generation);
    for (step, note) in [
        ("typed", AgentNote::Typed { delivery_id: id.clone() }),
        ("echoed", AgentNote::Verified { delivery_id: id.clone(), echo: true }),
        ("stalled", AgentNote::Stalled { delivery_id: id.clone() }),
        ("active", AgentNote::Active),
        ("foreign", AgentNote::Read { delivery_id: "another".into() }),
    ] {
        bench.note(generation, note);
        let seen = bench.take();
        assert!(seen.acks().is_empty(), "acknowledged at '{step}':\n{seen:?}");
    }
    bench.pass(60_000);
    assert!(bench.take().acks().is_empty(), "time proves nothing");
    bench.note(generation, AgentNote::Read { delivery_id: id.clone() });
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    let record = Record::Disposed { agent_id: "id-al".into(), agent: "al".into(), seq: 1, msg_id: "m1".into() };
    let journalled = seen.at("the record", |effect| *effect == Effect::Journal(record.clone()));
    assert!(journalled < seen.at("the ack", seen::sends("delivery.ack")), "{seen:?}");
    // Proved once.
    bench.note(generation, AgentNote::Read { delivery_id: id });
    let seen = bench.take();
    assert!(seen.acks().is_empty() && seen.events().is_empty(), "{seen:?}");
}

#[test]
fn without_a_journal_nothing_is_journalled_but_dead_letters() {
    let mut bench = Bench::with(|config| config.durable = false).go_online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    assert!(seen.journal().is_empty(), "{seen:?}");
}

#[test]
fn one_message_is_in_the_terminal_at_a_time() {
    let (mut bench, generation) = running();
    for seq in 1..=3 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    assert_eq!(bench.take().typed(), ["m1"]);
    let id = delivery_id(&bench, generation);
    bench.note(generation, AgentNote::Typed { delivery_id: id });
    assert!(bench.take().typed().is_empty(), "the next follows the proof of reading");
    bench.read(generation);
    assert_eq!(bench.take().typed(), ["m2"]);
}

#[test]
fn a_steering_message_overtakes_and_its_acknowledgement_waits() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    bench.deliver(message("al", 3, "m3"));
    bench.deliver(steer("al", 4, "s4"));
    bench.deliver(steer("al", 5, "s5"));
    bench.take();
    let mut acked = Vec::new();
    for expected in ["m1", "s4", "s5", "m2", "m3"] {
        assert_eq!(bench.read(generation), expected);
        acked.push(bench.take().acked("al"));
    }
    assert_eq!(acked, [vec![1], vec![], vec![], vec![2], vec![5]], "never past what is not disposed");
}

#[test]
fn d11_a_steering_message_does_not_wait_for_one_that_waits_at_the_terminal() {
    let yields = |seen: &Seen| {
        let yields = |effect: &&Effect| matches!(effect, Effect::Agent { command: AgentCommand::Yield, .. });
        seen.0.iter().filter(yields).count()
    };
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let id = delivery_id(&bench, generation);
    bench.take();
    bench.deliver(steer("al", 3, "s3"));
    let seen = bench.take();
    assert_eq!((yields(&seen), seen.typed().len()), (1, 0), "{seen:?}");
    bench.note(generation, AgentNote::GivenBack { delivery_id: id });
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["delivery_queued"], "back in the queue, and not held:\n{seen:?}");
    assert!(seen.event("delivery_queued")[0]["reason"].is_null(), "{seen:?}");
    for expected in ["s3", "m1", "m2"] {
        assert_eq!(bench.read(generation), expected);
    }
    assert_eq!(bench.take().acked("al").last(), Some(&3));
    // Twins: what has been typed is not taken back, nor for something that does not steer, nor is one that steers.
    bench.deliver(message("al", 4, "m4"));
    let id = delivery_id(&bench, generation);
    bench.deliver(message("al", 5, "m5"));
    assert_eq!(yields(&bench.take()), 0);
    bench.note(generation, AgentNote::Typed { delivery_id: id });
    bench.deliver(steer("al", 6, "s6"));
    bench.read(generation);
    bench.deliver(steer("al", 7, "s7"));
    assert_eq!(yields(&bench.take()), 0);
}

#[test]
fn d11_a_steering_message_does_not_wait_for_the_next_try_of_another() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.inject_failed(generation);
    bench.take();
    bench.deliver(steer("al", 2, "s2"));
    assert_eq!(bench.take().typed(), ["s2"]);
    bench.inject_failed(generation);
    assert!(bench.take().typed().is_empty(), "it has failed itself");
    bench.pass(10_000);
    assert_eq!(bench.read(generation), "s2");
    assert_eq!(bench.read(generation), "m1");
}

#[test]
fn d11_a_steering_message_that_a_flush_lets_through_does_not_wait_either() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    let id = delivery_id(&bench, generation);
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.deliver(steer("al", 2, "s2"));
    let yields =
        |seen: &Seen| seen.0.iter().any(|effect| matches!(effect, Effect::Agent { command: AgentCommand::Yield, .. }));
    assert!(!yields(&bench.take()), "it is held");
    bench.ask(ApiCall::Flush { name: "al".into() });
    assert!(yields(&bench.take()));
    bench.note(generation, AgentNote::GivenBack { delivery_id: id });
    assert_eq!(bench.read(generation), "s2");
    assert_eq!(bench.read(generation), "m1");
}

#[test]
fn a_message_that_meets_an_ending_program_has_not_failed() {
    for (by, reason) in [("itself", "worker_exited"), ("release", "agent_released")] {
        let (mut bench, generation) = running();
        bench.deliver(message("al", 1, "m1"));
        match by {
            "itself" => bench.note(generation, AgentNote::Ending { reason: "pty_closed" }),
            _ => drop(bench.release("al")),
        }
        bench.take();
        bench.inject_failed(generation);
        bench.pass(10_000);
        let seen = bench.take();
        assert!(seen.event("delivery_retry").is_empty() && seen.typed().is_empty(), "{by}: {seen:?}");
        bench.exited(generation);
        let seen = bench.take();
        assert_eq!(seen.dead(), [("m1".to_string(), reason.to_string())], "{seen:?}");
        assert_eq!(seen.event("dead_letter_added")[0]["attempts"], 0, "{by}: {seen:?}");
    }
}

#[test]
fn s14_9_the_journal_keeps_a_message_of_the_api_until_it_is_confirmed() {
    let (mut bench, generation) = running();
    bench.send_to("al", "one");
    let id = delivery_id(&bench, generation);
    let mut records = bench.take().journal();
    bench.read(generation);
    let shown: Vec<String> = bench.broker.pending().into_iter().map(|one| one.delivery.body).collect();
    assert_eq!(shown, ["one"], "the pending file shows it");
    records.extend(bench.take().journal());
    bench.note(generation, AgentNote::Verified { delivery_id: id, echo: false });
    assert!(bench.broker.pending().is_empty());
    let last = bench.take().journal();
    assert!(matches!(last[..], [Record::UnrepeatedDone { .. }]), "{last:?}");
    // Killed in between: it is not typed again, and clients hear of it within 30 s.
    let mut bench = Bench::born(config(), records.clone()).go_online();
    let generation = bench.spawn_running("al");
    bench.take();
    bench.pass(25_000);
    let seen = bench.take();
    assert!(seen.bodies().is_empty(), "{seen:?}");
    let failed = seen.event("message_delivery_failed");
    assert_eq!(failed[0]["lastError"], "recipient gone", "{seen:?}");
    assert!(!bench.flights.contains_key(&generation));
    // Twin: confirmed before.
    records.extend(last);
    let mut bench = Bench::born(config(), records).go_online();
    bench.pass(30_000);
    assert!(bench.take().event("message_delivery_failed").is_empty());
}

#[test]
fn several_disposals_of_one_turn_are_one_acknowledgement() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.take();
    for seq in [3, 4, 5] {
        bench.deliver(of_type("message.read", message("al", seq, &format!("r{seq}"))));
    }
    assert!(bench.take().acks().is_empty(), "behind a hole");
    bench.deliver(of_type("message.read", message("al", 2, "r2")));
    assert_eq!(bench.take().acked("al"), [5]);
}

#[test]
fn acknowledgements_never_fall_and_are_repeated_on_a_new_connection() {
    let (mut bench, generation) = running();
    for seq in 1..=3 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    bench.read(generation);
    bench.read(generation);
    bench.close("reset");
    bench.take();
    bench.read(generation);
    assert!(bench.take().acks().is_empty(), "kept while the link is down");
    bench.wait_connect();
    bench.open();
    assert_eq!(bench.take().acked("al"), [3], "the highest, once");
    for seq in [2, 1, 3] {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [3, 3, 3], "{seen:?}");
    assert!(seen.typed().is_empty(), "{seen:?}");
}

#[test]
fn a_duplicate_of_what_is_not_disposed_is_not_acknowledged() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    bench.reconnect();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let seen = bench.take();
    assert!(seen.acks().is_empty(), "{seen:?}");
    assert_eq!(seen.typed(), ["m1"], "typed once in this life:\n{seen:?}");
    assert_eq!(bench.read(generation), "m1");
    assert_eq!(bench.read(generation), "m2");
    assert_eq!(bench.take().acked("al"), [1, 2]);
}

#[test]
fn the_events_of_an_api_message_come_in_their_order() {
    let (mut bench, generation) = running();
    bench.send_to("al", "hello");
    let id = delivery_id(&bench, generation);
    bench.read(generation);
    bench.note(generation, AgentNote::Verified { delivery_id: id, echo: true });
    let seen = bench.take();
    assert_eq!(
        seen.event_kinds(),
        [
            "relay_inbound",
            "delivery_queued",
            "delivery_injected",
            "delivery_read",
            "delivery_ack",
            "message_delivery_confirmed",
            "delivery_read_ack",
            "delivery_verified"
        ],
        "{seen:?}"
    );
    assert_eq!(seen.event("delivery_read_ack")[0]["reason"], "http_api_synthetic_event_id");
    assert_eq!(seen.event("delivery_verified")[0]["verification"], "echo");
    assert!(seen.acks().is_empty(), "nothing of it is the engine's:\n{seen:?}");
}

#[test]
fn engine_messages_are_not_confirmed_by_event() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    let id = delivery_id(&bench, generation);
    bench.read(generation);
    bench.note(generation, AgentNote::Verified { delivery_id: id, echo: false });
    let seen = bench.take();
    assert_eq!(
        seen.event_kinds(),
        [
            "delivery_queued",
            "delivery_injected",
            "delivery_read",
            "delivery_acked",
            "delivery_ack",
            "delivery_verified"
        ],
        "{seen:?}"
    );
    let verified = &seen.event("delivery_verified")[0];
    assert_eq!(verified["verification"], "timeout_fallback");
    assert_eq!(verified["reason"], "echo not detected within 5s window");
}

#[test]
fn an_echo_before_the_proof_tells_its_events_once() {
    let (mut bench, generation) = running();
    bench.send_to("al", "hello");
    let id = delivery_id(&bench, generation);
    bench.note(generation, AgentNote::Typed { delivery_id: id.clone() });
    bench.note(generation, AgentNote::Verified { delivery_id: id.clone(), echo: true });
    let seen = bench.take();
    assert_eq!(seen.event("message_delivery_confirmed").len(), 1, "{seen:?}");
    bench.note(generation, AgentNote::Read { delivery_id: id });
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["delivery_read"], "{seen:?}");
    bench.exited(generation);
    let seen = bench.take();
    assert!(seen.event("message_delivery_confirmed").is_empty(), "confirmed already:\n{seen:?}");
    assert!(seen.dead().is_empty(), "{seen:?}");
}

#[test]
fn a_read_message_of_an_ended_agent_is_confirmed_not_dead() {
    let (mut bench, generation) = running();
    bench.send_to("al", "hello");
    bench.read(generation);
    bench.take();
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.event("message_delivery_confirmed").len(), 1, "{seen:?}");
    assert!(seen.dead().is_empty() && seen.event("delivery_dropped").is_empty(), "{seen:?}");
}

#[test]
fn a_stalled_message_blocks_visibly_and_is_never_typed_again() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let id = delivery_id(&bench, generation);
    bench.note(generation, AgentNote::Typed { delivery_id: id.clone() });
    bench.take();
    bench.note(generation, AgentNote::Stalled { delivery_id: id.clone() });
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["delivery_stalled"], "{seen:?}");
    let rows = bench.ask(ApiCall::ListAgents).body;
    assert_eq!(rows["agents"][0]["current_state"], "blocked_on_send", "{rows}");
    bench.pass(600_000);
    assert!(bench.take().typed().is_empty(), "neither again nor the next");
    bench.note(generation, AgentNote::Read { delivery_id: id });
    let seen = bench.take();
    assert_eq!((seen.acked("al"), seen.typed()), (vec![1], vec!["m2".to_string()]), "{seen:?}");
    let rows = bench.ask(ApiCall::ListAgents).body;
    assert_eq!(rows["agents"][0]["current_state"], "working", "{rows}");
}

#[test]
fn a_failed_injection_is_tried_again_after_a_growing_pause() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let mut attempts = 0;
    for pause in [200, 500, 1000, 2000, 5000, 5000, 5000, 5000, 5000] {
        bench.inject_failed(generation);
        let seen = bench.take();
        attempts += 1;
        let retry = &seen.event("delivery_retry")[0];
        assert_eq!(
            (&retry["name"], &retry["event_id"], &retry["attempts"]),
            (&json!("al"), &json!("m1"), &json!(attempts))
        );
        assert!(seen.event("worker_error").is_empty(), "{seen:?}");
        bench.pass(pause - 1);
        assert!(bench.take().typed().is_empty(), "before {pause} ms");
        bench.pass(1);
        let seen = bench.take();
        assert_eq!(seen.typed(), ["m1"], "after {pause} ms, ahead of the next:\n{seen:?}");
        assert!(seen.acks().is_empty(), "{seen:?}");
    }
    bench.inject_failed(generation);
    let seen = bench.take();
    assert_eq!(seen.dead(), [("m1".to_string(), "max delivery retries exceeded: EIO".to_string())], "{seen:?}");
    assert_eq!(seen.event("message_delivery_failed")[0]["attempts"], 10, "{seen:?}");
    assert!(seen.event("delivery_retry").is_empty(), "{seen:?}");
    let error = &seen.event("worker_error")[0]["error"];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("pty_write_failed"), &json!(false)));
    assert_eq!((seen.acked("al"), seen.typed()), (vec![1], vec!["m2".to_string()]), "{seen:?}");
}

#[test]
fn failed_keystrokes_are_an_error_of_the_agent() {
    let (mut bench, generation) = running();
    let ticket = bench.api(ApiCall::Type { name: "al".into(), bytes: b"ls".to_vec() });
    bench.note(generation, AgentNote::TypeDone { ticket, result: Err("no progress".into()) });
    let seen = bench.take();
    assert_eq!(seen.answer(ticket).map(|answer| answer.status), Some(503));
    let told = &seen.event("worker_error")[0];
    assert_eq!((&told["name"], &told["error"]["code"]), (&json!("al"), &json!("pty_write_failed")));
    let ticket = bench.api(ApiCall::Type { name: "al".into(), bytes: b"ls".to_vec() });
    bench.note(generation, AgentNote::TypeDone { ticket, result: Ok(2) });
    assert!(bench.take().event("worker_error").is_empty());
}

#[test]
fn a_failed_injection_that_then_succeeds_is_no_dead_letter() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.inject_failed(generation);
    assert_eq!(bench.status()["pending_deliveries"][0]["last_error"], "EIO");
    bench.pass(200);
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    assert!(seen.dead().is_empty(), "{seen:?}");
}

#[test]
fn l5_what_a_dead_agent_leaves_is_on_record_and_acknowledged() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    bench.send_to("al", "by hand");
    let id = delivery_id(&bench, generation);
    bench.note(generation, AgentNote::Typed { delivery_id: id });
    bench.take();
    bench.exited(generation);
    let seen = bench.take();
    let dead = seen.dead();
    assert_eq!(dead[0], ("m1".to_string(), "worker_exited (typed, never proved read)".to_string()), "{seen:?}");
    assert_eq!(dead[1], ("m2".to_string(), "worker_exited".to_string()), "{seen:?}");
    assert_eq!(dead.len(), 3, "{seen:?}");
    assert_eq!(seen.acked("al"), [2], "{seen:?}");
    assert_eq!(seen.event("delivery_dropped")[0]["count"], 3, "{seen:?}");
    let ack = seen.at("the ack", seen::sends("delivery.ack"));
    assert!(ack < seen.at("the deregistration", seen::sends("agent.deregister")), "said while it is here:\n{seen:?}");
}

#[test]
fn what_an_older_life_says_is_dropped() {
    let (mut bench, old) = running();
    bench.exited(old);
    let new = bench.spawn_running("al");
    assert_ne!(old, new);
    bench.deliver(message("al", 1, "m1"));
    bench.take();
    let id = delivery_id(&bench, new);
    bench.note(old, AgentNote::Typed { delivery_id: id.clone() });
    bench.note(old, AgentNote::Read { delivery_id: id });
    bench.exited(old);
    let seen = bench.take();
    assert!(seen.0.is_empty(), "{seen:?}");
    assert_eq!(bench.agents(), ["al"]);
}

#[test]
fn unrepeated_frames_are_journalled_until_they_are_read() {
    let (mut bench, generation) = running();
    bench.deliver(of_type("action.completed", message("al", 0, "i1")));
    let seen = bench.take();
    let Some(Record::Unrepeated { key, agent, .. }) = seen.journal().first().cloned() else {
        panic!("no record:\n{seen:?}")
    };
    assert_eq!(agent, "al");
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.journal(), [Record::UnrepeatedDone { agent_id: "id-al".into(), key }], "{seen:?}");
}

#[test]
fn l1_a_message_that_the_terminal_threw_away_goes_on_record_and_the_next_one_is_typed() {
    let (mut bench, generation) = running();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let id = delivery_id(&bench, generation);
    bench.note(generation, AgentNote::Typed { delivery_id: id.clone() });
    bench.take();
    bench.note(generation, AgentNote::Lost { delivery_id: id });
    let seen = bench.take();
    let letter = |effect: &Effect| matches!(effect, Effect::Journal(Record::DeadLetter(_)));
    assert!(seen.at("the dead letter", letter) < seen.at("the ack", seen::sends("delivery.ack")), "{seen:?}");
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    assert_eq!(bench.flights[&generation].event_id, "m2", "{seen:?}");
}
