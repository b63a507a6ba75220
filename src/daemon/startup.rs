//! From the command line to the running loop. Every step that fails leaves nothing behind, and every wait has a deadline:
//! what talks to the engine before the broker is ready shares eight seconds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH};
use signal_hook::iterator::Signals;

use super::doors::{Bells, Control, Doors, doors};
use super::effects::{Hands, Parts, left};
use super::enrolment::Enrolled;
use super::env::Env;
use super::logging::{self, operator};
use super::outside::{Outside, Restored, Wrapped};
use super::select::Loop;
use super::state_files::{StateFiles, pending_of_file};
use super::{Fatal, Options};
use crate::api::{self, Api};
use crate::core::ports::{Record, Secret};
use crate::core::{Broker, insights};
use crate::engine::Pool;
use crate::node::Link;
use crate::store::{self, Journal, Keep, Lock, StateDir, paths};
use crate::sys::{clock, ids, threads};
use crate::{http, local};

mod config;
mod enrolled;
mod leavings;

use config::{bracketed, callback_host, facts};
use leavings::{Leaving, Leavings};

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Variables that name the workspace key.
pub(super) const KEY_VARS: [&str; 3] = ["AGENT_RELAY_WORKSPACE_KEY", "RELAY_WORKSPACE_KEY", "RELAY_API_KEY"];

/// Runs the broker to its end: signals on this thread, everything else on the thread `broker`.
pub fn run(options: Options) -> Result<(), Fatal> {
    process(options, None).map(drop)
}

/// Runs a broker of one agent, which is a program in the user's own terminal: the exit code.
pub fn wrap(wrapped: Wrapped) -> Result<u8, Fatal> {
    let options = Options { persist: true, ..Options::default() };
    process(options, Some(wrapped))
}

fn process(options: Options, wrapped: Option<Wrapped>) -> Result<u8, Fatal> {
    clock::start();
    threads::enter("main");
    let mut env = Env::of_process();
    let name = match &wrapped {
        Some(wrapped) => wrapped.name(&env),
        None => broker_name(&options, &env)?,
    };
    mirror_key(&options, &mut env);
    logging::start(&env, &wrapped.as_ref().map_or(name.clone(), Wrapped::log_id));
    let of_terminals: &[i32] = if wrapped.is_some() { &[SIGQUIT, SIGWINCH] } else { &[] };
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD].iter().chain(of_terminals))
        .map_err(|error| Fatal::new("the broker cannot listen for signals").because(error))?;
    let signals_handle = signals.handle();
    let (bells, doors) = doors();
    let panics = bells.control.clone();
    threads::on_panic(move |name| {
        let _ = panics.try_send(Control::ThreadDied(name.to_string()));
    });
    let control = bells.control.clone();
    let outside = match wrapped {
        Some(wrapped) => Some(Outside::new(wrapped, &name, &env, control.clone())?),
        None => None,
    };
    // Whatever happens on this thread, the user's terminal is as it was.
    let _restored = outside.clone().map(Restored);
    let leavings = Arc::new(Leavings::default());
    let outcome = Arc::new(Mutex::new(None));
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let start = Start {
        options,
        env,
        name,
        outside: outside.clone(),
        leavings: leavings.clone(),
        ready: ready.clone(),
        stop_by: Default::default(),
    };
    let end = End { outcome: outcome.clone(), signals: signals_handle };
    let broker = threads::spawn("broker", move || {
        // Owned here, so that a panic ends the process too instead of leaving it deaf.
        let end = end;
        let ended = start.run(bells, doors);
        *end.outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(ended);
    })
    .map_err(|error| Fatal::new("the broker's thread cannot be started").because(error))?;
    threads::doing("waiting for signals");
    for signal in signals.forever() {
        match signal {
            SIGUSR1 => {
                let report = threads::report();
                log::info!("thread report\n{report}");
                logging::say(&report);
            }
            // Children of agents that outlived their parents are ours to bury; the agents themselves are their threads'.
            SIGCHLD => {
                crate::agent::reap_orphans();
            }
            SIGWINCH => {
                if let Some(outside) = &outside {
                    outside.resize();
                }
            }
            _ if !ready.load(std::sync::atomic::Ordering::SeqCst) => {
                // Nothing runs yet that would have to be ended in order.
                leavings.remove();
                std::process::exit(if outside.is_some() { 128 + signal } else { 0 });
            }
            _ => {
                if let Some(outside) = &outside {
                    outside.signalled(signal);
                }
                let name = match signal {
                    SIGHUP => "SIGHUP",
                    SIGINT => "SIGINT",
                    SIGQUIT => "SIGQUIT",
                    _ => "SIGTERM",
                };
                drop(control.try_send(Control::Stop(name)));
            }
        }
    }
    broker.join(Duration::from_secs(5));
    let ended = outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if ended.is_none() {
        // After a panic of the loop the agents' threads end their programs by themselves: let them. An orderly stop has
        // had its time.
        threads::wait_for_end_of("pty-", Duration::from_millis(2_800));
        threads::wait_for_end_of(super::supervisor::THREAD, Duration::from_millis(500));
    }
    let code = outside.as_ref().map(|outside| outside.finish());
    leavings.remove();
    logging::finish();
    ended.unwrap_or_else(|| Err(Fatal::new("the broker's loop failed; its log says where")))?;
    code.unwrap_or(Ok(0))
}

