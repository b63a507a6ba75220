//! Invocations: one request to a handler, answered by exactly one result.
//!
//! Who gets it
//! - an agent's action: the node where the agent is located; it waits while that node is away;
//! - a declared action: live nodes that declare it and have live handlers, the pinned one first;
//! - `release`: the node of the agent; it waits while that node is away;
//! - `spawn` with input `{name, cli, node?, session_ref?}`: a node that declares a bare `spawn` takes every spawn of the
//!   workspace. Else the node named by `node` (or `target`, `target_node`); without one the node where the session
//!   `session_ref` was recorded as resumable: when it is live and has room. A node that declares capabilities must declare
//!   `spawn:<capability or cli>` (else 409 `capability_mismatch`); one that declares none is a broker that runs any spawn
//!   itself. Else live nodes with `spawn:<capability or cli>`, live handlers and room: the one with the least load, and
//!   among equals the one with the fewest agents. Else 503 `handler_unavailable`, and nothing is kept.
//!
//! Without an answer in 30 s (except from an agent that is its own node) it goes to another candidate, or later to the
//! same one again, under the same id, after 5 s, 10 s … 60 s. The error `handler_unavailable`, or the end of the node's
//! connection, does the same at once. A node that lost an invocation to another has no say in it any more. It fails for
//! good after 24 h.

use serde_json::{Value, json};

use super::call::id;
use super::rows::{Handler, Invocation, InvocationStatus, Node, Row};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, Outcome, Timer};

/// An unanswered invocation is offered again after this.
pub const UNANSWERED_MS: u64 = 30_000;
/// An open invocation fails after this.
pub const LIFETIME_MS: u64 = 24 * 3_600_000;
/// Open invocations of a workspace; more are refused.
const OPEN_MOST: usize = 10_000;

/// 5, 10, 20, 40, 60, 60 … seconds.
fn back_off_ms(attempts: u32) -> u64 {
    (5_000u64 << attempts.saturating_sub(1).min(4)).min(60_000)
}

fn input_text<'a>(input: &'a Value, keys: &[&str]) -> Option<&'a str> {
    keys.iter().filter_map(|key| input.get(key)?.as_str()).map(str::trim).find(|text| !text.is_empty())
}

impl Engine {
    /// `POST /v1/agents/spawn`
    pub fn spawn_agent(&mut self, call: &Call) -> Outcome {
        self.invoke_spawn(call, "spawn", Value::Object(call.body.clone()))
    }

    /// `POST /v1/agents/release`
    pub fn release_agent(&mut self, call: &Call) -> Outcome {
        self.invoke_release(call, Value::Object(call.body.clone()))
    }

    pub(super) fn invoke_spawn(&mut self, call: &Call, action: &str, input: Value) -> Outcome {
        let name = input_text(&input, &["name"]).ok_or_else(|| Fail::invalid("`name` must be a non-empty string"))?;
        let cli = action
            .strip_prefix("spawn:")
            .or_else(|| input_text(&input, &["capability", "cli"]))
            .map(|cli| cli.trim_start_matches("spawn:"))
            .ok_or_else(|| Fail::invalid("`cli` must be a non-empty string"))?;
        let taken = self.agent_named(call.ws, name).is_ok_and(|agent| agent.online);
        if taken {
            return Err(Fail::new(409, "agent_already_exists", format!("Agent \"{name}\" is running")));
        }
        let named = input_text(&input, &["node", "target", "target_node"]).map(str::to_string);
        let target = named.or_else(|| self.origin_of(call.ws, input_text(&input, &["session_ref"])?));
        let wanted = target.as_ref().and_then(|target| self.t.nodes.values().find(|n| is_called(n, call.ws, target)));
        if let Some(node) = wanted.filter(|node| self.node_is_live(&node.id) && !spawns(node, &format!("spawn:{cli}")))
        {
            let message = format!("Node \"{}\" does not advertise capability \"spawn:{cli}\"", node.name);
            return Err(Fail::new(409, "capability_mismatch", message));
        }
        let handler = Handler::Spawn { cli: cli.to_string(), target };
        self.start_invocation(call, "spawn", handler, input)
    }

