//! Messages of the caller: one in the terminal at a time, the next after the proof that it was read.

use std::time::{Duration, Instant};

use super::{Message, Pty, retryable, worker};
use crate::core::ports::{AgentCommand, Injection};
use crate::sys::clock;
use crate::wire::worker::{DeliveryStep, FromWorker, RelayDelivery};

/// Pause after the n-th failed try in a row to type a message; one more failure is final.
const RETRY: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// Messages that wait; more are refused.
const WAITING: usize = 1024;

impl Pty {
    pub(super) fn take(&mut self, delivery: RelayDelivery, request_id: Option<String>) -> std::io::Result<()> {
        let id = &delivery.delivery_id;
        let is_here = self.waiting.iter().chain(&self.in_flight).any(|message| message.delivery.delivery_id == *id)
            || self.typed.has(id);
        if is_here {
            return Ok(());
        }
        if self.waiting.len() >= WAITING {
            return retryable("queue_full", "too many messages wait", request_id.as_deref());
        }
        worker::say(&FromWorker::DeliveryQueued(self.step(&delivery, true)), None)?;
        self.waiting.push_back(Message { delivery, failures: 0, verified: false });
        Ok(())
    }

    pub(super) fn step(&self, delivery: &RelayDelivery, timed: bool) -> DeliveryStep {
        DeliveryStep {
            delivery_id: delivery.delivery_id.clone(),
            event_id: delivery.event_id.clone(),
            agent: Some(self.name.clone()),
            timestamp: timed.then(clock::unix_ms),
        }
    }

    pub(super) fn type_next(&mut self) {
        if self.in_flight.is_some() || self.pid.is_none() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let Some(message) = self.waiting.pop_front() else { return };
        let delivery = &message.delivery;
        let injection = Injection {
            delivery_id: delivery.delivery_id.clone(),
            event_id: delivery.event_id.clone(),
            from: delivery.from.clone(),
            target: delivery.target.clone(),
            body: delivery.body.clone(),
            workspace: delivery.workspace_alias.clone().or(delivery.workspace_id.clone()),
            mode: delivery.injection_mode,
            exempt: false,
        };
        match self.agent.send(AgentCommand::Inject(injection)) {
            Ok(()) => self.in_flight = Some(message),
            Err(_) => {
                self.waiting.push_front(message);
                self.retry_at = Some(Instant::now() + RETRY[0]);
            }
        }
    }

    /// The message that is under way, if it is this one.
    pub(super) fn of_flight(&self, delivery_id: &str) -> Option<&RelayDelivery> {
        self.in_flight.as_ref().map(|message| &message.delivery).filter(|delivery| delivery.delivery_id == delivery_id)
    }

    pub(super) fn land(&mut self, delivery_id: &str) -> Option<Message> {
        self.in_flight.take_if(|message| message.delivery.delivery_id == delivery_id)
    }

    pub(super) fn on_inject_failed(&mut self, delivery_id: &str, reason: String) -> std::io::Result<()> {
        let Some(mut message) = self.land(delivery_id) else { return Ok(()) };
        match RETRY.get(message.failures) {
            Some(pause) => {
                message.failures += 1;
                self.waiting.push_front(message);
                self.retry_at = Some(Instant::now() + *pause);
                Ok(())
            }
            None => self.failed(&message.delivery, reason),
        }
    }

    pub(super) fn failed(&self, delivery: &RelayDelivery, reason: String) -> std::io::Result<()> {
        let (delivery_id, event_id) = (delivery.delivery_id.clone(), delivery.event_id.clone());
        worker::say(&FromWorker::DeliveryFailed { delivery_id, event_id, reason }, None)
    }

    pub(super) fn on_verified(&mut self, delivery_id: String, echo: bool) -> std::io::Result<()> {
        let read = self.unverified.iter().position(|(known, _)| *known == delivery_id);
        let event_id = match read {
            Some(at) => self.unverified.remove(at).1,
            None => match self.in_flight.as_mut().filter(|message| message.delivery.delivery_id == delivery_id) {
                Some(message) => {
                    message.verified = true;
                    message.delivery.event_id.clone()
                }
                None => return Ok(()),
            },
        };
        let ack = DeliveryStep {
            delivery_id: delivery_id.clone(),
            event_id: event_id.clone(),
            agent: Some(self.name.clone()),
            timestamp: None,
        };
        worker::say(&FromWorker::DeliveryAck(ack), None)?;
        let (verification, reason) = match echo {
            true => ("echo", None),
            false => ("timeout_fallback", Some("echo not detected within 5s window".to_string())),
        };
        let verification = verification.to_string();
        worker::say(&FromWorker::DeliveryVerified { delivery_id, event_id, verification, reason }, None)
    }
}
