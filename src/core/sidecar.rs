//! The sidecar: a local program that declares actions and spawners and answers invokes. One at a time: the newest connection
//! wins, and nothing of an older one has effect afterwards.

use std::collections::BTreeSet;

use log::Level;
use serde_json::json;

use super::mutants::{Mutant, planted};
use super::ports::{ApiAnswer, Effect, Ms, SidecarCommand, SidecarGeneration, SidecarNote, Ticket};
use super::timers::Timer;
use super::{Broker, answers, invoke};
use crate::wire::fleet::{Manifest, Supervision};
use crate::wire::node::{ActionInvoke, ActionOutcome};

/// A handler that has not answered by then never will. The engine asks other nodes after 30 s, but takes a late result; and
/// what is open here is silent when asked again.
pub(super) const HANDLER_MS: Ms = 10 * 60_000;
/// Invocations that may wait for the sidecar at a time.
pub(super) const IN_FLIGHT_MAX: usize = 256;

/// Why a call of an old connection is refused.
pub(super) const SUPERSEDED: &str = "a newer sidecar has taken the place of this connection";

#[derive(Debug, Default)]
pub(super) struct Sidecar {
    attached: Option<SidecarGeneration>,
    newest: SidecarGeneration,
    handlers: BTreeSet<String>,
    /// Invocations that the attached sidecar has to answer.
    in_flight: BTreeSet<String>,
}

impl Sidecar {
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Whether this is the connection that counts.
    pub fn is(&self, generation: SidecarGeneration) -> bool {
        self.attached == Some(generation)
    }

    pub fn handlers(&self) -> impl Iterator<Item = &String> {
        self.handlers.iter()
    }

    pub fn handles(&self, action: &str) -> bool {
        self.is_attached() && self.handlers.contains(action)
    }

    pub fn handlers_live(&self) -> bool {
        (self.is_attached() || planted(Mutant::HandlersOutliveSidecar)) && !self.handlers.is_empty()
    }

    /// An invocation is answered, by whomever.
    pub fn forget(&mut self, invocation_id: &str) -> bool {
        self.in_flight.remove(invocation_id)
    }
}

impl Broker {
    pub(super) fn on_sidecar(&mut self, generation: SidecarGeneration, note: SidecarNote) {
        match note {
            SidecarNote::Attached if generation > self.sidecar.newest => self.sidecar_attached(generation),
            SidecarNote::Gone { reason } if self.sidecar.is(generation) => {
                self.log(Level::Warn, format!("the sidecar is gone: {reason}"));
                self.sidecar_ends();
                self.consider_restart();
            }
            SidecarNote::Attached | SidecarNote::Gone { .. } => {}
        }
    }

    fn sidecar_attached(&mut self, generation: SidecarGeneration) {
        self.sidecar.newest = generation;
        if self.stopping.is_some() {
            self.close_sidecar(generation, "the broker is shutting down");
            return;
        }
        if let Some(older) = self.sidecar.attached {
            self.log(Level::Warn, "another sidecar has attached; the older one is closed");
            self.sidecar_ends();
            self.close_sidecar(older, "superseded");
        }
        self.sidecar.attached = Some(generation);
        self.log(Level::Info, "a sidecar has attached");
        self.sidecar_is_back();
        self.owes_heartbeat = true;
    }

    fn close_sidecar(&mut self, generation: SidecarGeneration, reason: &'static str) {
        self.out.push(Effect::Sidecar { generation, command: SidecarCommand::Close { reason } });
    }

    /// The end of the attached connection, however it came: what waits for it is answered. What the node says of itself
    /// stays.
    fn sidecar_ends(&mut self) {
        let Some(generation) = self.sidecar.attached.take() else { return };
        if !planted(Mutant::HandlersOutliveSidecar) {
            self.sidecar.handlers.clear();
        }
        self.sidecar_is_away();
        let waits = |agent: &&super::roster::Agent| agent.asker.is_some() && agent.request.sidecar == Some(generation);
        let spawns: Vec<_> = self.roster.iter().filter(waits).map(|agent| (agent.generation, agent.ran)).collect();
        for (spawn, runs) in spawns {
            if runs {
                self.answer_spawn(spawn);
            } else {
                // The engine will have it started elsewhere.
                self.spawn_failed(spawn, "the sidecar that asked for it is gone");
            }
        }
        for id in std::mem::take(&mut self.sidecar.in_flight) {
            self.timers.cancel(&Timer::Handler(id.clone()));
            // The inventory has told the engine already that this one is done; to say otherwise would start it twice.
            let runs = self.roster.iter().find(|agent| agent.ran && agent.invocation_id.as_deref() == Some(&id));
            let outcome = match runs {
                Some(agent) => Ok(json!({"spawned": true, "name": agent.name})),
                None => Err(invoke::UNAVAILABLE.to_string()),
            };
            self.finish_invocation(&id, outcome);
        }
        self.owes_heartbeat = true;
    }