    /// The node that can take up a session, if it still exists.
    fn origin_of(&self, ws: u64, session_ref: &str) -> Option<String> {
        let origins =
            self.t.agents.values().filter(|a| a.ws == ws).filter_map(|a| Some((a.binding_at, a.origin.as_ref()?)));
        let last = origins.filter(|(_, origin)| origin.session_ref == session_ref).max_by_key(|(at, _)| *at);
        last.map(|(_, origin)| origin.node.clone()).filter(|node| self.t.nodes.contains_key(node))
    }

    pub(super) fn invoke_release(&mut self, call: &Call, input: Value) -> Outcome {
        let name = input_text(&input, &["name"]).ok_or_else(|| Fail::invalid("`name` must be a non-empty string"))?;
        let agent = self.agent_named(call.ws, name)?;
        let Some(node) = agent.node.clone().filter(|_| self.follows_a_broker(agent)) else {
            return Err(Fail::new(409, "agent_not_node_bound", format!("Agent \"{name}\" has no node to release it")));
        };
        let handler = Handler::Release { agent: agent.id, node };
        let mut wanted = json!({"name": name});
        for key in ["reason", "delete_agent"] {
            if let Some(value) = input.get(key).filter(|value| !value.is_null()) {
                wanted[key] = value.clone();
            }
        }
        self.start_invocation(call, "release", handler, wanted)
    }

    pub(super) fn start_invocation(&mut self, call: &Call, action: &str, handler: Handler, input: Value) -> Outcome {
        let open = self.t.invocations.values().filter(|i| i.ws == call.ws && i.status.open()).count();
        if open >= OPEN_MOST {
            return Err(Fail::new(503, "node_dispatch_unavailable", "Too many open invocations"));
        }
        let row = Invocation {
            id: format!("inv_{}", self.next_id()),
            ws: call.ws,
            action: action.to_string(),
            caller: (call.agent != 0).then_some(call.agent),
            caller_name: (call.agent != 0).then(|| self.agent_name(call.agent)),
            handler,
            input,
            status: InvocationStatus::Pending,
            output: Value::Null,
            error: None,
            dispatched_node: None,
            dispatched_at: None,
            attempts: 0,
            created_at: self.now.unix,
            completed_at: None,
            duration_ms: None,
        };
        let placed_now = matches!(row.handler, Handler::Spawn { .. } | Handler::Capability { .. });
        if placed_now && self.candidates(&row).is_empty() {
            let message = format!("No live node can run \"{action}\"");
            return Err(Fail::new(503, "handler_unavailable", message));
        }
        let invocation = row.id.clone();
        self.put(Row::Invocation(row));
        self.after(LIFETIME_MS, Timer::Expired(invocation.clone()));
        self.dispatch(&invocation);
        let row = self.invocation(call.ws, &invocation)?;
        let (agent, node) = self.handler_ids(&row.handler);
        Ok(Answer::created(json!({
            "invocation_id": row.id, "action_name": row.action, "handler_agent_id": agent, "handler_node_id": node,
            "dispatched_node_id": row.dispatched_node, "input": row.input, "status": row.status.as_str(),
            "created_at": iso(row.created_at),
        })))
    }

    fn invocation(&self, ws: u64, invocation: &str) -> Result<&Invocation, Fail> {
        self.t
            .invocations
            .get(invocation)
            .filter(|row| row.ws == ws)
            .ok_or_else(|| Fail::new(404, "invocation_not_found", "Invocation not found"))
    }

    fn invocation_view(&self, row: &Invocation) -> Value {
        json!({
            "invocation_id": row.id, "action_name": row.action, "caller_id": row.caller.map(id),
            "caller_name": row.caller_name, "input": row.input, "output": row.output, "status": row.status.as_str(),
            "error": row.error, "duration_ms": row.duration_ms, "dispatched_node_id": row.dispatched_node,
            "dispatched_at": row.dispatched_at.map(iso), "created_at": iso(row.created_at),
            "completed_at": row.completed_at.map(iso),
        })
    }

    /// `GET /v1/actions/:name/invocations/:id`
    pub fn get_invocation(&mut self, call: &Call) -> Outcome {
        let row = self.invocation(call.ws, call.arg(1))?;
        if row.action != call.arg(0) && !row.action.starts_with("spawn") {
            return Err(Fail::new(404, "invocation_not_found", "Invocation not found"));
        }
        Ok(Answer::ok(self.invocation_view(row)))
    }

