//! What became of each message, with the times: queued, typed, read, shown, answered, or dead with its reason.
//!
//! Filled from the events themselves, so that a receipt says nothing that was not told. Bounded by [`RECEIPTS_MAX`].

use std::collections::{BTreeMap, VecDeque};

use super::Broker;
use super::ports::{InboundMode, Ms, Ticket};
use super::roster::Delivery;
use super::{answers, ports};
use crate::wire::api::ReceiptBody;
use crate::wire::events::Event;

/// The oldest is forgotten beyond this, whatever its state. An hour of an agent that gets a message every two seconds, in
/// less than a megabyte.
pub const RECEIPTS_MAX: usize = 2_048;

/// Times are milliseconds of the wall clock.
#[derive(Debug, Clone, PartialEq, Default)]
struct Receipt {
    name: String,
    event_id: String,
    from: Option<String>,
    to: Option<String>,
    attempts: u32,
    reason: Option<String>,
    queued_at: Option<Ms>,
    waiting_since: Option<Ms>,
    typed_at: Option<Ms>,
    read_at: Option<Ms>,
    verified_at: Option<Ms>,
    verification: Option<String>,
    turn_started_at: Option<Ms>,
    failed_at: Option<Ms>,
}

impl Receipt {
    fn state(&self, held: bool) -> &'static str {
        let verified = self.verified_at.is_some();
        match () {
            () if self.failed_at.is_some() => "dead",
            () if self.turn_started_at.is_some() => "turn_started",
            () if verified && self.read_at.is_some() => match self.verification.as_deref() {
                Some("echo") => "echoed",
                Some("exit_code") => "done",
                _ => "window",
            },
            () if self.read_at.is_some() => "read",
            () if self.typed_at.is_some() => "typed",
            () if self.waiting_since.is_some() => "waiting",
            () if held => "held",
            () => "queued",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Receipts {
    all: BTreeMap<String, Receipt>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Receipts {
    fn entry(&mut self, delivery_id: &str, name: &str, event_id: &str) -> &mut Receipt {
        if !self.all.contains_key(delivery_id) {
            self.order.push_back(delivery_id.to_string());
            if self.order.len() > RECEIPTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.all.remove(&oldest);
            }
        }
        self.all.entry(delivery_id.to_string()).or_insert_with(|| Receipt {
            name: name.to_string(),
            event_id: event_id.to_string(),
            ..Receipt::default()
        })
    }

    /// A message is in the queue of its agent, perhaps not for the first time.
    pub(super) fn queued(&mut self, name: &str, delivery: &Delivery) {
        let receipt = self.entry(&delivery.delivery_id, name, &delivery.event_id);
        *receipt = Receipt {
            name: name.to_string(),
            event_id: delivery.event_id.clone(),
            from: Some(delivery.from.clone()),
            to: Some(delivery.target.clone()),
            attempts: delivery.attempts,
            queued_at: Some(delivery.queued_at_unix),
            ..Receipt::default()
        };
    }

    /// It is back in the queue: what was seen of the try before is no part of the next one.
    pub(super) fn back(&mut self, delivery: &Delivery) {
        let (attempts, reason) = (delivery.attempts, delivery.last_error.clone());
        self.change(&delivery.delivery_id, |receipt| {
            *receipt = Receipt {
                name: std::mem::take(&mut receipt.name),
                event_id: std::mem::take(&mut receipt.event_id),
                from: receipt.from.take(),
                to: receipt.to.take(),
                attempts,
                reason,
                queued_at: receipt.queued_at,
                ..Receipt::default()
            };
        });
    }

    /// The id of the message that this delivery brings.
    pub(super) fn event_of(&self, delivery_id: &str) -> Option<String> {
        self.all.get(delivery_id).map(|receipt| receipt.event_id.clone())
    }

    /// Takes what an event says of a message. What nobody knows any more is not brought back, except by its death.
    pub(super) fn see(&mut self, event: &Event, now: Ms) {
        match event {
            Event::DeliveryWaiting { delivery_id, reason, .. } => self.change(delivery_id, |receipt| {
                receipt.waiting_since.get_or_insert(now);
                receipt.reason = Some(reason.clone());
            }),
            Event::DeliveryInjected { delivery_id, .. } => self.change(delivery_id, |receipt| {
                receipt.typed_at = Some(now);
                receipt.reason = None;
            }),
            Event::DeliveryRead { delivery_id, .. } => {
                self.change(delivery_id, |receipt| receipt.read_at = Some(now));
            }
            Event::DeliveryVerified { delivery_id, verification, .. } => self.change(delivery_id, |receipt| {
                receipt.verified_at = Some(now);
                receipt.verification = Some(verification.clone());
            }),
            Event::DeliveryTurnStarted { delivery_id, .. } => {
                self.change(delivery_id, |receipt| receipt.turn_started_at = Some(now));
            }
            Event::DeliveryStalled { delivery_id, .. } => {
                self.change(delivery_id, |receipt| receipt.reason = Some("the program does not read it".into()));
            }
            Event::DeliveryFailed { delivery_id, reason, .. } => {
                self.change(delivery_id, |receipt| receipt.reason = Some(reason.clone()));
            }
            Event::DeadLetterAdded { name, delivery_id, event_id, from, to, attempts, reason } => {
                let receipt = self.entry(delivery_id, name, event_id);
                (receipt.from, receipt.to) = (Some(from.clone()), Some(to.clone()));
                (receipt.attempts, receipt.reason) = (*attempts, Some(reason.clone()));
                receipt.failed_at = Some(now);
            }
            _ => {}
        }
    }

    fn change(&mut self, delivery_id: &str, change: impl FnOnce(&mut Receipt)) {
        if let Some(receipt) = self.all.get_mut(delivery_id) {
            change(receipt);
        }
    }
}

impl Broker {
    /// `GET /api/deliveries/{id}`.
    pub(super) fn answer_receipt(&mut self, ticket: Ticket, delivery_id: &str) {
        let answer = self.receipt(delivery_id);
        self.reply(ticket, answer);
    }

    fn receipt(&self, delivery_id: &str) -> ports::ApiAnswer {
        let Some(receipt) = self.receipts.all.get(delivery_id) else {
            let text = format!(
                "no message with the delivery id '{delivery_id}' is known; the receipts of the last {RECEIPTS_MAX} \
                 messages of this broker's life are kept"
            );
            return answers::code(404, "delivery_not_found", &text);
        };
        let held = self.roster.named(&receipt.name).is_some_and(|agent| {
            agent.mode == InboundMode::ManualFlush
                && agent.queue.iter().any(|waits| waits.delivery_id == delivery_id && !waits.exempt)
        });
        let receipt = receipt.clone();
        answers::receipt(ReceiptBody {
            state: receipt.state(held).into(),
            delivery_id: delivery_id.to_string(),
            event_id: receipt.event_id,
            name: receipt.name,
            from: receipt.from,
            to: receipt.to,
            attempts: receipt.attempts,
            reason: receipt.reason,
            queued_at: receipt.queued_at,
            waiting_since: receipt.waiting_since,
            typed_at: receipt.typed_at,
            read_at: receipt.read_at,
            verified_at: receipt.verified_at,
            verification: receipt.verification,
            turn_started_at: receipt.turn_started_at,
            failed_at: receipt.failed_at,
        })
    }
}
