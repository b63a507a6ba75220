//! One CLI in one terminal: its thread, its screen, its readiness, what is typed into it, and its end.
//!
//! Owns: the terminal, the process tree in it, and everything that is known about both. One thread per agent, named
//! `pty-<agent>`, started by [`launch`] and ended by the end of the program or by a release; nothing else touches the
//! terminal. The daemon sends [`AgentCommand`]s and is told [`AgentNote`]s, in the order of the facts.
//!
//! ```text
//! launch -> program (found, or Refused) -> Prepared -> Start -> pump: poll(wake, process, terminal)
//!             pump: read   -> decoder -> screen, stripper -> outlet, readiness, echo, exit line
//!                   write  <- typist (keys, answers, messages: body, pause, Enter) <- desk (when, and which text)
//!                   after  -> receipts (read by the program?), echo (shown?)
//!                   end    -> farewell -> tree (every process of it) -> Exited
//! ```
//!
//! Invariants: no write and no read waits for the program; from the first byte of a message to its Enter nothing else is
//! written; a message whose bytes have begun to be written is never typed again; with nothing armed the thread sleeps.

mod ansi;
mod app_server;
mod context;
mod continuity;
mod decoder;
mod desk;
mod dialogs;
mod draft;
mod echo;
mod farewell;
pub mod harness;
mod headless;
mod leftover;
mod lines;
mod mailbox;
mod menu;
mod outfit;
mod outlet;
mod picture;
mod program;
mod pump;
mod readiness;
mod receipts;
mod responder;
mod screen;
mod tap;
mod terminal;
#[cfg(test)]
mod tests;
mod tree;
mod turn;
mod typist;
mod wording;
mod words;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;

use crate::core::ports::{AgentCommand, AgentNote, Generation, LONG_SILENCE_SECS, Launch, SPAWN_MS};
use crate::sys::{ids, threads};
use desk::LiveDesk;
use mailbox::{Mailbox, Post};
use program::Program;
use readiness::Readiness;
use screen::Screen;
use terminal::Terminal;
use wording::{Hint, Voice};

pub use leftover::{end_leftover, mark_of, start_of};
pub use mailbox::Full;
pub use tap::{Seen, Tap, Viewer, tap};
pub use terminal::{MARK, spawn_lock};
pub use tree::{Tree, become_subreaper, forget_leader, reap_orphans, register_leader};

/// Every length of time in this room. The defaults are the contract; tests shorten some.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the last byte of a body to Enter: programs take a CR within a burst as part of the text.
    pub before_enter: Duration,
    /// After the two escapes of a steer, and after the one that clears a suggestion.
    pub steer_settle: Duration,
    pub escape_settle: Duration,
    /// How long a message waits for a suggestion, or for a question, to leave the screen; how often the latter is looked at.
    pub suggestion_hold: Duration,
    pub dialog_hold: Duration,
    pub dialog_look: Duration,
    /// How long one try of a message waits for a human's unsent text to leave the composer.
    pub draft_hold: Duration,
    /// Keys that no composer shows may still be on their way so long; no question is answered meanwhile.
    pub draft_unseen: Duration,
    /// How long a message with a long line waits for the program to leave line mode, and how often that is looked at.
    pub line_mode_hold: Duration,
    pub line_mode_look: Duration,
    /// A CLI counts as ready then, whatever it shows.
    pub ready_limit: Duration,
    /// So long a screen has to look ready.
    pub ready_settle: Duration,
    /// What almost looks like readiness counts after this silence.
    pub ready_quiet: Duration,
    pub flush_every: Duration,
    pub active_every: Duration,
    /// Silence is told again then, whatever the agent's own threshold says.
    pub long_silence: Duration,
    /// A typed message that is not read for so long is told as stalled.
    pub stall: Duration,
    /// After a message: whether its Enter was swallowed.
    pub second_enter: Duration,
    pub exit_line_quiet: Duration,
    /// A block of continuity ends after this silence.
    pub continuity_quiet: Duration,
    /// Between the loss of the terminal and the end of a program that lives on without it.
    pub hang_up_grace: Duration,
    pub drain: Duration,
    pub term_after: Duration,
    pub kill_after: Duration,
    /// Between TERM and KILL of what outlives the program, and how often it is looked at.
    pub rest_grace: Duration,
    pub look_again: Duration,
    /// After KILL.
    pub give_up: Duration,
    /// How often a process without a descriptor is asked for (kernels before 5.3).
    pub blind_look: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        let ms = Duration::from_millis;
        Timing {
            before_enter: ms(50),
            steer_settle: ms(120),
            escape_settle: ms(100),
            suggestion_hold: ms(10_000),
            dialog_hold: ms(60_000),
            dialog_look: ms(500),
            draft_hold: ms(60_000),
            draft_unseen: ms(3_000),
            line_mode_hold: ms(2_000),
            line_mode_look: ms(200),
            ready_limit: ms(25_000),
            ready_settle: ms(50),
            ready_quiet: ms(1_000),
            flush_every: ms(16),
            active_every: ms(250),
            long_silence: ms(1_000 * LONG_SILENCE_SECS),
            stall: ms(5_000),
            second_enter: ms(10_000),
            exit_line_quiet: ms(200),
            continuity_quiet: ms(500),
            hang_up_grace: ms(500),
            drain: ms(500),
            term_after: ms(1_000),
            kill_after: ms(2_000),
            rest_grace: ms(200),
            look_again: ms(10),
            give_up: ms(1_000),
            blind_look: ms(250),
        }
    }
}

