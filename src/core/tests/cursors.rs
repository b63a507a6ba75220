//! The cursor tables: one row per kind of frame. Every message is read as soon as it is typed.

use super::*;
use crate::wire::node::Deliver;

/// One frame: number, message id, payload type.
type Frame = (u64, &'static str, &'static str);

const MSG: &str = "message.created";

struct Row {
    row: &'static str,
    /// What the engine says its cursor is, in the answer to `agent.register`.
    position: Option<u64>,
    frames: &'static [Frame],
    wait: Ms,
    typed: &'static [&'static str],
    acks: &'static [u64],
}

const ROWS: &[Row] = &[
    Row {
        row: "seq 0, new",
        position: Some(4),
        frames: &[(0, "e1", "action.completed")],
        wait: 0,
        typed: &["e1"],
        acks: &[4],
    },
    Row {
        row: "seq 0, seen",
        position: Some(4),
        frames: &[(0, "e1", "action.completed"), (0, "e1", "action.completed")],
        wait: 0,
        typed: &["e1"],
        acks: &[4, 4],
    },
    Row {
        row: "seq 0, action.denied repeats",
        position: None,
        frames: &[(0, "act", "action.denied"), (0, "act", "action.denied")],
        wait: 0,
        typed: &["act", "act"],
        acks: &[],
    },
    Row {
        row: "seq 0 does not position",
        position: None,
        frames: &[(0, "e1", "action.failed"), (43, "m43", MSG)],
        wait: 0,
        typed: &["e1", "m43"],
        acks: &[43],
    },
    Row { row: "no position, seq 1", position: None, frames: &[(1, "m1", MSG)], wait: 0, typed: &["m1"], acks: &[1] },
    Row {
        row: "f6: no position, seq 43",
        position: None,
        frames: &[(43, "m43", MSG), (44, "m44", MSG)],
        wait: 0,
        typed: &["m43", "m44"],
        acks: &[43, 44],
    },
    Row {
        row: "position of the engine, next",
        position: Some(42),
        frames: &[(43, "m43", MSG)],
        wait: 0,
        typed: &["m43"],
        acks: &[43],
    },
    Row {
        row: "c+1, new",
        position: None,
        frames: &[(1, "m1", MSG), (2, "m2", MSG)],
        wait: 0,
        typed: &["m1", "m2"],
        acks: &[1, 2],
    },
    Row {
        row: "c+1, msg_id seen",
        position: None,
        frames: &[(1, "m1", MSG), (2, "m1", MSG), (3, "m3", MSG)],
        wait: 0,
        typed: &["m1", "m3"],
        acks: &[1, 2, 3],
    },
    Row {
        row: "<= c, seen",
        position: None,
        frames: &[(1, "m1", MSG), (2, "m2", MSG), (1, "m1", MSG)],
        wait: 0,
        typed: &["m1", "m2"],
        acks: &[1, 2, 2],
    },
    Row {
        row: "<= c, msg_id unseen",
        position: None,
        frames: &[(5, "m5", MSG), (3, "m3", MSG)],
        wait: 0,
        typed: &["m5", "m3"],
        acks: &[5, 5],
    },
    Row {
        row: "f7: gap, filled",
        position: None,
        frames: &[(1, "m1", MSG), (3, "m3", MSG), (2, "m2", MSG)],
        wait: 0,
        typed: &["m1", "m2", "m3"],
        acks: &[1, 2, 3],
    },
    Row {
        row: "f7: gap, held before the limit",
        position: None,
        frames: &[(1, "m1", MSG), (3, "m3", MSG)],
        wait: 4_999,
        typed: &["m1"],
        acks: &[1],
    },
    Row {
        row: "f7: gap, given up at the limit",
        position: None,
        frames: &[(1, "m1", MSG), (3, "m3", MSG)],
        wait: 5_000,
        typed: &["m1", "m3"],
        // The missing one is gone, so 2 is said at once.
        acks: &[1, 2, 3],
    },
    Row {
        row: "gap behind the engine's position",
        position: Some(10),
        frames: &[(12, "m12", MSG), (11, "m11", MSG)],
        wait: 0,
        typed: &["m11", "m12"],
        acks: &[11, 12],
    },
    Row {
        row: "f5: a reaction does not poison its message",
        position: Some(3),
        frames: &[(0, "m4", "message.reacted"), (4, "m4", MSG), (5, "m5", MSG)],
        wait: 0,
        typed: &["m4", "m5"],
        acks: &[3, 4, 5],
    },
    Row {
        row: "ack-only type",
        position: None,
        frames: &[(1, "m1", "message.read"), (2, "m2", "message.reacted")],
        wait: 0,
        typed: &[],
        acks: &[1, 2],
    },
    Row {
        row: "unknown type",
        position: None,
        frames: &[(1, "m1", "space.weather"), (2, "m2", MSG)],
        wait: 0,
        typed: &["m2"],
        acks: &[1, 2],
    },
];

