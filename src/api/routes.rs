//! The route table, and what each route does.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::core::ports::{ApiAnswer, ApiCall, Expected, InboundMode, ResultReport, Secret, SnapshotFormat};
use crate::http::{Reply, Request, Response};
use crate::sys::threads;
use crate::wire::api::{coded, failure, failure_of, history_stats};

use super::calls::NoAnswer;
use super::events::Feed;
use super::fleet::FleetSocket;
use super::health::resident_bytes;
use super::input::InputStream;
use super::{Api, body, continuity, forms};

/// Longest name of a session that claims a terminal's size.
const SESSION_ID_BYTES: usize = 256;

/// What a route is given besides the API: the request, and the `{n}` of its path.
pub(super) struct Call<'a> {
    pub api: &'a Api,
    pub request: &'a Request,
    pub name: String,
}

type Outcome = Result<Reply, Response>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Auth {
    Key,
    Open,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    WebSocket,
}

pub(super) struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub auth: Auth,
    pub kind: Kind,
    pub run: fn(&Call) -> Outcome,
}

const fn keyed(method: &'static str, path: &'static str, run: fn(&Call) -> Outcome) -> Route {
    Route { method, path, auth: Auth::Key, kind: Kind::Http, run }
}

const fn socket(path: &'static str, run: fn(&Call) -> Outcome) -> Route {
    Route { method: "GET", path, auth: Auth::Key, kind: Kind::WebSocket, run }
}

/// Every route there is. HEAD works on every GET.
pub(super) const ROUTES: &[Route] = &[
    Route { method: "GET", path: "/health", auth: Auth::Open, kind: Kind::Http, run: health },
    keyed("GET", "/api/session", |c| c.ask(ApiCall::Session)),
    keyed("POST", "/api/session/renew", |c| c.ask(ApiCall::RenewLease)),
    keyed("GET", "/api/config", |c| c.ask(ApiCall::Config)),
    keyed("POST", "/api/spawn", spawn),
    keyed("GET", "/api/spawned", |c| c.ask(ApiCall::ListAgents)),
    keyed("DELETE", "/api/spawned/{n}", release),
    keyed("GET", "/api/spawned/{n}/snapshot", snapshot),
    keyed("GET", "/api/spawned/{n}/delivery-mode", |c| c.ask(ApiCall::DeliveryMode { name: c.name.clone() })),
    keyed("PUT", "/api/spawned/{n}/delivery-mode", set_delivery_mode),
    keyed("GET", "/api/spawned/{n}/pending", |c| c.ask(ApiCall::Pending { name: c.name.clone() })),
    keyed("POST", "/api/spawned/{n}/flush", |c| c.ask(ApiCall::Flush { name: c.name.clone() })),
    keyed("POST", "/api/spawned/{n}/subscribe", |c| {
        c.ask(ApiCall::Subscribe { name: c.name.clone(), channels: channels(c.request)? })
    }),
    keyed("POST", "/api/spawned/{n}/unsubscribe", |c| {
        c.ask(ApiCall::Unsubscribe { name: c.name.clone(), channels: channels(c.request)? })
    }),
    keyed("POST", "/api/input/{n}", input),
    socket("/api/input/{n}/stream", input_stream),
    keyed("POST", "/api/resize/{n}", resize),
    keyed("POST", "/api/send", send),
    keyed("GET", "/api/status", |c| c.ask(ApiCall::Status)),
    keyed("GET", "/api/events/replay", replay),
    keyed("GET", "/api/deliveries/{n}", |c| c.ask(ApiCall::Receipt { delivery_id: c.name.clone() })),
    keyed("GET", "/api/dead-letters", |c| c.ask(ApiCall::DeadLetters)),
    keyed("POST", "/api/dead-letters/redeliver", redeliver),
    keyed("POST", "/api/spawned/{n}/model", model),
    keyed("GET", "/api/metrics", metrics),
    keyed("GET", "/api/crash-insights", |c| c.ask(ApiCall::CrashInsights)),
    keyed("GET", "/api/threads", |c| c.ask(ApiCall::Threads)),
    keyed("GET", "/api/history/stats", |_| Ok(Reply::Response(Response::json(200, &history_stats())))),
    keyed("POST", "/api/preflight", preflight),
    keyed("POST", "/api/agents/by-name/{n}/interrupt", interrupt),
    Route { method: "POST", path: "/api/agent-result", auth: Auth::Open, kind: Kind::Http, run: agent_result },
    keyed("GET", "/api/debug/threads", |_| Ok(Reply::Response(Response::text(200, &threads::report())))),
    keyed("POST", "/api/shutdown", shutdown),
    socket("/ws", events),
    socket("/api/fleet/ws", fleet),
];

