//! The simulated engine: nodes, and agents that live at one of them, with numbered rows. What its frames do is in `wire`,
//! its HTTP half in `http`, its invocations in `invocations`.

use std::collections::BTreeMap;

use agent_relay_broker::core::ports::Ms;
use serde_json::{Value, json};

use super::agenda::Happening;
use super::invocations::Invocation;
use super::link::Socket;
use super::rng::Rng;
use super::rows::{Agent, Passing, Row, deliver, letter};

#[derive(Debug)]
pub struct Session {
    pub socket: Socket,
    /// Whose broker holds it.
    pub site: usize,
    pub registered: bool,
}

/// A machine as the engine knows it.
#[derive(Debug, Default)]
pub struct Node {
    pub id: String,
    /// As registered last.
    pub name: String,
    pub token: String,
    pub session: Option<Session>,
    /// Life of the broker that speaks for it, for facts that hold only within one.
    pub life: u32,
    /// The last inventory and the last load that arrived.
    pub inventory: Option<Vec<(String, String)>>,
    pub active_agents: Option<u64>,
    pub capabilities: Vec<String>,
    pub handlers_live: bool,
    /// When its last heartbeat came.
    pub heard: Option<Ms>,
}

impl Node {
    pub fn registered(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.registered)
    }
}

/// A token, and the life of the broker that was told it.
#[derive(Debug)]
pub struct Token {
    pub agent_id: String,
    pub told: Option<u32>,
}

#[derive(Default)]
pub struct Engine {
    pub nodes: Vec<Node>,
    /// The node in focus: whose broker acts, or is acted upon.
    pub at: usize,
    pub now: Ms,
    /// Two brokers hold one node between them, and its token.
    pub twins: bool,
    pub agents: BTreeMap<String, Agent>,
    pub names: BTreeMap<String, String>,
    pub tokens: BTreeMap<String, Token>,
    pub invocations: BTreeMap<String, Invocation>,
    pub passing: Vec<Passing>,
    /// The last request to register each name.
    pub asking: BTreeMap<String, String>,
    /// How often a broker has asked to register each name.
    pub asked: BTreeMap<String, u32>,
    /// Frames to be sent to a node, each after a delay, and other things to come.
    pub out: Vec<(usize, Ms, Value)>,
    pub later: Vec<(Ms, Happening)>,
    pub alarms: Vec<(&'static str, String)>,
    pub made: u64,
}

impl Engine {
    pub fn fresh(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}{}", self.made)
    }

    pub fn node(&self) -> &Node {
        &self.nodes[self.at]
    }

    pub fn node_mut(&mut self) -> &mut Node {
        &mut self.nodes[self.at]
    }

    pub fn mint_node_token(&mut self) -> String {
        let token = self.fresh("nt_live_");
        self.node_mut().token.clone_from(&token);
        token
    }

    pub fn registered(&self) -> bool {
        self.node().registered()
    }

    /// Puts a frame on the way to the node in focus.
    pub fn tell(&mut self, delay: Ms, frame: Value) {
        self.out.push((self.at, delay, frame));
    }

    pub fn by_name(&self, name: &str) -> Option<&Agent> {
        self.agents.get(self.names.get(name)?)
    }

    /// The agent of this name, made if there is none. Numbering may start anywhere.
    pub fn upsert(&mut self, name: &str, rng: &mut Rng) -> String {
        if let Some(id) = self.names.get(name) {
            return id.clone();
        }
        let id = self.fresh("ag_");
        let top = if rng.chance(500) { 0 } else { rng.between(1, 60) };
        self.agents
            .insert(id.clone(), Agent { id: id.clone(), name: name.into(), top, cursor: top, ..Agent::default() });
        self.names.insert(name.into(), id.clone());
        id
    }

    pub fn new_token(&mut self, id: &str) -> String {
        let token = self.fresh("at_live_");
        self.tokens.insert(token.clone(), Token { agent_id: id.into(), told: None });
        let agent = self.agents.get_mut(id).expect("an agent that was just looked up");
        agent.token = Some(token.clone());
        agent.epoch += 1;
        agent.registrar = self.at;
        agent.release_ignored = false;
        token
    }

    pub fn unbind(&mut self, id: &str) {
        if let Some(agent) = self.agents.get_mut(id) {
            agent.at = None;
            agent.unbound_by = self.at;
            agent.online = false;
            agent.token = None;
        }
    }

    // ------------------------------------------------------------------------------------------------------- messages

