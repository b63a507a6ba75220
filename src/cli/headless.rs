//! `headless`: one run of a provider without a terminal, by frames.

use lexopt::prelude::*;

use super::Failure;
use super::bare_worker::{self, Kind};
use crate::wire::worker::WorkerReady;

pub const HELP: &str = "\
Run a provider once without a terminal; frames in on stdin, frames out on stdout, one JSON object a line

Usage: agent-relay-broker headless [OPTIONS] <PROVIDER> [-- ARGS...]

Providers: claude, opencode

Options:
  --agent-name <NAME>    Name of the agent [default: the one of init_worker, else headless-PROVIDER]
  -h, --help             Print help
";

/// # Errors
/// A wrong command line; a program that cannot be started.
pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut name, mut words) = (String::new(), Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("agent-name") => name = parser.value()?.string()?,
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if words.is_empty() {
        return Err(Failure::Usage("the following required arguments were not provided: <PROVIDER>".into()));
    }
    let provider = words.remove(0);
    if !matches!(provider.as_str(), "claude" | "opencode") {
        let message = format!("invalid value '{provider}' for '<PROVIDER>' [possible values: claude, opencode]");
        return Err(Failure::Usage(message));
    }
    let ready = WorkerReady { name: name.clone(), runtime: "headless".into(), ..WorkerReady::default() };
    let launch = bare_worker::launch(name, provider.clone(), words);
    bare_worker::run(Kind::Once { provider }, launch, ready)
}
