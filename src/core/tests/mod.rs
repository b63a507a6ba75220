//! Histories of the pure broker. [`Bench`] owns a broker and a clock and plays everybody around it: the engine, the agent
//! threads, the callers of the local API. [`Seen`] is what came out, with questions to ask of it.

mod channels;
mod cursors;
mod events;
mod holds;
mod invocations;
mod links;
mod liveness;
mod manifests;
mod proofs;
mod receipts;
mod recipients;
mod registrations;
mod releases;
mod restarts;
mod restores;
mod seen;
mod sends;
mod sessions;
mod sidecars;
mod sizes;
mod spawns;
mod stops;
mod supervision;
mod surface;
mod workspaces;

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Broker;
use super::ports::{
    AgentCommand, AgentNote, ApiAnswer, ApiCall, Config, Effect, EngineCall, EngineError, Expected, Generation,
    InboundMode, Injection, Input, LinkGeneration, Ms, NodeCommand, NodeNote, Now, Record, Refusal, ResultReport,
    Secret, SendRequest, Session, SpawnRequest, Ticket, Workspace,
};
use super::spawn::STABLE_MS;
use crate::wire::node::{ActionInvoke, Deliver, DeliveryMode, FromEngine, ToEngine};
use seen::Seen;

const UNIX: Ms = 1_800_000_000_000;

fn config() -> Config {
    Config {
        node_id: "node_0123456789abcdef".into(),
        node_name: "box".into(),
        node_token: Secret::new("nt_live_1"),
        token_pinned: false,
        node_version: "relay-broker/9.1.6".into(),
        broker_version: "9.1.6".into(),
        workspaces: vec![Workspace {
            id: "ws1".into(),
            alias: None,
            key: Secret::new("rk_live_1"),
            self_name: "broker".into(),
            self_agent_id: "id-broker".into(),
        }],
        home: 0,
        has_default: true,
        base_url: None,
        self_aliases: vec!["box-broker".into()],
        default_channels: vec!["general".into()],
        result_url: "http://127.0.0.1:1/api/agent-result".into(),
        durable: true,
        persist: true,
        register_timeout_ms: 10_000,
        delivery_retry_ms: 1_000,
    }
}

/// A broker, its clock, and what has come out of it since the last [`Bench::take`].
struct Bench {
    broker: Broker,
    now: Now,
    out: Vec<Effect>,
    link: LinkGeneration,
    tickets: Ticket,
    pids: u32,
    /// The last message given to each agent's terminal.
    flights: HashMap<Generation, Injection>,
    /// The id of the last `node.register`, `agent.register` by name, and inventories not answered yet.
    node_register: String,
    agent_registers: HashMap<String, String>,
    inventories: Vec<String>,
    /// Calls of the engine's HTTP API not answered yet.
    calls: Vec<(Ticket, EngineCall)>,
    generations: HashMap<String, Generation>,
}

