//! Keys in what commands and users get to read.

use std::process::Command;

use serde_json::json;

use crate::scene::Scene;
use crate::spawns::Broker;

/// Refuses the server, and repeats its arguments as many programs do.
const TALKATIVE: &str = r#"#!/bin/sh
case "$1 $2" in
"mcp add") echo "unknown option in: $*" >&2; exit 2 ;;
esac
"#;

#[test]
fn what_a_command_says_of_its_arguments_names_no_key() {
    let scene = Scene::new("talkative");
    for cli in ["gemini", "grok"] {
        scene.program(cli, TALKATIVE);
    }
    let broker = Broker::start(&scene);
    let (_, session) = broker.call("GET", "/api/session", None);
    let key = session["workspace_key"].as_str().expect("a key");
    for cli in ["gemini", "grok"] {
        let (status, answer) = broker.call("POST", "/api/spawn", Some(&json!({"name": "a", "cli": cli})));
        let error = answer["error"].as_str().expect("an error");
        assert_eq!(status, 500, "{answer}");
        assert!(error.contains("exited with code 2: unknown option in: mcp add"), "{error}");
        assert!(error.contains("RELAY_AGENT_TOKEN="), "{error}");
        assert!(!error.contains(key), "{error}");
        let whole =
            error.split("at_live_").nth(1).map(|rest| rest.bytes().take_while(u8::is_ascii_alphanumeric).count());
        assert!(whole.is_none_or(|length| length <= 4), "{error}");
    }
}

#[test]
fn a_wrong_command_line_is_not_repeated_with_its_key() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-relay-broker"));
    let ended = command.args(["swarm", "rk_live_0123456789abcdef"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("rk_live_0123…") && !said.contains("rk_live_01234"), "{said}");
}
