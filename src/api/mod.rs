//! The local API: HTTP routes, the key, the event feed, the keystroke stream and the door for fleet sidecars.
//!
//! It owns the numbering of events and of sidecars' connections, and the tickets of calls; everything else that it says comes from the loop. Wiring:
//!
//! ```text
//! let api = Api::new(Settings { key, bind, .. }, inputs);     inputs: the loop's door
//! let bound = http::Server::bind(&bind, port)?;                       then the stdout line
//! let (warmup, turned_away) = api.warmup();                           503 but for /health
//! let server = bound.serve(api::limits(), warmup, "http-")?;
//! server.set_handler(api.clone());                                    ready
//! loop:  Effect::Reply { ticket, answer }  ->  api.answer(ticket, answer)
//!        Effect::Event(event)              ->  api.publish(&event)
//!        Effect::Sidecar { generation, .. } ->  api.sidecar(generation, command)
//!        after a turn                      ->  api.health().store(facts)
//! end:   api.close(); server.stop(deadline)
//! ```
//!
//! Its code runs on the connections' threads; `answer`, `publish` and `store` on the loop's thread, where they never wait.
//! No thread of its own. A request waits at most 30 s for the loop (504); a full queue refuses it at once (503).

mod auth;
mod body;
mod calls;
mod continuity;
pub use continuity::block as continuity_block;
mod events;
mod fleet;
mod forms;
mod harness_config;
mod health;
mod input;
mod routes;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use crate::core::ports::{ApiAnswer, Input, Secret, SidecarCommand, SidecarGeneration, Ticket};
use crate::http::{Handler, Limits, Reply, Request, Response};
use crate::sys::bell::Caller;
use crate::wire::api::{failure, unauthorized};
use crate::wire::events::Event;

use auth::HostRule;
use routes::{Auth, Call, Found, Kind};

pub use calls::{Calls, NoAnswer};
pub use events::{EventHub, Replay};
pub use health::{Health, HealthFacts, Warmup};

/// Longest body of any route.
const BODY_BYTES: usize = 2 << 20;

/// The listener's limits for this API.
pub fn limits() -> Limits {
    Limits { body_bytes: BODY_BYTES, ..Limits::default() }
}

/// What the API is born with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Opens everything but `/health`. A blank key opens nothing.
    pub key: Secret,
    /// The address bound to, as given: `Host` headers are checked when it is a loopback one.
    pub bind: String,
    /// Further names that `Host` may have (`--api-host`).
    pub host_names: Vec<String>,
    /// Where ended sessions have left what their successors should know.
    pub continuity: PathBuf,
}

/// How long requests wait.
#[derive(Debug, Clone)]
struct Patience {
    call: Duration,
    snapshot: Duration,
    /// For a terminal that takes no keystrokes.
    no_progress: Duration,
}

/// The local API; the handler of its listener once the broker is ready.
pub struct Api {
    key: Secret,
    hosts: HostRule,
    calls: Calls,
    hub: Arc<EventHub>,
    health: Arc<Health>,
    lanes: input::Lanes,
    sidecars: Arc<fleet::Sidecars>,
    continuity: PathBuf,
    patience: Patience,
}

impl Api {
    /// Calls go to `loop_` as [`Input::Api`] with tickets from 1. The channel must be bounded.
    pub fn new(settings: Settings, loop_: Caller<Input>) -> Arc<Api> {
        let patience = Patience {
            call: Duration::from_secs(30),
            snapshot: Duration::from_secs(5),
            no_progress: input::NO_PROGRESS,
        };
        Arc::new(Api::with_patience(settings, loop_, patience))
    }

    fn with_patience(settings: Settings, loop_: Caller<Input>, patience: Patience) -> Api {
        Api {
            hosts: HostRule::new(&settings.bind, &settings.host_names),
            key: settings.key,
            calls: Calls::new(loop_),
            hub: Arc::default(),
            health: Arc::default(),
            lanes: input::Lanes::default(),
            sidecars: Arc::default(),
            continuity: settings.continuity,
            patience,
        }
    }

    /// The handler for the time before the broker is ready, and the note that a client was told to come again.
    pub fn warmup(&self) -> (Arc<dyn Handler>, Receiver<()>) {
        let (turned_away, note) = bounded(1);
        (Arc::new(Warmup { health: self.health.clone(), turned_away }), note)
    }

    /// The way to the loop for callers inside this process.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Answers the call with that ticket. `false`: nobody waits for it (any more).
    pub fn answer(&self, ticket: Ticket, answer: ApiAnswer) -> bool {
        self.calls.answer(ticket, answer)
    }

    /// Numbers an event and hands it to all who watch. The end of an agent also ends its keystroke streams.
    pub fn publish(&self, event: &Event) {
        self.hub.publish(event);
        if let Event::AgentExited { name, .. }
        | Event::AgentRestarting { name, .. }
        | Event::AgentPermanentlyDead { name, .. }
        | Event::AgentReleased { name } = event
        {
            self.agent_gone(name);
        }
    }

    /// Ends the keystroke streams of an agent; [`Api::publish`] does it for the events that say so.
    pub fn agent_gone(&self, name: &str) {
        self.lanes.agent_gone(name);
    }

    /// Hands a command to a sidecar's connection; dropped if that is gone.
    pub fn sidecar(&self, generation: SidecarGeneration, command: SidecarCommand) {
        self.sidecars.command(generation, command);
    }

    /// How many clients watch events: while it is 0 terminal output need not be published.
    pub fn watchers(&self) -> Arc<AtomicUsize> {
        self.hub.watchers()
    }

    /// Where the loop stores what `/health` says.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The loop has ended: requests that wait are answered 503 now, later ones at once.
    pub fn close(&self) {
        self.calls.close();
    }
}

impl Handler for Api {
    fn precheck(&self, head: &Request) -> Option<Response> {
        if !self.hosts.allows(head) {
            let message = "this Host is not one of the broker's; see --api-host";
            return Some(Response::json(403, &failure(message)));
        }
        let found = routes::find(head);
        let open = match &found {
            Found::Route(route, _) => route.auth == Auth::Open,
            Found::OtherMethod { auth, .. } => *auth == Auth::Open,
            // Which paths exist is nobody's business without the key.
            Found::Nothing => false,
        };
        if !open && !auth::has_key(head, &self.key) {
            return Some(Response::json(401, &unauthorized()));
        }
        match found {
            Found::Route(route, _) if route.kind == Kind::WebSocket && !head.is_upgrade() => {
                Some(Response::text(426, "this route is a websocket").with_header("Upgrade", "websocket"))
            }
            Found::Route(..) => None,
            Found::OtherMethod { allow, .. } => Some(Response::empty(405).with_header("Allow", &allow)),
            Found::Nothing => Some(Response::empty(404)),
        }
    }

    fn body_limit(&self, _head: &Request) -> usize {
        BODY_BYTES
    }

    fn handle(&self, request: Request) -> Reply {
        let Found::Route(route, name) = routes::find(&request) else {
            return Reply::Response(Response::empty(404));
        };
        (route.run)(&Call { api: self, request: &request, name }).unwrap_or_else(Reply::Response)
    }
}
