//! The local API's clients: what they ask, and whether they are answered exactly once and truthfully.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay_broker::core::ports::{
    ApiAnswer, ApiCall, Expected, Generation, InboundMode, Injection, Input, Ms, Secret, SendRequest,
    SidecarGeneration, SnapshotFormat, SpawnRequest, Ticket,
};
use agent_relay_broker::wire::fleet::RestartPolicy;
use agent_relay_broker::wire::node::{ActionOutcome, DeliveryMode};
use serde_json::Value;

use super::world::{SELF_NAME, World};

/// No client waits longer.
const ANSWER_MS: Ms = 60_000;
pub const NAMES: [&str; 5] = ["al", "bo", "cy", "di", "ed"];

#[derive(Debug)]
struct Asked {
    at: Ms,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Spawn(String),
    SpawnFor { sidecar: SidecarGeneration, name: String, invocation: String },
    HandlerResult { sidecar: SidecarGeneration, invocation: String, outcome: ActionOutcome },
    Release(String),
    Send { text: String, steer: bool },
    List,
    DeadLetters,
    Other,
}

/// One accepted `POST /api/send` with local recipients.
#[derive(Debug)]
struct Sent {
    delivered: u64,
    order: u64,
    text: String,
    steer: bool,
    /// Delivery ids by what became of them.
    injected: BTreeMap<String, Generation>,
    read: BTreeSet<String>,
    failed: BTreeSet<String>,
}

#[derive(Default)]
pub struct Desk {
    next: Ticket,
    open: BTreeMap<Ticket, Asked>,
    sent: BTreeMap<String, Sent>,
    /// Delivery id to event id.
    deliveries: BTreeMap<String, String>,
    typed: BTreeMap<String, Vec<Generation>>,
    /// Bodies of initial tasks that were read, by generation.
    pub tasks: BTreeMap<Generation, u32>,
    /// Messages that the broker said it dropped, by agent.
    dropped: BTreeMap<String, u64>,
    /// Delivery ids in the last answer to a question for dead letters.
    pub dead_letters: Option<BTreeSet<String>>,
    told: u64,
    /// Per accepted message.
    orders: BTreeMap<String, u64>,
}

impl Desk {
    /// Clients of a dead broker ask nobody, and what only it knew is lost.
    pub fn broker_gone(&mut self) {
        let next = self.next;
        *self = Desk { next, ..Desk::default() };
    }

    /// The place of a message among those accepted; told when it is, since a disk that refuses may hold up the answer.
    pub fn accepted(&mut self, event: &str) {
        self.told += 1;
        self.orders.entry(event.into()).or_insert(self.told);
    }

    fn order(&mut self, event: &str) -> u64 {
        self.orders.get(event).copied().unwrap_or_default()
    }

    /// Nobody will answer this call.
    pub fn given_up(&mut self, ticket: Ticket) {
        self.open.remove(&ticket);
    }

    pub fn first_open(&self) -> Option<Ticket> {
        self.open.keys().next().copied()
    }

    pub fn typed(&mut self, generation: Generation, delivery_id: &str) {
        self.typed.entry(delivery_id.into()).or_default().push(generation);
    }

    /// Not counting terminals of which that is not said.
    pub fn typed_twice(&self, delivery_id: &str, counts: impl Fn(Generation) -> bool) -> bool {
        self.typed.get(delivery_id).is_some_and(|all| all.iter().filter(|generation| counts(**generation)).count() > 1)
    }

    pub fn read(&mut self, generation: Generation, delivery_id: &str) {
        match self.deliveries.get(delivery_id).and_then(|event| self.sent.get_mut(event)) {
            Some(sent) => {
                sent.read.insert(delivery_id.into());
            }
            None => *self.tasks.entry(generation).or_default() += 1,
        }
    }

    pub fn failed(&mut self, event_id: &str, delivery_id: &str) {
        if let Some(sent) = self.sent.get_mut(event_id) {
            sent.failed.insert(delivery_id.into());
        }
    }

