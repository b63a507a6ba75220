//! Enrolment: ladder, refusals, order of frames, heartbeat, what waits for the next connection.

use super::seen::between;
use super::*;

const LADDER: [Ms; 8] = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000];

#[track_caller]
fn within_jitter(delay: Ms, step: Ms, what: &str) {
    between(delay, step * 8 / 10, step * 12 / 10, what);
}

fn down() -> Refusal {
    Refusal::Io("connection refused".into())
}

#[test]
fn f31_refused_connections_climb_the_ladder_with_jitter_and_never_give_up() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    let mut delays = Vec::new();
    for (n, step) in LADDER.iter().enumerate() {
        bench.refuse(if n % 2 == 0 { down() } else { Refusal::Status(503) });
        let delay = bench.wait_connect();
        within_jitter(delay, *step, &format!("attempt {n}"));
        delays.push(delay);
    }
    assert!(delays.iter().zip(LADDER).any(|(delay, step)| *delay != step), "no jitter in {delays:?}");
    assert!(
        bench.take().calls().iter().all(|call| *call == EngineCall::Heartbeat { workspace: 0 }),
        "an ordinary error mints nothing"
    );
}

#[test]
fn f15_the_ladder_starts_anew_after_ten_healthy_seconds_and_only_then() {
    /// How long the connection stays open, whether the register is answered, and the step that follows the drop.
    const ROWS: &[(Ms, bool, Ms)] = &[(15_000, true, 1_000), (9_999, true, 16_000), (15_000, false, 16_000)];
    for &(open_ms, accepted, step) in ROWS {
        let what = format!("open {open_ms} ms, accepted {accepted}");
        let mut bench = Bench::new();
        bench.step(Input::Start);
        for _ in 0..4 {
            bench.open();
            bench.reconnect_quietly();
        }
        bench.open();
        if accepted {
            bench.accept();
        }
        bench.pass(open_ms);
        bench.close("reset");
        within_jitter(bench.wait_connect(), step, &what);
    }
}

impl Bench {
    fn reconnect_quietly(&mut self) {
        self.close("reset");
        self.wait_connect();
    }
}

#[test]
fn a_superseded_node_waits_long_and_says_why() {
    let mut bench = Bench::online();
    bench.close("superseded");
    assert_eq!(bench.link_state(), "superseded");
    let health = bench.broker.health();
    assert_eq!(health.link_error.as_deref(), Some("node identity in use elsewhere"));
    assert_eq!(bench.wait_connect(), 30_000);
    assert_eq!(bench.take().logs(log::Level::Error).len(), 1);
    bench.open();
    bench.accept();
    assert_eq!(bench.link_state(), "online");
}

#[test]
fn f13_five_refused_tokens_are_replaced_one_per_step_and_then_it_slows_down() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    for (n, step) in LADDER.iter().take(5).enumerate() {
        bench.take();
        bench.refuse(Refusal::Unauthorized);
        let seen = bench.take();
        assert_eq!(seen.calls().iter().filter(|call| is_mint(call)).count(), 1, "refusal {n}:\n{seen:?}");
        let token = format!("nt_live_new{n}");
        bench.engine(is_mint, Ok(json!({"token": token})));
        within_jitter(bench.wait_connect(), *step, &format!("refusal {n}"));
        assert_eq!(bench.take().tokens(), [token], "the new token is used");
        assert_eq!(bench.link_state(), "connecting", "refusal {n}");
    }
    for round in 0..3 {
        bench.refuse(Refusal::Unauthorized);
        assert_eq!(bench.link_state(), "auth_rejected");
        bench.pass(299_999);
        let seen = bench.take();
        assert!(!seen.calls().iter().any(is_mint), "round {round}: no more mints:\n{seen:?}");
        bench.pass(1);
        // One mint and one connection in 300 s; without a token nothing is tried.
        if round == 1 {
            bench.engine(is_mint, Err(engine_error(500)));
            bench.pass(300_000);
        }
        let token = format!("nt_live_late{round}");
        bench.engine(is_mint, Ok(json!({"token": token})));
        let after = bench.take();
        assert_eq!(after.tokens(), [token], "round {round}");
        let loud = seen.logs(log::Level::Error).iter().filter(|text| text.contains("every node token")).count();
        assert_eq!(loud, usize::from(round == 0), "loud once:\n{seen:?}");
    }
    bench.open();
    bench.accept();
    assert_eq!(bench.link_state(), "online");
}

