//! The embedded engine as a process of its own, with faults on request.

use std::path::Path;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::house::House;
use crate::process::Process;
use crate::until::{LONG, until};

pub struct Engine {
    process: Process,
    pub address: String,
    /// Key of a workspace of this engine.
    pub key: String,
}

impl Engine {
    pub fn start(house: &Arc<House>) -> Engine {
        let mut engine = Engine::open(house, "127.0.0.1:0", None);
        engine.key = engine.make_workspace("first");
        engine
    }

    /// Listens at `listen` and keeps its data in `data`; knows a key only if `make_workspace` is asked.
    pub fn open(house: &Arc<House>, listen: &str, data: Option<&Path>) -> Engine {
        let mut command = house.command(&house.path("work"));
        command.args(["engine", "--faults", "--listen", listen]);
        if let Some(data) = data {
            command.arg("--data").arg(data);
        }
        let mut process = Process::start(command);
        let address = process.announced("listening on http://", LONG);
        Engine { process, address, key: String::new() }
    }

    pub fn make_workspace(&self, name: &str) -> String {
        let made = self.data("POST", "/v1/workspaces", "", Some(&json!({"name": name})));
        made["api_key"].as_str().expect("a workspace has a key").to_string()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn call(&self, method: &str, path: &str, bearer: &str, body: Option<&Value>) -> Answer {
        client::call(&self.address, &format!("Authorization: Bearer {bearer}"), method, path, body)
            .unwrap_or_else(|error| panic!("engine, {method} {path}: {error}\n{}", self.process.seen()))
    }

    /// The data of a call that must succeed.
    #[track_caller]
    pub fn data(&self, method: &str, path: &str, bearer: &str, body: Option<&Value>) -> Value {
        let answer = self.call(method, path, bearer, body);
        assert!(answer.status < 300, "engine, {method} {path}: {} {}", answer.status, answer.text);
        answer.json()["data"].take()
    }

    pub fn faults(&self, rules: Value) {
        self.data("POST", "/__faults", "", Some(&json!({"rules": rules})));
    }

    /// How many requests the rule number `at` has matched.
    pub fn matched(&self, at: usize) -> u64 {
        self.data("GET", "/__faults", "", None)["rules"][at]["seen"].as_u64().expect("a count")
    }

    /// One row of the workspace's agents.
    pub fn agent(&self, name: &str) -> Option<Value> {
        let answer = self.call("GET", &format!("/v1/agents/{name}"), &self.key, None);
        (answer.status == 200).then(|| answer.json()["data"].take())
    }

    /// Nodes that are registered on an open socket: (id, name).
    pub fn online_nodes(&self) -> Vec<(String, String)> {
        let nodes = self.data("GET", "/v1/nodes", &self.key, None);
        let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_string();
        let nodes = nodes.as_array().expect("a list").iter();
        nodes.filter(|node| node["status"] == "online").map(|node| (text(node, "id"), text(node, "name"))).collect()
    }

    /// An agent that is nobody's program: its token.
    pub fn stranger(&self, name: &str) -> String {
        let made = self.data("POST", "/v1/agents", &self.key, Some(&json!({"name": name})));
        made["token"].as_str().expect("an agent has a token").to_string()
    }

    /// A direct message.
    pub fn dm(&self, token: &str, to: &str, text: &str) {
        self.data("POST", "/v1/dm", token, Some(&json!({"to": to, "text": text})));
    }

    /// Messages for the owner of `token` that are not acknowledged.
    pub fn unacked(&self, token: &str) -> usize {
        self.data("GET", "/v1/deliveries", token, None).as_array().expect("a list").len()
    }

    /// Starts an action and waits for its end: the finished invocation.
    #[track_caller]
    pub fn invoke(&self, path: &str, action: &str, input: &Value) -> Value {
        let begun = self.data("POST", path, &self.key, Some(input));
        let id = begun["invocation_id"].as_str().expect("an id").to_string();
        let look = || self.data("GET", &format!("/v1/actions/{action}/invocations/{id}"), &self.key, None);
        until(
            LONG,
            &format!("the end of {action} {input}"),
            || look().to_string(),
            || Some(look()).filter(|row| row["status"] == "completed" || row["status"] == "failed"),
        )
    }

    pub fn spawn(&self, node: &str, name: &str, cli: &str) -> Value {
        self.invoke("/v1/agents/spawn", "spawn", &json!({"name": name, "cli": cli, "node": node}))
    }

    pub fn release(&self, name: &str) -> Value {
        self.invoke("/v1/agents/release", "release", &json!({"name": name}))
    }

    /// Ends it without a word.
    pub fn kill(mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(LONG);
    }
}
