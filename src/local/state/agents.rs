//! Agents: names, tokens, presence, location.
//!
//! An agent registered over HTTP is online without a node, and goes offline after five minutes without a request of its
//! own. An agent located at a broker's node follows that node; its own heartbeats and disconnects change nothing.

use serde_json::{Map, Value, json};

use super::call::id;
use super::rows::{Agent, Row};
use super::stamp::{agent_token, digest, iso};
use super::{Answer, Call, Engine, Fail, Outcome, PRESENCE_MS, Timer};

/// Longest name of an agent, in bytes.
pub(super) const LONGEST_NAME: usize = 255;
const KINDS: [&str; 3] = ["agent", "human", "system"];

impl Engine {
    pub(super) fn agent_named(&self, ws: u64, name: &str) -> Result<&Agent, Fail> {
        self.t
            .agent_names
            .get(&(ws, name.to_string()))
            .and_then(|id| self.t.agents.get(id))
            .ok_or_else(|| Fail::new(404, "agent_not_found", format!("Agent \"{name}\" not found")))
    }

    pub(super) fn agent(&self, id: u64) -> Result<&Agent, Fail> {
        self.t.agents.get(&id).ok_or_else(|| Fail::new(404, "agent_not_found", "Agent not found"))
    }

    pub(super) fn agent_name(&self, id: u64) -> String {
        self.t.agents.get(&id).map(|a| a.name.clone()).unwrap_or_default()
    }

    /// Makes an agent with a fresh token and lets it join `general`.
    pub(super) fn new_agent(&mut self, ws: u64, name: &str, kind: &str) -> (Agent, String) {
        let token = agent_token();
        let agent = Agent {
            id: self.next_id(),
            ws,
            name: name.to_string(),
            kind: kind.to_string(),
            persona: None,
            metadata: Map::new(),
            capabilities: Map::new(),
            token_digest: Some(digest(&token)),
            online: true,
            node: None,
            session_ref: None,
            origin: None,
            binding_at: self.now.unix,
            priority: 0,
            last_seen: self.now.unix,
            created_at: self.now.unix,
        };
        self.put(Row::Agent(agent.clone()));
        let general = self.ensure_general(ws);
        self.add_member(general, agent.id, false);
        (agent, token)
    }

    /// `POST /v1/agents`
    pub fn register_agent(&mut self, call: &Call) -> Outcome {
        let name = call.text("name")?.trim().to_string();
        if name.len() > LONGEST_NAME {
            return Err(Fail::invalid(format!("`name` is longer than {LONGEST_NAME} bytes")));
        }
        let kind = call.optional("type")?.unwrap_or_else(|| "agent".into());
        if !KINDS.contains(&kind.as_str()) {
            return Err(Fail::invalid("`type` must be agent, human or system"));
        }
        let (persona, metadata) = (call.optional("persona")?, call.object("metadata")?);
        let capabilities = call.object("capabilities")?;
        if self.agent_named(call.ws, &name).is_ok() {
            return Err(Fail::new(409, "agent_already_exists", format!("Agent \"{name}\" already exists")));
        }
        let (mut agent, token) = self.new_agent(call.ws, &name, &kind);
        agent.persona = persona;
        agent.metadata = metadata.unwrap_or_default();
        agent.capabilities = capabilities.unwrap_or_default();
        self.put(Row::Agent(agent.clone()));
        self.after(PRESENCE_MS, Timer::AgentQuiet(agent.id));
        Ok(Answer::created(json!({
            "id": id(agent.id), "name": agent.name, "handle": format!("@{}", agent.name), "token": token,
            "status": "online", "workspace_id": id(agent.ws), "capabilities": agent.capabilities,
            "created_at": iso(agent.created_at),
        })))
    }

    pub(super) fn agent_view(&self, agent: &Agent, with_channels: bool) -> Value {
        let mut view = json!({
            "id": id(agent.id), "workspace_id": id(agent.ws), "name": agent.name,
            "handle": format!("@{}", agent.name), "type": agent.kind, "status": status(agent.online),
            "persona": agent.persona, "metadata": agent.metadata, "capabilities": agent.capabilities,
            "node_id": agent.node, "last_seen": iso(agent.last_seen), "created_at": iso(agent.created_at),
        });
        if with_channels {
            let channels = self.t.joined.get(&agent.id).into_iter().flatten().filter_map(|channel| {
                let row = self.t.channels.get(channel).filter(|row| !row.name.is_empty() && self.is_public(row.id))?;
                let member = self.t.members.get(&(*channel, agent.id))?;
                Some(json!({"id": id(row.id), "name": row.name, "role": role(member.owner), "joined_at": iso(member.joined_at)}))
            });
            view["channels"] = channels.collect();
        }
        view
    }

    /// `GET /v1/agents`
    pub fn list_agents(&mut self, call: &Call) -> Outcome {
        let wanted = call.query.get("status").map(String::as_str).filter(|s| *s != "all");
        let agents = self.t.agents.values().filter(|a| a.ws == call.ws);
        let agents = agents.filter(|a| wanted.is_none_or(|w| w == status(a.online)));
        Ok(Answer::ok(agents.map(|a| self.agent_view(a, false)).collect()))
    }

    /// `GET /v1/agents/presence`
    pub fn presence(&mut self, call: &Call) -> Outcome {
        let agents = self.t.agents.values().filter(|a| a.ws == call.ws);
        Ok(Answer::ok(
            agents.map(|a| json!({"agent_id": id(a.id), "agent_name": a.name, "status": status(a.online)})).collect(),
        ))
    }