/// Lets the main thread go when the broker's thread ends, however it does.
struct End {
    /// Stays empty at a panic.
    outcome: Arc<Mutex<Option<Result<(), Fatal>>>>,
    signals: signal_hook::iterator::Handle,
}

impl Drop for End {
    fn drop(&mut self) {
        self.signals.close();
    }
}

/// First non-blank of flags, environment, directory; else `project`.
fn broker_name(options: &Options, env: &Env) -> Result<String, Fatal> {
    let cwd = cwd()?;
    let given = [options.instance_name.as_deref(), options.name.as_deref(), env.get("AGENT_RELAY_BROKER_NAME")];
    Ok(given
        .into_iter()
        .flatten()
        .map(str::trim)
        .chain(cwd.file_name().and_then(|name| name.to_str()))
        .find(|name| !name.is_empty())
        .unwrap_or("project")
        .to_string())
}

fn cwd() -> Result<PathBuf, Fatal> {
    std::env::current_dir().map_err(|error| {
        Fatal::new("the current directory cannot be read; start the broker in one that exists").because(error)
    })
}

/// A key given by flag or by the first variable counts for all three.
fn mirror_key(options: &Options, env: &mut Env) {
    let given = options.workspace_key.as_deref().map(str::trim).filter(|key| !key.is_empty());
    let Some(key) = given.or_else(|| env.get(KEY_VARS[0])).map(str::to_string) else { return };
    for variable in KEY_VARS {
        env.set(variable, &key);
    }
}

/// How long after a failed start a client may take to ask for the first time.
const FIRST_ASK: Duration = Duration::from_secs(1);

pub(super) struct Start {
    pub(super) options: Options,
    pub(super) env: Env,
    pub(super) name: String,
    /// The user's terminal, of a broker that wraps one program.
    pub(super) outside: Option<Arc<Outside>>,
    leavings: Arc<Leavings>,
    ready: Arc<std::sync::atomic::AtomicBool>,
    /// When an orderly stop must be over, once it has begun.
    stop_by: std::cell::Cell<Option<Instant>>,
}

impl Start {
    fn run(self, bells: Bells, doors: Doors) -> Result<(), Fatal> {
        let cwd = cwd()?;
        let (state, _lock) = self.state_dir(&cwd)?;
        if self.env.raw("AGENT_RELAY_DISABLE_RELAYCAST").is_some() {
            return Err(Fatal::new("AGENT_RELAY_DISABLE_RELAYCAST is no longer supported; broker requires Relaycast"));
        }
        let key = self.api_key();
        let api = Api::new(
            api::Settings {
                key: key.clone(),
                bind: self.options.api_bind.clone(),
                host_names: self.options.api_hosts.clone(),
                continuity: state.continuity(),
            },
            bells.api.clone(),
        );
        if let Some(code) = self.env.get("AGENT_RELAY_STARTUP_ERROR_CODE") {
            api.health().tell_startup_error(code);
        }
        if self.outside.is_some() {
            return self.serve(&state, &cwd, &api, None, bells, doors);
        }
        let bound = self.bind()?;
        let port = bound.local_addr().port();
        let url = format!("http://{}:{port}", bracketed(&self.options.api_bind));
        // The one line that stdout ever carries.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "[agent-relay] API listening on {url}").and_then(|()| out.flush());
        drop(out);
        self.write_connection(&state, &key, port)?;
        let (warmup, turned_away) = api.warmup();
        let server = bound
            .serve(api::limits(), warmup, "http-")
            .map_err(|error| Fatal::new("the local API cannot be served").because(error))?;
        let outcome = self.serve(&state, &cwd, &api, Some((&server, port)), bells, doors);
        // The driver asks once it knows the port, and when it finds that closed takes a refused connection for the reason
        // of a failed start; told to come again, it sees the process end and shows what that said. So a start that failed
        // waits for one to ask, and the port answers until the process is gone.
        let ready = self.ready.load(std::sync::atomic::Ordering::SeqCst);
        if ready || turned_away.recv_timeout(FIRST_ASK).is_ok() {
            api.close();
            server.stop(self.left(Duration::from_millis(700)));
        }
        outcome
    }

