//! What cannot work is refused with words that say what to do, and leaves nothing behind.

use std::io::{BufReader, Write};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde_json::{Value, json};

use crate::broker::{KEY, Start};
use crate::client::{self, connect, read_answer};
use crate::engine::Engine;
use crate::house::House;
use crate::process::Process;
use crate::scripted::Scripted;
use crate::until::LONG;

#[track_caller]
fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

/// Nothing but the homes and what the test itself made.
#[track_caller]
fn nothing_left(house: &House) {
    let left: Vec<_> = std::fs::read_dir(house.path("tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left in TMPDIR: {left:?}");
    assert!(!house.path("work/.agentworkforce/relay/connection.json").exists(), "connection.json stayed");
    assert_eq!(house.processes(), []);
}

#[test]
fn a_port_in_use_is_named_with_the_remedy() {
    let house = House::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = Start::at(&house, "http://127.0.0.1:9", "").arg("--api-port").arg(&port).fails();
    assert_eq!(code, 1);
    has(&said, &[&format!("Error: failed to bind API on http://127.0.0.1:{port}"), "in use", "--api-port"]);
    nothing_left(&house);
}

#[test]
fn a_second_broker_of_a_directory_is_refused_in_the_words_clients_match() {
    let house = House::new();
    let engine = Engine::start(&house);
    let mut first = Start::on(&house, &engine).arg("--persist").online();
    let file = first.connection_file();
    let before = std::fs::read(&file).unwrap();
    let (code, said) = Start::on(&house, &engine).arg("--persist").fails();
    assert_eq!(code, 1);
    let dir = house.path("work").canonicalize().unwrap().join(".agentworkforce/relay");
    let words = format!(
        "Error: another broker instance is already running in this directory (pid: {}, {})",
        first.process.pid(),
        dir.display()
    );
    has(&said, &[&words]);
    assert_eq!(std::fs::read(&file).unwrap(), before, "the file of the running broker was touched");
    first.spawn("ann");
    assert_eq!(first.stop().0, Some(0), "{}", first.seen());
    assert!(!file.exists());
}

#[test]
fn an_engine_that_is_not_there_ends_the_start_with_its_address() {
    let house = House::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = Start::at(&house, &format!("http://{free}"), "").arg("--persist");
    let (code, said) = start.fails();
    assert_eq!(code, 1);
    has(&said, &["Error: failed to initialize relaycast session", "Caused by:", "POST /v1/workspaces"]);
    nothing_left(&house);
}

#[test]
fn a_rejected_key_names_its_variable() {
    let house = House::new();
    let engine = Engine::start(&house);
    let (code, said) = Start::at(&house, &engine.url(), "rk_live_nobody_has_this_key").fails();
    assert_eq!(code, 1);
    has(&said, &["explicit workspace key from RELAY_WORKSPACE_KEY was rejected", "HTTP 401"]);
    let (code, said) = Start::at(&house, &engine.url(), "not a key").fails();
    assert_eq!(code, 1);
    has(&said, &["RELAY_WORKSPACE_KEY is not a valid workspace key"]);
    assert!(!said.contains("rk_live_nobody_has_this_key"), "a key in an error text: {said}");
    drop(engine);
    crate::until::look(LONG, || house.processes().is_empty().then_some(()));
    nothing_left(&house);
}

/// A pipe into which not one byte more goes.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while writer.write(&vec![b'.'; size]).is_ok() {}
    }
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

/// A client that finds the port closed, and the process still there, takes that for the reason.
#[test]
fn the_port_of_a_failed_start_answers_until_the_process_is_gone() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([{"route": "/v1/agents", "method": "POST", "count": 0, "kind": "status", "status": 401}]));
    let start = Start::on(&house, &engine).arg("--persist").env("AGENT_RELAY_BROKER_LOG", "off");
    // The last thing that it does is to say why, and there it stays for a while.
    let (reader, writer) = full_pipe();
    let process = Process::start_saying_to(writer, start.command());
    let mut broker = start.of(process);
    let file = broker.connection_file();
    broker.until("the start has failed", || (engine.matched(0) > 0 && !file.exists()).then_some(()));
    let answer = broker.call("GET", "/api/session", None);
    assert_eq!((answer.status, answer.text.as_str()), (503, "Broker is starting, please retry"));
    drop(reader);
    assert_eq!(broker.process.wait(LONG).0, Some(1));
}

