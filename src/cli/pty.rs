//! `pty`: one program in a terminal, for a caller that speaks frames on stdin and stdout.
//!
//! The agent room does the work; here its notes become frames and frames its commands. As in the broker, one message is in
//! the terminal at a time, the next follows the proof that it was read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use lexopt::prelude::*;

use super::Failure;
use super::worker::{self, Heard};
use crate::agent::{self, AgentThread, Files};
use crate::core::ports::{
    AgentCommand, AgentNote, LONG_SILENCE_SECS, LOW_PCT, Launch, SnapshotFormat, Ticket, Variables,
};
use crate::daemon::{self, Fatal};
use crate::sys::{clock, threads};
use crate::wire::time::rfc3339;
use crate::wire::worker::{FromWorker, Inbound, RelayDelivery, ToWorker, WorkerReady};

mod messages;

pub const HELP: &str = "\
Run one program in a terminal; frames in on stdin, frames out on stdout, one JSON object a line

Usage: agent-relay-broker pty [OPTIONS] <CLI> [-- ARGS...]

Options:
  --agent-name <NAME>             Name of the agent [default: pty-worker]
  --idle-threshold-secs <SECS>    Silence before agent_idle, 0 = never [default: 30]
  --progress                      Accepted, without effect
  -h, --help                      Print help
";

/// Variables that reach no program.
const REMOVED: [&str; 3] = ["RELAY_BROKER_API_KEY", "RELAY_NODE_TOKEN", "CLAUDECODE"];
/// For a wait that nothing ends by time.
const LONG: Duration = Duration::from_secs(3600);

struct Options {
    name: String,
    idle_threshold_secs: u64,
    cli: String,
    args: Vec<String>,
}

fn read(mut parser: lexopt::Parser) -> Result<Options, Failure> {
    let (mut name, mut idle_threshold_secs, mut words) = ("pty-worker".to_string(), 30, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("agent-name") => name = parser.value()?.string()?,
            Long("idle-threshold-secs") => idle_threshold_secs = parser.value()?.parse()?,
            Long("progress") => {}
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if words.is_empty() {
        return Err(Failure::Usage("the following required arguments were not provided: <CLI>".into()));
    }
    let cli = words.remove(0);
    Ok(Options { name, idle_threshold_secs, cli, args: words })
}

/// # Errors
/// A wrong command line; a program that cannot be started.
pub fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let options = read(parser)?;
    clock::start();
    threads::enter("main");
    daemon::open_log(&options.name);
    if let Err(error) = agent::become_subreaper() {
        log::warn!("orphans of the program cannot be adopted: {error}");
    }
    let outcome = serve(options);
    daemon::close_log();
    if let Some(signal) = outcome? {
        worker::die_of(signal);
    }
    Ok(())
}

/// The signal that ended it, if one did.
fn serve(options: Options) -> Result<Option<i32>, Fatal> {
    let (heard, tell) = worker::listen::<AgentNote>()?;
    let launch = Launch {
        generation: 1,
        name: options.name.clone(),
        cli: options.cli.clone(),
        args: options.args,
        model: None,
        session_ref: None,
        resumes: false,
        cwd: None,
        skip_relay_prompt: false,
        idle_threshold_secs: options.idle_threshold_secs,
        ignores_drafts: false,
        headless: false,
        app_server: None,
        bare: true,
    };
    // Only a worker that has ended takes no more.
    let notes = move |_, note| drop(tell.send(Heard::News(note)));
    let files = Files { log: None, scratch: std::env::temp_dir(), tap: None };
    let agent = agent::launch(launch, notes, Arc::new(AtomicUsize::new(1)), files)
        .map_err(|error| failed_to_spawn(&error.to_string()))?;
    let mut pty = Pty {
        agent,
        name: options.name,
        cli: options.cli,
        asked_for: None,
        pid: None,
        ready: false,
        ready_told: false,
        waiting: VecDeque::new(),
        in_flight: None,
        unverified: Vec::new(),
        typed: Default::default(),
        retry_at: None,
        open: HashMap::new(),
        last_ticket: 0,
        signal: None,
        refused: None,
    };
    loop {
        threads::doing("waiting for a frame or a note");
        let limit = pty.retry_at.map_or(LONG, |at| at.saturating_duration_since(Instant::now()));
        let going_on = match heard.recv_timeout(limit) {
            Ok(heard) => pty.hear(heard),
            Err(RecvTimeoutError::Timeout) => Ok(true),
            Err(RecvTimeoutError::Disconnected) => Ok(false),
        };
        match going_on {
            Ok(true) => pty.type_next(),
            Ok(false) => break,
            // Nobody listens any more: so the program ends.
            Err(error) => {
                log::warn!("stdout takes no more: {error}");
                pty.agent.send(AgentCommand::Release).unwrap_or_default();
                while let Ok(heard) = heard.recv_timeout(agent_end()) {
                    if matches!(heard, Heard::News(AgentNote::Exited { .. } | AgentNote::Refused { .. })) {
                        break;
                    }
                }
                break;
            }
        }
    }
    let (signal, refused) = (pty.signal, pty.refused);
    pty.agent.join(Duration::from_secs(1));
    match refused {
        Some(error) => Err(failed_to_spawn(&error)),
        None => Ok(signal),
    }
}

