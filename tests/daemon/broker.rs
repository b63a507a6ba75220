//! A broker under test, started as a client would start it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{self, Answer, Events};
use crate::engine::Engine;
use crate::house::House;
use crate::process::Process;
use crate::until::{LONG, look, until};

pub const KEY: &str = "br_00112233445566778899aabbccddeeff";
/// What clients allow for a stop, and the broker promises to keep.
pub const STOP: Duration = Duration::from_secs(4);

/// The command line and environment of a broker to be.
pub struct Start {
    house: Arc<House>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
}

impl Start {
    /// At the engine `url`, with the workspace of `key` unless that is blank.
    pub fn at(house: &Arc<House>, url: &str, key: &str) -> Start {
        Start { house: house.clone(), args: vec!["init".into()], env: Vec::new(), cwd: house.path("work") }
            .env("RELAY_BROKER_API_KEY", KEY)
            .env("RELAY_BASE_URL", url)
            .env("RELAY_WORKSPACE_KEY", key)
    }

    pub fn on(house: &Arc<House>, engine: &Engine) -> Start {
        Start::at(house, &engine.url(), &engine.key)
    }

    pub fn arg(mut self, arg: &str) -> Start {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Start {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn cwd(mut self, name: &str) -> Start {
        self.cwd = self.house.dir(name);
        self
    }

    pub fn command(&self) -> Command {
        let mut command = self.house.command(&self.cwd);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// For a start that must fail: exit code and stderr.
    #[track_caller]
    pub fn fails(&self) -> (i32, String) {
        let mut process = Process::start(self.command());
        let (code, _) = process.wait(LONG);
        (code.unwrap_or_else(|| panic!("ended by a signal\n{}", process.seen())), process.err())
    }

    /// As soon as its port is known.
    #[track_caller]
    pub fn listening(self) -> Broker {
        let process = Process::start(self.command());
        self.of(process)
    }

    /// A process that was started with this command line.
    #[track_caller]
    pub fn of(self, mut process: Process) -> Broker {
        let address = process.announced("API listening on http://", LONG);
        Broker { house: self.house, process, address, cwd: self.cwd, events: None }
    }

    /// As soon as it serves.
    #[track_caller]
    pub fn ready(self) -> Broker {
        let mut broker = self.listening();
        broker.until_ready();
        broker
    }

    /// As soon as the engine knows it.
    #[track_caller]
    pub fn online(self) -> Broker {
        let broker = self.ready();
        broker.until_online();
        broker
    }
}

pub struct Broker {
    pub house: Arc<House>,
    pub process: Process,
    pub address: String,
    pub cwd: PathBuf,
    events: Option<Events>,
}

impl Broker {
    #[track_caller]
    pub fn until_ready(&mut self) {
        let served = look(LONG, || {
            let answer = self.try_call("GET", "/api/session", None).filter(|answer| answer.status == 200);
            answer.map(|_| true).or_else(|| self.process.ended().map(|_| false))
        });
        assert_eq!(served, Some(true), "it does not come to serve\n{}", self.seen());
        self.events = Some(Events::collect(&self.address, KEY).expect("the event feed"));
    }

    /// Code of the Close frame that ended the event feed.
    #[track_caller]
    pub fn until_feed_closed(&self) -> Option<u16> {
        self.until("the end of the event feed", || self.events.as_ref().and_then(Events::closed))
    }

    pub fn seen(&self) -> String {
        let events = self.events();
        let events: Vec<String> = events[events.len().saturating_sub(30)..].iter().map(Value::to_string).collect();
        format!("{}-- events (end):\n{}", self.process.seen(), events.join("\n"))
    }

    #[track_caller]
    pub fn until<T>(&self, what: &str, at: impl FnMut() -> Option<T>) -> T {
        until(LONG, what, || self.seen(), at)
    }

    #[track_caller]
    pub fn within<T>(&self, limit: Duration, what: &str, at: impl FnMut() -> Option<T>) -> T {
        until(limit, what, || self.seen(), at)
    }

    pub fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Answer> {
        client::call(&self.address, &format!("X-API-Key: {KEY}"), method, path, body).ok()
    }

    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        match client::call(&self.address, &format!("X-API-Key: {KEY}"), method, path, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path}: {error}\n{}", self.seen()),
        }
    }

    /// The body of a call that must be answered with 200.
    #[track_caller]
    pub fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = self.call(method, path, body);
        assert_eq!(answer.status, 200, "{method} {path}: {}\n{}", answer.text, self.seen());
        answer.json()
    }

