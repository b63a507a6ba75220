//! WebSockets through the pump.

use std::sync::Mutex;

use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Error, Message, WebSocket};

use super::*;

/// What the sessions of a rig saw, and the outbox of the last one.
#[derive(Default)]
pub struct Log {
    pub lines: Mutex<Vec<String>>,
    pub outbox: Mutex<Option<Outbox>>,
    /// Sessions read their input only while this is false.
    pub deaf: std::sync::atomic::AtomicBool,
    pub waker: Mutex<Option<Waker>>,
}

impl Log {
    fn add(&self, line: impl Into<String>) {
        self.lines.lock().unwrap().push(line.into());
    }

    fn has(&self, line: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|seen| seen == line)
    }

    pub fn outbox(&self) -> Outbox {
        self.outbox.lock().unwrap().clone().expect("a session")
    }

    fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, std::sync::atomic::Ordering::SeqCst);
        if let Some(waker) = &*self.waker.lock().unwrap() {
            waker.wake();
        }
    }
}

/// Says everything back.
pub struct Echo {
    log: Arc<Log>,
    outbox: Outbox,
}

impl Echo {
    pub fn new(log: Arc<Log>) -> Echo {
        let outbox = Outbox::new(1000, 64 << 20);
        *log.outbox.lock().unwrap() = Some(outbox.clone());
        Echo { log, outbox }
    }
}

impl Session for Echo {
    fn opened(&mut self, waker: Waker) {
        *self.log.waker.lock().unwrap() = Some(waker.clone());
        self.outbox.opened(waker);
        self.log.add("opened");
    }

    fn text(&mut self, text: String) {
        let _ = self.outbox.push(text);
    }

    fn binary(&mut self, bytes: Vec<u8>) {
        let _ = self.outbox.push(format!("{} bytes", bytes.len()));
    }

    fn next(&mut self) -> Outgoing {
        self.outbox.next()
    }

    fn closed(&mut self) {
        self.outbox.closed();
        self.log.add("closed");
    }

