//! Harnesses that are told of the server by commands of their own: `X mcp remove …`, then `X mcp add …`.
//!
//! What these commands write is shared by all agents of the harness, so one agent at a time uses them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::server::{NAME, OLD_NAME, Server};
use super::{Family, Site, Trouble};
use crate::agent::terminal::{MARK, spawn_lock};
use crate::agent::tree::{Tree, forget_leader, reap_orphans, register_leader};
use crate::sys::redact::redact;
use crate::sys::{ids, kernel};

/// How a harness takes up a server.
pub struct Adder {
    pub add: fn(&Server) -> Vec<String>,
    /// Tried again while the answer says that the server exists already: another process may add at the same time.
    pub repeats_when_it_exists: bool,
    /// What has to be done in the home before: gives the file that it touches.
    pub before: Option<fn(&Path, &Path) -> PathBuf>,
    /// What a user can do by hand; without the real keys.
    pub manual: &'static str,
}

const REMOVE_LIMIT: Duration = Duration::from_secs(5);
const ADD_LIMIT: Duration = Duration::from_secs(15);
/// Pauses before the second, third and fourth attempt.
const PAUSES: [Duration; 3] = [Duration::from_millis(150), Duration::from_millis(300), Duration::from_millis(450)];
/// How often a wait looks whether it has become pointless.
const LOOK: Duration = Duration::from_millis(100);
/// How long the processes of a command may take to end by KILL, and how often that is looked at.
const KILL_LIMIT: Duration = Duration::from_secs(1);
const KILL_LOOK: Duration = Duration::from_millis(2);
/// Error output kept for the message.
const STDERR_KEPT: usize = 4096;

/// The server's variables as `FLAG NAME=VALUE` pairs.
pub fn flagged_env(flag: &str, server: &Server) -> Vec<String> {
    server.env.iter().flat_map(|(name, value)| [flag.to_string(), format!("{name}={value}")]).collect()
}

impl Adder {
    /// Runs the commands in the agent's directory. Gives the files that were touched.
    ///
    /// # Errors
    /// The harness cannot be run, or refuses the server: with a command to paste.
    pub fn join(&self, family: Family, site: &Site<'_>, server: &Server) -> Result<Vec<PathBuf>, Trouble> {
        let word = site.executable;
        let trouble = |what: String| {
            Trouble::new(format!(
                "failed to configure Agent Relay MCP for {word}: {what}. By hand: {word} {}",
                self.manual
            ))
        };
        let _turn = Turn::take(family, site).map_err(trouble)?;
        let touched = self.before.and_then(|before| Some(before(site.cwd, site.home?)));
        let add = (self.add)(server);
        for attempt in 0.. {
            for name in [NAME, OLD_NAME] {
                let args = ["mcp", "remove", name].map(String::from);
                let _ = run(site, &args, REMOVE_LIMIT);
            }
            match run(site, &add, ADD_LIMIT) {
                Ok(Ended { success: true, .. }) => break,
                Ok(ended) if self.repeats_when_it_exists && ended.stderr.contains("already exists") => {
                    let Some(pause) = PAUSES.get(attempt) else { return Err(trouble(ended.words(word))) };
                    std::thread::sleep(*pause);
                }
                Ok(ended) => return Err(trouble(ended.words(word))),
                // As 9.1.6 words it.
                Err(why) if family == Family::Grok => return Err(trouble(why)),
                Err(why) => return Err(trouble(format!("could not run `{word} mcp add`: {why}"))),
            }
        }
        Ok(touched.into_iter().collect())
    }
}

/// The turn of one agent among those of a harness.
struct Turn(Family);

static BUSY: Mutex<BTreeSet<Family>> = Mutex::new(BTreeSet::new());
static FREE: Condvar = Condvar::new();

