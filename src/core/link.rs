//! Enrolment: the node socket from back-off to heartbeat. The reader and the writer thread only carry out; when to
//! connect, with which token, and what a refusal means is decided here.

mod inventory;
mod owed;
mod refusal;

use std::collections::VecDeque;

use log::Level;
use serde_json::Value;

use super::manifest::Face;
use super::mutants::{Mutant, planted};
use super::ports::{LinkGeneration, Ms, NodeCommand, NodeNote, Secret};
use super::timers::Timer;
use super::{Broker, Effect};
use crate::wire::node::{
    ActionOutcome, ActionResult, AgentDeregister, Deliver, FromEngine, NodeHeartbeat, NodeRegister, ToEngine,
};

/// 12 s; the engine counts a node as dead after 45 s.
pub const HEARTBEAT_MS: Ms = 12_000;
const LADDER_S: [u64; 6] = [1, 2, 4, 8, 16, 30];
/// A connection that was open this long, and accepted, starts the ladder anew.
const HEALTHY_MS: Ms = 10_000;
const SUPERSEDED_RETRY_MS: Ms = 30_000;
/// What an engine that answers at all has not answered for this long, it will not: the connection is given up.
const ANSWER_MS: Ms = 2 * HEARTBEAT_MS;
/// Types of the last frames sent that are named when the engine calls one of them unusable.
const LAST_SENT: usize = 8;
/// Results and deregistrations kept while the link is down.
const BACKLOG_MAX: usize = 1024;
/// Inventories whose answer is awaited; of more the oldest is given up.
const INVENTORIES_OPEN_MAX: usize = 64;

/// What the operator is told of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkState {
    #[default]
    Connecting,
    Online,
    AuthRejected,
    Superseded,
    Closing,
}

impl LinkState {
    pub fn as_str(self) -> &'static str {
        match self {
            LinkState::Connecting => "connecting",
            LinkState::Online => "online",
            LinkState::AuthRejected => "auth_rejected",
            LinkState::Superseded => "superseded",
            LinkState::Closing => "closing",
        }
    }
}

/// A deregistration that no later answer on the same connection has proved to be processed.
#[derive(Debug)]
struct PendingDeregister {
    frame: AgentDeregister,
    /// The connection and the inventory number at the time of sending.
    sent: Option<(LinkGeneration, u64)>,
}

/// An inventory whose answer is awaited.
#[derive(Debug)]
struct OpenInventory {
    id: String,
    number: u64,
    sent_at: Ms,
}

#[derive(Debug)]
pub struct Link {
    pub state: LinkState,
    /// The node's own name; a manifest may override it.
    name: String,
    pub(super) face: Face,
    token: Secret,
    generation: LinkGeneration,
    /// The 101 has come and the end has not.
    open: bool,
    opened_at: Ms,
    /// The engine answers `node.register`; older ones do not.
    pub answers_register: bool,
    /// `node.register` was accepted on this connection.
    pub registered: bool,
    /// Accepted at least once in this life.
    pub ever_registered: bool,
    pub last_error: Option<String>,
    attempt: usize,
    refused: u32,
    identity_refused: bool,
    /// A new token has been asked for and not come yet; and the back-off is over, so that its coming connects.
    minting: bool,
    waits_for_mint: bool,
    /// The next connection needs another token first.
    mint_first: bool,
    renamed: bool,
    register_id: String,
    register_sent_at: Ms,
    /// Inventories sent and answered in this life, and those on the way.
    inventories_sent: u64,
    inventories_open: Vec<OpenInventory>,
    /// This engine answers inventories.
    answers_inventory: bool,
    last_sent: VecDeque<&'static str>,
    /// The inventory of this connection has been answered at least once.
    pub settled: bool,
    /// An inventory of this life has been answered, or was not in time.
    ever_settled: bool,
    /// Frames for agents of an earlier life.
    strays: Vec<Deliver>,
    results: Vec<ActionResult>,
    deregisters: Vec<PendingDeregister>,
}

