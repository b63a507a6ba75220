//! The pure broker. It reads no clock, file, socket or random source: time and a seed of ids arrive with the inputs, what
//! should happen leaves as effects.
//!
//! One record owns a delivery from the frame to its end (`roster::Delivery`, in exactly one agent's queue), one cursor per
//! agent identity decides what may be acknowledged (`book::Cursor`). A delivery leaves by one of four exits: read by the
//! program, dead-lettered, recognised as seen, or handed back unacknowledged.

mod answers;
pub mod book;
mod calls;
mod channels;
pub mod dead;
mod delivery;
mod health;
mod hold;
mod ids;
pub mod insights;
mod invoke;
mod link;
mod lives;
mod manifest;
pub mod mutants;
pub mod payload;
mod pending;
pub mod ports;
mod proof;
mod queue;
mod receipts;
mod registration;
mod restart;
mod results;
pub mod roster;
mod send;
mod session;
mod sidecar;
mod spawn;
mod stop;
mod supervision;
mod threads;
mod timers;
mod workspaces;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use book::Cursor;
use ports::{
    AgentCommand, ApiAnswer, Config, Effect, EngineCall, Generation, Input, Ms, Now, Record, SendRequest, Ticket,
    WorkspaceNo,
};
use timers::{Timer, Timers};

use crate::wire::events::Event;

pub use health::{AgentFacts, Health};
pub use pending::Pending;

/// What an engine call was for.
#[derive(Debug)]
enum Awaited {
    MintToken,
    Register(Generation),
    Bind { generation: Generation, agent_id: String, name: String },
    LookUp(Generation),
    Membership { generation: Generation, channel: String, joins: bool },
    Publish { asker: Ticket, workspace: WorkspaceNo, request: SendRequest },
    Presence,
}

/// The broker's whole state.
pub struct Broker {
    config: Config,
    now: Now,
    ids: ids::Ids,
    timers: Timers,
    link: link::Link,
    roster: roster::Roster,
    /// Cursors by agent id, or by `name:<name>` while the engine gave none.
    book: BTreeMap<String, Cursor>,
    /// Cursors of agents that are not here, oldest first, so that their number stays bounded.
    strangers: VecDeque<String>,
    invocations: invoke::Invocations,
    sidecar: sidecar::Sidecar,
    supervisor: supervision::Supervisor,
    dead: dead::DeadLetters,
    receipts: receipts::Receipts,
    /// Names of agents that were here and are gone for good, oldest first.
    tombstones: VecDeque<String>,
    /// `agent.register` requests that somebody waits for.
    requests: BTreeMap<String, Generation>,
    /// Requests that nobody waits for any more: their late success is undone.
    abandoned: VecDeque<registration::Abandoned>,
    /// Agents whose messages stay with the engine for their next life: the first number of each.
    left_behind: BTreeMap<String, u64>,
    /// Messages that nobody will repeat, kept for agents that are not here (yet).
    restored: Vec<pending::Restored>,
    /// Since when they wait.
    restored_since: Ms,
    /// Counts what changes the messages that the journal keeps.
    pending_changes: u64,
    calls: BTreeMap<Ticket, Awaited>,
    /// API calls that an agent's thread answers.
    terminal_calls: BTreeMap<Ticket, Generation>,
    /// Which of them change a model, and to which.
    model_calls: BTreeMap<Ticket, String>,
    crashes: insights::Crashes,
    threads: threads::Threads,
    /// The last one given to a delivery mode.
    mode_revisions: u64,
    last_ticket: Ticket,
    lease_until: Option<Ms>,
    stopping: Option<stop::Stopping>,
    counters: health::Counters,
    logged_kinds: BTreeSet<String>,
    /// This turn's effects, and what its end still owes.
    out: Vec<Effect>,
    owes_heartbeat: bool,
    owes_inventory: bool,
}

impl Broker {
    /// `restored` is what the journal of an earlier life holds, in its order.
    pub fn new(config: Config, seed: [u8; 32], restored: Vec<Record>) -> Broker {
        let link = link::Link::new(config.node_name.clone(), config.node_token.clone());
        let mut broker = Broker {
            config,
            now: Now::default(),
            ids: ids::Ids::new(seed),
            timers: Timers::default(),
            link,
            roster: roster::Roster::default(),
            book: BTreeMap::new(),
            strangers: VecDeque::new(),
            invocations: invoke::Invocations::default(),
            sidecar: sidecar::Sidecar::default(),
            supervisor: supervision::Supervisor::default(),
            dead: dead::DeadLetters::default(),
            receipts: receipts::Receipts::default(),
            tombstones: VecDeque::new(),
            requests: BTreeMap::new(),
            abandoned: VecDeque::new(),
            left_behind: BTreeMap::new(),
            restored: Vec::new(),
            restored_since: 0,
            pending_changes: 0,
            calls: BTreeMap::new(),
            terminal_calls: BTreeMap::new(),
            model_calls: BTreeMap::new(),
            crashes: insights::Crashes::default(),
            threads: threads::Threads::default(),
            mode_revisions: 0,
            last_ticket: 0,
            lease_until: None,
            stopping: None,
            counters: health::Counters::default(),
            logged_kinds: BTreeSet::new(),
            out: Vec::new(),
            owes_heartbeat: false,
            owes_inventory: false,
        };
        broker.restore(restored);
        broker
    }

