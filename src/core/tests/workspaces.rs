//! A broker of several workspaces: agents live in one, messages may go to each.

use super::sends::{is_post, post};
use super::*;

/// A broker of three workspaces whose agents live in the second.
fn of_three(has_default: bool) -> Bench {
    let mut bench = Bench::with(|config| {
        let own = config.workspaces.remove(0);
        let of = |id: &str, alias: Option<&str>, self_name: &str| Workspace {
            id: id.into(),
            alias: alias.map(Into::into),
            key: Secret::new(format!("rk_live_{id}")),
            self_name: self_name.into(),
            self_agent_id: format!("id-{self_name}"),
        };
        config.workspaces = vec![of("ws0", Some("Side"), "broker-0"), own, of("ws2", Some("Third"), "broker-2")];
        (config.home, config.has_default) = (1, has_default);
    })
    .go_online();
    bench.spawn_running("al");
    bench.take();
    bench
}

/// Where a call goes: workspace and recipient.
fn addressed(call: &EngineCall) -> Option<(usize, String)> {
    match call {
        EngineCall::PostDm { workspace, to, .. } => Some((*workspace, to.clone())),
        EngineCall::PostChannel { workspace, channel, .. } => Some((*workspace, format!("#{channel}"))),
        EngineCall::PostReply { workspace, message_id, .. } => Some((*workspace, format!("re {message_id}"))),
        _ => None,
    }
}

#[test]
fn a_message_goes_to_the_workspace_that_it_names_and_to_agents_of_no_other() {
    const HERE: Option<usize> = None;
    // Default, named id, named alias, recipient; what comes of it: delivered here, published there, or refused.
    let table = [
        (true, None, None, "al", Ok(HERE)),
        (true, None, None, "zoe", Ok(Some(1))),
        (true, None, None, "#ops", Ok(Some(1))),
        (true, Some("ws1"), None, "al", Ok(HERE)),
        (true, Some("ws0"), None, "al", Ok(Some(0))),
        (true, Some("ws2"), None, "#general", Ok(Some(2))),
        (true, None, Some("tHIRD"), "al", Ok(Some(2))),
        (true, Some("ws2"), Some("third"), "al", Ok(Some(2))),
        (true, Some("ws2"), Some("side"), "al", Err("workspace alias 'side' is not attached")),
        (true, Some("WS2"), None, "al", Err("workspace 'WS2' is not attached")),
        (true, Some("nope"), Some("third"), "al", Err("workspace 'nope' is not attached")),
        (true, None, Some("nope"), "al", Err("workspace alias 'nope' is not attached")),
        // Agents are of one workspace only, whatever it is called: nothing to choose.
        (false, None, None, "al", Ok(HERE)),
        (false, None, None, "#general", Ok(HERE)),
        (false, None, None, "zoe", Err("several workspaces are attached")),
        (false, None, None, "#ops", Err("several workspaces are attached")),
        (false, Some("ws1"), None, "zoe", Ok(Some(1))),
        (false, None, Some("side"), "zoe", Ok(Some(0))),
    ];
    for (has_default, id, alias, to, expected) in table {
        let case = format!("default {has_default}, {id:?}, {alias:?}, {to}");
        let mut bench = of_three(has_default);
        let ticket = bench.api(ApiCall::Send(SendRequest {
            workspace_id: id.map(str::to_string),
            workspace_alias: alias.map(str::to_string),
            ..post(to)
        }));
        let seen = bench.take();
        let posts: Vec<_> = seen.calls().iter().filter_map(addressed).collect();
        match expected {
            Ok(HERE) => {
                let body = seen.answer(ticket).expect("an answer").body;
                assert_eq!((&body["delivered"], &body["workspace_id"]), (&json!(1), &json!("ws1")), "{case}");
                assert_eq!(seen.event("relay_inbound")[0]["workspace_id"], "ws1", "{case}");
                assert_eq!((posts, seen.bodies().len()), (vec![], 1), "{case}");
            }
            Ok(Some(at)) => {
                assert_eq!((posts, seen.bodies().len()), (vec![(at, to.to_string())], 0), "{case}");
                bench.engine(is_post, Ok(json!({"id": "m9"})));
                let seen = bench.take();
                let within = format!("ws{at}");
                let name = ["broker-0", "broker", "broker-2"][at];
                let alias = [json!("Side"), json!(null), json!("Third")][at].clone();
                let body = seen.answer(ticket).expect("an answer").body;
                assert_eq!((&body["workspace_id"], &body["workspace_alias"]), (&json!(within), &alias), "{case}");
                let event = &seen.event("relay_inbound")[0];
                assert_eq!((&event["workspace_id"], &event["from"]), (&json!(within), &json!(name)), "{case}");
                assert_eq!(event["workspace_alias"], alias, "{case}");
            }
            Err(words) => {
                let (status, error) = seen.outcome(ticket);
                assert_eq!(status, 400, "{case}");
                assert!(error.contains(words), "{case}: {error}");
                assert_eq!((posts, seen.bodies().len()), (vec![], 0), "{case}");
            }
        }
    }
}

