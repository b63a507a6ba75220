//! A scripted engine for what the real one cannot be made to do: exact frames, odd answers, sockets that stay silent.
//!
//! It accepts any credentials. Answers to HTTP requests are those of the bench's engine unless a rule replaces them; the
//! node socket answers registrations and inventories, and everything that arrives is in the log.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Bytes, Message};

use crate::until::{LONG, until};
use crate::{routes, wire};

/// What happens to a request.
#[derive(Clone)]
pub enum Deed {
    Answer(u16, Value),
    /// Silence until the engine ends.
    Hang,
    /// The usual effect, but the connection ends instead of an answer; the given number of times.
    Lose(usize),
}

/// What happens to a node socket.
#[derive(Clone, Copy, PartialEq)]
pub enum Upgrade {
    Serve,
    Refuse(u16),
    /// The connection is accepted and nothing is said.
    Silent,
    /// The upgrade succeeds, and after it nothing is said, not even an answer to a ping.
    Mute,
}

pub struct Log {
    /// Method and path, body.
    pub requests: Vec<(String, Value)>,
    pub frames: Vec<Value>,
    /// Attempts at a node socket.
    pub upgrades: usize,
    /// Code of each Close frame that the broker sent.
    pub closes: Vec<Option<u16>>,
    /// Whether `agent.register` is answered.
    pub registers: bool,
    pub upgrade: Upgrade,
    /// Code and message of the error that `node.register` is answered with.
    pub answer_register: Option<(String, String)>,
    /// The same for `agent.register`.
    pub answer_agent: Option<(String, String)>,
    ids: routes::Ids,
    rules: Vec<(String, Deed)>,
    socket: Option<Arc<Mutex<TcpStream>>>,
}

impl Log {
    pub fn frames_of(&self, kind: &str) -> Vec<Value> {
        self.frames.iter().filter(|frame| frame["type"] == kind).cloned().collect()
    }

    pub fn requests_to(&self, what: &str) -> usize {
        self.requests.iter().filter(|(request, _)| request == what).count()
    }
}

struct Shared {
    log: Mutex<Log>,
    peers: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

pub struct Scripted {
    address: String,
    shared: Arc<Shared>,
}

impl Scripted {
    pub fn start() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().unwrap().to_string();
        let log = Log {
            requests: Vec::new(),
            frames: Vec::new(),
            upgrades: 0,
            closes: Vec::new(),
            registers: true,
            upgrade: Upgrade::Serve,
            answer_register: None,
            answer_agent: None,
            ids: routes::Ids::default(),
            rules: Vec::new(),
            socket: None,
        };
        let shared = Arc::new(Shared { log: Mutex::new(log), peers: Mutex::default(), ended: AtomicBool::new(false) });
        let for_peers = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if for_peers.ended.load(Ordering::SeqCst) {
                    return;
                }
                let _ = stream.set_nodelay(true);
                for_peers.peers.lock().unwrap().extend(stream.try_clone());
                let shared = for_peers.clone();
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Scripted { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock().unwrap()
    }

    /// From now on this is done to requests `METHOD /path`.
    pub fn rule(&self, request: &str, deed: Deed) {
        let mut log = self.log();
        log.rules.retain(|(of, _)| of != request);
        log.rules.push((request.into(), deed));
    }

    /// One text message on the node socket.
    #[track_caller]
    pub fn send(&self, text: &str) {
        let socket = self.log().socket.clone().expect("a broker is connected");
        write_text(&socket, text).expect("the broker takes a frame");
    }

    /// Cuts the node socket.
    pub fn cut(&self) {
        if let Some(socket) = self.log().socket.take() {
            let _ = socket.lock().unwrap().shutdown(Shutdown::Both);
        }
    }

    #[track_caller]
    pub fn until<T>(&self, what: &str, mut at: impl FnMut(&Log) -> Option<T>) -> T {
        self.within(LONG, what, &mut at)
    }

    #[track_caller]
    pub fn within<T>(&self, limit: Duration, what: &str, mut at: impl FnMut(&Log) -> Option<T>) -> T {
        let seen = || {
            let log = self.log();
            let frames: Vec<String> = log.frames.iter().map(Value::to_string).collect();
            format!("-- requests: {:?}\n-- frames:\n{}\n-- closes: {:?}", log.requests, frames.join("\n"), log.closes)
        };
        until(limit, what, seen, || at(&self.log()))
    }

    /// Waits for the next frame of a kind after the first `skip`.
    #[track_caller]
    pub fn frame(&self, kind: &str, skip: usize) -> Value {
        self.until(&format!("frame {kind} number {}", skip + 1), |log| log.frames_of(kind).into_iter().nth(skip))
    }

    /// The id that `agent` was registered with.
    #[track_caller]
    pub fn agent_id(&self, agent: &str) -> String {
        format!("id_{agent}")
    }