    /// `POST /v1/actions/:name/invocations/:id/complete`, by the agent that handles it.
    pub fn complete_invocation(&mut self, call: &Call) -> Outcome {
        let row = self.invocation(call.ws, call.arg(1))?;
        if row.action != call.arg(0) {
            return Err(Fail::new(404, "invocation_not_found", "Invocation not found"));
        }
        if call.agent != 0 && row.handler != Handler::Agent(call.agent) {
            return Err(Fail::new(403, "forbidden", "Only the handler may complete an invocation"));
        }
        if !row.status.open() {
            return Err(Fail::new(409, "invocation_already_completed", "The invocation is finished"));
        }
        let outcome = match call.optional("error")? {
            Some(error) => Err(error),
            None => Ok(call.body.get("output").cloned().unwrap_or_default()),
        };
        let (invocation, duration) = (row.id.clone(), call.body.get("duration_ms").and_then(Value::as_u64));
        self.finish(&invocation, outcome, duration);
        Ok(Answer::ok(self.invocation_view(self.invocation(call.ws, &invocation)?)))
    }

    /// Nodes that may run it now, best first, with the action's name as that node knows it.
    fn candidates(&self, row: &Invocation) -> Vec<(String, String)> {
        let live = |node: &Node| node.ws == row.ws && self.node_is_live(&node.id);
        let handling = |node: &Node| self.lives.get(&node.id).is_some_and(|life| life.handlers_live);
        let declares = |node: &Node, name: &str| node.capabilities.iter().any(|c| c.name == name);
        let nodes = || self.t.nodes.values();
        match &row.handler {
            Handler::Agent(agent) | Handler::Release { agent, .. } => {
                let node = self.t.agents.get(agent).and_then(|agent| agent.node.clone());
                node.filter(|node| self.node_is_live(node)).map(|node| (node, row.action.clone())).into_iter().collect()
            }
            Handler::Capability { name, pinned } => {
                let mut found: Vec<&Node> = nodes()
                    .filter(|n| live(n) && handling(n) && (declares(n, name) || pinned.as_ref() == Some(&n.id)))
                    .collect();
                found.sort_by_key(|n| pinned.as_ref() != Some(&n.id));
                found.into_iter().map(|n| (n.id.clone(), name.clone())).collect()
            }
            Handler::Spawn { cli, target } => {
                let exact = format!("spawn:{cli}");
                let pinned = self.action_named(row.ws, "spawn").ok().and_then(|a| a.handler_node.clone());
                if let Some(pinned) = pinned {
                    let node = self.t.nodes.get(&pinned).filter(|n| live(n) && handling(n));
                    return node.map(|n| (n.id.clone(), "spawn".into())).into_iter().collect();
                }
                let mut found: Vec<&Node> = match target {
                    Some(target) => nodes()
                        .filter(|n| {
                            live(n) && is_called(n, row.ws, target) && spawns(n, &exact) && self.has_room_to_spawn(n)
                        })
                        .collect(),
                    None => nodes()
                        .filter(|n| live(n) && handling(n) && declares(n, &exact) && self.has_room_to_spawn(n))
                        .collect(),
                };
                let load = |node: &Node| self.lives.get(&node.id).map_or(0.0, |life| life.load);
                let agents = |node: &Node| self.agents_there_and_coming(node);
                found.sort_by(|a, b| load(a).total_cmp(&load(b)).then_with(|| agents(a).cmp(&agents(b))));
                found.into_iter().map(|n| (n.id.clone(), exact.clone())).collect()
            }
        }
    }

    /// Agents of a node, by the engine's count or the node's own if that is higher, and the spawns under way to it.
    fn agents_there_and_coming(&self, node: &Node) -> u64 {
        let coming =
            self.dispatched_to(&node.id).into_iter().filter_map(|id| self.t.invocations.get(&id)).filter(|row| {
                let name = row.input["name"].as_str().unwrap_or_default();
                let arrived =
                    self.agent_named(row.ws, name).is_ok_and(|a| a.online && a.node.as_ref() == Some(&node.id));
                matches!(row.handler, Handler::Spawn { .. }) && !arrived
            });
        let here = self.t.agents.values().filter(|a| a.online && a.node.as_ref() == Some(&node.id));
        let reported = self.lives.get(&node.id).map_or(0, |life| life.active_agents);
        (here.count() as u64).max(reported) + coming.count() as u64
    }

    fn has_room_to_spawn(&self, node: &Node) -> bool {
        node.max_agents == 0 || self.agents_there_and_coming(node) < node.max_agents
    }

