//! The calls by name: what is sent where, with whose token, and what of the answer is used.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Call, CallError, Client, no_answer, segment};
use super::policy::{Class, Repeat};
use crate::core::ports::{EngineCall, EngineError, Secret, WorkspaceNo};
use crate::wire::engine::{
    AgentMetadata, AgentRow, BindAgent, CreateChannel, CreateWorkspace, Nothing, PostDm, PostMessage, PostReply,
    RegisterAgent, WorkspaceCreated,
};

/// Limit of a call that is no message post.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Limit of the last call of an orderly stop.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Codes by which the engine says that a name is taken, whatever the status.
const CONFLICTS: [&str; 4] = ["agent_already_exists", "name_taken", "conflict", "duplicate"];

/// The name is taken.
pub(super) fn is_conflict(error: &EngineError) -> bool {
    error.status == 409 || CONFLICTS.contains(&error.code.as_str())
}

/// The harness family that the engine knows an agent's command by; anything else counts as `claude`.
fn known_cli(command: &str) -> &'static str {
    let word = command.split_whitespace().next().unwrap_or_default();
    let base = word.rsplit('/').next().unwrap_or_default();
    let stem = base.split(':').next().unwrap_or_default().to_ascii_lowercase();
    match stem.as_str() {
        "codex" => "codex",
        "gemini" => "gemini",
        "aider" => "aider",
        "goose" => "goose",
        _ => "claude",
    }
}

/// A channel's name as the engine takes it: one `#` stripped, lower case, `^[a-z0-9][a-z0-9-]*$`.
///
/// # Errors
/// In words, before anything is sent.
pub(super) fn channel_name(text: &str) -> Result<String, EngineError> {
    let text = text.trim();
    let name = text.strip_prefix('#').unwrap_or(text).to_lowercase();
    let fits = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fits || name.is_empty() || name.starts_with('-') {
        return Err(EngineError {
            status: 400,
            code: "invalid_channel_name".into(),
            message: format!("'{text}' is no channel name: letters, digits and dashes, not first a dash"),
            retry_after_ms: None,
        });
    }
    Ok(name)
}

/// The engine no longer takes this agent token.
fn is_token_trouble(error: &EngineError) -> bool {
    error.code.trim().eq_ignore_ascii_case("agent_token_invalid")
        || (error.status == 401 && error.message.trim().eq_ignore_ascii_case("invalid agent token"))
}

impl Client {
    /// Makes a call of the running broker. Blocks up to the call's limit: 20 s for message posts, 10 s for others, 1 s for
    /// the disconnect of an orderly stop.
    ///
    /// # Errors
    /// The engine's answer or the reason why there is none.
    pub fn perform(&self, call: &EngineCall) -> Result<Value, EngineError> {
        let limit = match call {
            EngineCall::PostChannel { .. } | EngineCall::PostDm { .. } | EngineCall::PostReply { .. } => {
                self.send_limit
            }
            EngineCall::Disconnect { .. } => DISCONNECT_LIMIT,
            _ => CALL_LIMIT,
        };
        self.perform_until(call, Instant::now() + limit)
    }

