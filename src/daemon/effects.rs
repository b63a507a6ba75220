//! The loop's hands: carries out what the core decided, in order, without ever waiting for a peer.
//!
//! The journal comes first: no acknowledgement and no result of a turn leaves before the records of that turn are on disk.
//! While the disk refuses them they are kept, tried again every second, and what depends on them is withheld.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::doors::Bells;
use super::outside::Outside;
use super::supervisor::Supervisor;
use crate::agent::AgentThread;
use crate::api::Api;
use crate::core::ports::{
    AgentCommand, AgentNote, Effect, EngineCall, EngineError, Generation, Input, Launch, Ms, NodeCommand, NodeNote,
    Record, Refusal, Secret, Ticket,
};
use crate::engine::Pool;
use crate::node::Link;
use crate::store::{self, Journal};

/// Between two tries to write a refused journal.
const JOURNAL_RETRY_MS: Ms = 1_000;
/// Records and frames kept while the disk is full; beyond it the oldest frames go, the engine asks again for them.
const WITHHELD_MAX: usize = 8_192;

/// More unwritten records than this, and no further delivery is taken from the engine until the disk takes them.
const UNWRITTEN_MAX: usize = 10_000;
/// Nothing of a stop waits for less than this, even when its time is over.
const SHORTEST_WAIT: Duration = Duration::from_millis(30);

/// Between TERM and KILL of the sidecar at the broker's end, when there is so much time; and for its burial.
const SIDECAR_GRACE: Duration = Duration::from_secs(3);
const SIDECAR_REST: Duration = Duration::from_millis(250);

/// What is left until `deadline`, at most `limit`.
pub fn left(deadline: Instant, limit: Duration) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(limit).max(SHORTEST_WAIT)
}

/// The cache of node tokens, as the workers of the engine pool use it: a refused token is forgotten when another is asked
/// for, a minted one is kept before the core hears of it.
pub struct TokenCache {
    pub forget: Box<dyn Fn() + Send + Sync>,
    pub keep: Box<dyn Fn(&Secret) + Send + Sync>,
    minting: Mutex<BTreeSet<Ticket>>,
}

impl TokenCache {
    pub fn new(
        forget: impl Fn() + Send + Sync + 'static,
        keep: impl Fn(&Secret) + Send + Sync + 'static,
    ) -> TokenCache {
        TokenCache { forget: Box::new(forget), keep: Box::new(keep), minting: Mutex::default() }
    }

    fn minting(&self) -> std::sync::MutexGuard<'_, BTreeSet<Ticket>> {
        self.minting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Looks at the outcome of every engine call, on the worker's thread: keeping a token syncs a file.
    pub fn look_at(&self, ticket: Ticket, outcome: &Result<Value, EngineError>) {
        if self.minting().remove(&ticket)
            && let Ok(data) = outcome
            && let Some(token) = data.get("token").and_then(Value::as_str)
        {
            (self.keep)(&Secret::new(token));
        }
    }
}

pub struct Hands {
    pub bells: Bells,
    pub link: Link,
    pub pool: Pool,
    pub api: Arc<Api>,
    pub watched: Arc<AtomicUsize>,
    pub journal: Journal,
    pub worker_logs: PathBuf,
    /// Private files of running agents.
    pub agent_files: PathBuf,
    /// What ended sessions leave.
    pub continuity: PathBuf,
    pub tokens: Arc<TokenCache>,
    /// Sees every byte of the agent that is wrapped.
    pub outside: Option<Arc<Outside>>,
    supervisor: Supervisor,
    agents: HashMap<Generation, AgentThread>,
    /// Threads whose last note has come; joined when they have really ended.
    ending: Vec<AgentThread>,
    unwritten: Vec<Record>,
    withheld: VecDeque<Effect>,
    retry_at: Option<Ms>,
    /// What a refused effect means to the core.
    feedback: Vec<Input>,
    pub exit: bool,
}

/// What a set of hands is made of.
pub struct Parts {
    pub bells: Bells,
    pub link: Link,
    pub pool: Pool,
    pub api: Arc<Api>,
    pub journal: Journal,
    pub worker_logs: PathBuf,
    pub agent_files: PathBuf,
    /// What ended sessions leave.
    pub continuity: PathBuf,
    pub tokens: Arc<TokenCache>,
    pub outside: Option<Arc<Outside>>,
}

