//! Who the node is, and with which token: made once, kept private, used only where it belongs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::Digest;

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::process::Process;
use crate::scripted::{Scripted, Upgrade};
use crate::stops::mode;
use crate::until::LONG;

fn token_files(house: &House) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(house.data("node-tokens")) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn read(path: &PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn node_id(broker: &Broker) -> String {
    broker.status()["node"]["node_id"].as_str().unwrap().to_string()
}

/// One whole life of a broker in `cwd`: its node id.
#[track_caller]
fn live_once(house: &Arc<House>, engine: &Engine, cwd: &str) -> String {
    let mut broker = Start::on(house, engine).cwd(cwd).online();
    let id = node_id(&broker);
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    id
}

#[test]
fn f16_f20_two_directories_are_two_nodes_with_a_token_file_each() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([{"route": "/v1/nodes", "method": "POST", "nth": 1000, "kind": "cut"}]));
    let one = Start::on(&house, &engine).cwd("one").online();
    let file_of_one = token_files(&house).remove(0);
    let written = |file: &PathBuf| (read(file), fs::metadata(file).unwrap().modified().unwrap());
    let first = written(&file_of_one);
    let two = Start::on(&house, &engine).cwd("two").online();
    let ids = BTreeSet::from([node_id(&one), node_id(&two)]);
    assert_eq!(ids.len(), 2);
    let nodes = engine.online_nodes();
    assert_eq!(nodes.iter().map(|(id, _)| id.clone()).collect::<BTreeSet<_>>(), ids);
    assert_eq!(nodes.iter().map(|(_, name)| name).collect::<BTreeSet<_>>().len(), 2, "{nodes:?}");
    assert_eq!(engine.matched(0), 2, "one mint each");
    let files = token_files(&house);
    assert_eq!(
        files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap().to_string()).collect::<BTreeSet<_>>(),
        ids
    );
    assert_eq!(written(&file_of_one), first, "the file of the first was rewritten");
    // Both deliver, side by side.
    one.spawn("ann");
    two.spawn("bert");
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "to the first");
    engine.dm(&bob, "bert", "to the second");
    one.until_read("ann", "to the first");
    two.until_read("bert", "to the second");
    assert!(!one.process.err().contains("(401)") && !two.process.err().contains("(401)"));
}

