//! An agent that is a session of a server which runs already: its messages are requests, and nothing is started or ended.
//!
//! The calls are made on a thread of their own (`app-call`), so that an end that cannot wait does not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rustix::event::{PollFd, PollFlags};
use serde_json::json;
use ureq::http::{HeaderValue, Method, Uri};

use super::picture::base64;
use super::{Life, RELEASE_LOOK, pump};
use crate::core::ports::{AgentCommand, AgentNote, AppServer, Injection, ReleasePolicy, ServerAuth};
use crate::http::encode_segment;
use crate::sys::{outgoing, threads};

/// One call, whatever the server does.
const CALL: Duration = Duration::from_secs(30);
/// For an end that cannot wait any longer.
const HASTE: Duration = Duration::from_secs(2);
/// More of an answer is not read; so much of it is shown in a reason.
const ANSWER: u64 = 64 << 10;
const SHOWN: usize = 2 << 10;

/// Why a call was not carried out.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Nothing of it can have reached the server.
    pub unsent: bool,
    pub reason: String,
}

/// The way to one session. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    client: ureq::Agent,
    /// Up to the session's id.
    base: String,
    authorization: Option<HeaderValue>,
}

impl Session {
    /// # Errors
    /// In words, when the server's settings cannot be used.
    pub fn new(server: &AppServer) -> Result<Session, String> {
        let endpoint = server.endpoint.trim().trim_end_matches('/');
        let uri: Uri = endpoint.parse().map_err(|_| format!("app_server endpoint '{endpoint}' is not a URL"))?;
        let authorization = match &server.auth {
            None | Some(ServerAuth::None) => None,
            Some(ServerAuth::Bearer { token }) => Some(format!("Bearer {}", token.expose().trim())),
            Some(ServerAuth::Basic { username, password }) => {
                Some(format!("Basic {}", base64(format!("{username}:{}", password.expose()).as_bytes())))
            }
        };
        let authorization = authorization.map(|text| HeaderValue::from_str(&text)).transpose();
        let mut authorization =
            authorization.map_err(|_| "the app_server auth holds characters that no header can carry")?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        Ok(Session {
            client: outgoing::client(outgoing::is_local(uri.host().unwrap_or_default()), "agent-relay-broker", None),
            base: format!("{endpoint}/session/{}", encode_segment(&server.session_id)),
            authorization,
        })
    }

    /// Gives the session a message.
    ///
    /// # Errors
    /// [`Failure`]; after one that is not `unsent` the server may have it.
    pub fn prompt(&self, from: &str, target: &str, body: &str) -> Result<(), Failure> {
        let target = if target.trim().is_empty() { "agent" } else { target };
        let text = format!("Relay message from {from} to {target}:\n\n{body}");
        let body = json!({"parts": [{"type": "text", "text": text}]}).to_string();
        self.call(Method::POST, "/prompt_async", Some(body))
    }

