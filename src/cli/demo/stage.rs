//! The broker process of the demo, its private directory, and the ways to talk to it.
//!
//! Invariant: dropping the stage ends the broker (SIGTERM, then SIGKILL after `STOP`) and removes the directory, so errors
//! and panics leave nothing behind.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

use super::{Signals, Stop};
use crate::daemon::Fatal;
use crate::sys::ids;
use crate::wire::events::Event;

/// From the start of the process to its line on stdout.
const LISTENING: Duration = Duration::from_secs(10);
/// From there to the first answer that is not "starting".
const READY: Duration = Duration::from_secs(10);
/// One call of the local API.
const CALL: Duration = Duration::from_secs(10);
/// The orderly stop of the broker takes at most 4 s.
const STOP: Duration = Duration::from_secs(6);
/// How often waits look at signals.
const TURN: Duration = Duration::from_millis(100);
/// Lines of the broker's log that an error shows.
const LAST_LINES: usize = 15;

pub struct Stage {
    dir: PathBuf,
    key: String,
    url: String,
    broker: Option<Child>,
    http: ureq::Agent,
}

impl Stage {
    /// Makes the private directory.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> Result<Stage, Fatal> {
        let id = &ids::uuid_hex()[..8];
        let dir = std::env::temp_dir().join(format!("agent-relay-demo-{}-{id}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| Fatal::new(format!("cannot make {}", dir.display())).because(error))?;
        let http = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CALL))
            .timeout_send_request(Some(CALL))
            .timeout_send_body(Some(CALL))
            .timeout_recv_response(Some(CALL))
            .timeout_recv_body(Some(CALL))
            .build()
            .new_agent();
        Ok(Stage { dir, key: format!("br_{}", ids::uuid_hex()), url: String::new(), broker: None, http })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn pid(&self) -> u32 {
        self.broker.as_ref().map_or(0, Child::id)
    }

