//! The end of a broker: in order, in time, and with nothing left.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::broker::{Broker, KEY, STOP, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::process::Process;
use crate::scripted::{Deed, Scripted, Upgrade};

/// Ignores what an agent can ignore.
const STUBBORN: &str = "trap '' TERM HUP INT; while :; do sleep 60; done";

#[track_caller]
fn nothing_left(broker: &Broker) {
    assert_eq!(broker.house.processes(), [], "processes stayed\n{}", broker.seen());
    assert!(!broker.connection_file().exists(), "connection.json stayed");
    let left: Vec<_> = std::fs::read_dir(broker.house.path("tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left in TMPDIR: {left:?}");
}

#[test]
fn sigterm_ends_ten_stubborn_agents_and_a_runaway_in_four_seconds() {
    let house = House::new();
    let engine = Scripted::start();
    let mut broker = Start::at(&house, &engine.url(), "").online();
    std::fs::write(house.path("stubborn.sh"), STUBBORN).unwrap();
    std::fs::write(house.path("runaway.sh"), format!("setsid sh -c \"{STUBBORN}\" & {STUBBORN}")).unwrap();
    let program = |name: &str| format!("/bin/sh {}", house.path(name).display());
    for number in 0..9 {
        broker.spawn_program(&format!("s{number}"), &program("stubborn.sh"));
    }
    broker.spawn_program("runaway", &program("runaway.sh"));
    // The runaway has left the session of its agent.
    broker.until("a process in a session of its own", || {
        house
            .processes()
            .iter()
            .any(|(pid, line)| line.starts_with("sh -c trap") && is_session_leader(*pid))
            .then_some(())
    });
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}\n{}", broker.seen());
    nothing_left(&broker);
    engine.until("the engine was told", |log| (!log.frames_of("node.deregister").is_empty()).then_some(()));
    engine.until("Close 1000", |log| (log.closes == [Some(1000)]).then_some(()));
}

fn is_session_leader(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses: state, parent, group, session.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().nth(3).is_some_and(|session| session == pid.to_string())
}

#[test]
fn f35_sigterm_says_goodbye_in_order() {
    let house = House::new();
    let engine = Scripted::start();
    let mut broker = Start::at(&house, &engine.url(), "").arg("--persist").online();
    broker.spawn("ann");
    broker.token_of("ann");
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}");
    engine.until("Close 1000", |log| (!log.closes.is_empty()).then_some(()));
    let log = engine.log();
    assert_eq!(log.closes, [Some(1000)]);
    assert_eq!(log.frames.last().unwrap()["type"], "node.deregister", "{:?}", log.frames);
    assert!(log.frames_of("agent.deregister").iter().any(|frame| frame["agent_id"] == "id_ann"), "{:?}", log.frames);
    assert_eq!(log.requests_to("POST /v1/agents/disconnect"), 1);
    assert_eq!(log.requests_to("POST /v1/agents/release"), 0, "a release would kill an agent of the next life");
    drop(log);
    nothing_left(&broker);
}

#[test]
fn every_way_to_ask_for_the_end_is_orderly() {
    let house = House::new();
    let engine = Engine::start(&house);
    for signal in [Signal::INT, Signal::HUP] {
        let mut broker = Start::on(&house, &engine).arg("--persist").online();
        broker.spawn("ann");
        broker.process.signal(signal);
        assert_eq!(broker.process.wait(STOP).0, Some(0), "{signal:?}: {}", broker.seen());
        assert!(!broker.connection_file().exists(), "{signal:?}");
    }
    let mut broker = Start::on(&house, &engine).online();
    broker.spawn("ann");
    assert_eq!(broker.ok("POST", "/api/shutdown", None), json!({"status": "shutting_down"}));
    assert_eq!(broker.process.wait(STOP).0, Some(0), "{}", broker.seen());
    drop(engine);
    broker.until("no process", || house.processes().is_empty().then_some(()));
    nothing_left(&broker);
}