/// The release ladder ends with KILL at 2 s; the rest is reaping.
fn agent_end() -> Duration {
    Duration::from_secs(4)
}

fn failed_to_spawn(why: &str) -> Fatal {
    Fatal::new("failed to spawn wrapped command").because(why)
}

struct Message {
    delivery: RelayDelivery,
    failures: usize,
    /// Shown before it was proved read.
    verified: bool,
}

struct Pty {
    agent: AgentThread,
    name: String,
    cli: String,
    /// The request id of `init_worker`, once that has come.
    asked_for: Option<Option<String>>,
    pid: Option<u32>,
    ready: bool,
    ready_told: bool,
    waiting: VecDeque<Message>,
    in_flight: Option<Message>,
    /// Read, and not yet known whether it was shown: delivery and event ids.
    unverified: Vec<(String, String)>,
    typed: worker::HandedOver,
    /// Until then nothing is typed.
    retry_at: Option<Instant>,
    /// Requests that the agent's thread answers.
    open: HashMap<Ticket, Option<String>>,
    last_ticket: Ticket,
    signal: Option<i32>,
    /// Why the program cannot be started.
    refused: Option<String>,
}

impl Pty {
    /// `false`: all is over.
    fn hear(&mut self, heard: Heard<AgentNote>) -> std::io::Result<bool> {
        match heard {
            Heard::Frame(Ok(inbound)) => self.on_frame(inbound).map(|()| true),
            Heard::Frame(Err(rejected)) => {
                let request_id = rejected.request_id.clone();
                worker::say(&rejected.answer(), request_id.as_deref()).map(|()| true)
            }
            Heard::Closed => self.release(),
            Heard::Signal(signal) => {
                self.signal.get_or_insert(signal);
                self.release()
            }
            Heard::News(note) => self.on_note(note),
        }
    }

    fn release(&mut self) -> std::io::Result<bool> {
        // Never refused.
        self.agent.send(AgentCommand::Release).unwrap_or_default();
        Ok(true)
    }

    fn on_frame(&mut self, inbound: Inbound) -> std::io::Result<()> {
        let request_id = inbound.request_id;
        match inbound.asked {
            ToWorker::InitWorker { .. } => {
                self.asked_for.get_or_insert(request_id);
                self.tell_ready()
            }
            ToWorker::DeliverRelay(delivery) => self.take(delivery, request_id),
            ToWorker::WritePty { data } => {
                let ticket = self.ticket(request_id);
                self.command(AgentCommand::Type { ticket, bytes: data.into_bytes(), enter: false }, ticket)
            }
            ToWorker::ResizePty { rows: 0, .. } | ToWorker::ResizePty { cols: 0, .. } => {
                error("invalid_dimensions", "rows and cols are at least 1", request_id.as_deref())
            }
            ToWorker::ResizePty { rows, cols } => {
                let ticket = self.ticket(request_id);
                self.command(AgentCommand::Resize { ticket, rows, cols }, ticket)
            }
            ToWorker::SnapshotPty { format } => {
                let format = match format.as_deref().unwrap_or_default() {
                    "" | "plain" | "text" => SnapshotFormat::Plain,
                    "ansi" => SnapshotFormat::Ansi,
                    other => {
                        let message = format!("unsupported snapshot format '{other}' (expected 'plain' or 'ansi')");
                        return error("invalid_format", &message, request_id.as_deref());
                    }
                };
                let ticket = self.ticket(request_id);
                self.command(AgentCommand::Snapshot { ticket, format }, ticket)
            }
            ToWorker::Ping { ts_ms } => worker::say(&FromWorker::Pong { ts_ms }, request_id.as_deref()),
            ToWorker::ShutdownWorker => self.release().map(drop),
        }
    }

    fn ticket(&mut self, request_id: Option<String>) -> Ticket {
        self.last_ticket += 1;
        self.open.insert(self.last_ticket, request_id);
        self.last_ticket
    }

    fn command(&mut self, command: AgentCommand, ticket: Ticket) -> std::io::Result<()> {
        match self.agent.send(command) {
            Ok(()) => Ok(()),
            Err(full) => {
                let request_id = self.open.remove(&ticket).flatten();
                retryable("pty_write_failed", &full.to_string(), request_id.as_deref())
            }
        }
    }

    // --------------------------------------------------------------------------------------------------------------- notes

