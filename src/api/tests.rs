//! The API over real sockets, with a loop that answers as told.

mod fleet;
mod http;
mod readme;
mod sockets;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Value, json};

use super::*;
use crate::core::ports::ApiCall;
use crate::http::Server;
use crate::sys::threads::{self, Thread};

const PATIENCE: Duration = Duration::from_secs(10);
const KEY: &str = "br_test";

type Respond = dyn Fn(&ApiCall) -> Option<ApiAnswer> + Send + Sync;

/// A served API and the far end of its calls.
struct Rig {
    api: Arc<Api>,
    server: Server,
    /// What the loop thread was asked; empty when the test answers itself.
    asked: Arc<Mutex<Vec<ApiCall>>>,
    inputs: Receiver<Input>,
    _loop: Option<Thread>,
}

fn ok(body: Value) -> Option<ApiAnswer> {
    Some(ApiAnswer { status: 200, body })
}

impl Rig {
    /// A loop thread that answers with `respond`, or not at all when that says `None`.
    fn answering(respond: impl Fn(&ApiCall) -> Option<ApiAnswer> + Send + Sync + 'static) -> Rig {
        Rig::new(64, Some(Box::new(respond)), |_| {})
    }

    fn new(queue: usize, respond: Option<Box<Respond>>, change: impl FnOnce(&mut Patience)) -> Rig {
        let (sender, inputs) = bounded(queue);
        let mut patience = Patience { call: PATIENCE, snapshot: PATIENCE, no_progress: PATIENCE };
        change(&mut patience);
        let settings = Settings {
            key: Secret::new(KEY),
            bind: "127.0.0.1".into(),
            host_names: vec!["dev.box".into()],
            continuity: std::env::temp_dir().join("broker-no-continuity"),
        };
        let api = Arc::new(Api::with_patience(settings, sender.into(), patience));
        let server = Server::bind("127.0.0.1", 0)
            .and_then(|bound| bound.serve(limits(), api.clone(), "http-"))
            .expect("a server");
        let asked: Arc<Mutex<Vec<ApiCall>>> = Arc::default();
        let loop_ = respond.map(|respond| {
            // Weak: the channel must close with the API, or the thread would live for ever.
            let (api, inputs, asked) = (Arc::downgrade(&api), inputs.clone(), asked.clone());
            threads::spawn("fake-loop", move || {
                while let Ok(input) = inputs.recv() {
                    let Input::Api { ticket, call } = input else { continue };
                    let answer = respond(&call);
                    asked.lock().unwrap().push(*call);
                    if let (Some(answer), Some(api)) = (answer, api.upgrade()) {
                        api.answer(ticket, answer);
                    }
                }
            })
            .expect("a thread")
        });
        Rig { api, server, asked, inputs, _loop: loop_ }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.local_addr()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
    }

    /// One request on a connection of its own; `head` is its first line without the version and further headers.
    fn raw(&self, head: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let headers: String = headers.lines().map(|header| format!("{header}\r\n")).collect();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let text = format!("{line} HTTP/1.1\r\nConnection: close\r\n{headers}{length}\r\n{body}");
        stream.write_all(text.as_bytes()).expect("open");
        let mut all = String::new();
        stream.read_to_string(&mut all).expect("an answer");
        let (head, body) = all.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        Answer { status, head: head.into(), body: body.into() }
    }

    /// With the key, and JSON when there is a body.
    fn send(&self, line: &str, body: &str) -> Answer {
        let kind = if body.is_empty() { "" } else { "\nContent-Type: application/json" };
        self.raw(&format!("{line}\nX-API-Key: {KEY}{kind}"), body)
    }

    fn asked(&self) -> Vec<ApiCall> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The next call of a rig without a loop thread.
    fn next_call(&self) -> (Ticket, ApiCall) {
        match self.inputs.recv_timeout(PATIENCE).expect("a call") {
            Input::Api { ticket, call } => (ticket, *call),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.api.close();
        self.server.stop(Duration::from_secs(2));
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.head.contains("Content-Type: application/json"), "{self:?}");
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line == header)
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
