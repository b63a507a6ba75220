//! Spawns over the local API, for every recording: what the harness was started with, and what was done before.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::scene::Scene;
use crate::vectors;

const KEY: &str = "bk";
/// The message to an agent without a terminal, and what it is run with.
const PROMPT: &str = "the one message";
const CLAUDE_ONCE: [&str; 2] = ["-p", "--dangerously-skip-permissions"];
const OPENCODE_ONCE: [&str; 1] = ["run"];
const LONG: Duration = Duration::from_secs(60);

pub struct Broker {
    pub process: Child,
    url: String,
    agent: ureq::Agent,
}

impl Broker {
    pub fn start(scene: &Scene) -> Broker {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-relay-broker"));
        command.args(["init", "--local", "--persist", "--name", "b1", "--api-port", "0"]);
        let path = format!("{}:/usr/bin:/bin", scene.path("{BIN}").display());
        command.env_clear().env("HOME", scene.path("{HOME}")).env("PATH", path).env("FAKE_CALLS", scene.calls_file());
        let env = [("RELAY_BROKER_API_KEY", KEY), ("TERM", "xterm"), ("EXTRA_VAR", "parent"), ("CLAUDECODE", "1")];
        command.envs(env).env("AGENT_RELAY_BROKER_LOG", "off").current_dir(scene.path("{CWD}"));
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let url = line.trim().rsplit(' ').next().expect("a URL").to_string();
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(LONG));
        let broker = Broker { process, url, agent: config.build().new_agent() };
        let begun = Instant::now();
        while broker.call("GET", "/api/session", None).0 != 200 {
            assert!(begun.elapsed() < LONG, "it does not become ready");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        broker
    }

    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let url = format!("{}{path}", self.url);
        let request = ureq::http::Request::builder().method(method).uri(url).header("X-API-Key", KEY);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.header("Content-Type", "application/json").body(body).expect("a request");
        let mut answer = self.agent.run(request).expect("an answer");
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().expect("a text");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|word| word.as_str().expect("a word").to_string()).collect()
}

/// The arguments that a recording expects.
fn expected_argv(vector: &Value) -> Vec<String> {
    // Of an agent without terminal only its worker's words are recorded.
    if vector["harness_argv"].is_null() || vector["harness_argv"] == "same" {
        let words = words(&vector["worker_argv"]);
        let dashes = words.iter().position(|word| word == "--");
        return dashes.map_or_else(Vec::new, |at| words[at + 1..].to_vec());
    }
    // Cursor's flags stand there twice; once is enough.
    let mut argv = words(&vector["harness_argv"]);
    if argv[..2] == argv[2..4] {
        argv.drain(..2);
    }
    argv
}

/// Tokens of structured results differ from run to run.
fn without_tokens(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("arr_") {
        let token = rest[at + 4..].bytes().take_while(u8::is_ascii_hexdigit).count();
        out.push_str(&rest[..at]);
        out.push_str(if token == 32 { "{ARR_TOKEN}" } else { &rest[at..at + 4 + token] });
        rest = &rest[at + 4 + token..];
    }
    out + rest
}

fn is_uuid(text: &str) -> bool {
    let shape = text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-');
    shape && text.as_bytes()[14] == b'4'
}