    /// Writes a file that only this user can read, in the private directory.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, Fatal> {
        let path = self.dir.join(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Fatal::new(format!("cannot write {}", path.display())).because(error))?;
        Ok(path)
    }

    /// Starts this program as `init --local` and waits until its API answers.
    ///
    /// # Errors
    /// What the broker said when it did not become ready in time.
    pub fn start_broker(&mut self, signals: &mut Signals) -> Result<(), Stop> {
        let cannot = |error: std::io::Error| Fatal::new("cannot start the broker").because(error);
        let program = std::env::current_exe().map_err(cannot)?;
        let log = File::create(self.log_file()).map_err(cannot)?;
        let mut command = Command::new(program);
        command
            .args(["init", "--local", "--instance-name", "demo", "--state-dir"])
            .arg(self.dir.join("state"))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for the demo, which then stops the broker in order.
            .process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(belongs_to_another_broker) {
                command.env_remove(name);
            }
        }
        command
            .env("RELAY_BROKER_API_KEY", &self.key)
            .env("AGENT_RELAY_BROKER_LOG", "stderr")
            .env("XDG_DATA_HOME", self.dir.join("data"))
            .env("XDG_STATE_HOME", self.dir.join("log"));
        let broker = self.broker.insert(command.spawn().map_err(cannot)?);
        let stdout = broker.stdout.take();
        let line = self.first_line(stdout, signals)?;
        self.url = address(&line)
            .ok_or_else(|| Fatal::new(format!("the broker's first line is not its address: {line:?}")))?
            .to_string();
        let deadline = Instant::now() + READY;
        while self.call(self.http.get(format!("{}/api/session", self.url)).header("X-API-Key", &self.key).call())?.0
            != 200
        {
            signals.check()?;
            self.check_alive()?;
            if Instant::now() > deadline {
                return Err(self.failed(&format!("the broker is not ready after {} s", READY.as_secs())).into());
            }
            std::thread::sleep(TURN / 4);
        }
        Ok(())
    }

    fn first_line(&mut self, stdout: Option<ChildStdout>, signals: &mut Signals) -> Result<String, Stop> {
        let mut stdout = stdout.ok_or_else(|| Fatal::new("the broker has no stdout"))?;
        let deadline = Instant::now() + LISTENING;
        let mut text = Vec::new();
        let turn = Timespec { tv_sec: 0, tv_nsec: TURN.subsec_nanos().into() };
        loop {
            signals.check()?;
            let mut readable = [PollFd::new(&stdout, PollFlags::IN)];
            // An interrupted poll is a turn like any other.
            if poll(&mut readable, Some(&turn)).unwrap_or(0) > 0 {
                let mut bytes = [0; 512];
                let n = stdout
                    .read(&mut bytes)
                    .map_err(|error| self.failed("cannot read from the broker").because(error))?;
                text.extend_from_slice(&bytes[..n]);
                if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    return Ok(String::from_utf8_lossy(&text[..end]).into_owned());
                }
                if n == 0 {
                    return Err(self.failed("the broker ended before it was ready").into());
                }
            }
            if Instant::now() > deadline {
                return Err(self.failed(&format!("the broker does not listen after {} s", LISTENING.as_secs())).into());
            }
        }
    }

    /// # Errors
    /// The broker has ended.
    fn check_alive(&mut self) -> Result<(), Fatal> {
        let ended = self.broker.as_mut().and_then(|broker| broker.try_wait().ok().flatten());
        match ended {
            Some(status) => Err(self.failed(&format!("the broker has ended ({status})"))),
            None => Ok(()),
        }
    }

    fn failed(&self, what: &str) -> Fatal {
        Fatal::new(what).because(self.last_words())
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("broker.log")
    }

    /// The end of the broker's log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut last: VecDeque<&str> = log.lines().rev().take(LAST_LINES).collect();
        last.make_contiguous().reverse();
        format!("the end of the broker's log:\n{}", Vec::from(last).join("\n"))
    }

    /// `GET path` of the local API.
    ///
    /// # Errors
    /// No answer, or another status than 200.
    pub fn get(&self, path: &str) -> Result<Value, Fatal> {
        let request = self.http.get(format!("{}{path}", self.url)).header("X-API-Key", &self.key);
        self.ok("GET", path, request.call())
    }

    /// `POST path` of the local API.
    ///
    /// # Errors
    /// No answer, or another status than 200.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Fatal> {
        let request = self.http.post(format!("{}{path}", self.url)).header("X-API-Key", &self.key);
        self.ok("POST", path, request.send_json(body))
    }

    fn ok(&self, method: &str, path: &str, answer: Answer) -> Result<Value, Fatal> {
        match self.call(answer)? {
            (200, text) => serde_json::from_str(&text)
                .map_err(|error| Fatal::new(format!("{method} {path}: the answer is not JSON")).because(error)),
            (status, text) => Err(self.failed(&format!("{method} {path}: HTTP {status}: {text}"))),
        }
    }

    fn call(&self, answer: Answer) -> Result<(u16, String), Fatal> {
        let broken = |error: ureq::Error| self.failed("the broker's API does not answer").because(error);
        let mut answer = answer.map_err(broken)?;
        let text = answer.body_mut().read_to_string().map_err(broken)?;
        Ok((answer.status().as_u16(), text))
    }

    /// Opens the event socket.
    ///
    /// # Errors
    /// The handshake's.
    pub fn events(&self) -> Result<Feed, Fatal> {
        let cannot =
            |error: &dyn std::fmt::Display| self.failed("cannot open the broker's event socket").because(error);
        let authority = self.url.trim_start_matches("http://");
        let stream = TcpStream::connect(authority).map_err(|error| cannot(&error))?;
        let deadlines = stream.set_read_timeout(Some(CALL)).and_then(|()| stream.set_write_timeout(Some(CALL)));
        deadlines.map_err(|error| cannot(&error))?;
        let mut request =
            format!("ws://{authority}/ws?sinceSeq=0").into_client_request().map_err(|error| cannot(&error))?;
        let key = HeaderValue::from_str(&self.key).map_err(|error| cannot(&error))?;
        request.headers_mut().insert("X-API-Key", key);
        let (socket, _) = tungstenite::client(request, stream).map_err(|error| cannot(&error))?;
        socket.get_ref().set_read_timeout(Some(TURN)).map_err(|error| cannot(&error))?;
        Ok(Feed(socket))
    }

    /// Stops the broker and removes the directory. Repeating it does nothing.
    pub fn close(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            let asked =
                rustix::process::kill_process(rustix::process::Pid::from_child(&broker), rustix::process::Signal::TERM);
            let deadline = Instant::now() + STOP;
            while asked.is_ok() && matches!(broker.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(TURN / 10);
            }
            // Both fail only when it has ended already.
            let _ = broker.kill();
            let _ = broker.wait();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.close();
    }
}

type Answer = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

/// The demo must neither use the account of another broker nor send its loopback calls through a proxy.
fn belongs_to_another_broker(variable: &str) -> bool {
    let variable = variable.to_ascii_uppercase();
    variable.starts_with("RELAY") || variable.starts_with("AGENT_RELAY_") || variable.ends_with("_PROXY")
}

