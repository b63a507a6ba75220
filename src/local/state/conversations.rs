//! Direct messages between two agents, and conversations of several. A conversation is a channel without a public name;
//! its id is that channel's.

use serde_json::{Value, json};

use super::call::id;
use super::messages::Draft;
use super::rows::{Channel, ChannelKind, Message, Row};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, Outcome};

impl Engine {
    fn conversation(&self, ws: u64, text_id: &str) -> Result<&Channel, Fail> {
        text_id
            .parse::<u64>()
            .ok()
            .and_then(|id| self.t.channels.get(&id))
            .filter(|c| c.ws == ws && c.kind != ChannelKind::Public)
            .ok_or_else(|| Fail::new(404, "conversation_not_found", "Conversation not found"))
    }

    /// The caller must take part; the workspace key sees everything.
    fn own_conversation(&self, call: &Call) -> Result<&Channel, Fail> {
        let conversation = self.conversation(call.ws, call.arg(0))?;
        if call.agent == 0 || self.t.members.contains_key(&(conversation.id, call.agent)) {
            return Ok(conversation);
        }
        Err(Fail::new(403, "forbidden", "The agent takes no part in this conversation"))
    }

    pub(super) fn direct_between(&mut self, ws: u64, one: u64, other: u64) -> u64 {
        let joined = self.t.joined.get(&one).into_iter().flatten();
        let known = joined.copied().find(|channel| {
            self.t.channels.get(channel).is_some_and(|c| c.kind == ChannelKind::Direct)
                && self.t.members.contains_key(&(*channel, other))
        });
        known.unwrap_or_else(|| {
            let channel = self.new_channel(ws, ChannelKind::Direct, "", None, Some(one));
            self.add_member(channel, one, false);
            self.add_member(channel, other, false);
            channel
        })
    }

    fn sent_view(&self, message: &Message) -> Value {
        json!({
            "conversation_id": id(message.channel), "message": self.message_core(message),
            "created_at": iso(message.created_at),
        })
    }

    /// `POST /v1/dm`
    pub fn send_dm(&mut self, call: &Call) -> Outcome {
        let to = call.text("to")?;
        let draft = Draft::from(call)?;
        let to = self.agent_named(call.ws, to.strip_prefix('@').unwrap_or(&to))?.id;
        if to == call.agent {
            return Err(Fail::invalid("An agent cannot send a message to itself"));
        }
        let conversation = self.direct_between(call.ws, call.agent, to);
        let message = self.post(conversation, call.agent, draft)?;
        Ok(Answer::created(self.sent_view(&message)))
    }

    /// `POST /v1/dm/group`
    pub fn create_group(&mut self, call: &Call) -> Outcome {
        let names = call.texts("participants")?.filter(|names| !names.is_empty());
        let names = names.ok_or_else(|| Fail::invalid("`participants` must name at least one agent"))?;
        let others: Vec<u64> =
            names.iter().map(|name| self.agent_named(call.ws, name).map(|a| a.id)).collect::<Result<_, _>>()?;
        let name = call.optional("name")?;
        let group =
            self.new_channel(call.ws, ChannelKind::Group, name.as_deref().unwrap_or(""), None, Some(call.agent));
        self.add_member(group, call.agent, true);
        for other in others {
            self.add_member(group, other, false);
        }
        let participants: Value = self.members_of(group).map(|m| json!({"agent_id": id(m.agent)})).collect();
        Ok(Answer::created(json!({
            "id": id(group), "channel_id": id(group), "dm_type": "group", "name": name,
            "participants": participants, "created_at": iso(self.now.unix),
        })))
    }

    /// `POST /v1/dm/:id/messages`
    pub fn post_to_conversation(&mut self, call: &Call) -> Outcome {
        let conversation = self.own_conversation(call)?.id;
        let message = self.post(conversation, call.agent, Draft::from(call)?)?;
        Ok(Answer::created(self.sent_view(&message)))
    }

    /// `GET /v1/dm/:id/messages` and `GET /v1/dm/conversations/:id/messages`
    pub fn conversation_history(&mut self, call: &Call) -> Outcome {
        let conversation = self.own_conversation(call)?.id;
        let messages = self.history(call, conversation)?.into_iter().map(|message| {
            let mut view = self.message_core(message);
            view["created_at"] = json!(iso(message.created_at));
            view["thread_id"] = message.thread.map(id).unwrap_or_default();
            view
        });
        Ok(Answer::ok(messages.collect()))
    }

