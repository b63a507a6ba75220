//! A spawn from request to running program: prepared, registered, started; or one error with nothing left behind.

use log::Level;
use serde_json::Value;

pub(super) use super::ports::SPAWN_MS;
use super::ports::{
    AgentCommand, EngineCall, EngineError, Generation, InboundMode, Launch, Ms, SpawnRequest, Variables,
};
use super::roster::{Agent, Asker, Delivery, Phase, Source};
use super::timers::Timer;
use super::{Awaited, Broker, Effect, answers};
use crate::wire::events::Event;
use crate::wire::names::family_name;
use crate::wire::node::DeliveryMode;

/// Default silence before `agent_idle`, in seconds.
const IDLE_SECS: u64 = 30;

/// A program of one's own that fails within this time is a failed spawn (hardening R8).
pub(super) const STABLE_MS: Ms = 250;

/// Variables that never reach a child unless the spawn request supplies them: keys of the broker, and the identity that a
/// broker started by an agent would pass on.
const STRIPPED_ENV: &[&str] = &[
    "RELAY_BROKER_API_KEY",
    "RELAY_NODE_TOKEN",
    "RELAY_AGENT_TOKEN",
    "RELAY_AGENT_NAME",
    "RELAY_AGENT_TYPE",
    "RELAY_STRICT_AGENT_NAME",
    "RELAY_SKIP_BOOTSTRAP",
    // A default that names none of the workspaces that were joined.
    "RELAY_DEFAULT_WORKSPACE",
    "RELAY_WORKSPACE_ID",
    "RELAYFILE_WORKSPACE",
    "AGENT_RELAY_RESULT_TOKEN",
    "AGENT_RELAY_RESULT_SCHEMA",
    "AGENT_RELAY_APP_SERVER_AUTH_TYPE",
    "AGENT_RELAY_APP_SERVER_AUTH_TOKEN",
    "AGENT_RELAY_APP_SERVER_AUTH_USERNAME",
    "AGENT_RELAY_APP_SERVER_AUTH_PASSWORD",
    "CLAUDECODE",
];

/// Harnesses that the origin header of an agent may name, by their executables.
const KNOWN_HARNESSES: &[(&str, &str)] = &[
    ("claude", "claude-code"),
    ("codex", "codex"),
    ("cursor", "cursor"),
    ("cursor-agent", "cursor"),
    ("gemini", "gemini-cli"),
    ("aider", "aider"),
    ("opencode", "opencode"),
    ("goose", "goose"),
    ("droid", "droid"),
    ("amp", "amp"),
    ("copilot", "github-copilot"),
    ("zed", "zed"),
];

impl Broker {
    /// Takes on a spawn. The answer comes when the program runs, or has failed to.
    pub(super) fn spawn(&mut self, request: SpawnRequest, asker: Asker) {
        let name = request.name.clone();
        if self.stopping.is_some() {
            self.answer_spawn_error(asker, &name, "the broker is shutting down");
            return;
        }
        if request.sidecar.is_some_and(|sidecar| !self.sidecar.is(sidecar)) {
            self.answer_spawn_error(asker, &name, super::sidecar::SUPERSEDED);
            return;
        }
        if self.is_self(&name) {
            self.answer_spawn_error(asker, &name, &format!("'{name}' is the broker's own name; choose another"));
            return;
        }
        if self.roster.named(&name).is_some() {
            self.answer_spawn_error(asker, &name, &format!("agent '{name}' already exists"));
            return;
        }
        let channels =
            if request.channels.is_empty() { self.config.default_channels.clone() } else { request.channels.clone() };
        let from_engine = matches!(asker, Asker::Invocation(_));
        let invocation_id = match &asker {
            Asker::Invocation(id) => Some(id.clone()),
            Asker::Api(_) => request.invocation_id.clone().filter(|id| !id.trim().is_empty()),
        };
        let now = self.now;
        let task = self.initial_task(&request);
        let session = request.app_server.as_ref().map(|server| server.session_id.clone());
        let result_token = request.result_schema.as_ref().map(|_| super::ports::Secret::new(self.ids.fresh("arr_")));
        let mode_revision = self.next_mode_revision();
        let generation = self.roster.insert(|generation| Agent {
            result_token,
            generation,
            name: name.clone(),
            session_id: session.or_else(|| request.session_ref.clone()),
            request: request.clone(),
            phase: Phase::Preparing,
            asker: Some(asker),
            from_engine,
            invocation_id,
            agent_id: None,
            token: None,
            pre_registered: false,
            bound: false,
            warning: None,
            channels,
            mode: InboundMode::AutoInject,
            mode_revision,
            size_owner: None,
            pid: None,
            ran: false,
            ready: false,
            started_at_unix: now.unix,
            last_activity_unix: now.unix,
            state: "working",
            task,
            queue: Default::default(),
            in_flight: None,
            verifying: Vec::new(),
            silent_since_unix: None,
            verified_early: Vec::new(),
            backing_off: false,
            early: Default::default(),
            early_overflowed: false,
            looking_up: false,
            exit_reason: None,
            last_words: Default::default(),
            restarts: Default::default(),
            release_waiters: Vec::new(),
            release_reason: None,
            summary: None,
            context_pct: None,
            verdict: Default::default(),
        });
        self.launch(generation);
    }

