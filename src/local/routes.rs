//! The route table: method, path, who may call, and the function of the state that answers.

use super::state::{Call, Engine, Outcome};

/// Whose credentials a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Auth {
    Nobody,
    Workspace,
    Agent,
    /// A workspace key or an agent token.
    Either,
}

pub(super) struct Route {
    pub method: &'static str,
    pub pattern: &'static str,
    pub auth: Auth,
    /// Honours `Idempotency-Key`.
    pub keyed: bool,
    pub answer: fn(&mut Engine, &Call) -> Outcome,
}

const fn route(
    method: &'static str,
    pattern: &'static str,
    auth: Auth,
    answer: fn(&mut Engine, &Call) -> Outcome,
) -> Route {
    Route { method, pattern, auth, keyed: false, answer }
}

/// A message post.
const fn post(pattern: &'static str, answer: fn(&mut Engine, &Call) -> Outcome) -> Route {
    Route { method: "POST", pattern, auth: Auth::Agent, keyed: true, answer }
}

use Auth::{Agent, Either, Nobody, Workspace};

/// A fixed segment stands before a `:name` one of the same place.
pub(super) const ROUTES: &[Route] = &[
    route("POST", "/v1/workspaces", Nobody, Engine::create_workspace),
    route("GET", "/v1/workspaces/by-name/:name", Nobody, Engine::find_workspace),
    route("GET", "/v1/workspace", Either, Engine::get_workspace),
    route("PATCH", "/v1/workspace", Workspace, Engine::update_workspace),
    route("DELETE", "/v1/workspace", Workspace, Engine::delete_workspace),
    route("GET", "/v1/workspace/system-prompt", Either, Engine::get_system_prompt),
    route("PUT", "/v1/workspace/system-prompt", Workspace, Engine::set_system_prompt),
    route("GET", "/v1/agent", Agent, Engine::me),
    route("POST", "/v1/agent/node-token", Agent, Engine::direct_node_token),
    route("POST", "/v1/agents", Workspace, Engine::register_agent),
    route("GET", "/v1/agents", Either, Engine::list_agents),
    route("GET", "/v1/agents/presence", Either, Engine::presence),
    route("POST", "/v1/agents/heartbeat", Agent, Engine::agent_heartbeat),
    route("POST", "/v1/agents/disconnect", Agent, Engine::agent_disconnect),
    route("POST", "/v1/agents/spawn", Either, Engine::spawn_agent),
    route("POST", "/v1/agents/release", Either, Engine::release_agent),
    route("GET", "/v1/agents/:name", Either, Engine::get_agent),
    route("PATCH", "/v1/agents/:name", Either, Engine::update_agent),
    route("DELETE", "/v1/agents/:name", Workspace, Engine::delete_agent),
    route("POST", "/v1/agents/:name/rotate-token", Workspace, Engine::rotate_token),
    route("POST", "/v1/channels", Either, Engine::create_channel),
    route("GET", "/v1/channels", Either, Engine::list_channels),
    route("GET", "/v1/channels/:name", Either, Engine::get_channel),
    route("PATCH", "/v1/channels/:name", Agent, Engine::update_channel),
    route("PATCH", "/v1/channels/:name/topic", Agent, Engine::update_channel),
    route("DELETE", "/v1/channels/:name", Either, Engine::archive_channel),
    route("POST", "/v1/channels/:name/join", Agent, Engine::join_channel),
    route("POST", "/v1/channels/:name/leave", Agent, Engine::leave_channel),
    route("POST", "/v1/channels/:name/invite", Either, Engine::invite_to_channel),
    route("POST", "/v1/channels/:name/mute", Agent, Engine::mute_channel),
    route("POST", "/v1/channels/:name/unmute", Agent, Engine::unmute_channel),
    route("GET", "/v1/channels/:name/members", Either, Engine::list_members),
    route("GET", "/v1/channels/:name/read-status", Either, Engine::read_status),
    post("/v1/channels/:name/messages", Engine::post_to_channel),
    route("GET", "/v1/channels/:name/messages", Either, Engine::channel_history),
    route("GET", "/v1/messages/:id", Either, Engine::get_message),
    post("/v1/messages/:id/replies", Engine::reply),
    route("GET", "/v1/messages/:id/replies", Either, Engine::thread),
    route("POST", "/v1/messages/:id/reactions", Agent, Engine::react),
    route("GET", "/v1/messages/:id/reactions", Either, Engine::list_reactions),
    route("DELETE", "/v1/messages/:id/reactions/:emoji", Agent, Engine::unreact),
    route("POST", "/v1/messages/:id/read", Agent, Engine::mark_read),
    route("GET", "/v1/messages/:id/readers", Either, Engine::readers),
    post("/v1/dm", Engine::send_dm),
    post("/v1/dm/group", Engine::create_group),
    route("GET", "/v1/dm/conversations", Agent, Engine::my_conversations),
    route("GET", "/v1/dm/conversations/all", Workspace, Engine::all_conversations),
    Route {
        method: "GET",
        pattern: "/v1/dm/conversations/:id/messages",
        auth: Either,
        keyed: false,
        answer: Engine::conversation_history,
    },
    post("/v1/dm/:id/messages", Engine::post_to_conversation),
    route("GET", "/v1/dm/:id/messages", Either, Engine::conversation_history),
    route("POST", "/v1/dm/:id/participants", Agent, Engine::add_participant),
    route("DELETE", "/v1/dm/:id/participants/:name", Agent, Engine::remove_participant),
    route("GET", "/v1/inbox", Agent, Engine::inbox),
    route("GET", "/v1/search", Either, Engine::search),
    route("GET", "/v1/activity", Either, Engine::activity),
    route("GET", "/v1/deliveries", Agent, Engine::list_deliveries),
    route("POST", "/v1/deliveries/:id/ack", Agent, Engine::ack_delivery),
    route("POST", "/v1/deliveries/:id/fail", Agent, Engine::fail_delivery),
    route("POST", "/v1/deliveries/:id/defer", Agent, Engine::defer_delivery),
    route("POST", "/v1/nodes", Workspace, Engine::mint_node),
    route("GET", "/v1/nodes", Either, Engine::list_nodes),
    route("GET", "/v1/nodes/:name", Either, Engine::get_node),
    route("DELETE", "/v1/nodes/:name", Workspace, Engine::delete_node),
    route("GET", "/v1/nodes/:name/agents", Either, Engine::list_bindings),
    route("POST", "/v1/nodes/:name/agents", Workspace, Engine::bind_agent),
    route("DELETE", "/v1/nodes/:name/agents/:agent", Workspace, Engine::unbind_agent),
    route("POST", "/v1/actions", Either, Engine::register_action),
    route("GET", "/v1/actions", Either, Engine::list_actions),
    route("GET", "/v1/actions/:name", Either, Engine::get_action),
    route("DELETE", "/v1/actions/:name", Either, Engine::delete_action),
    route("POST", "/v1/triggers", Either, Engine::create_trigger),
    route("GET", "/v1/triggers", Either, Engine::list_triggers),
    route("GET", "/v1/triggers/:id", Either, Engine::get_trigger),
    route("PATCH", "/v1/triggers/:id", Either, Engine::update_trigger),
    route("DELETE", "/v1/triggers/:id", Either, Engine::delete_trigger),
    route("POST", "/v1/actions/:name/invoke", Either, Engine::invoke_action),
    route("GET", "/v1/actions/:name/invocations/:id", Either, Engine::get_invocation),
    route("POST", "/v1/actions/:name/invocations/:id/complete", Either, Engine::complete_invocation),
];

