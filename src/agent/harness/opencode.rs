//! opencode: the server in `opencode.json` of the working directory, and an agent of that name.

use serde_json::{Map, Value, json};

use super::config_file::{ConfigFile, Parsed, object_at};
use super::server::{NAME, OLD_NAME, Server};
use super::{Family, Harness, PLAIN, Relay};

pub static HARNESS: Harness =
    Harness { family: Family::Opencode, names: &["opencode"], relay: Relay::File(&CONFIG), ..PLAIN };

static CONFIG: ConfigFile = ConfigFile {
    path: "opencode.json",
    makes_directories: false,
    arguments: &["--agent", NAME],
    opt_out: Some("--agent"),
    entries: &[&["mcp", NAME], &["mcp", OLD_NAME], &["agent", NAME], &["agent", OLD_NAME], &["permission", "*"]],
    merge,
};

fn merge(before: Parsed<'_>, server: &Server) -> Result<Map<String, Value>, String> {
    let mut config = match before {
        Parsed::Absent => Map::new(),
        Parsed::Object(config) => config,
        // What cannot be read cannot be kept either: the user's own file stays as it is.
        Parsed::Unusable(why) => return Err(why.to_string()),
    };
    let mcp = object_at(&mut config, "mcp");
    mcp.remove(OLD_NAME);
    mcp.insert(
        NAME.into(),
        json!({"type": "local", "command": server.command, "environment": server.env_object(false)}),
    );
    let agents = object_at(&mut config, "agent");
    agents.remove(OLD_NAME);
    agents.entry(NAME).or_insert_with(
        || json!({"description": "Agent with Agent Relay MCP enabled", "tools": {format!("{NAME}_*"): true}}),
    );
    object_at(&mut config, "permission").entry("*").or_insert_with(|| json!({"*": "allow"}));
    Ok(config)
}
