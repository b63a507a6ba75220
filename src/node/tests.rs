//! The link against scripted servers on loopback.

mod tls;

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use serde_json::{Value, json};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use super::*;
use crate::core::ports::Refusal;
use crate::wire::node::{DeliveryAck, FromEngine};

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    link: Option<Link>,
    notes: Receiver<NodeNote>,
}

impl Bench {
    fn new(base: &str, options: Options) -> Bench {
        let (tx, notes) = unbounded();
        let link = Link::start_with(base, options, move |note| {
            let _ = tx.send(note);
        })
        .expect("a link");
        Bench { link: Some(link), notes }
    }

    fn send(&self, command: NodeCommand) -> Result<(), Full> {
        self.link.as_ref().expect("still running").send(command)
    }

    fn connect(&self, generation: u64) {
        let token = Secret::new(" nt_live_abc ");
        self.send(NodeCommand::Connect { generation, token }).expect("room for a connect");
    }

    fn ack(&self, generation: u64, up_to_seq: u64) -> Result<(), Full> {
        self.send(NodeCommand::Send { generation, frame: ack(up_to_seq, "al".into()) })
    }

    fn note(&self) -> NodeNote {
        self.notes.recv_timeout(PATIENCE).expect("a note in time")
    }

    fn opened(&self, generation: u64) {
        assert_eq!(self.note(), NodeNote::Opened { generation });
    }

    fn closed(&self, generation: u64) -> String {
        match self.note() {
            NodeNote::Closed { generation: g, reason } if g == generation => reason,
            other => panic!("expected the end of {generation}, saw {other:?}"),
        }
    }

    fn refused(&self) -> Refusal {
        match self.note() {
            NodeNote::Refused { why, .. } => why,
            other => panic!("expected a refusal, saw {other:?}"),
        }
    }

    fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.link.take().expect("stopped once").stop(Duration::from_secs(5));
        began.elapsed()
    }
}

fn ack(up_to_seq: u64, agent: String) -> ToEngine {
    ToEngine::DeliveryAck(DeliveryAck { id: None, agent, up_to_seq })
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, base)
}

/// One accepted WebSocket with blocking reads that end after [`PATIENCE`].
#[allow(clippy::result_large_err)]
fn accept(listener: &TcpListener) -> (WebSocket<TcpStream>, Vec<(String, String)>) {
    let (socket, _) = listener.accept().expect("a client");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut seen = Vec::new();
    let server =
        tungstenite::accept_hdr(socket, |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            seen.push((":path".to_string(), request.uri().to_string()));
            for (name, value) in request.headers() {
                seen.push((name.to_string(), value.to_str().unwrap_or("?").to_string()));
            }
            Ok(response)
        })
        .expect("a handshake");
    (server, seen)
}

fn text(server: &mut WebSocket<TcpStream>) -> Value {
    loop {
        match server.read().expect("a message") {
            Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("expected text, saw {other:?}"),
        }
    }
}

/// Runs `server` beside `client` and gives back what it returns.
fn beside<T: Send + 'static>(server: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(server)
}

#[test]
fn frames_go_both_ways_and_the_token_is_trimmed() {
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, head) = accept(&listener);
        let first = text(&mut server);
        server.send(Message::text(r#"{"v":1,"type":"reply","id":"r1","ok":true,"data":{"x":1}}"#)).unwrap();
        let second = text(&mut server);
        server.close(None).unwrap();
        (head, first, second)
    });
    let mut bench = Bench::new(&format!("{base}/prefix/"), Options::default());
    bench.connect(7);
    bench.opened(7);
    bench.ack(7, 1).unwrap();
    let frame = FromEngine::Reply { id: "r1".into(), data: json!({"x": 1}) };
    assert_eq!(bench.note(), NodeNote::Frame { generation: 7, frame });
    // A frame of another connection is dropped, the next of this one is not.
    bench.ack(6, 99).unwrap();
    bench.ack(7, 2).unwrap();
    let (head, first, second) = server.join().unwrap();
    assert_eq!(bench.closed(7), "closed by the engine");
    assert_eq!(first["up_to_seq"], 1);
    assert_eq!(second["up_to_seq"], 2);
    let header = |name: &str| head.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    assert_eq!(header(":path"), ["/prefix/v1/node/ws"]);
    assert_eq!(header("authorization"), ["Bearer nt_live_abc"]);
    assert!(header("origin").is_empty() && header("sec-websocket-protocol").is_empty(), "{head:?}");
    assert!(bench.stop() < Duration::from_secs(2));
}

