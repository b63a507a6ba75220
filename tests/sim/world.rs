//! The world around one broker: it hands in what happens, carries out what the broker wants, and looks on.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay_broker::core::Broker;
use agent_relay_broker::core::ports::{
    AgentNote, Config, Effect, EngineCall, Generation, Input, Launch, Ms, NodeCommand, NodeNote, Now, Record, Secret,
    Ticket,
};
use agent_relay_broker::wire::node::{FromEngine, ToEngine};
use serde_json::Value;

use super::agenda::{Act, Agenda, Happening};
use super::desk::Desk;
use super::disk::Disk;
use super::engine::Engine;
use super::http;
use super::link::Link;
use super::rng::Rng;
use super::terminal::{Phase, Terminal};
use super::weather::Weather;

/// Which invariant broke, and how.
#[derive(Debug, Clone)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

/// 2026-01-01, when all histories begin.
const EPOCH_MS: u64 = 1_767_225_600_000;
pub const NODE_NAME: &str = "sim";
pub const SELF_NAME: &str = "broker";

pub struct World {
    pub rng: Rng,
    pub weather: Weather,
    pub now: Ms,
    unix: u64,
    pub agenda: Agenda,
    pub life: u32,
    pub born: Ms,
    pub broker: Option<Broker>,
    pub config: Config,
    pub engine: Engine,
    pub link: Link,
    /// Of this life.
    pub terminals: BTreeMap<Generation, Terminal>,
    pub disk: Disk,
    pub desk: Desk,
    /// What the daemon holds back while the disk refuses records.
    withheld: Vec<Effect>,
    /// Engine calls on their way.
    pub calls: BTreeMap<Ticket, EngineCall>,
    /// Agent ids that the broker has been told are bound here, in this life.
    pub bound: BTreeSet<String>,
    /// Highest ack sent per agent id and registration, in this life.
    pub acks: BTreeMap<(String, u32), u64>,
    /// The engine has answered an inventory in this life.
    pub told_inventory: bool,
    pub arrivals: u64,
    pub turns: usize,
    pub ticks: usize,
    ticks_at_once: usize,
    pub calm: bool,
    /// Since when an orderly stop runs.
    pub stopping: Option<Ms>,
    pub violation: Option<Violation>,
    pub trace: bool,
    pub digest: u64,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let weather = Weather::of(&mut rng);
        let mut engine = Engine::default();
        let token = engine.mint_node_token();
        let config = Config {
            node_id: "node_sim".into(),
            node_name: NODE_NAME.into(),
            node_token: Secret::new(token),
            token_pinned: weather.token_pinned,
            node_version: "relay-broker/9.1.6".into(),
            broker_version: "9.1.6".into(),
            workspace_id: "ws_sim".into(),
            workspace_alias: None,
            workspace_key: Secret::new("rk_live_sim"),
            base_url: None,
            self_name: SELF_NAME.into(),
            self_agent_id: "ag_self".into(),
            self_aliases: Vec::new(),
            default_channels: vec!["general".into(), "engineering".into()],
            result_url: "http://127.0.0.1:1/api/agent-result".into(),
            durable: weather.durable,
            persist: weather.persist,
            register_timeout_ms: 10_000,
        };
        let mut world = World {
            rng,
            weather,
            now: 0,
            unix: EPOCH_MS,
            agenda: Agenda::default(),
            life: 0,
            born: 0,
            broker: None,
            config,
            engine,
            link: Link::default(),
            terminals: BTreeMap::new(),
            disk: Disk::default(),
            desk: Desk::default(),
            withheld: Vec::new(),
            calls: BTreeMap::new(),
            bound: BTreeSet::new(),
            acks: BTreeMap::new(),
            told_inventory: false,
            arrivals: 0,
            turns: 0,
            ticks: 0,
            ticks_at_once: 0,
            calm: false,
            stopping: None,
            violation: None,
            trace,
            digest: 0,
        };
        if trace {
            println!("{:?}", world.weather);
        }
        world.populate();
        world.birth();
        world.agenda.at(500, Happening::Stimulus);
        world.agenda.at(60_000, Happening::Renew);
        world
    }

    /// A whole history: the storm, then the calm in which everything must settle.
    pub fn run(mut self) -> (Option<Violation>, u64, usize) {
        while self.violation.is_none() && self.turns < self.weather.turns {
            self.step();
        }
        if self.violation.is_none() {
            self.settle();
        }
        (self.violation, self.digest, self.turns)
    }

    pub fn fail(&mut self, invariant: &'static str, text: impl Into<String>) {
        let text = text.into();
        if self.trace {
            println!("!!! {invariant}: {text}");
        }
        self.violation.get_or_insert(Violation { invariant, text });
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>8} {}", self.now, text());
        }
    }

    pub fn step_clock(&mut self) {
        self.unix = if self.rng.chance(500) { self.unix + 3_600_000 } else { self.unix - 3_600_000 };
        self.say(|| "    the wall clock steps".into());
    }

    // ----------------------------------------------------------------------------------------------------- life, death

    fn birth(&mut self) {
        self.life += 1;
        self.engine.life = self.life;
        self.born = self.now;
        self.stopping = None;
        self.told_inventory = false;
        self.bound.clear();
        self.acks.clear();
        self.calls.clear();
        let restored = if self.weather.durable { self.disk.restore() } else { Vec::new() };
        self.say(|| format!("=== life {} with {} records", self.life, restored.len()));
        let seed = self.rng.bytes();
        self.broker = Some(Broker::new(self.config.clone(), seed, restored));
        self.turn(Input::Start);
    }

    /// The process is gone, and with it everything that it alone knew. Its agents die with it.
    pub fn crash(&mut self) {
        self.say(|| "=== the broker dies".into());
        self.broker = None;
        self.terminals.clear();
        self.desk.broker_gone();
        self.disk.waiting.clear();
        self.disk.broken = false;
        self.withheld.clear();
        self.cut_link_at_death();
        let pause = self.rng.between(20, 4_000);
        self.agenda.at(self.now + pause, Happening::Reborn);
    }

    fn exit(&mut self) {
        let Some(since) = self.stopping else {
            return self.fail("exit_unasked", "Exit although nobody asked for a stop");
        };
        if self.now - since > 4_000 {
            self.fail("stop_too_slow", format!("the orderly stop took {} ms", self.now - since));
        }
        if let Some((generation, terminal)) = self.terminals.iter().find(|(_, one)| one.phase != Phase::Gone) {
            self.fail("stop_leaves_process", format!("generation {generation} ({}) still runs", terminal.name));
        }
        if let Some(ticket) = self.desk.first_open() {
            self.fail("ticket_unanswered", format!("the stop left API call {ticket} without an answer"));
        }
        self.crash();
    }

    // ------------------------------------------------------------------------------------------------------------ time

    /// The next thing that happens, whatever it is.
    pub fn step(&mut self) {
        let deadline = self.broker.as_ref().and_then(Broker::next_deadline).map(|at| self.born + at);
        let next = self.agenda.next().unwrap_or(Ms::MAX);
        match deadline {
            Some(at) if at <= next => {
                let late = if self.rng.chance(200) { self.rng.below(5) } else { 0 };
                self.advance((at + late).min(next).max(self.now));
                self.ticks += 1;
                self.ticks_at_once += 1;
                if self.ticks_at_once > 50 {
                    self.fail("busy_tick", "50 ticks at one instant, and the deadline still stands in the past");
                }
                self.turn(Input::Tick);
            }
            _ => {
                let Some((at, what)) = self.agenda.pop() else {
                    return self.fail("world_stands_still", "nothing will ever happen");
                };
                self.advance(at.max(self.now));
                self.happen(what);
                self.drain_engine();
            }
        }
        self.desk_deadline();
    }

    fn advance(&mut self, to: Ms) {
        if to > self.now {
            self.unix += to - self.now;
            self.now = to;
            self.ticks_at_once = 0;
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Stimulus => self.stimulus(),
            Happening::Renew => {
                if self.broker.is_some() && self.stopping.is_none() {
                    self.ask_renewal();
                }
                self.agenda.at(self.now + 55_000, Happening::Renew);
            }
            Happening::Reborn => self.birth(),
            Happening::JournalFails { life } if life == self.life => {
                self.turn(Input::JournalFailed { error: "No space left on device".into() });
            }
            Happening::JournalFails { .. } => {}
            Happening::JournalWorks { life } if life == self.life => self.journal_works(),
            Happening::JournalWorks { .. } => {}
            Happening::Act { life, generation, act } if life == self.life => self.act(generation, act),
            Happening::Act { .. } => {}
            Happening::Note { life, generation, note } if life == self.life && self.broker.is_some() => {
                self.turn(Input::Agent { generation, note });
            }
            Happening::Note { .. } => {}
            Happening::HttpArrives { life, ticket, call } => self.http_arrives(life, ticket, &call),
            Happening::HttpAnswers { life, ticket, outcome } if life == self.life && self.broker.is_some() => {
                self.turn(Input::Engine { ticket, outcome });
            }
            Happening::HttpAnswers { .. } => {}
            Happening::Redispatch { invocation, dispatch } => {
                if self.engine.invocations.get(&invocation).is_some_and(|one| one.dispatches == dispatch) {
                    self.engine.dispatch(&invocation);
                }
            }
            Happening::ConnectEnds { link } => self.connect_ends(link),
            Happening::ToEngine { link, frame } => {
                self.engine.receive(link, &frame, &mut self.rng, &self.weather);
            }
            Happening::EngineEmits { link, frame } => self.emit(link, frame),
            Happening::ToBroker { link, frame } => self.arrive(link, &frame),
            Happening::CutSeenByEngine { link } => self.engine.closed(Some(link)),
            Happening::CutSeenByBroker { link, reason } => self.end_seen(link, reason),
            Happening::SilenceEnds { link } => self.silence_ends(link),
        }
    }

    /// What the engine wants to send and do, after whatever touched it.
    pub fn drain_engine(&mut self) {
        for (delay, what) in std::mem::take(&mut self.engine.later) {
            self.agenda.at(self.now + delay, what);
        }
        if let Some(link) = self.engine.session.as_ref().map(|session| session.link) {
            for (delay, frame) in std::mem::take(&mut self.engine.out) {
                if delay == 0 {
                    self.emit(link, frame);
                } else {
                    self.agenda.at(self.now + delay, Happening::EngineEmits { link, frame });
                }
            }
        }
        self.engine.out.clear();
        if let Some((invariant, text)) = std::mem::take(&mut self.engine.alarms).into_iter().next() {
            self.fail(invariant, text);
        }
    }

    // ------------------------------------------------------------------------------------------------------------ turn

    pub fn turn(&mut self, input: Input) {
        if self.broker.is_none() || self.violation.is_some() {
            return;
        }
        self.say(|| format!(">>> {input:?}"));
        self.turns += 1;
        if self.turns > 30_000 {
            self.fail("hot_loop", "30,000 turns");
        }
        self.told(&input);
        let now = Now { mono: self.now - self.born, unix: self.unix };
        let Some(broker) = self.broker.as_mut() else { return };
        let effects = broker.handle(input, now);
        for effect in &effects {
            self.say(|| format!("      {effect:?}"));
            self.mix(effect);
        }
        let (records, mut others): (Vec<Effect>, Vec<Effect>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Journal(_)));
        let mut records: Vec<Record> = records
            .into_iter()
            .filter_map(|effect| if let Effect::Journal(record) = effect { Some(record) } else { None })
            .collect();
        let dies = self.rng.chance(self.weather.torn_turns);
        if self.disk.broken || (!dies && self.journal_fails(records.len())) {
            self.disk.waiting.append(&mut records);
            // The daemon withholds what says that records are safe, until they are.
            let mut something_waits = !self.withheld.is_empty();
            let (withheld, free): (Vec<Effect>, Vec<Effect>) = others.into_iter().partition(|effect| {
                let waits = effect.waits_for_journal(something_waits);
                something_waits |= waits;
                waits
            });
            for effect in &withheld {
                if let Effect::Node(NodeCommand::Send { frame: ToEngine::ActionResult(result), .. }) = effect {
                    self.result_reached(&result.invocation_id);
                }
            }
            self.withheld.extend(withheld);
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
            if self.broker.is_none() {
                return;
            }
        }
        if dies {
            self.crash();
        }
        self.drain_engine();
    }

    /// A running digest of everything the broker wants: the same seed must give the same one.
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
        };
        self.digest = (self.digest.rotate_left(5) ^ (kind + self.now * 1024)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Node(command) => self.node_command(command),
            Effect::Launch(launch) => self.launch(launch),
            Effect::Agent { generation, command } => self.agent_command(generation, command),
            Effect::Engine { ticket, call } => {
                if self.calls.insert(ticket, call.clone()).is_some() {
                    self.fail("engine_ticket_reused", format!("engine ticket {ticket}"));
                }
                if let EngineCall::RegisterAgent { name, .. } = &call {
                    *self.engine.asked.entry(name.clone()).or_default() += 1;
                }
                let delay = self.rng.between(1, 150);
                self.agenda.at(self.now + delay, Happening::HttpArrives { life: self.life, ticket, call });
            }
            Effect::Reply { ticket, answer } => self.answered(ticket, &answer),
            Effect::Event(event) => self.event_seen(&event),
            Effect::Journal(record) => self.recorded(record),
            Effect::Log { text, .. } => {
                if ["at_live_", "nt_live_", "rk_live_"].iter().any(|secret| text.contains(secret)) {
                    self.fail("secret_in_log", text);
                }
            }
            // No sidecars in this world yet.
            Effect::Sidecar { .. } | Effect::Supervise(_) => {}
            Effect::Exit => self.exit(),
        }
    }

    fn journal_fails(&mut self, records: usize) -> bool {
        if !self.weather.durable || records == 0 || !self.rng.chance(self.weather.journal_failures) {
            return false;
        }
        self.say(|| "    the journal cannot be written".into());
        self.disk.broken = true;
        self.agenda.at(self.now, Happening::JournalFails { life: self.life });
        let pause = self.rng.between(50, 8_000);
        self.agenda.at(self.now + pause, Happening::JournalWorks { life: self.life });
        true
    }

    fn journal_works(&mut self) {
        self.say(|| "    the journal can be written again".into());
        self.disk.broken = false;
        for record in std::mem::take(&mut self.disk.waiting) {
            self.recorded(record);
        }
        for effect in std::mem::take(&mut self.withheld) {
            // What belongs to a connection that is gone is dropped.
            if matches!(&effect, Effect::Node(NodeCommand::Send { generation, .. }) if self.link.takes(*generation)) {
                self.carry_out(effect);
            }
        }
    }

    fn recorded(&mut self, record: Record) {
        self.check_record(&record);
        if let Err(error) = self.disk.append(&record, self.life) {
            self.fail("record_form", error);
        }
    }

    // ------------------------------------------------------------------------------------------------------------ HTTP

    fn http_arrives(&mut self, life: u32, ticket: Ticket, call: &EngineCall) {
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

    // ------------------------------------------------------------------------------------------------------------ told

    /// Notes what the broker learns with this input.
    fn told(&mut self, input: &Input) {
        match input {
            Input::Node(NodeNote::Opened { .. }) => {
                self.link.told_open = true;
                self.link.opened_in_life += 1;
            }
            Input::Node(NodeNote::Frame { generation, frame }) if *generation == self.link.generation => match frame {
                FromEngine::Deliver(deliver) => self.arrived(deliver),
                FromEngine::ActionInvoke(invoke) => {
                    if let Some(invocation) = self.engine.invocations.get_mut(&invoke.invocation_id) {
                        *invocation.seen.entry(self.life).or_default() += 1;
                    }
                }
                FromEngine::Reply { id, data } => {
                    self.told_inventory |= id.starts_with("inventory_sync_");
                    self.told_token(data);
                }
                _ => {}
            },
            Input::Engine { ticket, outcome } => {
                let call = self.calls.remove(ticket);
                if let Ok(data) = outcome {
                    match call {
                        Some(EngineCall::MintNodeToken) => {
                            let token = data.get("token").and_then(Value::as_str).unwrap_or_default();
                            self.config.node_token = Secret::new(token);
                        }
                        Some(EngineCall::RegisterAgent { .. }) => self.told_token_of(data, "id"),
                        Some(EngineCall::BindAgent { .. }) => {
                            let id = data.get("agent_id").and_then(Value::as_str).unwrap_or_default();
                            self.bound.insert(id.into());
                        }
                        _ => {}
                    }
                }
            }
            Input::Agent { generation, note } => {
                let Some(terminal) = self.terminals.get_mut(generation) else { return };
                match note {
                    AgentNote::Prepared => terminal.told_prepared = true,
                    AgentNote::Started { .. } => terminal.told_started = true,
                    AgentNote::Refused { .. } | AgentNote::Exited { .. } => {
                        terminal.told_gone = true;
                        self.bound.remove(terminal.agent_id.as_deref().unwrap_or_default());
                    }
                    AgentNote::Read { delivery_id } | AgentNote::InjectFailed { delivery_id, .. }
                        if terminal.open.as_deref() == Some(delivery_id) =>
                    {
                        terminal.open = None;
                    }
                    _ => {}
                }
            }
            Input::Stop { .. } => self.stopping = Some(self.now),
            _ => {}
        }
    }

    fn told_token(&mut self, data: &Value) {
        if data.get("token").is_some() {
            self.told_token_of(data, "agent_id");
            let id = data.get("agent_id").and_then(Value::as_str).unwrap_or_default();
            self.bound.insert(id.into());
        }
    }

    fn told_token_of(&mut self, data: &Value, _id_key: &str) {
        let token = data.get("token").and_then(Value::as_str).unwrap_or_default();
        if let Some(token) = self.engine.tokens.get_mut(token) {
            token.told = Some(self.life);
        }
    }

    // --------------------------------------------------------------------------------------------------------- launch

    fn launch(&mut self, launch: Launch) {
        let generation = launch.generation;
        if self.terminals.contains_key(&generation) {
            return self.fail("generation_reused", format!("generation {generation}"));
        }
        // A thread that was told to end before it had started anything may take its time.
        let harmless = |one: &Terminal| one.release_asked && !one.told_started && one.phase == Phase::Gone;
        let other = self.terminals.iter().find(|(_, one)| one.name == launch.name && !one.told_gone && !harmless(one));
        if let Some((other, _)) = other {
            self.fail("two_lives_of_a_name", format!("{} launched as {generation} while {other} lives", launch.name));
        }
        let pid = 1000 + generation as u32;
        self.terminals.insert(generation, Terminal::new(launch.name, launch.cli, pid));
        let delay = self.rng.between(1, 30);
        self.agenda.at(self.now + delay, Happening::Act { life: self.life, generation, act: Act::Prepare });
    }
}
