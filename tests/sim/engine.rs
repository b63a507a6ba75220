//! The simulated engine: agents with numbered rows, cumulative acks by name, replay on three occasions, invocations that
//! come again until they are answered. It measures every ack against what has really become of the rows.

use std::collections::BTreeMap;

use agent_relay_broker::core::ports::{LinkGeneration, Ms};
use serde_json::{Value, json};

use super::agenda::Happening;
use super::rng::Rng;
use super::rows::{Agent, Passing, Row, deliver, letter};
use super::weather::Weather;

/// Answered in time or asked again.
const ANSWER_MS: Ms = 30_000;

#[derive(Debug)]
pub struct Invocation {
    pub action: String,
    pub input: Value,
    pub agent_name: Option<String>,
    pub agent_id: Option<String>,
    pub name: String,
    /// How often the broker had asked to register the name when it first answered: a repeated answer to a release must not
    /// hit a later registration.
    pub asked_before: Option<u32>,
    pub done: bool,
    pub dispatches: u32,
    /// Per life of the broker: frames that reached it, answers that left it, and what they said.
    pub seen: BTreeMap<u32, u32>,
    pub answers: BTreeMap<u32, u32>,
    pub said: BTreeMap<u32, String>,
}

#[derive(Debug)]
pub struct Session {
    pub link: LinkGeneration,
    pub registered: bool,
}

/// A token, and the life of the broker that was told it.
#[derive(Debug)]
pub struct Token {
    pub agent_id: String,
    pub told: Option<u32>,
}

#[derive(Default)]
pub struct Engine {
    pub agents: BTreeMap<String, Agent>,
    pub names: BTreeMap<String, String>,
    pub tokens: BTreeMap<String, Token>,
    pub invocations: BTreeMap<String, Invocation>,
    pub passing: Vec<Passing>,
    /// The last request to register each name.
    pub asking: BTreeMap<String, String>,
    /// How often the broker has asked to register each name.
    pub asked: BTreeMap<String, u32>,
    pub node_token: String,
    pub session: Option<Session>,
    /// Life of the broker, for facts that hold only within one.
    pub life: u32,
    /// The last inventory and the last load that arrived.
    pub inventory: Option<Vec<(String, String)>>,
    pub active_agents: Option<u64>,
    pub said_goodbye: bool,
    /// Frames to be sent, each after a delay, and other things to come.
    pub out: Vec<(Ms, Value)>,
    pub later: Vec<(Ms, Happening)>,
    pub alarms: Vec<(&'static str, String)>,
    made: u64,
}

impl Engine {
    pub fn fresh(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}{}", self.made)
    }

    pub fn mint_node_token(&mut self) -> String {
        self.node_token = self.fresh("nt_live_");
        self.node_token.clone()
    }