    fn state_dir(&self, cwd: &Path) -> Result<(StateDir, Option<Lock>), Fatal> {
        let keep = match (&self.options.state_dir, self.options.persist) {
            (Some(dir), _) => Keep::Dir(dir.clone()),
            (None, true) => Keep::Persist,
            (None, false) => Keep::Ephemeral,
        };
        let state = StateDir::choose(keep, &self.name, cwd, &std::env::temp_dir());
        if !state.is_durable() {
            // Before it exists: a signal may come in between.
            self.leavings.add(Leaving::State(state.clone()));
        }
        state.create().map_err(|error| {
            Fatal::new("the state directory cannot be made; choose another with --state-dir").because(error)
        })?;
        if !state.is_durable() {
            let prior = paths::prior_state_files(cwd);
            if !prior.is_empty() {
                operator(&format!(
                    "WARNING: this run is ephemeral but {} prior --persist state file(s) remain in {}:",
                    prior.len(),
                    paths::kept_dir(cwd).display()
                ));
                for file in prior {
                    operator(&format!("  {}", file.display()));
                }
                operator("start with --persist to use that state, or delete those files");
            }
            return Ok((state, None));
        }
        let lock = Lock::take(&state).map_err(Fatal::new)?;
        self.leavings.add(Leaving::Pid(state.pid()));
        if let Err(error) = store::pid::write(&state.pid(), std::process::id()) {
            log::warn!("{error}");
        }
        Ok((state, Some(lock)))
    }

    fn api_key(&self) -> Secret {
        Secret::new(match self.env.get("RELAY_BROKER_API_KEY") {
            Some(key) => key.to_string(),
            None => format!("br_{}", ids::uuid_hex()),
        })
    }

