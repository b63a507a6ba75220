//! Cursor's agent: the server in `.cursor/mcp.json` of the working directory.

use serde_json::{Map, Value};

use super::config_file::{ConfigFile, Parsed, object_at};
use super::server::{NAME, OLD_NAME, Server};
use super::{Family, Harness, PLAIN, Relay};

pub static HARNESS: Harness = Harness {
    family: Family::Cursor,
    names: &["cursor-agent", "agent", "cursor"],
    first: &["--force", "--approve-mcps"],
    relay: Relay::File(&CONFIG),
    ..PLAIN
};

static CONFIG: ConfigFile = ConfigFile {
    path: ".cursor/mcp.json",
    makes_directories: true,
    arguments: &[],
    opt_out: None,
    entries: &[&["mcpServers", NAME], &["mcpServers", OLD_NAME]],
    merge,
};

fn merge(before: Parsed<'_>, server: &Server) -> Result<Map<String, Value>, String> {
    let mut config = match before {
        Parsed::Object(config) => config,
        // A copy of unreadable bytes is kept beside.
        Parsed::Absent | Parsed::Unusable(_) => Map::new(),
    };
    let servers = object_at(&mut config, "mcpServers");
    servers.remove(OLD_NAME);
    servers.insert(NAME.into(), server.entry(false));
    Ok(config)
}
