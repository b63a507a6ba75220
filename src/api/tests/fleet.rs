//! The door for sidecars.

use tungstenite::{Error, Message};

use super::sockets::{Client, close_code, frame, next, open};
use super::*;
use crate::api::fleet::FleetSocket;
use crate::core::ports::{SidecarCommand, SidecarGeneration, SidecarNote};
use crate::http::{Outgoing, Session, Waker};
use crate::wire::node::ActionOutcome;

const PATH: &str = "/api/fleet/ws";

/// A rig whose test is the loop.
fn by_hand(queue: usize) -> Rig {
    Rig::new(queue, None, |_| {})
}

impl Rig {
    fn input(&self) -> Input {
        self.inputs.recv_timeout(PATIENCE).expect("an input")
    }

    #[track_caller]
    fn noted(&self, generation: SidecarGeneration, note: SidecarNote) {
        assert_eq!(self.input(), Input::Sidecar { generation, note });
    }

    #[track_caller]
    fn gone(&self, generation: SidecarGeneration, reason: &str) {
        self.noted(generation, SidecarNote::Gone { reason: reason.into() });
    }

    /// A connection that the loop has been told of.
    #[track_caller]
    fn sidecar(&self, generation: SidecarGeneration) -> Client {
        let client = open(self, PATH);
        self.noted(generation, SidecarNote::Attached);
        client
    }

    fn reply(&self, ticket: Ticket, status: u16, body: Value) {
        self.api.answer(ticket, ApiAnswer { status, body });
    }

    fn invoke(&self, generation: SidecarGeneration, name: &str, input: Value) {
        let command = SidecarCommand::Invoke { invocation_id: "i1".into(), name: name.into(), input };
        self.api.sidecar(generation, command);
    }
}

fn say(client: &mut Client, kind: &str, id: &str, payload: Value) {
    let envelope = json!({"v": 2, "type": kind, "request_id": id, "payload": payload});
    client.send(Message::text(envelope.to_string())).expect("open");
}

fn input_of(number: usize) -> Value {
    json!({"name": "a", "data": number.to_string()})
}

/// The number that a call of [`input_of`] carries.
fn number_of(call: ApiCall) -> usize {
    match call {
        ApiCall::Type { bytes, .. } => String::from_utf8(bytes).unwrap().parse().expect("a number"),
        other => panic!("{other:?}"),
    }
}

fn ok_of(id: &str, result: Value) -> Value {
    json!({"v": 2, "type": "ok", "request_id": id, "payload": {"result": result}})
}

fn error_of(id: Value, code: &str, message: &str) -> Value {
    let payload = json!({"code": code, "message": message, "retryable": false});
    json!({"v": 2, "type": "error", "request_id": id, "payload": payload})
}

