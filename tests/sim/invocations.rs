//! What the engine asks nodes to do: placed at one of them, asked again until it is answered, elsewhere if that one is gone.

use std::collections::BTreeMap;

use agent_relay_broker::core::ports::Ms;
use serde_json::{Value, json};

use super::agenda::Happening;
use super::engine::{Engine, Node};
use super::rng::Rng;

/// So often no handler may be there before the engine gives up.
const UNAVAILABLE_MAX: u32 = 4;
/// Answered in time or asked again.
const ANSWER_MS: Ms = 30_000;

#[derive(Debug, Default)]
pub struct Invocation {
    pub action: String,
    pub input: Value,
    pub agent_name: Option<String>,
    pub agent_id: Option<String>,
    pub name: String,
    /// Pinned to this node; else any that can takes it.
    pub target: Option<usize>,
    /// The node that was asked last.
    pub at: Option<usize>,
    /// The life that answered first, and how often brokers had asked to register the name then: a repeated answer to a
    /// release must not hit a later registration.
    pub asked_before: Option<(u32, u32)>,
    /// The agent's registration at that time.
    pub epoch_before: Option<(String, u32)>,
    pub done: bool,
    /// How often it was answered with `handler_unavailable`.
    pub unavailable: u32,
    pub dispatches: u32,
    /// Per life of a broker: frames that reached it, answers that left it, and what they said.
    pub seen: BTreeMap<u32, u32>,
    pub answers: BTreeMap<u32, u32>,
    pub said: BTreeMap<u32, String>,
    /// Per life: the sidecar that was asked, and what it has answered.
    pub invoked: BTreeMap<u32, u64>,
    pub promised: BTreeMap<u32, String>,
}

impl Engine {
    pub fn invoke(&mut self, one: Invocation, rng: &mut Rng) -> String {
        let id = self.fresh("i");
        self.invocations.insert(id.clone(), one);
        self.dispatch(&id, rng);
        id
    }

    /// Where an invocation goes now.
    fn place(&self, one: &Invocation, rng: &mut Rng) -> Option<usize> {
        let live = |at: &usize| self.nodes.get(*at).is_some_and(Node::registered);
        if let Some(target) = one.target {
            return Some(target).filter(live);
        }
        // A release goes where the agent is, whenever that node is there.
        if let Some(home) = (one.action == "release").then(|| self.by_name(&one.name)?.at).flatten()
            && home < self.nodes.len()
        {
            return Some(home).filter(live);
        }
        let can = |at: &usize| {
            let node = &self.nodes[*at];
            node.handlers_live && node.capabilities.contains(&one.action)
        };
        let all: Vec<usize> = (0..self.nodes.len()).filter(live).collect();
        let able: Vec<usize> = all.iter().copied().filter(can).collect();
        rng.pick(if able.is_empty() { &all } else { &able }).copied()
    }

    pub fn dispatch(&mut self, id: &str, rng: &mut Rng) {
        let Some(open) = self.invocations.get(id).filter(|one| !one.done) else { return };
        let at = self.place(open, rng);
        let Some(one) = self.invocations.get_mut(id) else { return };
        one.at = at;
        let Some(at) = at else { return };
        one.dispatches += 1;
        let mut frame =
            json!({"v": 1, "type": "action.invoke", "invocation_id": id, "action": one.action, "input": one.input});
        if let Some(name) = &one.agent_name {
            frame["agent_name"] = json!(name);
        }
        if let Some(agent_id) = &one.agent_id {
            frame["agent_id"] = json!(agent_id);
        }
        let dispatch = one.dispatches;
        self.out.push((at, 0, frame));
        self.later.push((ANSWER_MS, Happening::Redispatch { invocation: id.into(), dispatch }));
    }

    /// What was asked of the node in focus, or of nobody yet, is asked again soon.
    pub fn reschedule(&mut self, keep: &[String], rng: &mut Rng, within: Ms) {
        let at = self.at;
        let open = self.invocations.iter().filter(|(id, one)| {
            !one.done && !keep.contains(id) && one.at.or(one.target).is_none_or(|asked| asked == at)
        });
        for (id, one) in open {
            let dispatch = one.dispatches;
            self.later.push((rng.between(0, within), Happening::Redispatch { invocation: id.clone(), dispatch }));
        }
    }

    /// An `action.result`: the first one counts, but for the one error that the engine understands.
    pub fn action_result(&mut self, frame: &Value) {
        let id = frame["invocation_id"].as_str().unwrap_or_default();
        let at = self.at;
        let Some(one) = self.invocations.get_mut(id) else { return };
        let released = one.action == "release" && frame.get("output").is_some();
        if one.done {
            let agent = self
                .names
                .get(&one.name)
                .and_then(|id| self.agents.get_mut(id))
                .filter(|one| one.at.is_none_or(|home| home == at));
            if let Some(agent) = agent.filter(|_| released) {
                agent.release_ignored = true;
            }
            return;
        }
        if frame.get("error") == Some(&json!("handler_unavailable")) && one.unavailable < UNAVAILABLE_MAX {
            one.unavailable += 1;
            let again = Happening::Redispatch { invocation: id.into(), dispatch: one.dispatches };
            self.later.push((5_000, again));
            return self.node_mut().handlers_live = false;
        }
        one.done = true;
        if released {
            let (name, before, epoch) = (one.name.clone(), one.asked_before, one.epoch_before.clone());
            let delete = one.input.get("delete_agent").is_some_and(|delete| delete == &json!(true));
            let Some(id) = self.names.get(&name).cloned() else { return };
            let here = self.agents.get(&id).is_some_and(|agent| agent.at.is_none_or(|home| home == at));
            // What was asked and never carried out has changed nothing.
            let asked = self.asked.get(&name).copied().unwrap_or_default();
            let since = before.map(|(_, asked)| asked) == Some(asked)
                || epoch == self.agents.get(&id).map(|one| (id.clone(), one.epoch));
            if here && since {
                self.unbind(&id);
                if delete {
                    self.names.remove(&name);
                    if let Some(agent) = self.agents.get_mut(&id) {
                        agent.deleted = true;
                    }
                }
            }
        }
    }
}
