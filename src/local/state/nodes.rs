//! Nodes over HTTP: minting, the roster, which agent is located where.
//!
//! A node is looked up by its name in the workspace; its id is global and chosen by the client at creation.

use serde_json::{Value, json};

use super::agents::direct_node_id;
use super::call::id;
use super::rows::{Agent, Node, Row};
use super::stamp::{digest, iso, node_token};
use super::{Answer, Call, Engine, Fail, Outcome};

impl Engine {
    pub(super) fn node_named(&self, ws: u64, name: &str) -> Result<&Node, Fail> {
        let found = self.t.nodes.values().find(|n| n.ws == ws && n.name == name);
        found.ok_or_else(|| Fail::new(404, "node_not_found", format!("Node \"{name}\" not found")))
    }

    /// Registered on an open socket.
    pub(super) fn node_is_live(&self, node: &str) -> bool {
        self.lives.get(node).is_some_and(|life| life.registered)
    }

    pub(super) fn agents_at(&self, node: &str) -> Vec<u64> {
        self.t.agents.values().filter(|a| a.node.as_deref() == Some(node)).map(|a| a.id).collect()
    }

    /// Whether one more online agent fits; `besides` is not counted.
    pub(super) fn has_room(&self, node: &Node, besides: u64) -> bool {
        let here = self.t.agents.values().filter(|a| a.online && a.id != besides && a.node.as_ref() == Some(&node.id));
        node.max_agents == 0 || (here.count() as u64) < node.max_agents
    }

    pub(super) fn node_view(&self, node: &Node) -> Value {
        let life = self.lives.get(&node.id).cloned().unwrap_or_default();
        json!({
            "id": node.id, "name": node.name, "kind": node.kind, "role": node.role,
            "delivery_adapter": node.adapter, "delivery": node.delivery, "capabilities": node.capabilities,
            "tags": node.tags, "version": node.version,
            "status": if life.registered { "online" } else { "offline" }, "live": life.registered,
            "handlers_live": life.handlers_live, "load": life.load, "active_agents": life.active_agents,
            "max_agents": node.max_agents, "last_heartbeat_at": life.last_heartbeat.map(iso),
            "created_at": iso(node.created_at),
        })
    }

    /// `POST /v1/nodes`: a node of that name gets a new token and answers with its own id; else it is created.
    pub fn mint_node(&mut self, call: &Call) -> Outcome {
        let name = call.text("name")?;
        let kind = call.optional("kind")?.unwrap_or_else(|| "ws".into());
        if kind != "ws" {
            return Err(Fail::invalid("This engine serves nodes of kind ws only"));
        }
        let role = call.optional("role")?.unwrap_or_else(|| "broker".into());
        let version = call.optional("version")?;
        let capabilities = call.texts("capabilities")?.unwrap_or_default();
        let tags = call.texts("tags")?.unwrap_or_default();
        let max_agents = call.body.get("max_agents").and_then(Value::as_u64).unwrap_or(0);
        let wanted = call.optional("node_id")?.filter(|id| !id.trim().is_empty());
        let token = node_token();
        let known = match &wanted {
            Some(wanted) if self.t.nodes.get(wanted).is_some_and(|n| n.ws != call.ws) => {
                return match self.node_named(call.ws, &name) {
                    Ok(row) => Ok(self.reminted(row.clone(), version, token)),
                    Err(_) => Err(Fail::new(500, "internal_error", "The node id belongs to another workspace")),
                };
            }
            Some(wanted) => self.node_named(call.ws, &name).ok().or_else(|| self.t.nodes.get(wanted)).cloned(),
            None => self.node_named(call.ws, &name).ok().cloned(),
        };
        if let Some(mut row) = known {
            row.name = name;
            return Ok(self.reminted(row, version, token));
        }
        let row = Node {
            id: wanted.unwrap_or_else(|| format!("node_{}", self.ids.next(self.now.unix))),
            ws: call.ws,
            name,
            kind,
            role,
            adapter: "ws".into(),
            delivery: Value::Null,
            capabilities: capabilities
                .into_iter()
                .map(|name| crate::wire::node::Capability { name, kind: None, metadata: None })
                .collect(),
            tags,
            version: version.unwrap_or_default(),
            max_agents,
            token_digest: digest(&token),
            created_at: self.now.unix,
            direct_agent: None,
        };
        self.put(Row::Node(row.clone()));
        Ok(self.with_token(&row, token))
    }

    fn reminted(&mut self, mut row: Node, version: Option<String>, token: String) -> Answer {
        row.version = version.unwrap_or(row.version);
        row.token_digest = digest(&token);
        self.put(Row::Node(row.clone()));
        self.with_token(&row, token)
    }

    fn with_token(&self, row: &Node, token: String) -> Answer {
        let mut view = self.node_view(row);
        view["token"] = Value::String(token);
        Answer::created(view)
    }

