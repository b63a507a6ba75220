//! The pending file: the messages that the journal keeps, as 9.1.6 wrote them, for people and for tools. The journal is the
//! truth; this is a view of it, read back only where there is no journal yet (a broker of 9.1.6 ran here before).

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::secrets;

/// One message on its way to one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub worker_name: String,
    pub delivery: Message,
    #[serde(default)]
    pub attempts: u32,
    #[serde(default)]
    pub queued_at_ms: u64,
    #[serde(default)]
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub delivery_id: String,
    pub event_id: String,
    #[serde(default)]
    pub workspace_id: Option<String>,
    #[serde(default)]
    pub workspace_alias: Option<String>,
    pub from: String,
    pub target: String,
    pub body: String,
    #[serde(default)]
    pub thread_id: Option<String>,
    #[serde(default = "usual_priority")]
    pub priority: u8,
    /// `wait` or `steer`.
    #[serde(default)]
    pub injection_mode: Value,
}

fn usual_priority() -> u8 {
    2
}

/// What an earlier broker left. A missing or damaged file is empty, a damaged entry is left out.
pub fn load(path: &Path) -> Vec<Entry> {
    let content = secrets::read(path).unwrap_or_default();
    let entries: Vec<Value> = serde_json::from_slice(&content).unwrap_or_default();
    entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect()
}

/// Writes the file, 0600.
///
/// # Errors
/// The system's, naming the file.
pub fn store(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(entries).map_err(io::Error::other)?;
    text.push('\n');
    secrets::replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        json!({"worker_name": "ann", "delivery": {"delivery_id": "del_1", "event_id": "http_1", "workspace_id": "ws_1",
            "workspace_alias": null, "from": "bob", "target": "#ops", "body": "b", "thread_id": null, "priority": 3,
            "injection_mode": "wait"}, "attempts": 2, "queued_at_ms": 5, "last_error": "e"})
    }

    #[test]
    fn the_file_has_the_shape_of_9_1_6_and_only_its_owner_reads_it() {
        let scratch = Scratch::new();
        let path = scratch.join("pending-b.json");
        std::fs::write(&path, json!([entry()]).to_string()).unwrap();
        let entries = load(&path);
        assert_eq!(entries.len(), 1);
        store(&path, &entries).unwrap();
        let stored: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(stored, json!([entry()]));
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn what_is_missing_or_damaged_is_left_out() {
        let scratch = Scratch::new();
        let path = scratch.join("pending-b.json");
        assert!(load(&path).is_empty());
        for (content, count) in [("[", 0), ("{}", 0), ("[]", 0)] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(load(&path).len(), count, "{content}");
        }
        std::fs::write(&path, json!([entry(), {"worker_name": 1}, 7]).to_string()).unwrap();
        assert_eq!(load(&path).len(), 1);
    }
}
