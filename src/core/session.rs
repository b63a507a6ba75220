//! The session of an agent: what it keeps for a successor, what it has from its predecessor, and how much room it has left.

use log::Level;

use super::Broker;
use super::ports::{Continuity, Effect, Generation, LOW_PCT, Session};
use super::roster::{Delivery, Source};
use crate::wire::events::Event;
use crate::wire::node::DeliveryMode;

/// Characters of a task that a successor is told: more would not fit into what is read of a session's file.
const TASK_KEPT: usize = 16 << 10;

impl Broker {
    /// The pump tells changes only: a rise arms the event again by itself.
    pub(super) fn on_context_left(&mut self, generation: Generation, pct: u8) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        agent.context_pct = Some(pct);
        let name = agent.name.clone();
        if pct <= LOW_PCT {
            self.event(Event::AgentContextLow { name, pct });
        }
    }

    pub(super) fn on_continuity(&mut self, generation: Generation, wish: Continuity) {
        let Some(agent) = self.roster.get_mut(generation) else { return };
        let name = agent.name.clone();
        match wish {
            Continuity::Save { summary } => {
                agent.summary = Some(summary);
                let saved = self.session(generation).map(|session| Session {
                    released_at: None,
                    lifetime_seconds: None,
                    ..session
                });
                self.out.extend(saved.map(Effect::Leave));
                self.log(Level::Info, format!("agent '{name}' keeps its session"));
            }
            Continuity::Load => self.out.push(Effect::Recall { generation, name }),
        }
    }

    /// What the predecessor has left goes the way of a task: a hold does not keep it, it was asked for.
    pub(super) fn on_recalled(&mut self, generation: Generation, block: Option<String>) {
        let Some(agent) = self.roster.get(generation) else { return };
        let name = agent.name.clone();
        let Some(body) = block else {
            self.log(Level::Warn, format!("agent '{name}' asks for its last session, and there is none"));
            return;
        };
        let delivery = Delivery {
            delivery_id: self.ids.fresh("del_"),
            event_id: self.ids.fresh("cont_load_"),
            from: "broker".into(),
            target: name,
            body,
            thread_id: None,
            priority: 2,
            mode: DeliveryMode::Wait,
            workspace: None,
            source: Source::Recalled,
            queued_at_unix: self.now.unix,
            attempts: 0,
            last_error: None,
            exempt: true,
        };
        self.enqueue(generation, delivery);
    }

    /// What a session that ran leaves.
    pub(super) fn session(&self, generation: Generation) -> Option<Session> {
        let agent = self.roster.get(generation).filter(|agent| agent.ran)?;
        let words = [&agent.summary, &agent.release_reason].into_iter().flatten().map(|text| text.trim());
        let otherwise = if self.stopping.is_some() { "the broker was stopped" } else { "released" };
        Some(Session {
            agent_name: agent.name.clone(),
            cli: agent.request.shown_cli().to_string(),
            initial_task: agent.request.words().map(|words| words.chars().take(TASK_KEPT).collect()),
            released_at: Some(self.now.unix / 1000),
            lifetime_seconds: Some(self.now.unix.saturating_sub(agent.started_at_unix) / 1000),
            message_history: Vec::new(),
            summary: words.filter(|text| !text.is_empty()).chain([otherwise]).next()?.to_string(),
        })
    }
}