#[test]
fn a_second_signal_skips_what_the_stop_still_waits_for() {
    let house = House::new();
    let engine = Engine::start(&house);
    let mut broker = Start::on(&house, &engine).arg("--persist").online();
    let pid = broker.spawn_program("stubborn", "sh -c 'trap \"\" HUP TERM; while :; do sleep 1; done'");
    broker.process.signal(Signal::TERM);
    broker.until("the begin of the stop", || {
        let answer = broker.try_call("GET", "/api/session", None);
        answer.is_none_or(|answer| answer.status != 200).then_some(())
    });
    // The agent alone would keep it for two seconds.
    broker.process.signal(Signal::INT);
    let (code, took) = broker.process.wait(STOP);
    assert!(code == Some(0) && took < Duration::from_millis(1_800), "{code:?} after {took:?}: {}", broker.seen());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(engine);
    broker.until("no process", || house.processes().is_empty().then_some(()));
    nothing_left(&broker);
}

#[test]
fn an_engine_that_hangs_does_not_delay_the_end() {
    let house = House::new();
    let engine = Scripted::start();
    let mut broker = Start::at(&house, &engine.url(), "").online();
    broker.spawn("ann");
    for request in ["POST /v1/agents/disconnect", "POST /v1/agents/release", "POST /v1/agents/heartbeat"] {
        engine.rule(request, Deed::Hang);
    }
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}\n{}", broker.seen());
    nothing_left(&broker);
}

#[test]
fn sigterm_while_the_engine_hangs_at_the_start_ends_it_at_once() {
    for call in ["POST /v1/workspaces", "POST /v1/agents", "POST /v1/nodes"] {
        let house = House::new();
        let engine = Scripted::start();
        engine.rule(call, Deed::Hang);
        let mut broker = Start::at(&house, &engine.url(), "").arg("--persist").listening();
        engine.until("the call that hangs", |log| (log.requests_to(call) == 1).then_some(()));
        broker.until("connection.json", || broker.connection_file().exists().then_some(()));
        // Until it is ready, the port says only that it starts.
        assert_eq!(broker.call("GET", "/health", None).status, 200);
        let early = broker.call("GET", "/api/session", None);
        assert_eq!((early.status, early.text.as_str()), (503, "Broker is starting, please retry"));
        let (code, took) = broker.stop();
        assert_eq!(code, Some(0), "{call}: {}", broker.seen());
        assert!(took < Duration::from_secs(1), "{call}: took {took:?}");
        nothing_left(&broker);
    }
}

#[test]
fn connection_json_says_where_the_broker_is_and_nobody_else_may_read_it() {
    let house = House::new();
    let engine = Engine::start(&house);
    let mut broker = Start::on(&house, &engine).arg("--persist").online();
    let text = std::fs::read_to_string(broker.connection_file()).unwrap();
    let connection: serde_json::Value = serde_json::from_str(&text).unwrap();
    let port: u16 = broker.address.rsplit(':').next().unwrap().parse().unwrap();
    let expected = json!({"api_key": KEY, "pid": broker.process.pid(), "port": port,
        "url": format!("http://{}", broker.address)});
    assert_eq!(connection, expected);
    assert_eq!(mode(&broker.connection_file()), 0o600);
    assert_eq!(mode(broker.connection_file().parent().unwrap()), 0o700);
    // Another broker has taken over the file: it is not ours to delete.
    let foreign = text.replace(&broker.process.pid().to_string(), "1");
    std::fs::write(broker.connection_file(), &foreign).unwrap();
    assert_eq!(broker.stop().0, Some(0));
    assert_eq!(std::fs::read_to_string(broker.connection_file()).unwrap(), foreign);
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn clients_of_the_event_feed_are_told_of_an_orderly_end() {
    let house = House::new();
    let engine = Engine::start(&house);
    let mut broker = Start::on(&house, &engine).online();
    broker.spawn("ann");
    assert_eq!(broker.stop().0, Some(0));
    assert_eq!(broker.until_feed_closed(), Some(1000));
    assert_eq!(broker.told("agent_released", "ann").len(), 1, "{}", broker.seen());
}

#[test]
fn the_end_does_not_wait_for_a_registration_nor_for_a_socket_that_is_mute() {
    let house = House::new();
    let engine = Scripted::start();
    let mut broker = Start::at(&house, &engine.url(), "").online();
    engine.log().registers = false;
    let (address, body) = (broker.address.clone(), json!({"name": "ann", "cli": house.agent()}));
    let spawn = std::thread::spawn(move || {
        crate::client::call(&address, &format!("X-API-Key: {KEY}"), "POST", "/api/spawn", Some(&body))
    });
    engine.frame("agent.register", 0);
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}\n{}", broker.seen());
    let answer = spawn.join().unwrap();
    assert!(answer.as_ref().is_ok_and(|answer| answer.status >= 500), "the spawn was not refused: {answer:?}");
    nothing_left(&broker);

    engine.log().upgrade = Upgrade::Mute;
    let mut broker = Start::at(&house, &engine.url(), "").ready();
    engine.until("the mute socket", |log| (log.upgrades == 2).then_some(()));
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0), "{}", broker.seen());
    assert!(took < STOP, "took {took:?}\n{}", broker.seen());
    nothing_left(&broker);
}

