//! What the terminal says of a message that was handed to it: typed, read, stalled, echoed, failed. Only the proof of reading
//! disposes; the echo decides events.

use super::ports::{Generation, InboundMode, Ms};
use super::roster::{ATTEMPTS_MAX, Delivery, InFlight};
use super::timers::Timer;
use super::{Broker, answers};
use crate::wire::events::Event;

/// Pause after the n-th failed injection in a row.
const RETRY_MS: [Ms; 5] = [200, 500, 1000, 2000, 5000];

impl Broker {
    pub(super) fn on_retry(&mut self, generation: Generation) {
        if let Some(agent) = self.roster.get_mut(generation) {
            agent.backing_off = false;
        }
        self.type_next(generation);
    }

    fn flight(&mut self, generation: Generation, delivery_id: &str) -> Option<&mut InFlight> {
        self.roster.get_mut(generation)?.in_flight.as_mut().filter(|flight| flight.delivery.delivery_id == delivery_id)
    }

    pub(super) fn on_typed(&mut self, generation: Generation, delivery_id: &str) {
        let now = self.now.unix;
        let Some(flight) = self.flight(generation, delivery_id) else { return };
        flight.typed = true;
        let event_id = flight.delivery.event_id.clone();
        let Some(agent) = self.roster.get(generation) else { return };
        let (name, delivery_id) = (agent.name.clone(), delivery_id.to_string());
        self.event(Event::DeliveryInjected { name, delivery_id, event_id, timestamp: now });
    }

    /// The provider of an agent without terminal was started with the message: there is no later proof of reading.
    pub(super) fn on_taken(&mut self, generation: Generation, delivery_id: &str, pid: u32) {
        let Some(flight) = self.flight(generation, delivery_id) else { return };
        let event_id = flight.delivery.event_id.clone();
        self.on_typed(generation, delivery_id);
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.pid = Some(pid);
        let (name, delivery_id) = (agent.name.clone(), delivery_id.to_string());
        let pattern = format!("headless:{}", agent.request.cli.trim());
        self.counters.runs += 1;
        self.event(Event::DeliveryActive {
            name: name.clone(),
            delivery_id: delivery_id.clone(),
            event_id: event_id.clone(),
            pattern,
        });
        self.event(Event::DeliveryAck { name, delivery_id: delivery_id.clone(), event_id, timestamp: Some(now) });
        self.on_read(generation, &delivery_id);
    }

    /// The server of an agent has the message: disposed, and nothing will be shown.
    pub(super) fn on_accepted(&mut self, generation: Generation, delivery_id: &str) {
        let Some(flight) = self.flight(generation, delivery_id) else { return };
        let delivery = flight.delivery.clone();
        self.on_typed(generation, delivery_id);
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let name = agent.name.clone();
        agent.verified_early.push(delivery_id.to_string());
        self.event(Event::DeliveryAck {
            name: name.clone(),
            delivery_id: delivery_id.to_string(),
            event_id: delivery.event_id.clone(),
            timestamp: Some(now),
        });
        if !delivery.is_engine() {
            self.confirm(&name, &delivery);
        }
        self.on_read(generation, delivery_id);
    }

