//! How bad the world of one seed is. Rates are per mille; many are zero in many seeds, so that rare combinations get
//! their turn undisturbed by the common ones.

use super::rng::Rng;

#[derive(Debug, Clone)]
pub struct Weather {
    /// Broker turns of the stormy part.
    pub turns: usize,
    /// Machines with a broker.
    pub sites: usize,
    /// They have one node id between them: each takes the socket from the other.
    pub twins: bool,
    /// They go by one name: the engine lets the first have it.
    pub namesakes: bool,
    pub durable: bool,
    pub persist: bool,
    pub token_pinned: bool,
    /// The engine tells its cursor in the reply to `agent.register`.
    pub reports_cursor: bool,
    /// The engine replays on `inventory.sync` too.
    pub inventory_replays: bool,
    /// Highest latency of a frame, each way, in ms.
    pub latency: u64,
    /// Highest delay of a note from a terminal, in ms.
    pub note_latency: u64,
    pub cuts: u64,
    pub blackholes: u64,
    pub refusals: u64,
    pub supersedes: u64,
    pub revocations: u64,
    pub crashes: u64,
    /// A crash inside a turn.
    pub torn_turns: u64,
    pub stops: u64,
    pub journal_failures: u64,
    pub exits: u64,
    pub busy: u64,
    pub inject_failures: u64,
    pub start_failures: u64,
    pub http_failures: u64,
    pub register_faults: u64,
    pub clock_steps: u64,
    pub reorders: u64,
    pub floods: u64,
    pub holds: u64,
    /// How often an agent of another machine is spoken of.
    pub shared_names: u64,
    /// How often the engine chooses the node of an invocation.
    pub unpinned: u64,
    /// How busy sidecars are: they come, go, and are asked.
    pub sidecars: u64,
}

impl Weather {
    pub fn of(rng: &mut Rng) -> Weather {
        let mut rate = |low: u64, high: u64| match rng.below(4) {
            0 | 1 => low,
            2 => 0,
            _ => high,
        };
        let mut weather = Weather {
            turns: 0,
            sites: 1,
            twins: false,
            namesakes: false,
            durable: false,
            persist: false,
            token_pinned: false,
            reports_cursor: false,
            inventory_replays: false,
            latency: 0,
            note_latency: 0,
            cuts: rate(15, 60),
            blackholes: rate(3, 12),
            refusals: rate(100, 400),
            supersedes: rate(2, 8),
            revocations: rate(2, 20),
            crashes: rate(4, 20),
            torn_turns: rate(1, 6),
            stops: rate(1, 5),
            journal_failures: rate(0, 15),
            exits: rate(15, 60),
            busy: rate(20, 60),
            inject_failures: rate(5, 60),
            start_failures: rate(30, 150),
            http_failures: rate(80, 300),
            register_faults: rate(40, 150),
            clock_steps: rate(3, 20),
            reorders: rate(8, 40),
            floods: rate(0, 3),
            holds: rate(10, 40),
            shared_names: rate(150, 600),
            unpinned: rate(200, 800),
            sidecars: rate(25, 90),
        };
        weather.turns = rng.between(150, 450) as usize;
        if rng.chance(400) {
            weather.sites = 2;
            weather.turns += weather.turns / 2;
            weather.twins = rng.chance(150);
            weather.namesakes = rng.chance(250);
        }
        weather.durable = rng.chance(500);
        weather.persist = weather.durable && rng.chance(500);
        weather.token_pinned = !weather.twins && rng.chance(120);
        weather.reports_cursor = rng.chance(300);
        weather.inventory_replays = rng.chance(500);
        weather.latency = *rng.pick(&[3, 40, 250]).expect("three entries");
        weather.note_latency = *rng.pick(&[0, 2, 60]).expect("three entries");
        weather
    }

    /// No faults any more: whatever is open must settle now.
    pub fn calm(&mut self) {
        self.latency = self.latency.min(40);
        for rate in [
            &mut self.cuts,
            &mut self.blackholes,
            &mut self.refusals,
            &mut self.supersedes,
            &mut self.revocations,
            &mut self.crashes,
            &mut self.torn_turns,
            &mut self.stops,
            &mut self.journal_failures,
            &mut self.exits,
            &mut self.busy,
            &mut self.inject_failures,
            &mut self.start_failures,
            &mut self.http_failures,
            &mut self.register_faults,
            &mut self.clock_steps,
            &mut self.reorders,
            &mut self.floods,
            &mut self.holds,
            &mut self.sidecars,
        ] {
            *rate = 0;
        }
    }
}
