//! Messages as the engine stores them, and what has really become of each: the truth that acks are measured against.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay_broker::core::ports::Generation;
use serde_json::{Value, json};

use super::rng::Rng;

/// One numbered message for one agent.
#[derive(Debug)]
pub struct Row {
    pub seq: u64,
    pub msg_id: String,
    pub delivery_id: String,
    pub steer: bool,
    pub payload: Value,
    /// To be typed; else only acknowledged.
    pub inject: bool,
    pub text: String,
    pub from: String,
    pub target: String,
    pub acked: bool,
    /// Dead-lettered by the engine itself: a hole in the numbering, never sent.
    pub hole: bool,
    /// The same message under an earlier number.
    pub copy_of: Option<u64>,
    /// The program has taken it from its terminal, in this life of the broker at last.
    pub read: Option<u32>,
    /// Recorded as undeliverable: by an event, or in the journal.
    pub dead: bool,
    pub dead_on_disk: bool,
    /// First arrival in a life of the broker: the life, and a running number.
    pub arrived: Option<(u32, u64)>,
    /// The life in which the broker declared it missing before it arrived.
    pub declared_missing: Option<u32>,
    pub injected: Option<(u32, Generation)>,
    pub typed: Vec<(u32, Generation)>,
    /// Per life that it came to: how often its agent had moved when it was sent.
    pub came: BTreeMap<u32, u32>,
    /// The node where it was typed last, and that number.
    pub typed_at: Option<(usize, u32)>,
}

/// Not numbered: the engine sends it once and forgets it.
#[derive(Debug)]
pub struct Passing {
    pub agent_id: String,
    pub delivery_id: String,
    pub text: String,
    pub inject: bool,
    /// The life of the broker that took it.
    pub arrived: Option<u32>,
    pub typed: Vec<(u32, Generation)>,
    pub read: bool,
    pub dead: bool,
}

#[derive(Debug, Default)]
pub struct Agent {
    pub id: String,
    pub name: String,
    /// The node where it is located, [`ELSEWHERE`] for one outside of this world.
    pub at: Option<usize>,
    /// Where it was located last, and how often that changed.
    pub home: Option<usize>,
    pub moves: u32,
    /// The engine knows it no more; what became of its messages is still looked at.
    pub deleted: bool,
    pub online: bool,
    /// The one valid token.
    pub token: Option<String>,
    /// The node that registered it last.
    pub registrar: usize,
    /// The node that took it back last.
    pub unbound_by: usize,
    /// The report that its node has released it came when another node had answered already.
    pub release_ignored: bool,
    /// Counts registrations, so that a late release hits only the one it was meant for.
    pub epoch: u32,
    pub rows: BTreeMap<u64, Row>,
    /// Neither acked nor holes.
    pub open: BTreeSet<u64>,
    /// Highest number given out.
    pub top: u64,
    /// Highest acknowledged number, and the life that acknowledged.
    pub cursor: u64,
    pub acked_in: u32,
    /// The life of the broker that left rows of it unacknowledged for a next life of the agent: they came before it knew who
    /// is here, or for a spawn that failed.
    pub left_in: u32,
}

/// The location of agents at nodes that nobody simulates.
pub const ELSEWHERE: usize = 99;

impl Agent {
    pub fn move_to(&mut self, at: usize) {
        self.at = Some(at);
        if self.home.replace(at).is_some_and(|before| before != at) {
            self.moves += 1;
        }
    }

    /// What the engine would call its cursor: everything up to it is done with.
    pub fn done_up_to(&self) -> u64 {
        self.open.first().map_or(self.top, |first| first - 1)
    }

    /// Whether the message of this number can no longer be lost.
    pub fn disposed(&self, seq: u64) -> bool {
        self.rows.get(&seq).is_none_or(|row| {
            row.read.is_some()
                || row.dead
                || row.hole
                || !row.inject
                || row.copy_of.is_some_and(|first| self.disposed(first))
        })
    }

    /// A frame for one row, as the engine sends it.
    pub fn frame(&self, seq: u64) -> Value {
        let row = &self.rows[&seq];
        let mut frame = deliver(&self.name, &self.id, &row.delivery_id, &row.msg_id, seq, row.steer, &row.payload);
        frame["moves"] = json!(self.moves);
        frame
    }
}

pub fn deliver(name: &str, id: &str, delivery_id: &str, msg_id: &str, seq: u64, steer: bool, payload: &Value) -> Value {
    json!({"v": 1, "type": "deliver", "agent": name, "agent_id": id, "delivery_id": delivery_id, "msg_id": msg_id,
        "seq": seq, "mode": if steer { "steer" } else { "wait" }, "payload": payload, "unheard_of": {"k": null}})
}

/// What a message says, and how the broker has to understand it.
pub struct Letter {
    pub payload: Value,
    pub inject: bool,
    pub text: String,
    pub from: String,
    /// `None`: the recipient's own name.
    pub target: Option<String>,
}

/// A numbered message of a random kind.
pub fn letter(rng: &mut Rng, msg_id: &str) -> Letter {
    let text = format!("text of {msg_id}");
    let from = rng.pick(&["bob", "carol", "human:dan"]).expect("three names").to_string();
    let kind = rng.below(20);
    let (payload, inject, target) = match kind {
        0..=9 => (
            json!({"type": "message.created", "data": {"id": msg_id, "agent_name": from, "channel_name": "general",
                "channel_id": "c1", "text": text, "mentions": [], "metadata": null}}),
            true,
            Some("#general".to_string()),
        ),
        10..=13 => (
            json!({"type": "dm.received", "data": {"conversation_id": "dm_1", "id": msg_id, "text": text,
                "message": {"id": msg_id, "agent_name": from, "text": text}, "from_name": from}}),
            true,
            None,
        ),
        14 | 15 => (
            json!({"type": "thread.reply", "data": {"id": msg_id, "agent_name": from, "channel_name": "ops", "text": text,
                "thread_id": "t1"}}),
            true,
            Some("#ops".to_string()),
        ),
        16 | 17 => (json!({"text": text, "from": from}), true, None),
        18 => (json!({"type": "message.reacted", "data": {"id": msg_id, "emoji": "eyes"}}), false, None),
        _ => (json!({"type": "channel.renamed", "data": {"channel_name": "ops"}}), false, None),
    };
    Letter { payload, inject, text, from, target }
}
