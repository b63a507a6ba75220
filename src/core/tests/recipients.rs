//! The recipient table: whom a frame is for, and what becomes of one that is for nobody.

use super::*;
use crate::core::delivery;

#[test]
fn registering_and_starting_agents_are_waited_for() {
    for stop_at in ["preparing", "registering", "starting"] {
        let mut bench = Bench::online();
        bench.ask_spawn("al");
        if stop_at != "preparing" {
            bench.prepared("al");
        }
        if stop_at == "starting" {
            bench.registered("al");
        }
        bench.deliver(message("al", 7, "m7"));
        bench.deliver(message("al", 8, "m8"));
        let seen = bench.take();
        assert!(seen.typed().is_empty() && seen.acks().is_empty(), "row '{stop_at}':\n{seen:?}");
        if stop_at == "preparing" {
            bench.prepared("al");
        }
        if stop_at != "starting" {
            bench.registered("al");
        }
        let generation = bench.started("al");
        let seen = bench.take();
        assert_eq!(seen.typed(), ["m7"], "row '{stop_at}':\n{seen:?}");
        assert!(seen.acks().is_empty(), "not read yet, row '{stop_at}':\n{seen:?}");
        bench.read(generation);
        bench.read(generation);
        assert_eq!(bench.take().acked("al"), [7, 8], "row '{stop_at}'");
    }
}

#[test]
fn early_messages_go_back_with_the_connection() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.deliver(message("al", 8, "m8"));
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.reconnect();
    bench.accept();
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    assert_eq!(bench.take().typed(), ["e1"], "only this one comes never again");
    bench.read(generation);
    // The next connection begins with the lowest that is open.
    for seq in [7, 8] {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        bench.read(generation);
    }
    assert_eq!(bench.take().acked("al"), [7, 8]);
}

#[test]
fn a_backlog_beyond_the_bound_is_asked_for_again() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.prepared("al");
    for seq in 1..=300 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    bench.registered("al");
    bench.take();
    bench.started("al");
    let seen = bench.take();
    assert_eq!(seen.count("node.register"), 1, "what was not kept stays at the engine, which repeats it:\n{seen:?}");
    // Twin: what was kept whole is not asked for.
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.deliver(message("al", 1, "m1"));
    bench.registered("al");
    bench.started("al");
    assert_eq!(bench.take().count("node.register"), 0);
}

#[test]
fn f37_held_agents_keep_engine_messages_unacknowledged() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.take();
    bench.deliver(message("al", 1, "m1"));
    let seen = bench.take();
    assert!(seen.typed().is_empty() && seen.acks().is_empty(), "{seen:?}");
    let held = seen.event("delivery_queued");
    assert_eq!(held.len(), 1, "{seen:?}");
    assert_eq!(held[0]["reason"], "inbound_delivery_manual_flush");
    assert!(held[0].get("delivery_id").is_none(), "{}", held[0]);
    let pending = bench.ask(ApiCall::Pending { name: "al".into() }).body;
    assert_eq!(pending["pending"].as_array().map(Vec::len), Some(1), "{pending}");
    bench.take();
    let flushed = bench.ask(ApiCall::Flush { name: "al".into() });
    assert_eq!(flushed.body["flushed"], 1, "{}", flushed.body);
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m1"], "{seen:?}");
    assert!(seen.acks().is_empty(), "{seen:?}");
    bench.read(generation);
    assert_eq!(bench.take().acked("al"), [1]);
}

#[test]
fn f4_a_message_for_nobody_is_a_dead_letter_and_acknowledged() {
    let mut bench = Bench::online();
    bench.deliver(message("ghost", 1, "m1"));
    let seen = bench.take();
    assert_eq!(seen.dead(), [("m1".to_string(), "recipient gone".to_string())], "{seen:?}");
    assert_eq!(seen.acks(), [("ghost".to_string(), 1)], "{seen:?}");
    // L5: on record before the failure is told.
    let record = seen.at("the record", |effect| matches!(effect, Effect::Journal(Record::DeadLetter(_))));
    let told = seen.at("the failure", seen::tells("message_delivery_failed"));
    assert!(record < told, "{seen:?}");
    assert_eq!(bench.status()["deadLetterCount"], 1);
    // Repeated, because the acknowledgement was lost: known, one dead letter.
    bench.take();
    bench.deliver(message("ghost", 1, "m1"));
    let seen = bench.take();
    assert!(seen.dead().is_empty(), "{seen:?}");
    assert_eq!(seen.acks(), [("ghost".to_string(), 1)], "{seen:?}");
}

#[test]
fn f4_an_ended_agent_is_nobody() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.exited(generation);
    bench.take();
    bench.deliver(message("al", 2, "m2"));
    let seen = bench.take();
    assert_eq!(seen.dead(), [("m2".to_string(), "recipient gone".to_string())], "{seen:?}");
    assert_eq!(seen.acks(), [("al".to_string(), 2)], "{seen:?}");
}

#[test]
fn frames_for_a_releasing_agent_end_as_dead_letters() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.release("al");
    bench.deliver(message("al", 1, "m1"));
    let seen = bench.take();
    assert!(seen.typed().is_empty() && seen.acks().is_empty(), "{seen:?}");
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.dead(), [("m1".to_string(), "agent_released".to_string())], "{seen:?}");
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
}

