//! A pseudo-terminal and the program in it: opening, starting, reading, writing, and what the kernel knows about both.
//!
//! Invariants: the master side is non-blocking, so no call here waits for the program; the slave side is closed in the
//! broker right after the start, so that the end of the program shows. The master side is in packet mode: the kernel then
//! tells when unread input was thrown away, which no count of unread bytes can. The library's own writer is never taken: dropping
//! it would type a line feed and an end-of-file into the program, and can block for ever.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use filedescriptor::FileDescriptor;
use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex, Winsize};

use super::program::Program;
use super::screen::Size;
use super::tree;
use crate::sys::{descriptors, kernel};

/// The size of a terminal when the broker has none of its own.
const DEFAULT_SIZE: Size = Size { rows: 24, cols: 80 };
/// How long the start waits to see the program replace the broker's image. Usually below a millisecond.
const EXEC_LIMIT: Duration = Duration::from_millis(500);
/// First byte of a read in packet mode: output follows.
const PACKET_DATA: u8 = 0;
/// Flag in the first byte of a read in packet mode (`TIOCPKT_FLUSHREAD`): unread input was thrown away.
const PACKET_FLUSH_READ: u8 = 1;

/// The name of the variable by which processes of one agent are known even after they left its session.
pub const MARK: &str = "AGENT_RELAY_AGENT_MARK";

/// Held while a terminal exists whose descriptors a concurrent fork could inherit: `openpty` sets close-on-exec only
/// after the fact. Everything in this process that starts a program should hold it for the moment of the fork.
pub fn spawn_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    // It guards no data, so a poisoned lock is as good as any.
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a program ended: exactly one of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// A running program and the master side of its terminal.
#[derive(Debug)]
pub struct Terminal {
    master: FileDescriptor,
    pub pid: Pid,
    /// `None` on kernels (or in sandboxes) without pidfd: the caller then asks from time to time.
    pub pidfd: Option<OwnedFd>,
    /// Input was thrown away since [`Self::take_flush`].
    flushed: Cell<bool>,
}

/// What a program would take from a terminal at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineDiscipline {
    /// Input is handed over line by line; a line longer than the kernel's buffer loses its end.
    pub canonical: bool,
    /// In canonical mode a CR ends a line.
    pub cr_ends_line: bool,
    /// These bytes raise a signal and throw unread input away. 0 = none.
    pub flushing: [u8; 3],
}

impl Terminal {
    /// Opens a terminal and starts the program in it, as the leader of its own session.
    ///
    /// # Errors
    /// A sentence for the caller of the spawn. Nothing is left behind then.
    pub fn start(
        program: &Program,
        args: &[String],
        env: &[(OsString, OsString)],
        mark: &str,
    ) -> Result<(Terminal, Size), String> {
        let name = program.path.display();
        let size = own_size();
        let mut command = CommandBuilder::new(&program.path);
        command.args(args);
        command.cwd(&program.cwd);
        command.env_clear();
        env.iter().for_each(|(key, value)| command.env(key, value));
        command.env(MARK, mark);

        let guard = spawn_lock();
        let pair = native_pty_system()
            .openpty(PtySize { rows: size.rows, cols: size.cols, pixel_width: 0, pixel_height: 0 })
            .map_err(|error| format!("no terminal for '{name}': {error:#}"))?;
        let mut master = pair
            .master
            .as_raw_fd()
            .ok_or_else(|| "the terminal has no descriptor".to_string())
            .and_then(|raw| FileDescriptor::dup(&raw).map_err(|error| error.to_string()))
            .map_err(|error| format!("no terminal for '{name}': {error}"))?;
        master.set_non_blocking(true).map_err(|error| format!("no terminal for '{name}': {error}"))?;
        kernel::set_packet_mode(master.as_fd()).map_err(|error| format!("no terminal for '{name}': {error}"))?;
        let child =
            pair.slave.spawn_command(command).map_err(|error| format!("'{name}' cannot be started: {error:#}"))?;
        let pid = child.process_id().and_then(|pid| Pid::from_raw(pid as i32));
        let pid = pid.ok_or_else(|| format!("'{name}' was started without a process id"))?;
        tree::register_leader(pid);
        descriptors::restore_limit_of(pid);
        drop(pair);
        drop(guard);

        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        let terminal = Terminal { master, pid, pidfd, flushed: Cell::new(false) };
        if terminal.was_executed(mark) {
            return Ok((terminal, size));
        }
        tree::forget_leader(pid);
        terminal.reap();
        Err(format!(
            "'{name}' cannot be executed: the kernel refuses it (wrong format or architecture, or missing loader)"
        ))
    }

    /// Waits until the new image shows our mark in its environment. A failed exec is reported by the library as success;
    /// the child then ends by SIGABRT, still under the broker's own image.
    fn was_executed(&self, mark: &str) -> bool {
        let deadline = Instant::now() + EXEC_LIMIT;
        let environ = format!("/proc/{}/environ", self.pid.as_raw_nonzero());
        loop {
            match std::fs::read(&environ) {
                Ok(bytes) if contains(&bytes, mark.as_bytes()) => return true,
                // Not ours to read any more: it is a set-user-id program, so it was executed.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return true,
                _ => {}
            }
            if let Some(status) = self.status() {
                return status.signal != Some(Signal::ABORT.as_raw());
            }
            if Instant::now() >= deadline {
                return true;
            }
            let wait = Timespec { tv_sec: 0, tv_nsec: 200_000 };
            let mut fds = [];
            let _ = rustix::event::poll(&mut fds, Some(&wait));
        }
    }

