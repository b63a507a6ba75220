use super::*;

/// A terminal that takes `room` bytes, and a gate.
struct Fake {
    room: usize,
    typed: Vec<u8>,
    /// How often something was written.
    writes: usize,
    gate: Gate,
    keys: usize,
}

impl Desk for Fake {
    fn gate(&self, _: &Injection, _: Instant, _: Instant) -> Gate {
        self.gate
    }

    fn compose(&mut self, injection: &Injection, _: Instant) -> Vec<u8> {
        injection.body.clone().into_bytes()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= count;
        self.writes += 1;
        self.typed.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn typed(&mut self, delivery_id: &str, _: Instant) {
        assert!(self.typed.ends_with(format!("{delivery_id}\r").as_bytes()), "after Enter, before anything else");
    }

    fn before_keys(&mut self, _: &[u8], _: Instant) {
        self.keys += 1;
    }
}

fn fake(room: usize) -> Fake {
    Fake { room, typed: Vec::new(), writes: 0, gate: Gate::Open, keys: 0 }
}

fn message(id: &str, mode: DeliveryMode) -> Injection {
    let text = id.to_string();
    Injection {
        delivery_id: text.clone(),
        event_id: text.clone(),
        from: text.clone(),
        target: text.clone(),
        body: text,
        workspace: None,
        mode,
        exempt: false,
    }
}

fn typed(id: &str) -> Outcome {
    Outcome::Typed { delivery_id: id.into() }
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn l13_body_pause_and_enter_are_one_unit() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(999), Timing::default(), Instant::now());
    typist.inject(message("body", DeliveryMode::Wait), start);
    assert_eq!(typist.advance(&mut desk, start, &timing), []);
    typist.keys(1, b"k".to_vec(), false).expect("room");
    typist.answer(b"R".to_vec());
    typist.inject(message("next", DeliveryMode::Steer), start);
    assert_eq!(typist.advance(&mut desk, start + 49 * MS, &timing), []);
    assert_eq!((&desk.typed[..], typist.deadline(&desk, start)), (&b"body"[..], Some(start + 50 * MS)));
    let outcomes = typist.advance(&mut desk, start + 50 * MS, &timing);
    assert_eq!(outcomes, [typed("body"), Outcome::KeysWritten { ticket: 1, bytes: 1 }]);
    assert_eq!(desk.typed, b"body\rkR\x1b\x1b");
    assert_eq!(typist.advance(&mut desk, start + 169 * MS, &timing), []);
    typist.advance(&mut desk, start + 170 * MS, &timing);
    assert_eq!(typist.advance(&mut desk, start + 220 * MS, &timing), [typed("next")]);
    assert_eq!(desk.typed, b"body\rkR\x1b\x1bnext\r");
    assert_eq!(typist.deadline(&desk, start), None);
}

#[test]
fn t3_partial_writes_go_on_where_they_stopped() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(0), Timing::default(), Instant::now());
    typist.inject(message("abcdef", DeliveryMode::Wait), start);
    let mut now = start;
    let mut outcomes = Vec::new();
    while outcomes.is_empty() {
        desk.room += 1;
        outcomes = typist.advance(&mut desk, now, &timing);
        assert_eq!(
            typist.is_blocked(),
            outcomes.is_empty() && desk.room == 0 && desk.typed.len() < 6,
            "{:?}",
            desk.typed
        );
        now += 10 * MS;
    }
    assert_eq!(desk.typed, b"abcdef\r");
}

#[test]
fn t3_a_message_that_the_terminal_refuses_is_told_once() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(3), Timing::default(), Instant::now());
    typist.inject(message("abcdef", DeliveryMode::Wait), start);
    typist.advance(&mut desk, start, &timing);
    assert_eq!(typist.stall_deadline(timing.stall), Some(start + timing.stall));
    assert_eq!(typist.take_stalled(start + timing.stall - MS, timing.stall), None);
    assert_eq!(typist.take_stalled(start + timing.stall, timing.stall).as_deref(), Some("abcdef"));
    assert_eq!(typist.stall_deadline(timing.stall), None);
    // It goes on where it stopped; a pause before Enter is no refusal.
    desk.room = 99;
    typist.advance(&mut desk, start + 2 * timing.stall, &timing);
    assert_eq!(typist.take_stalled(start + 9 * timing.stall, timing.stall), None);
    assert_eq!(typist.advance(&mut desk, start + 3 * timing.stall, &timing), [typed("abcdef")]);
}

