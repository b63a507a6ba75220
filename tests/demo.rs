//! The demo, as a newcomer starts it: it shows every message, says what failed, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The demo's own deadlines end it long before.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory that the demo takes for the system's temporary one.
struct Temporary(PathBuf);

/// The demo; a test that fails ends it, and with it its broker.
struct Demo(Option<Child>);

impl Demo {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("the demo was not waited for yet")
    }

    /// Both streams are small: the pipes hold them until the end.
    fn finish(mut self) -> Output {
        let deadline = Instant::now() + LIMIT;
        while self.child().try_wait().expect("a child of ours").is_none() {
            assert!(Instant::now() < deadline, "the demo did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = self.0.take().expect("the demo was not waited for yet");
        ended.wait_with_output().expect("a child of ours")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("demo-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a fresh directory");
        Temporary(path)
    }

    fn demo(&self, arguments: &[&str]) -> Demo {
        let child = Command::new(env!("CARGO_BIN_EXE_agent-relay-broker"))
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", &self.0)
            // A broker of somebody else: the demo must not touch it.
            .env("RELAYCAST_BASE_URL", "http://127.0.0.1:9")
            .env("RELAY_WORKSPACE_KEY", "no key at all")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo starts");
        Demo(Some(child))
    }

    fn left_behind(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.0).expect("the directory is there").flatten().map(|entry| entry.path()).collect()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The pid that the demo tells.
fn broker_pid(told: &str) -> Option<Pid> {
    let (_, rest) = told.split_once("(pid ")?;
    Pid::from_raw(rest.split_once(')')?.0.parse().ok()?)
}

/// Gone, or an orphan that the first process of this PID namespace has not reaped.
fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| matches!(rest.trim_start().chars().next(), None | Some('Z')))
}

#[test]
fn every_message_is_shown_with_its_whole_way() {
    let temporary = Temporary::new("once");
    let output = temporary.demo(&["--once"]).finish();
    let (told, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{told}\n{errors}", output.status);
    for n in 1..=6 {
        let word = if n % 2 == 1 { "alice -> bob   ping" } else { "bob -> alice   pong" };
        let line = told.lines().find(|line| line.starts_with(&format!("{word} {n}/6")));
        let line = line.unwrap_or_else(|| panic!("message {n} is missing:\n{told}"));
        let receipts = ["stored", "typed +", "read +", "acked +"].map(|receipt| line.find(receipt));
        assert!(receipts.iter().all(Option::is_some) && receipts.is_sorted(), "{line}");
    }
    assert!(told.contains("6 of 6 messages arrived"), "{told}");
    assert!(is_gone(broker_pid(&told).expect("a pid")), "the broker still runs");
    assert_eq!(temporary.left_behind(), Vec::<PathBuf>::new());
}

#[test]
fn an_agent_that_does_not_answer_is_an_error_with_its_screen() {
    let temporary = Temporary::new("deaf");
    let scripts = Temporary::new("deaf-scripts");
    std::fs::write(scripts.0.join("pingpong.sh"), "echo '->pty:ready'\nwhile read -r line; do :; done\n")
        .expect("a script");
    let output = temporary.demo(&["--once", "--agents", scripts.0.to_str().expect("a plain path")]).finish();
    let (told, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{told}\n{errors}");
    assert!(errors.contains("0 of 6 messages arrived"), "{errors}");
    assert!(errors.contains("alice's terminal:") && errors.contains("Relay message from broker [init_"), "{errors}");
    assert!(is_gone(broker_pid(&told).expect("a pid")), "the broker still runs");
    assert_eq!(temporary.left_behind(), Vec::<PathBuf>::new());
}

#[test]
fn ctrl_c_ends_everything_in_order() {
    let temporary = Temporary::new("interrupt");
    let mut demo = temporary.demo(&[]);
    let mut told = String::new();
    let mut lines = BufReader::new(demo.child().stdout.take().expect("a pipe"));
    while !told.contains("/api/send") {
        assert!(lines.read_line(&mut told).expect("text") > 0, "the demo ended by itself:\n{told}");
    }
    let broker = broker_pid(&told).expect("a pid");
    assert!(!is_gone(broker));
    let env = told.lines().find_map(|line| line.strip_prefix("  . ")).expect("the file with address and key");
    assert!(Path::new(env).is_file());
    kill_process(Pid::from_child(demo.child()), Signal::INT).expect("it runs");
    let output = demo.finish();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(is_gone(broker), "the broker still runs");
    assert_eq!(temporary.left_behind(), Vec::<PathBuf>::new());
}
