//! The calls of the start.

use super::*;
use std::collections::HashMap;
use std::sync::Mutex;

fn env(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    let map: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    move |name: &str| map.get(name).cloned()
}

fn request(strict: bool) -> JoinRequest {
    JoinRequest { key_flag: None, agent_name: "brk".into(), strict, cwd: "/p".into() }
}

fn join(base: &str, pairs: &[(&str, &str)], strict: bool) -> Result<Session, StartError> {
    let client = Client::new(Settings::new(base, "9.1.6")).unwrap();
    client.join_workspaces(&env(pairs), &request(strict), in_s(3))
}

const KEY: (&str, &str) = ("RELAY_WORKSPACE_KEY", "rk_live_1");

#[test]
fn without_a_key_a_workspace_is_made() {
    let script = Script::serve(|seen, _| match seen.line().as_str() {
        "POST /v1/workspaces" if seen.json()["name"].as_str().unwrap().len() == 14 => error(409, "name_taken"),
        "POST /v1/workspaces" => ok(201, json!({"workspace_id": "17", "api_key": "rk_live_new"})),
        _ => ok(201, json!({"id": "5", "name": "brk", "token": "at_live_b"})),
    });
    let session = join(&script.base, &[("USER", "u"), ("RELAY_AGENT_TYPE", "system")], false).unwrap();
    let seen = script.seen();
    assert_eq!(script.lines(), ["POST /v1/workspaces", "POST /v1/workspaces", "POST /v1/agents"]);
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[0].header("x-relaycast-origin-actor"), None);
    let (first, second) = (seen[0].json()["name"].clone(), seen[1].json()["name"].clone());
    let (first, second) = (first.as_str().unwrap(), second.as_str().unwrap());
    assert!(second.starts_with(&format!("{first}-")) && second.len() == first.len() + 9, "{first} {second}");
    assert_eq!(seen[2].header("authorization"), Some("Bearer rk_live_new"));
    assert_eq!(seen[2].json(), json!({"name": "brk", "type": "system"}));
    assert_eq!(session.default_workspace_id.as_deref(), Some("17"));
    let expected = Membership {
        workspace_id: "17".into(),
        alias: None,
        key: Secret::new("rk_live_new"),
        agent_id: "5".into(),
        agent_name: "brk".into(),
        agent_token: Secret::new("at_live_b"),
    };
    assert_eq!(session.acting(), &expected);
}

#[test]
fn an_explicit_key_that_is_refused_ends_the_start() {
    for (status, code, words) in [
        (401, "unauthorized", "explicit workspace key from RELAY_WORKSPACE_KEY was rejected"),
        (403, "forbidden", "explicit workspace key from RELAY_WORKSPACE_KEY was rejected"),
        (429, "rate_limit_exceeded", "explicit workspace key from RELAY_WORKSPACE_KEY was rate-limited"),
    ] {
        let script = Script::serve(move |_, _| error(status, code));
        let failed = join(&script.base, &[KEY, ("RELAY_API_KEY", "rk_live_soft")], false).unwrap_err();
        assert_eq!(failed.text, words);
        assert_eq!(
            failed.cause.unwrap().to_string(),
            format!("POST /v1/agents: says {code} (HTTP {status}, code: {code})")
        );
        assert_eq!(script.lines(), ["POST /v1/agents"]);
    }
}

#[test]
fn a_soft_key_that_is_refused_gives_way_to_a_new_workspace() {
    for (status, code) in [(401, "unauthorized"), (429, "rate_limit_exceeded")] {
        let script = Script::serve(move |seen, _| match (seen.path.as_str(), seen.header("authorization")) {
            ("/v1/workspaces", _) => ok(201, json!({"workspace_id": 9, "api_key": "rk_live_new"})),
            (_, Some("Bearer rk_live_soft")) => error(status, code),
            _ => ok(201, json!({"id": "5", "token": "at_live_b"})),
        });
        let session = join(&script.base, &[("RELAY_API_KEY", "rk_live_soft")], false).unwrap();
        assert_eq!(session.acting().key, Secret::new("rk_live_new"), "{status}");
        assert_eq!(session.acting().workspace_id, "9");
    }
    let script = Script::serve(|_, _| error(404, "x"));
    assert!(join(&script.base, &[("RELAY_API_KEY", "rk_live_soft")], false).is_err());
}

