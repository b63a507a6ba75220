//! The delivery mode of an agent: what is held for a human at its terminal, and how it is let through.

use super::ports::{AgentCommand, Expected, Generation, InboundMode, Ticket};
use super::roster::{Phase, Source};
use super::{Broker, answers};
use crate::wire::api::FlushedBody;
use crate::wire::events::Event;

impl Broker {
    pub(super) fn next_mode_revision(&mut self) -> u64 {
        self.mode_revisions += 1;
        self.mode_revisions
    }

    pub(super) fn set_mode(&mut self, ticket: Ticket, name: &str, mode: InboundMode, expected: Expected) {
        let Some(agent) = self.roster.named(name) else {
            self.reply(ticket, answers::no_agent(name));
            return;
        };
        let generation = agent.generation;
        let matched = expected.mode.is_none_or(|mode| mode == agent.mode)
            && expected.revision.is_none_or(|revision| revision == agent.mode_revision);
        let changes = matched && agent.mode != mode;
        let flushed = if changes { self.change_mode(generation, mode) } else { 0 };
        if let Some(agent) = self.roster.get(generation) {
            let answer = answers::mode_set(agent, matched, flushed);
            self.reply(ticket, answer);
        }
    }

    /// How many messages a hold that ends with it lets through.
    fn change_mode(&mut self, generation: Generation, mode: InboundMode) -> usize {
        let revision = self.next_mode_revision();
        let Some(agent) = self.roster.get_mut(generation) else { return 0 };
        // A terminal that is still to come is told when it is there.
        let is_there = agent.phase != Phase::Cooling;
        let previous = std::mem::replace(&mut agent.mode, mode);
        agent.mode_revision = revision;
        if mode == InboundMode::ManualFlush {
            // What an earlier flush let through is held again; the task alone never is. What the terminal has not begun comes
            // back from there.
            let at_terminal = agent.in_flight.as_mut().map(|flight| &mut flight.delivery);
            for delivery in agent.queue.iter_mut().chain(at_terminal).filter(|one| one.source != Source::Task) {
                delivery.exempt = false;
            }
        }
        let event = Event::AgentInboundDeliveryModeChanged {
            name: agent.name.clone(),
            previous_mode: previous.as_str().into(),
            mode: mode.as_str().into(),
        };
        if is_there {
            self.command(generation, AgentCommand::Hold(mode == InboundMode::ManualFlush));
        }
        self.event(event);
        if mode == InboundMode::AutoInject { self.flush(generation, "delivery_mode_transition") } else { 0 }
    }

    pub(super) fn flush_on_request(&mut self, ticket: Ticket, name: &str) {
        let Some(agent) = self.roster.named(name) else {
            self.reply(ticket, answers::no_agent(name));
            return;
        };
        let (generation, releasing) = (agent.generation, agent.phase == Phase::Releasing);
        // Without a hold, what waits its turn is not held; what an ending agent has left is typed no more.
        let held = agent.mode == InboundMode::ManualFlush;
        let flushed = if held && !releasing { self.flush(generation, "explicit_flush") } else { 0 };
        let Some(agent) = self.roster.get(generation) else { return };
        let blocked_reason = match agent.phase {
            Phase::Releasing => Some("agent_releasing"),
            Phase::Cooling => Some("agent_restarting"),
            Phase::Running => (agent.state == "blocked_on_send").then_some("agent_not_reading"),
            _ => Some("agent_starting"),
        };
        let still_held = agent.queue.iter().filter(|delivery| held && !delivery.exempt).count();
        let body = FlushedBody {
            flushed: flushed as u64,
            dead_lettered: 0,
            held: still_held as u64,
            blocked_reason: blocked_reason.map(str::to_string),
        };
        self.reply(ticket, answers::whole(&body));
    }

    /// Lets through what is held at this moment.
    fn flush(&mut self, generation: Generation, reason: &str) -> usize {
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation) else { return 0 };
        let name = agent.name.clone();
        if let Some(flight) = &mut agent.in_flight {
            // The hold may be about to give it back: it stays before what waits behind it.
            flight.delivery.exempt = true;
        }
        let mut queued = Vec::new();
        for delivery in agent.queue.iter_mut().filter(|delivery| !delivery.exempt) {
            delivery.exempt = true;
            queued.push(Event::queued(&name, &delivery.delivery_id, &delivery.event_id, now));
        }
        let count = queued.len();
        for event in queued {
            self.event(event);
        }
        if count > 0 {
            self.event(Event::AgentPendingDrained { name, count: count as u64, reason: reason.to_string() });
        }
        self.type_next(generation);
        count
    }
}
