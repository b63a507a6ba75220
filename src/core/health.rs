//! The true numbers that `/health`, `/api/status` and the operator see.

use super::Broker;
use super::ports::Ms;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub spawned: u64,
    pub exits: u64,
    pub garbage_frames: u64,
    pub foreign_frames: u64,
    pub unknown_payloads: u64,
}

/// A copy of the facts for those that must not ask the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub agents: usize,
    pub pending_deliveries: usize,
    pub dead_letters: usize,
    /// `online`, `connecting`, `auth_rejected`, `superseded`, `closing`.
    pub link: &'static str,
    pub link_error: Option<String>,
    /// Milliseconds left of the owner's lease, when there is one.
    pub lease_until: Option<Ms>,
}

impl Broker {
    pub fn health(&self) -> Health {
        Health {
            agents: self.roster.len(),
            pending_deliveries: self.roster.iter().map(|agent| agent.outstanding().count()).sum(),
            dead_letters: self.dead.len(),
            link: self.link.state.as_str(),
            link_error: self.link.last_error.clone(),
            lease_until: self.lease_until,
        }
    }
}
