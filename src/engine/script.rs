//! A scripted HTTP server for the tests: one closure answers every request; every request is kept.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What the script does with a request.
pub enum Reply {
    /// Status and body.
    Text(u16, String),
    /// Status, one more header, body.
    With(u16, (&'static str, String), String),
    /// Reads the request and closes without an answer.
    Cut,
    /// Half an answer, then the end.
    Half,
    /// Never answers.
    Hang,
}

/// `{"ok":true,"data":…}` with a status.
pub fn ok(status: u16, data: Value) -> Reply {
    Reply::Text(status, serde_json::json!({"ok": true, "data": data, "extra": 1}).to_string())
}

/// `{"ok":false,"error":…}` with a status.
pub fn error(status: u16, code: &str) -> Reply {
    let body = serde_json::json!({"ok": false, "error": {"code": code, "message": format!("says {code}")}});
    Reply::Text(status, body.to_string())
}

pub struct Script {
    pub base: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Script {
    /// Serves until the process ends; `answer` gets the request and its number from 0.
    pub fn serve(answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Script {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (kept, answer) = (kept.clone(), answer.clone());
                std::thread::spawn(move || while connection(&socket, &kept, &*answer).is_some() {});
            }
        });
        Script { base, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test thread panics with it").clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

fn connection(
    mut socket: &TcpStream,
    kept: &Mutex<Vec<Seen>>,
    answer: &(dyn Fn(&Seen, usize) -> Reply + Send + Sync),
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0u8];
        socket.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_string(), first.next()?.to_string());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_string(), value.to_string())))
        .collect();
    let length = headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().expect("a length"));
    let mut body = vec![0; length];
    socket.read_exact(&mut body).ok()?;
    let seen = Seen { method, path, headers, body, at: Instant::now() };
    let number = {
        let mut kept = kept.lock().expect("no test thread panics with it");
        kept.push(seen.clone());
        kept.len() - 1
    };
    let (status, extra, body) = match answer(&seen, number) {
        Reply::Text(status, body) => (status, None, body),
        Reply::With(status, header, body) => (status, Some(header), body),
        Reply::Cut => return None,
        Reply::Half => {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"ok\":true,");
            return None;
        }
        Reply::Hang => {
            socket.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
            let _ = socket.read(&mut [0]);
            return None;
        }
    };
    let extra = extra.map(|(key, value)| format!("{key}: {value}\r\n")).unwrap_or_default();
    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{extra}\r\n{body}", body.len());
    socket.write_all(answer.as_bytes()).ok()
}
