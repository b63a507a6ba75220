//! The node socket between broker and engine. Frames keep their order; a cut loses a suffix, each way its own; what was
//! sent right before it may or may not have arrived.

use agent_relay_broker::core::ports::{Input, LinkGeneration, Ms, NodeCommand, NodeNote, Refusal};
use agent_relay_broker::wire::node::{FromEngine, ToEngine};
use serde_json::Value;

use super::agenda::Happening;
use super::schema;
use super::world::World;

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub enum Phase {
    #[default]
    Idle,
    Connecting,
    Open,
    Dead,
}

/// A connection, unique over all lives.
pub type Socket = u64;

fn generation_of(link: Socket) -> LinkGeneration {
    link & 0xffff_ffff
}

#[derive(Debug, Default)]
pub struct Link {
    pub generation: LinkGeneration,
    token: String,
    pub phase: Phase,
    /// What the broker has been told of this generation.
    pub told_open: bool,
    pub told_over: bool,
    /// The broker has asked for the close.
    closing: bool,
    /// Half-open: everything sent vanishes.
    pub black: bool,
    last_in: Ms,
    last_out: Ms,
    frames: u64,
    pub opened_in_life: u32,
}

impl Link {
    /// The broker knows this connection to be open.
    pub fn takes(&self, generation: LinkGeneration) -> bool {
        generation == self.generation && self.told_open && !self.told_over && !self.closing
    }

    /// Nothing stands between broker and engine.
    pub fn is_sound(&self) -> bool {
        self.phase == Phase::Open && !self.black && !self.closing
    }
}

impl World {
    /// Every life of the broker counts its connections anew; outside of it they are told apart by the life.
    pub fn socket(&self) -> Socket {
        self.site.link.generation | u64::from(self.site.life) << 32
    }

    pub fn node_command(&mut self, command: NodeCommand) {
        match command {
            NodeCommand::Connect { generation, token } => self.connect(generation, token.expose()),
            NodeCommand::Send { generation, frame } => self.send(generation, &frame),
            NodeCommand::Ping { generation } => self.usable(generation, "ping"),
            NodeCommand::Close { generation } => {
                self.usable(generation, "close");
                if generation != self.site.link.generation {
                    return;
                }
                // Also one that is dead already: nothing is to be said on it any more.
                self.site.link.closing = true;
                if self.site.link.phase == Phase::Open {
                    let link = self.socket();
                    let seen = self.site.link.last_out.max(self.now) + 1;
                    self.agenda.at(seen, Happening::CutSeenByEngine { link });
                    let end = self.now + self.rng.between(2, 1_000);
                    self.agenda.at(end, Happening::CutSeenByBroker { link, reason: "closed".into() });
                }
            }
        }
    }

    /// A command must name the connection that the broker knows to be open.
    fn usable(&mut self, generation: LinkGeneration, what: &str) {
        let link = &self.site.link;
        if generation != link.generation {
            self.fail(
                "stale_link",
                format!("{what} on link {generation}, the newest is {}", self.site.link.generation),
            );
        } else if !link.told_open || link.told_over || link.closing {
            self.fail("send_on_closed_link", format!("{what} on link {generation}, which is not open"));
        }
    }

    fn connect(&mut self, generation: LinkGeneration, token: &str) {
        if self.site.link.generation != 0 && generation <= self.site.link.generation {
            return self.fail("stale_link", format!("connect {generation} after {}", self.site.link.generation));
        }
        if self.site.superseded.take().is_some_and(|at| self.now < at + 25_000) {
            self.fail("superseded_in_haste", "the socket is taken back at once: two brokers would fight for ever");
        }
        if self.site.stopping.is_some() {
            self.fail("connect_while_stopping", format!("link {generation}"));
        }
        if self.site.link.phase == Phase::Open {
            let (link, late) = (self.socket(), self.rng.between(0, 200));
            self.agenda.at(self.now + late, Happening::CutSeenByEngine { link });
            if self.rng.chance(500) {
                self.agenda.at(self.now + late, Happening::CutSeenByBroker { link, reason: "replaced".into() });
            }
        }
        self.site.link = Link {
            generation,
            token: token.into(),
            phase: Phase::Connecting,
            opened_in_life: self.site.link.opened_in_life,
            last_in: self.now,
            last_out: self.now,
            ..Link::default()
        };
        let delay = if self.rng.chance(self.weather.refusals / 4) { 15_000 } else { self.rng.between(2, 120) };
        self.agenda.at(self.now + delay, Happening::ConnectEnds { link: self.socket() });
    }

    pub fn connect_ends(&mut self, link: Socket) {
        if link != self.socket() || self.site.link.phase != Phase::Connecting || self.site.broker.is_none() {
            return;
        }
        let why = if self.rng.chance(self.weather.refusals) {
            Some(match self.rng.below(5) {
                0 => Refusal::Status(503),
                1 => Refusal::Status(404),
                2 => Refusal::Unauthorized,
                _ => Refusal::Io("connection refused".into()),
            })
        } else if self.site.link.token != self.engine.node().token {
            Some(Refusal::Unauthorized)
        } else {
            None
        };
        match why {
            Some(why) => {
                self.site.link.phase = Phase::Dead;
                self.site.link.told_over = true;
                self.turn(Input::Node(NodeNote::Refused { generation: generation_of(link), why }));
            }
            None => {
                self.site.link.phase = Phase::Open;
                if let Some((site, old)) = self.engine.opened(self.at, link, &mut self.rng)
                    && old != link
                {
                    // The engine closes the earlier socket of the node.
                    let late = self.rng.below(self.weather.latency + 1);
                    let before = self.at;
                    self.focus(site);
                    self.agenda
                        .at(self.now + late, Happening::CutSeenByBroker { link: old, reason: "superseded".into() });
                    self.focus(before);
                }
                self.turn(Input::Node(NodeNote::Opened { generation: generation_of(link) }));
            }
        }
    }