#[test]
fn an_identity_that_contradicts_is_refused_without_an_acknowledgement() {
    let rows: &[(&str, &str, &str)] = &[
        ("live name, foreign id", "al", "id-other"),
        ("live id, other name", "bo", "id-al"),
        ("live id, name of another live agent", "cy", "id-al"),
    ];
    for &(row, name, id) in rows {
        let mut bench = Bench::online();
        bench.spawn_running("al");
        bench.spawn_running("cy");
        for msg in ["m1", "m2"] {
            bench.deliver(Deliver { agent: name.into(), agent_id: id.into(), ..message("al", 1, msg) });
        }
        let seen = bench.take();
        assert!(seen.typed().is_empty(), "row '{row}':\n{seen:?}");
        assert!(seen.acks().is_empty(), "row '{row}':\n{seen:?}");
        assert!(seen.dead().is_empty(), "row '{row}':\n{seen:?}");
        let logs = seen.logs(log::Level::Warn);
        assert_eq!(logs.len(), 1, "reported once, row '{row}':\n{seen:?}");
        assert!(logs[0].contains(id), "row '{row}': {}", logs[0]);
        assert_eq!(bench.status()["counters"]["foreign_frames"], 2, "row '{row}'");
    }
}

#[test]
fn what_comes_only_once_for_an_identity_of_before_goes_on_record() {
    let once = |id: &str| Deliver { agent_id: id.into(), ..of_type("action.failed", message("al", 0, "e1")) };
    // It comes while the next identity of that name runs, or is being registered.
    for starting in [false, true] {
        let mut bench = Bench::online();
        if starting {
            bench.ask_spawn("al");
            bench.prepared("al");
            bench.deliver(once("id-other"));
            bench.registered("al");
            bench.started("al");
        } else {
            bench.spawn_running("al");
            bench.deliver(once("id-other"));
        }
        let seen = bench.take();
        assert!(seen.typed().is_empty() && seen.acks().is_empty(), "{seen:?}");
        assert_eq!(seen.dead(), [("e1".to_string(), "recipient gone".to_string())], "{seen:?}");
        // Twin: the name is still borne by the one that runs.
        let generation = bench.generation("al");
        bench.deliver(message("al", 1, "m1"));
        bench.read(generation);
        assert_eq!(bench.take().acked("al"), [1]);
    }
}

#[test]
fn what_comes_only_once_and_finds_no_room_goes_on_record() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.prepared("al");
    for n in 0..300 {
        bench.deliver(of_type("action.failed", message("al", 0, &format!("e{n}"))));
    }
    let seen = bench.take();
    assert_eq!(seen.dead().len(), 44, "256 wait for the start:\n{seen:?}");
    bench.registered("al");
    bench.started("al");
    assert_eq!(bench.status()["pending_delivery_count"], 256);
}

#[test]
fn what_comes_only_once_for_a_gone_agent_repeats_no_acknowledgement() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.exited(generation);
    bench.settle();
    bench.take();
    bench.deliver(of_type("action.failed", message("al", 0, "e1")));
    let seen = bench.take();
    assert_eq!(seen.dead(), [("e1".to_string(), "recipient gone".to_string())], "{seen:?}");
    assert!(seen.acks().is_empty(), "the name may be another identity's by now:\n{seen:?}");
}

#[test]
fn a_retired_id_is_never_acknowledged_under_its_old_name() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.exited(generation);
    // The name lives again under another identity.
    bench.ask_spawn("al");
    bench.prepared("al");
    let id = bench.register_id("al");
    bench.reply(&id, json!({"agent_id": "id-new", "token": "t", "name": "al"}));
    bench.started("al");
    bench.take();
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    let seen = bench.take();
    assert!(seen.acks().is_empty() && seen.typed().is_empty() && seen.dead().is_empty(), "{seen:?}");
    // Nor at a reconnect.
    bench.reconnect();
    let seen = bench.take();
    assert!(seen.acks().is_empty(), "{seen:?}");
    // Twin: the new identity is served.
    bench.deliver(Deliver { agent_id: "id-new".into(), ..message("al", 1, "m3") });
    assert_eq!(bench.take().typed(), ["m3"]);
}

#[test]
fn f26_frames_without_ids_go_by_name() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(Deliver { agent_id: String::new(), delivery_id: String::new(), ..message("al", 1, "m1") });
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m1"], "{seen:?}");
    assert_eq!(bench.flights[&generation].delivery_id, "m1", "the message id stands in for a missing delivery id");
    bench.read(generation);
    // The same cursor: an identity that is known is used even when the frame does not say it.
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m2"], "{seen:?}");
    assert_eq!(seen.acked("al"), [1, 1, 2], "{seen:?}");
}

