//! What the core is born with, from the command line, the environment and the enrolment.

use super::{Start, VERSION};
use crate::api::HealthFacts;
use crate::core::ports::{Config, Workspace};
use crate::daemon::enrolment::Enrolled;

/// An unanswered `agent.register` fails its spawn after this long; the engine would dispatch it again after 30 s.
const REGISTER_TIMEOUT_MS: u64 = 10_000;
const DELIVERY_RETRY_MS: u64 = 1_000;
const DELIVERY_RETRY_MIN_MS: u64 = 50;

impl Start {
    pub(super) fn config(&self, enrolled: &Enrolled, port: Option<u16>) -> Config {
        let workspaces = enrolled.session.memberships.iter().map(|joined| Workspace {
            id: joined.workspace_id.clone(),
            alias: joined.alias.clone(),
            key: joined.key.clone(),
            self_name: joined.agent_name.clone(),
            self_agent_id: joined.agent_id.clone(),
        });
        let default_channels = self
            .env
            .list("RELAY_DEFAULT_CHANNELS")
            .unwrap_or_else(|| vec!["general".to_string(), "engineering".to_string()]);
        Config {
            node_id: enrolled.node.node_id.clone(),
            node_name: enrolled.node.name.clone(),
            node_token: enrolled.node.token.clone(),
            token_pinned: enrolled.pinned,
            node_version: format!("relay-broker/{VERSION}"),
            broker_version: VERSION.into(),
            workspaces: workspaces.collect(),
            home: enrolled.session.acting,
            has_default: enrolled.session.default_workspace_id.is_some(),
            base_url: enrolled.base_given.then(|| enrolled.base.clone()),
            self_aliases: mcp_names(&self.cwd_mcp()),
            default_channels,
            result_url: port.map_or(String::new(), |port| {
                format!("http://{}:{port}/api/agent-result", callback_host(&self.options.api_bind))
            }),
            durable: self.options.persist || self.options.state_dir.is_some(),
            persist: self.options.persist,
            register_timeout_ms: REGISTER_TIMEOUT_MS,
            delivery_retry_ms: self
                .env
                .number("AGENT_RELAY_DELIVERY_RETRY_MS")
                .unwrap_or(DELIVERY_RETRY_MS)
                .max(DELIVERY_RETRY_MIN_MS),
        }
    }

    fn cwd_mcp(&self) -> serde_json::Value {
        std::fs::read_to_string(".mcp.json")
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or(serde_json::Value::Null)
    }
}

pub(super) fn facts(config: &Config) -> HealthFacts {
    HealthFacts {
        workspace_id: Some(config.home().id.clone()),
        default_workspace_id: config.default_workspace_id(),
        memberships: config.memberships(),
        node_token_present: true,
        ..HealthFacts::default()
    }
}

/// Names under which MCP servers of this directory act: the broker knows itself by them too.
fn mcp_names(mcp: &serde_json::Value) -> Vec<String> {
    ["agent-relay", "relaycast"]
        .iter()
        .filter_map(|server| mcp.pointer(&format!("/mcpServers/{server}/env/RELAY_AGENT_NAME"))?.as_str())
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .take(1)
        .map(str::to_string)
        .collect()
}

/// An IPv6 literal in brackets.
pub(super) fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_string() }
}

/// Where processes of this machine reach the API: wildcards become loopback.
pub(super) fn callback_host(bind: &str) -> String {
    match bind {
        "0.0.0.0" => "127.0.0.1".into(),
        "::" | "[::]" => "[::1]".into(),
        other => bracketed(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_for_callers_are_reachable() {
        for (bind, host) in [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")] {
            assert_eq!(callback_host(bind), host);
        }
    }

    #[test]
    fn the_first_mcp_server_names_the_broker() {
        let mcp = serde_json::json!({"mcpServers": {"relaycast": {"env": {"RELAY_AGENT_NAME": "b"}},
            "agent-relay": {"env": {"RELAY_AGENT_NAME": " a "}}}});
        assert_eq!(mcp_names(&mcp), ["a"]);
        assert!(mcp_names(&serde_json::Value::Null).is_empty());
    }
}
