//! A new life with the journal of the one before, and the frames that the engine repeats to it.

use super::*;

/// The journal of everything that this life has recorded.
fn journal(seen: &Seen) -> Vec<Record> {
    seen.journal()
}

fn reborn(records: Vec<Record>) -> Bench {
    Bench::born(config(), records)
}

fn disposed(seq: u64, msg_id: &str) -> Record {
    Record::Disposed { agent_id: "id-al".into(), agent: "al".into(), seq, msg_id: msg_id.into() }
}

#[test]
fn cursors_and_rings_survive() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    bench.deliver(steer("al", 3, "s3"));
    bench.read(generation);
    bench.read(generation);
    let records = journal(&bench.take());
    assert_eq!(records, [disposed(1, "m1"), disposed(1, "s3")], "s3 is disposed, m2 before it is not");
    let mut bench = reborn(records).go_online();
    let generation = bench.spawn_running("al");
    for frame in [message("al", 1, "m1"), message("al", 2, "m2"), steer("al", 3, "s3")] {
        bench.deliver(frame);
    }
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m2"], "{seen:?}");
    assert_eq!(seen.acked("al"), [1, 1], "each known one says again what is safe:\n{seen:?}");
    bench.read(generation);
    let seen = bench.take();
    assert!(seen.typed().is_empty(), "s3 was read in the life before:\n{seen:?}");
    assert_eq!(seen.acked("al"), [3], "{seen:?}");
}

#[test]
fn a_restored_cursor_sees_a_gap_and_a_fresh_one_adopts() {
    let mut bench = reborn(vec![disposed(41, "m41")]).go_online();
    bench.spawn_running("al");
    bench.deliver(message("al", 43, "m43"));
    assert!(bench.take().typed().is_empty(), "42 is missing");
    bench.deliver(message("al", 42, "m42"));
    assert_eq!(bench.take().typed(), ["m42"]);
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.deliver(message("al", 43, "m43"));
    assert_eq!(bench.take().typed(), ["m43"]);
}

#[test]
fn a_restored_cursor_is_said_again_when_its_frame_is_repeated() {
    let mut bench = reborn(vec![disposed(7, "m7"), disposed(9, "m9"), disposed(8, "m8")]).go_online();
    bench.deliver(message("al", 9, "m9"));
    let seen = bench.take();
    assert_eq!(seen.acks(), [("al".to_string(), 9)], "the highest, whatever the order of the records:\n{seen:?}");
    assert!(seen.dead().is_empty(), "{seen:?}");
}

#[test]
fn dead_letters_survive_and_are_bounded() {
    let mut bench = Bench::online();
    bench.deliver(message("ghost", 1, "m1"));
    let records = journal(&bench.take());
    let mut bench = reborn(records);
    assert_eq!(bench.dead_letters(), [("m1".to_string(), "recipient gone".to_string())]);
    let many: Vec<Record> = (0..600)
        .map(|n| {
            Record::DeadLetter(crate::core::ports::DeadLetter {
                delivery_id: format!("d{n}"),
                worker_name: "al".into(),
                event_id: format!("m{n}"),
                from: "bob".into(),
                to: "al".into(),
                body: "x".into(),
                attempts: 0,
                reason: "r".into(),
                queued_at_ms: UNIX,
                failed_at_ms: UNIX,
            })
        })
        .collect();
    let letters = reborn(many).dead_letters();
    assert_eq!((letters.len(), letters[0].0.as_str()), (500, "m100"), "the oldest are dropped");
}

#[test]
fn finished_invocations_and_the_gone_survive() {
    let mut bench = Bench::online();
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    let generation = bench.generation("al");
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    bench.invoke("r1", "release", json!({"name": "al"}));
    bench.exited(generation);
    bench.invoke("i2", "release", json!({"name": "ghost"}));
    let seen = bench.take();
    let results = seen.results();
    let mut bench = reborn(journal(&seen)).go_online();
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    bench.invoke("r1", "release", json!({"name": "al"}));
    bench.invoke("i2", "release", json!({"name": "ghost"}));
    let seen = bench.take();
    assert_eq!(seen.results(), results, "answered the same way again");
    assert!(seen.launches().is_empty(), "{seen:?}");
    bench.invoke("r2", "release", json!({"name": "al"}));
    assert!(bench.take().results()[0].1.is_ok(), "f29: it was here and is gone");
}

#[test]
fn unrepeated_frames_survive_until_they_are_read() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.deliver(of_type("action.failed", message("al", 0, "e2")));
    bench.read(generation);
    let records = journal(&bench.take());
    let mut bench = reborn(records.clone()).go_online();
    bench.spawn_running("bo");
    assert!(bench.take().typed().is_empty(), "for another");
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    let mut later = bench.take();
    assert_eq!(later.typed(), ["e2"], "{later:?}");
    bench.read(generation);
    later.0.extend(bench.take().0);
    let mut all = records;
    all.extend(later.journal());
    let mut bench = reborn(all).go_online();
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    assert!(bench.take().typed().is_empty(), "read once, over");
}

