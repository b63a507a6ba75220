//! The end of an agent: asked politely, then less so, until nothing of its process tree is left.
//!
//! While the program lives: HUP and CONT to it and to what holds the keyboard, TERM to the whole tree at 1 s, KILL at 2 s.
//! When it has ended: TERM to what is left of the tree, KILL 200 ms later. Or, when there is no time for manners, KILL to
//! all of it at once. Nothing here waits; the pump asks again at the time it is told.

use std::time::Instant;

use rustix::process::{Pid, Signal};

use super::Timing;
use super::terminal::{Status, Terminal};
use super::tree::{self, Tree};

#[derive(Debug)]
pub struct Farewell {
    tree: Tree,
    stage: Stage,
    /// When [`Self::advance`] has something to do.
    pub next: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The program lives and was asked to go at `since`.
    Asked { since: Instant, termed: bool },
    /// Everything was sent KILL; the end of the program is awaited.
    Killed { give_up: Instant },
    /// The program has ended, others of its tree may live.
    Rest { status: Status, kill_at: Instant, give_up: Instant },
}

impl Farewell {
    /// Asks a living program to go.
    pub fn ask(terminal: &Terminal, mark: &str, now: Instant, timing: &Timing) -> Farewell {
        let mut tree = Tree::new(terminal.pid, mark);
        // Before anything ends: who descends from whom is lost when a parent goes.
        tree.refresh();
        let groups = [Some(terminal.pid), terminal.foreground().filter(|group| *group != terminal.pid)];
        for group in groups.into_iter().flatten() {
            signal_group(group, &[Signal::HUP, Signal::CONT]);
        }
        Farewell { tree, stage: Stage::Asked { since: now, termed: false }, next: now + timing.term_after }
    }

    /// Kills the program and its whole tree, asked before or not.
    pub fn kill(before: Option<Farewell>, terminal: &Terminal, mark: &str, now: Instant, timing: &Timing) -> Farewell {
        let (tree, stage) = match before {
            Some(Farewell { tree, stage: Stage::Rest { status, give_up, .. }, .. }) => {
                (tree, Stage::Rest { status, kill_at: now, give_up })
            }
            Some(Farewell { tree, .. }) => (tree, Stage::Killed { give_up: now + timing.give_up }),
            None => (Tree::new(terminal.pid, mark), Stage::Killed { give_up: now + timing.give_up }),
        };
        let mut farewell = Farewell { tree, stage, next: now + timing.look_again };
        farewell.tree.refresh();
        farewell.tree.signal(&[Signal::KILL]);
        farewell
    }

    /// The program has ended, asked or not; the rest of its tree follows.
    pub fn rest(
        before: Option<Farewell>,
        terminal: &Terminal,
        mark: &str,
        status: Status,
        now: Instant,
        timing: &Timing,
    ) -> Farewell {
        let killed = matches!(before, Some(Farewell { stage: Stage::Killed { .. }, .. }));
        let mut tree = before.map_or_else(|| Tree::new(terminal.pid, mark), |farewell| farewell.tree);
        if !tree.refresh().is_empty() && !killed {
            tree.signal(&[Signal::TERM, Signal::HUP, Signal::CONT]);
        }
        let kill_at = if killed { now } else { now + timing.rest_grace };
        let stage = Stage::Rest { status, kill_at, give_up: kill_at + timing.give_up };
        Farewell { tree, stage, next: now }
    }

    /// Whether the program itself has ended.
    pub fn leader_ended(&self) -> bool {
        matches!(self.stage, Stage::Rest { .. })
    }

    /// The next step. `Some`: nothing of the tree is left (or it resists even KILL), and this is how the program ended.
    pub fn advance(&mut self, terminal: &Terminal, now: Instant, timing: &Timing) -> Option<Status> {
        match &mut self.stage {
            Stage::Asked { since, termed } => {
                let elapsed = now - *since;
                if elapsed >= timing.kill_after + timing.give_up {
                    log::error!(
                        "process {} does not end by KILL; it is left to the system",
                        terminal.pid.as_raw_nonzero()
                    );
                    return Some(Status::default());
                }
                if elapsed >= timing.kill_after {
                    self.tree.refresh();
                    self.tree.signal(&[Signal::KILL]);
                    self.next = now + timing.look_again.max(timing.give_up / 10);
                } else if elapsed >= timing.term_after && !*termed {
                    self.tree.refresh();
                    self.tree.signal(&[Signal::TERM, Signal::CONT]);
                    *termed = true;
                    self.next = *since + timing.kill_after;
                }
                None
            }
            Stage::Killed { give_up } => {
                if now >= *give_up {
                    log::error!(
                        "process {} does not end by KILL; it is left to the system",
                        terminal.pid.as_raw_nonzero()
                    );
                    return Some(Status::default());
                }
                // Repeated, as below; the end of the program shows at its descriptor.
                self.tree.refresh();
                self.tree.signal(&[Signal::KILL]);
                self.next = now + timing.look_again;
                None
            }
            Stage::Rest { status, kill_at, give_up } => {
                let status = *status;
                let living = self.tree.refresh();
                if living.is_empty() {
                    return Some(status);
                }
                if now >= *give_up {
                    log::error!("processes {living:?} do not end by KILL; they are left to the system");
                    return Some(status);
                }
                if *kill_at <= now {
                    // Repeated with every look: a tree that forks while it is killed has to run out of parents.
                    self.tree.signal(&[Signal::KILL]);
                }
                self.next = now + timing.look_again;
                None
            }
        }
    }
}

/// Ends a tree without any waiting for manners: for a thread that cannot go on.
pub fn kill_all(leader: Pid, mark: &str) {
    let mut tree = Tree::new(leader, mark);
    for _ in 0..3 {
        tree.refresh();
        tree.signal(&[Signal::KILL]);
    }
    tree::forget_leader(leader);
    tree::reap_orphans();
}

fn signal_group(group: Pid, signals: &[Signal]) {
    for signal in signals {
        let _ = rustix::process::kill_process_group(group, *signal);
    }
}
