//! What a broker learns with each input, noted before it handles it; and the start of an agent's thread.

use agent_relay_broker::core::ports::{AgentNote, EngineCall, Input, Launch, NodeNote, Secret};
use agent_relay_broker::wire::node::FromEngine;
use serde_json::Value;

use super::agenda::{Act, Happening};
use super::terminal::Terminal;
use super::world::World;

impl World {
    /// Notes what the broker learns with this input.
    pub fn told(&mut self, input: &Input) {
        match input {
            Input::Node(NodeNote::Opened { .. }) => {
                self.site.link.told_open = true;
                self.site.link.opened_in_life += 1;
            }
            Input::Node(NodeNote::Closed { generation, reason }) if *generation == self.site.link.generation => {
                self.site.superseded = (reason == "superseded").then_some(self.now);
            }
            Input::Node(NodeNote::Frame { generation, frame }) if *generation == self.site.link.generation => {
                match frame {
                    FromEngine::Deliver(deliver) => self.arrived(deliver),
                    FromEngine::ActionInvoke(invoke) => {
                        if let Some(invocation) = self.engine.invocations.get_mut(&invoke.invocation_id) {
                            *invocation.seen.entry(self.site.life).or_default() += 1;
                        }
                    }
                    FromEngine::Reply { id, data } => {
                        self.site.told_inventory |= id.starts_with("inventory_sync_");
                        self.told_token(data);
                    }
                    FromEngine::Error { id, code, message }
                        if code == "agent_location_conflict" && id.starts_with("inventory_sync_") =>
                    {
                        // The engine has it elsewhere and says so.
                        let agents = &self.engine.agents;
                        let named = |id: &String| {
                            agents.get(id).is_some_and(|one| message.contains(&format!("{:?}", one.name)))
                        };
                        self.site.bound.retain(|id| !named(id));
                    }
                    _ => {}
                }
            }
            Input::Engine { ticket, outcome } => {
                let call = self.site.calls.remove(ticket);
                if let Ok(data) = outcome {
                    match call {
                        Some(EngineCall::MintNodeToken { .. }) => {
                            let token = data.get("token").and_then(Value::as_str).unwrap_or_default();
                            self.site.config.node_token = Secret::new(token);
                        }
                        Some(EngineCall::RegisterAgent { .. }) => self.told_token_of(data, "id"),
                        Some(EngineCall::BindAgent { .. }) => {
                            let id = data.get("agent_id").and_then(Value::as_str).unwrap_or_default();
                            self.site.bound.insert(id.into());
                        }
                        _ => {}
                    }
                }
            }
            Input::Agent { generation, note } => {
                let Some(terminal) = self.site.terminals.get_mut(generation) else { return };
                match note {
                    AgentNote::Prepared => terminal.told_prepared = true,
                    AgentNote::Started { .. } => terminal.told_started = true,
                    AgentNote::Refused { .. } | AgentNote::Exited { .. } => {
                        terminal.told_gone = true;
                        self.site.bound.remove(terminal.agent_id.as_deref().unwrap_or_default());
                    }
                    AgentNote::Read { delivery_id }
                    | AgentNote::GivenBack { delivery_id }
                    | AgentNote::InjectFailed { delivery_id, .. }
                        if terminal.open.as_deref() == Some(delivery_id) =>
                    {
                        terminal.open = None;
                    }
                    _ => {}
                }
            }
            Input::Stop { .. } => self.site.stopping = Some(self.now),
            _ => {}
        }
    }

    fn told_token(&mut self, data: &Value) {
        if data.get("token").is_some() {
            self.told_token_of(data, "agent_id");
            let id = data.get("agent_id").and_then(Value::as_str).unwrap_or_default();
            self.site.bound.insert(id.into());
        }
    }

    fn told_token_of(&mut self, data: &Value, _id_key: &str) {
        let token = data.get("token").and_then(Value::as_str).unwrap_or_default();
        if let Some(token) = self.engine.tokens.get_mut(token) {
            token.told = Some(self.site.life);
        }
    }

    pub fn launch(&mut self, launch: Launch) {
        let generation = launch.generation;
        if self.site.terminals.contains_key(&generation) {
            return self.fail("generation_reused", format!("generation {generation}"));
        }
        // A spawn that was given up may take its time to end.
        let other =
            self.site.terminals.iter().find(|(_, one)| one.name == launch.name && !one.told_gone && !one.given_up);
        if let Some((other, _)) = other {
            self.fail("two_lives_of_a_name", format!("{} launched as {generation} while {other} lives", launch.name));
        }
        let pid = 1000 + generation as u32;
        self.site.terminals.insert(generation, Terminal::new(launch.name, launch.cli, pid));
        let delay = self.rng.between(1, 30);
        self.agenda.at(self.now + delay, Happening::Act { life: self.site.life, generation, act: Act::Prepare });
    }
}
