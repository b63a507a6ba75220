//! Agents with a restart policy: what they keep between two lives, when it ends, and what ends it early.

use super::*;
use crate::wire::fleet::RestartPolicy;

const COOLDOWN: Ms = 2_000;

impl Bench {
    /// A running, ready agent with this policy and a task, which it has read.
    pub(super) fn with_policy(&mut self, name: &str, policy: RestartPolicy) -> Generation {
        self.ask_spawn_of(SpawnRequest {
            name: name.into(),
            cli: "codex".into(),
            task: Some("the task".into()),
            restart_policy: Some(policy),
            ..SpawnRequest::default()
        });
        let generation = self.run(name);
        self.done(generation);
        self.out.clear();
        generation
    }

    /// Read, and nothing is left to be told of it.
    fn done(&mut self, generation: Generation) {
        let delivery_id = self.flights[&generation].delivery_id.clone();
        self.read(generation);
        self.note(generation, AgentNote::Verified { delivery_id, echo: true });
    }

    pub(super) fn killed(&mut self, generation: Generation) {
        self.note(generation, AgentNote::Ending { reason: "pty_closed" });
        self.note(generation, AgentNote::Exited { code: None, signal: Some(9) });
    }

    /// Lets the cooldown pass and carries the start through to a ready agent.
    pub(super) fn again(&mut self, name: &str) -> Generation {
        let before = self.generation(name);
        self.pass(COOLDOWN);
        assert_ne!(self.generation(name), before, "no start after the cooldown");
        self.prepared(name);
        let id = self.register_id(name);
        self.reply(&id, json!({"agent_id": format!("id-{name}"), "token": "at_live_new", "name": name}));
        let generation = self.just_started(name);
        self.note(generation, AgentNote::Ready);
        self.settle();
        generation
    }
}

#[test]
fn d20_an_end_is_followed_by_another_life_that_gets_the_task_and_what_waits() {
    let mut bench = Bench::online();
    let first = bench.with_policy("al", RestartPolicy::default());
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(message("al", 2, "m2"));
    assert_eq!(bench.take().bodies(), ["text of m1"]);
    let id = bench.flights[&first].delivery_id.clone();
    bench.note(first, AgentNote::Typed { delivery_id: id });
    bench.take();
    bench.killed(first);
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["agent_exit", "agent_restarting"], "{seen:?}");
    assert_eq!(
        seen.event("agent_restarting"),
        [json!({"kind": "agent_restarting", "name": "al", "code": null, "signal": "9", "restart_count": 1,
                "delay_ms": COOLDOWN, "reason": "pty_closed", "uptime_secs": 0, "cli": "codex", "output": ""})]
    );
    assert!(seen.acks().is_empty() && seen.dead().is_empty() && seen.deregistered().is_empty(), "{seen:?}");
    assert_eq!(seen.listed(), ["al"], "the engine keeps its place:\n{seen:?}");
    assert!(bench.broker.running().is_empty());
    // What comes meanwhile waits with the rest, and the name stays taken.
    bench.deliver(message("al", 3, "m3"));
    let sent = bench.send_to("al", "near");
    let taken = bench.ask_spawn("al");
    bench.pass(COOLDOWN - 1);
    let seen = bench.take();
    assert_eq!((seen.outcome(sent).0, seen.outcome(taken).0), (200, 500), "{seen:?}");
    assert!(seen.launches().is_empty() && seen.acks().is_empty() && seen.dead().is_empty(), "{seen:?}");
    let status = bench.ask(ApiCall::Flush { name: "al".into() });
    assert_eq!(status.body["blocked_reason"], "agent_restarting");

    let second = bench.again("al");
    let seen = bench.take();
    assert_eq!(seen.count("agent.register"), 1, "{seen:?}");
    assert!(seen.environment().contains(&("RELAY_AGENT_TOKEN".into(), "at_live_new".into())), "{seen:?}");
    assert_eq!(seen.event("agent_restarted"), [json!({"kind": "agent_restarted", "name": "al", "restart_count": 1})]);
    assert!(seen.event("agent_spawned").is_empty(), "{seen:?}");
    assert!(seen.calls().iter().any(|call| matches!(call, EngineCall::JoinChannel { .. })), "{seen:?}");
    // What the first life still says is nobody's word.
    bench.note(first, AgentNote::Exited { code: Some(0), signal: None });
    let mut bodies = seen.bodies();
    for _ in 0..5 {
        bench.read(second);
        bodies.extend(bench.take().bodies());
    }
    assert_eq!(bodies, ["the task", "text of m1", "text of m2", "text of m3", "near"]);
    assert!(bench.dead_letters().is_empty());
    assert_eq!(bench.ask(ApiCall::Metrics { agent: None }).body["broker"]["total_restarts"], 1);
    assert_eq!(bench.ask(ApiCall::CrashInsights).body["total_crashes"], 1);
}

#[test]
fn d20_an_agent_without_a_policy_is_not_started_again() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.take();
    bench.killed(generation);
    bench.pass(600_000);
    let seen = bench.take();
    assert!(seen.launches().is_empty() && seen.event("agent_restarting").is_empty(), "{seen:?}");
    assert_eq!(seen.dead(), [("m1".to_string(), "worker_exited".to_string())], "{seen:?}");
    bench.nothing_left("ended without a policy");
}

