use serde_json::json;

use super::*;
use crate::wire::node::DeliveryMode;

fn frame(seq: u64, msg_id: &str) -> Deliver {
    Deliver {
        agent: "al".into(),
        agent_id: "a1".into(),
        delivery_id: String::new(),
        msg_id: msg_id.into(),
        seq,
        mode: DeliveryMode::Wait,
        payload: json!({}),
    }
}

#[test]
fn f28_the_ring_keeps_512_and_forgets_the_first() {
    let mut ring = Ring::default();
    assert!(ring.is_empty());
    for n in 1..=600 {
        ring.insert(n, &format!("m{n}"));
        ring.insert(n, "m1");
    }
    assert_eq!(ring.len(), RING);
    // m1 was repeated all the time, which refreshed nothing: it fell out once and came back once.
    for (id, known) in [("m2", false), ("m88", false), ("m90", true), ("m600", true)] {
        assert_eq!(ring.contains(id), known, "{id}");
    }
}

#[test]
fn the_safe_number_is_below_the_first_open_one() {
    let mut cursor = Cursor::new("al");
    assert_eq!((cursor.safe(), cursor.take_ack()), (0, None));
    for seq in 1..=4 {
        assert_eq!(cursor.accept(&frame(seq, &format!("m{seq}")), 0), Verdict::Surface);
    }
    for (disposed, safe) in [(3, 0), (1, 1), (4, 1), (2, 4)] {
        assert_eq!(cursor.dispose(disposed), safe, "after {disposed}");
    }
    assert!(cursor.is_settled());
    assert_eq!((cursor.take_ack(), cursor.take_ack()), (Some(4), None));
    assert_eq!(cursor.acked(), 4);
}

#[test]
fn an_acknowledgement_never_falls() {
    let mut cursor = Cursor::new("al");
    cursor.position(10);
    cursor.owes_ack = true;
    assert_eq!(cursor.take_ack(), Some(10));
    assert_eq!(cursor.accept(&frame(11, "m11"), 0), Verdict::Surface);
    assert_eq!(cursor.accept(&frame(9, "m9"), 0), Verdict::SurfaceLate);
    assert_eq!(cursor.take_ack(), None, "a repeat would make the engine drop its copy of 9");
    cursor.dispose(9);
    assert_eq!(cursor.take_ack(), Some(10));
    cursor.position(3);
    cursor.owes_ack = true;
    assert_eq!(cursor.take_ack(), Some(10));
}

#[test]
fn a_hole_of_any_size_costs_little() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    assert_eq!(cursor.accept(&frame(1_000_000_000_000, "far"), 0), Verdict::Held);
    assert_eq!(cursor.give_up_gap(), Some((2, 999_999_999_999)));
    assert!(cursor.holes.len() <= RING, "{}", cursor.holes.len());
    let (held, verdict) = cursor.next_held(0).expect("the held frame");
    assert_eq!((held.seq, verdict), (1_000_000_000_000, Verdict::Surface));
    assert_eq!(cursor.give_up_gap(), None);
    // A number of the hole is still welcome, once.
    assert_eq!(cursor.accept(&frame(999_999_999_999, "late"), 0), Verdict::SurfaceLate);
    assert_eq!(cursor.accept(&frame(999_999_999_999, "late"), 0), Verdict::Duplicate);
}

#[test]
fn held_frames_come_in_order_up_to_the_next_hole() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    for seq in [6, 4, 3] {
        assert_eq!(cursor.accept(&frame(seq, &format!("m{seq}")), 100), Verdict::Held, "{seq}");
    }
    assert_eq!(cursor.next_held(100), None);
    assert_eq!(cursor.gap_deadline(false), Some(100 + GAP_RESYNC_MS));
    cursor.accept(&frame(2, "m2"), 300);
    let order: Vec<u64> = std::iter::from_fn(|| cursor.next_held(300)).map(|(frame, _)| frame.seq).collect();
    assert_eq!(order, [3, 4]);
    assert_eq!(cursor.gap_deadline(false), Some(300 + GAP_RESYNC_MS), "the wait for 5 begins when 2 has come");
    assert!(!cursor.gap_is_over(300 + GAP_LIMIT_MS, false), "never before a replay was asked for");
    assert!(cursor.wants_resync(300 + GAP_RESYNC_MS, false));
    assert!(!cursor.gap_is_over(300 + GAP_LIMIT_MS - 1, false));
    assert!(cursor.gap_is_over(300 + GAP_LIMIT_MS, false));
}

#[test]
fn an_engine_that_answers_proves_a_hole_by_its_replay() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    cursor.accept(&frame(3, "m3"), 0);
    assert!(cursor.wants_resync(GAP_RESYNC_MS, true));
    assert_eq!(cursor.gap_deadline(true), None, "unanswered: the connection may be dead");
    assert!(!cursor.gap_is_over(60_000, true));
    cursor.replay_begins(4_500);
    assert_eq!(cursor.gap_deadline(true), Some(4_500 + GAP_REPLAY_MS));
    cursor.accept(&frame(2, "m2"), 4_600);
    assert_eq!(cursor.next_held(4_600).map(|(frame, _)| frame.seq), Some(3));
    // A connection that ends takes what is held with it: the next one repeats all of it.
    cursor.accept(&frame(5, "m5"), 5_000);
    cursor.disconnected();
    assert_eq!((cursor.gap_deadline(true), cursor.next_held(5_000)), (None, None));
    assert_eq!(cursor.accept(&frame(4, "m4"), 6_000), Verdict::Surface);
}

