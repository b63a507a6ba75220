//! The event feed and the keystroke stream.

use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use super::*;
use crate::wire::api::{agent_not_found, typed};
use crate::wire::events::Ending;

pub(super) type Client = WebSocket<TcpStream>;

pub(super) fn open(rig: &Rig, path: &str) -> Client {
    let mut request = format!("ws://{}{path}", rig.server.local_addr()).into_client_request().expect("a request");
    request.headers_mut().insert("X-API-Key", KEY.parse().expect("a value"));
    tungstenite::client(request, rig.connect()).expect("an upgrade").0
}

/// The next message that is not a ping.
pub(super) fn next(client: &mut Client) -> Result<Message, Error> {
    loop {
        match client.read()? {
            Message::Ping(_) => {}
            message => return Ok(message),
        }
    }
}

pub(super) fn frame(client: &mut Client) -> Value {
    match next(client).expect("a message") {
        Message::Text(text) => serde_json::from_str(&text).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

/// The code of the server's Close; `None` for an empty one.
pub(super) fn close_code(client: &mut Client) -> Option<u16> {
    match next(client).expect("a close") {
        Message::Close(frame) => frame.map(|frame| frame.code.into()),
        other => panic!("{other:?}"),
    }
}

fn released(n: u64) -> Event {
    Event::AgentReleased { name: format!("a{n}") }
}

// -------------------------------------------------------------------------------------------------------------- events

#[test]
fn events_are_replayed_then_live_with_output_in_between() {
    let rig = Rig::new(1, None, |_| {});
    (1..=3).for_each(|n| rig.api.publish(&released(n)));
    let mut client = open(&rig, "/ws?sinceSeq=1");
    // The first frame is a ping.
    assert!(matches!(client.read(), Ok(Message::Ping(data)) if data.is_empty()));
    assert_eq!(frame(&mut client), json!({"kind": "agent_released", "name": "a2", "seq": 2}));
    assert_eq!(frame(&mut client)["seq"], 3);
    rig.api.publish(&Event::WorkerStream { name: "a".into(), stream: "stdout".into(), chunk: "hi".into(), offset: 2 });
    rig.api.publish(&released(4));
    assert_eq!(
        frame(&mut client),
        json!({"kind": "worker_stream", "name": "a", "stream": "stdout", "chunk": "hi", "offset": 2})
    );
    assert_eq!(frame(&mut client)["seq"], 4);
    // What a client sends carries no meaning; its close is answered.
    client.send(Message::text("{}")).expect("open");
    client.send(Message::binary(vec![0xff])).expect("open");
    client.close(Some(CloseFrame { code: 1000.into(), reason: "".into() })).expect("open");
    assert_eq!(close_code(&mut client), Some(1000));
}

#[test]
fn feeds_are_counted_while_they_are_open() {
    let rig = Rig::new(1, None, |_| {});
    let watchers = rig.api.watchers();
    let count = || watchers.load(std::sync::atomic::Ordering::Relaxed);
    let one = open(&rig, "/ws");
    let two = open(&rig, "/ws?since_seq=0");
    eventually("both are counted", || count() == 2);
    assert_eq!(rig.raw("GET /health", "").json()["wsConnections"], 2);
    drop((one, two));
    eventually("none is left", || count() == 0 && rig.api.health().body().ws_connections == 0);
}

#[test]
fn a_gap_frame_precedes_what_is_left() {
    let rig = Rig::new(1, None, |_| {});
    (1..=1005).for_each(|n| rig.api.publish(&released(n)));
    let mut client = open(&rig, "/ws?sinceSeq=2");
    let gap = json!({"kind": "replay_gap", "requestedSinceSeq": 2, "oldestAvailable": 6, "seq": 5, "droppedCount": 3});
    assert_eq!(frame(&mut client), gap);
    assert_eq!(frame(&mut client)["seq"], 6);
    let mut client = open(&rig, "/ws?sinceSeq=9999");
    assert_eq!(frame(&mut client)["kind"], "replay_gap");
    assert_eq!(frame(&mut client)["seq"], 6);
}

#[test]
fn feeds_are_refused_as_http() {
    let rig = Rig::new(1, None, |_| {});
    let upgrade = "\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: eA==";
    assert_eq!(rig.raw(&format!("GET /ws{upgrade}"), "").status, 401);
    assert_eq!(rig.send(&format!("GET /ws?sinceSeq=x{upgrade}"), "").status, 400);
    assert_eq!(rig.send("GET /ws", "").status, 426);
    assert_eq!(rig.send("GET /api/input/a/stream", "").status, 426);
    assert_eq!(rig.send(&format!("POST /ws{upgrade}"), "").status, 405);
    // A loop that is too busy to say whether the agent exists.
    rig.api.calls.post(ApiCall::Status, |_| {}).expect("room");
    assert_eq!(rig.send(&format!("GET /api/input/a/stream{upgrade}"), "").status, 503);
}

#[test]
fn a_stop_flushes_events_and_closes_with_1000() {
    let rig = Rig::new(1, None, |_| {});
    let mut client = open(&rig, "/ws");
    eventually("it watches", || rig.api.watchers().load(std::sync::atomic::Ordering::Relaxed) == 1);
    (1..=200).for_each(|n| rig.api.publish(&released(n)));
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| rig.server.stop(Duration::from_secs(3)));
        for n in 1..=200 {
            assert_eq!(frame(&mut client)["seq"], n);
        }
        assert_eq!(close_code(&mut client), Some(1000));
        assert!(next(&mut client).is_err());
        assert!(stop.join().expect("no panic"));
    });
}

