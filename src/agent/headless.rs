//! An agent without terminal: its first message becomes the prompt of one run of its program, and with that run it ends.
//!
//! What comes meanwhile stays unanswered: the note of the end accounts for it. A release ends the whole process tree, as it
//! does in a terminal.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::harness::{CONFIG_FLAG, Family, Running};
use super::outfit::Outfit;
use super::outlet::Log;
use super::program::Program;
use super::terminal::{MARK, Status};
use super::tree::{self, Tree};
use super::{Files, Life, aside, login_shell, outfit, program, pump};
use crate::core::ports::{AgentCommand, AgentNote, Injection, LAST_WORDS_MAX, LastWords};
use crate::sys::{kernel, threads};

/// A line longer than this is told in pieces.
const LINE_MAX: usize = 16 << 10;
/// Opencode asks nobody for permission.
const PERMISSION: (&str, &str) = ("OPENCODE_PERMISSION", r#"{"*":"allow","external_directory":{"*":"allow"}}"#);
/// The identity of an agent is in its server's configuration only.
const IDENTITY: [&str; 4] = ["RELAY_AGENT_TOKEN", "RELAY_AGENT_NAME", "RELAY_AGENT_TYPE", "RELAY_STRICT_AGENT_NAME"];

impl Life<'_> {
    /// The whole life, from look-up to end.
    pub(super) fn serve_headless(self, files: Files) {
        threads::doing("looking for its program");
        let program = match program::resolve(&self.launch, std::env::var_os("PATH").as_deref()) {
            Ok(program) => program,
            Err(error) => return (self.tell)(AgentNote::Refused { error }),
        };
        (self.tell)(AgentNote::Prepared);
        let Files { log, scratch, .. } = files;
        let mut early = VecDeque::new();
        let order = self.wait_for_start(&mut early);
        let outfit = order.map(|order| {
            let (launch, deadline) = (self.launch.clone(), self.deadline);
            aside(self.mailbox, move |given_up| {
                let env = program::environment(std::env::vars_os(), &order.set, &order.remove, login_shell);
                let cancelled = || given_up.load(Ordering::Relaxed);
                let scratch = &scratch;
                let given = outfit::Circumstances { launch: &launch, scratch, deadline, cancelled: &cancelled };
                let mut outfit = outfit::make(&program, env, &given)?;
                outfit.env.retain(|(name, _)| !IDENTITY.iter().any(|identity| name == identity));
                Ok((program, outfit))
            })
        });
        let (program, outfit) = match outfit {
            Some(Ok(ready)) => ready,
            Some(Err(error)) if !self.mailbox.release_wanted() => return (self.tell)(AgentNote::Refused { error }),
            _ => {
                early.extend(self.mailbox.drain());
                early.into_iter().for_each(|command: Box<AgentCommand>| pump::refuse(self.tell, *command, "released"));
                return (self.tell)(AgentNote::Exited { code: None, signal: None });
            }
        };
        (self.tell)(AgentNote::Serving { pid: None });
        (self.tell)(AgentNote::Ready);
        let mut told = Told { tell: self.tell, log: Log::to(log), offset: 0, last: String::new() };
        let prompt = self.wait_for_prompt(early);
        let status = prompt.map(|prompt| self.run(&program, &outfit, prompt, &mut told)).unwrap_or_default();
        self.mailbox.drain().for_each(|command| pump::refuse(self.tell, *command, "the agent has ended"));
        // Who hears of the end finds nothing of the agent left.
        drop(outfit);
        if told.offset > 0 {
            (self.tell)(AgentNote::LastWords(LastWords::of(&told.last, told.log.path())));
        }
        (self.tell)(AgentNote::Exited { code: status.code, signal: status.signal });
    }

    /// `None`: released before a message came.
    fn wait_for_prompt(&self, mut early: VecDeque<Box<AgentCommand>>) -> Option<Injection> {
        threads::doing("waiting for its message");
        let mut held = false;
        loop {
            while let Some(command) = early.pop_front().or_else(|| self.mailbox.next()) {
                match *command {
                    AgentCommand::Hold(wanted) => held = wanted,
                    AgentCommand::Inject(injection) if held && !injection.exempt => {
                        (self.tell)(AgentNote::GivenBack { delivery_id: injection.delivery_id });
                    }
                    AgentCommand::Inject(injection) => return Some(injection),
                    command => pump::refuse(self.tell, command, "the agent has no terminal"),
                }
            }
            if self.mailbox.release_wanted() {
                return None;
            }
            // Without a time limit on purpose: until somebody writes there is nothing to do.
            let _ = rustix::event::poll(&mut [PollFd::new(self.mailbox.wake_fd(), PollFlags::IN)], None);
            self.mailbox.clear_wake();
        }
    }

    fn run(&self, program: &Program, outfit: &Outfit, prompt: Injection, told: &mut Told<'_>) -> Status {
        threads::doing("running its program");
        let word = &program.executable;
        let delivery_id = prompt.delivery_id.clone();
        let finished = |result| (self.tell)(AgentNote::Finished { delivery_id: delivery_id.clone(), result });
        let command = command(program, outfit, &prompt.body, &self.mark);
        let mut running = match Running::start(command) {
            Ok(running) => running,
            Err(error) => {
                finished(Err(format!("failed to spawn {word}: {error}")));
                return Status { code: Some(1), signal: None };
            }
        };
        self.running.set(Some(running.pid()));
        let pid = running.pid().as_raw_nonzero().get() as u32;
        (self.tell)(AgentNote::Taken { delivery_id: delivery_id.clone(), pid });
        let mut tree = Tree::new(running.pid(), &self.mark);
        let mut lines =
            [Lines::of("stdout", running.child.stdout.take()), Lines::of("stderr", running.child.stderr.take())];
        let status = self.watch(&running, &mut tree, &mut lines, told);
        self.clear(&mut tree);
        // The program is reaped with `running`.
        self.running.set(None);
        drop(running);
        tree::reap_orphans();
        if !self.mailbox.release_wanted() {
            finished(match (status.code, status.signal) {
                (Some(0), _) => Ok(()),
                (Some(code), _) => Err(format!("{word} exited with code {code}")),
                (None, signal) => Err(format!("{word} was ended by signal {}", signal.unwrap_or_default())),
            });
        }
        status
    }

    /// Until the program has ended; a release makes it.
    fn watch(&self, running: &Running, tree: &mut Tree, lines: &mut [Lines; 2], told: &mut Told<'_>) -> Status {
        let mut asked: Option<Instant> = None;
        loop {
            let limit = match (asked, running.pidfd()) {
                (None, Some(_)) => None,
                (None, None) => Some(self.timing.blind_look),
                (Some(_), _) => Some(self.timing.look_again),
            };
            self.wait(running, lines, limit);
            self.mailbox.clear_wake();
            for lines in lines.iter_mut() {
                lines.read(told);
            }
            if let Some(status) = ended(running) {
                // What it wrote before its end is still in the pipes; a descendant that goes on writing keeps nobody.
                let until = Instant::now() + self.timing.drain;
                while Instant::now() < until && lines.iter_mut().any(|lines| lines.read(told)) {}
                lines.iter_mut().for_each(|lines| lines.finish(told));
                return status;
            }
            if !self.mailbox.release_wanted() {
                continue;
            }
            let now = Instant::now();
            if asked.is_none() {
                tree.refresh();
                tree.signal(&[Signal::TERM, Signal::CONT]);
            }
            let since = now - *asked.get_or_insert(now);
            if since >= self.timing.kill_after || self.mailbox.kill_wanted() {
                tree.refresh();
                tree.signal(&[Signal::KILL]);
            }
            if since >= self.timing.kill_after + self.timing.give_up {
                log::error!("the program of '{}' does not end by KILL; it is left to the system", self.launch.name);
                return Status::default();
            }
        }
    }

    /// Until something happens, or the time is over.
    fn wait(&self, running: &Running, lines: &[Lines; 2], limit: Option<Duration>) {
        let mut fds = vec![PollFd::new(self.mailbox.wake_fd(), PollFlags::IN)];
        fds.extend(running.pidfd().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
        let pipes: Vec<BorrowedFd<'_>> = lines.iter().filter_map(|lines| Some(lines.source.as_ref()?.fd())).collect();
        fds.extend(pipes.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let timeout =
            limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
        // An interrupted poll is a look without news.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }

    /// What outlives the program ends with the agent.
    fn clear(&self, tree: &mut Tree) {
        let begun = Instant::now();
        while !tree.refresh().is_empty() && begun.elapsed() < self.timing.rest_grace + self.timing.give_up {
            let kill = begun.elapsed() >= self.timing.rest_grace || self.mailbox.kill_wanted();
            tree.signal(&[if kill { Signal::KILL } else { Signal::TERM }, Signal::CONT]);
            std::thread::sleep(self.timing.look_again);
        }
    }
}

fn command(program: &Program, outfit: &Outfit, body: &str, mark: &str) -> Command {
    let mut command = Command::new(&program.path);
    command.current_dir(&program.cwd).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What a killed broker leaves is known by that.
    kernel::lead_session(&mut command);
    kernel::end_with_parent(&mut command);
    command.env_clear().envs(outfit.env.iter().map(|(name, value): &(OsString, OsString)| (name, value)));
    command.env(MARK, mark);
    if program.harness.family == Family::Opencode {
        command.arg("run").env(PERMISSION.0, PERMISSION.1);
    } else {
        command.args(["-p", "--dangerously-skip-permissions"]);
    }
    command.args(&outfit.args);
    // Somebody's message is no option, nor one more file of a flag that takes several.
    let takes_more = outfit.args.len().checked_sub(2).is_some_and(|at| outfit.args[at] == CONFIG_FLAG);
    if body.starts_with('-') || takes_more {
        command.arg("--");
    }
    command.arg(body.replace('\0', ""));
    command
}

fn ended(running: &Running) -> Option<Status> {
    // It stays a zombie, so that its id remains its own until its tree is gone.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match rustix::process::waitid(WaitId::Pid(running.pid()), options) {
        Ok(status) => status.map(|status| Status { code: status.exit_status(), signal: status.terminating_signal() }),
        Err(_) => Some(Status::default()),
    }
}

trait Pipe: Read {
    fn fd(&self) -> BorrowedFd<'_>;
}

impl<T: Read + AsFd> Pipe for T {
    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// Where the lines go.
struct Told<'a> {
    tell: &'a dyn Fn(AgentNote),
    log: Log,
    /// Bytes of text so far.
    offset: u64,
    /// The end of it, some of what came before included.
    last: String,
}

impl Told<'_> {
    fn remember(&mut self, line: &str) {
        if self.last.len() > 4 * LAST_WORDS_MAX {
            self.last = LastWords::of(&self.last, None).output + "\n";
        }
        self.last.push_str(line);
        self.last.push('\n');
    }
}

/// One output of the program, cut into lines.
struct Lines {
    stream: &'static str,
    source: Option<Box<dyn Pipe>>,
    rest: Vec<u8>,
}

impl Lines {
    fn of(stream: &'static str, source: Option<impl Pipe + 'static>) -> Lines {
        if let Some(source) = &source {
            let _ = rustix::fs::fcntl_setfl(source.fd(), rustix::fs::OFlags::NONBLOCK);
        }
        Lines { stream, source: source.map(|source| Box::new(source) as Box<dyn Pipe>), rest: Vec::new() }
    }

    /// Takes what is there, at most one buffer. `true`: there may be more.
    fn read(&mut self, told: &mut Told<'_>) -> bool {
        let mut buffer = [0u8; 4096];
        let Some(source) = &mut self.source else { return false };
        match source.read(&mut buffer) {
            Ok(0) => self.source = None,
            Ok(count) => {
                for byte in &buffer[..count] {
                    match byte {
                        b'\n' => self.tell(told),
                        byte => self.rest.push(*byte),
                    }
                    // Between two characters, or at the very most three bytes later.
                    if self.rest.len() >= LINE_MAX && (byte & 0xC0 != 0x80 || self.rest.len() > LINE_MAX + 3) {
                        let next = (byte & 0xC0 == 0xC0).then(|| self.rest.pop()).flatten();
                        self.tell(told);
                        self.rest.extend(next);
                    }
                }
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.source = None,
        }
        false
    }

    fn tell(&mut self, told: &mut Told<'_>) {
        let line = std::mem::take(&mut self.rest);
        let chunk = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned();
        told.log.append(&format!("{chunk}\n"));
        told.remember(&chunk);
        told.offset += chunk.len() as u64;
        (told.tell)(AgentNote::Line { stream: self.stream, chunk, offset: told.offset });
    }

    /// A last line without end.
    fn finish(&mut self, told: &mut Told<'_>) {
        if !self.rest.is_empty() {
            self.tell(told);
        }
    }
}
