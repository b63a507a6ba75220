//! `action.invoke`: what the engine asks this node to do, answered by exactly one result, and the same one when asked again.

use std::collections::{BTreeMap, VecDeque};

use log::Level;
use serde_json::Value;

use super::Broker;
use super::mutants::{Mutant, planted};
use super::ports::{Ms, Record, SpawnRequest};
use super::roster::{Asker, Phase};
use super::timers::Timer;
use crate::wire::fleet::RestartPolicy;
use crate::wire::node::{ActionInvoke, ActionOutcome, ActionResult};

/// Finished invocations are remembered at least this long, and at most so many.
const REMEMBERED_MS: Ms = 15 * 60_000;
const REMEMBERED_MAX: usize = 1024;

type Outcome = Result<Value, String>;

/// No handler lives here. The only error that the engine reads: it keeps the invocation, asks other nodes, and may well
/// bring it here again. So it ends nothing, and is not remembered.
pub(super) const UNAVAILABLE: &str = "handler_unavailable";

fn is_unavailable(outcome: &Outcome) -> bool {
    outcome.as_ref().is_err_and(|error| error == UNAVAILABLE)
}

#[derive(Debug)]
enum Progress {
    Open,
    Finished { outcome: Outcome, at: Ms },
}

#[derive(Debug, Default)]
pub struct Invocations {
    known: BTreeMap<String, Progress>,
    /// In order of finishing.
    finished: VecDeque<String>,
}

impl Invocations {
    fn finish(&mut self, id: &str, outcome: Outcome, now: Ms) {
        if is_unavailable(&outcome) {
            self.known.remove(id);
            return;
        }
        self.known.insert(id.to_string(), Progress::Finished { outcome, at: now });
        self.finished.retain(|known| known != id);
        self.finished.push_back(id.to_string());
        while self.finished.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.finished.pop_front() {
                self.known.remove(&oldest);
            }
        }
        while let Some(oldest) = self.finished.front() {
            match self.known.get(oldest) {
                Some(Progress::Finished { at, .. }) if *at + REMEMBERED_MS >= now => break,
                _ => {
                    let oldest = self.finished.pop_front().unwrap_or_default();
                    self.known.remove(&oldest);
                }
            }
        }
    }

    pub fn open(&self) -> Vec<String> {
        self.known.iter().filter(|(_, progress)| matches!(progress, Progress::Open)).map(|(id, _)| id.clone()).collect()
    }
}

/// Who carries an invocation out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    Spawn,
    Release,
    Sidecar,
    /// An action that an agent hosts: `handler_unavailable` would bring it straight back to this node.
    Unsupported,
    Nobody,
}

/// `handled`: the sidecar has a live handler of exactly this name. `hosted`: the engine names an agent.
fn hand_for(action: &str, handled: bool, hosted: bool) -> Hand {
    let spawns = action == "spawn" || action.starts_with("spawn:");
    match action {
        "release" => Hand::Release,
        _ if handled => Hand::Sidecar,
        _ if spawns => Hand::Spawn,
        _ if hosted => Hand::Unsupported,
        _ => Hand::Nobody,
    }
}

fn result(id: &str, outcome: &Outcome) -> ActionResult {
    ActionResult {
        id: None,
        invocation_id: id.to_string(),
        outcome: match outcome {
            Ok(output) => ActionOutcome::Output(output.clone()),
            Err(error) => ActionOutcome::Error(error.clone()),
        },
    }
}

/// The first non-blank text of these keys, at the top of the input and then inside its `agent` object.
fn text(input: &Value, keys: &[&str]) -> Option<String> {
    [Some(input), input.get("agent").filter(|agent| agent.is_object())].into_iter().flatten().find_map(|object| {
        keys.iter().find_map(|key| {
            object.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(str::to_string)
        })
    })
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|item| item.as_str().map(str::to_string)).collect()
}

fn field<'a>(input: &'a Value, keys: &[&str]) -> Option<&'a Value> {
    [input.get("agent").filter(|agent| agent.is_object()), Some(input)]
        .into_iter()
        .flatten()
        .find_map(|object| keys.iter().find_map(|key| object.get(key).filter(|value| !value.is_null())))
}