#[test]
fn a_taken_name_gets_a_suffix_or_is_taken_over() {
    let taken = |seen: &Seen, _: usize| match seen.line().as_str() {
        "POST /v1/agents" if seen.json()["name"] == "brk" => error(409, "agent_already_exists"),
        "POST /v1/agents" => ok(201, json!({"id": "6", "name": seen.json()["name"], "token": "at_live_s"})),
        "GET /v1/agents/brk" => ok(200, json!({"id": "5", "name": "brk"})),
        "POST /v1/agents/brk/rotate-token" => ok(200, json!({"name": "brk", "token": "at_live_r"})),
        _ => error(400, "unexpected"),
    };
    let script = Script::serve(taken);
    let session = join(&script.base, &[KEY], false).unwrap();
    let name = &session.acting().agent_name;
    assert!(name.starts_with("brk-") && name.len() == 12, "{name}");
    assert_eq!(session.acting().workspace_id, "ws_unknown");

    let script = Script::serve(taken);
    let session = join(&script.base, &[KEY], true).unwrap();
    assert_eq!((session.acting().agent_name.as_str(), session.acting().agent_id.as_str()), ("brk", "5"));
    assert_eq!(session.acting().agent_token, Secret::new("at_live_r"));

    let script = Script::serve(|_, _| error(409, "agent_already_exists"));
    let failed = join(&script.base, &[KEY], false).unwrap_err();
    let second = script.seen()[1].json()["name"].as_str().unwrap().to_string();
    assert_eq!(failed.text, format!("agent name '{second}' already exists after retry"));
}

#[test]
fn d7_a_lost_answer_does_not_make_a_second_agent() {
    let script = Script::serve(|seen, n| match (seen.line().as_str(), n) {
        ("POST /v1/agents", 0) => Reply::Cut,
        ("POST /v1/agents", _) => error(409, "agent_already_exists"),
        ("GET /v1/agents/brk", _) => ok(200, json!({"id": "5", "name": "brk"})),
        _ => ok(200, json!({"token": "at_live_r"})),
    });
    let session = join(&script.base, &[KEY], false).unwrap();
    assert_eq!(session.acting().agent_name, "brk");
    assert_eq!(session.acting().agent_token, Secret::new("at_live_r"));
}

#[test]
fn several_workspaces() {
    let serve = || {
        Script::serve(|seen, _| match seen.header("authorization") {
            Some("Bearer rk_1") => ok(201, json!({"id": "1", "token": "at_1", "workspace_id": "w1"})),
            Some("Bearer rk_2") => ok(201, json!({"id": "2", "token": "at_2"})),
            Some("Bearer rk_no" | "Bearer rk_no2") => error(403, "forbidden"),
            _ => error(404, "x"),
        })
    };
    let json_of = |keys: &[&str]| {
        let list: Vec<Value> = keys
            .iter()
            .map(|key| json!({"api_key": key, "workspace_id": format!("id-{key}"), "workspace_alias": format!("Al-{key}")}))
            .collect();
        Value::from(list).to_string()
    };
    let script = serve();
    let several = json_of(&["rk_no", "rk_1", "rk_2"]);
    let session = join(&script.base, &[("RELAY_WORKSPACES_JSON", several.as_str()), KEY], false).unwrap();
    let ids: Vec<&str> = session.memberships.iter().map(|m| m.workspace_id.as_str()).collect();
    assert_eq!(ids, ["w1", "id-rk_2"]);
    assert_eq!((session.acting, session.default_workspace_id), (0, None));
    let hinted = |hint: &str| {
        let pairs = [("RELAY_WORKSPACES_JSON", several.as_str()), ("RELAY_DEFAULT_WORKSPACE", hint)];
        let session = join(&script.base, &pairs, false).unwrap();
        (session.acting, session.default_workspace_id)
    };
    assert_eq!(hinted("al-RK_2"), (1, Some("id-rk_2".into())));
    assert_eq!(hinted("w1"), (0, Some("w1".into())));
    assert_eq!(hinted("nowhere"), (0, None));
    let one = json_of(&["rk_2"]);
    let session = join(&script.base, &[("RELAY_WORKSPACES_JSON", one.as_str())], false).unwrap();
    assert_eq!(session.default_workspace_id.as_deref(), Some("id-rk_2"));
    // The id by which the list knows the workspace counts as well.
    assert_eq!(hinted("id-rk_1"), (0, Some("w1".into())));
    assert_eq!(hinted("id-rk_no"), (0, None), "a hint at a workspace that is skipped");
    let none = json_of(&["rk_no", "rk_no2"]);
    let failed = join(&script.base, &[("RELAY_WORKSPACES_JSON", none.as_str())], false).unwrap_err();
    assert_eq!(failed.text, "all configured multi-workspace memberships were rejected (id-rk_no, id-rk_no2)");
    let broken = json_of(&["rk_1", "rk_404"]);
    let failed = join(&script.base, &[("RELAY_WORKSPACES_JSON", broken.as_str())], false).unwrap_err();
    assert_eq!(failed.text, "failed to register the broker's agent in workspace 'id-rk_404'");
    assert_eq!(failed.cause.unwrap().error.status, 404);
}