impl Link {
    pub fn new(name: String, token: Secret) -> Link {
        Link {
            state: LinkState::Connecting,
            name,
            face: Face::default(),
            token,
            generation: 0,
            open: false,
            opened_at: 0,
            answers_register: false,
            registered: false,
            ever_registered: false,
            last_error: None,
            attempt: 0,
            refused: 0,
            identity_refused: false,
            minting: false,
            waits_for_mint: false,
            mint_first: false,
            renamed: false,
            register_id: String::new(),
            register_sent_at: 0,
            inventories_sent: 0,
            inventories_open: Vec::new(),
            answers_inventory: false,
            last_sent: VecDeque::new(),
            settled: false,
            ever_settled: false,
            strays: Vec::new(),
            results: Vec::new(),
            deregisters: Vec::new(),
        }
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn node_name(&self) -> &str {
        self.face.name(&self.name)
    }

    /// The name by which the engine knows this node: one that it has not accepted yet leads nowhere there.
    pub fn known_name(&self) -> &str {
        self.face.known_name(&self.name)
    }

    /// The report that this agent is released waits for a connection.
    pub(super) fn owes_release_of(&self, name: &str) -> bool {
        self.results.iter().any(|result| match &result.outcome {
            ActionOutcome::Output(output) => {
                output.get("released").is_some() && output.get("name") == Some(&name.into())
            }
            ActionOutcome::Error(_) => false,
        })
    }

    pub(super) fn ever_settled(&self) -> bool {
        self.ever_settled
    }

    pub(super) fn settle_once(&mut self) {
        self.ever_settled = true;
    }

    /// Beyond the bound a stray is not kept: the engine has it.
    pub(super) fn keep_stray(&mut self, frame: Deliver, max: usize) {
        if self.strays.len() < max {
            self.strays.push(frame);
        }
    }

    pub(super) fn take_strays(&mut self) -> Vec<Deliver> {
        std::mem::take(&mut self.strays)
    }
}

impl Broker {
    pub(super) fn connect(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        if std::mem::take(&mut self.link.mint_first) {
            self.mint_token();
        }
        if self.link.minting {
            // The outcome connects: with the refused token there is nothing to win.
            self.link.waits_for_mint = true;
            return;
        }
        // The end of the last one may not have been told in time; the next connection replaces it.
        self.connection_ended();
        self.registrations_disconnected();
        self.link.generation += 1;
        if self.link.state == LinkState::Online {
            self.link.state = LinkState::Connecting;
        }
        self.out.push(Effect::Node(NodeCommand::Connect {
            generation: self.link.generation,
            token: self.link.token.clone(),
        }));
    }

    fn backoff(&mut self) -> Ms {
        let step = LADDER_S[self.link.attempt.min(LADDER_S.len() - 1)] * 1000;
        self.link.attempt += 1;
        (step as f64 * (0.8 + 0.4 * self.ids.fraction())) as Ms
    }

    fn reconnect_in(&mut self, delay: Ms) {
        if self.stopping.is_none() {
            self.timers.set(Timer::Reconnect, self.now.mono + delay);
        }
    }

    pub(super) fn send(&mut self, frame: ToEngine) {
        if self.link.open {
            if self.link.last_sent.len() >= LAST_SENT {
                self.link.last_sent.pop_front();
            }
            self.link.last_sent.push_back(frame.kind());
            self.out.push(Effect::Node(NodeCommand::Send { generation: self.link.generation, frame }));
        }
    }

    pub(super) fn on_node(&mut self, note: NodeNote) {
        let generation = match &note {
            NodeNote::Opened { generation }
            | NodeNote::Refused { generation, .. }
            | NodeNote::Frame { generation, .. }
            | NodeNote::Garbage { generation, .. }
            | NodeNote::Closed { generation, .. } => *generation,
        };
        if generation != self.link.generation {
            return;
        }
        match note {
            NodeNote::Opened { .. } => self.on_opened(),
            NodeNote::Refused { why, .. } => self.on_refused(why),
            NodeNote::Closed { reason, .. } => self.on_closed(&reason),
            NodeNote::Garbage { error, .. } => {
                self.counters.garbage_frames += 1;
                self.log(
                    Level::Warn,
                    format!("the engine sent what is no usable frame ({error}); the connection stays"),
                );
            }
            NodeNote::Frame { frame, .. } => self.on_frame(frame),
        }
    }

