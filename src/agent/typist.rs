//! What is written to a terminal, in which order and when: keystrokes, answers to terminal queries, messages.
//!
//! One message is one unit: (for a steer: two escapes and a pause,) the body, a pause, Enter. From its first byte to its
//! Enter nothing else is written; what arrives meanwhile waits behind it. A message that has not begun waits for nothing
//! but its gate, and keystrokes pass it while it waits: a human has to be able to log a CLI in before messages reach it.
//!
//! Pure: time and the terminal come as arguments. Bounds: keystrokes by count and bytes (refused beyond), answers by
//! count (dropped beyond, the CLI asks again), messages by the core's rule of one in flight.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::Timing;
use crate::core::ports::{Injection, Ticket};
use crate::wire::node::DeliveryMode;

/// Bounds of what waits to be written: keystrokes of many streams that each have 64 frames under way, or bytes; and
/// answers to queries, which nobody misses.
const MAX_KEYS: usize = 1024;
const MAX_ANSWERS: usize = 128;
const MAX_BYTES: usize = 1 << 20;

/// Whether a message may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Asked again after the next event, and at this time.
    Closed {
        until: Instant,
    },
    /// As closed, because a human's unsent text stands in the composer.
    Drafted {
        until: Instant,
    },
    /// Something has to be taken off the composer with an escape first.
    AfterEscape,
    /// It cannot be typed in full; the reason is given with the failure.
    Never(&'static str),
}

/// What the owner of the terminal knows and the typist asks.
pub trait Desk {
    fn gate(&self, injection: &Injection, queued: Instant, now: Instant) -> Gate;
    /// The bytes of a message, bracketed if the program asked for that. Called once, when the message begins.
    fn compose(&mut self, injection: &Injection, now: Instant) -> Vec<u8>;
    /// Writes what the terminal takes now.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Body and Enter of the message composed last are written.
    fn typed(&mut self, delivery_id: &str, now: Instant);
    /// Keystrokes are about to be written.
    fn before_keys(&mut self, bytes: &[u8], now: Instant);
}

/// What became of something that was to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    KeysWritten {
        ticket: Ticket,
        bytes: usize,
    },
    /// Body and Enter are written.
    Typed {
        delivery_id: String,
    },
    /// It waits for a human's unsent text to leave the composer.
    Waiting {
        delivery_id: String,
    },
    /// Not one byte of the body was written.
    NotTyped {
        delivery_id: String,
        error: String,
    },
}

#[derive(Debug, Default)]
pub struct Typist {
    writes: VecDeque<Write>,
    /// Bytes of keystrokes in `writes`.
    key_bytes: usize,
    /// Messages that have not begun.
    waiting: VecDeque<(Injection, Instant)>,
    /// The one of which it was told that it waits for a human.
    told_waiting: Option<String>,
    unit: Option<Unit>,
    flow: Flow,
    /// The message of which it was told that the terminal does not take it, or the keys before it.
    told_stalled: Option<String>,
}

/// Whether the terminal takes what is written.
#[derive(Debug, Default)]
struct Flow {
    /// It takes nothing now: ask `poll` for it.
    blocked: bool,
    /// Since when it has taken nothing.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Write {
    /// `None`: an answer to a terminal query.
    ticket: Option<Ticket>,
    bytes: Vec<u8>,
    written: usize,
    /// The desk knows of it.
    announced: bool,
    /// Enter follows after a pause.
    enter: bool,
    /// When the pause is over.
    pause: Option<Instant>,
}

#[derive(Debug)]
struct Unit {
    injection: Injection,
    bytes: Vec<u8>,
    written: usize,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Escapes still to be written before the body.
    Escapes {
        left: u8,
        settle: Duration,
    },
    Settle {
        until: Instant,
    },
    Body,
    Pause {
        until: Instant,
    },
    Enter,
}

impl Typist {
    /// Queues a message. A steer overtakes waiting ones.
    pub fn inject(&mut self, injection: Injection, now: Instant) {
        let at = match injection.mode {
            DeliveryMode::Steer => self
                .waiting
                .iter()
                .position(|(waiting, _)| waiting.mode == DeliveryMode::Wait)
                .unwrap_or(self.waiting.len()),
            DeliveryMode::Wait => self.waiting.len(),
        };
        self.waiting.insert(at, (injection, now));
    }

