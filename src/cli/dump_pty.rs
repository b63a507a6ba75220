//! `dump-pty`: the screen of an agent, from the broker that runs it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lexopt::prelude::*;
use serde_json::Value;

use super::Failure;
use crate::daemon::Fatal;
use crate::http::encode_segment;

pub const HELP: &str = "\
Print the screen of an agent

Usage: agent-relay-broker dump-pty <NAME> [OPTIONS]

Options:
  --format <FORMAT>   plain, or ansi with colours and modes [default: plain]
  --broker-url <URL>  The broker's API [env RELAY_BROKER_URL; else from connection.json]
  --api-key <KEY>     Its key [env RELAY_BROKER_API_KEY; else from connection.json]
  --state-dir <DIR>   Where connection.json lies [default: ./.agentworkforce/relay]
  -h, --help          Print help
";

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Options {
    name: Option<String>,
    format: Option<String>,
    broker_url: Option<String>,
    api_key: Option<String>,
    state_dir: Option<PathBuf>,
}

fn read(mut parser: lexopt::Parser) -> Result<Options, Failure> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("format") => options.format = Some(parser.value()?.string()?),
            Long("broker-url") => options.broker_url = Some(parser.value()?.string()?),
            Long("api-key") => options.api_key = Some(parser.value()?.string()?),
            Long("state-dir") => options.state_dir = Some(PathBuf::from(parser.value()?)),
            Value(name) if options.name.is_none() => options.name = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// # Errors
/// A wrong command line; no broker to ask; its refusal.
pub fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let options = read(parser)?;
    let Some(name) = options.name else {
        return Err(Failure::Usage("the following required arguments were not provided: <NAME>".into()));
    };
    let format = options.format.as_deref().unwrap_or("plain");
    if !matches!(format, "plain" | "ansi") {
        return Err(Failure::Usage(format!("invalid value '{format}' for --format: expected plain or ansi")));
    }
    let place = options.state_dir.unwrap_or_else(|| PathBuf::from(".agentworkforce/relay")).join("connection.json");
    let given = |flag: Option<String>, name: &str| {
        [flag, std::env::var(name).ok()].into_iter().flatten().find(|text| !text.trim().is_empty())
    };
    let url = match given(options.broker_url, "RELAY_BROKER_URL") {
        Some(url) => url,
        None => from_file(&place, "url")?.ok_or_else(|| Fatal::new(format!("'{}' names no url", place.display())))?,
    };
    // Looked for even when the URL came from elsewhere; a file that is missing then is no fault.
    let key = match given(options.api_key, "RELAY_BROKER_API_KEY") {
        Some(key) => Some(key),
        None => from_file(&place, "api_key").unwrap_or_default(),
    };
    let screen = ask(url.trim().trim_end_matches('/'), key.as_deref().map(str::trim), &name, format)?;
    super::show(&screen)
}

fn from_file(path: &Path, key: &str) -> Result<Option<String>, Fatal> {
    let text = std::fs::read(path).map_err(|error| {
        Fatal::new(format!(
            "no broker is known: '{}' cannot be read; start one with --persist, or give --broker-url",
            path.display()
        ))
        .because(error)
    })?;
    let file: Value = serde_json::from_slice(&text)
        .map_err(|error| Fatal::new(format!("'{}' is not JSON", path.display())).because(error))?;
    Ok(file.get(key).and_then(Value::as_str).filter(|text| !text.trim().is_empty()).map(str::to_string))
}

fn ask(url: &str, key: Option<&str>, name: &str, format: &str) -> Result<Vec<u8>, Fatal> {
    let path = format!("{url}/api/spawned/{}/snapshot?format={format}", encode_segment(name));
    let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false);
    let agent = config.max_redirects(0).proxy(None).build().new_agent();
    let mut request = agent.get(&path);
    if let Some(key) = key {
        request = request.header("X-API-Key", key);
    }
    let unreachable = |error: ureq::Error| Fatal::new(format!("the broker at {url} does not answer")).because(error);
    let mut answer = request.call().map_err(unreachable)?;
    let body = answer.body_mut().read_to_string().map_err(unreachable)?;
    if !answer.status().is_success() {
        return Err(Fatal::new(format!("broker returned {}: {}", answer.status().as_u16(), body.trim())));
    }
    let wrong = |why: &str| Fatal::new(format!("the broker's answer is unusable: {why}"));
    let answer: Value = serde_json::from_str(&body).map_err(|error| wrong("it is not JSON").because(error))?;
    let screen = answer.get("screen").and_then(Value::as_str).ok_or_else(|| wrong("it holds no screen"))?;
    match format {
        "ansi" => STANDARD.decode(screen).map_err(|error| wrong("the screen is not base64").because(error)),
        _ => Ok(screen.as_bytes().to_vec()),
    }
}
