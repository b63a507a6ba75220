//! The central loop: waits at the doors, hands each arrival to the core, lets the hands carry out what follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::doors::{Arrival, Control, Doors};
use super::effects::Hands;
use super::state_files::StateFiles;
use crate::api::Health;
use crate::core::Broker;
use crate::core::ports::{ApiAnswer, ApiCall, Input, Ms, Ticket};
use crate::sys::{clock, threads};

/// Arrivals handled before the effects are carried out: one synced append serves them all.
const BATCH: usize = 64;
/// From the first request to the end of the process: clients kill after five seconds.
const STOP: Duration = Duration::from_millis(3_700);
/// A turn longer than this is worth a line in the log.
const SLOW_TURN_MS: Ms = 100;
/// So many inputs leave enough free memory behind to be worth giving back.
const TRIM_AFTER: usize = 64;
/// Nothing but timers for so long: the burst is over.
const REST_MS: Ms = 5_000;

pub struct Loop {
    pub broker: Broker,
    pub doors: Doors,
    pub hands: Hands,
    pub health: Arc<Health>,
    pub facts: crate::api::HealthFacts,
    pub state_files: Option<StateFiles>,
    /// The facts have been stored once.
    told: bool,
    stops: u32,
    /// When the orderly stop must be over; set by the first request for it.
    stop_by: Option<Instant>,
    /// Inputs since memory was given back; the start itself counts as a burst.
    untrimmed: usize,
    /// The last arrival that was no timer.
    busy: Ms,
}

impl Loop {
    pub fn new(
        broker: Broker,
        doors: Doors,
        hands: Hands,
        health: Arc<Health>,
        facts: crate::api::HealthFacts,
        state_files: Option<StateFiles>,
    ) -> Loop {
        Loop {
            broker,
            doors,
            hands,
            health,
            facts,
            state_files,
            told: false,
            stops: 0,
            stop_by: None,
            untrimmed: TRIM_AFTER,
            busy: clock::now().mono,
        }
    }

    /// Runs until the orderly stop is over, or a second signal cuts it short.
    #[inline(never)]
    pub fn run(&mut self) {
        self.turn(Some(Arrival::Input(Input::Start)));
        while !self.hands.exit && self.stops < 2 {
            threads::doing("waiting for input");
            let files = self.state_files.as_ref().and_then(StateFiles::due);
            let until = [self.broker.next_deadline(), self.hands.retry_at(), files].into_iter().flatten().min();
            let arrival = self.doors.next(until.map(clock::instant_of));
            threads::doing("handling input");
            self.turn(arrival);
        }
    }

    /// Gives free memory back when the loop is at rest. On a turn that a timer causes anyway (there is a heartbeat each 12 s),
    /// so that it costs no wake-up of its own; at rest nothing waits for the few milliseconds that it may take.
    fn keep_house(&mut self, by_timer: bool) {
        let now = clock::now().mono;
        if !by_timer {
            self.busy = now;
        } else if self.untrimmed >= TRIM_AFTER && now >= self.busy + REST_MS {
            self.untrimmed = 0;
            crate::sys::kernel::trim_memory();
            crate::sys::kernel::let_go_of_idle_code();
        }
    }

    fn turn(&mut self, first: Option<Arrival>) {
        let begun = clock::now();
        let by_timer = first.is_none();
        let mut effects = Vec::new();
        let mut next = first.or(Some(Arrival::Input(Input::Tick)));
        let mut handled = 0;
        while let Some(arrival) = next {
            handled += 1;
            if let Some(input) = self.input_of(arrival) {
                if self.hands.outside.as_ref().is_some_and(|outside| outside.has_ended(&input)) {
                    // First the stop, then the end: what the program has not read stays at the engine for its next life.
                    self.stop_begins();
                    let stop = Input::Stop { reason: "the wrapped program has ended" };
                    effects.extend(self.broker.handle(stop, clock::now()));
                }
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
        self.doors.node_shut = self.hands.is_swamped();
        self.publish_health();
        self.untrimmed += handled;
        self.keep_house(by_timer);
        let took = clock::now().mono.saturating_sub(begun.mono);
        if took > SLOW_TURN_MS {
            log::warn!("a turn of the loop took {took} ms for {handled} inputs");
        }
    }

    fn input_of(&mut self, arrival: Arrival) -> Option<Input> {
        match arrival {
            Arrival::Input(Input::Api { ticket, call }) => {
                if matches!(*call, ApiCall::Shutdown) {
                    self.stop_begins();
                }
                self.admit(ticket, call)
            }
            Arrival::Input(input) => Some(input),
            Arrival::Engine((ticket, outcome)) => Some(Input::Engine { ticket, outcome }),
            Arrival::Control(Control::Stop(reason)) => {
                self.stops += 1;
                self.stop_begins();
                Some(Input::Stop { reason })
            }
            Arrival::Control(Control::ThreadDied(name)) => {
                log::error!("thread {name} panicked");
                // Without them the broker is deaf: better to end in order and be started again.
                let vital = ["node-", "term-"].iter().any(|kind| name.starts_with(kind)) || name == "http-accept";
                vital.then(|| {
                    self.stop_begins();
                    Input::Stop { reason: "a thread that the broker cannot do without has failed" }
                })
            }
        }
    }

    fn stop_begins(&mut self) {
        self.stop_by.get_or_insert_with(|| Instant::now() + STOP);
    }

    /// When everything must be over. A lease that ends begins a stop without a request.
    pub fn deadline(&self) -> Instant {
        self.stop_by.unwrap_or_else(|| Instant::now() + STOP / 4)
    }

    /// A second signal cuts the stop short.
    pub fn was_cut_short(&self) -> bool {
        self.stops >= 2
    }

    /// While the disk refuses the journal, a message that might have to be recorded as dead is not taken.
    fn admit(&mut self, ticket: Ticket, call: Box<ApiCall>) -> Option<Input> {
        if self.hands.disk_refuses() && matches!(*call, ApiCall::Send(_) | ApiCall::Spawn(_)) {
            let text =
                "the broker's journal cannot be written: free space on the disk of its state directory, then retry";
            self.hands.api.answer(ticket, ApiAnswer { status: 503, body: crate::wire::api::failure(text) });
            return None;
        }
        Some(Input::Api { ticket, call })
    }

    pub fn publish_health(&mut self) {
        let health = self.broker.health();
        let facts = &mut self.facts;
        let before = (facts.agent_count, facts.pending_delivery_count, facts.dead_letter_count, facts.node_state);
        let now = (health.agents, health.pending_deliveries, health.dead_letters, health.link);
        if now != before || !self.told {
            (facts.agent_count, facts.pending_delivery_count, facts.dead_letter_count, facts.node_state) = now;
            facts.node_connected = health.link == "online";
            self.health.store(facts.clone());
            self.told = true;
        }
        if let Some(files) = &mut self.state_files {
            files.look_at(&self.broker, &health, clock::now().mono);
        }
    }
}