/// What keeps an engine that no longer handles this node from being found out: nothing but its silence.
#[test]
fn h3_a_node_that_the_engine_no_longer_handles_connects_again() {
    // The register is never answered.
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    bench.pass(23_999);
    assert!(bench.take().closes() == 0, "not too early");
    bench.pass(1);
    assert_eq!(bench.take().closes(), 1);
    assert_eq!(bench.broker.health().link_error.as_deref(), Some("the engine does not answer node.register"));
    within_jitter(bench.wait_connect(), 1_000, "the first step");
    // An inventory is not answered by an engine that answered one before.
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.exited(al);
    // Looked for with each heartbeat.
    bench.pass(24_000 + 12_000);
    assert_eq!(bench.take().closes(), 1);
    assert_ne!(bench.link_state(), "online");
    bench.wait_connect();
    // Twins: all is answered; or the engine never answers inventories, but handles the node.
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.settle();
    bench.pass(120_000);
    assert!(bench.take().closes() == 0);
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    bench.frame(FromEngine::ActionInvoke(crate::wire::node::ActionInvoke {
        invocation_id: "i1".into(),
        action: "other".into(),
        input: json!({}),
        agent_id: None,
        agent_name: None,
    }));
    bench.pass(120_000);
    assert!(bench.take().closes() == 0);
    assert_eq!(bench.link_state(), "online");
}

#[test]
fn an_unusable_frame_of_ours_is_told_with_what_was_sent_last() {
    let mut bench = Bench::online();
    bench.pass(12_000);
    bench.take();
    let message = "unrecognized key".to_string();
    bench.frame(FromEngine::Error { id: String::new(), code: "invalid_message".into(), message });
    let seen = bench.take();
    let told = seen.logs(log::Level::Error);
    assert!(told.iter().any(|text| text.contains("unrecognized key") && text.contains("node.heartbeat")), "{seen:?}");
    assert!(seen.closes() == 0, "the connection stays");
}

#[test]
fn f14_other_errors_and_mints_do_not_reset_the_count_and_a_101_does() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    for _ in 0..5 {
        bench.refuse(Refusal::Unauthorized);
        bench.engine(is_mint, Ok(json!({"token": "t"})));
        bench.wait_connect();
        bench.refuse(Refusal::Status(503));
        bench.wait_connect();
        assert_eq!(bench.link_state(), "connecting");
    }
    bench.refuse(Refusal::Unauthorized);
    assert_eq!(bench.link_state(), "auth_rejected", "the sixth in a row of 401s");
    // Twin: a handshake that ends in 101 starts the count anew, even without an answer to the register.
    let mut bench = Bench::new();
    bench.step(Input::Start);
    for _ in 0..12 {
        bench.refuse_token();
        bench.wait_connect();
        bench.open();
        bench.close("reset");
        bench.wait_connect();
        assert_ne!(bench.link_state(), "auth_rejected");
    }
}

#[test]
fn a_failed_mint_keeps_the_token_and_the_ladder() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.take();
    bench.refuse(Refusal::Unauthorized);
    bench.engine(is_mint, Err(engine_error(500)));
    bench.wait_connect();
    assert_eq!(bench.take().tokens(), ["nt_live_1"]);
}