impl Turn {
    /// Waits until nobody else configures the harness, or this has become pointless.
    fn take(family: Family, site: &Site<'_>) -> Result<Turn, String> {
        let mut busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(family) {
            if (site.cancelled)() {
                return Err("given up".into());
            }
            if site.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err("it is still being configured for other agents".into());
            }
            busy = FREE.wait_timeout(busy, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Turn(family))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        BUSY.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        FREE.notify_all();
    }
}

/// How a command ended.
pub struct Ended {
    pub success: bool,
    code: Option<i32>,
    /// The beginning of what it said.
    pub stderr: String,
}

impl Ended {
    fn words(&self, word: &str) -> String {
        let how = match self.code {
            Some(code) => format!("exited with code {code}"),
            None => "was killed by a signal".into(),
        };
        // Many programs repeat the arguments that they do not understand, and ours hold keys.
        let said = redact(self.stderr.trim());
        if said.is_empty() { format!("`{word} mcp add` {how}") } else { format!("`{word} mcp add` {how}: {said}") }
    }
}

/// A command of a harness: its program at `site.program`, in the agent's directory, with the agent's environment.
pub fn command(site: &Site<'_>) -> Command {
    let mut command = Command::new(site.program);
    command.current_dir(site.cwd).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(env) = site.env {
        command.env_clear().envs(env.iter().map(|(name, value): &(OsString, OsString)| (name, value)));
    }
    command
}

/// Runs one command to its end, or ends it.
fn run(site: &Site<'_>, args: &[String], limit: Duration) -> Result<Ended, String> {
    let deadline = site.until(limit);
    let limit = deadline.saturating_duration_since(Instant::now());
    if limit.is_zero() {
        return Err("no time was left for it".into());
    }
    let mut command = command(site);
    command.args(args).stderr(Stdio::piped());
    let mut errand = Errand::start(command)?;
    let running = &mut errand.running;
    let mut stderr = running.child.stderr.take();
    if let Some(stderr) = &stderr {
        let _ = rustix::fs::fcntl_setfl(stderr, rustix::fs::OFlags::NONBLOCK);
    }
    let mut said = Vec::new();
    loop {
        read_some(&mut stderr, &mut said);
        if let Some(code) = running.ended() {
            read_some(&mut stderr, &mut said);
            let stderr = String::from_utf8_lossy(&said).into_owned();
            return Ok(Ended { success: code == Some(0), code, stderr });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no end within {:.0} s", limit.as_secs_f64()));
        }
        if (site.cancelled)() {
            return Err("given up".into());
        }
        running.wait(left.min(LOOK));
    }
}