fn frame(&(seq, id, kind): &Frame) -> Deliver {
    of_type(kind, message("al", seq, id))
}

fn with_position(position: Option<u64>) -> (Bench, Generation) {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.prepared("al");
    let id = bench.register_id("al");
    let mut data = registration("al");
    if let Some(seq) = position {
        data["delivery_ack_seq"] = json!(seq);
    }
    bench.reply(&id, data);
    let generation = bench.started("al");
    bench.note(generation, AgentNote::Ready);
    bench.settle();
    bench.take();
    (bench, generation)
}

/// Lets time pass; the engine answers a `node.register` at once.
fn pass_answering(bench: &mut Bench, ms: Ms) {
    let end = bench.now.mono + ms;
    while bench.now.mono < end {
        bench.pass(1_000.min(end - bench.now.mono));
        let id = bench.node_register.clone();
        bench.reply(&id, json!({}));
    }
}

fn read_all(bench: &mut Bench, generation: Generation) {
    while bench.flights.contains_key(&generation) {
        bench.read(generation);
    }
}

#[test]
fn every_row_of_the_cursor_tables() {
    for row in ROWS {
        let (mut bench, generation) = with_position(row.position);
        for each in row.frames {
            bench.deliver(frame(each));
            read_all(&mut bench, generation);
        }
        pass_answering(&mut bench, row.wait);
        read_all(&mut bench, generation);
        let seen = bench.take();
        assert_eq!(seen.typed(), row.typed, "typed, row '{}':\n{seen:?}", row.row);
        assert_eq!(seen.acked("al"), row.acks, "acks, row '{}':\n{seen:?}", row.row);
    }
}

#[test]
fn f7_a_hole_is_asked_for_once_and_then_told() {
    let (mut bench, generation) = with_position(None);
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.deliver(message("al", 3, "m3"));
    bench.pass(1_999);
    let seen = bench.take();
    assert_eq!(seen.count("node.register"), 0, "too early:\n{seen:?}");
    bench.pass(1);
    let seen = bench.take();
    assert_eq!(seen.count("node.register"), 1, "a replay is asked for after 2 s:\n{seen:?}");
    bench.accept();
    bench.deliver(message("al", 3, "m3"));
    bench.pass(2_999);
    let seen = bench.take();
    assert_eq!(seen.count("node.register"), 0, "asked once:\n{seen:?}");
    bench.pass(1);
    let seen = bench.take();
    let gaps = seen.event("delivery_gap");
    assert_eq!(gaps.len(), 1, "{seen:?}");
    assert_eq!((&gaps[0]["from_seq"], &gaps[0]["to_seq"]), (&json!(2), &json!(2)));
    assert_eq!(bench.read(generation), "m3");
    // The missing one comes after all: shown late, once.
    bench.take();
    bench.deliver(message("al", 2, "m2"));
    bench.deliver(message("al", 2, "m2"));
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m2"], "{seen:?}");
    assert!(seen.acks().is_empty(), "a repeat would make the engine drop its copy:\n{seen:?}");
    bench.read(generation);
    assert_eq!(bench.take().acked("al"), [3]);
}

#[test]
fn f7_a_hole_that_fills_in_time_is_not_told() {
    let (mut bench, generation) = with_position(None);
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 3, "m3"));
    bench.pass(3_000);
    bench.deliver(message("al", 2, "m2"));
    read_all(&mut bench, generation);
    bench.pass(10_000);
    let seen = bench.take();
    assert!(seen.event("delivery_gap").is_empty(), "{seen:?}");
    assert_eq!(seen.acked("al").last(), Some(&3), "{seen:?}");
}