    /// The one run of such an agent is over, or could not begin: then the message is on record.
    pub(super) fn on_finished(&mut self, generation: Generation, delivery_id: &str, result: Result<(), String>) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let name = agent.name.clone();
        let started = agent.verifying.iter().position(|delivery| delivery.delivery_id == delivery_id);
        let waiting = agent.in_flight.take_if(|flight| flight.delivery.delivery_id == delivery_id);
        let was_started = started.is_some();
        let delivery = started.map(|at| agent.verifying.remove(at)).or(waiting.map(|flight| flight.delivery));
        let Some(delivery) = delivery else { return };
        if was_started {
            self.over(&delivery);
        }
        let (delivery_id, event_id) = (delivery.delivery_id.clone(), delivery.event_id.clone());
        let reason = match result {
            Ok(()) => {
                if !delivery.is_engine() {
                    self.confirm(&name, &delivery);
                }
                let (verification, timestamp) = ("exit_code".into(), self.now.unix);
                self.event(Event::DeliveryVerified {
                    name,
                    delivery_id,
                    event_id,
                    timestamp,
                    verification,
                    reason: None,
                });
                return;
            }
            Err(reason) => reason,
        };
        self.event(Event::DeliveryFailed { name: name.clone(), delivery_id, event_id, reason: reason.clone() });
        if !was_started {
            let attached = self.roster.get(generation).is_some_and(|agent| agent.request.app_server.is_some());
            let code = if attached { "app_server_delivery_failed" } else { "spawn_failed" };
            self.event(Event::trouble(&name, code, &reason));
            self.bury(delivery, &name, &reason);
            // A server takes the next one all the same.
            self.type_next(generation);
        }
    }

    /// It is not typed while a human's unsent text stands in the composer.
    pub(super) fn on_waiting(&mut self, generation: Generation, delivery_id: &str) {
        let timestamp = self.now.unix;
        let Some(flight) = self.flight(generation, delivery_id) else { return };
        let event_id = flight.delivery.event_id.clone();
        let Some(agent) = self.roster.get(generation) else { return };
        let (name, delivery_id) = (agent.name.clone(), delivery_id.to_string());
        self.event(Event::DeliveryWaiting { name, delivery_id, event_id, reason: "human_draft".into(), timestamp });
    }

    /// The program answers, whether or not the proof of its reading has come.
    pub(super) fn on_turn_started(&mut self, generation: Generation, delivery_id: String) {
        let timestamp = self.now.unix;
        let Some(agent) = self.roster.get(generation) else { return };
        let name = agent.name.clone();
        let Some(event_id) = self.receipts.event_of(&delivery_id) else { return };
        self.event(Event::DeliveryTurnStarted { name, delivery_id, event_id, timestamp });
    }

    pub(super) fn on_stalled(&mut self, generation: Generation, delivery_id: &str) {
        let Some(flight) = self.flight(generation, delivery_id) else { return };
        let event_id = flight.delivery.event_id.clone();
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.state = "blocked_on_send";
        let name = agent.name.clone();
        self.event(Event::DeliveryStalled { name, delivery_id: delivery_id.to_string(), event_id });
    }

    /// The terminal has thrown it away, perhaps unread: on record, so that the next one is not kept waiting for ever.
    pub(super) fn on_lost(&mut self, generation: Generation, delivery_id: &str) {
        if self.flight(generation, delivery_id).is_none() {
            return;
        }
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let Some(flight) = agent.in_flight.take() else { return };
        agent.verified_early.retain(|id| id != delivery_id);
        agent.unblock();
        let name = agent.name.clone();
        self.bury(
            flight.delivery,
            &name,
            "the terminal's unread input was thrown away before the message was proved read",
        );
        self.type_next(generation);
        self.tell_late_idle(generation);
    }

    /// The kernel proves that the program has it: disposed.
    pub(super) fn on_read(&mut self, generation: Generation, delivery_id: &str) {
        let now = self.now.unix;
        if self.flight(generation, delivery_id).is_none() {
            return;
        }
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let Some(flight) = agent.in_flight.take() else { return };
        let name = agent.name.clone();
        agent.unblock();
        let delivery = flight.delivery;
        let (event_id, source) = (delivery.event_id.clone(), delivery.source.clone());
        let unconfirmed = !agent.verified_early.contains(&delivery.delivery_id);
        let is_api = delivery.is_api();
        if unconfirmed {
            agent.verifying.push(delivery);
        }
        agent.verified_early.retain(|id| id != delivery_id);
        self.event(Event::DeliveryRead { name, delivery_id: delivery_id.to_string(), event_id, timestamp: now });
        if unconfirmed && is_api {
            self.store_read(&source);
        } else {
            self.dispose_source(&source);
        }
        self.type_next(generation);
        self.tell_late_idle(generation);
    }

    /// Echo seen, or its window over: decides events only.
    pub(super) fn on_verified(&mut self, generation: Generation, delivery_id: &str, echo: bool) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let name = agent.name.clone();
        let delivery = match agent.verifying.iter().position(|delivery| delivery.delivery_id == delivery_id) {
            Some(at) => {
                let delivery = agent.verifying.remove(at);
                self.over(&delivery);
                delivery
            }
            None => {
                // Echoed before it was read: the proof is still to come, the events are not held for it.
                let Some(flight) = agent.in_flight.as_ref().filter(|f| f.delivery.delivery_id == delivery_id) else {
                    return;
                };
                let delivery = flight.delivery.clone();
                agent.verified_early.push(delivery_id.to_string());
                delivery
            }
        };
        let (delivery_id, event_id) = (delivery.delivery_id.clone(), delivery.event_id.clone());
        self.event(Event::DeliveryAck {
            name: name.clone(),
            delivery_id: delivery_id.clone(),
            event_id: event_id.clone(),
            timestamp: None,
        });
        if !delivery.is_engine() {
            self.confirm(&name, &delivery);
        }
        let timestamp = self.now.unix;
        self.event(Event::DeliveryVerified {
            name,
            delivery_id,
            event_id,
            timestamp,
            verification: if echo { "echo".into() } else { "timeout_fallback".into() },
            reason: (!echo).then(|| "echo not detected within 5s window".into()),
        });
        self.tell_late_idle(generation);
    }

    pub(super) fn confirm(&mut self, name: &str, delivery: &Delivery) {
        let (name, delivery_id, event_id) = (name.to_string(), delivery.delivery_id.clone(), delivery.event_id.clone());
        self.event(Event::MessageDeliveryConfirmed {
            name: name.clone(),
            delivery_id: delivery_id.clone(),
            event_id: event_id.clone(),
            from: delivery.from.clone(),
            to: delivery.target.clone(),
        });
        // Ids made here are unknown to the engine: there is nothing to mark as read.
        let reason = answers::synthetic_reason(&event_id).map(str::to_string);
        self.event(Event::DeliveryReadAck { name, delivery_id, event_id, status: "skipped_synthetic".into(), reason });
    }

    /// No byte of it was written: a human has taken the terminal, and it is held with the others, in front of them; or
    /// something that steers goes first.
    pub(super) fn on_given_back(&mut self, generation: Generation, delivery_id: &str) {
        if self.flight(generation, delivery_id).is_none() {
            return;
        }
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let Some(flight) = agent.in_flight.take() else { return };
        let given = &flight.delivery;
        let event = match agent.mode == InboundMode::ManualFlush && !given.exempt {
            true => Event::held(&agent.name, &given.event_id, &given.from, &given.target),
            false => Event::queued(&agent.name, &given.delivery_id, &given.event_id, self.now.unix),
        };
        self.receipts.back(&flight.delivery);
        agent.queue.push_front(flight.delivery);
        self.event(event);
        self.type_next(generation);
    }

    pub(super) fn on_inject_failed(&mut self, generation: Generation, delivery_id: &str, error: &str) {
        if self.flight(generation, delivery_id).is_none() {
            return;
        }
        let now = self.now.mono;
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let Some(mut flight) = agent.in_flight.take() else { return };
        if agent.is_ending() {
            // Its program is ending, which is no failure of the message's: it waits for the next life, or ends with this one.
            self.receipts.back(&flight.delivery);
            agent.queue.push_front(flight.delivery);
            return;
        }
        let name = agent.name.clone();
        flight.delivery.attempts += 1;
        flight.delivery.last_error = Some(error.to_string());
        if flight.delivery.attempts >= ATTEMPTS_MAX {
            let reason = format!("max delivery retries exceeded: {error}");
            self.event(Event::write_failed(&name, &reason, false));
            self.bury(flight.delivery, &name, &reason);
            self.type_next(generation);
            self.tell_late_idle(generation);
            return;
        }
        let pause = RETRY_MS[(flight.delivery.attempts as usize - 1).min(RETRY_MS.len() - 1)];
        let retry = Event::DeliveryRetry {
            name,
            delivery_id: flight.delivery.delivery_id.clone(),
            event_id: flight.delivery.event_id.clone(),
            attempts: flight.delivery.attempts,
        };
        self.receipts.back(&flight.delivery);
        agent.queue.push_front(flight.delivery);
        agent.backing_off = true;
        self.pending_changes += 1;
        self.timers.set(Timer::Retry(generation), now + pause);
        self.event(retry);
    }
}
