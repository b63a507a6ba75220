//! The orderly stop: agents end in parallel, then the node link closes in order, then the process ends. Bounded at every
//! step, over within 4 s.

use log::Level;

use super::link::LinkState;
use super::ports::{ApiCall, EngineCall, Ms};
use super::roster::Asker;
use super::timers::Timer;
use super::{Awaited, Broker, Effect, answers};
use crate::wire::node::{NodeDeregister, ToEngine};

/// The release ladder of an agent ends with KILL at 2 s; the rest is reaping.
const AGENTS_MS: Ms = 2_600;
/// For what is queued on the node socket, our Close and the peer's.
const LINK_MS: Ms = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopping {
    Agents,
    Link,
    Done,
}

impl Broker {
    pub(super) fn stop(&mut self, reason: &str) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping::Agents);
        self.log(Level::Info, format!("stopping: {reason}"));
        for timer in [Timer::Reconnect, Timer::Lease, Timer::OwnPresence, Timer::Strays, Timer::Restored] {
            self.timers.cancel(&timer);
        }
        self.warn_of_losses();
        for workspace in self.each_workspace() {
            self.call_engine(EngineCall::Disconnect { workspace }, Awaited::Presence);
        }
        for id in self.invocations.open() {
            // Releases are carried out by the stop itself and answered at the agent's end.
            let is_release = self
                .roster
                .iter()
                .any(|agent| agent.release_waiters.iter().any(|waiter| *waiter == Asker::Invocation(id.clone())));
            if !is_release {
                self.finish_invocation(&id, Err("node_shutting_down".into()));
            }
        }
        for generation in self.roster.generations() {
            self.begin_release(generation);
        }
        // After the answers to what it asked.
        self.dismiss_sidecar();
        self.timers.set(Timer::Stop, self.now.mono + AGENTS_MS);
    }

    pub(super) fn after_turn_of_stop(&mut self) {
        if self.stopping == Some(Stopping::Agents) && self.roster.is_empty() && !self.supervisor.is_child_alive() {
            self.close_link();
        }
    }

    fn close_link(&mut self) {
        self.stopping = Some(Stopping::Link);
        self.link.state = LinkState::Closing;
        if !self.link.is_open() {
            self.exit();
            return;
        }
        self.send(ToEngine::NodeDeregister(NodeDeregister::default()));
        self.close_socket();
        self.timers.set(Timer::Stop, self.now.mono + LINK_MS);
    }

    pub(super) fn on_stop_due(&mut self) {
        match self.stopping {
            Some(Stopping::Agents) => {
                let mut left: Vec<String> = self.roster.iter().map(|agent| agent.name.clone()).collect();
                left.extend(self.supervisor.is_child_alive().then(|| "the supervised sidecar".to_string()));
                self.log(Level::Error, format!("what did not end in time: {}", left.join(", ")));
                self.close_link();
            }
            Some(Stopping::Link) => self.exit(),
            Some(Stopping::Done) | None => {}
        }
    }

    /// `true` if the end of the connection belongs to the stop.
    pub(super) fn link_closed_in_stop(&mut self) -> bool {
        match self.stopping {
            Some(Stopping::Link) => {
                self.exit();
                true
            }
            Some(_) => true,
            None => false,
        }
    }

    fn exit(&mut self) {
        if self.stopping != Some(Stopping::Done) {
            self.stopping = Some(Stopping::Done);
            for (_, awaited) in std::mem::take(&mut self.calls) {
                if let Awaited::Publish { asker, request, .. } = awaited {
                    self.reply(asker, answers::shutting_down(&ApiCall::Send(request)));
                }
            }
            self.timers.cancel(&Timer::Stop);
            self.timers.cancel(&Timer::Heartbeat);
            self.out.push(Effect::Exit);
        }
    }
}
