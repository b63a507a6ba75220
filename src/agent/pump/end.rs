//! How a pump ends: by a release, by the program's own end, by its wish, or by the loss of the terminal.

use std::io;
use std::time::Instant;

use super::{Pump, READ_BYTES, refuse};
use crate::agent::farewell::Farewell;
use crate::agent::tree;
use crate::core::ports::{AgentNote, LastWords};
use crate::sys::threads;

impl Pump<'_> {
    pub(super) fn exit_asked(&mut self, now: Instant) {
        if self.farewell.is_none() {
            self.announce("agent_requested", now);
            self.ask_to_go(now);
        }
    }

    fn announce(&mut self, reason: &'static str, now: Instant) {
        if !self.ending && !self.released {
            self.ending = true;
            self.tell_output(now);
            (self.tell)(AgentNote::Ending { reason });
        }
    }

    pub(super) fn ask_to_go(&mut self, now: Instant) {
        if self.farewell.is_some() {
            return;
        }
        threads::doing("ending its program");
        self.last_proof(now);
        self.drop_writes();
        self.farewell = Some(Farewell::ask(&self.desk.terminal, &self.mark, now, &self.desk.timing));
    }

    /// Ends the program and its tree at once.
    pub(super) fn kill(&mut self, now: Instant) {
        threads::doing("killing its program");
        if self.farewell.is_none() {
            self.last_proof(now);
        }
        self.drop_writes();
        let (terminal, timing) = (&self.desk.terminal, &self.desk.timing);
        self.farewell = Some(Farewell::kill(self.farewell.take(), terminal, &self.mark, now, timing));
    }

    /// What was read up to now is proved while the program still lives, or the next life would get it again.
    fn last_proof(&mut self, now: Instant) {
        if !self.desk.receipts.is_empty() {
            self.prove(now);
        }
    }

    /// Tells of everything that will not be written any more.
    fn drop_writes(&mut self) {
        let (outcomes, tickets) = self.typist.abandon("the agent is ending");
        outcomes.into_iter().for_each(|outcome| self.report(outcome));
        for ticket in tickets {
            (self.tell)(AgentNote::TypeDone { ticket, result: Err("the agent is ending".into()) });
        }
    }

    /// A program that let go of its terminal can be fed and seen no longer. It gets a moment to end by itself, or to open
    /// the terminal again.
    pub(super) fn check_hang_up(&mut self, now: Instant) {
        let grace = self.desk.timing.hang_up_grace;
        if self.farewell.is_some() || self.hung_up.is_none_or(|since| now < since + grace) {
            return;
        }
        self.hung_up = None;
        self.read(now);
        if self.hung_up.is_some() {
            self.announce("pty_closed", now);
            self.ask_to_go(now);
        }
    }

    pub(super) fn check_end(&mut self, now: Instant) {
        if self.farewell.as_ref().is_some_and(Farewell::leader_ended) {
            return;
        }
        let Some(status) = self.desk.terminal.status() else { return };
        threads::doing("clearing its process tree");
        self.drain();
        let mut rest = String::new();
        self.decoder.finish(&mut rest);
        self.outlet.push(rest, now, &self.desk.timing).into_iter().for_each(self.tell);
        self.outlet.write_log();
        self.tell_output(now);
        self.announce(if self.hung_up.is_some() { "pty_closed" } else { "child_exited" }, now);
        self.drop_writes();
        let (terminal, timing) = (&self.desk.terminal, &self.desk.timing);
        self.farewell = Some(Farewell::rest(self.farewell.take(), terminal, &self.mark, status, now, timing));
    }

    /// What the program wrote before its end is still in the terminal. A descendant that goes on printing does not keep
    /// us for long.
    fn drain(&mut self) {
        let until = Instant::now() + self.desk.timing.drain;
        let mut buffer = [0u8; READ_BYTES];
        while self.hung_up.is_none() && Instant::now() < until {
            match self.desk.terminal.read(&mut buffer) {
                Ok(0) => self.hang_up(Instant::now()),
                Ok(count) => self.show(&buffer[..count], Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.hang_up(Instant::now()),
            }
        }
    }

    /// The next step of the end. `true`: all is over and told.
    pub(super) fn take_leave(&mut self, now: Instant) -> bool {
        let Some(farewell) = &mut self.farewell else { return false };
        let Some(status) = farewell.advance(&self.desk.terminal, now, &self.desk.timing) else { return false };
        // In this order: once it is reaped, its id may belong to the next agent's program.
        tree::forget_leader(self.desk.terminal.pid);
        self.desk.terminal.reap();
        tree::reap_orphans();
        self.mailbox.drain().for_each(|command| refuse(self.tell, *command, "the agent has ended"));
        // Who hears of the end finds nothing of the agent left.
        self.keep = None;
        let words = LastWords::of(&self.desk.screen.text(), self.outlet.log_path());
        (self.tell)(AgentNote::LastWords(words));
        (self.tell)(AgentNote::Exited { code: status.code, signal: status.signal });
        true
    }
}
