//! Frames of the node socket, both directions, and of sidecars: what is accepted says the same once it is written and read again.

use agent_relay_broker::core::payload;
use agent_relay_broker::wire::fleet::{ENVELOPE_VERSION, Envelope, Manifest, Supervision};
use agent_relay_broker::wire::node::{AgentRegistered, Deliver, FRAME_VERSION, FromEngine, ToEngine};
use serde_json::{Value, json};

use crate::corpus;
use crate::run::{Target, Verdict};

/// The frame as the engine would write it.
fn written(frame: &FromEngine) -> Value {
    match frame {
        FromEngine::Deliver(Deliver { agent, agent_id, delivery_id, msg_id, seq, mode, payload }) => json!({
            "type": "deliver", "v": FRAME_VERSION, "agent": agent, "agent_id": agent_id, "delivery_id": delivery_id,
            "msg_id": msg_id, "seq": seq, "mode": mode.as_str(), "payload": payload}),
        FromEngine::ActionInvoke(invoke) => json!({
            "type": "action.invoke", "v": FRAME_VERSION, "invocation_id": invoke.invocation_id, "action": invoke.action,
            "input": invoke.input, "agent_id": invoke.agent_id, "agent_name": invoke.agent_name}),
        FromEngine::Ping => json!({"type": "ping", "v": FRAME_VERSION}),
        FromEngine::Reply { id, data } => json!({"type": "reply", "v": FRAME_VERSION, "id": id, "data": data}),
        FromEngine::Error { id, code, message } => {
            json!({"type": "error", "v": FRAME_VERSION, "id": id, "code": code, "message": message})
        }
        FromEngine::ContextUpdate => json!({"type": "context.update", "v": FRAME_VERSION}),
        FromEngine::Unknown { kind } => json!({"type": kind, "v": FRAME_VERSION}),
    }
}

/// Equal but for the last digit of fractions, which the parser does not promise.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|found| same(value, found)))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= a.abs() * 1e-12
        }
        _ => one == other,
    }
}

#[test]
fn frames_from_the_engine() {
    let target =
        Target { name: "frames_from", corpus: corpus::frames_from_the_engine(), words: corpus::FRAME_WORDS, share: 5 };
    target.run(|input, _| {
        // The socket hands over nothing but UTF-8.
        let text = String::from_utf8_lossy(input);
        let frame = match FromEngine::decode(&text) {
            Ok(frame) => frame,
            Err(error) => {
                assert!(error.to_string().len() < 300 + text.len(), "{error}");
                return Verdict::Refused;
            }
        };
        let again = written(&frame);
        let read = FromEngine::decode(&again.to_string()).expect("a frame that was accepted");
        assert!(same(&written(&read), &again), "{again}\nbecame {}", written(&read));
        match &frame {
            FromEngine::Deliver(deliver) => {
                assert!(!deliver.agent.is_empty() && !deliver.msg_id.is_empty() && !deliver.payload.is_null());
                let message = payload::message(deliver);
                // Short numbers are written out: 1e15.
                assert!(message.body.len() <= 8 * text.len() + 64, "{} bytes of {}", message.body.len(), text.len());
                payload::unrepeated_key(deliver);
                payload::class(payload::kind(&deliver.payload));
            }
            FromEngine::Reply { data, .. } => {
                if let Some(registered) = AgentRegistered::from_data(data) {
                    assert!(!registered.agent_id.trim().is_empty() && !registered.token.trim().is_empty());
                }
            }
            _ => {}
        }
        Verdict::Accepted
    });
}

#[test]
fn frames_to_the_engine() {
    let target =
        Target { name: "frames_to", corpus: corpus::frames_to_the_engine(), words: corpus::FRAME_WORDS, share: 5 };
    target.run(|input, _| {
        let text = String::from_utf8_lossy(input);
        let Ok(frame) = serde_json::from_str::<ToEngine>(&text) else { return Verdict::Refused };
        let again = frame.encode();
        let read: ToEngine = serde_json::from_str(&again).expect("a frame that was accepted");
        let value = |frame: &ToEngine| serde_json::to_value(frame).expect("a frame is JSON");
        assert!(same(&value(&read), &value(&frame)), "{again}");
        // What is optional is left out and never null, but for the cursor and what others put into free fields.
        let Value::Object(fields) = serde_json::from_str(&again).unwrap() else { panic!("{again}") };
        let nulls = fields
            .iter()
            .filter(|(key, value)| value.is_null() && !["resume_cursor", "output"].contains(&key.as_str()));
        assert_eq!(nulls.count(), 0, "{again}");
        assert_eq!(fields["v"], FRAME_VERSION);
        Verdict::Accepted
    });
}

/// A part of a payload that is read says the same when it is read again.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(part: &Value) {
    let Ok(read) = serde_json::from_value::<T>(part.clone()) else { return };
    let written = serde_json::to_value(read).expect("what was read is JSON");
    let reread: T = serde_json::from_value(written.clone()).expect("what was accepted");
    assert!(same(&serde_json::to_value(reread).unwrap(), &written), "{written}");
}

#[test]
fn frames_of_a_sidecar() {
    let target =
        Target { name: "frames_of", corpus: corpus::frames_of_a_sidecar(), words: corpus::FRAME_WORDS, share: 5 };
    target.run(|input, _| {
        let text = String::from_utf8_lossy(input);
        let envelope = match Envelope::read(&text) {
            Ok(envelope) => envelope,
            Err(why) => {
                assert!(!why.is_empty() && why.len() < 300 + text.len(), "{why}");
                return Verdict::Refused;
            }
        };
        assert!(!envelope.kind.is_empty() && !envelope.payload.is_null());
        let written = json!({"v": ENVELOPE_VERSION, "type": envelope.kind, "request_id": envelope.request_id,
            "payload": envelope.payload});
        let read = Envelope::read(&written.to_string()).expect("an envelope that was accepted");
        assert_eq!((&read.kind, &read.request_id), (&envelope.kind, &envelope.request_id));
        assert!(same(&read.payload, &envelope.payload), "{written}");
        again::<Manifest>(&envelope.payload["manifest"]);
        again::<Supervision>(&envelope.payload["supervision"]);
        Verdict::Accepted
    });
}
