//! Workers without a terminal: what `headless` and `app-server` have in common.
//!
//! The agent room does the work; here its notes become frames and frames its commands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::worker::{self, Heard};
use crate::agent::{self, AgentThread, Files};
use crate::core::ports::{AgentCommand, AgentNote, Injection, Launch, Variables};
use crate::daemon::{self, Fatal};
use crate::sys::{clock, threads};
use crate::wire::worker::{DeliveryStep, FromWorker, Inbound, RelayDelivery, ToWorker, WorkerReady};

/// Messages that wait; more are refused.
const WAITING: usize = 1024;
/// Variables that reach no program.
const REMOVED: [&str; 7] = [
    "RELAY_BROKER_API_KEY",
    "RELAY_NODE_TOKEN",
    "CLAUDECODE",
    "AGENT_RELAY_APP_SERVER_AUTH_TYPE",
    "AGENT_RELAY_APP_SERVER_AUTH_TOKEN",
    "AGENT_RELAY_APP_SERVER_AUTH_USERNAME",
    "AGENT_RELAY_APP_SERVER_AUTH_PASSWORD",
];
/// From the order to end to the end: the ladder for a program, one call for a server.
const END: Duration = Duration::from_secs(36);

/// The kind of worker.
pub enum Kind {
    /// Runs this provider once.
    Once { provider: String },
    /// Hands every message to a server.
    Server { protocol: String },
}

impl Kind {
    fn subcommand(&self) -> &'static str {
        match self {
            Kind::Once { .. } => "headless",
            Kind::Server { .. } => "app-server",
        }
    }
}

struct Worker {
    agent: AgentThread,
    kind: Kind,
    ready: WorkerReady,
    asked_for: Option<Option<String>>,
    ready_told: bool,
    serving: bool,
    /// With the ids of their requests.
    waiting: VecDeque<(RelayDelivery, Option<String>)>,
    in_flight: Option<(RelayDelivery, Option<String>)>,
    accepted: worker::HandedOver,
    /// The program of the message in flight runs.
    taken: bool,
    ran: bool,
    signal: Option<i32>,
    /// Why the program cannot be started.
    refused: Option<String>,
    failed: bool,
}

/// Serves frames until the worker's end. `ready`: what is told of it.
///
/// # Errors
/// Nothing can be served.
pub fn run(kind: Kind, launch: Launch, ready: WorkerReady) -> Result<(), super::Failure> {
    clock::start();
    threads::enter("main");
    let unnamed = || format!("{}-{}", kind.subcommand(), std::process::id());
    daemon::open_log(&Some(&launch.name).filter(|name| !name.is_empty()).cloned().unwrap_or_else(unnamed));
    if let Err(error) = agent::become_subreaper() {
        log::warn!("orphans of the program cannot be adopted: {error}");
    }
    let outcome = serve(kind, launch, ready);
    daemon::close_log();
    if let Some(signal) = outcome? {
        worker::die_of(signal);
    }
    Ok(())
}

/// The signal that ended it, if one did.
fn serve(kind: Kind, launch: Launch, ready: WorkerReady) -> Result<Option<i32>, Fatal> {
    let (heard, tell) = worker::listen::<AgentNote>()?;
    // Only a worker that has ended takes no more.
    let notes = move |_, note| drop(tell.send(Heard::News(note)));
    let files = Files { log: None, scratch: std::env::temp_dir(), tap: None };
    let agent = agent::launch(launch, notes, Arc::new(AtomicUsize::new(1)), files)
        .map_err(|error| Fatal::new("the worker cannot be started").because(error))?;
    let mut worker = Worker {
        agent,
        kind,
        ready,
        asked_for: None,
        ready_told: false,
        serving: false,
        waiting: VecDeque::new(),
        in_flight: None,
        accepted: Default::default(),
        taken: false,
        ran: false,
        signal: None,
        refused: None,
        failed: false,
    };
    loop {
        threads::doing("waiting for a frame or a note");
        // Without a time limit on purpose: its caller's end ends it.
        let Ok(next) = heard.recv() else { break };
        match worker.hear(next) {
            Ok(true) => {}
            Ok(false) => break,
            // Nobody listens any more: so all ends.
            Err(error) => {
                log::warn!("stdout takes no more: {error}");
                worker.agent.send(AgentCommand::Release).unwrap_or_default();
                while let Ok(next) = heard.recv_timeout(END) {
                    if matches!(next, Heard::News(AgentNote::Exited { .. } | AgentNote::Refused { .. })) {
                        break;
                    }
                }
                break;
            }
        }
    }
    let signal = worker.signal;
    worker.agent.join(Duration::from_secs(1));
    Ok(signal)
}

