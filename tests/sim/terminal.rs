//! One simulated agent: its thread, its terminal and the program in it. It keeps what the broker has been told apart from
//! what is true.

use std::collections::BTreeSet;

use agent_relay_broker::core::ports::{Injection, Ms};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The thread looks for the program.
    Looking,
    Prepared,
    /// `Start` was given.
    Starting,
    Running,
    /// Exited or refused.
    Gone,
}

#[derive(Debug)]
pub struct InFlight {
    pub injection: Injection,
    pub typed: bool,
}

#[derive(Debug)]
pub struct Terminal {
    pub name: String,
    pub cli: String,
    pub phase: Phase,
    pub pid: u32,
    /// From the environment it was started with.
    pub token: Option<String>,
    pub agent_id: Option<String>,
    /// Facts that the broker has handled.
    pub told_prepared: bool,
    pub told_started: bool,
    /// Its program has ended with code 0.
    pub has_done_its_work: bool,
    pub told_gone: bool,
    /// The broker has asked it to end.
    pub release_asked: bool,
    /// It asked before it knew that anything had been started.
    pub given_up: bool,
    /// A human has the terminal: only exempt messages may be handed over.
    pub held: bool,
    pub in_flight: Option<InFlight>,
    /// What the broker has handed over and not seen read or failed.
    pub open: Option<String>,
    /// Whose spawn was answered with this life.
    pub claimed: Option<String>,
    /// Its agent was started again after it; what was typed here and not read may be typed there.
    pub outlived: bool,
    /// And has not come back yet, nor been given up.
    pub cooling: bool,
    /// Notes keep their order.
    pub last_note: Ms,
    /// The program does not read before this.
    pub busy_until: Ms,
    pub verified: BTreeSet<String>,
    pub fail_next: u32,
}

impl Terminal {
    pub fn new(name: String, cli: String, pid: u32) -> Terminal {
        Terminal {
            name,
            cli,
            phase: Phase::Looking,
            pid,
            token: None,
            agent_id: None,
            told_prepared: false,
            told_started: false,
            has_done_its_work: false,
            told_gone: false,
            release_asked: false,
            given_up: false,
            held: false,
            in_flight: None,
            open: None,
            claimed: None,
            outlived: false,
            cooling: false,
            last_note: 0,
            busy_until: 0,
            verified: BTreeSet::new(),
            fail_next: 0,
        }
    }

    /// Runs as far as the broker can know, and is wanted.
    pub fn is_up(&self) -> bool {
        self.told_started && !self.told_gone && !self.given_up
    }
}
