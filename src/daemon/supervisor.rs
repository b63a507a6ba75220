//! The process of a sidecar that the broker runs itself: started in a session of its own, watched without polling, ended
//! with everything that descends from it.
//!
//! One thread per process, `sidecar`, asleep in `poll(process, bell)` until the process ends or is to end. Whether and
//! when there is a next one is the core's business.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::agent::{self, Tree};
use crate::core::ports::{ProcessNote, SuperviseCommand};
use crate::sys::threads::{self, Thread, doing};
use crate::sys::{ids, kernel};

/// The prefix of the threads' name.
pub const THREAD: &str = "sidecar";
/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(3);
/// The same for what outlives the process itself.
const REST_GRACE: Duration = Duration::from_millis(200);
/// Between two looks at what was told to end.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After KILL.
const GIVE_UP: Duration = Duration::from_secs(1);
/// How often a process without a descriptor is asked for (kernels before 5.3).
const BLIND_LOOK: Duration = Duration::from_millis(500);
/// Secrets of the broker that are nobody else's, unless the sidecar's own environment has them.
const SECRETS: [&str; 2] = ["RELAY_BROKER_API_KEY", "RELAY_NODE_TOKEN"];

/// What the process's thread is told.
struct Order {
    bell: OwnedFd,
    /// It has to end; what is left at that time is killed.
    kill_at: Mutex<Option<Instant>>,
    /// The last note has been made.
    over: AtomicBool,
}