impl Hands {
    pub fn new(parts: Parts) -> Hands {
        let door = parts.bells.agents.clone();
        // Only a loop that has ended takes nothing more.
        let supervisor = Supervisor::new(move |note| drop(door.send(Box::new(Input::Supervised(note)))));
        Hands {
            supervisor,
            bells: parts.bells,
            link: parts.link,
            pool: parts.pool,
            watched: parts.api.watchers(),
            api: parts.api,
            journal: parts.journal,
            worker_logs: parts.worker_logs,
            agent_files: parts.agent_files,
            continuity: parts.continuity,
            tokens: parts.tokens,
            outside: parts.outside,
            agents: HashMap::new(),
            ending: Vec::new(),
            unwritten: Vec::new(),
            withheld: VecDeque::new(),
            retry_at: None,
            feedback: Vec::new(),
            exit: false,
        }
    }

    /// When the journal wants another try.
    pub fn retry_at(&self) -> Option<Ms> {
        self.retry_at
    }

    /// Carries out the effects of one turn; returns what the core must hear of refused ones.
    pub fn carry_out(&mut self, effects: Vec<Effect>, now: Ms) -> Vec<Input> {
        let (records, effects): (Vec<Effect>, Vec<Effect>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Journal(_)));
        self.unwritten.extend(records.into_iter().filter_map(|effect| match effect {
            Effect::Journal(record) => Some(record),
            _ => None,
        }));
        self.write_journal(now);
        for effect in effects {
            self.perform(effect);
        }
        std::mem::take(&mut self.feedback)
    }

    /// Tries what the disk refused earlier.
    pub fn retry(&mut self, now: Ms) {
        if self.retry_at.is_some_and(|at| now >= at) {
            self.write_journal(now);
        }
    }

    fn write_journal(&mut self, now: Ms) {
        if self.unwritten.is_empty() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        match self.journal.append(&self.unwritten) {
            Ok(()) => {
                self.unwritten.clear();
                if self.retry_at.take().is_some() {
                    log::warn!("the journal can be written again");
                }
                for effect in std::mem::take(&mut self.withheld) {
                    self.perform(effect);
                }
            }
            Err(error) => {
                if self.retry_at.is_none() {
                    self.feedback.push(Input::JournalFailed { error: error.to_string() });
                }
                self.retry_at = Some(now + JOURNAL_RETRY_MS);
            }
        }
    }

    /// The disk refuses the journal: what would need it is better not begun.
    pub fn disk_refuses(&self) -> bool {
        self.retry_at.is_some()
    }

    /// So much waits for the disk that the engine had better keep its deliveries.
    pub fn is_swamped(&self) -> bool {
        self.unwritten.len() > UNWRITTEN_MAX
    }

    fn perform(&mut self, effect: Effect) {
        if self.disk_refuses() && effect.waits_for_journal(!self.withheld.is_empty()) {
            if self.withheld.len() >= WITHHELD_MAX {
                self.withheld.pop_front();
            }
            self.withheld.push_back(effect);
            return;
        }
        match effect {
            Effect::Node(command) => self.pass_on(command),
            Effect::Launch(launch) => self.launch(launch),
            Effect::Agent { generation, command } => self.agent(generation, command),
            Effect::Engine { ticket, call } => self.engine(ticket, call),
            Effect::Reply { ticket, answer } => {
                // A caller that has given up wants no answer.
                self.api.answer(ticket, answer);
            }
            Effect::Sidecar { generation, command } => self.api.sidecar(generation, command),
            Effect::Supervise(command) => {
                self.feedback.extend(self.supervisor.command(command).map(Input::Supervised));
            }
            Effect::Event(event) => self.api.publish(&event),
            Effect::Log { level, text } => log::log!(target: "core", level, "{text}"),
            Effect::Leave(session) => {
                if let Err(error) = store::continuity::leave(&self.continuity, &session) {
                    log::warn!("what '{}' leaves is not kept: {error}", session.agent_name);
                }
            }
            Effect::Recall { generation, name } => {
                let block = crate::api::continuity_block(&self.continuity, &name);
                self.feedback.push(Input::Recalled { generation, block });
            }
            // Written before everything else of the turn.
            Effect::Journal(_) => {}
            Effect::Exit => self.exit = true,
        }
    }

    fn pass_on(&mut self, command: NodeCommand) {
        let connect = match &command {
            NodeCommand::Connect { generation, .. } => Some(*generation),
            _ => None,
        };
        if self.link.send(command).is_ok() {
            return;
        }
        match connect {
            Some(generation) => self.feedback.push(Input::Node(NodeNote::Refused {
                generation,
                why: Refusal::Io("the link's reader takes no more commands".into()),
            })),
            // The link ends a connection that does not take its frames; the next one says everything again.
            None => log::warn!("the queue to the engine is full; the connection is given up"),
        }
    }

    fn launch(&mut self, launch: Launch) {
        let (generation, name) = (launch.generation, launch.name.clone());
        let agents = self.bells.agents.clone();
        let notes = move |generation, note| {
            // Only a loop that has ended takes nothing more.
            let _ = agents.send(Box::new(Input::Agent { generation, note }));
        };
        let tap = self.outside.as_ref().and_then(|outside| outside.tap(&launch));
        let files = crate::agent::Files {
            // What somebody does in a terminal of his own is not written down.
            log: tap.is_none().then(|| self.worker_logs.join(format!("{name}.log"))),
            scratch: self.agent_files.clone(),
            tap,
        };
        match crate::agent::launch(launch, notes, self.watched.clone(), files) {
            Ok(thread) => {
                self.agents.insert(generation, thread);
            }
            Err(error) => self.feedback.push(Input::Agent {
                generation,
                note: AgentNote::Refused { error: format!("no thread could be started for '{name}': {error}") },
            }),
        }
    }

    fn agent(&mut self, generation: Generation, command: AgentCommand) {
        let Some(thread) = self.agents.get(&generation) else { return };
        // What the core must hear if the thread takes no more. Pictures and sizes are asked for again by their callers.
        let refusal = match &command {
            AgentCommand::Inject(injection) => Some(AgentNote::InjectFailed {
                delivery_id: injection.delivery_id.clone(),
                error: "the agent's thread takes no more commands".into(),
            }),
            AgentCommand::Type { ticket, .. } => Some(AgentNote::TypeDone {
                ticket: *ticket,
                result: Err("the agent's terminal takes no more input for now".into()),
            }),
            _ => None,
        };
        if thread.send(command).is_err()
            && let Some(note) = refusal
        {
            self.feedback.push(Input::Agent { generation, note });
        }
    }

    fn engine(&mut self, ticket: Ticket, call: EngineCall) {
        if matches!(call, EngineCall::MintNodeToken { .. }) {
            (self.tokens.forget)();
            self.tokens.minting().insert(ticket);
        }
        if let Err(error) = self.pool.submit(ticket, call) {
            self.tokens.minting().remove(&ticket);
            self.feedback.push(Input::Engine { ticket, outcome: Err(error) });
        }
    }

    /// A note that is the last of its thread.
    pub fn note_end(&mut self, input: &Input) {
        let Input::Agent { generation, note: AgentNote::Exited { .. } | AgentNote::Refused { .. } } = input else {
            return;
        };
        if let Some(thread) = self.agents.remove(generation) {
            self.ending.push(thread);
        }
        let (ended, ending) = std::mem::take(&mut self.ending).into_iter().partition(AgentThread::has_ended);
        self.ending = ending;
        for thread in Vec::<AgentThread>::into_iter(ended) {
            thread.join(Duration::ZERO);
        }
    }

    /// Ends the threads and sockets that the loop owned, in order and by one deadline. `kill`: agents that are still there
    /// get no more time.
    pub fn close(self, deadline: Instant, kill: bool) {
        for thread in self.agents.values() {
            if kill {
                thread.kill_now();
            } else {
                let _ = thread.send(AgentCommand::Release);
            }
        }
        // Something of the time is kept for what follows its end.
        let grace = if kill { Duration::ZERO } else { SIDECAR_GRACE };
        self.supervisor.end_by(Instant::now() + left(deadline, grace + SIDECAR_REST).saturating_sub(SIDECAR_REST));
        for thread in self.agents.into_values().chain(self.ending) {
            thread.join(left(deadline, Duration::from_millis(500)));
        }
        self.link.stop(left(deadline, Duration::from_millis(500)));
        self.pool.stop(left(deadline, Duration::from_millis(1_000)));
        self.supervisor.close(left(deadline, SIDECAR_GRACE + SIDECAR_REST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_only_from_the_answer_to_a_mint() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let seen = kept.clone();
        let cache = TokenCache::new(|| {}, move |token| seen.lock().unwrap().push(token.expose().to_string()));
        let answer = |token: &str| Ok(serde_json::json!({"token": token}));
        cache.minting().insert(7);
        cache.look_at(6, &answer("of an agent"));
        cache.look_at(7, &answer("of the node"));
        cache.look_at(7, &answer("again"));
        assert_eq!(*kept.lock().unwrap(), ["of the node"]);
    }

    #[test]
    fn the_time_left_has_a_limit_and_a_floor() {
        let past = Instant::now() - Duration::from_secs(1);
        assert_eq!(left(past, Duration::from_secs(1)), SHORTEST_WAIT);
        assert_eq!(left(Instant::now() + Duration::from_secs(60), Duration::from_secs(1)), Duration::from_secs(1));
    }
}