#[test]
fn frames_are_answered_on_the_spot_or_by_the_loop() {
    let rig = by_hand(64);
    let mut client = rig.sidecar(1);
    say(&mut client, "hello", "h", json!({"client_name": "c"}));
    let hello = json!({"broker_version": env!("CARGO_PKG_VERSION"), "protocol_version": 2});
    assert_eq!(frame(&mut client), ok_of("h", hello));
    // What is no frame costs nothing but an answer.
    client.send(Message::text("nonsense")).expect("open");
    client.send(Message::binary(vec![1])).expect("open");
    client.send(Message::text(r#"{"v":3,"type":"hello","request_id":"x"}"#)).expect("open");
    let broken = frame(&mut client);
    assert_eq!((&broken["request_id"], &broken["payload"]["code"]), (&Value::Null, &json!("invalid_frame")));
    assert_eq!(frame(&mut client), error_of(Value::Null, "invalid_frame", "frames are text messages"));
    assert_eq!(frame(&mut client), error_of(Value::Null, "invalid_frame", "`v` must be 2"));
    say(&mut client, "send_input", "s", json!({"name": "a"}));
    assert_eq!(frame(&mut client), error_of(json!("s"), "frame_failed", "missing field `data`"));
    // The answers of the loop.
    let table = [
        (200, json!({"agents": []}), ok_of("q", json!({"agents": []}))),
        (
            404,
            json!({"code": "agent_not_found", "message": "no such"}),
            error_of(json!("q"), "frame_failed", "no such"),
        ),
        (500, json!({"success": false, "error": "why"}), error_of(json!("q"), "frame_failed", "why")),
        (
            404,
            json!({"code": "unknown_invocation", "message": "none"}),
            error_of(json!("q"), "unknown_invocation", "none"),
        ),
        (503, json!({"code": "connect_failed", "message": "off"}), error_of(json!("q"), "connect_failed", "off")),
        (418, json!({}), error_of(json!("q"), "frame_failed", "the request failed with status 418")),
    ];
    for (status, body, expected) in table {
        say(&mut client, "list_agents", "q", json!({}));
        let (ticket, call) = rig.next_call();
        assert_eq!(call, ApiCall::ListAgents);
        rig.reply(ticket, status, body);
        assert_eq!(frame(&mut client), expected);
    }
    assert_eq!(rig.raw("GET /health", "").json()["wsConnections"], 1);
}

#[test]
fn calls_reach_the_loop_in_order_between_the_notes_and_answers_come_in_any() {
    let rig = by_hand(64);
    let mut client = open(&rig, PATH);
    for number in 0..20 {
        say(&mut client, "send_input", &format!("r{number}"), input_of(number));
    }
    rig.noted(1, SidecarNote::Attached);
    let tickets: Vec<Ticket> = (0..20)
        .map(|number| {
            let (ticket, call) = rig.next_call();
            assert_eq!(number_of(call), number);
            ticket
        })
        .collect();
    for number in [19, 3, 0] {
        rig.reply(tickets[number], 200, json!(number));
        assert_eq!(frame(&mut client), ok_of(&format!("r{number}"), json!(number)));
    }
    say(&mut client, "send_input", "last", input_of(20));
    client.close(None).expect("open");
    assert_eq!(close_code(&mut client), None);
    assert_eq!(number_of(rig.next_call().1), 20);
    rig.gone(1, "the connection ended");
    assert_eq!(rig.api.calls.waiting(), 0, "nobody waits for what the sidecar asked");
    eventually("it is counted no more", || rig.api.health().body().ws_connections == 0);
}

#[test]
fn a_result_overtakes_a_spawn_that_waits() {
    let rig = by_hand(64);
    let mut client = rig.sidecar(1);
    rig.invoke(1, "spawn:x", json!({"name": "a"}));
    let payload = json!({"invocation_id": "i1", "name": "spawn:x", "input": {"name": "a"}});
    let invoke = json!({"v": 2, "type": "invoke_handler", "request_id": null, "payload": payload});
    assert_eq!(frame(&mut client), invoke);
    say(&mut client, "spawn_agent", "s", json!({"agent": {"name": "a", "cli": "x"}, "invocation_id": "i1"}));
    say(&mut client, "handler_result", "h", json!({"invocation_id": "i2", "output": 1}));
    let (spawn, call) = rig.next_call();
    assert!(matches!(call, ApiCall::Spawn(request) if request.sidecar == Some(1)));
    let (ticket, call) = rig.next_call();
    let outcome = ActionOutcome::Output(json!(1));
    assert_eq!(call, ApiCall::HandlerResult { sidecar: 1, invocation_id: "i2".into(), outcome });
    rig.reply(ticket, 200, json!({"completed": true}));
    assert_eq!(frame(&mut client), ok_of("h", json!({"completed": true})));
    rig.invoke(1, "other", Value::Null);
    assert_eq!(frame(&mut client)["payload"]["name"], "other");
    rig.reply(spawn, 200, json!({"success": true}));
    assert_eq!(frame(&mut client)["request_id"], "s");
}

#[test]
fn sixty_four_calls_in_flight_and_no_more() {
    let rig = by_hand(256);
    let mut client = rig.sidecar(1);
    for number in 0..100 {
        say(&mut client, "send_input", "r", input_of(number));
    }
    let tickets: Vec<Ticket> = (0..64).map(|_| rig.next_call().0).collect();
    // The 65th is not read while none is answered; a ping of the client waits with it.
    assert!(rig.inputs.recv_timeout(Duration::from_millis(200)).is_err());
    rig.reply(tickets[40], 200, json!({}));
    assert_eq!(number_of(rig.next_call().1), 64);
    assert!(rig.inputs.recv_timeout(Duration::from_millis(100)).is_err());
    drop(client);
}

#[test]
fn a_full_loop_delays_calls_and_loses_none_of_the_notes() {
    let rig = by_hand(1);
    let fill = || rig.api.calls.post(ApiCall::Status, |_| {}).map(|_| ()).expect("room");
    fill();
    let mut client = open(&rig, PATH);
    say(&mut client, "send_input", "r", input_of(0));
    say(&mut client, "send_input", "r", input_of(1));
    say(&mut client, "hello", "h", json!({}));
    assert_eq!(rig.next_call().1, ApiCall::Status);
    rig.noted(1, SidecarNote::Attached);
    assert_eq!(number_of(rig.next_call().1), 0);
    assert_eq!(number_of(rig.next_call().1), 1);
    assert_eq!(frame(&mut client)["request_id"], "h");
    // Its end finds no room either.
    fill();
    drop(client);
    eventually("the connection has ended", || rig.api.health().body().ws_connections == 0);
    assert_eq!(rig.next_call().1, ApiCall::Status);
    rig.gone(1, "the connection ended");
}

#[test]
fn a_connection_that_the_loop_never_heard_of_leaves_no_note() {
    let rig = by_hand(1);
    rig.api.calls.post(ApiCall::Status, |_| {}).expect("room");
    let mut session = FleetSocket::new(&rig.api.sidecars, &rig.api.calls, &rig.api.health, PATIENCE);
    session.opened(Waker::new().expect("a descriptor"));
    assert!(!session.wants_input(), "nothing is read before the loop knows");
    assert!(matches!(session.next(), Outgoing::Wait(_)));
    session.closed();
    drop(session);
    assert_eq!(rig.next_call().1, ApiCall::Status);
    let _other = rig.sidecar(1);
}

#[test]
fn each_connection_has_a_number_and_the_loop_closes_the_older() {
    let rig = by_hand(64);
    let (mut one, mut two) = (rig.sidecar(1), rig.sidecar(2));
    rig.invoke(1, "first", Value::Null);
    rig.api.sidecar(1, SidecarCommand::Close { reason: "superseded" });
    rig.invoke(1, "late", Value::Null);
    rig.invoke(2, "second", Value::Null);
    rig.invoke(3, "nobody", Value::Null);
    assert_eq!(frame(&mut one)["payload"]["name"], "first", "what was queued is still written");
    match next(&mut one) {
        Ok(Message::Close(Some(close))) => {
            assert_eq!((u16::from(close.code), close.reason.as_str()), (1000, "superseded"));
        }
        other => panic!("{other:?}"),
    }
    // The client's library answers the Close when it reads on.
    assert!(matches!(one.read(), Err(Error::ConnectionClosed | Error::Protocol(_) | Error::Io(_))));
    rig.gone(1, "superseded");
    assert_eq!(frame(&mut two)["payload"]["name"], "second");
    assert_eq!(rig.inputs.len(), 0);
}

#[test]
fn a_sidecar_that_takes_nothing_is_cut_when_its_queue_is_full() {
    let rig = by_hand(64);
    let client = rig.sidecar(1);
    let input = json!("x".repeat(1 << 20));
    let begun = Instant::now();
    // The sockets' buffers take some; 128 frames or 32 MiB wait; then it is over. The loop never waits.
    for _ in 0..200 {
        rig.invoke(1, "deploy", input.clone());
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    rig.gone(1, "queue full");
    drop(client);
    let mut second = rig.sidecar(2);
    for number in 0..100 {
        rig.invoke(2, &number.to_string(), Value::Null);
    }
    for number in 0..100 {
        assert_eq!(frame(&mut second)["payload"]["name"], number.to_string(), "and one that reads gets everything");
    }
}

#[test]
fn a_call_that_the_loop_does_not_answer_is_given_up() {
    let rig = Rig::new(64, None, |patience| patience.call = Duration::from_millis(100));
    let mut client = rig.sidecar(1);
    say(&mut client, "list_agents", "q", json!({}));
    let (ticket, _) = rig.next_call();
    assert_eq!(frame(&mut client), error_of(json!("q"), "frame_failed", "broker request timed out"));
    rig.reply(ticket, 200, json!({}));
    say(&mut client, "hello", "h", json!({}));
    assert_eq!(frame(&mut client)["request_id"], "h", "its late answer goes nowhere");
}

#[test]
fn the_brokers_end_is_told_with_1000() {
    let rig = by_hand(64);
    let mut client = rig.sidecar(1);
    say(&mut client, "list_agents", "q", json!({}));
    rig.next_call();
    std::thread::scope(|scope| {
        rig.api.close();
        let stop = scope.spawn(|| rig.server.stop(Duration::from_secs(3)));
        assert_eq!(frame(&mut client), error_of(json!("q"), "frame_failed", "the broker is shutting down"));
        assert_eq!(close_code(&mut client), Some(1000));
        assert!(next(&mut client).is_err());
        assert!(stop.join().expect("no panic"));
    });
}

#[test]
fn the_door_needs_the_key_and_an_upgrade() {
    let rig = by_hand(64);
    let upgrade = "\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: eA==";
    assert_eq!(rig.raw(&format!("GET {PATH}{upgrade}"), "").status, 401);
    assert_eq!(rig.raw(&format!("GET {PATH}{upgrade}\nX-API-Key: wrong"), "").status, 401);
    assert_eq!(rig.send(&format!("GET {PATH}"), "").status, 426);
    assert_eq!(rig.send(&format!("POST {PATH}{upgrade}"), "").status, 405);
    assert_eq!(rig.inputs.len(), 0, "the loop hears of none of them");
}
