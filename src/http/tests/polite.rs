//! Ordinary clients, and the stop.

use super::*;

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    peer.send("GET /a%20b?x=1+2 HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = peer.answer();
    assert_eq!(answer.text(), r#"{"path":"/a%20b","query":[["x","1 2"]]}"#);
    assert!(answer.head.contains("Content-Type: application/json"), "{}", answer.head);
    peer.send("POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(peer.answer().text(), "hello");
    peer.send("HEAD /x HTTP/1.1\r\n\r\nGET /y HTTP/1.1\r\n\r\n");
    let head = peer.answer_to("HEAD");
    assert!(head.head.contains("Content-Length: 24"), "{}", head.head);
    assert!(peer.answer().text().contains("/y"));
}

#[test]
fn pipelined_requests_are_all_answered() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    let mut text = String::new();
    for n in 0..50 {
        text += &format!("POST /echo HTTP/1.1\r\nContent-Length: {}\r\n\r\n{n}", n.to_string().len());
        text += "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\nT: t\r\n\r\n\r\n";
    }
    peer.send(&text);
    for n in 0..50 {
        assert_eq!(peer.answer().text(), n.to_string());
        assert_eq!(peer.answer().text(), "c");
    }
}

#[test]
fn a_body_may_come_in_pieces_and_chunks_with_trailers() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    for piece in [
        "POST /echo HTTP/1.1\r\nTransfer-En",
        "coding: chunked\r\n\r\n3;x=y\r",
        "\nabc\r\n2\r\nde\r\n0",
        "\r\nDigest: z\r\n\r\n",
    ] {
        peer.send(piece);
        std::thread::park_timeout(milliseconds(5));
    }
    assert_eq!(peer.answer().text(), "abcde");
    let body = "y".repeat(1 << 20);
    peer.send(&format!("POST /echo HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(peer.answer().body.len(), body.len());
}

#[test]
fn continue_is_said_before_the_body_and_only_then() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    peer.send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(peer.answer().status, 100);
    peer.send("ok");
    assert_eq!(peer.answer().text(), "ok");
    // The body is here already: no need.
    peer.send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(peer.answer().status, 200);
    // Refused before the body.
    peer.send("POST /forbidden HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let answer = peer.answer();
    assert_eq!(answer.status, 403);
    assert!(answer.head.contains("Connection: close"), "{}", answer.head);
    peer.half_close();
    peer.assert_closed();
}

#[test]
fn connections_close_when_one_side_wants_it() {
    let rig = Rig::new(|_| {});
    for head in ["GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
        let mut peer = rig.connect();
        peer.send(head);
        let answer = peer.answer();
        assert!(answer.head.contains("Connection: close"), "{}", answer.head);
        peer.assert_closed();
    }
    let mut peer = rig.connect();
    peer.send("GET / HTTP/1.1\r\n\r\n");
    peer.half_close();
    assert_eq!(peer.answer().status, 200);
    peer.assert_closed();
    // A refusal of a request without a body leaves the connection usable.
    let mut peer = rig.connect();
    peer.send("GET /forbidden HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    assert_eq!((peer.answer().status, peer.answer().status), (403, 200));
}

#[test]
fn forty_kept_alive_connections_at_once_are_all_answered() {
    let rig = Rig::new(|_| {});
    let mut peers: Vec<Peer> = (0..40).map(|_| rig.connect()).collect();
    for _ in 0..2 {
        peers.iter_mut().for_each(|peer| peer.send("GET / HTTP/1.1\r\n\r\n"));
        peers.iter_mut().for_each(|peer| assert_eq!(peer.answer().status, 200));
    }
    assert_eq!(rig.server.connections(), 40);
    drop(peers);
    eventually("the connections are forgotten", || rig.server.connections() == 0);
}

#[test]
fn a_large_answer_reaches_a_slow_reader_whole() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    peer.send("GET /big HTTP/1.1\r\nConnection: close\r\n\r\n");
    std::thread::park_timeout(milliseconds(30));
    assert_eq!(peer.answer().body.len(), 8 << 20);
    peer.assert_closed();
}

#[test]
fn the_handler_can_be_exchanged() {
    struct Later;
    impl Handler for Later {
        fn body_limit(&self, _: &Request) -> usize {
            0
        }
        fn handle(&self, _: Request) -> Reply {
            Reply::Response(Response::text(200, "later"))
        }
    }
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    peer.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(peer.answer().text(), r#"{"path":"/","query":[]}"#);
    rig.server.set_handler(Arc::new(Later));
    peer.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(peer.answer().text(), "later");
}

#[test]
fn faults_can_be_served() {
    let rig = Rig::new(|_| {});
    let mut peer = rig.connect();
    peer.send("GET /raw HTTP/1.1\r\n\r\n");
    let mut all = Vec::new();
    peer.stream.read_to_end(&mut all).expect("an end");
    assert!(all.ends_with(b"\r\n\r\nshort"), "{}", String::from_utf8_lossy(&all));
    let mut peer = rig.connect();
    peer.send("GET /cut HTTP/1.1\r\n\r\n");
    peer.assert_closed();
    let mut peer = rig.connect();
    peer.send("GET /silent HTTP/1.1\r\n\r\n");
    peer.stream.set_read_timeout(Some(milliseconds(50))).expect("a time-out");
    assert!(peer.stream.read(&mut [0]).is_err(), "silence");
    assert!(rig.server.stop(Duration::from_secs(2)), "a held socket ends with the server");
}

#[test]
fn a_stop_is_prompt_and_closes_the_port() {
    let rig = Rig::new(|_| {});
    let mut idle: Vec<Peer> = (0..5).map(|_| rig.connect()).collect();
    for peer in &mut idle {
        peer.send("GET / HTTP/1.1\r\n\r\n");
        peer.answer();
    }
    let mut half = rig.connect();
    half.send("GET / HT");
    eventually("all are accepted", || rig.server.connections() == 6);
    let begun = Instant::now();
    assert!(rig.server.stop(Duration::from_secs(3)));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    idle.iter_mut().for_each(Peer::assert_closed);
    half.assert_closed();
    assert!(TcpStream::connect(rig.address()).is_err());
    assert_eq!(rig.server.connections(), 0);
    assert!(rig.server.stop(Duration::from_secs(1)), "a second stop has nothing to do");
}

/// Says when it is called, and answers when it may.
struct Gated {
    entered: crossbeam_channel::Sender<()>,
    gate: crossbeam_channel::Receiver<()>,
}

impl Handler for Gated {
    fn body_limit(&self, _: &Request) -> usize {
        0
    }

    fn handle(&self, _: Request) -> Reply {
        let _ = self.entered.send(());
        let _ = self.gate.recv_timeout(PATIENCE);
        Reply::Response(Response::text(200, "done"))
    }
}

/// A server in the middle of a request, its client, and the key to the gate.
fn gated() -> (Server, Peer, crossbeam_channel::Sender<()>) {
    let (entered, called) = crossbeam_channel::bounded(1);
    let (go, gate) = crossbeam_channel::bounded::<()>(1);
    let server = Server::bind("127.0.0.1", 0)
        .and_then(|bound| bound.serve(Limits::default(), Arc::new(Gated { entered, gate }), "gated-"))
        .expect("a server");
    let mut peer = Peer::new(TcpStream::connect(server.local_addr()).expect("a connection"));
    peer.send("GET / HTTP/1.1\r\n\r\n");
    called.recv_timeout(PATIENCE).expect("the handler is called");
    (server, peer, go)
}

#[test]
fn a_stop_lets_a_running_request_finish() {
    let (server, mut peer, go) = gated();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| server.stop(Duration::from_secs(5)));
        eventually("the port is closed", || TcpStream::connect(server.local_addr()).is_err());
        go.send(()).expect("the handler waits");
        let answer = peer.answer();
        assert_eq!(answer.text(), "done");
        assert!(answer.head.contains("Connection: close"), "{}", answer.head);
        drop(peer);
        assert!(stop.join().expect("no panic"));
    });
}

