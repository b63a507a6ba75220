//! What an agent of a broker that was killed has left running: most programs end with their terminal, some do not.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::terminal::MARK;
use super::tree::{Tree, process};

/// Between two looks at what was killed.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// When a process started, in clock ticks after boot: with its id this names it for good.
pub fn start_of(pid: u32) -> Option<u64> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1)?;
    process(pid).filter(|process| !process.zombie).map(|process| process.started)
}

/// Kills the program of that id with everything that belongs to it, if it is still the one that started then; of one that
/// has ended, with its terminal or by itself, what still carries its mark. `None`: there is nothing; otherwise whether all
/// of it has ended within the limit.
pub fn end_leftover(pid: u32, started: u64, mark: Option<&str>, limit: Duration) -> Option<bool> {
    let leader = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let number = leader.as_raw_nonzero().get();
    // Every program that is started in a terminal here leads its session: a process that does not is none of ours.
    let lives = start_of(pid) == Some(started) && process(number).is_some_and(|process| process.session == number);
    let mut tree = match lives.then(|| mark_of(pid)).flatten() {
        Some(mark) => Tree::new(leader, &mark),
        None => Tree::without_leader(started, mark.filter(|mark| !mark.is_empty())?),
    };
    if tree.refresh().is_empty() && !lives {
        return None;
    }
    let deadline = Instant::now() + limit;
    loop {
        let others = tree.refresh();
        if others.is_empty() && start_of(pid) != Some(started) {
            return Some(true);
        }
        if Instant::now() >= deadline {
            return Some(false);
        }
        // Repeated: a tree that forks while it is killed has to run out of parents.
        tree.signal(&[Signal::KILL]);
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What every process of an agent has in its environment; a program without one was not started as an agent.
pub fn mark_of(pid: u32) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    let mark = variables.find_map(|variable| variable.strip_prefix(MARK)?.strip_prefix('='))?;
    (!mark.is_empty()).then(|| mark.to_string())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::sys::{ids, kernel};

    fn stubborn(marked: bool) -> Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' HUP TERM; sleep 1000 & setsid sleep 1000 & wait"]);
        if marked {
            command.env(MARK, ids::uuid_hex());
        }
        kernel::lead_session(&mut command);
        command.spawn().expect("a shell")
    }

    #[test]
    fn d9_a_leftover_is_killed_with_its_tree_only_if_it_is_the_same_process() {
        let limit = Duration::from_secs(20);
        let mut child = stubborn(true);
        let pid = child.id();
        let started = start_of(pid).expect("it runs");
        for wrong in [started + 1, started.wrapping_sub(1), 0] {
            assert_eq!(end_leftover(pid, wrong, None, limit), None);
        }
        assert_eq!(child.try_wait().expect("a child"), None, "another start time is another process");
        assert_eq!(end_leftover(pid, started, None, limit), Some(true));
        assert_eq!(start_of(pid), None);
        child.wait().expect("a child");
    }

    #[test]
    fn d9_what_outlives_its_leader_is_found_by_its_mark() {
        let limit = Duration::from_secs(20);
        let mut child = stubborn(true);
        let (pid, mark) = (child.id(), mark_of(child.id()).expect("a mark"));
        let started = start_of(pid).expect("it runs");
        let mut tree = Tree::new(Pid::from_child(&child), &mark);
        let until = Instant::now() + limit;
        while tree.refresh().len() < 2 {
            assert!(Instant::now() < until, "its two children have not started");
        }
        child.kill().expect("a child");
        child.wait().expect("a child");
        for other in [None, Some(""), Some("another")] {
            assert_eq!(end_leftover(pid, started, other, limit), None);
        }
        assert_eq!(end_leftover(pid, started, Some(&mark), limit), Some(true));
        assert!(tree.refresh().is_empty());
        assert_eq!(end_leftover(pid, started, Some(&mark), limit), None, "nothing is left");
    }

    #[test]
    fn d9_what_is_no_agent_is_left_alone() {
        let mut child = stubborn(false);
        let started = start_of(child.id()).expect("it runs");
        assert_eq!(end_leftover(child.id(), started, None, Duration::from_secs(20)), None);
        let own = std::process::id();
        let since = start_of(own).expect("we run");
        assert_eq!(end_leftover(own, since, None, Duration::from_secs(20)), None);
        for never in [0, 1, u32::MAX] {
            assert_eq!(end_leftover(never, 0, None, Duration::from_secs(20)), None);
        }
        assert_eq!(child.try_wait().expect("a child"), None);
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        child.wait().expect("a child");
    }
}