/// What each status of one of two workspaces means to the start.
#[test]
fn a_refused_workspace_is_skipped_and_any_other_failure_is_fatal() {
    for (status, is_skipped) in [(401, true), (403, true), (429, true), (400, false), (404, false), (500, false)] {
        let script = Script::serve(move |seen, _| match seen.header("authorization") {
            Some("Bearer rk_live_bad") => error(status, "no"),
            _ => ok(201, json!({"id": "1", "token": "at_1", "workspace_id": "w1"})),
        });
        let list = r#"[{"api_key":"rk_live_bad","workspace_alias":"Bad"},{"api_key":"rk_live_good"}]"#;
        let joined = join(&script.base, &[("RELAY_WORKSPACES_JSON", list)], false);
        assert_eq!(joined.is_ok(), is_skipped, "{status}: {joined:?}");
        match joined {
            Ok(session) => {
                // The only one that is left is the default.
                assert_eq!(session.default_workspace_id.as_deref(), Some("w1"), "{status}");
                let warnings = session.warnings.join("\n");
                assert!(warnings.contains("'Bad' is skipped") && warnings.contains(&status.to_string()), "{warnings}");
                assert!(!format!("{session:?}").contains("live_good"), "{session:?}");
            }
            Err(failed) => assert!(failed.text.ends_with("in workspace 'Bad'"), "{failed}"),
        }
    }
}

#[test]
fn several_workspaces_are_joined_side_by_side() {
    let met = std::sync::Barrier::new(3);
    let script = Script::serve(move |_, _| {
        // Nobody is answered before all have asked.
        met.wait();
        ok(201, json!({"id": "1", "token": "at_1"}))
    });
    let list = r#"[{"api_key":"rk_1"},{"api_key":"rk_2"},{"api_key":"rk_3"}]"#;
    let client = Client::new(Settings::new(&script.base, "9.1.6")).unwrap();
    let joined = client.join_workspaces(&env(&[("RELAY_WORKSPACES_JSON", list)]), &request(false), in_s(60));
    assert_eq!(joined.unwrap().memberships.len(), 3);
}

#[test]
fn a_workspace_that_makes_us_wait_leaves_the_node_token_its_share_of_the_time() {
    let script = Script::serve(|seen, _| match seen.header("authorization") {
        Some("Bearer rk_slow") => Reply::With(429, ("Retry-After", "3".into()), String::new()),
        _ => ok(201, json!({"id": "1", "token": "at_1"})),
    });
    let list = r#"[{"api_key":"rk_slow"},{"api_key":"rk_2","workspace_id":"w2"}]"#;
    let client = Client::new(Settings::new(&script.base, "9.1.6")).unwrap();
    let began = Instant::now();
    // Of eight seconds five are for this: one wait of three fits, a second does not.
    let joined = client.join_workspaces(&env(&[("RELAY_WORKSPACES_JSON", list)]), &request(false), in_s(8)).unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(joined.acting().workspace_id, "w2");
    let slow = script.seen().iter().filter(|seen| seen.header("authorization") == Some("Bearer rk_slow")).count();
    assert_eq!(slow, 2);
}

