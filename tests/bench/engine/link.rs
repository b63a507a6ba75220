//! The node socket of the scripted engine, and the book of what went over it.
//!
//! One thread reads; any thread may send, one whole frame at a time, because both write through one lock.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Bytes, Message};

use super::Shared;
use super::routes::Ids;
use crate::clock;

/// The sending half of a node socket.
pub type Socket = Arc<Mutex<TcpStream>>;

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub agent: String,
    pub seq: u64,
    /// Just before the frame was written, see [`clock::now`].
    pub at: u64,
}

#[derive(Default)]
struct Agent {
    id: String,
    sent: u64,
    /// `up_to_seq` and arrival of each ack that advanced; both rise.
    acks: Vec<(u64, u64)>,
    /// Frames above the last ack, for a broker that registers again.
    unacked: VecDeque<(u64, String)>,
}

/// What the engine has seen.
#[derive(Default)]
pub struct Book {
    pub ids: Ids,
    /// Arrival of each `node.register`.
    pub registrations: Vec<u64>,
    pub heartbeats: u64,
    /// Frames of an unknown type, or unreadable.
    pub strange: u64,
    agents: HashMap<String, Agent>,
    socket: Option<Socket>,
}

impl Book {
    /// Numbers a message for `agent` and returns where to write which frame.
    pub(super) fn address(&mut self, agent: &str, text: &str) -> Result<(Socket, Sent, String), String> {
        let socket = self.socket.clone().ok_or("the broker is not connected")?;
        let msg_id = self.ids.snowflake();
        let known = self.agents.get_mut(agent).ok_or_else(|| format!("agent {agent} never registered"))?;
        known.sent += 1;
        let frame = json!({
            "v": 1, "type": "deliver", "agent": agent, "agent_id": known.id, "seq": known.sent, "mode": "wait",
            "delivery_id": format!("del_{msg_id}_{}", known.id), "msg_id": msg_id,
            "payload": {"type": "message.created", "data": {
                "id": msg_id, "channel_id": "180000000000000002", "channel_name": "general",
                "agent_id": "180000000000000003", "agent_name": "bob", "from_name": "bob", "text": text,
                "created_at": "2025-06-01T00:00:00.000Z"}}
        })
        .to_string();
        known.unacked.push_back((known.sent, frame.clone()));
        Ok((socket, Sent { agent: agent.into(), seq: known.sent, at: 0 }, frame))
    }

    fn ack(&mut self, agent: &str, up_to: u64, at: u64) {
        let Some(known) = self.agents.get_mut(agent) else { return };
        if known.acks.last().is_none_or(|(last, _)| *last < up_to) {
            known.acks.push((up_to, at));
        }
        while known.unacked.front().is_some_and(|(seq, _)| *seq <= up_to) {
            known.unacked.pop_front();
        }
    }

    /// When the message was acknowledged.
    pub fn acked_at(&self, agent: &str, seq: u64) -> Option<u64> {
        let acks = &self.agents.get(agent)?.acks;
        acks.get(acks.partition_point(|(up_to, _)| *up_to < seq)).map(|(_, at)| *at)
    }

    /// Messages sent and not acknowledged.
    pub fn unacked(&self) -> usize {
        self.agents.values().map(|agent| agent.unacked.len()).sum()
    }

    /// Arrival of the last ack of all.
    pub fn last_ack(&self) -> Option<u64> {
        self.agents.values().filter_map(|agent| agent.acks.last()).map(|(_, at)| *at).max()
    }

    pub fn knows(&self, agent: &str) -> bool {
        self.agents.contains_key(agent)
    }

    /// Takes one frame from the broker; returns what goes back, in order.
    pub(super) fn take(&mut self, frame: &Value, at: u64) -> Vec<String> {
        let text = |key: &str| frame.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let id = text("id");
        match text("type").as_str() {
            "node.register" => {
                self.registrations.push(at);
                let row = json!({"id": text("node_id"), "name": text("name"), "status": "online", "live": true});
                let mut answers = Vec::from_iter((!id.is_empty()).then(|| reply(&id, row)));
                for agent in self.agents.values() {
                    answers.extend(agent.unacked.iter().map(|(_, frame)| frame.clone()));
                }
                answers
            }
            "node.heartbeat" => {
                self.heartbeats += 1;
                Vec::new()
            }
            "agent.register" => {
                let agent_id = self.ids.snowflake();
                let token = self.ids.token("at_live_", 32);
                let name = text("name");
                self.agents.insert(name.clone(), Agent { id: agent_id.clone(), ..Agent::default() });
                vec![reply(&id, json!({"agent_id": agent_id, "token": token, "name": name}))]
            }
            "inventory.sync" => {
                let count = frame.get("agents").and_then(Value::as_array).map_or(0, Vec::len);
                Vec::from_iter((!id.is_empty()).then(|| reply(&id, json!({"synced": count}))))
            }
            "delivery.ack" => {
                match frame.get("up_to_seq").and_then(Value::as_u64) {
                    Some(up_to) => self.ack(&text("agent"), up_to, at),
                    None => self.strange += 1,
                }
                Vec::new()
            }
            "agent.deregister" | "node.deregister" | "action.result" => Vec::new(),
            _ => {
                self.strange += 1;
                Vec::new()
            }
        }
    }
}

fn reply(id: &str, data: Value) -> String {
    json!({"v": 1, "type": "reply", "id": id, "ok": true, "data": data}).to_string()
}

/// Writes one text frame; returns the time just before.
pub(super) fn send_text(socket: &Socket, text: &str) -> io::Result<u64> {
    let mut bytes = Vec::with_capacity(text.len() + 16);
    let payload = Bytes::copy_from_slice(text.as_bytes());
    Frame::message(payload, OpCode::Data(Data::Text), true).format(&mut bytes).map_err(io::Error::other)?;
    let mut stream = socket.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let at = clock::now();
    stream.write_all(&bytes)?;
    Ok(at)
}

/// Reads its own handle, writes whole frames through the shared one.
struct Duplex {
    read: TcpStream,
    write: Socket,
}

impl Read for Duplex {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read.read(buffer)
    }
}

impl Write for Duplex {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Accepts the upgrade and serves the node socket until it ends.
pub(super) fn serve(mut stream: TcpStream, key: &str, shared: &Shared) -> io::Result<()> {
    let accepted = derive_accept_key(key.as_bytes());
    stream.write_all(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepted}\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let socket = Socket::new(Mutex::new(stream.try_clone()?));
    shared.change(|book| book.socket = Some(socket.clone()));
    let mut reading = WebSocket::from_raw_socket(Duplex { read: stream, write: socket.clone() }, Role::Server, None);
    let ending = read_frames(&mut reading, &socket, shared);
    shared.change(|book| {
        if book.socket.as_ref().is_some_and(|current| Arc::ptr_eq(current, &socket)) {
            book.socket = None;
        }
    });
    ending
}

fn read_frames(reading: &mut WebSocket<Duplex>, socket: &Socket, shared: &Shared) -> io::Result<()> {
    loop {
        let message = reading.read().map_err(io::Error::other)?;
        let at = clock::now();
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let answers = {
            let answers = shared.book().take(&frame, at);
            shared.changed.notify_all();
            answers
        };
        for answer in answers {
            send_text(socket, &answer)?;
        }
    }
}
