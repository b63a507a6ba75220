//! `agent.register` over the node link, with HTTP as the way out while the link is down. A registration is a state of the
//! agent: nothing else waits for it.

use log::Level;
use serde_json::Value;

use super::ports::{EngineCall, EngineError, Generation, Ms, Secret};
use super::roster::{Agent, Asker, Phase};
use super::timers::Timer;
use super::{Awaited, Broker};
use crate::wire::node::{AgentRegister, AgentRegistered, ToEngine};

/// A spawn that finds the link down waits this long for it before it registers by HTTP.
const LINK_GRACE_MS: Ms = 2_000;
const BIND_RETRY_MS: Ms = 15_000;
/// Requests remembered after their caller has given up.
const ABANDONED_MAX: usize = 256;

/// A request whose caller has given up.
#[derive(Debug)]
pub(super) struct Abandoned {
    request: String,
    /// The name that was to be registered.
    name: String,
}

impl Broker {
    /// The program is there: get the agent an identity.
    pub(super) fn register(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if let Some(token) = agent.request.agent_token.clone() {
            agent.token = Some(token);
            agent.pre_registered = true;
            // Its owner registered it; the engine's frames tell its id.
            agent.bound = true;
            self.start_program(generation);
            return;
        }
        let request = self.ids.fresh("agent_register_");
        agent.phase = Phase::Registering { request: request.clone(), sent: false };
        self.requests.insert(request, generation);
        self.register_when_open(generation);
    }

    fn register_when_open(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        if self.link.is_open() {
            self.send_registration(generation);
        } else if self.link.owes_release_of(&agent.name) {
            // The engine would take the report of the last life's release for this one's.
            self.timers.set(Timer::Register(generation), self.now.mono + self.config.register_timeout_ms);
        } else {
            self.timers.set(Timer::LinkGrace(generation), self.now.mono + LINK_GRACE_MS);
        }
    }

    fn send_registration(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let Phase::Registering { request, sent } = &mut agent.phase else { return };
        *sent = true;
        let session_ref = agent.request.session_ref.clone();
        let frame = AgentRegister {
            id: request.clone(),
            name: agent.name.clone(),
            // Of a later life nobody has asked for this.
            invocation_id: agent.invocation_id.clone().filter(|_| !agent.ran),
            resumable: session_ref.is_some().then_some(true),
            session_ref,
        };
        self.timers.cancel(&Timer::LinkGrace(generation));
        self.timers.set(Timer::Register(generation), self.now.mono + self.config.register_timeout_ms);
        self.send(ToEngine::AgentRegister(frame));
    }

    /// The link is open again: what nobody has answered yet.
    pub(super) fn send_waiting_registrations(&mut self) {
        for generation in self.roster.generations() {
            let waits = self
                .roster
                .get(generation)
                .is_some_and(|agent| matches!(agent.phase, Phase::Registering { sent: false, .. }));
            if waits {
                self.send_registration(generation);
            }
        }
    }

    /// Ends the wait for the request of an agent: its id, if it was sent.
    fn end_request(&mut self, generation: Generation) -> Option<String> {
        self.timers.cancel(&Timer::Register(generation));
        self.timers.cancel(&Timer::LinkGrace(generation));
        let Phase::Registering { request, sent } = self.roster.get(generation)?.phase.clone() else { return None };
        self.requests.remove(&request);
        sent.then_some(request)
    }

    /// Takes back the request of an agent, if it has one open; a late success is undone.
    pub(super) fn abandon_request(&mut self, generation: Generation) {
        let Some(name) = self.roster.get(generation).map(|agent| agent.name.clone()) else { return };
        if let Some(request) = self.end_request(generation) {
            if self.abandoned.len() >= ABANDONED_MAX {
                self.abandoned.pop_front();
            }
            self.abandoned.push_back(Abandoned { request, name });
        }
    }

    fn take_abandoned(&mut self, id: &str) -> Option<Abandoned> {
        let at = self.abandoned.iter().position(|abandoned| abandoned.request == id)?;
        self.abandoned.remove(at)
    }

    /// The connection ended: a request that was sent may or may not have been carried out there, or be so a moment from
    /// now. Another one settles it, on the next connection or, after the grace that this takes, by HTTP.
    pub(super) fn registrations_disconnected(&mut self) {
        for generation in self.roster.generations() {
            let Some(agent) = self.roster.get(generation) else { continue };
            if matches!(agent.phase, Phase::Registering { sent: true, .. }) {
                self.log(Level::Warn, format!("agent.register of '{}': node_control_disconnected", agent.name.clone()));
                self.abandon_request(generation);
                let request = self.ids.fresh("agent_register_");
                if let Some(agent) = self.roster.get_mut(generation) {
                    agent.phase = Phase::Registering { request: request.clone(), sent: false };
                    self.requests.insert(request, generation);
                    self.register_when_open(generation);
                }
            }
        }
    }