    /// `GET /v1/nodes`
    pub fn list_nodes(&mut self, call: &Call) -> Outcome {
        let nodes = self.t.nodes.values().filter(|n| {
            n.ws == call.ws
                && call.query.get("name").is_none_or(|name| *name == n.name)
                && call.query.get("capability").is_none_or(|wanted| n.capabilities.iter().any(|c| c.name == *wanted))
        });
        Ok(Answer::ok(nodes.map(|n| self.node_view(n)).collect()))
    }

    /// `GET /v1/nodes/:name`
    pub fn get_node(&mut self, call: &Call) -> Outcome {
        Ok(Answer::ok(self.node_view(self.node_named(call.ws, call.arg(0))?)))
    }

    /// `DELETE /v1/nodes/:name`: its socket is closed, its agents have no location any more.
    pub fn delete_node(&mut self, call: &Call) -> Outcome {
        let node = self.node_named(call.ws, call.arg(0))?.id.clone();
        self.close_link_of(&node, 1008, "node deleted");
        for agent in self.agents_at(&node) {
            if let Some(mut row) = self.t.agents.get(&agent).cloned() {
                row.node = None;
                row.online = false;
                self.put(Row::Agent(row));
            }
        }
        self.drop_declared_actions(call.ws, &node, &[]);
        self.put(Row::NodeGone { id: node });
        Ok(Answer::empty())
    }

    fn binding_view(&self, node: &Node, agent: &Agent) -> Value {
        json!({
            "id": format!("anb_{}", agent.id), "agent_id": id(agent.id), "agent_name": agent.name,
            "node_id": node.id, "node_name": node.name, "node_kind": node.kind, "node_role": node.role,
            "status": "active", "session_ref": agent.session_ref, "priority": agent.priority,
            "created_at": iso(agent.binding_at), "updated_at": iso(agent.binding_at),
        })
    }

    /// `GET /v1/nodes/:name/agents`
    pub fn list_bindings(&mut self, call: &Call) -> Outcome {
        let node = self.node_named(call.ws, call.arg(0))?;
        let agents = self.t.agents.values().filter(|a| a.node.as_ref() == Some(&node.id));
        Ok(Answer::ok(agents.map(|a| self.binding_view(node, a)).collect()))
    }

    /// `POST /v1/nodes/:name/agents`: moves the agent here from whatever node it had; its backlog follows.
    pub fn bind_agent(&mut self, call: &Call) -> Outcome {
        let node = self.node_named(call.ws, call.arg(0))?.clone();
        let mut agent = self.agent_named(call.ws, &call.text("agent_name")?)?.clone();
        if !self.has_room(&node, agent.id) {
            return Err(Fail::new(409, "node_capacity_exceeded", "The node takes no more agents"));
        }
        agent.session_ref = call.optional("session_ref")?.or(agent.session_ref);
        agent.priority = call.body.get("priority").and_then(Value::as_i64).unwrap_or(0);
        agent.node = Some(node.id.clone());
        agent.binding_at = self.now.unix;
        agent.online = self.node_is_live(&node.id);
        self.put(Row::Agent(agent.clone()));
        self.replay_mailbox(agent.id);
        Ok(Answer::created(self.binding_view(&node, &agent)))
    }

    /// `DELETE /v1/nodes/:name/agents/:agent`
    pub fn unbind_agent(&mut self, call: &Call) -> Outcome {
        let node = self.node_named(call.ws, call.arg(0))?.id.clone();
        let mut agent = self.agent_named(call.ws, call.arg(1))?.clone();
        if agent.node.as_ref() != Some(&node) {
            return Err(Fail::new(404, "agent_not_node_bound", "The agent is not located at this node"));
        }
        agent.node = None;
        agent.online = false;
        self.put(Row::Agent(agent));
        Ok(Answer::empty())
    }

    /// `POST /v1/agent/node-token`: the node that the agent itself is. It becomes the agent's location unless a broker
    /// has the agent: then the socket opens, but what is for the agent goes to the broker.
    pub fn direct_node_token(&mut self, call: &Call) -> Outcome {
        let mut agent = self.agent(call.agent)?.clone();
        let token = node_token();
        let node_id = direct_node_id(agent.id);
        let row = match self.t.nodes.get(&node_id).cloned() {
            Some(row) => Node { token_digest: digest(&token), ..row },
            None => Node {
                id: node_id.clone(),
                ws: call.ws,
                name: format!("direct-{}", agent.id),
                kind: "ws".into(),
                role: "direct".into(),
                adapter: "ws".into(),
                delivery: Value::Null,
                capabilities: Vec::new(),
                tags: vec!["implicit".into(), "direct".into()],
                version: String::new(),
                max_agents: 1,
                token_digest: digest(&token),
                created_at: self.now.unix,
                direct_agent: Some(agent.id),
            },
        };
        let answer = json!({"node_id": row.id, "node_name": row.name, "token": token});
        self.put(Row::Node(row));
        if agent.node.is_none() {
            agent.node = Some(node_id);
            agent.binding_at = self.now.unix;
            self.put(Row::Agent(agent));
        }
        Ok(Answer::created(answer))
    }
}
