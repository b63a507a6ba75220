//! Faults on request, for tests of clients. Served only by an engine that was started for it.
//!
//! `POST /__faults {"rules":[rule…]}` replaces the rules; `GET /__faults` shows them with the number of requests each has
//! matched; `DELETE /__faults` clears them; `POST /__faults/drop` cuts every open node socket; `POST /__faults/expire` lets
//! every delivery that is still open expire, as if its days had passed. A rule:
//!
//! ```text
//! {"route": "/v1/agents/:name",     path as in the route table; a last segment * takes any rest
//!  "method": "POST",                default: any
//!  "nth": 2,                        the first matching request it touches, from 1 (default 1)
//!  "count": 1,                      how many it touches (default 1, 0 = all that follow)
//!  "kind": "status", …}
//! ```
//!
//! | kind | fields | effect |
//! |---|---|---|
//! | `status` | `status`, `code?`, `message?`, `body?`, `retry_after?` | that answer, without the effect; also refuses an upgrade |
//! | `delay` | `ms` | waits, then goes on; an idempotency key is in progress meanwhile |
//! | `hang` | `ms` | holds the connection silent, then cuts it; no effect |
//! | `cut` | | cuts at once; no effect |
//! | `garbage` | | 200 with a body that is not JSON; no effect |
//! | `lose_answer` | | the effect happens, the answer is cut |
//! | `silent` | | node socket: accepted, then deaf and mute |
//! | `drop` | `ms` | node socket: accepted, works, is cut so long after it opened |
//!
//! `{"route":"/v1/node/ws","kind":"status","status":401}` refuses node sockets. The first rule that touches a request wins.

use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::routes;
use crate::http::Response;

/// No injected pause is longer.
const LONGEST_MS: u64 = 300_000;
const MOST_RULES: usize = 256;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Kind {
    Status {
        status: u16,
        #[serde(default)]
        code: Option<String>,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        body: Option<Value>,
        #[serde(default)]
        retry_after: Option<Value>,
    },
    Delay {
        ms: u64,
    },
    Hang {
        ms: u64,
    },
    Cut,
    Garbage,
    LoseAnswer,
    Silent,
    Drop {
        ms: u64,
    },
}

fn one() -> u64 {
    1
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Rule {
    route: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default = "one")]
    nth: u64,
    #[serde(default = "one")]
    count: u64,
    #[serde(flatten)]
    kind: Kind,
    /// Matching requests so far.
    #[serde(default)]
    seen: u64,
}

#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Rule>>);

impl Faults {
    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Replaces the rules by those of `{"rules":[…]}`.
    ///
    /// # Errors
    /// What is wrong with them; the old ones stay.
    pub fn set(&self, body: &[u8]) -> Result<usize, String> {
        #[derive(Deserialize)]
        struct Wanted {
            rules: Vec<Rule>,
        }
        let wanted: Wanted = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        if wanted.rules.len() > MOST_RULES {
            return Err(format!("more than {MOST_RULES} rules"));
        }
        if wanted
            .rules
            .iter()
            .any(|rule| matches!(rule.kind, Kind::Status { status, .. } if !(200..600).contains(&status)))
        {
            return Err("`status` must be between 200 and 599".into());
        }
        let count = wanted.rules.len();
        *self.rules() = wanted.rules;
        Ok(count)
    }

    pub fn clear(&self) {
        self.rules().clear();
    }

    pub fn show(&self) -> Value {
        json!({"rules": *self.rules()})
    }

    /// Counts a request and says what is to happen to it.
    pub fn strike(&self, method: &str, segments: &[String]) -> Option<Kind> {
        let mut chosen = None;
        for rule in self.rules().iter_mut() {
            let concerned = rule.method.as_ref().is_none_or(|m| m == "*" || m.eq_ignore_ascii_case(method))
                && routes::matches(&rule.route, segments).is_some();
            if concerned {
                rule.seen += 1;
                let touched =
                    rule.seen >= rule.nth.max(1) && (rule.count == 0 || rule.seen < rule.nth.max(1) + rule.count);
                if touched && chosen.is_none() {
                    chosen = Some(rule.kind.clone());
                }
            }
        }
        chosen
    }
}

pub(super) fn length(ms: u64) -> Duration {
    Duration::from_millis(ms.min(LONGEST_MS))
}

/// The answer of a `status` rule.
pub(super) fn response(
    status: u16,
    code: Option<String>,
    message: Option<String>,
    body: Option<Value>,
    retry_after: Option<Value>,
) -> Response {
    let body = match body {
        Some(Value::String(raw)) => Response::text(status, &raw),
        Some(body) => Response::json(status, &body),
        None => Response::json(
            status,
            &json!({"ok": false, "error": {
                "code": code.unwrap_or_else(|| format!("injected_{status}")),
                "message": message.unwrap_or_else(|| "injected fault".into()),
            }}),
        ),
    };
    match retry_after {
        Some(Value::String(text)) => body.with_header("Retry-After", &text),
        Some(Value::Null) | None => body,
        Some(number) => body.with_header("Retry-After", &number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_touch_the_requests_they_name() {
        let faults = Faults::default();
        let path = |text: &str| text.split('/').map(str::to_string).collect::<Vec<_>>();
        faults
            .set(
                br#"{"rules":[{"route":"/v1/agents/:name","method":"get","nth":2,"count":2,"kind":"cut"},
                              {"route":"/v1/*","count":0,"kind":"delay","ms":5}]}"#,
            )
            .unwrap();
        let delay = Some(Kind::Delay { ms: 5 });
        let hits: Vec<_> = (0..4).map(|_| faults.strike("GET", &path("v1/agents/al"))).collect();
        assert_eq!(hits, [delay.clone(), Some(Kind::Cut), Some(Kind::Cut), delay.clone()]);
        assert_eq!(faults.strike("POST", &path("v1/dm")), delay);
        assert_eq!(faults.strike("POST", &path("health")), None);
        for bad in [
            "{}",
            r#"{"rules":[{"route":"/x","kind":"explode"}]}"#,
            r#"{"rules":[{"route":"/x","kind":"status","status":99}]}"#,
        ] {
            assert!(faults.set(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(faults.show()["rules"][1]["seen"], 5, "the old rules stay");
    }
}
