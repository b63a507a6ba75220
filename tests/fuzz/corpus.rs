//! What the mutations start from: the recorded frames, and requests made by hand.

use serde_json::Value;

const FROM_ENGINE: &str = include_str!("../../fixtures/wire/node-from-engine.json");
const TO_ENGINE: &str = include_str!("../../fixtures/wire/node-to-engine.json");
const FROM_SIDECAR: &str = include_str!("../../fixtures/wire/fleet-from-sidecar.json");
const REQUESTS: &str = include_str!("../../fixtures/wire/engine-requests.json");

fn recorded(fixture: &str) -> Vec<Vec<u8>> {
    let cases: Value = serde_json::from_str(fixture).expect("a fixture is JSON");
    cases.as_object().expect("by name").values().map(|case| case.to_string().into_bytes()).collect()
}

pub fn frames_from_the_engine() -> Vec<Vec<u8>> {
    let mut frames = recorded(FROM_ENGINE);
    frames.push(
        r#" { "type" : "deliver", "v": 1, "agent": "\u00e9\ud83d\ude00\n", "msg_id": "m", "seq": 1, "payload": {"a":[[[1.5e3,-0.0,true,null]]]} } "#
            .into(),
    );
    frames
}

pub fn frames_to_the_engine() -> Vec<Vec<u8>> {
    recorded(TO_ENGINE)
}

pub fn frames_of_a_sidecar() -> Vec<Vec<u8>> {
    recorded(FROM_SIDECAR)
}

pub const FRAME_WORDS: &[&[u8]] = &[
    b"[",
    b"{\"a\":",
    b"]",
    b"}",
    b"null",
    b"true",
    b"\"\"",
    b"\"v\":1,",
    b"\"v\":2,",
    b"\"type\":\"deliver\",",
    b"\"type\":\"action.invoke\",",
    b"\"type\":\"reply\",",
    b"\"type\":\"error\",",
    b"\"type\":\"ping\",",
    b"\"type\":\"hello\",",
    b"\"request_id\":",
    b"\"manifest\":",
    b"\"supervision\":",
    b"\"type\":\"delivery.ack\",",
    b"\"type\":\"inventory.sync\",",
    b"\"type\":\"node.heartbeat\",",
    b"\"seq\":",
    b"\"seq\":0,",
    b"\"agent\":\"al\",",
    b"\"msg_id\":\"m\",",
    b"\"payload\":{},",
    b"\"payload\":",
    b"\"data\":",
    b"\"text\":",
    b"\"attachments\":",
    b"\"filename\":",
    b"\"output\":",
    b"\"error\":",
    b"\"mode\":\"steer\",",
    b"\"agents\":",
    b",",
    b":",
    b"\"",
    b"\\",
];

/// Streams of requests.
pub fn requests() -> Vec<Vec<u8>> {
    let chunks = "4;ext=\"a;b\"\r\nWiki\r\n5 \r\npedia\r\n0\r\nExpires: never\r\n\r\n";
    let chunked = format!("POST /api/send HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let long = "x".repeat(900);
    let mut streams: Vec<Vec<u8>> = [
        "GET /health HTTP/1.1\r\nHost: 127.0.0.1:3888\r\n\r\n".to_string(),
        "GET /api/spawned/a%2Fb/snapshot?format=plain&x=%ff+y HTTP/1.1\r\nHost: localhost\r\nX-API-Key: k\r\n\r\n".into(),
        "POST /api/spawn HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"name\":\"al\"}".into(),
        "PUT /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc".into(),
        "POST /a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.0\r\n\r\n".into(),
        "GET /ws?sinceSeq=0 HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".into(),
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".into(),
        "GET http://h:1/x?y HTTP/1.1\r\nhost: h\r\nAuthorization: Bearer  key \r\nConnection: close\r\n\r\n".into(),
        "\r\n\r\nGET / HTTP/1.1\nHost: h\n\n".into(),
        "POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello".into(),
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(15)),
        format!("GET /{long} HTTP/1.1\r\nHost: h\r\nCookie: {long}\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nContent-Length: 1800\r\n\r\n{long}{long}"),
        format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n384\r\n{long}\r\n5;{long}\r\nabcde\r\n0\r\nT: {long}\r\n\r\n"),
        format!("{chunked}GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        chunked,
    ]
    .map(String::into_bytes)
    .into();
    for body in recorded(REQUESTS) {
        let mut request =
            format!("POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend(body);
        streams.push(request);
    }
    streams.push(b"GET / HTTP/1.1\r\nX-Name: caf\xe9\r\n\r\n".to_vec());
    streams
}

pub const REQUEST_WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\r\n ",
    b"\r\n\t",
    b" ",
    b"\t",
    b":",
    b"A: b\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 6\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"Content-Length: 4294967295\r\n",
    b"Content-Length : 5\r\n",
    b"Content-Length:\t5\r\n",
    b"content-length: +5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content_Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"transfer-encoding: Chunked \r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding\r\n : chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"5\r\nhello\r\n",
    b"fffffffffffffff\r\n",
    b"10000000000000000\r\n",
    b"5;x\r\nhello\r\n",
    b";",
    b"GET / HTTP/1.1\r\n",
    b"POST /x HTTP/1.1\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"http://",
    b"*",
    b"OPTIONS",
    b"?",
    b"%",
    b"%00",
    b"chunked",
    b"xxxxxxxxxxxxxxxx",
];