    /// As [`Client::perform`], with the caller's deadline.
    ///
    /// # Errors
    /// As [`Client::perform`].
    pub fn perform_until(&self, call: &EngineCall, deadline: Instant) -> Result<Value, EngineError> {
        let enrolment = self.enrolment()?;
        let key = &self.own(enrolment.home)?.0.workspace_key;
        match call {
            EngineCall::MintNodeToken { node_name } => {
                let node = self
                    .remint_node_token(key, &enrolment.node_id, node_name, deadline)
                    .map_err(|failed| failed.error)?;
                Ok(json!({"id": node.node_id, "name": node.name, "token": node.token.expose()}))
            }
            EngineCall::RegisterAgent { name, cli } => self.register_agent(key, name, cli, deadline),
            EngineCall::LookUpAgent { name } => {
                let row = self.get_agent(key, name, deadline).map_err(|failed| failed.error)?;
                Ok(json!({"id": row.id, "name": row.name.as_deref().unwrap_or(name)}))
            }
            EngineCall::BindAgent { node_name, name, session_ref } => {
                let path = format!("/v1/nodes/{}/agents", segment(node_name));
                let body = BindAgent { agent_name: name.clone(), session_ref: session_ref.clone() };
                // Moves the agent here from wherever it is: an answered failure may be tried again.
                let call = Call::new("POST /v1/nodes/:name/agents", path, Class::Node, Repeat::Answered);
                self.call(&call.bearer(key).body(&body), deadline).map_err(|failed| failed.error)
            }
            EngineCall::JoinChannel { channel, token } => {
                self.join_channel(token, channel, None, deadline).map_err(|failed| failed.error)
            }
            EngineCall::LeaveChannel { channel, token } => {
                self.leave_channel(token, channel, deadline).map_err(|failed| failed.error)
            }
            EngineCall::PostChannel { workspace, channel, text, mode, idempotency_key } => {
                let name = channel.strip_prefix('#').unwrap_or(channel);
                let path = format!("/v1/channels/{}/messages", segment(name));
                let body = PostMessage { text: text.clone(), mode: *mode };
                self.post(*workspace, "POST /v1/channels/:name/messages", path, &body, idempotency_key, deadline)
            }
            EngineCall::PostDm { workspace, to, text, mode, idempotency_key } => {
                let body = PostDm { to: to.clone(), text: text.clone(), mode: *mode };
                self.post(*workspace, "POST /v1/dm", "/v1/dm".into(), &body, idempotency_key, deadline)
            }
            EngineCall::PostReply { workspace, message_id, text, idempotency_key } => {
                let path = format!("/v1/messages/{}/replies", segment(message_id));
                let body = PostReply { text: text.clone() };
                self.post(*workspace, "POST /v1/messages/:id/replies", path, &body, idempotency_key, deadline)
            }
            EngineCall::Heartbeat { workspace } => {
                self.presence(*workspace, "POST /v1/agents/heartbeat", "/v1/agents/heartbeat", deadline)
            }
            EngineCall::Disconnect { workspace } => {
                self.presence(*workspace, "POST /v1/agents/disconnect", "/v1/agents/disconnect", deadline)
            }
        }
    }

    fn presence(
        &self,
        workspace: WorkspaceNo,
        name: &'static str,
        path: &str,
        deadline: Instant,
    ) -> Result<Value, EngineError> {
        self.as_own_agent(workspace, deadline, |token| {
            let call = Call::new(name, path.into(), Class::Presence, Repeat::Always).bearer(token).body(&Nothing {});
            self.call(&call, deadline)
        })
    }

    fn post(
        &self,
        workspace: WorkspaceNo,
        name: &'static str,
        path: String,
        body: &impl serde::Serialize,
        idempotency_key: &str,
        deadline: Instant,
    ) -> Result<Value, EngineError> {
        // Without a usable key a repeat could double the message.
        let keyed = !idempotency_key.is_empty()
            && idempotency_key.len() <= 255
            && idempotency_key.bytes().all(|byte| byte.is_ascii_graphic());
        let repeat = if keyed { Repeat::Always } else { Repeat::Unsent };
        self.as_own_agent(workspace, deadline, |token| {
            let mut call = Call::new(name, path.clone(), Class::Message, repeat).bearer(token).body(body);
            call.idempotency_key = keyed.then_some(idempotency_key);
            self.call(&call, deadline)
        })
    }

    /// Makes a call with the token of the broker's own agent. When the engine no longer takes it, somebody else rotated
    /// it: rotate once, repeat once.
    fn as_own_agent(
        &self,
        workspace: WorkspaceNo,
        deadline: Instant,
        call: impl Fn(&Secret) -> Result<Value, CallError>,
    ) -> Result<Value, EngineError> {
        let used = self.own_token(workspace)?;
        match call(&used) {
            Err(failed) if is_token_trouble(&failed.error) => {
                let fresh = self.renew_own_token(workspace, &used, deadline)?;
                call(&fresh).map_err(|failed| failed.error)
            }
            other => other.map_err(|failed| failed.error),
        }
    }

