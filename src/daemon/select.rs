//! The central loop: waits at the doors, hands each arrival to the core, lets the hands carry out what follows.

use std::sync::Arc;

use super::doors::{Arrival, Control, Doors};
use super::effects::Hands;
use super::state_file::StateFile;
use crate::api::Health;
use crate::core::Broker;
use crate::core::ports::{Input, Ms};
use crate::sys::{clock, threads};

/// Arrivals handled before the effects are carried out: one synced append serves them all.
const BATCH: usize = 64;
/// A turn longer than this is worth a line in the log.
const SLOW_TURN_MS: Ms = 100;

pub struct Loop {
    pub broker: Broker,
    pub doors: Doors,
    pub hands: Hands,
    pub health: Arc<Health>,
    pub facts: crate::api::HealthFacts,
    pub state_file: Option<StateFile>,
    stops: u32,
}

impl Loop {
    pub fn new(
        broker: Broker,
        doors: Doors,
        hands: Hands,
        health: Arc<Health>,
        facts: crate::api::HealthFacts,
        state_file: Option<StateFile>,
    ) -> Loop {
        Loop { broker, doors, hands, health, facts, state_file, stops: 0 }
    }

    /// Runs until the orderly stop is over, or a second signal cuts it short.
    #[inline(never)]
    pub fn run(&mut self) {
        self.turn(Some(Arrival::Input(Input::Start)));
        while !self.hands.exit && self.stops < 2 {
            threads::doing("waiting for input");
            let until = [self.broker.next_deadline(), self.hands.retry_at()].into_iter().flatten().min();
            let arrival = self.doors.next(until.map(clock::instant_of));
            threads::doing("handling input");
            self.turn(arrival);
        }
    }

    fn turn(&mut self, first: Option<Arrival>) {
        let begun = clock::now();
        let mut effects = Vec::new();
        let mut next = first.or(Some(Arrival::Input(Input::Tick)));
        let mut handled = 0;
        while let Some(arrival) = next {
            handled += 1;
            if let Some(input) = self.input_of(arrival) {
                self.hands.note_end(&input);
                effects.extend(self.broker.handle(input, clock::now()));
            }
            next = if handled < BATCH { self.doors.try_next() } else { None };
        }
        let mut feedback = self.hands.carry_out(effects, begun.mono);
        self.hands.retry(clock::now().mono);
        // A refusal can only be followed by a different decision, so this ends.
        for _ in 0..BATCH {
            if feedback.is_empty() {
                break;
            }
            let now = clock::now();
            let effects = feedback.into_iter().flat_map(|input| self.broker.handle(input, now)).collect();
            feedback = self.hands.carry_out(effects, now.mono);
        }
        self.publish_health();
        let took = clock::now().mono.saturating_sub(begun.mono);
        if took > SLOW_TURN_MS {
            log::warn!("a turn of the loop took {took} ms for {handled} inputs");
        }
    }

    fn input_of(&mut self, arrival: Arrival) -> Option<Input> {
        match arrival {
            Arrival::Input(input) => Some(input),
            Arrival::Engine((ticket, outcome)) => Some(self.hands.on_engine(ticket, outcome)),
            Arrival::Control(Control::Stop(reason)) => {
                self.stops += 1;
                Some(Input::Stop { reason })
            }
            Arrival::Control(Control::ThreadDied(name)) => {
                log::error!("thread {name} panicked");
                // Without its socket reader or writer the node is deaf: better to end in order and be started again.
                name.starts_with("node-").then_some(Input::Stop { reason: "a thread of the node link failed" })
            }
        }
    }

    pub fn publish_health(&mut self) {
        let health = self.broker.health();
        self.facts.agent_count = health.agents;
        self.facts.pending_delivery_count = health.pending_deliveries;
        self.facts.dead_letter_count = health.dead_letters;
        self.facts.node_connected = health.link == "online";
        self.health.store(self.facts.clone());
        if let Some(file) = &mut self.state_file
            && file.lacks(health.membership)
        {
            file.offer(health.membership, self.broker.running());
        }
    }
}
