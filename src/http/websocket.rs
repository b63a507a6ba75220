//! The pump of one WebSocket: the thread of its connection after the 101, waiting in `poll(socket, eventfd)`.
//!
//! Producers on other threads never touch the socket: they queue something for the session and use its [`Waker`]. The pump
//! pulls one message at a time and only when the one before has left, so that what a slow peer costs is bounded by the
//! session's own queue and one message here.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::connection::linger;
use super::server::Shared;
use super::{Outgoing, Session};

/// Small on purpose: tungstenite zero-fills this much on every read.
const READ_BUFFER: usize = 4 << 10;
/// Messages taken from the peer before the pump looks at its own output again, and the other way round.
const TURN: usize = 64;
/// For the Close of a failed connection to leave.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Bell {
    fd: OwnedFd,
    /// The eventfd is written and not yet read: further wakes cost no system call.
    rung: AtomicBool,
}

/// Wakes the pump of one WebSocket from any thread. Wakes that the pump has not noticed yet count as one.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Bell>);

impl Waker {
    /// # Errors
    /// The system's, when there are no descriptors left.
    pub fn new() -> io::Result<Waker> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker(Arc::new(Bell { fd, rung: AtomicBool::new(false) })))
    }

    /// What is to be noticed must be in place before.
    pub fn wake(&self) {
        if !self.0.rung.swap(true, Ordering::SeqCst) {
            // A counter of 1 cannot overflow, so this cannot block or fail.
            let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    /// What was put in place before a wake is visible to the caller afterwards; a later wake rings again.
    pub(super) fn clear(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.0.fd, &mut count);
        self.0.rung.store(false, Ordering::SeqCst);
    }
}

/// The stream as tungstenite sees it: shared with the server, which may shut it down, and counting.
struct Wire {
    stream: Arc<TcpStream>,
    received: u64,
    sent: u64,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&*self.stream).read(buffer)?;
        self.received += count as u64;
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&*self.stream).write(bytes)?;
        self.sent += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why the pump ends.
enum End {
    /// Nothing more to say: the connection is closed, broken or cut.
    Gone,
    /// The peer broke a rule or a limit: tell it, then close.
    Fail { code: u16, reason: &'static str },
}

type Step<T> = Result<T, End>;

struct Pump<'a> {
    ws: WebSocket<Wire>,
    session: &'a mut dyn Session,
    shared: &'a Shared,
    /// Set while the socket takes nothing: since when, and how much it had taken then.
    blocked: Option<(Instant, u64)>,
    /// Set once either side has sent Close: when to give up on the other half of the handshake.
    closing: Option<Instant>,
    /// When the session wants to be asked again.
    session_wakes: Option<Instant>,
    next_ping: Option<Instant>,
    unanswered: u32,
    /// `received` when the last ping was sent.
    received_at_ping: u64,
}

/// Serves one WebSocket until it ends. `leftover` is what the peer sent together with its upgrade request.
pub(super) fn pump(
    shared: &Shared,
    stream: &Arc<TcpStream>,
    leftover: Vec<u8>,
    session: &mut dyn Session,
    waker: &Waker,
) {
    if stream.set_nonblocking(true).is_err() {
        return;
    }
    let limits = &shared.limits;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        // Room for automatic pongs beside the one message.
        .max_write_buffer_size(limits.ws_out_bytes + (4 << 10))
        .max_message_size(Some(limits.ws_message_bytes))
        .max_frame_size(Some(limits.ws_message_bytes));
    let wire = Wire { stream: stream.clone(), received: 0, sent: 0 };
    let ws = WebSocket::from_partially_read(wire, leftover, Role::Server, Some(config));
    session.opened(waker.clone());
    let mut pump = Pump {
        ws,
        session,
        shared,
        blocked: None,
        closing: None,
        session_wakes: None,
        next_ping: limits.ws_ping.map(|_| Instant::now()),
        unanswered: 0,
        received_at_ping: 0,
    };
    let end = loop {
        if let Err(end) = pump.turn(stream, waker) {
            break end;
        }
    };
    if let End::Fail { code, reason } = end {
        pump.fail(stream, code, reason);
    }
    pump.session.closed();
}