    /// The orderly stop: what was open is answered already.
    pub(super) fn dismiss_sidecar(&mut self) {
        if let Some(generation) = self.sidecar.attached {
            self.sidecar_ends();
            self.close_sidecar(generation, "the broker is shutting down");
        }
        self.end_supervision();
    }

    /// Hands an invocation to the handler of its name.
    pub(super) fn invoke_handler(&mut self, invoke: ActionInvoke) {
        let Some(generation) = self.sidecar.attached else { return };
        let id = invoke.invocation_id;
        if self.sidecar.in_flight.len() >= IN_FLIGHT_MAX {
            let error = format!("handler_overloaded: {IN_FLIGHT_MAX} invocations wait for the sidecar");
            self.finish_invocation(&id, Err(error));
            return;
        }
        self.sidecar.in_flight.insert(id.clone());
        self.timers.set(Timer::Handler(id.clone()), self.now.mono + HANDLER_MS);
        let command = SidecarCommand::Invoke { invocation_id: id, name: invoke.action, input: invoke.input };
        self.out.push(Effect::Sidecar { generation, command });
    }

    pub(super) fn on_handler_due(&mut self, id: &str) {
        let error = format!("handler_timeout: the sidecar has not answered within {} s", HANDLER_MS / 1000);
        self.finish_invocation(id, Err(error));
    }

    /// Answers a call of a sidecar, unless its connection is one that no longer counts.
    pub(super) fn of_sidecar(
        &mut self,
        ticket: Ticket,
        generation: SidecarGeneration,
        call: impl FnOnce(&mut Broker) -> ApiAnswer,
    ) {
        let answer = match self.sidecar.is(generation) {
            true => call(self),
            false => answers::code(409, "frame_failed", SUPERSEDED),
        };
        self.reply(ticket, answer);
    }

    pub(super) fn register_node(&mut self, manifest: Manifest, supervision: Option<Supervision>) -> ApiAnswer {
        let argv = supervision.as_ref().map(|supervision| supervision.argv.as_slice());
        if argv.is_some_and(|argv| argv.first().is_none_or(|program| program.trim().is_empty())) {
            return answers::code(400, "frame_failed", "supervision.argv names no program");
        }
        self.supervise(supervision);
        self.declare(manifest);
        answers::ok(json!({"registered": true}))
    }

    pub(super) fn register_handlers(&mut self, names: Vec<String>) -> ApiAnswer {
        let named = |name: String| Some(name.trim().to_string()).filter(|name| !name.is_empty());
        self.sidecar.handlers = names.into_iter().filter_map(named).collect();
        self.owes_heartbeat = true;
        answers::ok(json!({"handlers_live": self.sidecar.handlers_live()}))
    }

    pub(super) fn handler_result(&mut self, invocation_id: &str, outcome: ActionOutcome) -> ApiAnswer {
        if !self.sidecar.in_flight.contains(invocation_id) {
            let message = format!("no invocation '{invocation_id}' waits for a result");
            return answers::code(404, "unknown_invocation", &message);
        }
        let outcome = match outcome {
            ActionOutcome::Output(output) => Ok(output),
            ActionOutcome::Error(error) => Err(error),
        };
        self.finish_invocation(invocation_id, outcome);
        answers::ok(json!({"completed": true}))
    }

    /// The clean end: the sidecar takes back what it has declared. The node itself stays.
    pub(super) fn deregister_node(&mut self, ticket: Ticket, generation: SidecarGeneration) {
        let counts = self.sidecar.is(generation);
        self.of_sidecar(ticket, generation, |broker| {
            broker.log(Level::Info, "the sidecar has deregistered");
            broker.sidecar_ends();
            broker.end_supervision();
            broker.declare_nothing();
            answers::ok(json!({"deregistered": true}))
        });
        if counts {
            self.close_sidecar(generation, "deregistered");
        }
    }
}