#[test]
fn f13_a_slow_mint_is_waited_for_and_a_failed_one_is_a_step() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.refuse(Refusal::Unauthorized);
    bench.take();
    bench.pass(9_000);
    let seen = bench.take();
    assert!(seen.tokens().is_empty(), "with the refused token there is nothing to win:\n{seen:?}");
    bench.engine(is_mint, Ok(json!({"token": "nt_live_2"})));
    let seen = bench.take();
    assert_eq!(seen.tokens(), ["nt_live_2"], "at once, the pause is over");
    bench.refuse(Refusal::Unauthorized);
    bench.pass(9_000);
    let seen = bench.take();
    assert_eq!(seen.calls().iter().filter(|call| is_mint(call)).count(), 1, "{seen:?}");
    assert!(seen.tokens().is_empty(), "{seen:?}");
    bench.engine(is_mint, Err(engine_error(0)));
    assert!(bench.take().tokens().is_empty());
    within_jitter(bench.wait_connect(), 4_000, "the third step");
}

fn inventory_conflict(bench: &mut Bench, about: &str) -> Seen {
    let id = bench.inventories.pop().expect("an inventory on the way");
    bench.take();
    bench.frame(FromEngine::Error {
        id,
        code: "agent_location_conflict".into(),
        message: format!("Agent {about} is active elsewhere"),
    });
    bench.take()
}

#[test]
fn an_agent_that_is_elsewhere_is_dropped_from_the_inventory_once() {
    for about in ["\"al\"", "'al'", "id-al"] {
        let mut bench = Bench::online();
        for name in ["al", "al-2", "bo"] {
            bench.spawn_running(name);
        }
        bench.reconnect();
        let seen = inventory_conflict(&mut bench, about);
        assert_eq!(seen.listed(), ["al-2", "bo"], "{about}:\n{seen:?}");
        let seen = inventory_conflict(&mut bench, about);
        assert_eq!(seen.count("inventory.sync"), 0, "not again, {about}:\n{seen:?}");
    }
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.reconnect();
    let seen = inventory_conflict(&mut bench, "\"zoe\"");
    assert_eq!(seen.count("inventory.sync"), 0, "nobody of ours is named:\n{seen:?}");
}

#[test]
fn inventories_that_nobody_answers_are_bounded() {
    let mut bench = Bench::online();
    for n in 0..100 {
        bench.ask_spawn(&format!("al{n}"));
        bench.prepared(&format!("al{n}"));
        bench.registered(&format!("al{n}"));
        bench.started(&format!("al{n}"));
    }
    let open = format!("{:?}", bench.broker.link).matches("inventory_sync_").count();
    assert!(open <= 64, "{open} are waited for");
}

#[test]
fn a_renamed_node_binds_to_itself() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    let id = bench.node_register.clone();
    bench.error(&id, "node_name_conflict");
    bench.accept();
    bench.ask_spawn("al");
    bench.prepared("al");
    let id = bench.register_id("al");
    bench.error(&id, "internal_error");
    bench.engine(is_register, Ok(json!({"id": "id-al", "name": "al", "token": "t"})));
    let calls = bench.take().calls();
    let renamed =
        |call: &EngineCall| matches!(call, EngineCall::BindAgent { node_name, .. } if node_name == "box-01234567");
    assert!(calls.iter().any(renamed), "{calls:?}");
}

#[test]
fn f22_a_pinned_token_is_never_minted_anew() {
    let mut bench = Bench::with(|config| config.token_pinned = true);
    bench.step(Input::Start);
    for _ in 0..10 {
        bench.refuse(Refusal::Unauthorized);
        assert_eq!(bench.link_state(), "auth_rejected");
        assert!(bench.broker.health().link_error.is_some_and(|text| text.contains("RELAY_NODE_TOKEN")));
        assert_eq!(bench.wait_connect(), 30_000);
    }
    let seen = bench.take();
    assert!(!seen.calls().iter().any(is_mint), "{seen:?}");
    // Nor on a refused identity.
    bench.open();
    let id = bench.node_register.clone();
    bench.error(&id, "node_id_mismatch");
    assert_eq!(bench.link_state(), "auth_rejected");
    let seen = bench.take();
    assert!(!seen.calls().iter().any(is_mint), "{seen:?}");
}

