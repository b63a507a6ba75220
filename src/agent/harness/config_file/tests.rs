use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;
use crate::agent::harness::{Facts, Told, tell_alone};

struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let path = std::env::temp_dir().join(format!("config-{}", crate::sys::ids::uuid_hex()));
        std::fs::create_dir_all(&path).expect("a directory");
        Place(path)
    }

    fn agent(&self, cli: &str, name: &str) -> Told {
        let facts = Facts { agent_name: name.into(), ..Facts::default() };
        tell_alone(cli, &self.0, &[], &facts).unwrap_or_else(|trouble| panic!("{trouble}"))
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.0.join(file)).ok()
    }

    fn value(&self) -> Option<Value> {
        Some(serde_json::from_str(&self.read("opencode.json")?).expect("JSON"))
    }

    /// Somebody else writes to the file.
    fn edit(&self, change: &dyn Fn(&mut Value)) {
        let mut now = self.value().expect("a file");
        change(&mut now);
        std::fs::write(self.0.join("opencode.json"), now.to_string()).expect("a file");
    }

    fn name_in(&self, file: &str) -> Option<String> {
        let value: Value = serde_json::from_str(&self.read(file)?).expect("JSON");
        let place = value.pointer("/mcp/agent-relay/environment/RELAY_AGENT_NAME");
        Some(place?.as_str()?.to_string())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_last_agent_takes_the_file_with_it() {
    let place = Place::new();
    let first = place.agent("opencode", "a");
    let mode = std::fs::metadata(place.0.join("opencode.json")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = place.agent("opencode", "b");
    drop(first);
    assert_eq!(place.name_in("opencode.json").as_deref(), Some("b"), "the second still needs it");
    drop(second);
    assert_eq!(place.read("opencode.json"), None);

    let cursor = place.agent("cursor", "c");
    assert!(place.read(".cursor/mcp.json").is_some());
    drop(cursor);
    assert!(!place.0.join(".cursor").exists(), "the directory was made for it");
}

#[test]
fn the_users_own_file_is_put_back_byte_for_byte() {
    let place = Place::new();
    let own = "{ \"theme\":\t\"dark\", \"mcp\": {\"agent-relay\": 1} }";
    std::fs::write(place.0.join("opencode.json"), own).expect("a file");
    std::fs::create_dir(place.0.join(".cursor")).expect("a directory");
    drop((place.agent("opencode", "a"), place.agent("cursor", "a")));
    assert_eq!(place.read("opencode.json").as_deref(), Some(own));
    assert!(place.0.join(".cursor").exists(), "it was there before");
}

#[test]
fn what_somebody_else_wrote_between_two_agents_stays() {
    const OWN: &str = "{\"mcp\":{\"agent-relay\":\"own\"}}";
    let place = Place::new();
    let file = place.0.join("opencode.json");
    let edit = |change: &dyn Fn(&mut Value)| place.edit(change);
    let left = || place.value().expect("a file");
    for before in [None, Some(OWN)] {
        drop(std::fs::remove_file(&file));
        if let Some(before) = before {
            std::fs::write(&file, before).expect("a file");
        }
        let entry = before.map(|_| Value::from("own"));
        let first = place.agent("opencode", "a");
        edit(&|now| now["theme"] = "light".into());
        let second = place.agent("opencode", "b");
        let third = place.agent("opencode", "c");
        drop((first, second, third));
        assert_eq!((&left()["theme"], left()["mcp"].get("agent-relay")), (&"light".into(), entry.as_ref()));

        // An entry of their own is what there is to put back.
        let first = place.agent("opencode", "a");
        edit(&|now| now["mcp"]["agent-relay"] = "mine".into());
        let second = place.agent("opencode", "b");
        drop((first, second));
        assert_eq!(left(), json!({"theme": "light", "mcp": {"agent-relay": "mine"}}));

        // A file that they removed was ours alone.
        let first = place.agent("opencode", "a");
        std::fs::remove_file(&file).expect("a file");
        let second = place.agent("opencode", "b");
        drop((first, second));
        assert_eq!(place.read("opencode.json"), None);
    }
}

#[test]
fn what_somebody_else_wrote_meanwhile_stays() {
    let place = Place::new();
    std::fs::write(place.0.join("opencode.json"), "{\"mcp\":{\"agent-relay\":\"own\"}}").expect("a file");
    let agent = place.agent("opencode", "a");
    let mut now: Value = serde_json::from_str(&place.read("opencode.json").expect("a file")).expect("JSON");
    now["theme"] = "light".into();
    std::fs::write(place.0.join("opencode.json"), now.to_string()).expect("a file");
    drop(agent);
    let left: Value = serde_json::from_str(&place.read("opencode.json").expect("a file")).expect("JSON");
    assert_eq!((&left["theme"], &left["mcp"]["agent-relay"]), (&"light".into(), &"own".into()));

    // An entry that is not ours any more is left alone.
    let agent = place.agent("opencode", "b");
    let other = "{\"mcp\":{\"agent-relay\":{\"command\":[\"mine\"]}}}";
    std::fs::write(place.0.join("opencode.json"), other).expect("a file");
    drop(agent);
    assert_eq!(place.read("opencode.json").as_deref(), Some(other));
}

#[test]
fn all_that_is_ours_goes_from_a_file_that_somebody_else_wrote() {
    let place = Place::new();
    let file = place.0.join("opencode.json");
    let edit = |change: &dyn Fn(&mut Value)| place.edit(change);
    let left = || place.value();

    let agent = place.agent("opencode", "a");
    edit(&|now| now["theme"] = "light".into());
    drop(agent);
    assert_eq!(left(), Some(json!({"theme": "light"})));

    // Formatted anew, a file of ours alone is still that.
    std::fs::remove_file(&file).expect("a file");
    let agent = place.agent("opencode", "a");
    edit(&|_| {});
    drop(agent);
    assert_eq!(left(), None);

    // What stood in the place of ours, or had to go for it, comes again.
    let own = json!({"permission": "ask", "mcp": {"relaycast": 1, "x": 2}, "agent": {"agent-relay": "own"}});
    std::fs::write(&file, own.to_string()).expect("a file");
    let agent = place.agent("opencode", "a");
    edit(&|now| now["mcp"]["y"] = 3.into());
    drop(agent);
    let mut expected = own;
    expected["mcp"]["y"] = 3.into();
    assert_eq!(left(), Some(expected));

    // What they changed is theirs.
    std::fs::write(&file, "{}").expect("a file");
    let agent = place.agent("opencode", "a");
    edit(&|now| now["permission"] = json!({"*": "deny"}));
    drop(agent);
    assert_eq!(left(), Some(json!({"permission": {"*": "deny"}})));
}

#[test]
fn unreadable_bytes_are_copied_once() {
    let place = Place::new();
    std::fs::create_dir(place.0.join(".cursor")).expect("a directory");
    let copies = || {
        let entries = std::fs::read_dir(place.0.join(".cursor")).expect("a directory");
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("unreadable")).count()
    };
    for (text, expected) in [("{ // mine", 1), ("{ // yours", 2), ("{ // mine", 2)] {
        std::fs::write(place.0.join(".cursor/mcp.json"), text).expect("a file");
        for name in ["a", "b", "c"] {
            drop(place.agent("cursor", name));
            assert_eq!(place.read(".cursor/mcp.json").as_deref(), Some(text));
            assert_eq!(copies(), expected);
        }
    }
}
