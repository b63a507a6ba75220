//! Smaller calls of the local API: results, models, numbers, crashes, conversations, dead letters put back on their way.

use super::*;

fn dead_letter(bench: &mut Bench, id: &str) {
    let text = format!("text of {id}");
    bench.deliver(message("ghost", 0, id));
    assert_eq!(bench.ask(ApiCall::DeadLetters).body["dead_letters"][0]["body"], text.as_str());
}

fn letters(bench: &mut Bench) -> Vec<String> {
    let body = bench.ask(ApiCall::DeadLetters).body;
    let rows = body["dead_letters"].as_array().expect("rows");
    rows.iter().map(|row| row["delivery_id"].as_str().unwrap_or_default().to_string()).collect()
}

fn redeliver(bench: &mut Bench, id: Option<&str>) -> ApiAnswer {
    bench.ask(ApiCall::Redeliver { delivery_id: id.map(str::to_string) })
}

#[test]
fn a_dead_letter_goes_on_its_way_again_once_its_recipient_runs() {
    let mut bench = Bench::online();
    dead_letter(&mut bench, "m1");
    let id = letters(&mut bench)[0].clone();
    assert_eq!(redeliver(&mut bench, Some("del_unknown")).status, 404);
    let answer = redeliver(&mut bench, Some(&id)).body;
    assert_eq!((&answer["redelivered"], &answer["skipped"][0]["worker_name"]), (&json!([]), &json!("ghost")));
    assert_eq!(letters(&mut bench), std::slice::from_ref(&id), "it stays");
    let generation = bench.spawn_running("ghost");
    assert_eq!(redeliver(&mut bench, None).body, json!({"redelivered": [id], "skipped": []}));
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["text of m1"], "{seen:?}");
    assert_eq!(seen.event("dead_letter_redelivered").len(), 1, "{seen:?}");
    assert!(letters(&mut bench).is_empty());
    // On record until it is read.
    let records = seen.journal();
    let mut next = Bench::born(config(), records.clone()).go_online();
    next.spawn_running("ghost");
    assert!(letters(&mut next).is_empty());
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.journal().len(), 1, "done:\n{seen:?}");
    assert!(redeliver(&mut bench, None).body["redelivered"].as_array().is_some_and(Vec::is_empty), "once");
}

#[test]
fn a_redelivered_letter_survives_and_is_read_once() {
    let mut bench = Bench::online();
    dead_letter(&mut bench, "m1");
    let mut records = bench.take().journal();
    bench.spawn_running("ghost");
    redeliver(&mut bench, None);
    records.extend(bench.take().journal());
    let mut bench = Bench::born(config(), records).go_online();
    assert!(letters(&mut bench).is_empty());
    bench.spawn_running("ghost");
    assert_eq!(bench.take().bodies().len(), 0, "spawn_running has taken it already");
    let generation = bench.generation("ghost");
    assert_eq!(bench.read(generation), "m1");
    // Twin: it dies again, and is a dead letter again.
    let mut bench = Bench::online();
    dead_letter(&mut bench, "m1");
    let generation = bench.spawn_running("ghost");
    redeliver(&mut bench, None);
    bench.exited(generation);
    assert_eq!(letters(&mut bench).len(), 1);
}

#[test]
fn d2_what_is_said_of_the_try_before_does_not_concern_a_redelivered_letter() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.send_to("al", "one");
    let old = bench.flights[&generation].delivery_id.clone();
    bench.note(generation, AgentNote::Typed { delivery_id: old.clone() });
    bench.note(generation, AgentNote::Lost { delivery_id: old.clone() });
    bench.take();
    redeliver(&mut bench, Some(&old));
    bench.note(generation, AgentNote::Verified { delivery_id: old.clone(), echo: true });
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["one"], "{seen:?}");
    assert!(seen.event("delivery_verified").is_empty() && seen.event("delivery_ack").is_empty(), "{seen:?}");
    let new = bench.flights[&generation].delivery_id.clone();
    assert_ne!(old, new);
    bench.note(generation, AgentNote::Verified { delivery_id: new, echo: true });
    let seen = bench.take();
    assert_eq!(seen.event("delivery_verified").len(), 1, "{seen:?}");
}

