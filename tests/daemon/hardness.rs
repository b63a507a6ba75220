//! The local API under peers that are broken, mean or many. Each storm has to leave the broker as it was: alive, healthy,
//! with the threads and descriptors that it had before. What single connections must do is tested beside the listener
//! (`src/http/tests`); here it is the whole process.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Resource;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use crate::broker::{Broker, KEY, Start};
use crate::client::{connect, read_answer};
use crate::engine::Engine;
use crate::house::House;
use crate::shortages::limit;
use crate::until::{LONG, look};

/// For a call that is served while others misbehave; far above what it takes, far below any deadline of the listener.
const SOON: Duration = Duration::from_secs(5);

/// Connections to the engine that the broker may have besides those it had before.
const ENGINE_CALLS: usize = 4;

type Socket = WebSocket<TcpStream>;

/// A broker, and what it had before the storm.
struct Rig {
    broker: Broker,
    _engine: Engine,
    threads: usize,
    descriptors: usize,
}

fn entries(broker: &Broker, of: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{}/{of}", broker.process.pid())) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn thread_names(broker: &Broker) -> Vec<String> {
    let name = |id: &String| std::fs::read_to_string(format!("/proc/{}/task/{id}/comm", broker.process.pid())).ok();
    entries(broker, "task").iter().filter_map(name).map(|name| name.trim().to_string()).collect()
}