    /// Does with the session what was asked for at its agent's end.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn release(&self, policy: ReleasePolicy) -> Result<(), Failure> {
        match policy {
            ReleasePolicy::Detach => Ok(()),
            ReleasePolicy::Abort => self.call(Method::POST, "/abort", None),
            ReleasePolicy::Delete => self.call(Method::DELETE, "", None),
        }
    }

    /// Breaks off what is under way, from another thread.
    pub fn break_off(&self) {
        self.client.clone().shutdown();
    }

    fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<(), Failure> {
        let failed = |unsent, why: &str| Failure { unsent, reason: format!("app-server request failed{why}") };
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(value) = &self.authorization {
            request = request.header("Authorization", value);
        }
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let request = request.body(body.unwrap_or_default()).map_err(|error| failed(true, &format!(": {error}")))?;
        let request = self.client.configure_request(request).timeout_global(Some(CALL)).build();
        let answer = self.client.run(request).map_err(|error| {
            let lost = outgoing::lost(error);
            failed(lost.unsent, &format!(": {}", lost.words))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = answer.into_body().into_with_config().limit(ANSWER).lossy_utf8(true).read_to_string();
        let mut text = text.unwrap_or_default();
        let end = (0..=SHOWN.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        let words = status.canonical_reason().unwrap_or_default();
        Err(failed(false, &format!(" with status {} {words}: {}", status.as_u16(), text.trim())))
    }
}

impl Life<'_> {
    /// The whole life.
    pub(super) fn serve_app_server(self, server: &AppServer) {
        let session = match Session::new(server) {
            Ok(session) => session,
            Err(error) => return (self.tell)(AgentNote::Refused { error }),
        };
        (self.tell)(AgentNote::Prepared);
        let mut early = VecDeque::new();
        if self.wait_for_start(&mut early).is_some() {
            (self.tell)(AgentNote::Serving { pid: server.host_pid });
            (self.tell)(AgentNote::Ready);
            self.take_messages(&session, &mut early);
            threads::doing("releasing its session");
            // Nobody waits for a call any more when all has to end at once.
            let policy = if self.mailbox.kill_wanted() { ReleasePolicy::Detach } else { server.release };
            if let Err(failure) = self.aside_of(&session, move |session| session.release(policy)) {
                let code = "app_server_release_failed";
                (self.tell)(AgentNote::Trouble { code, message: failure.reason });
            }
        }
        early.into_iter().for_each(|command: Box<AgentCommand>| pump::refuse(self.tell, *command, "released"));
        self.mailbox.drain().for_each(|command| pump::refuse(self.tell, *command, "released"));
        (self.tell)(AgentNote::Exited { code: None, signal: None });
    }

    /// Until the release.
    fn take_messages(&self, session: &Session, early: &mut VecDeque<Box<AgentCommand>>) {
        let mut held = false;
        while !self.mailbox.release_wanted() {
            threads::doing("waiting for a message");
            while let Some(command) = early.pop_front().or_else(|| self.mailbox.next()) {
                match *command {
                    AgentCommand::Hold(wanted) => held = wanted,
                    AgentCommand::Inject(injection) if held && !injection.exempt => {
                        (self.tell)(AgentNote::GivenBack { delivery_id: injection.delivery_id });
                    }
                    AgentCommand::Inject(injection) => self.give(session, injection),
                    command => pump::refuse(self.tell, command, "the agent has no terminal"),
                }
                if self.mailbox.release_wanted() {
                    return;
                }
            }
            // Without a time limit on purpose: until somebody writes there is nothing to do.
            let _ = rustix::event::poll(&mut [PollFd::new(self.mailbox.wake_fd(), PollFlags::IN)], None);
            self.mailbox.clear_wake();
        }
    }

    fn give(&self, session: &Session, injection: Injection) {
        threads::doing("giving its session a message");
        let Injection { delivery_id, from, target, body, .. } = injection;
        let given = self.aside_of(session, move |session| session.prompt(&from, &target, &body));
        (self.tell)(match given {
            Ok(()) => AgentNote::Accepted { delivery_id },
            Err(Failure { unsent: true, reason }) => AgentNote::InjectFailed { delivery_id, error: reason },
            Err(Failure { reason, .. }) => AgentNote::Finished { delivery_id, result: Err(reason) },
        });
    }

    /// Makes a call on another thread. One that is under way when the agent has to end at once is broken off.
    fn aside_of(
        &self,
        session: &Session,
        call: impl FnOnce(&Session) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let failed = |why: String| Failure { unsent: true, reason: format!("app-server request failed: {why}") };
        let (give, take) = crossbeam_channel::bounded(1);
        let own = session.clone();
        let thread = threads::spawn("app-call", move || {
            threads::doing("waiting for a server");
            let _ = give.send(call(&own));
        })
        .map_err(|error| failed(error.to_string()))?;
        let mut hasty_since: Option<Instant> = None;
        let outcome = loop {
            match take.recv_timeout(RELEASE_LOOK) {
                Ok(outcome) => break outcome,
                Err(RecvTimeoutError::Disconnected) => break Err(failed("it panicked".into())),
                Err(RecvTimeoutError::Timeout) if !self.mailbox.kill_wanted() => {}
                Err(RecvTimeoutError::Timeout) => {
                    let since = *hasty_since.get_or_insert_with(Instant::now);
                    session.break_off();
                    if since.elapsed() >= HASTE {
                        // The thread ends with its call's own limit.
                        return Err(Failure { unsent: false, reason: "app-server request failed: broken off".into() });
                    }
                }
            }
        };
        thread.join(Duration::from_secs(1));
        outcome
    }
}