#[test]
fn what_is_kept_for_an_agent_that_does_not_come_back_is_dead_in_the_end() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.spawn_running("bo");
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.deliver(of_type("action.completed", message("bo", 0, "e2")));
    let records = journal(&bench.take());
    let mut bench = reborn(records).go_online();
    bench.spawn_running("bo");
    bench.take();
    bench.pass(15 * 60_000 - STABLE_MS - 1);
    assert!(bench.take().dead().is_empty());
    bench.pass(1);
    let seen = bench.take();
    assert_eq!(seen.dead(), [("e1".to_string(), "recipient gone".to_string())], "{seen:?}");
    let done = seen.journal().iter().filter(|record| matches!(record, Record::UnrepeatedDone { .. })).count();
    assert_eq!(done, 1, "once, also in the next life:\n{seen:?}");
    bench.spawn_running("al");
    assert!(bench.take().typed().is_empty());
}

#[test]
fn restored_cursors_are_bounded() {
    let records = (0..300).map(|n| Record::Disposed {
        agent_id: format!("id{n}"),
        agent: format!("a{n}"),
        seq: 1,
        msg_id: "m".into(),
    });
    let bench = reborn(records.collect());
    assert_eq!(bench.broker.book.len(), 256);
    assert!(bench.broker.book.contains_key("id299") && !bench.broker.book.contains_key("id0"), "the oldest go");
}

#[test]
fn strays_before_the_first_inventory_stay_with_the_engine() {
    let mut bench = reborn(vec![disposed(4, "m4")]);
    bench.step(Input::Start);
    bench.open();
    bench.take();
    bench.deliver(message("al", 5, "m5"));
    bench.deliver(message("ghost", 1, "g1"));
    bench.pass(899);
    bench.accept();
    bench.pass(10_000);
    let seen = bench.take();
    assert!(seen.dead().is_empty() && seen.acks().is_empty(), "{seen:?}");
    // Its agent comes back, and the engine repeats.
    bench.spawn_running("al");
    bench.deliver(message("al", 5, "m5"));
    assert_eq!(bench.take().typed(), ["m5"]);
    // Twin: once settled, what comes for nobody is dead.
    bench.deliver(message("ghost2", 1, "g2"));
    let seen = bench.take();
    assert_eq!((seen.dead().len(), seen.acks().len()), (1, 1), "{seen:?}");
}

#[test]
fn strays_of_an_engine_that_answers_no_inventory_end_after_900_ms() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    bench.take();
    bench.deliver(message("ghost", 1, "g1"));
    bench.pass(899);
    let seen = bench.take();
    assert!(seen.dead().is_empty() && seen.acks().is_empty(), "{seen:?}");
    bench.pass(1);
    let seen = bench.take();
    assert_eq!(seen.dead(), [("g1".to_string(), "recipient gone".to_string())], "{seen:?}");
    assert_eq!(seen.acks(), [("ghost".to_string(), 1)], "f4: within a second");
}

#[test]
fn a_crash_between_reading_and_acknowledging_shows_nothing_twice() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    let records = journal(&bench.take());
    let mut bench = reborn(records).go_online();
    bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    let seen = bench.take();
    assert!(seen.typed().is_empty(), "d1:\n{seen:?}");
    assert_eq!(seen.acked("al"), [1], "{seen:?}");
    // Twin: before the proof of reading there is no record, and the engine's repetition is typed.
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    assert!(bench.take().journal().is_empty());
}

#[test]
fn a_failing_journal_is_told() {
    let mut bench = Bench::online();
    bench.step(Input::JournalFailed { error: "disk full".into() });
    let errors = bench.take().logs(log::Level::Error);
    assert!(errors[0].contains("disk full"), "{errors:?}");
}

fn send(bench: &mut Bench, to: &str, text: &str) {
    let request = SendRequest { to: to.into(), text: text.into(), ..SendRequest::default() };
    assert_eq!(bench.ask(ApiCall::Send(request)).status, 200);
}

/// Spawned, without losing what that causes.
fn come_back(bench: &mut Bench, name: &str) -> Generation {
    bench.ask_spawn(name);
    bench.prepared(name);
    bench.registered(name);
    bench.started(name)
}

fn texts(bench: &Bench) -> Vec<String> {
    bench.broker.pending().into_iter().map(|pending| pending.delivery.body).collect()
}

