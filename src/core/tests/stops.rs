//! The orderly stop: its order, its bounds, what becomes of what was open.

use super::*;

fn stop(bench: &mut Bench) {
    bench.step(Input::Stop { reason: "SIGTERM" });
}

#[test]
fn f35_agents_then_the_link_then_the_end() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    let bo = bench.spawn_running("bo");
    bench.deliver(message("al", 1, "m1"));
    stop(&mut bench);
    let seen = bench.take();
    assert_eq!(seen.releases(), [al, bo], "in parallel:\n{seen:?}");
    assert!(seen.calls().contains(&EngineCall::Disconnect { workspace: 0 }), "{seen:?}");
    bench.read(al);
    assert_eq!(bench.take().acked("al"), [1], "what is read is still said");
    bench.exited(bo);
    let seen = bench.take();
    assert_eq!(seen.deregistered(), [("id-bo".to_string(), "bo".to_string())], "{seen:?}");
    assert_eq!(seen.count("node.deregister"), 0, "al still lives:\n{seen:?}");
    bench.exited(al);
    let seen = bench.take();
    let order = [
        seen.at("agent.deregister", seen::sends("agent.deregister")),
        seen.at("node.deregister", seen::sends("node.deregister")),
        seen.at("Close", |effect| matches!(effect, Effect::Node(NodeCommand::Close { .. }))),
    ];
    assert!(order.is_sorted(), "{order:?}\n{seen:?}");
    assert_eq!(seen.kinds().last(), Some(&"node.deregister"), "the last frame:\n{seen:?}");
    assert!(!seen.exits(), "the peer's close comes first");
    assert_eq!(bench.broker.health().link, "closing");
    bench.close("bye");
    assert!(bench.take().exits());
}

#[test]
fn a_stop_without_agents_goes_straight_to_the_link() {
    let mut bench = Bench::online();
    stop(&mut bench);
    let seen = bench.take();
    assert_eq!(seen.kinds(), ["node.deregister"], "{seen:?}");
    assert_eq!(seen.closes(), 1);
    stop(&mut bench);
    assert!(bench.take().0.is_empty(), "a second stop changes nothing");
}

#[test]
fn every_step_of_a_stop_is_bounded() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    stop(&mut bench);
    bench.take();
    bench.pass(2_599);
    assert_eq!(bench.take().closes(), 0);
    bench.pass(1);
    let seen = bench.take();
    assert_eq!((seen.count("node.deregister"), seen.closes()), (1, 1), "{seen:?}");
    assert!(seen.logs(log::Level::Error)[0].contains("al"), "{seen:?}");
    bench.pass(999);
    // An agent that ends late says nothing on a link that is closing.
    bench.exited(al);
    let seen = bench.take();
    assert!(seen.frames().is_empty(), "nothing follows the Close:\n{seen:?}");
    assert!(!seen.exits());
    bench.pass(1);
    assert!(bench.take().exits(), "3.6 s after the signal");
    bench.pass(60_000);
    assert!(!bench.take().exits(), "once");
}

#[test]
fn offline_a_stop_ends_with_its_agents() {
    for state in ["never open", "closed"] {
        let mut bench = Bench::new();
        bench.step(Input::Start);
        if state == "closed" {
            bench.open();
            bench.close("reset");
        }
        bench.take();
        stop(&mut bench);
        let seen = bench.take();
        assert!(seen.exits(), "{state}:\n{seen:?}");
        assert!(seen.frames().is_empty(), "{state}:\n{seen:?}");
    }
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.close("reset");
    stop(&mut bench);
    bench.pass(2_000);
    let seen = bench.take();
    assert!(!seen.exits(), "{seen:?}");
    assert!(seen.tokens().is_empty(), "no more attempts to connect:\n{seen:?}");
    bench.exited(al);
    assert!(bench.take().exits());
}

#[test]
fn a_link_that_ends_during_a_stop_is_not_reopened() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    stop(&mut bench);
    bench.close("reset");
    bench.pass(2_000);
    let seen = bench.take();
    assert!(seen.tokens().is_empty(), "{seen:?}");
    bench.exited(al);
    assert!(bench.take().exits());
}

#[test]
fn what_is_open_at_a_stop_is_answered_and_nothing_new_begins() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.invoke("i1", "spawn:codex", json!({"name": "bo"}));
    let spawn = bench.ask_spawn("cy");
    bench.invoke("r1", "release", json!({"name": "al"}));
    let release = bench.release("al");
    bench.take();
    stop(&mut bench);
    let seen = bench.take();
    assert_eq!(seen.results(), [("i1".to_string(), Err("node_shutting_down".to_string()))], "{seen:?}");
    assert_eq!(seen.outcome(spawn).0, 500);
    bench.invoke("i2", "spawn:codex", json!({"name": "di"}));
    bench.deliver(message("al", 1, "m1"));
    let seen = bench.take();
    assert!(seen.0.is_empty(), "{seen:?}");
    let refused = bench.ask_spawn("ed");
    let seen = bench.take();
    assert_eq!(seen.outcome(refused).0, 503);
    assert!(seen.launches().is_empty());
    assert_eq!(bench.ask(ApiCall::Status).status, 200);
    bench.take();
    bench.exited(al);
    let seen = bench.take();
    assert_eq!(seen.outcome(release).0, 200);
    assert_eq!(seen.results(), [("r1".to_string(), Ok(json!({"released": true, "name": "al"})))], "{seen:?}");
    for name in ["bo", "cy"] {
        let generation = bench.generation(name);
        bench.exited(generation);
    }
    assert_eq!(bench.take().closes(), 1);
}

