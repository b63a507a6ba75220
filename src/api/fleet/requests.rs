//! What a sidecar asks for: from an envelope to the call that the core takes, or to the reason why not, which names the
//! member at fault. Where an HTTP route does the same its form is used, so that the checks are the same.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::api::forms;
use crate::core::ports::{ApiCall, SidecarGeneration};
use crate::http::Response;
use crate::wire::fleet::{Envelope, Manifest, RestartPolicy, Supervision};
use crate::wire::node::{ActionOutcome, Capability};

/// What is to be done about a frame.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// Answered on the spot.
    Hello,
    Call(Box<ApiCall>),
}

/// # Errors
/// The message of a `frame_failed`.
pub fn request(envelope: &Envelope, sidecar: SidecarGeneration) -> Result<Request, String> {
    let payload = Members::of(&envelope.payload, "payload", "")?;
    let name = || payload.required::<String>("name");
    let call = match envelope.kind.as_str() {
        "hello" => {
            payload.optional::<String>("client_name")?;
            payload.optional::<String>("client_version")?;
            return Ok(Request::Hello);
        }
        "register_node" => {
            let supervision = payload.object("supervision")?.map(|members| supervision(&members)).transpose()?;
            let manifest = manifest(&payload.object("manifest")?.ok_or("missing field `manifest`")?)?;
            ApiCall::RegisterNode { sidecar, manifest, supervision }
        }
        "register_handlers" => {
            let names: Vec<String> = payload.required("names")?;
            let names = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).map(Into::into).collect();
            ApiCall::RegisterHandlers { sidecar, names }
        }
        "handler_result" => handler_result(&payload, sidecar)?,
        "deregister_node" => ApiCall::DeregisterNode { sidecar },
        "spawn_agent" => spawn_agent(&payload, sidecar)?,
        "release_agent" => ApiCall::Release { name: name()?, reason: payload.filled(&["reason"])? },
        "send_input" => ApiCall::Type { name: name()?, bytes: payload.required::<String>("data")?.into_bytes() },
        "send_message" => send_message(&payload)?,
        "subscribe_channels" => ApiCall::Subscribe { name: name()?, channels: payload.required("channels")? },
        "unsubscribe_channels" => ApiCall::Unsubscribe { name: name()?, channels: payload.required("channels")? },
        "list_agents" => ApiCall::ListAgents,
        "shutdown" => ApiCall::Shutdown,
        other => return Err(format!("unknown frame `type` '{other}'")),
    };
    Ok(Request::Call(Box::new(call)))
}

fn manifest(members: &Members) -> Result<Manifest, String> {
    let capabilities: Vec<Capability> = members.optional("capabilities")?.unwrap_or_default();
    if capabilities.iter().any(|capability| capability.name.trim().is_empty()) {
        return Err("`manifest.capabilities`: a capability needs a name".into());
    }
    Ok(Manifest {
        name: members.required("name")?,
        node_id: members.optional("node_id")?,
        capabilities,
        max_agents: members.optional("max_agents")?.unwrap_or_default(),
        tags: members.optional("tags")?.unwrap_or_default(),
        version: members.optional("version")?,
    })
}

fn supervision(members: &Members) -> Result<Supervision, String> {
    let argv: Vec<String> = members.required("argv")?;
    if argv.first().is_none_or(|program| program.trim().is_empty()) {
        return Err("`supervision.argv` must begin with a program".into());
    }
    Ok(Supervision {
        argv,
        cwd: members.required("cwd")?,
        env: members.optional("env")?.unwrap_or_default(),
        restart_policy: members.optional("restart_policy")?.unwrap_or_default(),
    })
}

/// Nothing unknown is let pass here, because the result goes to the engine as it is.
fn handler_result(payload: &Members, sidecar: SidecarGeneration) -> Result<ApiCall, String> {
    let known = ["invocation_id", "output", "error"];
    if let Some(unknown) = payload.object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("unknown field `{unknown}`"));
    }
    let outcome = match (payload.object.get("output"), payload.object.get("error")) {
        (Some(output), None) => ActionOutcome::Output(output.clone()),
        (None, Some(Value::String(error))) => ActionOutcome::Error(error.clone()),
        (None, Some(_)) => return Err("`error` must be a text".into()),
        _ => return Err("exactly one of `output` and `error` must be given".into()),
    };
    Ok(ApiCall::HandlerResult { sidecar, invocation_id: payload.required("invocation_id")?, outcome })
}