    fn on_opened(&mut self) {
        self.link.open = true;
        self.link.opened_at = self.now.mono;
        self.link.registered = false;
        self.link.settled = false;
        self.link.refused = 0;
        self.link.inventories_open.clear();
        self.send_register();
        if self.stopping.is_some() {
            // What the stop still has to say needs a registered node, and nothing else does.
            self.send_results();
            self.send_acks();
            self.send_deregisters();
            return;
        }
        // An empty inventory waits for the answer, so that it clears what an earlier life left.
        if self.roster.iter().any(|agent| agent.is_listed()) {
            self.send_inventory();
        }
        self.send_heartbeat();
        self.timers.set(Timer::Heartbeat, self.now.mono + HEARTBEAT_MS);
        self.send_results();
        // An acknowledgement that was lost with the last connection is owed again when the engine repeats its frame; said
        // now, it could hit what has been opened at the engine since.
        self.send_acks();
        self.send_deregisters();
        self.send_waiting_registrations();
    }

    pub(super) fn send_register(&mut self) {
        let id = self.ids.fresh("node_register_");
        self.link.register_id = id.clone();
        self.link.register_sent_at = self.now.mono;
        let declared = self.link.face.declared();
        let frame = NodeRegister {
            id: Some(id),
            name: self.link.node_name().to_string(),
            node_id: self.config.node_id.clone(),
            capabilities: declared.capabilities.clone(),
            max_agents: declared.max_agents,
            tags: declared.tags.clone(),
            version: self.link.face.version(&self.config.node_version).to_string(),
            resume_cursor: None,
        };
        self.send(ToEngine::NodeRegister(frame));
    }

    pub(super) fn send_heartbeat(&mut self) {
        let active_agents = self.roster.active() as u64;
        let declared = self.link.face.declared();
        let frame = NodeHeartbeat {
            id: None,
            name: self.link.node_name().to_string(),
            node_id: self.config.node_id.clone(),
            capabilities: declared.capabilities.clone(),
            max_agents: declared.max_agents,
            version: self.link.face.version(&self.config.node_version).to_string(),
            load: declared.load(active_agents),
            active_agents,
            handlers_live: self.sidecar.handlers_live(),
        };
        self.send(ToEngine::NodeHeartbeat(frame));
    }

    pub(super) fn on_heartbeat_due(&mut self) {
        if !self.link.open {
            return;
        }
        if let Some(what) = self.unanswered() {
            self.give_up_connection(what);
            return;
        }
        self.timers.set(Timer::Heartbeat, self.now.mono + HEARTBEAT_MS);
        self.owes_heartbeat = true;
        self.out.push(Effect::Node(NodeCommand::Ping { generation: self.link.generation }));
    }

    /// What the engine owes an answer to for too long: its socket may live on while nobody handles this node any more.
    fn unanswered(&self) -> Option<&'static str> {
        let late = |sent_at: Ms| self.now.mono.saturating_sub(sent_at) >= ANSWER_MS;
        if !self.link.registered && late(self.link.register_sent_at) {
            return Some("the engine does not answer node.register");
        }
        let oldest = self.link.inventories_open.first().map(|open| open.sent_at);
        (self.link.answers_inventory && oldest.is_some_and(late))
            .then_some("the engine no longer answers inventory.sync")
    }

    fn give_up_connection(&mut self, why: &str) {
        self.close_socket();
        self.connection_ended();
        self.registrations_disconnected();
        if self.link.state == LinkState::Online {
            self.link.state = LinkState::Connecting;
        }
        self.retry_later(why);
    }

    fn connection_ended(&mut self) {
        let was_open = std::mem::take(&mut self.link.open);
        let healthy =
            was_open && self.link.registered && self.now.mono.saturating_sub(self.link.opened_at) >= HEALTHY_MS;
        if healthy {
            self.link.attempt = 0;
        }
        self.link.registered = false;
        self.link.settled = false;
        self.link.inventories_open.clear();
        self.timers.cancel(&Timer::Heartbeat);
        self.forget_gaps();
    }

    fn on_closed(&mut self, reason: &str) {
        self.connection_ended();
        if self.link_closed_in_stop() {
            return;
        }
        self.registrations_disconnected();
        if reason == "superseded" {
            self.link.state = LinkState::Superseded;
            self.link.last_error = Some("node identity in use elsewhere".into());
            self.log(
                Level::Error,
                "node link: node identity in use elsewhere (another broker took this node's socket)",
            );
            self.reconnect_in(if planted(Mutant::SupersededInHaste) { 1_000 } else { SUPERSEDED_RETRY_MS });
            return;
        }
        if self.link.state == LinkState::Online {
            self.link.state = LinkState::Connecting;
        }
        // A refused identity has set its own time already.
        if !self.timers.is_set(&Timer::Reconnect) {
            self.retry_later(&format!("connection ended: {reason}"));
        }
    }