impl Order {
    fn kill_at(&self) -> MutexGuard<'_, Option<Instant>> {
        // One value, replaced as a whole.
        self.kill_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The earliest time counts.
    fn end_by(&self, at: Instant) {
        let mut kill_at = self.kill_at();
        *kill_at = Some(kill_at.map_or(at, |before| before.min(at)));
        // A counter cannot overflow by a few ones.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

type Notes = Arc<dyn Fn(ProcessNote) + Send + Sync>;

/// The loop's side. Dropped without [`Supervisor::close`], as by a panic, it has the process killed at once.
pub struct Supervisor {
    notes: Notes,
    running: Option<(Arc<Order>, Thread)>,
    /// Threads that have made their last note.
    ending: Vec<Thread>,
}

impl Supervisor {
    /// `notes` is called on the threads of the processes and may wait.
    pub fn new(notes: impl Fn(ProcessNote) + Send + Sync + 'static) -> Supervisor {
        Supervisor { notes: Arc::new(notes), running: None, ending: Vec::new() }
    }

    /// Carries a command out beside the loop. Gives the note that no thread will make.
    pub fn command(&mut self, command: SuperviseCommand) -> Option<ProcessNote> {
        match command {
            SuperviseCommand::Start { argv, cwd, env } => self
                .start(argv, cwd, env)
                .err()
                .map(|error| ProcessNote::Failed { error: format!("the sidecar cannot be started: {error}") }),
            SuperviseCommand::Stop => {
                self.end_by(Instant::now() + GRACE);
                None
            }
        }
    }

    fn start(&mut self, argv: Vec<String>, cwd: String, env: Vec<(String, String)>) -> std::io::Result<()> {
        self.ending.retain(|thread| !thread.has_ended());
        if let Some((order, _)) = &self.running
            && !order.is_over()
        {
            return Err(std::io::Error::other("the one before has not ended"));
        }
        self.ending.extend(self.running.take().map(|(_, thread)| thread));
        let order = Arc::new(Order {
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            kill_at: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let (its_order, notes) = (order.clone(), self.notes.clone());
        let thread = threads::spawn(THREAD, move || {
            let last = run(&argv, &cwd, &env, &its_order, &*notes);
            its_order.over.store(true, Ordering::SeqCst);
            notes(last);
        })?;
        self.running = Some((order, thread));
        Ok(())
    }

    /// Tells the process to end; what is left at that time is killed.
    pub fn end_by(&self, at: Instant) {
        if let Some((order, _)) = &self.running {
            order.end_by(at);
        }
    }

    /// After [`Supervisor::end_by`]: waits for the end of the process and of its thread.
    pub fn close(mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let running = self.running.take().map(|(_, thread)| thread);
        for thread in running.into_iter().chain(std::mem::take(&mut self.ending)) {
            thread.join(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end_by(Instant::now());
    }
}

/// One process from its start to its end; the last note.
fn run(
    argv: &[String],
    cwd: &str,
    env: &[(String, String)],
    order: &Order,
    notes: &dyn Fn(ProcessNote),
) -> ProcessNote {
    doing("starting the sidecar");
    match Process::start(argv, cwd, env) {
        Ok(mut process) => {
            notes(ProcessNote::Started { pid: process.pid.as_raw_nonzero().get().unsigned_abs() });
            process.watch(order)
        }
        Err(error) => {
            let program = argv.first().map(String::as_str).unwrap_or_default();
            ProcessNote::Failed { error: format!("'{program}' cannot be started in '{cwd}': {error}") }
        }
    }
}

struct Process {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    tree: Tree,
}

/// How far its end has come.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Runs,
    /// TERM was sent; KILL follows.
    Asked {
        kill_at: Instant,
    },
    Killed {
        give_up: Instant,
    },
}

impl Process {
    fn start(argv: &[String], cwd: &str, env: &[(String, String)]) -> std::io::Result<Process> {
        let (program, args) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mark = ids::uuid_hex();
        let mut command = Command::new(program);
        command.args(args).current_dir(cwd).stdin(Stdio::null());
        for secret in SECRETS {
            command.env_remove(secret);
        }
        command.envs(env.iter().map(|(name, value)| (name, value))).env(agent::MARK, &mark);
        // The broker's stdout is for its one line.
        command.stdout(match std::io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => Stdio::from(stderr),
            Err(_) => Stdio::null(),
        });
        command.stderr(Stdio::inherit());
        kernel::lead_session(&mut command);
        // Until it is registered nobody else may look for children that have ended.
        let guard = agent::spawn_lock();
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        agent::register_leader(pid);
        drop(guard);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Process { pid, pidfd, tree: Tree::new(pid, &mark) })
    }

    /// Waits for its end, or brings it about when that is ordered.
    fn watch(&mut self, order: &Order) -> ProcessNote {
        let mut stage = Stage::Runs;
        loop {
            let now = Instant::now();
            let ordered = *order.kill_at();
            let ended = self.has_ended();
            stage = match (stage, ordered) {
                (Stage::Runs, None) if !ended => Stage::Runs,
                (Stage::Runs, ordered) => {
                    self.ask();
                    Stage::Asked { kill_at: ordered.unwrap_or(now + REST_GRACE) }
                }
                // A later order may have less patience.
                (Stage::Asked { kill_at }, Some(ordered)) => Stage::Asked { kill_at: kill_at.min(ordered) },
                (stage, _) => stage,
            };
            // A look at the whole tree is dear: while the process itself lives nothing has to be counted.
            if stage != Stage::Runs && ended && self.tree.refresh().is_empty() {
                break;
            }
            match stage {
                Stage::Asked { kill_at } if kill_at <= now => {
                    self.kill();
                    stage = Stage::Killed { give_up: now + GIVE_UP };
                }
                Stage::Killed { give_up } if give_up <= now => {
                    log::error!("processes of the sidecar do not end by KILL; they are left to the system");
                    break;
                }
                // Repeated with every look: a tree that forks while it is killed has to run out of parents.
                Stage::Killed { .. } => self.kill(),
                _ => {}
            }
            self.wait(stage, ended, order, now);
        }
        self.bury()
    }

    fn kill(&mut self) {
        self.tree.refresh();
        self.tree.signal(&[Signal::KILL]);
    }

    fn ask(&mut self) {
        self.tree.refresh();
        self.tree.signal(&[Signal::TERM, Signal::CONT]);
    }

    fn has_ended(&self) -> bool {
        // It stays a zombie, so that its id cannot become another process's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(rustix::process::waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    fn wait(&self, stage: Stage, ended: bool, order: &Order, now: Instant) {
        doing(if stage == Stage::Runs { "watching the sidecar" } else { "ending the sidecar" });
        let due = match stage {
            Stage::Runs => None,
            Stage::Asked { kill_at } => Some(kill_at.saturating_duration_since(now)),
            Stage::Killed { .. } => Some(LOOK_AGAIN),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(order.bell.as_fd(), PollFlags::IN)];
        let look = if ended {
            // Its descriptor would make every poll return at once, and what outlives it has none here.
            Some(LOOK_AGAIN)
        } else {
            fds.extend(self.pidfd.iter().map(|pidfd| PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)));
            self.pidfd.is_none().then_some(BLIND_LOOK)
        };
        let timeout = [due, look].into_iter().flatten().min();
        let timeout =
            timeout.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        // An interrupted poll is a look without news.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&order.bell, &mut count);
    }

    /// Takes it out of the process table.
    fn bury(&self) -> ProcessNote {
        let status = rustix::process::waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        agent::forget_leader(self.pid);
        agent::reap_orphans();
        match status {
            Ok(Some(status)) => ProcessNote::Ended { code: status.exit_status(), signal: status.terminating_signal() },
            _ => ProcessNote::Ended { code: None, signal: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn supervisor() -> (Supervisor, Receiver<ProcessNote>) {
        let (sender, notes) = unbounded();
        (Supervisor::new(move |note| drop(sender.send(note))), notes)
    }

    fn start(supervisor: &mut Supervisor, script: &str, env: &[(&str, &str)]) -> Option<ProcessNote> {
        let argv = ["/bin/sh", "-c", script].map(String::from).into();
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        supervisor.command(SuperviseCommand::Start { argv, cwd: "/".into(), env })
    }

    fn started(notes: &Receiver<ProcessNote>) -> u32 {
        match notes.recv_timeout(LONG) {
            Ok(ProcessNote::Started { pid }) => pid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_process_is_started_where_and_how_it_was_said_and_its_end_is_told() {
        let (mut supervisor, notes) = supervisor();
        assert_eq!(
            start(&mut supervisor, "test $(pwd)$GIVEN = /yes && read -r _ || exit 7", &[("GIVEN", "yes")]),
            None
        );
        assert!(started(&notes) > 1);
        let ended = ProcessNote::Ended { code: Some(7), signal: None };
        assert_eq!(notes.recv_timeout(LONG), Ok(ended), "its stdin is empty");
        assert_eq!(start(&mut supervisor, "kill -9 $$", &[]), None);
        started(&notes);
        assert_eq!(notes.recv_timeout(LONG), Ok(ProcessNote::Ended { code: None, signal: Some(9) }));
        supervisor.close(LONG);
    }

    #[test]
    fn what_cannot_be_started_is_told() {
        let (mut supervisor, notes) = supervisor();
        for (argv, cwd) in [(vec!["/no/such/program"], "/"), (vec!["/bin/sh"], "/no/such/place"), (vec![], "/")] {
            let argv = argv.into_iter().map(String::from).collect();
            let note = supervisor.command(SuperviseCommand::Start { argv, cwd: cwd.into(), env: vec![] });
            assert_eq!(note, None);
            let note = notes.recv_timeout(LONG);
            assert!(matches!(&note, Ok(ProcessNote::Failed { error }) if error.contains(cwd)), "{note:?}");
        }
        // One at a time, and that one goes on.
        assert_eq!(start(&mut supervisor, "sleep 1000", &[]), None);
        started(&notes);
        assert!(matches!(start(&mut supervisor, "exit 0", &[]), Some(ProcessNote::Failed { .. })));
        supervisor.end_by(Instant::now());
        // TERM comes first, and may be the one that counts.
        let ended = notes.recv_timeout(LONG);
        assert!(matches!(ended, Ok(ProcessNote::Ended { signal: Some(9 | 15), .. })), "{ended:?}");
    }

    /// Processes with this word among their arguments.
    fn with_argument(word: &str) -> usize {
        let entries = std::fs::read_dir("/proc").expect("the processes").flatten();
        let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())).count()
    }

    #[test]
    fn a_stop_leaves_nothing_of_the_tree() {
        let (mut supervisor, notes) = supervisor();
        let word = format!("supervised-{}", ids::uuid_hex());
        // One child stays in the session, the other leaves it and loses its parent; all of them ignore TERM.
        let stubborn = "trap \"\" TERM; while :; do sleep 1; done; : ";
        let script = format!(
            "trap '' TERM; sh -c '{stubborn}' {word} & (setsid sh -c '{stubborn}' {word} &); while :; do sleep 1; done"
        );
        assert_eq!(start(&mut supervisor, &script, &[]), None);
        started(&notes);
        let begun = Instant::now();
        while with_argument(&word) < 2 {
            assert!(begun.elapsed() < LONG, "its children do not come up");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(supervisor.command(SuperviseCommand::Stop), None);
        // An end that comes sooner counts.
        supervisor.end_by(Instant::now() + Duration::from_millis(100));
        assert_eq!(notes.recv_timeout(GRACE), Ok(ProcessNote::Ended { code: None, signal: Some(9) }));
        assert_eq!(with_argument(&word), 0);
        supervisor.close(LONG);
    }

    #[test]
    fn a_polite_process_ends_by_term_and_what_it_leaves_follows() {
        let (mut supervisor, notes) = supervisor();
        let word = format!("supervised-{}", ids::uuid_hex());
        let script = format!("(setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' {word} &); exec sleep 1000");
        assert_eq!(start(&mut supervisor, &script, &[]), None);
        started(&notes);
        let begun = Instant::now();
        while with_argument(&word) < 1 {
            assert!(begun.elapsed() < LONG, "its child does not come up");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        supervisor.command(SuperviseCommand::Stop);
        supervisor.end_by(Instant::now() + Duration::from_millis(300));
        assert_eq!(notes.recv_timeout(GRACE), Ok(ProcessNote::Ended { code: None, signal: Some(15) }));
        assert_eq!(with_argument(&word), 0);
    }
}