    /// `GET /v1/agents/:name`
    pub fn get_agent(&mut self, call: &Call) -> Outcome {
        let agent = self.agent_named(call.ws, call.arg(0))?;
        Ok(Answer::ok(self.agent_view(agent, true)))
    }

    /// `GET /v1/agent`: the owner of the token.
    pub fn me(&mut self, call: &Call) -> Outcome {
        Ok(Answer::ok(self.agent_view(self.agent(call.agent)?, true)))
    }

    /// `PATCH /v1/agents/:name`
    pub fn update_agent(&mut self, call: &Call) -> Outcome {
        let mut agent = self.agent_named(call.ws, call.arg(0))?.clone();
        if call.agent != 0 && call.agent != agent.id {
            return Err(Fail::new(403, "forbidden", "An agent may change only itself"));
        }
        if call.body.contains_key("persona") {
            agent.persona = call.optional("persona")?;
        }
        if let Some(metadata) = call.object("metadata")? {
            agent.metadata = metadata;
        }
        match call.optional("status")?.as_deref() {
            None => {}
            Some("online" | "away") => agent.online = true,
            Some("offline") => agent.online = false,
            Some(_) => return Err(Fail::invalid("`status` must be online, offline or away")),
        }
        self.put(Row::Agent(agent.clone()));
        if agent.online {
            self.after(PRESENCE_MS, Timer::AgentQuiet(agent.id));
        }
        Ok(Answer::ok(self.agent_view(&agent, true)))
    }

    /// `DELETE /v1/agents/:name`
    pub fn delete_agent(&mut self, call: &Call) -> Outcome {
        let agent = self.agent_named(call.ws, call.arg(0))?.id;
        self.forget_agent(agent);
        Ok(Answer::empty())
    }

    pub(super) fn forget_agent(&mut self, agent: u64) {
        let direct = direct_node_id(agent);
        if self.t.nodes.contains_key(&direct) {
            self.close_link_of(&direct, 1008, "agent deleted");
            self.put(Row::NodeGone { id: direct });
        }
        self.disarm(|timer| *timer == Timer::AgentQuiet(agent));
        self.put(Row::AgentGone { id: agent });
    }

    /// `POST /v1/agents/:name/rotate-token`: the old token is dead at once.
    pub fn rotate_token(&mut self, call: &Call) -> Outcome {
        let mut agent = self.agent_named(call.ws, call.arg(0))?.clone();
        let token = agent_token();
        agent.token_digest = Some(digest(&token));
        let answer = json!({"name": agent.name, "token": token});
        self.put(Row::Agent(agent));
        Ok(Answer::ok(answer))
    }

    /// `POST /v1/agents/heartbeat`
    pub fn agent_heartbeat(&mut self, call: &Call) -> Outcome {
        let agent = self.agent(call.agent)?;
        if !self.follows_a_broker(agent) && !agent.online {
            let id = agent.id;
            self.set_online(id, true);
            self.after(PRESENCE_MS, Timer::AgentQuiet(id));
        }
        Ok(Answer::done())
    }

    /// `POST /v1/agents/disconnect`
    pub fn agent_disconnect(&mut self, call: &Call) -> Outcome {
        let agent = self.agent(call.agent)?;
        if !self.follows_a_broker(agent) {
            self.set_online(call.agent, false);
            self.disarm(|timer| *timer == Timer::AgentQuiet(call.agent));
        }
        Ok(Answer::done())
    }

    /// Located at a node that is not its own implicit one.
    pub(super) fn follows_a_broker(&self, agent: &Agent) -> bool {
        agent.node.as_deref().is_some_and(|node| node != direct_node_id(agent.id))
    }

    pub(super) fn set_online(&mut self, agent: u64, online: bool) {
        if let Some(mut row) = self.t.agents.get(&agent).filter(|row| row.online != online).cloned() {
            row.online = online;
            self.put(Row::Agent(row));
        }
    }

    /// The five minutes are over: offline, unless there was a request in between or a node speaks for it.
    pub(super) fn agent_quiet(&mut self, agent: u64) {
        let Some(row) = self.t.agents.get(&agent).filter(|row| row.online) else { return };
        if row.node.as_deref().is_some_and(|node| self.node_is_live(node)) || self.follows_a_broker(row) {
            // A broker's agent is its node's matter; a direct one is asked again after its connection.
            if !self.follows_a_broker(row) {
                self.after(PRESENCE_MS, Timer::AgentQuiet(agent));
            }
            return;
        }
        let quiet = self.now.unix.saturating_sub(row.last_seen);
        if quiet < PRESENCE_MS {
            self.after(PRESENCE_MS - quiet, Timer::AgentQuiet(agent));
        } else {
            self.set_online(agent, false);
        }
    }

    /// Takes the agent off its node and kills its token.
    pub(super) fn release_agent_row(&mut self, agent: u64) {
        if let Some(mut row) = self.t.agents.get(&agent).cloned() {
            row.node = None;
            row.online = false;
            row.token_digest = None;
            row.session_ref = None;
            self.put(Row::Agent(row));
        }
    }
}

/// The node that an agent is when it connects by itself.
pub(super) fn direct_node_id(agent: u64) -> String {
    format!("node_direct_{agent}")
}

pub(super) fn status(online: bool) -> &'static str {
    if online { "online" } else { "offline" }
}

pub(super) fn role(owner: bool) -> &'static str {
    if owner { "owner" } else { "member" }
}
