//! Messages in channels and threads, and how they are shown.
//!
//! Histories are newest first, thread replies oldest first; `before` and `after` are message ids. A history holds the
//! messages that begin a thread or stand alone, each with its count of replies.

use serde_json::{Map, Value, json};

use super::call::id;
use super::rows::{Channel, ChannelKind, Message, Row};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, MESSAGE_BYTES_KEPT, MESSAGES_KEPT, Outcome};
use crate::wire::node::DeliveryMode;

const HISTORY_DEFAULT: usize = 50;
const HISTORY_MOST: usize = 500;

/// What a client gives for a message.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub text: String,
    pub blocks: Value,
    pub metadata: Map<String, Value>,
    pub attachments: Vec<Value>,
    pub mode: DeliveryMode,
    pub thread: Option<u64>,
}

impl Draft {
    /// Reads `text`, `blocks`, `attachments`, `data`/`metadata` and `mode` of a body.
    pub(super) fn from(call: &Call) -> Result<Draft, Fail> {
        let attachments = match call.body.get("attachments") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items.iter().map(attachment).collect::<Result<_, _>>()?,
            Some(_) => return Err(Fail::invalid("`attachments` must be a list")),
        };
        let text = if attachments.is_empty() { call.text("text")? } else { call.optional("text")?.unwrap_or_default() };
        let blocks = match call.body.get("blocks") {
            None | Some(Value::Null) => Value::Null,
            Some(Value::Array(blocks)) => Value::Array(blocks.clone()),
            Some(_) => return Err(Fail::invalid("`blocks` must be a list")),
        };
        let mode = match call.optional("mode")?.as_deref() {
            None | Some("wait") => DeliveryMode::Wait,
            Some("steer") => DeliveryMode::Steer,
            Some(_) => return Err(Fail::invalid("`mode` must be wait or steer")),
        };
        let metadata = match call.object("metadata")? {
            Some(metadata) => metadata,
            None => call.object("data")?.unwrap_or_default(),
        };
        Ok(Draft { text, blocks, metadata, attachments, mode, thread: None })
    }
}

/// Files are not stored here: an attachment is a file's id, or its description by the client.
fn attachment(item: &Value) -> Result<Value, Fail> {
    match item {
        Value::String(file) => Ok(json!({
            "file_id": file, "filename": file, "content_type": "application/octet-stream", "size_bytes": 0,
        })),
        Value::Object(_) => Ok(item.clone()),
        _ => Err(Fail::invalid("`attachments` must hold file ids")),
    }
}

/// `@name` of agents of the workspace, each once, in order.
fn mentions(text: &str, is_agent: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (at, _) in text.match_indices('@') {
        // In the middle of a word (an address) it is no mention.
        if text[..at].chars().next_back().is_some_and(char::is_alphanumeric) {
            continue;
        }
        let rest = &text[at + 1..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "-_.".contains(c))).unwrap_or(rest.len());
        // A full stop at the end of a sentence is not part of the name, unless an agent is called so.
        let candidates = [&rest[..end], rest[..end].trim_end_matches('.')];
        if let Some(name) = candidates.into_iter().find(|name| !name.is_empty() && is_agent(name))
            && !found.iter().any(|known| known == name)
        {
            found.push(name.to_string());
        }
    }
    found
}

impl Engine {
    pub(super) fn message(&self, ws: u64, text_id: &str) -> Result<&Message, Fail> {
        text_id
            .parse::<u64>()
            .ok()
            .and_then(|id| self.t.messages.get(&id))
            .filter(|message| message.ws == ws)
            .ok_or_else(|| Fail::new(404, "message_not_found", "Message not found"))
    }

    /// A message that the caller may see: conversations are open to their members and to the workspace key.
    fn visible(&self, call: &Call, text_id: &str) -> Result<&Message, Fail> {
        let message = self.message(call.ws, text_id)?;
        let open = call.agent == 0 || self.is_public(message.channel);
        if open || self.t.members.contains_key(&(message.channel, call.agent)) {
            return Ok(message);
        }
        Err(Fail::new(404, "message_not_found", "Message not found"))
    }

