//! All processes of one agent, found by what they cannot easily shed, and their end.
//!
//! A process belongs to an agent if it is in the session or process group of the agent's program, descends from a process
//! that does, carries the agent's mark in its environment, or was once seen to do one of these and is still the same
//! process (its start time says so). The broker is a child subreaper: what loses its parent comes to the broker, which
//! reaps it here. One escape is left: a process that cleans its environment, leaves the session *and* loses its parent,
//! all between two looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::terminal::{MARK, contains, spawn_lock};
use crate::sys::clock;

/// Makes orphaned descendants of this process its children. Once, before the first agent.
///
/// # Errors
/// The system's; descendants then escape to the init process, and only the session's members are ended with an agent.
pub fn become_subreaper() -> std::io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// The programs that agent threads wait for themselves; nobody else may reap them.
static LEADERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn leaders<T>(f: impl FnOnce(&mut BTreeSet<i32>) -> T) -> T {
    // Each access is one call on the set: a poisoned one is whole.
    f(&mut LEADERS.lock().unwrap_or_else(PoisonError::into_inner))
}

pub fn register_leader(pid: Pid) {
    leaders(|all| all.insert(pid.as_raw_nonzero().get()));
}

pub fn forget_leader(pid: Pid) {
    leaders(|all| all.remove(&pid.as_raw_nonzero().get()));
}

/// One line of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    pub(super) zombie: bool,
    parent: i32,
    group: i32,
    pub(super) session: i32,
    /// Clock ticks after boot: with the pid it names a process for good.
    pub(super) started: u64,
}

pub(super) fn process(pid: i32) -> Option<Process> {
    parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command name stands in parentheses and may hold anything: fields are counted from its last `)`.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let mut number = || fields.next()?.parse::<i32>().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    // Field 22; the session is field 6.
    let started = fields.nth(15)?.parse().ok()?;
    Some(Process { pid, zombie: matches!(state, "Z" | "X"), parent, group, session, started })
}

fn all_processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The processes of one agent.
#[derive(Debug)]
pub struct Tree {
    leader: i32,
    /// Nothing that started before the leader can belong to it, whatever id it has.
    since: u64,
    /// `NAME=value` of the mark.
    mark: String,
    /// Everything ever seen to belong to the agent, with its start time.
    known: BTreeMap<i32, u64>,
}

impl Tree {
    pub fn new(leader: Pid, mark: &str) -> Tree {
        let leader = leader.as_raw_nonzero().get();
        let since = process(leader).map_or(0, |process| process.started);
        Tree { leader, since, mark: format!("{MARK}={mark}"), known: BTreeMap::new() }
    }

    /// What a leader that has ended leaves, known by its mark alone: its id may be another's.
    pub fn without_leader(since: u64, mark: &str) -> Tree {
        Tree { leader: -1, since, mark: format!("{MARK}={mark}"), known: BTreeMap::new() }
    }

    /// Looks again and returns what lives, without the leader. Ended members that came to the broker are reaped.
    pub fn refresh(&mut self) -> Vec<i32> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let all = all_processes();
        let candidates = all.into_iter().filter(|p| p.pid != own && p.pid != 1 && p.started >= self.since);
        let (ours, others): (Vec<Process>, Vec<Process>) = candidates.partition(|process| self.claims(process));
        let mut members: BTreeMap<i32, Process> = ours.into_iter().map(|process| (process.pid, process)).collect();
        loop {
            let before = members.len();
            for child in others.iter().filter(|process| !members.contains_key(&process.pid)).collect::<Vec<_>>() {
                if members.contains_key(&child.parent) {
                    members.insert(child.pid, *child);
                }
            }
            if members.len() == before {
                break;
            }
        }
        self.known = members.values().map(|process| (process.pid, process.started)).collect();
        let (ended, living): (Vec<&Process>, Vec<&Process>) = members.values().partition(|process| process.zombie);
        for process in ended.into_iter().filter(|process| process.parent == own && process.pid != self.leader) {
            reap(process.pid);
        }
        living.into_iter().map(|process| process.pid).filter(|pid| *pid != self.leader).collect()
    }

    fn claims(&self, process: &Process) -> bool {
        process.pid == self.leader
            || process.session == self.leader
            || process.group == self.leader
            || self.known.get(&process.pid) == Some(&process.started)
            || (!process.zombie && self.is_marked(process.pid))
    }

    fn is_marked(&self, pid: i32) -> bool {
        // Unreadable: another user's process. It is not ours, or could not be signalled anyway.
        std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| contains(&environ, self.mark.as_bytes()))
    }

    /// Sends `signals` to every process of the last look.
    pub fn signal(&self, signals: &[Signal]) {
        for (pid, started) in &self.known {
            signal_exactly(*pid, *started, signals);
        }
    }
}

/// Signals a process only if it is still the one that was seen: its descriptor is taken first, then its start time is read
/// again, so an id that was given to another process meanwhile is left alone.
fn signal_exactly(pid: i32, started: u64, signals: &[Signal]) {
    let Some(target) = Pid::from_raw(pid) else { return };
    let handle = rustix::process::pidfd_open(target, PidfdFlags::empty());
    if process(pid).is_none_or(|process| process.started != started) {
        return;
    }
    for signal in signals {
        let _ = match &handle {
            Ok(handle) => rustix::process::pidfd_send_signal(handle, *signal),
            Err(_) => rustix::process::kill_process(target, *signal),
        };
    }
}

fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// Reaps orphans of agents that ended as children of the broker. Returns how many.
///
/// Left alone: programs that an agent thread waits for, and every child in the broker's own session, which is where
/// children started by other parts of the broker live (an agent's descendants never do).
pub fn reap_orphans() -> usize {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    // Not by getsid: in a PID namespace (a container) the session may lie outside and is then 0, which is no process id.
    let Some(session) = process(own).map(|process| process.session) else { return 0 };
    // A program that ends the moment it starts must not be taken before its thread has claimed it.
    let _starting = spawn_lock();
    let orphans: Vec<i32> = all_processes()
        .into_iter()
        .filter(|process| process.zombie && process.parent == own && process.session != session)
        .map(|process| process.pid)
        .filter(|pid| leaders(|all| !all.contains(pid)))
        .collect();
    orphans.iter().for_each(|pid| reap(*pid));
    orphans.len()
}

/// The same, at most twice a minute for all agents together: called by threads that are awake anyway, so that orphans of
/// a long life do not pile up and nobody has to wake for them.
pub fn reap_orphans_sometimes() {
    const EVERY_MS: u64 = 30_000;
    static LAST: AtomicU64 = AtomicU64::new(0);
    let (now, last) = (clock::now().mono, LAST.load(Ordering::Relaxed));
    if now >= last + EVERY_MS && LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        reap_orphans();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_any_command_name() {
        let stat = "42 (a) b (c) S 7 42 42 34816 42 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2";
        let read = parse(42, stat).expect("fields");
        assert_eq!((read.zombie, read.parent, read.group, read.session, read.started), (false, 7, 42, 42, 987654));
        assert!(parse(42, "42 (x) Z 1 2 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 5").is_some_and(|process| process.zombie));
        assert_eq!(parse(42, "42 (x"), None);
    }

    #[test]
    fn r12_another_start_time_is_another_process() {
        let own = process(std::process::id() as i32).expect("we are running");
        // Signal 9 to ourselves under a wrong start time must not arrive.
        signal_exactly(own.pid, own.started + 1, &[Signal::KILL]);
        assert!(process(own.pid).is_some());
    }
}