impl Bench {
    fn new() -> Bench {
        Bench::born(config(), Vec::new())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Bench {
        let mut config = config();
        change(&mut config);
        Bench::born(config, Vec::new())
    }

    fn born(config: Config, restored: Vec<Record>) -> Bench {
        Bench {
            broker: Broker::new(config, [7; 32], restored),
            now: Now { mono: 1_000, unix: UNIX },
            out: Vec::new(),
            link: 0,
            tickets: 0,
            pids: 100,
            flights: HashMap::new(),
            node_register: String::new(),
            agent_registers: HashMap::new(),
            inventories: Vec::new(),
            calls: Vec::new(),
            generations: HashMap::new(),
        }
    }

    /// A started broker whose link is open, accepted and settled, with nothing to take.
    fn online() -> Bench {
        Bench::new().go_online()
    }

    fn go_online(mut self) -> Bench {
        self.step(Input::Start);
        self.open();
        self.accept();
        self.out.clear();
        self
    }

    fn step(&mut self, input: Input) {
        let effects = self.broker.handle(input, self.now);
        for effect in &effects {
            self.note_effect(effect);
        }
        self.out.extend(effects);
    }

    fn note_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Node(NodeCommand::Connect { generation, .. }) => self.link = *generation,
            Effect::Node(NodeCommand::Send { frame, .. }) => match frame {
                ToEngine::NodeRegister(frame) => self.node_register = frame.id.clone().unwrap_or_default(),
                ToEngine::AgentRegister(frame) => {
                    self.agent_registers.insert(frame.name.clone(), frame.id.clone());
                }
                ToEngine::InventorySync(frame) => self.inventories.extend(frame.id.clone()),
                _ => {}
            },
            Effect::Launch(launch) => {
                self.generations.insert(launch.name.clone(), launch.generation);
            }
            Effect::Agent { generation, command: AgentCommand::Inject(injection) } => {
                self.flights.insert(*generation, injection.clone());
            }
            Effect::Engine { ticket, call } => self.calls.push((*ticket, call.clone())),
            _ => {}
        }
    }

    /// Everything that came out since the last time.
    fn take(&mut self) -> Seen {
        Seen(std::mem::take(&mut self.out))
    }

    /// Lets time pass, with a tick at every deadline on the way, as the daemon does.
    fn pass(&mut self, ms: Ms) {
        let end = self.now.mono + ms;
        while let Some(due) = self.broker.next_deadline().filter(|due| *due <= end) {
            self.jump(due.max(self.now.mono) - self.now.mono);
            self.step(Input::Tick);
        }
        self.jump(end - self.now.mono);
    }

    fn jump(&mut self, ms: Ms) {
        self.now.mono += ms;
        self.now.unix += ms;
    }

    // ------------------------------------------------------------------------------------------------------- the link

    fn node(&mut self, note: NodeNote) {
        self.step(Input::Node(note));
    }

    fn open(&mut self) {
        self.node(NodeNote::Opened { generation: self.link });
    }

    /// Answers `node.register` and every inventory on the way.
    fn accept(&mut self) {
        let id = self.node_register.clone();
        self.reply(&id, json!({}));
        self.settle();
    }

    /// Answers the inventories on the way.
    fn settle(&mut self) {
        while !self.inventories.is_empty() {
            let id = self.inventories.remove(0);
            self.reply(&id, json!({"online": 0}));
        }
    }

    fn reply(&mut self, id: &str, data: Value) {
        self.frame(FromEngine::Reply { id: id.into(), data });
    }

    fn error(&mut self, id: &str, code: &str) {
        self.frame(FromEngine::Error { id: id.into(), code: code.into(), message: "because".into() });
    }

    fn frame(&mut self, frame: FromEngine) {
        self.node(NodeNote::Frame { generation: self.link, frame });
    }

    fn close(&mut self, reason: &str) {
        self.inventories.clear();
        self.node(NodeNote::Closed { generation: self.link, reason: reason.into() });
    }

    fn refuse(&mut self, why: Refusal) {
        self.node(NodeNote::Refused { generation: self.link, why });
    }

    /// The engine refuses the token; a new one cannot be had either.
    fn refuse_token(&mut self) {
        self.refuse(Refusal::Unauthorized);
        self.engine(is_mint, Err(engine_error(500)));
    }

    /// Waits for the next attempt to connect and returns how long it took.
    #[track_caller]
    fn wait_connect(&mut self) -> Ms {
        let (since, before) = (self.now.mono, self.link);
        while self.link == before {
            let due = self.broker.next_deadline().expect("a deadline, because the link is down");
            self.pass(due.saturating_sub(self.now.mono));
            assert!(self.now.mono - since < 3_600_000, "no attempt to connect within an hour");
        }
        self.now.mono - since
    }

    /// Drops the connection and opens the next one, without answering anything on it.
    fn reconnect(&mut self) {
        self.close("reset");
        self.wait_connect();
        self.open();
    }

    // ----------------------------------------------------------------------------------------------------- the agents

    fn note(&mut self, generation: Generation, note: AgentNote) {
        self.step(Input::Agent { generation, note });
    }

    #[track_caller]
    fn generation(&self, name: &str) -> Generation {
        *self.generations.get(name).unwrap_or_else(|| panic!("'{name}' was never launched"))
    }

    /// Asks for a spawn by the local API and returns the ticket.
    fn ask_spawn(&mut self, name: &str) -> Ticket {
        self.ask_spawn_of(SpawnRequest { name: name.into(), cli: "codex".into(), ..SpawnRequest::default() })
    }

    fn ask_spawn_of(&mut self, request: SpawnRequest) -> Ticket {
        self.api(ApiCall::Spawn(request))
    }

    fn prepared(&mut self, name: &str) {
        let generation = self.generation(name);
        self.note(generation, AgentNote::Prepared);
    }

    #[track_caller]
    fn register_id(&self, name: &str) -> String {
        self.agent_registers.get(name).cloned().unwrap_or_else(|| panic!("no agent.register of '{name}'"))
    }

    /// The engine accepts the `agent.register` of this name, as `id-<name>`.
    #[track_caller]
    fn registered(&mut self, name: &str) {
        let id = self.register_id(name);
        self.reply(&id, registration(name));
    }

    /// Its program runs, and stays up long enough for the answer.
    fn started(&mut self, name: &str) -> Generation {
        let generation = self.just_started(name);
        self.pass(STABLE_MS);
        generation
    }

    /// Its program runs, since this moment.
    fn just_started(&mut self, name: &str) -> Generation {
        let generation = self.generation(name);
        self.pids += 1;
        let pid = self.pids;
        self.note(generation, AgentNote::Started { pid });
        generation
    }

    /// A running, ready agent `id-<name>`, spawned by the local API, with nothing to take.
    fn spawn_running(&mut self, name: &str) -> Generation {
        self.ask_spawn(name);
        self.run(name)
    }

    /// Carries a spawn that was asked for through to a ready agent.
    fn run(&mut self, name: &str) -> Generation {
        self.prepared(name);
        self.registered(name);
        let generation = self.started(name);
        self.note(generation, AgentNote::Ready);
        self.settle();
        self.out.clear();
        generation
    }

    fn exited(&mut self, generation: Generation) {
        self.note(generation, AgentNote::Exited { code: Some(0), signal: None });
    }

    /// The program reads what was typed last.
    #[track_caller]
    fn read(&mut self, generation: Generation) -> String {
        let flight = self.flights.remove(&generation).expect("a message in the terminal");
        self.note(generation, AgentNote::Typed { delivery_id: flight.delivery_id.clone() });
        self.note(generation, AgentNote::Read { delivery_id: flight.delivery_id });
        flight.event_id
    }

    #[track_caller]
    fn inject_failed(&mut self, generation: Generation) {
        let flight = self.flights.remove(&generation).expect("a message in the terminal");
        self.note(generation, AgentNote::InjectFailed { delivery_id: flight.delivery_id, error: "EIO".into() });
    }

    fn deliver(&mut self, frame: Deliver) {
        self.frame(FromEngine::Deliver(frame));
    }

    fn invoke(&mut self, id: &str, action: &str, input: Value) {
        self.frame(FromEngine::ActionInvoke(ActionInvoke {
            invocation_id: id.into(),
            action: action.into(),
            input,
            agent_id: None,
            agent_name: None,
        }));
    }

    // --------------------------------------------------------------------------------------------- the API, the engine

    fn api(&mut self, call: ApiCall) -> Ticket {
        self.tickets += 1;
        self.step(Input::Api { ticket: self.tickets, call: Box::new(call) });
        self.tickets
    }

    /// Asks what is answered in the same turn.
    #[track_caller]
    fn ask(&mut self, call: ApiCall) -> ApiAnswer {
        let before = self.out.len();
        let ticket = self.api(call);
        let seen = Seen(self.out[before..].to_vec());
        seen.answer(ticket).unwrap_or_else(|| panic!("no answer in the same turn:\n{seen:?}"))
    }

    fn send_to(&mut self, to: &str, text: &str) -> Ticket {
        self.api(ApiCall::Send(SendRequest { to: to.into(), text: text.into(), ..SendRequest::default() }))
    }

    fn set_mode(&mut self, name: &str, mode: InboundMode) -> ApiAnswer {
        self.ask(ApiCall::SetDeliveryMode { name: name.into(), mode, expected: Expected::default() })
    }

    fn release(&mut self, name: &str) -> Ticket {
        self.api(ApiCall::Release { name: name.into(), reason: None })
    }

    /// The oldest open call of the engine's HTTP API that `wanted` accepts, answered.
    #[track_caller]
    fn engine(&mut self, wanted: impl Fn(&EngineCall) -> bool, outcome: Result<Value, EngineError>) {
        let at = self.calls.iter().position(|(_, call)| wanted(call)).unwrap_or_else(|| {
            panic!("no such call of the engine; open are {:?}", self.calls);
        });
        let (ticket, _) = self.calls.remove(at);
        self.step(Input::Engine { ticket, outcome });
    }

    fn status(&mut self) -> Value {
        self.ask(ApiCall::Status).body
    }

    #[track_caller]
    fn link_state(&mut self) -> String {
        self.status()["node"]["state"].as_str().expect("a state").to_string()
    }

    fn dead_letters(&mut self) -> Vec<(String, String)> {
        let body = self.ask(ApiCall::DeadLetters).body;
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
        body["dead_letters"]
            .as_array()
            .map(|rows| rows.iter().map(|row| (text(row, "event_id"), text(row, "reason"))).collect())
            .unwrap_or_default()
    }

    fn agents(&mut self) -> Vec<String> {
        self.broker.roster.iter().map(|agent| agent.name.clone()).collect()
    }

    /// Nothing of a spawn is left: no agent, no request, no timer, no cursor that waits.
    #[track_caller]
    fn nothing_left(&self, what: &str) {
        let names: Vec<&str> = self.broker.roster.iter().map(|agent| agent.name.as_str()).collect();
        assert!(names.is_empty(), "{what}: agents left: {names:?}");
        assert!(self.broker.requests.is_empty(), "{what}: requests left: {:?}", self.broker.requests);
        let timers = format!("{:?}", self.broker.timers);
        for timer in ["Spawn(", "Register(", "LinkGrace(", "Retry(", "Bind(", "Gap(", "Restart("] {
            assert!(!timers.contains(timer), "{what}: a timer left: {timers}");
        }
    }
}