/// Resident memory in KiB.
fn resident(broker: &Broker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.process.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Rig {
    fn new() -> Rig {
        Rig::started(|start| start)
    }

    fn started(change: impl FnOnce(Start) -> Start) -> Rig {
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
    fn remember(&mut self) {
        // The acceptor and the event feed: whoever asked before has gone.
        self.broker.until("the end of earlier connections", || {
            (thread_names(&self.broker).iter().filter(|name| name.starts_with("http-")).count() == 2).then_some(())
        });
        (self.threads, self.descriptors) = self.now();
    }

    /// Threads and descriptors. Those for calls to the engine come and go by themselves: the threads are not counted.
    fn now(&self) -> (usize, usize) {
        let threads = thread_names(&self.broker).iter().filter(|name| !name.starts_with("engine-")).count();
        (threads, entries(&self.broker, "fd").len())
    }

    fn address(&self) -> &str {
        &self.broker.address
    }

    fn talk(&self) -> BufReader<TcpStream> {
        BufReader::new(connect(self.address()).expect("a connection"))
    }

    /// Health is asked for on a connection of its own, and comes soon.
    #[track_caller]
    fn healthy(&self) {
        let asked = Instant::now();
        let health = self.broker.ok("GET", "/health", None);
        assert_eq!((&health["status"], &health["nodeConnected"]), (&json!("ok"), &json!(true)), "{health}");
        assert!(asked.elapsed() < SOON, "/health took {:?}", asked.elapsed());
    }

    #[track_caller]
    fn as_before(&mut self) {
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
    fn socket(&self, path: &str) -> Socket {
        let mut request = format!("ws://{}{path}", self.address()).into_client_request().expect("a request");
        request.headers_mut().insert("X-API-Key", KEY.parse().expect("a value"));
        tungstenite::client(request, connect(self.address()).expect("a connection")).expect("an upgrade").0
    }
}

/// A head with key and Host; `rest` is its further lines, each with its end.
fn head(line: &str, rest: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n{rest}\r\n")
}

fn upgrade(path: &str, version: &str) -> String {
    let lines = format!(
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: {version}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    head(&format!("GET {path}"), &lines)
}

/// Says what may meet a socket that is closed already.
fn say(peer: &mut BufReader<TcpStream>, bytes: impl AsRef<[u8]>) -> bool {
    peer.get_mut().write_all(bytes.as_ref()).is_ok()
}

#[track_caller]
fn status(peer: &mut BufReader<TcpStream>, what: &str) -> u16 {
    match read_answer(peer) {
        Ok(answer) => answer.status,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// The broker has closed, in order or by a reset; nothing more came.
#[track_caller]
fn closed(peer: &mut BufReader<TcpStream>, what: &str) {
    let mut rest = Vec::new();
    match peer.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.is_empty(), "{what}: {}", rest.escape_ascii()),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}: {error}"),
    }
}

/// Whether something has come, or the other side has closed; without waiting.
fn stirred(peer: &BufReader<TcpStream>) -> bool {
    let stream = peer.get_ref();
    stream.set_nonblocking(true).expect("open");
    let stirred = !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).expect("open");
    stirred
}

#[test]
fn requests_that_kill_other_servers_are_answered_on_every_kind_of_route() {
    let mut rig = Rig::new();
    let json = "Content-Type: application/json\r\n";
    let keyless = |line: &str, rest: &str| format!("{line} HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n");
    let huge = ["Content-Length: 10000000000000\r\n", "Content-Length: 9000000000000000000\r\n"];
    let mut table = Vec::new();
    for length in huge {
        table.push((keyless("POST /api/send", length), 401));
        table.push((keyless("POST /nowhere", length), 401));
        table.push((head("POST /nowhere", length), 404));
        table.push((head("PUT /api/send", length), 405));
        table.push((head("POST /api/send", &format!("{json}{length}")), 413));
        table.push((head("DELETE /api/spawned/nobody", length), 413));
        table.push((keyless("POST /api/agent-result", &format!("{json}{length}")), 413));
        table.push((keyless("GET /health", length), 413));
    }
    for (rest, status) in [
        ("Content-Length: 99999999999999999999999999\r\n", 413),
        ("Content-Length: abc\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: gzip\r\n", 501),
        ("Expect: miracles\r\n", 417),
    ] {
        table.push((head("POST /api/send", &format!("{json}{rest}")), status));
        // Before it is asked who it is: a stream that cannot be taken apart has no next request.
        table.push((keyless("POST /api/send", rest), status));
    }
    let chunked = head("POST /api/send", &format!("{json}Transfer-Encoding: chunked\r\n"));
    table.push((format!("{chunked}ffffffffffffffff\r\n"), 413));
    table.push((format!("{chunked}nonsense\r\n"), 400));
    for (request, expected) in &table {
        let mut peer = rig.talk();
        say(&mut peer, request);
        assert_eq!(status(&mut peer, request), *expected, "{request}");
        closed(&mut peer, request);
    }
    // Bytes beyond ASCII in a header are no reason to hang up.
    let mut peer = rig.talk();
    say(
        &mut peer,
        [keyless("GET /health", "").trim_end().as_bytes(), b"\r\nX-Name: caf\xe9 \xc3\xa9\r\n\r\n"].concat(),
    );
    assert_eq!(status(&mut peer, "a header that is not ASCII"), 200);
    drop(peer);
    rig.as_before();
}

#[test]
fn a_head_has_a_measure_and_trailers_have_one_too() {
    let mut rig = Rig::new();
    let mut peer = rig.talk();
    say(&mut peer, head("GET /health", &format!("X: {}\r\n", "x".repeat(64 << 10))));
    assert_eq!(status(&mut peer, "64 KiB in one header"), 431);
    let mut peer = rig.talk();
    say(&mut peer, head("GET /health", &"A: b\r\n".repeat(100)));
    assert_eq!(status(&mut peer, "a hundred headers"), 431);
    // A header without an end.
    let mut peer = rig.talk();
    say(&mut peer, "GET /health HTTP/1.1\r\nX: ");
    let mut sent = 0;
    while !stirred(&peer) && say(&mut peer, "y".repeat(1024)) {
        sent += 1;
        assert!(sent < 100_000, "it takes a header of {sent} KiB");
    }
    assert_eq!(status(&mut peer, "an endless header"), 431);
    // Trailers without an end.
    let mut peer = rig.talk();
    let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    say(&mut peer, head("POST /api/send", chunked) + "2\r\n{}\r\n0\r\n");
    while !stirred(&peer) && say(&mut peer, "T: t\r\n") {}
    assert_eq!(status(&mut peer, "endless trailers"), 400);
    drop(peer);
    rig.as_before();
}

#[test]
fn what_is_rare_but_right_is_served() {
    let mut rig = Rig::new();
    let broker = &rig.broker;
    broker.spawn("ann");
    let json = "Content-Type: application/json\r\n";
    let mut peer = rig.talk();
    // Pipelined, and answered in order.
    let many: String = (0..20).map(|_| head("GET /api/session", "") + &head("GET /nowhere", "")).collect();
    say(&mut peer, many);
    for n in 0..20 {
        assert_eq!((status(&mut peer, "pipelined"), status(&mut peer, "pipelined")), (200, 404), "{n}");
    }
    // On the same connection: chunks with extensions and trailers, and the next request behind them in one piece.
    let body = r#"{"to":"ann","message":"in chunks"}"#;
    let (first, rest) = body.split_at(7);
    let chunks =
        format!("7;a=\"b;c\"\r\n{first}\r\n{:X} ;d\r\n{rest}\r\n0;last\r\nDigest: z\r\nX: y\r\n\r\n", rest.len());
    let chunked = head("POST /api/send", &format!("{json}Transfer-Encoding: chunked\r\n"));
    say(&mut peer, chunked + &chunks + &head("GET /api/session", ""));
    assert_eq!((status(&mut peer, "chunked"), status(&mut peer, "after chunks")), (200, 200));
    broker.until_read("ann", "in chunks");
    // The broker asks for the body before it comes.
    let body = r#"{"to":"ann","message":"on request"}"#;
    let expecting = format!("{json}Expect: 100-continue\r\nContent-Length: {}\r\n", body.len());
    say(&mut peer, head("POST /api/send", &expecting));
    assert_eq!(status(&mut peer, "an expectation"), 100);
    say(&mut peer, body);
    assert_eq!(status(&mut peer, "an expected body"), 200);
    broker.until_read("ann", "on request");
    // And does not ask for one that it will refuse.
    let mut other = rig.talk();
    say(&mut other, head("POST /nowhere", "Expect: 100-continue\r\nContent-Length: 5\r\n"));
    assert_eq!(status(&mut other, "a refused body"), 404);
    // A version of WebSockets that nobody speaks.
    let mut other = rig.talk();
    say(&mut other, upgrade("/ws", "12"));
    assert_eq!(status(&mut other, "version 12"), 426);
    say(&mut peer, head("GET /api/input/ann/stream", ""));
    assert_eq!(status(&mut peer, "no upgrade"), 426);
    // The right one, on the connection of all the above; the first frame, masked with zeros, comes with the head.
    let mut bytes = upgrade("/api/input/ann/stream", "13").into_bytes();
    bytes.extend_from_slice(&[0x81, 0x86, 0, 0, 0, 0]);
    bytes.extend_from_slice(b"typed\r");
    say(&mut peer, bytes);
    let switched = crate::wire::read_head(&mut peer).expect("an answer").expect("an answer");
    assert!(switched.start.starts_with("HTTP/1.1 101 "), "{}", switched.start);
    assert_eq!(switched.field("sec-websocket-accept"), Some(&*derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==")));
    let left = peer.buffer().to_vec();
    let mut socket = WebSocket::from_partially_read(peer.into_inner(), left, Role::Client, None);
    let mut said = Vec::new();
    while said.len() < 2 {
        if let Message::Text(text) = socket.read().expect("a frame") {
            said.push(serde_json::from_str::<Value>(&text).expect("JSON"));
        }
    }
    assert_eq!(said[0], json!({"type": "pty_input_ready", "name": "ann"}));
    assert_eq!(said[1], json!({"type": "pty_input_ack", "name": "ann", "bytes_written": 6}));
    broker.until_read("ann", "typed");
    drop((socket, other));
    broker.ok("DELETE", "/api/spawned/ann", None);
    rig.as_before();
}

#[test]
fn forty_kept_connections_at_once_are_all_answered() {
    let mut rig = Rig::new();
    let mut peers: Vec<_> = (0..40).map(|_| rig.talk()).collect();
    for round in 0..3 {
        for peer in &mut peers {
            assert!(say(peer, head("GET /health", "") + &head("GET /api/spawned", "")));
        }
        for peer in &mut peers {
            assert_eq!((status(peer, "health"), status(peer, "spawned")), (200, 200), "round {round}");
        }
    }
    drop(peers);
    rig.as_before();
}

#[test]
fn connections_that_are_reset_leave_nothing() {
    let mut rig = Rig::new();
    let requests = [
        String::new(),
        head("GET /api/status", ""),
        head("POST /api/send", "Content-Type: application/json\r\nContent-Length: 50\r\n") + "{\"to\"",
        "GET /hea".into(),
        upgrade("/ws", "13"),
    ];
    for n in 0..500 {
        let mut peer = rig.talk();
        say(&mut peer, &requests[n % requests.len()]);
        // Closing with a linger time of zero sends a reset.
        rustix::net::sockopt::set_socket_linger(peer.get_ref(), Some(Duration::ZERO)).expect("an option");
    }
    rig.as_before();
}

#[test]
fn with_64_descriptors_the_port_is_deaf_for_a_while_and_hears_again() {
    let mut rig = Rig::new();
    let mut kept = rig.talk();
    say(&mut kept, head("GET /health", ""));
    assert_eq!(status(&mut kept, "before"), 200);
    limit(&rig.broker, Resource::Nofile, Some(64));
    // They wait in the kernel's queue, at most.
    let crowd: Vec<_> = (0..100)
        .filter_map(|_| {
            let mut peer = BufReader::new(connect(rig.address()).ok()?);
            say(&mut peer, head("GET /health", "")).then_some(peer)
        })
        .collect();
    rig.broker.until("a full table of descriptors", || (entries(&rig.broker, "fd").len() >= 60).then_some(()));
    rig.broker.process.says("no connection can be accepted", LONG);
    // Who has a connection is served.
    for _ in 0..20 {
        say(&mut kept, head("GET /api/status", ""));
        assert_eq!(status(&mut kept, "meanwhile"), 200);
    }
    drop((crowd, kept));
    // The limit stays where it is.
    rig.broker.until("an answer to a new connection", || rig.broker.try_call("GET", "/health", None));
    rig.as_before();
    let said = rig.broker.process.err().matches("no connection can be accepted").count();
    assert!(said <= 20, "one episode, told {said} times");
}

#[test]
fn a_hundred_half_heads_hinder_nobody_and_end_at_their_deadline() {
    let mut rig = Rig::new();
    let begun = Instant::now();
    let mut slow: Vec<_> = (0..100).map(|_| rig.talk()).collect();
    slow.iter_mut().for_each(|peer| assert!(say(peer, "GET /health HTTP/1.1\r\nX: ")));
    let mut first = None;
    while !slow.is_empty() {
        // A drip moves no deadline.
        slow.retain_mut(|peer| {
            if !stirred(peer) {
                say(peer, "x");
                return true;
            }
            first.get_or_insert(begun.elapsed());
            assert_eq!(status(peer, "a slow head"), 408);
            closed(peer, "a slow head");
            false
        });
        rig.healthy();
        let spawned = Instant::now();
        rig.broker.listed();
        assert!(spawned.elapsed() < SOON, "/api/spawned took {:?}", spawned.elapsed());
        assert!(begun.elapsed() < 2 * LONG, "{} heads are still open", slow.len());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(first.is_some_and(|after| after > Duration::from_secs(9)), "ended too early: {first:?}");
    rig.as_before();
}

/// The durable events that a feed gives up to number `last`.
fn durable(socket: &mut Socket, last: u64) -> Vec<Value> {
    let mut seen = Vec::new();
    loop {
        let Message::Text(text) = socket.read().expect("the feed goes on") else { continue };
        let event: Value = serde_json::from_str(&text).expect("JSON");
        if let Some(seq) = event["seq"].as_u64() {
            seen.push(event);
            if seq >= last {
                return seen;
            }
        }
    }
}

#[test]
fn two_hundred_viewers_all_see_every_durable_event() {
    let mut rig = Rig::new();
    let mut sockets: Vec<Socket> = (0..200).map(|_| rig.socket("/ws?sinceSeq=0")).collect();
    let broker = &rig.broker;
    assert_eq!(broker.ok("GET", "/health", None)["wsConnections"], 201);
    broker.spawn("ann");
    for n in 0..30 {
        let mode = ["manual_flush", "auto_inject"][n % 2];
        broker.ok("PUT", "/api/spawned/ann/delivery-mode", Some(&json!({"mode": mode})));
    }
    broker.ok("POST", "/api/send", Some(&json!({"to": "ann", "message": "to be seen by all"})));
    broker.until_read("ann", "to be seen by all");
    broker.ok("DELETE", "/api/spawned/ann", None);
    broker.until_told("agent_released", "ann");
    let replay = broker.ok("GET", "/api/events/replay?sinceSeq=0", None);
    let (events, last) =
        (replay["events"].as_array().expect("events"), replay["currentSeq"].as_u64().expect("a number"));
    assert!(last > 34 && events.len() as u64 == last, "{last} events, {} kept", events.len());
    for (n, socket) in sockets.iter_mut().enumerate() {
        assert_eq!(durable(socket, last), events[..], "viewer {n}");
    }
    drop(sockets);
    rig.as_before();
}

#[test]
fn frames_against_the_rules_close_with_their_code_and_harm_no_other_viewer() {
    let mut rig = Rig::new();
    let mut witness = rig.socket("/ws?sinceSeq=0");
    let mask = [0, 0, 0, 0];
    let frame = |first: u8, payload: &[u8]| [&[first, 0x80 | payload.len() as u8][..], &mask, payload].concat();
    let megabyte_and_more: u64 = (1 << 20) + 1;
    let table: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a frame beyond the limit", [&[0x82, 0xff][..], &megabyte_and_more.to_be_bytes(), &mask].concat(), 1009),
        ("a frame of 8 EiB", [&[0x82, 0xff, 0x7f][..], &[0xff; 7], &mask].concat(), 1009),
        ("no mask", b"\x81\x02hi".to_vec(), 1002),
        ("a reserved bit", frame(0xc1, b"hi"), 1002),
        ("a reserved opcode", frame(0x83, b"hi"), 1002),
        ("text that is not UTF-8", frame(0x81, b"\xc3\x28"), 1007),
        ("a ping in fragments", frame(0x09, b"hi"), 1002),
        ("a new text within a text", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
        ("a continuation of nothing", frame(0x80, b"a"), 1002),
    ];
    for path in ["/ws", "/api/fleet/ws"] {
        for (what, bytes, expected) in &table {
            let mut socket = rig.socket(path);
            socket.get_mut().write_all(bytes).expect("open");
            let code = loop {
                match socket.read() {
                    Ok(Message::Close(close)) => break close.map(|close| u16::from(close.code)),
                    Ok(_) => {}
                    Err(error) => panic!("{what} on {path}: {error}"),
                }
            };
            assert_eq!(code, Some(*expected), "{what} on {path}");
        }
    }
    rig.broker.spawn("ann");
    rig.broker.ok("DELETE", "/api/spawned/ann", None);
    let last = rig.broker.ok("GET", "/api/events/replay", None)["currentSeq"].as_u64().expect("a number");
    assert_eq!(durable(&mut witness, last).len() as u64, last);
    drop(witness);
    rig.as_before();
}

/// Prints a block of its terminal's output for each line that it is given.
const PRINTER: &str = r#"#!/bin/sh
stty -echo
echo '->pty:ready'
while IFS= read -r line; do cat "$DAEMON_TEST_HOUSE/block"; done
"#;

#[test]
fn l22_a_viewer_that_never_reads_costs_its_queue_and_nothing_else() {
    const BLOCK: usize = 256 << 10;
    const BLOCKS: usize = 96;
    let mut rig = Rig::new();
    let house = &rig.broker.house;
    // No line ends: a terminal would make two bytes of each.
    std::fs::write(house.path("block"), "0123456789abcdef".repeat(BLOCK / 16)).unwrap();
    std::fs::write(house.path("printer.sh"), PRINTER).unwrap();
    let command = format!("sh {}", house.path("printer.sh").display());
    let (mut reader, mute) = (rig.socket("/ws"), rig.socket("/ws"));
    rustix::net::sockopt::set_socket_recv_buffer_size(mute.get_ref(), 4096).expect("an option");
    rig.broker.spawn_program("printer", &command);
    let mut printed = 0;
    let mut block = |rig: &Rig, reader: &mut Socket| {
        let asked = Instant::now();
        rig.broker.ok("POST", "/api/input/printer", Some(&json!({"data": "go\n"})));
        let goal = printed + BLOCK as u64;
        while printed < goal {
            let Message::Text(text) = reader.read().expect("the feed goes on") else { continue };
            let event: Value = serde_json::from_str(&text).expect("JSON");
            if event["kind"] != "worker_stream" {
                continue;
            }
            let chunk = event["chunk"].as_str().expect("text");
            let digits = chunk.bytes().filter(u8::is_ascii_hexdigit).count() as u64;
            // Its greeting and the setting of the terminal are no part of any block.
            printed += if chunk.contains("ready") { 0 } else { digits };
        }
        asked.elapsed()
    };
    // What one block needs is there from now on.
    rig.broker.until("the printer", || (!rig.broker.told("worker_ready", "printer").is_empty()).then_some(()));
    block(&rig, &mut reader);
    let before = resident(&rig.broker);
    let mut most = 0;
    for _ in 0..BLOCKS {
        block(&rig, &mut reader);
        most = most.max(resident(&rig.broker));
    }
    // Its queue holds 4 MiB; the blocks are six times that.
    assert!(most < before + (12 << 10), "resident memory grew from {before} to {most} KiB");
    assert_eq!(printed, ((BLOCKS + 1) * BLOCK) as u64, "the other viewer saw everything, once");
    drop((reader, mute));
    rig.broker.ok("DELETE", "/api/spawned/printer", None);
    rig.as_before();
}

#[test]
fn a_loopback_port_answers_to_its_own_names_only() {
    let asked = |broker: &Broker, host: &str| {
        let mut peer = BufReader::new(connect(&broker.address).expect("a connection"));
        say(&mut peer, format!("GET /api/session HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {KEY}\r\n\r\n"));
        let with_key = status(&mut peer, host);
        let mut peer = BufReader::new(connect(&broker.address).expect("a connection"));
        let line = upgrade("/ws", "13").replace("Host: localhost", &format!("Host: {host}"));
        say(&mut peer, line);
        (with_key, status(&mut peer, host))
    };
    let (served, refused) = ((200, 101), (403, 403));
    let ours = ["localhost", "localhost:1", "127.0.0.1:3889", "127.8.8.8", "[::1]", "[::1]:3889", "LocalHost."];
    let foreign = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "10.1.2.3"];
    let foreign = foreign.into_iter().chain(["[::2]:80", "[2001:db8::1]", "0.0.0.0", "[::]"]);
    let mut rig = Rig::started(|start| start.arg("--api-host").arg("dev.box").arg("--api-host").arg("Second.Box"));
    for host in ours.into_iter().chain(["dev.box", "DEV.BOX:7", "second.box"]) {
        assert_eq!(asked(&rig.broker, host), served, "{host}");
    }
    for host in foreign.clone().chain(["box", "dev.box.evil.example"]) {
        assert_eq!(asked(&rig.broker, host), refused, "{host}");
    }
    rig.as_before();
    // Who binds to more than loopback means to be reached by names that nobody here knows.
    let open = Rig::started(|start| start.arg("--api-bind").arg("0.0.0.0"));
    for host in ours.into_iter().chain(foreign.clone()) {
        assert_eq!(asked(&open.broker, host), served, "{host}");
    }
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let six = Rig::started(|start| start.arg("--api-bind").arg("::1"));
    assert!(six.address().starts_with("[::1]:"), "{}", six.address());
    for host in ours {
        assert_eq!(asked(&six.broker, host), served, "{host}");
    }
    for host in foreign {
        assert_eq!(asked(&six.broker, host), refused, "{host}");
    }
}
