//! Peers that are broken or mean. Each of these has ended or blinded some server.

use super::*;

#[track_caller]
fn status_of(rig: &Rig, request: &str) -> u16 {
    let mut peer = rig.connect();
    peer.try_send(request);
    peer.answer().status
}

#[test]
fn malformed_requests_are_answered_and_closed() {
    let rig = Rig::new(|_| {});
    let table = [
        ("POST /echo HTTP/1.1\r\nContent-Length: 10000000000000\r\n\r\n", 413),
        ("POST /echo HTTP/1.1\r\nContent-Length: 9000000000000000000\r\n\r\n", 413),
        ("POST /echo HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n", 413),
        ("POST /echo HTTP/1.1\r\nContent-Length: 104857600\r\n\r\nxxx", 413),
        ("POST /echo HTTP/1.1\r\nContent-Length: abc\r\n\r\n", 400),
        ("POST /echo HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        ("POST /echo HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", 413),
        ("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        ("POST /echo HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n", 417),
        ("GET / HTTP/3.0\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET nowhere HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}", 400),
        ("POST /panic HTTP/1.1\r\n\r\n", 500),
    ];
    for (request, expected) in table {
        let mut peer = rig.connect();
        peer.send(request);
        let answer = peer.answer();
        assert_eq!(answer.status, expected, "{request:?}");
        assert!(answer.head.contains("Connection: close"), "{request:?}: {}", answer.head);
        peer.half_close();
        peer.assert_closed();
    }
    rig.assert_alive();
}

#[test]
fn heads_are_bounded_in_bytes_and_lines() {
    let rig = Rig::new(|_| {});
    assert_eq!(status_of(&rig, &format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10))), 431);
    assert_eq!(status_of(&rig, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64 << 10))), 431);
    assert_eq!(status_of(&rig, &format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65))), 431);
    assert_eq!(status_of(&rig, &format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(64))), 200);
    // A header that never ends.
    let mut peer = rig.connect();
    peer.send("GET / HTTP/1.1\r\nX: ");
    while peer.try_send(&"y".repeat(1024)) && peer.stream.peek_soon().is_none() {}
    assert_eq!(peer.answer().status, 431);
    rig.assert_alive();
}

trait PeekSoon {
    fn peek_soon(&self) -> Option<usize>;
}

impl PeekSoon for TcpStream {
    /// Whether something has come, without waiting for it.
    fn peek_soon(&self) -> Option<usize> {
        self.set_nonblocking(true).expect("open");
        let count = self.peek(&mut [0]).ok();
        self.set_nonblocking(false).expect("open");
        count
    }
}

#[test]
fn an_early_answer_is_readable_although_the_body_keeps_coming() {
    let rig = Rig::new(|_| {});
    for _ in 0..10 {
        let mut peer = rig.connect();
        peer.send("POST /echo HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n");
        let piece = "z".repeat(32 << 10);
        while peer.stream.peek_soon().is_none() && peer.try_send(&piece) {}
        // A reset would fail the second of these, and with it most clients before they look for an answer.
        for _ in 0..2 {
            assert!(peer.try_send(&piece), "the answer is there and the socket still takes the body");
            std::thread::park_timeout(milliseconds(20));
        }
        assert_eq!(peer.answer().status, 413);
    }
    rig.assert_alive();
}

#[test]
fn a_hundred_slow_heads_hinder_nobody_and_end() {
    let rig = Rig::new(|limits| limits.head_deadline = milliseconds(500));
    let mut slow: Vec<Peer> = (0..100).map(|_| rig.connect()).collect();
    slow.iter_mut().for_each(|peer| peer.send("GET / HTTP/1.1\r\nX: "));
    let begun = Instant::now();
    // Every peer goes on dripping until it is answered: a drip resets no deadline. Meanwhile ordinary requests pass.
    while !slow.is_empty() {
        slow.retain_mut(|peer| {
            peer.try_send("x");
            peer.stream.peek_soon().is_none() || {
                assert_eq!(peer.answer().status, 408);
                false
            }
        });
        let before = Instant::now();
        rig.assert_alive();
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
        assert!(begun.elapsed() < PATIENCE, "{} still drip", slow.len());
        std::thread::park_timeout(milliseconds(10));
    }
    assert!(begun.elapsed() >= milliseconds(400), "{:?}", begun.elapsed());
    eventually("all are gone", || rig.server.connections() == 0);
}