    /// A message frame for an agent.
    pub fn message(&self, agent: &str, seq: u64, text: &str) -> String {
        let id = self.agent_id(agent);
        json!({"v": 1, "type": "deliver", "agent": agent, "agent_id": id, "delivery_id": format!("del_m{seq}_{id}"),
            "msg_id": format!("m{seq}"), "seq": seq, "mode": "wait", "payload": {"type": "message.created", "data": {
                "id": format!("m{seq}"), "channel_name": "general", "agent_name": "bob", "text": text}}})
        .to_string()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for peer in self.shared.peers.lock().unwrap().drain(..) {
            let _ = peer.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(head) = wire::read_head(&mut reader)? {
        let mut words = head.start.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some(key) = head.field("sec-websocket-key") {
            let upgrade = {
                let mut log = shared.log.lock().unwrap();
                log.upgrades += 1;
                log.upgrade
            };
            match upgrade {
                Upgrade::Serve => return serve_socket(writer, key, shared),
                Upgrade::Mute => {
                    accept(&mut writer, key)?;
                    return io::copy(&mut reader, &mut io::sink()).map(drop);
                }
                Upgrade::Refuse(status) => wire::answer(&mut writer, status, &routes::refusal("refused"))?,
                Upgrade::Silent => return io::copy(&mut reader, &mut io::sink()).map(drop),
            }
            continue;
        }
        let body = wire::read_body(&mut reader, &head)?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let request = format!("{method} {path}");
        let (deed, usual) = {
            let mut log = shared.log.lock().unwrap();
            log.requests.push((request.clone(), body.clone()));
            let deed = log.rules.iter().find(|(of, _)| *of == request).map(|(_, deed)| deed.clone());
            if let Some((_, Deed::Lose(left))) = log.rules.iter_mut().find(|(of, _)| *of == request) {
                *left = left.saturating_sub(1);
            }
            (deed, log.ids.route(method, path, &body))
        };
        match deed {
            Some(Deed::Answer(status, body)) => wire::answer(&mut writer, status, &body.to_string())?,
            Some(Deed::Hang) => return io::copy(&mut reader, &mut io::sink()).map(drop),
            Some(Deed::Lose(left)) if left > 0 => return writer.shutdown(Shutdown::Both),
            _ => wire::answer(&mut writer, usual.0, &usual.1)?,
        }
    }
    Ok(())
}

/// Reads its own handle, writes whole frames through the shared one.
struct Duplex {
    read: TcpStream,
    write: Arc<Mutex<TcpStream>>,
}

impl Read for Duplex {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read.read(buffer)
    }
}

impl Write for Duplex {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write.lock().unwrap().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_text(socket: &Mutex<TcpStream>, text: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    let payload = Bytes::copy_from_slice(text.as_bytes());
    Frame::message(payload, OpCode::Data(Data::Text), true).format(&mut bytes).map_err(io::Error::other)?;
    socket.lock().unwrap().write_all(&bytes)
}

fn accept(stream: &mut TcpStream, key: &str) -> io::Result<()> {
    let accepted = derive_accept_key(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepted}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())
}

fn serve_socket(mut stream: TcpStream, key: &str, shared: &Arc<Shared>) -> io::Result<()> {
    accept(&mut stream, key)?;
    let write = Arc::new(Mutex::new(stream.try_clone()?));
    shared.log.lock().unwrap().socket = Some(write.clone());
    let mut socket = WebSocket::from_raw_socket(Duplex { read: stream, write: write.clone() }, Role::Server, None);
    loop {
        match socket.read().map_err(io::Error::other)? {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                let answer = {
                    let mut log = shared.log.lock().unwrap();
                    let answer = answer(&frame, &log);
                    log.frames.push(frame);
                    answer
                };
                if let Some(answer) = answer {
                    write_text(&write, &answer)?;
                }
            }
            Message::Close(close) => {
                shared.log.lock().unwrap().closes.push(close.map(|close| close.code.into()));
            }
            _ => {}
        }
    }
}

fn answer(frame: &Value, log: &Log) -> Option<String> {
    let refusal = match frame["type"].as_str()? {
        "node.register" => log.answer_register.as_ref(),
        "agent.register" => log.answer_agent.as_ref(),
        _ => None,
    };
    if let Some((code, message)) = refusal {
        let error = json!({"v": 1, "type": "error", "id": frame["id"], "ok": false, "code": code, "message": message});
        return Some(error.to_string());
    }
    let data = match frame["type"].as_str()? {
        "node.register" => json!({"id": frame["node_id"], "name": frame["name"], "status": "online"}),
        "agent.register" if log.registers => {
            let name = frame["name"].as_str()?;
            json!({"agent_id": format!("id_{name}"), "token": format!("at_live_{name}"), "name": name})
        }
        "inventory.sync" => json!({"synced": 0}),
        _ => return None,
    };
    Some(json!({"v": 1, "type": "reply", "id": frame["id"], "ok": true, "data": data}).to_string())
}
