//! The dice: what the outside does next. Traffic, requests, and everything that can go wrong.

use agent_relay_broker::core::ports::{ApiCall, Generation, Input};
use serde_json::{Value, json};

use super::agenda::{Act, Happening};
use super::desk::NAMES;
use super::invocations::Invocation;
use super::rows::{ELSEWHERE, deliver};
use super::sidecar::ACTIONS;
use super::terminal::Phase;
use super::world::{SELF_NAME, World};

/// Per node the name of an agent that the engine has there and nobody ever spawns.
const GHOSTS: [&str; 2] = ["ghost", "ghost-too"];

#[derive(Clone, Copy)]
enum Stimulus {
    Nothing,
    Message,
    Burst,
    Ghost,
    Passing,
    Copy,
    Replay,
    Foreign,
    Strange,
    InvokeSpawn,
    InvokeRelease,
    InvokeOther,
    DispatchAgain,
    Call,
    Hole,
    LatePush,
    LostPush,
    Flood,
    Cut,
    Blackhole,
    Supersede,
    Revoke,
    Exit,
    Busy,
    FailNext,
    Chatter,
    StepClock,
    Crash,
    Stop,
    Sidecar,
    InvokeHandler,
}

impl World {
    /// What stands in the engine before the first turn: agents of earlier times, agents elsewhere.
    pub fn populate(&mut self) {
        for name in NAMES {
            if self.rng.chance(400) {
                let id = self.engine.upsert(name, &mut self.rng);
                let (waiting, elsewhere) = (self.rng.below(4), self.rng.chance(60));
                let home = self.rng.below(self.engine.nodes.len() as u64) as usize;
                for _ in 0..waiting {
                    self.engine.store(&id, &mut self.rng, false);
                }
                if let Some(agent) = self.engine.agents.get_mut(&id) {
                    agent.at = if elsewhere { Some(ELSEWHERE) } else { (agent.top % 3 == 0).then_some(home) };
                    agent.home = agent.at;
                    agent.online = elsewhere;
                }
            }
        }
        if self.rng.chance(300) {
            let id = self.engine.upsert(GHOSTS[0], &mut self.rng);
            self.engine.store(&id, &mut self.rng, false);
            if let Some(agent) = self.engine.agents.get_mut(&id) {
                agent.move_to(0);
            }
        }
    }

    pub fn stimulus(&mut self) {
        if self.calm {
            return;
        }
        let pause = match self.rng.below(100) {
            0..=54 => self.rng.between(0, 30),
            55..=79 => self.rng.between(30, 500),
            80..=91 => self.rng.between(500, 3_000),
            92..=97 => self.rng.between(3_000, 13_000),
            _ => self.rng.between(13_000, 70_000),
        };
        self.agenda.at(self.now + pause, Happening::Stimulus);
        if !self.site.is_up() {
            return;
        }
        let w = &self.weather;
        let table = [
            (120, Stimulus::Nothing),
            (260, Stimulus::Message),
            (50, Stimulus::Burst),
            (6, Stimulus::Ghost),
            (50, Stimulus::Passing),
            (15, Stimulus::Copy),
            (15, Stimulus::Replay),
            (5, Stimulus::Foreign),
            (15, Stimulus::Strange),
            (45, Stimulus::InvokeSpawn),
            (25, Stimulus::InvokeRelease),
            (8, Stimulus::InvokeOther),
            (8, Stimulus::DispatchAgain),
            (260, Stimulus::Call),
            (15, Stimulus::Hole),
            (w.reorders, Stimulus::LatePush),
            (w.reorders / 2, Stimulus::LostPush),
            (w.floods, Stimulus::Flood),
            (w.cuts, Stimulus::Cut),
            (w.blackholes, Stimulus::Blackhole),
            (w.supersedes, Stimulus::Supersede),
            (w.revocations, Stimulus::Revoke),
            (w.exits, Stimulus::Exit),
            (w.busy, Stimulus::Busy),
            (w.inject_failures / 4, Stimulus::FailNext),
            (25, Stimulus::Chatter),
            (w.clock_steps, Stimulus::StepClock),
            (w.crashes, Stimulus::Crash),
            (w.stops, Stimulus::Stop),
            (w.sidecars, Stimulus::Sidecar),
            (w.sidecars, Stimulus::InvokeHandler),
        ];
        let stimulus = self.rng.weighted(&table);
        self.apply(stimulus);
        self.drain_engine();
    }

    /// An agent that the engine locates at this node, mostly one that runs.
    fn located(&mut self) -> Option<String> {
        let running: Vec<String> = self
            .site
            .terminals
            .values()
            .filter(|one| one.is_up())
            .filter_map(|one| self.engine.names.get(&one.name).cloned())
            .collect();
        if self.rng.chance(850)
            && let Some(id) = self.rng.pick(&running)
        {
            return Some(id.clone());
        }
        let here: Vec<String> = self
            .engine
            .agents
            .values()
            .filter(|agent| agent.at == Some(self.site.node))
            .map(|agent| agent.id.clone())
            .collect();
        self.rng.pick(&here).cloned()
    }

