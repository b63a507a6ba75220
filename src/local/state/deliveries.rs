//! Delivery rows: one message for one agent, numbered per agent, acknowledged cumulatively.
//!
//! A row is handed out when its agent is online at a node whose `node.register` was accepted, and again, in `seq` order,
//! after each `node.register`, `agent.register`, `inventory.sync` and bind: until it is acknowledged. It is never handed
//! out again for any other reason.
//!
//! A row that is still open after [`MAILBOX_TTL_MS`] becomes `dead_lettered`, and the author of a direct or group message
//! is told so in a direct message by the agent `relaycast` of type `system`: it waits for an author who is away, and is
//! typed for one in a terminal. What was said to a whole channel expires silently.

use serde_json::{Value, json};

use super::call::id;
use super::messages::Draft;
use super::rows::{ChannelKind, Delivery, DeliveryStatus, Message, Row};
use super::stamp::{iso, parse_iso};
use super::{Answer, Call, Engine, Fail, MAILBOX_OPEN, MAILBOX_TTL_MS, Outcome, Timer};

/// Who writes to authors of expired messages; the second name is for workspaces where the first is somebody else's.
const POSTMASTERS: [&str; 2] = ["relaycast", "relaycast-engine"];
/// How much of an expired message is quoted to its author.
const QUOTED_CHARS: usize = 120;

impl Engine {
    /// Makes the row, then hands it out if its agent can have it now.
    pub(super) fn enqueue(&mut self, reader: u64, message: &Message) {
        let seq = self.t.mailboxes.get(&reader).map_or(0, |m| m.last_seq) + 1;
        self.put(Row::Delivery(Delivery {
            agent: reader,
            seq,
            message: message.id,
            status: DeliveryStatus::Queued,
            attempts: 0,
            error: None,
            retryable: None,
            reason: None,
            available_at: None,
            created_at: self.now.unix,
            updated_at: None,
        }));
        let full = self.t.mailboxes.get(&reader).filter(|m| m.open > MAILBOX_OPEN);
        if let Some(oldest) = full.and_then(|m| m.rows.values().find(|row| row.status.open()).cloned()) {
            self.close_row(oldest, DeliveryStatus::DeadLettered, Some("mailbox full".into()), None);
        }
        if self.t.mailboxes.get(&reader).is_some_and(|m| m.open == 1) {
            self.watch_mailbox(reader);
        }
        if self.t.agents.get(&reader).is_some_and(|a| a.online) {
            self.hand_out(reader, seq);
        }
    }

    /// Arms the deadline of the oldest open row.
    pub(super) fn watch_mailbox(&mut self, agent: u64) {
        let oldest = self.t.mailboxes.get(&agent).and_then(|m| m.rows.values().find(|row| row.status.open()));
        if let Some(oldest) = oldest {
            let left = (oldest.created_at + MAILBOX_TTL_MS).saturating_sub(self.now.unix);
            self.after(left.max(1), Timer::Mailbox(agent));
        }
    }

    /// Gives up what has been open for `ttl_ms`, and tells the authors. Gives the number of rows.
    pub fn expire_mailbox(&mut self, agent: u64, ttl_ms: u64) -> usize {
        let rows = self.t.mailboxes.get(&agent).into_iter().flat_map(|m| m.rows.values());
        let late: Vec<Delivery> = rows
            .filter(|row| row.status.open() && row.created_at.saturating_add(ttl_ms) <= self.now.unix)
            .cloned()
            .collect();
        for row in &late {
            self.close_row(row.clone(), DeliveryStatus::DeadLettered, Some("expired".into()), Some(false));
            self.tell_author(row);
        }
        self.watch_mailbox(agent);
        late.len()
    }

    /// As [`Engine::expire_mailbox`], for everything that is open in every mailbox.
    pub fn expire_all(&mut self) -> usize {
        let agents: Vec<u64> = self.t.mailboxes.iter().filter(|(_, m)| m.open > 0).map(|(agent, _)| *agent).collect();
        agents.into_iter().map(|agent| self.expire_mailbox(agent, 0)).sum()
    }

    /// A message of the postmaster to the author of an expired one, except about its own and those to it.
    fn tell_author(&mut self, row: &Delivery) {
        let Some(message) = self.t.messages.get(&row.message).cloned() else { return };
        let direct = self.t.channels.get(&message.channel).is_some_and(|c| c.kind != ChannelKind::Public);
        let is_system = |agent: u64| self.t.agents.get(&agent).is_none_or(|agent| agent.kind == "system");
        if !direct || is_system(message.agent) || is_system(row.agent) {
            return;
        }
        let Some(postmaster) = self.postmaster(message.ws) else { return };
        let quoted: String = message.text.chars().take(QUOTED_CHARS).collect();
        let text = format!(
            "Your message {} to {} was not delivered in time and has expired: {quoted}",
            message.id,
            self.agent_name(row.agent)
        );
        let conversation = self.direct_between(message.ws, postmaster, message.agent);
        let draft = Draft { text, ..Draft::default() };
        if let Err(fail) = self.post(conversation, postmaster, draft) {
            log::warn!("the author of message {} was not told that it expired: {}", message.id, fail.message);
        }
    }

