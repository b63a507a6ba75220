//! `app-server`: a session of a server that runs already, by frames.

use lexopt::prelude::*;

use super::Failure;
use super::bare_worker::{self, Kind};
use crate::core::ports::{AppServer, ReleasePolicy, Secret, ServerAuth};
use crate::wire::worker::WorkerReady;

pub const HELP: &str = "\
Hand messages to a session of a running server; frames in on stdin, frames out on stdout, one JSON object a line

Usage: agent-relay-broker app-server [OPTIONS] --protocol <PROTOCOL> --endpoint <URL> --session-id <ID>

Options:
  --agent-name <NAME>      Name of the agent [default: the one of init_worker, else app-server]
  --protocol <PROTOCOL>    opencode
  --endpoint <URL>         Where the server listens
  --session-id <ID>        The session
  --host-pid <PID>         Process of the server, to be told
  --release <POLICY>       At shutdown_worker: abort, detach or delete [default: detach]
  -h, --help               Print help

Environment: AGENT_RELAY_APP_SERVER_AUTH_TYPE (bearer, basic or none) with AGENT_RELAY_APP_SERVER_AUTH_TOKEN, or
AGENT_RELAY_APP_SERVER_AUTH_USERNAME and AGENT_RELAY_APP_SERVER_AUTH_PASSWORD
";

/// # Errors
/// A wrong command line; a server that cannot be attached to.
pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut name, mut protocol, mut endpoint, mut session) = (String::new(), None, None, None);
    let (mut host_pid, mut release) = (None, ReleasePolicy::Detach);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("agent-name") => name = parser.value()?.string()?,
            Long("protocol") => protocol = Some(parser.value()?.string()?),
            Long("endpoint") => endpoint = Some(parser.value()?.string()?),
            Long("session-id") => session = Some(parser.value()?.string()?),
            Long("host-pid") => host_pid = Some(parser.value()?.parse()?),
            Long("release") => release = policy(&parser.value()?.string()?)?,
            other => return Err(other.unexpected().into()),
        }
    }
    let needed = |given: Option<String>, flag: &str| {
        given.ok_or_else(|| Failure::Usage(format!("the following required arguments were not provided: {flag}")))
    };
    let protocol = needed(protocol, "--protocol <PROTOCOL>")?;
    let server = AppServer {
        endpoint: needed(endpoint, "--endpoint <URL>")?,
        session_id: needed(session, "--session-id <ID>")?,
        auth: auth()?,
        host_pid,
        release,
    };
    let ready = WorkerReady {
        name: name.clone(),
        runtime: "headless".into(),
        driver: Some("app_server".into()),
        session_id: Some(server.session_id.clone()),
        pid: server.host_pid,
        ..WorkerReady::default()
    };
    let server = crate::api::app_server(protocol.clone(), server).map_err(Failure::Usage)?;
    let mut launch = bare_worker::launch(name, protocol, Vec::new());
    launch.app_server = Some(server);
    bare_worker::run(Kind::Server, launch, ready)
}

fn policy(text: &str) -> Result<ReleasePolicy, Failure> {
    match text {
        "abort" => Ok(ReleasePolicy::Abort),
        "detach" => Ok(ReleasePolicy::Detach),
        "delete" => Ok(ReleasePolicy::Delete),
        other => Err(Failure::Usage(format!(
            "invalid value '{other}' for '--release <POLICY>' [possible values: abort, detach, delete]"
        ))),
    }
}

/// Secrets come by the environment: a command line can be read by everybody.
fn auth() -> Result<Option<ServerAuth>, Failure> {
    let given = |name: &str| std::env::var(format!("AGENT_RELAY_APP_SERVER_AUTH_{name}")).unwrap_or_default();
    match given("TYPE").trim() {
        "" => Ok(None),
        "none" => Ok(Some(ServerAuth::None)),
        "bearer" => Ok(Some(ServerAuth::Bearer { token: Secret::new(given("TOKEN")) })),
        "basic" => {
            Ok(Some(ServerAuth::Basic { username: given("USERNAME"), password: Secret::new(given("PASSWORD")) }))
        }
        other => Err(Failure::Usage(format!(
            "invalid value '{other}' for AGENT_RELAY_APP_SERVER_AUTH_TYPE [possible values: bearer, basic, none]"
        ))),
    }
}
