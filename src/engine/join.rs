//! The start: joins the workspaces and registers the broker's own agent in each.

use std::time::Instant;

use sha2::{Digest, Sha256};

use super::calls::is_conflict;
use super::client::{CallError, Client};
use super::workspaces::{Entry, Env, Source, choose};
use crate::core::ports::Secret;
use crate::sys::{ids, threads};
use crate::wire::engine::AgentRow;

/// The id of a workspace that the engine did not name.
pub const UNKNOWN_WORKSPACE: &str = "ws_unknown";

/// What the start is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// `--workspace-key`.
    pub key_flag: Option<String>,
    /// The broker's resolved name.
    pub agent_name: String,
    /// `--persist`: on a conflict take the existing agent over, name unchanged.
    pub strict: bool,
    /// Goes into the name of a workspace that has to be made.
    pub cwd: String,
}

/// One joined workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub workspace_id: String,
    pub alias: Option<String>,
    pub key: Secret,
    /// The broker's own agent there.
    pub agent_id: String,
    pub agent_name: String,
    pub agent_token: Secret,
}

/// Workspaces that are joined at a time.
const AT_ONCE: usize = 8;
/// The part of the start's time that joining several workspaces leaves to the node token.
const NODE_SHARE: f64 = 0.375;

/// All joined workspaces, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub memberships: Vec<Membership>,
    /// Serves as default for keys, node and sends.
    pub acting: usize,
    /// `None` with several workspaces and no hint that matches.
    pub default_workspace_id: Option<String>,
    /// What the operator should know of a list that was not followed to the letter.
    pub warnings: Vec<String>,
}

impl Session {
    /// The membership that serves as default.
    pub fn acting(&self) -> &Membership {
        &self.memberships[self.acting]
    }
}

/// Why the start failed: the operator's words, and the call behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    pub text: String,
    pub cause: Option<CallError>,
}

impl StartError {
    fn words(text: impl Into<String>) -> StartError {
        StartError { text: text.into(), cause: None }
    }

    fn of(text: impl Into<String>, cause: CallError) -> StartError {
        StartError { text: text.into(), cause: Some(cause) }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

/// The engine does not take the key (401, 403) or takes nothing for now (429).
fn is_rejection(failed: &CallError) -> bool {
    matches!(failed.error.status, 401 | 403 | 429)
}

enum RegisterError {
    Call(CallError),
    /// Also the second name is taken.
    Taken(String),
}

impl From<CallError> for RegisterError {
    fn from(failed: CallError) -> RegisterError {
        RegisterError::Call(failed)
    }
}

impl From<RegisterError> for StartError {
    fn from(failed: RegisterError) -> StartError {
        match failed {
            RegisterError::Call(failed) => StartError::of("failed to register the broker's agent", failed),
            RegisterError::Taken(name) => StartError::words(format!("agent name '{name}' already exists after retry")),
        }
    }
}

impl Client {
    /// Joins the workspaces that environment and flags name, or makes one. All calls share `deadline`.
    ///
    /// # Errors
    /// What ends the start, naming the variable or the call.
    pub fn join_workspaces(
        &self,
        env: Env<'_>,
        request: &JoinRequest,
        deadline: Instant,
    ) -> Result<Session, StartError> {
        let kind = env("RELAY_AGENT_TYPE").map(|kind| kind.trim().to_string()).filter(|kind| !kind.is_empty());
        let joining = Joining { client: self, request, kind: kind.as_deref().unwrap_or("human"), deadline };
        match choose(env, request.key_flag.as_deref()).map_err(StartError::words)? {
            Source::Many { entries, hint } => joining.many(&entries, hint.as_deref()),
            Source::Explicit { variable, key } => match joining.one(&key, None, None) {
                Ok(membership) => Ok(only(membership)),
                Err(RegisterError::Call(failed)) => Err(match failed.error.status {
                    401 | 403 => StartError::of(format!("explicit workspace key from {variable} was rejected"), failed),
                    429 => StartError::of(format!("explicit workspace key from {variable} was rate-limited"), failed),
                    _ => RegisterError::Call(failed).into(),
                }),
                Err(other) => Err(other.into()),
            },
            Source::Soft(key) => match joining.one(&key, None, None) {
                Ok(membership) => Ok(only(membership)),
                Err(RegisterError::Call(failed)) if is_rejection(&failed) => {
                    log::warn!("the key in RELAY_API_KEY was refused; making a new workspace");
                    joining.created(env)
                }
                Err(failed) => Err(failed.into()),
            },
            Source::Create => joining.created(env),
        }
    }
}

fn only(membership: Membership) -> Session {
    let default_workspace_id = Some(membership.workspace_id.clone());
    Session { memberships: vec![membership], acting: 0, default_workspace_id, warnings: Vec::new() }
}

struct Joining<'a> {
    client: &'a Client,
    request: &'a JoinRequest,
    kind: &'a str,
    deadline: Instant,
}

impl Joining<'_> {
    fn many(&self, entries: &[Entry], hint: Option<&str>) -> Result<Session, StartError> {
        let mut warnings = Vec::new();
        let mut memberships: Vec<Membership> = Vec::with_capacity(entries.len());
        let mut joined: Vec<&Entry> = Vec::new();
        let mut rejected = Vec::new();
        for (entry, outcome) in entries.iter().zip(self.all(entries)) {
            let name = entry.workspace_id.as_ref().or(entry.alias.as_ref());
            let name = name.map_or(UNKNOWN_WORKSPACE, String::as_str);
            match outcome {
                Ok(membership) => {
                    memberships.push(membership);
                    joined.push(entry);
                }
                Err(RegisterError::Call(failed)) if is_rejection(&failed) => {
                    warnings.push(format!("workspace '{name}' is skipped: {failed}"));
                    rejected.push(name);
                }
                Err(failed) => {
                    let failed = StartError::from(failed);
                    return Err(StartError { text: format!("{} in workspace '{name}'", failed.text), ..failed });
                }
            }
        }
        if memberships.is_empty() {
            let ids = rejected.join(", ");
            return Err(StartError::words(format!("all configured multi-workspace memberships were rejected ({ids})")));
        }
        let hinted = hint.and_then(|hint| {
            memberships.iter().zip(&joined).position(|(membership, entry)| {
                // By the engine's id, or the one that the list calls it by.
                membership.workspace_id == hint
                    || entry.workspace_id.as_deref() == Some(hint)
                    || membership.alias.as_deref().is_some_and(|alias| alias.eq_ignore_ascii_case(hint))
            })
        });
        if let (Some(hint), None) = (hint, hinted) {
            warnings.push(format!("no joined workspace has the id or alias '{hint}' of the default workspace"));
        }
        let default = hinted.or((memberships.len() == 1).then_some(0));
        Ok(Session {
            acting: default.unwrap_or(0),
            default_workspace_id: default.map(|at| memberships[at].workspace_id.clone()),
            memberships,
            warnings,
        })
    }

