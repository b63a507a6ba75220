//! What an agent's thread reports, and the end of an agent: exit, release, the clean-up that every end shares.

use std::collections::VecDeque;

use log::Level;

use super::ports::{AgentCommand, AgentNote, Generation, LONG_SILENCE_SECS, Ms, Record};
use super::restart::Fate;
use super::roster::{Agent, Asker, Phase};
use super::spawn::STABLE_MS;
use super::timers::Timer;
use super::{Broker, Effect, answers, restart};
use crate::wire::events::{Ending, Event};
use crate::wire::node::Deliver;

/// Names of gone agents remembered, so that a second release is a success.
const TOMBSTONES_MAX: usize = 1024;
/// Why a message of an agent that never ran ends.
const SPAWN_FAILED: &str = "spawn_failed";

impl Broker {
    pub(super) fn on_agent(&mut self, generation: Generation, note: AgentNote) {
        if self.roster.get(generation).is_none() {
            return;
        }
        match note {
            AgentNote::Prepared => {
                if self.roster.get(generation).is_some_and(|agent| agent.phase == Phase::Preparing) {
                    self.register(generation);
                }
            }
            AgentNote::Refused { error } => self.on_thread_refused(generation, &error),
            AgentNote::Outfitted { session_id, model } => {
                if let Some(agent) = self.roster.get_mut(generation) {
                    agent.session_id = session_id.or(agent.session_id.take());
                    agent.request.model = model.or(agent.request.model.take());
                }
            }
            AgentNote::Started { pid } => self.on_started(generation, Some(pid)),
            AgentNote::Serving { pid } => self.on_started(generation, pid),
            AgentNote::Accepted { delivery_id } => self.on_accepted(generation, &delivery_id),
            AgentNote::Trouble { code, message } => {
                if let Some(agent) = self.roster.get(generation) {
                    let event = Event::trouble(&agent.name, code, &message);
                    self.event(event);
                }
            }
            AgentNote::Taken { delivery_id, pid } => self.on_taken(generation, &delivery_id, pid),
            AgentNote::Finished { delivery_id, result } => self.on_finished(generation, &delivery_id, result),
            AgentNote::Line { stream, chunk, offset } => self.on_output(generation, stream, chunk, offset),
            AgentNote::Judged(verdict) => {
                if let Some(agent) = self.roster.get_mut(generation) {
                    agent.verdict = verdict;
                }
            }
            AgentNote::Ready => self.on_ready(generation),
            AgentNote::Output { chunk, offset } => self.on_output(generation, "stdout", chunk, offset),
            AgentNote::Active => self.active(generation),
            AgentNote::Typed { delivery_id } => self.on_typed(generation, &delivery_id),
            AgentNote::Waiting { delivery_id } => self.on_waiting(generation, &delivery_id),
            AgentNote::TurnStarted { delivery_id } => self.on_turn_started(generation, delivery_id),
            AgentNote::Read { delivery_id } => self.on_read(generation, &delivery_id),
            AgentNote::Stalled { delivery_id } => self.on_stalled(generation, &delivery_id),
            AgentNote::Lost { delivery_id } => self.on_lost(generation, &delivery_id),
            AgentNote::Verified { delivery_id, echo } => self.on_verified(generation, &delivery_id, echo),
            AgentNote::InjectFailed { delivery_id, error } => self.on_inject_failed(generation, &delivery_id, &error),
            AgentNote::GivenBack { delivery_id } => self.on_given_back(generation, &delivery_id),
            AgentNote::TypeDone { ticket, result } => {
                let name = self.roster.get(generation).map(|agent| agent.name.clone()).unwrap_or_default();
                match result {
                    Ok(bytes) => self.answer_typed(ticket, &name, bytes),
                    Err(error) => {
                        self.event(Event::write_failed(&name, &error, true));
                        self.answer_terminal_call(ticket, answers::code(503, "pty_write_failed", &error));
                    }
                }
            }
            AgentNote::Resized { ticket, rows, cols } => {
                let name = self.roster.get(generation).map(|agent| agent.name.clone()).unwrap_or_default();
                self.answer_terminal_call(ticket, answers::resized(&name, rows, cols));
            }
            AgentNote::Pictured { ticket, format, snapshot } => {
                self.answer_terminal_call(ticket, answers::snapshot(format, &snapshot));
            }
            AgentNote::Idle { idle_secs, since_unix } => self.on_idle(generation, idle_secs, since_unix),
            AgentNote::ContextLeft { pct } => self.on_context_left(generation, pct),
            AgentNote::Continuity(wish) => self.on_continuity(generation, wish),
            AgentNote::Ending { reason } => self.on_ending(generation, reason),
            AgentNote::LastWords(words) => {
                if let Some(agent) = self.roster.get_mut(generation) {
                    agent.last_words = words;
                }
            }
            AgentNote::Exited { code, signal } => self.on_exited(generation, code, signal),
        }
    }

