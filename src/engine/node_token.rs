//! The node token: minted by name, so the name is looked up first and the id that comes back is compared.

use std::time::Instant;

use super::calls::usable;
use super::client::{Call, CallError, Client, no_answer, segment};
use super::policy::{Class, Repeat};
use crate::core::ports::Secret;
use crate::wire::engine::{MintNode, NodeRow};

/// Attempts of a mint.
const ATTEMPTS: u32 = 3;

/// The engine has, or answers for, another node than the one that asks.
const MISMATCH: &str = "node_id_mismatch";

/// Who asks for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    pub node_id: String,
    /// The id to try when the engine has the former in another workspace.
    pub fallback_id: Option<String>,
    pub name: String,
}

/// Under which id and name the engine enrolled the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEnrolment {
    pub node_id: String,
    pub name: String,
    pub token: Secret,
}

/// The line that a start without a node token ends with.
pub fn fatal_config(node_id: &str, cause: &str) -> String {
    format!(
        "[agent-relay] FATAL CONFIG: no node token available for node '{node_id}'. Realtime delivery is DISABLED until \
         RELAY_NODE_TOKEN is set or a token can be minted. ({cause})"
    )
}

/// `<name>-<8 digits of the id>`.
fn suffixed(name: &str, node_id: &str) -> String {
    let digits: String = node_id.strip_prefix("node_").unwrap_or(node_id).chars().take(8).collect();
    format!("{name}-{digits}")
}

impl Client {
    /// `GET /v1/nodes/:name`; `None` when the workspace has no node of this name.
    ///
    /// # Errors
    /// The call's.
    pub fn look_up_node(&self, key: &Secret, name: &str, deadline: Instant) -> Result<Option<NodeRow>, CallError> {
        let path = format!("/v1/nodes/{}", segment(name));
        let mut call = Call::new("GET /v1/nodes/:name", path, Class::Node, Repeat::Always).bearer(key);
        call.attempts = ATTEMPTS;
        match self.call(&call, deadline) {
            Ok(data) => Ok(NodeRow::from_data(&data)),
            Err(failed) if failed.error.status == 404 => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// The name under which this node can register: its own, or the one with 8 digits of its id when another node of the
    /// workspace holds it. An engine that does not answer the look-up leaves the name as it is: the mint will tell.
    pub fn node_name_for(&self, key: &Secret, node_id: &str, name: &str, deadline: Instant) -> String {
        match self.look_up_node(key, name, deadline) {
            Ok(Some(row)) if row.id != node_id => {
                let other = suffixed(name, node_id);
                log::warn!("node name '{name}' belongs to {}; using '{other}'", row.id);
                other
            }
            Ok(_) => name.to_string(),
            Err(failed) => {
                log::debug!("node name '{name}' could not be looked up: {failed}");
                name.to_string()
            }
        }
    }

    /// Mints a token for the start: look-up by name, mint, comparison of the id. When the engine fails over an id that is
    /// not in this workspace, once more with the fallback id: ids are global, and one of another workspace is a server
    /// error there.
    ///
    /// # Errors
    /// The call's, an answer without a token, or a node that is not ours.
    pub fn mint_node_token(
        &self,
        key: &Secret,
        identity: &NodeIdentity,
        deadline: Instant,
    ) -> Result<NodeEnrolment, CallError> {
        let failed = match self.look_up_and_mint(key, &identity.node_id, &identity.name, deadline) {
            Err(failed) => failed,
            minted => return minted,
        };
        match &identity.fallback_id {
            Some(fallback) if is_foreign_id(&failed) => {
                log::warn!("{failed}; trying the id of this workspace, {fallback}");
                // The first failure is the one to report: it names the id that was meant to be.
                self.look_up_and_mint(key, fallback, &identity.name, deadline).map_err(|second| {
                    log::warn!("{second}");
                    failed
                })
            }
            _ => Err(failed),
        }
    }

    /// Mints again for a node that is enrolled under this name already.
    pub(super) fn remint_node_token(
        &self,
        key: &Secret,
        node_id: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<NodeEnrolment, CallError> {
        self.look_up_and_mint(key, node_id, name, deadline)
    }

    /// Another broker of this host may take the name between look-up and mint. The look-up knows it then, and the name is
    /// left to it.
    fn look_up_and_mint(
        &self,
        key: &Secret,
        node_id: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<NodeEnrolment, CallError> {
        let first = self.node_name_for(key, node_id, name, deadline);
        match self.mint(key, node_id, &first, deadline) {
            Err(failed) if failed.error.code == MISMATCH && failed.error.status == 0 => {
                let second = self.node_name_for(key, node_id, name, deadline);
                if second == first { Err(failed) } else { self.mint(key, node_id, &second, deadline) }
            }
            minted => minted,
        }
    }

    fn mint(&self, key: &Secret, node_id: &str, name: &str, deadline: Instant) -> Result<NodeEnrolment, CallError> {
        const NAME: &str = "POST /v1/nodes";
        let body = MintNode {
            node_id: node_id.into(),
            name: name.into(),
            kind: "ws".into(),
            role: "broker".into(),
            version: format!("relay-broker/{}", self.version),
        };
        let mut call = Call::new(NAME, "/v1/nodes".into(), Class::Node, Repeat::Always).bearer(key).body(&body);
        call.attempts = ATTEMPTS;
        let row = usable(NAME, NodeRow::from_data(&self.call(&call, deadline)?), "it is no node")?;
        if row.id != node_id {
            return Err(CallError {
                call: NAME,
                error: no_answer(
                    MISMATCH,
                    format!("the engine answered for node {} of the name '{name}', not for {node_id}", row.id),
                ),
                unclear: false,
            });
        }
        let token = usable(NAME, row.token, "it holds no token")?;
        Ok(NodeEnrolment { node_id: row.id, name: name.into(), token: Secret::new(token) })
    }
}

/// The answers by which an engine tells that the id is taken in another workspace.
fn is_foreign_id(failed: &CallError) -> bool {
    matches!(failed.error.status, 500 | 409) || failed.error.code == MISMATCH && failed.error.status != 0
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn suffixes_and_the_fatal_line() {
        assert_eq!(suffixed("vm", "node_59ec0102aabb"), "vm-59ec0102");
        assert_eq!(suffixed("vm", "abc"), "vm-abc");
        assert_eq!(
            fatal_config("node_1", "POST /v1/nodes: no (HTTP 403, code: forbidden)"),
            "[agent-relay] FATAL CONFIG: no node token available for node 'node_1'. Realtime delivery is DISABLED until \
             RELAY_NODE_TOKEN is set or a token can be minted. (POST /v1/nodes: no (HTTP 403, code: forbidden))"
        );
    }
}