    pub(super) fn on_register_timeout(&mut self, generation: Generation) {
        let waits = self.roster.get(generation).is_some_and(|agent| matches!(agent.phase, Phase::Registering { .. }));
        if waits {
            self.spawn_failed(generation, "agent_register_timeout");
        }
    }

    pub(super) fn on_register_reply(&mut self, id: &str, data: &Value) {
        let registered = AgentRegistered::from_data(data);
        if let Some(generation) = self.requests.remove(id) {
            match registered {
                Some(registered) => self.on_agent_registered(generation, registered),
                None => self.on_unusable_registration(generation, data),
            }
            return;
        }
        if let Some(abandoned) = self.take_abandoned(id) {
            if let Some(agent_id) = data.get("agent_id").and_then(Value::as_str).filter(|id| !id.is_empty()) {
                self.undo_late_registration(agent_id, &abandoned.name, id);
            }
            return;
        }
        // An answer under a foreign id can only be meant for the one request of that name.
        if let Some(registered) = registered
            && let Some(name) = registered.name.clone()
        {
            let mut waiting = self
                .requests
                .iter()
                .filter(|(_, generation)| self.roster.get(**generation).is_some_and(|agent| agent.name == name));
            if let (Some((request, generation)), None) = (waiting.next(), waiting.next()) {
                let (request, generation) = (request.clone(), *generation);
                self.requests.remove(&request);
                self.on_agent_registered(generation, registered);
                return;
            }
        }
        self.log(Level::Debug, format!("a reply that nobody waits for: {id}"));
    }

    /// Without a token nothing can run under it, but an identity that was made must not stay.
    fn on_unusable_registration(&mut self, generation: Generation, data: &Value) {
        let agent_id = data.get("agent_id").and_then(Value::as_str).filter(|id| !id.is_empty());
        if let (Some(agent_id), Some(agent)) = (agent_id, self.roster.get_mut(generation)) {
            agent.agent_id = Some(agent_id.to_string());
            // Answered: nothing more can come under this request.
            agent.phase = Phase::Starting;
        }
        self.spawn_failed(generation, "invalid_agent_register_reply_data");
    }

    /// The engine knows one agent per name: undoing an old registration would hit a life that has registered since.
    fn lives_again(&self, agent_id: &str, name: &str) -> bool {
        let named = self.roster.named(name).is_some_and(|agent| {
            !matches!(agent.phase, Phase::Preparing | Phase::Registering { sent: false, .. } | Phase::Releasing)
        });
        named || self.roster.with_id(agent_id).is_some()
    }

    /// A registration succeeded after its spawn had failed: nothing runs, so nothing may stay.
    fn undo_late_registration(&mut self, agent_id: &str, name: &str, id: &str) {
        if self.lives_again(agent_id, name) {
            return;
        }
        self.log(Level::Info, format!("late registration of '{name}' undone"));
        self.deregister(agent_id, name, Some(id.to_string()));
    }

    fn on_agent_registered(&mut self, generation: Generation, registered: AgentRegistered) {
        self.timers.cancel(&Timer::Register(generation));
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.agent_id = Some(registered.agent_id.clone());
        agent.token = Some(Secret::new(registered.token));
        agent.pre_registered = true;
        agent.bound = true;
        let name = agent.name.clone();
        self.cancel_deregister(&registered.agent_id, &name);
        if let Some(seq) = registered.delivery_ack_seq {
            self.cursor(&registered.agent_id, &name).position(seq);
        }
        self.names_identity(&registered.agent_id, &name);
        self.start_program(generation);
    }

    /// The engine says who bears the name now.
    pub(super) fn names_identity(&mut self, agent_id: &str, name: &str) {
        self.cursor(agent_id, name).take_up();
        self.bears_name(agent_id);
        self.set_gap_timer(agent_id);
    }

    /// `true` if the error belongs to an `agent.register` of ours.
    pub(super) fn on_register_error(&mut self, id: &str, code: &str, message: &str) -> bool {
        if self.take_abandoned(id).is_some() {
            return true;
        }
        let Some(generation) = self.requests.get(id).copied() else { return false };
        self.log(Level::Warn, format!("agent.register refused: {code}: {message}"));
        self.register_otherwise(generation, &format!("{code}: {message}"));
        true
    }

    /// An error without a known id that names `agent.register` belongs to the oldest such request: its caller need not wait
    /// for the time limit.
    pub(super) fn fail_oldest_registration(&mut self, code: &str, message: &str) -> bool {
        if !message.contains("agent.register") {
            return false;
        }
        let oldest = self.requests.iter().filter(|(_, generation)| {
            let agent = self.roster.get(**generation);
            agent.is_some_and(|agent| matches!(agent.phase, Phase::Registering { sent: true, .. }))
        });
        let Some(request) = oldest.min_by_key(|(_, generation)| **generation).map(|(request, _)| request.clone())
        else {
            return false;
        };
        self.on_register_error(&request, code, message)
    }