/// Where an agent's files lie.
#[derive(Debug, Clone)]
pub struct Files {
    /// Gets all text of the terminal.
    pub log: Option<PathBuf>,
    /// Directory for private files that end with the agent; made when the first is written.
    pub scratch: PathBuf,
    /// Gets every byte of the terminal.
    pub tap: Option<Tap>,
}

/// From its launch to the end of what has to be set up for its program. The core gives a spawn up a little later, and could
/// not say what it was that took so long.
const SETUP_LIMIT: Duration = Duration::from_millis(SPAWN_MS - 2_000);

/// How often the start of a program looks for a release.
const RELEASE_LOOK: Duration = Duration::from_millis(100);

/// The handle of an agent's thread. Dropping it releases the agent.
#[derive(Debug)]
pub struct AgentThread {
    name: String,
    generation: Generation,
    post: Post,
    thread: Option<threads::Thread>,
}

impl AgentThread {
    /// The agent's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Queues a command and wakes the thread. Never blocks.
    ///
    /// What is sent to a thread that has ended is dropped: its last note (`Exited` or `Refused`) answers everything still
    /// open.
    ///
    /// # Errors
    /// [`Full`] when 256 commands wait. A release is never refused.
    pub fn send(&self, command: AgentCommand) -> Result<(), Full> {
        self.post.send(command)
    }

    /// Ends the agent at once: KILL to its program, its session and every descendant, without asking first. Also after a
    /// release that has not ended yet. Never blocks; answered by `Exited`.
    pub fn kill_now(&self) {
        self.post.kill();
    }

    /// The thread has ended: joining it does not wait.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(threads::Thread::has_ended)
    }

    /// Waits at most `limit` for the thread's end; it ends after its last note. `false`: it still runs.
    pub fn join(mut self, limit: Duration) -> bool {
        self.thread.take().is_none_or(|thread| thread.join(limit))
    }
}

impl Drop for AgentThread {
    fn drop(&mut self) {
        self.post.release();
    }
}

/// Starts the thread of a new agent. It looks for the program and tells `Prepared` or `Refused`; then it waits for
/// `Start`, or for `Release`.
///
/// `notes` may block: the terminal's output then waits in the kernel and, when that is full, in the program. `watched` =
/// how many viewers want output.
///
/// # Errors
/// The system's, when no thread or descriptor can be had.
pub fn launch(
    launch: Launch,
    notes: impl Fn(Generation, AgentNote) + Send + 'static,
    watched: Arc<AtomicUsize>,
    files: Files,
) -> io::Result<AgentThread> {
    launch_timed(launch, notes, watched, files, Timing::default())
}