#[test]
fn k6_a_client_that_reads_nothing_costs_little_and_hinders_nobody() {
    let rig = Rig::new(1, None, |_| {});
    let mute = open(&rig, "/ws");
    let mut client = open(&rig, "/ws");
    eventually("both watch", || rig.api.watchers().load(std::sync::atomic::Ordering::Relaxed) == 2);
    let chunk = "x".repeat(16 << 10);
    let begun = Instant::now();
    for offset in 0..4000u64 {
        rig.api.publish(&Event::WorkerStream {
            name: "a".into(),
            stream: "stdout".into(),
            chunk: chunk.clone(),
            offset,
        });
        rig.api.publish(&released(offset));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "the publisher never waits: {:?}", begun.elapsed());
    // The reader was slower than the publisher too: it sees numbers that only grow, and in the end the newest.
    let mut last = 0;
    while last < 4000 {
        let event = frame(&mut client);
        if let Some(seq) = event["seq"].as_u64() {
            let gap = event["kind"] == "replay_gap";
            assert!(if gap { seq >= last } else { seq == last + 1 }, "{event} after {last}");
            last = seq;
        }
    }
    drop(mute);
}

// ---------------------------------------------------------------------------------------------------------- keystrokes

fn known(call: &ApiCall) -> Option<ApiAnswer> {
    match call {
        ApiCall::DeliveryMode { .. } => ok(json!({"mode": "auto_inject"})),
        ApiCall::Type { name, bytes } => ok(typed(name, bytes.len())),
        other => panic!("{other:?}"),
    }
}

/// A stream whose calls the test answers itself.
fn open_by_hand(rig: &Rig) -> Client {
    std::thread::scope(|scope| {
        let client = scope.spawn(|| open(rig, "/api/input/a/stream"));
        let (ticket, call) = rig.next_call();
        assert_eq!(call, ApiCall::DeliveryMode { name: "a".into() });
        rig.api.answer(ticket, known(&call).expect("an answer"));
        let mut client = client.join().expect("an upgrade");
        assert_eq!(frame(&mut client), json!({"type": "pty_input_ready", "name": "a"}));
        client
    })
}

fn bytes_of(call: ApiCall) -> String {
    match call {
        ApiCall::Type { name, bytes } => {
            assert_eq!(name, "a");
            String::from_utf8(bytes).expect("UTF-8")
        }
        other => panic!("{other:?}"),
    }
}

fn ack(bytes: usize) -> Value {
    json!({"type": "pty_input_ack", "name": "a", "bytes_written": bytes})
}