    /// Stores a message, makes the deliveries of its readers and hands out what can be handed out.
    pub(super) fn post(&mut self, channel: u64, author: u64, draft: Draft) -> Result<Message, Fail> {
        let (name, kind, ws) = self.agent(author).map(|a| (a.name.clone(), a.kind.clone(), a.ws))?;
        let mentions = mentions(&draft.text, |name| self.t.agent_names.contains_key(&(ws, name.to_string())));
        let row = Message {
            id: self.next_id(),
            ws,
            channel,
            agent: author,
            agent_name: name,
            agent_kind: kind,
            text: draft.text,
            blocks: draft.blocks,
            metadata: draft.metadata,
            thread: draft.thread,
            mentions,
            attachments: draft.attachments,
            mode: draft.mode,
            created_at: self.now.unix,
        };
        self.put(Row::Message(row.clone()));
        let readers: Vec<u64> =
            self.members_of(channel).filter(|m| m.agent != author && !m.muted).map(|m| m.agent).collect();
        for reader in readers {
            self.enqueue(reader, &row);
        }
        while self.t.messages.len() > MESSAGES_KEPT || self.t.message_bytes > MESSAGE_BYTES_KEPT {
            if let Some(oldest) = self.t.messages.keys().next().copied() {
                self.bury_deliveries_of(oldest);
                self.put(Row::MessageGone { id: oldest });
            }
        }
        Ok(row)
    }

    /// A message with all that its readers know of it.
    pub(super) fn message_view(&self, message: &Message) -> Value {
        let marks = self.t.marks.get(&message.id);
        json!({
            "id": id(message.id), "channel_id": id(message.channel),
            "channel_name": self.t.channels.get(&message.channel).map(|c| c.name.as_str()).unwrap_or_default(),
            "agent_id": id(message.agent), "agent_name": message.agent_name, "agent_type": message.agent_kind,
            "text": message.text, "blocks": message.blocks, "metadata": message.metadata,
            "has_attachments": !message.attachments.is_empty(), "thread_id": message.thread.map(id),
            "attachments": message.attachments, "created_at": iso(message.created_at),
            "reply_count": self.t.replies.get(&message.id).map_or(0, |ids| ids.len()),
            "reactions": self.reaction_groups(message.id),
            "read_by_count": marks.map_or(0, |m| m.reads.len()),
            "mentions": message.mentions, "injection_mode": message.mode.as_str(),
        })
    }

    /// The short form inside DM answers and deliveries.
    pub(super) fn message_core(&self, message: &Message) -> Value {
        let mut core = json!({
            "id": id(message.id), "agent_id": id(message.agent), "agent_name": message.agent_name,
            "agent_type": message.agent_kind, "text": message.text, "injection_mode": message.mode.as_str(),
        });
        if !message.attachments.is_empty() {
            core["attachments"] = Value::Array(message.attachments.clone());
        }
        core
    }

    /// Messages of a channel outside threads, newest first.
    pub(super) fn history(&self, call: &Call, channel: u64) -> Result<Vec<&Message>, Fail> {
        let limit = call.limit(HISTORY_DEFAULT, HISTORY_MOST)?;
        let before = call.id_in_query("before").unwrap_or(u64::MAX);
        let after = call.id_in_query("after").unwrap_or(0);
        let ids = self.t.channel_messages.get(&channel);
        let ids = ids.into_iter().flat_map(|ids| ids.iter().rev()).filter(|id| **id < before && **id > after);
        let messages = ids.filter_map(|id| self.t.messages.get(id)).filter(|m| m.thread.is_none());
        Ok(messages.take(limit).collect())
    }

    /// `POST /v1/channels/:name/messages`
    pub fn post_to_channel(&mut self, call: &Call) -> Outcome {
        let channel = self.channel_named(call.ws, call.arg(0))?;
        if channel.archived {
            return Err(Fail::new(400, "channel_archived", "The channel is archived"));
        }
        let channel = channel.id;
        let message = self.post(channel, call.agent, Draft::from(call)?)?;
        self.pull_triggers(&message);
        Ok(Answer::created(self.message_view(&message)))
    }