fn launch_timed(
    launch: Launch,
    notes: impl Fn(Generation, AgentNote) + Send + 'static,
    watched: Arc<AtomicUsize>,
    files: Files,
    timing: Timing,
) -> io::Result<AgentThread> {
    let (post, mailbox) = mailbox::pair()?;
    let (name, generation) = (launch.name.clone(), launch.generation);
    let thread = threads::spawn(&format!("pty-{name}"), move || {
        mailbox.announce();
        let tell = |note: AgentNote| notes(generation, note);
        // What has to be ended should this thread panic.
        let running: Cell<Option<Pid>> = Cell::new(None);
        let (mark, deadline) = (ids::uuid_hex(), Instant::now() + SETUP_LIMIT);
        let life = Life { launch, tell: &tell, mailbox: &mailbox, running: &running, mark, timing, deadline };
        let mark = life.mark.clone();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| life.live(watched, files)));
        if let Err(panic) = outcome {
            if let Some(leader) = running.get() {
                farewell::kill_all(leader, &mark);
            }
            tell(AgentNote::Exited { code: None, signal: None });
            std::panic::resume_unwind(panic);
        }
    })?;
    Ok(AgentThread { name, generation, post, thread: Some(thread) })
}

/// One life of one agent, from look-up to end.
struct Life<'a> {
    launch: Launch,
    tell: &'a dyn Fn(AgentNote),
    mailbox: &'a Mailbox,
    running: &'a Cell<Option<Pid>>,
    mark: String,
    timing: Timing,
    /// When its program has to be set up.
    deadline: Instant,
}

/// What `Start` brings.
struct Order {
    set: Vec<(String, String)>,
    remove: Vec<String>,
    pre_registered: bool,
}

impl<'a> Life<'a> {
    fn live(self, watched: Arc<AtomicUsize>, files: Files) {
        if let Some(server) = self.launch.app_server.clone() {
            return self.serve_app_server(&server);
        }
        if self.launch.headless {
            return self.serve_headless(files);
        }
        if let Some((pump, early)) = self.start(watched, files) {
            pump.run(early);
        }
    }

    /// Everything up to the running program; `None` when there is nothing to run. Not part of the caller's frame, because
    /// what it needs is needed once: the thread's stack is touched less deeply for the rest of the agent's life.
    #[inline(never)]
    fn start(
        self,
        watched: Arc<AtomicUsize>,
        files: Files,
    ) -> Option<(Box<pump::Pump<'a>>, VecDeque<Box<AgentCommand>>)> {
        threads::doing("looking for its program");
        let program = match program::resolve(&self.launch, std::env::var_os("PATH").as_deref()) {
            Ok(program) => program,
            Err(error) => return self.fail(AgentNote::Refused { error }),
        };
        (self.tell)(AgentNote::Prepared);
        let mut early = VecDeque::new();
        let Some(order) = self.wait_for_start(&mut early) else {
            early.into_iter().for_each(|command: Box<AgentCommand>| pump::refuse(self.tell, *command, "released"));
            return self.fail(AgentNote::Exited { code: None, signal: None });
        };
        threads::doing("starting its program");
        let (mark, launch, deadline) = (self.mark.clone(), self.launch.clone(), self.deadline);
        let started = aside(self.mailbox, move |given_up| {
            // The environment holds tokens and is not needed after this.
            let env = program::environment(std::env::vars_os(), &order.set, &order.remove, login_shell);
            let cancelled = || given_up.load(Ordering::Relaxed);
            let scratch = &files.scratch;
            let given = outfit::Circumstances { launch: &launch, scratch, deadline, cancelled: &cancelled };
            let outfit = outfit::make(&program, env, &given)?;
            if cancelled() {
                return Err("released before it was started".into());
            }
            let (terminal, size) = Terminal::start(&program, &outfit.args, &outfit.env, &mark)?;
            Ok((program, outfit, order, (files.log, files.tap), terminal, size))
        });
        let (program, outfit, order, (log_file, tap), terminal, size) = match started {
            Ok(started) => started,
            Err(error) if self.mailbox.release_wanted() => {
                log::info!("the start of '{}' was given up: {error}", self.launch.name);
                early.extend(self.mailbox.drain());
                early.into_iter().for_each(|command: Box<AgentCommand>| pump::refuse(self.tell, *command, "released"));
                return self.fail(AgentNote::Exited { code: None, signal: None });
            }
            Err(error) => return self.fail(AgentNote::Refused { error }),
        };
        if outfit.session_id != self.launch.session_ref || outfit.model.is_some() {
            (self.tell)(AgentNote::Outfitted { session_id: outfit.session_id, model: outfit.model });
        }
        self.running.set(Some(terminal.pid));
        (self.tell)(AgentNote::Started { pid: terminal.pid.as_raw_nonzero().get() as u32 });

        let now = Instant::now();
        let echo_window = Duration::from_secs(program.harness.echo_window_secs);
        let voice = self.voice(&program, &order);
        let mut desk = LiveDesk::new(terminal, Screen::new(size), voice, self.timing, echo_window, now);
        let readiness = Readiness::new(&program.path, &outfit.args);
        desk.holds_until_ready = readiness.knows_its_prompt();
        desk.ignores_drafts = self.launch.ignores_drafts;
        let parts = pump::Parts {
            tell: self.tell,
            mailbox: self.mailbox,
            desk,
            outlet: outlet::Outlet::new(watched, log_file),
            readiness,
            idle_threshold: Some(self.launch.idle_threshold_secs).filter(|secs| *secs > 0).map(Duration::from_secs),
            mark: self.mark,
            keep: outfit.keep,
            tap,
        };
        Some((Box::new(pump::Pump::new(parts, now)), early))
    }

