//! The world around the brokers: machines, one engine, one clock. It hands in what happens, carries out what a broker wants,
//! and looks on.

use agent_relay_broker::core::Broker;
use agent_relay_broker::core::ports::{Effect, Input, Ms};

use super::agenda::{Agenda, Happening};
use super::engine::{Engine, Node};
use super::rng::Rng;
use super::sidecar::Sidecars;
use super::site::Site;
use super::terminal::Phase;
use super::weather::Weather;

/// Which invariant broke, and how.
#[derive(Debug, Clone)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

/// 2026-01-01, when all histories begin.
const EPOCH_MS: i64 = 1_767_225_600_000;
pub const NODE_NAME: &str = "sim";
pub const SELF_NAME: &str = "broker";
const NODE_IDS: [&str; 2] = ["node_51e0aa11", "node_b0b7cc22"];

pub struct World {
    pub rng: Rng,
    pub weather: Weather,
    pub now: Ms,
    pub agenda: Agenda,
    pub engine: Engine,
    /// The machine in focus; the others are parked, and a placeholder stands where this one belongs.
    pub site: Site,
    parked: Vec<Site>,
    pub at: usize,
    /// How many there have been, on all machines.
    lives: u32,
    pub arrivals: u64,
    pub turns: usize,
    pub calm: bool,
    /// Wall clocks do not step, whatever the dice say.
    pub steady: bool,
    clock_steps: u32,
    /// The digest takes in what effects say, not only which they are.
    pub deep: bool,
    pub violation: Option<Violation>,
    pub trace: bool,
    pub digest: u64,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let weather = Weather::of(&mut rng);
        let mut engine = Engine { twins: weather.twins, ..Engine::default() };
        let mut parked = Vec::new();
        for site in 0..weather.sites {
            let node = if weather.twins { 0 } else { site };
            let name = if site == 0 || weather.namesakes { NODE_NAME.to_string() } else { format!("{NODE_NAME}-too") };
            if node == engine.nodes.len() {
                let name =
                    if engine.nodes.iter().any(|other| other.name == name) { String::new() } else { name.clone() };
                engine.nodes.push(Node { id: NODE_IDS[node].into(), name, ..Node::default() });
                engine.at = node;
                engine.mint_node_token();
            }
            let token = engine.nodes[node].token.clone();
            parked.push(Site::new(node, NODE_IDS[node], &name, token, &weather));
        }
        let placeholder = Site::new(0, "", "", String::new(), &weather);
        let site = std::mem::replace(&mut parked[0], placeholder);
        engine.at = 0;
        let mut world = World {
            rng,
            weather,
            now: 0,
            agenda: Agenda::default(),
            engine,
            site,
            parked,
            at: 0,
            lives: 0,
            arrivals: 0,
            turns: 0,
            calm: false,
            steady: false,
            clock_steps: 0,
            deep: false,
            violation: None,
            trace,
            digest: 0,
        };
        if trace {
            println!("{:?}", world.weather);
        }
        world.populate();
        for site in 0..world.sites() {
            world.focus(site);
            world.birth();
            world.agenda.at(500, Happening::Stimulus);
            world.agenda.at(60_000, Happening::Renew);
        }
        world
    }

    pub fn sites(&self) -> usize {
        self.parked.len()
    }

    /// From now on everything is about this machine.
    pub fn focus(&mut self, site: usize) {
        if site != self.at {
            std::mem::swap(&mut self.site, &mut self.parked[self.at]);
            std::mem::swap(&mut self.site, &mut self.parked[site]);
            self.at = site;
        }
        self.agenda.site = site;
        self.engine.at = self.site.node;
    }

    /// The same for each machine that is not switched off.
    pub fn each_site(&mut self, mut what: impl FnMut(&mut World)) {
        let before = self.at;
        for site in 0..self.sites() {
            self.focus(site);
            if !self.site.retired {
                what(self);
            }
        }
        self.focus(before);
    }

    /// The wall clock of the machine in focus.
    pub fn unix(&self) -> u64 {
        (EPOCH_MS + self.now as i64 + self.site.clock_off).max(1) as u64
    }

    /// A whole history: the storm, then the calm in which everything must settle. What broke, the digest, the turns.
    pub fn run(self) -> (Option<Violation>, u64, usize) {
        let (violation, digest, turns, _) = self.run_through();
        (violation, digest, turns)
    }

    /// The same, and how often a wall clock stepped.
    pub fn run_through(mut self) -> (Option<Violation>, u64, usize, u32) {
        while self.violation.is_none() && self.turns < self.weather.turns {
            self.step();
        }
        if self.violation.is_none() {
            self.settle();
        }
        (self.violation, self.digest, self.turns, self.clock_steps)
    }

    pub fn fail(&mut self, invariant: &'static str, text: impl Into<String>) {
        let text = text.into();
        if self.trace {
            println!("!!! {invariant}: {text}");
        }
        self.violation.get_or_insert(Violation { invariant, text });
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!(
                "{:>8} {}{}",
                self.now,
                if self.sites() > 1 { format!("[{}] ", self.at) } else { String::new() },
                text()
            );
        }
    }

    /// A wall clock jumps; the monotonic one goes on.
    pub fn step_clock(&mut self) {
        const HOUR: i64 = 3_600_000;
        let steps = [HOUR, -HOUR, 24 * HOUR, -24 * HOUR, 40 * 24 * HOUR, -9 * 24 * HOUR, 1_500, -1_500];
        let step = *self.rng.pick(&steps).expect("eight steps");
        self.clock_steps += 1;
        if !self.steady {
            self.site.clock_off += step;
        }
        self.say(|| format!("    the wall clock steps by {step} ms"));
    }

    // ----------------------------------------------------------------------------------------------------- life, death

    fn birth(&mut self) {
        if self.rng.chance(self.weather.clock_steps) {
            self.step_clock();
        }
        self.lives += 1;
        self.site.life = self.lives;
        self.engine.node_mut().life = self.site.life;
        self.site.born = self.now;
        self.site.stopping = None;
        self.site.told_inventory = false;
        self.site.superseded = None;
        self.site.sidecars = Sidecars::default();
        self.site.bound.clear();
        self.site.acks.clear();
        self.site.calls.clear();
        let restored = if self.weather.durable { self.site.disk.restore() } else { Vec::new() };
        self.say(|| format!("=== life {} with {} records", self.site.life, restored.len()));
        let seed = self.rng.bytes();
        self.site.broker = Some(Broker::new(self.site.config.clone(), seed, restored));
        self.turn(Input::Start);
    }

    /// The process is gone, and with it everything that it alone knew. Its agents die with it.
    pub fn crash(&mut self) {
        self.say(|| "=== the broker dies".into());
        self.site.broker = None;
        self.site.terminals.clear();
        self.site.desk.broker_gone();
        self.site.disk.waiting.clear();
        self.site.disk.broken = false;
        self.site.withheld.clear();
        self.cut_link_at_death();
        let pause = self.rng.between(20, 4_000);
        self.agenda.at(self.now + pause, Happening::Reborn);
    }

    pub fn exit(&mut self) {
        let Some(since) = self.site.stopping else {
            return self.fail("exit_unasked", "Exit although nobody asked for a stop");
        };
        if self.now - since > 4_000 {
            self.fail("stop_too_slow", format!("the orderly stop took {} ms", self.now - since));
        }
        if let Some((generation, terminal)) = self.site.terminals.iter().find(|(_, one)| one.phase != Phase::Gone) {
            self.fail("stop_leaves_process", format!("generation {generation} ({}) still runs", terminal.name));
        }
        if self.site.sidecars.child_alive() {
            self.fail("stop_leaves_process", "the supervised sidecar still runs");
        }
        // The daemon answers whom it leaves without an answer: 503, shutting down.
        for effect in &self.site.withheld {
            if let Effect::Reply { ticket, .. } = effect {
                self.site.desk.given_up(*ticket);
            }
        }
        if let Some(ticket) = self.site.desk.first_open() {
            self.fail("ticket_unanswered", format!("the stop left API call {ticket} without an answer"));
        }
        self.crash();
    }

    // ------------------------------------------------------------------------------------------------------------ time

    /// The next thing that happens, whatever and wherever it is.
    pub fn step(&mut self) {
        let deadline = |site: &Site| site.broker.as_ref().and_then(Broker::next_deadline).map(|at| site.born + at);
        let all = (0..self.sites()).map(|at| (at, if at == self.at { &self.site } else { &self.parked[at] }));
        let first = all.filter_map(|(at, site)| Some((deadline(site)?, at))).min();
        let next = self.agenda.next().unwrap_or(Ms::MAX);
        match first {
            Some((at, site)) if at <= next => {
                self.focus(site);
                let late = if self.rng.chance(200) { self.rng.below(5) } else { 0 };
                self.advance((at + late).min(next).max(self.now));
                self.site.ticks += 1;
                if std::mem::replace(&mut self.site.ticked_at, self.now) != self.now {
                    self.site.ticks_at_once = 0;
                }
                self.site.ticks_at_once += 1;
                if self.site.ticks_at_once > 50 {
                    self.fail("busy_tick", "50 ticks at one instant, and the deadline still stands in the past");
                }
                self.turn(Input::Tick);
            }
            _ => {
                let Some((at, site, what)) = self.agenda.pop() else {
                    return self.fail("world_stands_still", "nothing will ever happen");
                };
                self.focus(site);
                self.advance(at.max(self.now));
                self.happen(what);
                self.drain_engine();
            }
        }
        self.desk_deadline();
    }

    fn advance(&mut self, to: Ms) {
        if to > self.now {
            self.now = to;
            self.engine.now = to;
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Stimulus => self.stimulus(),
            Happening::Renew => {
                if self.site.is_up() {
                    self.ask_renewal();
                }
                self.agenda.at(self.now + 55_000, Happening::Renew);
            }
            Happening::Reborn if self.site.retired => {}
            Happening::Reborn => self.birth(),
            Happening::Sidecar { life, generation, act } if life == self.site.life && self.site.broker.is_some() => {
                self.sidecar_act(generation, act);
            }
            Happening::Sidecar { .. } => {}
            Happening::Child { life, number, act } if life == self.site.life => self.child_act(number, act),
            Happening::Child { .. } => {}
            Happening::JournalFails { life } if life == self.site.life => {
                self.turn(Input::JournalFailed { error: "No space left on device".into() });
            }
            Happening::JournalFails { .. } => {}
            Happening::JournalWorks { life } if life == self.site.life => self.journal_works(),
            Happening::JournalWorks { .. } => {}
            Happening::Act { life, generation, act } if life == self.site.life => self.act(generation, act),
            Happening::Act { .. } => {}
            Happening::Note { life, generation, note } if life == self.site.life && self.site.broker.is_some() => {
                self.turn(Input::Agent { generation, note });
            }
            Happening::Note { .. } => {}
            Happening::HttpArrives { life, ticket, call } => self.http_arrives(life, ticket, &call),
            Happening::HttpAnswers { life, ticket, outcome }
                if life == self.site.life && self.site.broker.is_some() =>
            {
                self.turn(Input::Engine { ticket, outcome });
            }
            Happening::HttpAnswers { .. } => {}
            Happening::Redispatch { invocation, dispatch } => {
                if self.engine.invocations.get(&invocation).is_some_and(|one| one.dispatches == dispatch) {
                    self.engine.dispatch(&invocation, &mut self.rng);
                }
            }
            Happening::ConnectEnds { link } => self.connect_ends(link),
            Happening::ToEngine { link, frame } => {
                self.engine.receive(link, &frame, &mut self.rng, &self.weather);
            }
            Happening::EngineEmits { link, frame } => self.emit(link, frame),
            Happening::ToBroker { link, frame } => self.arrive(link, &frame),
            Happening::CutSeenByEngine { link } => self.engine.closed(Some(link), &mut self.rng),
            Happening::CutSeenByBroker { link, reason } => self.end_seen(link, reason),
            Happening::SilenceEnds { link } => self.silence_ends(link),
        }
    }

    /// What the engine wants to send and do, after whatever touched it.
    pub fn drain_engine(&mut self) {
        for (delay, what) in std::mem::take(&mut self.engine.later) {
            self.agenda.at(self.now + delay, what);
        }
        let before = self.at;
        for (node, delay, frame) in std::mem::take(&mut self.engine.out) {
            let Some((site, link)) = self.engine.nodes[node].session.as_ref().map(|one| (one.site, one.socket)) else {
                continue;
            };
            self.focus(site);
            if delay == 0 {
                self.emit(link, frame);
            } else {
                self.agenda.at(self.now + delay, Happening::EngineEmits { link, frame });
            }
        }
        self.focus(before);
        if let Some((invariant, text)) = std::mem::take(&mut self.engine.alarms).into_iter().next() {
            self.fail(invariant, text);
        }
    }
}
