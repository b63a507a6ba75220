//! An engine that answers registrations as a recording says, and writes down what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub struct Stub {
    pub url: String,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Stub {
    /// `mode` as in the recordings: `ok`, a status, `409-then-rotate`, or `hang`; `429-soon` says when to come
    /// again.
    pub fn start(mode: &str) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (mode, seen) = (mode.to_string(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mode, seen) = (mode.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &mode, &seen));
            }
        });
        Stub { url, requests }
    }

    pub fn requests(&self) -> Vec<Value> {
        self.requests.lock().expect("no panic").clone()
    }
}

/// Requests of one connection. One that is kept waiting ends with the test.
fn serve(stream: TcpStream, mode: &str, seen: &Mutex<Vec<Value>>) {
    let mut out = stream.try_clone().expect("a second handle");
    let mut stream = BufReader::new(stream);
    while let Some((method, path, authorization, body)) = read(&mut stream) {
        let request = json!({"method": method, "path": path, "authorization": authorization, "body": body});
        seen.lock().expect("no panic").push(request);
        let row = |token: &str| {
            let data = json!({"id": "a_1", "workspace_id": "ws_1", "name": "a", "token": token,
                "status": "online", "created_at": "2026-01-01T00:00:00Z"});
            (200, json!({"ok": true, "data": data}))
        };
        let refused = |status: u16, code: &str, message: &str| {
            (status, json!({"ok": false, "error": {"code": code, "message": message}}))
        };
        let (status, answer) = match (mode, path.as_str()) {
            ("hang", _) => {
                // The caller gives up and closes.
                let _ = stream.read(&mut [0u8; 1]);
                return;
            }
            ("ok", _) => row("at_live_minted"),
            ("409-then-rotate", "/v1/agents/a/rotate-token") => row("at_live_rotated"),
            ("409" | "409-then-rotate", _) => refused(409, "agent_already_exists", "exists"),
            ("401", _) => refused(401, "unauthorized", "bad key"),
            ("400", _) => refused(400, "invalid_request", "nope"),
            ("429" | "429-soon", _) => refused(429, "rate_limit_exceeded", "slow down"),
            _ => refused(500, "internal_error", "broken"),
        };
        let body = answer.to_string();
        let again = if mode == "429-soon" { "Retry-After: 1\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{again}Content-Length: {}\r\n\r\n",
            body.len()
        );
        if out.write_all(format!("{head}{body}").as_bytes()).is_err() {
            return;
        }
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<(String, String, String, Value)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split(' ').map(str::to_string);
    let (method, path) = (words.next()?, words.next()?);
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = value.into(),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((method, path, authorization, serde_json::from_slice(&body).unwrap_or_default()))
}
