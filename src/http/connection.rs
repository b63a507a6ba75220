//! One connection, from its first byte to its end, on its own thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::intake::{Body, Framing, Head, Step, take_head};
use super::server::Shared;
use super::{Handler, Reply, Request, Response, Session, Waker, websocket};
use crate::sys::threads::doing;

/// One read from a socket.
const READ: usize = 4 << 10;
/// After an answer that the peer did not expect yet: time for it to read that before the socket closes. Closing at once
/// with unread input makes the kernel send a reset, which can overtake the answer.
const LINGER: Duration = Duration::from_millis(500);
/// What a kept-alive connection keeps of a grown buffer.
const KEPT_BUFFER: usize = 8 << 10;

/// Why reading stopped.
enum Stopped {
    Late,
    /// The peer or the server closed, or the connection broke.
    Gone,
}

/// What comes after a request.
enum Next {
    Go,
    End,
    /// End after the peer had a moment to read the answer.
    Linger,
    Upgrade(Box<dyn Session>, String),
}

pub(super) struct Connection {
    pub shared: Arc<Shared>,
    pub id: u64,
    pub stream: Arc<TcpStream>,
    pub peer: SocketAddr,
}

impl Connection {
    /// Serves requests until one side ends it.
    pub fn run(self) {
        let _ = self.stream.set_nodelay(true);
        let mut buffer = Vec::new();
        let mut wait = self.shared.limits.head_deadline;
        loop {
            match self.serve_one(&mut buffer, wait) {
                Next::Go => wait = self.shared.limits.idle_deadline,
                Next::End => break,
                Next::Linger => {
                    let _ = self.stream.shutdown(Shutdown::Write);
                    linger(&self.stream);
                    break;
                }
                Next::Upgrade(session, key) => {
                    self.upgrade(session, &key, buffer);
                    break;
                }
            }
        }
        // The server may still hold the descriptor.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn serve_one(&self, buffer: &mut Vec<u8>, wait: Duration) -> Next {
        buffer.shrink_to(KEPT_BUFFER);
        doing("waiting for a request");
        if buffer.is_empty() {
            if self.shared.stopping().is_some() {
                return Next::End;
            }
            if self.fill(buffer, Instant::now() + wait).is_err() {
                return Next::End;
            }
        }
        doing("reading a request");
        let head = match self.read_head(buffer) {
            Ok(head) => head,
            Err(next) => return next,
        };
        let Head { mut request, framing, keep_alive, expects_continue, .. } = head;
        request.peer = Some(self.peer);
        let head_only = request.method == "HEAD";
        let handler = self.shared.handler();
        let has_body = framing != Framing::Length(0);
        match guarded(|| handler.precheck(&request)) {
            Ok(None) => {}
            Ok(Some(response)) if has_body => return self.refuse(response, head_only),
            Ok(Some(response)) => return self.answer(response, head_only, keep_alive),
            Err(response) => return self.refuse(response, head_only),
        }
        if has_body {
            match self.read_body(buffer, &*handler, &request, framing, expects_continue) {
                Ok(body) => request.body = body,
                Err(next) => return next,
            }
        }
        doing("answering");
        let key = websocket_key(&request);
        match guarded(|| handler.handle(request)) {
            Ok(Reply::Response(response)) => self.answer(response, head_only, keep_alive),
            Ok(Reply::Then(response, then)) => {
                let next = self.answer(response, head_only, keep_alive);
                if matches!(next, Next::Linger) {
                    // Who waits for the end of the answer shall not wait for what follows it.
                    let _ = self.stream.shutdown(Shutdown::Write);
                }
                then();
                next
            }
            Ok(Reply::WebSocket(session)) => match key {
                Ok(key) => Next::Upgrade(session, key),
                Err(response) => self.answer(response, head_only, false),
            },
            Ok(Reply::Raw(bytes)) => {
                let _ = self.write(&bytes);
                Next::End
            }
            Ok(Reply::Cut) => Next::End,
            Ok(Reply::Silence(limit)) => {
                self.hold_silent(limit);
                Next::End
            }
            Err(response) => self.refuse(response, head_only),
        }
    }

    fn read_head(&self, buffer: &mut Vec<u8>) -> Result<Head, Next> {
        let limits = &self.shared.limits;
        let deadline = Instant::now() + limits.head_deadline;
        loop {
            match take_head(buffer, limits) {
                Step::Done(head) => return Ok(head),
                Step::More => {}
                Step::Refused(response) => return Err(self.refuse(response, false)),
            }
            match self.fill(buffer, deadline) {
                Ok(()) => {}
                Err(Stopped::Late) => return Err(self.refuse(Response::text(408, "request head too slow"), false)),
                Err(Stopped::Gone) => return Err(Next::End),
            }
        }
    }

