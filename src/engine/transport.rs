//! One HTTP exchange with the engine: an attempt with a time limit, an answer or the reason why there is none.
//!
//! [`crate::sys::outgoing`] carries it.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::Value;
use ureq::http::{HeaderValue, Method, Uri};

use super::retry_after;
use crate::core::ports::Secret;
use crate::sys::outgoing;

pub use outgoing::Lost;

const BODY_LIMIT: u64 = 16 << 20;

/// One request. `path` starts with `/v1/`; its variable segments are encoded already.
#[derive(Debug)]
pub struct Request<'a> {
    pub post: bool,
    pub path: &'a str,
    pub bearer: Option<&'a Secret>,
    /// `None`: neither a body nor a content type.
    pub body: Option<&'a [u8]>,
    pub idempotency_key: Option<&'a str>,
}

/// What the engine answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

/// The way to one engine. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Transport {
    agent: ureq::Agent,
    base: String,
    version: String,
}

impl Transport {
    /// `base` is the engine's URL; trailing slashes are stripped, a path is kept. Proxies are taken from the environment
    /// unless the engine is on this machine.
    ///
    /// # Errors
    /// In words, when the base is no `http` or `https` URL with a host.
    pub fn new(base: &str, version: &str, trust: Option<Arc<ClientConfig>>) -> Result<Transport, String> {
        let base = base.trim().trim_end_matches('/').to_string();
        let uri: Uri = base.parse().map_err(|_| format!("engine base URL {base:?} is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(format!("engine base URL {base:?} must start with http:// or https:// and name a host"));
        }
        let local = outgoing::is_local(uri.host().unwrap_or_default());
        Ok(Transport {
            agent: outgoing::client(local, &format!("agent-relay-broker/{version}"), trust),
            base,
            version: version.to_string(),
        })
    }

    /// One attempt, over within `limit` whatever the peer does.
    ///
    /// # Errors
    /// [`Lost`] when no whole answer came.
    pub fn send(&self, request: &Request<'_>, limit: Duration) -> Result<Answer, Lost> {
        let never_sent = |words: String| Lost { unsent: true, words };
        let mut builder = ureq::http::Request::builder()
            .method(if request.post { Method::POST } else { Method::GET })
            .uri(format!("{}{}", self.base, request.path))
            .header("X-SDK-Version", &self.version)
            .header("X-Relaycast-Origin-Client", "agent-relay-broker")
            .header("X-Relaycast-Origin-Version", &self.version);
        if let Some(bearer) = request.bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose().trim()))
                .map_err(|_| never_sent("the token holds characters that no header can carry".into()))?;
            value.set_sensitive(true);
            builder = builder.header("Authorization", value).header("X-Relaycast-Origin-Actor", "agent-relay-cli/cli");
        }
        if let Some(key) = request.idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        if request.body.is_some() {
            builder = builder.header("Content-Type", "application/json");
        }
        let answer = if request.post {
            // A POST without a body says so with a length of 0; ureq would announce chunks otherwise.
            builder.body(request.body.unwrap_or_default()).map_err(ureq::Error::from).and_then(|built| {
                self.agent.run(self.agent.configure_request(built).timeout_global(Some(limit)).build())
            })
        } else {
            builder.body(()).map_err(ureq::Error::from).and_then(|built| {
                self.agent.run(self.agent.configure_request(built).timeout_global(Some(limit)).build())
            })
        };
        let answer = answer.map_err(outgoing::lost)?;
        let status = answer.status().as_u16();
        let now = crate::sys::clock::unix_ms() / 1000;
        let retry_after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| retry_after::parse(text, now));
        let body = answer.into_body().into_with_config().limit(BODY_LIMIT).read_to_vec();
        // The head came, so the engine has the request; a body that broke off is no answer.
        let body = body.map_err(|error| Lost { unsent: false, ..outgoing::lost(error) })?;
        Ok(Answer { status, retry_after, body })
    }

    /// Breaks off what is under way, from another thread; later requests fail at once.
    pub fn shut_down(&self) {
        self.agent.clone().shutdown();
    }
}

/// A JSON value as the bytes of a body.
pub fn json_body(value: &impl serde::Serialize) -> Vec<u8> {
    // Bodies are structs of text: nothing in them can fail.
    serde_json::to_vec(value).unwrap_or_else(|_| Value::Null.to_string().into_bytes())
}