impl Worker {
    /// `false`: all is over.
    fn hear(&mut self, heard: Heard<AgentNote>) -> std::io::Result<bool> {
        match heard {
            Heard::Frame(Ok(inbound)) => return self.on_frame(inbound),
            Heard::Frame(Err(rejected)) => {
                let request_id = rejected.request_id.clone();
                worker::say(&rejected.answer(), request_id.as_deref())?;
            }
            Heard::Closed => return self.end(),
            Heard::Signal(signal) => {
                self.signal.get_or_insert(signal);
                return self.end();
            }
            Heard::News(note) => return self.on_note(note),
        }
        Ok(true)
    }

    /// Its caller is gone: a program ends, a server's session is left as it is.
    fn end(&mut self) -> std::io::Result<bool> {
        if self.refused.is_some() {
            return self.over(None);
        }
        match self.kind {
            Kind::Once { .. } => self.agent.send(AgentCommand::Release).unwrap_or_default(),
            Kind::Server { .. } => self.agent.kill_now(),
        }
        Ok(true)
    }

    fn on_frame(&mut self, inbound: Inbound) -> std::io::Result<bool> {
        let request_id = inbound.request_id;
        match inbound.asked {
            ToWorker::InitWorker { name } => {
                if self.ready.name.is_empty() {
                    self.ready.name = name.unwrap_or_else(|| self.default_name());
                }
                self.asked_for.get_or_insert(request_id);
                self.tell_ready()?;
            }
            ToWorker::DeliverRelay(delivery) => return self.take(delivery, request_id),
            ToWorker::Ping { ts_ms } => worker::say(&FromWorker::Pong { ts_ms }, request_id.as_deref())?,
            ToWorker::ShutdownWorker if self.refused.is_some() => return self.over(None),
            // Never refused.
            ToWorker::ShutdownWorker => self.agent.send(AgentCommand::Release).unwrap_or_default(),
            ToWorker::WritePty { .. } | ToWorker::ResizePty { .. } | ToWorker::SnapshotPty { .. } => {
                error("unsupported_runtime", "this worker has no terminal", request_id.as_deref())?;
            }
        }
        Ok(true)
    }

    fn default_name(&self) -> String {
        match &self.kind {
            Kind::Once { provider } => format!("headless-{provider}"),
            Kind::Server { protocol } => format!("app-server-{protocol}"),
        }
    }

    /// Once, when it can serve and has been asked.
    fn tell_ready(&mut self) -> std::io::Result<()> {
        let can = self.serving || self.refused.is_some();
        let Some(request_id) = self.asked_for.as_ref().filter(|_| can && !self.ready_told) else { return Ok(()) };
        worker::say(&FromWorker::WorkerReady(self.ready.clone()), request_id.as_deref())?;
        self.ready_told = true;
        Ok(())
    }

    fn take(&mut self, delivery: RelayDelivery, request_id: Option<String>) -> std::io::Result<bool> {
        let is_here =
            self.waiting.iter().chain(&self.in_flight).any(|(known, _)| known.delivery_id == delivery.delivery_id);
        if is_here || self.accepted.has(&delivery.delivery_id) {
            return Ok(true);
        }
        if self.waiting.len() >= WAITING {
            error("queue_full", "too many messages wait", request_id.as_deref())?;
            return Ok(true);
        }
        worker::say(&FromWorker::DeliveryQueued(self.step(&delivery)), None)?;
        self.waiting.push_back((delivery, request_id));
        self.go_on()
    }

    fn step(&self, delivery: &RelayDelivery) -> DeliveryStep {
        DeliveryStep {
            delivery_id: delivery.delivery_id.clone(),
            event_id: delivery.event_id.clone(),
            agent: Some(self.ready.name.clone()).filter(|name| !name.is_empty()),
            timestamp: Some(clock::unix_ms()),
        }
    }

    /// Hands over the next message, if it can be.
    fn go_on(&mut self) -> std::io::Result<bool> {
        let once = matches!(self.kind, Kind::Once { .. });
        let can = self.serving || self.refused.is_some();
        if self.in_flight.is_some() || !can || (once && self.ran) {
            return Ok(true);
        }
        let Some((delivery, request_id)) = self.waiting.pop_front() else { return Ok(true) };
        if let Kind::Once { provider } = &self.kind {
            worker::say(&FromWorker::DeliveryInjected(self.step(&delivery)), None)?;
            let pattern = format!("headless:{provider}");
            let (delivery_id, event_id) = (delivery.delivery_id.clone(), delivery.event_id.clone());
            worker::say(&FromWorker::DeliveryActive { delivery_id, event_id, pattern }, None)?;
        }
        self.ran = true;
        if let Some(why) = self.refused.clone() {
            self.in_flight = Some((delivery, request_id));
            self.fail(format!("failed to spawn provider: {why}"))?;
            return self.over(None);
        }
        let injection = Injection {
            delivery_id: delivery.delivery_id.clone(),
            event_id: delivery.event_id.clone(),
            from: delivery.from.clone(),
            target: delivery.target.clone(),
            body: delivery.body.clone(),
            workspace: None,
            mode: delivery.injection_mode,
            exempt: true,
        };
        self.in_flight = Some((delivery, request_id));
        if self.agent.send(AgentCommand::Inject(injection)).is_err() {
            self.fail("the worker takes no more messages".into())?;
        }
        Ok(true)
    }

