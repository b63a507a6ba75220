//! Sidecars: they attach, declare, handle, spawn, answer late, wrongly or never, and vanish. And what the broker says of them
//! to the engine, which must be true in the very turn.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay_broker::core::ports::{
    ApiAnswer, ApiCall, Effect, Input, Ms, NodeCommand, ProcessNote, SidecarCommand, SidecarGeneration, SidecarNote,
    SpawnRequest, SuperviseCommand,
};
use agent_relay_broker::wire::fleet::{Manifest, RestartPolicy, Supervision};
use agent_relay_broker::wire::node::{ActionOutcome, Capability, ToEngine};
use serde_json::json;

use super::agenda::{ChildAct, Happening, SidecarAct};
use super::disk::answer_text;
use super::world::World;

/// What sidecars offer.
pub const ACTIONS: [&str; 4] = ["build", "deploy", "spawn", "spawn:cat"];
/// A handler that has not answered within 10 minutes is given up.
const HANDLER_MS: Ms = 600_000;

/// One connection of a sidecar.
#[derive(Debug, Default)]
pub struct Connection {
    pub open: bool,
    /// The broker knows that it is over.
    pub told_gone: bool,
    /// Asked here and not answered: since when.
    pub work: BTreeMap<String, Ms>,
}

/// The sidecars of one life of a broker.
#[derive(Debug, Default)]
pub struct Sidecars {
    pub all: BTreeMap<SidecarGeneration, Connection>,
    /// The one that counts.
    pub attached: Option<SidecarGeneration>,
    pub handlers: BTreeSet<String>,
    /// Capabilities declared and not taken back: what a refusal brings back included.
    pub declared: Vec<Vec<String>>,
    supervised: Option<RestartPolicy>,
    /// Number of the supervised process, while it lives.
    child: Option<u32>,
    children: u32,
    child_connection: Option<SidecarGeneration>,
    /// Starts since a sidecar was last well for a minute.
    starts: u32,
    attached_at: Ms,
    gone_at: Ms,
    /// Names whose spawn a sidecar has asked for, as long as it waits.
    pub spawning: BTreeSet<String>,
}

impl Sidecars {
    pub fn live(&self) -> bool {
        self.attached.is_some() && !self.handlers.is_empty()
    }

    pub fn child_alive(&self) -> bool {
        self.child.is_some()
    }

    fn over(&mut self, now: Ms) {
        self.attached = None;
        self.gone_at = now;
        self.handlers.clear();
        if now >= self.attached_at + 60_000 {
            self.starts = 0;
        }
    }
}

impl World {
    fn sidecar_in(&mut self, generation: SidecarGeneration, delay: Ms, act: SidecarAct) {
        self.agenda.at(self.now + delay, Happening::Sidecar { life: self.site.life, generation, act });
    }

    /// The dice have chosen the sidecar.
    pub fn sidecar_stirs(&mut self) {
        let open: Vec<SidecarGeneration> =
            self.site.sidecars.all.iter().filter(|(_, one)| one.open).map(|(generation, _)| *generation).collect();
        let Some(generation) = self.rng.pick(&open).copied() else { return self.sidecar_attaches() };
        match self.rng.below(8) {
            0 => self.sidecar_attaches(),
            1 | 2 => self.sidecar_act(generation, SidecarAct::End { reason: "connection reset" }),
            3 => {
                self.ask(ApiCall::DeregisterNode { sidecar: generation });
            }
            4 => self.sidecar_act(generation, SidecarAct::Declare),
            5 => {
                let outcome = ActionOutcome::Error("nobody asked".into());
                let invocation = format!("i{}", self.rng.below(200));
                self.sidecar_act(generation, SidecarAct::Answer { invocation, outcome });
            }
            _ => self.sidecar_act(generation, SidecarAct::Handle),
        }
    }

    fn sidecar_attaches(&mut self) {
        let generation = self.site.sidecars.all.keys().next_back().copied().unwrap_or_default() + 1;
        self.site.sidecars.all.insert(generation, Connection { open: true, ..Connection::default() });
        if self.rng.chance(800) {
            let delay = self.rng.between(1, 40);
            self.sidecar_in(generation, delay, SidecarAct::Declare);
        }
        let delay = self.rng.between(40, 80);
        self.sidecar_in(generation, delay, SidecarAct::Handle);
        self.turn(Input::Sidecar { generation, note: SidecarNote::Attached });
    }

