//! Channels and who is in them. `general` exists in every workspace and every agent joins it.

use serde_json::{Map, Value, json};

use super::agents::role;
use super::call::id;
use super::rows::{Channel, ChannelKind, Member, Row};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, Outcome};

const GENERAL: &str = "general";
/// Names that the paths of the API use themselves.
const RESERVED: [&str; 3] = ["all", "dm", "me"];

/// `^[a-z0-9][a-z0-9-]*$`
fn valid_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(word) && name.chars().all(|c| word(c) || c == '-')
}

impl Engine {
    pub(super) fn is_public(&self, channel: u64) -> bool {
        self.t.channels.get(&channel).is_some_and(|c| c.kind == ChannelKind::Public)
    }

    /// The public channel of that name; one leading `#` is ignored.
    pub(super) fn channel_named(&self, ws: u64, name: &str) -> Result<&Channel, Fail> {
        let name = name.strip_prefix('#').unwrap_or(name);
        self.t
            .channel_names
            .get(&(ws, name.to_string()))
            .and_then(|id| self.t.channels.get(id))
            .ok_or_else(|| Fail::new(404, "channel_not_found", format!("Channel \"{name}\" not found")))
    }

    fn open_channel(&self, ws: u64, name: &str) -> Result<&Channel, Fail> {
        let channel = self.channel_named(ws, name)?;
        if channel.archived {
            return Err(Fail::new(400, "channel_archived", format!("Channel \"{}\" is archived", channel.name)));
        }
        Ok(channel)
    }

    pub(super) fn ensure_general(&mut self, ws: u64) -> u64 {
        if let Some(id) = self.t.channel_names.get(&(ws, GENERAL.to_string())) {
            return *id;
        }
        self.new_channel(ws, ChannelKind::Public, GENERAL, Some("General discussion".into()), None)
    }

    pub(super) fn new_channel(
        &mut self,
        ws: u64,
        kind: ChannelKind,
        name: &str,
        topic: Option<String>,
        created_by: Option<u64>,
    ) -> u64 {
        let row = Channel {
            id: self.next_id(),
            ws,
            kind,
            name: name.to_string(),
            topic,
            metadata: Map::new(),
            created_by,
            created_at: self.now.unix,
            archived: false,
        };
        let channel = row.id;
        self.put(Row::Channel(row));
        channel
    }

    /// `false` when the agent is a member already.
    pub(super) fn add_member(&mut self, channel: u64, agent: u64, owner: bool) -> bool {
        if self.t.members.contains_key(&(channel, agent)) {
            return false;
        }
        // What was said before the agent came is not unread for it.
        let last_read = self.t.channel_messages.get(&channel).and_then(|ids| ids.last().copied()).unwrap_or(0);
        self.put(Row::Member(Member {
            channel,
            agent,
            owner,
            joined_at: self.now.unix,
            last_read,
            last_read_at: None,
            muted: false,
        }));
        true
    }

