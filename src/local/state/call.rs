//! What an HTTP route hands to the state and gets back.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// The route needs no credentials.
    Nobody,
    Workspace(u64),
    Agent {
        ws: u64,
        agent: u64,
    },
}

/// One authenticated request, taken apart.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub ws: u64,
    /// 0 on calls with a workspace key: no agent has that id.
    pub agent: u64,
    /// Values of the `:name` parts of the path, percent-decoded.
    pub args: Vec<String>,
    pub query: HashMap<String, String>,
    /// An object; empty when the request had no body.
    pub body: Map<String, Value>,
    /// The raw bearer, for the one route that looks at it without needing it.
    pub bearer: Option<String>,
}

/// A success: `{"ok":true,"data":…}`, `{"ok":true}`, or 204 without body.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub data: Option<Value>,
}

/// A failure: `{"ok":false,"error":{"code","message"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fail {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

pub type Outcome = Result<Answer, Fail>;

impl Answer {
    pub fn ok(data: Value) -> Answer {
        Answer { status: 200, data: Some(data) }
    }

    pub fn created(data: Value) -> Answer {
        Answer { status: 201, data: Some(data) }
    }

    /// `{"ok":true}` and nothing more.
    pub fn done() -> Answer {
        Answer { status: 200, data: None }
    }

    pub fn empty() -> Answer {
        Answer { status: 204, data: None }
    }

    /// The envelope; `None` for 204.
    pub fn body(&self) -> Option<Value> {
        match (&self.data, self.status) {
            (_, 204) => None,
            (Some(data), _) => Some(json!({"ok": true, "data": data})),
            (None, _) => Some(json!({"ok": true})),
        }
    }
}

impl Fail {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Fail {
        Fail { status, code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Fail {
        Fail::new(400, "invalid_request", message)
    }

    pub fn body(&self) -> Value {
        json!({"ok": false, "error": {"code": self.code, "message": self.message}})
    }
}

impl Call {
    pub fn arg(&self, index: usize) -> &str {
        self.args.get(index).map_or("", String::as_str)
    }

    /// A required text that is not blank.
    ///
    /// # Errors
    /// 400 `invalid_request`.
    pub fn text(&self, key: &str) -> Result<String, Fail> {
        match self.body.get(key) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
            _ => Err(Fail::invalid(format!("`{key}` must be a non-empty string"))),
        }
    }

    /// An optional text; `null` counts as absent.
    ///
    /// # Errors
    /// 400 `invalid_request` for another type.
    pub fn optional(&self, key: &str) -> Result<Option<String>, Fail> {
        match self.body.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Fail::invalid(format!("`{key}` must be a string"))),
        }
    }

    /// An optional object; `null` counts as absent.
    ///
    /// # Errors
    /// 400 `invalid_request` for another type.
    pub fn object(&self, key: &str) -> Result<Option<Map<String, Value>>, Fail> {
        match self.body.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object.clone())),
            Some(_) => Err(Fail::invalid(format!("`{key}` must be an object"))),
        }
    }

    /// An optional list of texts.
    ///
    /// # Errors
    /// 400 `invalid_request` for another type.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, Fail> {
        let wrong = || Fail::invalid(format!("`{key}` must be a list of strings"));
        match self.body.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(str::to_string).ok_or_else(wrong))
                .collect::<Result<_, _>>()
                .map(Some),
            Some(_) => Err(wrong()),
        }
    }

    /// `?limit=`, at least 1.
    ///
    /// # Errors
    /// 400 `invalid_request` when it is no positive integer.
    pub fn limit(&self, default: usize, most: usize) -> Result<usize, Fail> {
        match self.query.get("limit") {
            None => Ok(default),
            Some(text) => match text.parse::<usize>() {
                Ok(limit) if limit > 0 => Ok(limit.min(most)),
                _ => Err(Fail::invalid("`limit` must be a positive integer")),
            },
        }
    }

    /// A snowflake in the query, such as `before`; anything that is none counts as absent.
    pub fn id_in_query(&self, key: &str) -> Option<u64> {
        self.query.get(key).and_then(|text| text.parse().ok())
    }
}

/// A snowflake as JSON: a decimal string, never a number.
pub fn id(id: u64) -> Value {
    Value::String(id.to_string())
}