/// Plays one recording; what differs.
fn play(vector: &Value, scene: &mut Scene, broker: &Broker) -> Vec<String> {
    let id = vector["id"].as_str().expect("an id").to_string();
    let mut wrong = Vec::new();
    let mut check = |what: &str, seen: String, expected: String| {
        if seen != expected {
            wrong.push(format!("{id}: {what}:\n  seen     {seen}\n  expected {expected}"));
        }
    };
    for end in ["", ".env", ".config"] {
        let _ = std::fs::remove_file(format!("{}{end}", scene.calls_file().display()));
    }
    let request = scene.here_in(&vector["request"]);
    let name = request["name"].as_str().expect("a name").to_string();
    let before: Vec<String> = scene.files().into_iter().map(|(path, ..)| path).collect();
    let (status, answer) = broker.call("POST", "/api/spawn", Some(&request));
    // Nothing is started that does not exist (decision 12).
    if id == "claude-colon" || id == "missing-exe-gemini-path" {
        check("status", format!("{status} {answer}"), format!("500 {answer}"));
        let part = vector["error_contains"].as_str().unwrap_or("claude:opus");
        let holds = answer["error"].as_str().is_some_and(|error| error.contains(part));
        check("error", if holds { part.into() } else { answer.to_string() }, part.to_string());
        return wrong;
    }
    check("status", format!("{status} {answer}"), format!("200 {answer}"));
    if status != 200 {
        return wrong;
    }
    for (path, content) in vector["files_after"].as_object().into_iter().flatten() {
        let mut content = scene.here(content.as_str().expect("a text"));
        // The folder by its name, not `.`.
        content = content.replace("\".\":", &format!("\"{}\":", scene.here("{CWD}")));
        let seen = std::fs::read_to_string(scene.path(path)).unwrap_or_default();
        if path.ends_with("trustedFolders.json") {
            // Another name sorts elsewhere.
            let members = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default().to_string();
            check(path, members(&seen), members(&content));
        } else {
            check(path, seen, content);
        }
    }
    if id == "harness-app" {
        // Nothing is started: what it is attached to was told with the spawn.
        let host = answer["pid"] == vector["response"]["pid"] && answer["sessionId"] == vector["response"]["sessionId"];
        check("host and session", format!("{host} {}", answer["runtime"]), "true \"headless\"".into());
        let (status, answer) = broker.call("DELETE", &format!("/api/spawned/{name}"), None);
        check("release", format!("{status} {answer}"), format!("200 {answer}"));
        return wrong;
    }
    let headless = request["transport"] == "headless";
    if headless {
        let (status, answer) = broker.call("POST", "/api/send", Some(&json!({"to": name, "text": PROMPT})));
        check("prompt", format!("{status} {answer}"), format!("200 {answer}"));
    }
    let begun = Instant::now();
    let prepares = |call: &Value| {
        let argv = words(&call["argv"]);
        call.get("codex_app_server_request").is_some()
            || matches!(argv.first().map(String::as_str), Some("mcp" | "app-server" | "debug"))
    };
    let call = loop {
        if let Some(call) = scene.calls().into_iter().find(|call| !prepares(call)) {
            break call;
        }
        assert!(begun.elapsed() < LONG, "{id}: the harness was not started: {:?}", scene.calls());
        std::thread::park_timeout(Duration::from_millis(5));
    };
    let mut expected = vector["response"].clone();
    let session = answer["sessionId"].as_str().unwrap_or_default().to_string();
    if expected["sessionId"] == "{UUID}" {
        check("session", is_uuid(&session).to_string(), "true".into());
        expected["sessionId"] = session.clone().into();
    }
    // A blank model is no model.
    if expected["model"].as_str().is_some_and(|model| model.trim().is_empty()) {
        expected["model"] = Value::Null;
    }
    for key in ["sessionId", "model", "runtime", "pre_registered", "warning", "success"] {
        check(key, answer[key].to_string(), expected[key].to_string());
    }

    let mut argv = words(&call["argv"]);
    let flag = argv.iter().position(|word| word == "--mcp-config");
    let config = flag.map(|at| argv[at + 1].clone()).filter(|path| path.contains("/agents-b1/"));
    if let (Some(at), Some(_)) = (flag, &config) {
        // The keys stand in a private file (decision 14).
        let copy = format!("{}.config", scene.calls_file().display());
        let mode = std::fs::metadata(&copy).map_or(0, |meta| meta.permissions().mode() & 0o777);
        check("mode of claude's configuration", format!("{mode:o}"), "600".into());
        argv[at + 1] = std::fs::read_to_string(&copy).unwrap_or_default();
    }
    if headless {
        let first = if request["cli"] == "claude" { &CLAUDE_ONCE[..] } else { &OPENCODE_ONCE[..] };
        check("the run", json!(argv.drain(..first.len()).collect::<Vec<_>>()).to_string(), json!(first).to_string());
        check("the message", argv.pop().unwrap_or_default(), PROMPT.into());
        // Behind a flag that takes several values.
        argv.pop_if(|word| word == "--");
    }
    let expected_argv: Vec<String> =
        expected_argv(vector).iter().map(|word| scene.here(word).replace("{UUID}", &session)).collect();
    check("arguments", without_tokens(&json!(argv).to_string()), json!(expected_argv).to_string());
    let directory = match &vector["harness_cwd"] {
        Value::Null => request.get("cwd").cloned().unwrap_or_else(|| scene.here("{CWD}").into()),
        directory => scene.here_in(directory),
    };
    check("directory", call["cwd"].to_string(), directory.to_string());

    let env = std::fs::read_to_string(format!("{}.env", scene.calls_file().display())).unwrap_or_default();
    let of_env = |name: &str| env.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let added = &vector[if headless { "worker_env_added" } else { "env_added" }];
    for (name, value) in added.as_object().into_iter().flatten() {
        let seen = of_env(name).map(without_tokens);
        check(name, format!("{seen:?}"), format!("{:?}", Some(scene.here(value.as_str().expect("a text")))));
    }
    for name in ["RELAY_BROKER_API_KEY", "RELAY_NODE_TOKEN", "RELAY_SKIP_BOOTSTRAP", "CLAUDECODE"] {
        check(name, format!("{:?}", of_env(name)), "None".into());
    }
    if added.get("RELAY_AGENT_TOKEN").is_none() {
        check("no token", format!("{:?}", of_env("RELAY_AGENT_TOKEN")), "None".into());
    }
    let mut done: Vec<Value> = scene.calls().into_iter().filter(prepares).collect();
    let mut expected: Vec<Value> =
        vector["before_spawn"].as_array().into_iter().flatten().map(|call| scene.here_in(call)).collect();
    if id == "gemini-cwd-y" {
        // Commands run where the agent works.
        expected.iter_mut().for_each(|call| call["cwd"] = scene.here("{ACWD}").into());
    }
    // A failed look-up of a model and the thread do not depend on each other.
    for calls in [&mut done, &mut expected] {
        calls.sort_by_key(|call| call["argv"][0] == "debug");
    }
    check("before the start", json!(done).to_string(), json!(expected).to_string());
    let (status, answer) = broker.call("DELETE", &format!("/api/spawned/{name}"), None);
    check("release", format!("{status} {answer}"), format!("200 {answer}"));
    if let Some(path) = config {
        check("claude's configuration", std::path::Path::new(&path).exists().to_string(), "false".into());
    }
    let left: Vec<String> = scene.files().into_iter().map(|(path, ..)| path).collect();
    let left = left.iter().filter(|path| !before.contains(path) && path.ends_with("/opencode.json")).count()
        + left.iter().filter(|path| !before.contains(path) && path.ends_with("/mcp.json")).count();
    check("files of the agent", left.to_string(), "0".into());
    wrong
}

#[test]
fn spawned_harnesses_are_started_as_recorded() {
    let vectors = vectors("spawn_vectors");
    assert_eq!(vectors.len(), 48);
    let mut scene = Scene::new("spawns");
    for cli in [
        "claude",
        "codex",
        "gemini",
        "opencode",
        "goose",
        "aider",
        "cursor-agent",
        "agent",
        "droid",
        "grok",
        "copilot",
        "amp",
    ] {
        scene.fake(cli);
    }
    let broker = Broker::start(&scene);
    let (_, session) = broker.call("GET", "/api/session", None);
    let text = |key: &str| session[key].as_str().unwrap_or_default().to_string();
    let (key, workspace, engine) = (text("workspace_key"), text("default_workspace_id"), text("relay_base_url"));
    scene.names.extend([
        ("{ENGINE}", engine),
        ("rk_live_x", key),
        ("ws_1", workspace),
        ("{BROKER}", broker.url.clone()),
    ]);
    let mut wrong = Vec::new();
    let mut played = 0;
    for vector in &vectors {
        wrong.extend(play(vector, &mut scene, &broker));
        played += 1;
    }
    assert_eq!(played, 48);
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}
