//! Reads the head of a request: pure, from bytes to a request and the framing of its body.

use super::message::{Request, Response, parse_query};

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`, 0 without one.
    Length(u64),
    Chunked,
}

/// A request without its body, and what the connection must know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub request: Request,
    pub framing: Framing,
    /// The peer wants to go on after this request.
    pub keep_alive: bool,
    /// The peer waits for `100 Continue`.
    pub expects_continue: bool,
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub(super) enum Parsed {
    /// A head that took so many bytes.
    Complete(Box<Head>, usize),
    Partial,
    /// To be answered so, and then closed.
    Refused(Response),
}

fn refuse(status: u16, why: &str) -> Parsed {
    Parsed::Refused(Response::text(status, why))
}

/// Parses `bytes`, which start at a request line (or at the empty lines that some clients send before one).
pub(super) fn parse(bytes: &[u8], max_headers: usize) -> Parsed {
    let mut slots = vec![httparse::EMPTY_HEADER; max_headers];
    let mut raw = httparse::Request::new(&mut slots);
    let used = match raw.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => return refuse(431, "too many headers"),
        Err(httparse::Error::Version) => return refuse(505, "HTTP version not supported"),
        Err(error) => return refuse(400, &format!("malformed request: {error}")),
    };
    let (Some(method), Some(target), Some(minor)) = (raw.method, raw.path, raw.version) else {
        return refuse(400, "malformed request line");
    };
    let Some(target) = origin_form(method, target) else {
        return refuse(400, "malformed request target");
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        method: method.into(),
        path: path.into(),
        query: parse_query(query),
        headers: raw.headers.iter().map(|header| (header.name.to_string(), readable(header.value))).collect(),
        ..Request::default()
    };
    let framing = match framing(&request, minor) {
        Ok(framing) => framing,
        Err((status, why)) => return refuse(status, why),
    };
    let expects_continue = match request.header("expect") {
        None => false,
        Some(value) if value.trim().eq_ignore_ascii_case("100-continue") => minor >= 1,
        Some(_) => return refuse(417, "unknown expectation"),
    };
    let keep_alive = match minor {
        0 => request.has_token("connection", "keep-alive"),
        _ => !request.has_token("connection", "close"),
    };
    Parsed::Complete(Box::new(Head { request, framing, keep_alive, expects_continue }), used)
}

/// The path and query of a request target; `*` only for OPTIONS.
fn origin_form<'a>(method: &str, target: &'a str) -> Option<&'a str> {
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Some(target);
    }
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    match rest.find(['/', '?']) {
        Some(at) if rest.as_bytes()[at] == b'/' => Some(&rest[at..]),
        Some(_) => None,
        None => Some("/"),
    }
}

/// UTF-8 as it is; anything else as Latin-1, which the old clients that send it mean.
fn readable(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_string(),
        Err(_) => value.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// Anything ambiguous is refused: two readers of one byte stream must not disagree where a request ends.
fn framing(request: &Request, minor: u8) -> Result<Framing, (u16, &'static str)> {
    let mut codings = request.header_values("transfer-encoding");
    let mut lengths = request.header_values("content-length");
    if let Some(coding) = codings.next() {
        if lengths.next().is_some() {
            return Err((400, "both Content-Length and Transfer-Encoding"));
        }
        if minor == 0 {
            return Err((400, "Transfer-Encoding in an HTTP/1.0 request"));
        }
        // Blanks around it are gone; what else Unicode calls blank is part of the name of another coding.
        if codings.next().is_some() || !coding.eq_ignore_ascii_case("chunked") {
            return Err((501, "unknown transfer coding"));
        }
        return Ok(Framing::Chunked);
    }
    let Some(first) = lengths.next() else {
        return Ok(Framing::Length(0));
    };
    if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err((400, "malformed Content-Length"));
    }
    if lengths.any(|other| other != first) {
        return Err((400, "contradicting Content-Length headers"));
    }
    first.parse().map(Framing::Length).map_err(|_| (413, "body too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Head, u16> {
        match parse(text.as_bytes(), 8) {
            Parsed::Complete(head, used) => {
                assert_eq!(used, text.len());
                Ok(*head)
            }
            Parsed::Partial => Err(0),
            Parsed::Refused(response) => Err(response.status),
        }
    }

    #[test]
    fn framing_rules() {
        let table: [(&str, Result<Framing, u16>); 17] = [
            ("", Ok(Framing::Length(0))),
            ("Content-Length: 12\r\n", Ok(Framing::Length(12))),
            ("Content-Length: 12\r\ncontent-length: 12\r\n", Ok(Framing::Length(12))),
            ("Content-Length: 12\r\nContent-Length: 13\r\n", Err(400)),
            ("Content-Length: abc\r\n", Err(400)),
            ("Content-Length: +5\r\n", Err(400)),
            ("Content-Length: -5\r\n", Err(400)),
            ("Content-Length:\r\n", Err(400)),
            ("Content-Length: 5, 5\r\n", Err(400)),
            ("Content-Length: 9000000000000000000\r\n", Ok(Framing::Length(9_000_000_000_000_000_000))),
            ("Content-Length: 99999999999999999999999\r\n", Err(413)),
            ("Transfer-Encoding: Chunked\r\n", Ok(Framing::Chunked)),
            ("Transfer-Encoding: gzip\r\n", Err(501)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(501)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(501)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", Err(400)),
            ("Content-Length : 3\r\n", Err(400)),
        ];
        for (headers, expected) in table {
            let got = parsed(&format!("POST / HTTP/1.1\r\n{headers}\r\n")).map(|head| head.framing);
            assert_eq!(got, expected, "{headers:?}");
        }
        assert_eq!(parsed("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(400));
    }

    #[test]
    fn request_lines() {
        let path = |line: &str| parsed(&format!("{line}\r\n\r\n")).map(|head| head.request.path);
        assert_eq!(path("GET /a%20b?c=d HTTP/1.1"), Ok("/a%20b".into()));
        assert_eq!(path("GET http://h:1/x?y HTTP/1.1"), Ok("/x".into()));
        assert_eq!(path("GET http://h HTTP/1.1"), Ok("/".into()));
        assert_eq!(path("OPTIONS * HTTP/1.1"), Ok("*".into()));
        assert_eq!(path("GET * HTTP/1.1"), Err(400));
        assert_eq!(path("GET x HTTP/1.1"), Err(400));
        assert_eq!(path("GET ftp://h/x HTTP/1.1"), Err(400));
        assert_eq!(path("GET / HTTP/2.0"), Err(505));
        assert_eq!(path("\u{1}\u{2}"), Err(400));
    }

    #[test]
    fn keep_alive_and_expectations() {
        let head = |text: &str| parsed(text).expect(text);
        assert!(head("GET / HTTP/1.1\r\n\r\n").keep_alive);
        assert!(!head("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n").keep_alive);
        assert!(!head("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(head("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(head("PUT / HTTP/1.1\r\nExpect: 100-Continue\r\n\r\n").expects_continue);
        assert!(!head("PUT / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
        assert_eq!(parsed("PUT / HTTP/1.1\r\nExpect: tea\r\n\r\n"), Err(417));
    }

    #[test]
    fn header_counts_and_foreign_bytes() {
        match parse(b"POST / HTTP/1.1\r\nTransfer-Encoding:\xa0chunked\r\n\r\n", 8) {
            Parsed::Refused(response) => assert_eq!(response.status, 501),
            other => panic!("{other:?}"),
        }
        assert_eq!(parsed(&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(9))), Err(431));
        assert_eq!(parsed("GET / HTTP/1.1\r\nA: b"), Err(0));
        match parse(b"GET / HTTP/1.1\r\nX-Name: caf\xe9\r\n\r\n", 8) {
            Parsed::Complete(head, _) => assert_eq!(head.request.header("x-name"), Some("café")),
            other => panic!("{other:?}"),
        }
    }
}