    pub fn dropped(&mut self, name: &str, count: u64) {
        *self.dropped.entry(name.into()).or_default() += count;
    }

    /// What was accepted and has neither been read nor been reported as failed.
    pub fn unsettled(&self) -> Option<String> {
        if let Some((ticket, asked)) = self.open.iter().next() {
            return Some(format!("API call {ticket} ({:?}) has no answer", asked.kind));
        }
        let dropped: u64 = self.dropped.values().sum();
        let missing = self.sent.iter().find(|(_, sent)| {
            let ends = sent.read.union(&sent.failed).count() as u64;
            ends < sent.delivered && dropped == 0
        });
        missing.map(|(event, sent)| format!("{event} was accepted for {} agents: {sent:?}", sent.delivered))
    }
}

impl World {
    pub fn ask(&mut self, call: ApiCall) -> Ticket {
        self.site.desk.next += 1;
        let ticket = self.site.desk.next;
        let kind = match &call {
            ApiCall::Spawn(request) => match (request.sidecar, request.invocation_id.clone()) {
                (Some(sidecar), Some(invocation)) => {
                    self.site.sidecars.spawning.insert(request.name.clone());
                    Kind::SpawnFor { sidecar, name: request.name.clone(), invocation }
                }
                _ => Kind::Spawn(request.name.clone()),
            },
            ApiCall::HandlerResult { sidecar, invocation_id, outcome } => {
                Kind::HandlerResult { sidecar: *sidecar, invocation: invocation_id.clone(), outcome: outcome.clone() }
            }
            ApiCall::Release { name, .. } => Kind::Release(name.clone()),
            ApiCall::Send(request) => {
                Kind::Send { text: request.text.clone(), steer: request.mode == DeliveryMode::Steer }
            }
            ApiCall::ListAgents => Kind::List,
            ApiCall::DeadLetters => Kind::DeadLetters,
            ApiCall::Shutdown => {
                self.site.stopping = Some(self.now);
                Kind::Other
            }
            _ => Kind::Other,
        };
        self.site.desk.open.insert(ticket, Asked { at: self.now, kind });
        self.turn(Input::Api { ticket, call: Box::new(call) });
        ticket
    }

    pub fn ask_renewal(&mut self) {
        self.ask(ApiCall::RenewLease);
    }

    pub fn desk_deadline(&mut self) {
        let late = self.site.desk.open.iter().find(|(_, asked)| self.now > asked.at + ANSWER_MS);
        if let Some((ticket, asked)) = late {
            let text = format!("API call {ticket} ({:?}) has no answer after 60 s", asked.kind);
            self.fail("ticket_unanswered", text);
        }
    }