#[test]
fn an_answer_whose_replay_may_be_lost_proves_nothing() {
    let asked = || {
        let mut cursor = Cursor::new("al");
        cursor.accept(&frame(1, "m1"), 0);
        cursor.accept(&frame(3, "m3"), 0);
        assert!(cursor.wants_resync(GAP_RESYNC_MS, true));
        cursor.replay_begins(2_100);
        assert_eq!(cursor.gap_deadline(true), Some(GAP_LIMIT_MS));
        cursor
    };
    // What waits behind the hole comes once more, and what is missing does not come before it.
    let mut cursor = asked();
    cursor.accept(&frame(3, "m3"), 2_200);
    assert!(!cursor.wants_resync(GAP_LIMIT_MS, true));
    assert!(cursor.gap_is_over(GAP_LIMIT_MS, true));
    // Nothing comes: the connection may have died behind the answer. It is asked again, once.
    let mut cursor = asked();
    assert!(cursor.wants_resync(GAP_LIMIT_MS, true));
    assert!(!cursor.wants_resync(GAP_LIMIT_MS + 1, true) && !cursor.gap_is_over(GAP_LIMIT_MS + 1, true));
    cursor.replay_begins(GAP_LIMIT_MS + 100);
    assert!(cursor.gap_is_over(GAP_LIMIT_MS + 100, true), "an engine that repeats nothing has nothing open");
    // Not for ever, if it answers only once.
    let mut cursor = asked();
    assert!(cursor.wants_resync(GAP_LIMIT_MS, true));
    assert_eq!(cursor.gap_deadline(true), Some(2_100 + GAP_SILENCE_MS));
    assert!(cursor.gap_is_over(2_100 + GAP_SILENCE_MS, true));
}

#[test]
fn what_was_said_while_the_agent_was_gone_says_nothing_once_it_is_here() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    cursor.let_go();
    cursor.accept(&frame(3, "m3"), 0);
    assert!(cursor.wants_resync(GAP_RESYNC_MS, true));
    cursor.replay_begins(2_100);
    assert!(cursor.wants_resync(GAP_LIMIT_MS, true), "nothing was repeated");
    cursor.replay_begins(GAP_LIMIT_MS + 100);
    cursor.take_up();
    let now = GAP_LIMIT_MS + 200;
    assert!(!cursor.gap_is_over(now, true) && cursor.wants_resync(now, true), "a question of its own");
    cursor.replay_begins(now + 100);
    assert!(
        !cursor.gap_is_over(now + 100 + GAP_REPLAY_MS, true) || cursor.wants_resync(now + 100 + GAP_REPLAY_MS, true)
    );
    assert!(!cursor.gap_is_over(now + 200 + GAP_REPLAY_MS, true), "one answer without a repeat is none");
}

#[test]
fn a_replay_is_wanted_once_per_hole() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    cursor.accept(&frame(3, "m3"), 0);
    assert!(!cursor.wants_resync(GAP_RESYNC_MS - 1, false));
    assert!(cursor.wants_resync(GAP_RESYNC_MS, false));
    assert!(!cursor.wants_resync(GAP_RESYNC_MS + 1, false));
    assert_eq!(cursor.gap_deadline(false), Some(GAP_LIMIT_MS));
    cursor.accept(&frame(2, "m2"), 3_000);
    assert_eq!(cursor.next_held(3_000).map(|(frame, _)| frame.seq), Some(3));
    assert_eq!(cursor.gap_deadline(false), None);
    cursor.accept(&frame(5, "m5"), 4_000);
    assert!(cursor.wants_resync(4_000 + GAP_RESYNC_MS, false), "another hole, another request");
}

#[test]
fn seq_0_has_its_own_memory() {
    let mut cursor = Cursor::new("al");
    assert!(cursor.accept_unrepeated("message.reacted|m4|d", true));
    assert!(!cursor.accept_unrepeated("message.reacted|m4|d", true));
    assert!(cursor.accept_unrepeated("action.denied|act|d", false));
    assert!(cursor.accept_unrepeated("action.denied|act|d", false));
    assert_eq!(cursor.take_ack(), None, "no position, nothing to say");
    assert_eq!(cursor.accept(&frame(43, "m4"), 0), Verdict::Surface);
}

#[test]
fn a_full_agent_refuses_what_is_new_and_nothing_else() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    assert!(!cursor.refuses(&frame(2, "m2"), false));
    assert!(!cursor.refuses(&frame(1, "m1"), true), "known");
    assert!(!cursor.refusing);
    assert!(cursor.refuses(&frame(2, "m2"), true));
    assert!(cursor.refuses(&frame(3, "m3"), false), "order: what follows a refused frame is refused too");
    assert_eq!(cursor.safe(), 0);
}

/// The replay fills a second hole while more than enough waits behind the first.
#[test]
fn a_full_hold_keeps_the_lowest() {
    let mut cursor = Cursor::new("al");
    cursor.accept(&frame(1, "m1"), 0);
    let late = 5;
    for seq in (3..3 + 2 * HELD as u64).filter(|seq| *seq != late) {
        cursor.accept(&frame(seq, &format!("m{seq}")), 0);
    }
    assert_eq!(cursor.accept(&frame(late, "m5"), 10), Verdict::Held);
    cursor.accept(&frame(2, "m2"), 20);
    let order: Vec<u64> = std::iter::from_fn(|| cursor.next_held(20)).map(|(frame, _)| frame.seq).collect();
    assert_eq!(order, (3..3 + HELD as u64).collect::<Vec<_>>());
    assert!(cursor.take_overflow(), "the engine is asked for the rest");
}
