//! The loop of one agent's thread: it alone reads, writes and resizes the terminal, and it never waits for the program.
//!
//! It waits in one place, `poll` over the wake-up descriptor, the process and the terminal, until the nearest deadline of
//! whatever is armed; with nothing armed it sleeps until something happens. Telling a note may block: that is the
//! back-pressure on a program that prints faster than its viewers are served.

mod end;
mod output;
mod viewer;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::context::ContextScan;
use super::continuity::ContinuityScan;
use super::desk::{LiveDesk, SuggestionScan};
use super::farewell::Farewell;
use super::lines::ExitLine;
use super::mailbox::Mailbox;
use super::outfit::Keep;
use super::outlet::Outlet;
use super::readiness::Readiness;
use super::screen::Size;
use super::tap::Tap;
use super::typist::{Outcome, Typist};
use super::{ansi::Stripper, decoder::Decoder, picture};
use crate::core::ports::{AgentCommand, AgentNote, Ms, SnapshotFormat, Verdict};
use crate::sys::{clock, threads};

/// One read of a terminal never yields more than this.
const READ_BYTES: usize = 4096;
/// Reads before commands and timers get their turn again.
const READS_PER_TURN: usize = 16;
/// An escape string longer than this is kept from the emulator, which would store it all.
const LONG_STRING: usize = 4 << 10;

/// What the pump is made of; see [`Pump::run`].
pub struct Pump<'a> {
    tell: &'a dyn Fn(AgentNote),
    mailbox: &'a Mailbox,
    desk: LiveDesk,
    outlet: Outlet,
    tap: Option<Tap>,
    /// `None` once the verdict has fallen.
    readiness: Option<Readiness>,
    /// When it falls unless something more is shown, or unless it no longer holds.
    almost_at: Option<Instant>,
    settled_at: Option<Instant>,
    /// What it was, and what was told of it and of questions.
    recognised: Verdict,
    told_verdict: Verdict,
    idle_threshold: Option<Duration>,
    mark: String,
    /// Until the program is gone.
    keep: Option<Keep>,
    typist: Typist,
    decoder: Decoder,
    stripper: Stripper,
    /// Room for the text of one read without its sequences; given up at the end of each turn.
    scratch: String,
    suggestion: SuggestionScan,
    exit_line: ExitLine,
    context: ContextScan,
    continuity: ContinuityScan,
    /// A human is at work until then: the screen is looked at for questions afterwards.
    look_after: Option<Instant>,
    last_output: (Instant, Ms),
    /// This silence was told, for the agent's threshold and as a long one.
    idle_told: bool,
    long_silence_told: bool,
    /// No program has the terminal open, since when.
    hung_up: Option<Instant>,
    /// The end was announced.
    ending: bool,
    released: bool,
    killed: bool,
    farewell: Option<Farewell>,
}

/// What a pump is started with.
pub struct Parts<'a> {
    pub tell: &'a dyn Fn(AgentNote),
    pub mailbox: &'a Mailbox,
    pub desk: LiveDesk,
    pub outlet: Outlet,
    pub readiness: Readiness,
    pub idle_threshold: Option<Duration>,
    pub mark: String,
    /// Files that end with the agent.
    pub keep: Keep,
    pub tap: Option<Tap>,
}