#[test]
fn f18_minted_tokens_are_private_from_the_start_and_after() {
    let house = House::new();
    let engine = Engine::start(&house);
    let id = live_once(&house, &engine, "work");
    let file = house.data("node-tokens").join(format!("{id}.json"));
    assert_eq!(mode(&file), 0o600);
    for dir in ["", "node-tokens"] {
        assert_eq!(mode(&house.data(dir)), 0o700, "{dir:?}");
    }
    assert_eq!(mode(&house.data("machine-id")), 0o600);
    // A loose file of an earlier version with a token that is refused: minted again, tightened.
    let mut cached = read(&file);
    cached["token"] = json!("nt_live_of_another_time");
    fs::write(&file, cached.to_string()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(live_once(&house, &engine, "work"), id);
    assert_eq!(mode(&file), 0o600);
    assert_ne!(read(&file)["token"], "nt_live_of_another_time");
}

#[test]
fn f19_a_token_is_reused_only_for_its_node_workspace_and_engine() {
    let house = House::new();
    let engine = Engine::start(&house);
    engine.faults(json!([{"route": "/v1/nodes", "method": "POST", "nth": 1000, "kind": "cut"}]));
    let id = live_once(&house, &engine, "work");
    let file = house.data("node-tokens").join(format!("{id}.json"));
    let first = read(&file);
    assert_eq!((&first["node_id"], &first["base_url"]), (&json!(id), &json!(engine.url())));
    live_once(&house, &engine, "work");
    assert_eq!((engine.matched(0), read(&file)), (1, first.clone()), "reused");
    // A legacy file without the engine's address.
    let mut legacy = first.clone();
    legacy.as_object_mut().unwrap().remove("base_url");
    fs::write(&file, legacy.to_string()).unwrap();
    live_once(&house, &engine, "work");
    assert_eq!(engine.matched(0), 1, "a legacy file is reused");
    for (mints, key) in [(2, "base_url"), (3, "workspace_id"), (4, "node_id")] {
        let mut other = read(&file);
        other["base_url"] = json!(engine.url());
        other[key] = json!("http://another");
        fs::write(&file, other.to_string()).unwrap();
        live_once(&house, &engine, "work");
        assert_eq!(engine.matched(0), mints, "{key} differs: minted");
        assert_eq!(read(&file)["base_url"], engine.url());
    }
    fs::write(&file, "{ damaged").unwrap();
    live_once(&house, &engine, "work");
    assert_eq!(engine.matched(0), 5, "damaged: minted");
}

#[test]
fn f21_an_unreadable_identity_ends_the_start_and_stays_as_it_is() {
    let house = House::new();
    let engine = Engine::start(&house);
    let seed = house.data("machine-id");
    fs::create_dir_all(seed.join("inside")).unwrap();
    let fails = |words: &str| {
        let (code, said) = Start::on(&house, &engine).fails();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    };
    fails(&format!("Error: failed to read node id file {}", seed.display()));
    assert!(seed.join("inside").is_dir());
    fs::remove_dir_all(&seed).unwrap();
    fs::write(&seed, b"node_\xff\xff").unwrap();
    fails(&format!("Error: failed to read node id file {}", seed.display()));
    assert_eq!(fs::read(&seed).unwrap(), b"node_\xff\xff");
    assert_eq!(engine.online_nodes(), []);
    assert!(token_files(&house).is_empty());
}

#[test]
fn f21_a_removed_directory_ends_the_start() {
    let house = House::new();
    let engine = Engine::start(&house);
    // The shell stands in the directory when it goes, and the broker with it.
    let gone = house.dir("gone");
    let broker = house.command(&gone);
    let mut command = std::process::Command::new("/bin/sh");
    command.env_clear().current_dir(&gone).args(["-c", "rmdir \"$PWD\" && exec \"$0\" init"]).arg(broker.get_program());
    command.envs(broker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("RELAY_BASE_URL", engine.url()).env("RELAY_WORKSPACE_KEY", &engine.key);
    let mut process = Process::start(command);
    let (code, _) = process.wait(LONG);
    assert_eq!(code, Some(1), "{}", process.seen());
    assert!(process.err().contains("Error: ") && process.err().contains("directory"), "{}", process.err());
    assert_eq!(engine.online_nodes(), []);
    assert!(!house.data("machine-id").exists());
}

#[test]
fn f22_a_token_of_the_operator_is_used_as_it_is_and_never_stored() {
    let house = House::new();
    let engine = Scripted::start();
    fs::create_dir_all(house.data("")).unwrap();
    fs::write(house.data("machine-id"), "node_c\n").unwrap();
    let pinned = || Start::at(&house, &engine.url(), "").env("RELAY_NODE_TOKEN", " nt_live_mine ");
    let mut broker = pinned().online();
    assert_eq!(engine.frame("node.register", 0)["node_id"], "node_c", "the seed text, verbatim");
    broker.spawn("ann");
    assert!(!broker.environment_of("ann").contains_key("RELAY_NODE_TOKEN"));
    assert_eq!(broker.stop().0, Some(0));
    engine.log().upgrade = Upgrade::Refuse(401);
    let broker = pinned().ready();
    broker.until_node("auth_rejected");
    let error = broker.status()["node"]["last_error"].as_str().unwrap().to_string();
    assert!(error.contains("RELAY_NODE_TOKEN"), "{error}");
    assert_eq!(engine.log().requests_to("POST /v1/nodes"), 0, "a pinned token is never minted again");
    assert!(token_files(&house).is_empty());
    assert_eq!(broker.ok("GET", "/health", None)["nodeConnected"], false);
}

#[test]
fn the_node_id_follows_the_recipe() {
    let house = House::new();
    let engine = Engine::start(&house);
    fs::create_dir_all(house.data("")).unwrap();
    fs::write(house.data("machine-id"), "  node_seed123 \n").unwrap();
    let cwd = house.path("work").canonicalize().unwrap();
    // A link to the directory is the same directory.
    std::os::unix::fs::symlink(&cwd, house.path("link")).unwrap();
    let hash = sha2::Sha256::digest([b"node_seed123\0", cwd.as_os_str().as_encoded_bytes()].concat());
    let digits: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(live_once(&house, &engine, "link"), format!("node_{digits}"));
    assert_eq!(fs::read_to_string(house.data("machine-id")).unwrap(), "  node_seed123 \n");
}

#[test]
fn a_person_who_looks_finds_who_the_broker_is_unless_that_is_unwanted() {
    let house = House::new();
    let engine = Engine::start(&house);
    let file = house.path("work/.agentworkforce/relay/identity-debug.txt");
    let mut broker = Start::on(&house, &engine).arg("--persist").env("AGENT_RELAY_NO_DEBUG_FILES", "").online();
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    assert!(!file.exists(), "unwanted, also by a blank value");
    // Of its flags the instance name comes first, and `=` joins a flag and its value.
    let mut broker = Start::on(&house, &engine).arg("--persist").arg("--name=b").arg("--instance-name=one").online();
    let text = fs::read_to_string(&file).unwrap();
    let names: Vec<_> = text.lines().filter_map(|line| Some(line.split_once("='")?.0)).collect();
    let expected = ["agent_name", "requested", "agent_id", "default_workspace", "workspace_count", "timestamp"];
    assert_eq!(names, expected, "{text}");
    assert!(
        text.starts_with("agent_name='one'\nrequested='one'\n") && text.contains("workspace_count='1'\n"),
        "{text}"
    );
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
}

#[test]
fn an_ephemeral_run_warns_of_the_state_that_it_does_not_use() {
    let house = House::new();
    let engine = Engine::start(&house);
    let dir = house.dir("work/.agentworkforce/relay");
    let warning = "WARNING: this run is ephemeral but";
    let mut broker = Start::on(&house, &engine).online();
    assert_eq!(broker.stop().0, Some(0));
    assert!(!broker.process.err().contains(warning), "there is none");
    fs::write(dir.join("state-work.json"), "{}").unwrap();
    let mut broker = Start::on(&house, &engine).online();
    assert_eq!(broker.stop().0, Some(0));
    let said = broker.process.err();
    let head = format!("[agent-relay] {warning} 1 prior --persist state file(s) remain in {}:", dir.display());
    assert!(said.contains(&head) && said.contains("state-work.json"), "{said}");
    assert_eq!(fs::read_to_string(dir.join("state-work.json")).unwrap(), "{}", "and leaves it alone");
}

#[test]
fn secrets_of_the_broker_reach_no_agent_and_its_log_goes_where_it_is_told() {
    let house = House::new();
    let engine = Engine::start(&house);
    let mut broker = Start::on(&house, &engine)
        .env("AGENT_RELAY_BROKER_LOG", "")
        .env("RUST_LOG", "not a filter=======")
        .env("CLAUDECODE", "1")
        .env("DO_NOT_TRACK", "1")
        .env("AGENT_RELAY_APP_SERVER_AUTH_TOKEN", "secret")
        .env("AGENT_RELAY_STARTUP_ERROR_CODE", "rate_limit_exceeded")
        .online();
    broker.spawn("ann");
    let environment = broker.environment_of("ann");
    for gone in ["RELAY_BROKER_API_KEY", "RELAY_NODE_TOKEN", "CLAUDECODE", "AGENT_RELAY_APP_SERVER_AUTH_TOKEN"] {
        assert!(!environment.contains_key(gone), "{gone}");
    }
    assert_eq!(environment["DO_NOT_TRACK"], "1", "the rest is inherited");
    let health = broker.ok("GET", "/health", None);
    assert_eq!((&health["status"], &health["relaycastConnected"]), (&json!("degraded"), &json!(false)), "{health}");
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    let logs: Vec<_> = fs::read_dir(house.path("home/state/agentworkforce/relay/logs"))
        .expect("the log's directory")
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    assert!(logs[0].file_name().unwrap().to_str().unwrap().starts_with("work.log.20"), "{logs:?}");
    let log = fs::read_to_string(&logs[0]).unwrap();
    assert!(log.contains(" INFO ") && !log.contains('\u{1b}'), "{log}");
    assert!(!log.contains(&engine.key), "a key in the log");
}
