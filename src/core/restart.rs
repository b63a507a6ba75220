//! Agents that are started again when their program ends: only those whose spawn said so. Between two lives an agent keeps its
//! name, its place at the engine and its messages; everything else begins anew under another generation.

use log::Level;

use super::Broker;
use super::ports::{AgentCommand, Generation, InboundMode, Ms};
use super::roster::{ATTEMPTS_MAX, Delivery, Phase, Source};
use super::timers::Timer;
use crate::wire::events::{Ending, Event};
use crate::wire::fleet::RestartPolicy;

/// A program that ran this long is well: earlier failures count no more.
const HEALTHY_MS: Ms = 30_000;
/// Why the messages of an agent that is not started again are dead.
pub(super) const DEAD: &str = "worker_permanently_dead";
/// What the terminal said of the end that was asked for by the agent itself.
const ITS_WISH: &str = "agent_requested";

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restarts {
    /// Starts after the first one, tried or done.
    pub total: u32,
    /// Ends and failed starts since the program was last up for long.
    pub consecutive: u32,
    /// Since when the program runs, monotonic.
    pub up_since: Option<Ms>,
}

/// What follows an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody asked for more.
    End,
    Restart {
        delay_ms: Ms,
    },
    Dead {
        reason: String,
    },
}

/// Counts one more end and decides.
fn decide(policy: &RestartPolicy, counts: &mut Restarts, now: Ms) -> Fate {
    if counts.up_since.take().is_some_and(|since| now.saturating_sub(since) >= HEALTHY_MS) {
        counts.consecutive = 0;
    }
    counts.consecutive = counts.consecutive.saturating_add(1);
    let dead = |reason: String| Fate::Dead { reason };
    if !policy.enabled {
        dead("restart policy disabled".into())
    } else if counts.total >= policy.max_restarts {
        dead(format!("exceeded max restarts ({})", policy.max_restarts))
    } else if counts.consecutive > policy.max_consecutive_failures {
        dead(format!("exceeded max consecutive failures ({})", policy.max_consecutive_failures))
    } else {
        counts.total += 1;
        Fate::Restart { delay_ms: policy.cooldown_ms }
    }
}

impl Broker {
    /// The program of an agent has ended, or could not be started again.
    pub(super) fn fate(&mut self, generation: Generation) -> Fate {
        let now = self.now.mono;
        let Some(agent) = self.roster.get_mut(generation) else { return Fate::End };
        match &agent.request.restart_policy {
            // What an agent asks for itself is no failure; without a terminal the end is what it was started for.
            Some(policy) if agent.exit_reason != Some(ITS_WISH) && !agent.request.headless => {
                decide(policy, &mut agent.restarts, now)
            }
            _ => Fate::End,
        }
    }

    /// Lays the agent aside until the cooldown is over.
    pub(super) fn restart_later(&mut self, generation: Generation, end: Ending, delay_ms: Ms) {
        self.forget_timers(generation);
        let Some(agent) = self.roster.renew(generation) else { return };
        let (generation, name, restart_count) = (agent.generation, agent.name.clone(), agent.restarts.total);
        agent.phase = Phase::Cooling;
        agent.session_id.clone_from(&agent.request.session_ref);
        agent.warning = None;
        agent.size_owner = None;
        agent.pid = None;
        agent.ready = false;
        agent.state = "working";
        agent.backing_off = false;
        agent.silent_since_unix = None;
        agent.looking_up = false;
        agent.exit_reason = None;
        agent.last_words = Default::default();
        agent.verified_early.clear();
        agent.context_pct = None;
        agent.verdict = Default::default();
        let read = std::mem::take(&mut agent.verifying);
        let unread = agent.in_flight.take();
        // A task that nobody has read yet goes on as it is; one that was read is given again by the next life.
        if let Some(at) = agent.queue.iter().position(|delivery| delivery.source == Source::Task) {
            agent.task = agent.queue.remove(at);
        }
        for delivery in &read {
            self.over(delivery);
            if !delivery.is_engine() {
                self.confirm(&name, delivery);
            }
        }
        if let Some(flight) = unread {
            self.keep_unread(generation, &name, flight.delivery, flight.typed);
        }
        self.counters.ended += 1;
        self.timers.set(Timer::Restart(generation), self.now.mono.saturating_add(delay_ms));
        self.event(Event::AgentRestarting { name, end: Box::new(end), restart_count, delay_ms });
        // The answer that tells its id was for the life before: what waited for it must not be overtaken.
        self.take_early(generation);
        self.membership_changed();
    }

