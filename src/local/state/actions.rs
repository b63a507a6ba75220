//! Actions: something that an agent or a node does for others. A node's capabilities are actions of its workspace as
//! long as it declares them (all but `spawn:<cli>`, which only place spawns).

use serde_json::{Value, json};

use super::call::id;
use super::rows::{Action, Handler, Node, Row};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, Outcome};

impl Engine {
    pub(super) fn action_named(&self, ws: u64, name: &str) -> Result<&Action, Fail> {
        self.t
            .actions
            .get(&(ws, name.to_string()))
            .ok_or_else(|| Fail::new(404, "action_not_found", format!("Action \"{name}\" not found")))
    }

    fn action_view(&self, action: &Action) -> Value {
        let node = action.handler_node.as_ref().and_then(|node| self.t.nodes.get(node));
        json!({
            "id": action.id, "name": action.name, "description": action.description,
            "handler_agent": action.handler_agent.map(|agent| self.agent_name(agent)),
            "handler_node": node.map(|n| &n.name), "handler_node_id": action.handler_node,
            "input_schema": action.input_schema, "output_schema": action.output_schema,
            "available_to": action.available_to, "is_active": true, "created_at": iso(action.created_at),
        })
    }

    /// `POST /v1/actions`. Without `handler_agent` and `handler_node` the calling agent handles it. The same handler
    /// may register again; a name that another one has is a conflict.
    pub fn register_action(&mut self, call: &Call) -> Outcome {
        let name = call.text("name")?;
        let description = call.optional("description")?.unwrap_or_default();
        let handler_node = match call.optional("handler_node")? {
            Some(node) => Some(self.node_named(call.ws, &node)?.id.clone()),
            None => None,
        };
        let handler_agent = match call.optional("handler_agent")? {
            Some(agent) => Some(self.agent_named(call.ws, &agent)?.id),
            None if handler_node.is_none() && call.agent != 0 => Some(call.agent),
            None => None,
        };
        if handler_agent.is_none() && handler_node.is_none() {
            return Err(Fail::invalid("`handler_agent` or `handler_node` is needed"));
        }
        let available_to = call.texts("available_to")?;
        let known = self.action_named(call.ws, &name).ok();
        let same = known.is_some_and(|a| a.handler_agent == handler_agent && a.handler_node == handler_node);
        if known.is_some() && !same {
            return Err(Fail::new(409, "action_already_exists", format!("Action \"{name}\" already exists")));
        }
        let row = Action {
            ws: call.ws,
            id: known.map(|a| a.id.clone()).unwrap_or_else(|| format!("act_{}", self.ids.next(self.now.unix))),
            name,
            description,
            handler_agent,
            handler_node,
            input_schema: json!(call.object("input_schema")?.unwrap_or_default()),
            output_schema: json!(call.object("output_schema")?.unwrap_or_default()),
            available_to,
            declared: false,
            created_at: self.now.unix,
        };
        let view = self.action_view(&row);
        self.put(Row::Action(row));
        Ok(Answer { status: if same { 200 } else { 201 }, data: Some(view) })
    }

    /// `GET /v1/actions`
    pub fn list_actions(&mut self, call: &Call) -> Outcome {
        let actions = self.t.actions.values().filter(|a| a.ws == call.ws);
        Ok(Answer::ok(actions.map(|a| self.action_view(a)).collect()))
    }

    /// `GET /v1/actions/:name`
    pub fn get_action(&mut self, call: &Call) -> Outcome {
        Ok(Answer::ok(self.action_view(self.action_named(call.ws, call.arg(0))?)))
    }

    /// `DELETE /v1/actions/:name`
    pub fn delete_action(&mut self, call: &Call) -> Outcome {
        let name = self.action_named(call.ws, call.arg(0))?.name.clone();
        self.put(Row::ActionGone { ws: call.ws, name });
        Ok(Answer::empty())
    }

    /// `POST /v1/actions/:name/invoke`. `spawn`, `spawn:<cli>` and `release` are always there.
    pub fn invoke_action(&mut self, call: &Call) -> Outcome {
        let name = call.arg(0).to_string();
        let input = call.body.get("input").cloned().unwrap_or_else(|| json!({}));
        if name == "spawn" || name.starts_with("spawn:") {
            return self.invoke_spawn(call, &name, input);
        }
        if name == "release" && self.action_named(call.ws, &name).is_err() {
            return self.invoke_release(call, input);
        }
        let action = self.action_named(call.ws, &name)?.clone();
        let caller_name = (call.agent != 0).then(|| self.agent_name(call.agent));
        let denied = action
            .available_to
            .as_ref()
            .is_some_and(|allowed| caller_name.as_ref().is_some_and(|caller| !allowed.contains(caller)));
        if denied {
            let error = format!("Agent \"{}\" may not invoke \"{name}\"", caller_name.clone().unwrap_or_default());
            let data = json!({"action_name": name, "caller_name": caller_name, "error": error});
            self.tell(call.agent, "action.denied", &name, data);
            return Err(Fail::new(403, "action_denied", error));
        }
        let handler = match (action.handler_agent, action.handler_node) {
            (Some(agent), _) => Handler::Agent(agent),
            (None, pinned) => Handler::Capability { name: name.clone(), pinned },
        };
        self.start_invocation(call, &name, handler, input)
    }

    /// Makes the actions that a node declares, and takes away those it no longer does, unless another live node
    /// declares them too. A name that is taken stays with its handler.
    pub(super) fn declare_actions(&mut self, node: &Node) {
        let names: Vec<String> =
            node.capabilities.iter().map(|c| c.name.clone()).filter(|name| !name.starts_with("spawn:")).collect();
        self.drop_declared_actions(node.ws, &node.id, &names);
        for name in names {
            if self.action_named(node.ws, &name).is_err() {
                let row = Action {
                    ws: node.ws,
                    id: format!("act_{}", self.ids.next(self.now.unix)),
                    name,
                    description: format!("Declared by node {}", node.name),
                    handler_agent: None,
                    handler_node: Some(node.id.clone()),
                    input_schema: json!({}),
                    output_schema: json!({}),
                    available_to: None,
                    declared: true,
                    created_at: self.now.unix,
                };
                self.put(Row::Action(row));
            }
        }
    }

    pub(super) fn drop_declared_actions(&mut self, ws: u64, node: &str, kept: &[String]) {
        let gone: Vec<String> = self
            .t
            .actions
            .values()
            .filter(|a| a.ws == ws && a.declared && a.handler_node.as_deref() == Some(node) && !kept.contains(&a.name))
            .map(|a| a.name.clone())
            .collect();
        for name in gone {
            let heir = self.t.nodes.values().find(|n| {
                n.ws == ws && n.id != node && self.node_is_live(&n.id) && n.capabilities.iter().any(|c| c.name == name)
            });
            match (heir.map(|n| n.id.clone()), self.action_named(ws, &name).ok().cloned()) {
                (Some(heir), Some(action)) => self.put(Row::Action(Action { handler_node: Some(heir), ..action })),
                _ => self.put(Row::ActionGone { ws, name }),
            }
        }
    }

    pub(super) fn handler_ids(&self, handler: &Handler) -> (Value, Value) {
        match handler {
            Handler::Agent(agent) => (id(*agent), Value::Null),
            Handler::Capability { pinned, .. } => (Value::Null, json!(pinned)),
            Handler::Spawn { .. } => (Value::Null, Value::Null),
            Handler::Release { node, .. } => (Value::Null, json!(node)),
        }
    }
}
