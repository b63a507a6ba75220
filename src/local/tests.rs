//! The engine over real sockets: HTTP with `ureq`, node sockets with `tungstenite`.

use std::collections::HashSet;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

use super::{Options, Server};

const PATIENCE: Duration = Duration::from_secs(10);

struct Client {
    agent: ureq::Agent,
    url: String,
    key: String,
}

fn start(data: Option<PathBuf>) -> (Server, Client) {
    let server = Server::start(Options { listen: ("127.0.0.1".into(), 0), data, faults: true }).expect("an engine");
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .proxy(None)
        .build()
        .new_agent();
    let client = Client { agent, url: server.url(), key: String::new() };
    (server, client)
}

/// With a workspace.
fn started(data: Option<PathBuf>) -> (Server, Client) {
    let (server, mut client) = start(data);
    let made = client.post("/v1/workspaces", "", json!({"name": "w"}));
    client.key = made.1["data"]["api_key"].as_str().expect("a key").to_string();
    (server, client)
}

impl Client {
    /// Status and JSON (`null` when the body is none).
    fn post(&self, path: &str, token: &str, body: Value) -> (u16, Value) {
        let request = self.agent.post(format!("{}{path}", self.url)).header("authorization", format!("Bearer {token}"));
        read(request.send(body.to_string()).expect("an answer"))
    }

    fn get(&self, path: &str, token: &str) -> (u16, Value) {
        let request = self.agent.get(format!("{}{path}", self.url)).header("authorization", format!("Bearer {token}"));
        read(request.call().expect("an answer"))
    }

    /// A registered agent: id and token.
    fn register(&self, name: &str) -> (String, String) {
        let (status, made) = self.post("/v1/agents", &self.key, json!({"name": name}));
        assert_eq!(status, 201, "{made}");
        let text = |key: &str| made["data"][key].as_str().expect("a text").to_string();
        (text("id"), text("token"))
    }

    fn mint(&self, name: &str) -> String {
        let (_, made) = self.post("/v1/nodes", &self.key, json!({"name": name, "node_id": format!("node_{name}")}));
        made["data"]["token"].as_str().expect("a token").to_string()
    }

    fn faults(&self, rules: Value) {
        let (status, answer) = self.post("/__faults", "", json!({"rules": rules}));
        assert_eq!(status, 200, "{answer}");
    }

    fn connect(&self, token: &str) -> Result<Node, tungstenite::Error> {
        let mut request = format!("{}/v1/node/ws", self.url.replace("http", "ws")).into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        let (socket, _) = tungstenite::connect(request)?;
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Node { socket })
    }

    /// A node that is registered.
    fn node(&self, name: &str) -> Node {
        let mut node = self.connect(&self.mint(name)).expect("a socket");
        let row = node.ask(json!({
            "type": "node.register", "name": name, "node_id": format!("node_{name}"), "capabilities": [],
            "max_agents": 0, "tags": [], "version": "t", "resume_cursor": null,
        }));
        assert_eq!(row["data"]["name"], name, "{row}");
        node
    }
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> (u16, Value) {
    let text = answer.body_mut().read_to_string().expect("a body");
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

struct Node {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
}

impl Node {
    fn send(&mut self, mut frame: Value) {
        frame["v"] = json!(1);
        self.socket.send(Message::text(frame.to_string())).expect("the socket takes it");
    }

    /// The next frame; a Close as `{"close": code, "reason"}`, any other end as `{"end": …}`.
    fn next(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).expect("JSON"),
                Ok(Message::Close(Some(frame))) => {
                    return json!({"close": u16::from(frame.code), "reason": frame.reason.as_str()});
                }
                Ok(_) => {}
                Err(error) => return json!({"end": error.to_string()}),
            }
        }
    }

    /// Sends with an id and gives the frame that answers it; frames before it are skipped.
    fn ask(&mut self, mut frame: Value) -> Value {
        frame["id"] = json!("ask");
        self.send(frame);
        loop {
            let frame = self.next();
            assert!(frame["end"].is_null(), "{frame}");
            if frame["id"] == "ask" {
                return frame;
            }
        }
    }
}