    pub fn registered(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.registered)
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
        token
    }

    pub fn unbind(&mut self, id: &str) {
        if let Some(agent) = self.agents.get_mut(id) {
            agent.here = false;
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

    /// Sends a stored row on the open connection, if the agent is here.
    pub fn push(&mut self, id: &str, seq: u64, delay: Ms) {
        let Some(agent) = self.agents.get(id).filter(|agent| agent.here) else { return };
        if self.registered() && agent.rows.contains_key(&seq) {
            self.out.push((delay, agent.frame(seq)));
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
        let Some(agent) = self.agents.get(id).filter(|agent| agent.here) else { return };
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
        if self.registered() {
            self.out.push((0, frame));
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
    }

    pub fn replay(&mut self, only: Option<&str>, delay: Ms) {
        let frames: Vec<Value> = self
            .agents
            .values()
            .filter(|agent| agent.here && only.is_none_or(|id| id == agent.id))
            .flat_map(|agent| agent.open.iter().map(|seq| agent.frame(*seq)))
            .collect();
        self.out.extend(frames.into_iter().map(|frame| (delay, frame)));
    }

    // --------------------------------------------------------------------------------------------------- invocations

    pub fn invoke(&mut self, action: &str, name: &str, input: Value, hosted: bool) -> String {
        let id = self.fresh("i");
        let agent_name = hosted.then(|| name.to_string());
        let agent_id = self.names.get(name).cloned().filter(|_| hosted);
        self.invocations.insert(
            id.clone(),
            Invocation {
                action: action.into(),
                input,
                agent_name,
                agent_id,
                name: name.into(),
                asked_before: None,
                done: false,
                dispatches: 0,
                seen: BTreeMap::new(),
                answers: BTreeMap::new(),
                said: BTreeMap::new(),
            },
        );
        self.dispatch(&id);
        id
    }

    pub fn dispatch(&mut self, id: &str) {
        if !self.registered() {
            return;
        }
        let Some(invocation) = self.invocations.get_mut(id).filter(|invocation| !invocation.done) else { return };
        invocation.dispatches += 1;
        let mut frame = json!({"v": 1, "type": "action.invoke", "invocation_id": id, "action": invocation.action,
            "input": invocation.input});
        if let Some(name) = &invocation.agent_name {
            frame["agent_name"] = json!(name);
        }
        if let Some(agent_id) = &invocation.agent_id {
            frame["agent_id"] = json!(agent_id);
        }
        let dispatch = invocation.dispatches;
        self.out.push((0, frame));
        self.later.push((ANSWER_MS, Happening::Redispatch { invocation: id.into(), dispatch }));
    }

    fn reschedule(&mut self, keep: &[String], rng: &mut Rng, within: Ms) {
        for (id, invocation) in self.invocations.iter().filter(|(id, one)| !one.done && !keep.contains(id)) {
            let dispatch = invocation.dispatches;
            self.later.push((rng.between(0, within), Happening::Redispatch { invocation: id.clone(), dispatch }));
        }
    }

    // -------------------------------------------------------------------------------------------------------- session

    pub fn opened(&mut self, link: LinkGeneration) {
        self.closed(None);
        self.session = Some(Session { link, registered: false });
    }

    /// The connection of the node is gone; `None`: whichever.
    pub fn closed(&mut self, link: Option<LinkGeneration>) {
        if self.session.as_ref().is_some_and(|session| link.is_none_or(|link| link == session.link)) {
            self.session = None;
            for agent in self.agents.values_mut() {
                agent.online = false;
            }
        }
    }

    /// One frame of the broker, as it came over the wire.
    pub fn receive(&mut self, link: LinkGeneration, frame: &Value, rng: &mut Rng, weather: &Weather) {
        if self.session.as_ref().is_none_or(|session| session.link != link) {
            return;
        }
        let id = frame.get("id").and_then(Value::as_str).unwrap_or_default().to_string();
        match frame["type"].as_str().unwrap_or_default() {
            "node.register" => self.node_register(&id, rng, weather),
            "node.heartbeat" => self.active_agents = frame["active_agents"].as_u64(),
            "node.deregister" => {
                self.said_goodbye = true;
                if let Some(session) = &mut self.session {
                    session.registered = false;
                }
            }
            "agent.register" => self.agent_register(&id, frame, rng, weather),
            "agent.deregister" => {
                let agent_id = frame["agent_id"].as_str().unwrap_or_default();
                // Registered by HTTP and bound nowhere counts as this node's too.
                match self.agents.get(agent_id).map(|agent| !agent.elsewhere && agent.token.is_some()) {
                    Some(true) => self.unbind(agent_id),
                    _ => self.refuse(&id, "agent_not_found", "no such agent at this node"),
                }
            }
            "delivery.ack" => {
                let name = frame["agent"].as_str().unwrap_or_default().to_string();
                self.acknowledge(&name, frame["up_to_seq"].as_u64().unwrap_or_default());
            }
            "action.result" => self.action_result(frame),
            "inventory.sync" => self.inventory_sync(&id, frame, rng, weather),
            _ => {}
        }
    }

    fn reply(&mut self, id: &str, data: Value, delay: Ms) {
        if !id.is_empty() {
            self.out.push((delay, json!({"v": 1, "type": "reply", "id": id, "ok": true, "data": data})));
        }
    }

    fn refuse(&mut self, id: &str, code: &str, message: &str) {
        self.out.push((0, json!({"v": 1, "type": "error", "id": id, "ok": false, "code": code, "message": message})));
    }

    fn node_register(&mut self, id: &str, rng: &mut Rng, weather: &Weather) {
        if rng.chance(weather.register_faults / 8) {
            return self.refuse(id, "node_id_mismatch", "the token is of another node");
        }
        let again = self.registered();
        if let Some(session) = &mut self.session {
            session.registered = true;
        }
        self.reply(id, json!({"id": "node_sim", "name": "sim", "status": "online", "live": true}), 0);
        self.replay(None, 0);
        if !again {
            self.reschedule(&[], rng, 5_000);
        }
    }

    fn agent_register(&mut self, id: &str, frame: &Value, rng: &mut Rng, weather: &Weather) {
        let name = frame["name"].as_str().unwrap_or_default().to_string();
        if !self.registered() {
            return self.refuse(id, "node_not_registered", "register the node first");
        }
        if self.by_name(&name).is_some_and(|agent| agent.elsewhere) {
            return self.refuse(id, "agent_location_conflict", "active elsewhere");
        }
        let mut silent = false;
        // Slow or not, what was asked first is not carried out last.
        let late = frame.get("late").is_some();
        if late && self.asking.get(&name) != Some(&id.to_string()) {
            return;
        }
        self.asking.insert(name.clone(), id.into());
        if !late && rng.chance(weather.register_faults) {
            match rng.below(5) {
                0 => return self.refuse(id, "node_capacity_exceeded", "no room"),
                1 => return,
                2 => silent = true,
                _ => {
                    let Some(link) = self.session.as_ref().map(|session| session.link) else { return };
                    let mut frame = frame.clone();
                    frame["late"] = json!(true);
                    return self.later.push((rng.between(500, 15_000), Happening::ToEngine { link, frame }));
                }
            }
        }
        let agent_id = self.upsert(&name, rng);
        let token = self.new_token(&agent_id);
        let agent = self.agents.get_mut(&agent_id).expect("just made");
        agent.here = true;
        agent.online = true;
        let mut data = json!({"agent_id": agent_id, "token": token, "name": name, "extra": [1]});
        if weather.reports_cursor {
            data["delivery_ack_seq"] = json!(agent.done_up_to());
        }
        if !silent {
            self.reply(id, data, 0);
        }
        self.replay(Some(&agent_id), 0);
    }

    fn acknowledge(&mut self, name: &str, up_to: u64) {
        let life = self.life;
        let Some(id) = self.names.get(name) else { return };
        let Some(agent) = self.agents.get_mut(id).filter(|agent| agent.here) else { return };
        if up_to > agent.top {
            self.alarms.push(("ack_past_last", format!("{name}: ack {up_to}, but the last row is {}", agent.top)));
        }
        let covered: Vec<u64> = agent.open.range(..=up_to).copied().collect();
        for seq in covered {
            if !agent.disposed(seq) {
                self.alarms.push((
                    "ack_of_undisposed",
                    format!("{name}: ack {up_to} reached the engine, but {seq} is neither read nor recorded as dead"),
                ));
            }
            agent.open.remove(&seq);
            if let Some(row) = agent.rows.get_mut(&seq) {
                row.acked = true;
            }
        }
        agent.cursor = agent.cursor.max(up_to);
        agent.acked_in = life;
    }

    fn action_result(&mut self, frame: &Value) {
        let Some(invocation) = self.invocations.get_mut(frame["invocation_id"].as_str().unwrap_or_default()) else {
            return;
        };
        if std::mem::replace(&mut invocation.done, true) {
            return;
        }
        if invocation.action == "release" && frame.get("output").is_some() {
            let (name, before) = (invocation.name.clone(), invocation.asked_before);
            let delete = invocation.input.get("delete_agent").is_some_and(|delete| delete == &json!(true));
            let Some(id) = self.names.get(&name).cloned() else { return };
            if before == Some(self.asked.get(&name).copied().unwrap_or_default()) {
                self.unbind(&id);
                if delete {
                    self.names.remove(&name);
                }
            }
        }
    }

    fn inventory_sync(&mut self, id: &str, frame: &Value, rng: &mut Rng, weather: &Weather) {
        let listed: Vec<Value> = frame["agents"].as_array().cloned().unwrap_or_default();
        let text = |one: &Value, key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let known: Vec<(String, String)> =
            listed.iter().map(|one| (text(one, "name"), text(one, "agent_id"))).collect();
        for agent in self.agents.values_mut() {
            agent.online = agent.here && known.iter().any(|(_, id)| *id == agent.id);
        }
        let invocations: Vec<String> = listed.iter().map(|one| text(one, "invocation_id")).collect();
        for id in &invocations {
            if let Some(invocation) = self.invocations.get_mut(id) {
                invocation.done = true;
            }
        }
        self.reply(id, json!({"online": known.len(), "offline": 0}), 0);
        self.reschedule(&invocations, rng, 2_000);
        if weather.inventory_replays {
            for (_, id) in &known {
                self.replay(Some(id), 0);
            }
        }
        self.inventory = Some(known);
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
    }
}
