//! What the agents' threads and programs do: start, take what is typed, read it sooner or later, end at any moment.

use agent_relay_broker::core::ports::{AgentCommand, AgentNote, Generation, Snapshot};

use super::agenda::{Act, Happening};
use super::terminal::{InFlight, Phase};
use super::world::World;

impl World {
    /// The thread reports something; its reports keep their order.
    fn note(&mut self, generation: Generation, note: AgentNote) {
        let late = self.rng.below(self.weather.note_latency + 1);
        let Some(terminal) = self.site.terminals.get_mut(&generation) else { return };
        terminal.last_note = terminal.last_note.max(self.now + late);
        let at = terminal.last_note;
        self.agenda.at(at, Happening::Note { life: self.site.life, generation, note });
    }

    pub fn act_in(&mut self, generation: Generation, delay: u64, act: Act) {
        self.agenda.at(self.now + delay, Happening::Act { life: self.site.life, generation, act });
    }

    pub fn agent_command(&mut self, generation: Generation, command: AgentCommand) {
        let Some(terminal) = self.site.terminals.get_mut(&generation) else {
            return self.fail("command_to_nobody", format!("{command:?} for generation {generation}, never launched"));
        };
        if terminal.told_gone {
            let name = terminal.name.clone();
            return self.fail("command_to_the_dead", format!("{command:?} for generation {generation} ({name})"));
        }
        match command {
            AgentCommand::Start { set, .. } => {
                if !terminal.told_prepared {
                    return self.fail("start_unprepared", format!("generation {generation}"));
                }
                if let Some((key, _)) =
                    set.0.iter().find(|(key, _)| matches!(key.as_str(), "RELAY_BROKER_API_KEY" | "RELAY_NODE_TOKEN"))
                {
                    return self.fail("secret_in_environment", format!("generation {generation} is given {key}"));
                }
                terminal.token =
                    set.0.iter().find(|(key, _)| key == "RELAY_AGENT_TOKEN").map(|(_, value)| value.clone());
                terminal.agent_id = terminal
                    .token
                    .as_ref()
                    .and_then(|token| self.engine.tokens.get(token))
                    .map(|token| token.agent_id.clone());
                if terminal.phase == Phase::Prepared {
                    terminal.phase = Phase::Starting;
                    let delay = self.rng.between(1, 80);
                    self.act_in(generation, delay, Act::Start);
                }
            }
            AgentCommand::Inject(injection) => {
                if !terminal.told_started {
                    return self.fail("inject_before_start", format!("generation {generation}: {injection:?}"));
                }
                if terminal.held && !injection.exempt {
                    return self.fail("typed_through_hold", format!("generation {generation}: {injection:?}"));
                }
                if let Some(open) = terminal.open.replace(injection.delivery_id.clone()) {
                    return self.fail(
                        "two_in_flight",
                        format!("generation {generation}: {} while {open} is in flight", injection.delivery_id),
                    );
                }
                self.check_injection(generation, &injection);
                let Some(terminal) = self.site.terminals.get_mut(&generation) else { return };
                if terminal.phase == Phase::Running {
                    terminal.in_flight = Some(InFlight { injection, typed: false });
                    let delay = self.rng.between(50, 120);
                    self.act_in(generation, delay, Act::Write);
                }
            }
            AgentCommand::Type { ticket, bytes, .. } => {
                let result = if self.rng.chance(100) { Err("no progress".to_string()) } else { Ok(bytes.len()) };
                let delay = self.rng.between(0, 50);
                self.act_in(generation, delay, Act::Answer { note: AgentNote::TypeDone { ticket, result } });
            }
            AgentCommand::Hold(held) => {
                terminal.held = held;
                if held {
                    self.give_back(generation);
                }
            }
            AgentCommand::Yield => self.give_back(generation),
            AgentCommand::Resize { ticket, rows, cols } => {
                self.act_in(generation, 1, Act::Answer { note: AgentNote::Resized { ticket, rows, cols } });
            }
            AgentCommand::Snapshot { ticket, format } => {
                let snapshot = Snapshot { rows: 24, cols: 80, cursor: (1, 1), screen: "$ \n".into(), offset: 2 };
                let delay = if self.rng.chance(100) { 9_000 } else { self.rng.between(1, 20) };
                self.act_in(generation, delay, Act::Answer { note: AgentNote::Pictured { ticket, format, snapshot } });
            }
            AgentCommand::Release => {
                terminal.release_asked = true;
                terminal.given_up |= !terminal.told_started;
                match terminal.phase {
                    Phase::Looking | Phase::Prepared => {
                        terminal.phase = Phase::Gone;
                        self.note(generation, AgentNote::Exited { code: None, signal: None });
                    }
                    Phase::Starting | Phase::Running => {
                        let delay = self.rng.between(1, 2_200);
                        self.act_in(generation, delay, Act::Exit { code: None, signal: Some(1) });
                    }
                    Phase::Gone => {}
                }
            }
        }
    }