    pub fn sidecar_act(&mut self, generation: SidecarGeneration, act: SidecarAct) {
        let Some(connection) = self.site.sidecars.all.get_mut(&generation) else { return };
        if !std::mem::replace(&mut connection.open, true) {
            connection.open = false;
            return;
        }
        match act {
            SidecarAct::Declare => {
                let some: Vec<&str> = ACTIONS.into_iter().filter(|_| self.rng.chance(500)).collect();
                let named = |name: &&str| Capability { name: name.to_string(), kind: None, metadata: None };
                let manifest = Manifest {
                    name: if self.rng.chance(700) { String::new() } else { format!("sim-{}", self.rng.below(3)) },
                    capabilities: some.iter().map(named).collect(),
                    max_agents: self.rng.below(3) * 4,
                    ..Manifest::default()
                };
                let policy = RestartPolicy { max_restarts: 3, ..RestartPolicy::default() };
                let supervision = self.rng.chance(600).then(|| Supervision {
                    argv: vec!["sidecar".into()],
                    cwd: "/".into(),
                    env: BTreeMap::new(),
                    restart_policy: policy,
                });
                self.ask(ApiCall::RegisterNode { sidecar: generation, manifest, supervision });
            }
            SidecarAct::Handle => {
                let names = ACTIONS.iter().filter(|_| self.rng.chance(600)).map(|name| format!(" {name}")).collect();
                self.ask(ApiCall::RegisterHandlers { sidecar: generation, names });
            }
            SidecarAct::Spawn { invocation } => {
                let Some(one) = self.engine.invocations.get(&invocation) else { return };
                let request = SpawnRequest {
                    name: one.name.clone(),
                    cli: if self.rng.chance(100) { "nope".into() } else { "cat".into() },
                    sidecar: Some(generation),
                    invocation_id: Some(invocation),
                    ..SpawnRequest::default()
                };
                self.ask(ApiCall::Spawn(request));
            }
            SidecarAct::Answer { invocation, outcome } => {
                self.ask(ApiCall::HandlerResult { sidecar: generation, invocation_id: invocation, outcome });
            }
            SidecarAct::End { reason } => {
                if let Some(connection) = self.site.sidecars.all.get_mut(&generation) {
                    connection.open = false;
                }
                self.turn(Input::Sidecar { generation, note: SidecarNote::Gone { reason: reason.into() } });
                if self.site.sidecars.child_connection == Some(generation)
                    && let Some(number) = self.site.sidecars.child
                {
                    self.child_in(number, 20, ChildAct::Ends);
                }
            }
        }
    }

    pub fn sidecar_command(&mut self, generation: SidecarGeneration, command: SidecarCommand) {
        let now = self.now;
        let Some(connection) = self.site.sidecars.all.get_mut(&generation) else {
            return self.fail("sidecar_unknown", format!("{command:?} for connection {generation}"));
        };
        if connection.told_gone {
            return self.fail("sidecar_command_to_gone", format!("{command:?} for connection {generation}"));
        }
        match command {
            SidecarCommand::Close { reason } => {
                let delay = self.rng.between(0, 500);
                self.sidecar_in(generation, delay, SidecarAct::End { reason });
            }
            SidecarCommand::Invoke { invocation_id, name, .. } => {
                if !self.site.sidecars.handlers.contains(&name) {
                    return self.fail("invoked_without_handler", format!("{invocation_id}: {name}"));
                }
                let Some(connection) = self.site.sidecars.all.get_mut(&generation) else { return };
                connection.work.insert(invocation_id.clone(), now);
                let life = self.site.life;
                let Some(one) = self.engine.invocations.get_mut(&invocation_id) else {
                    return self.fail("invoked_from_nowhere", invocation_id);
                };
                if let Some(before) = one.invoked.insert(life, generation) {
                    let text = format!("{invocation_id}: sidecar {generation} is asked, {before} was before");
                    return self.fail("handler_invoked_twice", text);
                }
                self.handle(generation, invocation_id, &name);
            }
        }
    }

    /// A handler sets to work.
    fn handle(&mut self, generation: SidecarGeneration, invocation: String, action: &str) {
        let delay = if self.rng.chance(150) { self.rng.between(1_000, 45_000) } else { self.rng.between(1, 300) };
        if action.starts_with("spawn") && self.rng.chance(800) {
            return self.sidecar_in(generation, delay, SidecarAct::Spawn { invocation });
        }
        let outcome = match self.rng.below(10) {
            0 => return,
            1 | 2 => ActionOutcome::Error("the build is broken".into()),
            3 => ActionOutcome::Output(serde_json::Value::Null),
            _ => ActionOutcome::Output(json!({"built": invocation})),
        };
        self.sidecar_in(generation, delay, SidecarAct::Answer { invocation: invocation.clone(), outcome });
        if self.rng.chance(80) {
            let outcome = ActionOutcome::Error("on second thoughts".into());
            self.sidecar_in(generation, delay + 5, SidecarAct::Answer { invocation, outcome });
        }
    }