#[test]
fn a_stderr_that_nobody_reads_any_more_harms_nothing() {
    let house = House::new();
    let engine = Engine::start(&house);
    let start = Start::on(&house, &engine).env("AGENT_RELAY_STARTUP_DEBUG", "1");
    let (reader, writer) = std::io::pipe().unwrap();
    let process = Process::start_saying_to(writer, start.command());
    drop(reader);
    let mut broker = start.of(process);
    broker.until_ready();
    broker.spawn("ann");
    broker.process.signal(Signal::USR1);
    broker.until_online();
    let bob = engine.stranger("bob");
    engine.dm(&bob, "ann", "still here");
    broker.until_read("ann", "still here");
    assert_eq!(broker.stop().0, Some(0));
}

/// The same command line as the first process of a PID namespace: how a container runs it. Its session lies outside.
fn in_a_container(start: &Start) -> std::process::Command {
    let inner = start.command();
    let mut outer = std::process::Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        outer.args(["--user", "--map-root-user"]);
    }
    outer
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"])
        .arg(inner.get_program())
        .args(inner.get_args());
    outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer.current_dir(inner.get_current_dir().expect("a directory"));
    outer
}

#[test]
fn the_first_process_of_a_container_starts_and_ends_agents() {
    let house = House::new();
    let engine = Engine::start(&house);
    let start = Start::on(&house, &engine).arg("--persist");
    let process = Process::start(in_a_container(&start));
    let mut broker = start.of(process);
    broker.until_ready();
    broker.until_online();
    broker.spawn("ann");
    broker.spawn_program("bob", "/bin/sh -c 'setsid sleep 1000 & sleep 0.5; exit 7'");
    let exit = broker.until_told("agent_exited", "bob");
    assert_eq!(exit["code"], 7, "{exit}");
    broker.ok("DELETE", "/api/spawned/ann", None);
    broker.until_told("agent_released", "ann");
    broker.ok("POST", "/api/shutdown", None);
    assert_eq!(broker.process.wait(STOP).0, Some(0), "{}", broker.seen());
    drop(engine);
    broker.until("no process", || house.processes().is_empty().then_some(()));
    nothing_left(&broker);
}

#[test]
fn the_pid_file_stands_beside_the_lock_while_the_broker_runs() {
    let house = House::new();
    let engine = Engine::start(&house);
    let file = house.path("work/.agentworkforce/relay/broker-one-two.pid");
    let mut broker = Start::on(&house, &engine).arg("--persist").arg("--name").arg("one two").online();
    let pid: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    assert_eq!(pid, broker.process.pid());
    // A second one is refused and leaves it alone.
    assert_eq!(Start::on(&house, &engine).arg("--persist").arg("--name").arg("one two").fails().0, 1);
    assert!(file.exists());
    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    assert!(!file.exists());
}