    pub(super) fn members_of(&self, channel: u64) -> impl Iterator<Item = &Member> + '_ {
        self.t.members.range((channel, 0)..=(channel, u64::MAX)).map(|(_, member)| member)
    }

    fn member(&self, channel: u64, agent: u64) -> Result<&Member, Fail> {
        self.t
            .members
            .get(&(channel, agent))
            .ok_or_else(|| Fail::new(403, "not_a_member", "The agent is not a member of this channel"))
    }

    fn channel_view(&self, channel: &Channel) -> Value {
        json!({
            "id": id(channel.id), "name": channel.name, "topic": channel.topic, "metadata": channel.metadata,
            "created_by": channel.created_by.map(id), "created_at": iso(channel.created_at),
            "is_archived": channel.archived, "member_count": self.members_of(channel.id).count(),
        })
    }

    fn members_view(&self, channel: u64) -> Value {
        self.members_of(channel)
            .map(|m| {
                json!({
                    "agent_id": id(m.agent), "agent_name": self.agent_name(m.agent), "role": role(m.owner),
                    "joined_at": iso(m.joined_at), "is_muted": m.muted,
                })
            })
            .collect()
    }

    fn view_by_id(&self, channel: u64) -> Value {
        self.t.channels.get(&channel).map(|row| self.channel_view(row)).unwrap_or_default()
    }

    /// `POST /v1/channels`: the creator joins as owner.
    pub fn create_channel(&mut self, call: &Call) -> Outcome {
        let name = call.text("name")?;
        if !valid_name(&name) {
            let message = "Channel names are lower-case letters, digits and dashes, and begin with a letter or digit";
            return Err(Fail::new(400, "invalid_channel_name", message));
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(Fail::new(400, "reserved_channel_name", format!("\"{name}\" is reserved")));
        }
        if self.channel_named(call.ws, &name).is_ok() {
            return Err(Fail::new(409, "channel_already_exists", format!("Channel \"{name}\" already exists")));
        }
        let (topic, metadata) = (call.optional("topic")?, call.object("metadata")?);
        let creator = (call.agent != 0).then_some(call.agent);
        let channel = self.new_channel(call.ws, ChannelKind::Public, &name, topic, creator);
        if let Some(metadata) = metadata
            && let Some(mut row) = self.t.channels.get(&channel).cloned()
        {
            row.metadata = metadata;
            self.put(Row::Channel(row));
        }
        if let Some(creator) = creator {
            self.add_member(channel, creator, true);
        }
        Ok(Answer::created(self.view_by_id(channel)))
    }

    /// `GET /v1/channels`
    pub fn list_channels(&mut self, call: &Call) -> Outcome {
        let archived = call.query.get("include_archived").is_some_and(|v| v == "true");
        let channels = self.t.channels.values().filter(|c| c.ws == call.ws && c.kind == ChannelKind::Public);
        Ok(Answer::ok(channels.filter(|c| archived || !c.archived).map(|c| self.channel_view(c)).collect()))
    }

    /// `GET /v1/channels/:name`
    pub fn get_channel(&mut self, call: &Call) -> Outcome {
        let channel = self.channel_named(call.ws, call.arg(0))?;
        let mut view = self.channel_view(channel);
        view["members"] = self.members_view(channel.id);
        Ok(Answer::ok(view))
    }

    /// `GET /v1/channels/:name/members`
    pub fn list_members(&mut self, call: &Call) -> Outcome {
        let channel = self.channel_named(call.ws, call.arg(0))?.id;
        Ok(Answer::ok(self.members_view(channel)))
    }

    /// `PATCH /v1/channels/:name` and `…/topic`
    pub fn update_channel(&mut self, call: &Call) -> Outcome {
        let mut row = self.open_channel(call.ws, call.arg(0))?.clone();
        if call.body.contains_key("topic") {
            row.topic = call.optional("topic")?;
        }
        if let Some(metadata) = call.object("metadata")? {
            row.metadata = metadata;
        }
        let channel = row.id;
        self.put(Row::Channel(row));
        Ok(Answer::ok(self.view_by_id(channel)))
    }

    /// `DELETE /v1/channels/:name`: archives it.
    pub fn archive_channel(&mut self, call: &Call) -> Outcome {
        let mut row = self.open_channel(call.ws, call.arg(0))?.clone();
        if row.name == GENERAL {
            return Err(Fail::new(400, "reserved_channel_name", "general cannot be archived"));
        }
        row.archived = true;
        self.put(Row::Channel(row));
        Ok(Answer::empty())
    }

    /// `POST /v1/channels/:name/join`
    pub fn join_channel(&mut self, call: &Call) -> Outcome {
        let (channel, name) = self.open_channel(call.ws, call.arg(0)).map(|c| (c.id, c.name.clone()))?;
        let joined = self.add_member(channel, call.agent, false);
        Ok(Answer::ok(json!({"channel": name, "agent_id": id(call.agent), "already_member": !joined})))
    }

    /// `POST /v1/channels/:name/leave`
    pub fn leave_channel(&mut self, call: &Call) -> Outcome {
        let channel = self.channel_named(call.ws, call.arg(0))?.id;
        self.member(channel, call.agent)?;
        self.put(Row::MemberGone { channel, agent: call.agent });
        Ok(Answer::empty())
    }

    /// `POST /v1/channels/:name/invite`
    pub fn invite_to_channel(&mut self, call: &Call) -> Outcome {
        let (channel, name) = self.open_channel(call.ws, call.arg(0)).map(|c| (c.id, c.name.clone()))?;
        let agent_name = call.text("agent_name")?;
        let agent = self.agent_named(call.ws, &agent_name)?.id;
        self.add_member(channel, agent, false);
        Ok(Answer::ok(json!({"channel": name, "agent": agent_name})))
    }

    /// `POST /v1/channels/:name/mute`: the agent stays, nothing of the channel is delivered to it.
    pub fn mute_channel(&mut self, call: &Call) -> Outcome {
        self.set_muted(call, true)
    }

    /// `POST /v1/channels/:name/unmute`
    pub fn unmute_channel(&mut self, call: &Call) -> Outcome {
        self.set_muted(call, false)
    }

    fn set_muted(&mut self, call: &Call, muted: bool) -> Outcome {
        let (channel, name) = self.channel_named(call.ws, call.arg(0)).map(|c| (c.id, c.name.clone()))?;
        let mut member = self.member(channel, call.agent)?.clone();
        member.muted = muted;
        self.put(Row::Member(member));
        Ok(Answer::ok(json!({"channel": name, "agent_id": id(call.agent), "muted": muted})))
    }

    /// `GET /v1/channels/:name/read-status`
    pub fn read_status(&mut self, call: &Call) -> Outcome {
        let channel = self.channel_named(call.ws, call.arg(0))?.id;
        let members = self.members_of(channel).map(|m| {
            json!({
                "agent_name": self.agent_name(m.agent),
                "last_read_id": (m.last_read > 0).then(|| id(m.last_read)),
                "last_read_at": m.last_read_at.map(iso),
            })
        });
        Ok(Answer::ok(members.collect()))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn channel_names_follow_the_engines_pattern() {
        for (name, valid) in [
            ("general", true),
            ("a", true),
            ("0-day", true),
            ("team-2", true),
            ("", false),
            ("-x", false),
            ("Dev", false),
            ("#dev", false),
            ("gen eral", false),
            ("ö", false),
        ] {
            assert_eq!(super::valid_name(name), valid, "{name}");
        }
    }
}