    /// The calm: who sleeps wakes up and answers.
    pub fn sidecars_calm_down(&mut self) {
        let open: Vec<(SidecarGeneration, Vec<String>)> =
            self.site.sidecars.all.iter().map(|(g, one)| (*g, one.work.keys().cloned().collect())).collect();
        for (generation, work) in open {
            for invocation in work {
                if self.rng.chance(100) {
                    // It never does: the broker has to give it up.
                    continue;
                }
                let outcome = ActionOutcome::Output(json!({"late": true}));
                self.sidecar_in(generation, 60_000, SidecarAct::Answer { invocation, outcome });
            }
        }
    }

    /// The answer to what a sidecar asked by `handler_result`.
    pub fn result_answered(
        &mut self,
        generation: SidecarGeneration,
        invocation: &str,
        outcome: &ActionOutcome,
        answer: &ApiAnswer,
    ) {
        let counts = self.site.sidecars.attached == Some(generation);
        let since =
            self.site.sidecars.all.get_mut(&generation).and_then(|one| one.work.remove(invocation)).filter(|_| counts);
        let expired = since.is_some_and(|since| self.now >= since + HANDLER_MS - 1_000);
        if (answer.status == 200) != since.is_some() && !expired {
            let text = format!("{invocation} of {generation}, asked at {since:?}: {answer:?}");
            return self.fail("handler_result_answer", text);
        }
        if answer.status == 200 {
            let said = match outcome {
                ActionOutcome::Output(output) => answer_text(Some(output), None),
                ActionOutcome::Error(error) => answer_text(None, Some(error)),
            };
            if let Some(one) = self.engine.invocations.get_mut(invocation) {
                let before = one.said.get(&self.site.life).filter(|before| **before != said).cloned();
                one.promised.insert(self.site.life, said.clone());
                if let Some(before) = before {
                    let text = format!("{invocation}: the engine was told {before}, the sidecar that {said} counts");
                    self.fail("result_not_verbatim", text);
                }
            }
        }
    }

    /// A spawn that a sidecar asked for is answered; so it answers its invocation.
    pub fn sidecar_spawn_answered(&mut self, generation: SidecarGeneration, invocation: String, answer: &ApiAnswer) {
        let Some(one) = self.engine.invocations.get(&invocation) else { return };
        self.site.sidecars.spawning.remove(&one.name);
        let outcome = match answer.status {
            200 => ActionOutcome::Output(json!({"spawned": true, "name": one.name})),
            _ => ActionOutcome::Error(format!("spawn_failed: {}", answer.body["error"])),
        };
        let delay = self.rng.between(1, 100);
        self.sidecar_in(generation, delay, SidecarAct::Answer { invocation, outcome });
    }

    // ------------------------------------------------------------------------------------------------- what is told of it

    pub fn sidecar_told(&mut self, input: &Input) {
        let now = self.now;
        let sidecars = &mut self.site.sidecars;
        match input {
            Input::Sidecar { generation, note: SidecarNote::Attached } if self.site.stopping.is_none() => {
                if sidecars.attached.is_some() {
                    sidecars.over(now);
                }
                sidecars.attached = Some(*generation);
                sidecars.attached_at = now;
            }
            Input::Sidecar { generation, note: SidecarNote::Gone { .. } } => {
                if let Some(connection) = sidecars.all.get_mut(generation) {
                    connection.told_gone = true;
                }
                if sidecars.attached == Some(*generation) {
                    sidecars.over(now);
                }
            }
            Input::Sidecar { .. } => {}
            Input::Api { call, .. } => match &**call {
                ApiCall::RegisterHandlers { sidecar, names } if sidecars.attached == Some(*sidecar) => {
                    sidecars.handlers = names.iter().map(|name| name.trim().to_string()).collect();
                }
                ApiCall::RegisterNode { sidecar, manifest, supervision } if sidecars.attached == Some(*sidecar) => {
                    let names = manifest.capabilities.iter().map(|one| one.name.clone()).collect();
                    sidecars.declared.push(names);
                    sidecars.supervised = supervision.as_ref().map(|one| one.restart_policy);
                }
                ApiCall::DeregisterNode { sidecar } if sidecars.attached == Some(*sidecar) => {
                    sidecars.over(now);
                    sidecars.declared.clear();
                    sidecars.supervised = None;
                    sidecars.starts = 0;
                }
                ApiCall::Shutdown => self.sidecars_dismissed(),
                _ => {}
            },
            Input::Stop { .. } => self.sidecars_dismissed(),
            _ => {}
        }
    }

