//! The agents of this node: one record per life of an agent, which owns everything that dies with it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::ports::{
    AgentCommand, Generation, InboundMode, Injection, Ms, Secret, SpawnRequest, StoredDelivery, Ticket,
};
use crate::wire::node::{Deliver, DeliveryMode};

/// Held API messages per agent; one more evicts the oldest of them (9.1.6).
pub const HELD_API_MAX: usize = 256;
/// Engine deliveries queued per agent; beyond that frames stay unacknowledged at the engine until the queue has drained.
pub const QUEUE_MAX: usize = 1024;
/// Bytes of message bodies queued per agent, with the same policy.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Failed injections before a delivery is dead.
pub const ATTEMPTS_MAX: u32 = 10;

/// Where a message comes from, and so what its end must be told to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Numbered by the engine: acknowledged when disposed.
    Numbered { book: String, seq: u64, msg_id: String },
    /// Of the engine, never repeated by it: journalled until disposed.
    Unrepeated { book: String, key: String },
    /// Numbered, but below what was acknowledged when it came: both of the former.
    Late { book: String, seq: u64, msg_id: String },
    /// `POST /api/send`: its caller has been told that it is on its way, so it is journalled until disposed.
    Api { book: String, id: String },
    /// The task given at spawn.
    Task,
    /// What an earlier session has left; asked for again, it comes again.
    Recalled,
}

impl Source {
    /// Of the local API, for the agent of that name whatever its identity: whoever wrote there wrote to the name.
    pub fn of_api(agent: &str, delivery_id: &str) -> Source {
        Source::Api { book: super::delivery::book_key("", agent), id: delivery_id.to_string() }
    }

    /// Book and key under which the journal keeps the message until it is disposed.
    pub fn stored_under(&self) -> Option<(&str, String)> {
        match self {
            Source::Unrepeated { book, key } => Some((book, key.clone())),
            Source::Late { book, seq, msg_id } => Some((book, format!("late|{seq}|{msg_id}"))),
            Source::Api { book, id } => Some((book, format!("api|{id}"))),
            Source::Numbered { .. } | Source::Task | Source::Recalled => None,
        }
    }

    /// The source that was stored so.
    pub fn restored(book: String, key: String) -> Source {
        if let Some(id) = key.strip_prefix("api|") {
            return Source::Api { book, id: id.to_string() };
        }
        let late = key.strip_prefix("late|").and_then(|rest| rest.split_once('|'));
        match late.and_then(|(seq, msg_id)| Some((seq.parse().ok()?, msg_id.to_string()))) {
            Some((seq, msg_id)) => Source::Late { book, seq, msg_id },
            None => Source::Unrepeated { book, key },
        }
    }
}

/// One message on its way to one agent: the only record that owns it.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub delivery_id: String,
    pub event_id: String,
    pub from: String,
    pub target: String,
    pub body: String,
    pub thread_id: Option<String>,
    pub priority: u8,
    pub mode: DeliveryMode,
    pub workspace: Option<String>,
    pub source: Source,
    pub queued_at_unix: Ms,
    pub attempts: u32,
    pub last_error: Option<String>,
    /// Passes the hold: the initial task, and what an explicit flush found waiting.
    pub exempt: bool,
}

impl Delivery {
    pub fn is_engine(&self) -> bool {
        matches!(self.source, Source::Numbered { .. } | Source::Unrepeated { .. } | Source::Late { .. })
    }

    pub fn is_api(&self) -> bool {
        matches!(self.source, Source::Api { .. })
    }

    pub fn injection(&self) -> AgentCommand {
        AgentCommand::Inject(Injection {
            delivery_id: self.delivery_id.clone(),
            event_id: self.event_id.clone(),
            from: self.from.clone(),
            target: self.target.clone(),
            body: self.body.clone(),
            workspace: self.workspace.clone(),
            mode: self.mode,
            exempt: self.exempt,
        })
    }

    pub fn stored(&self) -> StoredDelivery {
        StoredDelivery {
            delivery_id: self.delivery_id.clone(),
            event_id: self.event_id.clone(),
            from: self.from.clone(),
            target: self.target.clone(),
            body: self.body.clone(),
            thread_id: self.thread_id.clone(),
            priority: self.priority,
            mode: self.mode,
            queued_at_ms: self.queued_at_unix,
        }
    }
}

