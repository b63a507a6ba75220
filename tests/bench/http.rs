//! HTTP/1.1 messages, as much as the bench needs: the scripted engine reads requests with it, the bench calls the broker's
//! local API with it. Bodies are framed by `Content-Length` alone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const HEAD_LIMIT: u64 = 32 << 10;
const BODY_LIMIT: usize = 16 << 20;

/// Start line and header fields.
pub struct Head {
    pub start: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// The value of a field, whatever the case of its name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> io::Result<usize> {
        if self.field("transfer-encoding").is_some() {
            return Err(broken("a chunked body"));
        }
        match self.field("content-length").map(str::parse) {
            None => Ok(0),
            Some(Ok(length)) if length <= BODY_LIMIT => Ok(length),
            Some(_) => Err(broken("an unusable Content-Length")),
        }
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("HTTP message with {what}"))
}

/// The next head; `None` when the peer closed between messages.
pub fn read_head(from: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut from = from.take(HEAD_LIMIT);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return if lines.is_empty() { Ok(None) } else { Err(broken("a head that ends early")) };
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_string());
    }
    let mut lines = lines.into_iter();
    let start = lines.next().ok_or_else(|| broken("no start line"))?;
    let fields = lines
        .filter_map(|line| {
            line.split_once(':').map(|(name, value)| (name.trim().to_string(), value.trim().to_string()))
        })
        .collect();
    Ok(Some(Head { start, fields }))
}

/// The body that follows `head`.
pub fn read_body(from: &mut impl BufRead, head: &Head) -> io::Result<Vec<u8>> {
    let mut body = vec![0; head.length()?];
    from.read_exact(&mut body)?;
    Ok(body)
}

/// Writes one answer with a JSON body and keeps the connection.
pub fn answer(to: &mut impl Write, status: u16, body: &str) -> io::Result<()> {
    let message = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        if status < 300 { "OK" } else { "Error" },
        body.len()
    );
    to.write_all(message.as_bytes())
}

/// A client of the broker's local API: one keep-alive connection, made again when it is gone.
pub struct Client {
    address: String,
    key: String,
    connection: Option<BufReader<TcpStream>>,
}

/// Status and body of an answer.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Client {
    /// `address` is `host:port`.
    pub fn new(address: &str, key: &str) -> Client {
        Client { address: address.into(), key: key.into(), connection: None }
    }

    /// Closes the connection, so that it costs the broker nothing.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// One exchange. A connection that was kept open may have been closed by the peer: then once more on a new one.
    pub fn call(&mut self, method: &str, path: &str, body: Option<&serde_json::Value>) -> io::Result<Answer> {
        if self.connection.is_some()
            && let Ok(answer) = self.exchange(method, path, body)
        {
            return Ok(answer);
        }
        self.connection = None;
        self.exchange(method, path, body)
    }

    fn exchange(&mut self, method: &str, path: &str, body: Option<&serde_json::Value>) -> io::Result<Answer> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect(&self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(40)))?;
                stream.set_write_timeout(Some(Duration::from_secs(10)))?;
                none.insert(BufReader::new(stream))
            }
        };
        let body = body.map(serde_json::Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\n{kind}\r\n{body}",
            self.address, self.key
        );
        connection.get_mut().write_all(request.as_bytes())?;
        let head = read_head(connection)?.ok_or_else(|| broken("no answer"))?;
        let status =
            head.start.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| broken("no status"))?;
        let body = String::from_utf8_lossy(&read_body(connection, &head)?).into_owned();
        if head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.connection = None;
        }
        Ok(Answer { status, body })
    }
}
