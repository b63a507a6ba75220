//! The files of a broker that keeps state: who runs, written whenever that changes, and the view of what waits to be read,
//! at most a few times a second. Written beside the loop, because a synced rename takes longer than the loop may.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};

use crate::core::ports::{Ms, Record, StoredDelivery};
use crate::core::roster::Source;
use crate::core::{AgentFacts, Broker, Health, Pending};
use crate::store::pending::{self, Entry, Message};
use crate::store::state::{Agent, State};
use crate::store::{StateDir, secrets};
use crate::sys::threads::{self, Thread};
use crate::wire::node::DeliveryMode;

/// Between two writes of the pending file; more when it is large.
const PENDING_EVERY_MS: Ms = 250;
const PENDING_BYTES_PER_MS: usize = 4096;
/// Between two tries to hand something to a writer that is busy.
const BUSY_MS: Ms = 50;

enum Change {
    State(State),
    Pending(Vec<Entry>),
}

/// For all that is left of one agent.
const LEFTOVER: Duration = Duration::from_millis(500);

/// The writer's thread (`state-files`) and its mailbox of one.
pub struct StateFiles {
    state: PathBuf,
    pending: PathBuf,
    mailbox: Sender<Change>,
    thread: Thread,
    /// The membership and the change of the pending messages that were handed over last.
    told_membership: Option<u64>,
    told_pending: u64,
    /// The pending file is not written again before this.
    pending_from: Ms,
    /// Something is still to be handed over, then.
    due: Option<Ms>,
}

impl StateFiles {
    /// Ends what the last run left running, and starts the writer.
    ///
    /// # Errors
    /// The system's.
    pub fn start(dir: &StateDir) -> std::io::Result<StateFiles> {
        let (state, pending) = (dir.state(), dir.pending());
        end_leftovers(&state)?;
        let (mailbox, changes) = bounded::<Change>(1);
        let (its_state, its_pending) = (state.clone(), pending.clone());
        let thread = threads::spawn("state-files", move || {
            loop {
                threads::doing("waiting for a change");
                let Ok(change) = changes.recv() else { return };
                threads::doing("writing a file");
                let written = match change {
                    Change::State(running) => running.store(&its_state),
                    Change::Pending(entries) => pending::store(&its_pending, &entries),
                };
                if let Err(error) = written {
                    log::error!("{error}");
                }
            }
        })?;
        Ok(StateFiles {
            state,
            pending,
            mailbox,
            thread,
            told_membership: None,
            told_pending: 0,
            pending_from: 0,
            due: None,
        })
    }

    /// When [`StateFiles::look_at`] has something to do without any change.
    pub fn due(&self) -> Option<Ms> {
        self.due
    }

    /// Hands over what has changed.
    pub fn look_at(&mut self, broker: &Broker, health: &Health, now: Ms) {
        self.due = None;
        if self.told_membership != Some(health.membership) {
            let agents = broker.running().into_iter().map(|facts| (facts.name.clone(), agent(facts))).collect();
            if self.offer(Change::State(State { agents }), now) {
                self.told_membership = Some(health.membership);
            }
        }
        if self.told_pending == health.pending_changes {
            return;
        }
        if now < self.pending_from {
            self.due = Some(self.due.map_or(self.pending_from, |due| due.min(self.pending_from)));
            return;
        }
        let entries = entries(broker);
        let bytes: usize = entries.iter().map(|entry| entry.delivery.body.len()).sum();
        if self.offer(Change::Pending(entries), now) {
            self.told_pending = health.pending_changes;
            self.pending_from = now + PENDING_EVERY_MS + (bytes / PENDING_BYTES_PER_MS) as Ms;
        }
    }

    /// `false`: the writer is busy.
    fn offer(&mut self, change: Change, now: Ms) -> bool {
        let full = matches!(self.mailbox.try_send(change), Err(TrySendError::Full(_)));
        if full {
            self.due = Some(now + BUSY_MS);
        }
        !full
    }