    /// The task of the request, as the first message of a life.
    pub(super) fn initial_task(&mut self, request: &SpawnRequest) -> Option<Delivery> {
        let task = request.task.as_ref().filter(|task| !task.trim().is_empty())?;
        let mut parts = notes_for(request);
        parts.push(task);
        let body = parts.join("\n\n");
        Some(Delivery {
            delivery_id: self.ids.fresh("del_"),
            event_id: self.ids.fresh("init_"),
            from: "broker".into(),
            target: request.name.clone(),
            body,
            thread_id: None,
            priority: 2,
            mode: DeliveryMode::Wait,
            workspace: None,
            source: Source::Task,
            queued_at_unix: self.now.unix,
            attempts: 0,
            last_error: None,
            exempt: true,
        })
    }

    /// Starts the thread of a life, which looks for the program.
    pub(super) fn launch(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        let request = &agent.request;
        let launch = Launch {
            generation,
            name: agent.name.clone(),
            cli: request.cli.clone(),
            args: request.args.clone(),
            model: request.model.clone(),
            session_ref: request.session_ref.clone(),
            resumes: request.resumes,
            cwd: request.cwd.clone(),
            skip_relay_prompt: request.skip_relay_prompt,
            idle_threshold_secs: request.idle_threshold_secs.unwrap_or(IDLE_SECS),
            ignores_drafts: request.ignores_drafts,
            headless: request.headless,
            app_server: request.app_server.as_deref().cloned(),
            bare: request.bare,
        };
        self.timers.set(Timer::Spawn(generation), self.now.mono + SPAWN_MS);
        self.out.push(Effect::Launch(launch));
    }

    /// Registered, or on purpose not: start the program with its identity.
    pub(super) fn start_program(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.phase = Phase::Starting;
        let pre_registered = agent.token.is_some() && agent.request.tells_token();
        let Some(agent) = self.roster.get(generation) else { return };
        let set = self.child_env(agent);
        let remove = STRIPPED_ENV
            .iter()
            .filter(|name| !set.iter().any(|(given, _)| given == *name))
            .map(|name| name.to_string())
            .collect();
        self.command(generation, AgentCommand::Start { set: Variables(set), remove, pre_registered });
    }

    fn child_env(&self, agent: &Agent) -> Vec<(String, String)> {
        let config = &self.config;
        let key = config.home().key.expose();
        let mut set: Vec<(String, String)> = Vec::new();
        let mut put = |name: &str, value: &str| {
            set.retain(|(given, _)| given != name);
            set.push((name.to_string(), value.to_string()));
        };
        for name in ["AGENT_RELAY_WORKSPACE_KEY", "RELAY_WORKSPACE_KEY", "RELAY_API_KEY"] {
            put(name, key);
        }
        put("RELAY_WORKSPACES_JSON", &config.workspaces_json());
        if let Some(id) = config.default_workspace_id() {
            put("RELAY_DEFAULT_WORKSPACE", &id);
            put("RELAY_WORKSPACE_ID", &id);
        }
        if let Some(base) = &config.base_url {
            put("RELAY_BASE_URL", base);
        }
        if let Some(actor) = origin_actor(&agent.request).filter(|_| !agent.request.headless) {
            put("AGENT_RELAY_ORIGIN_ACTOR", &actor);
        }
        for (name, value) in &agent.request.env {
            put(name, value);
        }
        // The contract of this very spawn, whatever a configuration carries along.
        if !config.result_url.is_empty() {
            put("AGENT_RELAY_RESULT_URL", &config.result_url);
        }
        if let (Some(token), Some(schema)) = (&agent.result_token, &agent.request.result_schema) {
            put("AGENT_RELAY_RESULT_TOKEN", token.expose());
            put("AGENT_RELAY_RESULT_SCHEMA", &schema.to_string());
        }
        if agent.request.tells_token() {
            if let Some(token) = &agent.token {
                put("RELAY_AGENT_TOKEN", token.expose());
            }
            put("RELAY_AGENT_NAME", &agent.name);
            put("RELAY_AGENT_TYPE", "agent");
            put("RELAY_STRICT_AGENT_NAME", "1");
        }
        put("CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION", "false");
        put("DISABLE_AUTOUPDATER", "1");
        set
    }