    /// Sends an open invocation to the best candidate that has not had it yet. When all have, it is offered again after
    /// a pause; when there is none, a node that registers or whose handlers wake up asks for it.
    pub(super) fn dispatch(&mut self, invocation: &str) {
        let Some(row) =
            self.t.invocations.get(invocation).filter(|row| row.status == InvocationStatus::Pending).cloned()
        else {
            return;
        };
        if let Handler::Release { agent, .. } = &row.handler
            && self.t.agents.get(agent).is_none_or(|agent| agent.node.is_none())
        {
            let output = json!({"released": true, "name": row.input["name"]});
            return self.finish(invocation, Ok(output), None);
        }
        let candidates = self.candidates(&row);
        let tried = self.tried.get(invocation).cloned().unwrap_or_default();
        let next = candidates.iter().find(|(node, _)| !tried.contains(node));
        let Some((node, action)) = next else {
            if !candidates.is_empty() {
                // Everybody has had it: from the start, after a pause.
                self.tried.remove(invocation);
                self.after(back_off_ms(row.attempts), Timer::Offer(invocation.to_string()));
            }
            return;
        };
        let Some(link) = self.lives.get(node).and_then(|life| life.link) else { return };
        let frame = self.invoke_frame(&row, action);
        self.put(Row::Invocation(Invocation {
            status: InvocationStatus::Dispatched,
            dispatched_node: Some(node.clone()),
            dispatched_at: Some(self.now.unix),
            attempts: row.attempts + 1,
            ..row
        }));
        // An agent that hosts an action itself completes it over HTTP and takes its time; its socket proves that it lives.
        if self.t.nodes.get(node).is_none_or(|node| node.direct_agent.is_none()) {
            self.after(UNANSWERED_MS, Timer::Unanswered(invocation.to_string()));
        }
        self.send(link, &frame);
    }

    fn invoke_frame(&self, row: &Invocation, action: &str) -> Value {
        let mut frame = json!({
            "v": 1, "type": "action.invoke", "invocation_id": row.id, "action": action, "input": row.input,
        });
        if let Handler::Agent(agent) = row.handler {
            frame["agent_id"] = id(agent);
            frame["agent_name"] = json!(self.agent_name(agent));
        }
        frame
    }

    /// The node that has the invocation does not list it: it gets it again, in case that it lost it. Another node would run
    /// it a second time, for a node lists spawns only.
    pub(super) fn send_again(&mut self, invocation: &str) {
        let Some(row) = self.t.invocations.get(invocation).cloned() else { return };
        let Some(node) = row.dispatched_node.clone() else { return };
        let action =
            self.candidates(&row).into_iter().find(|(candidate, _)| *candidate == node).map(|(_, action)| action);
        let action = action.unwrap_or_else(|| match &row.handler {
            Handler::Spawn { cli, .. } => format!("spawn:{cli}"),
            _ => row.action.clone(),
        });
        let frame = self.invoke_frame(&row, &action);
        if let Some(link) = self.lives.get(&node).and_then(|life| life.link) {
            self.send(link, &frame);
        }
    }

    pub(super) fn dispatched_to(&self, node: &str) -> Vec<String> {
        let open = self.t.invocations.values().filter(|i| i.status == InvocationStatus::Dispatched);
        open.filter(|i| i.dispatched_node.as_deref() == Some(node)).map(|i| i.id.clone()).collect()
    }

    /// Takes an invocation away from `node` and offers it elsewhere.
    pub(super) fn reschedule(&mut self, invocation: &str, node: &str) {
        let Some(row) = self.t.invocations.get(invocation).filter(|row| row.status.open()).cloned() else { return };
        self.disarm(|timer| *timer == Timer::Unanswered(invocation.to_string()));
        self.put(Row::Invocation(Invocation { status: InvocationStatus::Pending, dispatched_node: None, ..row }));
        self.tried.entry(invocation.to_string()).or_default().push(node.to_string());
        self.had.entry(invocation.to_string()).or_default().insert(node.to_string());
        self.dispatch(invocation);
    }

    pub(super) fn invocation_unanswered(&mut self, invocation: &str) {
        let node = self.t.invocations.get(invocation).and_then(|row| row.dispatched_node.clone());
        if let Some(node) = node {
            self.reschedule(invocation, &node);
        }
    }