#[test]
fn a_hole_waits_while_the_link_is_down() {
    let (mut bench, generation) = with_position(None);
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.deliver(message("al", 3, "m3"));
    bench.close("reset");
    bench.take();
    bench.node(NodeNote::Refused { generation: bench.link, why: Refusal::Io("no route".into()) });
    bench.pass(20_000);
    let seen = bench.take();
    assert!(seen.typed().is_empty(), "nothing can have filled the hole yet:\n{seen:?}");
    bench.open();
    bench.accept();
    bench.deliver(message("al", 2, "m2"));
    bench.deliver(message("al", 3, "m3"));
    read_all(&mut bench, generation);
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m2", "m3"], "{seen:?}");
    // Twin: a hole that the replay of the new connection does not fill is given up.
    bench.deliver(message("al", 5, "m5"));
    bench.close("reset");
    bench.wait_connect();
    bench.pass(7_000);
    bench.open();
    bench.accept();
    bench.deliver(message("al", 5, "m5"));
    pass_answering(&mut bench, 4_999);
    assert!(bench.take().typed().is_empty());
    bench.pass(1);
    assert_eq!(bench.take().typed(), ["m5"]);
}

#[test]
fn a_hole_that_waits_for_the_next_life_is_not_given_up() {
    for ends in ["running", "failed"] {
        let (mut bench, generation) = with_position(None);
        bench.deliver(message("al", 1, "m1"));
        bench.read(generation);
        bench.exited(generation);
        // A registration without an answer: the engine may have it here all the same.
        bench.ask_spawn("al");
        bench.prepared("al");
        bench.pass(10_000);
        bench.deliver(message("al", 3, "m3"));
        bench.ask_spawn("al");
        bench.deliver(message("al", 2, "m2"));
        bench.take();
        pass_answering(&mut bench, 9_000);
        if ends == "running" {
            bench.prepared("al");
            bench.registered("al");
            let generation = bench.started("al");
            read_all(&mut bench, generation);
            let seen = bench.take();
            assert_eq!(seen.typed(), ["m2", "m3"], "{seen:?}");
            continue;
        }
        let generation = bench.generation("al");
        bench.note(generation, AgentNote::Refused { error: "exec".into() });
        pass_answering(&mut bench, 9_000);
        let seen = bench.take();
        assert!(seen.event("delivery_gap").is_empty(), "the engine has it open:\n{seen:?}");
        assert!(seen.acks().is_empty() && seen.dead().is_empty(), "{seen:?}");
    }
}

/// `by`: the api, an invoke, or itself.
fn end(bench: &mut Bench, generation: Generation, by: &str) {
    match by {
        "api" => drop(bench.release("al")),
        "invoke" => bench.invoke("r1", "release", json!({"name": "al"})),
        _ => {}
    }
    bench.exited(generation);
    bench.settle();
}

#[test]
fn a_hole_of_a_gone_agent_stays_with_the_engine() {
    for released_by in ["api", "invoke", "itself"] {
        let (mut bench, generation) = with_position(None);
        bench.deliver(message("al", 1, "m1"));
        bench.read(generation);
        end(&mut bench, generation, released_by);
        bench.take();
        // On its way when the engine was told; 2 is open there, and it repeats nothing of an agent that is not here.
        bench.deliver(message("al", 3, "m3"));
        pass_answering(&mut bench, 20_000);
        let seen = bench.take();
        assert!(seen.event("delivery_gap").is_empty() && seen.acks().is_empty(), "{released_by}:\n{seen:?}");
        // Twin: a registration without an answer may have brought it here again. Then the replay says so and proves the hole.
        bench.ask_spawn("al");
        bench.prepared("al");
        bench.pass(10_000);
        bench.deliver(message("al", 3, "m3"));
        bench.pass(2_000);
        bench.accept();
        bench.deliver(message("al", 3, "m3"));
        pass_answering(&mut bench, 20_000);
        let seen = bench.take();
        assert_eq!(seen.event("delivery_gap").len(), 1, "{released_by}:\n{seen:?}");
        assert_eq!(seen.dead(), [("m3".to_string(), "recipient gone".to_string())], "{released_by}:\n{seen:?}");
    }
}

