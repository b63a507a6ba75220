//! A broker under test: the binary, started as a client would start it, in a private directory with private homes, with
//! its scripted engine and its probes beside it. Only public surface is used: argv, environment, stdout, the local API.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};
use tungstenite::WebSocket;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;

use crate::clock::{self, Deadline};
use crate::engine::Engine;
use crate::http::{Answer, Client};
use crate::probe::{Report, Sightings};

const KEY: &str = "br_00112233445566778899aabbccddeeff";
/// What clients allow a broker for its first line and for becoming ready.
const START_LIMIT: Duration = Duration::from_secs(20);
/// What clients allow for an orderly stop before they kill.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A directory that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = parent.join(format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&path).map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Broker {
    pub engine: Engine,
    pub sightings: Sightings,
    pub api: Client,
    child: Child,
    handle: OwnedFd,
    /// `host:port` of the local API.
    pub address: String,
    /// Just before the process was made; see [`clock::now`].
    pub started: u64,
    pub listening: u64,
    pub registered: u64,
    /// When the API first served.
    pub ready: u64,
    probe: PathBuf,
    /// Where the broker runs; removed with it.
    _home: Scratch,
    /// Holds the sockets: the path of a Unix socket must be short.
    _sockets: Scratch,
}

impl Broker {
    /// Starts `binary` and waits until its API serves.
    ///
    /// # Errors
    /// When it does not become ready; with the end of its stderr.
    pub fn start(binary: &Path) -> Result<Broker, String> {
        let engine = Engine::start().map_err(|e| format!("scripted engine: {e}"))?;
        let home = Scratch::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let sockets = Scratch::new(&std::env::temp_dir())?;
        let sightings = Sightings::bind(sockets.0.join("probes")).map_err(|e| format!("socket for the probes: {e}"))?;
        let own = std::env::current_exe().map_err(|e| format!("own program: {e}"))?;
        // A short name without meaning: brokers guess the kind of CLI from words in its path.
        let probe = sockets.0.join("program");
        std::os::unix::fs::symlink(&own, &probe).map_err(|e| format!("link to {}: {e}", own.display()))?;

        let errors = home.0.join("stderr");
        let mut command = command(binary, &home.0, &engine.url())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&errors).map_err(|e| format!("stderr file: {e}"))?);
        let started = clock::now();
        let mut child = command.spawn().map_err(|e| format!("cannot start {}: {e}", binary.display()))?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|e| format!("pidfd: {e}"))?;
        let mut broker = Broker {
            api: Client::new("", KEY),
            address: String::new(),
            engine,
            sightings,
            child,
            handle,
            started,
            listening: 0,
            registered: 0,
            ready: 0,
            probe,
            _home: home,
            _sockets: sockets,
        };
        broker.become_ready(stdout).map_err(|why| {
            let said = std::fs::read_to_string(&errors).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(8).collect();
            format!("{why}; it said: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "))
        })?;
        Ok(broker)
    }

    fn become_ready(&mut self, stdout: std::process::ChildStdout) -> Result<(), String> {
        let (say, said) = channel();
        std::thread::Builder::new()
            .name("broker-stdout".into())
            .spawn(move || {
                // Reads to the end, so that the broker never writes into a closed pipe.
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = say.send((clock::now(), line));
                }
            })
            .map_err(|e| format!("thread: {e}"))?;
        let (at, line) = match said.recv_timeout(START_LIMIT) {
            Ok(said) => said,
            Err(RecvTimeoutError::Timeout) => return Err("no line on stdout".into()),
            Err(RecvTimeoutError::Disconnected) => return Err("it ended before its first line".into()),
        };
        self.listening = at;
        let url = line.split("API listening on http://").nth(1).ok_or_else(|| format!("strange first line: {line}"))?;
        self.address = url.trim().trim_end_matches('/').to_string();
        self.api = Client::new(&self.address, KEY);
        self.registered = self
            .engine
            .wait(START_LIMIT, |book| book.registrations.first().copied())
            .ok_or("no node.register within the limit")?;
        let deadline = Deadline::after(START_LIMIT);
        loop {
            if self.api.call("GET", "/api/session", None).is_ok_and(|answer| answer.status == 200) {
                self.ready = clock::now();
                return Ok(());
            }
            if deadline.passed() {
                return Err("the API does not become ready".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// The key of the local API.
    /// An open websocket of the local API, whose reads end after 5 s.
    pub fn socket(&self, path: &str) -> Result<WebSocket<TcpStream>, String> {
        let failed = |what: &str| format!("{path}: {what}");
        let stream = TcpStream::connect(&self.address).map_err(|e| failed(&e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| failed(&e.to_string()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| failed(&e.to_string()))?;
        let mut request =
            format!("ws://{}{path}", self.address).into_client_request().map_err(|e| failed(&e.to_string()))?;
        request.headers_mut().insert("X-API-Key", HeaderValue::from_static(KEY));
        tungstenite::client(request, stream).map(|(socket, _)| socket).map_err(|e| failed(&e.to_string()))
    }

    /// One call of the local API that must answer 200.
    pub fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        let answer = self.api.call(method, path, body).map_err(|e| format!("{method} {path}: {e}"))?;
        if answer.status == 200 {
            Ok(answer)
        } else {
            Err(format!("{method} {path}: {} {}", answer.status, answer.body))
        }
    }

    /// Starts an agent with this command line.
    pub fn spawn(&mut self, name: &str, command_line: &str) -> Result<(), String> {
        let request = json!({"name": name, "cli": command_line, "channels": ["general"]});
        self.call("POST", "/api/spawn", Some(&request))?;
        if self.engine.look(|book| book.knows(name)) {
            return Ok(());
        }
        Err(format!("agent {name} was started without being registered"))
    }

    /// Starts a probe and waits until it reads its terminal.
    pub fn spawn_probe(&mut self, name: &str, number: u16) -> Result<(), String> {
        let command_line = format!("'{}' --probe '{}' {number}", self.probe.display(), self.sightings.path().display());
        self.spawn(name, &command_line)?;
        self.until_up(name, number)
    }

    /// Starts a program that prints `bytes`, `rate` of them a second, whenever a byte is typed into its terminal.
    pub fn spawn_printer(&mut self, name: &str, number: u16, bytes: u64, rate: u64) -> Result<(), String> {
        let (probe, socket) = (self.probe.display(), self.sightings.path().display());
        let command_line = format!("'{probe}' --print '{socket}' {number} {bytes} {rate}");
        self.spawn(name, &command_line)?;
        self.until_up(name, number)
    }

    fn until_up(&self, name: &str, number: u16) -> Result<(), String> {
        let deadline = Deadline::after(Duration::from_secs(10));
        while let Some(sighting) = self.sightings.next(deadline) {
            if sighting.probe == number && sighting.report == Report::Up {
                return Ok(());
            }
        }
        Err(format!("probe {name} does not come up"))
    }

    /// Starts a program that prints `megabytes`.
    pub fn spawn_flood(&mut self, name: &str, number: u16, megabytes: u64) -> Result<(), String> {
        let command_line =
            format!("'{}' --flood '{}' {number} {megabytes}", self.probe.display(), self.sightings.path().display());
        self.spawn(name, &command_line)
    }

    /// Asks for an orderly stop; milliseconds until the process is gone.
    pub fn stop(mut self) -> Result<f64, String> {
        let asked = clock::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(|e| format!("kill: {e}"))?;
        if !self.gone_within(STOP_LIMIT) {
            return Err(format!("still there {} s after SIGTERM", STOP_LIMIT.as_secs()));
        }
        let ended = clock::now();
        let status = self.child.wait().map_err(|e| format!("wait: {e}"))?;
        if status.success() {
            Ok(clock::millis(asked, ended))
        } else {
            Err(format!("an orderly stop ended with {status}"))
        }
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            if !self.gone_within(STOP_LIMIT) {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

fn command(binary: &Path, home: &Path, engine: &str) -> Result<Command, String> {
    let binary = binary.canonicalize().map_err(|e| format!("{}: {e}", binary.display()))?;
    let work = home.join("work");
    let temporary = home.join("tmp");
    for directory in [&work, &temporary] {
        std::fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    }
    let mut command = Command::new(binary);
    command
        .args(["init", "--instance-name", "bench", "--persist", "--api-port", "0", "--channels", "general"])
        .current_dir(&work)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
        .env("HOME", home)
        .env("USER", "bench")
        .env("TERM", "xterm-256color")
        .env("TMPDIR", temporary)
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_STATE_HOME", home.join("state"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("RELAYCAST_BASE_URL", engine)
        .env("RELAY_BROKER_API_KEY", KEY)
        .env("AGENT_RELAY_TELEMETRY_DISABLED", "1")
        .env("AGENT_RELAY_NO_DEBUG_FILES", "1")
        .env("AGENT_RELAY_BROKER_LOG", "off");
    Ok(command)
}
