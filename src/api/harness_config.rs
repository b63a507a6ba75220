//! `harnessConfig` of a spawn: how a CLI is started, or the server that it attaches to. Unlike the form around it, its
//! members are typed, and what cannot be read is refused as a whole.

use serde_json::Value;

use crate::core::ports::{self, ReleasePolicy, Secret, ServerAuth};

pub(super) struct Pty {
    pub command: String,
    pub args: Vec<String>,
    pub cwd: Option<String>,
    pub env: Vec<(String, String)>,
    pub session_id: Option<String>,
}

/// A server of a CLI that runs already.
pub(super) struct AppServer {
    protocol: String,
    server: ports::AppServer,
    owned_by_broker: bool,
}

pub(super) enum HarnessConfig {
    Pty(Pty),
    AppServer(AppServer),
}

impl HarnessConfig {
    pub fn transport(&self) -> &'static str {
        match self {
            HarnessConfig::Pty(_) => "pty",
            HarnessConfig::AppServer(_) => "headless",
        }
    }

    /// # Errors
    /// What is wrong with it, for `Invalid harnessConfig: …`.
    pub fn parse(config: &Value) -> Result<HarnessConfig, String> {
        if !config.is_object() {
            return Err("expected an object".into());
        }
        match text(config, "runtime")? {
            Some("pty") => Ok(HarnessConfig::Pty(Pty::parse(config)?)),
            Some("headless" | "app_server") => Ok(HarnessConfig::AppServer(AppServer::parse(config)?)),
            Some(other) => Err(format!("unknown runtime '{other}' (expected 'pty', 'headless' or 'app_server')")),
            None => Err("missing field `runtime`".into()),
        }
    }
}

impl Pty {
    fn parse(config: &Value) -> Result<Pty, String> {
        if let Some(delivery) = object(config, "delivery")? {
            one_of(delivery, "mode", &["pty-injection"])?;
            one_of(delivery, "format", &["relay-block"])?;
        }
        Ok(Pty {
            command: text(config, "command")?.ok_or("missing field `command`")?.into(),
            args: match config.get("args").filter(|args| !args.is_null()) {
                None => Vec::new(),
                Some(Value::Array(items)) => items
                    .iter()
                    .map(|item| item.as_str().map(str::to_string).ok_or("`args` must be texts".to_string()))
                    .collect::<Result<_, _>>()?,
                Some(_) => return Err("`args` must be an array".into()),
            },
            cwd: text(config, "cwd")?.filter(|cwd| !cwd.trim().is_empty()).map(str::to_string),
            env: match config.get("env").filter(|env| !env.is_null()) {
                None => Vec::new(),
                Some(Value::Object(pairs)) => pairs.iter().map(variable).collect::<Result<_, _>>()?,
                Some(_) => return Err("`env` must be an object".into()),
            },
            session_id: session_id(config)?.filter(|id| !id.trim().is_empty()).map(str::to_string),
        })
    }
}

impl AppServer {
    fn parse(config: &Value) -> Result<AppServer, String> {
        one_of(config, "driver", &["app_server"])?;
        let needed = |key: &str| text(config, key)?.map(str::to_string).ok_or(format!("missing field `{key}`"));
        let host = object(config, "host")?;
        let ownership = match host {
            None => None,
            Some(host) => {
                if host.get("pid").is_some_and(|pid| !pid.is_null() && pid.as_u64().is_none_or(|pid| pid > 1 << 31)) {
                    return Err("`host.pid` must be a process id".into());
                }
                one_of(host, "ownership", &["attached", "broker-owned"])?
            }
        };
        let release = match one_of(config, "release", &["abort", "detach", "delete"])? {
            Some("abort") => ReleasePolicy::Abort,
            Some("delete") => ReleasePolicy::Delete,
            _ => ReleasePolicy::Detach,
        };
        let host_pid = host.and_then(|host| host.get("pid")?.as_u64()).and_then(|pid| u32::try_from(pid).ok());
        Ok(AppServer {
            protocol: needed("protocol")?,
            server: ports::AppServer {
                endpoint: needed("endpoint")?,
                session_id: session_id(config)?.ok_or("missing field `sessionId`")?.to_string(),
                auth: object(config, "auth")?.map(auth).transpose()?,
                // 0 and 1 name no process of anybody's (R12).
                host_pid: host_pid.filter(|pid| *pid > 1),
                release,
            },
            owned_by_broker: ownership == Some("broker-owned"),
        })
    }

