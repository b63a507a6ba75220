//! The delivery book: which numbered frames of an agent were taken over, which are disposed, what may be acknowledged.
//!
//! One [`Cursor`] per agent identity. Invariants:
//! - an acknowledgement never passes a frame that is taken over and not disposed ([`Cursor::safe`]), and never falls;
//! - a frame is surfaced once: known by its id while the ring holds it, by its number for ever;
//! - a hole in the numbering stops nothing for longer than [`GAP_LIMIT_MS`].

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::mutants::{Mutant, planted};
use super::ports::Ms;
use crate::wire::node::Deliver;

/// Ids remembered per agent.
pub const RING: usize = 512;
/// Frames held behind a hole.
pub const HELD: usize = 64;
/// After this long the engine is asked once for a replay; at once if more came behind the hole than is held.
pub const GAP_RESYNC_MS: Ms = 2_000;
/// After this long the missing frames are taken for gone: dead-lettered or singly acked rows leave holes at the engine. When
/// more came than is held, the engine's replay is enough: nothing is acknowledged over a number that it has left open.
pub const GAP_LIMIT_MS: Ms = 5_000;
/// The replay follows its announcement within this.
pub const GAP_REPLAY_MS: Ms = 1_000;
/// An engine that answers one question of two and is heard of otherwise does not keep a hole open longer. A connection that
/// is dead is found out before.
pub const GAP_SILENCE_MS: Ms = 60_000;

/// A first-in-first-out set; inserting a known id does not refresh it.
#[derive(Debug, Default)]
pub struct Ring {
    order: VecDeque<(u64, String)>,
    known: HashSet<String>,
    /// Highest number whose id has been forgotten.
    forgotten: u64,
}

impl Ring {
    pub fn contains(&self, id: &str) -> bool {
        !planted(Mutant::NoDedup) && self.known.contains(id)
    }

    pub fn insert(&mut self, seq: u64, id: &str) {
        if !self.known.insert(id.to_string()) {
            return;
        }
        self.order.push_back((seq, id.to_string()));
        if self.order.len() > RING
            && let Some((old_seq, old_id)) = self.order.pop_front()
        {
            self.known.remove(&old_id);
            self.forgotten = self.forgotten.max(old_seq);
        }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// What to do with one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Taken over: surface it, dispose it later.
    Surface,
    /// A hole filled after it was given up, or a frame from before our first: surface it. What was acknowledged before may
    /// cover it, so its only copy may be ours; nothing is acknowledged until it is disposed.
    SurfaceLate,
    /// Seen under this number: acknowledge what is safe.
    Duplicate,
    /// Seen under another number: disposed with that one.
    Copy,
    /// Kept behind a hole, or left to a later replay because [`HELD`] others are.
    Held,
}

/// What the engine was asked about a hole, and what it has said.
#[derive(Debug, Default)]
struct Inquiry {
    asked: bool,
    /// When it answered: what it has left open follows right behind.
    answered_at: Option<Ms>,
    /// A held frame came once more after the question, or after its answer if there is one: the engine has the agent here,
    /// and its replay would have brought what is missing before.
    repeated: bool,
    /// Nothing came once more, perhaps because the connection died behind the answer: the engine is asked again, and a second
    /// answer shows that all of the first replay has come.
    asked_again: bool,
    answered_again: bool,
    /// Holes below this number existed when it answered: its replay proves them all.
    proved_below: u64,
}

impl Inquiry {
    /// All of a replay has come: what is missing still is a hole.
    fn is_proof(&self) -> bool {
        self.repeated || self.answered_again
    }
}

/// The position of one agent identity.
#[derive(Debug, Default)]
pub struct Cursor {
    /// The name by which acknowledgements are addressed.
    pub agent: String,
    /// The engine has shown in this life that the name is borne by this identity. Acknowledgements go by name: they would
    /// hit another one that bears it now.
    pub bears_name: bool,
    /// Its agent has ended and the engine is told: it keeps what we have not taken over, and fills no hole for us, unless
    /// somebody else has bound the agent here since.
    gone: bool,
    /// From the journal; no frame of this life has touched it.
    pub of_earlier_life: bool,
    positioned: bool,
    received: u64,
    open: BTreeSet<u64>,
    /// Highest number acknowledged on any connection.
    acked: u64,
    /// An acknowledgement should go out at the end of this turn, even if it repeats the last one.
    pub owes_ack: bool,
    ring: Ring,
    unrepeated: Ring,
    held: BTreeMap<u64, Deliver>,
    holes: BTreeSet<u64>,
    gap_since: Option<Ms>,
    inquiry: Inquiry,
    /// More came behind the hole than is kept: the engine is asked for it once the hole is closed.
    overflowed: bool,
    /// Frames were refused because the agent's queue is full; the engine is asked again when it has drained.
    pub refusing: bool,
}

impl Cursor {
    pub fn new(agent: &str) -> Cursor {
        Cursor { agent: agent.to_string(), ..Cursor::default() }
    }

