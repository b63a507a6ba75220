//! `POST /api/send`: to local agents where there are any, else through the engine as the broker's own agent.

use serde_json::Value;

use super::ports::{EngineCall, EngineError, Generation, SendRequest, Ticket, WorkspaceNo};
use super::roster::{Agent, Delivery, Phase, Source};
use super::{Awaited, Broker, answers};
use crate::wire::events::Event;

/// A message that no agent here takes, with several workspaces to publish it in.
const CHOOSE: &str = "several workspaces are attached and none is the default; choose one with workspaceId or \
                      workspaceAlias (GET /api/config lists them)";

/// A thread id of the engine is a snowflake; anything else is a local label.
fn is_message_id(thread: &str) -> bool {
    (15..=20).contains(&thread.len()) && thread.bytes().all(|byte| byte.is_ascii_digit())
}

fn channel_of(target: &str) -> Option<&str> {
    target.strip_prefix('#').map(|channel| channel.trim_start_matches('#'))
}

impl Broker {
    /// The sender as receivers see it: absent and the human's aliases become the broker's own name there.
    fn sender(&self, workspace: WorkspaceNo, from: Option<&str>) -> String {
        let from = from.map(str::trim).unwrap_or_default();
        let is_human =
            ["dashboard", "human:dashboard", "human:orchestrator"].iter().any(|alias| from.eq_ignore_ascii_case(alias));
        if from.is_empty() || is_human || self.is_self(from) {
            return self.config.workspaces[workspace].self_name.clone();
        }
        match from.split_once(':') {
            Some(("human", name)) => format!("human:{}", name.trim()),
            _ => from.to_string(),
        }
    }

    fn local_targets(&self, to: &str, from: &str) -> Vec<Generation> {
        let is_open = |agent: &&Agent| agent.phase != Phase::Releasing && !agent.name.eq_ignore_ascii_case(from);
        match channel_of(to) {
            Some(channel) => self
                .roster
                .iter()
                .filter(is_open)
                .filter(|agent| agent.channels.iter().any(|own| own.trim_start_matches('#') == channel))
                .map(|agent| agent.generation)
                .collect(),
            None => {
                let name = to.strip_prefix('@').unwrap_or(to);
                self.roster
                    .iter()
                    .filter(is_open)
                    .filter(|agent| agent.name.eq_ignore_ascii_case(name))
                    .map(|agent| agent.generation)
                    .collect()
            }
        }
    }

    pub(super) fn send_message(&mut self, ticket: Ticket, request: SendRequest) {
        let chosen = match self.config.workspace_for(&request) {
            Ok(chosen) => chosen,
            Err(error) => {
                self.reply(ticket, answers::send_error(400, &request.to, &error));
                return;
            }
        };
        // Agents are all of the home: a name that one of them has needs no choice, anything else does.
        let is_for_home = chosen.is_none_or(|workspace| workspace == self.config.home);
        let workspace = chosen.unwrap_or(self.config.home);
        let from = self.sender(workspace, request.from.as_deref());
        let targets = if is_for_home { self.local_targets(&request.to, &from) } else { Vec::new() };
        if targets.is_empty() {
            match chosen {
                Some(workspace) => self.publish(ticket, workspace, request),
                None => self.reply(ticket, answers::send_error(400, &request.to, CHOOSE)),
            }
            return;
        }
        let full = targets.iter().filter_map(|generation| self.roster.get(*generation)).find(|agent| agent.is_full());
        if let Some(agent) = full {
            let error =
                format!("agent '{}' has too many messages waiting; send again when it has read some", agent.name);
            self.reply(ticket, answers::send_error(503, &request.to, &error));
            return;
        }
        let event_id = self.accepted(workspace, &from, &request);
        let shown = self.config.workspaces[workspace].shown().to_string();
        let mut names = Vec::new();
        for generation in targets {
            let Some(agent) = self.roster.get(generation) else { continue };
            names.push(agent.name.clone());
            let (name, delivery_id) = (agent.name.clone(), self.ids.fresh("del_"));
            let source = Source::of_api(&name, &delivery_id);
            let delivery = Delivery {
                delivery_id,
                event_id: event_id.clone(),
                from: from.clone(),
                target: request.to.clone(),
                body: request.text.clone(),
                thread_id: request.thread_id.clone(),
                priority: if request.to.starts_with('#') { 3 } else { 2 },
                mode: request.mode,
                workspace: Some(shown.clone()),
                source,
                queued_at_unix: self.now.unix,
                attempts: 0,
                last_error: None,
                exempt: false,
            };
            self.store(&name, &delivery);
            self.enqueue(generation, delivery);
        }
        self.reply(ticket, answers::sent_locally(&self.config.workspaces[workspace], &event_id, &names));
    }

    /// Tells of a message that is on its way: its event id.
    fn accepted(&mut self, workspace: WorkspaceNo, from: &str, request: &SendRequest) -> String {
        let event_id = self.ids.fresh("http_");
        self.threads.note(from, &request.to, request.thread_id.as_deref(), &request.text, self.now.unix);
        let within = &self.config.workspaces[workspace];
        self.event(Event::RelayInbound {
            event_id: event_id.clone(),
            from: from.to_string(),
            target: request.to.clone(),
            body: request.text.clone(),
            thread_id: request.thread_id.clone(),
            workspace_id: Some(within.id.clone()),
            workspace_alias: within.alias.clone(),
        });
        event_id
    }

    /// One idempotency key per logical send: a repeat after a lost answer cannot double the message.
    fn publish(&mut self, ticket: Ticket, workspace: WorkspaceNo, request: SendRequest) {
        let idempotency_key = self.ids.fresh("");
        let text = request.text.clone();
        let call = match (&request.thread_id, channel_of(&request.to)) {
            (Some(thread), _) if is_message_id(thread) => {
                EngineCall::PostReply { workspace, message_id: thread.clone(), text, idempotency_key }
            }
            _ => publish_call(workspace, &request, idempotency_key),
        };
        self.call_engine(call, Awaited::Publish { asker: ticket, workspace, request });
    }

    pub(super) fn on_published(
        &mut self,
        ticket: Ticket,
        workspace: WorkspaceNo,
        mut request: SendRequest,
        outcome: Result<Value, EngineError>,
    ) {
        match outcome {
            Ok(data) => {
                let from = self.sender(workspace, request.from.as_deref());
                let event_id = self.accepted(workspace, &from, &request);
                self.reply(ticket, answers::sent_by_engine(&self.config.workspaces[workspace], &event_id, &data));
            }
            // The thread is not the engine's: an ordinary message then.
            Err(error) if error.status == 404 && request.thread_id.as_deref().is_some_and(is_message_id) => {
                request.thread_id = None;
                self.publish(ticket, workspace, request);
            }
            Err(error) => {
                let call = if request.to.starts_with('#') { "send_to_channel" } else { "send_dm" };
                let text = format!(
                    "Agent \"{}\" not found and Relaycast publish failed: relaycast {call} failed: {error}",
                    request.to
                );
                self.reply(ticket, answers::send_error(404, &request.to, &text));
            }
        }
    }
}

fn publish_call(workspace: WorkspaceNo, request: &SendRequest, idempotency_key: String) -> EngineCall {
    let (text, mode) = (request.text.clone(), request.mode);
    match channel_of(&request.to) {
        Some(channel) => {
            EngineCall::PostChannel { workspace, channel: channel.to_string(), text, mode, idempotency_key }
        }
        None => EngineCall::PostDm {
            workspace,
            to: request.to.trim_start_matches('@').to_string(),
            text,
            mode,
            idempotency_key,
        },
    }
}
