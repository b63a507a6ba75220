//! The HTTP routes that a broker calls at its start and for its agents. Each answer has the fields of the real one.

use serde_json::{Value, json};

const CREATED: &str = "2025-06-01T00:00:00.000Z";
const WORKSPACE: &str = "180000000000000001";

/// Makes ids and tokens, all different.
#[derive(Default)]
pub struct Ids(u64);

impl Ids {
    /// A snowflake: a decimal string of 18 digits.
    pub fn snowflake(&mut self) -> String {
        self.0 += 1;
        (200_000_000_000_000_000 + self.0).to_string()
    }

    /// A token of a kind, such as `at_live_`.
    pub fn token(&mut self, kind: &str, digits: usize) -> String {
        self.0 += 1;
        format!("{kind}{:0digits$x}", self.0)
    }

    /// Status and body for one request.
    pub fn route(&mut self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or("unnamed").to_string();
        let path = path.split('?').next().unwrap_or(path);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (status, data) = match (method, &parts[..]) {
            ("POST", ["v1", "workspaces"]) => {
                (201, json!({"workspace_id": WORKSPACE, "api_key": self.token("rk_live_", 32), "created_at": CREATED}))
            }
            ("POST", ["v1", "agents"]) => (
                201,
                json!({"id": self.snowflake(), "name": text("name"), "token": self.token("at_live_", 32),
                    "status": "online", "created_at": CREATED, "workspace_id": WORKSPACE}),
            ),
            ("POST", ["v1", "agents", "heartbeat" | "disconnect"]) => return (200, json!({"ok": true}).to_string()),
            ("POST", ["v1", "agents", "release"]) => (
                201,
                json!({"invocation_id": format!("inv_{}", self.snowflake()), "action_name": "release",
                    "handler_agent_id": null, "handler_node_id": null, "dispatched_node_id": null, "input": body,
                    "status": "pending", "created_at": CREATED}),
            ),
            ("POST", ["v1", "agents", name, "rotate-token"]) => {
                (200, json!({"name": name, "token": self.token("at_live_", 32)}))
            }
            ("GET", ["v1", "agents", _]) => return (404, refusal("agent_not_found")),
            ("POST", ["v1", "nodes"]) => (
                201,
                json!({"id": text("node_id"), "name": text("name"), "kind": "ws", "role": "broker",
                    "delivery_adapter": "node", "delivery": null, "capabilities": [], "tags": [],
                    "version": text("version"), "status": "offline", "live": false, "handlers_live": false, "load": 0,
                    "active_agents": 0, "max_agents": 0, "last_heartbeat_at": null, "created_at": CREATED,
                    "token": self.token("nt_live_", 48)}),
            ),
            ("GET", ["v1", "nodes", _]) => return (404, refusal("node_not_found")),
            ("POST", ["v1", "channels"]) => (
                201,
                json!({"id": self.snowflake(), "name": text("name"), "topic": body.get("topic"), "metadata": {},
                    "created_by": null, "created_at": CREATED, "member_count": 1}),
            ),
            ("POST", ["v1", "channels", name, "join"]) => {
                (200, json!({"channel": name, "agent_id": self.snowflake(), "already_member": false}))
            }
            ("POST", ["v1", "messages", id, "read"]) => {
                (200, json!({"message_id": id, "agent_id": self.snowflake(), "read_at": CREATED}))
            }
            _ => return (404, refusal("not_found")),
        };
        (status, json!({"ok": true, "data": data}).to_string())
    }
}

/// The body of a refusal.
pub fn refusal(code: &str) -> String {
    json!({"ok": false, "error": {"code": code, "message": code}}).to_string()
}
