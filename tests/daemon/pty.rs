//! `pty`: one program in a terminal, by frames.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::house::House;
use crate::process::has_ended;
use crate::until::{LONG, until};

pub struct Worker {
    pub house: Arc<House>,
    pub child: Child,
    frames: Arc<Mutex<Vec<Value>>>,
    pub stdin: Option<ChildStdin>,
}

impl Worker {
    fn start(args: &[&str]) -> Worker {
        Worker::of("pty", args, &House::new(), &[])
    }

    /// The worker of this subcommand.
    pub fn of(subcommand: &str, args: &[&str], house: &Arc<House>, env: &[(&str, &str)]) -> Worker {
        let house = house.clone();
        let mut command = house.command(&house.path("work"));
        command.envs(env.iter().copied());
        command
            .arg(subcommand)
            .args(args)
            .env("AGENT_RELAY_BROKER_LOG", "off")
            .env("RELAY_BROKER_API_KEY", "br_secret");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let frames = Arc::<Mutex<Vec<Value>>>::default();
        let into = frames.clone();
        let out = BufReader::new(child.stdout.take().expect("stdout"));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                into.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let stdin = child.stdin.take();
        Worker { house, child, frames, stdin }
    }

    /// `sh -c script` as `ann`.
    fn sh(script: &str) -> Worker {
        Worker::start(&["--agent-name", "ann", "--idle-threshold-secs", "1", "sh", "--", "-c", script])
    }

    pub fn line(&mut self, line: &str) {
        writeln!(self.stdin.as_ref().expect("stdin is open"), "{line}").expect("the worker reads");
    }

    pub fn ask(&mut self, kind: &str, request_id: &str, payload: Value) {
        self.line(&json!({"v": 2, "type": kind, "request_id": request_id, "payload": payload}).to_string());
    }

    pub fn deliver(&mut self, id: &str, body: &str) {
        let payload =
            json!({"delivery_id": id, "event_id": format!("m_{id}"), "from": "bob", "target": "ann", "body": body});
        self.ask("deliver_relay", id, payload);
    }

    pub fn frames(&self) -> Vec<Value> {
        self.frames.lock().unwrap().clone()
    }

    pub fn seen(&self) -> String {
        self.frames().iter().map(|frame| format!("{frame}\n")).collect()
    }

    pub fn output(&self) -> String {
        let frames = self.frames();
        let chunks = frames.iter().filter(|frame| frame["type"] == "worker_stream");
        chunks.filter_map(|frame| frame["payload"]["chunk"].as_str().map(str::to_string)).collect()
    }

    #[track_caller]
    pub fn until<T>(&self, what: &str, at: impl FnMut() -> Option<T>) -> T {
        until(LONG, what, || self.seen(), at)
    }

    /// The payload and request id of the first frame of a kind that fits.
    #[track_caller]
    pub fn hears(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let find = || self.frames().into_iter().find(|frame| frame["type"] == kind && fits(frame));
        self.until(&format!("frame {kind}"), find)
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.until(&format!("{text:?} in the output"), || self.output().contains(text).then_some(()));
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let seen = self.seen();
        until(LONG, "the end", || seen.clone(), || self.child.try_wait().expect("a child can be waited for"))
    }

    fn pid(&self) -> u32 {
        self.until("a process id", || self.output().split("pid=").nth(1)?.split_once('.')?.0.parse().ok())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const READY: &str = "echo pid=$$.; echo '->pty:ready';";

#[test]
fn every_frame_is_answered_and_a_bad_one_ends_nothing() {
    let mut worker =
        Worker::sh(&format!("{READY} env; trap 'stty size' WINCH; while :; do IFS= read -r l && echo got=$l=; done"));
    worker.line("nonsense");
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "invalid_frame" && frame["request_id"].is_null());
    worker.ask("no_such", "r1", json!({}));
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "unknown_type" && frame["request_id"] == "r1");
    worker.ask("deliver_relay", "r2", json!({}));
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "invalid_delivery" && frame["request_id"] == "r2");
    worker.ask("ping", "r3", json!({"ts_ms": 77}));
    worker.hears("pong", |frame| frame["payload"] == json!({"ts_ms": 77}) && frame["request_id"] == "r3");
    // Ready at the latest by its marker, told to who has asked.
    worker.shows("->pty:ready");
    worker.ask("init_worker", "r4", json!({"agent": {"name": "other"}}));
    let ready = worker.hears("worker_ready", |frame| frame["request_id"] == "r4");
    let pid = worker.pid();
    assert_eq!(ready["payload"], json!({"name": "ann", "runtime": "pty", "cli": "sh", "pid": pid}));
    worker.shows("DISABLE_AUTOUPDATER=1");
    assert!(!worker.output().contains("RELAY_BROKER_API_KEY"), "{}", worker.output());
    worker.ask("write_pty", "r5", json!({"data": "typed\r"}));
    worker.shows("got=typed=");
    worker.ask("resize_pty", "r6", json!({"rows": 0, "cols": 5}));
    worker
        .hears("worker_error", |frame| frame["payload"]["code"] == "invalid_dimensions" && frame["request_id"] == "r6");
    worker.ask("resize_pty", "r7", json!({"rows": 33, "cols": 99}));
    worker.shows("33 99");
    worker.ask("snapshot_pty", "r8", json!({"format": "plain"}));
    let picture = worker.hears("snapshot_response", |frame| frame["request_id"] == "r8")["payload"].take();
    assert_eq!((&picture["rows"], &picture["cols"], &picture["format"]), (&json!(33), &json!(99), &json!("plain")));
    assert!(picture["screen"].as_str().is_some_and(|screen| screen.contains("got=typed=")), "{picture}");
    worker.ask("snapshot_pty", "r9", json!({"format": "jpeg"}));
    worker.hears("worker_error", |frame| frame["payload"]["code"] == "invalid_format" && frame["request_id"] == "r9");
    worker.hears("agent_idle", |frame| frame["payload"]["idle_secs"].as_u64() >= Some(1));
}

