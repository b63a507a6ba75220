//! A small HTTP client with deadlines, and a collector of the broker's events.

use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

use crate::wire;

/// Longer than any call may take.
const LIMIT: Duration = Duration::from_secs(35);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

pub fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().map_err(io::Error::other)?, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// The next answer on a connection.
pub fn read_answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let head = wire::read_head(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.start.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, text: String::from_utf8_lossy(&wire::read_body(stream, &head)?).into_owned() })
}

/// One exchange on a connection of its own. `credential` is a whole header line; a body is JSON.
pub fn call(address: &str, credential: &str, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{credential}\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = connect(address)?;
    stream.write_all(request.as_bytes())?;
    read_answer(&mut BufReader::new(stream))
}

/// Everything that `/ws` says from the first event on.
pub struct Events {
    seen: Arc<Mutex<Vec<Value>>>,
    /// Code of the Close frame; `None` inside when the connection ended without one.
    closed: Arc<Mutex<Option<Option<u16>>>>,
    stream: TcpStream,
}

impl Events {
    pub fn collect(address: &str, key: &str) -> io::Result<Events> {
        let stream = connect(address)?;
        let mut request = format!("ws://{address}/ws?sinceSeq=0").into_client_request().map_err(io::Error::other)?;
        request.headers_mut().insert("X-API-Key", key.parse().map_err(io::Error::other)?);
        let (mut socket, _) = tungstenite::client(request, stream.try_clone()?).map_err(io::Error::other)?;
        stream.set_read_timeout(None)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let closed = Arc::new(Mutex::new(None));
        let (into, end) = (seen.clone(), closed.clone());
        std::thread::spawn(move || {
            let code = loop {
                match socket.read() {
                    Ok(Message::Text(text)) => {
                        into.lock().unwrap().push(serde_json::from_str(&text).unwrap_or(Value::Null));
                    }
                    Ok(Message::Close(close)) => break close.map(|close| close.code.into()),
                    Ok(_) => {}
                    Err(_) => break None,
                }
            };
            *end.lock().unwrap() = Some(code);
            // Answers the Close.
            while socket.read().is_ok() {}
        });
        Ok(Events { seen, closed, stream })
    }

    /// How the feed ended, once it has.
    pub fn closed(&self) -> Option<Option<u16>> {
        *self.closed.lock().unwrap()
    }

    pub fn all(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