/// What a path and a method lead to.
pub(super) enum Found {
    Route(&'static Route, String),
    /// The path exists, with these methods.
    OtherMethod {
        allow: String,
        auth: Auth,
    },
    Nothing,
}

pub(super) fn find(request: &Request) -> Found {
    let Some(segments) = request.segments() else {
        return Found::Nothing;
    };
    let mut allowed: Vec<&str> = Vec::new();
    let mut open = Auth::Key;
    for route in ROUTES {
        let Some(name) = matches(route.path, &segments) else {
            continue;
        };
        if route.method == request.method || (route.method == "GET" && request.method == "HEAD") {
            return Found::Route(route, name);
        }
        allowed.push(route.method);
        if route.method == "GET" {
            allowed.push("HEAD");
        }
        if route.auth == Auth::Open {
            open = Auth::Open;
        }
    }
    if allowed.is_empty() { Found::Nothing } else { Found::OtherMethod { allow: allowed.join(","), auth: open } }
}

/// The value of `{n}` (empty when the pattern has none); a segment never stands for nothing.
fn matches(pattern: &str, segments: &[String]) -> Option<String> {
    let mut name = String::new();
    let mut parts = pattern.trim_start_matches('/').split('/');
    for segment in segments {
        match parts.next()? {
            "{n}" if !segment.is_empty() => name.clone_from(segment),
            part if part == segment => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(name)
}

impl Call<'_> {
    fn ask(&self, call: ApiCall) -> Outcome {
        self.ask_within(call, self.api.patience.call)
    }

    fn ask_within(&self, call: ApiCall, limit: Duration) -> Outcome {
        match self.api.calls.ask(call, limit) {
            Ok(answer) => Ok(answered(&answer)),
            Err(why) => Err(unanswered(why)),
        }
    }
}

fn answered(answer: &ApiAnswer) -> Reply {
    Reply::Response(Response::json(answer.status, &answer.body))
}

fn unanswered(why: NoAnswer) -> Response {
    let (status, message) = match why {
        NoAnswer::Full => (503, "the broker is busy: too many requests wait for it; please retry"),
        NoAnswer::Late => (504, "broker request timed out"),
        NoAnswer::Closed => (503, "the broker is shutting down"),
    };
    Response::json(status, &failure(message))
}

fn health(call: &Call) -> Outcome {
    Ok(Reply::Response(call.api.health.response()))
}

fn spawn(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let request = forms::spawn(&body, |name| continuity::block(&call.api.continuity, name))?;
    call.ask(ApiCall::Spawn(request))
}

fn send(call: &Call) -> Outcome {
    call.ask(ApiCall::Send(forms::send(&body::required(call.request)?)?))
}

fn release(call: &Call) -> Outcome {
    let reason = body::optional(call.request)?.and_then(|body| body::filled(&body, &["reason"]));
    call.ask(ApiCall::Release { name: call.name.clone(), reason })
}

fn snapshot(call: &Call) -> Outcome {
    let format = call.request.query_value("format").unwrap_or_default();
    let format = match format.trim().to_ascii_lowercase().as_str() {
        "" | "plain" | "text" => SnapshotFormat::Plain,
        "ansi" => SnapshotFormat::Ansi,
        _ => {
            let message = format!("unsupported snapshot format '{format}' (expected 'plain' or 'ansi')");
            return Err(Response::json(400, &coded("invalid_format", &message)));
        }
    };
    let asked = ApiCall::Snapshot { name: call.name.clone(), format };
    match call.api.calls.ask(asked, call.api.patience.snapshot) {
        Ok(answer) => Ok(answered(&answer)),
        Err(NoAnswer::Late) => {
            let message = format!("agent '{}' did not show its terminal in time", call.name);
            Err(Response::json(504, &coded("worker_timeout", &message)))
        }
        Err(why) => Err(unanswered(why)),
    }
}

fn model(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let model = body::text(&body, &["model"]).ok_or_else(|| body::wrong_shape("missing field `model`"))?.trim();
    // It is typed as a line: what would end or edit the line is no part of a name.
    if model.is_empty() || model.chars().any(char::is_control) {
        return Err(Response::json(
            400,
            &failure_of(&call.name, "model must not be blank nor contain control characters"),
        ));
    }
    call.ask(ApiCall::SetModel { name: call.name.clone(), model: model.to_string() })
}

fn redeliver(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let all = body.get("all").and_then(Value::as_bool).unwrap_or(false);
    let delivery_id = body::filled(&body, &["id"]);
    if all == delivery_id.is_some() {
        return Err(body::wrong_shape("give either `id` or `all: true`"));
    }
    call.ask(ApiCall::Redeliver { delivery_id })
}

/// The numbers of the loop, and what each process takes of the memory as the system counts it.
fn metrics(call: &Call) -> Outcome {
    let agent = call.request.query_value("agent").filter(|name| !name.is_empty()).map(str::to_string);
    let mut answer = call.api.calls.ask(ApiCall::Metrics { agent }, call.api.patience.call).map_err(unanswered)?;
    for row in answer.body.get_mut("agents").and_then(Value::as_array_mut).into_iter().flatten() {
        let pid = row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        row["memory_bytes"] = pid.map_or(0, |pid| resident_bytes(&pid.to_string())).into();
    }
    Ok(answered(&answer))
}

/// 9.1.6 registers the names, which leaves agents that nobody can reach. Nothing needs it: the answer alone is kept.
fn preflight(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let agents = body.get("agents").and_then(Value::as_array);
    let agents = agents.ok_or_else(|| body::wrong_shape("missing field `agents`"))?;
    let whole = |agent: &Value| {
        agent.get("name").is_some_and(Value::is_string) && agent.get("cli").is_some_and(Value::is_string)
    };
    if !agents.iter().all(whole) {
        return Err(body::wrong_shape("each of `agents` needs the texts `name` and `cli`"));
    }
    Ok(Reply::Response(Response::json(200, &serde_json::json!({"queued": agents.len()}))))
}

fn interrupt(call: &Call) -> Outcome {
    let text = "Agent interrupt is not yet supported by the broker HTTP API.";
    Ok(Reply::Response(Response::json(501, &failure_of(&call.name, text))))
}

/// The token is looked for before the fields are: without one there is nothing to say.
fn agent_result(call: &Call) -> Outcome {
    let own = call.request.header("x-agent-result-token").map(str::trim).filter(|value| !value.is_empty());
    let Some(token) = own.or_else(|| call.request.bearer()) else {
        return Err(Response::json(401, &failure("missing_result_token")));
    };
    let body = body::required(call.request)?;
    let Some(data) = body.get("data").or_else(|| body.get("result")) else {
        return Err(Response::json(400, &failure("Missing required field: data")));
    };
    let is_final = ["final", "final_result"].iter().find_map(|key| body.get(key)?.as_bool()).unwrap_or(true);
    call.ask(ApiCall::Result(ResultReport {
        token: Secret::new(token),
        name: body::text(&body, &["name", "agent"]).map(str::to_string),
        data: data.clone(),
        is_final,
        metadata: body.get("metadata").filter(|value| !value.is_null()).cloned(),
    }))
}

fn set_delivery_mode(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let mode = body::text(&body, &["mode"]).ok_or_else(|| body::wrong_shape("missing field `mode`"))?;
    let mode_of = |text: &str| {
        InboundMode::parse(text).ok_or_else(|| {
            let message = format!("invalid mode '{text}' (expected 'auto_inject' or 'manual_flush')");
            Response::json(400, &coded("invalid_mode", &message))
        })
    };
    let mode = mode_of(mode)?;
    let expected = Expected {
        mode: body::text_or_null(&body, "expected_mode")?.map(mode_of).transpose()?,
        revision: match body::text_or_null(&body, "expected_revision")? {
            None => None,
            Some(text) => Some(
                text.parse().map_err(|_| body::wrong_shape("`expected_revision` must be a decimal number as text"))?,
            ),
        },
    };
    call.ask(ApiCall::SetDeliveryMode { name: call.name.clone(), mode, expected })
}

/// The `channels` of a subscription: a typed body.
fn channels(request: &Request) -> Result<Vec<String>, Response> {
    let body = body::required(request)?;
    let items = body.get("channels").ok_or_else(|| body::wrong_shape("missing field `channels`"))?;
    Vec::<String>::deserialize(items).map_err(|why| body::wrong_shape(&format!("`channels`: {why}")))
}

fn input(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let data = body::text(&body, &["data"]).ok_or_else(|| body::wrong_shape("missing field `data`"))?;
    call.ask(ApiCall::Type { name: call.name.clone(), bytes: data.as_bytes().to_vec() })
}

fn resize(call: &Call) -> Outcome {
    let body = body::required(call.request)?;
    let session = body::text_or_null(&body, "session_id")?.map(str::trim).filter(|id| !id.is_empty());
    if session.is_some_and(|id| id.len() > SESSION_ID_BYTES) {
        return Err(body::wrong_shape(&format!("`session_id` is longer than {SESSION_ID_BYTES} bytes")));
    }
    let releases = match body.get("release") {
        None | Some(Value::Null) => false,
        Some(value) => value.as_bool().ok_or_else(|| body::wrong_shape("`release` must be true or false"))?,
    };
    if let Some(session) = session.filter(|_| releases) {
        return call.ask(ApiCall::ReleaseSize { name: call.name.clone(), session: session.to_string() });
    }
    let side = |key: &str| {
        let number = body.get(key).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| body::wrong_shape(&format!("`{key}` must be a number from 0 to 65535")))
    };
    let (rows, cols) = (side("rows")?, side("cols")?);
    if rows == 0 || cols == 0 {
        let message = format!("invalid_dimensions: rows and cols must be at least 1, not {rows} and {cols}");
        return Err(Response::json(400, &coded("invalid_request", &message)));
    }
    call.ask(ApiCall::Resize { name: call.name.clone(), rows, cols, session: session.map(str::to_string) })
}

/// `sinceSeq`, or `since_seq`; 0 without either.
fn since(request: &Request) -> Result<u64, Response> {
    match request.query_value("sinceSeq").or_else(|| request.query_value("since_seq")) {
        None => Ok(0),
        Some(value) => value
            .parse()
            .map_err(|_| Response::text(400, "Failed to deserialize query string: sinceSeq must be a number")),
    }
}

fn replay(call: &Call) -> Outcome {
    let since = since(call.request)?;
    let replay = call.api.hub.replay(since);
    // The events are JSON already.
    let body = format!(
        "{{\"events\":[{}],\"gap\":{},\"oldestAvailable\":{},\"currentSeq\":{},\"droppedCount\":{}}}",
        replay.events.join(","),
        replay.gap,
        if replay.gap { replay.oldest } else { since },
        replay.newest,
        replay.dropped
    );
    let response = Response { status: 200, body: body.into_bytes(), ..Response::default() };
    Ok(Reply::Response(response.with_header("Content-Type", "application/json")))
}

fn events(call: &Call) -> Outcome {
    let feed = Feed::new(call.api.hub.clone(), call.api.health.clone(), since(call.request)?);
    Ok(Reply::WebSocket(Box::new(feed)))
}

/// That the agent exists is asked before the upgrade, so that a busy broker can still answer 503 as HTTP; an unknown agent
/// is told over the WebSocket.
fn input_stream(call: &Call) -> Outcome {
    let api = call.api;
    let stream = InputStream::open(&call.name, &api.lanes, &api.calls, &api.health, api.patience.no_progress, || {
        api.calls.ask(ApiCall::DeliveryMode { name: call.name.clone() }, api.patience.call)
    });
    stream.map(|stream| Reply::WebSocket(Box::new(stream))).map_err(unanswered)
}

fn fleet(call: &Call) -> Outcome {
    let api = call.api;
    let socket = FleetSocket::new(&api.sidecars, &api.calls, &api.health, api.patience.call);
    Ok(Reply::WebSocket(Box::new(socket)))
}

/// The answer is written before the stop begins.
fn shutdown(call: &Call) -> Outcome {
    let (calls, limit) = (call.api.calls.clone(), call.api.patience.call);
    let then = move || {
        if let Err(why) = calls.tell(ApiCall::Shutdown, limit) {
            log::error!("the stop that a client asked for did not reach the loop: {why:?}");
        }
    };
    let answer = Response::json(200, &serde_json::json!({"status": "shutting_down"}));
    Ok(Reply::Then(answer, Box::new(then)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: &str, path: &str) -> Found {
        find(&Request { method: method.into(), path: path.into(), ..Request::default() })
    }

    #[test]
    fn paths_and_methods_are_matched_strictly() {
        let name = |method, path| match at(method, path) {
            Found::Route(route, name) => Some((route.path, name)),
            _ => None,
        };
        assert_eq!(name("GET", "/api/session"), Some(("/api/session", String::new())));
        assert_eq!(name("HEAD", "/api/session"), Some(("/api/session", String::new())));
        assert_eq!(name("DELETE", "/api/spawned/a%2Fb%20c"), Some(("/api/spawned/{n}", "a/b c".into())));
        assert_eq!(name("POST", "/api/input/stream"), Some(("/api/input/{n}", "stream".into())));
        for path in
            ["/api/session/", "/API/session", "/api/spawned//pending", "/", "", "/api", "/api/spawned/a/b", "/%ff"]
        {
            assert!(matches!(at("GET", path), Found::Nothing), "{path}");
        }
    }

    #[test]
    fn other_methods_say_what_is_allowed() {
        let table = [
            ("DELETE", "/api/session", "GET,HEAD"),
            ("POST", "/api/spawned/a/delivery-mode", "GET,HEAD,PUT"),
            ("GET", "/api/spawn", "POST"),
            ("HEAD", "/api/spawn", "POST"),
            ("get", "/health", "GET,HEAD"),
        ];
        for (method, path, expected) in table {
            match at(method, path) {
                Found::OtherMethod { allow, .. } => assert_eq!(allow, expected, "{method} {path}"),
                _ => panic!("{method} {path}"),
            }
        }
    }
}
