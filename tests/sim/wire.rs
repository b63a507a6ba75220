//! The node socket as the engine serves it: sessions, and what each frame of a broker does. Cumulative acks by name, replay
//! on three occasions. Every ack is measured against what has really become of the rows.

use serde_json::{Value, json};

use super::agenda::Happening;
use super::engine::{Engine, Session};
use super::link::Socket;
use super::rng::Rng;
use super::rows::Agent;
use super::weather::Weather;
use agent_relay_broker::core::ports::Ms;

impl Engine {
    /// A broker's handshake has ended in 101. The site and socket that it takes the node from.
    pub fn opened(&mut self, site: usize, socket: Socket, rng: &mut Rng) -> Option<(usize, Socket)> {
        let before = self.node().session.as_ref().map(|session| (session.site, session.socket));
        self.closed(None, rng);
        self.node_mut().session = Some(Session { socket, site, registered: false });
        before
    }

    /// The connection of the node in focus is gone; `None`: whichever.
    pub fn closed(&mut self, socket: Option<Socket>, rng: &mut Rng) {
        if self.node().session.as_ref().is_some_and(|session| socket.is_none_or(|socket| socket == session.socket)) {
            let node = self.node_mut();
            node.session = None;
            node.heard = None;
            let at = self.at;
            for agent in self.agents.values_mut().filter(|agent| agent.at == Some(at)) {
                agent.online = false;
            }
            self.reschedule(&[], rng, 5_000);
        }
    }

