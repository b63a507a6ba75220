//! Grok: the server by `grok mcp add`.

use super::commands::{Adder, flagged_env};
use super::server::{NAME, Server};
use super::{Family, Harness, PLAIN, Present, Relay};

pub static HARNESS: Harness = Harness {
    family: Family::Grok,
    names: &["grok"],
    bypass: &["--always-approve"],
    bypassed_by: &[Present::Is("--always-approve")],
    relay: Relay::Commands(&ADDER),
    ..PLAIN
};

static ADDER: Adder = Adder {
    add,
    repeats_when_it_exists: false,
    before: None,
    manual: "mcp add agent-relay --env RELAY_API_KEY=<key> --env RELAY_BASE_URL=<url> --command \"npx -y\" --args agent-relay --args mcp",
};

/// The name comes first, and words that look like flags go into the command: grok takes them for its own otherwise.
fn add(server: &Server) -> Vec<String> {
    let mut args: Vec<String> = vec!["mcp".into(), "add".into(), NAME.into()];
    args.extend(flagged_env("--env", server));
    let (flags, words): (Vec<&String>, Vec<&String>) =
        server.command[1..].iter().partition(|word| word.starts_with('-'));
    let command: Vec<&str> = [&server.command[0]].into_iter().chain(flags).map(String::as_str).collect();
    args.extend(["--command".into(), command.join(" ")]);
    args.extend(words.into_iter().flat_map(|word| ["--args".to_string(), word.clone()]));
    args
}
