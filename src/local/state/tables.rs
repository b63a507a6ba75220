//! The tables and their indexes. [`Tables::apply`] is the only way in: live changes and replay take the same road.
//!
//! Bounds (memory): closed deliveries per agent [`CLOSED_KEPT`], finished invocations [`FINISHED_KEPT`], remembered
//! answers [`REMEMBERED_KEPT`]; the oldest goes. Messages and open deliveries are bounded by the callers, which leave a
//! row behind when they take one away.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::rows::*;

/// Acknowledged, failed or dead deliveries kept per agent for `GET /v1/deliveries`.
pub const CLOSED_KEPT: usize = 200;
/// Finished invocations kept for `GET …/invocations/:id`.
pub const FINISHED_KEPT: usize = 2_000;
/// Remembered answers, whatever their age, and their bytes.
pub const REMEMBERED_KEPT: usize = 20_000;
pub const REMEMBERED_BYTES_KEPT: usize = 64 << 20;

/// What a credential belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Workspace(u64),
    Agent(u64),
    Node(String),
}

/// The deliveries of one agent.
#[derive(Debug, Default)]
pub struct Mailbox {
    pub rows: BTreeMap<u64, Delivery>,
    pub last_seq: u64,
    pub acked: u64,
    pub open: usize,
}

/// What was done to one message after it was posted.
#[derive(Debug, Default)]
pub struct Marks {
    pub reactions: Vec<Reaction>,
    pub reads: BTreeMap<u64, Read>,
}

#[derive(Debug, Default)]
pub struct Tables {
    pub workspaces: BTreeMap<u64, Workspace>,
    pub agents: BTreeMap<u64, Agent>,
    pub agent_names: HashMap<(u64, String), u64>,
    pub owners: HashMap<String, Owner>,
    pub channels: BTreeMap<u64, Channel>,
    pub channel_names: HashMap<(u64, String), u64>,
    pub members: BTreeMap<(u64, u64), Member>,
    /// Channels and conversations of an agent.
    pub joined: HashMap<u64, BTreeSet<u64>>,
    pub messages: BTreeMap<u64, Message>,
    /// What the authors of `messages` wrote, in bytes.
    pub message_bytes: usize,
    /// Messages of a channel, thread replies included.
    pub channel_messages: HashMap<u64, BTreeSet<u64>>,
    pub replies: HashMap<u64, BTreeSet<u64>>,
    pub marks: HashMap<u64, Marks>,
    pub mailboxes: HashMap<u64, Mailbox>,
    pub nodes: BTreeMap<String, Node>,
    pub actions: BTreeMap<(u64, String), Action>,
    pub triggers: BTreeMap<u64, Trigger>,
    pub invocations: BTreeMap<String, Invocation>,
    finished: VecDeque<String>,
    pub remembered: HashMap<(u64, String), Remembered>,
    remembered_order: VecDeque<(u64, String)>,
    remembered_bytes: usize,
    /// The highest snowflake in any row.
    pub highest_id: u64,
}