#[test]
fn keystrokes_are_typed_and_acknowledged() {
    let rig = Rig::answering(known);
    let mut client = open(&rig, "/api/input/a/stream");
    assert_eq!(frame(&mut client), json!({"type": "pty_input_ready", "name": "a"}));
    rig.asked();
    for message in [
        Message::text("ls\r"),
        Message::text("{\"type\":\"pty_input\",\"data\":\"ä\"}"),
        Message::text("{\"not\":\"ours\"}"),
        Message::text("{"),
        Message::binary("ö".as_bytes()),
        Message::binary(vec![0xff]),
        Message::text("{\"type\":\"pty_input\"}"),
        Message::text(""),
        Message::text("x"),
    ] {
        client.send(message).expect("open");
    }
    for bytes in [3, 2, 14, 1, 2] {
        assert_eq!(frame(&mut client), ack(bytes));
    }
    for _ in 0..2 {
        let error = frame(&mut client);
        assert_eq!(
            (&error["type"], &error["code"], &error["statusCode"], &error["retryable"]),
            (&json!("pty_input_error"), &json!("invalid_input"), &json!(400), &json!(false))
        );
    }
    assert_eq!((frame(&mut client), frame(&mut client)), (ack(0), ack(1)));
    let typed: Vec<String> = rig.asked().into_iter().map(bytes_of).collect();
    assert_eq!(typed, ["ls\r", "ä", "{\"not\":\"ours\"}", "{", "ö", "", "x"]);
    client.close(None).expect("open");
    assert_eq!(close_code(&mut client), None);
}

#[test]
fn acks_keep_the_order_of_arrival_whatever_the_order_of_the_answers() {
    let rig = Rig::new(64, None, |_| {});
    let mut client = open_by_hand(&rig);
    for text in ["1", "22", "333"] {
        client.send(Message::text(text)).expect("open");
    }
    // All three are on their way before the first is answered.
    let tickets: Vec<Ticket> = ["1", "22", "333"]
        .map(|text| {
            let (ticket, call) = rig.next_call();
            assert_eq!(bytes_of(call), text);
            ticket
        })
        .into();
    for (at, bytes) in [(2, 3), (0, 1), (1, 2)] {
        rig.api.answer(tickets[at], ok(typed("a", bytes)).expect("an answer"));
    }
    for bytes in 1..=3 {
        assert_eq!(frame(&mut client), ack(bytes));
    }
}

#[test]
fn unknown_agents_are_told_over_the_socket() {
    for (status, body, code) in [
        (404, agent_not_found("a"), "agent_not_found"),
        (409, crate::wire::api::unsupported_runtime("a"), "unsupported_runtime"),
    ] {
        let rig = Rig::answering(move |_| Some(ApiAnswer { status, body: body.clone() }));
        let mut client = open(&rig, "/api/input/a/stream");
        let error = frame(&mut client);
        assert_eq!(
            (&error["type"], &error["code"], &error["statusCode"], &error["retryable"]),
            (&json!("pty_input_error"), &json!(code), &json!(status), &json!(false))
        );
        assert!(error["message"].as_str().unwrap().contains('a'), "{error}");
        assert_eq!(close_code(&mut client), None);
    }
}

#[test]
fn a_failed_write_fails_alone_and_a_missing_agent_ends_the_stream() {
    let rig = Rig::new(64, None, |_| {});
    let mut client = open_by_hand(&rig);
    for text in ["1", "2", "3"] {
        client.send(Message::text(text)).expect("open");
    }
    let tickets: Vec<Ticket> = (0..3).map(|_| rig.next_call().0).collect();
    let busy = json!({"code": "pty_write_queue_full", "message": "later"});
    rig.api.answer(tickets[0], ApiAnswer { status: 503, body: busy });
    rig.api.answer(tickets[1], ok(typed("a", 1)).expect("an answer"));
    rig.api.answer(tickets[2], ApiAnswer { status: 404, body: agent_not_found("a") });
    let error = frame(&mut client);
    assert_eq!((&error["code"], &error["retryable"]), (&json!("pty_write_queue_full"), &json!(true)));
    assert_eq!(frame(&mut client), ack(1));
    assert_eq!(frame(&mut client)["code"], "agent_not_found");
    assert_eq!(close_code(&mut client), None);
}

