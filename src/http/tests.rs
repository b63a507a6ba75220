//! The listener over real sockets on loopback: what peers may do wrong, and what must go right meanwhile.

mod hostile;
mod polite;
mod websockets;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

/// For everything that must happen soon on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A handler with one route per behaviour.
struct Demo {
    sessions: Arc<websockets::Log>,
}

impl Handler for Demo {
    fn precheck(&self, head: &Request) -> Option<Response> {
        (head.path == "/forbidden").then(|| Response::text(403, "no"))
    }

    fn body_limit(&self, _head: &Request) -> usize {
        1 << 20
    }

    fn handle(&self, request: Request) -> Reply {
        match request.path.as_str() {
            "/echo" => Reply::Response(Response { status: 200, body: request.body, ..Response::default() }),
            "/ws" => Reply::WebSocket(Box::new(websockets::Echo::new(self.sessions.clone()))),
            "/panic" => panic!("on purpose"),
            "/raw" => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_vec()),
            "/cut" => Reply::Cut,
            "/silent" => Reply::Silence(Duration::from_secs(60)),
            "/big" => Reply::Response(Response::text(200, &"x".repeat(8 << 20))),
            path => Reply::Response(Response::json(200, &json!({"path": path, "query": request.query}))),
        }
    }
}

struct Rig {
    server: Server,
    log: Arc<websockets::Log>,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Limits)) -> Rig {
        let mut limits = Limits::default();
        change(&mut limits);
        let log = Arc::new(websockets::Log::default());
        let bound = Server::bind("127.0.0.1", 0).expect("a port");
        let handler = Arc::new(Demo { sessions: log.clone() });
        Rig { server: bound.serve(limits, handler, "http-").expect("a thread"), log }
    }

    fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address()).expect("a connection"))
    }

    /// The server still answers an ordinary request.
    fn assert_alive(&self) {
        let mut peer = self.connect();
        peer.send("GET /alive HTTP/1.1\r\n\r\n");
        assert_eq!(peer.answer().status, 200);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.stop(Duration::from_secs(2));
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

/// A raw client.
struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time-out");
        Peer { stream, buffer: Vec::new() }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("the server takes it");
    }

    /// Sends what may meet a closed socket.
    fn try_send(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).is_ok()
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0u8; 4096];
        let count = self.stream.read(&mut chunk).expect("the server sends or closes");
        self.buffer.extend_from_slice(&chunk[..count]);
        count > 0
    }

    fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    fn answer_to(&mut self, method: &str) -> Answer {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill(), "closed within a head: {:?}", String::from_utf8_lossy(&self.buffer));
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("an ASCII head");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length: ").map(|n| n.parse().expect(line))
        });
        let length: usize = if method == "HEAD" { 0 } else { length.unwrap_or(0) };
        while self.buffer.len() < length {
            assert!(self.fill(), "closed within a body");
        }
        Answer { status, head, body: self.buffer.drain(..length).collect() }
    }

    /// Waits for the server's close; panics if it sends something else first.
    fn assert_closed(&mut self) {
        let mut chunk = [0u8; 64];
        match self.stream.read(&mut chunk) {
            Ok(0) => {}
            Ok(count) => panic!("unexpected bytes: {:?}", String::from_utf8_lossy(&chunk[..count])),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("open");
    }
}

/// Waits until `check` holds.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}