/// How far one life of an agent has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The agent's thread looks for the program.
    Preparing,
    /// `agent.register` waits for the link (`sent: false`) or for its answer.
    Registering {
        request: String,
        sent: bool,
    },
    /// Registration by HTTP, then the bind.
    HttpRegistering,
    Binding,
    /// The program is being started.
    Starting,
    Running,
    /// Being ended; answered by `Exited`.
    Releasing,
    /// Its program has ended and is started again after the cooldown. No thread belongs to it.
    Cooling,
}

/// Who asked for the spawn and still waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    Api(Ticket),
    Invocation(String),
}

/// The delivery handed to the agent's thread.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlight {
    pub delivery: Delivery,
    pub typed: bool,
}

/// The session that the terminal's size belongs to, and when it was last heard of (monotonic).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeOwner {
    pub session: String,
    pub seen: Ms,
}

#[derive(Debug)]
pub struct Agent {
    /// With it the agent reports its results.
    pub result_token: Option<Secret>,
    pub generation: Generation,
    pub name: String,
    /// Of its CLI: as asked for, or as its outfit made it. What the engine is told is `request.session_ref`.
    pub session_id: Option<String>,
    pub request: SpawnRequest,
    pub phase: Phase,
    /// `None` once answered.
    pub asker: Option<Asker>,
    pub from_engine: bool,
    pub invocation_id: Option<String>,
    pub agent_id: Option<String>,
    pub token: Option<Secret>,
    pub pre_registered: bool,
    /// The engine can deliver to it through this node.
    pub bound: bool,
    pub warning: Option<String>,
    pub channels: Vec<String>,
    pub mode: InboundMode,
    /// Changes with the mode, and is never the same in two lives.
    pub mode_revision: u64,
    /// Who has claimed the terminal's size.
    pub size_owner: Option<SizeOwner>,
    pub pid: Option<u32>,
    /// Its program has been started once: messages may be taken over for it.
    pub ran: bool,
    pub ready: bool,
    pub started_at_unix: Ms,
    pub last_activity_unix: Ms,
    pub state: &'static str,
    /// The initial task, until the terminal is ready for it.
    pub task: Option<Delivery>,
    pub queue: VecDeque<Delivery>,
    pub in_flight: Option<InFlight>,
    /// Read (or typed) and waiting for the echo window, for events only.
    pub verifying: Vec<Delivery>,
    /// Delivery ids whose echo came before the proof that they were read.
    pub verified_early: Vec<String>,
    /// A failed injection waits for its next try.
    pub backing_off: bool,
    /// Its silence was not told, because a message was on its way. Unix milliseconds.
    pub silent_since_unix: Option<Ms>,
    /// Frames that came before the registration settled.
    pub early: VecDeque<Deliver>,
    /// More came than is kept: the engine is asked for it when the agent runs.
    pub early_overflowed: bool,
    /// The engine is asked for the id of an agent that came with its own token. Its frames wait: they may still mean the
    /// identity that bore the name before.
    pub looking_up: bool,
    pub exit_reason: Option<&'static str>,
    /// Told just before its end.
    pub last_words: super::ports::LastWords,
    pub restarts: super::restart::Restarts,
    pub release_waiters: Vec<Asker>,
    /// In the words of who asked first.
    pub release_reason: Option<String>,
    /// What the session itself has said of its state.
    pub summary: Option<String>,
    /// What its screen says.
    pub verdict: super::ports::Verdict,
    /// Percent of its context window that are left, as its CLI has said last.
    pub context_pct: Option<u8>,
}

impl Agent {
    /// It runs; without a terminal there is no process before the first message.
    pub fn has_begun(&self) -> bool {
        self.pid.is_some() || (self.request.headless && self.ran)
    }

    /// May take a message from the queue now.
    pub fn can_type(&self) -> bool {
        // What waited through a restart makes no sense to a program that does not know its task yet; who takes one message
        // only takes its task.
        let task_first = (self.restarts.total > 0 || self.request.headless) && self.task.is_some();
        self.phase == Phase::Running && self.in_flight.is_none() && !self.is_ending() && !task_first
    }

    /// Its program is on its way out: nothing more is typed into it, and nothing that fails now has failed by itself.
    pub fn is_ending(&self) -> bool {
        self.phase == Phase::Releasing || self.exit_reason.is_some()
    }

    /// Something waits for it that is not held for a human.
    pub fn is_written_to(&self) -> bool {
        let waits = self.mode == InboundMode::AutoInject && !self.queue.is_empty();
        waits || self.in_flight.is_some() || !self.verifying.is_empty()
    }

    pub fn queued_bytes(&self) -> usize {
        self.queue.iter().map(|delivery| delivery.body.len()).sum()
    }

