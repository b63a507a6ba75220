//! The embedded engine as a state machine: [`Engine`] owns all tables, and every call leaves journal lines ([`Engine::take_lines`])
//! and frames for node sockets ([`Engine::take_out`]) behind. No socket, no file, no thread, no clock: the time is
//! handed in with [`Engine::at`] before each call.
//!
//! Invariants
//! - What changes goes through [`Tables::apply`] as a [`Row`], so that the journal is the truth. Exceptions are facts
//!   of one connection, which a restart ends anyway: links, heartbeats, `delivered` marks, request keys in progress.
//! - Per agent `seq` is 1 + the highest ever given, whatever happened to agent, token, location or row.
//! - Frames of one link leave in the order in which they were decided.
//!
//! Bounds: [`MESSAGES_KEPT`] messages and [`MESSAGE_BYTES_KEPT`] in all (the oldest goes, its open deliveries become
//! `dead_lettered`), [`MAILBOX_OPEN`] open deliveries per agent (the oldest becomes `dead_lettered`), and those of [`tables`].

pub mod actions;
pub mod agents;
pub mod call;
pub mod channels;
pub mod conversations;
pub mod deliveries;
pub mod frames;
pub mod idempotency;
pub mod inbox;
pub mod invocations;
pub mod links;
pub mod marks;
pub mod messages;
pub mod nodes;
pub mod rows;
pub mod stamp;
pub mod tables;
pub mod triggers;
pub mod workspaces;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

pub use call::{Answer, Call, Fail, Outcome, Principal};
use rows::{InvocationStatus, Row, Unix};
use tables::{Owner, Tables};

use crate::sys::clock::Now;

/// Messages kept in all workspaces together, and the bytes of what their authors wrote.
pub const MESSAGES_KEPT: usize = 100_000;
pub const MESSAGE_BYTES_KEPT: usize = 256 << 20;
/// Unacknowledged deliveries per agent.
pub const MAILBOX_OPEN: usize = 10_000;
/// An agent without a node goes offline this long after its last authenticated request.
pub const PRESENCE_MS: u64 = 300_000;
/// A node without a heartbeat for this long is dead.
pub const NODE_DEAD_MS: u64 = 45_000;

/// A delivery that nobody has acknowledged for this long is given up; see [`deliveries`].
pub const MAILBOX_TTL_MS: u64 = 7 * 24 * 3_600_000;

/// One connection of a node socket.
pub type LinkId = u64;

/// What leaves towards a node socket.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    Frame { link: LinkId, text: String },
    Close { link: LinkId, code: u16, reason: &'static str },
}

/// What a deadline is for. Fires at most once; a reason that no longer holds is ignored or armed again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    NodeSilent(String),
    AgentQuiet(u64),
    /// A dispatched invocation has had no answer for 30 s.
    Unanswered(String),
    /// A pending invocation is to be offered again.
    Offer(String),
    /// An open invocation has outlived the day.
    Expired(String),
    /// The oldest open delivery of an agent may be too old.
    Mailbox(u64),
}

/// What is known of a node only while it is connected.
#[derive(Debug, Default, Clone)]
struct NodeLife {
    link: Option<LinkId>,
    /// `node.register` was accepted on that link.
    registered: bool,
    handlers_live: bool,
    load: f64,
    active_agents: u64,
    /// Stays after the connection is gone, for the roster.
    last_heartbeat: Option<Unix>,
    heard_mono: u64,
}

#[derive(Debug, Default)]
pub struct Engine {
    t: Tables,
    now: Now,
    ids: stamp::Snowflakes,
    durable: bool,
    lines: Vec<String>,
    out: Vec<Out>,
    timers: BTreeSet<(u64, Timer)>,
    lives: HashMap<String, NodeLife>,
    links: HashMap<LinkId, String>,
    next_link: LinkId,
    /// Requests with an idempotency key that have not been answered yet.
    in_progress: HashMap<(u64, String), String>,
    /// Nodes that an open invocation is not offered to in this round.
    tried: HashMap<String, Vec<String>>,
    /// Nodes that have had an open invocation and lost it.
    had: HashMap<String, BTreeSet<String>>,
}

impl Engine {
    /// An empty engine. `durable`: journal lines are produced.
    pub fn new(durable: bool) -> Engine {
        Engine { durable, ..Engine::default() }
    }

    /// Puts rows of an earlier life back. To be followed by [`Engine::wake`].
    pub fn replay(&mut self, row: Row) {
        self.t.apply(row);
    }

