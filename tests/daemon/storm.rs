//! What the tests of [`crate::hardness`] stand on: a broker that is compared with itself before a storm, and raw peers.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use tungstenite::WebSocket;
use tungstenite::client::IntoClientRequest;

use crate::broker::{Broker, KEY, Start};
use crate::client::{connect, read_answer};
use crate::engine::Engine;
use crate::house::House;
use crate::until::{LONG, look};

/// For a call that is served while others misbehave; far above what it takes, far below any deadline of the listener.
pub const SOON: Duration = Duration::from_secs(5);

/// Connections to the engine that the broker may have besides those it had before.
pub const ENGINE_CALLS: usize = 4;

pub type Socket = WebSocket<TcpStream>;

/// A broker, and what it had before the storm.
pub struct Rig {
    pub broker: Broker,
    _engine: Engine,
    threads: usize,
    descriptors: usize,
}

pub fn entries(broker: &Broker, of: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{}/{of}", broker.process.pid())) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

pub fn thread_names(broker: &Broker) -> Vec<String> {
    let name = |id: &String| std::fs::read_to_string(format!("/proc/{}/task/{id}/comm", broker.process.pid())).ok();
    entries(broker, "task").iter().filter_map(name).map(|name| name.trim().to_string()).collect()
}

/// Resident memory in KiB.
pub fn resident(broker: &Broker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.process.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Rig {
    pub fn new() -> Rig {
        Rig::started(|start| start)
    }

    pub fn started(change: impl FnOnce(Start) -> Start) -> Rig {
        let house = House::new();
        let engine = Engine::start(&house);
        let broker = change(Start::on(&house, &engine)).online();
        // Its connections to the engine are there from now on.
        broker.spawn("first");
        broker.ok("DELETE", "/api/spawned/first", None);
        let mut rig = Rig { broker, _engine: engine, threads: 0, descriptors: 0 };
        rig.remember();
        rig
    }

    /// What is there now is what has to be there after the storm.
    pub fn remember(&mut self) {
        // The acceptor and the event feed: whoever asked before has gone.
        self.broker.until("the end of earlier connections", || {
            (thread_names(&self.broker).iter().filter(|name| name.starts_with("http-")).count() == 2).then_some(())
        });
        (self.threads, self.descriptors) = self.now();
    }

    /// Threads and descriptors. Those for calls to the engine come and go by themselves: the threads are not counted.
    pub fn now(&self) -> (usize, usize) {
        let threads = thread_names(&self.broker).iter().filter(|name| !name.starts_with("engine-")).count();
        (threads, entries(&self.broker, "fd").len())
    }

    pub fn address(&self) -> &str {
        &self.broker.address
    }

    pub fn talk(&self) -> BufReader<TcpStream> {
        BufReader::new(connect(self.address()).expect("a connection"))
    }

    /// Health is asked for on a connection of its own, and comes soon.
    #[track_caller]
    pub fn healthy(&self) {
        let asked = Instant::now();
        let health = self.broker.ok("GET", "/health", None);
        assert_eq!((&health["status"], &health["nodeConnected"]), (&json!("ok"), &json!(true)), "{health}");
        assert!(asked.elapsed() < SOON, "/health took {:?}", asked.elapsed());
    }

    #[track_caller]
    pub fn as_before(&mut self) {
        self.healthy();
        assert!(self.broker.process.ended().is_none(), "{}", self.broker.seen());
        let calm = look(LONG, || {
            let now = self.now();
            (now.0 <= self.threads && now.1 <= self.descriptors + ENGINE_CALLS).then_some(())
        });
        let descriptors = entries(&self.broker, "fd").len();
        assert!(
            calm.is_some(),
            "{} threads and {} descriptors before; now {descriptors} descriptors and {:?}\n{}",
            self.threads,
            self.descriptors,
            thread_names(&self.broker),
            self.broker.seen()
        );
    }

    /// Opens a WebSocket.
    pub fn socket(&self, path: &str) -> Socket {
        let mut request = format!("ws://{}{path}", self.address()).into_client_request().expect("a request");
        request.headers_mut().insert("X-API-Key", KEY.parse().expect("a value"));
        tungstenite::client(request, connect(self.address()).expect("a connection")).expect("an upgrade").0
    }
}

/// A head with key and Host; `rest` is its further lines, each with its end.
pub fn head(line: &str, rest: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n{rest}\r\n")
}

pub fn upgrade(path: &str, version: &str) -> String {
    let lines = format!(
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: {version}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    head(&format!("GET {path}"), &lines)
}

/// Says what may meet a socket that is closed already.
pub fn say(peer: &mut BufReader<TcpStream>, bytes: impl AsRef<[u8]>) -> bool {
    peer.get_mut().write_all(bytes.as_ref()).is_ok()
}

#[track_caller]
pub fn status(peer: &mut BufReader<TcpStream>, what: &str) -> u16 {
    match read_answer(peer) {
        Ok(answer) => answer.status,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// The broker has closed, in order or by a reset; nothing more came.
#[track_caller]
pub fn closed(peer: &mut BufReader<TcpStream>, what: &str) {
    let mut rest = Vec::new();
    match peer.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.is_empty(), "{what}: {}", rest.escape_ascii()),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}: {error}"),
    }
}

/// Whether something has come, or the other side has closed; without waiting.
pub fn stirred(peer: &BufReader<TcpStream>) -> bool {
    let stream = peer.get_ref();
    stream.set_nonblocking(true).expect("open");
    let stirred = !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).expect("open");
    stirred
}
