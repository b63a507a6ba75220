//! Every byte of a terminal, for somebody outside who must miss none.
//!
//! Between the agent's thread and the viewer lies a short queue. While it is full the terminal is not read, and so the
//! program waits in its own writes; keystrokes, messages and a release go on. What a program leaves at its end is handed
//! over whatever the queue holds: the kernel keeps less of it than there is room.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::event::EventfdFlags;

/// Reads that wait for the viewer before the terminal is left alone.
const FULL: usize = 64;
/// Room for what follows nevertheless, at the end.
const PLACES: usize = 1024;

#[derive(Debug)]
struct Shared {
    /// Rung when there is room again.
    room: OwnedFd,
    gone: AtomicBool,
}

impl Shared {
    fn ring(&self) {
        // Fails only when the counter would overflow: then it is rung already.
        let _ = rustix::io::write(&self.room, &1u64.to_ne_bytes());
    }
}

/// The agent's side.
#[derive(Debug, Clone)]
pub struct Tap {
    queue: Sender<Vec<u8>>,
    shared: Arc<Shared>,
    /// The viewer is a terminal with its keyboard: it answers the program's queries itself.
    answers_queries: bool,
}

/// The other side.
#[derive(Debug)]
pub struct Viewer {
    queue: Receiver<Vec<u8>>,
    shared: Arc<Shared>,
}

/// What a viewer finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Bytes(Vec<u8>),
    Nothing,
    /// No agent is left that could say something.
    End,
}

/// Both sides of a new tap.
///
/// # Errors
/// The system's, when no descriptor is left.
pub fn tap(answers_queries: bool) -> std::io::Result<(Tap, Viewer)> {
    let room = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let shared = Arc::new(Shared { room, gone: AtomicBool::new(false) });
    let (queue, received) = crossbeam_channel::bounded(PLACES);
    let tap = Tap { queue, shared: shared.clone(), answers_queries };
    Ok((tap, Viewer { queue: received, shared }))
}

impl Tap {
    pub fn is_full(&self) -> bool {
        self.queue.len() >= FULL && !self.shared.gone.load(Ordering::Acquire)
    }

    pub fn answers_queries(&self) -> bool {
        self.answers_queries
    }

    /// Hands over; nothing says that nothing follows. Never waits.
    pub fn push(&self, bytes: &[u8]) {
        if self.queue.try_send(bytes.to_vec()).is_err() && !self.shared.gone.load(Ordering::Acquire) {
            log::warn!("{} bytes that a descendant printed after the end are not shown", bytes.len());
        }
    }

    /// Readable when there is room again.
    pub fn room_fd(&self) -> &OwnedFd {
        &self.shared.room
    }

    pub fn clear_room(&self) {
        let _ = rustix::io::read(&self.shared.room, &mut [0u8; 8]);
    }
}

impl Viewer {
    /// Waits at most `limit`.
    pub fn next(&self, limit: Duration) -> Seen {
        let seen = match self.queue.recv_timeout(limit) {
            Ok(bytes) => Seen::Bytes(bytes),
            Err(RecvTimeoutError::Timeout) => return Seen::Nothing,
            Err(RecvTimeoutError::Disconnected) => return Seen::End,
        };
        // A full queue is filled no further, so it comes by here.
        if self.queue.len() == FULL / 2 {
            self.shared.ring();
        }
        seen
    }
}

impl Drop for Viewer {
    /// Nobody looks any more: nothing waits for it.
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
        self.shared.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec};

    fn has_rung(tap: &Tap) -> bool {
        let mut fds = [PollFd::new(tap.room_fd(), PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a poll") == 1
    }

    #[test]
    fn a_full_tap_rings_at_half_and_loses_nothing() {
        let (tap, viewer) = tap(false).expect("a tap");
        for number in 0..FULL as u8 {
            assert!(!tap.is_full());
            tap.push(&[number]);
        }
        assert!(tap.is_full() && !has_rung(&tap));
        // The rest of a program that has ended.
        tap.push(b"rest");
        for number in 0..FULL as u8 {
            assert_eq!(viewer.next(Duration::ZERO), Seen::Bytes(vec![number]));
            assert_eq!(has_rung(&tap), viewer.queue.len() <= FULL / 2);
        }
        tap.clear_room();
        assert!(!has_rung(&tap) && !tap.is_full());
        assert_eq!(viewer.next(Duration::ZERO), Seen::Bytes(b"rest".to_vec()));
        assert_eq!(viewer.next(Duration::ZERO), Seen::Nothing);
        drop(tap);
        assert_eq!(viewer.next(Duration::from_secs(1)), Seen::End);
    }

    #[test]
    fn a_viewer_that_has_gone_holds_nobody_up() {
        let (tap, viewer) = tap(false).expect("a tap");
        (0..FULL).for_each(|_| tap.push(b"x"));
        assert!(tap.is_full());
        drop(viewer);
        assert!(!tap.is_full() && has_rung(&tap));
        tap.push(b"into the void");
    }
}
