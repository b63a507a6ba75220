//! Messages that nobody will repeat: of the local API, and of the engine without a number of their own. The journal keeps each
//! until it is disposed, over the end of the process too; here is what waits for an agent of another life, and the view of
//! all of them that the pending file shows.

use log::Level;

use super::delivery::book_key;
use super::ports::{Generation, Ms, Record};
use super::roster::{Delivery, Source};
use super::timers::Timer;
use super::{Broker, spawn};

/// Messages of the engine that it does not repeat wait this long for their agents to come back.
const RESTORED_MS: Ms = 15 * 60_000;
/// Those of the local API wait for as many pauses between two tries: clients expect to hear within 30 s that nobody came.
const API_PAUSES: Ms = 25;

/// A message of an earlier life, for an agent that is not here.
#[derive(Debug)]
pub(super) struct Restored {
    pub agent: String,
    pub delivery: Delivery,
    /// That life's program has read it: it is not typed again, only told of.
    pub read: bool,
}

/// A message that the journal keeps, and whom it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    pub agent: String,
    pub delivery: Delivery,
}

impl Broker {
    /// The messages that the journal keeps: in the terminals, in the queues, read and not confirmed yet, and without an agent.
    pub fn pending(&self) -> Vec<Pending> {
        let of_agents = self.roster.iter().flat_map(|agent| {
            let in_flight = agent.in_flight.iter().map(|flight| &flight.delivery);
            let read = agent.verifying.iter().filter(|delivery| self.config.durable && delivery.is_api());
            in_flight.chain(&agent.queue).chain(read).map(|delivery| (&agent.name, delivery))
        });
        let of_nobody = self.restored.iter().map(|one| (&one.agent, &one.delivery));
        of_nobody
            .chain(of_agents)
            .filter(|(_, delivery)| delivery.source.stored_under().is_some())
            .map(|(name, delivery)| Pending { agent: name.clone(), delivery: delivery.clone() })
            .collect()
    }

    /// Has the journal keep the message, if it is of a kind that nobody repeats.
    pub(super) fn store(&mut self, agent: &str, delivery: &Delivery) {
        let Some((book, key)) = delivery.source.stored_under().filter(|_| self.config.durable) else { return };
        let (agent_id, agent) = (book.to_string(), agent.to_string());
        self.pending_changes += 1;
        self.journal(Record::Unrepeated { agent_id, agent, key, delivery: delivery.stored() });
    }

    /// The program has read the message. Of the local API the journal keeps it until it is confirmed: clients of 9.1.6 expect
    /// to hear that it was not, if the broker is killed before.
    pub(super) fn store_read(&mut self, source: &Source) {
        let Some((book, key)) = source.stored_under().filter(|_| self.config.durable) else { return };
        let agent_id = book.to_string();
        self.journal(Record::UnrepeatedRead { agent_id, key });
    }

    /// A message that was read is confirmed, or nothing more will be heard of it.
    pub(super) fn over(&mut self, delivery: &Delivery) {
        if delivery.is_api() {
            self.unstore(&delivery.source);
        }
    }

    /// The message is disposed: the journal need not keep it.
    pub(super) fn unstore(&mut self, source: &Source) {
        let Some((book, key)) = source.stored_under().filter(|_| self.config.durable) else { return };
        let agent_id = book.to_string();
        self.pending_changes += 1;
        self.journal(Record::UnrepeatedDone { agent_id, key });
    }

    /// What an agent that has ended leaves in the journal waits for its next life.
    pub(super) fn keep_for_next_life(&mut self, name: &str, kept: Vec<Delivery>) {
        let stored = kept.into_iter().filter(|delivery| delivery.source.stored_under().is_some());
        let before = self.restored.len();
        self.restored.extend(stored.map(|delivery| Restored { agent: name.to_string(), delivery, read: false }));
        if self.restored.len() > before && self.stopping.is_none() {
            self.wait_for_agents();
        }
    }

    /// Starts the time that the agents have to come back.
    pub(super) fn wait_for_agents(&mut self) {
        self.restored_since = self.now.mono;
        self.set_restored_timer();
    }

    fn waits_until(&self, delivery: &Delivery) -> Ms {
        let patience = if delivery.is_api() { API_PAUSES * self.config.delivery_retry_ms } else { RESTORED_MS };
        self.restored_since + patience
    }

    fn set_restored_timer(&mut self) {
        let first = self.restored.iter().map(|one| self.waits_until(&one.delivery)).min();
        if let Some(first) = first {
            // A spawn that is on its way then ends soon.
            let at = if first > self.now.mono { first } else { self.now.mono + spawn::SPAWN_MS };
            self.timers.set(Timer::Restored, at);
        }
    }

    /// Their agents have had their time to come back.
    pub(super) fn on_restored_due(&mut self) {
        let is_over = |broker: &Broker, name: &str, delivery: &Delivery| {
            let is_coming = broker.roster.named(name).is_some_and(|agent| !agent.ran);
            broker.now.mono >= broker.waits_until(delivery) && !is_coming
        };
        let (dead, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.restored).into_iter().partition(|one| is_over(self, &one.agent, &one.delivery));
        self.restored = waiting;
        self.set_restored_timer();
        for Restored { agent, delivery, .. } in dead {
            self.bury(delivery, &agent, "recipient gone");
        }
    }

    /// Messages kept from an earlier life for this agent, now that it is here.
    pub(super) fn adopt_restored(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        let (name, id) = (agent.name.clone(), agent.agent_id.clone().unwrap_or_default());
        let (mine, others) = std::mem::take(&mut self.restored).into_iter().partition(|one| {
            let book = one.delivery.source.stored_under().map(|(book, _)| book).filter(|_| !one.read);
            book.is_some_and(|book| (!id.is_empty() && book == id) || book == book_key("", &name))
        });
        self.restored = others;
        let mine: Vec<Restored> = mine;
        let Some(agent) = self.roster.get_mut(generation).filter(|_| !mine.is_empty()) else { return };
        // They were sent before all that came while the agent was starting.
        let later = std::mem::take(&mut agent.queue);
        for Restored { delivery, .. } in mine {
            self.pending_changes += 1;
            self.enqueue(generation, delivery);
        }
        if let Some(agent) = self.roster.get_mut(generation) {
            agent.queue.extend(later);
        }
        self.type_next(generation);
    }

    /// At the stop of a broker that keeps nothing: what its agents have not read is lost.
    pub(super) fn warn_of_losses(&mut self) {
        let lost = if self.config.durable { 0 } else { self.pending().len() };
        if lost > 0 {
            self.log(
                Level::Warn,
                format!("{lost} message(s) that were not read are lost: this run is ephemeral, --persist keeps them"),
            );
        }
    }
}