/// Matches `segments` with a pattern: the values of its `:name` segments. A last segment `*` takes any rest.
pub(super) fn matches(pattern: &str, segments: &[String]) -> Option<Vec<String>> {
    let mut values = Vec::new();
    let mut given = segments.iter();
    for part in pattern.trim_start_matches('/').split('/') {
        if part == "*" {
            return Some(values);
        }
        let segment = given.next()?;
        if part.starts_with(':') {
            if segment.is_empty() {
                return None;
            }
            values.push(segment.clone());
        } else if part != segment {
            return None;
        }
    }
    given.next().is_none().then_some(values)
}

/// What a path leads to.
pub(super) enum Found {
    Route(&'static Route, Vec<String>),
    OtherMethod,
    Nothing,
}

pub(super) fn find(method: &str, segments: &[String]) -> Found {
    let mut known = false;
    for route in ROUTES {
        if let Some(values) = matches(route.pattern, segments) {
            if route.method == method {
                return Found::Route(route, values);
            }
            known = true;
        }
    }
    if known { Found::OtherMethod } else { Found::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_routes() {
        for (method, path, expected) in [
            ("GET", "v1/agents/presence", Some("/v1/agents/presence")),
            ("GET", "v1/agents/al", Some("/v1/agents/:name")),
            ("POST", "v1/agents/release", Some("/v1/agents/release")),
            ("GET", "v1/dm/conversations/all", Some("/v1/dm/conversations/all")),
            ("GET", "v1/dm/conversations/7/messages", Some("/v1/dm/conversations/:id/messages")),
            ("GET", "v1/dm/7/messages", Some("/v1/dm/:id/messages")),
            ("POST", "v1/dm/group", Some("/v1/dm/group")),
            ("GET", "v1/agents/", None),
            ("GET", "v1/nothing", None),
        ] {
            let segments: Vec<String> = path.split('/').map(str::to_string).collect();
            let found = match find(method, &segments) {
                Found::Route(route, _) => Some(route.pattern),
                _ => None,
            };
            assert_eq!(found, expected, "{method} {path}");
        }
        assert!(matches!(find("DELETE", &["v1".into(), "agents".into()]), Found::OtherMethod));
        assert_eq!(matches("/v1/*", &["v1".into(), "a".into(), "b".into()]), Some(vec![]));
    }
}