    /// No room for one more delivery of the engine.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_MAX || (self.queue.len() > 16 && self.queued_bytes() >= QUEUE_BYTES_MAX)
    }

    /// Takes the next message that may be typed: what steers first, then in order of arrival.
    pub fn next_to_type(&mut self) -> Option<Delivery> {
        let at = self.next_at()?;
        self.queue.remove(at)
    }

    fn next_at(&self) -> Option<usize> {
        let held = self.mode == InboundMode::ManualFlush;
        let steers = |delivery: &Delivery| delivery.mode == DeliveryMode::Steer;
        // What failed has its pause; something new that steers does not wait for that.
        let paused = |delivery: &Delivery| self.backing_off && (delivery.attempts > 0 || !steers(delivery));
        let passes = |delivery: &Delivery| (!held || delivery.exempt) && !paused(delivery);
        let first = self.queue.iter().position(|delivery| passes(delivery) && steers(delivery));
        first.or_else(|| self.queue.iter().position(passes))
    }

    /// What is next to be typed steers.
    pub fn next_steers(&self) -> bool {
        self.next_at().is_some_and(|at| self.queue[at].mode == DeliveryMode::Steer)
    }

    /// In the engine's inventory: runs, or will again, and the engine knows it.
    pub fn is_listed(&self) -> bool {
        // The listing completes the invocation of its spawn at the engine, so that is answered first.
        let by_invocation = matches!(self.asker, Some(Asker::Invocation(_)));
        self.ran && !by_invocation && self.phase != Phase::Releasing && self.bound && self.agent_id.is_some()
    }

    /// The message that it was blocked on is out of the way.
    pub fn unblock(&mut self) {
        if self.state == "blocked_on_send" {
            self.state = "working";
        }
    }

    /// Counts as live load: a program runs.
    pub fn is_active(&self) -> bool {
        self.pid.is_some()
    }

    /// How many [`Agent::outstanding`] are, without walking them: asked after every turn.
    pub fn outstanding_count(&self) -> usize {
        usize::from(self.in_flight.is_some())
            + self.queue.len()
            + usize::from(self.task.is_some())
            + self.verifying.len()
    }

    /// Everything that waits for this agent or for its proof.
    pub fn outstanding(&self) -> impl Iterator<Item = &Delivery> {
        self.in_flight
            .iter()
            .map(|flight| &flight.delivery)
            .chain(self.queue.iter())
            .chain(self.task.iter())
            .chain(self.verifying.iter())
    }
}

/// All agents, by generation; at most one per name.
#[derive(Debug, Default)]
pub struct Roster {
    agents: BTreeMap<Generation, Agent>,
    by_name: HashMap<String, Generation>,
    last_generation: Generation,
}

impl Roster {
    /// Enters a new life. The caller has checked that the name is free.
    pub fn insert(&mut self, make: impl FnOnce(Generation) -> Agent) -> Generation {
        self.last_generation += 1;
        let agent = make(self.last_generation);
        self.by_name.insert(agent.name.clone(), agent.generation);
        self.agents.insert(agent.generation, agent);
        self.last_generation
    }

    pub fn remove(&mut self, generation: Generation) -> Option<Agent> {
        let agent = self.agents.remove(&generation)?;
        self.by_name.remove(&agent.name);
        Some(agent)
    }

    /// Gives an agent a new life: what its last one still says is dropped from now on.
    pub fn renew(&mut self, generation: Generation) -> Option<&mut Agent> {
        let agent = self.remove(generation)?;
        let renewed = self.insert(|generation| Agent { generation, ..agent });
        self.agents.get_mut(&renewed)
    }

    pub fn get(&self, generation: Generation) -> Option<&Agent> {
        self.agents.get(&generation)
    }

    pub fn get_mut(&mut self, generation: Generation) -> Option<&mut Agent> {
        self.agents.get_mut(&generation)
    }

    pub fn named(&self, name: &str) -> Option<&Agent> {
        self.by_name.get(name).and_then(|generation| self.agents.get(generation))
    }

    pub fn generation_of(&self, name: &str) -> Option<Generation> {
        self.by_name.get(name).copied()
    }

    pub fn with_id(&self, agent_id: &str) -> Option<&Agent> {
        self.agents.values().find(|agent| agent.agent_id.as_deref() == Some(agent_id))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    pub fn generations(&self) -> Vec<Generation> {
        self.agents.keys().copied().collect()
    }

    pub fn len(&self) -> usize {
        self.agents.len()
    }

    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    pub fn active(&self) -> usize {
        self.agents.values().filter(|agent| agent.is_active()).count()
    }
}