    /// What [`rustix::event::poll`] watches.
    pub fn master(&self) -> &FileDescriptor {
        &self.master
    }

    /// Up to `buffer.len()` bytes of output. `WouldBlock`: none now. 0 or EIO: no program has the terminal open.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = rustix::io::read(&self.master, &mut *buffer)?;
            if count > 1 && buffer[0] == PACKET_DATA {
                buffer.copy_within(1..count, 0);
                return Ok(count - 1);
            }
            if count == 0 {
                return Ok(0);
            }
            self.note_status(buffer[0]);
        }
    }

    fn note_status(&self, status: u8) {
        if status & PACKET_FLUSH_READ != 0 {
            self.flushed.set(true);
        }
    }

    /// Whether unread input was thrown away since the last call: by the program (`tcflush`, or new settings with
    /// `TCSAFLUSH`), or by the kernel for an interrupt key. True also if nothing was unread then.
    ///
    /// Asked after a count of unread bytes, it tells whether they were thrown away: the kernel sets its flag under the
    /// lock that the count takes.
    pub fn take_flush(&self) -> bool {
        let mut fds = [PollFd::new(&self.master, PollFlags::PRI)];
        let asked = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if asked.is_ok() && fds[0].revents().contains(PollFlags::PRI) {
            // The flags come before any output, and alone.
            let mut status = [0];
            if rustix::io::read(&self.master, &mut status).is_ok_and(|count| count == 1) {
                self.note_status(status[0]);
            }
        }
        self.flushed.take()
    }

    /// Writes what the terminal takes now. `WouldBlock`: nothing.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.master, bytes)?)
    }

    pub fn resize(&self, size: Size) {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(error) = rustix::termios::tcsetwinsize(&self.master, size) {
            log::warn!("cannot set the size of the terminal of process {}: {error}", self.pid.as_raw_nonzero());
        }
    }

    /// The process group that the keyboard belongs to.
    pub fn foreground(&self) -> Option<Pid> {
        rustix::termios::tcgetpgrp(&self.master).ok()
    }

    pub fn line_discipline(&self) -> Option<LineDiscipline> {
        let termios = rustix::termios::tcgetattr(&self.master).ok()?;
        let local = termios.local_modes;
        let code = |index| termios.special_codes[index];
        let cr_ends_line = termios.input_modes.contains(InputModes::ICRNL)
            || [SpecialCodeIndex::VEOL, SpecialCodeIndex::VEOL2].iter().any(|index| code(*index) == b'\r');
        let flushes = local.contains(LocalModes::ISIG) && !local.contains(LocalModes::NOFLSH);
        let flushing = if flushes {
            [SpecialCodeIndex::VINTR, SpecialCodeIndex::VQUIT, SpecialCodeIndex::VSUSP].map(code)
        } else {
            [0; 3]
        };
        Some(LineDiscipline { canonical: local.contains(LocalModes::ICANON), cr_ends_line, flushing })
    }

    /// Bytes written to the terminal that the program has not taken; in line mode those of finished lines. The kernel
    /// knows: the slave side is opened for a moment and asked. `None`: it cannot be known.
    ///
    /// What the kernel could not yet hand to the line discipline is not counted (its buffer takes 4 KiB). The slave is
    /// polled first because written bytes pass through a work queue of the kernel; a poll waits for that queue, the byte
    /// count alone would read 0 too early.
    pub fn unread(&self) -> Option<u64> {
        const NONBLOCK: OpenptFlags = OpenptFlags::from_bits_retain(libc::O_NONBLOCK as u32);
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC | NONBLOCK;
        // The descriptor cannot leak into a child: it is born close-on-exec.
        let slave = rustix::pty::ioctl_tiocgptpeer(&self.master, flags).ok()?;
        let mut fds = [PollFd::new(&slave, PollFlags::IN)];
        let pending = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let readable = pending.ok().map(|_| !fds[0].revents().is_empty())?;
        match rustix::io::ioctl_fionread(&slave) {
            // There is something (a hang-up, an end-of-file) that is no byte.
            Ok(0) if readable => None,
            counted => counted.ok(),
        }
    }

    /// Whether the program has taken every byte that was written to the terminal, or somebody has thrown it away:
    /// [`Self::take_flush`] tells. `false` also when it cannot be known.
    pub fn all_read(&self) -> bool {
        if self.unread() != Some(0) {
            return false;
        }
        // In line mode the kernel counts finished lines only. A CR that ends no line leaves our text uncounted.
        self.line_discipline().is_some_and(|mode| !mode.canonical || mode.cr_ends_line)
    }

    /// How the program ended, if it has. It stays a zombie, so that its id cannot be taken by another process.
    pub fn status(&self) -> Option<Status> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(self.pid), options) {
            Ok(Some(status)) => Some(Status { code: status.exit_status(), signal: status.terminating_signal() }),
            Ok(None) => None,
            // Somebody else reaped it: all we know is that it is gone.
            Err(rustix::io::Errno::CHILD) => Some(Status::default()),
            Err(_) => None,
        }
    }

    /// Takes the ended program out of the process table.
    pub fn reap(&self) {
        let _ = rustix::process::waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// The size of the broker's own controlling terminal, if it has one.
fn own_size() -> Size {
    std::fs::File::open("/dev/tty")
        .ok()
        .and_then(|tty| rustix::termios::tcgetwinsize(&tty).ok())
        .filter(|size| size.ws_row > 0 && size.ws_col > 0)
        .map_or(DEFAULT_SIZE, |size| Size::clamped(size.ws_row, size.ws_col))
}

/// Whether `needle` stands somewhere in `hay`.
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(hay, needle).is_some()
}
