//! The MCP server that gives an agent its relay tools: the command that starts it, and what it is told.

/// Its name in every configuration.
pub const NAME: &str = "agent-relay";
/// The name that earlier releases used; removed wherever ours is written.
pub const OLD_NAME: &str = "relaycast";

/// What the server is told. Blank values are left out.
#[derive(Clone, Default)]
pub struct Facts {
    pub workspace_key: Option<String>,
    pub base_url: Option<String>,
    pub agent_name: String,
    pub agent_token: Option<String>,
    pub workspaces: Option<String>,
    pub default_workspace: Option<String>,
    /// URL, token and schema of the structured result that was asked for.
    pub result: Option<[String; 3]>,
}

/// The server as a harness starts it.
pub struct Server {
    /// Program and arguments, at least one word.
    pub command: Vec<String>,
    /// In the order in which command lines carry them.
    pub env: Vec<(&'static str, String)>,
    /// Variables of the structured result. They never go into a file that other agents share.
    pub result: Vec<(&'static str, String)>,
    /// The name as it was given, blanks included.
    pub raw_name: String,
}

impl Server {
    /// `command` = the value of `AGENT_RELAY_MCP_COMMAND`, split as a shell would; without a usable one the published
    /// package is run by npx.
    pub fn new(facts: &Facts, command: Option<&str>) -> Server {
        let words = command.and_then(|command| shell_words::split(command).ok()).filter(|words| !words.is_empty());
        let command = words.unwrap_or_else(|| ["npx", "-y", "agent-relay", "mcp"].map(String::from).into());
        let mut env: Vec<(&'static str, String)> = Vec::new();
        let mut put = |name: &'static str, value: Option<&str>| {
            let value = value.map(str::trim).filter(|value| !value.is_empty());
            env.extend(value.map(|value| (name, value.to_string())));
            value.is_some()
        };
        put("RELAY_API_KEY", facts.workspace_key.as_deref());
        put("RELAY_BASE_URL", facts.base_url.as_deref());
        if put("RELAY_AGENT_NAME", Some(&facts.agent_name)) {
            put("RELAY_AGENT_TYPE", Some("agent"));
            put("RELAY_STRICT_AGENT_NAME", Some("1"));
        }
        // Always together: a server without the second registers anew, which rotates the first away.
        if put("RELAY_AGENT_TOKEN", facts.agent_token.as_deref()) {
            put("RELAY_SKIP_BOOTSTRAP", Some("1"));
        }
        put("RELAY_WORKSPACES_JSON", facts.workspaces.as_deref());
        put("RELAY_DEFAULT_WORKSPACE", facts.default_workspace.as_deref());
        let names = ["AGENT_RELAY_RESULT_URL", "AGENT_RELAY_RESULT_TOKEN", "AGENT_RELAY_RESULT_SCHEMA"];
        let result = facts.result.iter().flat_map(|values| names.into_iter().zip(values.iter().cloned())).collect();
        Server { command, env, result, raw_name: facts.agent_name.clone() }
    }

    /// `{"args":[…],"command":"…","env":{…}}`, the form of claude and cursor.
    pub fn entry(&self, with_result: bool) -> serde_json::Value {
        serde_json::json!({
            "command": self.command[0],
            "args": self.command[1..],
            "env": self.env_object(with_result),
        })
    }

    pub fn env_object(&self, with_result: bool) -> serde_json::Value {
        let result = self.result.iter().filter(|_| with_result);
        let pairs = self.env.iter().chain(result).map(|(name, value)| (name.to_string(), value.as_str().into()));
        serde_json::Value::Object(pairs.collect())
    }
}
