//! What comes from the terminal: to the screen, to those who watch, and to everything that draws conclusions from it.

use std::io;
use std::time::Instant;

use super::{LONG_STRING, Pump, READ_BYTES, READS_PER_TURN};
use crate::agent::{lines, tree};
use crate::core::ports::{AgentNote, Verdict};
use crate::sys::clock;

impl Pump<'_> {
    pub(super) fn read(&mut self, now: Instant) {
        let mut buffer = [0u8; READ_BYTES];
        let before = self.desk.output;
        for _ in 0..READS_PER_TURN {
            if self.full_tap().is_some() {
                break;
            }
            match self.desk.terminal.read(&mut buffer) {
                Ok(count) if count > 0 => self.show(&buffer[..count], now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    self.hang_up(now);
                    break;
                }
            }
        }
        self.scratch = String::new();
        self.outlet.write_log();
        self.desk.notice_flush();
        self.tell_verdicts();
        if self.desk.output != before {
            self.judge_screen(now);
            tree::reap_orphans_sometimes();
        }
    }

    pub(super) fn hang_up(&mut self, now: Instant) {
        self.hung_up.get_or_insert(now);
    }

    pub(super) fn show(&mut self, bytes: &[u8], now: Instant) {
        self.show_outside(bytes);
        let mut text = String::with_capacity(bytes.len() + 8);
        self.decoder.push(bytes, &mut text);
        let mut stripped = std::mem::take(&mut self.scratch);
        stripped.clear();
        stripped.reserve(text.len());
        let in_string = self.stripper.inside_long_string(LONG_STRING);
        self.stripper.push(&text, &mut stripped);
        if !(in_string && self.stripper.inside_long_string(LONG_STRING)) {
            self.desk.screen.feed(bytes);
            self.take_answers();
        }
        self.desk.output += bytes.len() as u64;
        self.last_output = (now, clock::unix_ms());
        (self.idle_told, self.long_silence_told) = (false, false);
        let visible = stripped.chars().any(|c| !c.is_whitespace());
        if let Some(shown) = self.suggestion.push(bytes, visible, now) {
            self.desk.suggestion = shown;
        }
        self.desk.echo.push(&stripped);
        let answered = self.desk.turn.push(&stripped);
        if let Some(readiness) = &mut self.readiness {
            readiness.push(&stripped, bytes.len());
        }
        if let Some(note) = self.outlet.push(text, now, &self.desk.timing) {
            (self.tell)(note);
        }
        self.conclude(&stripped, answered, now);
        self.scratch = stripped;
    }

    /// What the text says, once it is told. `answered`: the message whose turn it begins.
    fn conclude(&mut self, stripped: &str, answered: Option<String>, now: Instant) {
        if let Some(delivery_id) = answered {
            self.tell_output(now);
            (self.tell)(AgentNote::TurnStarted { delivery_id });
        }
        if self.desk.echo.is_active() {
            for line in stripped.split_inclusive(['\n', '\r']) {
                self.desk.words.push(line);
            }
            return self.forget_words();
        }
        if let Some(pct) = self.context.push(stripped) {
            self.tell_output(now);
            (self.tell)(AgentNote::ContextLeft { pct });
        }
        if self.desk.words.is_empty() {
            return self.take_commands_of(stripped, now);
        }
        for line in stripped.split_inclusive(['\n', '\r']) {
            if self.desk.words.push(line) {
                self.exit_line.reset();
                self.continuity.reset();
            } else {
                self.take_commands_of(line, now);
            }
        }
    }

    /// What the agent asks for by printing it. Whole lines that cannot hold a command are passed over: a flood is made of
    /// them.
    fn take_commands_of(&mut self, stripped: &str, now: Instant) {
        let (first, last) = (stripped.find('\n').map_or(0, |at| at + 1), stripped.rfind('\n').map_or(0, |at| at + 1));
        let between = &stripped[first..last];
        let plain = !between.is_empty() && !between.contains(':') && !between.contains(lines::COMMAND);
        if plain && self.continuity.is_outside() {
            self.take_commands_in(&stripped[..first], now);
            // The first line may have opened a block.
            let rest = if self.continuity.is_outside() { last } else { first };
            self.take_commands_in(&stripped[rest..], now);
        } else {
            self.take_commands_in(stripped, now);
        }
    }

    fn take_commands_in(&mut self, stripped: &str, now: Instant) {
        for wish in self.continuity.push(stripped, now) {
            (self.tell)(AgentNote::Continuity(wish));
        }
        if self.exit_line.push(stripped, now) {
            self.exit_asked(now);
        }
    }

    /// What the terminal shows is, or may be, our own text: no word of it is the agent's.
    pub(super) fn forget_words(&mut self) {
        self.exit_line.reset();
        self.context.reset();
        self.continuity.reset();
    }

    pub(super) fn take_answers(&mut self) {
        if let Some(answers) = self.desk.screen.take_answers()
            && !self.is_answered_outside()
        {
            self.typist.answer(answers);
        }
    }

    /// The screen has changed: is the CLI ready, does it ask something?
    pub(super) fn judge_screen(&mut self, now: Instant) {
        let text = self.desk.screen.text();
        self.look_after = self.desk.human_until().filter(|until| now < *until);
        if !self.desk.held && self.look_after.is_none() && !self.typist.has_keys() {
            self.desk.responder.look(&text, self.desk.echo.is_active(), now);
        }
        if let Some(readiness) = &self.readiness {
            if readiness.verdict(&self.desk.screen, &text) {
                // A menu may be drawn in several reads, its first one looking like a prompt.
                self.settled_at.get_or_insert(now + self.desk.timing.ready_settle);
            } else {
                self.settled_at = None;
                // Measured from the last output, not from the last look.
                let quiet = self.last_output.0 + self.desk.timing.ready_quiet;
                self.almost_at = self.is_almost_ready(&text).then_some(quiet);
            }
        }
        self.tell_verdict(&text, now);
    }

    fn is_almost_ready(&self, text: &str) -> bool {
        let key_by_key = self.desk.terminal.line_discipline().is_some_and(|mode| !mode.canonical);
        self.readiness.as_ref().is_some_and(|readiness| readiness.almost(&self.desk.screen, text, key_by_key))
    }

    /// What the screen showed a while ago, it still shows.
    pub(super) fn tick_readiness(&mut self, now: Instant) {
        let settled = self.settled_at.take_if(|at| *at <= now).is_some();
        let almost = self.almost_at.take_if(|at| *at <= now).is_some();
        let late = self.readiness.is_some() && self.desk.started + self.desk.timing.ready_limit <= now;
        if !settled && !almost && !late {
            return;
        }
        let text = self.desk.screen.text();
        let shows_it = |readiness: &super::Readiness| settled && readiness.verdict(&self.desk.screen, &text);
        if self.readiness.as_ref().is_some_and(shows_it) || (almost && self.is_almost_ready(&text)) {
            self.become_ready(now, Verdict::Ready);
        } else if late {
            self.become_ready(now, Verdict::Unrecognised);
        }
        self.tell_verdict(&text, now);
    }

    fn tell_verdict(&mut self, text: &str, now: Instant) {
        let asked = self.desk.responder.asked(text, now);
        let verdict = asked.map_or(self.recognised, |dialog| Verdict::Blocked(dialog.name()));
        if self.told_verdict != verdict && self.farewell.is_none() {
            self.told_verdict = verdict;
            (self.tell)(AgentNote::Judged(verdict));
        }
    }

    pub(super) fn become_ready(&mut self, now: Instant, verdict: Verdict) {
        self.readiness = None;
        (self.almost_at, self.settled_at) = (None, None);
        self.recognised = verdict;
        self.desk.ready = true;
        if self.farewell.is_none() {
            self.tell_output(now);
            (self.tell)(AgentNote::Ready);
        }
    }
}