#[test]
fn what_the_api_was_told_to_send_survives_until_it_is_read() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.take();
    send(&mut bench, "al", "one");
    send(&mut bench, "al", "two");
    assert_eq!(texts(&bench), ["one", "two"]);
    let confirm = |bench: &mut Bench, generation| {
        let delivery_id = bench.flights[&generation].delivery_id.clone();
        bench.read(generation);
        bench.note(generation, AgentNote::Verified { delivery_id, echo: true });
    };
    confirm(&mut bench, generation);
    let seen = bench.take();
    let ids: Vec<_> = seen.event("relay_inbound").iter().map(|event| event["event_id"].clone()).collect();
    let kept: Vec<_> = seen.journal().iter().map(|record| matches!(record, Record::Unrepeated { .. })).collect();
    assert_eq!(kept, [true, true, false, false], "read, then confirmed:\n{seen:?}");
    assert_eq!(texts(&bench), ["two"]);
    let mut bench = reborn(seen.journal()).go_online();
    assert_eq!(texts(&bench), ["two"], "before its agent is here");
    let generation = come_back(&mut bench, "al");
    let mut later = bench.take();
    assert_eq!(later.bodies(), ["two"], "{later:?}");
    let queued = later.event("delivery_queued");
    assert_eq!(queued[0]["event_id"], ids[1], "its own id");
    confirm(&mut bench, generation);
    assert!(texts(&bench).is_empty());
    later.0.extend(bench.take().0);
    let all = [seen.journal(), later.journal()].concat();
    assert!(texts(&reborn(all)).is_empty(), "read once, over");
}

#[test]
fn an_ephemeral_broker_journals_nothing_of_the_api_and_says_at_its_stop_what_is_lost() {
    let mut bench = Bench::with(|config| config.durable = false).go_online();
    bench.spawn_running("al");
    send(&mut bench, "al", "one");
    let kept = |record: &Record| matches!(record, Record::Unrepeated { .. });
    assert!(!bench.take().journal().iter().any(kept));
    bench.step(Input::Stop { reason: "test" });
    let warnings = bench.take().logs(log::Level::Warn);
    assert!(warnings.iter().any(|text| text.starts_with("1 message(s)")), "{warnings:?}");
}

#[test]
fn what_is_unread_or_held_at_the_stop_is_kept_and_is_no_dead_letter() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let held = bench.spawn_running("bo");
    bench.ask(ApiCall::SetDeliveryMode {
        name: "bo".into(),
        mode: InboundMode::ManualFlush,
        expected: Expected::default(),
    });
    bench.take();
    for (to, text) in [("al", "typed"), ("al", "queued"), ("bo", "held")] {
        send(&mut bench, to, text);
    }
    bench.step(Input::Stop { reason: "test" });
    bench.exited(generation);
    bench.exited(held);
    let seen = bench.take();
    assert!(seen.dead().is_empty(), "{seen:?}");
    assert_eq!(texts(&bench), ["typed", "queued", "held"]);
    assert!(seen.logs(log::Level::Warn).is_empty(), "nothing is lost");
    let mut bench = reborn(seen.journal()).go_online();
    come_back(&mut bench, "bo");
    assert_eq!(bench.take().bodies(), ["held"]);
}

#[test]
fn an_end_in_this_life_is_told_for_what_the_api_sent() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    send(&mut bench, "al", "one");
    bench.exited(generation);
    assert_eq!(bench.take().dead().len(), 1);
    bench.ask_spawn("bo");
    send(&mut bench, "bo", "two");
    let bo = bench.generation("bo");
    bench.step(Input::Agent { generation: bo, note: AgentNote::Refused { error: "no such program".into() } });
    assert_eq!(bench.take().dead().len(), 1, "its spawn has failed");
    assert!(texts(&bench).is_empty());
}

#[test]
fn what_the_api_sent_to_an_agent_that_does_not_come_back_is_dead_after_25_s() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    send(&mut bench, "al", "one");
    let records = journal(&bench.take());
    let mut bench = reborn(records.clone()).go_online();
    bench.pass(24_999);
    let seen = bench.take();
    assert!(seen.dead().is_empty(), "{seen:?}");
    bench.pass(1);
    let seen = bench.take();
    assert_eq!(seen.dead().len(), 1, "{seen:?}");
    assert_eq!(seen.event("message_delivery_failed").len(), 1, "{seen:?}");
    assert!(texts(&bench).is_empty());
    let all = [records.clone(), seen.journal()].concat();
    assert!(texts(&reborn(all)).is_empty(), "also in the next life");
    // Twin: it is being started at that moment.
    let mut bench = reborn(records).go_online();
    bench.pass(24_000);
    bench.ask_spawn("al");
    bench.pass(1_500);
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    let seen = bench.take();
    assert_eq!((seen.dead().len(), seen.bodies()), (0, vec!["one".to_string()]), "{seen:?}");
}

#[test]
fn what_an_earlier_life_left_is_typed_before_what_came_while_the_agent_started() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    send(&mut bench, "al", "one");
    send(&mut bench, "al", "two");
    let records = journal(&bench.take());
    let mut bench = reborn(records).go_online();
    bench.ask_spawn("al");
    send(&mut bench, "al", "three");
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    let mut typed = bench.take().bodies();
    for _ in 0..2 {
        bench.read(generation);
        typed.extend(bench.take().bodies());
    }
    assert_eq!(typed, ["one", "two", "three"]);
}