#[test]
fn results_need_the_token_of_their_agent_and_die_with_it() {
    let mut bench = Bench::online();
    bench.api(ApiCall::Spawn(SpawnRequest {
        name: "al".into(),
        cli: "codex".into(),
        result_schema: Some(json!({"type": "object"})),
        // Of a configuration that some other spawn has made.
        env: vec![("AGENT_RELAY_RESULT_SCHEMA".into(), "1".into()), ("AGENT_RELAY_RESULT_TOKEN".into(), "old".into())],
        ..SpawnRequest::default()
    }));
    bench.prepared("al");
    bench.registered("al");
    let env = bench.take().environment();
    let of = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    assert_eq!(of("AGENT_RELAY_RESULT_SCHEMA").as_deref(), Some(r#"{"type":"object"}"#));
    let token = of("AGENT_RELAY_RESULT_TOKEN").expect("a token");
    assert!(token.starts_with("arr_") && token.len() == 36, "{token}");
    let generation = bench.started("al");
    bench.spawn_running("bo");
    let report = |token: &str, name: Option<&str>| {
        ApiCall::Result(ResultReport {
            token: Secret::new(token),
            name: name.map(str::to_string),
            data: json!({"n": 1}),
            is_final: false,
            metadata: None,
        })
    };
    for (token, name, status) in [
        (token.as_str(), None, 200),
        (token.as_str(), Some("al"), 200),
        (token.as_str(), Some("bo"), 401),
        ("arr_wrong", None, 401),
        ("", None, 401),
    ] {
        bench.take();
        let answer = bench.ask(report(token, name));
        assert_eq!(answer.status, status, "{name:?} {}", answer.body);
        let told = bench.take().event("agent_result");
        assert_eq!(told.len(), usize::from(status == 200));
        if status == 200 {
            assert_eq!(
                (&told[0]["data"], &told[0]["final"], &told[0]["metadata"]),
                (&json!({"n": 1}), &json!(false), &json!(null))
            );
            assert_eq!(told[0]["result_id"], answer.body["result_id"]);
        } else {
            assert_eq!(answer.body["error"], "invalid_result_token");
        }
    }
    bench.exited(generation);
    assert_eq!(bench.ask(report(&token, None)).status, 401);
    // Twin: without a schema there is no token.
    bench.ask_spawn("cy");
    bench.prepared("cy");
    bench.registered("cy");
    assert!(!bench.take().environment().iter().any(|(key, _)| key == "AGENT_RELAY_RESULT_TOKEN"));
}

#[test]
fn d4_a_model_is_typed_as_the_cli_s_own_command() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    let model = |name: &str| ApiCall::SetModel { name: name.into(), model: "opus".into() };
    let ticket = bench.api(model("al"));
    let typed = |effect: &Effect| matches!(effect, Effect::Agent { command: AgentCommand::Type { bytes, enter: true, .. }, .. } if bytes == b"/model opus");
    assert!(bench.take().0.iter().any(typed));
    bench.note(generation, AgentNote::TypeDone { ticket, result: Ok(12) });
    let answer = bench.take().answer(ticket).expect("an answer");
    assert_eq!(answer.body, json!({"name": "al", "model": "opus", "success": true}));
    assert_eq!(bench.ask(ApiCall::ListAgents).body["agents"][0]["model"], "opus");
    // What failed has changed nothing, and keystrokes are still keystrokes.
    let ticket = bench.api(ApiCall::SetModel { name: "al".into(), model: "other".into() });
    bench.note(generation, AgentNote::TypeDone { ticket, result: Err("full".into()) });
    assert_eq!(bench.take().answer(ticket).expect("an answer").status, 503);
    assert_eq!(bench.ask(ApiCall::ListAgents).body["agents"][0]["model"], "opus");
    let answer = bench.ask(model("ghost"));
    assert_eq!((answer.status, &answer.body["error"]), (500, &json!("unknown worker 'ghost'")));
}

#[test]
fn crashes_are_counted_with_their_true_uptime_and_clean_ends_are_not() {
    let mut bench = Bench::online();
    for (name, code, signal) in [("al", Some(0), None), ("bo", Some(3), None), ("cy", None, Some(9))] {
        let generation = bench.spawn_running(name);
        bench.pass(5_000);
        bench.note(generation, AgentNote::Exited { code, signal });
        bench.settle();
    }
    // A release is no crash.
    let generation = bench.spawn_running("di");
    bench.release("di");
    bench.note(generation, AgentNote::Exited { code: None, signal: Some(9) });
    let body = bench.ask(ApiCall::CrashInsights).body;
    assert_eq!((&body["total_crashes"], &body["health_score"]), (&json!(2), &json!(80)), "{body}");
    assert_eq!(body["recent"][0]["agent_name"], "bo");
    assert_eq!(body["recent"][1]["category"], "oom");
    assert_eq!(body["recent"][1]["signal"], "9");
    assert_eq!(body["recent"][0]["uptime_secs"], 5, "{body}");
    bench.spawn_running("ed");
    bench.pass(2_000);
    let body = bench.ask(ApiCall::Metrics { agent: None }).body;
    assert_eq!(body["agents"].as_array().map(Vec::len), Some(1));
    assert_eq!((&body["agents"][0]["name"], &body["agents"][0]["uptime_secs"]), (&json!("ed"), &json!(2)));
    assert_eq!((&body["broker"]["total_agents_spawned"], &body["broker"]["total_crashes"]), (&json!(5), &json!(2)));
    let answer = bench.ask(ApiCall::Metrics { agent: Some("ghost".into()) });
    assert_eq!((answer.status, &answer.body["message"]), (404, &json!("unknown worker 'ghost'")));
    // The next life has them too.
    let kept: Vec<_> = bench.broker.crashes().cloned().collect();
    let mut next = Bench::online();
    next.broker.recall_crashes(kept);
    assert_eq!(next.ask(ApiCall::CrashInsights).body["total_crashes"], 2);
}

#[test]
fn conversations_are_listed_newest_first() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.send_to("al", "one");
    bench.pass(1_000);
    bench.send_to("#general", "two");
    let body = bench.ask(ApiCall::Threads).body;
    let ids: Vec<_> = body["threads"].as_array().expect("rows").iter().map(|row| row["threadId"].clone()).collect();
    assert_eq!(ids, [json!("#general"), json!("direct:al:broker")], "{body}");
    assert_eq!(body["threads"][0]["lastMessage"], "two");
}

#[test]
fn direct_messages_of_the_engine_are_conversations_too() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    let mut direct = message("al", 1, "m1");
    direct.payload = json!({"type": "dm.received", "data": {"text": "psst", "from_name": "Bob", "to": "al"}});
    bench.deliver(direct.clone());
    // Its repetition is no second message, and channels of the engine are not listed.
    bench.deliver(direct);
    bench.deliver(message("al", 2, "m2"));
    let body = bench.ask(ApiCall::Threads).body;
    let rows = body["threads"].as_array().expect("rows");
    assert_eq!(rows.len(), 1, "{body}");
    assert_eq!((&rows[0]["threadId"], &rows[0]["lastMessage"]), (&json!("direct:al:bob"), &json!("psst")));
}