    /// `GET /v1/channels/:name/messages`
    pub fn channel_history(&mut self, call: &Call) -> Outcome {
        let channel = self.channel_named(call.ws, call.arg(0))?.id;
        let messages = self.history(call, channel)?;
        Ok(Answer::ok(messages.into_iter().map(|m| self.message_view(m)).collect()))
    }

    /// `GET /v1/messages/:id`
    pub fn get_message(&mut self, call: &Call) -> Outcome {
        Ok(Answer::ok(self.message_view(self.visible(call, call.arg(0))?)))
    }

    /// `POST /v1/messages/:id/replies`: a reply to a reply belongs to the same thread.
    pub fn reply(&mut self, call: &Call) -> Outcome {
        let parent = self.visible(call, call.arg(0))?;
        let (channel, root) = (parent.channel, parent.thread.unwrap_or(parent.id));
        let mut draft = Draft::from(call)?;
        draft.thread = Some(root);
        let message = self.post(channel, call.agent, draft)?;
        self.pull_triggers(&message);
        Ok(Answer::created(self.message_view(&message)))
    }

    /// `GET /v1/messages/:id/replies` → `{parent, replies}`, replies oldest first.
    pub fn thread(&mut self, call: &Call) -> Outcome {
        let asked = self.visible(call, call.arg(0))?;
        let root = asked.thread.and_then(|root| self.t.messages.get(&root)).unwrap_or(asked);
        let limit = call.limit(HISTORY_DEFAULT, HISTORY_MOST)?;
        let before = call.id_in_query("before").unwrap_or(u64::MAX);
        let after = call.id_in_query("after").unwrap_or(0);
        let ids = self.t.replies.get(&root.id).into_iter().flatten().filter(|id| **id < before && **id > after);
        let replies = ids.filter_map(|id| self.t.messages.get(id)).take(limit).map(|m| self.message_view(m));
        Ok(Answer::ok(json!({"parent": self.message_view(root), "replies": replies.collect::<Value>()})))
    }

    /// `payload` of a `deliver` frame: `{"type","data"}`.
    pub(super) fn payload(&self, message: &Message, reader: u64) -> Value {
        let channel: Option<&Channel> = self.t.channels.get(&message.channel);
        let kind = channel.map_or(ChannelKind::Public, |c| c.kind);
        let mut data = json!({
            "id": id(message.id), "agent_id": id(message.agent), "from_name": message.agent_name,
            "text": message.text, "created_at": iso(message.created_at), "injection_mode": message.mode.as_str(),
        });
        let payload_type = match kind {
            ChannelKind::Public => {
                data["channel_id"] = id(message.channel);
                data["channel_name"] = json!(channel.map(|c| c.name.as_str()).unwrap_or_default());
                data["agent_name"] = json!(message.agent_name);
                data["blocks"] = message.blocks.clone();
                data["metadata"] = json!(message.metadata);
                data["thread_id"] = message.thread.map(id).unwrap_or_default();
                data["mentions"] = json!(message.mentions);
                if message.thread.is_none() {
                    data["attachments"] = json!(message.attachments);
                }
                if message.thread.is_some() { "thread.reply" } else { "message.created" }
            }
            ChannelKind::Direct | ChannelKind::Group => {
                data["conversation_id"] = id(message.channel);
                data["message"] = self.message_core(message);
                data["attachments"] = json!(message.attachments);
                if let Some(thread) = message.thread {
                    data["thread_id"] = id(thread);
                }
                if kind == ChannelKind::Direct {
                    data["to"] = json!(self.agent_name(reader));
                    "dm.received"
                } else {
                    "group_dm.received"
                }
            }
        };
        json!({"type": payload_type, "data": data})
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn mentions_are_names_of_agents() {
        let known = |name: &str| ["al", "bo-2", "dot."].contains(&name);
        for (text, expected) in [
            ("hi @al", vec!["al"]),
            ("@al, @bo-2! @al", vec!["al", "bo-2"]),
            ("thanks @al.", vec!["al"]),
            ("thanks @dot.", vec!["dot."]),
            ("mail me@al", vec![]),
            ("@nobody @", vec![]),
            ("(@al)", vec!["al"]),
        ] {
            assert_eq!(super::mentions(text, known), expected, "{text}");
        }
    }
}
