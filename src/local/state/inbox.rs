//! What an agent has not read yet; search; recent activity.
//!
//! Unread is what others wrote after the agent joined, above its position in the channel and without a read mark of its
//! own. A delivery that its node acknowledged counts as read.

use serde_json::{Value, json};

use super::call::id;
use super::rows::{Channel, ChannelKind, Message};
use super::stamp::iso;
use super::{Answer, Call, Engine, Outcome};

const INBOX_DEFAULT: usize = 20;
const SEARCH_DEFAULT: usize = 20;
const MOST: usize = 200;

impl Engine {
    /// Unread messages of a channel, oldest first.
    pub(super) fn unread(&self, channel: u64, agent: u64) -> impl Iterator<Item = &Message> + '_ {
        let from = self.t.members.get(&(channel, agent)).map_or(u64::MAX, |m| m.last_read.saturating_add(1));
        let ids = self.t.channel_messages.get(&channel).into_iter().flat_map(move |ids| ids.range(from..));
        ids.filter_map(|id| self.t.messages.get(id)).filter(move |m| {
            m.agent != agent && !self.t.marks.get(&m.id).is_some_and(|marks| marks.reads.contains_key(&agent))
        })
    }

    /// `GET /v1/inbox`
    pub fn inbox(&mut self, call: &Call) -> Outcome {
        let limit = call.limit(INBOX_DEFAULT, MOST)?;
        let me = self.agent(call.agent)?;
        let joined: Vec<&Channel> =
            self.t.joined.get(&me.id).into_iter().flatten().filter_map(|c| self.t.channels.get(c)).collect();
        let (mut channels, mut mentions, mut dms) = (Vec::new(), Vec::new(), Vec::new());
        for channel in joined.iter().filter(|c| !c.archived) {
            let unread: Vec<&Message> = self.unread(channel.id, me.id).collect();
            let Some(last) = unread.last() else { continue };
            if channel.kind == ChannelKind::Public {
                channels.push(json!({"channel_name": channel.name, "unread_count": unread.len()}));
                let at_me = unread.iter().filter(|m| m.mentions.contains(&me.name));
                mentions.extend(at_me.map(|m| {
                    json!({
                        "id": id(m.id), "channel_name": channel.name, "agent_name": m.agent_name, "text": m.text,
                        "created_at": iso(m.created_at),
                    })
                }));
            } else {
                dms.push(json!({
                    "conversation_id": id(channel.id), "from": last.agent_name, "unread_count": unread.len(),
                    "last_message": {"id": id(last.id), "text": last.text, "created_at": iso(last.created_at)},
                }));
            }
        }
        let reactions = self.reactions_to(me.id, limit);
        for list in [&mut channels, &mut mentions, &mut dms] {
            list.truncate(limit);
        }
        Ok(Answer::ok(json!({
            "unread_channels": channels, "mentions": mentions, "unread_dms": dms, "recent_reactions": reactions,
        })))
    }

    /// Reactions of others to the latest messages of an agent, newest first.
    fn reactions_to(&self, agent: u64, limit: usize) -> Vec<Value> {
        let joined = self.t.joined.get(&agent).into_iter().flatten();
        let ids = joined.filter_map(|c| self.t.channel_messages.get(c)).flat_map(|ids| ids.iter().rev().take(MOST));
        let mine = ids.filter_map(|id| self.t.messages.get(id)).filter(|m| m.agent == agent);
        let mut found: Vec<_> = mine
            .flat_map(|m| self.t.marks.get(&m.id).into_iter().flat_map(|marks| &marks.reactions).map(move |r| (m, r)))
            .filter(|(_, r)| r.agent != agent)
            .collect();
        found.sort_by_key(|(_, r)| std::cmp::Reverse(r.id));
        found
            .into_iter()
            .take(limit)
            .map(|(m, r)| {
                json!({
                    "message_id": id(m.id), "emoji": r.emoji, "agent_name": r.agent_name,
                    "channel_name": self.t.channels.get(&m.channel).map(|c| c.name.as_str()).unwrap_or_default(),
                    "created_at": iso(r.created_at),
                })
            })
            .collect()
    }

    /// `GET /v1/search?q=`: words of the query, all of which must appear, case-free; newest first.
    pub fn search(&mut self, call: &Call) -> Outcome {
        let limit = call.limit(SEARCH_DEFAULT, MOST)?;
        let words: Vec<String> = call
            .query
            .get("q")
            .map(|q| q.to_lowercase())
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_string)
            .collect();
        let channel = match call.query.get("channel") {
            Some(name) => Some(self.channel_named(call.ws, name)?.id),
            None => None,
        };
        let before = call.id_in_query("before").unwrap_or(u64::MAX);
        let after = call.id_in_query("after").unwrap_or(0);
        let found = self.t.messages.values().rev().filter(|m| {
            m.ws == call.ws
                && m.id < before
                && m.id > after
                && self.is_public(m.channel)
                && channel.is_none_or(|c| c == m.channel)
                && call.query.get("from").is_none_or(|from| *from == m.agent_name)
                && !words.is_empty()
                && words.iter().all(|word| m.text.to_lowercase().contains(word))
        });
        Ok(Answer::ok(
            found
                .take(limit)
                .map(|m| {
                    json!({
                        "id": id(m.id), "agent_name": m.agent_name, "text": m.text, "relevance_score": 1.0,
                        "channel_name": self.t.channels.get(&m.channel).map(|c| c.name.as_str()).unwrap_or_default(),
                        "created_at": iso(m.created_at),
                    })
                })
                .collect(),
        ))
    }

    /// `GET /v1/activity`: the latest messages of channels and conversations.
    pub fn activity(&mut self, call: &Call) -> Outcome {
        let limit = call.limit(SEARCH_DEFAULT, MOST)?;
        let items = self.t.messages.values().rev().filter(|m| m.ws == call.ws).take(limit).map(|m| {
            let mut item = json!({
                "id": id(m.id), "agent_name": m.agent_name, "text": m.text, "created_at": iso(m.created_at),
            });
            if self.is_public(m.channel) {
                item["type"] = json!("message");
                item["channel_id"] = id(m.channel);
                item["channel_name"] =
                    json!(self.t.channels.get(&m.channel).map(|c| c.name.as_str()).unwrap_or_default());
            } else {
                item["type"] = json!("dm");
                item["conversation_id"] = id(m.channel);
            }
            item
        });
        Ok(Answer::ok(items.collect()))
    }
}