    fn on_thread_refused(&mut self, generation: Generation, error: &str) {
        let releasing = self.roster.get(generation).is_some_and(|agent| agent.phase == Phase::Releasing);
        if releasing {
            self.on_exited(generation, None, None);
        } else {
            self.spawn_refused(generation, error);
        }
    }

    fn active(&mut self, generation: Generation) {
        let now = self.now.unix;
        if let Some(agent) = self.roster.get_mut(generation) {
            agent.last_activity_unix = now;
            agent.state = "working";
            agent.silent_since_unix = None;
        }
    }

    fn on_output(&mut self, generation: Generation, stream: &str, chunk: String, offset: u64) {
        self.active(generation);
        if let Some(agent) = self.roster.get(generation) {
            let event = Event::WorkerStream { name: agent.name.clone(), stream: stream.into(), chunk, offset };
            self.event(event);
        }
    }

    fn on_ready(&mut self, generation: Generation) {
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if std::mem::replace(&mut agent.ready, true) {
            return;
        }
        let event = Event::WorkerReady {
            name: agent.name.clone(),
            runtime: agent.request.runtime().into(),
            provider: agent.request.provider(),
            cli: agent.request.row_cli(),
            model: agent.request.model.clone(),
            session_id: agent.session_id.clone(),
            pid: agent.pid,
        };
        let queued = agent.task.take().map(|task| {
            self.receipts.queued(&agent.name, &task);
            let event = Event::queued(&agent.name, &task.delivery_id, &task.event_id, now);
            agent.queue.push_front(task);
            event
        });
        self.event(event);
        if let Some(queued) = queued {
            self.event(queued);
        }
        self.type_next(generation);
    }

