//! Claude Code: the server as one argument, and a session id of our choice.

use super::server::{NAME, Server};
use super::{Family, Harness, PLAIN, Present, Relay, Sessions};

pub static HARNESS: Harness = Harness {
    family: Family::Claude,
    names: &["claude"],
    bypass: &["--dangerously-skip-permissions"],
    bypassed_by: &[Present::Contains("dangerously-skip-permissions")],
    sessions: Sessions::Claude,
    relay: Relay::Arguments(arguments),
    ..PLAIN
};

/// The flag before the server's configuration: its JSON, or a file that holds it.
pub const CONFIG_FLAG: &str = "--mcp-config";

/// Never with `--strict-mcp-config`: claude goes on loading the user's own servers.
fn arguments(server: &Server, existing: &[String]) -> Vec<String> {
    if existing.iter().any(|arg| arg == CONFIG_FLAG || arg.starts_with("--mcp-config=")) {
        return Vec::new();
    }
    let config = serde_json::json!({"mcpServers": {NAME: server.entry(true)}});
    vec![CONFIG_FLAG.into(), config.to_string()]
}