#[test]
fn silence_ends_by_deadline() {
    let rig = Rig::new(|limits| {
        limits.head_deadline = milliseconds(100);
        limits.idle_deadline = milliseconds(100);
        limits.body_deadline = milliseconds(100);
    });
    // Nothing at all.
    rig.connect().assert_closed();
    // Nothing more.
    let mut peer = rig.connect();
    peer.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(peer.answer().status, 200);
    peer.assert_closed();
    // Half a body, whole and chunked.
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut peer = rig.connect();
        peer.send(&format!("POST /echo HTTP/1.1\r\n{head}\r\n\r\n5\r\nab"));
        assert_eq!(peer.answer().status, 408, "{head}");
    }
}

#[test]
fn half_a_request_and_a_close_leave_nothing() {
    let rig = Rig::new(|_| {});
    for part in ["GET / HTTP/1.1\r\nHost", "POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"] {
        let mut peer = rig.connect();
        peer.send(part);
        peer.half_close();
        peer.assert_closed();
    }
    eventually("forgotten", || rig.server.connections() == 0);
}

#[test]
fn a_peer_that_takes_nothing_is_cut() {
    let rig = Rig::new(|limits| limits.write_deadline = milliseconds(200));
    let mut peer = rig.connect();
    for _ in 0..8 {
        peer.send("GET /big HTTP/1.1\r\n\r\n");
    }
    eventually("cut", || rig.server.connections() == 0);
}

#[test]
fn a_storm_of_resets_is_survived() {
    let rig = Rig::new(|_| {});
    for n in 0..300 {
        let stream = TcpStream::connect(rig.address()).expect("a connection");
        if n % 2 == 0 {
            let _ = (&stream).write_all(b"POST /echo HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd");
        }
        // Closing with a linger time of zero sends a reset.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option");
    }
    rig.assert_alive();
    eventually("forgotten", || rig.server.connections() <= 1);
}

#[test]
fn too_many_connections_are_refused_by_name() {
    let rig = Rig::new(|limits| limits.connections = 3);
    let mut held: Vec<Peer> = (0..3).map(|_| rig.connect()).collect();
    held.iter_mut().for_each(|peer| {
        peer.send("GET / HTTP/1.1\r\n\r\n");
        assert_eq!(peer.answer().status, 200);
    });
    let mut peer = rig.connect();
    peer.try_send("GET / HTTP/1.1\r\n\r\n");
    let answer = peer.answer();
    assert_eq!((answer.status, answer.text()), (503, "too many connections"));
    peer.assert_closed();
    held.pop();
    eventually("room again", || rig.server.connections() < 3);
    rig.assert_alive();
}

const CHILD: &str = "HTTP_TEST_FEW_DESCRIPTORS";

/// The limit is the process's, so this runs in a process of its own.
#[test]
fn accepting_survives_a_full_descriptor_table() {
    if std::env::var_os(CHILD).is_some() {
        return few_descriptors();
    }
    let me = std::env::current_exe().expect("a test binary");
    let output = std::process::Command::new(me)
        .args(["--exact", "http::tests::hostile::accepting_survives_a_full_descriptor_table"])
        .env(CHILD, "1")
        .output()
        .expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn few_descriptors() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let rig = Rig::new(|_| {});
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).expect("a lower limit");
    let mut held = Vec::new();
    // Both ends of a connection are ours, so the table fills up with some connects still waiting in the kernel.
    while let Ok(stream) = TcpStream::connect(rig.address()) {
        held.push(stream);
    }
    assert!(held.len() > 20, "{}", held.len());
    std::thread::park_timeout(milliseconds(120));
    held.truncate(5);
    eventually("descriptors come back", || rig.server.connections() <= 5);
    rig.assert_alive();
}