    /// `POST /v1/dm/:id/participants`
    pub fn add_participant(&mut self, call: &Call) -> Outcome {
        let (conversation, kind) = self.own_conversation(call).map(|c| (c.id, c.kind))?;
        if kind != ChannelKind::Group {
            return Err(Fail::new(400, "not_a_group", "Only a group can take more participants"));
        }
        let name = call.text("agent_name")?;
        let agent = self.agent_named(call.ws, &name)?.id;
        let added = self.add_member(conversation, agent, false);
        Ok(Answer::ok(json!({"conversation_id": id(conversation), "agent": name, "already_member": !added})))
    }

    /// `DELETE /v1/dm/:id/participants/:name`
    pub fn remove_participant(&mut self, call: &Call) -> Outcome {
        let (conversation, kind) = self.own_conversation(call).map(|c| (c.id, c.kind))?;
        let agent = self.agent_named(call.ws, call.arg(1))?.id;
        if kind != ChannelKind::Group {
            return Err(Fail::new(400, "not_a_group", "Only a group can lose participants"));
        }
        if !self.t.members.contains_key(&(conversation, agent)) {
            return Err(Fail::new(404, "participant_not_found", "The agent takes no part in this conversation"));
        }
        self.put(Row::MemberGone { channel: conversation, agent });
        Ok(Answer::empty())
    }

    pub(super) fn latest(&self, channel: u64) -> Option<&Message> {
        self.t.channel_messages.get(&channel)?.last().and_then(|id| self.t.messages.get(id))
    }

    /// `GET /v1/dm/conversations`: the caller's, the one with the latest message first.
    pub fn my_conversations(&mut self, call: &Call) -> Outcome {
        let joined = self.t.joined.get(&call.agent).into_iter().flatten();
        let mut rows: Vec<&Channel> = joined
            .filter_map(|channel| self.t.channels.get(channel))
            .filter(|c| c.kind != ChannelKind::Public)
            .collect();
        rows.sort_by_key(|c| std::cmp::Reverse(self.latest(c.id).map_or(c.id, |m| m.id)));
        let views = rows.into_iter().map(|c| {
            let participants: Value = self
                .members_of(c.id)
                .map(|m| json!({"agent_id": id(m.agent), "agent_name": self.agent_name(m.agent)}))
                .collect();
            let last = self.latest(c.id).map(|m| {
                json!({
                    "id": id(m.id), "text": m.text, "agent_id": id(m.agent), "agent_name": m.agent_name,
                    "agent_type": m.agent_kind, "created_at": iso(m.created_at),
                })
            });
            json!({
                "id": id(c.id), "type": kind_text(c.kind), "name": (!c.name.is_empty()).then_some(&c.name),
                "participants": participants, "last_message": last,
                "unread_count": self.unread(c.id, call.agent).count(), "created_at": iso(c.created_at),
            })
        });
        Ok(Answer::ok(views.collect()))
    }

    /// `GET /v1/dm/conversations/all`: those of the whole workspace, the latest first.
    pub fn all_conversations(&mut self, call: &Call) -> Outcome {
        let mut rows: Vec<&Channel> =
            self.t.channels.values().filter(|c| c.ws == call.ws && c.kind != ChannelKind::Public).collect();
        rows.sort_by_key(|c| std::cmp::Reverse(self.latest(c.id).map_or(c.id, |m| m.id)));
        let views = rows.into_iter().map(|c| {
            let participants: Vec<String> = self.members_of(c.id).map(|m| self.agent_name(m.agent)).collect();
            let last = self.latest(c.id).map(|m| {
                json!({
                    "text": m.text, "agent_id": id(m.agent), "agent_name": m.agent_name,
                    "created_at": iso(m.created_at),
                })
            });
            json!({
                "id": id(c.id), "channel_id": id(c.id), "type": kind_text(c.kind), "participants": participants,
                "last_message": last,
                "message_count": self.t.channel_messages.get(&c.id).map_or(0, |ids| ids.len()),
            })
        });
        Ok(Answer::ok(views.collect()))
    }
}

fn kind_text(kind: ChannelKind) -> &'static str {
    if kind == ChannelKind::Group { "group" } else { "1:1" }
}
