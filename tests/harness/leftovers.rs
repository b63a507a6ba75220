//! What the commands leave behind that set a harness up.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::scene::Scene;
use crate::spawns::Broker;

/// Leaves a child, and one in a session of its own, behind itself; the agent is `cat`.
const LITTERS: &str = r#"#!/bin/sh
leave() {
  sleep 987 > /dev/null 2>&1 & echo "$1 $!" >> "$FAKE_CALLS"
  setsid sleep 987 > /dev/null 2>&1 & echo "$1 $!" >> "$FAKE_CALLS"
}
case "$1 $2" in
"debug models") leave models; echo '{"models":[{"slug":"gpt-5.5"}]}'; exit 0 ;;
"mcp add") leave add; exit 0 ;;
"mcp remove") exit 0 ;;
"app-server --listen")
  leave thread
  while read -r line; do
    id=${line#*\"id\":}; id=${id%%,*}
    echo "{\"id\":$id,\"result\":{\"thread\":{\"id\":\"thr_1\"}}}"
  done ;;
*) exec cat ;;
esac
"#;

/// Running, or ended and not reaped.
fn exists(pid: &str) -> bool {
    std::path::Path::new("/proc").join(pid).exists()
}

#[test]
fn commands_that_set_a_harness_up_end_with_all_their_children() {
    let scene = Scene::new("leftovers");
    for cli in ["codex", "gemini"] {
        scene.program(cli, LITTERS);
    }
    let broker = Broker::start(&scene);
    for (cli, model) in [("codex", Some("gpt-5.5")), ("gemini", None)] {
        let request = json!({"name": format!("{cli}-1"), "cli": cli, "model": model});
        let (status, answer) = broker.call("POST", "/api/spawn", Some(&request));
        assert_eq!(status, 200, "{answer}");
    }
    let text = std::fs::read_to_string(scene.calls_file()).expect("commands were run");
    let left: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    for who in ["thread", "models", "add"] {
        assert_eq!(left.iter().filter(|(command, _)| *command == who).count(), 2, "{text}");
    }
    let begun = Instant::now();
    loop {
        let found: Vec<_> = left.iter().filter(|(_, pid)| exists(pid)).collect();
        if found.is_empty() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "still there: {found:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
