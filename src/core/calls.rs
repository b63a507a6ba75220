//! Calls of the local API and answers of engine calls, each to its place; and what an earlier life left.

use log::Level;
use serde_json::Value;

use super::pending::Restored;
use super::ports::{AgentCommand, ApiAnswer, ApiCall, EngineError, Generation, Ms, Record, SnapshotFormat, Ticket};
use super::roster::{Agent, Asker, Delivery, SizeOwner, Source};
use super::timers::Timer;
use super::{Awaited, Broker, answers};

/// A resize or a snapshot that the agent's thread has not answered by then.
const TERMINAL_CALL_MS: Ms = 5_000;
/// Keystrokes that the program has not taken by then. They stay in their place and are written when it reads again.
const KEYSTROKES_MS: Ms = 12_000;
/// A session that has not been heard of for so long owns no terminal's size any more.
const SIZE_CLAIM_MS: Ms = 300_000;

impl Broker {
    pub(super) fn on_engine(&mut self, ticket: Ticket, outcome: Result<Value, EngineError>) {
        let Some(awaited) = self.calls.remove(&ticket) else { return };
        match awaited {
            Awaited::MintToken => self.on_token_minted(outcome),
            Awaited::Register(generation) => self.on_http_registered(generation, outcome),
            Awaited::Bind { generation, agent_id, name } => self.on_bound(generation, &agent_id, &name, outcome),
            Awaited::LookUp(generation) => self.on_looked_up(generation, outcome),
            Awaited::Membership { generation, channel, joins } => {
                self.on_membership(generation, &channel, joins, outcome)
            }
            Awaited::Publish { asker, workspace, request } => self.on_published(asker, workspace, request, outcome),
            Awaited::Presence => {
                if let Err(error) = outcome {
                    self.log(Level::Debug, format!("presence of the broker's own agent: {error}"));
                }
            }
        }
    }

    pub(super) fn on_api(&mut self, ticket: Ticket, call: ApiCall) {
        if self.stopping.is_some() && !matches!(call, ApiCall::Status | ApiCall::ListAgents) {
            self.reply(ticket, answers::shutting_down(&call));
            return;
        }
        match call {
            ApiCall::Spawn(request) => self.spawn(request, Asker::Api(ticket)),
            ApiCall::ListAgents => self.reply(ticket, answers::agents(&self.roster)),
            ApiCall::Release { name, reason } => {
                if let Some(reason) = &reason {
                    self.log(Level::Info, format!("release of '{name}' asked for: {reason}"));
                }
                if self.release(&name, reason, Asker::Api(ticket)).is_err() {
                    // Unknown or already gone: the same success as in 9.1.6.
                    self.reply(ticket, answers::released(&name, None));
                }
            }
            ApiCall::Send(request) => self.send_message(ticket, request),
            ApiCall::Type { name, bytes } => {
                self.with_running(ticket, &name, KEYSTROKES_MS, |_| AgentCommand::Type { ticket, bytes, enter: false });
            }
            ApiCall::Resize { name, rows, cols, session } => self.resize(ticket, &name, rows, cols, session),
            ApiCall::ReleaseSize { name, session } => self.release_size(ticket, &name, &session),
            ApiCall::Snapshot { name, format } => self.picture(ticket, &name, format),
            ApiCall::DeliveryMode { name } => match self.roster.named(&name) {
                Some(agent) => self.reply(ticket, answers::delivery_mode(agent)),
                None => self.reply(ticket, answers::no_agent(&name)),
            },
            ApiCall::SetDeliveryMode { name, mode, expected } => self.set_mode(ticket, &name, mode, expected),
            ApiCall::Pending { name } => match self.roster.named(&name) {
                Some(agent) => self.reply(ticket, answers::pending(&self.config, agent)),
                None => self.reply(ticket, answers::no_agent(&name)),
            },
            ApiCall::Flush { name } => self.flush_on_request(ticket, &name),
            ApiCall::Status => self.reply(ticket, answers::status(self)),
            ApiCall::Session => self.reply(ticket, answers::session(self)),
            ApiCall::Config => self.reply(ticket, answers::config(&self.config)),
            ApiCall::RenewLease => {
                if !self.config.persist {
                    self.renew_lease();
                }
                self.reply(ticket, answers::renewed(self.config.persist));
            }
            ApiCall::Redeliver { delivery_id } => self.redeliver(ticket, delivery_id.as_deref()),
            ApiCall::Metrics { agent } => self.reply(ticket, self.metrics(agent.as_deref())),
            ApiCall::CrashInsights => self.reply(ticket, self.crash_insights()),
            ApiCall::Threads => self.reply(ticket, answers::threads(self.threads.rows())),
            ApiCall::SetModel { name, model } => self.set_model(ticket, &name, &model),
            ApiCall::Result(report) => self.take_result(ticket, report),
            ApiCall::Receipt { delivery_id } => self.answer_receipt(ticket, &delivery_id),
            ApiCall::DeadLetters => self.reply(ticket, answers::dead_letters(&self.dead, self.now.unix)),
            ApiCall::Shutdown => {
                self.reply(ticket, answers::ok(serde_json::json!({"status": "shutting_down"})));
                self.stop("POST /api/shutdown");
            }
            ApiCall::Subscribe { name, channels } => self.subscribe(ticket, &name, &channels),
            ApiCall::Unsubscribe { name, channels } => self.unsubscribe(ticket, &name, &channels),
            ApiCall::RegisterNode { sidecar, manifest, supervision } => {
                self.of_sidecar(ticket, sidecar, |broker| broker.register_node(manifest, supervision));
            }
            ApiCall::RegisterHandlers { sidecar, names } => {
                self.of_sidecar(ticket, sidecar, |broker| broker.register_handlers(names));
            }
            ApiCall::HandlerResult { sidecar, invocation_id, outcome } => {
                self.of_sidecar(ticket, sidecar, |broker| broker.handler_result(&invocation_id, outcome));
            }
            ApiCall::DeregisterNode { sidecar } => self.deregister_node(ticket, sidecar),
        }
    }

