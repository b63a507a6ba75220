//! The client: one logical call is up to four attempts within one deadline.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::own_token::OwnToken;
use super::policy::{ATTEMPTS, Class, Ending, Pauses, Repeat, pause_before_repeat};
use super::transport::{Request, Transport};
use crate::core::ports::{EngineError, Secret, WorkspaceNo};
use crate::sys::ids;
use crate::wire::engine::open_envelope;

/// The whole of one attempt, from the name look-up to the last byte of the answer.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// What a client is made of.
#[derive(Clone)]
pub struct Settings {
    /// The engine's base URL.
    pub base_url: String,
    /// The broker's version, `9.1.6`.
    pub version: String,
    /// Limit of a message post with all its repeats (20 s unless the environment says otherwise).
    pub send_limit: Duration,
    /// TLS roots instead of the bundled and system ones.
    pub trust: Option<Arc<rustls::ClientConfig>>,
}

impl Settings {
    pub fn new(base_url: &str, version: &str) -> Settings {
        Settings {
            base_url: base_url.into(),
            version: version.into(),
            send_limit: Duration::from_secs(20),
            trust: None,
        }
    }
}

/// Who the broker became at its start: what [`Client::perform`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The broker's own agents, in the order of the workspaces.
    pub own: Vec<OwnAgent>,
    /// Whose workspace agents and node belong to.
    pub home: WorkspaceNo,
    pub node_id: String,
}

/// The broker's own agent in one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAgent {
    pub workspace_key: Secret,
    pub name: String,
    pub token: Secret,
}

/// The client of one engine.
pub struct Client {
    transport: Transport,
    pub(super) version: String,
    pub(super) send_limit: Duration,
    pauses: Mutex<Pauses>,
    /// With the current tokens of its agents.
    enrolment: OnceLock<(Enrolment, Vec<OwnToken>)>,
    stopped: Mutex<bool>,
    stop_signal: Condvar,
}

/// One logical call.
pub(super) struct Call<'a> {
    /// Method and path with placeholders, for errors: `POST /v1/agents`.
    pub name: &'static str,
    pub path: String,
    pub bearer: Option<&'a Secret>,
    pub body: Option<Vec<u8>>,
    pub idempotency_key: Option<&'a str>,
    pub class: Class,
    pub repeat: Repeat,
    pub attempts: u32,
    /// Whether a rate limit that says how long it lasts is waited out; otherwise it is the answer.
    pub sits_out_limits: bool,
}

impl<'a> Call<'a> {
    /// A call with the usual number of attempts. The method is the first word of `name`.
    pub fn new(name: &'static str, path: String, class: Class, repeat: Repeat) -> Call<'a> {
        Call {
            name,
            path,
            bearer: None,
            body: None,
            idempotency_key: None,
            class,
            repeat,
            attempts: ATTEMPTS,
            sits_out_limits: true,
        }
    }

    pub fn bearer(self, bearer: &'a Secret) -> Call<'a> {
        Call { bearer: Some(bearer), ..self }
    }

    pub fn body(self, body: &impl serde::Serialize) -> Call<'a> {
        Call { body: Some(super::transport::json_body(body)), ..self }
    }
}

/// A failed call of the start, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// Method and path with placeholders.
    pub call: &'static str,
    pub error: EngineError,
    /// An earlier attempt went without an answer: it may have been carried out.
    pub unclear: bool,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.call, self.error)
    }
}

impl std::error::Error for CallError {}

/// An error without an HTTP answer.
pub(super) fn no_answer(code: &str, message: impl Into<String>) -> EngineError {
    EngineError { status: 0, code: code.into(), message: message.into(), retry_after_ms: None }
}

