//! The dead-letter store: messages that will not be delivered, each with its reason. Written before the failure is told.

use std::collections::VecDeque;

use super::Broker;
use super::mutants::{Mutant, planted};
use super::ports::{DeadLetter, Record};
use super::roster::Delivery;
use crate::wire::events::Event;

/// The oldest is dropped beyond this, also on load.
pub const DEAD_LETTERS_MAX: usize = 500;

#[derive(Debug, Default)]
pub struct DeadLetters {
    letters: VecDeque<DeadLetter>,
}

impl DeadLetters {
    pub fn push(&mut self, letter: DeadLetter) {
        if self.letters.len() >= DEAD_LETTERS_MAX {
            self.letters.pop_front();
        }
        self.letters.push_back(letter);
    }

    pub fn iter(&self) -> impl Iterator<Item = &DeadLetter> {
        self.letters.iter()
    }

    pub fn len(&self) -> usize {
        self.letters.len()
    }
}

impl Broker {
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
