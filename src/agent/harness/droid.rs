//! Droid: the server by `droid mcp add`.

use super::commands::{Adder, flagged_env};
use super::server::{NAME, Server};
use super::{Family, Harness, PLAIN, Relay};

pub static HARNESS: Harness =
    Harness { family: Family::Droid, names: &["droid"], echo_window_secs: 3, relay: Relay::Commands(&ADDER), ..PLAIN };

static ADDER: Adder = Adder {
    add,
    repeats_when_it_exists: true,
    before: None,
    manual: "mcp add --env RELAY_API_KEY=<key> --env RELAY_BASE_URL=<url> agent-relay -- npx -y agent-relay mcp",
};

fn add(server: &Server) -> Vec<String> {
    let mut args: Vec<String> = vec!["mcp".into(), "add".into()];
    args.extend(flagged_env("--env", server));
    // Without the dashes droid takes `-y` for an option of its own.
    args.extend([NAME.into(), "--".into()]);
    args.extend(server.command.iter().cloned());
    args
}