#[test]
fn f17_a_refused_identity_is_not_online_and_mints_once() {
    for code in ["node_id_mismatch", "node_not_found"] {
        let mut bench = Bench::new();
        bench.step(Input::Start);
        bench.open();
        bench.take();
        let id = bench.node_register.clone();
        bench.error(&id, code);
        let seen = bench.take();
        assert_eq!(seen.calls(), [EngineCall::MintNodeToken { node_name: "box".into() }], "{code}:\n{seen:?}");
        bench.engine(is_mint, Ok(json!({"token": "nt_live_2"})));
        assert_eq!(seen.closes(), 1, "{code}:\n{seen:?}");
        assert_ne!(bench.link_state(), "online", "{code}");
        assert!(bench.broker.health().link_error.is_some_and(|text| text.contains(code)), "{code}");
        bench.close("bye");
        within_jitter(bench.wait_connect(), 1_000, code);
        bench.open();
        let id = bench.node_register.clone();
        bench.take();
        bench.error(&id, code);
        assert_eq!(bench.link_state(), "auth_rejected", "{code}");
        assert!(!bench.take().calls().iter().any(is_mint), "{code}: minted once");
        bench.close("bye");
        assert_eq!(bench.wait_connect(), 300_000, "{code}");
        bench.open();
        bench.accept();
        assert_eq!(bench.link_state(), "online", "{code}");
    }
}

#[test]
fn f17_a_refusal_in_the_middle_of_a_connection_ends_online() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.deliver(message("al", 3, "m3"));
    bench.pass(2_000);
    let id = bench.node_register.clone();
    bench.error(&id, "node_not_found");
    assert_ne!(bench.link_state(), "online");
}

#[test]
fn f16_a_name_that_is_taken_gets_a_suffix_of_the_node_id_once() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    bench.take();
    let id = bench.node_register.clone();
    bench.error(&id, "node_name_conflict");
    let frames = bench.take().frames();
    let [ToEngine::NodeRegister(frame)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(frame.name, "box-01234567");
    bench.accept();
    assert_eq!(bench.link_state(), "online");
    bench.pass(12_000);
    let frames = bench.take().frames();
    assert!(
        frames.iter().any(|frame| matches!(frame, ToEngine::NodeHeartbeat(beat) if beat.name == "box-01234567")),
        "{frames:?}"
    );
}

#[test]
fn other_errors_are_logged_and_the_link_stays() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    bench.error("", "invalid_message");
    bench.error("inventory_sync_x", "agent_location_conflict");
    let seen = bench.take();
    assert_eq!(seen.logs(log::Level::Error).len(), 2, "{seen:?}");
    assert_eq!(seen.closes(), 0, "{seen:?}");
    assert_eq!(bench.link_state(), "online");
    bench.node(NodeNote::Garbage { generation: bench.link, error: crate::wire::node::FrameError::NotAnObject });
    for _ in 0..2 {
        bench.frame(FromEngine::Unknown { kind: "weather".into() });
        bench.frame(FromEngine::ContextUpdate);
        bench.frame(FromEngine::Ping);
    }
    let seen = bench.take();
    assert_eq!((seen.logs(log::Level::Warn).len(), seen.logs(log::Level::Info).len()), (1, 1), "{seen:?}");
    assert_eq!(seen.frames().len() + seen.closes(), 0, "no pong frame exists:\n{seen:?}");
    assert_eq!(bench.status()["counters"]["garbage_frames"], 1);
}