    fn with_running(&mut self, ticket: Ticket, name: &str, limit: Ms, command: impl FnOnce(&Agent) -> AgentCommand) {
        match self.roster.named(name).filter(|agent| agent.has_begun()) {
            Some(agent) if agent.request.headless => {
                self.model_calls.remove(&ticket);
                let message = format!("agent '{name}' is headless: it has no terminal");
                self.reply(ticket, answers::code(409, "unsupported_runtime", &message));
            }
            Some(agent) => {
                let (generation, command) = (agent.generation, command(agent));
                self.terminal_calls.insert(ticket, generation);
                self.timers.set(Timer::TerminalCall(ticket), self.now.mono + limit);
                self.command(generation, command);
            }
            None => self.reply(ticket, answers::no_agent(name)),
        }
    }

    /// The answer of an agent's thread, if nobody has lost patience before.
    pub(super) fn answer_terminal_call(&mut self, ticket: Ticket, answer: ApiAnswer) {
        self.model_calls.remove(&ticket);
        if self.terminal_calls.remove(&ticket).is_some() {
            self.timers.cancel(&Timer::TerminalCall(ticket));
            self.reply(ticket, answer);
        }
    }

    pub(super) fn on_terminal_call_due(&mut self, ticket: Ticket) {
        self.answer_terminal_call(ticket, answers::code(504, "worker_timeout", "the terminal did not answer in time"));
    }

    /// The thread is gone: what was asked of it will not be answered.
    pub(super) fn terminal_calls_end(&mut self, generation: Generation) {
        let open: Vec<Ticket> =
            self.terminal_calls.iter().filter(|(_, asked)| **asked == generation).map(|(ticket, _)| *ticket).collect();
        for ticket in open {
            self.answer_terminal_call(ticket, answers::code(503, "worker_disappeared", "the agent ended"));
        }
    }

    /// One session at a time says how large the terminal is, or two viewers would tear at it. A claim that is not renewed
    /// ends by itself. Who names no session does as it always could.
    fn resize(&mut self, ticket: Ticket, name: &str, rows: u16, cols: u16, session: Option<String>) {
        let now = self.now.mono;
        let running = self.roster.generation_of(name).and_then(|generation| self.roster.get_mut(generation));
        if let (Some(session), Some(agent)) =
            (session, running.filter(|agent| agent.has_begun() && !agent.request.headless))
        {
            if let Some(owner) = &agent.size_owner
                && owner.session != session
                && now.saturating_sub(owner.seen) < SIZE_CLAIM_MS
            {
                let silent = now.saturating_sub(owner.seen) / 1000;
                let limit = SIZE_CLAIM_MS / 1000;
                let message = format!(
                    "the terminal size of '{name}' belongs to another session, last heard of {silent} s ago; it is free \
                     once that session releases it or has been silent for {limit} s"
                );
                self.reply(ticket, answers::code(409, "resize_owned", &message));
                return;
            }
            agent.size_owner = Some(SizeOwner { session, seen: now });
        }
        // The kernel tells the program nothing when the size is the one it has: that is the keep-alive.
        self.with_running(ticket, name, TERMINAL_CALL_MS, |_| AgentCommand::Resize { ticket, rows, cols });
    }