/// Reads the input of a spawn that the broker runs itself.
///
/// # Errors
/// The code that the engine's caller is told.
fn spawn_request(invoke: &ActionInvoke) -> Result<SpawnRequest, String> {
    let input = &invoke.input;
    let name = invoke
        .agent_name
        .clone()
        .map(|name| name.trim().to_string())
        .filter(|name| !name.is_empty())
        .or_else(|| text(input, &["name", "agent_name", "agent"]))
        .ok_or("spawn_missing_agent_name")?;
    if field(input, &["harnessId", "harness_id"]).is_some() {
        return Err("spawn_failed: harnessId is not supported by the broker; send harnessConfig".into());
    }
    let harness = field(input, &["harnessConfig", "harness_config"]);
    if harness.is_some_and(|harness| !harness.is_object()) {
        return Err("spawn_failed: harnessConfig is not an object".into());
    }
    if let Some(runtime) = harness.and_then(|harness| harness.get("runtime")).and_then(Value::as_str)
        && runtime != "pty"
    {
        return Err(format!("spawn_failed: harnessConfig runtime '{runtime}' cannot be started by this broker"));
    }
    let harness_text =
        |key: &str| harness.and_then(|harness| harness.get(key)).and_then(Value::as_str).map(str::to_string);
    let suffix = invoke.action.strip_prefix("spawn:").map(str::to_string).filter(|suffix| !suffix.is_empty());
    let named = text(input, &["cli", "command", "provider"]);
    let cli = harness_text("command")
        .filter(|_| named.is_none() && suffix.is_none())
        .or(named)
        .or(suffix)
        .ok_or("spawn_missing_cli")?;
    let mut channels = texts(input.get("channels"));
    channels.extend(text(input, &["channel"]));
    channels.dedup();
    let args = if harness.is_some() { harness.and_then(|h| h.get("args")) } else { input.get("args") };
    let env = harness
        .and_then(|harness| harness.get("env"))
        .and_then(Value::as_object)
        .map(|env| env.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect())
        .unwrap_or_default();
    let token = ["/agent/token", "/agent/relay_key", "/agent/api_key", "/token"]
        .iter()
        .find_map(|pointer| input.pointer(pointer).and_then(Value::as_str).filter(|token| !token.trim().is_empty()));
    Ok(SpawnRequest {
        name,
        cli,
        label: None,
        args: texts(args),
        model: text(input, &["model"]),
        cwd: text(input, &["cwd"]).or_else(|| harness_text("cwd")),
        team: text(input, &["team"]),
        task: text(input, &["task", "initial_task", "prompt"]),
        channels,
        env,
        resumes: harness_text("sessionId").is_none(),
        session_ref: harness_text("sessionId").or_else(|| text(input, &["session_ref"])),
        skip_relay_prompt: field(input, &["skip_relay_prompt"]).and_then(Value::as_bool).unwrap_or(false),
        idle_threshold_secs: None,
        agent_token: token.map(super::ports::Secret::new),
        result_schema: input
            .get("agent_result_schema")
            .or_else(|| input.get("agentResultSchema"))
            .filter(|v| !v.is_null())
            .cloned(),
        restart_policy: field(input, &["restart_policy", "restartPolicy"])
            .filter(|policy| !policy.is_null())
            .map(|policy| RestartPolicy::of_json(policy).ok_or("spawn_failed: invalid restart_policy"))
            .transpose()?,
        sidecar: None,
        invocation_id: Some(invoke.invocation_id.clone()),
        ignores_drafts: field(input, &["draft_safety", "draftSafety"]).and_then(Value::as_bool) == Some(false),
        headless: false,
        app_server: None,
        ..SpawnRequest::default()
    })
}

