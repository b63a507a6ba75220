//! `POST /api/spawn` and `POST /api/send` as forms: from JSON to what the core takes, or to the refusal.
//!
//! On both routes an optional member of a wrong type is ignored, not refused. Where a member has several names, the order
//! of the names here is their precedence.

use serde_json::Value;

use crate::core::ports::{Secret, SendRequest, SpawnRequest};
use crate::http::Response;
use crate::wire::api::{failure, failure_of, failure_to};
use crate::wire::fleet::RestartPolicy;
use crate::wire::names::agent_name_fault;
use crate::wire::node::DeliveryMode;

use super::body::{filled, given, text};
use super::harness_config::HarnessConfig;

/// What an agent is told when it shall end itself after its task.
const EXIT_SECTION: &str = "\n\n## When the task is done\n\nOnce the task above is complete and its result has been \
                            reported, print `/exit` alone on a line of its own to end this session.";

fn bad(message: &str) -> Response {
    Response::json(400, &failure(message))
}

/// The checks come in the order that clients know: spawn mode, harness id, harness config, name (400), then the transport
/// and the restart policy (500). `earlier` gives what a session of that name has left for its successor.
pub(super) fn spawn(body: &Value, earlier: impl Fn(&str) -> Option<String>) -> Result<SpawnRequest, Response> {
    let mode = filled(body, &["spawn_mode", "spawnMode"]).unwrap_or_else(|| "interactive".into());
    let task_exit = match mode.to_ascii_lowercase().as_str() {
        "interactive" => false,
        "task_exit" | "task-exit" | "single_shot" | "single-shot" => true,
        _ => {
            return Err(bad(&format!("unsupported spawnMode '{mode}' (expected 'interactive' or 'task_exit')")));
        }
    };
    if given(body, &["harness_id", "harnessId"]).is_some() {
        return Err(bad("harnessId is not supported by the broker API; send harnessConfig"));
    }
    let harness = match given(body, &["harness_config", "harnessConfig", "harness_plan", "harnessPlan"]) {
        None => None,
        Some(config) => {
            Some(HarnessConfig::parse(config).map_err(|why| bad(&format!("Invalid harnessConfig: {why}")))?)
        }
    };
    let name = text(body, &["name"]).filter(|name| !name.trim().is_empty());
    let name = name.ok_or_else(|| bad("Missing required field: name"))?;
    if let Some(fault) = agent_name_fault(name) {
        return Err(bad(&fault));
    }
    let continues = filled(body, &["continue_from", "continueFrom"]);
    if let Some(fault) = continues.as_deref().and_then(agent_name_fault) {
        // It becomes a file name, as the agent's own does.
        return Err(bad(&format!("continueFrom: {fault}")));
    }
    let cli = text(body, &["cli"]).unwrap_or("claude");
    let fail = |why: String| Response::json(500, &failure_of(name, &why));
    let headless = is_headless(body, harness.as_ref(), cli).map_err(fail)?;
    let restart_policy = restart_policy(body).map_err(fail)?;
    if let Some(HarnessConfig::AppServer(server)) = &harness {
        server.check().map_err(fail)?;
    }
    let exit = task_exit || flag(body, &["exit_after_task", "exitAfterTask"]);
    let words = text(body, &["task"]).filter(|task| !task.trim().is_empty());
    let own = words.map(|task| if exit { format!("{task}{EXIT_SECTION}") } else { task.to_string() });
    let task = match (continues.and_then(|name| earlier(&name)), own) {
        (Some(block), Some(task)) => Some(format!("{block}\n\n## Current Task\n\n{task}")),
        (block, task) => block.or(task),
    };
    let own_task = (task.as_deref() != words).then(|| words.unwrap_or_default().into());
    let (pty, server) = match harness {
        Some(HarnessConfig::Pty(pty)) => (Some(pty), None),
        Some(HarnessConfig::AppServer(server)) => (None, Some(server)),
        None => (None, None),
    };
    let provider = server.as_ref().map(|server| server.provider().to_string());
    let request = SpawnRequest {
        name: name.into(),
        cli: pty.as_ref().map(|pty| pty.command.clone()).or(provider).unwrap_or_else(|| cli.into()),
        label: pty.as_ref().and_then(|_| filled(body, &["cli"])),
        args: pty.as_ref().map_or_else(|| texts(body.get("args")), |pty| pty.args.clone()),
        model: filled(body, &["model"]),
        cwd: filled(body, &["cwd"]).or_else(|| pty.as_ref()?.cwd.clone()),
        team: filled(body, &["team"]),
        task,
        own_task,
        channels: texts(body.get("channels")),
        env: pty.as_ref().map_or_else(Vec::new, |pty| pty.env.clone()),
        resumes: false,
        session_ref: pty.and_then(|pty| pty.session_id),
        skip_relay_prompt: flag(body, &["skip_relay_prompt", "skipRelayPrompt"]),
        idle_threshold_secs: ["idle_threshold_secs", "idleThresholdSecs"]
            .iter()
            .find_map(|name| body.get(name)?.as_u64()),
        agent_token: filled(body, &["agent_token", "agentToken"]).map(Secret::new),
        result_schema: given(body, &["agent_result_schema", "agentResultSchema", "resultSchema"]).cloned(),
        restart_policy,
        sidecar: None,
        invocation_id: None,
        ignores_drafts: given(body, &["draft_safety", "draftSafety"]).and_then(Value::as_bool) == Some(false),
        headless,
        app_server: server.map(|server| Box::new(server.into_server())),
        ..SpawnRequest::default()
    };
    Ok(request)
}