fn registration(name: &str) -> Value {
    json!({"agent_id": format!("id-{name}"), "token": format!("at_live_{name}"), "name": name})
}

fn engine_error(status: u16) -> EngineError {
    EngineError {
        status,
        code: if status == 0 { "transport".into() } else { format!("http_{status}") },
        message: "no luck".into(),
        retry_after_ms: None,
    }
}

fn is_register(call: &EngineCall) -> bool {
    matches!(call, EngineCall::RegisterAgent { .. })
}

fn is_bind(call: &EngineCall) -> bool {
    matches!(call, EngineCall::BindAgent { .. })
}

fn is_mint(call: &EngineCall) -> bool {
    matches!(call, EngineCall::MintNodeToken { .. })
}

/// A channel message for `id-<name>`, numbered `seq`, with this message id.
fn message(name: &str, seq: u64, msg_id: &str) -> Deliver {
    Deliver {
        agent: name.into(),
        agent_id: format!("id-{name}"),
        delivery_id: format!("del_{msg_id}_{seq}"),
        msg_id: msg_id.into(),
        seq,
        mode: DeliveryMode::Wait,
        payload: json!({
            "type": "message.created",
            "data": {"id": msg_id, "agent_name": "bob", "channel_name": "general", "text": format!("text of {msg_id}")},
        }),
    }
}

fn steer(name: &str, seq: u64, msg_id: &str) -> Deliver {
    Deliver { mode: DeliveryMode::Steer, ..message(name, seq, msg_id) }
}

fn of_type(kind: &str, mut frame: Deliver) -> Deliver {
    frame.payload["type"] = json!(kind);
    frame
}