#[test]
fn the_end_of_an_agent_ends_its_streams_at_once() {
    let rig = Rig::answering(known);
    let mut client = open(&rig, "/api/input/a/stream");
    let mut other = open(&rig, "/api/input/b/stream");
    frame(&mut client);
    frame(&mut other);
    rig.api.publish(&Event::AgentExited {
        name: "a".into(),
        end: Box::new(Ending { code: Some(0), reason: "child_exited".into(), ..Ending::default() }),
    });
    let error = frame(&mut client);
    assert_eq!((&error["code"], &error["statusCode"]), (&json!("agent_not_found"), &json!(404)));
    assert_eq!(close_code(&mut client), None);
    other.send(Message::text("x")).expect("open");
    assert_eq!(frame(&mut other)["type"], "pty_input_ack", "another agent's stream goes on");
}

#[test]
fn a_terminal_that_takes_nothing_ends_the_stream_after_its_time() {
    let rig = Rig::new(64, None, |patience| patience.no_progress = Duration::from_millis(200));
    let mut client = open_by_hand(&rig);
    client.send(Message::text("1")).expect("open");
    let (ticket, _) = rig.next_call();
    // Progress within the time keeps it open.
    std::thread::park_timeout(Duration::from_millis(120));
    client.send(Message::text("2")).expect("open");
    rig.api.answer(ticket, ok(typed("a", 1)).expect("an answer"));
    assert_eq!(frame(&mut client), ack(1));
    let begun = Instant::now();
    let error = frame(&mut client);
    assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
    assert_eq!((&error["code"], &error["statusCode"]), (&json!("pty_write_failed"), &json!(503)));
    assert_eq!(close_code(&mut client), None);
    drop(client);
    eventually("nothing waits for an answer", || rig.api.calls.waiting() == 0);
}

#[test]
fn input_waits_in_the_socket_while_the_terminal_is_busy() {
    let rig = Rig::new(1000, None, |_| {});
    let mut client = open_by_hand(&rig);
    for n in 0..300 {
        client.write(Message::text(n.to_string())).expect("open");
    }
    client.flush().expect("open");
    let mut waiting = Vec::new();
    eventually("the stream takes what it may have under way", || {
        while let Ok(Input::Api { ticket, call }) = rig.inputs.try_recv() {
            waiting.push((ticket, *call));
        }
        waiting.len() >= 64
    });
    std::thread::park_timeout(Duration::from_millis(30));
    assert!(rig.inputs.is_empty(), "no more than that");
    assert_eq!(waiting.len(), 64);
    // From now on everything is answered, and everything arrives in order.
    let mut seen = 0;
    while seen < 300 {
        let (ticket, call) = if waiting.is_empty() { rig.next_call() } else { waiting.remove(0) };
        assert_eq!(bytes_of(call), seen.to_string());
        rig.api.answer(ticket, ok(typed("a", seen)).expect("an answer"));
        seen += 1;
    }
    for n in 0..300 {
        assert_eq!(frame(&mut client), ack(n));
    }
}

#[test]
fn a_full_queue_of_the_loop_delays_keystrokes_and_loses_none() {
    let rig = Rig::new(2, None, |_| {});
    let mut client = open_by_hand(&rig);
    for n in 0..20 {
        client.send(Message::text(n.to_string())).expect("open");
    }
    eventually("the queue is full", || rig.inputs.is_full());
    std::thread::park_timeout(Duration::from_millis(50));
    for n in 0..20 {
        let (ticket, call) = rig.next_call();
        assert_eq!(bytes_of(call), n.to_string());
        rig.api.answer(ticket, ok(typed("a", n)).expect("an answer"));
    }
    for n in 0..20 {
        assert_eq!(frame(&mut client), ack(n));
    }
}
