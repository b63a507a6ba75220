//! `mcp-args`: what a harness has to be started with to know the relay's MCP server, for programs that start it themselves.
//!
//! Everything that can be known to be wrong is found before the network is used. stdout carries the answer and nothing
//! else.

use std::path::{Path, PathBuf};

use lexopt::prelude::*;

use super::Failure;
use crate::agent::harness::{self, Facts};
use crate::core::ports::Secret;
use crate::daemon::Fatal;
use crate::engine;

pub const HELP: &str = "\
Print the arguments with which a harness knows the relay's MCP server; write the files that it needs

Usage: agent-relay-broker mcp-args --cli <CLI> --agent-name <NAME> [OPTIONS]

Options:
  --cli <CLI>                 The harness, as a command line
  --agent-name <NAME>         Name of the agent
  --api-key <KEY>             Workspace key [env RELAY_API_KEY]
  --base-url <URL>            Base URL of the engine [env RELAY_BASE_URL]
  --agent-token <TOKEN>       Token of the agent [env RELAY_AGENT_TOKEN]
  --register                  Register the agent and use its token
  --workspaces-json <JSON>    Memberships [env RELAY_WORKSPACES_JSON]
  --default-workspace <ID>    Default workspace [env RELAY_DEFAULT_WORKSPACE]
  --cwd <DIR>                 Working directory of the harness [default: the current one]
  --existing-args <JSON>      Arguments it gets anyway, a JSON array of strings
  -h, --help                  Print help
";

#[derive(Default)]
struct Options {
    cli: Option<String>,
    agent_name: Option<String>,
    api_key: Option<String>,
    base_url: Option<String>,
    agent_token: Option<String>,
    register: bool,
    workspaces_json: Option<String>,
    default_workspace: Option<String>,
    cwd: Option<PathBuf>,
    existing_args: Option<String>,
}

fn read(mut parser: lexopt::Parser) -> Result<Options, Failure> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("cli") => options.cli = Some(parser.value()?.string()?),
            Long("agent-name") => options.agent_name = Some(parser.value()?.string()?),
            Long("api-key") => options.api_key = Some(parser.value()?.string()?),
            Long("base-url") => options.base_url = Some(parser.value()?.string()?),
            Long("agent-token") => options.agent_token = Some(parser.value()?.string()?),
            Long("register") => options.register = true,
            Long("workspaces-json") => options.workspaces_json = Some(parser.value()?.string()?),
            Long("default-workspace") => options.default_workspace = Some(parser.value()?.string()?),
            Long("cwd") => options.cwd = Some(PathBuf::from(parser.value()?)),
            Long("existing-args") => options.existing_args = Some(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// The flag, else the variable.
fn or_env(flag: Option<String>, name: &str) -> Option<String> {
    given(flag).or_else(|| given(std::env::var(name).ok()))
}

/// # Errors
/// A wrong command line or value, a refused registration, a harness that cannot be told.
pub fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let options = read(parser)?;
    let (Some(cli), Some(name)) = (options.cli, options.agent_name) else {
        return Err(Failure::Usage(
            "the following required arguments were not provided: --cli <CLI>, --agent-name <NAME>".into(),
        ));
    };
    let blank = |flag: &str, text: &str| match text.trim().is_empty() {
        true => Err(Fatal::new(format!("{flag} must not be empty"))),
        false => Ok(()),
    };
    blank("--cli", &cli)?;
    blank("--agent-name", &name)?;
    if options.register && given(options.agent_token.clone()).is_some() {
        return Err(
            Fatal::new("--register and --agent-token are mutually exclusive; pass one or the other, not both").into()
        );
    }
    let cwd = directory(options.cwd)?;
    let existing: Vec<String> = match &options.existing_args {
        None => Vec::new(),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Fatal::new("--existing-args must be a JSON array of strings").because(error))?,
    };
    let mut facts = Facts {
        workspace_key: or_env(options.api_key, "RELAY_API_KEY"),
        base_url: or_env(options.base_url, "RELAY_BASE_URL"),
        agent_name: name,
        agent_token: None,
        workspaces: or_env(options.workspaces_json, "RELAY_WORKSPACES_JSON"),
        default_workspace: or_env(options.default_workspace, "RELAY_DEFAULT_WORKSPACE"),
        result: None,
    };
    let minted = if options.register { Some(register(&facts, &cli)?) } else { None };
    facts.agent_token = minted.clone().or_else(|| or_env(options.agent_token, "RELAY_AGENT_TOKEN"));
    let told = harness::tell_alone(&cli, &cwd, &existing, &facts).map_err(|trouble| {
        let fatal = Fatal::new(trouble.message);
        trouble.cause.into_iter().fold(fatal, Fatal::because)
    })?;
    let files: Vec<String> = told.files.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    if let Some(in_use) = told.in_use {
        in_use.keep();
    }
    super::show(answer(&told.args, &files, minted.as_deref()).as_bytes())
}

/// The members stand in this order.
fn answer(args: &[String], files: &[String], token: Option<&str>) -> String {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        args: &'a [String],
        side_effect_files: &'a [String],
        agent_token: Option<&'a str>,
    }
    let answer = Answer { args, side_effect_files: files, agent_token: token };
    format!("{}\n", serde_json::to_string_pretty(&answer).unwrap_or_default())
}

fn directory(asked: Option<PathBuf>) -> Result<PathBuf, Fatal> {
    let asked = asked.unwrap_or_else(|| PathBuf::from("."));
    asked
        .canonicalize()
        .or_else(|_| std::path::absolute(Path::new(&asked)))
        .map_err(|error| Fatal::new("the current directory is unusable").because(error))
}

fn register(facts: &Facts, cli: &str) -> Result<String, Fatal> {
    let missing = |what: &str| Fatal::new(format!("--register requires {what}"));
    let key = facts.workspace_key.as_deref();
    let key = key.ok_or_else(|| missing("an API key (pass --api-key or set RELAY_API_KEY)"))?;
    let base = facts.base_url.as_deref();
    let base = base.ok_or_else(|| missing("a base URL (pass --base-url or set RELAY_BASE_URL)"))?;
    let base = base.trim().trim_end_matches('/');
    let client = engine::Client::new(engine::Settings::new(base, env!("CARGO_PKG_VERSION")))
        .map_err(|why| Fatal::new(format!("register transport error: {why}")))?;
    let token = client.token_for(&Secret::new(key.trim()), facts.agent_name.trim(), &harness::family_name(cli), base);
    token.map(|token| token.expose().to_string()).map_err(Fatal::new)
}
