//! Agents that are sessions of a server which runs already.

use super::*;
use crate::core::ports::{AppServer, ReleasePolicy, Secret, ServerAuth};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;

/// One request as the server got it.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    line: String,
    authorization: Option<String>,
    body: String,
}

/// A server that answers every request alike: a status line, or nothing at all when it is empty.
struct Stub {
    endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    fn new(status: &'static str) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}/", listener.local_addr().expect("an address"));
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let into = asked.clone();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream);
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                        break;
                    }
                    lines.push(line.trim().to_string());
                }
                let header = |name: &str| {
                    lines.iter().find_map(|line| {
                        let (key, value) = line.split_once(':')?;
                        key.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
                    })
                };
                let length = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap_or_default();
                into.lock().unwrap().push(Asked {
                    line: lines.first().cloned().unwrap_or_default(),
                    authorization: header("authorization"),
                    body: String::from_utf8_lossy(&body).into_owned(),
                });
                if status.is_empty() {
                    kept.push(reader);
                    continue;
                }
                let text = "it says why";
                let _ = write!(
                    reader.get_mut(),
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                );
            }
        });
        Stub { endpoint, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn server(&self, auth: Option<ServerAuth>, release: ReleasePolicy) -> AppServer {
        let endpoint = self.endpoint.clone();
        AppServer { endpoint, session_id: "ses/ 1".into(), auth, host_pid: Some(77), release }
    }
}

fn attach(server: AppServer) -> Stage {
    let launch = Launch { headless: true, app_server: Some(server), ..launch_of("opencode", &[]) };
    let mut stage = Stage::prepare(launch, Timing::default(), None);
    stage.until("prepared", |note| *note == AgentNote::Prepared);
    stage.order(&[], &[]);
    stage.until("serving", |note| *note == AgentNote::Serving { pid: Some(77) });
    stage.until("ready", |note| *note == AgentNote::Ready);
    stage
}

#[test]
fn each_message_is_one_request_with_its_credentials() {
    let token = || Secret::new("t0ken");
    for (auth, header) in [
        (None, None),
        (Some(ServerAuth::None), None),
        (Some(ServerAuth::Bearer { token: token() }), Some("Bearer t0ken")),
        (Some(ServerAuth::Basic { username: "u".into(), password: Secret::new("p") }), Some("Basic dTpw")),
    ] {
        let stub = Stub::new("204 No Content");
        let mut stage = attach(stub.server(auth, ReleasePolicy::Detach));
        stage.inject(message("d1", "one"));
        stage.inject(Injection { target: " ".into(), ..message("d2", "two") });
        for id in ["d1", "d2"] {
            stage.until("accepted", |note| *note == AgentNote::Accepted { delivery_id: id.into() });
        }
        let asked = stub.asked();
        let text = |asked: &Asked| {
            let value: serde_json::Value = serde_json::from_str(&asked.body).expect("JSON");
            value["parts"][0]["text"].as_str().expect("a text").to_string()
        };
        assert_eq!(asked[0].line, "POST /session/ses%2F%201/prompt_async HTTP/1.1");
        assert_eq!(text(&asked[0]), "Relay message from bob to alice:\n\none");
        assert_eq!(text(&asked[1]), "Relay message from bob to agent:\n\ntwo");
        assert!(asked.iter().all(|asked| asked.authorization.as_deref() == header), "{asked:?}");
        assert_eq!(stage.release(), (None, None));
        assert_eq!(stub.asked().len(), 2, "detached: nothing is asked for");
    }
}

#[test]
fn the_session_is_released_as_it_was_asked_for() {
    for (policy, line) in [
        (ReleasePolicy::Abort, "POST /session/ses%2F%201/abort HTTP/1.1"),
        (ReleasePolicy::Delete, "DELETE /session/ses%2F%201 HTTP/1.1"),
    ] {
        let stub = Stub::new("200 OK");
        let mut stage = attach(stub.server(None, policy));
        stage.release();
        assert_eq!(stub.asked().iter().map(|asked| asked.line.as_str()).collect::<Vec<_>>(), [line]);
        let stub = Stub::new("500 Internal Server Error");
        let mut stage = attach(stub.server(None, policy));
        stage.release();
        let trouble = stage.seen.iter().find_map(|(_, note)| match note {
            AgentNote::Trouble { code, message } => Some((*code, message.clone())),
            _ => None,
        });
        let reason = "app-server request failed with status 500 Internal Server Error: it says why".to_string();
        assert_eq!(trouble, Some(("app_server_release_failed", reason)));
    }
}

#[test]
fn refusals_are_final_and_a_server_that_is_not_there_is_tried_again() {
    let stub = Stub::new("500 Internal Server Error");
    let mut stage = attach(stub.server(None, ReleasePolicy::Detach));
    stage.inject(message("d1", "x"));
    let reason = "app-server request failed with status 500 Internal Server Error: it says why".to_string();
    let failed = stage.until("failed", |note| matches!(note, AgentNote::Finished { .. }));
    assert_eq!(failed, AgentNote::Finished { delivery_id: "d1".into(), result: Err(reason) });
    // It stays, and takes the next.
    stage.inject(message("d2", "y"));
    stage.until("failed", |note| matches!(note, AgentNote::Finished { delivery_id, .. } if delivery_id == "d2"));

    let nobody = AppServer { endpoint: "http://127.0.0.1:9".into(), ..stub.server(None, ReleasePolicy::Detach) };
    let mut stage = attach(nobody);
    stage.inject(message("d1", "x"));
    let failed = stage.until("failed", |note| matches!(note, AgentNote::InjectFailed { .. }));
    let AgentNote::InjectFailed { error, .. } = failed else { unreachable!() };
    assert!(error.starts_with("app-server request failed: "), "{error}");
}

#[test]
fn an_end_that_cannot_wait_breaks_a_call_off() {
    let stub = Stub::new("");
    let mut stage = attach(stub.server(None, ReleasePolicy::Abort));
    stage.inject(message("d1", "x"));
    wait_for("the request", || if stub.asked().is_empty() { Err("none".into()) } else { Ok(()) });
    let begun = Instant::now();
    stage.agent.kill_now();
    stage.until("exit", |note| matches!(note, AgentNote::Exited { .. }));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {}", begun.elapsed(), stage.story());
}

#[test]
fn secrets_are_shown_nowhere() {
    let auth = ServerAuth::Basic { username: "u".into(), password: Secret::new("hunter2-and-more") };
    let stub = Stub::new("200 OK");
    let shown = format!("{:?}", stub.server(Some(auth), ReleasePolicy::Detach));
    assert!(!shown.contains("hunter2"), "{shown}");
}