    /// Handles one input: everything that follows from it, in order.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Effect> {
        self.now = now;
        self.run_timers();
        match input {
            Input::Start => self.start(),
            Input::Tick => {}
            Input::Node(note) => self.on_node(note),
            Input::Agent { generation, note } => self.on_agent(generation, note),
            Input::Engine { ticket, outcome } => self.on_engine(ticket, outcome),
            Input::Api { ticket, call } => self.on_api(ticket, *call),
            Input::Sidecar { generation, note } => self.on_sidecar(generation, note),
            Input::Supervised(note) => self.on_supervised(note),
            Input::Recalled { generation, block } => self.on_recalled(generation, block),
            Input::JournalFailed { error } => self.log(
                log::Level::Error,
                format!("the journal cannot be written ({error}); acknowledgements wait until it can"),
            ),
            Input::Stop { reason } => self.stop(reason),
        }
        self.end_turn();
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is due, on the monotonic scale.
    pub fn next_deadline(&self) -> Option<Ms> {
        self.timers.next()
    }

    fn start(&mut self) {
        if !self.config.persist {
            self.renew_lease();
        }
        self.timers.set(Timer::OwnPresence, self.now.mono + OWN_PRESENCE_MS);
        self.wait_for_agents();
        self.connect();
    }

    fn run_timers(&mut self) {
        while let Some(timer) = self.timers.pop_due(self.now.mono) {
            match timer {
                Timer::Reconnect => self.connect(),
                Timer::Heartbeat => self.on_heartbeat_due(),
                Timer::OwnPresence => {
                    self.timers.set(Timer::OwnPresence, self.now.mono + OWN_PRESENCE_MS);
                    for workspace in self.each_workspace() {
                        self.call_engine(EngineCall::Heartbeat { workspace }, Awaited::Presence);
                    }
                }
                Timer::Strays => self.bury_strays(),
                Timer::Lease => self.stop("owner lease expired"),
                Timer::Restored => self.on_restored_due(),
                Timer::Spawn(generation) => self.on_spawn_due(generation),
                Timer::Register(generation) => self.on_register_timeout(generation),
                Timer::LinkGrace(generation) => self.register_otherwise(generation, "node_control_disconnected"),
                Timer::Retry(generation) => self.on_retry(generation),
                Timer::Restart(generation) => self.restart(generation),
                Timer::Bind(generation) => self.bind_again(generation),
                Timer::Gap(key) => self.on_gap_due(&key),
                Timer::Handler(id) => self.on_handler_due(&id),
                Timer::SidecarStart => self.on_sidecar_start_due(),
                Timer::SidecarHealthy => self.on_sidecar_healthy(),
                Timer::TerminalCall(ticket) => self.on_terminal_call_due(ticket),
                Timer::Stop => self.on_stop_due(),
            }
        }
    }

    /// What several causes of one turn ask for is sent once, at its end.
    fn end_turn(&mut self) {
        // Those that had to wait for a registration by HTTP.
        self.send_deregisters();
        if std::mem::take(&mut self.owes_inventory) {
            self.send_inventory();
        }
        if std::mem::take(&mut self.owes_heartbeat) {
            self.send_heartbeat();
        }
        self.send_acks();
        self.after_turn_of_stop();
    }

    fn renew_lease(&mut self) {
        let until = self.now.mono + LEASE_MS;
        self.lease_until = Some(until);
        self.timers.set(Timer::Lease, until);
    }

    fn event(&mut self, event: Event) {
        self.receipts.see(&event, self.now.unix);
        self.out.push(Effect::Event(event));
    }

    fn log(&mut self, level: log::Level, text: impl Into<String>) {
        self.out.push(Effect::Log { level, text: text.into() });
    }

    fn journal(&mut self, record: Record) {
        self.out.push(Effect::Journal(record));
    }

    fn command(&mut self, generation: Generation, command: AgentCommand) {
        self.out.push(Effect::Agent { generation, command });
    }

    fn reply(&mut self, ticket: Ticket, answer: ApiAnswer) {
        self.out.push(Effect::Reply { ticket, answer });
    }

    fn call_engine(&mut self, call: EngineCall, awaited: Awaited) {
        self.last_ticket += 1;
        self.calls.insert(self.last_ticket, awaited);
        self.out.push(Effect::Engine { ticket: self.last_ticket, call });
    }

    fn membership_changed(&mut self) {
        self.owes_inventory = true;
        self.owes_heartbeat = true;
    }
}

/// The broker's own agent tells the engine that it lives: agents age out after 5 minutes.
const OWN_PRESENCE_MS: Ms = 120_000;
/// An ephemeral broker whose owner does not renew ends after this long.
pub const LEASE_MS: Ms = 120_000;
