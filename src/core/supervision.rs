//! Starting the sidecar again when it is gone without having said so. The policy only: the daemon starts and stops.

use log::Level;

use super::Broker;
use super::ports::{Effect, Ms, ProcessNote, SuperviseCommand};
use super::timers::Timer;
use crate::wire::api::SidecarStatus;
use crate::wire::fleet::{RestartPolicy, Supervision};

/// A sidecar that was attached this long is well: earlier restarts and failures count no more.
const HEALTHY_MS: Ms = 60_000;
/// A shorter cooldown is stretched to it, so that no policy makes the broker spin.
const COOLDOWN_MIN_MS: Ms = 100;

/// The process that the broker has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    /// `attached`: a sidecar has connected since the start.
    Alive { attached: bool },
    /// It was told to end.
    Stopping,
}

#[derive(Debug, Default)]
pub(super) struct Supervisor {
    plan: Option<Supervision>,
    child: Option<Child>,
    restarts: u32,
    /// Starts in a row that brought no sidecar.
    failures: u32,
    /// Said so; nothing has been started since.
    gave_up: bool,
    last_error: Option<String>,
}

/// What is to be done about a sidecar.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is there, may still come, or nobody wants it.
    Rest,
    StartIn(Ms),
    GiveUp(String),
}

impl Supervisor {
    /// `None`: nobody wants it started again.
    fn policy(&self) -> Option<RestartPolicy> {
        self.plan.as_ref().map(|plan| plan.restart_policy).filter(|policy| policy.enabled)
    }

    fn verdict(&self, attached: bool) -> Verdict {
        let Some(policy) = self.policy() else { return Verdict::Rest };
        if attached || self.child.is_some() {
            return Verdict::Rest;
        }
        match self.exhausted(&policy) {
            Some(why) => Verdict::GiveUp(why),
            None => Verdict::StartIn(policy.cooldown_ms.max(COOLDOWN_MIN_MS)),
        }
    }

    /// Which bound of the policy forbids another start.
    fn exhausted(&self, policy: &RestartPolicy) -> Option<String> {
        if self.failures >= policy.max_consecutive_failures.max(1) {
            Some(format!("{} starts in a row brought no sidecar", self.failures))
        } else if self.restarts >= policy.max_restarts {
            Some(format!("it was started {} times", self.restarts))
        } else {
            None
        }
    }

    pub fn is_child_alive(&self) -> bool {
        self.child.is_some()
    }
}

impl Broker {
    /// Who supervises, and how, is said anew with every manifest. What was counted stays counted.
    pub(super) fn supervise(&mut self, plan: Option<Supervision>) {
        self.supervisor.plan = plan;
    }

    pub(super) fn sidecar_is_back(&mut self) {
        if let Some(Child::Alive { attached }) = &mut self.supervisor.child {
            *attached = true;
        }
        if self.supervisor.restarts > 0 || self.supervisor.failures > 0 {
            self.timers.set(Timer::SidecarHealthy, self.now.mono + HEALTHY_MS);
        }
    }

    pub(super) fn sidecar_is_away(&mut self) {
        self.timers.cancel(&Timer::SidecarHealthy);
    }

    pub(super) fn on_sidecar_healthy(&mut self) {
        let supervisor = &mut self.supervisor;
        (supervisor.restarts, supervisor.failures, supervisor.gave_up) = (0, 0, false);
        supervisor.last_error = None;
    }

    /// No sidecar is attached, or the supervised process has ended: is it to be started again?
    pub(super) fn consider_restart(&mut self) {
        match self.supervisor.verdict(self.sidecar.is_attached()) {
            Verdict::Rest => {}
            Verdict::StartIn(cooldown) => {
                self.timers.set(Timer::SidecarStart, self.now.mono.saturating_add(cooldown));
            }
            Verdict::GiveUp(why) => {
                if !std::mem::replace(&mut self.supervisor.gave_up, true) {
                    let last = self.supervisor.last_error.as_deref().unwrap_or("its connection ended");
                    let text = format!("the sidecar is not started again: {why}; last: {last}");
                    self.log(Level::Error, format!("{text}. Start it by hand"));
                    self.supervisor.last_error = Some(text);
                }
            }
        }
    }