    /// The agent that speaks for the engine: nobody has its token, and it reads no channel.
    fn postmaster(&mut self, ws: u64) -> Option<u64> {
        for name in POSTMASTERS {
            match self.agent_named(ws, name) {
                Ok(agent) if agent.kind == "system" => return Some(agent.id),
                Ok(_) => {}
                Err(_) => {
                    let (mut agent, _) = self.new_agent(ws, name, "system");
                    let channel = self.ensure_general(ws);
                    self.put(Row::MemberGone { channel, agent: agent.id });
                    agent.token_digest = None;
                    agent.online = false;
                    let id = agent.id;
                    self.put(Row::Agent(agent));
                    return Some(id);
                }
            }
        }
        None
    }

    /// Every open row of the agent, in order.
    pub(super) fn replay_mailbox(&mut self, agent: u64) {
        let open: Vec<u64> = self
            .t
            .mailboxes
            .get(&agent)
            .into_iter()
            .flat_map(|m| m.rows.values())
            .filter(|row| row.status.open())
            .map(|row| row.seq)
            .collect();
        for seq in open {
            self.hand_out(agent, seq);
        }
    }

    fn hand_out(&mut self, agent: u64, seq: u64) {
        let Some((link, name)) = self.link_of_agent(agent) else { return };
        let Some(row) = self.t.mailboxes.get_mut(&agent).and_then(|m| m.rows.get_mut(&seq)) else { return };
        let Some(message) = self.t.messages.get(&row.message) else {
            // Its agent had left the channel when the message went.
            let row = row.clone();
            return self.close_row(row, DeliveryStatus::DeadLettered, Some("message expired".into()), None);
        };
        row.status = DeliveryStatus::Delivered;
        row.attempts += 1;
        row.updated_at = Some(self.now.unix);
        let frame = json!({
            "v": 1, "type": "deliver", "agent": name, "agent_id": id(agent),
            "delivery_id": format!("del_{}_{agent}", message.id), "msg_id": id(message.id), "seq": seq,
            "mode": message.mode.as_str(), "payload": self.payload(message, agent),
        });
        self.send(link, &frame);
    }

    /// A frame with `seq` 0: sent if the agent can have it now, else gone.
    pub(super) fn tell(&mut self, agent: u64, event: &str, key: &str, data: Value) {
        let Some((link, name)) = self.link_of_agent(agent) else { return };
        self.send(
            link,
            &json!({
                "v": 1, "type": "deliver", "agent": name, "agent_id": id(agent),
                "delivery_id": format!("evt_{event}_{key}_{agent}"), "msg_id": key, "seq": 0, "mode": "wait",
                "payload": {"type": event, "data": data},
            }),
        );
    }

    /// `delivery.ack`: cumulative, by the name of an agent located at that node; anything else is no news.
    pub(super) fn acknowledge(&mut self, node: &str, ws: u64, name: &str, up_to_seq: u64) {
        let Ok(agent) = self.agent_named(ws, name) else { return };
        if agent.node.as_deref() != Some(node) {
            return;
        }
        let (agent, at) = (agent.id, self.now.unix);
        let news = self.t.mailboxes.get(&agent).is_some_and(|m| m.open > 0 && m.acked < up_to_seq.min(m.last_seq));
        if news {
            self.put(Row::Acked { agent, seq: up_to_seq, at });
        }
    }

    /// The message goes: what was not delivered yet will never be.
    pub(super) fn bury_deliveries_of(&mut self, message: u64) {
        let Some(channel) = self.t.messages.get(&message).map(|m| m.channel) else { return };
        let readers: Vec<u64> = self.members_of(channel).map(|m| m.agent).collect();
        for reader in readers {
            let rows = self.t.mailboxes.get(&reader).into_iter().flat_map(|m| m.rows.values());
            let open: Vec<Delivery> = rows.filter(|r| r.message == message && r.status.open()).cloned().collect();
            for row in open {
                self.close_row(row, DeliveryStatus::DeadLettered, Some("message expired".into()), None);
            }
        }
    }

    fn close_row(&mut self, mut row: Delivery, status: DeliveryStatus, error: Option<String>, retryable: Option<bool>) {
        row.status = status;
        row.error = error;
        row.retryable = retryable;
        row.updated_at = Some(self.now.unix);
        self.put(Row::Delivery(row));
    }