fn spawn_agent(payload: &Members, sidecar: SidecarGeneration) -> Result<ApiCall, String> {
    let agent = payload.object("agent")?.ok_or("missing field `agent`")?;
    let harness = agent.any(&["harnessConfig", "harness_config", "harnessPlan", "harness_plan"]);
    let cli = agent.filled(&["cli", "provider"])?;
    if cli.is_none() && harness.is_none() {
        return Err("missing field `agent.cli`: name the program, or send a harnessConfig".into());
    }
    let runtime = agent.filled(&["runtime"])?;
    if let Some(runtime) = runtime.as_deref().filter(|runtime| !matches!(*runtime, "pty" | "headless")) {
        return Err(format!("`agent.runtime` must be 'pty' or 'headless', not '{runtime}'"));
    }
    // Kept nowhere, but a mistake in them shows.
    agent.filled(&["shadow_of"])?;
    agent.filled(&["shadow_mode"])?;
    let restart_policy = agent.optional::<RestartPolicy>("restart_policy")?;
    let form = json!({
        "name": agent.required::<String>("name")?,
        "runtime": runtime,
        "cli": cli,
        "harnessConfig": harness,
        "model": agent.filled(&["model"])?,
        "cwd": agent.filled(&["cwd"])?,
        "team": agent.filled(&["team"])?,
        "args": agent.optional::<Vec<String>>("args")?,
        "channels": agent.optional::<Vec<String>>("channels")?,
        "task": payload.optional::<String>("initial_task")?,
        "skip_relay_prompt": payload.optional::<bool>("skip_relay_prompt")?,
    });
    // A sidecar names no earlier session.
    let mut request = forms::spawn(&form, |_| None).map_err(|refusal| message_of(&refusal))?;
    request.session_ref = agent.filled(&["session_id", "sessionId"])?.or(request.session_ref);
    request.restart_policy = restart_policy;
    request.sidecar = Some(sidecar);
    request.invocation_id = payload.filled(&["invocation_id"])?;
    Ok(ApiCall::Spawn(request))
}

fn send_message(payload: &Members) -> Result<ApiCall, String> {
    let needed = |name: &str| payload.filled(&[name])?.ok_or_else(|| format!("`{name}` is missing or blank"));
    let form = json!({
        "to": needed("to")?,
        "text": needed("text")?,
        "from": payload.filled(&["from"])?,
        "thread_id": payload.filled(&["thread_id"])?,
        "workspace_id": payload.filled(&["workspace_id"])?,
        "workspace_alias": payload.filled(&["workspace_alias"])?,
        "mode": payload.filled(&["mode"])?,
    });
    forms::send(&form).map(ApiCall::Send).map_err(|refusal| message_of(&refusal))
}

/// The words of an HTTP refusal.
fn message_of(refusal: &Response) -> String {
    let body: Value = serde_json::from_slice(&refusal.body).unwrap_or(Value::Null);
    match body.get("message").and_then(Value::as_str) {
        Some(message) => message.into(),
        None => String::from_utf8_lossy(&refusal.body).into_owned(),
    }
}

/// The members of one object of a payload. `null` counts as absent.
struct Members<'a> {
    object: &'a Map<String, Value>,
    /// What precedes the name of a member in messages.
    path: String,
}

impl<'a> Members<'a> {
    fn of(value: &'a Value, what: &str, path: &str) -> Result<Members<'a>, String> {
        let object = value.as_object().ok_or_else(|| format!("`{what}` must be an object"))?;
        Ok(Members { object, path: path.into() })
    }

    /// What there is under the first of the names that has anything.
    fn any(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().find_map(|name| self.object.get(*name).filter(|value| !value.is_null()))
    }

    fn object(&self, name: &str) -> Result<Option<Members<'a>>, String> {
        let path = format!("{}{name}", self.path);
        self.any(&[name]).map(|value| Members::of(value, &path, &format!("{path}."))).transpose()
    }

    fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let value = self.any(&[name]).map(T::deserialize).transpose();
        value.map_err(|why| format!("`{}{name}`: {why}", self.path))
    }

    fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        self.optional(name)?.ok_or_else(|| format!("missing field `{}{name}`", self.path))
    }

    /// The text under the first of the names that is not blank, trimmed. All of them must be texts.
    fn filled(&self, names: &[&str]) -> Result<Option<String>, String> {
        let mut found = None;
        for name in names {
            let text = self.optional::<String>(name)?.map(|text| text.trim().to_string());
            found = found.or(text.filter(|text| !text.is_empty()));
        }
        Ok(found)
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