    /// A node came back, or its handlers woke: what waits may go to it, also what it had before. What is paused stays
    /// paused.
    pub(super) fn offer_pending(&mut self, ws: u64, node: &str) {
        let pending = self.t.invocations.values().filter(|i| i.ws == ws && i.status == InvocationStatus::Pending);
        let paused = |id: &str| self.timers.iter().any(|(_, timer)| *timer == Timer::Offer(id.to_string()));
        let waiting: Vec<String> = pending.map(|i| i.id.clone()).filter(|id| !paused(id)).collect();
        for invocation in waiting {
            if let Some(tried) = self.tried.get_mut(&invocation) {
                tried.retain(|had| had != node);
            }
            self.dispatch(&invocation);
        }
    }

    /// `action.result`. It counts from the node that has the invocation; while nobody has it, also from one that had it.
    pub(super) fn hear_result(&mut self, node: &str, ws: u64, invocation: &str, outcome: Result<Value, String>) {
        let Some(row) = self.t.invocations.get(invocation).filter(|row| row.ws == ws && row.status.open()) else {
            return;
        };
        let has = row.dispatched_node.as_deref() == Some(node);
        let waits = row.status == InvocationStatus::Pending;
        let had = waits && self.had.get(invocation).is_some_and(|had| had.contains(node));
        if outcome == Err("handler_unavailable".into()) {
            if has {
                if let Some(life) = self.lives.get_mut(node) {
                    life.handlers_live = false;
                }
                self.reschedule(invocation, node);
            }
        } else if has || had {
            self.finish(invocation, outcome, None);
        }
    }

    pub(super) fn invocation_expired(&mut self, invocation: &str) {
        self.finish(invocation, Err("invocation expired".into()), None);
    }

    /// The agent has left its node by other means: releases that wait for it are done.
    pub(super) fn settle_releases(&mut self, agent: u64) {
        let open = self.t.invocations.values().filter(|i| i.status == InvocationStatus::Pending);
        let releases: Vec<String> = open
            .filter(|i| matches!(i.handler, Handler::Release { agent: of, .. } if of == agent))
            .map(|i| i.id.clone())
            .collect();
        releases.iter().for_each(|invocation| self.dispatch(invocation));
    }

    /// Ends an open invocation and tells its caller.
    pub(super) fn finish(&mut self, invocation: &str, outcome: Result<Value, String>, duration_ms: Option<u64>) {
        let Some(mut row) = self.t.invocations.get(invocation).filter(|row| row.status.open()).cloned() else { return };
        if let (Handler::Release { agent, .. }, Ok(_)) = (&row.handler, &outcome) {
            let agent = *agent;
            self.release_agent_row(agent);
            if row.input["delete_agent"] == json!(true) {
                self.forget_agent(agent);
            }
        }
        row.completed_at = Some(self.now.unix);
        row.duration_ms = Some(duration_ms.unwrap_or(self.now.unix.saturating_sub(row.created_at)));
        row.status = if outcome.is_ok() { InvocationStatus::Completed } else { InvocationStatus::Failed };
        match outcome {
            Ok(output) => row.output = output,
            Err(error) => row.error = Some(error),
        }
        let event = if row.error.is_none() { "action.completed" } else { "action.failed" };
        let data = json!({
            "invocation_id": row.id, "action_name": row.action, "status": row.status.as_str(),
            "output": row.output, "error": row.error,
        });
        let caller = row.caller;
        self.put(Row::Invocation(row));
        self.tried.remove(invocation);
        self.had.remove(invocation);
        self.disarm(|timer| match timer {
            Timer::Unanswered(of) | Timer::Offer(of) | Timer::Expired(of) => of == invocation,
            _ => false,
        });
        if let Some(caller) = caller {
            self.tell(caller, event, invocation, data);
        }
    }
}

fn is_called(node: &Node, ws: u64, target: &str) -> bool {
    node.ws == ws && (node.name == target || node.id == target)
}

/// A node that declares nothing is a broker, which runs any spawn itself.
fn spawns(node: &Node, capability: &str) -> bool {
    node.capabilities.is_empty() || node.capabilities.iter().any(|c| c.name == capability || c.name == "spawn")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_pauses_grow_to_a_minute() {
        let pauses: Vec<u64> = (0..8).map(super::back_off_ms).collect();
        assert_eq!(pauses, [5_000, 5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000]);
    }
}