#[test]
fn f30_the_first_frames_claim_nothing() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.take();
    bench.open();
    let seen = bench.take();
    assert_eq!(seen.kinds(), ["node.register", "node.heartbeat"], "f31: one heartbeat, no empty inventory yet");
    let ToEngine::NodeRegister(frame) = &seen.frames()[0] else { panic!("{seen:?}") };
    assert!(frame.capabilities.is_empty() && frame.resume_cursor.is_none() && frame.max_agents == 0, "{frame:?}");
    let id = bench.node_register.clone();
    bench.reply(&id, json!({}));
    let seen = bench.take();
    assert_eq!(seen.kinds(), ["inventory.sync"], "{seen:?}");
    assert!(seen.listed().is_empty());
    bench.settle();
    bench.pass(11_000);
    assert_eq!(bench.take().count("inventory.sync"), 0, "never on a timer");
}

#[test]
fn l18_an_engine_that_answers_no_register_is_accepted_by_its_first_frame() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    assert_eq!(bench.link_state(), "connecting");
    bench.frame(FromEngine::Ping);
    assert_eq!(bench.link_state(), "connecting", "a ping presupposes nothing");
    bench.deliver(message("ghost", 1, "m1"));
    assert_eq!(bench.link_state(), "online");
}

#[test]
fn the_order_of_frames_on_a_new_connection() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    let bo = bench.spawn_running("bo");
    bench.deliver(message("al", 1, "m1"));
    bench.invoke("i1", "spawn:codex", json!({"name": "cy"}));
    bench.close("reset");
    bench.read(al);
    bench.exited(bo);
    let cy = bench.generation("cy");
    bench.note(cy, AgentNote::Refused { error: "exec".into() });
    bench.ask_spawn("di");
    bench.prepared("di");
    bench.take();
    bench.wait_connect();
    assert!(bench.take().frames().is_empty(), "nothing before the 101");
    bench.open();
    let seen = bench.take();
    assert_eq!(
        seen.kinds(),
        [
            "node.register",
            "inventory.sync",
            "node.heartbeat",
            "action.result",
            "delivery.ack",
            "agent.deregister",
            "agent.register"
        ],
        "{seen:?}"
    );
    assert_eq!(seen.listed(), ["al"]);
    assert_eq!(seen.acks(), [("al".to_string(), 1)]);
    assert_eq!(seen.deregistered(), [("id-bo".to_string(), "bo".to_string())]);
    bench.accept();
    let seen = bench.take();
    assert!(seen.frames().is_empty(), "a listed inventory is not sent twice:\n{seen:?}");
    // What was sent on an open connection is not repeated, except what may be lost.
    bench.registered("di");
    bench.started("di");
    bench.settle();
    bench.take();
    bench.reconnect();
    let seen = bench.take();
    assert_eq!(seen.kinds(), ["node.register", "inventory.sync", "node.heartbeat"], "{seen:?}");
}

#[test]
fn a_deregistration_is_repeated_until_a_later_inventory_is_answered() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.exited(generation);
    let first = bench.take();
    assert_eq!(first.deregistered().len(), 1);
    bench.reconnect();
    let again = bench.take();
    let id = |seen: &Seen| {
        seen.frames().iter().find_map(|frame| match frame {
            ToEngine::AgentDeregister(frame) => frame.id.clone(),
            _ => None,
        })
    };
    assert_eq!(id(&first), id(&again), "the same request again");
    bench.accept();
    bench.reconnect();
    let seen = bench.take();
    assert!(seen.deregistered().is_empty(), "proved processed:\n{seen:?}");
}

#[test]
fn an_inventory_sent_before_a_deregistration_proves_nothing() {
    let mut bench = Bench::online();
    bench.spawn_running("bo");
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    let early = bench.inventories.clone();
    assert_eq!(early.len(), 1, "not answered yet");
    bench.exited(generation);
    bench.reply(&early[0], json!({}));
    bench.take();
    bench.reconnect();
    assert_eq!(bench.take().deregistered().len(), 1);
}

#[test]
fn a_refused_deregistration_is_over() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.exited(generation);
    let frames = bench.take().frames();
    let id = frames.iter().find_map(|frame| match frame {
        ToEngine::AgentDeregister(frame) => frame.id.clone(),
        _ => None,
    });
    bench.error(&id.expect("an id"), "agent_not_found");
    bench.reconnect();
    assert!(bench.take().deregistered().is_empty());
}

