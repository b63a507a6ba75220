//! The dead-letter store: messages that will not be delivered, each with its reason. Written before the failure is told.

use std::collections::VecDeque;

use super::mutants::{Mutant, planted};
use super::ports::{DeadLetter, Record, Ticket};
use super::roster::Delivery;
use super::{Broker, answers};
use crate::wire::api::{RedeliveredBody, SkippedLetter};
use crate::wire::events::Event;

/// The oldest is dropped beyond this, also on load.
pub const DEAD_LETTERS_MAX: usize = 500;
/// So much text is kept of all of them together; the newest is kept whatever its size.
pub const DEAD_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Default)]
pub struct DeadLetters {
    letters: VecDeque<DeadLetter>,
    bytes: usize,
}

impl DeadLetters {
    pub fn push(&mut self, letter: DeadLetter) {
        self.bytes += letter.body.len();
        self.letters.push_back(letter);
        while self.letters.len() > DEAD_LETTERS_MAX || (self.bytes > DEAD_BYTES_MAX && self.letters.len() > 1) {
            let Some(oldest) = self.letters.pop_front() else { break };
            self.bytes -= oldest.body.len();
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &DeadLetter> {
        self.letters.iter()
    }

    /// Takes one out.
    pub(super) fn take(&mut self, delivery_id: &str) -> Option<DeadLetter> {
        let at = self.letters.iter().position(|letter| letter.delivery_id == delivery_id)?;
        let letter = self.letters.remove(at)?;
        self.bytes -= letter.body.len();
        Some(letter)
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }
}

impl Broker {
    /// Puts dead letters back on their way, where their recipients run. What is on its way again is no longer a dead letter,
    /// and is kept like a message that nobody repeats: it ends read, or dead again.
    pub(super) fn redeliver(&mut self, ticket: Ticket, wanted: Option<&str>) {
        let chosen: Vec<DeadLetter> =
            self.dead.iter().filter(|letter| wanted.is_none_or(|id| letter.delivery_id == id)).cloned().collect();
        if let Some(id) = wanted.filter(|_| chosen.is_empty()) {
            let text = format!("no dead letter has the id '{id}'; GET /api/dead-letters lists them");
            self.reply(ticket, answers::code(404, "dead_letter_not_found", &text));
            return;
        }
        let (mut redelivered, mut skipped) = (Vec::new(), Vec::new());
        for letter in chosen {
            let running = self.roster.named(&letter.worker_name).filter(|agent| {
                agent.has_begun() && agent.phase != super::roster::Phase::Releasing && !agent.is_full()
            });
            let Some(agent) = running else {
                skipped.push(SkippedLetter {
                    delivery_id: letter.delivery_id,
                    reason: format!("agent '{}' is not running here, or has too much waiting", letter.worker_name),
                    worker_name: letter.worker_name,
                });
                continue;
            };
            let (generation, book) = (
                agent.generation,
                super::delivery::book_key(agent.agent_id.as_deref().unwrap_or_default(), &agent.name),
            );
            self.dead.take(&letter.delivery_id);
            self.event(Event::DeadLetterRedelivered {
                name: letter.worker_name.clone(),
                delivery_id: letter.delivery_id.clone(),
                event_id: letter.event_id.clone(),
            });
            let key = self.ids.fresh("redelivered|");
            let delivery = Delivery {
                // What is still said of the try before does not concern this one.
                delivery_id: self.ids.fresh("del_"),
                event_id: letter.event_id,
                from: letter.from,
                target: letter.to,
                body: letter.body,
                thread_id: None,
                priority: 2,
                mode: crate::wire::node::DeliveryMode::Wait,
                workspace: None,
                source: super::roster::Source::Unrepeated { book, key },
                queued_at_unix: self.now.unix,
                attempts: 0,
                last_error: None,
                exempt: false,
            };
            if self.config.durable {
                self.store(&letter.worker_name, &delivery);
                self.journal(Record::Redelivered { delivery_id: letter.delivery_id.clone() });
            }
            redelivered.push(letter.delivery_id);
            self.enqueue(generation, delivery);
        }
        self.reply(ticket, answers::whole(&RedeliveredBody { redelivered, skipped }));
    }

    /// Ends a delivery as undeliverable: on record, told, and disposed.
    pub(super) fn bury(&mut self, delivery: Delivery, name: &str, reason: &str) {
        if planted(Mutant::DeadAgentNotRecorded) {
            self.dispose_source(&delivery.source);
            return;
        }
        let letter = DeadLetter {
            delivery_id: delivery.delivery_id.clone(),
            worker_name: name.to_string(),
            event_id: delivery.event_id.clone(),
            from: delivery.from.clone(),
            to: delivery.target.clone(),
            body: delivery.body.clone(),
            attempts: delivery.attempts,
            reason: reason.to_string(),
            queued_at_ms: delivery.queued_at_unix,
            failed_at_ms: self.now.unix,
        };
        self.journal(Record::DeadLetter(letter.clone()));
        self.dead.push(letter);
        self.event(Event::DeadLetterAdded {
            name: name.to_string(),
            delivery_id: delivery.delivery_id.clone(),
            event_id: delivery.event_id.clone(),
            from: delivery.from.clone(),
            to: delivery.target.clone(),
            attempts: delivery.attempts,
            reason: reason.to_string(),
        });
        self.event(Event::MessageDeliveryFailed {
            name: name.to_string(),
            delivery_id: delivery.delivery_id,
            event_id: delivery.event_id,
            from: delivery.from,
            to: delivery.target,
            attempts: delivery.attempts,
            last_error: reason.to_string(),
        });
        self.dispose_source(&delivery.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: usize, size: usize) -> DeadLetter {
        DeadLetter {
            delivery_id: id.to_string(),
            worker_name: "w".into(),
            event_id: "e".into(),
            from: "f".into(),
            to: "t".into(),
            body: "x".repeat(size),
            attempts: 0,
            reason: "r".into(),
            queued_at_ms: 0,
            failed_at_ms: 0,
        }
    }

    #[test]
    fn dead_letters_are_bounded_by_number_and_by_size_and_the_newest_stays() {
        let mut dead = DeadLetters::default();
        (0..600).for_each(|id| dead.push(letter(id, 10)));
        assert_eq!((dead.len(), dead.iter().next().map(|l| l.delivery_id.clone())), (500, Some("100".into())));
        dead.push(letter(1000, DEAD_BYTES_MAX - 10));
        assert_eq!(dead.len(), 2);
        dead.push(letter(1001, DEAD_BYTES_MAX + 1));
        assert_eq!(dead.iter().map(|l| l.delivery_id.as_str()).collect::<Vec<_>>(), ["1001"]);
    }
}
