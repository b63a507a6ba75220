//! Who says how large a terminal is.

use super::*;

fn resize(bench: &mut Bench, session: Option<&str>) -> Ticket {
    let session = session.map(str::to_string);
    bench.api(ApiCall::Resize { name: "al".into(), rows: 30, cols: 90, session })
}

/// 200: it went to the terminal and came back.
#[track_caller]
fn status(bench: &mut Bench, session: Option<&str>) -> u16 {
    bench.take();
    let ticket = resize(bench, session);
    let generation = bench.generation("al");
    let seen = bench.take();
    let to_terminal = |effect: &Effect| matches!(effect, Effect::Agent { command: AgentCommand::Resize { .. }, .. });
    if !seen.0.iter().any(to_terminal) {
        return seen.answer(ticket).expect("a refusal").status;
    }
    bench.note(generation, AgentNote::Resized { ticket, rows: 30, cols: 90 });
    let answer = bench.take().answer(ticket).expect("an answer");
    assert_eq!(answer.body, json!({"name": "al", "rows": 30, "cols": 90}));
    answer.status
}

fn release_size(bench: &mut Bench, session: &str) -> Value {
    bench.ask(ApiCall::ReleaseSize { name: "al".into(), session: session.into() }).body
}

#[test]
fn one_session_owns_the_size_until_it_lets_go_or_falls_silent() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    assert_eq!(status(&mut bench, Some("one")), 200);
    bench.pass(299_000);
    assert_eq!(status(&mut bench, Some("two")), 409);
    // The owner's next call is its sign of life.
    assert_eq!(status(&mut bench, Some("one")), 200);
    bench.pass(299_999);
    bench.take();
    let ticket = resize(&mut bench, Some("two"));
    let answer = bench.take().answer(ticket).expect("a refusal");
    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("resize_owned")));
    let text = answer.body["message"].as_str().expect("a text");
    assert!(text.contains("last heard of 299 s ago") && text.contains("300 s"), "{text}");
    bench.pass(1);
    assert_eq!(status(&mut bench, Some("two")), 200, "stale after 300 s");
    assert_eq!(status(&mut bench, Some("one")), 409);
    assert_eq!(release_size(&mut bench, "one"), json!({"name": "al", "released": false}));
    assert_eq!(status(&mut bench, Some("one")), 409, "only the owner lets go");
    assert_eq!(release_size(&mut bench, "two"), json!({"name": "al", "released": true}));
    assert_eq!(status(&mut bench, Some("one")), 200);
}

#[test]
fn without_a_session_the_size_is_set_as_before() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    assert_eq!(status(&mut bench, Some("one")), 200);
    assert_eq!(status(&mut bench, None), 200);
    assert_eq!(status(&mut bench, Some("two")), 409, "and it takes nothing away");
    // The claim ends with the life of the agent.
    bench.exited(generation);
    assert_eq!(bench.ask(ApiCall::ReleaseSize { name: "al".into(), session: "one".into() }).status, 404);
    bench.spawn_running("al");
    assert_eq!(status(&mut bench, Some("two")), 200);
}