/// Its owner can bind an agent to this node without a word to us. Then the engine repeats its messages here, and nobody but
/// us can end them.
#[test]
fn a_hole_of_a_gone_agent_that_the_engine_has_here_again_is_given_up() {
    for (released_by, reconnects) in [("api", true), ("api", false), ("invoke", true), ("itself", false)] {
        let (mut bench, generation) = with_position(None);
        bench.deliver(message("al", 1, "m1"));
        bench.read(generation);
        end(&mut bench, generation, released_by);
        if reconnects {
            bench.reconnect();
            bench.accept();
        }
        bench.take();
        // 2 is no more; 3 and 5 are open. Each replay brings them.
        for seq in [3, 5] {
            bench.deliver(message("al", seq, &format!("m{seq}")));
        }
        bench.pass(2_000);
        let seen = bench.take();
        assert_eq!(seen.count("node.register"), 1, "{released_by}:\n{seen:?}");
        assert!(seen.acks().is_empty() && seen.dead().is_empty(), "{released_by}: not proved yet:\n{seen:?}");
        bench.accept();
        for seq in [3, 5] {
            bench.deliver(message("al", seq, &format!("m{seq}")));
        }
        bench.pass(3_000);
        let seen = bench.take();
        let gone = |id: &str| (id.to_string(), "recipient gone".to_string());
        assert_eq!(seen.dead(), [gone("m3"), gone("m5")], "{released_by}: one replay proves both holes:\n{seen:?}");
        assert_eq!(seen.event("delivery_gap").len(), 2, "{released_by}:\n{seen:?}");
        assert_eq!(seen.acked("al").last(), Some(&5), "{released_by}:\n{seen:?}");
        // Twin: taken away again, what is still on its way proves nothing.
        bench.deliver(message("al", 7, "m7"));
        pass_answering(&mut bench, 20_000);
        let seen = bench.take();
        assert!(seen.event("delivery_gap").is_empty() && seen.acks().is_empty(), "{released_by}:\n{seen:?}");
        assert!(seen.dead().is_empty(), "{released_by}:\n{seen:?}");
        bench.nothing_left(released_by);
    }
}

#[test]
fn a_replay_from_before_an_agent_came_again_proves_nothing() {
    for ends in ["running", "late"] {
        let (mut bench, generation) = with_position(None);
        bench.deliver(message("al", 1, "m1"));
        bench.read(generation);
        bench.exited(generation);
        bench.settle();
        // On its way when the engine was told; 2 is open there. The replay leaves both out: the agent is not here.
        bench.deliver(message("al", 3, "m3"));
        bench.pass(2_000);
        bench.accept();
        bench.ask_spawn("al");
        bench.prepared("al");
        bench.pass(9_000);
        if ends == "running" {
            bench.registered("al");
            let generation = bench.started("al");
            bench.note(generation, AgentNote::Ready);
            bench.take();
            // The replay of the registration is slow.
            bench.pass(1_500);
            for seq in [2, 3] {
                bench.deliver(message("al", seq, &format!("m{seq}")));
            }
            read_all(&mut bench, generation);
            let seen = bench.take();
            assert_eq!(seen.typed(), ["m2", "m3"], "{seen:?}");
            assert!(seen.event("delivery_gap").is_empty(), "{seen:?}");
            assert_eq!(seen.acked("al").last(), Some(&3), "{seen:?}");
            continue;
        }
        // Nobody has answered in time, and the engine has not yet done what was asked.
        bench.take();
        pass_answering(&mut bench, 9_000);
        let seen = bench.take();
        assert!(seen.event("delivery_gap").is_empty() && seen.acks().is_empty(), "{seen:?}");
        assert!(seen.dead().is_empty(), "{seen:?}");
    }
}