#[test]
fn h4_one_of_two_workspaces_that_is_silent_ends_the_start_in_time_and_is_named() {
    let script = Script::serve(|seen, _| match seen.header("authorization") {
        Some("Bearer rk_silent") => Reply::Hang,
        _ => ok(201, json!({"id": "1", "token": "at_1"})),
    });
    let list = r#"[{"api_key":"rk_1"},{"api_key":"rk_silent","workspace_id":"w2"}]"#;
    let client = Client::new(Settings::new(&script.base, "9.1.6")).unwrap();
    let (began, limit) = (Instant::now(), Duration::from_secs(1));
    let failed =
        client.join_workspaces(&env(&[("RELAY_WORKSPACES_JSON", list)]), &request(false), began + limit).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(failed.text, "failed to register the broker's agent in workspace 'w2'");
    assert_eq!(failed.cause.unwrap().to_string(), "POST /v1/agents: no answer in time");
}

#[test]
fn twelve_workspaces_keep_their_order() {
    let script = Script::serve(|seen, _| {
        let key = seen.header("authorization").unwrap().trim_start_matches("Bearer rk_").to_string();
        ok(201, json!({"id": key, "name": format!("brk-{key}"), "token": format!("at_{key}"), "workspace_id": key}))
    });
    let list: Vec<Value> = (0..12).map(|n| json!({"api_key": format!("rk_{n}")})).collect();
    let list = Value::from(list).to_string();
    let session = join(&script.base, &[("RELAY_WORKSPACES_JSON", list.as_str())], false).unwrap();
    let of = |what: fn(&Membership) -> &str| session.memberships.iter().map(what).collect::<Vec<_>>();
    let numbers: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    assert_eq!(of(|m| &m.workspace_id), numbers);
    assert_eq!(of(|m| m.agent_token.expose().trim_start_matches("at_")), numbers);
    assert_eq!(of(|m| m.agent_name.trim_start_matches("brk-")), numbers);
}

#[test]
fn h4_a_silent_engine_ends_the_start_at_its_deadline_and_is_named() {
    let script = Script::serve(|_, _| Reply::Hang);
    let client = Client::new(Settings::new(&script.base, "9.1.6")).unwrap();
    let began = Instant::now();
    let failed =
        client.join_workspaces(&env(&[KEY]), &request(false), Instant::now() + Duration::from_millis(500)).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(failed.cause.unwrap().to_string(), "POST /v1/agents: no answer in time");
    let failed = client.join_workspaces(&env(&[KEY]), &request(false), Instant::now()).unwrap_err();
    assert_eq!(failed.cause.unwrap().call, "POST /v1/agents");
}

fn identity(fallback: Option<&str>) -> NodeIdentity {
    NodeIdentity { node_id: "node_ours0123".into(), fallback_id: fallback.map(Into::into), name: "vm".into() }
}

fn mint(base: &str, fallback: Option<&str>) -> Result<NodeEnrolment, CallError> {
    let client = Client::new(Settings::new(base, "9.1.6")).unwrap();
    client.mint_node_token(&Secret::new("rk_live_1"), &identity(fallback), in_s(5))
}

fn minted(seen: &Seen) -> Reply {
    ok(201, json!({"id": seen.json()["node_id"], "name": seen.json()["name"], "token": "nt_live_1", "live": false}))
}

#[test]
fn a_node_is_looked_up_then_minted() {
    for known in [None, Some("node_ours0123")] {
        let script = Script::serve(move |seen, _| match (seen.method.as_str(), known) {
            ("GET", None) => error(404, "node_not_found"),
            ("GET", Some(id)) => ok(200, json!({"id": id, "name": "vm"})),
            _ => minted(seen),
        });
        let node = mint(&script.base, None).unwrap();
        assert_eq!((node.name.as_str(), node.token), ("vm", Secret::new("nt_live_1")));
        assert_eq!(script.lines(), ["GET /v1/nodes/vm", "POST /v1/nodes"]);
        assert_eq!(
            script.seen()[1].json(),
            json!({"node_id": "node_ours0123", "name": "vm", "kind": "ws", "role": "broker", "version": "relay-broker/9.1.6"})
        );
    }
}

