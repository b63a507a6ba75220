//! A sidecar as a raw WebSocket: it says what a test tells it to, and keeps what the broker says in between.

use std::net::TcpStream;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::broker::{Broker, KEY};
use crate::client;

pub struct Sidecar {
    socket: WebSocket<TcpStream>,
    /// Frames that nobody has asked for yet, in order.
    kept: Vec<Value>,
    asked: usize,
}

impl Sidecar {
    #[track_caller]
    pub fn connect(broker: &Broker) -> Sidecar {
        let stream = client::connect(&broker.address).expect("the broker listens");
        let mut request = format!("ws://{}/api/fleet/ws", broker.address).into_client_request().expect("a request");
        request.headers_mut().insert("X-API-Key", KEY.parse().expect("a value"));
        let (socket, _) = tungstenite::client(request, stream).expect("an upgrade");
        Sidecar { socket, kept: Vec::new(), asked: 0 }
    }

    /// Connects, says what the node is, and that its handlers are there: those of all capabilities.
    #[track_caller]
    pub fn register(broker: &Broker, name: &str, capabilities: &Value) -> Sidecar {
        let mut sidecar = Sidecar::connect(broker);
        let manifest = json!({"name": name, "capabilities": capabilities, "max_agents": 4, "tags": ["t"]});
        assert_eq!(sidecar.ask("register_node", json!({"manifest": manifest})), json!({"registered": true}));
        let names = capabilities.as_array().expect("a list").iter().map(|capability| &capability["name"]);
        let answer = sidecar.ask("register_handlers", json!({"names": names.collect::<Vec<_>>()}));
        assert_eq!(answer, json!({"handlers_live": true}));
        sidecar
    }

    /// Sends a frame; its request id.
    pub fn say(&mut self, kind: &str, payload: Value) -> String {
        self.asked += 1;
        let id = format!("r{}", self.asked);
        let envelope = json!({"v": 2, "type": kind, "request_id": id, "payload": payload});
        self.socket.send(Message::text(envelope.to_string())).expect("the connection is open");
        id
    }

    /// The next frame that is like this, whatever comes in between.
    #[track_caller]
    fn frame(&mut self, what: &str, like: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&like) {
            return self.kept.remove(at);
        }
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).expect("JSON");
                    if like(&frame) {
                        return frame;
                    }
                    self.kept.push(frame);
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("{other:?} instead of {what}; before it {:?}", self.kept),
            }
        }
    }

    #[track_caller]
    pub fn answer(&mut self, id: &str) -> Value {
        self.frame(&format!("the answer to {id}"), |frame| frame["request_id"] == id)
    }

    /// The result of a frame that must be carried out.
    #[track_caller]
    pub fn ask(&mut self, kind: &str, payload: Value) -> Value {
        let id = self.say(kind, payload.clone());
        let mut answer = self.answer(&id);
        assert_eq!(answer["type"], "ok", "{kind} {payload}: {answer}");
        answer["payload"]["result"].take()
    }

    /// Code and message of a frame that must fail.
    #[track_caller]
    pub fn fails(&mut self, kind: &str, payload: Value) -> (String, String) {
        let id = self.say(kind, payload.clone());
        let answer = self.answer(&id);
        assert_eq!(answer["type"], "error", "{kind} {payload}: {answer}");
        assert_eq!(answer["payload"]["retryable"], false);
        let text = |key: &str| answer["payload"][key].as_str().expect("a text").to_string();
        (text("code"), text("message"))
    }

    /// The next invocation: its id, the handler's name, the input.
    #[track_caller]
    pub fn invoked(&mut self) -> (String, String, Value) {
        let mut frame = self.frame("an invocation", |frame| frame["type"] == "invoke_handler");
        assert_eq!((&frame["v"], &frame["request_id"]), (&json!(2), &Value::Null));
        let payload = &mut frame["payload"];
        let text = |value: &Value| value.as_str().expect("a text").to_string();
        (text(&payload["invocation_id"]), text(&payload["name"]), payload["input"].take())
    }

    /// Code and reason of the Close that must come next.
    #[track_caller]
    pub fn closed(&mut self) -> (u16, String) {
        loop {
            match self.socket.read() {
                Ok(Message::Close(Some(close))) => {
                    // Answers it.
                    while self.socket.read().is_ok() {}
                    return (close.code.into(), close.reason.to_string());
                }
                Ok(Message::Text(text)) => self.kept.push(serde_json::from_str(&text).expect("JSON")),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("{other:?} instead of a Close; before it {:?}", self.kept),
            }
        }
    }
}
