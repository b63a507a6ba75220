//! Codex: the server as `--config` pairs in TOML, no question about updates, and a thread that is made before the start.

use super::server::{NAME, OLD_NAME, Server};
use super::{Family, Harness, PLAIN, Present, Relay, Sessions};

pub static HARNESS: Harness = Harness {
    family: Family::Codex,
    names: &["codex"],
    bypass: &["--dangerously-bypass-approvals-and-sandbox"],
    bypassed_by: &[Present::Contains("dangerously-bypass"), Present::Contains("full-auto")],
    sessions: Sessions::Codex,
    relay: Relay::Arguments(arguments),
    ..PLAIN
};

const UPDATE_CHECK: &str = "check_for_update_on_startup";

fn arguments(server: &Server, existing: &[String]) -> Vec<String> {
    let says = |part: &str| existing.iter().any(|arg| arg.contains(part));
    let mut values = Vec::new();
    if !says(UPDATE_CHECK) {
        values.push(format!("{UPDATE_CHECK}=false"));
    }
    if !says(&format!("mcp_servers.{NAME}")) && !says(&format!("mcp_servers.{OLD_NAME}")) {
        let list: Vec<String> = server.command[1..].iter().map(|word| toml_string(word)).collect();
        values.push(format!("mcp_servers.{NAME}.command={}", toml_string(&server.command[0])));
        values.push(format!("mcp_servers.{NAME}.args=[{}]", list.join(", ")));
        for (name, value) in server.env.iter().chain(&server.result) {
            // The one value that 9.1.6 does not trim here.
            let value = if *name == "RELAY_AGENT_NAME" { &server.raw_name } else { value };
            values.push(format!("mcp_servers.{NAME}.env.{name}={}", toml_string(value)));
        }
    }
    values.into_iter().flat_map(|value| ["--config".to_string(), value]).collect()
}

/// A TOML basic string.
fn toml_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