    /// Queues keystrokes; with `enter` a pause and Enter belong to them, and nothing else is written in between.
    ///
    /// # Errors
    /// `pty_write_queue_full` when the program has not taken what was sent before.
    pub fn keys(&mut self, ticket: Ticket, bytes: Vec<u8>, enter: bool) -> Result<(), String> {
        if self.writes.len() >= MAX_KEYS || self.key_bytes + bytes.len() > MAX_BYTES {
            return Err("pty_write_queue_full: the program does not read its terminal".into());
        }
        self.key_bytes += bytes.len();
        self.writes.push_back(Write { ticket: Some(ticket), bytes, written: 0, announced: false, enter, pause: None });
        Ok(())
    }

    /// Queues an answer to a terminal query.
    pub fn answer(&mut self, bytes: Vec<u8>) {
        if self.writes.len() < MAX_ANSWERS {
            let write = Write { ticket: None, bytes, written: 0, announced: true, enter: false, pause: None };
            self.writes.push_back(write);
        }
    }

    /// Whether the terminal must become writable before anything goes on.
    pub fn is_blocked(&self) -> bool {
        self.flow.blocked
    }

    /// Keystrokes that are not completely written.
    pub fn has_keys(&self) -> bool {
        self.writes.iter().any(|write| write.ticket.is_some())
    }

    /// The message that the terminal does not take: one under way, or one behind keystrokes; and since when.
    fn stuck(&self) -> Option<(&String, Instant)> {
        let since = self.flow.since?;
        let waiting = || self.waiting.front().map(|(injection, queued)| (&injection.delivery_id, since.max(*queued)));
        let stuck = self.unit.as_ref().map(|unit| (&unit.injection.delivery_id, since)).or_else(waiting);
        stuck.filter(|(delivery_id, _)| self.told_stalled.as_ref() != Some(delivery_id))
    }

    /// When a message has been stuck for too long.
    pub fn stall_deadline(&self, stall: Duration) -> Option<Instant> {
        self.stuck().map(|(_, since)| since + stall)
    }

    /// The message that is stuck, once.
    pub fn take_stalled(&mut self, now: Instant, stall: Duration) -> Option<String> {
        let (delivery_id, _) = self.stuck().filter(|(_, since)| *since + stall <= now)?;
        self.told_stalled = Some(delivery_id.clone());
        self.told_stalled.clone()
    }

    /// Messages that are not completely written.
    pub fn has_messages(&self) -> bool {
        self.unit.is_some() || !self.waiting.is_empty()
    }

    /// The next time at which [`Self::advance`] has something to do by itself.
    pub fn deadline(&self, desk: &impl Desk, now: Instant) -> Option<Instant> {
        match &self.unit {
            Some(Unit { step: Step::Settle { until } | Step::Pause { until }, .. }) => Some(*until),
            Some(_) => None,
            None if !self.writes.is_empty() => self.writes.front().and_then(|write| write.pause),
            None => match self.next_in_line(desk, now) {
                Some(Gate::Closed { until } | Gate::Drafted { until }) => Some(until),
                _ => None,
            },
        }
    }