    pub fn answered(&mut self, ticket: Ticket, answer: &ApiAnswer) {
        let Some(asked) = self.site.desk.open.remove(&ticket) else {
            return self.fail("answered_twice", format!("API call {ticket}: {answer:?}"));
        };
        match asked.kind {
            Kind::Spawn(name) if answer.status == 200 => {
                if answer.body.get("success") != Some(&Value::Bool(true)) {
                    self.fail("answer_form", format!("spawn of {name}: {answer:?}"));
                }
                self.claim(&name, format!("API call {ticket}"));
            }
            Kind::SpawnFor { sidecar, name, invocation } => {
                if answer.status == 200 {
                    self.claim(&name, format!("invocation {invocation}"));
                }
                self.sidecar_spawn_answered(sidecar, invocation, answer);
            }
            Kind::HandlerResult { sidecar, invocation, outcome } => {
                self.result_answered(sidecar, &invocation, &outcome, answer);
            }
            Kind::Release(name) => {
                let still =
                    self.site.terminals.values().any(|one| one.name == name && one.is_up() && one.release_asked);
                if answer.status == 200 && still {
                    self.fail("release_unfinished", format!("{name} is reported as released and still runs"));
                }
            }
            Kind::Send { text, steer } if answer.status == 200 => {
                let delivered = answer.body.get("delivered").and_then(Value::as_u64).unwrap_or_default();
                if let Some(event) = answer.body.get("event_id").and_then(Value::as_str).filter(|_| delivered > 0) {
                    let order = self.site.desk.order(event);
                    let sent = self.site.desk.sent.entry(event.into()).or_insert_with(|| Sent {
                        delivered: 0,
                        order,
                        text: text.clone(),
                        steer,
                        injected: BTreeMap::new(),
                        read: BTreeSet::new(),
                        failed: BTreeSet::new(),
                    });
                    sent.delivered = delivered;
                    sent.text = text;
                }
            }
            Kind::List => self.check_list(&answer.body),
            Kind::DeadLetters => {
                let all = answer.body.get("dead_letters").and_then(Value::as_array).cloned().unwrap_or_default();
                let ids = all.iter().filter_map(|one| one.get("delivery_id")?.as_str().map(str::to_string));
                self.site.desk.dead_letters = Some(ids.collect());
            }
            _ => {}
        }
    }

    fn check_list(&mut self, body: &Value) {
        let all = body.get("agents").and_then(Value::as_array).cloned().unwrap_or_default();
        let listed: Vec<&str> = all.iter().filter_map(|one| one.get("name")?.as_str()).collect();
        let missing = self.site.terminals.values().find(|one| {
            one.is_up() && one.claimed.is_some() && !one.release_asked && !listed.contains(&one.name.as_str())
        });
        if let Some(missing) = missing {
            let text = format!("{} runs and is not in the list of agents", missing.name);
            return self.fail("list", text);
        }
        let dead =
            listed.iter().find(|name| !self.site.terminals.values().any(|one| one.name == **name && !one.told_gone));
        if let Some(dead) = dead {
            let text = format!("{dead} is in the list of agents and does not exist");
            self.fail("list", text);
        }
    }

    /// A message of a local client goes into a terminal.
    pub fn check_send_injected(&mut self, generation: Generation, name: &str, injection: &Injection) {
        let event = injection.event_id.clone();
        self.site.desk.deliveries.insert(injection.delivery_id.clone(), event.clone());
        // What the journal brought over from an earlier life names no workspace; its place among the sends of this one is open.
        let restored = injection.workspace.is_none();
        let order = if restored { 0 } else { self.site.desk.order(&event) };
        let steer = injection.mode == DeliveryMode::Steer;
        let sent = self.site.desk.sent.entry(event.clone()).or_insert_with(|| Sent {
            // Injected in the turn that accepts it, right before the answer.
            delivered: 0,
            order,
            text: injection.body.clone(),
            steer,
            injected: BTreeMap::new(),
            read: BTreeSet::new(),
            failed: BTreeSet::new(),
        });
        sent.injected.insert(injection.delivery_id.clone(), generation);
        let (order, text) = (sent.order, sent.text.clone());
        if text != injection.body {
            return self.fail("garbled", format!("{name}: {injection:?} should say {text:?}"));
        }
        if steer || restored {
            return;
        }
        let overtaker = self.site.desk.sent.iter().find(|(_, other)| {
            other.order > order && !other.steer && other.injected.values().any(|one| *one == generation)
        });
        // A failed try may come again after a later one was accepted, not after it was injected.
        if let Some((other, _)) = overtaker {
            let text = format!("{name}: {event} is injected after {other}, which was sent later");
            self.fail("order_of_sends", text);
        }
    }

