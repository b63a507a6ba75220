//! What a CLI is started with besides its program: its arguments, the relay's server, its session.
//!
//! Files that hold an agent's keys are made here and go with the agent: what this room gives out as [`Keep`] has to be
//! held for as long as the program runs.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::harness::{self, Choice, Facts, InUse, Server, Sessions, Site};
use super::program::Program;
use crate::core::ports::Launch;
use crate::sys::ids;

/// How a program is started.
pub struct Outfit {
    pub args: Vec<String>,
    pub env: Vec<(OsString, OsString)>,
    /// The session of the CLI, when it is known.
    pub session_id: Option<String>,
    /// The model, when another one takes the place of the one that was asked for.
    pub model: Option<String>,
    pub keep: Keep,
}

/// What is taken away with the agent.
#[derive(Debug, Default)]
pub struct Keep {
    _in_use: Option<InUse>,
    _file: Option<PrivateFile>,
}

/// Everything that an outfit depends on besides the program.
pub struct Circumstances<'a> {
    pub launch: &'a Launch,
    /// Where private files of agents lie; made when it is missing.
    pub scratch: &'a Path,
    /// Nobody waits longer for it.
    pub deadline: Instant,
    pub cancelled: &'a dyn Fn() -> bool,
}

/// Makes an outfit.
///
/// # Errors
/// A sentence for the caller of the spawn: the harness could not be told of the server. Nothing is left behind then.
pub fn make(
    program: &Program,
    mut env: Vec<(OsString, OsString)>,
    given: &Circumstances<'_>,
) -> Result<Outfit, String> {
    let launch = given.launch;
    let var = |name: &str| value(&env, name);
    let home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
    let site = Site {
        executable: &program.executable,
        program: &program.path,
        cwd: &program.cwd,
        home: home.as_deref(),
        env: Some(&env),
        deadline: Some(given.deadline),
        cancelled: given.cancelled,
    };
    let mut args = program.given.clone();
    let mut model = launch.model.clone();
    let mut told = harness::Told::default();
    if launch.bare {
        let args = harness::normal(program.harness, args);
        return Ok(Outfit { args, env, session_id: None, model: None, keep: Keep::default() });
    }
    if !launch.skip_relay_prompt {
        let server = Server::new(&facts(launch, &var), var("AGENT_RELAY_MCP_COMMAND").as_deref());
        told = harness::tell(program.harness, &site, &args, &server).map_err(|trouble| trouble.to_string())?;
    }
    let file = hide_config(&mut told.args, given.scratch)?;
    // Without a terminal there is no question to bypass here, and no session that goes on.
    let harness = if launch.headless { harness::plain() } else { program.harness };
    let sessions = harness.sessions;
    let mut last = Vec::new();
    let session_id = match (sessions.of(&args), launch.session_ref.clone()) {
        (Choice::New, Some(session)) => {
            if launch.resumes {
                last = sessions.resume(&session);
            }
            Some(session)
        }
        (Choice::New, None) if sessions == Sessions::Claude => {
            let session = ids::uuid();
            args.extend(["--session-id".into(), session.clone()]);
            Some(session)
        }
        (Choice::New, None) => {
            let thread = harness::make_thread(&site, &args, env!("CARGO_PKG_VERSION"));
            last = thread.iter().flat_map(|thread| sessions.resume(thread)).collect();
            thread
        }
        (Choice::Known(session), asked) => Some(asked.unwrap_or(session)),
        (Choice::Open, asked) => asked,
    };
    if sessions == Sessions::Codex {
        harness::fall_back(&site, &mut model, &mut args);
    }
    let mut args = harness::arguments(harness, args, model.as_deref(), told.args);
    args.extend(last);
    let model = model.filter(|model| Some(model) != launch.model.as_ref());
    if let Some(model) = &model {
        name_model(&mut env, model);
    }
    Ok(Outfit { args, env, session_id, model, keep: Keep { _in_use: told.in_use, _file: file } })
}

/// Puts the model that is really used into the origin that the agent's requests name, unless the caller chose that.
fn name_model(env: &mut [(OsString, OsString)], model: &str) {
    let origin = env.iter_mut().find(|(name, _)| name == "AGENT_RELAY_ORIGIN_ACTOR");
    let Some((_, origin)) = origin else { return };
    if let Some(harness) = origin.to_str().and_then(|origin| origin.strip_prefix(ORIGIN)) {
        let harness = harness.split('@').next().unwrap_or_default();
        *origin = format!("{ORIGIN}{harness}@{model}").into();
    }
}

/// How the origin of an agent begins, when it is the broker's word.
const ORIGIN: &str = "agent-relay-cli/agent/";

fn facts(launch: &Launch, var: &dyn Fn(&str) -> Option<String>) -> Facts {
    let result = ["AGENT_RELAY_RESULT_URL", "AGENT_RELAY_RESULT_TOKEN", "AGENT_RELAY_RESULT_SCHEMA"];
    // The URL is there for every agent; a token only when a result was asked for.
    let result: Option<Vec<String>> = result.iter().map(|name| var(name)).collect();
    Facts {
        workspace_key: var("RELAY_API_KEY"),
        base_url: var("RELAY_BASE_URL"),
        agent_name: var("RELAY_AGENT_NAME").unwrap_or_else(|| launch.name.clone()),
        agent_token: var("RELAY_AGENT_TOKEN"),
        workspaces: var("RELAY_WORKSPACES_JSON"),
        default_workspace: var("RELAY_DEFAULT_WORKSPACE"),
        result: result.and_then(|values| values.try_into().ok()),
    }
}

fn value(env: &[(OsString, OsString)], name: &str) -> Option<String> {
    let (_, value) = env.iter().find(|(key, _)| key == OsStr::new(name))?;
    value.to_str().filter(|value| !value.trim().is_empty()).map(str::to_string)
}

/// A file with keys, gone with this value.
#[derive(Debug)]
struct PrivateFile(PathBuf);

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            log::warn!("'{}' cannot be removed: {error}", self.0.display());
        }
    }
}

/// Arguments can be read by every user of the machine: claude's configuration, which holds keys, goes into a file that
/// only this one can read, and its path into the arguments.
fn hide_config(args: &mut [String], scratch: &Path) -> Result<Option<PrivateFile>, String> {
    let [flag, config, ..] = args else { return Ok(None) };
    if flag != harness::CONFIG_FLAG {
        return Ok(None);
    }
    let path = scratch.join(format!("mcp-{}.json", ids::uuid_hex()));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(scratch);
    let made = made.and_then(|()| std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path));
    let mut out = made.map_err(|error| format!("'{}' cannot be written: {error}", path.display()))?;
    let file = PrivateFile(path);
    out.write_all(config.as_bytes()).map_err(|error| format!("'{}' cannot be written: {error}", file.0.display()))?;
    *config = file.0.to_string_lossy().into_owned();
    Ok(Some(file))
}