    fn send(&mut self, generation: LinkGeneration, frame: &ToEngine) {
        self.usable(generation, frame.kind());
        let text = frame.encode();
        let value: Value = match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(error) => return self.fail("outbound_schema", format!("{error}: {text}")),
        };
        if let Err(error) = schema::check(&value) {
            self.fail("outbound_schema", format!("{error}: {text}"));
        }
        self.site.link.frames += 1;
        if self.site.link.frames == 1 && !matches!(frame, ToEngine::NodeRegister(_)) {
            self.fail("register_first", format!("the first frame of link {generation} is {}", frame.kind()));
        }
        self.check_outbound(frame);
        if generation == self.site.link.generation && self.site.link.phase == Phase::Open && !self.site.link.black {
            let at = self.site.link.last_out.max(self.now + self.rng.below(self.weather.latency + 1));
            self.site.link.last_out = at;
            self.agenda.at(at, Happening::ToEngine { link: self.socket(), frame: value });
        }
    }

    /// The engine writes a frame to a socket.
    pub fn emit(&mut self, link: Socket, frame: Value) {
        let open = self.socket() == link && self.site.link.phase == Phase::Open && !self.site.link.black;
        if open && self.engine.node().session.as_ref().is_some_and(|session| session.socket == link) {
            let at = self.site.link.last_in.max(self.now + self.rng.below(self.weather.latency + 1));
            self.site.link.last_in = at;
            self.agenda.at(at, Happening::ToBroker { link, frame });
        }
    }

    pub fn arrive(&mut self, link: Socket, frame: &Value) {
        if link != self.socket()
            || self.site.link.phase != Phase::Open
            || self.site.link.black
            || self.site.broker.is_none()
        {
            return;
        }
        // An identity that nobody contradicts is not foreign.
        let known = |id: &Option<String>| id.as_ref().is_some_and(|id| self.site.bound.contains(id));
        let up = |name: &str| {
            self.site.terminals.values().any(|one| one.name == name && one.is_up() && known(&one.agent_id))
        };
        let foreign = frame["delivery_id"].as_str().is_some_and(|id| id.starts_with("del_foreign"));
        if foreign && !up(frame["agent"].as_str().unwrap_or_default()) {
            return;
        }
        if let Some(row) = (self.engine.agents.get_mut(frame["agent_id"].as_str().unwrap_or_default()))
            .and_then(|agent| agent.rows.get_mut(&frame["seq"].as_u64()?))
            && let Some(moves) = frame["moves"].as_u64()
        {
            row.came.insert(self.site.life, moves as u32);
        }
        let generation = generation_of(link);
        let note = match FromEngine::decode(&frame.to_string()) {
            Ok(frame) => NodeNote::Frame { generation, frame },
            Err(error) => NodeNote::Garbage { generation, error },
        };
        self.turn(Input::Node(note));
    }

    // ----------------------------------------------------------------------------------------------------------- faults

    /// The connection breaks. Frames of the broker that are on their way may still arrive.
    pub fn cut(&mut self, reason: &str) {
        if self.site.link.phase != Phase::Open {
            return;
        }
        let link = self.socket();
        self.site.link.phase = Phase::Dead;
        let engine_late = match self.rng.below(4) {
            // At once: what is on its way to it is lost.
            0 => 0,
            1 => self.rng.between(0, 20),
            2 => self.rng.between(20, 2_000),
            _ => self.rng.between(2_000, 30_000),
        };
        if engine_late == 0 {
            self.engine.closed(Some(link), &mut self.rng);
        } else {
            self.agenda.at(self.now + engine_late, Happening::CutSeenByEngine { link });
        }
        let broker_late = if self.rng.chance(500) { 0 } else { self.rng.between(0, 3_000) };
        let reason = reason.to_string();
        self.agenda.at(self.now + broker_late, Happening::CutSeenByBroker { link, reason });
    }

    pub fn blackhole(&mut self) {
        if self.site.link.phase == Phase::Open && !self.site.link.black {
            self.site.link.black = true;
            let link = self.socket();
            let silence = self.rng.between(1_000, 60_000);
            self.agenda.at(self.now + silence, Happening::SilenceEnds { link });
            self.agenda.at(self.now + 45_000, Happening::CutSeenByEngine { link });
        }
    }

    pub fn silence_ends(&mut self, link: Socket) {
        if link == self.socket() && self.site.link.phase == Phase::Open {
            self.site.link.phase = Phase::Dead;
            self.end_seen(link, "nothing heard".into());
        }
    }

    /// The broker learns that a connection has ended; late news of an older one included.
    pub fn end_seen(&mut self, link: Socket, reason: String) {
        if self.site.broker.is_none() || link >> 32 != u64::from(self.site.life) {
            return;
        }
        if link == self.socket() {
            if self.site.link.told_over || !self.site.link.told_open {
                return;
            }
            self.site.link.phase = Phase::Dead;
            self.site.link.told_over = true;
        }
        self.turn(Input::Node(NodeNote::Closed { generation: generation_of(link), reason }));
    }

    /// The process died: the kernel closes the socket, the engine notices sooner or later.
    pub fn cut_link_at_death(&mut self) {
        let link = self.socket();
        if self.site.link.phase == Phase::Open {
            let late = if self.rng.chance(700) { self.rng.between(0, 50) } else { self.rng.between(50, 30_000) };
            self.agenda.at(self.now + late, Happening::CutSeenByEngine { link });
        }
        self.site.link = Link { phase: Phase::Dead, told_over: true, ..Link::default() };
    }
}