impl Broker {
    pub(super) fn on_invoke(&mut self, invoke: ActionInvoke) {
        if self.stopping.is_some() {
            return;
        }
        let id = invoke.invocation_id.clone();
        match self.invocations.known.get(&id) {
            Some(Progress::Finished { outcome, .. }) => {
                let again = match outcome.as_ref().ok().and_then(|output| self.lives_since(output)) {
                    // Whether it will run is not settled, and if not, the report is still wanted: else the identity of before
                    // would keep its token. The engine asks again with the inventory that follows either.
                    Some(name) if self.roster.named(&name).is_some_and(|agent| !agent.ran) => return,
                    Some(name) => Err(format!("release_superseded: agent '{name}' was released, and runs again since")),
                    None => outcome.clone(),
                };
                self.send_result(result(&id, &again));
                return;
            }
            Some(Progress::Open) if !(planted(Mutant::HandlerAskedAgain) && self.sidecar.handles(&invoke.action)) => {
                return;
            }
            _ => {}
        }
        self.invocations.known.insert(id.clone(), Progress::Open);
        let hosted = invoke.agent_id.is_some() || invoke.agent_name.is_some();
        match hand_for(&invoke.action, self.sidecar.handles(&invoke.action), hosted) {
            Hand::Spawn => self.spawn_by_invoke(&invoke),
            Hand::Release => self.release_by_invoke(&invoke),
            Hand::Sidecar => self.invoke_handler(invoke),
            Hand::Unsupported => {
                self.finish_invocation(&id, Err(format!("agent_action_unsupported: {}", invoke.action)));
            }
            Hand::Nobody => self.finish_invocation(&id, Err(UNAVAILABLE.into())),
        }
    }

    /// The agent of this report of a release, if it lives again: the engine would take the report for this life's, unbind it
    /// and end its token (node-control §6.3). Only a restart between the release and its report leads here.
    fn lives_since(&self, output: &Value) -> Option<String> {
        let name = output.get("released").and(output.get("name"))?.as_str()?;
        let agent = self.roster.named(name)?;
        // One that could not be registered holds no token that the report could end.
        let known_there = agent.token.is_some()
            || matches!(agent.phase, Phase::Registering { sent: true, .. } | Phase::HttpRegistering);
        known_there.then(|| name.to_string())
    }

    fn spawn_by_invoke(&mut self, invoke: &ActionInvoke) {
        let id = invoke.invocation_id.clone();
        match spawn_request(invoke) {
            Ok(request) => match crate::wire::names::agent_name_fault(&request.name) {
                Some(fault) => self.finish_invocation(&id, Err(format!("spawn_failed: {fault}"))),
                None => self.spawn(request, Asker::Invocation(id)),
            },
            Err(error) => self.finish_invocation(&id, Err(error)),
        }
    }

    fn release_by_invoke(&mut self, invoke: &ActionInvoke) {
        let id = invoke.invocation_id.clone();
        let name = invoke
            .agent_name
            .clone()
            .filter(|name| !name.trim().is_empty())
            .or_else(|| text(&invoke.input, &["name", "agent_name", "agent"]))
            .or_else(|| self.roster.with_id(invoke.agent_id.as_deref()?).map(|agent| agent.name.clone()));
        let Some(name) = name else {
            self.finish_invocation(&id, Err("release_missing_agent_name".into()));
            return;
        };
        let reason = text(&invoke.input, &["reason"]);
        let Err(_) = self.release(&name, reason, Asker::Invocation(id.clone())) else { return };
        let outcome = if self.is_self(&name) || self.tombstones.contains(&name) {
            Ok(serde_json::json!({"released": true, "name": name}))
        } else {
            Err(format!("release_failed: unknown agent '{name}'"))
        };
        self.finish_invocation(&id, outcome);
    }

    /// Answers an invocation, once; the answer is remembered.
    pub(super) fn finish_invocation(&mut self, id: &str, outcome: Outcome) {
        if !matches!(self.invocations.known.get(id), Some(Progress::Open)) {
            return;
        }
        if self.sidecar.forget(id) {
            self.timers.cancel(&Timer::Handler(id.to_string()));
        }
        if self.config.durable && !is_unavailable(&outcome) {
            let (output, error) = match &outcome {
                Ok(output) => (Some(output.clone()), None),
                Err(error) => (None, Some(error.clone())),
            };
            self.journal(Record::Invocation { invocation_id: id.to_string(), output, error, at_unix: self.now.unix });
        }
        if let Err(error) = &outcome {
            self.log(Level::Info, format!("invocation {id} answered with an error: {error}"));
        }
        let frame = result(id, &outcome);
        self.invocations.finish(id, outcome, self.now.mono);
        self.send_result(frame);
    }

