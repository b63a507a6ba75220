//! A broker of several workspaces: its agents live in one, its own agent in each.

use serde_json::{Value, json};

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;

/// Who said what last in the conversation of `with`, in the workspace of `key`.
fn last_word(engine: &Engine, key: &str, with: &str) -> Option<(String, String)> {
    let rows = engine.data("GET", "/v1/dm/conversations/all", key, None);
    let is_with = |row: &&Value| row["participants"].as_array().is_some_and(|names| names.iter().any(|n| n == with));
    let last = rows.as_array()?.iter().find(is_with)?["last_message"].clone();
    let text = |key: &str| last[key].as_str().unwrap_or_default().to_string();
    Some((text("agent_name"), text("text")))
}

/// An agent of the workspace of `key`.
fn row(engine: &Engine, key: &str, name: &str) -> Option<Value> {
    let answer = engine.call("GET", &format!("/v1/agents/{name}"), key, None);
    (answer.status == 200).then(|| answer.json()["data"].take())
}

fn stranger(engine: &Engine, key: &str, name: &str) -> String {
    let made = engine.data("POST", "/v1/agents", key, Some(&json!({"name": name})));
    made["token"].as_str().expect("a token").to_string()
}

/// Own names by workspace, in their order.
fn own_names(broker: &Broker) -> Vec<String> {
    let rows = broker.status()["auth"]["workspaces"].clone();
    rows.as_array().unwrap().iter().map(|row| row["self_name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn messages_go_to_the_workspace_that_they_name_and_agents_live_in_the_default_one() {
    let house = House::new();
    let engine = Engine::start(&house);
    let (one, two) = (engine.key.clone(), engine.make_workspace("second"));
    let list = json!([{"api_key": one, "workspace_alias": "One"}, {"api_key": "rk_live_of_nobody", "workspace_id": "gone"},
        {"api_key": two, "workspace_alias": "Two"}]);
    // The broker's name is taken in the first workspace, so its names differ; an agent's name is somebody else's there.
    stranger(&engine, &one, "work");
    stranger(&engine, &one, "ann");
    stranger(&engine, &one, "bob");
    let eve = stranger(&engine, &two, "eve");
    let mut broker = Start::on(&house, &engine)
        .env("RELAY_WORKSPACES_JSON", &list.to_string())
        .env("RELAY_DEFAULT_WORKSPACE", "tWO")
        .env("RUST_LOG", "debug")
        .online();
    let said = broker.process.err();
    assert!(said.contains("WARNING: workspace 'gone' is skipped"), "{said}");
    let names = own_names(&broker);
    assert!(names[0].starts_with("work-") && names[1] == "work", "{names:?}");
    assert!(said.contains(&format!("registered as '{}' (requested 'work')", names[0])), "{said}");

    // The default is what everything belongs to.
    let auth = broker.status()["auth"].take();
    let (id_one, id_two) = (&auth["workspaces"][0]["workspace_id"], &auth["workspaces"][1]["workspace_id"]);
    assert_eq!((&auth["workspace_count"], &auth["default_workspace_id"]), (&json!(2), id_two));
    assert_eq!(auth["workspaces"][1]["self_agent_id"], row(&engine, &two, "work").unwrap()["id"]);
    let health = broker.ok("GET", "/health", None);
    assert_eq!((&health["workspaceId"], &health["defaultWorkspaceId"]), (id_two, id_two));
    assert_eq!(
        health["memberships"],
        json!([{"workspace_id": id_one, "workspace_alias": "One", "is_default": false},
            {"workspace_id": id_two, "workspace_alias": "Two", "is_default": true}])
    );
    assert_eq!(broker.ok("GET", "/api/session", None)["workspace_key"], two.as_str());
    assert_eq!(engine.online_nodes(), [], "no node in the first");
    assert_eq!(engine.data("GET", "/v1/nodes", &two, None)[0]["status"], "online");
    broker.spawn("ann");
    assert!(row(&engine, &two, "ann").is_some());
    let environment = broker.environment_of("ann");
    let given: Value = serde_json::from_str(&environment["RELAY_WORKSPACES_JSON"]).unwrap();
    assert_eq!(
        given,
        json!([{"workspace_id": id_one, "workspace_alias": "One", "api_key": one},
            {"workspace_id": id_two, "workspace_alias": "Two", "api_key": two}])
    );
    assert_eq!((&environment["RELAY_API_KEY"], &json!(environment["RELAY_WORKSPACE_ID"])), (&two, id_two));
    assert_eq!(json!(environment["RELAY_DEFAULT_WORKSPACE"]), *id_two);

    // In each, the broker's agent is in its channels.
    for (key, name) in [(&one, &names[0]), (&two, &names[1])] {
        for channel in ["general", "engineering"] {
            broker.until(&format!("{name} in #{channel}"), || {
                let joined = row(&engine, key, name)?["channels"].clone();
                joined.as_array()?.iter().any(|row| row["name"] == channel).then_some(())
            });
        }
    }

    let send = |body: Value| broker.call("POST", "/api/send", Some(&body));
    let to_ann = |more: Value| {
        let mut body = json!({"to": "ann"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        send(body).json()
    };
    // The one who is called ann there, not the agent here.
    let answer = to_ann(json!({"message": "for the other ann", "workspaceAlias": "one"}));
    assert_eq!((&answer["relaycast_published"], &answer["workspace_id"]), (&json!(true), id_one), "{answer}");
    assert_eq!(last_word(&engine, &one, "ann"), Some((names[0].clone(), "for the other ann".into())));
    let answer = to_ann(json!({"message": "for ours"}));
    assert_eq!((&answer["local"], &answer["workspace_id"]), (&json!(true), id_two), "{answer}");
    broker.until_read("ann", "for ours");
    // Others, in each workspace by its own agent.
    assert_eq!(send(json!({"to": "eve", "message": "here"})).json()["relaycast_published"], true);
    assert_eq!(last_word(&engine, &two, "eve"), Some(("work".into(), "here".into())));
    assert_eq!(send(json!({"to": "bob", "message": "there", "workspaceId": id_one})).json()["success"], true);
    assert_eq!(last_word(&engine, &one, "bob"), Some((names[0].clone(), "there".into())));
    assert_eq!(last_word(&engine, &one, "eve"), None);
    let events = broker.events();
    let told = events.iter().find(|event| event["kind"] == "relay_inbound" && event["body"] == "there").unwrap();
    assert_eq!((&told["workspace_id"], &told["workspace_alias"]), (id_one, &json!("One")));
    let answer = send(json!({"to": "bob", "message": "x", "workspaceId": "gone"}));
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("workspace 'gone' is not attached")));
    // What comes in comes over the default's node.
    engine.dm(&eve, "ann", "from eve");
    broker.until_read("ann", "from eve");
    assert_eq!(broker.times_read("ann", "for the other ann"), 0);

    assert_eq!(broker.stop().0, Some(0), "{}", broker.seen());
    for (key, name) in [(&one, &names[0]), (&two, &names[1])] {
        assert_eq!(row(&engine, key, name).unwrap()["status"], "offline", "{name}");
    }
    let said = broker.process.err();
    for secret in [&one, &two, "rk_live_of_nobody"] {
        assert!(!said.contains(secret), "a key is in the log");
    }
}

#[test]
fn without_a_default_the_first_serves_and_nothing_is_published_by_guess() {
    let house = House::new();
    let engine = Engine::start(&house);
    let two = engine.make_workspace("second");
    let list = json!({"memberships": [{"api_key": engine.key}, {"api_key": two}]});
    let bob = engine.stranger("bob");
    let broker = Start::on(&house, &engine)
        .env("RELAY_WORKSPACES_JSON", &list.to_string())
        .env("RELAY_DEFAULT_WORKSPACE", "elsewhere")
        .online();
    assert!(broker.process.err().contains("no joined workspace has the id or alias 'elsewhere'"), "{}", broker.seen());
    assert_eq!(broker.ok("GET", "/health", None)["defaultWorkspaceId"], Value::Null);
    assert_eq!(broker.ok("GET", "/api/config", None)["defaultWorkspaceId"], Value::Null);
    assert_eq!(broker.ok("GET", "/api/session", None)["workspace_key"], engine.key.as_str());
    assert_eq!(engine.online_nodes().len(), 1);
    broker.spawn("ann");
    let environment = broker.environment_of("ann");
    for unknown in ["RELAY_DEFAULT_WORKSPACE", "RELAY_WORKSPACE_ID"] {
        assert!(!environment.contains_key(unknown), "{unknown} is {:?}", environment.get(unknown));
    }
    engine.dm(&bob, "ann", "from bob");
    broker.until_read("ann", "from bob");
    broker.ok("POST", "/api/send", Some(&json!({"to": "ann", "message": "only one can be meant"})));
    broker.until_read("ann", "only one can be meant");
    let answer = broker.call("POST", "/api/send", Some(&json!({"to": "bob", "message": "which one?"})));
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert!(answer.json()["error"].as_str().unwrap().contains("workspaceId"), "{}", answer.text);
    assert_eq!(last_word(&engine, &engine.key, "bob").map(|(_, text)| text), Some("from bob".into()));
}

#[test]
fn a_list_of_which_nothing_is_left_ends_the_start() {
    let house = House::new();
    let engine = Engine::start(&house);
    for (list, words) in [
        (
            json!([{"api_key": "rk_live_x", "workspace_id": "w1"}, {"api_key": "rk_live_y"}]).to_string(),
            "all configured multi-workspace memberships were rejected (w1, ws_unknown)",
        ),
        ("{ rk_live_x".into(), "RELAY_WORKSPACES_JSON must be valid JSON"),
    ] {
        let (code, said) = Start::on(&house, &engine).env("RELAY_WORKSPACES_JSON", &list).fails();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("failed to initialize relaycast session") && said.contains(words), "{said}");
        assert!(!said.contains("rk_live_x"), "{said}");
    }
}
