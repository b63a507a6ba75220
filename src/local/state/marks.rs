//! Reactions and read marks. Both tell others by a frame with `seq` 0, which is never stored nor repeated.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::call::id;
use super::rows::{Reaction, Read, Row};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, Outcome};

impl Engine {
    pub(super) fn reaction_groups(&self, message: u64) -> Value {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for reaction in self.t.marks.get(&message).into_iter().flat_map(|m| &m.reactions) {
            groups.entry(&reaction.emoji).or_default().push(&reaction.agent_name);
        }
        groups
            .into_iter()
            .map(|(emoji, agents)| json!({"emoji": emoji, "count": agents.len(), "agents": agents}))
            .collect()
    }

    /// `POST /v1/messages/:id/reactions`: the same reaction again is answered with the first one.
    pub fn react(&mut self, call: &Call) -> Outcome {
        let message = self.message(call.ws, call.arg(0))?.id;
        let emoji = call.text("emoji")?;
        let known = self
            .t
            .marks
            .get(&message)
            .and_then(|m| m.reactions.iter().find(|r| r.agent == call.agent && r.emoji == emoji).cloned());
        let reaction = match known {
            Some(known) => known,
            None => {
                let reaction = Reaction {
                    id: self.next_id(),
                    message,
                    agent: call.agent,
                    agent_name: self.agent_name(call.agent),
                    emoji: emoji.clone(),
                    created_at: self.now.unix,
                };
                self.put(Row::Reaction(reaction.clone()));
                self.tell_reaction(message, call.agent, &emoji, "added");
                reaction
            }
        };
        Ok(Answer::created(json!({
            "id": id(reaction.id), "message_id": id(message), "agent_name": reaction.agent_name,
            "emoji": reaction.emoji, "created_at": iso(reaction.created_at),
        })))
    }

    /// `DELETE /v1/messages/:id/reactions/:emoji`
    pub fn unreact(&mut self, call: &Call) -> Outcome {
        let message = self.message(call.ws, call.arg(0))?.id;
        let (agent, emoji) = (call.agent, call.arg(1).to_string());
        let marks = self.t.marks.get(&message);
        if !marks.is_some_and(|m| m.reactions.iter().any(|r| r.agent == agent && r.emoji == emoji)) {
            return Err(Fail::new(404, "reaction_not_found", "Reaction not found"));
        }
        self.put(Row::ReactionGone { message, agent, emoji: emoji.clone() });
        self.tell_reaction(message, agent, &emoji, "removed");
        Ok(Answer::empty())
    }

    /// `GET /v1/messages/:id/reactions`
    pub fn list_reactions(&mut self, call: &Call) -> Outcome {
        let message = self.message(call.ws, call.arg(0))?.id;
        Ok(Answer::ok(self.reaction_groups(message)))
    }

    fn tell_reaction(&mut self, message: u64, by: u64, emoji: &str, action: &str) {
        let Some(channel) = self.t.messages.get(&message).map(|m| m.channel) else { return };
        let data = json!({
            "message_id": id(message), "emoji": emoji, "agent_name": self.agent_name(by), "action": action,
        });
        let others: Vec<u64> = self.members_of(channel).filter(|m| m.agent != by).map(|m| m.agent).collect();
        for other in others {
            self.tell(other, "message.reacted", &message.to_string(), data.clone());
        }
    }

    /// `POST /v1/messages/:id/read`
    pub fn mark_read(&mut self, call: &Call) -> Outcome {
        let (message, author) = self.message(call.ws, call.arg(0)).map(|m| (m.id, m.agent))?;
        let known = self.t.marks.get(&message).and_then(|m| m.reads.get(&call.agent)).map(|read| read.at);
        let at = match known {
            Some(at) => at,
            None => {
                let agent_name = self.agent_name(call.agent);
                let at = self.now.unix;
                self.put(Row::Read(Read { message, agent: call.agent, agent_name: agent_name.clone(), at }));
                if author != call.agent {
                    let data = json!({"message_id": id(message), "agent_name": agent_name, "read_at": iso(at)});
                    self.tell(author, "message.read", &message.to_string(), data);
                }
                at
            }
        };
        Ok(Answer::ok(json!({"message_id": id(message), "agent_id": id(call.agent), "read_at": iso(at)})))
    }

    /// `GET /v1/messages/:id/readers`
    pub fn readers(&mut self, call: &Call) -> Outcome {
        let message: Result<u64, Fail> = self.message(call.ws, call.arg(0)).map(|m| m.id);
        let reads = self.t.marks.get(&message?).into_iter().flat_map(|m| m.reads.values());
        Ok(Answer::ok(
            reads.map(|r| json!({"agent_name": r.agent_name, "agent_id": id(r.agent), "read_at": iso(r.at)})).collect(),
        ))
    }
}