    pub fn status(&self) -> Value {
        self.ok("GET", "/api/status", None)
    }

    #[track_caller]
    pub fn until_online(&self) {
        self.until_node("online");
    }

    #[track_caller]
    pub fn until_node(&self, state: &str) {
        self.until(&format!("node state {state}"), || (self.status()["node"]["state"] == state).then_some(()));
    }

    pub fn node_name(&self) -> String {
        self.status()["node"]["name"].as_str().expect("a name").to_string()
    }

    pub fn events(&self) -> Vec<Value> {
        self.events.as_ref().map(Events::all).unwrap_or_default()
    }

    /// Events of a kind about an agent.
    pub fn told(&self, kind: &str, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == kind && event["name"] == name).collect()
    }

    #[track_caller]
    pub fn until_told(&self, kind: &str, name: &str) -> Value {
        self.until(&format!("event {kind} of {name}"), || self.told(kind, name).into_iter().next())
    }

    pub fn spawn_with(&self, body: &Value) -> Answer {
        self.call("POST", "/api/spawn", Some(body))
    }

    /// Starts the program that writes down what it reads: its pid.
    #[track_caller]
    pub fn spawn(&self, name: &str) -> u32 {
        self.spawn_program(name, &self.house.agent())
    }

    #[track_caller]
    pub fn spawn_program(&self, name: &str, cli: &str) -> u32 {
        let answer = self.ok("POST", "/api/spawn", Some(&json!({"name": name, "cli": cli})));
        assert_eq!(answer["success"], true, "{answer}");
        answer["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid")
    }

    /// Names of the agents that are listed.
    pub fn listed(&self) -> Vec<String> {
        let answer = self.ok("GET", "/api/spawned", None);
        let rows = answer["agents"].as_array().expect("a list").iter();
        rows.map(|row| row["name"].as_str().expect("a name").to_string()).collect()
    }

    /// The environment that a listed agent was given.
    #[track_caller]
    pub fn environment_of(&self, name: &str) -> BTreeMap<String, String> {
        self.until(&format!("the environment of {name}"), || {
            let agents = self.ok("GET", "/api/spawned", None)["agents"].take();
            let row = agents.as_array()?.iter().find(|row| row["name"] == name)?;
            self.house.environment_of(name, u32::try_from(row["pid"].as_u64()?).ok()?)
        })
    }

    /// The token that a listed agent was given.
    #[track_caller]
    pub fn token_of(&self, name: &str) -> String {
        let mut environment = self.environment_of(name);
        environment.remove("RELAY_AGENT_TOKEN").unwrap_or_else(|| panic!("{name} has no token: {environment:?}"))
    }

    /// How often `agent` has read a line with this text.
    pub fn times_read(&self, agent: &str, text: &str) -> usize {
        self.house.read_by(agent).lines().filter(|line| line.contains(text)).count()
    }

    #[track_caller]
    pub fn until_read(&self, agent: &str, text: &str) {
        self.until(&format!("{text:?} read by {agent}"), || (self.times_read(agent, text) > 0).then_some(()));
    }

    /// SIGTERM; code and time until the end.
    #[track_caller]
    pub fn stop(&mut self) -> (Option<i32>, Duration) {
        self.process.signal(Signal::TERM);
        self.process.wait(LONG)
    }

    /// `connection.json` of a broker that keeps its state here.
    pub fn connection_file(&self) -> PathBuf {
        self.cwd.join(".agentworkforce/relay/connection.json")
    }
}