    /// A finished invocation of an earlier life: asked again, it gets the same answer.
    pub(super) fn restore_invocation(&mut self, id: &str, output: Option<Value>, error: Option<String>) {
        let outcome = error.map_or_else(|| Ok(output.unwrap_or(Value::Null)), Err);
        self.invocations.finish(id, outcome, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn invoke(action: &str, input: Value) -> ActionInvoke {
        ActionInvoke { invocation_id: "i".into(), action: action.into(), input, agent_id: None, agent_name: None }
    }

    #[track_caller]
    fn check(action: &str, input: Value, expected: Result<(&str, &str), &str>) {
        let request = spawn_request(&invoke(action, input));
        let seen = request.as_ref().map(|r| (r.name.as_str(), r.cli.as_str())).map_err(String::as_str);
        assert_eq!(seen, expected);
    }

    #[test]
    fn f1_the_cli_comes_from_the_input_or_the_action() {
        check("spawn:stub", json!({"name": "al"}), Ok(("al", "stub")));
        check("spawn:stub", json!({"name": "al", "cli": "codex"}), Ok(("al", "codex")));
        check("spawn", json!({"agent": {"name": "al", "provider": "gemini"}}), Ok(("al", "gemini")));
        check("spawn", json!({"name": "al", "harnessConfig": {"command": "my cli"}}), Ok(("al", "my cli")));
        check("spawn", json!({"agent_name": " al ", "cli": "", "command": "x"}), Ok(("al", "x")));
    }

    #[test]
    fn f30_every_action_has_one_hand() {
        let rows = [
            ("spawn", false, false, Hand::Spawn),
            ("spawn:codex", false, true, Hand::Spawn),
            ("spawn", true, false, Hand::Sidecar),
            ("spawn:codex", true, true, Hand::Sidecar),
            ("release", false, false, Hand::Release),
            ("release", true, true, Hand::Release),
            ("deploy", true, false, Hand::Sidecar),
            ("deploy", true, true, Hand::Sidecar),
            ("deploy", false, true, Hand::Unsupported),
            ("deploy", false, false, Hand::Nobody),
            ("spawner", false, false, Hand::Nobody),
        ];
        for (action, handled, hosted, hand) in rows {
            assert_eq!(hand_for(action, handled, hosted), hand, "{action}, handled {handled}, hosted {hosted}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        check("spawn:x", json!({}), Err("spawn_missing_agent_name"));
        check("spawn", json!({"name": "al"}), Err("spawn_missing_cli"));
        check("spawn:", json!({"name": "al"}), Err("spawn_missing_cli"));
        let refused = spawn_request(&invoke("spawn:x", json!({"name": "al", "harnessId": "h"})));
        assert!(refused.is_err_and(|error| error.starts_with("spawn_failed: harnessId")));
    }

    #[test]
    fn fleet_spawn_input_is_honoured() {
        let request = spawn_request(&invoke(
            "spawn:codex",
            json!({"name": "al", "args": ["a"], "cwd": "/x", "channels": ["c1"], "channel": "c2", "team": "t",
                   "session_ref": "s1", "task": "do it", "agent": {"token": "at_live_x"}}),
        ))
        .expect("a request");
        assert_eq!(request.args, ["a"]);
        assert_eq!(request.channels, ["c1", "c2"]);
        assert_eq!(request.session_ref.as_deref(), Some("s1"));
        assert_eq!(request.task.as_deref(), Some("do it"));
        assert_eq!(request.agent_token.map(|token| token.expose().to_string()).as_deref(), Some("at_live_x"));
    }

    #[test]
    fn the_directory_of_a_harness_config_is_the_one_of_a_request_without() {
        for (cwd, expected) in [(json!("/asked"), "/asked"), (json!(null), "/default"), (json!(" "), "/default")] {
            let config = json!({"runtime": "pty", "command": "x", "cwd": "/default"});
            let input = json!({"name": "al", "cwd": cwd, "harnessConfig": config});
            let request = spawn_request(&invoke("spawn:x", input)).expect("a request");
            assert_eq!(request.cwd.as_deref(), Some(expected));
        }
    }
}
