//! What is done when the engine refuses the socket, the token, or the node that registers.

use log::Level;
use serde_json::Value;

use super::LinkState;
use crate::core::ports::{EngineCall, EngineError, Ms, Refusal, Secret};
use crate::core::{Awaited, Broker};

/// Refused tokens in a row that are answered by a new one.
const MINTS_MAX: u32 = 5;
const REJECTED_RETRY_MS: Ms = 300_000;
const PINNED_RETRY_MS: Ms = 30_000;

impl Broker {
    pub(super) fn on_refused(&mut self, why: Refusal) {
        self.link.open = false;
        match why {
            Refusal::Unauthorized => self.on_unauthorized(),
            Refusal::Status(status) => {
                self.retry_later(&format!("the engine answered HTTP {status} to the node socket"))
            }
            Refusal::Io(error) => self.retry_later(&error),
        }
    }

    pub(super) fn retry_later(&mut self, error: &str) {
        self.link.last_error = Some(error.to_string());
        let delay = self.backoff();
        self.log(Level::Warn, format!("node link: {error}; next try in {:.1} s", delay as f64 / 1000.0));
        self.reconnect_in(delay);
    }

    fn on_unauthorized(&mut self) {
        self.link.refused += 1;
        self.link.last_error = Some("the engine refused the node token (401)".into());
        if self.config.token_pinned {
            self.reject(
                PINNED_RETRY_MS,
                "the engine refuses the token in RELAY_NODE_TOKEN (401); correct that variable",
            );
            self.reconnect_in(PINNED_RETRY_MS);
            return;
        }
        if self.link.refused > MINTS_MAX {
            self.reject(REJECTED_RETRY_MS, "the engine refuses every node token (401); check the workspace key");
            self.link.mint_first = true;
            self.reconnect_in(REJECTED_RETRY_MS);
            return;
        }
        self.mint_token();
        let delay = self.backoff();
        self.log(Level::Warn, format!("node link: token refused (401), minting another; next try in {delay} ms"));
        self.reconnect_in(delay);
    }

    fn reject(&mut self, retry_ms: Ms, what: &str) {
        let first = self.link.state != LinkState::AuthRejected;
        self.link.state = LinkState::AuthRejected;
        self.link.last_error = Some(what.to_string());
        if first {
            self.log(Level::Error, format!("{what}; retrying every {} s", retry_ms / 1000));
        }
    }

    /// One at a time, so that there is one for each step of the back-off.
    pub(super) fn mint_token(&mut self) {
        if !std::mem::replace(&mut self.link.minting, true) {
            let node_name = self.link.known_name().to_string();
            self.call_engine(EngineCall::MintNodeToken { node_name }, Awaited::MintToken);
        }
    }

    pub(in crate::core) fn on_token_minted(&mut self, outcome: Result<Value, EngineError>) {
        self.link.minting = false;
        let waits = std::mem::take(&mut self.link.waits_for_mint);
        let failed = outcome.is_err();
        match outcome {
            Ok(data) => {
                if let Some(token) = data.get("token").and_then(Value::as_str) {
                    self.link.token = Secret::new(token);
                }
            }
            Err(error) => self.log(Level::Error, format!("minting a node token failed: {error}")),
        }
        if !waits {
            return;
        }
        if failed {
            // A step of the ladder like any other, or the next round of the slow one.
            self.link.mint_first = self.link.state == LinkState::AuthRejected;
            let delay = if self.link.mint_first { REJECTED_RETRY_MS } else { self.backoff() };
            self.reconnect_in(delay);
        } else {
            self.connect();
        }
    }

    pub(super) fn on_register_refused(&mut self, code: &str, message: &str) {
        if self.stopping.is_some() {
            // The connection is being closed; no other one follows that a new token or name would serve.
            return;
        }
        if self.take_back_manifest(code, message) {
            return;
        }
        let text = format!("node.register refused: {code}: {message}");
        self.link.registered = false;
        if self.link.state == LinkState::Online {
            self.link.state = LinkState::Connecting;
        }
        self.link.last_error = Some(text.clone());
        self.log(Level::Error, text);
        if code == "node_name_conflict" && !self.link.renamed {
            self.link.renamed = true;
            let suffix: String = self.config.node_id.trim_start_matches("node_").chars().take(8).collect();
            self.link.name = format!("{}-{suffix}", self.link.name);
            self.send_register();
            return;
        }
        let again = std::mem::replace(&mut self.link.identity_refused, true);
        let delay = if again || self.config.token_pinned {
            let retry = if self.config.token_pinned { PINNED_RETRY_MS } else { REJECTED_RETRY_MS };
            self.reject(retry, &format!("the engine refuses this node ({code}): {message}"));
            retry
        } else {
            self.mint_token();
            self.backoff()
        };
        self.reconnect_in(delay);
        self.close_socket();
    }
}
