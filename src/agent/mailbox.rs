//! The commands of one agent: a bounded queue, two flags that cannot be refused, and the descriptor that wakes its thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::EventfdFlags;

use crate::core::ports::AgentCommand;
use crate::sys::threads;

/// Commands that may wait. The boxes keep an empty queue small: one pointer a place.
const MAX_COMMANDS: usize = 256;
/// Places that only commands have to which nobody waits for an answer: a lost one would leave core and terminal at odds.
const RESERVED: usize = 32;

/// The agent's queue is full: its thread waits for the loop to take its notes. Try again after taking some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the agent's command queue is full")
    }
}

impl std::error::Error for Full {}

/// The sender's side.
#[derive(Debug)]
pub struct Post {
    queue: Sender<Box<AgentCommand>>,
    wake: Arc<OwnedFd>,
    flags: Arc<Flags>,
}

/// What is asked for at most once and never waits in the queue.
#[derive(Debug, Default)]
struct Flags {
    release: AtomicBool,
    kill: AtomicBool,
}

/// The thread's side.
#[derive(Debug)]
pub struct Mailbox {
    queue: Receiver<Box<AgentCommand>>,
    wake: Arc<OwnedFd>,
    flags: Arc<Flags>,
}

/// A new pair.
///
/// # Errors
/// The system's, when no descriptor is left.
pub fn pair() -> std::io::Result<(Post, Mailbox)> {
    let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let flags = Arc::new(Flags::default());
    let (queue, received) = crossbeam_channel::bounded(MAX_COMMANDS + RESERVED);
    let post = Post { queue, wake: wake.clone(), flags: flags.clone() };
    Ok((post, Mailbox { queue: received, wake, flags }))
}

impl Post {
    /// Never blocks. A release is never refused; what is sent to a thread that has ended is dropped.
    pub fn send(&self, command: AgentCommand) -> Result<(), Full> {
        if command == AgentCommand::Release {
            self.release();
            return Ok(());
        }
        let unanswered = matches!(command, AgentCommand::Start { .. } | AgentCommand::Hold(_) | AgentCommand::Yield);
        let full = self.queue.len() >= MAX_COMMANDS && !unanswered;
        if full || matches!(self.queue.try_send(Box::new(command)), Err(TrySendError::Full(_))) {
            return Err(Full);
        }
        self.ring();
        Ok(())
    }

    pub fn release(&self) {
        self.flags.release.store(true, Ordering::Release);
        self.ring();
    }

    /// A release without manners.
    pub fn kill(&self) {
        self.flags.kill.store(true, Ordering::Release);
        self.release();
    }

    fn ring(&self) {
        // Fails only when the counter would overflow: then the thread is awake anyway.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Mailbox {
    pub fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// Before the queue is emptied, so that a command that comes meanwhile rings again.
    pub fn clear_wake(&self) {
        let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
    }

    pub fn next(&self) -> Option<Box<AgentCommand>> {
        self.queue.try_recv().ok()
    }

    /// Everything that waits.
    pub fn drain(&self) -> impl Iterator<Item = Box<AgentCommand>> {
        self.queue.try_iter()
    }

    pub fn release_wanted(&self) -> bool {
        self.flags.release.load(Ordering::Acquire)
    }

    pub fn kill_wanted(&self) -> bool {
        self.flags.kill.load(Ordering::Acquire)
    }

    /// Shows the queue in the thread report.
    pub fn announce(&self) {
        threads::drains(self.queue.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h9_what_nobody_waits_for_finds_room_in_a_full_queue() {
        let (post, mailbox) = pair().expect("a descriptor");
        let keys = |ticket| AgentCommand::Type { ticket, bytes: b"k".to_vec(), enter: false };
        for ticket in 0..MAX_COMMANDS as u64 {
            post.send(keys(ticket)).expect("room");
        }
        assert_eq!(post.send(keys(0)), Err(Full));
        for command in [AgentCommand::Hold(true), AgentCommand::Yield] {
            post.send(command).expect("a place of its own");
        }
        assert_eq!(post.send(keys(0)), Err(Full), "those are no places for others");
        assert_eq!(mailbox.drain().count(), MAX_COMMANDS + 2);
    }
}