#[test]
fn both_directions_at_full_speed_keep_order_and_lose_nothing() {
    const COUNT: u64 = 3000;
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        // Writes everything before it reads anything: both directions fill up, neither thread may stall the other.
        let filler = "x".repeat(4000);
        for n in 0..COUNT {
            let frame = json!({"v":1,"type":"deliver","agent":"al","msg_id":n.to_string(),"seq":n,"payload":filler});
            server.send(Message::text(frame.to_string())).unwrap();
        }
        (0..COUNT).map(|_| text(&mut server)["up_to_seq"].as_u64().unwrap()).collect::<Vec<_>>()
    });
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    let filler = "y".repeat(4000);
    for n in 0..COUNT {
        let frame = ack(n, filler.clone());
        bench.send(NodeCommand::Send { generation: 1, frame }).expect("the queue holds them all");
    }
    let mut seen = Vec::new();
    while seen.len() < COUNT as usize {
        match bench.note() {
            NodeNote::Frame { frame: FromEngine::Deliver(deliver), .. } => seen.push(deliver.seq),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, (0..COUNT).collect::<Vec<_>>());
    assert_eq!(server.join().unwrap(), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn a_burst_in_one_packet_is_read_to_its_end() {
    const COUNT: usize = 300;
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        // One write, one packet, more messages than one turn of the reader takes; then nothing more on the wire.
        for _ in 0..COUNT {
            server.write(Message::text(r#"{"v":1,"type":"ping"}"#)).unwrap();
        }
        server.flush().unwrap();
        text(&mut server)
    });
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    for n in 0..COUNT {
        let note = bench.note();
        assert_eq!(note, NodeNote::Frame { generation: 1, frame: FromEngine::Ping }, "{n}");
    }
    bench.ack(1, 1).unwrap();
    server.join().unwrap();
}

#[test]
fn f31_a_silent_listener_is_given_up() {
    let (listener, base) = listener();
    let options = Options { connect_limit: Duration::from_millis(300), ..Options::default() };
    let bench = Bench::new(&base, options);
    let began = Instant::now();
    bench.connect(1);
    let why = bench.refused();
    assert!(matches!(&why, Refusal::Io(words) if words.contains("no answer in time")), "{why:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    drop(listener);
}

#[test]
fn a_slow_drip_does_not_stretch_the_connect_deadline() {
    let (listener, base) = listener();
    let server = beside(move || {
        use std::io::Write;
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nX-Drip: ");
        let began = Instant::now();
        while began.elapsed() < PATIENCE && socket.write_all(b"a").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        began.elapsed()
    });
    let bench = Bench::new(&base, Options { connect_limit: Duration::from_millis(400), ..Options::default() });
    bench.connect(1);
    assert!(matches!(bench.refused(), Refusal::Io(_)));
    assert!(server.join().unwrap() < Duration::from_secs(5));
}

#[test]
fn f31_a_half_open_connection_is_noticed_and_a_live_one_kept() {
    let (listener, base) = listener();
    let silence = Duration::from_millis(400);
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        // Alive: answers pings for four times the limit (reading answers them). Then silent, but still open.
        let began = Instant::now();
        while began.elapsed() < silence * 4 {
            server.read().unwrap();
            server.flush().unwrap();
        }
        let silent_from = Instant::now();
        (server, silent_from)
    });
    let bench = Bench::new(&base, Options { silence, ..Options::default() });
    bench.connect(1);
    bench.opened(1);
    while !server.is_finished() {
        bench.send(NodeCommand::Ping { generation: 1 }).unwrap();
        std::thread::park_timeout(Duration::from_millis(50));
        assert!(bench.notes.try_recv().is_err(), "a live connection must stay");
    }
    let (_socket, silent_from) = server.join().unwrap();
    let reason = bench.closed(1);
    assert!(reason.contains("no byte from the engine"), "{reason}");
    let took = silent_from.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn refusals_are_told_apart() {
    let (listener, base) = listener();
    let answers = ["401 Unauthorized", "403 Forbidden", "503 Service Unavailable", "302 Found", "200 OK"];
    let server = beside(move || {
        use std::io::{Read, Write};
        for answer in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0u8];
                socket.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let body = "HTTP/1.1 {}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".replacen("{}", answer, 1);
            socket.write_all(body.as_bytes()).unwrap();
        }
    });
    let bench = Bench::new(&base, Options::default());
    let expected =
        [Refusal::Unauthorized, Refusal::Status(403), Refusal::Status(503), Refusal::Status(302), Refusal::Status(200)];
    for (generation, expected) in expected.into_iter().enumerate() {
        bench.connect(generation as u64);
        assert_eq!(bench.note(), NodeNote::Refused { generation: generation as u64, why: expected });
    }
    server.join().unwrap();
    bench.connect(100);
    let why = bench.refused();
    assert!(matches!(&why, Refusal::Io(words) if words.starts_with("connect: ")), "{why:?}");
}

