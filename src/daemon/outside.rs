//! The terminal of a user who runs one program through the broker: it sees every byte of the program, its keys are the
//! program's, and its end is the broker's.
//!
//! To the core the program is an agent like any other, and its user one more writer of keystrokes. Two threads stand
//! between: `term-in` starts the agent and then reads stdin, `term-out` writes stdout. A viewer that is behind makes the
//! program wait, nothing else (see `agent::Tap`).

mod raw;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::stdio;

use super::Fatal;
use super::doors::Control;
use super::env::Env;
use super::logging::{operator, say};
use crate::agent::{Seen, Tap, Viewer, tap};
use crate::api::{Calls, NoAnswer};
use crate::core::ports::{AgentNote, ApiAnswer, ApiCall, Generation, Input, Launch, Secret, SpawnRequest};
use crate::sys::bell::Caller;
use crate::sys::{ids, threads};
use raw::Raw;

/// The core answers a spawn within 22 s.
const SPAWN: Duration = Duration::from_secs(25);
/// The core answers keystrokes within 12 s.
const KEYS: Duration = Duration::from_secs(30);
/// Between two tries to put keys where there was no room.
const RETRY: Duration = Duration::from_millis(20);
const READ_BYTES: usize = 4096;
/// How often somebody who waits for stdout looks whether all is over.
const LOOK: Duration = Duration::from_millis(200);
/// At the end: a stdout that takes nothing for so long gets no more. Shorter when we were told to go.
const STALLED: Duration = Duration::from_secs(5);
const STALLED_IN_HASTE: Duration = Duration::from_secs(1);

/// For the last line.
const GOODBYE: Duration = Duration::from_millis(300);

/// The command line of `wrap`.
#[derive(Debug, Clone)]
pub struct Wrapped {
    /// The executable; as everywhere a command line, whose further words come before the arguments.
    pub cli: String,
    pub args: Vec<String>,
}

impl Wrapped {
    /// The name of the agent, and so of this broker.
    pub fn name(&self, env: &Env) -> String {
        let words = shell_words::split(self.cli.trim()).unwrap_or_default();
        let word = words.first().and_then(|word| word.rsplit('/').find(|part| !part.is_empty()));
        env.get("RELAY_AGENT_NAME").or(word).unwrap_or("agent").to_string()
    }

    pub fn log_id(&self) -> String {
        format!("wrap-{}-{}", self.cli, std::process::id())
    }
}

/// How the program has ended.
type Ended = (Option<i32>, Option<i32>);

pub struct Outside {
    wrapped: Wrapped,
    /// Its agent's; another one if a live agent elsewhere has it.
    name: Mutex<String>,
    channels: Vec<String>,
    token: Option<Secret>,
    /// The name is taken from whoever has it.
    strict: bool,
    hints: bool,
    control: Caller<Control>,
    calls: OnceLock<Calls>,
    tap: Tap,
    viewer: Mutex<Option<Viewer>>,
    raw: Raw,
    /// Ends the wait for a key.
    wake: OwnedFd,
    over: AtomicBool,
    generation: Mutex<Option<Generation>>,
    /// The program runs, or has run.
    started: AtomicBool,
    ended: Mutex<Option<Ended>>,
    signal: AtomicI32,
    /// Bytes written to stdout.
    shown: AtomicU64,
    fatal: Mutex<Option<Fatal>>,
    threads: Mutex<Vec<threads::Thread>>,
}

