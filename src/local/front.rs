//! The HTTP skin: from bytes to a [`Call`], and from an [`Outcome`](super::state::Outcome) to bytes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::faults::{self, Kind};
use super::link::{NodeSession, SilentSession};
use super::routes::{self, Auth, Found, Route};
use super::server::{BODY_BYTES, Shared};
use super::state::idempotency::{Claim, request_digest};
use super::state::{Answer, Call, Engine, Fail, Principal};
use crate::http::{Handler, Reply, Request, Response};

pub(super) struct Front {
    pub shared: Arc<Shared>,
}

fn failure(fail: &Fail) -> Response {
    Response::json(fail.status, &fail.body())
}

fn success(answer: &Answer) -> Response {
    match answer.body() {
        Some(body) => Response::json(answer.status, &body),
        None => Response::empty(answer.status),
    }
}

/// A key that this request has reserved. However the request ends, the key is given back unless its answer is kept.
struct Held<'a> {
    shared: &'a Shared,
    call: &'a Call,
    key: &'a str,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.act(|engine| engine.release_key(self.call, self.key));
    }
}

fn storage_failed() -> Fail {
    Fail::new(503, "workspace_storage_unavailable", "The journal cannot be written")
}

impl Handler for Front {
    fn body_limit(&self, _: &Request) -> usize {
        BODY_BYTES
    }

    fn handle(&self, request: Request) -> Reply {
        let Some(segments) = request.segments() else {
            return Reply::Response(failure(&Fail::new(400, "invalid_request", "The path is not UTF-8")));
        };
        if segments[0] == "__faults" {
            return Reply::Response(self.change_faults(&request, &segments));
        }
        let mut lose_answer = false;
        let mut delay = None;
        let mut drop_after = None;
        match self.shared.faults.as_ref().and_then(|faults| faults.strike(&request.method, &segments)) {
            None => {}
            Some(Kind::Status { status, code, message, body, retry_after }) => {
                return Reply::Response(faults::response(status, code, message, body, retry_after));
            }
            Some(Kind::Garbage) => return Reply::Response(Response::text(200, "<html>not what you hoped for</html>")),
            Some(Kind::Cut) => return Reply::Cut,
            Some(Kind::Hang { ms }) => return Reply::Silence(faults::length(ms)),
            Some(Kind::Silent) => return Reply::WebSocket(Box::new(SilentSession)),
            Some(Kind::Drop { ms }) => drop_after = Some(faults::length(ms)),
            Some(Kind::Delay { ms }) => delay = Some(faults::length(ms)),
            Some(Kind::LoseAnswer) => lose_answer = true,
        }
        let path: Vec<&str> = segments.iter().map(String::as_str).collect();
        let reply = match path[..] {
            ["v1", "node", "ws"] => {
                if delay.is_some_and(|delay| !self.shared.pause(delay)) {
                    return Reply::Cut;
                }
                self.node_socket(&request, drop_after)
            }
            ["v1", "ws"] => Reply::Response(failure(&Fail::new(401, "unauthorized", "No observer streams here"))),
            ["health"] => Reply::Response(Response::json(200, &json!({"ok": true, "data": {"status": "ok"}}))),
            _ => match routes::find(&request.method, &segments) {
                Found::Route(route, args) => self.serve(&request, route, args, delay),
                Found::OtherMethod => {
                    Reply::Response(failure(&Fail::new(405, "method_not_allowed", "The route has another method")))
                }
                Found::Nothing => Reply::Response(failure(&Fail::new(404, "not_found", "No such route"))),
            },
        };
        if lose_answer { Reply::Cut } else { reply }
    }
}

