//! The state file of a broker that keeps state: written whenever the set of running agents changes, beside the loop,
//! because a synced rename takes longer than the loop may.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};

use crate::core::AgentFacts;
use crate::store::state::{Agent, State};
use crate::sys::threads::{self, Thread};

/// The writer's thread (`state-file`) and its mailbox of one: what comes while it writes replaces what waits.
pub struct StateFile {
    path: PathBuf,
    mailbox: Sender<State>,
    thread: Thread,
    /// The membership that was handed over last.
    written: Option<u64>,
}

impl StateFile {
    /// Reads what the last run left, without the dead, and starts the writer.
    ///
    /// # Errors
    /// The system's.
    pub fn start(path: PathBuf) -> std::io::Result<StateFile> {
        State::load(&path)?;
        let (mailbox, states) = bounded::<State>(1);
        let target = path.clone();
        let thread = threads::spawn("state-file", move || {
            loop {
                threads::doing("waiting for a change");
                let Ok(state) = states.recv() else { return };
                threads::doing("writing the state file");
                if let Err(error) = state.store(&target) {
                    log::error!("{error}");
                }
            }
        })?;
        Ok(StateFile { path, mailbox, thread, written: None })
    }

    /// Whether this membership is still to be written.
    pub fn lacks(&self, membership: u64) -> bool {
        self.written != Some(membership)
    }

    /// Hands the running agents over; while the writer is busy the next turn tries again.
    pub fn offer(&mut self, membership: u64, running: Vec<AgentFacts>) {
        let agents = running.into_iter().map(|facts| (facts.name.clone(), entry(facts))).collect();
        match self.mailbox.try_send(State { agents }) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => self.written = Some(membership),
            Err(TrySendError::Full(_)) => {}
        }
    }

    /// Ends the writer and removes the file: an orderly end leaves no agents.
    pub fn close(self, limit: Duration) {
        drop(self.mailbox);
        self.thread.join(limit);
        if let Err(error) = State::remove(&self.path) {
            log::warn!("{error}");
        }
    }
}

fn entry(facts: AgentFacts) -> Agent {
    Agent {
        runtime: "pty".into(),
        parent: Some(if facts.from_engine { "Relaycast".into() } else { "Dashboard".into() }),
        channels: facts.channels,
        pid: Some(facts.pid),
        started_at: facts.started_at_unix / 1000,
        spec: Some(serde_json::json!({
            "name": facts.name,
            "cli": facts.cli,
            "args": facts.args,
            "cwd": facts.cwd,
            "model": facts.model,
            "team": facts.team,
        })),
        restart_policy: None,
        initial_task: facts.task,
    }
}