#[test]
fn at_a_stop_engine_messages_go_back_unacknowledged_and_the_others_stay_in_the_journal() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.send_to("al", "by hand");
    bench.read(al);
    bench.take();
    stop(&mut bench);
    bench.exited(al);
    let seen = bench.take();
    assert!(seen.dead().is_empty(), "{seen:?}");
    assert!(seen.acks().is_empty(), "m1 was said, m2 is handed back:\n{seen:?}");
    let done = seen.journal().iter().any(|record| matches!(record, Record::UnrepeatedDone { .. }));
    assert!(!done, "what nobody repeats stays in the journal:\n{seen:?}");
    let kept: Vec<_> = bench.broker.pending().into_iter().map(|pending| pending.delivery.body).collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
}

#[test]
fn what_nobody_repeats_is_on_record_at_an_ephemeral_stop() {
    let mut bench = Bench::with(|config| (config.persist, config.durable) = (false, false)).go_online();
    let al = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.ask_spawn("bo");
    bench.deliver(of_type("action.completed", message("bo", 0, "e2")));
    bench.take();
    stop(&mut bench);
    bench.deliver(of_type("action.completed", message("al", 0, "e3")));
    bench.deliver(message("al", 2, "m2"));
    bench.exited(al);
    let bo = bench.generation("bo");
    bench.exited(bo);
    let seen = bench.take();
    let mut dead: Vec<String> = seen.dead().into_iter().map(|(id, _)| id).collect();
    dead.sort();
    assert_eq!(dead, ["e1", "e2", "e3"], "m1 and m2 are the engine's:\n{seen:?}");
}

#[test]
fn a_refusal_during_a_stop_is_of_the_family_of_its_route() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    let publish = bench.send_to("nobody", "hi");
    stop(&mut bench);
    bench.take();
    let spawn = bench.ask_spawn("bo");
    let release = bench.release("al");
    let send = bench.send_to("al", "x");
    bench.exited(al);
    bench.close("bye");
    let seen = bench.take();
    for (ticket, key, value) in
        [(spawn, "name", "bo"), (release, "name", "al"), (send, "to", "al"), (publish, "to", "nobody")]
    {
        let answer = seen.answer(ticket).expect("an answer");
        assert_eq!(answer.status, 503);
        assert_eq!((&answer.body["success"], &answer.body[key]), (&json!(false), &json!(value)), "{}", answer.body);
        assert_eq!(answer.body["error"], answer.body["message"]);
        assert!(answer.body.get("code").is_none(), "{}", answer.body);
    }
    let mut bench = Bench::online();
    stop(&mut bench);
    assert_eq!(bench.ask(ApiCall::Session).body["code"], "shutting_down");
}

#[test]
fn a_shutdown_by_the_api_is_answered_first() {
    let mut bench = Bench::online();
    let ticket = bench.api(ApiCall::Shutdown);
    let seen = bench.take();
    assert_eq!(seen.answer(ticket).expect("an answer").body, json!({"status": "shutting_down"}));
    assert_eq!(seen.count("node.deregister"), 1, "{seen:?}");
}

#[test]
fn a_lease_that_nobody_renews_stops_an_ephemeral_broker() {
    let mut bench = Bench::with(|config| config.persist = false).go_online();
    bench.pass(100_000);
    let answer = bench.ask(ApiCall::RenewLease);
    assert_eq!(answer.body, json!({"renewed": true, "expires_in_secs": 120, "persist": false}));
    bench.take();
    bench.pass(119_999);
    assert_eq!(bench.take().closes(), 0);
    bench.pass(1);
    assert_eq!(bench.take().closes(), 1);
    // Twin: a persistent one has no owner.
    let mut bench = Bench::online();
    bench.pass(600_000);
    assert_eq!(bench.take().closes(), 0);
    assert_eq!(bench.ask(ApiCall::RenewLease).body["persist"], true);
}

#[test]
fn a_refusal_that_meets_the_stop_asks_for_nothing_more() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    let id = bench.node_register.clone();
    bench.step(Input::Stop { reason: "test" });
    assert!(bench.take().0.contains(&Effect::Node(NodeCommand::Close { generation: bench.link })));
    bench.error(&id, "node_id_mismatch");
    let seen = bench.take();
    assert!(seen.0.is_empty(), "{seen:?}");
}