/// Whether an agent without a terminal is asked for.
fn is_headless(body: &Value, harness: Option<&HarnessConfig>, cli: &str) -> Result<bool, String> {
    let asked = filled(body, &["transport", "runtime"]).map(|transport| transport.to_ascii_lowercase());
    let configured = harness.map(HarnessConfig::transport);
    match asked.as_deref() {
        None | Some("pty" | "headless") => {}
        Some(other) => return Err(format!("unsupported transport '{other}' (expected 'pty' or 'headless')")),
    }
    let headless = asked.as_deref().or(configured) == Some("headless");
    if headless && harness.is_none() && !matches!(cli.trim(), "claude" | "opencode") {
        return Err(format!("provider '{cli}' does not support headless transport (supported: claude, opencode)"));
    }
    match (asked.as_deref(), configured) {
        (Some(asked), Some(configured)) if asked != configured => {
            Err(format!("harnessConfig runtime '{configured}' does not match requested transport '{asked}'"))
        }
        _ => Ok(headless),
    }
}

/// An agent without one is not started again.
fn restart_policy(body: &Value) -> Result<Option<RestartPolicy>, String> {
    let Some(policy) = given(body, &["restart_policy", "restartPolicy"]) else { return Ok(None) };
    RestartPolicy::of_json(policy).map(Some).ok_or_else(|| "invalid restart_policy".into())
}

fn flag(body: &Value, names: &[&str]) -> bool {
    names.iter().find_map(|name| body.get(name)?.as_bool()).unwrap_or(false)
}

/// The texts of an array; anything else in it is skipped.
fn texts(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| item.as_str().map(str::to_string)).collect()
}

pub(super) fn send(body: &Value) -> Result<SendRequest, Response> {
    let to = filled(body, &["to"]);
    let words = filled(body, &["message", "text", "body", "content"]);
    let (Some(to), Some(text)) = (to, words) else {
        return Err(bad("Missing required fields: to, message"));
    };
    let mode = match filled(body, &["mode", "injectionMode", "injection_mode"]) {
        None => DeliveryMode::Wait,
        Some(mode) => match mode.to_ascii_lowercase().as_str() {
            "wait" => DeliveryMode::Wait,
            "steer" => DeliveryMode::Steer,
            _ => {
                let why = format!("invalid mode '{mode}'. expected 'wait' or 'steer'");
                return Err(Response::json(400, &failure_to(&to, &why)));
            }
        },
    };
    Ok(SendRequest {
        to,
        text,
        from: filled(body, &["from"]),
        thread_id: filled(body, &["thread", "thread_id", "threadId"]),
        workspace_id: filled(body, &["workspaceId", "workspace_id"]),
        workspace_alias: filled(body, &["workspaceAlias", "workspace_alias"]),
        mode,
    })
}

#[cfg(test)]
#[path = "forms_tests.rs"]
mod tests;