    /// Writes everything that may be written now.
    pub fn advance(&mut self, desk: &mut impl Desk, now: Instant, timing: &Timing) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        self.flow.blocked = false;
        while !self.flow.blocked {
            let moved = if self.unit.is_some() {
                self.advance_unit(desk, now, timing, &mut outcomes)
            } else if !self.writes.is_empty() {
                self.advance_write(desk, now, timing, &mut outcomes)
            } else {
                self.begin_next(desk, now, timing, &mut outcomes)
            };
            if !moved {
                break;
            }
        }
        self.flow.since = self.flow.blocked.then(|| self.flow.since.unwrap_or(now));
        outcomes
    }

    fn begin_next(&mut self, desk: &mut impl Desk, now: Instant, timing: &Timing, out: &mut Vec<Outcome>) -> bool {
        let Some(gate) = self.next_in_line(desk, now) else { return false };
        match gate {
            Gate::Closed { .. } => return false,
            Gate::Drafted { .. } => {
                let waiting = self.waiting.front().map(|(injection, _)| &injection.delivery_id);
                if self.told_waiting.as_ref() != waiting {
                    self.told_waiting = waiting.cloned();
                    out.extend(waiting.cloned().map(|delivery_id| Outcome::Waiting { delivery_id }));
                }
                return false;
            }
            Gate::Open | Gate::AfterEscape | Gate::Never(_) => self.told_waiting = None,
        }
        let Some((injection, _)) = self.waiting.pop_front() else { return false };
        let step = match gate {
            Gate::Never(error) => {
                out.push(Outcome::NotTyped { delivery_id: injection.delivery_id, error: error.into() });
                return true;
            }
            _ if injection.mode == DeliveryMode::Steer => Step::Escapes { left: 2, settle: timing.steer_settle },
            Gate::AfterEscape => Step::Escapes { left: 1, settle: timing.escape_settle },
            _ => Step::Body,
        };
        self.unit = Some(Unit { injection, bytes: Vec::new(), written: 0, step });
        true
    }

    /// The next message and its gate.
    fn next_in_line(&self, desk: &impl Desk, now: Instant) -> Option<Gate> {
        self.waiting.front().map(|(injection, queued)| desk.gate(injection, *queued, now))
    }

    /// A human takes the terminal, or something goes first: the messages that wait.
    pub fn give_back(&mut self) -> Vec<String> {
        self.told_waiting = None;
        self.waiting.drain(..).map(|(injection, _)| injection.delivery_id).collect()
    }

    fn advance_unit(&mut self, desk: &mut impl Desk, now: Instant, timing: &Timing, out: &mut Vec<Outcome>) -> bool {
        let Some(unit) = self.unit.as_mut() else { return false };
        match unit.step {
            Step::Escapes { left: 0, settle } => unit.step = Step::Settle { until: now + settle },
            Step::Escapes { left, settle } => match put(desk, &[0x1b; 2][..left.into()], &mut self.flow) {
                0 => return false,
                written => unit.step = Step::Escapes { left: left.saturating_sub(written as u8), settle },
            },
            Step::Settle { until } | Step::Pause { until } if now < until => return false,
            Step::Settle { .. } => unit.step = Step::Body,
            Step::Body => {
                if unit.bytes.is_empty() {
                    unit.bytes = desk.compose(&unit.injection, now);
                }
                unit.written += put(desk, &unit.bytes[unit.written..], &mut self.flow);
                if unit.written < unit.bytes.len() {
                    return !self.flow.blocked;
                }
                unit.step = Step::Pause { until: now + timing.before_enter };
            }
            Step::Pause { .. } => unit.step = Step::Enter,
            Step::Enter => {
                if put(desk, b"\r", &mut self.flow) == 0 {
                    return false;
                }
                if let Some(unit) = self.unit.take() {
                    desk.typed(&unit.injection.delivery_id, now);
                    out.push(Outcome::Typed { delivery_id: unit.injection.delivery_id });
                }
            }
        }
        true
    }

    fn advance_write(&mut self, desk: &mut impl Desk, now: Instant, timing: &Timing, out: &mut Vec<Outcome>) -> bool {
        let Some(write) = self.writes.front_mut() else { return false };
        if !std::mem::replace(&mut write.announced, true) {
            desk.before_keys(&write.bytes, now);
        }
        if write.written < write.bytes.len() {
            write.written += put(desk, &write.bytes[write.written..], &mut self.flow);
        }
        if write.written < write.bytes.len() {
            return !self.flow.blocked;
        }
        if write.enter {
            let until = *write.pause.get_or_insert(now + timing.before_enter);
            if now < until {
                return false;
            }
            desk.before_keys(b"\r", now);
            if put(desk, b"\r", &mut self.flow) == 0 {
                return false;
            }
        }
        if let Some(Write { ticket: Some(ticket), bytes, .. }) = self.writes.pop_front() {
            self.key_bytes -= bytes.len();
            out.push(Outcome::KeysWritten { ticket, bytes: bytes.len() });
        }
        if self.writes.is_empty() {
            self.writes = VecDeque::new();
        }
        true
    }

    /// The terminal is gone: what was not begun can be said to be unwritten. A message of which bytes were written gets
    /// no outcome, nobody knows what became of it.
    pub fn abandon(&mut self, error: &str) -> (Vec<Outcome>, Vec<Ticket>) {
        let begun = self.unit.take().filter(|unit| unit.written == 0).map(|unit| unit.injection);
        let unwritten = begun.into_iter().chain(self.waiting.drain(..).map(|(injection, _)| injection));
        let outcomes = unwritten
            .map(|injection| Outcome::NotTyped { delivery_id: injection.delivery_id, error: error.into() })
            .collect();
        self.key_bytes = 0;
        // Nothing is written any more: a terminal that becomes writable must not wake anybody.
        self.flow = Flow::default();
        (outcomes, self.writes.drain(..).filter_map(|write| write.ticket).collect())
    }
}

/// Writes once. 0 with `blocked` set: the terminal takes nothing now, or is gone (the end of the program shows that).
fn put(desk: &mut impl Desk, bytes: &[u8], flow: &mut Flow) -> usize {
    loop {
        match desk.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                flow.blocked = true;
                return 0;
            }
            Ok(written) => {
                flow.since = None;
                return written;
            }
        }
    }
}

#[cfg(test)]
mod tests;