fn eventually(what: &str, mut probe: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = probe();
        match seen {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("{what}: {seen}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("engine-{}", crate::sys::ids::uuid_hex()))
}

#[test]
fn tokens_open_only_what_they_are_for() {
    let (server, client) = started(None);
    let (_, agent) = client.register("al");
    let node = client.mint("n");
    let key = client.key.clone();
    for (path, token, status, code) in [
        ("/v1/agents", "", 401, "unauthorized"),
        ("/v1/agents", "rk_live_none", 401, "unauthorized"),
        ("/v1/agents", "at_live_none", 401, "agent_token_invalid"),
        ("/v1/agents", &node, 401, "node_token_forbidden"),
        ("/v1/agent", &key, 401, "unauthorized"),
        ("/v1/dm/conversations/all", &agent, 401, "unauthorized"),
        ("/v1/agents/nobody", &key, 404, "agent_not_found"),
        ("/v1/nothing", &key, 404, "not_found"),
        ("/v1/dm", &agent, 405, "method_not_allowed"),
        ("/v1/ws", &key, 401, "unauthorized"),
    ] {
        let (seen, body) = client.get(path, token);
        assert_eq!((seen, body["error"]["code"].as_str()), (status, Some(code)), "{path} {body}");
    }
    assert_eq!(client.get("/v1/agent", &agent).1["data"]["name"], "al");
    let raw = |body: &str| read(client.agent.post(format!("{}/v1/workspaces", client.url)).send(body).unwrap());
    assert_eq!(raw("{").1["error"]["code"], "invalid_json");
    assert_eq!(raw("[]").1["error"]["code"], "invalid_request");
    assert_eq!(raw(r#"{"name":" "}"#).0, 400);
    assert!(server.stop(PATIENCE));
}

#[test]
fn a_node_socket_from_handshake_to_ack() {
    let (server, client) = started(None);
    let refused = client.connect("nt_live_none").err().expect("a refusal");
    assert!(matches!(&refused, tungstenite::Error::Http(answer) if answer.status() == 401), "{refused}");
    let mut node = client.connect(&client.mint("n")).unwrap();
    let early = node.ask(json!({"type": "agent.register", "name": "w1"}));
    assert_eq!(early["code"], "node_not_registered");
    drop(node);
    let mut node = client.node("n");
    let strict = node.ask(json!({"type": "agent.register", "name": "w1", "session_ref": null}));
    assert_eq!((&strict["type"], &strict["code"]), (&json!("error"), &json!("invalid_message")));
    let made = node.ask(json!({"type": "agent.register", "name": "w1"}));
    let keys: HashSet<&str> = made["data"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, HashSet::from(["agent_id", "token", "name"]), "readers of 5.0 refuse any other key");
    let token = made["data"]["token"].as_str().unwrap();
    assert_eq!(client.get("/v1/agent", token).1["data"]["node_id"], "node_n");
    let (_, bob) = client.register("bob");
    let sent = client.post("/v1/dm", &bob, json!({"to": "w1", "text": "hi", "mode": "wait"})).1;
    let frame = node.next();
    assert_eq!((&frame["seq"], &frame["msg_id"], &frame["v"]), (&json!(1), &sent["data"]["message"]["id"], &json!(1)));
    node.send(json!({"type": "delivery.ack", "agent": "w1", "up_to_seq": 1}));
    eventually("the ack arrives", || {
        let open = client.get("/v1/deliveries", token).1;
        if open["data"] == json!([]) { Ok(()) } else { Err(open.to_string()) }
    });
    let mut second = client.node("n");
    assert_eq!(node.next(), json!({"close": 1000, "reason": "superseded"}));
    assert!(server.stop(PATIENCE));
    assert_eq!(second.next()["close"], 1000, "an orderly stop says so");
}

#[test]
fn many_senders_one_order() {
    let dir = scratch();
    let (server, client) = started(Some(dir.clone()));
    let mut node = client.node("n");
    node.ask(json!({"type": "agent.register", "name": "w1"}));
    let tokens: Vec<String> = (0..4).map(|i| client.register(&format!("s{i}")).1).collect();
    const EACH: u64 = 25;
    std::thread::scope(|scope| {
        for token in &tokens {
            scope.spawn(|| {
                for _ in 0..EACH {
                    assert_eq!(client.post("/v1/dm", token, json!({"to": "w1", "text": "x"})).0, 201);
                }
            });
        }
        for seq in 1..=EACH * 4 {
            assert_eq!(node.next()["seq"], seq);
        }
    });
    assert!(server.stop(PATIENCE));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_restart_finds_everything_and_a_torn_tail_nothing_more() {
    let dir = scratch();
    let (server, client) = started(Some(dir.clone()));
    let (_, al) = client.register("al");
    client.register("bo");
    let sent = client.post("/v1/dm", &al, json!({"to": "bo", "text": "before"})).1;
    let taken = Server::start(Options { listen: ("127.0.0.1".into(), 0), data: Some(dir.clone()), faults: false });
    assert!(taken.is_err(), "one engine per directory");
    assert!(server.stop(PATIENCE));
    drop(server);
    let path = dir.join("journal.jsonl");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains(&al) && !text.contains(&client.key), "no credential is written");
    std::fs::write(&path, format!("{text}{{\"message\":{{\"id\"")).unwrap();
    let (server, mut again) = start(Some(dir.clone()));
    again.key = client.key.clone();
    let history = again.get(&format!("/v1/dm/{}/messages", sent["data"]["conversation_id"].as_str().unwrap()), &al).1;
    assert_eq!(history["data"][0]["text"], "before", "{history}");
    assert_eq!(again.post("/v1/dm", &al, json!({"to": "bo", "text": "after"})).0, 201);
    assert!(server.stop(PATIENCE));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_repeat_during_the_first_attempt_is_told_so() {
    let (server, client) = started(None);
    let (_, al) = client.register("al");
    client.faults(json!([{"route": "/v1/channels/:name/messages", "kind": "delay", "ms": 400}]));
    let post = || {
        let request = client.agent.post(format!("{}/v1/channels/general/messages", client.url));
        let request = request.header("authorization", format!("Bearer {al}")).header("idempotency-key", "k");
        let answer = request.send(r#"{"text":"once"}"#).expect("an answer");
        let replayed = answer.headers().get("idempotency-replayed").is_some();
        let (status, body) = read(answer);
        (status, body, replayed)
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(post);
        // The first is in its pause once the rule has counted it.
        eventually("the first request is there", || {
            let rules = client.get("/__faults", "").1;
            if rules["data"]["rules"][0]["seen"] == 1 { Ok(()) } else { Err(rules.to_string()) }
        });
        eventually("the repeat is refused meanwhile", || {
            let (status, body, _) = post();
            assert_eq!(status, 409, "{body}");
            if body["error"]["code"] == "idempotency_in_progress" { Ok(()) } else { Err(body.to_string()) }
        });
        let (status, body, replayed) = first.join().unwrap();
        assert_eq!((status, replayed), (201, false));
        let (status, again, replayed) = post();
        assert_eq!((status, replayed, &again["data"]["id"]), (201, true, &body["data"]["id"]));
    });
    // A refused request had no effect and keeps no key.
    let keyed = |body: &str| {
        let request = client.agent.post(format!("{}/v1/dm", client.url)).header("idempotency-key", "k2");
        read(request.header("authorization", format!("Bearer {al}")).send(body).expect("an answer"))
    };
    assert_eq!(keyed(r#"{"to":"later","text":"x"}"#).0, 404);
    client.register("later");
    assert_eq!(keyed(r#"{"to":"later","text":"x"}"#).0, 201);
    assert_eq!(client.get("/v1/channels/general/messages", &al).1["data"].as_array().map(Vec::len), Some(1));
    assert!(server.stop(PATIENCE));
}

#[test]
fn faults_of_the_node_socket() {
    let (server, client) = started(None);
    let token = client.mint("n");
    let route = "/v1/node/ws";
    client.faults(json!([{"route": route, "kind": "status", "status": 401, "count": 2}]));
    for _ in 0..2 {
        let refused = client.connect(&token).err().expect("a refusal");
        assert!(matches!(&refused, tungstenite::Error::Http(answer) if answer.status() == 401), "{refused}");
    }
    client.connect(&token).expect("the third is let in");
    client.faults(json!([{"route": route, "kind": "hang", "ms": 50}]));
    assert!(client.connect(&token).is_err(), "held silent, then cut");
    client.faults(json!([{"route": route, "kind": "silent"}]));
    let mut mute = client.connect(&token).expect("open");
    mute.send(json!({"type": "node.register"}));
    if let MaybeTlsStream::Plain(stream) = mute.socket.get_ref() {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    assert!(mute.next()["end"].is_string(), "no answer, not even an error");
    client.faults(json!([{"route": route, "kind": "drop", "ms": 30}]));
    let mut dropped = client.connect(&token).expect("open");
    let end = dropped.next();
    assert!(end["end"].is_string(), "cut without a Close: {end}");
    client.faults(json!([]));
    let mut node = client.node("n");
    assert_eq!(client.post("/__faults/drop", "", json!({})).1["data"]["dropped"], 1);
    assert!(node.next()["end"].is_string());
    eventually("the node is away", || {
        let row = client.get("/v1/nodes/n", &client.key).1;
        if row["data"]["live"] == false { Ok(()) } else { Err(row.to_string()) }
    });
    assert!(server.stop(PATIENCE));
}

#[test]
fn faults_are_refused_unless_asked_for() {
    let options = Options { listen: ("127.0.0.1".into(), 0), data: None, faults: false };
    let plain = Server::start(options).unwrap();
    let (other, mut client) = start(None);
    client.url = plain.url();
    assert_eq!(client.post("/__faults", "", json!({"rules": []})).0, 403);
    assert!(plain.stop(PATIENCE) && other.stop(PATIENCE));
}
