//! The programs that the broker runs as agents, and the bench's side of what they report.
//!
//! A probe is this same executable, started by the broker. It puts its terminal in raw mode and reports each read of its
//! terminal as one datagram: time of the read, number of the probe, the bytes. So the moment a byte reaches the program is
//! known exactly, without trusting anything that the broker says. It echoes what it read, as real CLIs do. A flood prints
//! as fast as its terminal takes it and reports its beginning and its end.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::clock::{self, Deadline};

/// What a program reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The terminal is in raw mode and will be read from now on.
    Up,
    Read(Vec<u8>),
    FloodBegins,
    /// Bytes written.
    FloodEnds(u64),
}

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Taken by the program, see [`clock::now`].
    pub at: u64,
    pub probe: u16,
    pub report: Report,
}

impl Sighting {
    pub fn encode(&self) -> Vec<u8> {
        let (tag, rest): (u8, &[u8]) = match &self.report {
            Report::Up => (0, &[]),
            Report::Read(bytes) => (1, bytes),
            Report::FloodBegins => (2, &[]),
            Report::FloodEnds(bytes) => (3, &bytes.to_le_bytes()),
        };
        [&self.at.to_le_bytes()[..], &self.probe.to_le_bytes(), &[tag], rest].concat()
    }

    pub fn decode(datagram: &[u8]) -> Option<Sighting> {
        let (at, rest) = datagram.split_first_chunk::<8>()?;
        let (probe, rest) = rest.split_first_chunk::<2>()?;
        let (tag, rest) = rest.split_first()?;
        let report = match tag {
            0 => Report::Up,
            1 => Report::Read(rest.to_vec()),
            2 => Report::FloodBegins,
            3 => Report::FloodEnds(u64::from_le_bytes(rest.try_into().ok()?)),
            _ => return None,
        };
        Some(Sighting { at: u64::from_le_bytes(*at), probe: u16::from_le_bytes(*probe), report })
    }
}

struct Reporter {
    socket: UnixDatagram,
    probe: u16,
}

impl Reporter {
    fn to(path: &Path, probe: u16) -> io::Result<Reporter> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Reporter { socket, probe })
    }

    fn say(&self, at: u64, report: Report) -> io::Result<()> {
        self.socket.send(&Sighting { at, probe: self.probe, report }.encode()).map(drop)
    }
}

fn raw(terminal: impl AsFd) -> io::Result<()> {
    let mut mode = tcgetattr(&terminal)?;
    mode.make_raw();
    Ok(tcsetattr(&terminal, OptionalActions::Now, &mode)?)
}

/// What a read looks like on screen: Enter moves to a new line, escapes are shown, not obeyed.
fn echo(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len() + 16);
    for byte in bytes {
        match byte {
            b'\r' | b'\n' => shown.extend_from_slice(b"\r\n"),
            0x1b => shown.push(b'^'),
            byte => shown.push(*byte),
        }
    }
    shown
}

/// Reads `input` until its end, reporting each read and echoing it to `output`.
pub fn watch(input: impl AsFd, mut output: impl Write, socket: &Path, probe: u16) -> io::Result<()> {
    let reporter = Reporter::to(socket, probe)?;
    raw(&input)?;
    reporter.say(clock::now(), Report::Up)?;
    let mut buffer = [0; 4096];
    loop {
        let length = rustix::io::read(&input, &mut buffer)?;
        let at = clock::now();
        if length == 0 {
            return Ok(());
        }
        reporter.say(at, Report::Read(buffer[..length].to_vec()))?;
        output.write_all(&echo(&buffer[..length]))?;
        output.flush()?;
    }
}

/// A block of lines as agents print them: a number, colours, text; newlines as carriage return and line feed.
pub fn flood_block() -> Vec<u8> {
    let mut block = Vec::new();
    let mut line = 0;
    while block.len() < 32 << 10 {
        let colour = 31 + line % 6;
        let text = "the quick brown fox jumps over the lazy dog, twice";
        block.extend_from_slice(format!("\x1b[{colour}m{line:05}\x1b[0m {text}\r\n").as_bytes());
        line += 1;
    }
    block
}

/// Prints `total` bytes, then waits for the end of its terminal.
pub fn flood(input: impl AsFd, mut output: impl Write, socket: &Path, probe: u16, total: u64) -> io::Result<()> {
    let reporter = Reporter::to(socket, probe)?;
    raw(&input)?;
    let block = flood_block();
    reporter.say(clock::now(), Report::FloodBegins)?;
    let mut left = total;
    while left > 0 {
        let part = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        output.write_all(&block[..part])?;
        output.flush()?;
        left -= part as u64;
    }
    reporter.say(clock::now(), Report::FloodEnds(total))?;
    let mut buffer = [0; 256];
    while rustix::io::read(&input, &mut buffer)? > 0 {}
    Ok(())
}

/// Prints `total` bytes, `rate` of them a second, each time that a byte is typed. A terminal that does not take them in
/// time makes it later, never faster than that.
pub fn print(
    input: impl AsFd,
    mut output: impl Write,
    socket: &Path,
    probe: u16,
    total: u64,
    rate: u64,
) -> io::Result<()> {
    let reporter = Reporter::to(socket, probe)?;
    raw(&input)?;
    let block = flood_block();
    // Twenty pieces a second, as a busy program prints.
    let piece = usize::try_from(rate / 20).unwrap_or(usize::MAX).clamp(1, block.len());
    let pause = piece as u64 * 1_000_000_000 / rate.max(1);
    reporter.say(clock::now(), Report::Up)?;
    while rustix::io::read(&input, &mut [0; 1])? > 0 {
        let mut due = clock::now();
        reporter.say(due, Report::FloodBegins)?;
        let mut left = total;
        while left > 0 {
            let part = piece.min(usize::try_from(left).unwrap_or(usize::MAX));
            output.write_all(&block[..part])?;
            output.flush()?;
            left -= part as u64;
            due += pause;
            std::thread::sleep(Duration::from_nanos(due.saturating_sub(clock::now())));
        }
        reporter.say(clock::now(), Report::FloodEnds(total))?;
    }
    Ok(())
}

/// The bench's end of the datagram socket: one thread that receives, for all programs of one broker.
pub struct Sightings {
    path: PathBuf,
    received: Receiver<Sighting>,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sightings {
    /// Binds `path` (at most 107 bytes, a limit of the kernel).
    pub fn bind(path: PathBuf) -> io::Result<Sightings> {
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (report, received) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = std::thread::Builder::new().name("sightings".into()).spawn(move || {
            let mut buffer = vec![0; 8192];
            while !end.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                if let Some(sighting) = Sighting::decode(&buffer[..length])
                    && report.send(sighting).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Sightings { path, received, ended, thread: Some(thread) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next sighting, or `None` at the deadline.
    pub fn next(&self, deadline: Deadline) -> Option<Sighting> {
        self.received.recv_timeout(deadline.left()?).ok()
    }

    /// Forgets what has come so far.
    pub fn clear(&self) {
        while self.received.try_recv().is_ok() {}
    }
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}