#[test]
fn what_is_too_much_behind_a_hole_has_the_engine_asked_at_once_and_stays_there() {
    for filled in [true, false] {
        let (mut bench, generation) = with_position(None);
        bench.deliver(message("al", 1, "m1"));
        bench.read(generation);
        bench.take();
        for seq in 3..=66 {
            bench.deliver(message("al", seq, &format!("m{seq}")));
        }
        bench.pass(1);
        let seen = bench.take();
        assert!(seen.typed().is_empty() && seen.acks().is_empty() && seen.count("node.register") == 0, "{seen:?}");
        for seq in 67..=70 {
            bench.deliver(message("al", seq, &format!("m{seq}")));
        }
        bench.pass(1);
        let seen = bench.take();
        assert_eq!(seen.count("node.register"), 1, "asked once, without the two seconds:\n{seen:?}");
        assert!(seen.typed().is_empty() && seen.acks().is_empty(), "not proved yet:\n{seen:?}");
        let mut expected: Vec<String> = (3..=66).map(|seq| format!("m{seq}")).collect();
        bench.accept();
        if filled {
            expected.insert(0, "m2".into());
            bench.deliver(message("al", 2, "m2"));
        }
        for seq in 3..=70 {
            bench.deliver(message("al", seq, &format!("m{seq}")));
        }
        if !filled {
            let seen = bench.take();
            assert!(seen.typed().is_empty() && seen.event("delivery_gap").is_empty(), "{seen:?}");
            bench.pass(super::super::book::GAP_REPLAY_MS);
        }
        read_all(&mut bench, generation);
        let seen = bench.take();
        if filled {
            // The replay brings the rest as soon as there is room.
            expected.extend((67..=70).map(|seq| format!("m{seq}")));
            assert_eq!(seen.typed(), expected, "{seen:?}");
            assert_eq!(seen.acked("al").last(), Some(&70), "{seen:?}");
            continue;
        }
        assert_eq!(seen.event("delivery_gap").len(), 1, "{seen:?}");
        assert_eq!(seen.typed(), expected, "64 are held");
        assert_eq!(seen.acked("al").last(), Some(&66), "{seen:?}");
        assert_eq!(seen.count("node.register"), 1, "the rest is asked for:\n{seen:?}");
    }
}

#[test]
fn f27_every_known_type_is_typed_and_every_other_is_counted_once_in_the_log() {
    const TYPES: &[&str] = &[
        "",
        "message.created",
        "message.received",
        "message.new",
        "message.sent",
        "message.delivered",
        "thread.reply",
        "thread.message.created",
        "thread.message.sent",
        "dm.received",
        "dm.created",
        "dm.new",
        "dm.sent",
        "dm.message.created",
        "direct_message.received",
        "direct_message.created",
        "direct_message.new",
        "direct_message.sent",
        "group_dm.received",
        "group_dm.created",
        "group_dm.new",
        "group_dm.sent",
        "group_dm.message.created",
        "action.completed",
        "action.failed",
        "action.denied",
    ];
    for kind in TYPES {
        let (mut bench, _) = with_position(None);
        bench.deliver(of_type(kind, message("al", 1, "m1")));
        assert_eq!(bench.take().typed(), ["m1"], "type '{kind}'");
    }
    let (mut bench, _) = with_position(None);
    bench.deliver(of_type("Message.created", message("al", 1, "m1")));
    bench.deliver(of_type("Message.created", message("al", 2, "m2")));
    let seen = bench.take();
    assert!(seen.typed().is_empty(), "{seen:?}");
    assert_eq!(seen.logs(log::Level::Warn).len(), 1, "logged once per type:\n{seen:?}");
    assert_eq!(bench.status()["counters"]["unknown_payloads"], 2);
}

#[test]
fn f28_an_id_is_known_while_the_ring_holds_it_and_its_number_for_ever() {
    let (mut bench, generation) = with_position(None);
    for seq in 1..=600 {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        bench.read(generation);
    }
    bench.take();
    // Old numbers, forgotten ids: nothing is shown twice.
    for seq in [1, 88, 89, 600] {
        bench.deliver(message("al", seq, &format!("m{seq}")));
    }
    let seen = bench.take();
    assert!(seen.typed().is_empty(), "{seen:?}");
    assert_eq!(seen.acked("al"), [600, 600, 600, 600], "{seen:?}");
    // New numbers: 88 ids are forgotten, 512 known.
    bench.deliver(message("al", 601, "m89"));
    bench.deliver(message("al", 602, "m87"));
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m87"], "{seen:?}");
}
