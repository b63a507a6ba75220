//! Waiting without ticks: one `poll` over a socket and a wake-up descriptor, with a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A descriptor that other threads make readable.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it readable until [`Wake::clear`].
    pub fn signal(&self) {
        // Fails only when the counter is at its maximum: then it is readable anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the signals that came so far.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Woken {
    /// The socket is readable, writable (if asked for), broken or at its end.
    pub socket: bool,
    /// The wake-up descriptor was signalled.
    pub signal: bool,
}

/// What a wait watches the socket for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    Input,
    Output,
    Both,
}

/// Waits for the socket, for `wake`, or for the deadline (then neither flag is set). Without a deadline for ever.
///
/// # Errors
/// The kernel's, apart from interruptions by signals.
pub fn wait(
    socket: Option<(BorrowedFd<'_>, For)>,
    wake: Option<&Wake>,
    deadline: Option<Instant>,
) -> io::Result<Woken> {
    loop {
        let mut fds = Vec::with_capacity(2);
        if let Some((fd, what)) = socket {
            let flags = match what {
                For::Input => PollFlags::IN,
                For::Output => PollFlags::OUT,
                For::Both => PollFlags::IN | PollFlags::OUT,
            };
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        if let Some(wake) = wake {
            fds.push(PollFd::from_borrowed_fd(wake.0.as_fd(), PollFlags::IN));
        }
        // Rounded up by a millisecond, so that a passed deadline has really passed when the caller looks at the clock.
        let left = deadline.map(|at| match at.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => left + Duration::from_millis(1),
            _ => Duration::ZERO,
        });
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as _ });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {
                let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
                let (socket_ready, wake_at) = match socket {
                    Some(_) => (ready[0], 1),
                    None => (false, 0),
                };
                return Ok(Woken {
                    socket: socket_ready,
                    signal: wake.is_some() && ready.get(wake_at).copied().unwrap_or(false),
                });
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_wakes_and_stays_until_cleared() {
        let wake = Wake::new().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(5));
        assert_eq!(wait(None, Some(&wake), soon()).unwrap(), Woken::default());
        wake.signal();
        wake.signal();
        assert!(wait(None, Some(&wake), None).unwrap().signal);
        assert!(wait(None, Some(&wake), None).unwrap().signal);
        wake.clear();
        assert_eq!(wait(None, Some(&wake), soon()).unwrap(), Woken::default());
    }
}
