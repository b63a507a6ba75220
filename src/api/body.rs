//! JSON bodies of requests. Refusals here are plain text, as clients know them.

use serde_json::Value;

use crate::http::{Request, Response};

/// The body of a route that needs one.
///
/// # Errors
/// 415 for another content type, 400 for what is not JSON.
pub(super) fn required(request: &Request) -> Result<Value, Response> {
    if !is_json(request) {
        return Err(Response::text(415, "Expected request with `Content-Type: application/json`"));
    }
    serde_json::from_slice(&request.body)
        .map_err(|error| Response::text(400, &format!("Failed to parse the request body as JSON: {error}")))
}

/// The body of a route that can do without. An empty body is none, whatever its content type says.
///
/// # Errors
/// As [`required`].
pub(super) fn optional(request: &Request) -> Result<Option<Value>, Response> {
    if request.body.is_empty() { Ok(None) } else { required(request).map(Some) }
}

/// 422: JSON of a wrong shape.
pub(super) fn wrong_shape(why: &str) -> Response {
    Response::text(422, &format!("Failed to deserialize the JSON body into the target type: {why}"))
}

fn is_json(request: &Request) -> bool {
    let kind = request.header("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// The first of the names, in order of precedence, under which there is a text.
pub(super) fn text<'a>(body: &'a Value, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| body.get(name)?.as_str())
}

/// An optional text of a typed body.
///
/// # Errors
/// 422 for anything but a text or `null`.
pub(super) fn text_or_null<'a>(body: &'a Value, name: &str) -> Result<Option<&'a str>, Response> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_shape(&format!("`{name}` must be a text"))),
    }
}

/// As [`text`], trimmed, and nothing when blank.
pub(super) fn filled(body: &Value, names: &[&str]) -> Option<String> {
    text(body, names).map(str::trim).filter(|text| !text.is_empty()).map(str::to_string)
}

/// The first of the names under which there is anything but `null`.
pub(super) fn given<'a>(body: &'a Value, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| body.get(name).filter(|value| !value.is_null()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn posted(kind: Option<&str>, body: &str) -> Request {
        let headers = kind.map(|kind| ("Content-Type".to_string(), kind.to_string())).into_iter().collect();
        Request { headers, body: body.into(), ..Request::default() }
    }

    #[test]
    fn content_types_and_syntax() {
        let table = [
            (Some("application/json"), "{}", Ok(json!({}))),
            (Some("Application/JSON; charset=utf-8"), "1", Ok(json!(1))),
            (Some("application/vnd.x+json"), "null", Ok(json!(null))),
            (Some("text/json"), "{}", Err(415)),
            (None, "{}", Err(415)),
            (None, "", Err(415)),
            (Some("application/json"), "", Err(400)),
            (Some("application/json"), "{", Err(400)),
        ];
        for (kind, body, expected) in table {
            assert_eq!(required(&posted(kind, body)).map_err(|refusal| refusal.status), expected, "{kind:?} {body}");
        }
        assert_eq!(optional(&posted(Some("application/json"), "")), Ok(None));
        assert_eq!(optional(&posted(None, "{}")).map_err(|refusal| refusal.status), Err(415));
    }

    #[test]
    fn names_have_an_order_and_wrong_types_do_not_count() {
        let body = json!({"a": 1, "b": " x ", "c": "y", "d": null});
        assert_eq!(text(&body, &["a", "b", "c"]), Some(" x "));
        assert_eq!(filled(&body, &["c", "b"]), Some("y".into()));
        assert_eq!(given(&body, &["d", "a"]), Some(&json!(1)));
    }
}