/// Takes what is there; what exceeds the kept length is read and forgotten, so that the command does not block.
fn read_some(pipe: &mut Option<impl Read>, said: &mut Vec<u8>) {
    let mut buffer = [0u8; 1024];
    while let Some(source) = pipe {
        match source.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(read) => said.extend(&buffer[..read.min(STDERR_KEPT.saturating_sub(said.len()))]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A command that sets a harness up; it ends with this value, and so does everything that it has started.
pub struct Errand {
    pub running: Running,
    tree: Tree,
}

impl Errand {
    pub fn start(mut command: Command) -> Result<Errand, String> {
        let mark = ids::uuid_hex();
        command.env(MARK, &mark);
        // In the broker's own session nobody would reap what the command leaves behind.
        kernel::lead_session(&mut command);
        let running = Running::start(command)?;
        let tree = Tree::new(running.pid, &mark);
        Ok(Errand { running, tree })
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        let until = Instant::now() + KILL_LIMIT;
        loop {
            // Asked first: the leader starts nothing more then, and the look shows all that there will be.
            let ended = self.running.ended().is_some();
            let living = self.tree.refresh();
            if (ended && living.is_empty()) || Instant::now() >= until {
                break;
            }
            self.tree.signal(&[Signal::KILL]);
            std::thread::sleep(KILL_LOOK);
        }
        reap_orphans();
    }
}

/// A command under way; what is left of its process group ends with this value.
pub struct Running {
    pub child: std::process::Child,
    pid: Pid,
    pidfd: Option<rustix::fd::OwnedFd>,
}

impl Running {
    pub fn start(mut command: Command) -> Result<Running, String> {
        // Until it is registered nobody else may look for children that have ended.
        let guard = spawn_lock();
        let child = command.spawn().map_err(|error| error.to_string())?;
        let pid = Pid::from_child(&child);
        register_leader(pid);
        drop(guard);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Running { child, pid, pidfd })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn pidfd(&self) -> Option<&rustix::fd::OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Its exit code when it has ended; no code after a signal. It stays a zombie, so that its id remains its own.
    fn ended(&self) -> Option<Option<i32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(self.pid), options) {
            Ok(status) => status.map(|status| status.exit_status()),
            Err(_) => Some(None),
        }
    }

    /// Until it has ended, or the time is over.
    fn wait(&self, limit: Duration) {
        let mut fds: Vec<PollFd<'_>> = self.pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        // An interrupted poll is a look without news.
        let _ = poll(&mut fds, Some(&timeout));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        let _ = self.child.kill();
        self.wait(KILL_LIMIT);
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // Held by the kernel. The reaper of orphans takes it when it ends.
            log::error!("process {} does not end by KILL; it is left to the system", self.pid.as_raw_nonzero());
        }
        forget_leader(self.pid);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Facts, Relay, droid, grok, thread};
    use super::*;

    /// The deadline of these tests, when somebody would give up without it, and what tells the two apart.
    const DEADLINE: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(4);
    const SOON: Duration = Duration::from_secs(3);

    /// A program that never does what it is asked to.
    fn idler() -> PathBuf {
        let path = std::env::temp_dir().join(format!("idler-{}", ids::uuid_hex()));
        std::fs::write(&path, "#!/bin/sh\n[ \"$2\" = remove ] || exec sleep 1000\n").expect("a program");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        path
    }

    fn with_deadline<T>(then: impl FnOnce(&Site<'_>) -> T) -> (T, Duration) {
        let (program, begun) = (idler(), Instant::now());
        let site = Site {
            executable: "idler",
            program: &program,
            cwd: &std::env::temp_dir(),
            home: None,
            env: None,
            deadline: Some(begun + DEADLINE),
            cancelled: &|| begun.elapsed() > PATIENCE,
        };
        let outcome = then(&site);
        drop(std::fs::remove_file(&program));
        (outcome, begun.elapsed())
    }

    fn add(harness: &super::super::Harness, site: &Site<'_>) -> String {
        let Relay::Commands(adder) = &harness.relay else { panic!("it has commands") };
        let joined = adder.join(harness.family, site, &Server::new(&Facts::default(), None));
        joined.map_err(|trouble| trouble.to_string()).expect_err("it cannot be told")
    }

    #[test]
    fn who_is_not_configured_in_time_says_what_to_do_by_hand() {
        let (error, took) = with_deadline(|site| add(&droid::HARNESS, site));
        assert!(took < SOON, "{took:?}: {error}");
        assert!(error.contains("no end within") && error.contains("By hand: idler mcp add --env"), "{error}");

        let (error, took) = with_deadline(|site| {
            let _turn = Turn::take(Family::Grok, site).expect("it is free");
            add(&grok::HARNESS, site)
        });
        assert!(took < SOON, "{took:?}: {error}");
        assert!(error.contains("for other agents. By hand: idler mcp add"), "{error}");
        assert!(with_deadline(|site| Turn::take(Family::Grok, site).is_ok()).0, "the turn is free again");
    }

    #[test]
    fn a_codex_that_does_not_answer_in_time_starts_without_a_session() {
        let (made, took) = with_deadline(|site| {
            let (mut model, mut args) = (Some("gpt-5.5".to_string()), Vec::new());
            let thread = thread::make(site, &[], "1");
            thread::fall_back(site, &mut model, &mut args);
            (thread, model)
        });
        assert_eq!(made, (None, Some("gpt-5.5".into())));
        assert!(took < SOON, "{took:?}");
    }
}