    fn running(&mut self) -> Option<Generation> {
        let running: Vec<Generation> =
            self.site.terminals.iter().filter(|(_, one)| one.phase == Phase::Running).map(|(g, _)| *g).collect();
        self.rng.pick(&running).copied()
    }

    /// Whether a number that arrives out of turn can be told from the first one ever: the broker has a position.
    fn positioned(&self, id: &str) -> bool {
        let running = self.site.terminals.values().any(|one| one.is_up() && one.agent_id.as_deref() == Some(id));
        running
            && self
                .engine
                .agents
                .get(id)
                .is_some_and(|agent| agent.acked_in == self.site.life && agent.at == Some(self.site.node))
            && self.site.link.is_sound()
            && self.site.acks.keys().any(|(agent, epoch)| agent == id && *epoch == self.engine.agents[id].epoch)
    }

    fn send_new(&mut self, id: &str, copy: bool) {
        if let Some(seq) = self.engine.store(id, &mut self.rng, copy) {
            self.engine.push(id, seq, 0);
        }
    }

    fn apply(&mut self, stimulus: Stimulus) {
        match stimulus {
            Stimulus::Nothing => {}
            Stimulus::Message => {
                if let Some(id) = self.located() {
                    self.send_new(&id, false);
                }
            }
            Stimulus::Burst => {
                if let Some(id) = self.located() {
                    for _ in 0..self.rng.between(2, 9) {
                        self.send_new(&id, false);
                    }
                }
            }
            Stimulus::Flood => {
                if let Some(id) = self.located() {
                    for _ in 0..self.rng.between(80, 400) {
                        self.send_new(&id, false);
                    }
                }
            }
            Stimulus::Ghost => {
                let id = self.engine.upsert(GHOSTS[self.site.node], &mut self.rng);
                if let Some(agent) = self.engine.agents.get_mut(&id) {
                    agent.move_to(self.site.node);
                }
                self.send_new(&id, false);
            }
            Stimulus::Passing => {
                if let Some(id) = self.located() {
                    self.engine.pass(&id, &mut self.rng);
                }
            }
            Stimulus::Copy => {
                if let Some(id) = self.located() {
                    self.send_new(&id, true);
                }
            }
            Stimulus::Replay => {
                if let Some(id) = self.located()
                    && self.engine.registered()
                {
                    self.engine.replay(Some(&id), 0);
                }
            }
            Stimulus::Foreign => self.foreign(),
            Stimulus::Strange => self.strange(),
            Stimulus::InvokeSpawn => self.invoke_spawn(),
            Stimulus::InvokeRelease => {
                let name = if self.rng.chance(30) { SELF_NAME.to_string() } else { self.any_name() };
                let delete = self.rng.chance(200);
                self.invoke("release", &name, json!({"name": name, "delete_agent": delete}), false);
            }
            Stimulus::InvokeOther => {
                let name = self.any_name();
                let hosted = self.rng.chance(500);
                self.invoke("build", &name, json!({"k": 1}), hosted);
            }
            Stimulus::DispatchAgain => {
                let all: Vec<String> = self.engine.invocations.keys().cloned().collect();
                if let Some(id) = self.rng.pick(&all).cloned() {
                    self.engine.dispatch(&id, &mut self.rng);
                }
            }
            Stimulus::Call => self.random_call(),
            Stimulus::Hole => {
                if let Some(id) = self.located()
                    && let Some(seq) = self.engine.store(&id, &mut self.rng, false)
                {
                    self.engine.give_up(&id, seq);
                    self.send_new(&id, false);
                }
            }
            Stimulus::LatePush => {
                if let Some(id) = self.located().filter(|id| self.positioned(id))
                    && let Some(seq) = self.engine.store(&id, &mut self.rng, false)
                {
                    let delay = self.rng.between(20, 1_500);
                    self.engine.push(&id, seq, delay);
                    self.send_new(&id, false);
                }
            }
            Stimulus::LostPush => {
                if let Some(id) = self.located().filter(|id| self.positioned(id)) {
                    self.engine.store(&id, &mut self.rng, false);
                    self.send_new(&id, false);
                }
            }
            Stimulus::Cut => self.cut("connection reset by peer"),
            Stimulus::Blackhole => self.blackhole(),
            Stimulus::Supersede => {
                let link = self.socket();
                self.engine.closed(Some(link), &mut self.rng);
                self.cut("superseded");
            }
            Stimulus::Revoke => {
                if !self.weather.token_pinned {
                    self.engine.mint_node_token();
                    self.cut("connection reset by peer");
                }
            }
            Stimulus::Exit => {
                if let Some(generation) = self.running() {
                    let (code, signal) = if self.rng.chance(500) { (Some(0), None) } else { (None, Some(9)) };
                    self.act(generation, Act::Exit { code, signal });
                }
            }
            Stimulus::Busy => {
                if let Some(generation) = self.running() {
                    let until = self.now + self.rng.between(200, 30_000);
                    if let Some(terminal) = self.site.terminals.get_mut(&generation) {
                        terminal.busy_until = until;
                    }
                }
            }
            Stimulus::FailNext => {
                let times = self.rng.between(1, 13) as u32;
                if let Some(terminal) = self.running().and_then(|generation| self.site.terminals.get_mut(&generation)) {
                    terminal.fail_next = times;
                }
            }
            Stimulus::Chatter => {
                if let Some(generation) = self.running() {
                    self.chatter(generation);
                }
            }
            Stimulus::StepClock => self.step_clock(),
            Stimulus::Sidecar => self.sidecar_stirs(),
            Stimulus::InvokeHandler => {
                let action = *self.rng.pick(&ACTIONS).expect("four actions");
                let name = self.any_name();
                let input = json!({"name": name, "cli": "cat"});
                self.invoke(action, &name, input, false);
            }
            Stimulus::Crash => self.crash(),
            Stimulus::Stop => {
                if self.rng.chance(500) {
                    self.turn(Input::Stop { reason: "SIGTERM" });
                } else {
                    self.ask(ApiCall::Shutdown);
                }
            }
        }
    }