    /// The protocol is the name of its provider.
    pub fn provider(&self) -> &str {
        &self.protocol
    }

    pub fn into_server(self) -> ports::AppServer {
        self.server
    }

    /// Whether one could attach to it at all.
    ///
    /// # Errors
    /// What has to be changed.
    pub fn check(&self) -> Result<(), String> {
        if self.protocol != "opencode" {
            return Err(format!("unsupported app_server protocol '{}' (supported: opencode)", self.protocol));
        }
        let endpoint = self.server.endpoint.trim();
        let no_url = || format!("invalid app_server endpoint '{endpoint}': give an http:// or https:// URL");
        let (scheme, rest) = endpoint.split_once("://").ok_or_else(no_url)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(no_url()),
        };
        let host = host_of(rest).ok_or_else(no_url)?;
        if self.server.auth.is_some() && !secure && !is_loopback(host) {
            return Err(format!(
                "app_server auth over plain http is refused for '{host}': use https, or a loopback host"
            ));
        }
        if self.server.session_id.trim().is_empty() {
            return Err("app_server sessionId must not be blank".into());
        }
        if self.owned_by_broker {
            return Err("app_server host.ownership 'broker-owned' is not supported (use 'attached')".into());
        }
        match &self.server.auth {
            Some(ServerAuth::Bearer { token }) if token.is_blank() => {
                Err("app_server bearer auth needs a token".into())
            }
            Some(ServerAuth::Basic { username, password }) if username.trim().is_empty() || password.is_blank() => {
                Err("app_server basic auth needs a username and a password".into())
            }
            _ => Ok(()),
        }
    }
}

/// A server that is named by the parts of a command line, checked as one of a spawn.
///
/// # Errors
/// What has to be changed.
pub fn app_server(protocol: String, server: ports::AppServer) -> Result<ports::AppServer, String> {
    let named = AppServer { protocol, server, owned_by_broker: false };
    named.check()?;
    Ok(named.into_server())
}

fn auth(auth: &Value) -> Result<ServerAuth, String> {
    let given = |key: &str| text(auth, key).map(|text| text.unwrap_or_default().to_string());
    let (token, username, password) = (given("token")?, given("username")?, given("password")?);
    match one_of(auth, "type", &["bearer", "basic", "none"])? {
        Some("bearer") => Ok(ServerAuth::Bearer { token: Secret::new(token) }),
        Some("basic") => Ok(ServerAuth::Basic { username, password: Secret::new(password) }),
        Some(_) => Ok(ServerAuth::None),
        None => Err("missing field `auth.type`".into()),
    }
}

/// The host of what follows `://`, without user and port.
fn host_of(rest: &str) -> Option<&str> {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (host, rest) = inner.split_once(']')?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
        }
        None => authority.split_once(':').map_or((authority, Some("")), |(host, port)| (host, Some(port))),
    };
    let port_fits = port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok());
    let usable = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control());
    (port_fits && usable).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "::1")
}

fn session_id(config: &Value) -> Result<Option<&str>, String> {
    Ok(text(config, "sessionId")?.or(text(config, "session_id")?))
}