    /// A token other than `used`: the one that another thread got meanwhile, or a rotated one. One rotation at a time.
    fn renew_own_token(&self, workspace: WorkspaceNo, used: &Secret, deadline: Instant) -> Result<Secret, EngineError> {
        let (own, token) = self.own(workspace)?;
        token.renew(used, deadline, || {
            log::warn!("the engine no longer takes the token of '{}'; rotating it", own.name);
            self.rotate_token(&own.workspace_key, &own.name, deadline).map_err(|failed| failed.error)
        })
    }

    fn register_agent(&self, key: &Secret, name: &str, cli: &str, deadline: Instant) -> Result<Value, EngineError> {
        let metadata = Some(AgentMetadata { cli: known_cli(cli).into() });
        let row = match self.register(key, name, "agent", metadata, deadline) {
            Ok(row) => row,
            Err(failed) if is_conflict(&failed.error) => {
                self.take_over(key, name, deadline).map_err(|failed| failed.error)?
            }
            Err(failed) => return Err(failed.error),
        };
        let token = row.token.ok_or_else(|| no_answer("invalid_answer", "the engine registered without a token"))?;
        Ok(json!({"id": row.id, "name": row.name.as_deref().unwrap_or(name), "token": token}))
    }

    /// `POST /v1/agents`.
    pub(super) fn register(
        &self,
        key: &Secret,
        name: &str,
        kind: &str,
        metadata: Option<AgentMetadata>,
        deadline: Instant,
    ) -> Result<AgentRow, CallError> {
        let call = Call::new("POST /v1/agents", "/v1/agents".into(), Class::Agent, Repeat::Always);
        let body = RegisterAgent { name: name.into(), kind: kind.into(), metadata };
        let data = self.call(&call.bearer(key).body(&body), deadline)?;
        usable("POST /v1/agents", AgentRow::from_data(&data), "it is no agent")
    }

    /// The existing agent of this name with a fresh token.
    pub(super) fn take_over(&self, key: &Secret, name: &str, deadline: Instant) -> Result<AgentRow, CallError> {
        let row = self.get_agent(key, name, deadline)?;
        let token = self.rotate_token(key, name, deadline)?;
        Ok(AgentRow { token: Some(token.expose().into()), ..row })
    }

    /// `GET /v1/agents/:name`.
    ///
    /// # Errors
    /// The call's.
    pub fn get_agent(&self, key: &Secret, name: &str, deadline: Instant) -> Result<AgentRow, CallError> {
        const NAME: &str = "GET /v1/agents/:name";
        let path = format!("/v1/agents/{}", segment(name));
        let data = self.call(&Call::new(NAME, path, Class::Agent, Repeat::Always).bearer(key), deadline)?;
        usable(NAME, AgentRow::from_data(&data), "it is no agent")
    }

    /// `POST /v1/agents/:name/rotate-token`: the old token is dead afterwards.
    ///
    /// # Errors
    /// The call's, or an answer without a token.
    pub fn rotate_token(&self, key: &Secret, name: &str, deadline: Instant) -> Result<Secret, CallError> {
        const NAME: &str = "POST /v1/agents/:name/rotate-token";
        let path = format!("/v1/agents/{}/rotate-token", segment(name));
        let call = Call::new(NAME, path, Class::Agent, Repeat::Always).bearer(key).body(&Nothing {});
        let data = self.call(&call, deadline)?;
        let token = AgentRow::from_data(&data).and_then(|row| row.token).map(Secret::new);
        usable(NAME, token, "it holds no token")
    }