#[test]
fn f16_l16_a_name_of_another_node_is_left_to_it() {
    let script = Script::serve(|seen, _| match seen.method.as_str() {
        "GET" => ok(200, json!({"id": "node_theirs", "name": "vm"})),
        _ => minted(seen),
    });
    assert_eq!(mint(&script.base, None).unwrap().name, "vm-ours0123");
    // The look-up failed and the mint hit a foreign node after all.
    let script = Script::serve(|seen, _| match seen.method.as_str() {
        "GET" => error(403, "forbidden"),
        _ => ok(201, json!({"id": "node_theirs", "token": "nt_live_x"})),
    });
    let failed = mint(&script.base, None).unwrap_err();
    assert_eq!(failed.error.code, "node_id_mismatch");
}

#[test]
fn f16_a_name_that_is_taken_between_look_up_and_mint_is_left_to_its_node() {
    let script = Script::serve(|seen, n| match (seen.line().as_str(), n) {
        ("GET /v1/nodes/vm", 0) => error(404, "node_not_found"),
        ("GET /v1/nodes/vm", _) => ok(200, json!({"id": "node_theirs", "name": "vm"})),
        ("POST /v1/nodes", _) if seen.json()["name"] == "vm" => ok(201, json!({"id": "node_theirs", "token": "nt_x"})),
        _ => minted(seen),
    });
    let node = mint(&script.base, None).unwrap();
    assert_eq!((node.name.as_str(), node.node_id.as_str()), ("vm-ours0123", "node_ours0123"));
    assert_eq!(script.lines(), ["GET /v1/nodes/vm", "POST /v1/nodes", "GET /v1/nodes/vm", "POST /v1/nodes"]);
}

#[test]
fn l17_an_id_of_another_workspace_is_tried_once_more_with_the_fallback() {
    let script = Script::serve(|seen, _| match (seen.method.as_str(), seen.json()["node_id"].as_str()) {
        ("GET", _) => error(404, "node_not_found"),
        (_, Some("node_ours0123")) => error(500, "internal_error"),
        _ => minted(seen),
    });
    assert_eq!(mint(&script.base, Some("node_fallback")).unwrap().node_id, "node_fallback");
    assert_eq!(
        script.lines().iter().filter(|line| *line == "POST /v1/nodes").count(),
        4,
        "three tries, then the other id"
    );
    let failed = mint(&script.base, None).unwrap_err();
    assert_eq!((failed.error.status, failed.call), (500, "POST /v1/nodes"));
}

#[test]
fn f23_h6_a_refused_mint_is_final_and_keeps_its_cause() {
    for (status, code) in [(403, "forbidden"), (404, "fleet_nodes_disabled"), (401, "unauthorized")] {
        let script = Script::serve(move |seen, _| match seen.method.as_str() {
            "GET" => error(404, "node_not_found"),
            _ => error(status, code),
        });
        let failed = mint(&script.base, Some("node_fallback")).unwrap_err();
        assert_eq!((failed.error.status, failed.error.code.as_str()), (status, code));
        assert_eq!(script.lines().len(), 2, "{code}");
    }
    let script = Script::serve(|seen, _| match seen.method.as_str() {
        "GET" => error(404, "node_not_found"),
        _ => ok(201, json!({"id": "node_ours0123", "token": "  "})),
    });
    assert_eq!(mint(&script.base, None).unwrap_err().error.code, "invalid_answer");
}

#[test]
fn the_running_broker_mints_under_its_enrolled_name() {
    let names = Arc::new(Mutex::new(Vec::new()));
    let kept = names.clone();
    let script = Script::serve(move |seen, _| match seen.method.as_str() {
        "GET" => ok(200, json!({"id": "node_ours", "name": "vm"})),
        _ => {
            kept.lock().unwrap().push(seen.json()["name"].clone());
            minted(seen)
        }
    });
    let answer = client(&script.base).perform(&EngineCall::MintNodeToken { node_name: "vm".into() }).unwrap();
    assert_eq!(answer, json!({"id": "node_ours", "name": "vm", "token": "nt_live_1"}));
    assert_eq!(*names.lock().unwrap(), [json!("vm")]);
}