#[test]
fn a_reply_and_the_message_instead_of_it_stay_in_their_workspace() {
    let mut bench = of_three(true);
    bench.api(ApiCall::Send(SendRequest {
        workspace_id: Some("ws2".into()),
        thread_id: Some("123456789012345678".into()),
        ..post("#ops")
    }));
    bench.engine(is_post, Err(engine_error(404)));
    let posts: Vec<_> = bench.take().calls().iter().filter_map(addressed).collect();
    assert_eq!(posts, [(2, "re 123456789012345678".to_string()), (2, "#ops".to_string())]);
}

#[test]
fn the_broker_knows_itself_by_its_names_in_all_workspaces() {
    let mut bench = of_three(true);
    for (from, id, shown) in [
        (None, None, "broker"),
        (Some("Broker-2"), None, "broker"),
        (Some("box-broker"), None, "broker"),
        (Some("dashboard"), Some("ws1"), "broker"),
        (Some("bob"), None, "bob"),
    ] {
        let workspace_id = id.map(str::to_string);
        bench.ask(ApiCall::Send(SendRequest { from: from.map(str::to_string), workspace_id, ..post("al") }));
        assert_eq!(bench.take().event("relay_inbound")[0]["from"], shown, "{from:?}");
    }
    for name in ["broker-0", "BROKER", "broker-2"] {
        let ticket = bench.ask_spawn(name);
        let (status, error) = bench.take().outcome(ticket);
        assert_eq!(status, 500, "{name}");
        assert!(error.contains("own name"), "{error}");
    }
}

#[test]
fn every_workspace_is_told_that_the_broker_lives_and_that_it_goes() {
    let mut bench = of_three(true);
    bench.pass(130_000);
    let seen = bench.take();
    for workspace in 0..3 {
        let beats = seen.calls().iter().filter(|call| **call == EngineCall::Heartbeat { workspace }).count();
        assert_eq!(beats, 1, "{seen:?}");
    }
    bench.step(Input::Stop { reason: "SIGTERM" });
    let seen = bench.take();
    for workspace in 0..3 {
        let byes = seen.calls().iter().filter(|call| **call == EngineCall::Disconnect { workspace }).count();
        assert_eq!(byes, 1, "{seen:?}");
    }
}

#[test]
fn the_answers_list_all_workspaces_and_the_default_if_there_is_one() {
    for has_default in [true, false] {
        let mut bench = of_three(has_default);
        let default = if has_default { json!("ws1") } else { Value::Null };
        let config = bench.ask(ApiCall::Config).body;
        assert_eq!((&config["workspaceKey"], &config["defaultWorkspaceId"]), (&json!("rk_live_1"), &default));
        assert_eq!(
            config["memberships"],
            json!([
                {"workspace_id": "ws0", "workspace_alias": "Side", "is_default": false},
                {"workspace_id": "ws1", "is_default": has_default},
                {"workspace_id": "ws2", "workspace_alias": "Third", "is_default": false},
            ])
        );
        let session = bench.ask(ApiCall::Session).body;
        assert_eq!((&session["workspace_key"], &session["default_workspace_id"]), (&json!("rk_live_1"), &default));
        let auth = bench.ask(ApiCall::Status).body["auth"].take();
        assert_eq!((&auth["workspace_count"], &auth["default_workspace_id"]), (&json!(3), &default));
        let row = |at: usize| auth["workspaces"][at].clone();
        assert_eq!(
            row(1),
            json!({"workspace_id": "ws1", "workspace_alias": null, "self_name": "broker",
                "self_agent_id": "id-broker", "authenticated": true, "default": has_default})
        );
        assert_eq!(
            row(2),
            json!({"workspace_id": "ws2", "workspace_alias": "Third", "self_name": "broker-2",
                "self_agent_id": "id-broker-2", "authenticated": true, "default": false})
        );
    }
}

#[test]
fn an_agent_is_given_all_workspaces_and_the_default_if_there_is_one() {
    for has_default in [true, false] {
        let mut bench = of_three(has_default);
        bench.ask_spawn("bo");
        bench.prepared("bo");
        bench.registered("bo");
        let seen = bench.take();
        let (set, remove) = seen
            .0
            .iter()
            .find_map(|effect| match effect {
                Effect::Agent { command: AgentCommand::Start { set, remove, .. }, .. } => Some((set, remove)),
                _ => None,
            })
            .unwrap_or_else(|| panic!("{seen:?}"));
        let value = |name: &str| set.0.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
        let list: Value = serde_json::from_str(value("RELAY_WORKSPACES_JSON").unwrap()).unwrap();
        assert_eq!(
            list,
            json!([
                {"workspace_id": "ws0", "workspace_alias": "Side", "api_key": "rk_live_ws0"},
                {"workspace_id": "ws1", "workspace_alias": null, "api_key": "rk_live_1"},
                {"workspace_id": "ws2", "workspace_alias": "Third", "api_key": "rk_live_ws2"},
            ])
        );
        assert_eq!(value("RELAY_API_KEY"), Some("rk_live_1"));
        assert!(!format!("{seen:?}").contains("rk_live_"), "a key shows:\n{seen:?}");
        for name in ["RELAY_DEFAULT_WORKSPACE", "RELAY_WORKSPACE_ID"] {
            assert_eq!(value(name), has_default.then_some("ws1"), "{name}");
            assert_eq!(remove.iter().any(|gone| gone == name), !has_default, "an inherited {name} names no workspace");
        }
    }
}
