//! Requests as a handler sees them, and answers as they go to the wire.

use std::io::Cursor;
use std::net::SocketAddr;

use serde_json::Value;

/// One request. Header names are as the peer wrote them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Still percent-encoded, without the query.
    pub path: String,
    /// Decoded, in order.
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub peer: Option<SocketAddr>,
}

impl Request {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_values(name).next()
    }

    /// All headers of that name, whatever their case, in order.
    pub fn header_values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether a header that is a comma-separated list holds `token`, whatever its case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.header_values(name).flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// The first query parameter of that name.
    pub fn query_value(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The path's segments, percent-decoded: `/a/b%2Fc` gives `a`, `b/c`; `/` gives one empty segment; `/a/` ends with an
    /// empty one. `None` when a segment does not decode to UTF-8.
    pub fn segments(&self) -> Option<Vec<String>> {
        self.path
            .strip_prefix('/')
            .unwrap_or(&self.path)
            .split('/')
            .map(|segment| String::from_utf8(percent_decode(segment)).ok())
            .collect()
    }

    /// The credential of `Authorization: Bearer …`: scheme whatever its case, trimmed; `None` when blank.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, credential) = self.header("authorization")?.trim().split_once(char::is_whitespace)?;
        let credential = credential.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty()).then_some(credential)
    }

    /// Whether the peer asks for a WebSocket, properly or not.
    pub fn is_upgrade(&self) -> bool {
        self.has_token("upgrade", "websocket")
    }
}

/// Percent-encodes one path segment: everything but the unreserved characters.
pub fn encode_segment(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut path, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
        path
    })
}

/// Decodes `%XX`; what is not a proper escape stays as it is.
pub fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|digits| {
            let high = (digits[0] as char).to_digit(16)?;
            let low = (digits[1] as char).to_digit(16)?;
            Some((high * 16 + low) as u8)
        });
        match escape {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// `a=1&b=x+y` as pairs; a name without `=` has an empty value.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| String::from_utf8_lossy(&percent_decode(&text.replace('+', " "))).into_owned();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// One answer. `Content-Length`, `Date`, `Server` and `Connection` are added when it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after it.
    pub close: bool,
}

impl Response {
    pub fn json(status: u16, body: &Value) -> Response {
        let body = body.to_string().into_bytes();
        Response { status, body, ..Response::default() }.with_header("Content-Type", "application/json")
    }

    pub fn text(status: u16, body: &str) -> Response {
        Response { status, body: body.as_bytes().to_vec(), ..Response::default() }
            .with_header("Content-Type", "text/plain; charset=utf-8")
    }

    pub fn empty(status: u16) -> Response {
        Response { status, ..Response::default() }
    }

    pub fn with_header(mut self, name: &str, value: &str) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The connection ends after this answer.
    pub fn closing(mut self) -> Response {
        self.close = true;
        self
    }

    /// The whole answer as bytes. `head_only`: the answer to a HEAD request, with the length of the body it stands for.
    /// A header that HTTP cannot carry is left out with a warning.
    pub(super) fn render(&self, head_only: bool) -> Vec<u8> {
        let headers = self
            .headers
            .iter()
            .filter_map(|(name, value)| {
                let header = tiny_http::Header::from_bytes(name.as_bytes(), value.as_bytes()).ok();
                let header = header.filter(|_| !value.contains(['\r', '\n', '\0']));
                if header.is_none() {
                    log::warn!("answer header {name:?} cannot be sent and is left out");
                }
                header
            })
            .collect();
        let status = tiny_http::StatusCode(self.status);
        let mut bytes = Vec::with_capacity(256 + self.body.len());
        // Without a threshold tiny_http would chunk bodies from 32 KiB on. Writing to a Vec cannot fail.
        let _ = tiny_http::Response::new(status, headers, Cursor::new(&self.body), Some(self.body.len()), None)
            .with_chunked_threshold(usize::MAX)
            .raw_print(&mut bytes, tiny_http::HTTPVersion(1, 1), &[], head_only, None);
        if self.close {
            // tiny_http keeps this header for itself.
            let line_end = bytes.windows(2).position(|pair| pair == b"\r\n").map_or(bytes.len(), |at| at + 2);
            bytes.splice(line_end..line_end, b"Connection: close\r\n".iter().copied());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_encoded() {
        assert_eq!(encode_segment("gen eral"), "gen%20eral");
        assert_eq!(encode_segment("a/b?c#ü~"), "a%2Fb%3Fc%23%C3%BC~");
    }

    #[test]
    fn segments_are_decoded_one_by_one() {
        let request = |path: &str| Request { path: path.into(), ..Request::default() };
        assert_eq!(request("/api/spawned/a%2Fb%20c").segments().unwrap(), ["api", "spawned", "a/b c"]);
        assert_eq!(request("/a/").segments().unwrap(), ["a", ""]);
        assert_eq!(request("/").segments().unwrap(), [""]);
        assert_eq!(request("/100%").segments().unwrap(), ["100%"]);
        assert_eq!(request("/%ff").segments(), None);
    }

    #[test]
    fn queries_are_decoded() {
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(
            parse_query("a=1&b=x+y%26&c&&=d"),
            [pair("a", "1"), pair("b", "x y&"), pair("c", ""), pair("", "d")]
        );
    }

    #[test]
    fn a_bearer_is_found_whatever_its_case() {
        let with =
            |value: &str| Request { headers: vec![("AUTHORIZATION".into(), value.into())], ..Request::default() };
        assert_eq!(with("bEARer   key ").bearer(), Some("key"));
        assert_eq!(with("Bearer ").bearer(), None);
        assert_eq!(with("Basic key").bearer(), None);
    }

    #[test]
    fn answers_are_rendered_whole() {
        let text = |response: Response, head_only| String::from_utf8(response.render(head_only)).unwrap();
        let big = text(Response::text(200, &"x".repeat(40_000)), false);
        assert!(big.starts_with("HTTP/1.1 200 OK\r\n"), "{}", &big[..80]);
        assert!(big.contains("\r\nContent-Length: 40000\r\n"), "{}", &big[..200]);
        assert!(big.ends_with("x"));
        let closing = text(Response::text(503, "later").closing(), false);
        assert!(closing.starts_with("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"), "{closing}");
        let head = text(Response::text(200, "abc"), true);
        assert!(head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        let split = text(Response::empty(200).with_header("X-A", "a\r\nX-B: b").with_header("X-ö", "c"), false);
        assert!(!split.contains("X-"), "{split}");
    }
}