impl Pump<'_> {
    /// Everything that can be done now, then the wait for more.
    fn turn(&mut self, stream: &Arc<TcpStream>, waker: &Waker) -> Step<()> {
        let more_input = self.receive()?;
        // Before the session's output: the first ping is the first frame.
        self.ping()?;
        let more_output = self.send()?;
        let timeout = self.timers()?;
        let reading = self.reading();
        let mut events = PollFlags::empty();
        if reading {
            events |= PollFlags::IN;
        }
        if self.blocked.is_some() {
            events |= PollFlags::OUT;
        }
        let timeout = if (more_input && reading) || more_output { Some(Duration::ZERO) } else { timeout };
        let mut fds = [
            PollFd::from_borrowed_fd(stream.as_fd(), events),
            PollFd::from_borrowed_fd(waker.descriptor(), PollFlags::IN),
        ];
        let timeout = timeout.map(|left| Timespec {
            tv_sec: left.as_secs().min(i64::from(i32::MAX) as u64) as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        // An interrupted poll is a turn without news.
        let _ = poll(&mut fds, timeout.as_ref());
        if fds[1].revents().contains(PollFlags::IN) {
            waker.clear();
        }
        // While nothing is read these would make every poll return at once.
        if !reading && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Err(End::Gone);
        }
        Ok(())
    }

    fn reading(&self) -> bool {
        self.closing.is_some() || self.session.wants_input()
    }

    /// Takes messages until the socket is empty; `true` when it stopped before that.
    fn receive(&mut self) -> Step<bool> {
        for _ in 0..TURN {
            if !self.reading() {
                return Ok(true);
            }
            match self.ws.read() {
                Ok(Message::Text(text)) if self.closing.is_none() => self.session.text(text.as_str().to_string()),
                Ok(Message::Binary(bytes)) if self.closing.is_none() => self.session.binary(bytes.to_vec()),
                // The answer is queued; the next read or flush sends it and says ConnectionClosed.
                Ok(Message::Close(_)) => self.begin_close(),
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(verdict(error)),
            }
        }
        Ok(true)
    }

    /// Gives messages until the socket or the session has enough; `true` when it stopped before that.
    fn send(&mut self) -> Step<bool> {
        if self.session.is_cut() {
            return Err(End::Gone);
        }
        let flushed = self.ws.flush();
        if !self.progress(flushed)? {
            return Ok(false);
        }
        self.session_wakes = None;
        if self.closing.is_some() {
            return Ok(false);
        }
        for _ in 0..TURN {
            let outcome = match self.session.next() {
                Outgoing::Message(text) if text.len() > self.shared.limits.ws_out_bytes => {
                    return Err(End::Fail { code: 1011, reason: "message too big to send" });
                }
                Outgoing::Message(text) => self.ws.write(Message::text(&*text)),
                Outgoing::Close { code, reason } => return self.close(code, &reason).map(|()| false),
                Outgoing::Cut => return Err(End::Gone),
                idle @ (Outgoing::Nothing | Outgoing::Wait(_)) => {
                    self.session_wakes = match idle {
                        Outgoing::Wait(at) => Some(at),
                        _ => None,
                    };
                    if self.shared.stopping().is_some() {
                        self.close(1000, "")?;
                    }
                    return Ok(false);
                }
            };
            if !self.progress(outcome)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `false`: the socket takes nothing more for now; what was written is kept by tungstenite.
    fn progress(&mut self, outcome: Result<(), Error>) -> Step<bool> {
        match outcome {
            Ok(()) => {
                self.blocked = None;
                Ok(true)
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let sent = self.ws.get_ref().sent;
                match self.blocked {
                    Some((_, before)) if before == sent => {}
                    _ => self.blocked = Some((Instant::now(), sent)),
                }
                Ok(false)
            }
            Err(error) => Err(verdict(error)),
        }
    }

    fn begin_close(&mut self) {
        self.closing.get_or_insert(Instant::now() + self.shared.limits.ws_close);
    }

    fn close(&mut self, code: u16, reason: &str) -> Step<()> {
        self.begin_close();
        let outcome = self.ws.close(close_frame(code, reason));
        self.progress(outcome).map(|_| ())
    }

    /// Acts on what is due and gives the time to the next deadline.
    fn timers(&mut self) -> Step<Option<Duration>> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut until = |at: Instant| next = Some(next.map_or(at, |other| other.min(at)));
        if let Some((since, _)) = self.blocked {
            let limit = since + self.shared.limits.ws_stall;
            if now >= limit {
                log::debug!("websocket cut: the peer takes nothing");
                return Err(End::Gone);
            }
            until(limit);
        }
        match self.closing {
            Some(limit) if now >= limit => return Err(End::Gone),
            Some(limit) => until(limit),
            None => {
                // While the socket is blocked the session is not asked, so its time would only make the poll spin.
                if let (Some(at), None) = (self.session_wakes, self.blocked) {
                    until(at);
                }
                if let Some(stop) = self.shared.stopping() {
                    // Half of the time that the stop has is for what is queued, the rest for the handshake.
                    if now >= stop.flush_by {
                        self.close(1000, "")?;
                    }
                    until(self.closing.unwrap_or(stop.flush_by));
                }
                if let Some(at) = self.next_ping {
                    until(at);
                }
            }
        }
        Ok(next.map(|at| at.saturating_duration_since(now)))
    }

    /// Pings when it is time to.
    fn ping(&mut self) -> Step<()> {
        let now = Instant::now();
        let (Some(interval), Some(due)) = (self.shared.limits.ws_ping, self.next_ping) else {
            return Ok(());
        };
        if now < due || self.closing.is_some() {
            return Ok(());
        }
        let received = self.ws.get_ref().received;
        // Any byte is a sign of life. Of a peer that is not read nothing is known.
        if received != self.received_at_ping || !self.session.wants_input() {
            self.unanswered = 0;
        }
        if self.unanswered >= 2 {
            log::debug!("websocket cut: two pings without an answer");
            return Err(End::Gone);
        }
        self.received_at_ping = received;
        self.next_ping = Some(now + interval);
        // A blocked socket is the stall rule's; pings must not pile up in front of it.
        if self.blocked.is_none() {
            self.unanswered += 1;
            let outcome = self.ws.send(Message::Ping(Default::default()));
            self.progress(outcome)?;
        }
        Ok(())
    }

    /// Tells the peer what it did, and gives it a moment to read that.
    fn fail(&mut self, stream: &TcpStream, code: u16, reason: &str) {
        log::debug!("websocket failed: {code} {reason}");
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_write_timeout(Some(FAREWELL));
        let _ = self.ws.close(close_frame(code, reason));
        let _ = stream.shutdown(Shutdown::Write);
        linger(stream);
    }
}

fn close_frame(code: u16, reason: &str) -> Option<CloseFrame> {
    // A control frame holds 125 bytes, two of them the code.
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    (code != 1005).then(|| CloseFrame { code: CloseCode::from(code), reason: reason[..end].into() })
}

fn verdict(error: Error) -> End {
    match error {
        Error::Capacity(_) => End::Fail { code: 1009, reason: "message too big" },
        Error::Utf8(_) => End::Fail { code: 1007, reason: "text that is not UTF-8" },
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
        Error::Protocol(_) => End::Fail { code: 1002, reason: "protocol error" },
        Error::WriteBufferFull(_) => End::Fail { code: 1011, reason: "message too big to send" },
        _ => End::Gone,
    }
}
