//! The queue of an agent: what comes in, what is handed to the terminal next, and what is disposed or left at the end.

use super::Broker;
use super::delivery::book_key;
use super::mutants::{Mutant, planted};
use super::ports::{AgentCommand, Generation, InboundMode, Record};
use super::roster::{Agent, Delivery, HELD_API_MAX, InFlight, Source};
use crate::wire::events::Event;
use crate::wire::node::DeliveryMode;

impl Broker {
    /// Puts a message into its agent's queue; every source ends here.
    pub(super) fn enqueue(&mut self, generation: Generation, delivery: Delivery) {
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let name = agent.name.clone();
        self.receipts.queued(&name, &delivery);
        let held = agent.mode == InboundMode::ManualFlush && !delivery.exempt;
        let event = if held {
            Event::held(&name, &delivery.event_id, &delivery.from, &delivery.target)
        } else {
            Event::queued(&name, &delivery.delivery_id, &delivery.event_id, now)
        };
        agent.queue.push_back(delivery);
        let evicted = if held { evict_oldest_api(agent) } else { None };
        self.event(event);
        if let Some(evicted) = evicted {
            let reason =
                format!("pending queue full (max {HELD_API_MAX}); evicted oldest message from {}", evicted.from);
            self.event(Event::DeliveryDropped { name: name.clone(), count: 1, reason: reason.clone() });
            self.bury(evicted, &name, &reason);
        }
        self.type_next(generation);
    }

    /// What waits at the terminal to be typed comes back if something that steers is next.
    fn make_way(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        let waits = |flight: &InFlight| {
            let delivery = &flight.delivery;
            !flight.typed && delivery.mode == DeliveryMode::Wait && delivery.source != Source::Task
        };
        if agent.in_flight.as_ref().is_some_and(waits) && agent.next_steers() {
            self.command(generation, AgentCommand::Yield);
        }
    }

    /// Hands the next message to the terminal if nothing forbids it.
    pub(super) fn type_next(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if self.stopping.is_some() {
            return;
        }
        if !agent.can_type() {
            self.make_way(generation);
            return;
        }
        let Some(delivery) = agent.next_to_type() else { return };
        let command = delivery.injection();
        let source = delivery.source.clone();
        agent.in_flight = Some(InFlight { delivery, typed: false });
        let drained = !agent.is_full();
        self.command(generation, command);
        if planted(Mutant::AckAtHandOff) {
            self.dispose_source(&source);
        }
        if drained {
            self.resume_after_refusal(generation);
        }
    }

    /// The queue has room again: ask the engine for what was refused.
    fn resume_after_refusal(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        let key = book_key(agent.agent_id.as_deref().unwrap_or_default(), &agent.name);
        let Some(cursor) = self.book.get_mut(&key) else { return };
        if cursor.refusing && cursor.open_count() < super::roster::QUEUE_MAX / 2 {
            cursor.refusing = false;
            if self.link.is_open() {
                self.send_register();
            }
            self.drain_held(&key, Some(generation));
        }
    }

    pub(super) fn dispose_source(&mut self, source: &Source) {
        self.unstore(source);
        if let Source::Numbered { book, seq, msg_id } | Source::Late { book, seq, msg_id } = source {
            self.dispose(book, *seq, msg_id);
        }
    }

    /// A numbered frame is read, dead-lettered or ack-only. Its acknowledgement leaves at the end of the turn, after the
    /// journal.
    pub(super) fn dispose(&mut self, key: &str, seq: u64, msg_id: &str) {
        let Some(cursor) = self.book.get_mut(key) else { return };
        let safe = cursor.dispose(seq);
        if self.config.durable {
            let record = Record::Disposed {
                agent_id: key.to_string(),
                agent: cursor.agent.clone(),
                seq: safe,
                msg_id: msg_id.to_string(),
            };
            self.journal(record);
        }
    }

    /// What an ended agent leaves: read ones are confirmed, the others dead-lettered, or handed back where the engine or the
    /// journal still has them and the agent may come again.
    pub(super) fn bury_messages(&mut self, agent: &Agent, reason: &str, hand_back: bool) {
        for delivery in &agent.verifying {
            self.over(delivery);
            if !delivery.is_engine() {
                self.confirm(&agent.name, delivery);
            }
        }
        let (kept, open): (Vec<Delivery>, Vec<Delivery>) = agent
            .in_flight
            .iter()
            .map(|flight| &flight.delivery)
            .chain(agent.queue.iter())
            .chain(agent.task.iter())
            .cloned()
            .partition(|delivery| hand_back && self.is_kept_elsewhere(delivery));
        self.keep_for_next_life(&agent.name, kept);
        if open.is_empty() {
            return;
        }
        self.event(Event::DeliveryDropped {
            name: agent.name.clone(),
            count: open.len() as u64,
            reason: reason.to_string(),
        });
        let typed = agent.in_flight.as_ref().filter(|flight| flight.typed).map(|f| f.delivery.delivery_id.clone());
        for delivery in open {
            let unproved = typed.as_deref() == Some(delivery.delivery_id.as_str());
            let why = if unproved { format!("{reason} (typed, never proved read)") } else { reason.to_string() };
            self.bury(delivery, &agent.name, &why);
        }
    }

    /// The engine repeats it, or the journal brings it to the next life.
    fn is_kept_elsewhere(&self, delivery: &Delivery) -> bool {
        match delivery.source {
            Source::Numbered { .. } => true,
            Source::Unrepeated { .. } | Source::Late { .. } => self.config.durable,
            // A spawn that fails is told to whoever wrote to it; a stop is not the agent's end.
            Source::Api { .. } => self.config.durable && self.stopping.is_some(),
            Source::Task | Source::Recalled => false,
        }
    }
}

fn evict_oldest_api(agent: &mut Agent) -> Option<Delivery> {
    let is_held_api = |delivery: &Delivery| delivery.is_api() && !delivery.exempt;
    if agent.queue.iter().filter(|delivery| is_held_api(delivery)).count() <= HELD_API_MAX {
        return None;
    }
    let at = agent.queue.iter().position(is_held_api)?;
    agent.queue.remove(at)
}