    /// Ends the replay: connections of the earlier life are over, deadlines start again.
    pub fn wake(&mut self, now: Now) {
        self.now = now;
        self.ids.seen(self.t.highest_id);
        let bound: Vec<u64> = self.t.agents.values().filter(|a| a.node.is_some() && a.online).map(|a| a.id).collect();
        for id in bound {
            self.set_online(id, false);
        }
        let quiet: Vec<u64> = self.t.agents.values().filter(|a| a.online).map(|a| a.id).collect();
        for id in quiet {
            self.timers.insert((now.mono + PRESENCE_MS, Timer::AgentQuiet(id)));
        }
        let waiting: Vec<u64> = self.t.mailboxes.iter().filter(|(_, m)| m.open > 0).map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|agent| self.watch_mailbox(agent));
        let open: Vec<String> = self.t.invocations.values().filter(|i| i.status.open()).map(|i| i.id.clone()).collect();
        for id in open {
            if let Some(mut invocation) = self.t.invocations.get(&id).cloned() {
                let age = now.unix.saturating_sub(invocation.created_at);
                let left = invocations::LIFETIME_MS.saturating_sub(age);
                self.timers.insert((now.mono + left, Timer::Expired(id)));
                invocation.status = InvocationStatus::Pending;
                invocation.dispatched_node = None;
                self.put(Row::Invocation(invocation));
            }
        }
    }

    /// Every row that still counts, for compaction.
    pub fn snapshot(&self) -> impl Iterator<Item = Row> + '_ {
        self.t.snapshot()
    }

    /// Sets the time of the calls that follow.
    pub fn at(&mut self, now: Now) -> &mut Engine {
        self.now = now;
        self
    }

    /// Journal lines since the last call, one row each, in order. Empty unless durable.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// Frames and closes since the last call, in order.
    pub fn take_out(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.out)
    }

    /// When [`Engine::fire`] is due next (monotonic ms). `None`: nothing is due, nothing needs to wake.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Carries out every deadline that has passed.
    pub fn fire(&mut self, now: Now) {
        self.now = now;
        while let Some((due, timer)) = self.timers.first().cloned() {
            if due > now.mono {
                return;
            }
            self.timers.remove(&(due, timer.clone()));
            match timer {
                Timer::NodeSilent(node) => self.node_silent(&node),
                Timer::AgentQuiet(agent) => self.agent_quiet(agent),
                Timer::Unanswered(id) => self.invocation_unanswered(&id),
                Timer::Offer(id) => self.dispatch(&id),
                Timer::Expired(id) => self.invocation_expired(&id),
                Timer::Mailbox(agent) => {
                    self.expire_mailbox(agent, MAILBOX_TTL_MS);
                }
            }
        }
    }

    /// Who presents `bearer` on an HTTP request.
    ///
    /// # Errors
    /// 401 with the code that belongs to the kind of the token.
    pub fn authenticate(&mut self, bearer: Option<&str>) -> Result<Principal, Fail> {
        let Some(bearer) = bearer.map(str::trim).filter(|b| !b.is_empty()) else {
            return Err(Fail::new(401, "unauthorized", "Missing Authorization header"));
        };
        match self.t.owners.get(&stamp::digest(bearer)) {
            Some(Owner::Workspace(ws)) => Ok(Principal::Workspace(*ws)),
            Some(Owner::Agent(id)) => {
                let id = *id;
                let ws = self.t.agents.get(&id).map(|a| a.ws).unwrap_or_default();
                if let Some(agent) = self.t.agents.get_mut(&id) {
                    agent.last_seen = self.now.unix;
                }
                Ok(Principal::Agent { ws, agent: id })
            }
            Some(Owner::Node(_)) => {
                Err(Fail::new(401, "node_token_forbidden", "Node tokens are for the node link only"))
            }
            None if bearer.starts_with("at_") => Err(Fail::new(401, "agent_token_invalid", "Invalid agent token")),
            None if bearer.starts_with("nt_") => Err(Fail::new(401, "node_token_invalid", "Invalid node token")),
            None => Err(Fail::new(401, "unauthorized", "Invalid API key")),
        }
    }

    /// Changes the tables and notes the change for the journal.
    fn put(&mut self, row: Row) {
        if self.durable {
            self.lines.push(serde_json::to_string(&row).expect("rows hold no map with non-text keys"));
        }
        self.t.apply(row);
    }

    fn next_id(&mut self) -> u64 {
        self.ids.next(self.now.unix)
    }

    /// Arms a deadline; one for the same reason is replaced.
    fn after(&mut self, delay_ms: u64, timer: Timer) {
        self.timers.retain(|(_, armed)| *armed != timer);
        self.timers.insert((self.now.mono + delay_ms, timer));
    }

    /// Deadlines whose reason is gone.
    fn disarm(&mut self, mut reason: impl FnMut(&Timer) -> bool) {
        self.timers.retain(|(_, timer)| !reason(timer));
    }
}