    /// Tells why nothing runs.
    fn fail<T>(&self, note: AgentNote) -> Option<T> {
        (self.tell)(note);
        None
    }

    /// Waits until the program is to be started. `None`: released before that.
    fn wait_for_start(&self, early: &mut VecDeque<Box<AgentCommand>>) -> Option<Order> {
        threads::doing("waiting for the order to start");
        loop {
            // Without a time limit on purpose: the core decides how long a registration may take, and releases.
            let mut fds = [PollFd::new(self.mailbox.wake_fd(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, None);
            self.mailbox.clear_wake();
            if self.mailbox.release_wanted() {
                early.extend(self.mailbox.drain());
                return None;
            }
            while let Some(command) = self.mailbox.next() {
                match *command {
                    AgentCommand::Start { set, remove, pre_registered } => {
                        return Some(Order { set: set.0, remove, pre_registered });
                    }
                    // As many as the queue itself holds; more is a fault of the sender.
                    command if early.len() < 256 => early.push_back(Box::new(command)),
                    command => pump::refuse(self.tell, command, "the agent has not started"),
                }
            }
        }
    }

    fn voice(&self, program: &Program, order: &Order) -> Voice {
        let name = order.set.iter().rev().find(|(key, value)| key == "RELAY_AGENT_NAME" && !value.trim().is_empty());
        let file = program.path.file_name().unwrap_or_default().to_string_lossy();
        let cursor = program.harness.family == harness::Family::Cursor || matches!(&*file, "agent" | "cursor-agent");
        let always_short = cursor || self.launch.cli.to_lowercase().contains("cursor");
        let hint = match (self.launch.bare && self.launch.skip_relay_prompt, always_short) {
            (true, _) => Hint::Never,
            (false, true) => Hint::Short,
            (false, false) => Hint::Long,
        };
        Voice::new(order.pre_registered, name.map(|(_, value)| value.clone()), hint)
    }
}

/// Does `work` on a thread that ends with it. Starting a program takes hundreds of small allocations and 12 KiB of stack;
/// the C library keeps what a thread has freed for that thread alone, so on the agent's own thread about 30 KiB would lie
/// idle for as long as the agent lives.
///
/// `work` is told when a release comes in meanwhile: some harnesses take seconds to be set up.
fn aside<T: Send + 'static>(
    mailbox: &Mailbox,
    work: impl FnOnce(&AtomicBool) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (give, take) = crossbeam_channel::bounded(1);
    let given_up = Arc::new(AtomicBool::new(false));
    let told = given_up.clone();
    let thread = threads::spawn("pty-start", move || {
        let _ = give.send(work(&told));
    })
    .map_err(|error| format!("no thread to start it: {error}"))?;
    // Comes to an end in any case: `work` has its own limits, and a panic drops the sender.
    let outcome = loop {
        match take.recv_timeout(RELEASE_LOOK) {
            Ok(outcome) => break outcome,
            Err(RecvTimeoutError::Timeout) => given_up.store(mailbox.release_wanted(), Ordering::Relaxed),
            Err(RecvTimeoutError::Disconnected) => break Err("starting it panicked".into()),
        }
    };
    thread.join(Duration::from_secs(1));
    outcome
}

/// The user's shell from the user database, else `/bin/sh`.
fn login_shell() -> OsString {
    let uid = rustix::process::getuid().as_raw().to_string();
    std::fs::read_to_string("/etc/passwd")
        .unwrap_or_default()
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() == 7 && fields[2] == uid && !fields[6].is_empty())
        .map_or_else(|| "/bin/sh".into(), |fields| fields[6].into())
}