fn not_enrolled() -> EngineError {
    no_answer("not_enrolled", "the broker is not enrolled yet")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// # Errors
    /// In words, when the base is no usable URL.
    pub fn new(settings: Settings) -> Result<Client, String> {
        Ok(Client {
            transport: Transport::new(&settings.base_url, &settings.version, settings.trust)?,
            version: settings.version,
            send_limit: settings.send_limit,
            pauses: Mutex::default(),
            enrolment: OnceLock::new(),
            stopped: Mutex::new(false),
            stop_signal: Condvar::new(),
        })
    }

    /// Ends the start: from here on [`Client::perform`] works. Only the first call counts.
    pub fn enrol(&self, enrolment: Enrolment) {
        let tokens = enrolment.own.iter().map(|own| OwnToken::new(own.token.clone())).collect();
        let _ = self.enrolment.set((enrolment, tokens));
    }

    pub(super) fn enrolment(&self) -> Result<&Enrolment, EngineError> {
        self.enrolment.get().map(|(enrolment, _)| enrolment).ok_or_else(not_enrolled)
    }

    /// The broker's own agent in a workspace, and its current token.
    pub(super) fn own(&self, workspace: WorkspaceNo) -> Result<(&OwnAgent, &OwnToken), EngineError> {
        let (enrolment, tokens) = self.enrolment.get().ok_or_else(not_enrolled)?;
        enrolment.own.get(workspace).zip(tokens.get(workspace)).ok_or_else(not_enrolled)
    }

    /// The token of the broker's own agent in a workspace, which may have been rotated since the start.
    ///
    /// # Errors
    /// It has none there.
    pub fn own_token(&self, workspace: WorkspaceNo) -> Result<Secret, EngineError> {
        Ok(self.own(workspace)?.1.get())
    }

    /// Breaks off every call, under way or waiting; later ones fail at once.
    pub fn shut_down(&self) {
        *lock(&self.stopped) = true;
        self.stop_signal.notify_all();
        self.transport.shut_down();
    }

    /// Makes a call, with repeats, up to `deadline`.
    pub(super) fn call(&self, call: &Call<'_>, deadline: Instant) -> Result<Value, CallError> {
        let mut unclear = false;
        let fail = |error: EngineError, unclear: bool| Err(CallError { call: call.name, error, unclear });
        let key = key_of(call.bearer);
        let mut last: Option<EngineError> = None;
        let mut attempt = 0;
        loop {
            attempt += 1;
            if let Some(left) = { lock(&self.pauses).left(call.class, key, Instant::now()) }
                && !self.sleep(left, deadline)
            {
                return fail(last.unwrap_or_else(|| limited(left)), unclear);
            }
            if *lock(&self.stopped) {
                return fail(last.unwrap_or_else(|| no_answer("transport", "the broker is stopping")), unclear);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return fail(last.unwrap_or_else(|| no_answer("transport", "no answer in time")), unclear);
            }
            let request = Request {
                post: call.name.starts_with("POST "),
                path: &call.path,
                bearer: call.bearer,
                body: call.body.as_deref(),
                idempotency_key: call.idempotency_key,
            };
            let (ending, error) = match self.transport.send(&request, left.min(ATTEMPT_LIMIT)) {
                Err(lost) => {
                    unclear |= !lost.unsent;
                    let ending = if lost.unsent { Ending::Unsent } else { Ending::NoAnswer };
                    (ending, no_answer("transport", lost.words))
                }
                Ok(answer) => match open_envelope(answer.status, &answer.body) {
                    Ok(data) => return Ok(data),
                    Err(refused) => {
                        let error = EngineError {
                            status: answer.status,
                            code: refused.code,
                            message: refused.message,
                            retry_after_ms: answer.retry_after.map(|wait| wait.as_millis() as u64),
                        };
                        let ending = match (answer.status, error.code.as_str()) {
                            (409, "idempotency_in_progress") => Ending::InProgress,
                            (429, _) if !call.sits_out_limits => Ending::Status { status: 429, retry_after: None },
                            (status, _) => Ending::Status { status, retry_after: answer.retry_after },
                        };
                        if answer.status == 429 {
                            lock(&self.pauses).impose(call.class, key, answer.retry_after, Instant::now());
                        }
                        // The engine may have stored something before it failed.
                        unclear |= answer.status >= 500;
                        (ending, error)
                    }
                },
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = pause_before_repeat(ending, call.repeat, attempt, call.attempts, left, jitter());
            log::debug!(
                "{} attempt {attempt}: {error}; {}",
                call.name,
                match pause {
                    Some(pause) => format!("again in {} ms", pause.as_millis()),
                    None => "given up".into(),
                }
            );
            match pause {
                Some(pause) if self.sleep(pause, deadline) => last = Some(error),
                _ => return fail(error, unclear),
            }
        }
    }

    /// Waits for `time`; `false` when the deadline would pass or the client is shut down.
    fn sleep(&self, time: Duration, deadline: Instant) -> bool {
        let until = Instant::now() + time;
        if until >= deadline {
            return false;
        }
        let mut stopped = lock(&self.stopped);
        while !*stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            stopped = self.stop_signal.wait_timeout(stopped, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

fn limited(left: Duration) -> EngineError {
    EngineError {
        status: 429,
        code: "rate_limit_exceeded".into(),
        message: format!("the engine's rate limit holds for another {} s", left.as_secs() + 1),
        retry_after_ms: Some(left.as_millis() as u64),
    }
}

/// Tells tokens apart without keeping them.
fn key_of(bearer: Option<&Secret>) -> u64 {
    let mut hasher = DefaultHasher::new();
    bearer.map(Secret::expose).hash(&mut hasher);
    hasher.finish()
}

fn jitter() -> f64 {
    f64::from(u16::from_le_bytes(ids::random_bytes::<2>())) / f64::from(u16::MAX)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        assert_ne!(key_of(Some(&Secret::new("a"))), key_of(Some(&Secret::new("b"))));
        assert_ne!(key_of(Some(&Secret::new("a"))), key_of(None));
    }
}