    fn bind(&self) -> Result<http::Bound, Fatal> {
        let (host, port) = (&self.options.api_bind, self.options.api_port);
        http::Server::bind(host, port).map_err(|error| {
            let fatal = Fatal::new(format!("failed to bind API on http://{}:{port}", bracketed(host)));
            match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    fatal.because(format!("{error}; stop what listens there, or choose another port with --api-port"))
                }
                _ => fatal.because(format!("{error}; check --api-bind and --api-port")),
            }
        })
    }

    fn write_connection(&self, state: &StateDir, key: &Secret, port: u16) -> Result<(), Fatal> {
        let path = state.connection();
        let host = callback_host(&self.options.api_bind);
        let connection = store::connection::Connection {
            api_key: key.clone(),
            pid: std::process::id(),
            port,
            url: format!("http://{host}:{port}"),
        };
        // Before it is written: a signal may come in between.
        self.leavings.add(Leaving::Connection(path.clone()));
        match store::connection::write(&path, &connection) {
            Ok(()) => Ok(()),
            Err(error) if state.is_durable() => {
                Err(Fatal::new("connection.json cannot be written, clients would not find the broker").because(error))
            }
            Err(error) => {
                operator(&format!("WARNING: connection.json cannot be written: {error}"));
                Ok(())
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn serve(
        &self,
        state: &StateDir,
        cwd: &Path,
        api: &Arc<Api>,
        listening: Option<(&http::Server, u16)>,
        bells: Bells,
        doors: Doors,
    ) -> Result<(), Fatal> {
        let deadline = Instant::now() + self.handshake_limit();
        let mut engine = self.local_engine()?;
        let base = engine.as_ref().map(local::Server::url);
        let enrolled = match self.enrol(cwd, base, deadline) {
            Ok(enrolled) => enrolled,
            Err(fatal) => {
                self.stop_engine(engine.take());
                return Err(fatal);
            }
        };
        self.phase("enrolled");
        let outcome = self.operate(state, api, listening, bells, doors, enrolled);
        self.stop_engine(engine.take());
        outcome
    }

    /// What is left of the stop's time for one step of it.
    fn left(&self, limit: Duration) -> Duration {
        self.stop_by.get().map_or(limit, |deadline| left(deadline, limit))
    }

    fn stop_engine(&self, engine: Option<local::Server>) {
        if let Some(engine) = engine {
            engine.stop(self.left(Duration::from_millis(500)));
        }
    }

    fn local_engine(&self) -> Result<Option<local::Server>, Fatal> {
        if !self.options.local {
            return Ok(None);
        }
        let options =
            local::Options { listen: ("127.0.0.1".into(), 0), data: self.options.data.clone(), faults: false };
        local::Server::start(options)
            .map(Some)
            .map_err(|error| Fatal::new("the engine inside the broker cannot be started").because(error))
    }

    #[allow(clippy::too_many_arguments)]
    fn operate(
        &self,
        state: &StateDir,
        api: &Arc<Api>,
        listening: Option<(&http::Server, u16)>,
        bells: Bells,
        doors: Doors,
        enrolled: Enrolled,
    ) -> Result<(), Fatal> {
        self.write_identity_debug(state, &enrolled);
        let (journal, records) = self.open_journal(state)?;
        crate::sys::descriptors::raise_limit();
        if let Err(error) = crate::agent::become_subreaper() {
            log::warn!("orphans of agents cannot be adopted: {error}");
        }
        let config = self.config(&enrolled, listening.map(|(_, port)| port));
        let facts = facts(&config);
        let mut broker = Broker::new(config, ids::random_bytes(), records);
        if state.is_durable()
            && let Ok(bytes) = store::secrets::read(&state.crash_insights())
        {
            broker.recall_crashes(insights::crashes_of_file(&String::from_utf8_lossy(&bytes)));
        }
        let node_bell = bells.node.clone();
        let link = Link::start(&enrolled.base, move |note| {
            let _ = node_bell.send(Box::new(crate::core::ports::Input::Node(note)));
        })
        .map_err(|error| Fatal::new("the link to the engine cannot be started").because(error))?;
        let engine_bell = bells.engine.clone();
        let tokens = Arc::new(self.token_cache(&enrolled));
        let kept = tokens.clone();
        let pool = Pool::start(enrolled.client.clone(), move |ticket, outcome| {
            kept.look_at(ticket, &outcome);
            let _ = engine_bell.send((ticket, outcome));
        });
        let worker_logs = state.path().join("team").join("worker-logs");
        if let Err(error) = store::secrets::make_dir(&worker_logs) {
            log::warn!("worker logs are off: {error}");
        }
        let agent_files = state.agent_files();
        if let Err(error) = std::fs::remove_dir_all(&agent_files)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("files of agents of an earlier life stay in {}: {error}", agent_files.display());
        }
        let hands = Hands::new(Parts {
            bells,
            link,
            pool,
            api: api.clone(),
            journal,
            worker_logs,
            agent_files,
            continuity: state.continuity(),
            tokens,
            outside: self.outside.clone(),
        });
        let state_files = match state.is_durable() {
            true => Some(
                StateFiles::start(state).map_err(|error| Fatal::new("the state file cannot be kept").because(error))?,
            ),
            false => None,
        };
        let mut main_loop = Loop::new(broker, doors, hands, api.health().clone(), facts, state_files);
        main_loop.publish_health();
        if let Some((server, _)) = listening {
            server.set_handler(api.clone());
        }
        self.ready.store(true, std::sync::atomic::Ordering::SeqCst);
        self.phase("ready");
        let channels = match &self.outside {
            // Its own agent is nobody who would be talked to.
            Some(outside) => {
                outside.begin(api.calls())?;
                None
            }
            None => self.join_channels(&enrolled),
        };
        main_loop.run();
        threads::doing("stopping");
        let (deadline, cut_short) = (main_loop.deadline(), main_loop.was_cut_short());
        self.stop_by.set(Some(deadline));
        api.close();
        main_loop.hands.close(deadline, cut_short);
        if state.is_durable() {
            let text = format!("{:#}\n", insights::crash_file(main_loop.broker.crashes()));
            if let Err(error) = store::secrets::replace(&state.crash_insights(), text.as_bytes()) {
                log::warn!("the record of crashes cannot be kept: {error}");
            }
        }
        if let Some(files) = main_loop.state_files {
            files.close(&main_loop.broker, self.left(Duration::from_millis(500)));
        }
        enrolled.client.shut_down();
        if let Some(channels) = channels {
            channels.join(self.left(Duration::from_millis(200)));
        }
        Ok(())
    }

    fn open_journal(&self, state: &StateDir) -> Result<(Journal, Vec<Record>), Fatal> {
        let fail = |error| Fatal::new("the journal cannot be opened").because(error);
        let (mut journal, mut loaded) = Journal::open(&state.journal()).map_err(fail)?;
        if loaded.is_new && state.is_durable() {
            // A broker that kept no journal may have run here before.
            loaded.records = pending_of_file(&state.pending());
            journal.append(&loaded.records).map_err(fail)?;
        }
        Ok((journal, loaded.records))
    }

    /// With `AGENT_RELAY_STARTUP_DEBUG`: what is reached, and when.
    fn phase(&self, what: &str) {
        log::info!("start: {what} after {} ms", clock::now().mono);
        if self.env.flag("AGENT_RELAY_STARTUP_DEBUG") {
            logging::say(&format!("[agent-relay][startup +{}ms] {what}", clock::now().mono));
        }
    }
}
