//! Triggers: a message in a channel invokes an action.
//!
//! A trigger looks at posts and replies in public channels, when they are posted. Its pattern is a regular expression
//! searched in the text; flags, look-around and back references are not known. The action is invoked without a caller,
//! with `{trigger_id, channel, message: {id, agent_id, agent_name, text, thread_id, mentions, created_at}}`. When nobody
//! can run it, nothing is kept.

use regex_lite::Regex;
use serde_json::{Map, Value, json};

use super::call::id;
use super::rows::{Message, Row, Trigger};
use super::stamp::iso;
use super::{Answer, Call, Engine, Fail, Outcome};

const MOST_PER_WORKSPACE: usize = 200;
const LONGEST_PATTERN: usize = 1_000;

impl Engine {
    fn trigger(&self, call: &Call) -> Result<&Trigger, Fail> {
        let wanted = call.arg(0).strip_prefix("trg_").and_then(|id| id.parse::<u64>().ok());
        wanted
            .and_then(|id| self.t.triggers.get(&id))
            .filter(|trigger| trigger.ws == call.ws)
            .ok_or_else(|| Fail::new(404, "trigger_not_found", "Trigger not found"))
    }

    /// `POST /v1/triggers`
    pub fn create_trigger(&mut self, call: &Call) -> Outcome {
        if self.t.triggers.values().filter(|t| t.ws == call.ws).count() >= MOST_PER_WORKSPACE {
            return Err(Fail::invalid(format!("A workspace has at most {MOST_PER_WORKSPACE} triggers")));
        }
        let mut row = Trigger {
            id: 0,
            ws: call.ws,
            channel: None,
            pattern: None,
            mention: Value::Null,
            action_name: call.text("action_name")?,
            enabled: true,
            last_triggered_at: None,
            created_at: self.now.unix,
            updated_at: None,
        };
        change(&mut row, call)?;
        row.id = self.next_id();
        self.put(Row::Trigger(row.clone()));
        Ok(Answer::created(view(&row)))
    }

    /// `GET /v1/triggers`
    pub fn list_triggers(&mut self, call: &Call) -> Outcome {
        Ok(Answer::ok(self.t.triggers.values().filter(|t| t.ws == call.ws).map(view).collect()))
    }

    /// `GET /v1/triggers/:id`
    pub fn get_trigger(&mut self, call: &Call) -> Outcome {
        Ok(Answer::ok(view(self.trigger(call)?)))
    }

    /// `PATCH /v1/triggers/:id`: what is given changes; `null` takes a condition away.
    pub fn update_trigger(&mut self, call: &Call) -> Outcome {
        let mut row = self.trigger(call)?.clone();
        change(&mut row, call)?;
        row.updated_at = Some(self.now.unix);
        self.put(Row::Trigger(row.clone()));
        Ok(Answer::ok(view(&row)))
    }

    /// `DELETE /v1/triggers/:id`
    pub fn delete_trigger(&mut self, call: &Call) -> Outcome {
        let id = self.trigger(call)?.id;
        self.put(Row::TriggerGone { id });
        Ok(Answer::empty())
    }

    /// Invokes the actions that wait for a message like this one.
    pub(super) fn pull_triggers(&mut self, message: &Message) {
        if self.t.triggers.is_empty() || !self.is_public(message.channel) {
            return;
        }
        let channel = self.t.channels.get(&message.channel).map(|c| c.name.clone()).unwrap_or_default();
        let pulled: Vec<Trigger> =
            self.t.triggers.values().filter(|t| t.ws == message.ws && pulls(t, &channel, message)).cloned().collect();
        for mut trigger in pulled {
            let input = json!({
                "trigger_id": format!("trg_{}", trigger.id), "channel": channel,
                "message": {
                    "id": id(message.id), "agent_id": id(message.agent), "agent_name": message.agent_name,
                    "text": message.text, "thread_id": message.thread.map(id), "mentions": message.mentions,
                    "created_at": iso(message.created_at),
                },
            });
            let call = Call {
                ws: message.ws,
                args: vec![trigger.action_name.clone()],
                body: Map::from_iter([("input".to_string(), input)]),
                ..Call::default()
            };
            if let Err(fail) = self.invoke_action(&call) {
                log::info!("trigger trg_{} did not invoke \"{}\": {}", trigger.id, trigger.action_name, fail.message);
                continue;
            }
            trigger.last_triggered_at = Some(self.now.unix);
            self.put(Row::Trigger(trigger));
        }
    }
}

fn pulls(trigger: &Trigger, channel: &str, message: &Message) -> bool {
    let here = trigger.channel.as_ref().is_none_or(|wanted| wanted.strip_prefix('#').unwrap_or(wanted) == channel);
    let mentioned = match &trigger.mention {
        Value::Bool(true) => !message.mentions.is_empty(),
        Value::String(name) => message.mentions.iter().any(|m| m == name.strip_prefix('@').unwrap_or(name)),
        _ => true,
    };
    let matches = || {
        let pattern = trigger.pattern.as_deref().unwrap_or_default();
        pattern.is_empty() || Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(&message.text))
    };
    trigger.enabled && here && mentioned && matches()
}

/// Reads the fields that a body has into the row.
fn change(row: &mut Trigger, call: &Call) -> Result<(), Fail> {
    if call.body.contains_key("channel") {
        row.channel = call.optional("channel")?.filter(|channel| !channel.trim().is_empty());
    }
    if call.body.contains_key("pattern") {
        row.pattern = call.optional("pattern")?;
        let pattern = row.pattern.as_deref().unwrap_or_default();
        if pattern.len() > LONGEST_PATTERN {
            return Err(Fail::invalid(format!("`pattern` is longer than {LONGEST_PATTERN} bytes")));
        }
        Regex::new(pattern).map_err(|error| Fail::invalid(format!("`pattern`: {error}")))?;
    }
    match call.body.get("mention") {
        None => {}
        Some(mention @ (Value::Null | Value::Bool(_) | Value::String(_))) => row.mention = mention.clone(),
        Some(_) => return Err(Fail::invalid("`mention` must be a boolean or a name")),
    }
    if call.body.contains_key("action_name") {
        row.action_name = call.text("action_name")?;
    }
    match call.body.get("enabled") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(enabled)) => row.enabled = *enabled,
        Some(_) => return Err(Fail::invalid("`enabled` must be a boolean")),
    }
    Ok(())
}

fn view(row: &Trigger) -> Value {
    json!({
        "id": format!("trg_{}", row.id), "channel": row.channel, "pattern": row.pattern, "mention": row.mention,
        "action_name": row.action_name, "enabled": row.enabled,
        "last_triggered_at": row.last_triggered_at.map(iso), "created_at": iso(row.created_at),
        "updated_at": row.updated_at.map(iso),
    })
}