    /// One frame of the broker, as it came over the wire.
    pub fn receive(&mut self, socket: Socket, frame: &Value, rng: &mut Rng, weather: &Weather) {
        if self.node().session.as_ref().is_none_or(|session| session.socket != socket) {
            return;
        }
        let id = frame.get("id").and_then(Value::as_str).unwrap_or_default().to_string();
        match frame["type"].as_str().unwrap_or_default() {
            "node.register" => self.node_register(&id, frame, rng, weather),
            "node.heartbeat" => self.heartbeat(frame),
            "node.deregister" => {
                if let Some(session) = &mut self.node_mut().session {
                    session.registered = false;
                }
            }
            "agent.register" => self.agent_register(&id, frame, rng, weather),
            "agent.deregister" => {
                let agent_id = frame["agent_id"].as_str().unwrap_or_default();
                // One that this node registered by HTTP and could not bind counts as its own too.
                let at = self.at;
                let ours = |agent: &Agent| {
                    agent.at == Some(at) || (agent.registrar == at && agent.token.is_some() && !agent.online)
                };
                match self.agents.get(agent_id).is_some_and(ours) {
                    true => self.unbind(agent_id),
                    false => self.refuse(&id, "agent_not_found", "no such agent at this node"),
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
            self.tell(delay, json!({"v": 1, "type": "reply", "id": id, "ok": true, "data": data}));
        }
    }

    fn refuse(&mut self, id: &str, code: &str, message: &str) {
        self.tell(0, json!({"v": 1, "type": "error", "id": id, "ok": false, "code": code, "message": message}));
    }

    fn node_register(&mut self, id: &str, frame: &Value, rng: &mut Rng, weather: &Weather) {
        if rng.chance(weather.register_faults / 8) {
            return self.refuse(id, "node_id_mismatch", "the token is of another node");
        }
        if frame["node_id"] != json!(self.node().id) {
            return self.alarms.push(("foreign_node_id", frame.to_string()));
        }
        let name = frame["name"].as_str().unwrap_or_default();
        if self.nodes.iter().enumerate().any(|(at, node)| at != self.at && node.name == name) {
            return self.refuse(id, "node_name_conflict", "the name belongs to another node");
        }
        let again = self.registered();
        let capabilities = frame["capabilities"].as_array().map(Vec::as_slice).unwrap_or_default();
        let node = self.node_mut();
        node.name = name.to_string();
        node.capabilities =
            capabilities.iter().filter_map(|one| Some(one.get("name")?.as_str()?.to_string())).collect();
        if let Some(session) = &mut node.session {
            session.registered = true;
        }
        let row = json!({"id": node.id, "name": node.name, "status": "online", "live": true});
        self.reply(id, row, 0);
        self.replay(None, 0);
        if !again {
            self.reschedule(&[], rng, 5_000);
        }
    }

    /// A node that is not heard for 45 s is dead: no broker may come near that on a connection that works.
    fn heartbeat(&mut self, frame: &Value) {
        let now = self.now;
        let node = self.node_mut();
        node.active_agents = frame["active_agents"].as_u64();
        node.handlers_live = frame["handlers_live"].as_bool().unwrap_or_default();
        if let Some(pause) = node.heard.replace(now).map(|before| now - before).filter(|pause| *pause > 20_000) {
            self.alarms.push(("heartbeat_late", format!("{pause} ms between two heartbeats of one connection")));
        }
    }

    /// Active at another node: neither to be registered nor to be listed here.
    pub fn is_active_elsewhere(&self, agent: &Agent) -> bool {
        agent.online && agent.at != Some(self.at)
    }

    fn agent_register(&mut self, id: &str, frame: &Value, rng: &mut Rng, weather: &Weather) {
        let name = frame["name"].as_str().unwrap_or_default().to_string();
        if !self.registered() {
            return self.refuse(id, "node_not_registered", "register the node first");
        }
        if self.by_name(&name).is_some_and(|agent| self.is_active_elsewhere(agent)) {
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
                    let Some(link) = self.node().session.as_ref().map(|session| session.socket) else { return };
                    let mut frame = frame.clone();
                    frame["late"] = json!(true);
                    return self.later.push((rng.between(500, 15_000), Happening::ToEngine { link, frame }));
                }
            }
        }
        let agent_id = self.upsert(&name, rng);
        let token = self.new_token(&agent_id);
        let at = self.at;
        let agent = self.agents.get_mut(&agent_id).expect("just made");
        agent.move_to(at);
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
        let (life, at) = (self.node().life, self.at);
        let Some(id) = self.names.get(name) else { return };
        let Some(agent) = self.agents.get_mut(id).filter(|agent| agent.at == Some(at)) else { return };
        // Of two brokers with one node, one may mean an identity of another time.
        if up_to > agent.top && !self.twins {
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

    fn inventory_sync(&mut self, id: &str, frame: &Value, rng: &mut Rng, weather: &Weather) {
        let listed: Vec<Value> = frame["agents"].as_array().cloned().unwrap_or_default();
        let text = |one: &Value, key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let known: Vec<(String, String)> =
            listed.iter().map(|one| (text(one, "name"), text(one, "agent_id"))).collect();
        let at = self.at;
        let elsewhere = |id: &String| self.agents.get(id).filter(|agent| self.is_active_elsewhere(agent));
        if let Some(agent) = known.iter().find_map(|(_, id)| elsewhere(id)) {
            let message = format!("Agent \"{}\" is active elsewhere", agent.name);
            return self.refuse(id, "agent_location_conflict", &message);
        }
        let mut moved = Vec::new();
        for agent in self.agents.values_mut() {
            if !agent.deleted && known.iter().any(|(_, id)| *id == agent.id) {
                if agent.at != Some(at) {
                    moved.push(agent.id.clone());
                }
                agent.move_to(at);
                agent.online = true;
            } else if agent.at == Some(at) {
                agent.online = false;
            }
        }
        let invocations: Vec<String> = listed.iter().map(|one| text(one, "invocation_id")).collect();
        for id in &invocations {
            if let Some(invocation) = self.invocations.get_mut(id) {
                invocation.done = true;
            }
        }
        self.reply(id, json!({"online": known.len(), "offline": 0}), 0);
        self.reschedule(&invocations, rng, 2_000);
        for (_, id) in known.iter().filter(|(_, id)| weather.inventory_replays || moved.contains(id)) {
            self.replay(Some(id), 0);
        }
        self.node_mut().inventory = Some(known);
    }
}