    /// The cooldown is over. Nothing is to be done if the sidecar has come back by itself.
    pub(super) fn on_sidecar_start_due(&mut self) {
        if !matches!(self.supervisor.verdict(self.sidecar.is_attached()), Verdict::StartIn(_)) {
            return;
        }
        let Some(plan) = self.supervisor.plan.clone() else { return };
        self.supervisor.gave_up = false;
        self.supervisor.restarts = self.supervisor.restarts.saturating_add(1);
        self.supervisor.child = Some(Child::Alive { attached: false });
        self.log(Level::Warn, format!("the sidecar is started again ({})", self.supervisor.restarts));
        let (argv, cwd, env) = (plan.argv, plan.cwd, plan.env.into_iter().collect());
        self.out.push(Effect::Supervise(SuperviseCommand::Start { argv, cwd, env }));
    }

    pub(super) fn on_supervised(&mut self, note: ProcessNote) {
        let error = match note {
            ProcessNote::Started { pid } => {
                self.log(Level::Info, format!("the sidecar's process is {pid}"));
                return;
            }
            ProcessNote::Failed { error } => format!("it could not be started: {error}"),
            ProcessNote::Ended { code: Some(code), .. } => format!("it ended with code {code}"),
            ProcessNote::Ended { signal: Some(signal), .. } => format!("it was ended by signal {signal}"),
            ProcessNote::Ended { .. } => "it ended".to_string(),
        };
        let Some(child) = self.supervisor.child.take() else { return };
        if let Child::Alive { attached } = child {
            self.log(Level::Warn, format!("the sidecar's process: {error}"));
            self.supervisor.last_error = Some(error);
            if !attached {
                self.supervisor.failures = self.supervisor.failures.saturating_add(1);
            }
        }
        self.consider_restart();
    }

    /// Nobody wants the sidecar any more.
    pub(super) fn end_supervision(&mut self) {
        for timer in [Timer::SidecarStart, Timer::SidecarHealthy] {
            self.timers.cancel(&timer);
        }
        let supervisor = &mut self.supervisor;
        let child = supervisor.child.map(|_| Child::Stopping);
        let was_alive = matches!(supervisor.child, Some(Child::Alive { .. }));
        *supervisor = Supervisor { child, ..Supervisor::default() };
        if was_alive {
            self.out.push(Effect::Supervise(SuperviseCommand::Stop));
        }
    }

    pub(super) fn sidecar_status(&self) -> SidecarStatus {
        let supervisor = &self.supervisor;
        SidecarStatus {
            attached: self.sidecar.is_attached(),
            handlers: self.sidecar.handlers().cloned().collect(),
            supervised: supervisor.policy().is_some_and(|policy| supervisor.exhausted(&policy).is_none()),
            restarts: supervisor.restarts,
            last_error: supervisor.last_error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_is_started_only_when_wanted_missing_and_within_the_policy() {
        let policy = RestartPolicy::default();
        let alive = Some(Child::Alive { attached: false });
        let give_up = |why: &str| Verdict::GiveUp(why.to_string());
        let rows = [
            (Some(policy), None, 0, 0, false, Verdict::StartIn(2_000)),
            (Some(policy), None, 4, 2, false, Verdict::StartIn(2_000)),
            (Some(policy), None, 5, 0, false, give_up("it was started 5 times")),
            (Some(policy), None, 3, 3, false, give_up("3 starts in a row brought no sidecar")),
            // There, or it may come.
            (Some(policy), None, 0, 0, true, Verdict::Rest),
            (Some(policy), None, 5, 3, true, Verdict::Rest),
            (Some(policy), alive, 0, 0, false, Verdict::Rest),
            (Some(policy), Some(Child::Stopping), 0, 0, false, Verdict::Rest),
            // Not wanted.
            (None, None, 0, 0, false, Verdict::Rest),
            (Some(RestartPolicy { enabled: false, ..policy }), None, 0, 0, false, Verdict::Rest),
            // The corners of a policy.
            (Some(RestartPolicy { max_restarts: 0, ..policy }), None, 0, 0, false, give_up("it was started 0 times")),
            (Some(RestartPolicy { max_consecutive_failures: 0, ..policy }), None, 0, 0, false, Verdict::StartIn(2_000)),
            (Some(RestartPolicy { cooldown_ms: 0, ..policy }), None, 0, 0, false, Verdict::StartIn(COOLDOWN_MIN_MS)),
        ];
        for (n, (policy, child, restarts, failures, attached, expected)) in rows.into_iter().enumerate() {
            let plan = policy.map(|restart_policy| Supervision {
                argv: vec!["sidecar".into()],
                cwd: "/".into(),
                env: Default::default(),
                restart_policy,
            });
            let supervisor = Supervisor { plan, child, restarts, failures, ..Supervisor::default() };
            assert_eq!(supervisor.verdict(attached), expected, "row {n}");
        }
    }
}
