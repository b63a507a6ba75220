//! The HTTP half of the simulated engine: what each call does, and what it answers when nothing goes wrong.

use agent_relay_broker::core::ports::{EngineCall, EngineError};
use serde_json::{Value, json};

use super::engine::Engine;
use super::rng::Rng;

pub fn error(status: u16, code: &str, message: &str) -> EngineError {
    EngineError { status, code: code.into(), message: message.into(), retry_after_ms: None }
}

/// A failure that the weather asks for.
pub fn fault(rng: &mut Rng) -> EngineError {
    match rng.below(5) {
        0 | 1 => error(0, "transport", "connection reset"),
        2 => EngineError { retry_after_ms: Some(2_000), ..error(429, "rate_limit_exceeded", "slow down") },
        3 => error(503, "node_dispatch_unavailable", "try again"),
        _ => error(400, "invalid_request", "no"),
    }
}

impl Engine {
    pub fn http(&mut self, call: &EngineCall, rng: &mut Rng) -> Result<Value, EngineError> {
        match call {
            EngineCall::MintNodeToken { .. } => {
                let token = if self.twins { self.node().token.clone() } else { self.mint_node_token() };
                Ok(json!({"id": self.node().id, "token": token}))
            }
            EngineCall::RegisterAgent { name, .. } => {
                if self.by_name(name).is_some_and(|agent| self.is_active_elsewhere(agent)) {
                    return Err(error(400, "invalid_request", "the name is taken"));
                }
                self.asking.remove(name);
                let id = self.upsert(name, rng);
                let token = self.new_token(&id);
                Ok(json!({"id": id, "name": name, "token": token, "status": "active"}))
            }
            EngineCall::BindAgent { node_name, name, .. } => {
                if self.node().name != *node_name {
                    return Err(error(404, "node_not_found", "no such node"));
                }
                let Some(agent) = self.by_name(name) else {
                    return Err(error(404, "agent_not_found", "no such agent"));
                };
                if self.is_active_elsewhere(agent) {
                    return Err(error(409, "agent_location_conflict", "active elsewhere"));
                }
                let (id, at) = (agent.id.clone(), self.at);
                if let Some(agent) = self.agents.get_mut(&id) {
                    agent.move_to(at);
                }
                if self.registered() {
                    self.replay(Some(&id), 0);
                }
                Ok(json!({"id": "anb_1", "agent_id": id, "agent_name": name, "node_id": self.node().id}))
            }
            EngineCall::LookUpAgent { name } => match self.by_name(name) {
                None => Err(error(404, "agent_not_found", "no such agent")),
                Some(agent) => Ok(json!({"id": agent.id, "name": name, "status": "active"})),
            },
            EngineCall::PostDm { to, .. } if self.by_name(to).is_none() => {
                Err(error(404, "agent_not_found", "no such agent"))
            }
            EngineCall::PostDm { .. } | EngineCall::PostChannel { .. } | EngineCall::PostReply { .. } => {
                Ok(json!({"id": self.fresh("msg_")}))
            }
            EngineCall::JoinChannel { channel, token } | EngineCall::LeaveChannel { channel, token } => {
                let known = self.tokens.get(token.expose()).map(|token| token.agent_id.clone());
                let valid = known.and_then(|id| self.agents.get(&id)).and_then(|agent| agent.token.as_deref());
                if valid == Some(token.expose()) {
                    Ok(json!({"channel": channel, "already_member": false}))
                } else {
                    Err(error(401, "agent_token_invalid", "Invalid agent token"))
                }
            }
            EngineCall::Heartbeat { .. } | EngineCall::Disconnect { .. } => Ok(Value::Null),
        }
    }
}