#[test]
fn d20_its_own_wish_to_end_is_no_failure() {
    let mut bench = Bench::online();
    let generation = bench.with_policy("al", RestartPolicy::default());
    bench.note(generation, AgentNote::Ending { reason: "agent_requested" });
    bench.exited(generation);
    let seen = bench.take();
    assert_eq!(seen.event_kinds(), ["agent_exit", "agent_exited"], "{seen:?}");
    bench.nothing_left("ended on its own wish");
}

#[test]
fn d20_the_limits_end_it_for_good_with_a_reason_and_its_messages_on_record() {
    let once = |max_restarts, max_consecutive_failures| RestartPolicy {
        max_restarts,
        max_consecutive_failures,
        ..RestartPolicy::default()
    };
    let off = RestartPolicy { enabled: false, ..RestartPolicy::default() };
    let table = [
        (off, 0, 0, "restart policy disabled"),
        (once(0, 9), 0, 0, "exceeded max restarts (0)"),
        (once(2, 9), 0, 2, "exceeded max restarts (2)"),
        (once(9, 2), 0, 2, "exceeded max consecutive failures (2)"),
        (once(9, 2), 29_999, 2, "exceeded max consecutive failures (2)"),
        // Long enough up each time, only the total counts.
        (once(4, 1), 30_000, 4, "exceeded max restarts (4)"),
    ];
    for (policy, up_ms, lives, reason) in table {
        let mut bench = Bench::online();
        let mut generation = bench.with_policy("al", policy);
        for life in 1..=lives {
            bench.pass(up_ms);
            bench.killed(generation);
            assert_eq!(bench.take().event("agent_restarting")[0]["restart_count"], life, "{reason}");
            generation = bench.again("al");
            bench.done(generation);
            bench.take();
        }
        bench.deliver(message("al", 1, "m1"));
        bench.pass(up_ms);
        bench.killed(generation);
        let seen = bench.take();
        let dead = json!({"kind": "agent_permanently_dead", "name": "al", "reason": reason});
        assert_eq!(seen.event("agent_permanently_dead"), [dead], "{seen:?}");
        assert_eq!(seen.event("agent_exited")[0]["signal"], "9", "{seen:?}");
        let dropped =
            json!({"kind": "delivery_dropped", "name": "al", "count": 1, "reason": "worker_permanently_dead"});
        assert_eq!(seen.event("delivery_dropped"), [dropped], "{seen:?}");
        assert_eq!(seen.dead(), [("m1".to_string(), "worker_permanently_dead".to_string())], "{seen:?}");
        assert_eq!(seen.deregistered().len(), 1, "{seen:?}");
        assert_eq!(seen.acked("al"), [1], "{seen:?}");
        bench.nothing_left(reason);
        let metrics = bench.ask(ApiCall::Metrics { agent: None }).body["broker"].clone();
        assert_eq!((&metrics["total_restarts"], &metrics["total_crashes"]), (&json!(lives), &json!(lives + 1)));
    }
}

#[test]
fn d20_a_start_that_fails_counts_as_an_end() {
    let policy = RestartPolicy { max_consecutive_failures: 2, ..RestartPolicy::default() };
    let mut bench = Bench::online();
    let generation = bench.with_policy("al", policy);
    bench.killed(generation);
    bench.take();
    bench.pass(COOLDOWN);
    let second = bench.generation("al");
    bench.note(second, AgentNote::Refused { error: "no such program".into() });
    let seen = bench.take();
    let told = json!({"kind": "agent_restarting", "name": "al", "code": null, "signal": null, "restart_count": 2,
                      "delay_ms": COOLDOWN, "reason": "worker_exited", "uptime_secs": 0, "cli": "codex", "output": ""});
    assert_eq!(seen.event("agent_restarting"), [told], "{seen:?}");
    bench.send_to("al", "near");
    bench.pass(COOLDOWN);
    let third = bench.generation("al");
    bench.prepared("al");
    // The engine does not answer.
    bench.pass(10_000);
    let seen = bench.take();
    assert_eq!(seen.releases(), [third], "the thread that waits is ended:\n{seen:?}");
    let reason = "exceeded max consecutive failures (2)";
    let dead = json!({"kind": "agent_permanently_dead", "name": "al", "reason": reason});
    assert_eq!(seen.event("agent_permanently_dead"), [dead], "{seen:?}");
    assert_eq!(seen.dead().len(), 1, "{seen:?}");
    bench.pass(600_000);
    assert!(bench.take().launches().is_empty());
    bench.nothing_left("failed starts");
}