    /// Any call of the local API, about any agent.
    pub fn random_call(&mut self) {
        let name = self.any_name();
        let number = self.site.desk.next + 1;
        let call = match self.rng.below(100) {
            0..=17 => {
                let cli = *self.rng.pick(&["cat", "claude", "sh -c true", "nope", "cat"]).expect("five");
                let supplied = self.rng.chance(40) && self.site.broker.is_some();
                let agent_token = if supplied { self.supply_token(&name) } else { None };
                ApiCall::Spawn(SpawnRequest {
                    name: if self.rng.chance(15) { SELF_NAME.into() } else { name },
                    cli: cli.into(),
                    task: self.rng.chance(400).then(|| format!("task {number}")),
                    channels: if self.rng.chance(300) { vec!["ops".into()] } else { Vec::new() },
                    session_ref: self.rng.chance(100).then(|| format!("s{number}")),
                    agent_token,
                    restart_policy: self.rng.chance(250).then(|| RestartPolicy {
                        enabled: self.rng.chance(900),
                        max_restarts: self.rng.below(4) as u32,
                        cooldown_ms: self.rng.between(0, 3_000),
                        max_consecutive_failures: self.rng.below(4) as u32,
                    }),
                    ..SpawnRequest::default()
                })
            }
            18..=27 => ApiCall::Release { name, reason: None },
            28..=57 => ApiCall::Send(SendRequest {
                to: match self.rng.below(6) {
                    0 => "#general".into(),
                    1 => "#ops".into(),
                    2 => "nobody".into(),
                    _ => name,
                },
                text: format!("said {number}"),
                from: self.rng.chance(500).then(|| "zoe".into()),
                mode: if self.rng.chance(100) { DeliveryMode::Steer } else { DeliveryMode::Wait },
                ..SendRequest::default()
            }),
            58..=64 => ApiCall::ListAgents,
            65..=70 => ApiCall::Status,
            71..=76 => {
                let held = self.rng.below(1000) < self.weather.holds * 10;
                let mode = if held { InboundMode::ManualFlush } else { InboundMode::AutoInject };
                ApiCall::SetDeliveryMode { name, mode, expected: Expected::default() }
            }
            77..=79 => ApiCall::DeliveryMode { name },
            80..=84 => ApiCall::Flush { name },
            85..=86 => ApiCall::Pending { name },
            87..=89 => ApiCall::Type { name, bytes: b"ls\r".to_vec() },
            90 => ApiCall::Resize { name, rows: 40, cols: 100, session: None },
            91..=92 => ApiCall::Snapshot { name, format: SnapshotFormat::Plain },
            93 => ApiCall::Session,
            94 => ApiCall::Config,
            95..=96 => ApiCall::DeadLetters,
            _ => ApiCall::RenewLease,
        };
        self.ask(call);
    }

    /// Mostly one that runs.
    pub fn any_name(&mut self) -> String {
        let running: Vec<String> =
            self.site.terminals.values().filter(|one| one.is_up()).map(|one| one.name.clone()).collect();
        if self.rng.chance(600)
            && let Some(name) = self.rng.pick(&running)
        {
            return name.clone();
        }
        // Each machine has its own agents, mostly.
        let own = if self.at == 0 { &NAMES[..3] } else { &NAMES[3..] };
        let all = self.sites() == 1 || self.rng.chance(self.weather.shared_names);
        self.rng.pick(if all { &NAMES } else { own }).expect("there are names").to_string()
    }

    /// Somebody else has registered the agent at this node and hands its token in.
    fn supply_token(&mut self, name: &str) -> Option<Secret> {
        if self.site.terminals.values().any(|one| one.name == name && !one.told_gone) {
            return Some(Secret::new("at_live_of_somebody"));
        }
        let id = self.engine.upsert(name, &mut self.rng);
        if self.engine.is_active_elsewhere(&self.engine.agents[&id]) {
            return None;
        }
        let token = self.engine.new_token(&id);
        if let Some(agent) = self.engine.agents.get_mut(&id) {
            agent.move_to(self.site.node);
        }
        if self.engine.registered() {
            self.engine.replay(Some(&id), 0);
        }
        Some(Secret::new(token))
    }
}