#[test]
fn t3_a_message_behind_keystrokes_that_nobody_reads_is_told_once() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(0), Timing::default(), Instant::now());
    typist.keys(1, b"kk".to_vec(), false).expect("room");
    typist.advance(&mut desk, start, &timing);
    assert_eq!(typist.stall_deadline(timing.stall), None, "no message waits");
    let sent = start + timing.stall;
    typist.inject(message("m", DeliveryMode::Wait), sent);
    typist.advance(&mut desk, sent, &timing);
    assert_eq!(typist.take_stalled(sent + timing.stall - MS, timing.stall), None);
    assert_eq!(typist.take_stalled(sent + timing.stall, timing.stall).as_deref(), Some("m"));
    // What the terminal takes is a new beginning, and nobody is told twice.
    desk.room = 1;
    typist.advance(&mut desk, sent + 2 * timing.stall, &timing);
    assert_eq!(typist.take_stalled(sent + 9 * timing.stall, timing.stall), None);
    assert_eq!(desk.keys, 1, "the desk hears of keys once, however often they are tried");
    desk.room = 99;
    typist.advance(&mut desk, sent + 3 * timing.stall, &timing);
    assert_eq!(desk.typed, b"kkm");
}

#[test]
fn t3_a_terminal_that_takes_a_little_is_not_stuck() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(1), Timing::default(), Instant::now());
    typist.inject(message("abcdef", DeliveryMode::Wait), start);
    typist.advance(&mut desk, start, &timing);
    desk.room = 1;
    let later = start + timing.stall - MS;
    typist.advance(&mut desk, later, &timing);
    assert_eq!(typist.take_stalled(start + timing.stall, timing.stall), None);
    assert_eq!(typist.stall_deadline(timing.stall), Some(later + timing.stall));
}

#[test]
fn t6_a_message_is_written_in_bulk_however_long() {
    let (mut typist, mut desk, timing, start) =
        (Typist::default(), fake(usize::MAX), Timing::default(), Instant::now());
    typist.inject(message(&"line\n".repeat(20_000), DeliveryMode::Wait), start);
    typist.advance(&mut desk, start, &timing);
    assert_eq!((desk.writes, desk.typed.len()), (1, 100_000));
    assert_eq!(typist.deadline(&desk, start), Some(start + timing.before_enter));
    assert_eq!(typist.advance(&mut desk, start + timing.before_enter, &timing).len(), 1);
    assert_eq!(desk.writes, 2, "body and Enter");
}

#[test]
fn t11_a_queued_key_goes_before_a_message_that_has_not_begun() {
    for mode in [DeliveryMode::Wait, DeliveryMode::Steer] {
        let (mut typist, mut desk, timing, start) = (Typist::default(), fake(1), Timing::default(), Instant::now());
        typist.keys(1, b"kk".to_vec(), false).expect("room");
        typist.inject(message("text", mode), start);
        typist.advance(&mut desk, start, &timing);
        assert!(typist.has_keys() && typist.is_blocked());
        desk.room = 999;
        typist.advance(&mut desk, start, &timing);
        assert!(!typist.has_keys());
        assert!(desk.typed.starts_with(b"kk") && desk.typed.len() > 2, "{:?}", desk.typed);
    }
}

