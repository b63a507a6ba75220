//! Idempotency keys of message posts: remembered 24 h per agent, the answer replayed.
//!
//! A key is reserved when its request arrives and filled in the same step as the effect, so that a repeat meets either
//! `idempotency_in_progress` or the answer, never a second effect.

use sha2::{Digest, Sha256};

use super::rows::{Remembered, Row};
use super::{Call, Engine, Fail};
use crate::sys::ids::hex;

/// How long an answer is remembered.
pub const REMEMBERED_MS: u64 = 24 * 3_600_000;
const LONGEST_KEY: usize = 255;

/// What a key means to a request that arrives.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Never seen: go on, then [`Engine::remember`] or [`Engine::release_key`].
    Fresh,
    /// Answer with this, and with `Idempotency-Replayed: true`.
    Replay(Box<Remembered>),
}

/// What makes two requests the same.
pub fn request_digest(method: &str, path: &str, body: &[u8]) -> String {
    let mut sha = Sha256::new();
    for part in [method.as_bytes(), b"\0", path.as_bytes(), b"\0", body] {
        sha.update(part);
    }
    hex(&sha.finalize())
}

impl Engine {
    /// Reserves `key` for a request.
    ///
    /// # Errors
    /// 400 for a key that is not 1 to 255 visible ASCII characters; 409 `idempotency_in_progress` while the first
    /// request with it is unanswered; 409 `idempotency_key_reused` when it was given to another request.
    pub fn claim_key(&mut self, call: &Call, key: &str, request: &str) -> Result<Claim, Fail> {
        if key.is_empty() || key.len() > LONGEST_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Fail::invalid("Idempotency-Key must be 1 to 255 visible ASCII characters"));
        }
        self.t.forget_answers_before(self.now.unix.saturating_sub(REMEMBERED_MS));
        let slot = (call.agent, key.to_string());
        let reused = || Fail::new(409, "idempotency_key_reused", "This key was given to another request");
        if let Some(known) = self.t.remembered.get(&slot) {
            return if known.request == request { Ok(Claim::Replay(Box::new(known.clone()))) } else { Err(reused()) };
        }
        if let Some(running) = self.in_progress.get(&slot) {
            return Err(if running == request {
                Fail::new(409, "idempotency_in_progress", "The first request with this key is not answered yet")
            } else {
                reused()
            });
        }
        self.in_progress.insert(slot, request.to_string());
        Ok(Claim::Fresh)
    }

    /// Keeps the answer of the request that holds `key`. Only a success is kept: a refused request had no effect.
    pub fn remember(&mut self, call: &Call, key: &str, status: u16, body: serde_json::Value) {
        if let Some(request) = self.in_progress.remove(&(call.agent, key.to_string())) {
            self.put(Row::Remembered(Remembered {
                agent: call.agent,
                key: key.to_string(),
                request,
                status,
                body,
                at: self.now.unix,
            }));
        }
    }

    /// Gives `key` back without an answer.
    pub fn release_key(&mut self, call: &Call, key: &str) {
        self.in_progress.remove(&(call.agent, key.to_string()));
    }
}