#[test]
fn f23_without_a_node_token_it_never_becomes_ready() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([{"route": "/v1/nodes", "method": "POST", "count": 0, "kind": "status", "status": 403}]));
    let (code, said) = Start::on(&house, &engine).arg("--persist").env("AGENT_RELAY_STARTUP_DEBUG", "1").fails();
    assert_eq!(code, 1);
    has(
        &said,
        &["[agent-relay] FATAL CONFIG: no node token available for node 'node_", "RELAY_NODE_TOKEN", "HTTP 403"],
    );
    let ready = said.lines().any(|line| line.starts_with("[agent-relay][startup") && line.ends_with(" ready"));
    assert!(!ready, "{said}");
    assert_eq!(engine.matched(0), 1, "a refusal is not asked for again");
    assert_eq!(engine.online_nodes(), []);
    assert!(!house.path("work/.agentworkforce/relay/connection.json").exists());
}

#[test]
fn the_old_switch_is_fatal_even_when_blank() {
    let house = House::new();
    let (code, said) = Start::at(&house, "http://127.0.0.1:9", "").env("AGENT_RELAY_DISABLE_RELAYCAST", "").fails();
    assert_eq!(code, 1);
    has(&said, &["Error: AGENT_RELAY_DISABLE_RELAYCAST is no longer supported; broker requires Relaycast"]);
    nothing_left(&house);
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_so_on_stderr() {
    let house = House::new();
    for line in [
        &[][..],
        &["nonsense"],
        &["init", "--nonsense"],
        &["init", "--api-port", "65536"],
        &["init", "--api-port", "x"],
        &["init", "--name"],
        &["init", "extra"],
        &["init", "--data", "d"],
        &["engine", "--listen", "nowhere"],
    ] {
        let mut command = house.command(&house.path("work"));
        command.args(line);
        let mut process = Process::start(command);
        let (code, _) = process.wait(LONG);
        assert_eq!(code, Some(2), "{line:?}: {}", process.seen());
        assert_eq!(process.out(), "", "{line:?}");
        assert!(process.err().contains("error: "), "{line:?}: {}", process.err());
    }
    for line in [&["--version"][..], &["-V"], &["--help"], &["help", "init"], &["init", "--help"]] {
        let mut command = house.command(&house.path("work"));
        command.args(line);
        let mut process = Process::start(command);
        assert_eq!(process.wait(LONG).0, Some(0), "{line:?}");
        assert!(!process.out().is_empty(), "{line:?}");
        if line[0].contains('V') || line[0].contains("version") {
            assert_eq!(process.out(), concat!("agent-relay-broker ", env!("CARGO_PKG_VERSION"), "\n"));
        }
    }
    nothing_left(&house);
}

#[test]
fn f32_a_program_that_cannot_run_fails_the_spawn_and_enrols_nobody() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    std::fs::write(house.path("work/plain"), "not a program").unwrap();
    let plain = house.path("work/plain").display().to_string();
    for cli in ["no-such-program-here", "/no/such/program", &plain, "", "'unclosed"] {
        let answer = broker.spawn_with(&json!({"name": "ann", "cli": cli}));
        assert_eq!(answer.status, 500, "{cli:?}: {}", answer.text);
        let body = answer.json();
        assert_eq!((&body["success"], &body["name"]), (&json!(false), &json!("ann")), "{body}");
        let named = if cli.contains('\'') { "quoting" } else { cli };
        assert!(body["error"].as_str().is_some_and(|error| error.contains(named)), "{cli:?}: {body}");
    }
    let answer = broker.spawn_with(&json!({"name": "ann", "cli": "cat", "cwd": "/no/such/directory"}));
    assert_eq!(answer.status, 500, "{}", answer.text);
    let failed = engine.spawn(&broker.node_name(), "bert", "no-such-program-here");
    assert_eq!(failed["status"], "failed", "{failed}");
    has(failed["error"].as_str().unwrap(), &["spawn_failed", "no-such-program-here"]);
    for name in ["ann", "bert"] {
        assert!(engine.agent(name).is_none_or(|row| row["status"] == "offline" && row["node_id"].is_null()));
        assert!(broker.told("agent_spawned", name).is_empty());
    }
    assert!(broker.listed().is_empty());
    broker.spawn("ann");
}