#[test]
fn the_close_reason_of_the_engine_is_reported() {
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        server.close(Some(CloseFrame { code: CloseCode::Normal, reason: "superseded".into() })).unwrap();
        // The client's close reply, then the end.
        let reply = server.read();
        let end = server.read();
        (reply, end)
    });
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    assert_eq!(bench.closed(1), "superseded");
    let (reply, end) = server.join().unwrap();
    assert!(matches!(&reply, Ok(Message::Close(Some(frame))) if frame.code == CloseCode::Normal), "{reply:?}");
    assert!(matches!(end, Err(tungstenite::Error::ConnectionClosed)), "{end:?}");
}

#[test]
fn f26_garbage_and_unknown_frames_keep_the_connection() {
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        for raw in ["{", "[]", r#"{"v":2,"type":"ping"}"#, r#"{"v":1,"type":"deliver"}"#] {
            server.send(Message::text(raw)).unwrap();
        }
        server.send(Message::binary(vec![1, 2, 3])).unwrap();
        server.send(Message::text(r#"{"v":1,"type":"novel","x":null}"#)).unwrap();
        server.send(Message::text(r#"{"v":1,"type":"ping","extra":{}}"#)).unwrap();
        text(&mut server)
    });
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    for _ in 0..4 {
        let note = bench.note();
        assert!(matches!(note, NodeNote::Garbage { generation: 1, .. }), "{note:?}");
    }
    let frame = FromEngine::Unknown { kind: "novel".into() };
    assert_eq!(bench.note(), NodeNote::Frame { generation: 1, frame });
    assert_eq!(bench.note(), NodeNote::Frame { generation: 1, frame: FromEngine::Ping });
    bench.ack(1, 5).unwrap();
    assert_eq!(server.join().unwrap()["up_to_seq"], 5);
}

#[test]
fn pings_are_answered_with_their_payload_and_ours_are_sent() {
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        server.send(Message::Ping(vec![1, 2, 3].into())).unwrap();
        let pong = server.read().unwrap();
        let ping = server.read().unwrap();
        (pong, ping)
    });
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    // Pinged only after the pong had its time to go first: the order of the two is not fixed otherwise.
    let pinged = AtomicU64::new(0);
    while !server.is_finished() && pinged.fetch_add(1, Ordering::Relaxed) < 500 {
        std::thread::park_timeout(Duration::from_millis(20));
        bench.send(NodeCommand::Ping { generation: 1 }).unwrap();
    }
    let (pong, ping) = server.join().unwrap();
    assert_eq!(pong, Message::Pong(vec![1, 2, 3].into()));
    assert!(matches!(ping, Message::Ping(_)), "{ping:?}");
}

#[test]
fn f35_a_close_flushes_the_queue_and_says_1000() {
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        let acks: Vec<u64> = (0..500).map(|_| text(&mut server)["up_to_seq"].as_u64().unwrap()).collect();
        let close = server.read().unwrap();
        let _ = server.flush();
        (acks, close)
    });
    let mut bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    for n in 0..500 {
        bench.ack(1, n).unwrap();
    }
    bench.send(NodeCommand::Close { generation: 1 }).unwrap();
    // A stop right behind the close waits for it.
    assert!(bench.stop() < Duration::from_secs(3));
    assert_eq!(bench.closed(1), "closed by the broker");
    let (acks, close) = server.join().unwrap();
    assert_eq!(acks, (0..500).collect::<Vec<_>>());
    assert!(matches!(&close, Message::Close(Some(frame)) if frame.code == CloseCode::Normal), "{close:?}");
}