/// Nothing came in time, or a signal did.
fn is_a_turn(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The address in `[agent-relay] API listening on http://…`.
fn address(line: &str) -> Option<&str> {
    let url = line.split_once("API listening on ")?.1.trim();
    url.starts_with("http://").then_some(url)
}

/// The broker's events, as they happen.
pub struct Feed(WebSocket<TcpStream>);

impl Feed {
    /// The next event, or `None` after a turn without one. Kinds that the ledger does not count are no events.
    ///
    /// # Errors
    /// The broker has ended or closed the socket.
    pub fn next(&mut self, stage: &mut Stage) -> Result<Option<Event>, Fatal> {
        match self.0.read() {
            Ok(Message::Text(text)) => Ok(event_of(&text)),
            Ok(_) => Ok(None),
            Err(tungstenite::Error::Io(error)) if is_a_turn(error.kind()) => {
                stage.check_alive()?;
                Ok(None)
            }
            Err(error) => {
                stage.check_alive()?;
                Err(stage.failed("the broker closed its event socket").because(error))
            }
        }
    }
}

/// Picks the kinds that the ledger counts. By hand: the derived reader of all kinds is 0.2 MB of code, for this one caller.
fn event_of(text: &str) -> Option<Event> {
    let value: Value = serde_json::from_str(text).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_string);
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let name = text("name")?;
    Some(match value.get("kind")?.as_str()? {
        "delivery_queued" => Event::DeliveryQueued {
            name,
            delivery_id: text("delivery_id"),
            event_id: text("event_id")?,
            timestamp: number("timestamp"),
            from: text("from"),
            target: text("target"),
            reason: text("reason"),
        },
        "delivery_injected" => Event::DeliveryInjected {
            name,
            delivery_id: text("delivery_id")?,
            event_id: text("event_id")?,
            timestamp: number("timestamp")?,
        },
        "delivery_read" => Event::DeliveryRead {
            name,
            delivery_id: text("delivery_id")?,
            event_id: text("event_id")?,
            timestamp: number("timestamp")?,
        },
        "delivery_acked" => {
            Event::DeliveryAcked { name, up_to_seq: number("up_to_seq")?, timestamp: number("timestamp")? }
        }
        "worker_stream" => Event::WorkerStream {
            name,
            stream: text("stream")?,
            chunk: text("chunk")?,
            offset: number("offset").unwrap_or_default(),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_that_the_ledger_counts_are_read_as_they_were_written() {
        let ids = || ("bob".to_string(), "del_1".to_string(), "msg_1".to_string());
        let (name, delivery_id, event_id) = ids();
        let injected = Event::DeliveryInjected { name, delivery_id, event_id, timestamp: 7 };
        let (name, delivery_id, event_id) = ids();
        let read = Event::DeliveryRead { name, delivery_id, event_id, timestamp: 8 };
        let stream = ("bob".to_string(), "stdout".to_string(), "text\n".to_string());
        let known = [
            Event::queued("bob", "del_1", "msg_1", 5),
            Event::held("bob", "msg_1", "al", "#general"),
            injected,
            read,
            Event::DeliveryAcked { name: "bob".into(), up_to_seq: 3, timestamp: 9 },
            Event::WorkerStream { name: stream.0, stream: stream.1, chunk: stream.2, offset: 12 },
        ];
        for event in known {
            let text = serde_json::to_string(&event).expect("JSON");
            assert_eq!(event_of(&text), Some(event), "{text}");
        }
        assert_eq!(event_of(r#"{"kind":"agent_released","name":"bob"}"#), None);
        assert_eq!(event_of("nonsense"), None);
    }

    #[test]
    fn the_address_is_read_from_the_first_line() {
        assert_eq!(address("[agent-relay] API listening on http://127.0.0.1:4001"), Some("http://127.0.0.1:4001"));
        assert_eq!(address("[agent-relay] ready"), None);
        assert_eq!(address("API listening on nowhere"), None);
    }

    #[test]
    fn the_environment_of_another_broker_stays_out() {
        for name in ["RELAY_API_KEY", "RELAYCAST_BASE_URL", "AGENT_RELAY_WORKSPACE_KEY", "http_proxy", "ALL_PROXY"] {
            assert!(belongs_to_another_broker(name), "{name}");
        }
        for name in ["HOME", "PATH", "RUST_LOG", "TERM"] {
            assert!(!belongs_to_another_broker(name), "{name}");
        }
    }

    #[test]
    fn a_dropped_stage_leaves_no_directory() {
        let stage = Stage::open().expect("a directory");
        let file = stage.write("x", "secret").expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().expect("it exists").permissions());
        assert_eq!(mode & 0o777, 0o600);
        let dir = stage.dir.clone();
        drop(stage);
        assert!(!dir.exists());
    }
}