#[test]
fn bad_spawns_are_refused_and_harm_nobody() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    let pid = broker.spawn("ann");
    let token = broker.token_of("ann");
    for name in ["", " ", "a/b", "..", ".", "a\\b", "a\nb", "a\u{0}b"] {
        let answer = broker.spawn_with(&json!({"name": name, "cli": "cat"}));
        assert_eq!(answer.status, 400, "{name:?}: {}", answer.text);
        assert_eq!(answer.json()["success"], false, "{name:?}");
    }
    for (body, status, words) in [
        (json!({"cli": "cat"}), 400, "name"),
        (json!({"name": "x", "cli": "cat", "spawnMode": "later"}), 400, "unsupported spawnMode 'later'"),
        (json!({"name": "x", "harnessId": "h"}), 400, "harnessId is not supported"),
        (json!({"name": "x", "harnessConfig": 7}), 400, "Invalid harnessConfig"),
        (json!({"name": "x", "cli": "cat", "transport": "tube"}), 500, "unsupported transport 'tube'"),
        (json!({"name": "x", "cli": "cat", "restart_policy": 7}), 500, "invalid restart_policy"),
        (json!({"name": "ann", "cli": "cat"}), 500, "agent 'ann' already exists"),
    ] {
        let answer = broker.spawn_with(&body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        has(answer.json()["error"].as_str().unwrap_or_default(), &[words]);
    }
    // Names become file names whichever way they come.
    for name in ["a/b", "..", "a\\b", "a\nb"] {
        let failed = engine.spawn(&broker.node_name(), name, &house.agent());
        assert_eq!(failed["status"], "failed", "{name:?}: {failed}");
    }
    assert_eq!(broker.listed(), ["ann"]);
    assert_eq!(broker.ok("GET", "/api/spawned", None)["agents"][0]["pid"], pid);
    assert_eq!(engine.call("GET", "/v1/agent", &token, None).status, 200, "the running agent lost its token");
}

/// Sends raw bytes, returns the status of the answer.
fn raw(address: &str, bytes: &[u8]) -> Option<u16> {
    let mut stream = connect(address).ok()?;
    // A broker that has refused already may not read the rest.
    let _ = stream.write_all(bytes);
    read_answer(&mut BufReader::new(stream)).ok().map(|answer| answer.status)
}

#[test]
fn bad_requests_are_answered_and_the_broker_lives() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    let at = &broker.address;
    let post = |kind: &str, body: &str| {
        let head = format!("POST /api/spawn HTTP/1.1\r\nHost: {at}\r\nX-API-Key: {KEY}\r\nContent-Type: {kind}\r\n");
        raw(at, format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
    };
    assert_eq!(post("application/json", "{\"name\": "), Some(400));
    assert_eq!(post("application/json", "[7]"), Some(400));
    assert_eq!(post("text/plain", "{\"name\": \"ann\"}"), Some(415));
    let hundred_megabytes = format!(
        "POST /api/spawn HTTP/1.1\r\nHost: {at}\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n"
    );
    assert_eq!(raw(at, hundred_megabytes.as_bytes()), Some(413), "refused by its announced length");
    for nonsense in ["nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{0}\u{1}\u{2}\r\n\r\n"] {
        assert!(raw(at, nonsense.as_bytes()).is_none_or(|status| status >= 400), "{nonsense:?}");
    }
    let mut long = b"GET /health HTTP/1.1\r\n".to_vec();
    (0..5_000).for_each(|n| long.extend(format!("X-{n}: {}\r\n", "y".repeat(40)).bytes()));
    assert!(raw(at, &long).is_none_or(|status| status >= 400));
    // Half a request, and connections that say nothing: others are served meanwhile.
    let mut half = connect(at).unwrap();
    half.write_all(b"POST /api/spawn HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{\"na").unwrap();
    let idle: Vec<_> = (0..20).map(|_| connect(at).unwrap()).collect();
    for credential in ["X-API-Key: wrong", "Authorization: Bearer wrong", "X-Nothing: x"] {
        let answer = client::call(at, credential, "GET", "/api/status", None).unwrap();
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("unauthorized")));
    }
    let foreign = format!("GET /api/status HTTP/1.1\r\nHost: evil.example\r\nX-API-Key: {KEY}\r\n\r\n");
    assert_eq!(raw(at, foreign.as_bytes()), Some(403), "a foreign Host on a loopback bind");
    assert_eq!(broker.call("GET", "/api/nothing", None).status, 404);
    assert_eq!(broker.call("PUT", "/api/spawn", Some(&json!({}))).status, 405);
    assert_eq!(broker.call("GET", "/api/spawned/nobody/pending", None).status, 404);
    broker.spawn("ann");
    assert_eq!(broker.call("POST", "/api/input/ann", Some(&json!({}))).status, 422);
    assert_eq!(broker.call("POST", "/api/resize/ann", Some(&json!({"rows": 0, "cols": 1}))).status, 400);
    drop((half, idle));
    assert_eq!(broker.listed(), ["ann"]);
}