    fn on_frame(&mut self, frame: FromEngine) {
        match frame {
            FromEngine::Deliver(frame) => {
                self.accepted_silently();
                self.on_deliver(frame);
            }
            FromEngine::ActionInvoke(invoke) => {
                self.accepted_silently();
                self.on_invoke(invoke);
            }
            FromEngine::Ping | FromEngine::ContextUpdate => {}
            FromEngine::Reply { id, data } => self.on_reply(&id, data),
            FromEngine::Error { id, code, message } => self.on_error(&id, &code, &message),
            FromEngine::Unknown { kind } => {
                if self.logged_kinds.len() < 64 && self.logged_kinds.insert(format!("frame {kind}")) {
                    self.log(Level::Info, format!("frames of type {kind:?} are not known here and are ignored"));
                }
            }
        }
    }

    /// Engines that answer no `node.register` show its acceptance by what presupposes it.
    fn accepted_silently(&mut self) {
        if !self.link.registered {
            self.on_registered();
        }
    }

    fn on_registered(&mut self) {
        let first = !std::mem::replace(&mut self.link.registered, true);
        self.link.ever_registered = true;
        self.link.identity_refused = false;
        if self.stopping.is_none() {
            self.link.state = LinkState::Online;
        }
        self.link.last_error = None;
        if first && !self.roster.iter().any(|agent| agent.is_listed()) {
            self.owes_inventory = true;
        }
    }

    fn on_reply(&mut self, id: &str, data: Value) {
        if id == self.link.register_id {
            self.link.answers_register = true;
            self.link.face.accept();
            self.on_registered();
            self.replay_begins();
            return;
        }
        if let Some(at) = self.link.inventories_open.iter().position(|open| open.id == id) {
            let number = self.link.inventories_open.remove(at).number;
            self.link.answers_inventory = true;
            self.link.settled = true;
            self.link.ever_settled = true;
            let generation = self.link.generation;
            // Frames are processed in order: what was sent before this inventory is done.
            self.link.deregisters.retain(|pending| !pending.sent.is_some_and(|(g, n)| g == generation && n < number));
            self.release_strays();
            return;
        }
        self.on_register_reply(id, &data);
    }

    fn on_error(&mut self, id: &str, code: &str, message: &str) {
        if id == self.link.register_id && !id.is_empty() {
            self.on_register_refused(code, message);
            return;
        }
        if let Some(at) = self.link.inventories_open.iter().position(|open| open.id == id) {
            self.link.inventories_open.remove(at);
            self.log(Level::Error, format!("the engine refused the inventory: {code}: {message}"));
            if code == "agent_location_conflict" {
                self.drop_from_inventory(message);
            }
            return;
        }
        if self.on_register_error(id, code, message) {
            return;
        }
        if let Some(at) =
            self.link.deregisters.iter().position(|pending| pending.frame.id.as_deref() == Some(id) && !id.is_empty())
        {
            self.link.deregisters.remove(at);
            self.log(Level::Info, format!("a deregistration was refused, the agent is not at this node: {code}"));
            return;
        }
        if code == "invalid_message" {
            if self.fail_oldest_registration(code, message) {
                return;
            }
            if self.link.answers_register && !self.link.face.is_accepted() && self.take_back_manifest(code, message) {
                return;
            }
            // A fault of ours: which frame it was shows only in what was sent last.
            let sent: Vec<&str> = self.link.last_sent.iter().copied().collect();
            let text = format!("the engine cannot use a frame: {message}; the last ones sent: {}", sent.join(", "));
            self.log(Level::Error, text);
            return;
        }
        self.log(Level::Error, format!("the engine reports {code}: {message}"));
    }

    /// Nothing is sent after it.
    pub(super) fn close_socket(&mut self) {
        self.link.open = false;
        self.out.push(Effect::Node(NodeCommand::Close { generation: self.link.generation }));
    }
}
