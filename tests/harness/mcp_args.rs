//! `mcp-args`, run for every recording.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::scene::Scene;
use crate::stub::Stub;
use crate::vectors;

/// What holds where a recording shows a defect: the recording with its expectations put right.
fn corrected(mut vector: Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let replace_all = |value: &mut Value, from: &str, to: &str| {
        let text = value.to_string().replace(from, to);
        *value = serde_json::from_str(&text).expect("still JSON");
    };
    match text(&vector["id"]).as_str() {
        // A quoted argument stays one argument.
        "claude-mcp-command-override-quoted-path" => {
            let command = text(&vector["env"]["AGENT_RELAY_MCP_COMMAND"]);
            let words = shell_words::split(&command).expect("well quoted");
            let config = text(&vector["stdout_json"]["args"][1]);
            let mut config: Value = serde_json::from_str(&config).expect("JSON");
            let server = &mut config["mcpServers"]["agent-relay"];
            server["command"] = words[0].clone().into();
            server["args"] = words[1..].to_vec().into();
            vector["stdout_json"]["args"][1] = config.to_string().into();
        }
        // Control characters are escaped as TOML wants it.
        "codex-newline-not-escaped" => {
            replace_all(&mut vector["stdout_json"]["args"], r"two\nlines", r"two\\nlines");
        }
        // The one-word form is an opt-out too.
        "opencode-existing-agent-equals" => {
            vector["stdout_json"]["args"] = Value::Array(vec![]);
            vector["stdout_json"]["sideEffectFiles"] = Value::Array(vec![]);
            vector["files_after"] = Value::Array(vec![]);
        }
        "opencode-mcp-command-override-ignored" => {
            let words = shell_words::split(&text(&vector["env"]["AGENT_RELAY_MCP_COMMAND"])).expect("well quoted");
            let mut config: Value = serde_json::from_str(&text(&vector["files_after"][0]["content"])).expect("JSON");
            config["mcp"]["agent-relay"]["command"] = words.into();
            let content = format!("{}\n", serde_json::to_string_pretty(&config).expect("JSON"));
            vector["files_after"][0]["content"] = content.into();
        }
        // Nothing of the user's is lost: a copy beside, or the other members in place.
        "cursor-malformed-file-replaced" | "gemini-trust-malformed" => {
            let before = vector["files_before"][0].clone();
            let copy = serde_json::json!({
                "path": format!("{}.unreadable", text(&before["path"])), "mode": "0600", "content": before["content"],
            });
            vector["files_after"].as_array_mut().expect("files").push(copy);
        }
        "cursor-file-without-mcpservers-replaced" | "cursor-mcpservers-null-replaced" => {
            let before: Value = serde_json::from_str(&text(&vector["files_before"][0]["content"])).expect("JSON");
            let mut after: Value = serde_json::from_str(&text(&vector["files_after"][0]["content"])).expect("JSON");
            for (key, value) in before.as_object().expect("an object").iter().filter(|(key, _)| *key != "mcpServers") {
                after[key] = value.clone();
            }
            let content = format!("{}\n", serde_json::to_string_pretty(&after).expect("JSON"));
            vector["files_after"][0]["content"] = content.into();
        }
        // The harness is configured where the agent will work.
        "gemini-cwd-differs-from-process-cwd" => {
            for call in vector["cli_invocations"].as_array_mut().expect("calls") {
                call["cwd"] = "{CWD}/sub".into();
            }
        }
        id => {
            // The same defect, seen through a link.
            if id == "gemini-cwd-symlink" {
                for call in vector["cli_invocations"].as_array_mut().expect("calls") {
                    call["cwd"] = "{CWD}/sub".into();
                }
            }
            assert!(vector.get("ours_differs").is_none(), "{id}: no difference is stated");
        }
    }
    vector
}