    fn delivery_view(&self, row: &Delivery) -> Value {
        let agent = self.t.agents.get(&row.agent);
        let node = agent.and_then(|a| a.node.as_deref()).and_then(|n| self.t.nodes.get(n));
        let message = self.t.messages.get(&row.message);
        let when = |status| (row.status == status).then(|| row.updated_at.map(iso)).flatten();
        json!({
            "id": format!("del_{}_{}", row.message, row.agent), "message_id": id(row.message),
            "channel_id": message.map(|m| id(m.channel)).unwrap_or_else(|| json!("")), "agent_id": id(row.agent),
            "status": row.status.as_str(), "seq": row.seq,
            "location_type": if node.is_some() { "node" } else { "none" },
            "location_node_id": node.map(|n| &n.id), "route_node_id": node.map(|n| &n.id),
            "route_node_kind": node.map(|n| &n.kind), "route_node_role": node.map(|n| &n.role),
            "delivery_adapter": node.map(|n| &n.adapter), "dispatch_attempts": row.attempts,
            "next_attempt_at": null, "last_dispatch_error": null,
            "mode": message.map_or("wait", |m| m.mode.as_str()), "reason": row.reason, "priority": "normal",
            "retryable": row.retryable, "error": row.error, "available_at": row.available_at.map(iso),
            "deadline": null, "expires_at": row.status.open().then(|| iso(row.created_at + MAILBOX_TTL_MS)),
            "delivered_at": when(DeliveryStatus::Delivered), "acked_at": when(DeliveryStatus::Acked),
            "dead_lettered_at": when(DeliveryStatus::DeadLettered), "created_at": iso(row.created_at),
            "updated_at": row.updated_at.map(iso),
        })
    }

    fn own_delivery(&self, call: &Call) -> Result<Delivery, Fail> {
        let suffix = format!("_{}", call.agent);
        let message =
            call.arg(0).strip_prefix("del_").and_then(|r| r.strip_suffix(&suffix)).and_then(|m| m.parse::<u64>().ok());
        let rows = self.t.mailboxes.get(&call.agent).into_iter().flat_map(|m| m.rows.values());
        rows.rev()
            .find(|row| Some(row.message) == message)
            .cloned()
            .ok_or_else(|| Fail::new(404, "delivery_not_found", "Delivery not found"))
    }

    /// `GET /v1/deliveries`: by default what is still open, oldest first.
    pub fn list_deliveries(&mut self, call: &Call) -> Outcome {
        let limit = call.limit(50, 200)?;
        let status = call.query.get("status").map(String::as_str);
        let rows = self.t.mailboxes.get(&call.agent).into_iter().flat_map(|m| m.rows.values());
        let rows = rows.filter(|row| status.map_or(row.status.open(), |wanted| row.status.as_str() == wanted));
        let items = rows.take(limit).map(|row| {
            let mut item = self.delivery_view(row);
            item["message"] = self.t.messages.get(&row.message).map_or(Value::Null, |m| {
                json!({
                    "id": id(m.id), "channel_id": id(m.channel), "agent_id": id(m.agent), "agent_name": m.agent_name,
                    "text": m.text, "thread_id": m.thread.map(id), "created_at": iso(m.created_at),
                })
            });
            item
        });
        Ok(Answer::ok(items.collect()))
    }

    /// `POST /v1/deliveries/:id/ack`: this row alone.
    pub fn ack_delivery(&mut self, call: &Call) -> Outcome {
        let row = self.own_delivery(call)?;
        if row.status.open() {
            self.close_row(row, DeliveryStatus::Acked, None, None);
        }
        Ok(Answer::ok(self.delivery_view(&self.own_delivery(call)?)))
    }

    /// `POST /v1/deliveries/:id/fail`
    pub fn fail_delivery(&mut self, call: &Call) -> Outcome {
        let row = self.own_delivery(call)?;
        let error = call.optional("error")?;
        let retryable = call.body.get("retryable").and_then(Value::as_bool);
        if row.status.open() {
            self.close_row(row, DeliveryStatus::Failed, error, retryable);
        }
        Ok(Answer::ok(self.delivery_view(&self.own_delivery(call)?)))
    }

    /// `POST /v1/deliveries/:id/defer`: noted on the row; it stays open.
    pub fn defer_delivery(&mut self, call: &Call) -> Outcome {
        let mut row = self.own_delivery(call)?;
        let until = parse_iso(&call.text("available_at")?)
            .ok_or_else(|| Fail::invalid("`available_at` must be an ISO 8601 time in UTC"))?;
        row.reason = call.optional("reason")?;
        if row.status.open() {
            row.status = DeliveryStatus::Queued;
            row.available_at = Some(until);
            row.updated_at = Some(self.now.unix);
            self.put(Row::Delivery(row));
        }
        Ok(Answer::ok(self.delivery_view(&self.own_delivery(call)?)))
    }
}