    /// Registers in every workspace, side by side: one that makes us wait takes no time from the others. The node token,
    /// which follows, keeps its share of the time.
    fn all(&self, entries: &[Entry]) -> Vec<Result<Membership, RegisterError>> {
        let one = |joining: &Joining<'_>, entry: &Entry| {
            joining.one(&entry.key, entry.workspace_id.as_deref(), entry.alias.clone())
        };
        if let [entry] = entries {
            return vec![one(self, entry)];
        }
        let rest = self.deadline.saturating_duration_since(Instant::now()).mul_f64(NODE_SHARE);
        let joining = Joining { deadline: self.deadline.checked_sub(rest).unwrap_or(self.deadline), ..*self };
        entries
            .chunks(AT_ONCE)
            .flat_map(|entries| threads::side_by_side("join", entries, |entry| one(&joining, entry)))
            .collect()
    }

    /// A new workspace. The engine keeps no names apart for callers without a key: each start makes another.
    fn created(&self, env: Env<'_>) -> Result<Session, StartError> {
        let user = ["USER", "USERNAME"]
            .into_iter()
            .find_map(|name| env(name).filter(|user| !user.trim().is_empty()))
            .unwrap_or_else(|| "unknown".into());
        let name = workspace_name(&user, &self.request.cwd);
        let failed = |failed: CallError| StartError::of("failed to create a workspace", failed);
        let created = match self.client.create_workspace(&name, self.deadline) {
            Err(taken)
                if is_conflict(&taken.error) || taken.error.message.to_lowercase().contains("already exists") =>
            {
                self.client.create_workspace(&suffixed(&name), self.deadline).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        let key = Secret::new(created.api_key);
        Ok(only(self.one(&key, created.workspace_id.as_deref(), None)?))
    }

    /// Registers the broker's own agent in one workspace.
    fn one(&self, key: &Secret, known_id: Option<&str>, alias: Option<String>) -> Result<Membership, RegisterError> {
        let (row, name) = self.own_agent(key)?;
        let id = row.workspace_id.or_else(|| known_id.map(Into::into)).unwrap_or_else(|| UNKNOWN_WORKSPACE.into());
        let token = super::calls::usable("POST /v1/agents", row.token, "it holds no token")?;
        Ok(Membership {
            workspace_id: id,
            alias,
            key: key.clone(),
            agent_id: row.id.unwrap_or_default(),
            agent_name: row.name.unwrap_or(name),
            agent_token: Secret::new(token),
        })
    }

    fn own_agent(&self, key: &Secret) -> Result<(AgentRow, String), RegisterError> {
        let name = &self.request.agent_name;
        let register = |name: &str| self.client.register(key, name, self.kind, None, self.deadline);
        match register(name) {
            Ok(row) => Ok((row, name.clone())),
            // A conflict after an attempt without an answer is our own first attempt.
            Err(taken) if is_conflict(&taken.error) && (self.request.strict || taken.unclear) => {
                Ok((self.client.take_over(key, name, self.deadline)?, name.clone()))
            }
            Err(taken) if is_conflict(&taken.error) => {
                let second = suffixed(name);
                match register(&second) {
                    Ok(row) => Ok((row, second)),
                    Err(taken) if is_conflict(&taken.error) && taken.unclear => {
                        Ok((self.client.take_over(key, &second, self.deadline)?, second))
                    }
                    Err(taken) if is_conflict(&taken.error) => Err(RegisterError::Taken(second)),
                    Err(failed) => Err(failed.into()),
                }
            }
            Err(failed) => Err(failed.into()),
        }
    }
}

/// `relay-` and 8 digits of SHA-256(`user:cwd`).
fn workspace_name(user: &str, cwd: &str) -> String {
    let hash = Sha256::digest(format!("{user}:{cwd}").as_bytes());
    format!("relay-{}", &ids::hex(&hash)[..8])
}

/// The name with `-` and 8 random digits.
fn suffixed(name: &str) -> String {
    format!("{name}-{}", &ids::uuid_hex()[..8])
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn workspace_names_are_a_function_of_user_and_directory() {
        let expected = format!("relay-{}", &ids::hex(&Sha256::digest(b"u:/p"))[..8]);
        assert_eq!(workspace_name("u", "/p"), expected);
        assert_ne!(workspace_name("u", "/q"), expected);
        assert_eq!(suffixed("n").len(), 10);
    }
}
