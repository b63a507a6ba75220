//! One turn of a broker: what it wants is carried out, written first where it has to be, and sometimes it dies in between.

use agent_relay_broker::core::ports::{Effect, EngineCall, Input, NodeCommand, Now, Record, Ticket};
use agent_relay_broker::wire::node::{ActionOutcome, ToEngine};

use super::agenda::Happening;
use super::http;
use super::world::World;

impl World {
    pub fn turn(&mut self, input: Input) {
        if self.site.broker.is_none() || self.violation.is_some() {
            return;
        }
        self.say(|| format!(">>> {input:?}"));
        self.turns += 1;
        if self.turns > 30_000 {
            self.fail("hot_loop", "30,000 turns");
        }
        let was_live = self.site.sidecars.live();
        self.told(&input);
        self.sidecar_told(&input);
        let now = Now { mono: self.now - self.site.born, unix: self.unix() };
        let Some(broker) = self.site.broker.as_mut() else { return };
        let effects = broker.handle(input, now);
        for effect in &effects {
            self.say(|| format!("      {effect:?}"));
            self.mix(effect);
        }
        self.check_face(&effects, was_live);
        let (records, mut others): (Vec<Effect>, Vec<Effect>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Journal(_)));
        let mut records: Vec<Record> = records
            .into_iter()
            .filter_map(|effect| if let Effect::Journal(record) = effect { Some(record) } else { None })
            .collect();
        let dies = self.rng.chance(self.weather.torn_turns);
        if self.site.disk.broken || (!dies && self.journal_fails(records.len())) {
            self.site.disk.waiting.append(&mut records);
            // The daemon withholds what says that records are safe, until they are.
            let mut something_waits = !self.site.withheld.is_empty();
            let (withheld, free): (Vec<Effect>, Vec<Effect>) = others.into_iter().partition(|effect| {
                let waits = effect.waits_for_journal(something_waits);
                something_waits |= waits;
                waits
            });
            for effect in &withheld {
                if let Effect::Node(NodeCommand::Send { frame: ToEngine::ActionResult(result), .. }) = effect {
                    self.result_reached(&result.invocation_id);
                    if result.outcome == ActionOutcome::Error("handler_unavailable".into()) {
                        self.came_back(&result.invocation_id);
                    }
                }
            }
            self.site.withheld.extend(withheld);
            others = free;
        }
        if dies {
            // In the middle of the append, or after it and before or amid the rest.
            let keep = self.rng.below(records.len() as u64 * 2 + 1) as usize;
            if keep < records.len() {
                records.truncate(keep);
                others.clear();
            } else {
                let sent = self.rng.below(others.len() as u64 + 1) as usize;
                others.truncate(sent);
            }
        }
        for record in records {
            self.recorded(record);
        }
        for effect in others {
            self.carry_out(effect);
            if self.site.broker.is_none() {
                return;
            }
        }
        if dies {
            self.crash();
        }
        self.drain_engine();
    }

    /// A running digest of everything the broker wants: the same seed must give the same one. What carries the time of the
    /// wall clock is left out.
    fn mix(&mut self, effect: &Effect) {
        let kind = match effect {
            Effect::Node(_) => 1,
            Effect::Launch(_) => 2,
            Effect::Agent { generation, .. } => 3 + generation * 16,
            Effect::Engine { ticket, .. } => 4 + ticket * 16,
            Effect::Reply { ticket, .. } => 5 + ticket * 16,
            Effect::Event(_) => 6,
            Effect::Journal(_) => 7,
            Effect::Log { .. } => 8,
            Effect::Exit => 9,
            Effect::Sidecar { generation, .. } => 10 + generation * 16,
            Effect::Supervise(_) => 11,
            Effect::Leave(_) => 12,
            Effect::Recall { generation, .. } => 13 + generation * 16,
        };
        let mut all = kind + self.now * 1024;
        if self.deep
            && !matches!(effect, Effect::Event(_) | Effect::Leave(_) | Effect::Reply { .. } | Effect::Journal(_))
        {
            for byte in format!("{effect:?}").bytes() {
                all = all.rotate_left(7) ^ u64::from(byte);
            }
        }
        self.digest = (self.digest.rotate_left(5) ^ all).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Node(command) => self.node_command(command),
            Effect::Launch(launch) => self.launch(launch),
            Effect::Agent { generation, command } => self.agent_command(generation, command),
            Effect::Engine { ticket, call } => {
                if self.site.calls.insert(ticket, call.clone()).is_some() {
                    self.fail("engine_ticket_reused", format!("engine ticket {ticket}"));
                }
                if let EngineCall::RegisterAgent { name, .. } = &call {
                    *self.engine.asked.entry(name.clone()).or_default() += 1;
                    if self.site.sidecars.spawning.contains(name) {
                        let text = format!("{name} is registered by HTTP for a sidecar");
                        self.fail("sidecar_fell_back", text);
                    }
                }
                let delay = self.rng.between(1, 150);
                self.agenda.at(self.now + delay, Happening::HttpArrives { life: self.site.life, ticket, call });
            }
            Effect::Reply { ticket, answer } => self.answered(ticket, &answer),
            Effect::Event(event) => self.event_seen(&event),
            Effect::Journal(record) => self.recorded(record),
            Effect::Log { text, .. } => {
                if ["at_live_", "nt_live_", "rk_live_"].iter().any(|secret| text.contains(secret)) {
                    self.fail("secret_in_log", text);
                }
            }
            Effect::Sidecar { generation, command } => self.sidecar_command(generation, command),
            Effect::Supervise(command) => self.supervise(command),
            // No terminal of this world prints such a wish.
            Effect::Leave(_) | Effect::Recall { .. } => {}
            Effect::Exit => self.exit(),
        }
    }

    fn journal_fails(&mut self, records: usize) -> bool {
        if !self.weather.durable || records == 0 || !self.rng.chance(self.weather.journal_failures) {
            return false;
        }
        self.say(|| "    the journal cannot be written".into());
        self.site.disk.broken = true;
        self.agenda.at(self.now, Happening::JournalFails { life: self.site.life });
        let pause = self.rng.between(50, 8_000);
        self.agenda.at(self.now + pause, Happening::JournalWorks { life: self.site.life });
        true
    }

    pub fn journal_works(&mut self) {
        self.say(|| "    the journal can be written again".into());
        self.site.disk.broken = false;
        for record in std::mem::take(&mut self.site.disk.waiting) {
            self.recorded(record);
        }
        for effect in std::mem::take(&mut self.site.withheld) {
            // What belongs to a connection that is gone is dropped.
            let goes = match &effect {
                Effect::Node(NodeCommand::Send { generation, .. }) => self.site.link.takes(*generation),
                Effect::Reply { .. } => true,
                _ => false,
            };
            if goes {
                self.carry_out(effect);
            }
        }
    }

    fn recorded(&mut self, record: Record) {
        self.check_record(&record);
        if let Err(error) = self.site.disk.append(&record, self.site.life) {
            self.fail("record_form", error);
        }
    }

    pub fn http_arrives(&mut self, life: u32, ticket: Ticket, call: &EngineCall) {
        let faulty = self.rng.chance(self.weather.http_failures);
        let lost_answer = faulty && self.rng.chance(300);
        let outcome = if faulty && !lost_answer {
            Err(http::fault(&mut self.rng))
        } else {
            let outcome = self.engine.http(call, &mut self.rng);
            if lost_answer { Err(http::error(0, "transport", "timed out")) } else { outcome }
        };
        let delay = if lost_answer { self.rng.between(500, 10_000) } else { self.rng.between(1, 300) };
        self.say(|| format!("    engine: {call:?} -> {outcome:?}"));
        self.agenda.at(self.now + delay, Happening::HttpAnswers { life, ticket, outcome });
    }
}