    /// Stores a message. `copy`: the same message once more, under a new number.
    pub fn store(&mut self, id: &str, rng: &mut Rng, copy: bool) -> Option<u64> {
        let msg_id = self.fresh("m");
        let agent = self.agents.get_mut(id)?;
        agent.top += 1;
        let seq = agent.top;
        let original = agent.rows.values().rev().take(100).find(|row| row.inject && !row.hole && row.copy_of.is_none());
        let row = match original.filter(|_| copy) {
            Some(first) => Row {
                seq,
                msg_id: first.msg_id.clone(),
                delivery_id: first.delivery_id.clone(),
                steer: first.steer,
                payload: first.payload.clone(),
                inject: true,
                text: first.text.clone(),
                from: first.from.clone(),
                target: first.target.clone(),
                copy_of: Some(first.seq),
                ..blank_row()
            },
            None => {
                let letter = letter(rng, &msg_id);
                Row {
                    seq,
                    delivery_id: format!("del_{msg_id}_{id}"),
                    steer: rng.chance(100),
                    inject: letter.inject,
                    text: letter.text,
                    from: letter.from,
                    target: letter.target.unwrap_or_else(|| agent.name.clone()),
                    payload: letter.payload,
                    msg_id,
                    ..blank_row()
                }
            }
        };
        agent.rows.insert(seq, row);
        agent.open.insert(seq);
        Some(seq)
    }

    /// Sends a stored row on the open connection of the agent's node.
    pub fn push(&mut self, id: &str, seq: u64, delay: Ms) {
        let Some(agent) = self.agents.get(id) else { return };
        let Some(at) = agent.at.filter(|at| self.nodes.get(*at).is_some_and(Node::registered)) else { return };
        if agent.rows.contains_key(&seq) {
            self.out.push((at, delay, agent.frame(seq)));
        }
    }

    /// Makes a row a hole: the engine has given it up.
    pub fn give_up(&mut self, id: &str, seq: u64) {
        if let Some(agent) = self.agents.get_mut(id) {
            agent.open.remove(&seq);
            if let Some(row) = agent.rows.get_mut(&seq) {
                row.hole = true;
            }
        }
    }

    /// Something that is not numbered: results of actions, reactions, read marks.
    pub fn pass(&mut self, id: &str, rng: &mut Rng) {
        let event = self.fresh("ev");
        let Some(agent) = self.agents.get(id) else { return };
        let Some(at) = agent.at.filter(|at| self.nodes.get(*at).is_some_and(Node::registered)) else { return };
        let text = format!("text of {event}");
        let known = agent.rows.values().last().map_or("m0".to_string(), |row| row.msg_id.clone());
        let (msg_id, payload, inject) = match rng.below(5) {
            0 => (
                format!("inv_{event}"),
                json!({"type": "action.completed", "data": {"invocation_id": format!("inv_{event}"), "action_name": "build",
                    "status": "completed", "output": text, "error": null}}),
                true,
            ),
            1 => (
                format!("inv_{event}"),
                json!({"type": "action.failed", "data": {"invocation_id": format!("inv_{event}"), "action_name": "build",
                    "status": "failed", "output": null, "error": text}}),
                true,
            ),
            2 => (
                "build".to_string(),
                json!({"type": "action.denied", "data": {"action_name": "build", "caller_name": "x", "error": text}}),
                true,
            ),
            3 => (known.clone(), json!({"type": "message.reacted", "data": {"id": known, "emoji": "eyes"}}), false),
            _ => (known.clone(), json!({"type": "message.read", "data": {"id": known}}), false),
        };
        let delivery_id = format!("evt_{event}_{id}");
        let frame = deliver(&agent.name, id, &delivery_id, &msg_id, 0, false, &payload);
        self.out.push((at, 0, frame));
        self.passing.push(Passing {
            agent_id: id.into(),
            delivery_id,
            text,
            inject,
            arrived: None,
            typed: Vec::new(),
            read: false,
            dead: false,
        });
    }

    /// Repeats what is open for the agents at the node in focus.
    pub fn replay(&mut self, only: Option<&str>, delay: Ms) {
        let frames: Vec<Value> = self
            .agents
            .values()
            .filter(|agent| agent.at == Some(self.at) && only.is_none_or(|id| id == agent.id))
            .flat_map(|agent| agent.open.iter().map(|seq| agent.frame(*seq)))
            .collect();
        let at = self.at;
        self.out.extend(frames.into_iter().map(|frame| (at, delay, frame)));
    }
}

fn blank_row() -> Row {
    Row {
        seq: 0,
        msg_id: String::new(),
        delivery_id: String::new(),
        steer: false,
        payload: Value::Null,
        inject: false,
        text: String::new(),
        from: String::new(),
        target: String::new(),
        acked: false,
        hole: false,
        copy_of: None,
        read: None,
        dead: false,
        dead_on_disk: false,
        arrived: None,
        declared_missing: None,
        injected: None,
        typed: Vec::new(),
        came: BTreeMap::new(),
        typed_at: None,
    }
}