    /// A frame for an identity that the name does not stand for any more.
    fn foreign(&mut self) {
        let registered: Vec<(String, String)> = self
            .site
            .terminals
            .values()
            .filter(|one| one.is_up() && one.agent_id.as_ref().is_some_and(|id| self.site.bound.contains(id)))
            .map(|one| (one.name.clone(), one.agent_id.clone().unwrap_or_default()))
            .collect();
        let Some((name, id)) = self.rng.pick(&registered).cloned() else { return };
        let seq = self.engine.agents.get(&id).map_or(1, |agent| agent.top) + self.rng.between(1, 3);
        let number = self.engine.fresh("");
        let payload = json!({"type": "dm.received", "data": {"text": "for somebody else", "from_name": "bob"}});
        let delivery_id = format!("del_foreign{number}");
        let frame = deliver(&name, "ag_foreign", &delivery_id, &format!("mf{number}"), seq, false, &payload);
        self.engine.tell(0, frame);
    }

    /// Frames that mean nothing, or nothing good.
    fn strange(&mut self) {
        let frame: Value = match self.rng.below(7) {
            0 => json!({"v": 1, "type": "ping"}),
            1 => json!({"v": 1, "type": "context.update", "topic": "t", "event": "e", "data": {}}),
            2 => json!({"v": 1, "type": "weather.report", "rain": true}),
            3 => json!({"v": 2, "type": "deliver"}),
            4 => json!({"v": 1, "type": "deliver", "agent": "al"}),
            5 => json!({"v": 1, "type": "error", "id": "x", "ok": false, "code": "invalid_message", "message": "?"}),
            _ => json!({"v": 1, "type": "reply", "id": "x", "ok": true, "data": null}),
        };
        self.engine.tell(0, frame);
    }

    fn invoke_spawn(&mut self) {
        let name = self.any_name();
        let number = self.engine.fresh("");
        let (action, input) = match self.rng.below(6) {
            0 => ("spawn", json!({"name": name, "cli": "cat", "task": format!("task {number}")})),
            1 => ("spawn:claude", json!({"name": name})),
            2 => ("spawn:stub", json!({"agent": {"name": name}, "cli": "sh", "channels": ["ops"]})),
            3 => ("spawn:nope", json!({"name": name})),
            4 => (
                "spawn",
                json!({"name": name, "harnessConfig": {"command": "cat", "sessionId": "s1", "runtime": "pty"}}),
            ),
            _ => ("spawn:cat", json!({"name": name, "cwd": null, "session_ref": format!("s{number}")})),
        };
        self.invoke(action, &name, input, false);
    }

    /// Pinned to this node, or placed by the engine.
    fn invoke(&mut self, action: &str, name: &str, input: Value, hosted: bool) {
        let target = (self.sites() == 1 || !self.rng.chance(self.weather.unpinned)).then_some(self.site.node);
        let one = Invocation {
            action: action.into(),
            input,
            agent_name: hosted.then(|| name.to_string()),
            agent_id: self.engine.names.get(name).cloned().filter(|_| hosted),
            name: name.into(),
            target,
            ..Invocation::default()
        };
        self.engine.invoke(one, &mut self.rng);
    }
}
