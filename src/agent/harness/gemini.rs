//! Gemini: the server by `gemini mcp add`, in a folder that is trusted beforehand.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::commands::{Adder, flagged_env};
use super::config_file;
use super::server::{NAME, Server};
use super::{Family, Harness, PLAIN, Present, Relay};

pub static HARNESS: Harness = Harness {
    family: Family::Gemini,
    names: &["gemini"],
    bypass: &["--yolo"],
    bypassed_by: &[Present::Is("--yolo"), Present::Is("-y")],
    relay: Relay::Commands(&ADDER),
    ..PLAIN
};

static ADDER: Adder = Adder {
    add,
    repeats_when_it_exists: true,
    before: Some(trust),
    manual: "mcp add -e RELAY_API_KEY=<key> -e RELAY_BASE_URL=<url> agent-relay npx -y agent-relay mcp",
};

fn add(server: &Server) -> Vec<String> {
    let mut args: Vec<String> = vec!["mcp".into(), "add".into()];
    args.extend(flagged_env("-e", server));
    args.push(NAME.into());
    args.extend(server.command.iter().cloned());
    args
}

/// Trusts the folder `cwd` in the home's list, unless it is trusted already; gives the list's path. What cannot be written
/// is left: gemini then asks, and the question is answered on the screen.
fn trust(cwd: &Path, home: &Path) -> PathBuf {
    let home = home.canonicalize().unwrap_or_else(|_| home.to_path_buf());
    let path = home.join(".gemini/trustedFolders.json");
    let before = std::fs::read(&path).ok();
    let mut folders: Map<String, Value> = match before.as_deref().map(serde_json::from_slice) {
        None => Map::new(),
        Some(Ok(folders)) => folders,
        Some(Err(_)) => {
            config_file::keep_copy(&path, before.as_deref().unwrap_or_default());
            Map::new()
        }
    };
    let key = cwd.to_string_lossy().into_owned();
    if matches!(folders.get(&key).and_then(Value::as_str), Some("TRUST_FOLDER" | "TRUST_PARENT")) {
        return path;
    }
    folders.insert(key, "TRUST_FOLDER".into());
    let text = serde_json::to_string_pretty(&folders).unwrap_or_default();
    let made = path.parent().map(std::fs::create_dir_all);
    if let Err(error) = made.unwrap_or(Ok(())).and_then(|()| config_file::write(&path, text.as_bytes())) {
        log::warn!("gemini's list of trusted folders cannot be written: {error}");
    }
    path
}
