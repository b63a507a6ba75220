//! Requests at the listener: one stream has one reading, wherever it is cut and whoever reads it.

use agent_relay_broker::http::intake::{Body, Framing, Head, Step, take_head};
use agent_relay_broker::http::{Limits, Request};

use crate::corpus;
use crate::rng::Rng;
use crate::run::{Target, Verdict};

/// Small, so that mutations reach the limits.
const BODY: usize = 2 << 10;

fn limits() -> Limits {
    Limits { head_bytes: 2 << 10, max_headers: 16, body_bytes: BODY, ..Limits::default() }
}

/// Reads a stream as a connection does.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
    open: Option<(Head, Body)>,
    /// Each with the number of bytes that were left of what had come.
    requests: Vec<(Head, Vec<u8>)>,
    refused: Option<u16>,
}

impl Reader {
    fn feed(&mut self, piece: &[u8], limits: &Limits) {
        self.buffer.extend_from_slice(piece);
        while self.refused.is_none() {
            let Some((head, body)) = &mut self.open else {
                if self.buffer.is_empty() {
                    return;
                }
                match take_head(&mut self.buffer, limits) {
                    Step::Done(head) => match Body::new(head.framing, BODY) {
                        Ok(body) => self.open = Some((head, body)),
                        Err(response) => self.refused = Some(response.status),
                    },
                    Step::More => return,
                    Step::Refused(response) => self.refused = Some(response.status),
                }
                continue;
            };
            match body.take(&mut self.buffer) {
                Step::Done(body) => {
                    assert!(body.len() <= BODY);
                    self.requests.push((head.clone(), body));
                    self.open = None;
                }
                Step::More => return,
                Step::Refused(response) => self.refused = Some(response.status),
            }
        }
    }
}

/// The end of the head that starts `bytes`, found without the parser: the first empty line after a line.
fn end_of_head(bytes: &[u8]) -> Option<(usize, Vec<&[u8]>)> {
    let mut lines = Vec::new();
    let mut at = 0;
    loop {
        let length = bytes[at..].iter().position(|byte| *byte == b'\n')?;
        let line = &bytes[at..at + length];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        at += length + 1;
        match (line.is_empty(), lines.is_empty()) {
            (true, true) => {}
            (true, false) => return Some((at, lines)),
            (false, _) => lines.push(line),
        }
    }
}

/// What a chunked body says, read in the plainest way; its data and the bytes it takes.
fn plain_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut data = Vec::new();
    let mut at = 0;
    let line = |at: usize| {
        let length = bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
        Some((std::str::from_utf8(&bytes[at..at + length]), at + length + 2))
    };
    loop {
        // An extension need not be text.
        let (size, next) = match line(at)? {
            (Ok(text), next) => (text.split(';').next()?.trim_end().to_string(), next),
            (Err(_), next) => {
                let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                (String::from_utf8_lossy(&bytes[at..at + digits]).into_owned(), next)
            }
        };
        let size = usize::from_str_radix(&size, 16).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        data.extend_from_slice(bytes.get(at..at + size)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let end = at + bytes[at..].iter().position(|byte| *byte == b'\n')?;
        let empty = bytes[at..end] == *b"\r";
        at = end + 1;
        if empty {
            return Some((data, at));
        }
    }
}

/// Another reader of the same bytes finds the same requests, and nothing on which two readers could differ.
fn second_opinion(stream: &[u8], requests: &[(Head, Vec<u8>)]) {
    let mut at = 0;
    for (head, body) in requests {
        let (length, lines) = end_of_head(&stream[at..]).expect("an accepted head has an end");
        at += length;
        let mut lengths = Vec::new();
        let mut codings = Vec::new();
        for line in &lines[1..] {
            assert!(!matches!(line[0], b' ' | b'\t'), "a folded header was accepted");
            let colon = line.iter().position(|byte| *byte == b':').expect("an accepted header has a colon");
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic), "an odd header name was accepted");
            assert!(!value.contains(&0) && !value.contains(&b'\r'), "an odd header value was accepted");
            if name.eq_ignore_ascii_case(b"content-length") {
                lengths.push(value);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                codings.push(value);
            }
        }
        assert_eq!(lines.len() - 1, head.request.headers.len());
        match head.framing {
            Framing::Length(length) => {
                assert!(codings.is_empty(), "a transfer coding was overlooked");
                let plain = |text: &&[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
                assert!(lengths.iter().all(|text| plain(text) == Some(length)), "lengths were overlooked");
                assert!(length == 0 || !lengths.is_empty());
                assert_eq!(&stream[at..at + length as usize], body);
                at += length as usize;
            }
            Framing::Chunked => {
                assert!(lengths.is_empty() && codings.len() == 1 && codings[0].eq_ignore_ascii_case(b"chunked"));
                let (data, length) = plain_chunks(&stream[at..]).expect("an accepted body has an end");
                assert_eq!(&data, body);
                at += length;
            }
        }
    }
}

/// The request as a careful client would write it gives the same request.
fn written_again(head: &Head, body: &[u8]) {
    let kept = |request: &Request| -> Vec<(String, String)> {
        let framing = ["content-length", "transfer-encoding"];
        let headers = request.headers.iter();
        headers.filter(|(name, _)| !framing.contains(&name.to_ascii_lowercase().as_str())).cloned().collect()
    };
    let request = &head.request;
    let lines: String = kept(request).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (method, path) = (&request.method, &request.path);
    let mut bytes = format!("{method} {path} HTTP/1.1\r\n{lines}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    let mut reader = Reader::default();
    reader.feed(&bytes, &Limits::default());
    let [(again, content)] = &reader.requests[..] else {
        panic!("{} became {:?}", bytes.escape_ascii(), reader.refused)
    };
    assert_eq!((&again.request.method, &again.request.path), (method, path));
    assert_eq!(kept(&again.request), kept(request));
    assert_eq!(content, body);
    assert!(reader.buffer.is_empty() && reader.open.is_none() && reader.refused.is_none());
}

fn read(input: &[u8], rng: &mut Rng, limits: &Limits) -> Verdict {
    let mut whole = Reader::default();
    whole.feed(input, limits);
    let mut cut = Reader::default();
    let longest = [1 + input.len() / 3, 40, 700][rng.below(3)];
    let mut rest = input;
    while !rest.is_empty() {
        // Many short heads are cut everywhere, long ones now and then.
        let (piece, after) = rest.split_at(rest.len().min(1 + rng.below(longest)));
        cut.feed(piece, limits);
        rest = after;
    }
    assert_eq!(cut.requests, whole.requests, "cut differently, read differently");
    assert_eq!(cut.refused.is_some(), whole.refused.is_some(), "{:?} and {:?}", cut.refused, whole.refused);
    if whole.refused.is_none() {
        assert_eq!((&cut.buffer, &cut.open), (&whole.buffer, &whole.open));
    }
    second_opinion(input, &whole.requests);
    for (head, body) in &whole.requests {
        written_again(head, body);
        head.request.segments();
        head.request.bearer();
        head.request.is_upgrade();
    }
    match (whole.refused, whole.requests.is_empty()) {
        (Some(_), _) => Verdict::Refused,
        (None, false) => Verdict::Accepted,
        (None, true) => Verdict::Unfinished,
    }
}

#[test]
fn requests_at_the_listener() {
    let target = Target { name: "requests", corpus: corpus::requests(), words: corpus::REQUEST_WORDS, share: 5 };
    let limits = limits();
    target.run(|input, rng| read(input, rng, &limits));
}