    /// `POST /v1/workspaces`, without any key.
    ///
    /// # Errors
    /// The call's, or an answer without a key.
    pub fn create_workspace(&self, name: &str, deadline: Instant) -> Result<WorkspaceCreated, CallError> {
        const NAME: &str = "POST /v1/workspaces";
        let call = Call::new(NAME, "/v1/workspaces".into(), Class::Workspace, Repeat::Answered);
        let data = self.call(&call.body(&CreateWorkspace { name: name.into() }), deadline)?;
        usable(NAME, WorkspaceCreated::from_data(&data), "it holds no key")
    }

    /// Makes a channel and joins it, as the agent of `token`. That it exists or is joined already is success.
    ///
    /// # Errors
    /// The call's, or a name that the engine would refuse.
    pub fn join_channel(
        &self,
        token: &Secret,
        channel: &str,
        topic: Option<&str>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        const CREATE: &str = "POST /v1/channels";
        const JOIN: &str = "POST /v1/channels/:name/join";
        let name = channel_name(channel).map_err(|error| CallError { call: CREATE, error, unclear: false })?;
        let exists_is_fine = |outcome: Result<Value, CallError>| match outcome {
            Err(failed) if failed.error.status == 409 => Ok(Value::Null),
            other => other,
        };
        let body = CreateChannel { name: name.clone(), topic: topic.map(Into::into) };
        let create = Call::new(CREATE, "/v1/channels".into(), Class::Channel, Repeat::Always).bearer(token).body(&body);
        exists_is_fine(self.call(&create, deadline))?;
        let path = format!("/v1/channels/{}/join", segment(&name));
        let join = Call::new(JOIN, path, Class::Channel, Repeat::Always).bearer(token);
        exists_is_fine(self.call(&join, deadline))
    }

    /// Leaves a channel; who is no member of it has left.
    fn leave_channel(&self, token: &Secret, channel: &str, deadline: Instant) -> Result<Value, CallError> {
        const LEAVE: &str = "POST /v1/channels/:name/leave";
        let name = channel_name(channel).map_err(|error| CallError { call: LEAVE, error, unclear: false })?;
        let path = format!("/v1/channels/{}/leave", segment(&name));
        match self.call(&Call::new(LEAVE, path, Class::Channel, Repeat::Always).bearer(token), deadline) {
            Err(failed) if matches!(failed.error.status, 404 | 409) => Ok(Value::Null),
            other => other,
        }
    }
}

/// An answer of success that lacks what the call is for is an error.
pub(super) fn usable<T>(call: &'static str, row: Option<T>, why: &str) -> Result<T, CallError> {
    row.ok_or_else(|| CallError {
        call,
        error: no_answer("invalid_answer", format!("the engine's answer cannot be used: {why}")),
        unclear: false,
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn harness_families() {
        for (command, family) in [
            ("claude", "claude"),
            ("/usr/bin/Codex --x", "codex"),
            ("goose:v2", "goose"),
            ("claude-code", "claude"),
            ("cat", "claude"),
            ("", "claude"),
        ] {
            assert_eq!(known_cli(command), family, "{command}");
        }
    }

    #[test]
    fn channel_names() {
        for (text, name) in [("#Dev", Some("dev")), (" ops-1 ", Some("ops-1")), ("##x", None), ("-x", None), ("", None)]
        {
            assert_eq!(channel_name(text).ok().as_deref(), name, "{text}");
        }
        assert_eq!(channel_name("a b").unwrap_err().code, "invalid_channel_name");
    }

    #[test]
    fn token_trouble_is_recognised() {
        let error = |status, code: &str, message: &str| EngineError {
            status,
            code: code.into(),
            message: message.into(),
            retry_after_ms: None,
        };
        assert!(is_token_trouble(&error(401, " AGENT_token_invalid", "")));
        assert!(is_token_trouble(&error(401, "unauthorized", "invalid Agent Token ")));
        assert!(!is_token_trouble(&error(401, "unauthorized", "Unauthorized")));
        assert!(!is_token_trouble(&error(403, "forbidden", "Invalid agent token")));
    }
}
