//! `POST /api/send`: local agents first, else the engine, with one idempotency key per send.

use super::*;

pub fn post(to: &str) -> SendRequest {
    SendRequest { to: to.into(), text: "hello".into(), ..SendRequest::default() }
}

pub fn is_post(call: &EngineCall) -> bool {
    matches!(call, EngineCall::PostChannel { .. } | EngineCall::PostDm { .. } | EngineCall::PostReply { .. })
}

#[test]
fn local_names_and_channels_are_served_here() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.spawn_running("bo");
    for (to, from, expected) in [
        ("al", None, vec!["al"]),
        ("@AL", None, vec!["al"]),
        ("#general", None, vec!["al", "bo"]),
        ("##general", None, vec!["al", "bo"]),
        ("#general", Some("bo"), vec!["al"]),
    ] {
        bench.take();
        let answer = bench.ask(ApiCall::Send(SendRequest { from: from.map(str::to_string), ..post(to) }));
        assert_eq!(answer.status, 200, "{to}");
        assert_eq!(answer.body["targets"], json!(expected), "{to}");
        assert_eq!((&answer.body["local"], &answer.body["delivered"]), (&json!(true), &json!(expected.len())), "{to}");
        assert!(!bench.take().calls().iter().any(is_post), "{to}: not published as well");
    }
}

#[test]
fn the_human_and_the_broker_are_one_sender() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    for (from, shown) in [
        (None, "broker"),
        (Some(" "), "broker"),
        (Some("Dashboard"), "broker"),
        (Some("human:Dashboard"), "broker"),
        (Some("human:orchestrator"), "broker"),
        (Some("BROKER"), "broker"),
        (Some("human: eve"), "human:eve"),
        (Some("bob"), "bob"),
    ] {
        bench.take();
        bench.ask(ApiCall::Send(SendRequest { from: from.map(str::to_string), ..post("al") }));
        assert_eq!(bench.take().event("relay_inbound")[0]["from"], shown, "{from:?}");
    }
}

#[test]
fn what_is_for_nobody_here_is_published() {
    let mut bench = Bench::online();
    let ticket = bench.api(ApiCall::Send(post("#ops")));
    let seen = bench.take();
    assert!(seen.answers().is_empty(), "{seen:?}");
    let EngineCall::PostChannel { channel, text, .. } = &seen.calls()[0] else { panic!("{seen:?}") };
    assert_eq!((channel.as_str(), text.as_str()), ("ops", "hello"));
    bench.engine(is_post, Ok(json!({"id": "m9"})));
    let seen = bench.take();
    let body = seen.answer(ticket).expect("an answer").body;
    assert_eq!(
        (&body["relaycast_published"], &body["local"], &body["message_id"]),
        (&json!(true), &json!(false), &json!("m9"))
    );
    assert_eq!(seen.event("relay_inbound").len(), 1);
    let ticket = bench.api(ApiCall::Send(post("@zoe")));
    bench.engine(|call| matches!(call, EngineCall::PostDm { to, .. } if to == "zoe"), Err(engine_error(404)));
    let (status, error) = bench.take().outcome(ticket);
    assert_eq!(status, 404);
    assert!(
        error.starts_with("Agent \"@zoe\" not found and Relaycast publish failed: relaycast send_dm failed"),
        "{error}"
    );
}

#[test]
fn a_thread_of_the_engine_is_replied_to_and_an_unknown_one_is_not() {
    let mut bench = Bench::online();
    let threaded = |thread: &str| SendRequest { thread_id: Some(thread.into()), ..post("#ops") };
    let ticket = bench.api(ApiCall::Send(threaded("123456789012345678")));
    let is_reply = |call: &EngineCall| matches!(call, EngineCall::PostReply { .. });
    bench.engine(is_reply, Err(engine_error(404)));
    assert!(bench.take().answers().is_empty(), "tried as an ordinary message");
    bench.engine(|call| matches!(call, EngineCall::PostChannel { .. }), Ok(json!({"message": {"id": "m1"}})));
    assert_eq!(bench.take().outcome(ticket).0, 200);
    bench.api(ApiCall::Send(threaded("local label")));
    assert!(!bench.take().calls().iter().any(is_reply));
}

#[test]
fn other_workspaces_are_not_attached() {
    let mut bench = Bench::with(|config| config.workspaces[0].alias = Some("Main".into())).go_online();
    bench.spawn_running("al");
    for (id, alias, status) in
        [(Some("ws1"), None, 200), (Some("ws2"), None, 400), (None, Some("main"), 200), (None, Some("other"), 400)]
    {
        let request = SendRequest {
            workspace_id: id.map(str::to_string),
            workspace_alias: alias.map(str::to_string),
            ..post("al")
        };
        assert_eq!(bench.ask(ApiCall::Send(request)).status, status, "{id:?} {alias:?}");
    }
}

#[test]
fn an_agent_that_starts_gets_its_message_when_it_runs() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    assert_eq!(bench.ask(ApiCall::Send(post("al"))).body["delivered"], 1);
    bench.prepared("al");
    bench.registered("al");
    assert!(bench.take().bodies().is_empty());
    bench.started("al");
    assert_eq!(bench.take().bodies(), ["hello"]);
}

#[test]
fn a_full_queue_refuses_and_says_so() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    // One is in the terminal, the rest waits.
    for _ in 0..=crate::core::roster::QUEUE_MAX {
        assert_eq!(bench.ask(ApiCall::Send(post("al"))).status, 200);
    }
    let answer = bench.ask(ApiCall::Send(post("al")));
    assert_eq!(answer.status, 503, "{:?}", answer.body);
    assert!(answer.body["error"].as_str().is_some_and(|text| text.contains("'al'")), "{:?}", answer.body);
    bench.read(generation);
    assert_eq!(bench.ask(ApiCall::Send(post("al"))).status, 200);
}