    /// Ends the writer. An orderly end leaves no agents, and the messages that the next life will deliver.
    pub fn close(self, broker: &Broker, limit: Duration) {
        drop(self.mailbox);
        self.thread.join(limit);
        let left = entries(broker);
        let kept = if left.is_empty() { secrets::remove(&self.pending) } else { pending::store(&self.pending, &left) };
        for error in [kept, State::remove(&self.state)].into_iter().filter_map(Result::err) {
            log::warn!("{error}");
        }
    }
}

/// Agents of a broker that was killed whose programs outlived their terminals: nobody could reach them any more.
fn end_leftovers(path: &Path) -> std::io::Result<()> {
    let mut left = State::load(path)?;
    let before = left.agents.len();
    left.agents.retain(|name, agent| {
        let identity = agent.pid.zip(agent.process_start);
        let end = |(pid, start)| crate::agent::end_leftover(pid, start, agent.mark.as_deref(), LEFTOVER);
        match identity.and_then(end) {
            Some(true) => {
                log::warn!("'{name}' of an earlier run, or what it has started, was still running and is ended")
            }
            Some(false) => log::error!("'{name}' of an earlier run does not end by KILL; it is left to the system"),
            None => {}
        }
        false
    });
    if before > 0 { left.store(path) } else { Ok(()) }
}

fn entries(broker: &Broker) -> Vec<Entry> {
    let (workspace_id, workspace_alias) = broker.workspace();
    let entry = |Pending { agent, delivery }| Entry {
        worker_name: agent,
        delivery: Message {
            delivery_id: delivery.delivery_id,
            event_id: delivery.event_id,
            workspace_id: Some(workspace_id.to_string()),
            workspace_alias: workspace_alias.map(str::to_string),
            from: delivery.from,
            target: delivery.target,
            body: delivery.body,
            thread_id: delivery.thread_id,
            priority: delivery.priority,
            injection_mode: serde_json::to_value(delivery.mode).unwrap_or_default(),
        },
        attempts: delivery.attempts,
        queued_at_ms: delivery.queued_at_unix,
        last_error: delivery.last_error,
    };
    broker.pending().into_iter().map(entry).collect()
}

/// The pending file of a broker that kept no journal, as records for one.
pub fn pending_of_file(path: &Path) -> Vec<Record> {
    let record = |entry: Entry| {
        let message = entry.delivery;
        let source = Source::of_api(&entry.worker_name, &message.delivery_id);
        let (book, key) = source.stored_under()?;
        Some(Record::Unrepeated {
            agent_id: book.to_string(),
            key,
            agent: entry.worker_name.clone(),
            delivery: StoredDelivery {
                delivery_id: message.delivery_id,
                event_id: message.event_id,
                from: message.from,
                target: message.target,
                body: message.body,
                thread_id: message.thread_id,
                priority: message.priority,
                mode: serde_json::from_value(message.injection_mode).unwrap_or(DeliveryMode::Wait),
                queued_at_ms: entry.queued_at_ms,
            },
        })
    };
    pending::load(path).into_iter().filter_map(record).collect()
}

fn agent(facts: AgentFacts) -> Agent {
    Agent {
        runtime: facts.runtime.into(),
        parent: Some(if facts.from_engine { "Relaycast".into() } else { "Dashboard".into() }),
        channels: facts.channels,
        pid: Some(facts.pid),
        // By it the next broker knows what it may end.
        process_start: if facts.attached { None } else { crate::agent::start_of(facts.pid) },
        mark: if facts.attached { None } else { crate::agent::mark_of(facts.pid) },
        started_at: facts.started_at_unix / 1000,
        spec: Some(serde_json::json!({
            "name": facts.name,
            "cli": facts.cli,
            "args": facts.args,
            "cwd": facts.cwd,
            "model": facts.model,
            "team": facts.team,
        })),
        restart_policy: facts.restart_policy.and_then(|policy| serde_json::to_value(policy).ok()),
        initial_task: facts.task,
    }
}