#[test]
fn d11_a_steer_overtakes_waiting_messages_but_not_other_steers() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(999), Timing::default(), Instant::now());
    desk.gate = Gate::Closed { until: start + 5 * MS };
    for (id, mode) in [
        ("w1", DeliveryMode::Wait),
        ("s1", DeliveryMode::Steer),
        ("w2", DeliveryMode::Wait),
        ("s2", DeliveryMode::Steer),
    ] {
        typist.inject(message(id, mode), start);
    }
    assert_eq!(typist.advance(&mut desk, start, &timing), []);
    assert_eq!(typist.deadline(&desk, start), Some(start + 5 * MS));
    typist.keys(1, b"k".to_vec(), false).expect("room");
    assert_eq!(typist.advance(&mut desk, start, &timing).len(), 1, "keys pass a closed gate");
    desk.gate = Gate::Open;
    let mut order = Vec::new();
    for step in 0..100 {
        order.extend(typist.advance(&mut desk, start + step * 10 * MS, &timing));
    }
    assert_eq!(order, ["s1", "s2", "w1", "w2"].map(typed));
}

#[test]
fn the_end_tells_what_was_not_begun() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(2), Timing::default(), Instant::now());
    typist.inject(message("half", DeliveryMode::Wait), start);
    typist.inject(message("none", DeliveryMode::Wait), start);
    typist.keys(7, b"k".to_vec(), false).expect("room");
    // Keys were first in line; one byte of the message is written after them.
    typist.advance(&mut desk, start, &timing);
    typist.keys(8, b"k".to_vec(), false).expect("room");
    assert!(typist.is_blocked());
    let (outcomes, tickets) = typist.abandon("gone");
    assert_eq!(outcomes, [Outcome::NotTyped { delivery_id: "none".into(), error: "gone".into() }]);
    assert_eq!(tickets, [8]);
    assert!(!typist.is_blocked(), "a terminal that nothing is written to is not waited for");
}

#[test]
fn bounds_refuse_keys_and_drop_answers() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(0), Timing::default(), Instant::now());
    typist.keys(1, vec![0; MAX_BYTES], false).expect("room");
    assert!(typist.keys(2, vec![0], false).is_err());
    for _ in 0..2 * MAX_ANSWERS {
        typist.answer(b"R".to_vec());
    }
    assert_eq!(typist.writes.len(), MAX_ANSWERS);
    // Several streams may wait at once: empty frames count too, but only by their number.
    for ticket in MAX_ANSWERS..MAX_KEYS {
        typist.keys(ticket as u64, vec![], false).expect("room");
    }
    assert!(typist.keys(3, vec![], false).is_err());
    desk.room = 2 * MAX_BYTES;
    let outcomes = typist.advance(&mut desk, start, &timing);
    assert_eq!(outcomes[0], Outcome::KeysWritten { ticket: 1, bytes: MAX_BYTES });
    assert_eq!(outcomes.len(), 1 + MAX_KEYS - MAX_ANSWERS);
    assert_eq!(desk.typed.len(), MAX_BYTES + MAX_ANSWERS - 1);
    typist.keys(4, vec![0; MAX_BYTES], false).expect("room again");
}

#[test]
fn d4_a_line_of_our_own_is_text_pause_and_enter_with_nothing_in_between() {
    let (mut typist, mut desk, timing, start) = (Typist::default(), fake(999), Timing::default(), Instant::now());
    typist.keys(1, b"/model opus".to_vec(), true).expect("room");
    assert_eq!(typist.advance(&mut desk, start, &timing), []);
    typist.keys(2, b"k".to_vec(), false).expect("room");
    typist.answer(b"R".to_vec());
    typist.inject(message("body", DeliveryMode::Wait), start);
    assert_eq!(typist.advance(&mut desk, start + 49 * MS, &timing), []);
    assert_eq!((&desk.typed[..], typist.deadline(&desk, start)), (&b"/model opus"[..], Some(start + 50 * MS)));
    let outcomes = typist.advance(&mut desk, start + 50 * MS, &timing);
    let written = |ticket, bytes| Outcome::KeysWritten { ticket, bytes };
    assert_eq!(outcomes, [written(1, 11), written(2, 1)]);
    assert_eq!(desk.typed, b"/model opus\rkRbody");
}