    fn wants_input(&self) -> bool {
        !self.log.deaf.load(std::sync::atomic::Ordering::SeqCst)
    }
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

type Client = WebSocket<TcpStream>;

pub fn upgrade(mut peer: Peer) -> Client {
    peer.send(UPGRADE);
    accepted(peer)
}

fn accepted(mut peer: Peer) -> Client {
    let answer = peer.answer();
    assert_eq!(answer.status, 101, "{}", answer.head);
    assert!(answer.head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{}", answer.head);
    let config = WebSocketConfig::default().read_buffer_size(4096);
    WebSocket::from_partially_read(peer.stream, peer.buffer, Role::Client, Some(config))
}

/// The next message that is not a ping.
fn next(client: &mut Client) -> Result<Message, Error> {
    loop {
        match client.read()? {
            Message::Ping(_) => {}
            message => return Ok(message),
        }
    }
}

fn text(client: &mut Client) -> String {
    match next(client).expect("a message") {
        Message::Text(text) => text.as_str().into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_are_echoed_in_order() {
    let rig = Rig::new(|_| {});
    let mut client = upgrade(rig.connect());
    for n in 0..500 {
        client.write(Message::text(n.to_string())).expect("open");
    }
    client.flush().expect("open");
    for n in 0..500 {
        assert_eq!(text(&mut client), n.to_string());
    }
    client.send(Message::binary(vec![1, 2, 3])).expect("open");
    assert_eq!(text(&mut client), "3 bytes");
    let long = "ä".repeat(500_000);
    client.send(Message::text(long.clone())).expect("open");
    assert!(text(&mut client) == long);
}

#[test]
fn a_kept_alive_connection_upgrades_and_frames_may_come_with_the_head() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    peer.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(peer.answer().status, 200);
    // A masked text frame "hi" with a mask of zeros, in the same segment as the head.
    let mut bytes = UPGRADE.as_bytes().to_vec();
    bytes.extend_from_slice(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    peer.stream.write_all(&bytes).expect("open");
    let mut client = accepted(peer);
    assert_eq!(text(&mut client), "hi");
}

#[test]
fn improper_handshakes_are_refused_as_http() {
    let rig = Rig::new(|_| {});
    let table = [
        (UPGRADE.replace("13", "12"), 426),
        (UPGRADE.replace("Upgrade: WebSocket\r\n", ""), 426),
        (UPGRADE.replace("keep-alive, Upgrade", "keep-alive"), 426),
        (UPGRADE.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400),
        (UPGRADE.replace("GET", "POST"), 400),
    ];
    for (request, expected) in table {
        let mut peer = rig.connect();
        peer.send(&request);
        assert_eq!(peer.answer().status, expected, "{request}");
    }
    assert!(!rig.log.has("opened") && !rig.log.has("closed"));
}

#[test]
fn pings_are_answered_and_sent_at_once() {
    let rig = Rig::new(|_| {});
    let mut client = upgrade(rig.connect());
    assert_eq!(client.read().expect("a ping"), Message::Ping(Bytes::new()));
    client.send(Message::Ping(Bytes::from_static(b"x"))).expect("open");
    assert_eq!(next(&mut client).expect("a pong"), Message::Pong(Bytes::from_static(b"x")));
}

#[test]
fn a_close_is_answered_at_once() {
    let rig = Rig::new(|_| {});
    let mut client = upgrade(rig.connect());
    client.close(Some(CloseFrame { code: 1000.into(), reason: "bye".into() })).expect("open");
    let begun = Instant::now();
    match next(&mut client).expect("a close") {
        Message::Close(Some(frame)) => assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1000, "bye")),
        other => panic!("{other:?}"),
    }
    assert!(matches!(next(&mut client), Err(Error::ConnectionClosed)));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    eventually("the session is told", || rig.log.has("closed"));
    eventually("forgotten", || rig.server.connections() == 0);
}

#[test]
fn the_session_can_close_after_its_messages_with_a_code_or_without() {
    for (code, expected) in [(4001, Some(4001)), (1005, None)] {
        let rig = Rig::new(|_| {});
        let mut client = upgrade(rig.connect());
        let outbox = rig.log.outbox();
        outbox.push("last").expect("room");
        outbox.close(code, &"é".repeat(100));
        assert_eq!(text(&mut client), "last");
        match next(&mut client).expect("a close") {
            Message::Close(frame) => assert_eq!(frame.map(|frame| u16::from(frame.code)), expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_cut_sends_no_close() {
    let rig = Rig::new(|_| {});
    let mut client = upgrade(rig.connect());
    rig.log.outbox().cut();
    assert!(matches!(next(&mut client), Err(Error::Protocol(_) | Error::Io(_))));
}

#[test]
fn a_peer_that_never_answers_our_close_is_dropped() {
    let rig = Rig::new(|limits| limits.ws_close = milliseconds(100));
    let client = upgrade(rig.connect());
    rig.log.outbox().close(1000, "");
    eventually("dropped", || rig.server.connections() == 0);
    drop(client);
}

#[test]
fn unanswered_pings_cut_and_answered_ones_do_not() {
    let rig = Rig::new(|limits| limits.ws_ping = Some(milliseconds(40)));
    let mute = upgrade(rig.connect());
    eventually("cut", || rig.server.connections() == 0);
    drop(mute);
    let mut client = upgrade(rig.connect());
    // Reading answers; ten intervals are far more than two.
    let mut pings = 0;
    while pings < 10 {
        if let Message::Ping(_) = client.read().expect("open") {
            pings += 1;
        }
    }
    assert_eq!(rig.server.connections(), 1);
}

/// One frame: its first byte, and a short payload masked with zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).expect("a short payload");
    [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

#[test]
fn limits_and_rules_close_with_their_code() {
    let rig = Rig::new(|limits| limits.ws_message_bytes = 1000);
    let hundred = [b'x'; 100];
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("8 EiB", b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".to_vec(), 1009),
        ("a frame beyond the limit", b"\x81\xfe\x03\xe9\0\0\0\0".to_vec(), 1009),
        ("fragments beyond the limit", [masked(1, &hundred), masked(0, &hundred).repeat(10)].concat(), 1009),
        ("text that is not UTF-8", masked(0x81, b"\xc3\x28"), 1007),
        ("fragments that are not UTF-8", [masked(1, b"\xc3"), masked(0x80, b"\x28")].concat(), 1007),
        ("text that ends within a character", [masked(1, b"a"), masked(0x80, b"\xc3")].concat(), 1007),
        ("no mask", b"\x81\x02hi".to_vec(), 1002),
        ("reserved bit 1", masked(0xc1, b"hi"), 1002),
        ("reserved bit 2", masked(0xa1, b"hi"), 1002),
        ("reserved bit 3", masked(0x91, b"hi"), 1002),
        ("a reserved bit of a ping", masked(0xc9, b""), 1002),
        ("a reserved opcode of data", masked(0x83, b""), 1002),
        ("a reserved opcode of control", masked(0x8b, b""), 1002),
        ("a ping in fragments", masked(0x09, b""), 1002),
        ("a long ping", [b"\x89\xfe\0\x7e".to_vec(), vec![0; 130]].concat(), 1002),
        ("a continuation of nothing", masked(0x80, b"a"), 1002),
        ("a text within a text", [masked(1, b"a"), masked(0x81, b"b")].concat(), 1002),
        ("a close with half a code", masked(0x88, b"\x03"), 1002),
        ("a close with no code of the wire", masked(0x88, &1005u16.to_be_bytes()), 1002),
        ("a close with a reason that is not UTF-8", masked(0x88, b"\x03\xe8\xff"), 1007),
    ];
    for (what, frames, expected) in cases {
        let mut client = upgrade(rig.connect());
        client.get_mut().write_all(&frames).expect("open");
        match next(&mut client) {
            Ok(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    eventually("forgotten", || rig.server.connections() == 0);
    rig.assert_alive();
}

#[test]
fn fragments_with_control_frames_between_them_are_one_message() {
    let rig = Rig::new(|limits| limits.ws_message_bytes = 1000);
    let mut client = upgrade(rig.connect());
    // Cut within a character, with a ping and a pong between, and a message of exactly the limit behind it.
    let frames = [
        masked(1, b"caf\xc3"),
        masked(0x89, b"still there?"),
        masked(0x00, b""),
        masked(0x8a, b""),
        masked(0x80, b"\xa9"),
        masked(2, &[7; 100]),
        masked(0, &[7; 100]).repeat(8),
        masked(0x80, &[7; 100]),
    ];
    client.get_mut().write_all(&frames.concat()).expect("open");
    assert_eq!(next(&mut client).expect("a pong"), Message::Pong(Bytes::from_static(b"still there?")));
    assert_eq!(text(&mut client), "café");
    assert_eq!(text(&mut client), "1000 bytes");
}

#[test]
fn a_peer_that_takes_nothing_is_cut_after_the_stall_limit() {
    let rig = Rig::new(|limits| {
        limits.ws_stall = milliseconds(200);
        limits.ws_ping = None;
    });
    let client = upgrade(rig.connect());
    let outbox = rig.log.outbox();
    let big: Arc<str> = "x".repeat(1 << 20).into();
    for _ in 0..32 {
        outbox.push(big.clone()).expect("room");
    }
    eventually("cut", || rig.server.connections() == 0);
    assert_eq!(outbox.push("more"), Err(Full), "a gone socket takes nothing");
    drop(client);
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    let rig = Rig::new(|_| {});
    let mut client = upgrade(rig.connect());
    let outbox = rig.log.outbox();
    let big = "x".repeat(256 << 10);
    for n in 0..64 {
        outbox.push(format!("{n} {big}")).expect("room");
    }
    std::thread::park_timeout(milliseconds(50));
    for n in 0..64 {
        assert!(text(&mut client).starts_with(&format!("{n} ")));
    }
}

#[test]
fn input_waits_in_the_socket_while_it_is_not_wanted() {
    let rig = Rig::new(|limits| limits.ws_ping = Some(milliseconds(20)));
    let mut client = upgrade(rig.connect());
    client.send(Message::text("first")).expect("open");
    assert_eq!(text(&mut client), "first");
    rig.log.set_deaf(true);
    // Once the pump has said something after the change it has seen the change.
    rig.log.outbox().push("deaf").expect("room");
    assert_eq!(text(&mut client), "deaf");
    client.send(Message::text("second")).expect("open");
    client.send(Message::text("third")).expect("open");
    // Output goes on, pings too, and the silence of a peer that is not read is not held against it.
    for n in 0..5 {
        rig.log.outbox().push(format!("{n}")).expect("room");
        assert_eq!(text(&mut client), format!("{n}"));
        std::thread::park_timeout(milliseconds(25));
    }
    rig.log.set_deaf(false);
    assert_eq!((text(&mut client), text(&mut client)), ("second".into(), "third".into()));
}

#[test]
fn a_deaf_session_ends_when_its_peer_resets() {
    let rig = Rig::new(|_| {});
    let mut client = upgrade(rig.connect());
    rig.log.set_deaf(true);
    rig.log.outbox().push("deaf").expect("room");
    assert_eq!(text(&mut client), "deaf");
    rustix::net::sockopt::set_socket_linger(client.get_ref(), Some(Duration::ZERO)).expect("an option");
    drop(client);
    eventually("forgotten", || rig.server.connections() == 0);
}

#[test]
fn a_stop_flushes_and_closes_with_1000() {
    let rig = Rig::new(|_| {});
    let mut clients: Vec<Client> = (0..10).map(|_| upgrade(rig.connect())).collect();
    let outbox = rig.log.outbox();
    for n in 0..100 {
        outbox.push(n.to_string()).expect("room");
    }
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| {
            let begun = Instant::now();
            (rig.server.stop(Duration::from_secs(3)), begun.elapsed())
        });
        let mut counts = Vec::new();
        for client in &mut clients {
            let mut count = 0;
            let code = loop {
                match next(client).expect("messages and a close") {
                    Message::Text(_) => count += 1,
                    Message::Close(frame) => break frame.map(|frame| u16::from(frame.code)),
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(code, Some(1000));
            // The next read sends the answer.
            assert!(next(client).is_err());
            counts.push(count);
        }
        assert_eq!(counts.iter().sum::<i32>(), 100);
        let (clean, took) = stop.join().expect("no panic");
        assert!(clean);
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn a_stop_is_not_held_up_by_a_deaf_peer() {
    let rig = Rig::new(|_| {});
    let client = upgrade(rig.connect());
    let begun = Instant::now();
    rig.server.stop(milliseconds(500));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(rig.server.connections(), 0);
    drop(client);
}

/// Upgrades once it may.
struct LateUpgrade {
    log: Arc<Log>,
    entered: crossbeam_channel::Sender<()>,
    gate: crossbeam_channel::Receiver<()>,
}

impl Handler for LateUpgrade {
    fn body_limit(&self, _: &Request) -> usize {
        0
    }

    fn handle(&self, _: Request) -> Reply {
        let _ = self.entered.send(());
        let _ = self.gate.recv_timeout(PATIENCE);
        Reply::WebSocket(Box::new(Echo::new(self.log.clone())))
    }
}

#[test]
fn an_upgrade_that_meets_a_stop_is_refused() {
    let (entered, called) = crossbeam_channel::bounded(1);
    let (go, gate) = crossbeam_channel::bounded::<()>(1);
    let rig = Rig::new(|_| {});
    rig.server.set_handler(Arc::new(LateUpgrade { log: rig.log.clone(), entered, gate }));
    let mut peer = rig.connect();
    peer.send(UPGRADE);
    called.recv_timeout(PATIENCE).expect("the handler is called");
    std::thread::scope(|scope| {
        scope.spawn(|| rig.server.stop(Duration::from_secs(3)));
        eventually("the port is closed", || TcpStream::connect(rig.address()).is_err());
        // The stop cuts the input of what is no WebSocket yet.
        std::thread::park_timeout(milliseconds(50));
        go.send(()).expect("the handler waits");
        assert_eq!(peer.answer().status, 503, "a 101 would be followed by an end without a Close");
        drop(peer);
    });
    assert!(!rig.log.has("opened"));
}
