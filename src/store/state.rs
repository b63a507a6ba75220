//! The state file: which agents ran, for the next start and for people. Agents are never restarted from it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lock::is_alive;
use super::secrets;

/// The agents by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    #[serde(default)]
    pub agents: BTreeMap<String, Agent>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    pub runtime: String,
    #[serde(default)]
    pub parent: Option<String>,
    #[serde(default)]
    pub channels: Vec<String>,
    #[serde(default)]
    pub pid: Option<u32>,
    /// When the process started, in clock ticks after boot: its id alone may be another's by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_start: Option<u64>,
    /// What all of its processes have in their environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub started_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_task: Option<String>,
}

impl State {
    /// What the last run left, without agents that have no live process and cannot have left one. A missing or damaged file is empty. The file is
    /// rewritten if anything was left out.
    ///
    /// # Errors
    /// Only that rewrite's.
    pub fn load(path: &Path) -> io::Result<State> {
        let mut state: State =
            secrets::read(path).ok().and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default();
        let before = state.agents.len();
        state.agents.retain(|_, agent| agent.pid.is_some_and(is_alive) || agent.mark.is_some());
        if state.agents.len() != before {
            state.store(path)?;
        }
        Ok(state)
    }

    /// Writes the file, 0600.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        secrets::replace(path, text.as_bytes())
    }

    /// Removes the file at an orderly end.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn remove(path: &Path) -> io::Result<()> {
        secrets::remove(path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;
    use serde_json::json;

    #[test]
    fn dead_agents_are_left_out_and_the_file_rewritten() {
        let scratch = Scratch::new();
        let path = scratch.join("state-b.json");
        let agent = |pid: Value| json!({"runtime":"pty","parent":null,"channels":["general"],"pid":pid,"started_at":5});
        let content = json!({"agents":{
            "alive": agent(json!(std::process::id())),
            "dead": agent(json!(999_999_999)),
            "never": agent(Value::Null),
        }});
        std::fs::write(&path, content.to_string()).unwrap();
        let state = State::load(&path).unwrap();
        assert_eq!(state.agents.keys().collect::<Vec<_>>(), ["alive"]);
        let stored: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(stored, json!({"agents":{"alive": agent(json!(std::process::id()))}}));
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_missing_or_damaged_file_is_empty() {
        let scratch = Scratch::new();
        let path = scratch.join("state-b.json");
        assert_eq!(State::load(&path).unwrap(), State::default());
        std::fs::write(&path, "{\"agents\":[").unwrap();
        assert_eq!(State::load(&path).unwrap(), State::default());
        State::remove(&path).unwrap();
        State::remove(&path).unwrap();
    }
}