    fn on_note(&mut self, note: AgentNote) -> std::io::Result<bool> {
        match note {
            AgentNote::Prepared => self.start(),
            AgentNote::Refused { error } => {
                self.refused = Some(error);
                return Ok(false);
            }
            AgentNote::Started { pid } => self.pid = Some(pid),
            AgentNote::Ready => {
                self.ready = true;
                self.tell_ready()?;
            }
            AgentNote::Output { chunk, .. } => {
                worker::say(&FromWorker::WorkerStream { stream: "stdout".into(), chunk }, None)?;
            }
            AgentNote::Typed { delivery_id } => {
                if let Some(delivery) = self.of_flight(&delivery_id) {
                    worker::say(&FromWorker::DeliveryInjected(self.step(delivery, true)), None)?;
                }
            }
            AgentNote::Read { delivery_id } => {
                if let Some(message) = self.land(&delivery_id) {
                    self.typed.add(&delivery_id);
                    if !message.verified {
                        self.unverified.push((delivery_id, message.delivery.event_id));
                    }
                }
            }
            AgentNote::Verified { delivery_id, echo } => self.on_verified(delivery_id, echo)?,
            AgentNote::Lost { delivery_id } => {
                if let Some(message) = self.land(&delivery_id) {
                    self.typed.add(&delivery_id);
                    let why = "the terminal's unread input was thrown away before the message was proved read";
                    self.failed(&message.delivery, why.into())?;
                }
            }
            AgentNote::InjectFailed { delivery_id, error } => self.on_inject_failed(&delivery_id, error)?,
            AgentNote::TypeDone { ticket, result } => {
                let request_id = self.open.remove(&ticket).flatten();
                if let Err(message) = result {
                    retryable("pty_write_failed", &message, request_id.as_deref())?;
                }
            }
            AgentNote::Resized { ticket, .. } => drop(self.open.remove(&ticket)),
            AgentNote::Pictured { ticket, format, snapshot } => {
                let request_id = self.open.remove(&ticket).flatten();
                let format = if format == SnapshotFormat::Ansi { "ansi" } else { "plain" };
                let frame = FromWorker::SnapshotResponse {
                    format: format.into(),
                    rows: snapshot.rows,
                    cols: snapshot.cols,
                    cursor: snapshot.cursor,
                    screen: snapshot.screen,
                };
                worker::say(&frame, request_id.as_deref())?;
            }
            AgentNote::Idle { idle_secs, since_unix } => self.on_idle(idle_secs, since_unix)?,
            // As the broker tells it.
            AgentNote::ContextLeft { pct } if pct <= LOW_PCT => {
                worker::say(&FromWorker::AgentContextLow { pct }, None)?;
            }
            AgentNote::Ending { reason } => {
                worker::say(&FromWorker::AgentExit { reason: reason.into() }, None)?;
            }
            AgentNote::Exited { code, signal } => {
                // What it has not read, its caller can give to somebody else.
                let unread: Vec<Message> =
                    self.in_flight.take().into_iter().chain(std::mem::take(&mut self.waiting)).collect();
                for message in unread {
                    self.failed(&message.delivery, "the program ended before it was proved to have read it".into())?;
                }
                let signal = signal.map(|signal| signal.to_string());
                worker::say(&FromWorker::WorkerExited { code, signal }, None)?;
                return Ok(false);
            }
            // What only the broker tells, or agents without a terminal do.
            _ => {}
        }
        Ok(true)
    }

    fn start(&mut self) {
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let mut set = vec![
            ("CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION".to_string(), "false".to_string()),
            ("DISABLE_AUTOUPDATER".to_string(), "1".to_string()),
        ];
        set.extend(given("RELAY_AGENT_NAME").map(|name| ("RELAY_AGENT_NAME".to_string(), name)));
        let start = AgentCommand::Start {
            set: Variables(set),
            remove: REMOVED.map(str::to_string).to_vec(),
            pre_registered: given("RELAY_AGENT_TOKEN").is_some(),
        };
        // An empty queue has room.
        self.agent.send(start).unwrap_or_default();
    }

    /// Once, when the program is ready and has been asked for.
    fn tell_ready(&mut self) -> std::io::Result<()> {
        let Some(request_id) = self.asked_for.as_ref().filter(|_| self.ready && !self.ready_told) else {
            return Ok(());
        };
        let ready = WorkerReady {
            name: self.name.clone(),
            runtime: "pty".into(),
            cli: Some(self.cli.clone()),
            pid: self.pid,
            ..WorkerReady::default()
        };
        worker::say(&FromWorker::WorkerReady(ready), request_id.as_deref())?;
        self.ready_told = true;
        Ok(())
    }

    fn on_idle(&mut self, idle_secs: u64, since_unix: u64) -> std::io::Result<()> {
        let pending = self.waiting.len() + usize::from(self.in_flight.is_some()) + self.unverified.len();
        let frame = match pending {
            0 => FromWorker::AgentIdle { idle_secs, since: rfc3339(since_unix) },
            _ if idle_secs >= LONG_SILENCE_SECS => {
                FromWorker::AgentBlockedOnSend { blocked_secs: idle_secs, pending_delivery_count: pending as u64 }
            }
            _ => return Ok(()),
        };
        worker::say(&frame, None)
    }
}

fn error(code: &str, message: &str, request_id: Option<&str>) -> std::io::Result<()> {
    let (code, message) = (code.to_string(), message.to_string());
    worker::say(&FromWorker::WorkerError { code, message, retryable: false }, request_id)
}

fn retryable(code: &str, message: &str, request_id: Option<&str>) -> std::io::Result<()> {
    let (code, message) = (code.to_string(), message.to_string());
    worker::say(&FromWorker::WorkerError { code, message, retryable: true }, request_id)
}