impl Front {
    fn serve(&self, request: &Request, route: &Route, args: Vec<String>, delay: Option<std::time::Duration>) -> Reply {
        let call = match self.call(request, route, args) {
            Ok(call) => call,
            Err(fail) => return Reply::Response(failure(&fail)),
        };
        let key = request.header("idempotency-key").filter(|_| route.keyed).map(str::to_string);
        if let Some(key) = &key {
            let digest = request_digest(&request.method, &request.path, &request.body);
            let (claim, number) = self.shared.act(|engine| engine.claim_key(&call, key, &digest));
            match claim {
                Ok(Claim::Fresh) => {}
                Ok(Claim::Replay(known)) => {
                    // The first answer may still be on its way to the disk.
                    if !self.shared.sync_to(number) {
                        return Reply::Response(failure(&storage_failed()));
                    }
                    let response = Response::json(known.status, &known.body);
                    return Reply::Response(response.with_header("Idempotency-Replayed", "true"));
                }
                Err(fail) => return Reply::Response(failure(&fail)),
            }
        }
        let _held = key.as_ref().map(|key| Held { shared: &self.shared, call: &call, key });
        if delay.is_some_and(|delay| !self.shared.pause(delay)) {
            return Reply::Cut;
        }
        let (outcome, number) = self.shared.act(|engine| {
            let outcome = (route.answer)(engine, &call);
            if let (Some(key), Ok(answer)) = (&key, &outcome) {
                engine.remember(&call, key, answer.status, answer.body().unwrap_or_default());
            }
            outcome
        });
        if !self.shared.sync_to(number) {
            return Reply::Response(failure(&storage_failed()));
        }
        Reply::Response(match outcome {
            Ok(answer) => success(&answer),
            Err(fail) => failure(&fail),
        })
    }

    /// Authenticates, and takes the request apart.
    fn call(&self, request: &Request, route: &Route, args: Vec<String>) -> Result<Call, Fail> {
        let bearer = request.bearer();
        let who = match route.auth {
            Auth::Nobody => Principal::Nobody,
            _ => self.shared.act(|engine| engine.authenticate(bearer)).0?,
        };
        let (ws, agent) = match (who, route.auth) {
            (Principal::Nobody, _) => (0, 0),
            (Principal::Workspace(ws), Auth::Workspace | Auth::Either) => (ws, 0),
            (Principal::Agent { ws, agent }, Auth::Agent | Auth::Either) => (ws, agent),
            (Principal::Workspace(_), _) => {
                return Err(Fail::new(401, "unauthorized", "This route needs an agent token"));
            }
            (Principal::Agent { .. }, _) => {
                return Err(Fail::new(401, "unauthorized", "This route needs a workspace key"));
            }
        };
        let body = if request.body.trim_ascii().is_empty() {
            Map::new()
        } else {
            match serde_json::from_slice(&request.body) {
                Ok(Value::Object(body)) => body,
                Ok(_) => return Err(Fail::invalid("The body must be a JSON object")),
                Err(_) => return Err(Fail::new(400, "invalid_json", "The body is not JSON")),
            }
        };
        let query = request.query.iter().rev().cloned().collect();
        Ok(Call { ws, agent, args, query, body, bearer: bearer.map(str::to_string) })
    }

    /// `GET /v1/node/ws`: the token comes in the header or, as the SDK sends it, in `?token=`.
    fn node_socket(&self, request: &Request, drop_after: Option<std::time::Duration>) -> Reply {
        let token = request.bearer().or_else(|| request.query_value("token"));
        match self.shared.open_link(|engine| engine.open_link(token)) {
            Ok((link, lane)) => Reply::WebSocket(Box::new(NodeSession {
                shared: self.shared.clone(),
                link,
                lane,
                drop_after,
                drop_at: None,
            })),
            Err(fail) => Reply::Response(failure(&fail)),
        }
    }

    fn change_faults(&self, request: &Request, segments: &[String]) -> Response {
        let Some(faults) = &self.shared.faults else {
            let fail = Fail::new(403, "forbidden", "The engine was not started with --faults");
            return failure(&fail);
        };
        let done = |data: Value| Response::json(200, &json!({"ok": true, "data": data}));
        match (request.method.as_str(), segments.get(1).map(String::as_str)) {
            ("GET", None) => done(faults.show()),
            ("DELETE", None) => {
                faults.clear();
                done(json!({"rules": 0}))
            }
            ("POST", None) => match faults.set(&request.body) {
                Ok(count) => done(json!({"rules": count})),
                Err(why) => failure(&Fail::invalid(why)),
            },
            ("POST", Some("expire")) => {
                let (expired, number) = self.shared.act(Engine::expire_all);
                if !self.shared.sync_to(number) {
                    return failure(&storage_failed());
                }
                done(json!({"expired": expired}))
            }
            ("POST", Some("drop")) => done(json!({"dropped": self.shared.cut_links()})),
            _ => failure(&Fail::new(404, "not_found", "No such route")),
        }
    }
}