    /// The way out after this error. A sidecar has none: it is told, and knows better what to do. Nor has who would take a
    /// name from a live agent.
    pub(super) fn register_otherwise(&mut self, generation: Generation, error: &str) {
        let told = |agent: &Agent| (agent.request.sidecar.is_some() || agent.request.yields_name) && !agent.ran;
        if self.roster.get(generation).is_some_and(told) {
            // Refused, cut off or never sent: no late success is to be undone.
            self.end_request(generation);
            if let Some(agent) = self.roster.get_mut(generation) {
                agent.phase = Phase::Starting;
            }
            self.spawn_failed(generation, error);
        } else {
            self.register_by_http(generation);
        }
    }

    /// `POST /v1/agents`, then the bind to this node.
    pub(super) fn register_by_http(&mut self, generation: Generation) {
        // Refused, cut off with its connection, or never sent: no answer to it can come any more.
        self.end_request(generation);
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if !matches!(agent.phase, Phase::Registering { .. }) {
            return;
        }
        agent.phase = Phase::HttpRegistering;
        let call = EngineCall::RegisterAgent { name: agent.name.clone(), cli: agent.request.cli.clone() };
        self.call_engine(call, Awaited::Register(generation));
    }

    pub(super) fn on_http_registered(&mut self, generation: Generation, outcome: Result<Value, EngineError>) {
        let Some(agent) = self.roster.get_mut(generation) else {
            // Released or failed meanwhile: the fresh identity must not stay.
            if let Ok(data) = outcome {
                let text = |key: &str| data.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
                let (id, name) = (text("id"), text("name"));
                if !id.is_empty() && !self.lives_again(&id, &name) {
                    self.deregister(&id, &name, None);
                }
            }
            return;
        };
        if agent.phase == Phase::Releasing
            && let Ok(data) = &outcome
        {
            // Its end takes the identity back.
            agent.agent_id = data.get("id").and_then(Value::as_str).map(str::to_string);
        }
        if agent.phase != Phase::HttpRegistering {
            return;
        }
        let name = agent.name.clone();
        match outcome {
            Ok(data) => {
                agent.agent_id = data.get("id").and_then(Value::as_str).map(str::to_string);
                agent.token = data.get("token").and_then(Value::as_str).map(Secret::new);
                agent.pre_registered = agent.token.is_some();
                agent.phase = Phase::Binding;
                if let Some(id) = agent.agent_id.clone() {
                    self.cancel_deregister(&id, &name);
                    self.names_identity(&id, &name);
                }
                self.bind(generation);
            }
            Err(error) => {
                let text = format!("failed to pre-register worker '{name}': {error}");
                let final_answer = (400..500).contains(&error.status) && error.status != 408 && error.status != 429;
                if final_answer || matches!(agent.asker, Some(Asker::Invocation(_))) {
                    self.spawn_failed(generation, &text);
                } else {
                    agent.warning = Some(text);
                    self.start_program(generation);
                }
            }
        }
    }

    fn bind(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        let agent_id = agent.agent_id.clone().unwrap_or_default();
        let call = EngineCall::BindAgent {
            node_name: self.link.known_name().to_string(),
            name: agent.name.clone(),
            session_ref: agent.request.session_ref.clone(),
        };
        let awaited = Awaited::Bind { generation, agent_id, name: agent.name.clone() };
        self.call_engine(call, awaited);
    }

    /// A bind has ended; `agent_id` and `name` tell whose, should that life be over.
    pub(super) fn on_bound(
        &mut self,
        generation: Generation,
        agent_id: &str,
        name: &str,
        outcome: Result<Value, EngineError>,
    ) {
        let Some(agent) = self.roster.get_mut(generation) else {
            // It may have been carried out after the deregistration.
            if outcome.is_ok() && !agent_id.is_empty() && !self.lives_again(agent_id, name) {
                self.deregister(agent_id, name, None);
            }
            return;
        };
        if agent.phase != Phase::Binding {
            self.on_bound_again(generation, outcome.is_ok());
            return;
        }
        match outcome {
            Ok(_) => {
                agent.bound = true;
                self.start_program(generation);
            }
            Err(error) => {
                let node = self.link.node_name().to_string();
                let warning = format!(
                    "agent '{}' was HTTP-registered but binding it to node '{node}' failed ({error}); node-only delivery \
                     will NOT reach this agent until it is bound",
                    agent.name
                );
                if matches!(agent.asker, Some(Asker::Invocation(_))) {
                    self.spawn_failed(generation, &warning);
                    return;
                }
                agent.warning = Some(warning);
                self.timers.set(Timer::Bind(generation), self.now.mono + BIND_RETRY_MS);
                self.start_program(generation);
            }
        }
    }

    pub(super) fn bind_again(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        if agent.bound || agent.phase == Phase::Releasing {
            return;
        }
        self.bind(generation);
    }

    fn on_bound_again(&mut self, generation: Generation, bound: bool) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if bound {
            agent.bound = true;
            self.membership_changed();
        } else if agent.phase != Phase::Releasing {
            self.timers.set(Timer::Bind(generation), self.now.mono + BIND_RETRY_MS);
        }
    }
}
