//! What this node owes the engine and says again until it is known to have been heard: acknowledgements, results,
//! deregistrations.

use super::{BACKLOG_MAX, PendingDeregister};
use crate::core::Broker;
use crate::core::roster::Phase;
use crate::wire::events::Event;
use crate::wire::node::{ActionResult, AgentDeregister, DeliveryAck, ToEngine};

impl Broker {
    /// What is safe and not yet said, for every identity whose name is not borne by another.
    pub(in crate::core) fn send_acks(&mut self) {
        if !self.link.open {
            return;
        }
        let mut frames = Vec::new();
        for (key, cursor) in &mut self.book {
            let borne_by_another = self
                .roster
                .named(&cursor.agent)
                .is_some_and(|agent| agent.agent_id.as_ref().is_some_and(|id| id != key) && !key.starts_with("name:"));
            if borne_by_another || !cursor.bears_name {
                cursor.owes_ack = false;
                continue;
            }
            if let Some(up_to_seq) = cursor.take_ack() {
                frames.push(DeliveryAck { id: None, agent: cursor.agent.clone(), up_to_seq });
            }
        }
        frames.sort_by(|a, b| a.agent.cmp(&b.agent));
        let timestamp = self.now.unix;
        for frame in frames {
            let event = Event::DeliveryAcked { name: frame.agent.clone(), up_to_seq: frame.up_to_seq, timestamp };
            self.send(ToEngine::DeliveryAck(frame));
            self.event(event);
        }
    }

    pub(in crate::core) fn send_results(&mut self) {
        for result in std::mem::take(&mut self.link.results) {
            self.send(ToEngine::ActionResult(result));
        }
    }

    pub(in crate::core) fn send_result(&mut self, result: ActionResult) {
        if self.link.open {
            self.send(ToEngine::ActionResult(result));
        } else {
            if self.link.results.len() >= BACKLOG_MAX {
                // The engine asks again for what is not answered, and the finished invocation is remembered.
                self.link.results.remove(0);
            }
            self.link.results.push(result);
        }
    }

    /// Tells the engine that an agent is gone for good. Repeated on later connections until proved processed.
    pub(in crate::core) fn deregister(&mut self, agent_id: &str, name: &str, id: Option<String>) {
        let id = id.unwrap_or_else(|| self.ids.fresh("agent_deregister_"));
        let frame = AgentDeregister { id: Some(id), agent_id: agent_id.to_string(), name: Some(name.to_string()) };
        if self.link.deregisters.len() >= BACKLOG_MAX {
            self.link.deregisters.remove(0);
        }
        self.link.deregisters.push(PendingDeregister { frame, sent: None });
        self.owes_inventory = true;
        self.send_deregisters();
    }

    pub(in crate::core) fn send_deregisters(&mut self) {
        if !self.link.open {
            return;
        }
        let sent = Some((self.link.generation, self.link.inventories_sent));
        let mut frames = Vec::new();
        // The next life of the name registers by HTTP, on a road of its own: this one could come after it and hit it. Its
        // answer cancels the old deregistration, its failure lets it go.
        let comes_again = |name: Option<&str>| {
            name.and_then(|name| self.roster.named(name)).is_some_and(|agent| agent.phase == Phase::HttpRegistering)
        };
        for pending in &mut self.link.deregisters {
            if pending.sent.is_none_or(|(generation, _)| generation != self.link.generation)
                && !comes_again(pending.frame.name.as_deref())
            {
                pending.sent = sent;
                frames.push(pending.frame.clone());
            }
        }
        for frame in frames {
            self.send(ToEngine::AgentDeregister(frame));
        }
    }

    /// The name lives again: an old deregistration must not hit the new life.
    pub(in crate::core) fn cancel_deregister(&mut self, agent_id: &str, name: &str) {
        self.link
            .deregisters
            .retain(|pending| pending.frame.agent_id != agent_id && pending.frame.name.as_deref() != Some(name));
    }
}
