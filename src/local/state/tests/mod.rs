//! The state without sockets: time is set by hand, frames are read from the out list.

use serde_json::{Map, Value, json};

mod deliveries;
mod durability;
mod invocations;
mod nodes;
mod placement;
mod triggers;

use super::*;
use crate::sys::clock::Now;

/// An engine with a workspace, driven like a client would.
struct World {
    engine: Engine,
    ws: u64,
    mono: u64,
}

const EPOCH: u64 = 1_764_000_000_000;

impl World {
    fn new() -> World {
        let mut world = World { engine: Engine::new(true), ws: 0, mono: 0 };
        let made = world.ask(Engine::create_workspace, Call { body: object(json!({"name": "w"})), ..Call::default() });
        world.ws = made.unwrap().data.unwrap()["workspace_id"].as_str().unwrap().parse().unwrap();
        world
    }

    fn now(&self) -> Now {
        Now { mono: self.mono, unix: EPOCH + self.mono }
    }

    fn ask(&mut self, route: fn(&mut Engine, &Call) -> Outcome, call: Call) -> Outcome {
        let now = self.now();
        route(self.engine.at(now), &call)
    }

    /// A call with a body by `agent` (0 = the workspace key).
    fn call(&mut self, route: fn(&mut Engine, &Call) -> Outcome, agent: u64, args: &[&str], body: Value) -> Outcome {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        let call = Call { ws: self.ws, agent, args, body: object(body), ..Call::default() };
        self.ask(route, call)
    }

    fn data(&mut self, route: fn(&mut Engine, &Call) -> Outcome, agent: u64, args: &[&str], body: Value) -> Value {
        self.call(route, agent, args, body).unwrap_or_else(|fail| panic!("{fail:?}")).data.unwrap_or_default()
    }

    fn agent(&mut self, name: &str) -> u64 {
        self.data(Engine::register_agent, 0, &[], json!({"name": name}))["id"].as_str().unwrap().parse().unwrap()
    }

    fn mint(&mut self, name: &str, id: &str) -> String {
        let node = self.data(Engine::mint_node, 0, &[], json!({"name": name, "node_id": id}));
        node["token"].as_str().unwrap().to_string()
    }

    /// A node that is connected and registered.
    fn node(&mut self, name: &str, id: &str, capabilities: Value) -> LinkId {
        let token = self.mint(name, id);
        let link = self.open(&token);
        self.register(link, name, id, capabilities);
        link
    }

    fn open(&mut self, token: &str) -> LinkId {
        let now = self.now();
        self.engine.at(now).open_link(Some(token)).unwrap()
    }

    fn register(&mut self, link: LinkId, name: &str, id: &str, capabilities: Value) {
        self.hear(
            link,
            json!({"type": "node.register", "v": 1, "id": "r", "name": name, "node_id": id, "capabilities": capabilities,
                   "max_agents": 0, "tags": [], "version": "t", "resume_cursor": null}),
        );
    }

    fn beat(&mut self, link: LinkId) {
        self.beat_with(link, 0.0, 0);
    }

    fn beat_with(&mut self, link: LinkId, load: f64, active_agents: u64) {
        self.hear(
            link,
            json!({"type": "node.heartbeat", "v": 1, "load": load, "active_agents": active_agents, "handlers_live": true}),
        );
    }

    /// A connected node for at most `most` agents, with live handlers.
    fn limited(&mut self, name: &str, id: &str, capabilities: Value, most: u64) -> LinkId {
        let token = self.mint(name, id);
        let link = self.open(&token);
        self.hear(
            link,
            json!({"type": "node.register", "v": 1, "name": name, "node_id": id, "capabilities": capabilities,
                   "max_agents": most, "tags": [], "version": "t"}),
        );
        self.beat(link);
        link
    }

    fn hear(&mut self, link: LinkId, frame: Value) {
        let now = self.now();
        self.engine.at(now).hear(link, &frame.to_string());
    }

    /// Registers an agent over the link; its id.
    fn located(&mut self, link: LinkId, name: &str) -> u64 {
        self.hear(link, json!({"type": "agent.register", "v": 1, "id": "ar", "name": name}));
        let frames = self.frames();
        let reply = frames.iter().find(|(_, f)| f["id"] == "ar").unwrap_or_else(|| panic!("{frames:?}"));
        reply.1["data"]["agent_id"].as_str().unwrap_or_else(|| panic!("{reply:?}")).parse().unwrap()
    }

    fn frames(&mut self) -> Vec<(LinkId, Value)> {
        let out = self.engine.take_out().into_iter();
        out.map(|out| match out {
            Out::Frame { link, text } => (link, serde_json::from_str(&text).unwrap()),
            Out::Close { link, code, reason } => (link, json!({"close": code, "reason": reason})),
        })
        .collect()
    }

    /// `seq` of the deliveries that left since the last look.
    fn seqs(&mut self) -> Vec<u64> {
        let frames = self.frames().into_iter();
        frames.filter(|(_, f)| f["type"] == "deliver").map(|(_, f)| f["seq"].as_u64().unwrap()).collect()
    }

    /// Invokes that left: link, id, action.
    fn invokes(&mut self) -> Vec<(LinkId, String, String)> {
        let frames = self.frames().into_iter().filter(|(_, f)| f["type"] == "action.invoke");
        frames
            .map(|(link, f)| {
                (link, f["invocation_id"].as_str().unwrap().to_string(), f["action"].as_str().unwrap().to_string())
            })
            .collect()
    }

    fn pass(&mut self, ms: u64) {
        self.mono += ms;
        let now = self.now();
        self.engine.fire(now);
    }

    fn dm(&mut self, from: u64, to: &str, text: &str) -> Value {
        self.data(Engine::send_dm, from, &[], json!({"to": to, "text": text}))
    }

    fn ack(&mut self, link: LinkId, agent: &str, up_to: u64) {
        self.hear(link, json!({"type": "delivery.ack", "v": 1, "agent": agent, "up_to_seq": up_to}));
    }

    fn status(&mut self, agent: &str) -> Value {
        self.data(Engine::get_agent, 0, &[agent], json!({}))["status"].clone()
    }

    fn error(&mut self) -> Value {
        let frames = self.frames();
        let error = frames.iter().find(|(_, f)| f["type"] == "error");
        error.map(|(_, f)| f["code"].clone()).unwrap_or_else(|| panic!("no error in {frames:?}"))
    }

    /// What a restart sees.
    fn restart(mut self) -> World {
        let mut engine = Engine::new(true);
        for line in self.engine.take_lines() {
            engine.replay(serde_json::from_str(&line).unwrap());
        }
        let mut world = World { engine, ..self };
        let now = world.now();
        world.engine.wake(now);
        world
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