    fn read_body(
        &self,
        buffer: &mut Vec<u8>,
        handler: &dyn Handler,
        request: &Request,
        framing: Framing,
        expects_continue: bool,
    ) -> Result<Vec<u8>, Next> {
        let limits = &self.shared.limits;
        let head_only = request.method == "HEAD";
        let limit = handler.body_limit(request).min(limits.body_bytes);
        let mut body = match Body::new(framing, limit) {
            Ok(body) => body,
            Err(response) => return Err(self.refuse(response, head_only)),
        };
        if expects_continue && buffer.is_empty() && self.write(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return Err(Next::End);
        }
        let deadline = Instant::now() + limits.body_deadline;
        loop {
            match body.take(buffer) {
                Step::Done(body) => return Ok(body),
                Step::More => {}
                Step::Refused(response) => return Err(self.refuse(response, head_only)),
            }
            match self.fill(buffer, deadline) {
                Ok(()) => {}
                Err(Stopped::Late) => {
                    return Err(self.refuse(Response::text(408, "request body too slow"), head_only));
                }
                Err(Stopped::Gone) => return Err(Next::End),
            }
        }
    }

    /// Appends what the peer sends next, at least one byte.
    fn fill(&self, buffer: &mut Vec<u8>, deadline: Instant) -> Result<(), Stopped> {
        let mut chunk = [0u8; READ];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A zero time-out would mean none at all.
            if left.is_zero() {
                return Err(Stopped::Late);
            }
            self.stream.set_read_timeout(Some(left)).map_err(|_| Stopped::Gone)?;
            match (&*self.stream).read(&mut chunk) {
                Ok(0) => return Err(Stopped::Gone),
                Ok(count) => {
                    buffer.extend_from_slice(&chunk[..count]);
                    return Ok(());
                }
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Stopped::Gone),
            }
        }
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.shared.limits.write_deadline;
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_write_timeout(Some(left))?;
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers a request that was read to its end.
    fn answer(&self, mut response: Response, head_only: bool, keep_alive: bool) -> Next {
        response.close |= !keep_alive || self.shared.stopping().is_some();
        match self.write(&response.render(head_only)) {
            Ok(()) if response.close => Next::Linger,
            Ok(()) => Next::Go,
            Err(_) => Next::End,
        }
    }

    /// Answers a request of which something is unread.
    fn refuse(&self, response: Response, head_only: bool) -> Next {
        self.answer(response.closing(), head_only, false)
    }

    fn upgrade(&self, mut session: Box<dyn Session>, key: &str, leftover: Vec<u8>) {
        let Ok(waker) = Waker::new() else {
            let _ = self.refuse(Response::text(503, "no descriptors left"), false);
            return;
        };
        if !self.shared.becomes_websocket(self.id, &waker) {
            let _ = self.refuse(Response::text(503, "shutting down"), false);
            return;
        }
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        if self.write(head.as_bytes()).is_err() {
            return;
        }
        doing("pumping a websocket");
        websocket::pump(&self.shared, &self.stream, leftover, &mut *session, &waker);
    }

    /// The peer's close and the server's stop both show as RDHUP.
    fn hold_silent(&self, limit: Duration) {
        doing("holding a socket silent");
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().min(1 << 30) as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::RDHUP)];
            let ready = poll(&mut fds, Some(&timeout));
            if left.is_zero() || ready.is_ok_and(|count| count > 0) {
                return;
            }
        }
    }
}

/// A handler's panic ends its request, not the connection's bookkeeping.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Response> {
    std::panic::catch_unwind(AssertUnwindSafe(call)).map_err(|_| Response::text(500, "internal error"))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The key of a proper WebSocket handshake, or the answer to an improper one.
fn websocket_key(request: &Request) -> Result<String, Response> {
    let upgrade =
        |why| Response::text(426, why).with_header("Upgrade", "websocket").with_header("Sec-WebSocket-Version", "13");
    if !request.is_upgrade() || !request.has_token("connection", "upgrade") {
        return Err(upgrade("this is a websocket"));
    }
    if request.method != "GET" {
        return Err(Response::text(400, "a websocket starts with GET"));
    }
    if request.header("sec-websocket-version").map(str::trim) != Some("13") {
        return Err(upgrade("websocket version not supported"));
    }
    match request.header("sec-websocket-key").map(str::trim) {
        Some(key) if !key.is_empty() => Ok(key.to_string()),
        _ => Err(Response::text(400, "no Sec-WebSocket-Key")),
    }
}

/// Reads and forgets what the peer still sends, until it closes or [`LINGER`] is over.
pub(super) fn linger(stream: &TcpStream) {
    doing("closing");
    let deadline = Instant::now() + LINGER;
    let mut chunk = [0u8; READ];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match (&mut &*stream).read(&mut chunk) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