    /// Takes the position that the engine or the journal knows.
    pub fn position(&mut self, seq: u64) {
        self.positioned = true;
        self.received = self.received.max(seq);
        self.acked = self.acked.max(seq);
    }

    /// The lowest number that is known to be open. Whoever has a position knows better: what lies between may be on its way.
    pub fn begin_with(&mut self, first: u64) {
        if !self.positioned {
            self.position(first.saturating_sub(1));
        }
    }

    /// Enters an id that an earlier life disposed.
    pub fn restore(&mut self, seq: u64, msg_id: &str) {
        if planted(Mutant::CursorLostOnRestart) {
            return;
        }
        self.position(seq);
        self.of_earlier_life = true;
        if !msg_id.is_empty() {
            self.ring.insert(seq, msg_id);
        }
    }

    /// The highest number that may be acknowledged: everything up to it is disposed.
    pub fn safe(&self) -> u64 {
        self.open.first().map_or(self.received, |first| first - 1)
    }

    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The number to acknowledge now, if anything is owed. Repeats are wanted after duplicates and reconnects. While a frame
    /// is open below what was acknowledged before, the engine may still have it: a repeat would make it drop its copy.
    pub fn take_ack(&mut self) -> Option<u64> {
        let safe = self.safe();
        if safe < self.acked {
            return None;
        }
        let owed = std::mem::take(&mut self.owes_ack) || safe > self.acked;
        self.acked = safe;
        (owed && safe > 0).then_some(safe)
    }

    /// Judges a frame that the engine never repeats (seq 0). It does not position the cursor. Of a gone agent it may be the
    /// last thing to come before the name is borne by another identity, which a repeated acknowledgement would hit.
    pub fn accept_unrepeated(&mut self, key: &str, suppressible: bool) -> bool {
        self.owes_ack |= !self.gone;
        if suppressible && self.unrepeated.contains(key) {
            return false;
        }
        self.unrepeated.insert(0, key);
        true
    }

    /// Judges a numbered frame.
    pub fn accept(&mut self, frame: &Deliver, now: Ms) -> Verdict {
        let seq = frame.seq;
        if !self.positioned {
            self.position(seq - 1);
        }
        if seq == self.received + 1 {
            let verdict = self.take(frame);
            self.gap_settled(now);
            return verdict;
        }
        if seq > self.received {
            if planted(Mutant::GapDropped) {
                return Verdict::Duplicate;
            }
            self.gap_since.get_or_insert(now);
            self.inquiry.repeated |= self.held.insert(seq, frame.clone()).is_some();
            if self.held.len() > HELD {
                // The highest goes: a lower one that was dropped would look like a hole that the replay has proved.
                self.held.pop_last();
                self.overflowed = true;
            }
            return Verdict::Held;
        }
        self.owes_ack = true;
        if self.open.contains(&seq) || self.ring.contains(&frame.msg_id) {
            return Verdict::Duplicate;
        }
        // Older than the ring's memory: the number alone tells, unless it was a hole.
        if seq <= self.ring.forgotten && !self.holes.contains(&seq) && !planted(Mutant::NoDedup) {
            return Verdict::Duplicate;
        }
        self.enter_late(seq, &frame.msg_id);
        Verdict::SurfaceLate
    }

    /// A frame below what was received is taken over after all.
    pub fn enter_late(&mut self, seq: u64, msg_id: &str) {
        self.holes.remove(&seq);
        self.ring.insert(seq, msg_id);
        self.open.insert(seq);
    }

    fn take(&mut self, frame: &Deliver) -> Verdict {
        self.received = frame.seq;
        if self.ring.contains(&frame.msg_id) {
            self.owes_ack = true;
            return Verdict::Copy;
        }
        self.ring.insert(frame.seq, &frame.msg_id);
        self.open.insert(frame.seq);
        Verdict::Surface
    }

    fn gap_settled(&mut self, now: Ms) {
        let first = self.held.first_key_value().map(|(&first, _)| first);
        if self.inquiry.answered_at.is_some() && first.is_some_and(|first| first <= self.inquiry.proved_below) {
            // The next hole is as old as the one before, and the same replay proves it.
            return;
        }
        self.gap_since = first.map(|_| now);
        // A question that is still open is one about the next hole too.
        let asked = first.is_some() && self.inquiry.asked && self.inquiry.answered_at.is_none();
        self.inquiry = Inquiry { asked, ..Inquiry::default() };
    }

    /// The connection is gone. What waits behind a hole is dropped: the engine repeats it on the next one, hole included.
    pub fn disconnected(&mut self) {
        self.held.clear();
        self.overflowed = false;
        self.gap_settled(0);
    }

    /// The engine has answered a `node.register`.
    pub fn replay_begins(&mut self, now: Ms) {
        let inquiry = &mut self.inquiry;
        if inquiry.asked && inquiry.answered_at.is_none() {
            inquiry.answered_at = Some(now);
            inquiry.repeated = false;
            inquiry.proved_below = self.held.last_key_value().map_or(0, |(&last, _)| last);
        } else {
            inquiry.answered_again = inquiry.answered_at.is_some();
        }
    }

