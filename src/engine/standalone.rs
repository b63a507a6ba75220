//! A registration outside a running broker: for `mcp-args --register`.

use std::time::{Duration, Instant};

use super::calls::is_conflict;
use super::client::{Call, Client};
use super::policy::{Class, Repeat};
use crate::core::ports::Secret;
use crate::wire::engine::{AgentMetadata, AgentRow, RegisterAgent};

/// The whole of it, repeats and the rotation included.
const LIMIT: Duration = Duration::from_secs(10);

impl Client {
    /// Registers an agent, or rotates the token of the one that has the name.
    ///
    /// # Errors
    /// One line that begins with the class of the failure, as callers of `mcp-args` read it: `register transport error:`,
    /// `register auth error:`, `register failed:` or `register timed out after 10s`.
    pub fn token_for(&self, key: &Secret, name: &str, family: &str, url: &str) -> Result<Secret, String> {
        let deadline = Instant::now() + LIMIT;
        let body = RegisterAgent {
            name: name.into(),
            kind: "agent".into(),
            metadata: Some(AgentMetadata { cli: family.into() }),
        };
        let call = Call::new("POST /v1/agents", "/v1/agents".into(), Class::Agent, Repeat::Always);
        let call = Call { attempts: 3, sits_out_limits: false, ..call.bearer(key).body(&body) };
        let outcome = match self.call(&call, deadline) {
            Ok(data) => Ok(AgentRow::from_data(&data).and_then(|row| row.token).map(Secret::new)),
            Err(failed) if is_conflict(&failed.error) => self.rotate_token(key, name, deadline).map(Some),
            Err(failed) => Err(failed),
        };
        let error = match outcome {
            Ok(Some(token)) => return Ok(token),
            Ok(None) => return Err(format!("register failed: the engine registered '{name}' without a token")),
            Err(failed) => failed.error,
        };
        let refused =
            || format!("registration failed for '{name}' ({}): {} (code: {})", error.status, error.message, error.code);
        Err(match error.status {
            0 if Instant::now() >= deadline => {
                format!("register timed out after {}s: deadline has elapsed", LIMIT.as_secs())
            }
            0 => format!(
                "register transport error: HTTP error: error sending request for url ({url}/v1/agents): {}",
                error.message
            ),
            401 | 403 => format!("register auth error: {}", refused()),
            429 => {
                let wait = error.retry_after_ms.unwrap_or(60_000).div_ceil(1000);
                format!("register failed: registration for '{name}' was rate-limited; retry after {wait}s")
            }
            500.. => format!("register transport error: Invalid response: Max retries exceeded: {}", refused()),
            _ => format!("register failed: {}", refused()),
        })
    }
}