#[test]
fn f26_garbage_on_the_node_socket_costs_nothing() {
    let house = House::new();
    let engine = Scripted::start();
    let broker = Start::at(&house, &engine.url(), "").online();
    broker.spawn("ann");
    for garbage in [
        "not json",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        r#"{"v":1}"#,
        r#"{"v":2,"type":"deliver"}"#,
        r#"{"v":1,"type":"deliver"}"#,
        r#"{"v":1,"type":"deliver","agent":"ann","agent_id":"id_ann","delivery_id":"d","msg_id":"m","seq":-1,"payload":{}}"#,
        r#"{"v":1,"type":"action.invoke"}"#,
        r#"{"v":1,"type":"reply","id":"nobody","ok":true,"data":{"agent_id":"x","token":"t"}}"#,
        r#"{"v":1,"type":"error","id":null,"ok":false,"code":"invalid_message","message":"x"}"#,
        r#"{"v":1,"type":"from.the.future","more":[1,2]}"#,
        r#"{"v":1,"type":"context.update","topic":"t","event":"e","data":{}}"#,
    ] {
        engine.send(garbage);
    }
    let mut odd: Value = serde_json::from_str(&engine.message("ann", 1, "after the garbage")).unwrap();
    odd["surprise"] = json!({"a": 1});
    odd["payload"]["data"]["surprise"] = json!([]);
    odd["mode"] = json!("sideways");
    engine.send(&odd.to_string());
    broker.until_read("ann", "after the garbage");
    let ack = engine.frame("delivery.ack", 0);
    assert_eq!((&ack["agent"], &ack["up_to_seq"]), (&json!("ann"), &json!(1)));
    assert_eq!(engine.log().upgrades, 1, "the connection was made again");
    assert!(broker.status()["counters"]["garbage_frames"].as_u64().unwrap() >= 6, "{}", broker.status());
}

#[test]
fn a_body_without_end_is_cut_off_and_kept_nowhere() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).online();
    let before = broker.ok("GET", "/health", None)["memoryMb"].as_u64().unwrap();
    let mut stream = connect(&broker.address).unwrap();
    let head = format!(
        "POST /api/spawn HTTP/1.1\r\nHost: {}\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        broker.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    // It may read on for a while, so that its answer is not lost, but it keeps nothing.
    let sent = (0..100).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    let status = read_answer(&mut BufReader::new(stream)).ok().map(|answer| answer.status);
    assert!(status == Some(413) || status.is_none() && sent < 100, "{status:?} after {sent} MB");
    let after = broker.ok("GET", "/health", None)["memoryMb"].as_u64().unwrap();
    assert!(after < before + 16, "memory grew from {before} to {after} MB");
    broker.spawn("ann");
}

#[test]
fn places_that_cannot_hold_the_state_are_named() {
    for (file, is_dir, words) in [
        // What stands where something of the broker's should be, and whether it is a directory.
        ("work/.agentworkforce", false, "--state-dir"),
        ("work/.agentworkforce/relay/broker-work.lock", true, "broker-work.lock"),
        ("work/.agentworkforce/relay/journal-work.jsonl", true, "journal-work.jsonl"),
        ("work/.agentworkforce/relay/connection.json", true, "connection.json"),
        ("home/data", false, "machine-id"),
    ] {
        let house = House::new();
        let engine = Engine::start(&house);
        let path = house.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if is_dir {
            std::fs::create_dir_all(path.join("inside")).unwrap();
        } else {
            std::fs::write(&path, "in the way").unwrap();
        }
        let (code, said) = Start::on(&house, &engine).arg("--persist").fails();
        assert_eq!(code, 1, "{file}: {said}");
        has(&said, &["Error: ", words]);
        assert!(path.exists(), "{file} was removed");
        assert!(!house.path("work/.agentworkforce/relay/connection.json").is_file(), "{file}: connection.json stayed");
    }
}

#[test]
fn damaged_files_of_an_earlier_life_keep_nobody_from_starting() {
    let house = House::new();
    let engine = Engine::start(&house);
    let dir = house.dir("work/.agentworkforce/relay");
    for file in ["connection.json", "state-work.json", "journal-work.jsonl", "pending-work.json"] {
        std::fs::write(dir.join(file), b"{ \xff damaged").unwrap();
    }
    let mut broker = Start::on(&house, &engine).arg("--persist").online();
    broker.spawn("ann");
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "all the same");
    broker.until_read("ann", "all the same");
    assert_eq!(broker.stop().0, Some(0));
}
