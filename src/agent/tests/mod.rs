//! Agents in real terminals, with programs of `sh` only.

mod app_server;
mod bench;
mod drafts;
mod end;
mod headless;
mod input;
mod output;
mod pictures;
mod recordings;
mod scenarios;
mod start;
mod typing;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::{AgentThread, Files, Timing, launch_timed};
use crate::core::ports::{AgentCommand, AgentNote, Injection, Launch, Snapshot, SnapshotFormat, Variables};
use crate::wire::node::DeliveryMode;

/// No step of a test takes longer on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A running agent, its notes in the order of arrival, and when each came.
pub struct Stage {
    pub agent: AgentThread,
    notes: Receiver<(Instant, AgentNote)>,
    pub seen: Vec<(Instant, AgentNote)>,
    /// Output so far.
    pub text: String,
    next_ticket: u64,
}

pub fn launch_of(cli: &str, args: &[&str]) -> Launch {
    Launch {
        generation: 7,
        name: "alice".into(),
        cli: cli.into(),
        args: args.iter().map(|arg| arg.to_string()).collect(),
        model: None,
        session_ref: None,
        resumes: false,
        cwd: None,
        skip_relay_prompt: false,
        idle_threshold_secs: 0,
        ignores_drafts: false,
        headless: false,
        app_server: None,
        bare: false,
    }
}

/// A message without hint lines that matter.
pub fn message(id: &str, body: &str) -> Injection {
    Injection {
        delivery_id: id.into(),
        event_id: format!("m_{id}"),
        from: "bob".into(),
        target: "alice".into(),
        body: body.into(),
        workspace: None,
        mode: DeliveryMode::Wait,
        exempt: false,
    }
}

impl Stage {
    /// Prepares an agent; nothing runs yet.
    pub fn prepare(launch: Launch, timing: Timing, log: Option<PathBuf>) -> Stage {
        let (tell, notes) = crossbeam_channel::bounded(64);
        let watched = Arc::new(AtomicUsize::new(1));
        let on_note = move |generation, note| {
            assert_eq!(generation, 7);
            // Blocks when the test does not read: the same back-pressure as in the daemon.
            let _ = tell.send((Instant::now(), note));
        };
        let agent = launch_timed(
            launch,
            on_note,
            watched,
            Files { log, scratch: std::env::temp_dir().join("agents"), tap: None },
            timing,
        )
        .expect("a thread");
        Stage { agent, notes, seen: Vec::new(), text: String::new(), next_ticket: 1 }
    }

    pub fn start_with(launch: Launch, timing: Timing, set: &[(&str, &str)], remove: &[&str]) -> Stage {
        let mut stage = Stage::prepare(launch, timing, None);
        stage.until("prepared", |note| matches!(note, AgentNote::Prepared));
        stage.order(set, remove);
        stage.until("started", |note| matches!(note, AgentNote::Started { .. }));
        stage
    }

    pub fn order(&self, set: &[(&str, &str)], remove: &[&str]) {
        let set = set.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let remove = remove.iter().map(|name| name.to_string()).collect();
        self.agent.send(AgentCommand::Start { set: Variables(set), remove, pre_registered: true }).expect("room");
    }

    /// `sh -c script`, started.
    pub fn sh(script: &str) -> Stage {
        Stage::sh_timed(script, Timing::default())
    }

    pub fn sh_timed(script: &str, timing: Timing) -> Stage {
        Stage::start_with(launch_of("sh", &["-c", script]), timing, &[], &[])
    }

    pub fn pid(&self) -> i32 {
        let started = self.seen.iter().find_map(|(_, note)| match note {
            AgentNote::Started { pid } => Some(*pid as i32),
            _ => None,
        });
        started.expect("it has started")
    }

    /// Takes the next note, if one comes within `limit`.
    pub fn take(&mut self, limit: Duration) -> Option<AgentNote> {
        let (at, note) = self.notes.recv_timeout(limit).ok()?;
        if let AgentNote::Output { chunk, offset } = &note {
            self.text.push_str(chunk);
            assert_eq!(*offset, self.text.len() as u64, "offsets count the text");
        }
        self.seen.push((at, note.clone()));
        Some(note)
    }

    /// Waits for a note; says what was seen instead.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut is: impl FnMut(&AgentNote) -> bool) -> AgentNote {
        let deadline = Instant::now() + LIMIT;
        while let Some(note) = self.take(deadline.saturating_duration_since(Instant::now())) {
            if is(&note) {
                return note;
            }
        }
        panic!("no {what}; seen: {}", self.story());
    }

    /// Waits until the output contains `part`.
    #[track_caller]
    pub fn until_text(&mut self, part: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.text.contains(part) {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.take(left).is_none() {
                panic!("no {part:?} in {:?}; seen: {}", self.text, self.story());
            }
        }
    }

    #[track_caller]
    pub fn until_exited(&mut self) -> (Option<i32>, Option<i32>) {
        match self.until("exit", |note| matches!(note, AgentNote::Exited { .. })) {
            AgentNote::Exited { code, signal } => (code, signal),
            other => panic!("{other:?}"),
        }
    }

    /// Takes what has come already, and what comes within `quiet` of each other.
    pub fn settle(&mut self, quiet: Duration) {
        while self.take(quiet).is_some() {}
    }

    /// The notes without output, shortened.
    pub fn story(&self) -> String {
        let shown = |note: &AgentNote| format!("{note:?}").chars().take(160).collect::<String>();
        self.seen.iter().map(|(_, note)| shown(note)).collect::<Vec<_>>().join("\n  ")
    }

    pub fn when(&self, is: impl Fn(&AgentNote) -> bool) -> Option<Instant> {
        self.seen.iter().find(|(_, note)| is(note)).map(|(at, _)| *at)
    }

    pub fn inject(&self, injection: Injection) {
        self.agent.send(AgentCommand::Inject(injection)).expect("room");
    }

    pub fn type_keys(&mut self, bytes: &[u8]) -> u64 {
        self.next_ticket += 1;
        self.agent
            .send(AgentCommand::Type { ticket: self.next_ticket, bytes: bytes.to_vec(), enter: false })
            .expect("room");
        self.next_ticket
    }

    #[track_caller]
    pub fn snapshot(&mut self, format: SnapshotFormat) -> Snapshot {
        self.agent.send(AgentCommand::Snapshot { ticket: 1000, format }).expect("room");
        match self.until("picture", |note| matches!(note, AgentNote::Pictured { ticket: 1000, .. })) {
            AgentNote::Pictured { snapshot, .. } => snapshot,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn release(&mut self) -> (Option<i32>, Option<i32>) {
        self.agent.send(AgentCommand::Release).expect("never refused");
        self.until_exited()
    }
}

/// A directory of one test, removed with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("broker-pty-{name}-{}", crate::sys::ids::uuid_hex()));
        std::fs::create_dir_all(&path).expect("a directory");
        Scratch(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits until `get` gives something; says what it gave last.
#[track_caller]
pub fn wait_for<T>(what: &str, mut get: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match get() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => panic!("no {what}: {last}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

pub fn exists(pid: i32) -> bool {
    std::fs::metadata(format!("/proc/{pid}")).is_ok()
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), signal).expect("it lives");
}

/// A file that holds a number, once it does.
#[track_caller]
pub fn number_in(path: &std::path::Path) -> i32 {
    wait_for("number in a file", || {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        text.strip_suffix('\n').and_then(|text| text.trim().parse().ok()).ok_or(format!("{text:?}"))
    })
}