impl Tables {
    pub fn apply(&mut self, row: Row) {
        match row {
            Row::Workspace(row) => {
                self.saw(row.id);
                if let Some(old) = self.workspaces.get(&row.id) {
                    self.owners.remove(&old.key_digest);
                }
                self.owners.insert(row.key_digest.clone(), Owner::Workspace(row.id));
                self.workspaces.insert(row.id, row);
            }
            Row::WorkspaceGone { id } => self.remove_workspace(id),
            Row::Agent(row) => {
                self.saw(row.id);
                if let Some(digest) = self.agents.get(&row.id).and_then(|old| old.token_digest.clone()) {
                    self.owners.remove(&digest);
                }
                if let Some(digest) = &row.token_digest {
                    self.owners.insert(digest.clone(), Owner::Agent(row.id));
                }
                self.agent_names.insert((row.ws, row.name.clone()), row.id);
                self.agents.insert(row.id, row);
            }
            Row::AgentGone { id } => self.remove_agent(id),
            Row::Channel(row) => {
                self.saw(row.id);
                if row.kind == ChannelKind::Public {
                    self.channel_names.insert((row.ws, row.name.clone()), row.id);
                }
                self.channels.insert(row.id, row);
            }
            Row::Member(row) => {
                self.joined.entry(row.agent).or_default().insert(row.channel);
                self.members.insert((row.channel, row.agent), row);
            }
            Row::MemberGone { channel, agent } => {
                self.members.remove(&(channel, agent));
                if let Some(joined) = self.joined.get_mut(&agent) {
                    joined.remove(&channel);
                }
            }
            Row::Message(row) => {
                self.saw(row.id);
                self.channel_messages.entry(row.channel).or_default().insert(row.id);
                if let Some(root) = row.thread {
                    self.replies.entry(root).or_default().insert(row.id);
                }
                self.message_bytes += row.weight();
                if let Some(old) = self.messages.insert(row.id, row) {
                    self.message_bytes -= old.weight();
                }
            }
            Row::MessageGone { id } => self.remove_message(id),
            Row::Reaction(row) => {
                self.saw(row.id);
                self.marks.entry(row.message).or_default().reactions.push(row);
            }
            Row::ReactionGone { message, agent, emoji } => {
                if let Some(marks) = self.marks.get_mut(&message) {
                    marks.reactions.retain(|r| !(r.agent == agent && r.emoji == emoji));
                }
            }
            Row::Read(row) => self.apply_read(row),
            Row::Delivery(row) => {
                let mailbox = self.mailboxes.entry(row.agent).or_default();
                mailbox.last_seq = mailbox.last_seq.max(row.seq);
                let opens = row.status.open();
                let was_open = mailbox.rows.insert(row.seq, row).is_some_and(|old| old.status.open());
                mailbox.open = mailbox.open + usize::from(opens) - usize::from(was_open);
                mailbox.trim();
            }
            Row::Acked { agent, seq, at } => self.apply_ack(agent, seq, at),
            Row::Mailbox { agent, last_seq, acked } => {
                let mailbox = self.mailboxes.entry(agent).or_default();
                mailbox.last_seq = mailbox.last_seq.max(last_seq);
                mailbox.acked = mailbox.acked.max(acked);
            }
            Row::Node(row) => {
                if let Some(old) = self.nodes.get(&row.id) {
                    self.owners.remove(&old.token_digest);
                }
                self.owners.insert(row.token_digest.clone(), Owner::Node(row.id.clone()));
                self.nodes.insert(row.id.clone(), row);
            }
            Row::NodeGone { id } => {
                if let Some(old) = self.nodes.remove(&id) {
                    self.owners.remove(&old.token_digest);
                }
            }
            Row::Action(row) => {
                self.actions.insert((row.ws, row.name.clone()), row);
            }
            Row::ActionGone { ws, name } => {
                self.actions.remove(&(ws, name));
            }
            Row::Trigger(row) => {
                self.saw(row.id);
                self.triggers.insert(row.id, row);
            }
            Row::TriggerGone { id } => {
                self.triggers.remove(&id);
            }
            Row::Invocation(row) => {
                self.saw(row.id.trim_start_matches("inv_").parse().unwrap_or(0));
                let newly_finished = !row.status.open()
                    && self.invocations.get(&row.id).is_none_or(|old: &Invocation| old.status.open());
                if newly_finished {
                    self.finished.push_back(row.id.clone());
                    if self.finished.len() > FINISHED_KEPT
                        && let Some(oldest) = self.finished.pop_front()
                    {
                        self.invocations.remove(&oldest);
                    }
                }
                self.invocations.insert(row.id.clone(), row);
            }
            Row::Remembered(row) => {
                let key = (row.agent, row.key.clone());
                self.remembered_bytes += json_weight(&row.body);
                match self.remembered.insert(key.clone(), row) {
                    Some(old) => self.remembered_bytes -= json_weight(&old.body),
                    None => self.remembered_order.push_back(key),
                }
                while self.remembered_order.len() > REMEMBERED_KEPT || self.remembered_bytes > REMEMBERED_BYTES_KEPT {
                    self.forget_oldest_answer();
                }
            }
        }
    }

    fn saw(&mut self, id: u64) {
        self.highest_id = self.highest_id.max(id);
    }

    /// The read mark that an ack or a read call leaves, and the member's position with it.
    fn apply_read(&mut self, row: Read) {
        let Some(channel) = self.messages.get(&row.message).map(|m| m.channel) else { return };
        if let Some(member) = self.members.get_mut(&(channel, row.agent))
            && member.last_read < row.message
        {
            member.last_read = row.message;
            member.last_read_at = Some(row.at);
        }
        self.marks.entry(row.message).or_default().reads.entry(row.agent).or_insert(row);
    }

    fn apply_ack(&mut self, agent: u64, seq: u64, at: Unix) {
        let agent_name = self.agents.get(&agent).map(|a| a.name.clone()).unwrap_or_default();
        let Some(mailbox) = self.mailboxes.get_mut(&agent) else { return };
        mailbox.acked = mailbox.acked.max(seq.min(mailbox.last_seq));
        let mut read = Vec::new();
        for row in mailbox.rows.range_mut(..=seq).map(|(_, row)| row).filter(|row| row.status.open()) {
            row.status = DeliveryStatus::Acked;
            row.updated_at = Some(at);
            mailbox.open -= 1;
            read.push(row.message);
        }
        mailbox.trim();
        for message in read {
            self.apply_read(Read { message, agent, agent_name: agent_name.clone(), at });
        }
    }