/// Nothing here is held while something else is waited for.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outside {
    /// # Errors
    /// No descriptor is left.
    pub fn new(wrapped: Wrapped, name: &str, env: &Env, control: Caller<Control>) -> Result<Arc<Outside>, Fatal> {
        let failed = |error: std::io::Error| Fatal::new("the terminal cannot be served").because(error);
        let is_terminal = rustix::termios::isatty(stdio::stdin()) && rustix::termios::isatty(stdio::stdout());
        let (tap, viewer) = tap(is_terminal).map_err(failed)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Arc::new(Outside {
            wrapped,
            name: Mutex::new(name.to_string()),
            channels: env.list("RELAY_CHANNELS").unwrap_or_else(|| vec!["general".into()]),
            token: env.get("RELAY_AGENT_TOKEN").map(Secret::new),
            strict: env.says_yes("RELAY_STRICT_AGENT_NAME"),
            hints: !env.says_yes("RELAY_SKIP_PROMPT"),
            control,
            calls: OnceLock::new(),
            tap,
            viewer: Mutex::new(Some(viewer)),
            raw: Raw::default(),
            wake: wake.map_err(|error| failed(error.into()))?,
            over: AtomicBool::new(false),
            generation: Mutex::new(None),
            started: AtomicBool::new(false),
            ended: Mutex::new(None),
            signal: AtomicI32::new(0),
            shown: AtomicU64::new(0),
            fatal: Mutex::new(None),
            threads: Mutex::new(Vec::new()),
        }))
    }

    /// The loop is about to run: the program may be started.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(self: &Arc<Outside>, calls: &Calls) -> Result<(), Fatal> {
        let _ = self.calls.set(calls.clone());
        let outside = self.clone();
        self.start_thread("term-in", move || outside.serve_keys())
    }

    fn start_thread(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Fatal> {
        let thread =
            threads::spawn(name, body).map_err(|error| Fatal::new("the terminal cannot be served").because(error))?;
        locked(&self.threads).push(thread);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------ the loop's questions

    /// The tap of an agent that is about to be launched, if it is ours.
    pub fn tap(&self, launch: &Launch) -> Option<Tap> {
        if !launch.bare || launch.name != *locked(&self.name) {
            return None;
        }
        *locked(&self.generation) = Some(launch.generation);
        Some(self.tap.clone())
    }

    /// Whether this is the end of the program. Looks at everything that the loop is told.
    pub fn has_ended(&self, input: &Input) -> bool {
        let Input::Agent { generation, note } = input else { return false };
        if *locked(&self.generation) != Some(*generation) {
            return false;
        }
        match note {
            AgentNote::Started { .. } => self.started.store(true, Ordering::Release),
            AgentNote::Exited { code, signal } if self.started.load(Ordering::Acquire) => {
                *locked(&self.ended) = Some((*code, *signal));
                return true;
            }
            _ => {}
        }
        false
    }

    // ---------------------------------------------------------------------------------------------- the main thread's part

    /// The terminal has another size.
    pub fn resize(&self) {
        if let (Some(calls), Some((rows, cols))) = (self.calls.get(), raw::size()) {
            let name = locked(&self.name).clone();
            // The next one tells the size anew.
            let _ = calls.tell(ApiCall::Resize { name, rows, cols, session: None }, Duration::from_secs(1));
        }
    }

    pub fn signalled(&self, signal: i32) {
        self.signal.store(signal, Ordering::Release);
    }

    /// The broker has ended: shows what still waits to be shown, and gives the terminal back.
    ///
    /// # Errors
    /// Why the program could not be started.
    pub fn finish(&self) -> Result<u8, Fatal> {
        self.over.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        // Behind everything that is to be shown.
        self.tap.push(&[]);
        let patience = if self.signal.load(Ordering::Acquire) == 0 { STALLED } else { STALLED_IN_HASTE };
        let (mut shown, mut since) = (self.shown.load(Ordering::Acquire), Instant::now());
        // Each time anew: the first thread starts the second.
        while locked(&self.threads).iter().any(|thread| !thread.has_ended()) && since.elapsed() < patience {
            std::thread::park_timeout(Duration::from_millis(5));
            let now = self.shown.load(Ordering::Acquire);
            if now != shown {
                (shown, since) = (now, Instant::now());
            }
        }
        for thread in std::mem::take(&mut *locked(&self.threads)) {
            thread.join(Duration::ZERO);
        }
        self.raw.restore();
        let signal = self.signal.load(Ordering::Acquire);
        if let Some(fatal) = locked(&self.fatal).take().filter(|_| signal == 0) {
            return Err(fatal);
        }
        say_goodbye();
        Ok(match (signal, *locked(&self.ended)) {
            (0, Some((Some(code), _))) => code as u8,
            (0, Some((None, Some(signal)))) => 128 + signal as u8,
            (0, _) => 1,
            (signal, _) => 128 + signal as u8,
        })
    }

    // ------------------------------------------------------------------------------------------------------------- term-in

    fn serve_keys(self: &Arc<Outside>) {
        let outcome = self.start();
        if let Err(fatal) = outcome {
            *locked(&self.fatal) = Some(fatal);
            self.stop("the program cannot be started");
            return;
        }
        threads::doing("waiting for a key");
        let mut buffer = [0u8; READ_BYTES];
        while self.wait_for_key() {
            match rustix::io::read(stdio::stdin(), &mut buffer) {
                // The program goes on without a keyboard.
                Ok(0) => return,
                Ok(count) if !self.type_in(&buffer[..count]) => return,
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(error) => {
                    log::info!("stdin can be read no longer: {error}");
                    return;
                }
            }
        }
    }

    fn stop(&self, why: &'static str) {
        let _ = self.control.try_send(Control::Stop(why));
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// `false`: there is nobody to type for any more.
    fn wait_for_key(&self) -> bool {
        let stdin = stdio::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        loop {
            // Without a time limit on purpose: until somebody types there is nothing to do. The end rings.
            let polled = rustix::event::poll(&mut fds, None);
            if self.is_over() {
                return false;
            }
            // A signal ends the wait too; to read then would be a wait that the end does not ring.
            if polled.is_ok() && !fds[0].revents().is_empty() {
                return true;
            }
        }
    }

    fn pause(&self) {
        let wait = Timespec { tv_sec: 0, tv_nsec: RETRY.subsec_nanos().into() };
        let _ = rustix::event::poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], Some(&wait));
    }

    /// Hands keys to the program, however long it takes: what it does not take makes its user wait, as any terminal does.
    /// `false`: the program has gone.
    fn type_in(&self, bytes: &[u8]) -> bool {
        let Some(calls) = self.calls.get() else { return false };
        while !self.is_over() {
            let (sender, answer) = bounded(1);
            let call = ApiCall::Type { name: locked(&self.name).clone(), bytes: bytes.to_vec() };
            match calls.post(call, move |outcome| drop(sender.try_send(outcome))) {
                Ok(_) => {}
                Err((NoAnswer::Full, _)) => {
                    self.pause();
                    continue;
                }
                Err(_) => return false,
            }
            match answer.recv_timeout(KEYS) {
                Ok(Ok(ApiAnswer { status: 503, body })) if is_refusal(&body) => self.pause(),
                // Not answered in time: they are in the queue, and what follows queues behind them.
                Ok(Ok(ApiAnswer { status: 200 | 503 | 504, .. })) | Err(_) => return true,
                Ok(_) => return false,
            }
        }
        false
    }

    fn start(self: &Arc<Outside>) -> Result<(), Fatal> {
        let cli = &self.wrapped.cli;
        let name = locked(&self.name).clone();
        operator(&format!("wrapping {cli} (agent: {name}, channels: {:?})", self.channels));
        operator("set RUST_LOG=debug to log more; the log is a file unless AGENT_RELAY_BROKER_LOG says otherwise");
        threads::doing("starting the program");
        let failed = |why: &str| Fatal::new(format!("'{cli}' cannot be started")).because(why);
        let mut error = self.spawn(&name).err();
        if error.as_ref().is_some_and(|error| error.contains("agent_location_conflict")) && !self.strict {
            let second = format!("{name}-{}", &ids::uuid_hex()[..8]);
            operator(&format!("WARNING: registered as '{second}' (requested '{name}', which is active elsewhere)"));
            *locked(&self.name) = second.clone();
            error = self.spawn(&second).err();
        }
        if let Some(error) = error {
            return Err(failed(&error));
        }
        operator("ready");
        self.raw.enter();
        // It may have changed before there was an agent to tell.
        self.resize();
        let viewer = locked(&self.viewer).take();
        let outside = self.clone();
        self.start_thread("term-out", move || viewer.into_iter().for_each(|viewer| outside.show(&viewer)))
    }

    fn spawn(&self, name: &str) -> Result<(), String> {
        let Some(calls) = self.calls.get() else { return Err("the broker has ended".into()) };
        let request = SpawnRequest {
            name: name.to_string(),
            cli: self.wrapped.cli.clone(),
            args: self.wrapped.args.clone(),
            channels: self.channels.clone(),
            env: vec![("RELAY_CHANNELS".into(), self.channels.join(","))],
            agent_token: self.token.clone(),
            skip_relay_prompt: !self.hints,
            bare: true,
            yields_name: !self.strict,
            ..SpawnRequest::default()
        };
        match calls.ask(ApiCall::Spawn(request), SPAWN) {
            Ok(ApiAnswer { status: 200, .. }) => Ok(()),
            Ok(ApiAnswer { body, .. }) => {
                Err(body.get("error").and_then(serde_json::Value::as_str).unwrap_or("refused").to_string())
            }
            Err(NoAnswer::Closed) => Err("told to stop before it was started".into()),
            Err(NoAnswer::Full | NoAnswer::Late) => Err("the broker did not answer in time".into()),
        }
    }

    // ------------------------------------------------------------------------------------------------------------ term-out

    fn show(&self, viewer: &Viewer) {
        threads::doing("waiting for output");
        loop {
            match viewer.next(LOOK) {
                Seen::Bytes(end) if end.is_empty() => return,
                Seen::Bytes(bytes) => {
                    if let Err(error) = self.write(&bytes) {
                        log::warn!("stdout takes no more: {error}");
                        self.stop("stdout is closed");
                        return;
                    }
                }
                // The agent's thread has said everything before the broker ended.
                Seen::Nothing if self.is_over() => return,
                Seen::Nothing => {}
                Seen::End => return,
            }
        }
    }

    fn write(&self, mut bytes: &[u8]) -> rustix::io::Result<()> {
        let stdout = stdio::stdout();
        while !bytes.is_empty() {
            match rustix::io::write(stdout, bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.shown.fetch_add(count as u64, Ordering::AcqRel);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let wait = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
                    let _ = rustix::event::poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], Some(&wait));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// By a thread of its own: a terminal that takes nothing must not keep us here.
fn say_goodbye() {
    if let Ok(thread) = threads::spawn("term-end", || say("\r\n[agent-relay] session ended")) {
        thread.join(GOODBYE);
    }
}

/// Not one byte was taken.
fn is_refusal(body: &serde_json::Value) -> bool {
    let text = body.to_string();
    ["pty_write_queue_full", "takes no more input for now"].iter().any(|refusal| text.contains(refusal))
}

/// Gives the terminal back when it is dropped, be it by a panic.
pub struct Restored(pub Arc<Outside>);

impl Drop for Restored {
    fn drop(&mut self) {
        self.0.raw.restore();
    }
}