    fn release_size(&mut self, ticket: Ticket, name: &str, session: &str) {
        let Some(agent) = self.roster.generation_of(name).and_then(|generation| self.roster.get_mut(generation)) else {
            self.reply(ticket, answers::no_agent(name));
            return;
        };
        let released = agent.size_owner.take_if(|owner| owner.session == session).is_some();
        self.reply(ticket, answers::size_released(name, released));
    }

    fn picture(&mut self, ticket: Ticket, name: &str, format: SnapshotFormat) {
        self.with_running(ticket, name, TERMINAL_CALL_MS, |_| AgentCommand::Snapshot { ticket, format });
    }

    /// The CLI's own way to change its model; the answer comes when its terminal has taken the line.
    fn set_model(&mut self, ticket: Ticket, name: &str, model: &str) {
        if self.roster.named(name).is_none_or(|agent| !agent.has_begun()) {
            self.reply(ticket, answers::spawn_error(name, &format!("unknown worker '{name}'")));
            return;
        }
        let bytes = format!("/model {model}").into_bytes();
        self.model_calls.insert(ticket, model.to_string());
        self.with_running(ticket, name, KEYSTROKES_MS, |_| AgentCommand::Type { ticket, bytes, enter: true });
    }

    /// The keystrokes of a call are in the terminal.
    pub(super) fn answer_typed(&mut self, ticket: Ticket, name: &str, bytes: usize) {
        let answer = match self.model_calls.remove(&ticket) {
            Some(model) => {
                if let Some(agent) =
                    self.roster.generation_of(name).and_then(|generation| self.roster.get_mut(generation))
                {
                    agent.request.model = Some(model.clone());
                }
                answers::model_set(name, &model)
            }
            None => answers::typed(name, bytes),
        };
        self.answer_terminal_call(ticket, answer);
    }

    /// Takes over the journal of an earlier life.
    pub(super) fn restore(&mut self, records: Vec<Record>) {
        // In the order of their last records, so that of too many the oldest go.
        let mut keys: Vec<String> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for record in records.iter().rev() {
            if let Record::Disposed { agent_id, .. } | Record::Unrepeated { agent_id, .. } = record
                && seen.insert(agent_id)
            {
                keys.push(agent_id.clone());
            }
        }
        for record in records {
            match record {
                Record::Disposed { agent_id, agent, seq, msg_id } => {
                    self.cursor(&agent_id, &agent).restore(seq, &msg_id);
                }
                Record::DeadLetter(letter) => self.dead.push(letter),
                Record::Unrepeated { agent_id, agent, key, delivery } => {
                    let source = Source::restored(agent_id, key);
                    if let Source::Late { book, seq, msg_id } = &source {
                        self.cursor(book, &agent).enter_late(*seq, msg_id);
                    }
                    let delivery = restored_delivery(delivery, source);
                    self.restored.push(Restored { agent, delivery, read: false });
                    self.pending_changes += 1;
                }
                Record::UnrepeatedRead { agent_id, key } => {
                    let source = Source::restored(agent_id, key);
                    let read = self.restored.iter_mut().filter(|one| one.delivery.source == source);
                    read.for_each(|one| one.read = true);
                }
                Record::UnrepeatedDone { agent_id, key } => {
                    let source = Source::restored(agent_id, key);
                    self.restored.retain(|one| one.delivery.source != source);
                    if let Source::Late { book, seq, .. } = &source
                        && let Some(cursor) = self.book.get_mut(book)
                    {
                        cursor.dispose(*seq);
                    }
                }
                Record::Redelivered { delivery_id } => drop(self.dead.take(&delivery_id)),
                Record::Invocation { invocation_id, output, error, .. } => {
                    self.restore_invocation(&invocation_id, output, error);
                }
                Record::Gone { agent, .. } => self.remember_gone(&agent),
            }
        }
        for key in keys.into_iter().rev() {
            if self.book.contains_key(&key) {
                self.bound_strangers(key);
            }
        }
    }
}

fn restored_delivery(stored: super::ports::StoredDelivery, source: Source) -> Delivery {
    Delivery {
        delivery_id: stored.delivery_id,
        event_id: stored.event_id,
        from: stored.from,
        target: stored.target,
        body: stored.body,
        thread_id: stored.thread_id,
        priority: stored.priority,
        mode: stored.mode,
        workspace: None,
        source,
        queued_at_unix: stored.queued_at_ms,
        attempts: 0,
        last_error: None,
        exempt: false,
    }
}