    /// The next held frame if the hole before it is closed, with its verdict.
    pub fn next_held(&mut self, now: Ms) -> Option<(Deliver, Verdict)> {
        // What a late fill has made old is judged again like any repeated frame.
        let (&seq, _) = self.held.first_key_value()?;
        if seq > self.received + 1 {
            return None;
        }
        let frame = self.held.remove(&seq)?;
        let verdict = if seq == self.received + 1 { self.take(&frame) } else { self.accept(&frame, now) };
        self.gap_settled(now);
        Some((frame, verdict))
    }

    /// The hole is closed and what did not fit behind it is still at the engine.
    pub fn take_overflow(&mut self) -> bool {
        self.held.is_empty() && std::mem::take(&mut self.overflowed)
    }

    /// When the hole wants attention next. `answers`: the engine answers a `node.register`, so only its answer to our
    /// question proves that the hole is one; without it the connection may be dead, and the next one brings a replay.
    pub fn gap_deadline(&self, answers: bool) -> Option<Ms> {
        // What was refused is no hole: the engine is asked for it when there is room.
        let since = self.gap_since.filter(|_| !self.refusing)?;
        if !self.inquiry.asked {
            return Some(since + self.patience(GAP_RESYNC_MS));
        }
        match self.inquiry.answered_at {
            Some(answered) if self.inquiry.asked_again && !self.inquiry.is_proof() => Some(answered + GAP_SILENCE_MS),
            Some(answered) => Some((since + self.patience(GAP_LIMIT_MS)).max(answered + GAP_REPLAY_MS)),
            None => (!answers).then_some(since + GAP_LIMIT_MS),
        }
    }

    fn patience(&self, usual: Ms) -> Ms {
        if self.overflowed { 0 } else { usual }
    }

    /// The engine should be asked for a replay: once per hole, and once more if that brought nothing.
    pub fn wants_resync(&mut self, now: Ms, answers: bool) -> bool {
        let due = self.gap_deadline(answers).is_some_and(|at| now >= at);
        if !self.inquiry.asked && due {
            (self.inquiry.asked, self.inquiry.repeated) = (true, false);
            return true;
        }
        let again = due && self.inquiry.answered_at.is_some() && !self.inquiry.is_proof() && !self.inquiry.asked_again;
        self.inquiry.asked_again |= again;
        again
    }

    /// To be asked after [`Self::wants_resync`].
    pub fn gap_is_over(&self, now: Ms, answers: bool) -> bool {
        self.inquiry.asked && self.gap_deadline(answers).is_some_and(|at| now >= at)
    }

    /// Gives up the hole before the first held frame: the missing numbers, first and last. They can still be surfaced if
    /// they arrive after all. Of a gone agent the engine may have them open and repeat nothing, because it is not here: then
    /// what waits behind the hole goes back to the engine too.
    pub fn give_up_gap(&mut self) -> Option<(u64, u64)> {
        if self.gone && !self.inquiry.repeated {
            self.disconnected();
            return None;
        }
        let (&first, _) = self.held.first_key_value()?;
        let missing = (self.received + 1, first - 1);
        if missing.0 > missing.1 {
            return None;
        }
        // Bounded: of a huge hole only the last numbers are remembered.
        self.holes.extend(missing.1.saturating_sub(RING as u64 - 1).max(missing.0)..=missing.1);
        while self.holes.len() > 2 * RING {
            self.holes.pop_first();
        }
        self.received = missing.1;
        Some(missing)
    }

    /// The frame is read, dead-lettered or ack-only. Returns the number that is safe now.
    pub fn dispose(&mut self, seq: u64) -> u64 {
        self.open.remove(&seq);
        self.safe()
    }

    /// Taken over and not disposed.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// The agent has ended and is no longer bound here. What waits behind a hole goes back to the engine.
    pub fn let_go(&mut self) {
        self.gone = true;
        self.disconnected();
    }

    /// The agent is here again. An answer from before says nothing: its replay left out what was not here.
    pub fn take_up(&mut self) {
        if std::mem::take(&mut self.gone) {
            self.inquiry = Inquiry::default();
        }
    }

    /// While the agent's queue is full, what is new stays at the engine as if it had never come. The next number in turn is
    /// taken as soon as there is room.
    pub fn refuses(&mut self, frame: &Deliver, full: bool) -> bool {
        let new = frame.seq > self.received && self.positioned;
        self.refusing |= full && new;
        new && (full || (self.refusing && frame.seq > self.received + 1))
    }

    pub fn is_open(&self, seq: u64) -> bool {
        self.open.contains(&seq)
    }

    /// Nothing taken over, nothing held.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty() && self.held.is_empty()
    }
}

#[cfg(test)]
mod tests;