impl<'a> Pump<'a> {
    pub fn new(parts: Parts<'a>, now: Instant) -> Pump<'a> {
        Pump {
            tell: parts.tell,
            mailbox: parts.mailbox,
            desk: parts.desk,
            outlet: parts.outlet,
            tap: parts.tap,
            readiness: Some(parts.readiness),
            almost_at: None,
            settled_at: None,
            recognised: Verdict::Starting,
            told_verdict: Verdict::Starting,
            idle_threshold: parts.idle_threshold,
            mark: parts.mark,
            keep: Some(parts.keep),
            typist: Typist::default(),
            decoder: Decoder::default(),
            stripper: Stripper::default(),
            scratch: String::new(),
            suggestion: SuggestionScan::default(),
            exit_line: ExitLine::default(),
            context: ContextScan::default(),
            continuity: ContinuityScan::default(),
            look_after: None,
            last_output: (now, clock::unix_ms()),
            idle_told: false,
            long_silence_told: false,
            hung_up: None,
            ending: false,
            released: false,
            killed: false,
            farewell: None,
        }
    }

    /// Runs until the program and its whole tree are gone and `Exited` is told. `early`: commands that came before the
    /// start.
    #[inline(never)]
    pub fn run(mut self: Box<Self>, early: VecDeque<Box<AgentCommand>>) {
        threads::doing("serving its terminal");
        for command in early {
            self.obey(*command, Instant::now());
        }
        // What came together with the order to start has rung already.
        self.take_commands(Instant::now());
        loop {
            let now = Instant::now();
            self.advance(now);
            if self.farewell.as_ref().is_some_and(|farewell| farewell.next <= now) && self.take_leave(now) {
                return;
            }
            let (woken, ended, readable) = self.wait(now);
            let now = Instant::now();
            // What came first counts first: input thrown away before a message was not part of it.
            if readable {
                self.read(now);
            }
            if woken {
                self.take_commands(now);
            }
            self.tick(now);
            if ended {
                self.check_end(now);
            }
        }
    }

    fn wait(&self, now: Instant) -> (bool, bool, bool) {
        let over = self.farewell.as_ref().is_some_and(Farewell::leader_ended);
        let terminal = &self.desk.terminal;
        let mut fds = Vec::with_capacity(3);
        fds.push(PollFd::new(self.mailbox.wake_fd(), PollFlags::IN));
        let process = terminal.pidfd.as_ref().filter(|_| !over).map(|pidfd| {
            fds.push(PollFd::new(pidfd, PollFlags::IN));
            fds.len() - 1
        });
        let full_tap = self.full_tap();
        let flags = self.wanted_of_terminal();
        let master = (!over && self.hung_up.is_none() && !flags.is_empty()).then(|| {
            fds.push(PollFd::new(terminal.master(), flags));
            fds.len() - 1
        });
        if let Some(tap) = full_tap {
            fds.push(PollFd::new(tap.room_fd(), PollFlags::IN));
        }
        let blind = terminal.pidfd.is_none() && !over;
        let look = blind.then(|| now + self.desk.timing.blind_look);
        let deadline = self.deadline(now).into_iter().chain(look).min();
        let timeout = deadline.map(|at| {
            // A year at most: what the kernel refuses would turn the wait into a spin.
            let left = at.saturating_duration_since(now).min(Duration::from_secs(365 * 86_400));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            // Interrupted: every source is asked again. Nothing here is fatal, the descriptors are our own.
            return (true, blind, false);
        }
        let ready = |index: Option<usize>, flags: PollFlags| index.is_some_and(|i| fds[i].revents().intersects(flags));
        if let Some(tap) = full_tap {
            tap.clear_room();
        }
        let readable = full_tap.is_none() && ready(master, PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        (ready(Some(0), PollFlags::IN), blind || ready(process, PollFlags::IN), readable)
    }

    /// The nearest time at which something is to be done without a cause from outside.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let timing = &self.desk.timing;
        if let Some(farewell) = self.farewell.as_ref().filter(|farewell| farewell.leader_ended()) {
            return Some(farewell.next);
        }
        [
            self.farewell.as_ref().map(|farewell| farewell.next),
            self.outlet.deadline(),
            self.desk.screen.sync_deadline(),
            self.readiness.as_ref().map(|_| self.desk.started + timing.ready_limit),
            self.almost_at,
            self.settled_at,
            if self.may_write() { self.typist.deadline(&self.desk, now) } else { None },
            self.desk.receipts.deadline(),
            self.typist.stall_deadline(timing.stall),
            self.desk.echo.deadline(),
            self.desk.second_enter.as_ref().map(|(at, _)| *at),
            self.desk.responder.deadline(),
            self.look_after,
            self.exit_line.deadline(timing.exit_line_quiet),
            self.continuity.deadline(timing.continuity_quiet),
            self.idle_deadline(),
            self.hung_up.map(|since| since + timing.hang_up_grace).filter(|_| self.farewell.is_none()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A message under way is no silence of the agent's choice, unless it lasts long.
    fn idle_deadline(&self) -> Option<Instant> {
        if self.farewell.is_some() {
            return None;
        }
        let busy = self.typist.has_messages() || !self.desk.receipts.is_empty() || self.desk.echo.is_active();
        let own = self.idle_threshold.filter(|_| !self.idle_told && !busy);
        let long = Some(self.desk.timing.long_silence).filter(|_| !self.long_silence_told);
        // A threshold beyond what the clock can count is never reached.
        own.into_iter().chain(long).filter_map(|silence| self.last_output.0.checked_add(silence)).min()
    }

    fn tell_silence(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.last_output.0);
        self.idle_told |= self.idle_threshold.is_some_and(|threshold| silence >= threshold);
        self.long_silence_told |= silence >= self.desk.timing.long_silence;
        (self.tell)(AgentNote::Idle { idle_secs: silence.as_secs(), since_unix: self.last_output.1 });
    }

    // ------------------------------------------------------------------------------------------------------- commands

    fn take_commands(&mut self, now: Instant) {
        self.mailbox.clear_wake();
        while let Some(command) = self.mailbox.next() {
            self.obey(*command, now);
        }
        if self.mailbox.kill_wanted() && !self.killed {
            (self.released, self.killed) = (true, true);
            self.kill(now);
        } else if self.mailbox.release_wanted() && !self.released {
            self.released = true;
            self.ask_to_go(now);
        }
    }

    fn obey(&mut self, command: AgentCommand, now: Instant) {
        if self.farewell.is_some() {
            return refuse(self.tell, command, "the agent is ending");
        }
        match command {
            // The program runs already; release has a flag of its own.
            AgentCommand::Start { .. } | AgentCommand::Release => {}
            AgentCommand::Inject(injection) if self.desk.held && !injection.exempt => {
                (self.tell)(AgentNote::GivenBack { delivery_id: injection.delivery_id });
            }
            AgentCommand::Inject(injection) => {
                self.typist.inject(injection, now);
                self.advance(now);
            }
            AgentCommand::Hold(held) => self.hold(held, now),
            AgentCommand::Yield => self.give_back(),
            AgentCommand::Type { ticket, bytes, enter } => match self.typist.keys(ticket, bytes, enter) {
                Ok(()) => {
                    // Half an answer would meet a human's keys, which may have to wait until they are written.
                    self.desk.responder.stop();
                    self.advance(now);
                }
                Err(error) => (self.tell)(AgentNote::TypeDone { ticket, result: Err(error) }),
            },
            AgentCommand::Resize { ticket, rows, cols } => {
                let size = Size::clamped(rows, cols);
                self.desk.screen.resize(size);
                self.desk.terminal.resize(size);
                (self.tell)(AgentNote::Resized { ticket, rows: size.rows, cols: size.cols });
                self.judge_screen(now);
            }
            AgentCommand::Snapshot { ticket, format } => {
                if format == SnapshotFormat::Ansi {
                    // A viewer goes on from here with the chunks that follow: the picture has to show all that came before.
                    self.desk.screen.end_sync();
                    self.take_answers();
                }
                self.tell_output(now);
                let snapshot =
                    picture::take(&mut self.desk.screen, format, self.outlet.offset(), self.stripper.unfinished());
                (self.tell)(AgentNote::Pictured { ticket, format, snapshot });
            }
        }
    }

    /// A human takes the terminal, or gives it back.
    fn hold(&mut self, held: bool, now: Instant) {
        if std::mem::replace(&mut self.desk.held, held) == held {
            return;
        }
        if held {
            self.desk.responder.stop();
            self.desk.second_enter = None;
            self.give_back();
        } else {
            self.judge_screen(now);
            self.advance(now);
        }
    }

    fn give_back(&mut self) {
        for delivery_id in self.typist.give_back() {
            (self.tell)(AgentNote::GivenBack { delivery_id });
        }
    }

    // --------------------------------------------------------------------------------------------------------- timers

    /// Does what is due by time.
    fn tick(&mut self, now: Instant) {
        if let Some(note) = self.outlet.tick(now) {
            (self.tell)(note);
        }
        if self.desk.screen.sync_deadline().is_some_and(|at| at <= now) {
            self.desk.screen.end_sync();
            self.take_answers();
            self.judge_screen(now);
        }
        self.tick_readiness(now);
        self.probe(now);
        self.tell_echoes(now);
        if let Some(delivery_id) = self.typist.take_stalled(now, self.desk.timing.stall) {
            (self.tell)(AgentNote::Stalled { delivery_id });
        }
        if let Some((_, tail)) = self.desk.second_enter.take_if(|(at, _)| *at <= now)
            && self.farewell.is_none()
            && !self.desk.held
            && !self.typist.has_keys()
            && self.desk.wants_second_enter(&tail)
        {
            self.typist.answer(b"\r".to_vec());
        }
        if self.desk.responder.wants_look(now) || self.look_after.is_some_and(|at| at <= now) {
            self.judge_screen(now);
        }
        while let Some(keys) = self.desk.responder.next_keys(now) {
            self.typist.answer(keys.to_vec());
        }
        if self.exit_line.tick(now, self.desk.timing.exit_line_quiet) {
            self.exit_asked(now);
        }
        if let Some(wish) = self.continuity.tick(now, self.desk.timing.continuity_quiet) {
            (self.tell)(AgentNote::Continuity(wish));
        }
        if self.idle_deadline().is_some_and(|at| at <= now) {
            self.tell_silence(now);
        }
        self.check_hang_up(now);
    }

    fn probe(&mut self, now: Instant) {
        if self.desk.receipts.deadline().is_some_and(|at| at <= now) {
            self.prove(now);
        }
    }

    /// Asks whether typed messages were read. Not while nobody has the terminal open: then there is no reader whose
    /// reading could be proven.
    fn prove(&mut self, now: Instant) {
        if self.hung_up.is_none() && self.desk.terminal.status().is_none() && self.desk.terminal.all_read() {
            // Empty because it was read, or because it was thrown away?
            self.desk.notice_flush();
            self.tell_verdicts();
            // The process is looked at once more *after* the probe: its end flushes the unread input, and an empty
            // terminal then proves nothing.
            if self.desk.terminal.status().is_none() {
                for delivery_id in self.desk.receipts.settle() {
                    (self.tell)(AgentNote::Read { delivery_id });
                }
                return;
            }
        }
        for delivery_id in self.desk.receipts.postpone(now) {
            (self.tell)(AgentNote::Stalled { delivery_id });
        }
    }

    fn may_write(&self) -> bool {
        self.farewell.is_none() && self.hung_up.is_none()
    }

    /// Writes what may be written and tells what became of it.
    fn advance(&mut self, now: Instant) {
        if !self.may_write() {
            return;
        }
        let timing = self.desk.timing;
        let outcomes = self.typist.advance(&mut self.desk, now, &timing);
        // From the first byte of a message on, what the terminal shows may be our own text.
        if self.desk.echo.is_active() {
            self.forget_words();
        }
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::KeysWritten { .. })) {
            // A question that they did not answer is looked at again when the human has left, also if nothing is shown.
            self.look_after = Some(self.desk.human_until().unwrap_or(now));
        }
        outcomes.into_iter().for_each(|outcome| self.report(outcome));
        self.tell_verdicts();
        // An echo may have been seen before Enter was written.
        self.tell_echoes(now);
    }

    fn tell_verdicts(&mut self) {
        std::mem::take(&mut self.desk.verdicts).into_iter().for_each(self.tell);
    }

    /// Hands over the output that still waits: what follows from it must not overtake it.
    fn tell_output(&mut self, now: Instant) {
        if let Some(note) = self.outlet.flush(now) {
            (self.tell)(note);
        }
    }

    fn tell_echoes(&mut self, now: Instant) {
        for (delivery_id, echo) in self.desk.echo.settle(now) {
            self.tell_output(now);
            (self.tell)(AgentNote::Verified { delivery_id, echo });
        }
    }

    fn report(&self, outcome: Outcome) {
        (self.tell)(match outcome {
            Outcome::KeysWritten { ticket, bytes } => AgentNote::TypeDone { ticket, result: Ok(bytes) },
            Outcome::Typed { delivery_id } => AgentNote::Typed { delivery_id },
            Outcome::Waiting { delivery_id } => AgentNote::Waiting { delivery_id },
            Outcome::NotTyped { delivery_id, error } => AgentNote::InjectFailed { delivery_id, error },
        });
    }
}

/// Answers a command that cannot be carried out.
pub fn refuse(tell: &dyn Fn(AgentNote), command: AgentCommand, error: &str) {
    match command {
        AgentCommand::Inject(injection) => {
            tell(AgentNote::InjectFailed { delivery_id: injection.delivery_id, error: error.into() });
        }
        AgentCommand::Type { ticket, .. } => tell(AgentNote::TypeDone { ticket, result: Err(error.into()) }),
        // The note that the agent has ended answers these.
        AgentCommand::Start { .. }
        | AgentCommand::Resize { .. }
        | AgentCommand::Snapshot { .. }
        | AgentCommand::Hold(_)
        | AgentCommand::Yield
        | AgentCommand::Release => {}
    }
}