    fn give_back(&mut self, generation: Generation) {
        let Some(terminal) = self.site.terminals.get_mut(&generation) else { return };
        if let Some(flight) = terminal.in_flight.take_if(|flight| !flight.typed) {
            self.note(generation, AgentNote::GivenBack { delivery_id: flight.injection.delivery_id });
        }
    }

    pub fn act(&mut self, generation: Generation, act: Act) {
        let now = self.now;
        let Some(terminal) = self.site.terminals.get_mut(&generation) else { return };
        let running = terminal.phase == Phase::Running;
        match act {
            Act::Prepare if terminal.phase == Phase::Looking => {
                if terminal.cli.contains("nope") || self.rng.chance(self.weather.start_failures) {
                    terminal.phase = Phase::Gone;
                    let error = format!("no such program: {}", terminal.cli);
                    self.note(generation, AgentNote::Refused { error });
                } else {
                    terminal.phase = Phase::Prepared;
                    self.note(generation, AgentNote::Prepared);
                }
            }
            Act::Start if terminal.phase == Phase::Starting => {
                if self.rng.chance(self.weather.start_failures / 2) {
                    terminal.phase = Phase::Gone;
                    return self.note(generation, AgentNote::Refused { error: "fork: no more processes".into() });
                }
                terminal.phase = Phase::Running;
                let pid = terminal.pid;
                self.note(generation, AgentNote::Started { pid });
                let ready = if self.rng.chance(100) { 25_000 } else { self.rng.between(10, 3_000) };
                self.act_in(generation, ready, Act::Ready);
                if self.rng.chance(self.weather.exits) {
                    let delay = self.rng.between(0, 400);
                    self.act_in(generation, delay, Act::Exit { code: Some(1), signal: None });
                }
            }
            Act::Ready if running => self.note(generation, AgentNote::Ready),
            Act::Write if running => {
                let Some(flight) = terminal.in_flight.as_mut().filter(|flight| !flight.typed) else { return };
                let delivery_id = flight.injection.delivery_id.clone();
                if terminal.fail_next > 0 || self.rng.chance(self.weather.inject_failures) {
                    terminal.fail_next = terminal.fail_next.saturating_sub(1);
                    terminal.in_flight = None;
                    return self.note(generation, AgentNote::InjectFailed { delivery_id, error: "EIO".into() });
                }
                flight.typed = true;
                let busy = terminal.busy_until.saturating_sub(now);
                self.check_typed(generation, &delivery_id);
                self.note(generation, AgentNote::Typed { delivery_id: delivery_id.clone() });
                let delay = if self.rng.chance(100) { self.rng.between(40, 8_000) } else { self.rng.between(1, 40) };
                self.act_in(generation, busy.max(delay), Act::Read { delivery_id: delivery_id.clone() });
                self.act_in(generation, 5_000, Act::StallCheck { delivery_id: delivery_id.clone() });
                let echo = if self.rng.chance(500) { 5_000 } else { self.rng.between(2, 200) };
                self.act_in(generation, echo, Act::Verify { delivery_id });
            }
            Act::Read { delivery_id } if running => {
                let Some(flight) = terminal.in_flight.as_mut() else { return };
                if !flight.typed || flight.injection.delivery_id != delivery_id {
                    return;
                }
                if terminal.busy_until > now {
                    let wait = terminal.busy_until - now;
                    return self.act_in(generation, wait, Act::Read { delivery_id });
                }
                terminal.in_flight = None;
                self.check_read(generation, &delivery_id);
                self.note(generation, AgentNote::Read { delivery_id });
            }
            Act::StallCheck { delivery_id } if running => {
                let unread = |flight: &InFlight| flight.typed && flight.injection.delivery_id == delivery_id;
                if terminal.in_flight.as_ref().is_some_and(unread) {
                    self.note(generation, AgentNote::Stalled { delivery_id });
                }
            }
            Act::Verify { delivery_id } if running && terminal.verified.insert(delivery_id.clone()) => {
                let echo = self.rng.chance(500);
                self.note(generation, AgentNote::Verified { delivery_id, echo });
            }
            Act::Exit { code, signal } if matches!(terminal.phase, Phase::Running | Phase::Starting) => {
                terminal.phase = Phase::Gone;
                terminal.in_flight = None;
                terminal.has_done_its_work = code == Some(0);
                if self.rng.chance(500) {
                    let reason = if self.rng.chance(500) { "pty_closed" } else { "child_exited" };
                    self.note(generation, AgentNote::Ending { reason });
                }
                self.note(generation, AgentNote::Exited { code, signal });
            }
            Act::Answer { note } if running => self.note(generation, note),
            _ => {}
        }
    }

    /// Something that a terminal shows by itself.
    pub fn chatter(&mut self, generation: Generation) {
        let note = match self.rng.below(3) {
            0 => AgentNote::Active,
            1 => AgentNote::Output { chunk: "working...\r\n".into(), offset: 12 },
            _ => AgentNote::Idle { idle_secs: 30, since_unix: self.now },
        };
        self.note(generation, note);
    }
}