#[test]
fn a_stop_cuts_what_does_not_end() {
    let (server, mut peer, go) = gated();
    let begun = Instant::now();
    assert!(!server.stop(milliseconds(200)));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(go);
    peer.assert_closed();
}

/// Nanoseconds on a processor and turns on it, of all threads whose name starts so.
fn work_of(prefix: &str) -> (u64, u64) {
    let mut sum = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").expect("proc").flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").starts_with(prefix) {
            let stat = read("schedstat");
            let mut numbers = stat.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
            sum.0 += numbers.next().unwrap_or(0);
            sum.1 += numbers.nth(1).unwrap_or(0);
        }
    }
    sum
}

#[test]
fn k5_an_idle_server_makes_no_wake_ups() {
    let log = Arc::new(websockets::Log::default());
    let server = Server::bind("127.0.0.1", 0)
        .and_then(|bound| bound.serve(Limits::default(), Arc::new(Demo { sessions: log.clone() }), "idle-"))
        .expect("a server");
    let connect = || Peer::new(TcpStream::connect(server.local_addr()).expect("a connection"));
    let mut idle = connect();
    idle.send("GET / HTTP/1.1\r\n\r\n");
    idle.answer();
    let mut client = websockets::upgrade(connect());
    client.read().expect("the first ping");
    client.flush().expect("its answer");
    // A message that comes from another thread leaves the pump as idle as before.
    log.outbox().push("x").expect("room");
    client.read().expect("the message");
    let mut before = work_of("idle-");
    eventually("they have come to rest", || {
        std::thread::park_timeout(milliseconds(50));
        std::mem::replace(&mut before, work_of("idle-")) == before
    });
    std::thread::park_timeout(milliseconds(300));
    assert_eq!(work_of("idle-"), before);
    assert!(before.1 >= 3, "the acceptor and two connections were found: {before:?}");
    drop((idle, client));
    assert!(server.stop(Duration::from_secs(2)));
}