#[test]
fn a_message_is_typed_once_and_its_way_is_told_in_order() {
    let mut worker = Worker::sh(&format!("{READY} stty raw -echo; exec cat"));
    worker.shows("->pty:ready");
    for (id, body) in [("d1", "first"), ("d1", "first"), ("d2", "second")] {
        worker.deliver(id, body);
    }
    let verified = |id: &'static str| move |frame: &Value| frame["payload"]["delivery_id"] == id;
    worker.hears("delivery_verified", verified("d2"));
    // Also long after its end.
    worker.deliver("d1", "first");
    worker.deliver("d3", "third");
    worker.hears("delivery_verified", verified("d3"));
    let of_first = worker.frames().into_iter().filter(|frame| frame["payload"]["delivery_id"] == "d1");
    let kinds: Vec<String> = of_first.map(|frame| frame["type"].as_str().unwrap().to_string()).collect();
    assert_eq!(
        kinds,
        ["delivery_queued", "delivery_injected", "delivery_ack", "delivery_verified"],
        "{}",
        worker.seen()
    );
    let verified = worker.hears("delivery_verified", |frame| frame["payload"]["delivery_id"] == "d1");
    assert_eq!(verified["payload"]["verification"], "echo", "{verified}");
    let output = worker.output();
    assert_eq!(output.matches("Relay message from bob [m_d1]: first").count(), 1, "{output}");
    assert!(output.find(": first") < output.find(": second"), "{output}");
}

#[test]
fn the_end_of_the_program_is_told_at_once_and_ends_the_worker() {
    let mut worker = Worker::sh(&format!("{READY} read -r l; exit 3"));
    worker.shows("->pty:ready");
    worker.ask("write_pty", "r", json!({"data": "go\r"}));
    worker.hears("agent_exit", |frame| frame["payload"]["reason"].is_string());
    worker.hears("worker_exited", |frame| frame["payload"] == json!({"code": 3, "signal": null}));
    // Its caller still holds stdin open.
    assert_eq!(worker.wait().code(), Some(0));
}

#[test]
fn it_ends_with_its_whole_tree_when_it_is_told_to() {
    for how in ["shutdown_worker", "end of stdin", "SIGTERM"] {
        let mut worker = Worker::sh(&format!("{READY} sleep 1000 & trap '' HUP; while :; do sleep 0.1; done"));
        let pid = worker.pid();
        match how {
            "shutdown_worker" => worker.ask(how, "r", json!({})),
            "end of stdin" => drop(worker.stdin.take()),
            _ => kill_process(Pid::from_child(&worker.child), Signal::TERM).expect("it runs"),
        }
        let status = worker.wait();
        assert!(has_ended(pid).is_some(), "{how}");
        if how == "shutdown_worker" || how == "end of stdin" {
            assert_eq!(status.code(), Some(0), "{how}");
        } else {
            assert_eq!(status.signal(), Some(15), "{how}");
        }
        worker.hears("worker_exited", |frame| frame["payload"]["signal"].is_string());
        worker.until("an empty house", || worker.house.processes().is_empty().then_some(()));
    }
}

#[test]
fn a_program_that_cannot_be_started_is_an_error_and_no_frame() {
    let mut worker = Worker::start(&["no-such-program"]);
    assert_eq!(worker.wait().code(), Some(1));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut worker.child.stderr.take().expect("stderr"), &mut text).expect("a text");
    assert!(text.starts_with("Error: failed to spawn wrapped command\n\nCaused by:\n    program 'no-such"), "{text}");
    assert!(worker.frames().is_empty(), "{}", worker.seen());
}

#[test]
fn a_caller_that_does_not_read_makes_the_program_wait_and_loses_nothing() {
    let house = House::new();
    let mut command = house.command(&house.path("work"));
    let script = "i=0; while test $i -lt 20000; do echo line-$i-of-many; i=$((i+1)); done; echo all.";
    command.args(["pty", "--agent-name", "ann", "sh", "--", "-c", script]).env("AGENT_RELAY_BROKER_LOG", "off");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // Nobody reads until everything has backed up: the program itself waits in a write.
    crate::wrap::until_stuck_or_gone(&house, "-c i=0;");
    assert!(house.processes().iter().any(|(_, line)| line.contains("-c i=0;")), "it waits");
    let out = BufReader::new(child.stdout.take().expect("stdout"));
    let frames = out.lines().map_while(Result::ok).map(|line| serde_json::from_str::<Value>(&line).expect("a frame"));
    let text: String = frames.filter_map(|frame| frame["payload"]["chunk"].as_str().map(str::to_string)).collect();
    let missing: Vec<usize> = (0..20_000).filter(|i| !text.contains(&format!("line-{i}-of-many"))).take(3).collect();
    assert!(missing.is_empty() && text.contains("all."), "{missing:?}");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
