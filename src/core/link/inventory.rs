//! Which agents run here, as the engine is told: on each connection and on each change, never on a timer.

use super::{INVENTORIES_OPEN_MAX, OpenInventory};
use crate::core::Broker;
use crate::wire::node::{InventoryEntry, InventorySync, ToEngine};

impl Broker {
    pub(in crate::core) fn send_inventory(&mut self) {
        if !self.link.open {
            return;
        }
        let id = self.ids.fresh("inventory_sync_");
        let agents = self
            .roster
            .iter()
            .filter(|agent| agent.is_listed())
            .filter_map(|agent| {
                Some(InventoryEntry {
                    agent_id: agent.agent_id.clone()?,
                    name: agent.name.clone(),
                    invocation_id: agent.invocation_id.clone(),
                    session_ref: agent.request.session_ref.clone(),
                })
            })
            .collect();
        self.link.inventories_sent += 1;
        if self.link.inventories_open.len() >= INVENTORIES_OPEN_MAX {
            // An engine that answers none of them.
            self.link.inventories_open.remove(0);
        }
        let (number, sent_at) = (self.link.inventories_sent, self.now.mono);
        self.link.inventories_open.push(OpenInventory { id: id.clone(), number, sent_at });
        self.send(ToEngine::InventorySync(InventorySync { id: Some(id), agents }));
    }

    /// The engine has an agent of the inventory elsewhere and says which: the others are listed without it. Each refusal
    /// shortens the list, so this ends.
    pub(in crate::core) fn drop_from_inventory(&mut self, message: &str) {
        let Some(agent) = self.roster.iter().find(|agent| {
            agent.is_listed()
                && (quotes(message, &agent.name) || agent.agent_id.as_deref().is_some_and(|id| quotes(message, id)))
        }) else {
            return;
        };
        let generation = agent.generation;
        if let Some(agent) = self.roster.get_mut(generation) {
            agent.bound = false;
        }
        self.owes_inventory = true;
    }
}

/// Whether the text names this agent: as a word of its own, in quotes or bare.
fn quotes(text: &str, name: &str) -> bool {
    let is_edge =
        |neighbour: Option<char>| neighbour.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '-' | '_' | '/'));
    !name.is_empty()
        && text
            .match_indices(name)
            .any(|(at, _)| is_edge(text[..at].chars().next_back()) && is_edge(text[at + name.len()..].chars().next()))
}