    fn on_idle(&mut self, generation: Generation, idle_secs: u64, since_unix: Ms) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        // A delivery on its way is not silence of the agent's choice.
        if agent.is_written_to() {
            agent.silent_since_unix = Some(since_unix);
            if idle_secs >= LONG_SILENCE_SECS {
                agent.state = "blocked_on_send";
                let event = Event::AgentBlockedOnSend {
                    name: agent.name.clone(),
                    blocked_secs: idle_secs,
                    pending_delivery_count: agent.outstanding_count() as u64,
                };
                self.event(event);
            }
            return;
        }
        agent.state = "idle";
        let event =
            Event::AgentIdle { name: agent.name.clone(), idle_secs, since: crate::wire::time::rfc3339(since_unix) };
        self.event(event);
    }

    /// Nothing is on its way any more: a silence that was not told is told now, if it still lasts.
    pub(super) fn tell_late_idle(&mut self, generation: Generation) {
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation).filter(|agent| !agent.is_written_to()) else { return };
        if let Some(since) = agent.silent_since_unix.take() {
            self.on_idle(generation, now.saturating_sub(since) / 1000, since);
        }
    }

    fn on_ending(&mut self, generation: Generation, reason: &'static str) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if agent.is_ending() {
            return;
        }
        agent.exit_reason = Some(reason);
        let event = Event::AgentExit { name: agent.name.clone(), reason: reason.to_string() };
        self.event(event);
    }

    /// Ends an agent on request. `Err`: no such agent is here.
    pub(super) fn release(&mut self, name: &str, reason: Option<String>, waiter: Asker) -> Result<(), Asker> {
        let Some(generation) = self.roster.generation_of(name) else { return Err(waiter) };
        let Some(agent) = self.roster.get_mut(generation) else { return Err(waiter) };
        agent.release_waiters.push(waiter);
        agent.release_reason = agent.release_reason.take().or(reason);
        self.begin_release(generation);
        Ok(())
    }

    pub(super) fn begin_release(&mut self, generation: Generation) {
        if self.roster.get(generation).is_some_and(|agent| agent.ran) {
            // Whoever waits to see it stay up waits no longer.
            self.answer_spawn(generation);
        }
        self.abandon_request(generation);
        let Some(agent) = self.roster.get_mut(generation) else { return };
        if agent.phase == Phase::Releasing {
            return;
        }
        let was = std::mem::replace(&mut agent.phase, Phase::Releasing);
        self.timers.cancel(&Timer::Spawn(generation));
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let (name, asker) = (agent.name.clone(), agent.asker.take());
        if let Some(asker) = asker {
            self.answer_spawn_error(asker, &name, "released before it had started");
        }
        if was == Phase::Cooling {
            // Nothing runs that would have to end first.
            self.on_exited(generation, None, None);
            return;
        }
        self.command(generation, AgentCommand::Release);
        // No longer a place for messages.
        self.owes_inventory = true;
    }

    fn on_exited(&mut self, generation: Generation, code: Option<i32>, signal: Option<i32>) {
        let Some(agent) = self.roster.get(generation) else { return };
        let name = agent.name.clone();
        let end = self.ending(agent, code, signal);
        let fresh = agent.asker.is_some();
        if agent.phase == Phase::Releasing {
            if let Some(session) = self.session(generation) {
                self.out.push(Effect::Leave(session));
            }
            self.settle_end(generation, "agent_released", &end);
            self.event(Event::AgentReleased { name: name.clone() });
            self.log(Level::Info, format!("agent '{name}' released"));
            return;
        }
        if !agent.ran && agent.asker.is_some() {
            self.spawn_refused(
                generation,
                &format!("the program ended while it was being started ({code:?}, {signal:?})"),
            );
            return;
        }
        self.note_crash(&name, &end);
        self.counters.exits += 1;
        if fresh && code != Some(0) {
            self.died_at_once(generation, end);
            return;
        }
        if let Some(asker) = self.roster.get_mut(generation).and_then(|agent| agent.asker.take()) {
            // All it had to do is done.
            self.tell_spawned(generation, asker);
        }
        let permanently = match self.fate(generation) {
            Fate::Restart { delay_ms } => return self.restart_later(generation, end, delay_ms),
            Fate::End => None,
            Fate::Dead { reason } => Some(reason),
        };
        self.settle_end(generation, if permanently.is_some() { restart::DEAD } else { "worker_exited" }, &end);
        self.event(Event::AgentExited { name: name.clone(), end: Box::new(end) });
        if let Some(reason) = permanently {
            self.permanently_dead(name, reason);
        }
    }

    /// How the present life has ended.
    pub(super) fn ending(&self, agent: &Agent, code: Option<i32>, signal: Option<i32>) -> Ending {
        let reason = match agent.phase {
            Phase::Releasing => "agent_released",
            _ => agent.exit_reason.unwrap_or("worker_exited"),
        };
        Ending {
            code,
            signal: signal.map(|signal| signal.to_string()),
            reason: reason.to_string(),
            uptime_secs: agent.restarts.up_since.map_or(0, |since| self.now.mono.saturating_sub(since) / 1000),
            cli: agent.request.shown_cli().to_string(),
            output: agent.last_words.output.clone(),
        }
    }

    /// A program that fails before it has stayed up for a moment: that is a failed spawn, whatever a policy says, and who
    /// asked for it learns why.
    fn died_at_once(&mut self, generation: Generation, end: Ending) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let asker = agent.asker.take();
        let how = match (end.code, &end.signal) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended, nobody knows how,".into(),
        };
        let mut error = format!("'{}' {how} within {STABLE_MS} ms of its start", end.cli);
        match end.output.lines().last().map(str::trim).filter(|line| !line.is_empty()) {
            Some(line) => error.push_str(&format!("; it said last: {line}")),
            None => error.push_str(" and printed nothing"),
        }
        if let Some(log) = &agent.last_words.log {
            error.push_str(&format!("; all of its output: {log}"));
        }
        let name = agent.name.clone();
        self.log(Level::Warn, format!("spawn of '{name}' failed: {error}"));
        if let Some(asker) = asker {
            self.answer_spawn_error(asker, &name, &error);
        }
        self.settle_end(generation, SPAWN_FAILED, &end);
        self.event(Event::AgentExited { name, end: Box::new(end) });
    }

    /// The clean-up of every end of a life that had begun: messages, registration, timers, waiters.
    pub(super) fn settle_end(&mut self, generation: Generation, reason: &str, end: &Ending) {
        self.forget_timers(generation);
        let Some(mut agent) = self.roster.remove(generation) else { return };
        self.counters.ended += 1;
        let by_invoke = agent.release_waiters.iter().any(|waiter| matches!(waiter, Asker::Invocation(_)));
        let stopping = self.stopping.is_some();
        self.bury_messages(&agent, reason, stopping);
        // What is disposed must be said before the engine forgets that the agent is here.
        self.send_acks();
        // Also while the link is down: the deregistration is queued for the next connection. A release by HTTP would only
        // come back to this node as an invocation.
        // Of a spawn that failed its owner keeps what it has registered itself.
        let ours = reason != SPAWN_FAILED || agent.request.agent_token.is_none();
        if !by_invoke
            && ours
            && let Some(agent_id) = &agent.agent_id
        {
            self.deregister(agent_id, &agent.name, None);
        }
        self.forget_identity(&agent, ours);
        self.hand_back(std::mem::take(&mut agent.early));
        self.remember_gone(&agent.name);
        if self.config.durable {
            let agent_id = agent.agent_id.clone().unwrap_or_default();
            self.journal(Record::Gone { agent_id, agent: agent.name.clone() });
        }
        self.membership_changed();
        for waiter in agent.release_waiters {
            match waiter {
                Asker::Api(ticket) => self.reply(ticket, answers::released(&agent.name, Some(end))),
                Asker::Invocation(id) => {
                    self.finish_invocation(&id, Ok(serde_json::json!({"released": true, "name": agent.name})));
                }
            }
        }
    }

    /// The clean-up of a spawn that failed.
    pub(super) fn bury_failed(&mut self, generation: Generation) {
        self.forget_timers(generation);
        let Some(mut agent) = self.roster.remove(generation) else { return };
        self.bury_messages(&agent, SPAWN_FAILED, true);
        if let Some(agent_id) = &agent.agent_id
            && agent.request.agent_token.is_none()
        {
            self.deregister(agent_id, &agent.name, None);
        }
        self.forget_identity(&agent, agent.request.agent_token.is_none());
        self.hand_back(std::mem::take(&mut agent.early));
        self.membership_changed();
        for waiter in agent.release_waiters {
            match waiter {
                Asker::Api(ticket) => self.reply(ticket, answers::released(&agent.name, None)),
                Asker::Invocation(id) => {
                    self.finish_invocation(&id, Ok(serde_json::json!({"released": true, "name": agent.name})));
                }
            }
        }
    }

    /// Frames that came for a spawn that did not succeed stay unacknowledged: the engine gives them to the next life. Not so
    /// what it keeps no copy of.
    fn hand_back(&mut self, frames: VecDeque<Deliver>) {
        for frame in frames {
            if frame.seq > 0 {
                self.leave_behind(&frame);
            } else {
                self.bury_unrepeated(frame);
            }
        }
    }

    pub(super) fn forget_timers(&mut self, generation: Generation) {
        self.terminal_calls_end(generation);
        for timer in [
            Timer::Spawn(generation),
            Timer::Register(generation),
            Timer::LinkGrace(generation),
            Timer::Retry(generation),
            Timer::Restart(generation),
            Timer::Bind(generation),
        ] {
            self.timers.cancel(&timer);
        }
        self.requests.retain(|_, waiting| *waiting != generation);
    }

    /// The cursor of a gone agent stays a while: its last acknowledgement may be lost with a connection, and what the
    /// engine then repeats must be known.
    fn forget_identity(&mut self, agent: &Agent, unbound: bool) {
        let key = super::delivery::book_key(agent.agent_id.as_deref().unwrap_or_default(), &agent.name);
        self.timers.cancel(&Timer::Gap(key.clone()));
        if let Some(cursor) = self.book.get_mut(&key) {
            if unbound {
                cursor.let_go();
            }
            // Its queue is gone: neither the next life nor nobody is full.
            cursor.refusing = false;
            self.keep_stranger(key);
        }
    }

    pub(super) fn remember_gone(&mut self, name: &str) {
        self.tombstones.retain(|gone| gone != name);
        if self.tombstones.len() >= TOMBSTONES_MAX {
            self.tombstones.pop_front();
        }
        self.tombstones.push_back(name.to_string());
    }
}