#[test]
fn results_wait_for_the_link_and_go_once() {
    let mut bench = Bench::online();
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    bench.close("reset");
    let generation = bench.generation("al");
    bench.note(generation, AgentNote::Refused { error: "exec".into() });
    assert!(bench.take().results().is_empty());
    bench.wait_connect();
    bench.open();
    assert_eq!(bench.take().results().len(), 1);
    bench.accept();
    bench.reconnect();
    assert!(bench.take().results().is_empty(), "the engine asks again if it was lost");
    bench.invoke("i1", "spawn:codex", json!({"name": "al"}));
    assert_eq!(bench.take().results().len(), 1, "and gets the same answer");
}

#[test]
fn a_heartbeat_and_a_ping_every_twelve_seconds() {
    let mut bench = Bench::online();
    bench.pass(11_999);
    assert_eq!(bench.take().count("node.heartbeat"), 0);
    bench.pass(1);
    let seen = bench.take();
    assert_eq!((seen.count("node.heartbeat"), seen.pings()), (1, 1), "{seen:?}");
    bench.pass(120_000);
    let seen = bench.take();
    assert_eq!((seen.count("node.heartbeat"), seen.pings()), (10, 10));
    bench.close("reset");
    bench.take();
    bench.pass(500);
    assert_eq!(bench.take().pings(), 0, "not while the link is down");
}

#[test]
fn an_idle_broker_wakes_for_nothing_but_its_heartbeat() {
    let mut bench = Bench::online();
    bench.spawn_running("al");
    let mut wakes = 0;
    let end = bench.now.mono + 120_000;
    while let Some(due) = bench.broker.next_deadline().filter(|due| *due <= end) {
        bench.jump(due - bench.now.mono);
        bench.step(Input::Tick);
        wakes += 1;
    }
    assert!(wakes <= 11, "{wakes} wake-ups in two minutes: ten heartbeats and one presence");
}

#[test]
fn one_heartbeat_per_turn_with_the_final_count() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.spawn_running("bo");
    // The periodic one falls due in the turn of an exit.
    let due = bench.broker.next_deadline().expect("a heartbeat");
    bench.jump(due - bench.now.mono);
    bench.take();
    bench.exited(generation);
    let frames = bench.take().frames();
    let beats: Vec<u64> = frames
        .iter()
        .filter_map(|frame| match frame {
            ToEngine::NodeHeartbeat(beat) => Some(beat.active_agents),
            _ => None,
        })
        .collect();
    assert_eq!(beats, [1], "{frames:?}");
}

#[test]
fn notes_of_an_older_connection_are_dropped() {
    let mut bench = Bench::online();
    let old = bench.link;
    bench.reconnect();
    bench.accept();
    bench.take();
    bench.node(NodeNote::Closed { generation: old, reason: "superseded".into() });
    bench.node(NodeNote::Refused { generation: old, why: Refusal::Unauthorized });
    bench.node(NodeNote::Frame { generation: old, frame: FromEngine::Deliver(message("ghost", 1, "m1")) });
    let seen = bench.take();
    assert!(seen.0.is_empty(), "{seen:?}");
    assert_eq!(bench.link_state(), "online");
}

#[test]
fn a_connection_whose_end_is_never_told_does_not_outlive_the_next_attempt() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    let id = bench.node_register.clone();
    bench.error(&id, "node_not_found");
    bench.engine(is_mint, Ok(json!({"token": "nt_live_2"})));
    bench.wait_connect();
    bench.take();
    bench.ask_spawn("al");
    bench.prepared("al");
    let seen = bench.take();
    assert!(seen.frames().is_empty(), "the new connection is not open yet:\n{seen:?}");
    bench.open();
    assert_eq!(bench.take().count("agent.register"), 1);
}
