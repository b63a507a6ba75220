//! The node socket: who is connected, and what each frame does.
//!
//! A node has at most one link; a later one closes the earlier with 1000 `superseded`. When a link ends, its node's
//! agents go offline and its open invocations are offered elsewhere. A node whose last heartbeat is 45 s old is closed
//! by the engine.

use serde_json::{Map, Value, json};

use super::agents::{LONGEST_NAME, direct_node_id};
use super::call::id;
use super::frames::{Frame, Invalid};
use super::rows::{Handler, InvocationStatus, Node, Origin, Row};
use super::stamp::{agent_token, digest};
use super::tables::Owner;
use super::{Engine, Fail, LinkId, NODE_DEAD_MS, NodeLife, Out, PRESENCE_MS, Timer};

/// What a frame is answered with: data for `reply`, or code and message for `error`.
type Verdict = Result<Option<Value>, (&'static str, String)>;

impl Engine {
    /// Admits a socket that presents `token`.
    ///
    /// # Errors
    /// 401 `node_token_invalid`.
    pub fn open_link(&mut self, token: Option<&str>) -> Result<LinkId, Fail> {
        let token = token.map(str::trim).unwrap_or_default();
        let Some(Owner::Node(node)) = self.t.owners.get(&digest(token)).cloned() else {
            return Err(Fail::new(401, "node_token_invalid", "Invalid node token"));
        };
        self.close_link_of(&node, 1000, "superseded");
        self.next_link += 1;
        let link = self.next_link;
        self.links.insert(link, node.clone());
        let life = self.lives.entry(node.clone()).or_default();
        *life = NodeLife {
            link: Some(link),
            last_heartbeat: life.last_heartbeat,
            heard_mono: self.now.mono,
            ..NodeLife::default()
        };
        self.after(NODE_DEAD_MS, Timer::NodeSilent(node));
        Ok(link)
    }

    /// The socket is gone, whoever closed it.
    pub fn close_link(&mut self, link: LinkId) {
        if let Some(node) = self.links.remove(&link) {
            self.node_down(&node);
        }
    }

    pub(super) fn close_link_of(&mut self, node: &str, code: u16, reason: &'static str) {
        if let Some(link) = self.lives.get(node).and_then(|life| life.link) {
            self.out.push(Out::Close { link, code, reason });
            self.close_link(link);
        }
    }

    pub(super) fn send(&mut self, link: LinkId, frame: &Value) {
        self.out.push(Out::Frame { link, text: frame.to_string() });
    }

    /// The link over which an agent can be reached, and its name.
    pub(super) fn link_of_agent(&self, agent: u64) -> Option<(LinkId, String)> {
        let agent = self.t.agents.get(&agent)?;
        let life = self.lives.get(agent.node.as_deref()?).filter(|life| life.registered)?;
        Some((life.link?, agent.name.clone()))
    }

    /// The node no longer speaks: agents offline, open invocations elsewhere.
    fn node_down(&mut self, node: &str) {
        if let Some(life) = self.lives.get_mut(node) {
            *life = NodeLife { last_heartbeat: life.last_heartbeat, ..NodeLife::default() };
        }
        self.disarm(|timer| *timer == Timer::NodeSilent(node.to_string()));
        for agent in self.agents_at(node) {
            self.set_online(agent, false);
        }
        for invocation in self.dispatched_to(node) {
            self.reschedule(&invocation, node);
        }
    }

    pub(super) fn node_silent(&mut self, node: &str) {
        let Some(life) = self.lives.get(node).filter(|life| life.link.is_some()) else { return };
        let due = life.heard_mono + NODE_DEAD_MS;
        if due > self.now.mono {
            self.after(due - self.now.mono, Timer::NodeSilent(node.to_string()));
        } else {
            self.close_link_of(node, 1001, "heartbeat timeout");
        }
    }

    /// One text message of a node. A link that was closed meanwhile is not listened to.
    pub fn hear(&mut self, link: LinkId, raw: &str) {
        let Some(node) = self.links.get(&link).and_then(|node| self.t.nodes.get(node)).cloned() else { return };
        let frame = match Frame::read(raw) {
            Ok(frame) => frame,
            Err(Invalid { id, why }) => {
                return self.refuse(link, id, "invalid_message", &format!("Invalid message: {why}"));
            }
        };
        if !matches!(frame.kind, "node.register" | "node.heartbeat") && !self.node_is_live(&node.id) {
            return self.refuse(link, frame.id, "node_not_registered", "Send node.register first");
        }
        let verdict = match frame.kind {
            "node.register" => self.hear_register(&node, &frame),
            "node.heartbeat" => self.hear_heartbeat(&node, &frame),
            "node.deregister" => {
                let last = self.lives.get(&node.id).and_then(|life| life.link);
                self.node_down(&node.id);
                if let (Some(life), Some(link)) = (self.lives.get_mut(&node.id), last) {
                    life.link = Some(link);
                }
                Ok(None)
            }
            "agent.register" => self.hear_agent_register(&node, &frame),
            "agent.deregister" => self.hear_agent_deregister(&node, &frame),
            "delivery.ack" => {
                self.acknowledge(&node.id, node.ws, frame.text("agent"), frame.count("up_to_seq").unwrap_or(0));
                Ok(None)
            }
            "action.result" => {
                self.hear_result(&node.id, node.ws, frame.text("invocation_id"), frame.outcome());
                Ok(None)
            }
            _ => self.hear_inventory(&node, &frame),
        };
        match verdict {
            Ok(None) => {}
            Err((code, message)) => self.refuse(link, frame.id, code, &message),
            Ok(Some(data)) => {
                let reply_id = frame.id.clone().unwrap_or_else(|| format!("reply_{}", self.ids.next(self.now.unix)));
                self.send(link, &json!({"v": 1, "type": "reply", "id": reply_id, "ok": true, "data": data}));
                self.follow_up(&node, &frame, &data);
            }
        }
    }

    fn refuse(&mut self, link: LinkId, id: Option<String>, code: &str, message: &str) {
        let id = id.unwrap_or_else(|| format!("error_{}", self.ids.next(self.now.unix)));
        self.send(link, &json!({"v": 1, "type": "error", "id": id, "ok": false, "code": code, "message": message}));
    }

    /// What comes after a reply: the backlog of those it concerns, then invocations that waited for this node.
    fn follow_up(&mut self, node: &Node, frame: &Frame, data: &Value) {
        match frame.kind {
            "node.register" => {
                for agent in self.agents_at(&node.id) {
                    self.replay_mailbox(agent);
                }
                self.offer_pending(node.ws, &node.id);
            }
            "agent.register" => {
                if let Some(agent) = data["agent_id"].as_str().and_then(|id| id.parse().ok()) {
                    self.replay_mailbox(agent);
                }
            }
            "inventory.sync" => {
                for item in frame.inventory() {
                    if let Some(agent) = agent_of(&item) {
                        self.replay_mailbox(agent);
                    }
                }
                // What was listed is done by now.
                for invocation in self.dispatched_to(&node.id) {
                    self.send_again(&invocation);
                }
                self.offer_pending(node.ws, &node.id);
            }
            _ => {}
        }
    }

    fn hear_register(&mut self, node: &Node, frame: &Frame) -> Verdict {
        if frame.text("node_id") != node.id {
            return Err(("node_id_mismatch", "The token belongs to another node id".into()));
        }
        let name = frame.text("name");
        if self.node_named(node.ws, name).is_ok_and(|other| other.id != node.id) {
            return Err(("node_name_conflict", format!("The name \"{name}\" belongs to another node")));
        }
        let row = Node {
            name: name.to_string(),
            capabilities: frame.capabilities().unwrap_or_default(),
            tags: frame.texts("tags"),
            version: frame.text("version").to_string(),
            max_agents: frame.count("max_agents").unwrap_or(0),
            ..node.clone()
        };
        if row != *node {
            self.put(Row::Node(row.clone()));
        }
        if let Some(life) = self.lives.get_mut(&node.id) {
            life.registered = true;
            life.heard_mono = self.now.mono;
        }
        self.after(NODE_DEAD_MS, Timer::NodeSilent(node.id.clone()));
        self.declare_actions(&row);
        if let Some(agent) = row.direct_agent
            && self.t.agents.get(&agent).is_some_and(|a| a.node.as_ref() == Some(&row.id))
        {
            self.set_online(agent, true);
            self.after(PRESENCE_MS, Timer::AgentQuiet(agent));
        }
        Ok(Some(self.node_view(&row)))
    }

    fn hear_heartbeat(&mut self, node: &Node, frame: &Frame) -> Verdict {
        if frame.optional("node_id").is_some_and(|id| id != node.id) {
            return Err(("node_id_mismatch", "The token belongs to another node id".into()));
        }
        let mut row = node.clone();
        if let Some(capabilities) = frame.capabilities() {
            row.capabilities = capabilities;
        }
        if let Some(max_agents) = frame.count("max_agents") {
            row.max_agents = max_agents;
        }
        if let Some(version) = frame.optional("version") {
            row.version = version.to_string();
        }
        if row != *node {
            self.declare_actions(&row);
            self.put(Row::Node(row));
        }
        let Some(life) = self.lives.get_mut(&node.id) else { return Ok(None) };
        let woke = frame.flag("handlers_live") && !life.handlers_live;
        life.handlers_live = frame.flag("handlers_live");
        life.load = frame.measure("load");
        life.active_agents = frame.count("active_agents").unwrap_or(0);
        life.last_heartbeat = Some(self.now.unix);
        life.heard_mono = self.now.mono;
        if woke && life.registered {
            self.offer_pending(node.ws, &node.id);
        }
        Ok(None)
    }

    fn hear_agent_register(&mut self, node: &Node, frame: &Frame) -> Verdict {
        let name = frame.text("name").trim();
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(("invalid_message", "Invalid message: `name` is blank or too long".into()));
        }
        let known = self.agent_named(node.ws, name).ok().cloned();
        if let Some(agent) = &known {
            let here = agent.node.as_ref() == Some(&node.id);
            let by_itself = agent.node.as_deref() == Some(direct_node_id(agent.id).as_str());
            if agent.online && !here && !by_itself {
                return Err(("agent_location_conflict", format!("Agent \"{name}\" is active elsewhere")));
            }
        }
        if !self.has_room(node, known.as_ref().map_or(0, |agent| agent.id)) {
            return Err(("node_capacity_exceeded", "The node takes no more agents".into()));
        }
        let mut agent = match known {
            Some(agent) => agent,
            None => self.new_agent(node.ws, name, "agent").0,
        };
        let token = agent_token();
        agent.token_digest = Some(digest(&token));
        agent.online = true;
        agent.node = Some(node.id.clone());
        agent.binding_at = self.now.unix;
        agent.session_ref = frame.optional("session_ref").map(str::to_string);
        if let Some(session_ref) = agent.session_ref.clone().filter(|_| frame.flag("resumable")) {
            agent.origin = Some(Origin { session_ref, node: node.id.clone() });
        }
        let data = json!({"agent_id": id(agent.id), "token": token, "name": agent.name});
        self.put(Row::Agent(agent));
        Ok(Some(data))
    }

    fn hear_agent_deregister(&mut self, node: &Node, frame: &Frame) -> Verdict {
        let agent = frame.text("agent_id").parse().ok().and_then(|id| self.t.agents.get(&id));
        let Some(agent) = agent.filter(|agent| agent.ws == node.ws) else {
            return Err(("agent_not_found", "Agent not found".into()));
        };
        if agent.node.as_ref() != Some(&node.id) {
            return Err(("agent_location_conflict", format!("Agent \"{}\" is not located at this node", agent.name)));
        }
        let agent = agent.id;
        self.release_agent_row(agent);
        self.settle_releases(agent);
        Ok(None)
    }

    /// Listed agents are online here, the node's other agents offline; a listed invocation is done, an open one that is
    /// not listed is sent again. A node that was away does not get back what another node has now.
    fn hear_inventory(&mut self, node: &Node, frame: &Frame) -> Verdict {
        let items = frame.inventory();
        let listed: Vec<u64> = items.iter().filter_map(agent_of).collect();
        for agent in listed.iter().filter_map(|agent| self.t.agents.get(agent)) {
            if agent.online && agent.node.as_ref() != Some(&node.id) {
                return Err(("agent_location_conflict", format!("Agent \"{}\" is active elsewhere", agent.name)));
            }
        }
        for item in &items {
            let invocation =
                item.get("invocation_id").and_then(Value::as_str).and_then(|id| self.t.invocations.get(id));
            let elsewhere = invocation
                .filter(|row| row.status == InvocationStatus::Dispatched && row.ws == node.ws)
                .is_some_and(|row| row.dispatched_node.as_ref() != Some(&node.id));
            if elsewhere {
                let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
                return Err(("agent_location_conflict", format!("Agent \"{name}\" is being started elsewhere")));
            }
        }
        let (mut online, mut offline) = (0, 0);
        for item in &items {
            let agent = agent_of(item).and_then(|agent| self.t.agents.get(&agent)).filter(|a| a.ws == node.ws).cloned();
            let Some(mut agent) = agent else { continue };
            online += 1;
            let before = agent.clone();
            agent.online = true;
            agent.node = Some(node.id.clone());
            if let Some(session) = item.get("session_ref").and_then(Value::as_str) {
                agent.session_ref = Some(session.to_string());
                agent.origin = Some(Origin { session_ref: session.to_string(), node: node.id.clone() });
            }
            if agent != before {
                self.put(Row::Agent(agent));
            }
        }
        for agent in self.agents_at(&node.id) {
            if !listed.contains(&agent) && self.t.agents.get(&agent).is_some_and(|a| a.online) {
                offline += 1;
                self.set_online(agent, false);
            }
        }
        let mut completed = 0;
        let named: Vec<(&str, &Map<String, Value>)> =
            items.iter().filter_map(|item| Some((item.get("invocation_id")?.as_str()?, item))).collect();
        for (invocation, item) in &named {
            let spawn = self.t.invocations.get(*invocation).filter(|i| i.ws == node.ws && i.status.open());
            if spawn.is_some_and(|i| matches!(i.handler, Handler::Spawn { .. } | Handler::Capability { .. })) {
                completed += 1;
                let output = json!({"agent_id": item.get("agent_id"), "name": item.get("name")});
                self.finish(invocation, Ok(output), None);
            }
        }
        let rescheduled = self.dispatched_to(&node.id).len();
        Ok(Some(json!({
            "agents": items.len(), "online": online, "offline": offline,
            "completed_invocations": completed, "rescheduled_invocations": rescheduled,
        })))
    }
}

fn agent_of(item: &Map<String, Value>) -> Option<u64> {
    item.get("agent_id")?.as_str()?.parse().ok()
}
