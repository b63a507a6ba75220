//! One open connection, shared by the reading and the writing thread. The WebSocket and the TLS state stand under one
//! lock; neither thread ever waits while it holds it.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tungstenite::WebSocket;

use super::stream::Stream;
use crate::core::ports::LinkGeneration;

/// How long a peer may take to answer our Close, or to drop the socket after its own.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// How it stands with the end of a connection.
#[derive(Debug, Default)]
struct Fate {
    /// Why it ended or is about to: the first reason is the true one.
    reason: Option<String>,
    /// The socket is dead.
    over: bool,
    /// A Close went out or came in; past this point nobody waits for the rest.
    close_by: Option<Instant>,
}

pub struct Connection {
    pub generation: LinkGeneration,
    /// The same socket as inside `socket`, for `poll` and `shutdown` without the lock.
    raw: TcpStream,
    socket: Mutex<WebSocket<Stream>>,
    fate: Mutex<Fate>,
    ended: Condvar,
}

impl Connection {
    pub fn new(generation: LinkGeneration, socket: WebSocket<Stream>, raw: TcpStream) -> Connection {
        Connection { generation, raw, socket: Mutex::new(socket), fate: Mutex::default(), ended: Condvar::new() }
    }

    /// The WebSocket. A thread that panicked while it held the lock left a socket in an unknown state: the connection is
    /// ended, the guard is still usable for that.
    pub fn lock(&self) -> MutexGuard<'_, WebSocket<Stream>> {
        self.socket.lock().unwrap_or_else(|poisoned| {
            self.end("a thread of the node link failed");
            poisoned.into_inner()
        })
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes the reason of an end that is on its way; the first one stays.
    pub fn because(&self, reason: impl Into<String>) {
        self.fate().reason.get_or_insert_with(|| reason.into());
    }

    /// Ends it now, from either thread. Whoever waits for the socket wakes.
    pub fn end(&self, reason: impl Into<String>) {
        let mut fate = self.fate();
        fate.reason.get_or_insert_with(|| reason.into());
        fate.over = true;
        // Fails when the peer was faster.
        let _ = self.raw.shutdown(Shutdown::Both);
        self.ended.notify_all();
    }

    /// Waits until it is over, at most up to `until`.
    pub fn wait_for_end(&self, until: Instant) {
        let mut fate = self.fate();
        while !fate.over {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            fate = match self.ended.wait_timeout(fate, left) {
                Ok((fate, _)) => fate,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    pub fn is_over(&self) -> bool {
        self.fate().over
    }

    pub fn reason(&self) -> String {
        self.fate().reason.clone().unwrap_or_else(|| "closed".into())
    }

    /// A Close went out or came in: the rest has [`CLOSE_LIMIT`].
    pub fn closing(&self) {
        self.fate().close_by.get_or_insert_with(|| Instant::now() + CLOSE_LIMIT);
    }

    pub fn close_by(&self) -> Option<Instant> {
        self.fate().close_by
    }
}

/// The words of a socket error, for the operator.
pub fn words(error: &tungstenite::Error) -> String {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => "closed".into(),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => "the engine dropped the connection".into(),
        Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The socket takes or gives nothing at the moment.
pub fn is_would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}