    fn remove_message(&mut self, id: u64) {
        let Some(message) = self.messages.remove(&id) else { return };
        self.message_bytes -= message.weight();
        if let Some(ids) = self.channel_messages.get_mut(&message.channel) {
            ids.remove(&id);
        }
        if let Some(ids) = message.thread.and_then(|root| self.replies.get_mut(&root)) {
            ids.remove(&id);
        }
        self.replies.remove(&id);
        self.marks.remove(&id);
    }

    fn remove_agent(&mut self, id: u64) {
        let Some(agent) = self.agents.remove(&id) else { return };
        if let Some(digest) = &agent.token_digest {
            self.owners.remove(digest);
        }
        self.agent_names.remove(&(agent.ws, agent.name));
        for channel in self.joined.remove(&id).unwrap_or_default() {
            self.members.remove(&(channel, id));
        }
        self.mailboxes.remove(&id);
    }

    fn remove_workspace(&mut self, ws: u64) {
        let Some(old) = self.workspaces.remove(&ws) else { return };
        self.owners.remove(&old.key_digest);
        let agents: Vec<u64> = self.agents.values().filter(|a| a.ws == ws).map(|a| a.id).collect();
        agents.into_iter().for_each(|id| self.remove_agent(id));
        let messages: Vec<u64> = self.messages.values().filter(|m| m.ws == ws).map(|m| m.id).collect();
        messages.into_iter().for_each(|id| self.remove_message(id));
        let channels: Vec<u64> = self.channels.values().filter(|c| c.ws == ws).map(|c| c.id).collect();
        for id in channels {
            self.channels.remove(&id);
            self.channel_messages.remove(&id);
        }
        self.channel_names.retain(|(owner, _), _| *owner != ws);
        let nodes: Vec<Node> = self.nodes.values().filter(|n| n.ws == ws).cloned().collect();
        for node in nodes {
            self.nodes.remove(&node.id);
            self.owners.remove(&node.token_digest);
        }
        self.actions.retain(|(owner, _), _| *owner != ws);
        self.triggers.retain(|_, trigger| trigger.ws != ws);
        self.invocations.retain(|_, invocation| invocation.ws != ws);
    }

    /// Drops remembered answers older than `horizon`.
    pub fn forget_answers_before(&mut self, horizon: Unix) {
        while let Some(oldest) = self.remembered_order.front() {
            if self.remembered.get(oldest).is_some_and(|answer| answer.at >= horizon) {
                return;
            }
            self.forget_oldest_answer();
        }
    }

    fn forget_oldest_answer(&mut self) {
        if let Some(old) = self.remembered_order.pop_front().and_then(|key| self.remembered.remove(&key)) {
            self.remembered_bytes -= json_weight(&old.body);
        }
    }

    /// Every row that still counts, in an order that can be replayed.
    pub fn snapshot(&self) -> impl Iterator<Item = Row> + '_ {
        let marks = || self.marks.values();
        let mailboxes = || self.mailboxes.iter();
        (self.workspaces.values().cloned().map(Row::Workspace))
            .chain(self.nodes.values().cloned().map(Row::Node))
            .chain(self.agents.values().cloned().map(Row::Agent))
            .chain(self.channels.values().cloned().map(Row::Channel))
            .chain(self.messages.values().cloned().map(Row::Message))
            .chain(marks().flat_map(|m| m.reactions.iter().cloned()).map(Row::Reaction))
            .chain(marks().flat_map(|m| m.reads.values().cloned()).map(Row::Read))
            .chain(self.members.values().cloned().map(Row::Member))
            .chain(mailboxes().map(|(agent, m)| Row::Mailbox { agent: *agent, last_seq: m.last_seq, acked: m.acked }))
            .chain(mailboxes().flat_map(|(_, m)| m.rows.values().cloned()).map(Row::Delivery))
            .chain(self.actions.values().cloned().map(Row::Action))
            .chain(self.triggers.values().cloned().map(Row::Trigger))
            .chain(self.invocations.values().cloned().map(Row::Invocation))
            .chain(self.remembered_order.iter().filter_map(|k| self.remembered.get(k)).cloned().map(Row::Remembered))
    }
}

impl Mailbox {
    /// Closed rows beyond the bound go, the oldest first; the highest row stays, `last_seq` outlives it anyway.
    fn trim(&mut self) {
        while self.rows.len() - self.open > CLOSED_KEPT {
            let Some(oldest) = self.rows.values().find(|row| !row.status.open()).map(|row| row.seq) else { return };
            self.rows.remove(&oldest);
        }
    }
}
