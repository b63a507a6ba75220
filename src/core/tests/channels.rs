//! Channels of a running agent: its list, its membership at the engine, the events.

use super::*;

impl Bench {
    fn subscribe(&mut self, name: &str, channels: &[&str]) -> ApiAnswer {
        let channels = channels.iter().map(|channel| channel.to_string()).collect();
        self.ask(ApiCall::Subscribe { name: name.into(), channels })
    }

    fn unsubscribe(&mut self, name: &str, channels: &[&str]) -> ApiAnswer {
        let channels = channels.iter().map(|channel| channel.to_string()).collect();
        self.ask(ApiCall::Unsubscribe { name: name.into(), channels })
    }

    /// A running agent whose joins at the start are answered.
    fn member(name: &str) -> Bench {
        let mut bench = Bench::online();
        bench.spawn_running(name);
        bench.engine(is_membership, Ok(Value::Null));
        bench.take();
        bench
    }
}

fn is_membership(call: &EngineCall) -> bool {
    matches!(call, EngineCall::JoinChannel { .. } | EngineCall::LeaveChannel { .. })
}

fn join(channel: &str) -> EngineCall {
    EngineCall::JoinChannel { channel: channel.into(), token: Secret::new("at_live_al") }
}

fn leave(channel: &str) -> EngineCall {
    EngineCall::LeaveChannel { channel: channel.into(), token: Secret::new("at_live_al") }
}

#[test]
fn a_change_answers_all_channels_tells_what_is_new_and_settles_it_with_the_engine() {
    // Each row: joins?, the channels of the call, all after it, the changed ones, the engine's calls.
    type Row = (bool, &'static [&'static str], &'static [&'static str], &'static [&'static str], Vec<EngineCall>);
    let rows: [Row; 8] = [
        (true, &["Dev", "#ops"], &["general", "Dev", "#ops"], &["Dev", "#ops"], vec![join("dev"), join("ops")]),
        (true, &["dev", "DEV", "OPS", "#General"], &["general", "Dev", "#ops"], &[], vec![]),
        (true, &[" ", "#", ""], &["general", "Dev", "#ops"], &[], vec![]),
        (true, &[" a ", "A"], &["general", "Dev", "#ops", "a"], &["a"], vec![join("a")]),
        (false, &["none"], &["general", "Dev", "#ops", "a"], &[], vec![]),
        (false, &["dev", "ops"], &["general", "a"], &["Dev", "#ops"], vec![leave("dev"), leave("ops")]),
        (false, &["GENERAL", "#A"], &[], &["general", "a"], vec![leave("general"), leave("a")]),
        (true, &["dev"], &["dev"], &["dev"], vec![join("dev")]),
    ];
    let mut bench = Bench::member("al");
    for (n, (joins, channels, all, changed, calls)) in rows.into_iter().enumerate() {
        let answer = if joins { bench.subscribe("al", channels) } else { bench.unsubscribe("al", channels) };
        assert_eq!((answer.status, answer.body), (200, json!({"name": "al", "channels": all})), "row {n}");
        let seen = bench.take();
        assert_eq!(seen.calls(), calls, "row {n}");
        for _ in &calls {
            bench.engine(is_membership, Ok(Value::Null));
        }
        let (told, untold) = match joins {
            true => ("channel_subscribed", "channel_unsubscribed"),
            false => ("channel_unsubscribed", "channel_subscribed"),
        };
        let events = seen.event(told);
        assert_eq!((events.len(), seen.event(untold).len()), (usize::from(!changed.is_empty()), 0), "row {n}");
        if let Some(event) = events.first() {
            assert_eq!((&event["name"], &event["channels"]), (&json!("al"), &json!(changed)), "row {n}");
        }
        assert_eq!(bench.ask(ApiCall::ListAgents).body["agents"][0]["channels"], json!(all), "row {n}");
        bench.take();
    }
}

#[test]
fn an_unknown_agent_has_no_channels() {
    let mut bench = Bench::member("al");
    for answer in [bench.subscribe("bo", &["dev"]), bench.unsubscribe("bo", &["dev"])] {
        assert_eq!(answer.status, 404);
        assert_eq!(answer.body, json!({"code": "agent_not_found", "message": "unknown worker 'bo'"}));
    }
    let seen = bench.take();
    assert!(seen.calls().is_empty() && seen.events().is_empty(), "{seen:?}");
}

#[test]
fn a_later_change_never_overtakes_an_earlier_one() {
    let mut bench = Bench::member("al");
    bench.subscribe("al", &["dev"]);
    bench.unsubscribe("al", &["dev"]);
    assert_eq!(bench.take().calls(), [join("dev")], "one call at a time");
    bench.engine(is_membership, Ok(Value::Null));
    assert_eq!(bench.take().calls(), [leave("dev")], "then what has become of it");
    bench.engine(is_membership, Ok(Value::Null));
    // There and back again needs no call.
    bench.subscribe("al", &["dev"]);
    bench.unsubscribe("al", &["dev"]);
    bench.subscribe("al", &["dev"]);
    assert_eq!(bench.take().calls(), [join("dev")]);
    bench.engine(is_membership, Ok(Value::Null));
    assert!(bench.take().calls().is_empty());
    // Twin: other channels do not wait.
    bench.unsubscribe("al", &["dev"]);
    bench.subscribe("al", &["ops"]);
    assert_eq!(bench.take().calls(), [leave("dev"), join("ops")]);
}

#[test]
fn a_refused_membership_is_told_and_not_repeated() {
    let mut bench = Bench::member("al");
    bench.subscribe("al", &["dev"]);
    bench.take();
    bench.engine(is_membership, Err(engine_error(403)));
    let seen = bench.take();
    assert!(seen.logs(log::Level::Warn)[0].contains("'al' could not join #dev"), "{seen:?}");
    assert!(seen.calls().is_empty(), "{seen:?}");
}

#[test]
fn what_is_subscribed_before_the_agent_runs_is_joined_when_it_does() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.subscribe("al", &["dev"]);
    bench.unsubscribe("al", &["general"]);
    assert!(bench.take().calls().is_empty(), "no token yet");
    bench.prepared("al");
    bench.registered("al");
    bench.subscribe("al", &["ops"]);
    assert!(bench.take().calls().is_empty(), "nothing runs yet");
    let al = bench.started("al");
    assert_eq!(bench.take().calls(), [join("dev"), join("ops")]);
    // Gone, its late answers change nothing.
    bench.unsubscribe("al", &["dev"]);
    bench.exited(al);
    bench.take();
    bench.engine(is_membership, Ok(Value::Null));
    assert!(bench.take().0.is_empty());
}