    /// The program runs, or, without a terminal, waits for its prompt.
    pub(super) fn on_started(&mut self, generation: Generation, pid: Option<u32>) {
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.pid = pid;
        agent.started_at_unix = now;
        agent.last_activity_unix = now;
        if agent.phase == Phase::Releasing {
            return;
        }
        agent.phase = Phase::Running;
        let again = std::mem::replace(&mut agent.ran, true);
        agent.restarts.up_since = Some(self.now.mono);
        self.timers.cancel(&Timer::Spawn(generation));
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let event = Event::AgentSpawned {
            name: agent.name.clone(),
            runtime: agent.request.runtime().into(),
            provider: agent.request.provider(),
            cli: agent.request.row_cli(),
            model: agent.request.model.clone(),
            session_id: agent.session_id.clone(),
            pid,
            source: if agent.from_engine { "relaycast_ws".into() } else { "http_api".into() },
            pre_registered: agent.pre_registered,
            registration_warning: agent.warning.clone(),
        };
        let (name, channels) = (agent.name.clone(), agent.channels.clone());
        // Who sees the terminal sees an early end too, and must not wait for the rest of the program.
        let may_end_at_once = pid.is_some() && agent.request.app_server.is_none() && !agent.request.bare;
        self.tombstones.retain(|gone| *gone != name);
        if again {
            self.restarted(generation);
        } else {
            self.counters.spawned += 1;
            self.event(event);
        }
        self.owes_heartbeat = true;
        if again {
            self.send_inventory();
        } else if may_end_at_once {
            self.timers.set(Timer::Spawn(generation), self.now.mono + STABLE_MS);
        } else {
            self.answer_spawn(generation);
        }
        if let Some(agent) = self.roster.get_mut(generation)
            && agent.agent_id.is_none()
            && agent.token.is_some()
        {
            // Registered by its owner: until its id is known it cannot be listed, and the engine takes it for gone.
            agent.looking_up = true;
            self.call_engine(EngineCall::LookUpAgent { name: name.clone() }, Awaited::LookUp(generation));
        }
        for channel in channels {
            self.settle_membership(generation, &channel);
        }
        self.adopt_restored(generation);
        self.take_early(generation);
        self.type_next(generation);
    }

    /// The spawn has succeeded: whoever waits for it is told.
    pub(super) fn answer_spawn(&mut self, generation: Generation) {
        if let Some(asker) = self.roster.get_mut(generation).and_then(|agent| agent.asker.take()) {
            // The inventory completes an invocation at the engine, so it goes before the result.
            self.send_inventory();
            self.tell_spawned(generation, asker);
        }
    }

    /// The answer alone: of a program that has ended already nothing is listed.
    pub(super) fn tell_spawned(&mut self, generation: Generation, asker: Asker) {
        self.timers.cancel(&Timer::Spawn(generation));
        let Some(agent) = self.roster.get(generation) else { return };
        match asker {
            Asker::Api(ticket) => {
                let answer = answers::spawned(agent);
                self.reply(ticket, answer);
            }
            Asker::Invocation(id) => {
                let output = serde_json::json!({"spawned": true, "name": agent.name});
                self.finish_invocation(&id, Ok(output));
            }
        }
    }

    /// What came for an agent while it was not there yet.
    pub(super) fn take_early(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        // What is new may have overtaken the replay of what is old: the lowest number is the first.
        let mut early = Vec::from(std::mem::take(&mut agent.early));
        early.sort_by_key(|frame| frame.seq);
        let overflowed = std::mem::take(&mut agent.early_overflowed);
        for frame in early {
            self.on_deliver(frame);
        }
        if overflowed && self.link.is_open() {
            self.send_register();
        }
    }