    /// What was in the terminal when the program ended comes first in the next life. Its death may be the message's own
    /// doing, so the tries count.
    fn keep_unread(&mut self, generation: Generation, name: &str, mut delivery: Delivery, typed: bool) {
        if typed {
            delivery.attempts += 1;
            delivery.last_error = Some("the program ended before it was proved to have read it".into());
        }
        if delivery.attempts >= ATTEMPTS_MAX {
            self.bury(delivery, name, "the program ended each time before it was proved to have read it");
        } else if let Some(agent) = self.roster.get_mut(generation) {
            self.receipts.back(&delivery);
            match delivery.source {
                Source::Task => agent.task = Some(delivery),
                _ => agent.queue.push_front(delivery),
            }
        }
    }

    /// The cooldown is over: the same again, as a spawn that nobody waits for.
    pub(super) fn restart(&mut self, generation: Generation) {
        let now = self.now.unix;
        let Some(agent) = self.roster.get_mut(generation).filter(|agent| agent.phase == Phase::Cooling) else { return };
        agent.phase = Phase::Preparing;
        agent.started_at_unix = now;
        self.launch(generation);
    }

    /// The program runs again.
    pub(super) fn restarted(&mut self, generation: Generation) {
        let Some(agent) = self.roster.get(generation) else { return };
        let (name, restart_count) = (agent.name.clone(), agent.restarts.total);
        let is_held = agent.mode == InboundMode::ManualFlush;
        if agent.task.is_none() {
            let request = agent.request.clone();
            let task = self.initial_task(&request);
            if let Some(agent) = self.roster.get_mut(generation) {
                agent.task = task;
            }
        }
        self.counters.restarts += 1;
        if is_held {
            // The human is still there; the new terminal has not been told.
            self.command(generation, AgentCommand::Hold(true));
        }
        self.log(Level::Info, format!("agent '{name}' runs again ({restart_count})"));
        self.event(Event::AgentRestarted { name, restart_count });
    }

    /// A start has failed, and its caller, if there was one, has been told. Of an agent that ran before, it counts as an end.
    pub(super) fn start_failed(&mut self, generation: Generation, error: &str) {
        let Some(agent) = self.roster.get(generation) else { return };
        if agent.restarts.total == 0 || agent.phase == Phase::Releasing || self.stopping.is_some() {
            self.bury_failed(generation);
            return;
        }
        let name = agent.name.clone();
        let end = self.ending(agent, None, None);
        self.log(Level::Warn, format!("agent '{name}' could not be started again: {error}"));
        match self.fate(generation) {
            Fate::Restart { delay_ms } => self.restart_later(generation, end, delay_ms),
            Fate::End => self.bury_failed(generation),
            Fate::Dead { reason } => {
                self.settle_end(generation, DEAD, &end);
                self.permanently_dead(name, reason);
            }
        }
    }

    pub(super) fn permanently_dead(&mut self, name: String, reason: String) {
        self.log(Level::Warn, format!("agent '{name}' is not started again: {reason}"));
        self.event(Event::AgentPermanentlyDead { name, reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_decides_by_its_counts() {
        let policy = RestartPolicy::default();
        let restart = || Fate::Restart { delay_ms: 2_000 };
        let dead = |reason: &str| Fate::Dead { reason: reason.into() };
        let counts = |total, consecutive, up_since| Restarts { total, consecutive, up_since };
        let table = [
            (policy, counts(0, 0, Some(99_000)), restart(), (1, 1)),
            (policy, counts(2, 2, Some(99_000)), restart(), (3, 3)),
            (policy, counts(3, 3, Some(99_000)), dead("exceeded max consecutive failures (3)"), (3, 4)),
            (policy, counts(3, 3, Some(70_001)), dead("exceeded max consecutive failures (3)"), (3, 4)),
            (policy, counts(3, 3, Some(70_000)), restart(), (4, 1)),
            (policy, counts(5, 0, Some(0)), dead("exceeded max restarts (5)"), (5, 1)),
            (policy, counts(1, 1, None), restart(), (2, 2)),
            (RestartPolicy { enabled: false, ..policy }, counts(0, 0, None), dead("restart policy disabled"), (0, 1)),
            (
                RestartPolicy { max_restarts: 0, ..policy },
                counts(0, 0, None),
                dead("exceeded max restarts (0)"),
                (0, 1),
            ),
            (
                RestartPolicy { max_consecutive_failures: 0, ..policy },
                counts(0, 0, None),
                dead("exceeded max consecutive failures (0)"),
                (0, 1),
            ),
        ];
        for (n, (policy, mut counts, expected, left)) in table.into_iter().enumerate() {
            assert_eq!(decide(&policy, &mut counts, 100_000), expected, "row {n}");
            assert_eq!((counts.total, counts.consecutive, counts.up_since), (left.0, left.1, None), "row {n}");
        }
    }
}
