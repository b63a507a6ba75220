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
    bench.pass(15 * 60_000 - 1);
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