/// Plays one recording; what differs.
fn play(vector: &Value) -> Vec<String> {
    let id = vector["id"].as_str().expect("an id");
    let vector = corrected(vector.clone());
    let mut scene = Scene::new(id);
    let stub = Stub::start(vector["engine_mode"].as_str().unwrap_or("ok"));
    scene.names.push(("{ENGINE}", stub.url.clone()));
    scene.furnish(&vector);
    let before: Vec<String> = scene.files().into_iter().map(|(path, ..)| path).collect();

    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-relay-broker"));
    let argv = vector["argv"].as_array().expect("arguments").iter();
    command.args(argv.map(|word| scene.here(word.as_str().expect("a word"))));
    let path = format!("{}:/usr/bin:/bin", scene.path("{BIN}").display());
    command.env_clear().env("HOME", scene.path("{HOME}")).env("PATH", path).env("FAKE_CALLS", scene.calls_file());
    command.env("AGENT_RELAY_BROKER_LOG", "off").current_dir(scene.path("{CWD}")).stdin(Stdio::null());
    for (name, value) in vector["env"].as_object().into_iter().flatten() {
        command.env(name, scene.here(value.as_str().expect("a value")));
    }
    for name in vector["env_unset"].as_array().into_iter().flatten() {
        command.env_remove(name.as_str().expect("a name"));
    }
    let output = command.output().expect("the binary runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    let mut wrong = Vec::new();
    let mut check = |what: &str, seen: String, expected: String| {
        if seen != expected {
            wrong.push(format!("{id}: {what}:\n  seen     {seen}\n  expected {expected}"));
        }
    };
    check(
        "exit code",
        format!("{:?} {stderr}", output.status.code()),
        format!("Some({}) {stderr}", vector["exit_code"]),
    );
    match vector.get("stdout_json") {
        Some(expected) => {
            let expected = scene.here_in(expected);
            let seen: Value = serde_json::from_str(&stdout).unwrap_or_default();
            check("stdout", seen.to_string(), expected.to_string());
        }
        None => check("stdout", stdout.to_string(), String::new()),
    }
    if let Some(expected) = vector["stdout_text"].as_str() {
        check("stdout bytes", stdout.to_string(), scene.here(expected));
    }
    for part in vector["stderr_contains"].as_array().into_iter().flatten() {
        let part = scene.here(part.as_str().expect("a part"));
        let holds = stderr.contains(&part);
        check("stderr", if holds { part.clone() } else { stderr.to_string() }, part);
    }
    // A file that holds keys may be closed to others; the mode of the user's own file stays.
    let mut expected: Vec<(String, String)> = Vec::new();
    let files = scene.files();
    for file in vector["files_after"].as_array().into_iter().flatten() {
        let path = scene.here(file["path"].as_str().expect("a path"));
        let mode = u32::from_str_radix(file["mode"].as_str().expect("a mode"), 8).expect("octal");
        let seen = files.iter().find(|(seen, ..)| *seen == path).map_or(0, |(_, mode, _)| *mode);
        if seen != mode && (seen != 0o600 || before.contains(&path)) {
            check("mode", format!("{path} {seen:o}"), format!("{path} {mode:o}"));
        }
        expected.push((path, scene.here(file["content"].as_str().expect("a text"))));
    }
    expected.sort();
    let seen: Vec<(String, String)> = files.into_iter().map(|(path, _, text)| (path, text)).collect();
    check("files", format!("{seen:#?}"), format!("{expected:#?}"));
    let calls = vector.get("cli_invocations").map_or(Value::Array(vec![]), |calls| scene.here_in(calls));
    check("calls", Value::Array(scene.calls()).to_string(), calls.to_string());
    let requests = vector.get("engine_requests").map_or(Value::Array(vec![]), |requests| scene.here_in(requests));
    check("requests", Value::Array(stub.requests()).to_string(), requests.to_string());
    wrong
}

#[test]
fn mcp_args_answers_as_recorded() {
    let vectors = vectors("mcp_args_vectors");
    assert_eq!(vectors.len(), 127);
    let queue = std::sync::Mutex::new(vectors.iter());
    let wrong = std::sync::Mutex::new(Vec::new());
    // Some wait on purpose: beside each other they do not add up.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(vector) = { queue.lock().expect("no panic").next() } {
                    let found = play(vector);
                    wrong.lock().expect("no panic").extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no panic");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_rate_limit_is_the_answer_of_a_registration_also_when_it_is_short() {
    let stub = Stub::start("429-soon");
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-relay-broker"));
    command.args(["mcp-args", "--cli", "aider", "--agent-name", "a", "--register", "--api-key", "rk_live_x"]);
    let ended = command.args(["--base-url", &stub.url]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("register failed:") && said.contains("retry after 1s"), "{said}");
    assert_eq!(stub.requests().len(), 1);
}