    /// The message in flight has failed.
    fn fail(&mut self, reason: String) -> std::io::Result<()> {
        let Some((delivery, request_id)) = self.in_flight.take() else { return Ok(()) };
        let failed = FromWorker::DeliveryFailed {
            delivery_id: delivery.delivery_id,
            event_id: delivery.event_id,
            reason: reason.clone(),
        };
        worker::say(&failed, None)?;
        let code = match self.kind {
            Kind::Once { .. } if self.taken => return Ok(()),
            Kind::Once { .. } => "spawn_failed",
            Kind::Server { .. } => "app_server_delivery_failed",
        };
        self.failed |= matches!(self.kind, Kind::Once { .. });
        error(code, &reason, request_id.as_deref())
    }

    fn on_note(&mut self, note: AgentNote) -> std::io::Result<bool> {
        match note {
            AgentNote::Prepared => {
                let start = AgentCommand::Start {
                    set: Variables::default(),
                    remove: REMOVED.map(str::to_string).to_vec(),
                    pre_registered: false,
                };
                // An empty queue has room.
                self.agent.send(start).unwrap_or_default();
            }
            AgentNote::Refused { error } => {
                self.refused = Some(error);
                self.tell_ready()?;
                return self.go_on();
            }
            AgentNote::Serving { .. } => {
                self.serving = true;
                self.tell_ready()?;
                return self.go_on();
            }
            AgentNote::Taken { .. } => {
                self.taken = true;
                self.acknowledge()?;
            }
            AgentNote::Line { stream, chunk, .. } => {
                worker::say(&FromWorker::WorkerStream { stream: stream.into(), chunk }, None)?;
            }
            AgentNote::Accepted { .. } => {
                if let Some((delivery, _)) = &self.in_flight {
                    self.accepted.add(&delivery.delivery_id);
                    worker::say(&FromWorker::DeliveryInjected(self.step(delivery)), None)?;
                }
                self.acknowledge()?;
                self.in_flight = None;
                return self.go_on();
            }
            AgentNote::Finished { result: Ok(()), .. } => {
                if let Some((delivery, _)) = self.in_flight.take() {
                    let verified = FromWorker::DeliveryVerified {
                        delivery_id: delivery.delivery_id,
                        event_id: delivery.event_id,
                        verification: "exit_code".into(),
                        reason: None,
                    };
                    worker::say(&verified, None)?;
                }
            }
            AgentNote::Finished { result: Err(reason), .. } | AgentNote::InjectFailed { error: reason, .. } => {
                self.fail(reason)?;
                return self.go_on();
            }
            AgentNote::Trouble { code, message } => {
                self.failed = true;
                error(code, &message, None)?;
            }
            AgentNote::Exited { code, .. } => return self.over(code.filter(|_| self.taken)),
            _ => {}
        }
        Ok(true)
    }

    fn acknowledge(&self) -> std::io::Result<()> {
        match &self.in_flight {
            Some((delivery, request_id)) => {
                worker::say(&FromWorker::DeliveryAck(self.step(delivery)), request_id.as_deref())
            }
            None => Ok(()),
        }
    }

    /// What was never begun fails with its reason; then the last frame.
    fn over(&mut self, code: Option<i32>) -> std::io::Result<bool> {
        // The worker's own failure is told as code 1; its process ends with 0 in any case.
        let code = if self.failed { Some(1) } else { code };
        for (delivery, _) in self.in_flight.take().into_iter().chain(std::mem::take(&mut self.waiting)) {
            let failed = FromWorker::DeliveryFailed {
                delivery_id: delivery.delivery_id,
                event_id: delivery.event_id,
                reason: "the worker has ended".into(),
            };
            worker::say(&failed, None)?;
        }
        worker::say(&FromWorker::WorkerExited { code, signal: None }, None)?;
        Ok(false)
    }
}

fn error(code: &str, message: &str, request_id: Option<&str>) -> std::io::Result<()> {
    let (code, message) = (code.to_string(), message.to_string());
    worker::say(&FromWorker::WorkerError { code, message, retryable: false }, request_id)
}

/// A launch that starts what it is told, and adds nothing.
pub fn launch(name: String, cli: String, args: Vec<String>) -> Launch {
    Launch {
        generation: 1,
        name,
        cli,
        args,
        model: None,
        session_ref: None,
        resumes: false,
        cwd: None,
        skip_relay_prompt: true,
        idle_threshold_secs: 0,
        ignores_drafts: false,
        headless: true,
        app_server: None,
        bare: true,
    }
}
