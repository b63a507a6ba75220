//! What an agent keeps and gets back, and how much room it says it has left.

use super::*;
use crate::core::ports::Continuity;

fn leaves(seen: &Seen) -> Vec<Session> {
    let left = |effect: &Effect| match effect {
        Effect::Leave(session) => Some(session.clone()),
        _ => None,
    };
    seen.0.iter().filter_map(left).collect()
}

#[test]
fn a_low_context_is_told_and_listed() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    let listed = |bench: &mut Bench| bench.ask(ApiCall::ListAgents).body["agents"][0]["context_budget_pct"].clone();
    assert_eq!(listed(&mut bench), Value::Null);
    for (pct, told) in [(40, false), (11, false), (10, true), (9, true), (60, false), (10, true)] {
        bench.take();
        bench.note(al, AgentNote::ContextLeft { pct });
        let events = bench.take().event("agent_context_low");
        assert_eq!(!events.is_empty(), told, "{pct}: {events:?}");
        if told {
            assert_eq!(events[0], json!({"kind": "agent_context_low", "name": "al", "pct": pct}));
        }
        assert_eq!(listed(&mut bench), pct);
    }
}

#[test]
fn d17_a_saved_session_is_kept_at_once_and_its_summary_at_the_release() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.note(al, AgentNote::Continuity(Continuity::Save { summary: "half done".into() }));
    let saved = leaves(&bench.take());
    let expected =
        Session { agent_name: "al".into(), cli: "codex".into(), summary: "half done".into(), ..Session::default() };
    assert_eq!(saved, [expected]);
    bench.release("al");
    bench.exited(al);
    let left = leaves(&bench.take());
    assert_eq!((left[0].summary.as_str(), left[0].released_at.is_some()), ("half done", true));
}

#[test]
fn a_loaded_session_is_typed_once_it_is_read_from_the_disk() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    // A hold keeps others' messages, not what the agent itself has asked for.
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.take();
    bench.note(al, AgentNote::Continuity(Continuity::Load));
    assert!(bench.take().0.contains(&Effect::Recall { generation: al, name: "al".into() }));
    bench.step(Input::Recalled { generation: al, block: Some("## Continuity".into()) });
    let injection = bench.flights[&al].clone();
    assert!(injection.event_id.starts_with("cont_load_"), "{injection:?}");
    assert_eq!(
        (injection.from.as_str(), injection.body.as_str(), injection.workspace),
        ("broker", "## Continuity", None)
    );
    bench.read(al);
    bench.note(al, AgentNote::Verified { delivery_id: injection.delivery_id, echo: true });
    let seen = bench.take();
    assert_eq!(seen.event("delivery_read_ack")[0]["reason"], "continuity_synthetic_event_id", "{seen:?}");
    assert!(seen.journal().is_empty(), "nobody promised it: {seen:?}");
    // Twins: nothing was left, and the agent is gone before it is read.
    bench.step(Input::Recalled { generation: al, block: None });
    bench.step(Input::Recalled { generation: 99, block: Some("x".into()) });
    assert!(bench.take().typed().is_empty());
}