#[test]
fn an_agent_with_a_supplied_token_learns_its_id_from_the_engine_or_else_from_its_first_frame() {
    for (told, typed) in [(Err(engine_error(503)), true), (Ok("id-al"), true), (Ok("id-of-its-new-self"), false)] {
        let mut bench = Bench::online();
        bench.ask_spawn_of(SpawnRequest {
            name: "al".into(),
            cli: "codex".into(),
            agent_token: Some(Secret::new("at_live_own")),
            ..SpawnRequest::default()
        });
        bench.prepared("al");
        bench.started("al");
        bench.take();
        // Perhaps still for the one that bore the name before.
        bench.deliver(message("al", 5, "m5"));
        assert!(bench.take().typed().is_empty(), "{told:?}");
        let outcome = told.clone().map(|id| json!({"id": id, "name": "al"}));
        bench.engine(|call| matches!(call, EngineCall::LookUpAgent { .. }), outcome);
        let seen = bench.take();
        assert_eq!(!seen.typed().is_empty(), typed, "{told:?}:\n{seen:?}");
        assert!(seen.acks().is_empty() && seen.dead().is_empty(), "{told:?}:\n{seen:?}");
        assert_eq!(seen.listed(), ["al"], "the engine is told that it is here:\n{seen:?}");
    }
}

#[test]
fn l6_a_full_queue_leaves_engine_messages_at_the_engine_and_asks_again() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let total = crate::core::roster::QUEUE_MAX as u64 + 10;
    for seq in 1..=total {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    let seen = bench.take();
    assert!(seen.acks().is_empty() && seen.dead().is_empty(), "{seen:?}");
    let mut read = Vec::new();
    while bench.flights.contains_key(&generation) {
        read.push(bench.read(generation));
    }
    let seen = bench.take();
    let kept = read.len() as u64;
    assert!(kept < total, "{kept} of {total} were kept");
    assert_eq!(seen.acked("al").last(), Some(&kept), "nothing refused is acknowledged");
    assert_eq!(seen.count("node.register"), 1, "the engine is asked to repeat what was refused");
    for seq in kept + 1..=total {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        read.push(bench.read(generation));
    }
    let expected: Vec<String> = (1..=total).map(|seq| format!("m{seq}")).collect();
    assert_eq!(read, expected, "each once, in order");
}

/// An agent whose queue is full, and the first number that was refused.
fn refusing() -> (Bench, Generation, u64) {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let refused = crate::core::roster::QUEUE_MAX as u64 + 2;
    for seq in 1..=refused + 3 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    bench.release("al");
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [refused - 1], "all that was taken over is on record");
    (bench, generation, refused)
}

#[test]
fn l6_a_refusal_ends_with_its_agent() {
    let (mut bench, _, refused) = refusing();
    let generation = bench.spawn_running("al");
    for seq in refused..refused + 3 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        assert_eq!(bench.read(generation), format!("m{seq}"), "the next life is not deaf");
    }
    // Twin: nobody comes again.
    let (mut bench, _, refused) = refusing();
    for seq in refused..refused + 3 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        let seen = bench.take();
        assert_eq!(seen.dead(), [(format!("m{seq}"), "recipient gone".to_string())], "{seen:?}");
        assert_eq!(seen.acked("al"), [seq]);
    }
}

#[test]
fn l6_what_is_refused_is_no_hole() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let refused = crate::core::roster::QUEUE_MAX as u64 + 2;
    for seq in 1..refused {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    // Held behind a hole that comes when there is no room for it.
    bench.deliver(message("al", refused + 1, "late"));
    bench.deliver(message("al", refused, "full"));
    bench.take();
    bench.pass(30_000);
    let seen = bench.take();
    assert!(seen.event("delivery_gap").is_empty(), "{:?}", seen.kinds());
    assert_eq!(seen.count("node.register"), 0);
    while bench.flights.contains_key(&generation) {
        bench.read(generation);
    }
    assert_eq!(bench.take().count("node.register"), 1, "now it is asked for");
}

#[test]
fn l6_a_queue_filled_by_others_lets_the_engine_in_again() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    for n in 0..=crate::core::roster::QUEUE_MAX {
        bench.send_to("al", &format!("text {n}"));
    }
    bench.deliver(message("al", 2, "m2"));
    bench.take();
    while bench.flights.contains_key(&generation) {
        bench.read(generation);
    }
    let seen = bench.take();
    assert_eq!(seen.count("node.register"), 1, "the refused message is asked for again:\n{:?}", seen.kinds());
    bench.deliver(message("al", 2, "m2"));
    assert_eq!(bench.take().typed(), ["m2"]);
}

#[test]
fn strangers_are_bounded_and_a_live_cursor_is_never_dropped() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.exited(generation);
    let generation = bench.spawn_running("al");
    for n in 0..300 {
        bench.deliver(message(&format!("ghost{n}"), 1, &format!("g{n}")));
    }
    bench.take();
    assert!(bench.broker.book.len() <= 258, "{} cursors", bench.broker.book.len());
    bench.deliver(message("al", 1, "m1"));
    let seen = bench.take();
    assert!(seen.typed().is_empty(), "known from its last life:\n{seen:?}");
    assert_eq!(seen.acked("al"), [1]);
    assert!(bench.broker.roster.get(generation).is_some());
    assert_eq!(delivery::book_key("", "al"), "name:al");
}
