//! A listener for HTTP/1.1 and WebSockets that knows no routes: one named thread per connection, limits and deadlines on
//! everything a peer controls.
//!
//! It is ours, and not the server of `tiny_http`, because that server can be ended by one unauthenticated request and
//! starves bursts of keep-alive connections; `tiny_http` renders the answers, `httparse` reads the heads.
//!
//! Threads: `<prefix>accept` polls the listener and the stop signal; `<prefix>N` owns one connection from its first byte
//! to its end, and becomes the pump of the WebSocket after an upgrade. All of them end in [`Server::stop`].
//!
//! Invariants: no read or write without a deadline; nothing is allocated because a peer announced it; a refusal is
//! answered before the socket closes; no accept error ends the listener; an idle server makes no wake-ups except for
//! WebSocket pings.

mod body;
mod connection;
mod head;
pub mod intake;
mod message;
mod outbox;
mod server;
#[cfg(test)]
mod tests;
mod websocket;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use message::{Request, Response, encode_segment, percent_decode};
pub use outbox::{Full, Outbox};
pub use server::{Bound, Server};
pub use websocket::Waker;

/// What a peer may cost. The defaults are those of the local API.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest request head, line and headers together; longer: 431.
    pub head_bytes: usize,
    /// Most header lines; more: 431.
    pub max_headers: usize,
    /// Longest body whatever the handler allows; longer: 413 before it is read.
    pub body_bytes: usize,
    /// Most connections at a time; one more is answered 503 and closed.
    pub connections: usize,
    /// From the first byte of a head to its end; later: 408. A fresh connection has as long to send its first byte.
    pub head_deadline: Duration,
    /// Silence between two requests of a kept-alive connection; then it is closed without a word.
    pub idle_deadline: Duration,
    /// From the end of the head to the end of the body; later: 408.
    pub body_deadline: Duration,
    /// For the whole of an answer to be taken by the peer; then the connection is cut.
    pub write_deadline: Duration,
    /// Longest inbound WebSocket message; longer: Close 1009.
    pub ws_message_bytes: usize,
    /// Longest outbound WebSocket message; longer: Close 1011.
    pub ws_out_bytes: usize,
    /// A Ping at once and then one per interval; two that nothing answers cut the connection. `None`: no pings.
    pub ws_ping: Option<Duration>,
    /// A peer that takes no byte of what waits for it for so long is cut.
    pub ws_stall: Duration,
    /// For the peer to answer our Close, or for our answer to its Close to leave.
    pub ws_close: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes: 16 << 10,
            max_headers: 64,
            body_bytes: 10 << 20,
            connections: 256,
            head_deadline: Duration::from_secs(10),
            idle_deadline: Duration::from_secs(75),
            body_deadline: Duration::from_secs(30),
            write_deadline: Duration::from_secs(30),
            ws_message_bytes: 1 << 20,
            ws_out_bytes: 17 << 20,
            ws_ping: Some(Duration::from_secs(30)),
            ws_stall: Duration::from_secs(30),
            ws_close: Duration::from_secs(2),
        }
    }
}

/// What a handler makes of a request.
pub enum Reply {
    Response(Response),
    /// The answer, and what to do once it is written (or has failed to be).
    Then(Response, Box<dyn FnOnce() + Send>),
    /// Upgrade. A request that does not ask for one properly is answered 400 or 426 and the session is dropped unopened.
    WebSocket(Box<dyn Session>),
    /// These bytes as they are, then cut. This one and the following serve fault injection.
    Raw(Vec<u8>),
    /// Close without an answer.
    Cut,
    /// Hold the socket silent at most so long (it ends with the server or with the peer), then cut.
    Silence(Duration),
}

/// Answers requests. Called on connection threads, many at a time.
pub trait Handler: Send + Sync + 'static {
    /// After the head, before the body: refuse early. A refused request with a body closes its connection.
    fn precheck(&self, head: &Request) -> Option<Response> {
        let _ = head;
        None
    }

    /// The longest body this request may have; [`Limits::body_bytes`] caps it.
    fn body_limit(&self, head: &Request) -> usize;

    /// The answer. May block; the handler bounds it. A panic is answered 500.
    fn handle(&self, request: Request) -> Reply;
}

/// One WebSocket. All methods run on the thread of its connection.
pub trait Session: Send {
    /// The 101 is written. `waker` makes the pump call [`Session::next`] and [`Session::wants_input`] again.
    fn opened(&mut self, waker: Waker);

    fn text(&mut self, text: String);

    fn binary(&mut self, bytes: Vec<u8>);

    /// Pulled while the socket takes bytes.
    fn next(&mut self) -> Outgoing;

    /// The last call, whoever ended the connection and however. Not called on a session that was never opened.
    fn closed(&mut self);

    /// `true`: end the connection without a Close frame, now, even while the socket takes nothing and [`Session::next`] is
    /// not asked. Looked at whenever the waker is used.
    fn is_cut(&self) -> bool {
        false
    }

    /// `false`: leave what the peer sends in the socket for now. Pings and Close frames wait with it.
    fn wants_input(&self) -> bool {
        true
    }
}

/// What a session gives the pump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// One text message.
    Message(Arc<str>),
    /// A Close frame; code 1005 sends an empty one. Nothing is pulled after it.
    Close { code: u16, reason: String },
    /// End the connection without a Close frame.
    Cut,
    /// Nothing until the waker is used.
    Nothing,
    /// Nothing until the waker is used or that time has come.
    Wait(Instant),
}