#[test]
fn an_unanswered_close_ends_after_a_second() {
    let (listener, base) = listener();
    let server = beside(move || accept(&listener).0);
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    let _silent = server.join().unwrap();
    let began = Instant::now();
    bench.send(NodeCommand::Close { generation: 1 }).unwrap();
    assert_eq!(bench.closed(1), "closed by the broker");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_peer_that_never_reads_ends_the_connection_not_the_broker() {
    let (listener, base) = listener();
    let server = beside(move || accept(&listener).0);
    let bench = Bench::new(&base, Options { stall: Duration::from_millis(400), ..Options::default() });
    bench.connect(1);
    bench.opened(1);
    let _deaf = server.join().unwrap();
    for n in 0..200 {
        let _ = bench.send(NodeCommand::Send { generation: 1, frame: ack(n, "z".repeat(100_000)) });
    }
    let reason = bench.closed(1);
    assert!(reason.contains("took no byte"), "{reason}");
}

#[test]
fn a_full_queue_refuses_and_ends_the_connection() {
    let (listener, base) = listener();
    let server = beside(move || accept(&listener).0);
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    let _deaf = server.join().unwrap();
    let refused = (0..QUEUE as u64 * 3)
        .find(|n| bench.send(NodeCommand::Send { generation: 1, frame: ack(*n, "z".repeat(10_000)) }) == Err(Full));
    assert!(refused.is_some(), "the queue has a bound");
    assert_eq!(bench.closed(1), "the queue to the engine is full");
}

#[test]
fn a_newer_connect_replaces_what_is_open_and_what_is_dialled() {
    let (silent, silent_base) = listener();
    let mut bench = Bench::new(&silent_base, Options::default());
    bench.connect(1);
    // The dial of 1 hangs in the upgrade; 2 gives it up at once.
    let (first, _) = silent.accept().unwrap();
    bench.connect(2);
    let note = bench.note();
    assert_eq!(note, NodeNote::Refused { generation: 1, why: Refusal::Io("given up".into()) });
    drop(first);
    let server = beside(move || (accept(&silent).0, accept(&silent).0));
    bench.opened(2);
    bench.connect(3);
    assert_eq!(bench.closed(2), "replaced by a newer connection");
    bench.opened(3);
    let _both = server.join().unwrap();
    assert!(bench.stop() < Duration::from_secs(2));
    assert_eq!(bench.closed(3), "the link was stopped");
}

#[test]
fn a_stop_or_a_close_gives_up_a_dial() {
    let (silent, base) = listener();
    let mut bench = Bench::new(&base, Options::default());
    bench.connect(1);
    let _first = silent.accept().unwrap();
    bench.send(NodeCommand::Close { generation: 1 }).unwrap();
    assert_eq!(bench.refused(), Refusal::Io("given up".into()));
    bench.connect(2);
    let _second = silent.accept().unwrap();
    assert!(bench.stop() < Duration::from_secs(2));
    assert_eq!(bench.refused(), Refusal::Io("given up".into()));
}

#[test]
fn a_message_over_the_limit_ends_the_connection() {
    let (listener, base) = listener();
    let server = beside(move || {
        let (mut server, _) = accept(&listener);
        let _ = server.send(Message::text("x".repeat(crate::wire::node::MAX_FRAME_BYTES + 1)));
        server
    });
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    let reason = bench.closed(1);
    assert!(reason.contains("too long") || reason.contains("limit"), "{reason}");
    drop(server.join());
}

#[test]
fn an_idle_link_does_not_wake() {
    let (listener, base) = listener();
    let server = beside(move || accept(&listener).0);
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    let _peer = server.join().unwrap();
    let turns = || bench.link.as_ref().expect("running").shared.turns.load(Ordering::SeqCst);
    // The turn that found nothing to read comes first; from there on no turn without a byte.
    let began = Instant::now();
    while turns() == 0 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    std::thread::park_timeout(Duration::from_millis(50));
    let before = turns();
    std::thread::park_timeout(Duration::from_millis(500));
    assert_eq!(turns(), before, "an idle link wakes for data only");
    bench.send(NodeCommand::Ping { generation: 1 }).unwrap();
    std::thread::park_timeout(Duration::from_millis(50));
    assert!(turns() <= before + 1, "writing does not wake the reader");
}

#[test]
fn a_dropped_socket_is_reported() {
    let (listener, base) = listener();
    let server = beside(move || drop(accept(&listener)));
    let bench = Bench::new(&base, Options::default());
    bench.connect(1);
    bench.opened(1);
    let reason = bench.closed(1);
    assert!(reason.contains("dropped") || reason.contains("reset"), "{reason}");
    server.join().unwrap();
    // Frames and pings of a connection that is gone vanish.
    bench.ack(1, 1).unwrap();
    bench.send(NodeCommand::Ping { generation: 1 }).unwrap();
    bench.send(NodeCommand::Close { generation: 1 }).unwrap();
    assert!(bench.notes.recv_timeout(Duration::from_millis(100)).is_err());
}