    fn sidecars_dismissed(&mut self) {
        let now = self.now;
        self.site.sidecars.over(now);
        self.site.sidecars.supervised = None;
    }

    /// What the node says of itself is true, and said at once.
    pub fn check_face(&mut self, effects: &[Effect], was_live: bool) {
        let live = self.site.sidecars.live();
        let mut told = false;
        for effect in effects {
            let (what, capabilities) = match effect {
                Effect::Node(NodeCommand::Send { frame: ToEngine::NodeRegister(frame), .. }) => {
                    ("node.register", &frame.capabilities)
                }
                Effect::Node(NodeCommand::Send { frame: ToEngine::NodeHeartbeat(frame), .. }) => {
                    told = true;
                    if frame.handlers_live != live {
                        let text = format!("the heartbeat says {}, it is {live}", frame.handlers_live);
                        return self.fail("handlers_live", text);
                    }
                    ("node.heartbeat", &frame.capabilities)
                }
                _ => continue,
            };
            let names: Vec<String> = capabilities.iter().map(|one| one.name.clone()).collect();
            if !names.is_empty() && !self.site.sidecars.declared.contains(&names) {
                let text = format!("{what} claims {names:?}, declared are {:?}", self.site.sidecars.declared);
                return self.fail("stale_capabilities", text);
            }
        }
        let link = &self.site.link;
        if was_live != live && !told && link.takes(link.generation) && self.site.stopping.is_none() {
            self.fail("handlers_live", format!("handlers live: {live} now, and no heartbeat in this turn"));
        }
    }

    // ------------------------------------------------------------------------------------------------------ supervision

    fn child_in(&mut self, number: u32, delay: Ms, act: ChildAct) {
        self.agenda.at(self.now + delay, Happening::Child { life: self.site.life, number, act });
    }

    pub fn supervise(&mut self, command: SuperviseCommand) {
        let sidecars = &mut self.site.sidecars;
        match command {
            SuperviseCommand::Start { .. } => {
                let Some(policy) = sidecars.supervised.filter(|policy| policy.enabled) else {
                    return self.fail("supervision", "a sidecar is started that nobody supervises");
                };
                if sidecars.attached.is_some() || sidecars.child.is_some() {
                    let text = format!("started beside a living one: {sidecars:?}");
                    return self.fail("supervision", text);
                }
                sidecars.starts += 1;
                if sidecars.starts > policy.max_restarts || self.now < sidecars.gone_at + policy.cooldown_ms {
                    let text = format!("started too often or too soon: {sidecars:?}");
                    return self.fail("supervision", text);
                }
                sidecars.children += 1;
                let number = sidecars.children;
                sidecars.child = Some(number);
                sidecars.child_connection = None;
                let act = if self.rng.chance(150) { ChildAct::Fails } else { ChildAct::Starts };
                let delay = self.rng.between(1, 60);
                self.child_in(number, delay, act);
            }
            SuperviseCommand::Stop => {
                let Some(number) = sidecars.child else {
                    return self.fail("supervision", "a process is stopped that is not there");
                };
                let delay = self.rng.between(1, 2_200);
                self.child_in(number, delay, ChildAct::Ends);
            }
        }
    }

    pub fn child_act(&mut self, number: u32, act: ChildAct) {
        if self.site.sidecars.child != Some(number) || self.site.broker.is_none() {
            return;
        }
        match act {
            ChildAct::Starts => {
                let (next, delay) = match self.rng.below(5) {
                    0 => (ChildAct::Ends, self.rng.between(1, 3_000)),
                    _ => (ChildAct::Attaches, self.rng.between(20, 2_000)),
                };
                self.child_in(number, delay, next);
                self.turn(Input::Supervised(ProcessNote::Started { pid: 5_000 + number }));
            }
            ChildAct::Attaches => {
                self.sidecar_attaches();
                self.site.sidecars.child_connection = self.site.sidecars.all.keys().next_back().copied();
            }
            ChildAct::Fails => {
                self.site.sidecars.child = None;
                self.turn(Input::Supervised(ProcessNote::Failed { error: "no such file".into() }));
            }
            ChildAct::Ends => {
                if let Some(generation) = self.site.sidecars.child_connection.take() {
                    self.sidecar_act(generation, SidecarAct::End { reason: "connection reset" });
                }
                self.site.sidecars.child = None;
                self.turn(Input::Supervised(ProcessNote::Ended { code: Some(1), signal: None }));
            }
        }
    }
}