    /// The engine's id of an agent that came with its own token. If it does not tell, the first frame does.
    pub(super) fn on_looked_up(&mut self, generation: Generation, outcome: Result<Value, EngineError>) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.looking_up = false;
        self.take_id(generation, outcome);
        self.adopt_restored(generation);
        self.take_early(generation);
    }

    fn take_id(&mut self, generation: Generation, outcome: Result<Value, EngineError>) {
        let Some(agent) = self.roster.get(generation).filter(|agent| agent.agent_id.is_none()) else { return };
        let name = agent.name.clone();
        let id = match outcome {
            Ok(data) => data.get("id").and_then(Value::as_str).unwrap_or_default().to_string(),
            Err(error) => {
                self.log(Level::Warn, format!("the engine does not tell the id of '{name}': {error}"));
                return;
            }
        };
        if id.is_empty() || self.roster.with_id(&id).is_some() {
            return;
        }
        if let Some(agent) = self.roster.get_mut(generation) {
            agent.agent_id = Some(id.clone());
        }
        self.names_identity(&id, &name);
        self.owes_inventory = true;
    }

    pub(super) fn on_spawn_due(&mut self, generation: Generation) {
        if self.roster.get(generation).is_some_and(|agent| agent.ran && agent.asker.is_some()) {
            // It has stayed up.
            self.answer_spawn(generation);
            return;
        }
        self.spawn_failed(generation, "spawn_timeout: the agent was not running within 22 s");
    }

    /// The spawn cannot succeed: one error, and nothing of it stays, neither here nor at the engine.
    pub(super) fn spawn_failed(&mut self, generation: Generation, error: &str) {
        self.abandon_request(generation);
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let (name, asker) = (agent.name.clone(), agent.asker.take());
        self.log(Level::Warn, format!("spawn of '{name}' failed: {error}"));
        if let Some(asker) = asker {
            self.answer_spawn_error(asker, &name, error);
        }
        // Ends the agent's thread; a program that runs already is ended by it.
        self.command(generation, AgentCommand::Release);
        self.start_failed(generation, error);
    }

    /// The thread has ended by itself with this error.
    pub(super) fn spawn_refused(&mut self, generation: Generation, error: &str) {
        self.abandon_request(generation);
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let (name, asker) = (agent.name.clone(), agent.asker.take());
        if let Some(asker) = asker {
            self.answer_spawn_error(asker, &name, error);
        }
        self.start_failed(generation, error);
    }

    pub(super) fn answer_spawn_error(&mut self, asker: Asker, name: &str, error: &str) {
        match asker {
            Asker::Api(ticket) => self.reply(ticket, answers::spawn_error(name, error)),
            Asker::Invocation(id) => self.finish_invocation(&id, Err(format!("spawn_failed: {error}"))),
        }
    }
}

/// How to manage workers, for models that do not find it out by themselves.
const WORKERS: &str = "Work that you hand to others goes through Agent Relay, not through subagents of your own: start a \
                       worker with `add_agent` (name, cli, task), wait for its messages or look for missed ones with \
                       `check_inbox`, and end it with `remove_agent` (name) as soon as its work is done.";

/// How to answer, for a CLI that otherwise answers on its screen.
const TOOLS: &str = "Answer messages of other agents with the MCP tools of `agent-relay` (`send_dm`, `post_message`): text \
                     in this terminal reaches nobody.";

/// What stands in front of the task: for small models, and for gemini; not for those that get nothing of the relay.
fn notes_for(request: &SpawnRequest) -> Vec<&'static str> {
    // A session that was there before us has no tools of ours.
    if request.skip_relay_prompt || request.app_server.is_some() {
        return Vec::new();
    }
    let model = request.model.as_deref().unwrap_or_default().to_ascii_lowercase();
    let small = ["haiku", "-mini", "-flash", "small"].iter().any(|part| model.contains(part));
    let gemini = family_name(&request.cli) == "gemini";
    [(small, WORKERS), (gemini, TOOLS)].into_iter().filter_map(|(wanted, note)| wanted.then_some(note)).collect()
}

fn origin_actor(request: &SpawnRequest) -> Option<String> {
    let word = request.shown_cli().split_whitespace().next()?;
    let base = word.rsplit('/').next()?.split(':').next()?.to_ascii_lowercase();
    let (_, harness) = KNOWN_HARNESSES.iter().find(|(name, _)| *name == base)?;
    Some(match &request.model {
        Some(model) => format!("agent-relay-cli/agent/{harness}@{model}"),
        None => format!("agent-relay-cli/agent/{harness}"),
    })
}
