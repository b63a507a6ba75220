//! A private place for one test: homes, directories, a program that agents run, and the processes that belong to it.
//!
//! Every process started here carries `DAEMON_TEST_HOUSE` in its environment, agents inherit it from their broker. So what
//! a test left running is found, and ended with the house by its ids.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::process::{Pid, Signal, kill_process};

const MARK: &str = "DAEMON_TEST_HOUSE";

/// Says that it is ready, and writes down its environment and every line that it reads, in files of its own life.
const AGENT: &str = r#"#!/bin/sh
seen="$DAEMON_TEST_HOUSE/seen/$RELAY_AGENT_NAME"
mkdir -p "$seen"
env > "$seen/env.$$"
echo '->pty:ready'
: > "$seen/read.$$"
while IFS= read -r line; do printf '%s\n' "$line" >> "$seen/read.$$"; done
"#;

pub struct House {
    root: PathBuf,
}

impl House {
    pub fn new() -> Arc<House> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("d{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        for dir in ["home", "tmp", "work", "seen"] {
            std::fs::create_dir_all(root.join(dir)).expect("a directory for the test");
        }
        std::fs::write(root.join("agent.sh"), AGENT).expect("the agents' program");
        Arc::new(House { root })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory `name`, made if need be.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        path
    }

    /// `<data>/agent-relay/<name>` of the brokers here.
    pub fn data(&self, name: &str) -> PathBuf {
        self.path("home/data/agent-relay").join(name)
    }

    /// The binary under test, with nothing of this process's environment but the search path.
    pub fn command(&self, cwd: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-relay-broker"));
        command.env_clear().current_dir(cwd);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        command.env("HOME", self.path("home")).env("TMPDIR", self.path("tmp")).env("TERM", "xterm-256color");
        command.env("XDG_DATA_HOME", self.path("home/data")).env("XDG_STATE_HOME", self.path("home/state"));
        command.env("AGENT_RELAY_BROKER_LOG", "stderr").env(MARK, &self.root);
        command
    }

    /// Command line of the program that writes down what it reads.
    pub fn agent(&self) -> String {
        format!("/bin/sh {}", self.path("agent.sh").display())
    }

    /// Process id and text of what the lives of `agent` wrote down, oldest first.
    fn seen(&self, agent: &str, what: &str) -> Vec<(u32, String)> {
        let Ok(entries) = std::fs::read_dir(self.path("seen").join(agent)) else { return Vec::new() };
        let mut found: Vec<(SystemTime, u32, String)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                let pid = name.strip_prefix(what)?.strip_prefix('.')?.parse().ok()?;
                let made = entry.metadata().ok()?.modified().ok()?;
                Some((made, pid, std::fs::read_to_string(entry.path()).ok()?))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, pid, text)| (pid, text)).collect()
    }

    /// What `agent` has read, in all its lives.
    pub fn read_by(&self, agent: &str) -> String {
        self.seen(agent, "read").into_iter().map(|(_, text)| text).collect()
    }

    /// What one life of `agent` has read; `None` while it has not come so far.
    pub fn read_by_life(&self, agent: &str, pid: u32) -> Option<String> {
        self.seen(agent, "read").into_iter().find(|(of, _)| *of == pid).map(|(_, text)| text)
    }

    /// The environment that a life of `agent` was given, once it has written it down.
    pub fn environment_of(&self, agent: &str, pid: u32) -> Option<BTreeMap<String, String>> {
        // The program opens the second file when the first is complete.
        self.read_by_life(agent, pid)?;
        let (_, text) = self.seen(agent, "env").into_iter().find(|(of, _)| *of == pid)?;
        Some(text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// Living processes of this house, with their command lines.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("{MARK}={}", self.root.display()).into_bytes();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                // Empty for a zombie.
                let environment = std::fs::read(entry.path().join("environ")).ok()?;
                environment.split(|byte| *byte == 0).any(|variable| variable == mark).then_some(())?;
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                Some((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_string()))
            })
            .collect()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