#[test]
fn r10_a_release_during_the_cooldown_cancels_it() {
    for by_invoke in [false, true] {
        let mut bench = Bench::online();
        let generation = bench.with_policy("al", RestartPolicy::default());
        bench.killed(generation);
        bench.deliver(message("al", 1, "m1"));
        bench.take();
        if by_invoke {
            bench.invoke("r1", "release", json!({"name": "al"}));
        } else {
            bench.release("al");
        }
        let seen = bench.take();
        assert_eq!(seen.answers().len() + seen.results().len(), 1, "answered at once:\n{seen:?}");
        assert_eq!(seen.event("agent_released").len(), 1, "{seen:?}");
        assert_eq!(seen.dead(), [("m1".to_string(), "agent_released".to_string())], "{seen:?}");
        bench.pass(600_000);
        let seen = bench.take();
        assert!(seen.launches().is_empty() && seen.event("agent_restarted").is_empty(), "{seen:?}");
        bench.nothing_left("released during the cooldown");
    }
}

#[test]
fn a_release_while_it_is_started_again_leaves_nothing() {
    for state in ["preparing", "registering", "starting"] {
        let mut bench = Bench::online();
        let generation = bench.with_policy("al", RestartPolicy::default());
        bench.killed(generation);
        bench.pass(COOLDOWN);
        if state != "preparing" {
            bench.prepared("al");
        }
        if state == "starting" {
            bench.registered("al");
        }
        let ticket = bench.release("al");
        let generation = bench.generation("al");
        bench.exited(generation);
        let seen = bench.take();
        assert_eq!(seen.outcome(ticket).0, 200, "{state}: {seen:?}");
        assert!(seen.event("agent_restarted").is_empty(), "{state}: {seen:?}");
        bench.pass(600_000);
        bench.nothing_left(state);
    }
}

#[test]
fn a_stop_during_the_cooldown_leaves_the_messages_with_the_engine() {
    let mut bench = Bench::online();
    let generation = bench.with_policy("al", RestartPolicy::default());
    bench.killed(generation);
    bench.deliver(message("al", 1, "m1"));
    bench.take();
    bench.step(Input::Stop { reason: "test" });
    let seen = bench.take();
    assert!(seen.acks().is_empty() && seen.dead().is_empty() && seen.launches().is_empty(), "{seen:?}");
    assert!(bench.agents().is_empty(), "{seen:?}");
}

#[test]
fn a_hold_outlives_the_program() {
    let mut bench = Bench::online();
    let generation = bench.with_policy("al", RestartPolicy::default());
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.deliver(message("al", 1, "m1"));
    bench.killed(generation);
    bench.take();
    bench.set_mode("al", InboundMode::AutoInject);
    bench.set_mode("al", InboundMode::ManualFlush);
    let seen = bench.take();
    let is_told = |effect: &Effect| matches!(effect, Effect::Agent { command: AgentCommand::Hold(_), .. });
    assert_eq!(seen.0.iter().filter(|effect| is_told(effect)).count(), 0, "no terminal is there:\n{seen:?}");
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.deliver(message("al", 2, "m2"));
    let second = bench.again("al");
    let seen = bench.take();
    assert_eq!(seen.bodies(), ["the task"], "held messages stay held:\n{seen:?}");
    let told = Effect::Agent { generation: second, command: AgentCommand::Hold(true) };
    assert!(seen.0.contains(&told), "{seen:?}");
    bench.read(second);
    bench.set_mode("al", InboundMode::AutoInject);
    assert_eq!(bench.take().bodies(), ["text of m1"]);
}

#[test]
fn a_message_that_each_program_dies_of_is_dead_at_the_cap() {
    let policy = RestartPolicy { max_restarts: 100, max_consecutive_failures: 100, ..RestartPolicy::default() };
    let mut bench = Bench::online();
    let mut generation = bench.with_policy("al", policy);
    bench.deliver(message("al", 1, "poison"));
    for _ in 0..10 {
        let id = bench.flights[&generation].delivery_id.clone();
        bench.note(generation, AgentNote::Typed { delivery_id: id });
        bench.killed(generation);
        generation = bench.again("al");
        bench.read(generation);
    }
    let dead = bench.dead_letters();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].0, "poison");
    assert_eq!(bench.take().acked("al"), [1]);
}

#[test]
fn what_waited_for_the_id_of_an_agent_is_not_overtaken_when_its_program_ends_first() {
    let mut bench = Bench::online();
    bench.ask_spawn_of(SpawnRequest {
        name: "al".into(),
        cli: "codex".into(),
        agent_token: Some(Secret::new("at_live_own")),
        restart_policy: Some(RestartPolicy::default()),
        ..SpawnRequest::default()
    });
    bench.prepared("al");
    let generation = bench.started("al");
    bench.deliver(message("al", 1, "m1"));
    bench.killed(generation);
    bench.deliver(message("al", 2, "m2"));
    bench.engine(|call| matches!(call, EngineCall::LookUpAgent { .. }), Ok(json!({"id": "id-al", "name": "al"})));
    let seen = bench.take();
    assert!(seen.acks().is_empty() && seen.dead().is_empty(), "{seen:?}");
    bench.pass(COOLDOWN);
    bench.prepared("al");
    let generation = bench.started("al");
    bench.note(generation, AgentNote::Ready);
    bench.read(generation);
    bench.read(generation);
    let seen = bench.take();
    assert_eq!(seen.typed(), ["m1", "m2"], "{seen:?}");
    assert_eq!(seen.acked("al"), [1, 2], "{seen:?}");
}
