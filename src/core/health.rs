//! The true numbers that `/health`, `/api/status` and the operator see.

use super::Broker;
use super::ports::Ms;
use crate::wire::fleet::RestartPolicy;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub spawned: u64,
    pub exits: u64,
    /// Of these, the ones that were no clean end.
    pub crashes: u64,
    /// Lives that are over, however they ended.
    pub ended: u64,
    /// Agents that their policy brought back.
    pub restarts: u64,
    /// Programs of agents without a terminal.
    pub runs: u64,
    pub garbage_frames: u64,
    pub foreign_frames: u64,
    pub unknown_payloads: u64,
}

/// A copy of the facts for those that must not ask the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub agents: usize,
    /// Processes started and ended in this life: changes whenever the set of running agents does.
    pub membership: u64,
    pub pending_deliveries: usize,
    /// Changes whenever [`Broker::pending`] does.
    pub pending_changes: u64,
    pub dead_letters: usize,
    /// `online`, `connecting`, `auth_rejected`, `superseded`, `closing`.
    pub link: &'static str,
    pub link_error: Option<String>,
    /// Milliseconds left of the owner's lease, when there is one.
    pub lease_until: Option<Ms>,
}

/// A running agent as the state file keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFacts {
    pub name: String,
    /// `pty` or `headless`.
    pub runtime: &'static str,
    pub from_engine: bool,
    pub channels: Vec<String>,
    pub pid: u32,
    /// Its process is somebody else's, and stays.
    pub attached: bool,
    pub started_at_unix: Ms,
    pub cli: String,
    pub args: Vec<String>,
    pub cwd: Option<String>,
    pub model: Option<String>,
    pub team: Option<String>,
    pub task: Option<String>,
    pub restart_policy: Option<RestartPolicy>,
}

impl Broker {
    /// Who runs now.
    pub fn running(&self) -> Vec<AgentFacts> {
        self.roster
            .iter()
            .filter_map(|agent| {
                Some(AgentFacts {
                    name: agent.name.clone(),
                    runtime: agent.request.runtime(),
                    from_engine: agent.from_engine,
                    channels: agent.channels.clone(),
                    pid: agent.pid?,
                    attached: agent.request.app_server.is_some(),
                    started_at_unix: agent.started_at_unix,
                    cli: agent.request.cli.clone(),
                    args: agent.request.args.clone(),
                    cwd: agent.request.cwd.clone(),
                    model: agent.request.model.clone(),
                    team: agent.request.team.clone(),
                    task: agent.request.task.clone(),
                    restart_policy: agent.request.restart_policy,
                })
            })
            .collect()
    }

    /// Id and alias of the workspace that agents belong to.
    pub fn workspace(&self) -> (&str, Option<&str>) {
        let home = self.config.home();
        (&home.id, home.alias.as_deref())
    }

    pub fn health(&self) -> Health {
        Health {
            agents: self.roster.active(),
            membership: self.counters.spawned + self.counters.restarts + self.counters.runs + self.counters.ended,
            pending_deliveries: self.roster.iter().map(|agent| agent.outstanding_count()).sum(),
            pending_changes: self.pending_changes,
            dead_letters: self.dead.len(),
            link: self.link.state.as_str(),
            link_error: self.link.last_error.clone(),
            lease_until: self.lease_until,
        }
    }
}