fn text<'a>(object: &'a Value, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{key}` must be a text")),
    }
}

fn object<'a>(config: &'a Value, key: &str) -> Result<Option<&'a Value>, String> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) if value.is_object() => Ok(Some(value)),
        Some(_) => Err(format!("`{key}` must be an object")),
    }
}

fn one_of<'a>(object: &'a Value, key: &str, known: &[&str]) -> Result<Option<&'a str>, String> {
    match text(object, key)? {
        Some(value) if !known.contains(&value) => {
            Err(format!("unknown {key} '{value}' (expected '{}')", known.join("', '")))
        }
        value => Ok(value),
    }
}

/// An environment variable that the kernel can carry.
fn variable((key, value): (&String, &Value)) -> Result<(String, String), String> {
    let value = value.as_str().ok_or_else(|| format!("`env.{key}` must be a text"))?;
    if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
        return Err(format!("`env` holds an unusable variable {key:?}"));
    }
    Ok((key.clone(), value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn server(change: Value) -> Result<(), String> {
        let mut config = json!({"runtime": "headless", "protocol": "opencode", "endpoint": "http://127.0.0.1:4096/x",
                                "sessionId": "s"});
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        match HarnessConfig::parse(&config)? {
            HarnessConfig::AppServer(server) => server.check().map_err(|why| format!("later: {why}")),
            HarnessConfig::Pty(_) => panic!("no terminal was asked for"),
        }
    }

    #[test]
    fn servers_are_checked_in_two_steps() {
        for fine in [
            json!({}),
            json!({"driver": "app_server", "release": "delete", "host": {"ownership": "attached", "pid": 7}}),
            json!({"runtime": "app_server", "auth": {"type": "bearer", "token": "t"}, "metadata": {"any": 1}}),
            json!({"endpoint": "https://far.example/", "auth": {"type": "basic", "username": "u", "password": "p"}}),
            json!({"endpoint": "http://[::1]:80", "auth": {"type": "none"}}),
            json!({"endpoint": "HTTP://LocalHost", "auth": {"type": "none"}}),
            json!({"endpoint": "http://far.example", "auth": null}),
        ] {
            assert_eq!(server(fine.clone()), Ok(()), "{fine}");
        }
        for (wrong, step, part) in [
            (json!({"sessionId": null}), "", "missing field `sessionId`"),
            (json!({"endpoint": null}), "", "missing field `endpoint`"),
            (json!({"protocol": 3}), "", "`protocol` must be a text"),
            (json!({"driver": "x"}), "", "unknown driver 'x'"),
            (json!({"release": "burn"}), "", "unknown release 'burn' (expected 'abort', 'detach', 'delete')"),
            (json!({"host": {"ownership": "mine"}}), "", "unknown ownership"),
            (json!({"host": {"pid": "7"}}), "", "`host.pid`"),
            (json!({"host": 7}), "", "`host` must be an object"),
            (json!({"auth": {"type": "oauth"}}), "", "unknown type"),
            (json!({"auth": {}}), "", "missing field `auth.type`"),
            (json!({"protocol": "codex"}), "later: ", "protocol 'codex'"),
            (json!({"endpoint": " "}), "later: ", "endpoint"),
            (json!({"endpoint": "far"}), "later: ", "endpoint"),
            (json!({"endpoint": "ftp://far"}), "later: ", "endpoint"),
            (json!({"endpoint": "http://"}), "later: ", "endpoint"),
            (json!({"endpoint": "http://far:99999"}), "later: ", "endpoint"),
            (json!({"endpoint": "http://far", "auth": {"type": "none"}}), "later: ", "plain http"),
            (json!({"endpoint": "http://localhost@far", "auth": {"type": "none"}}), "later: ", "'far'"),
            (json!({"sessionId": " "}), "later: ", "sessionId"),
            (json!({"host": {"ownership": "broker-owned"}}), "later: ", "broker-owned"),
            (json!({"auth": {"type": "bearer", "token": " "}}), "later: ", "bearer"),
            (json!({"auth": {"type": "basic", "username": "u"}}), "later: ", "basic"),
        ] {
            let why = server(wrong.clone()).expect_err("a refusal");
            let expected = why.starts_with("later: ") == (step == "later: ") && why.contains(part);
            assert!(expected, "{wrong}: {why}");
        }
    }
}
