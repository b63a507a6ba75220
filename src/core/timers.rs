//! The one deadline heap: what is due when. Setting a timer again moves it.

use std::collections::{BTreeSet, HashMap};

use super::ports::{Generation, Ms, Ticket};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// Connect the node link again.
    Reconnect,
    Heartbeat,
    /// Presence of the broker's own agent.
    OwnPresence,
    /// Frames for agents of an earlier life wait for the inventory to settle.
    Strays,
    Lease,
    /// Messages restored for agents that have not come back are dead.
    Restored,
    /// A spawn must have ended by now, one way or the other.
    Spawn(Generation),
    /// An `agent.register` that was sent must be answered by now.
    Register(Generation),
    /// An `agent.register` that waits for the link goes by HTTP now.
    LinkGrace(Generation),
    /// Try a failed injection again.
    Retry(Generation),
    /// The cooldown of a supervised agent is over.
    Restart(Generation),
    /// Bind an HTTP-registered agent again.
    Bind(Generation),
    /// A hole in the numbering of this agent: ask for a replay, then give it up.
    Gap(String),
    /// The sidecar must have answered this invocation by now.
    Handler(String),
    /// The sidecar has been away for its cooldown.
    SidecarStart,
    /// The sidecar has been here long enough to count as well.
    SidecarHealthy,
    /// A call that an agent's thread has to answer.
    TerminalCall(Ticket),
    /// The orderly stop goes on without what it waits for.
    Stop,
}

#[derive(Debug, Default)]
pub struct Timers {
    queue: BTreeSet<(Ms, Timer)>,
    at: HashMap<Timer, Ms>,
}

impl Timers {
    pub fn set(&mut self, timer: Timer, at: Ms) {
        self.cancel(&timer);
        self.at.insert(timer.clone(), at);
        self.queue.insert((at, timer));
    }

    pub fn cancel(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.queue.remove(&(at, timer.clone()));
        }
    }

    pub fn is_set(&self, timer: &Timer) -> bool {
        self.at.contains_key(timer)
    }

    /// Takes the earliest timer that is due at `now`.
    pub fn pop_due(&mut self, now: Ms) -> Option<Timer> {
        let (at, _) = self.queue.first()?;
        if *at > now {
            return None;
        }
        let (_, timer) = self.queue.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }

    pub fn next(&self) -> Option<Ms> {
        self.queue.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_set_again_moves_and_a_cancelled_one_never_fires() {
        let mut timers = Timers::default();
        timers.set(Timer::Heartbeat, 10);
        timers.set(Timer::Lease, 15);
        timers.set(Timer::Heartbeat, 20);
        assert_eq!(timers.next(), Some(15));
        assert_eq!(timers.pop_due(14), None);
        assert_eq!(timers.pop_due(30), Some(Timer::Lease));
        timers.cancel(&Timer::Heartbeat);
        assert_eq!(timers.pop_due(30), None);
        assert!(!timers.is_set(&Timer::Heartbeat));
    }
}
