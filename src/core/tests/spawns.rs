//! The spawn machine: every path ends in one answer; a failed one leaves nothing.

use super::*;

fn invocation(bench: &mut Bench, name: &str) {
    bench.invoke("i1", "spawn:codex", json!({"name": name}));
}

/// How the spawn was asked for, and its one error so far, if it has ended in one.
struct Asked {
    by: &'static str,
    ticket: Ticket,
}

impl Asked {
    fn spawn(bench: &mut Bench, by: &'static str) -> Asked {
        let ticket = if by == "api" {
            bench.ask_spawn("al")
        } else {
            invocation(bench, "al");
            0
        };
        Asked { by, ticket }
    }

    #[track_caller]
    fn failed_with(&self, seen: &Seen, part: &str) {
        if self.by == "api" {
            let (status, error) = seen.outcome(self.ticket);
            assert_eq!(status, 500, "{seen:?}");
            assert!(error.contains(part), "'{error}' does not tell '{part}'");
            assert!(seen.results().is_empty(), "{seen:?}");
        } else {
            let results = seen.results();
            assert_eq!(results.len(), 1, "exactly one result:\n{seen:?}");
            let (id, outcome) = &results[0];
            assert_eq!(id, "i1");
            let error = outcome.as_ref().expect_err("an error");
            assert!(error.starts_with("spawn_failed: ") && error.contains(part), "'{error}' does not tell '{part}'");
            assert!(seen.answers().is_empty(), "{seen:?}");
        }
        assert!(seen.event("agent_spawned").is_empty(), "{seen:?}");
    }
}

#[test]
fn a_spawn_by_the_api_goes_through() {
    let mut bench = Bench::online();
    let ticket = bench.ask_spawn("al");
    let seen = bench.take();
    assert_eq!(seen.launches().len(), 1, "{seen:?}");
    assert!(seen.frames().is_empty(), "nothing is registered before the program is found:\n{seen:?}");
    bench.prepared("al");
    let seen = bench.take();
    assert_eq!(seen.kinds(), ["agent.register"], "{seen:?}");
    bench.registered("al");
    let seen = bench.take();
    let set = seen.environment();
    for (name, value) in [
        ("RELAY_AGENT_TOKEN", "at_live_al"),
        ("RELAY_AGENT_NAME", "al"),
        ("RELAY_API_KEY", "rk_live_1"),
        ("AGENT_RELAY_ORIGIN_ACTOR", "agent-relay-cli/agent/codex"),
    ] {
        assert!(set.contains(&(name.to_string(), value.to_string())), "{name} in {set:?}");
    }
    assert!(seen.answers().is_empty(), "nothing runs yet:\n{seen:?}");
    bench.started("al");
    let seen = bench.take();
    let answer = seen.answer(ticket).expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["pre_registered"], true);
    assert_eq!(answer.body["warning"], Value::Null);
    assert_eq!(answer.body["pid"], 101);
    assert_eq!(seen.event_kinds(), ["agent_spawned"], "{seen:?}");
    assert_eq!(seen.event("agent_spawned")[0]["source"], "http_api");
    assert_eq!(seen.listed(), ["al"]);
    assert_eq!(seen.count("node.heartbeat"), 1, "at once, and once:\n{seen:?}");
    assert!(
        seen.calls().iter().any(|call| matches!(call, EngineCall::JoinChannel { channel, .. } if channel == "general")),
        "joined with its own token:\n{seen:?}"
    );
}

#[test]
fn a_spawn_by_the_engine_lists_before_it_answers() {
    let mut bench = Bench::online();
    invocation(&mut bench, "al");
    bench.prepared("al");
    bench.registered("al");
    bench.take();
    bench.started("al");
    let seen = bench.take();
    assert_eq!(seen.kinds(), ["node.heartbeat", "inventory.sync", "action.result"], "{seen:?}");
    assert_eq!(seen.inventories()[0][0].invocation_id.as_deref(), Some("i1"));
    assert_eq!(seen.results(), [("i1".to_string(), Ok(json!({"spawned": true, "name": "al"})))]);
    assert_eq!(seen.event("agent_spawned")[0]["source"], "relaycast_ws");
}

#[test]
fn f8_a_start_that_fails_leaves_no_registration() {
    for by in ["api", "invoke"] {
        for how in ["refused", "exited"] {
            let mut bench = Bench::online();
            let asked = Asked::spawn(&mut bench, by);
            bench.prepared("al");
            bench.registered("al");
            bench.take();
            let generation = bench.generation("al");
            if how == "refused" {
                bench.note(generation, AgentNote::Refused { error: "exec: no such file".into() });
            } else {
                bench.exited(generation);
            }
            let seen = bench.take();
            asked.failed_with(&seen, if how == "refused" { "exec: no such file" } else { "ended while" });
            assert_eq!(seen.deregistered(), [("id-al".to_string(), "al".to_string())], "{by} {how}:\n{seen:?}");
            bench.settle();
            bench.nothing_left(how);
        }
    }
}

#[test]
fn f32_an_unknown_program_fails_and_registers_nothing() {
    for by in ["api", "invoke"] {
        let mut bench = Bench::online();
        let asked = Asked::spawn(&mut bench, by);
        let generation = bench.generation("al");
        bench.note(generation, AgentNote::Refused { error: "no program 'codex'".into() });
        let seen = bench.take();
        asked.failed_with(&seen, "no program 'codex'");
        assert_eq!(seen.count("agent.register") + seen.count("agent.deregister"), 0, "{seen:?}");
        assert!(seen.calls().is_empty(), "{seen:?}");
        bench.nothing_left(by);
    }
}

#[test]
fn a_name_that_is_taken_fails_before_anything_is_registered() {
    for phase in ["preparing", "registering", "starting", "running", "releasing"] {
        let mut bench = Bench::online();
        bench.ask_spawn("al");
        if phase != "preparing" {
            bench.prepared("al");
        }
        if ["starting", "running", "releasing"].contains(&phase) {
            bench.registered("al");
        }
        if ["running", "releasing"].contains(&phase) {
            bench.started("al");
        }
        if phase == "releasing" {
            bench.release("al");
        }
        bench.take();
        for by in ["api", "invoke"] {
            let asked = Asked::spawn(&mut bench, by);
            let seen = bench.take();
            asked.failed_with(&seen, "agent 'al' already exists");
            assert!(seen.launches().is_empty() && seen.count("agent.register") == 0, "{phase}, {by}:\n{seen:?}");
        }
        assert_eq!(bench.agents(), ["al"], "{phase}");
    }
}

#[test]
fn f24_of_concurrent_spawns_of_one_name_exactly_one_succeeds() {
    let mut bench = Bench::online();
    let tickets: Vec<Ticket> = (0..5).map(|_| bench.ask_spawn("al")).collect();
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    let seen = bench.take();
    let codes: Vec<u16> = tickets.iter().map(|ticket| seen.outcome(*ticket).0).collect();
    assert_eq!(codes, [200, 500, 500, 500, 500]);
    assert_eq!(seen.count("agent.register"), 1, "{seen:?}");
    assert_eq!(seen.starts().len(), 1, "{seen:?}");
}

#[test]
fn f32_a_name_can_be_spawned_again_at_once() {
    let mut bench = Bench::online();
    for round in 0..3 {
        let generation = bench.spawn_running("al");
        let ticket = bench.release("al");
        bench.exited(generation);
        assert_eq!(bench.take().outcome(ticket).0, 200, "round {round}");
    }
    for round in 0..3 {
        bench.invoke(&format!("s{round}"), "spawn:codex", json!({"name": "bo"}));
        let generation = bench.run("bo");
        bench.invoke(&format!("r{round}"), "release", json!({"name": "bo"}));
        bench.exited(generation);
        let seen = bench.take();
        let expected = (format!("r{round}"), Ok(json!({"released": true, "name": "bo"})));
        assert_eq!(seen.results(), [expected], "{seen:?}");
    }
}

#[test]
fn a_new_life_is_not_deregistered_by_the_old_ones_end() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.close("reset");
    bench.release("al");
    bench.exited(generation);
    bench.take();
    bench.wait_connect();
    // Up again: the old life's end is told first.
    bench.ask_spawn("al");
    bench.prepared("al");
    bench.open();
    let seen = bench.take();
    let gone = seen.at("the old end", seen::sends("agent.deregister"));
    assert!(gone < seen.at("the new registration", seen::sends("agent.register")), "{seen:?}");
    bench.registered("al");
    bench.started("al");
    bench.take();
    // The deregistration was never proved processed; now it must not be repeated.
    bench.reconnect();
    let seen = bench.take();
    assert!(seen.deregistered().is_empty(), "{seen:?}");
    assert_eq!(seen.listed(), ["al"], "{seen:?}");
}

#[test]
fn the_brokers_own_name_and_blank_input_are_refused() {
    let mut bench = Bench::online();
    for name in ["broker", "BROKER", "box-broker"] {
        let ticket = bench.ask_spawn(name);
        assert_eq!(bench.take().outcome(ticket).0, 500, "{name}");
    }
    bench.invoke("i1", "spawn:codex", json!({"name": "Broker"}));
    let results = bench.take().results();
    assert!(results[0].1.as_ref().is_err_and(|error| error.starts_with("spawn_failed")), "{results:?}");
    bench.nothing_left("own name");
}

#[test]
fn f2_a_minted_token_is_kept_and_nothing_is_registered_twice() {
    let mut bench = Bench::online();
    let generation = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    bench.read(generation);
    bench.reconnect();
    bench.accept();
    bench.pass(60_000);
    let seen = bench.take();
    assert_eq!(seen.count("agent.register"), 0, "a second registration rotates the token in the CLI:\n{seen:?}");
    assert!(!seen.calls().iter().any(is_register), "{seen:?}");
}

#[test]
fn a_supplied_token_is_used_and_never_registered_nor_deregistered_on_failure() {
    let mut bench = Bench::online();
    let request = SpawnRequest {
        name: "al".into(),
        cli: "codex".into(),
        agent_token: Some(Secret::new("at_live_own")),
        ..SpawnRequest::default()
    };
    let ticket = bench.ask_spawn_of(request.clone());
    bench.take();
    bench.prepared("al");
    let seen = bench.take();
    assert!(seen.frames().is_empty() && seen.calls().is_empty(), "{seen:?}");
    assert!(
        seen.environment().contains(&("RELAY_AGENT_TOKEN".to_string(), "at_live_own".to_string())),
        "{:?}",
        seen.environment()
    );
    let generation = bench.generation("al");
    bench.note(generation, AgentNote::Refused { error: "exec".into() });
    let seen = bench.take();
    assert_eq!(seen.outcome(ticket).0, 500);
    assert!(seen.deregistered().is_empty(), "its owner registered it:\n{seen:?}");
    let ticket = bench.ask_spawn_of(request);
    bench.prepared("al");
    bench.started("al");
    let answer = bench.take().answer(ticket).expect("an answer");
    assert_eq!((answer.status, &answer.body["pre_registered"]), (200, &json!(true)));
}

#[test]
fn l19_an_agent_with_a_supplied_token_is_looked_up_and_listed() {
    let mut bench = Bench::online();
    bench.ask_spawn_of(SpawnRequest {
        name: "al".into(),
        cli: "codex".into(),
        agent_token: Some(Secret::new("at_live_own")),
        ..SpawnRequest::default()
    });
    bench.prepared("al");
    bench.started("al");
    let looked_up = |call: &EngineCall| *call == EngineCall::LookUpAgent { name: "al".into() };
    assert_eq!(bench.take().calls().iter().filter(|call| looked_up(call)).count(), 1);
    bench.engine(looked_up, Ok(json!({"id": "id-al", "name": "al"})));
    let seen = bench.take();
    assert_eq!(seen.listed(), ["al"], "{seen:?}");
    assert_eq!(seen.inventories()[0][0].agent_id, "id-al");
    // Twin: who was registered here is known.
    bench.spawn_running("bo");
    let asked = |call: &EngineCall| matches!(call, EngineCall::LookUpAgent { .. });
    assert!(!bench.calls.iter().any(|(_, call)| asked(call)), "{:?}", bench.calls);
}

#[test]
fn a_spawn_is_over_after_22_s_wherever_it_stands() {
    for stop_at in ["preparing", "http", "binding", "starting"] {
        let mut bench = Bench::online();
        let ticket = bench.ask_spawn("al");
        if stop_at != "preparing" {
            bench.prepared("al");
            let id = bench.register_id("al");
            if stop_at == "starting" {
                bench.registered("al");
            } else {
                bench.error(&id, "internal_error");
            }
        }
        let identity = json!({"id": "id-al", "name": "al", "token": "t"});
        if stop_at == "binding" {
            bench.engine(is_register, Ok(identity.clone()));
        }
        bench.pass(21_999);
        assert!(bench.take().answer(ticket).is_none(), "{stop_at}");
        bench.pass(1);
        let seen = bench.take();
        let (status, error) = seen.outcome(ticket);
        assert_eq!(status, 500, "{stop_at}");
        assert!(error.contains("spawn_timeout"), "{stop_at}: {error}");
        assert_eq!(seen.releases().len(), 1, "{stop_at}:\n{seen:?}");
        assert_eq!(
            seen.deregistered().len(),
            usize::from(["binding", "starting"].contains(&stop_at)),
            "{stop_at}:\n{seen:?}"
        );
        bench.nothing_left(stop_at);
        // What comes late is undone.
        if stop_at == "http" {
            bench.engine(is_register, Ok(identity));
            assert_eq!(bench.take().deregistered().len(), 1);
        }
        let generation = bench.generation("al");
        bench.note(generation, AgentNote::Prepared);
        bench.note(generation, AgentNote::Started { pid: 7 });
        assert!(bench.agents().is_empty(), "{stop_at}");
    }
    // Twin: what runs in time is left alone.
    let mut bench = Bench::online();
    let ticket = bench.ask_spawn("al");
    bench.pass(21_999);
    bench.prepared("al");
    bench.registered("al");
    bench.started("al");
    bench.pass(60_000);
    assert_eq!(bench.take().outcome(ticket).0, 200);
    assert_eq!(bench.agents(), ["al"]);
}

#[test]
fn a_label_is_shown_and_the_command_is_started() {
    let mut bench = Bench::online();
    bench.ask_spawn_of(SpawnRequest {
        name: "al".into(),
        cli: "bash -l".into(),
        label: Some("my-cli".into()),
        ..SpawnRequest::default()
    });
    let launches = bench.take().launches();
    assert_eq!(launches[0].cli, "bash -l");
    bench.prepared("al");
    bench.registered("al");
    let generation = bench.started("al");
    bench.note(generation, AgentNote::Ready);
    let seen = bench.take();
    assert_eq!(seen.event("agent_spawned")[0]["cli"], "my-cli");
    assert_eq!(seen.event("worker_ready")[0]["cli"], "my-cli");
    assert_eq!(bench.ask(ApiCall::ListAgents).body["agents"][0]["cli"], "my-cli");
}

#[test]
fn f9_agents_of_every_path_are_listed_also_after_a_reconnect() {
    let mut bench = Bench::online();
    bench.spawn_running("api");
    invocation(&mut bench, "invoked");
    bench.run("invoked");
    bench.ask_spawn("http");
    bench.prepared("http");
    let id = bench.register_id("http");
    bench.error(&id, "internal_error");
    bench.engine(is_register, Ok(json!({"id": "id-http", "name": "http", "token": "t"})));
    bench.engine(is_bind, Ok(json!({})));
    bench.started("http");
    let seen = bench.take();
    assert_eq!(seen.listed(), ["api", "invoked", "http"], "{seen:?}");
    bench.reconnect();
    let seen = bench.take();
    assert_eq!(seen.listed(), ["api", "invoked", "http"], "{seen:?}");
    let entries = seen.inventories().pop().unwrap_or_default();
    assert_eq!(entries[1].invocation_id.as_deref(), Some("i1"));
}

#[test]
fn f36_session_and_invocation_are_forwarded() {
    let mut bench = Bench::online();
    bench.invoke(
        "i1",
        "spawn",
        json!({"name": "al", "harnessConfig": {"runtime": "pty", "command": "codex", "sessionId": "s1"}}),
    );
    bench.prepared("al");
    let frames = bench.take().frames();
    let Some(ToEngine::AgentRegister(frame)) = frames.first() else { panic!("{frames:?}") };
    assert_eq!(frame.invocation_id.as_deref(), Some("i1"));
    assert_eq!(frame.session_ref.as_deref(), Some("s1"));
    assert_eq!(frame.resumable, Some(true));
    // Twin: without a session, neither key.
    bench.ask_spawn("bo");
    bench.prepared("bo");
    let frames = bench.take().frames();
    let Some(ToEngine::AgentRegister(frame)) = frames.first() else { panic!("{frames:?}") };
    assert_eq!((&frame.invocation_id, &frame.session_ref, frame.resumable), (&None, &None, None));
}

#[test]
fn what_came_for_a_spawn_that_fails_is_not_lost() {
    let mut bench = Bench::online();
    bench.ask_spawn("al");
    bench.send_to("al", "by hand");
    bench.deliver(message("al", 1, "m1"));
    bench.deliver(of_type("action.completed", message("al", 0, "e1")));
    bench.take();
    let generation = bench.generation("al");
    bench.note(generation, AgentNote::Refused { error: "exec".into() });
    let seen = bench.take();
    assert!(seen.acks().is_empty(), "numbered ones stay at the engine:\n{seen:?}");
    let reasons: Vec<String> = seen.dead().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["spawn_failed", "recipient gone"], "what nobody repeats is on record:\n{seen:?}");
}

#[test]
fn what_overtook_another_before_a_spawn_failed_does_not_cover_it_later() {
    let mut bench = Bench::online();
    bench.settle();
    bench.deliver(message("al", 1, "m1"));
    assert_eq!(bench.take().acked("al"), [1], "for nobody");
    bench.ask_spawn("al");
    bench.deliver(message("al", 3, "m3"));
    let generation = bench.generation("al");
    bench.note(generation, AgentNote::Refused { error: "exec".into() });
    bench.deliver(message("al", 2, "m2"));
    bench.spawn_running("al");
    bench.take();
    bench.deliver(message("al", 1, "m1"));
    let seen = bench.take();
    assert_eq!(seen.acked("al"), [1], "2 and 3 are still at the engine:\n{seen:?}");
    for seq in [2, 3] {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        let generation = bench.generation("al");
        assert_eq!(bench.read(generation), format!("m{seq}"));
        assert_eq!(bench.take().acked("al"), [seq]);
    }
}

#[test]
fn small_models_and_gemini_are_told_what_they_do_not_find_out_before_their_task() {
    let base =
        || SpawnRequest { name: "al".into(), cli: "codex".into(), task: Some("the task".into()), ..Default::default() };
    let with =
        |cli: &str, model: Option<&str>| SpawnRequest { cli: cli.into(), model: model.map(Into::into), ..base() };
    for (request, workers, tools) in [
        (with("claude", Some("claude-haiku-4")), true, false),
        (with("codex", Some("gpt-5-Mini")), true, false),
        (with("opencode", Some("gemini-2-flash")), true, false),
        (with("aider", Some("mistral-small")), true, false),
        (with("/opt/bin/gemini --yolo", None), false, true),
        (with("'/opt/my tools/Gemini' -x", Some("gemini-3-flash")), true, true),
        (SpawnRequest { headless: true, ..with("claude", Some("claude-haiku-4")) }, true, false),
        (with("codex", Some("gpt-5")), false, false),
        (with("codex gemini", None), false, false),
        (SpawnRequest { skip_relay_prompt: true, ..with("gemini", Some("x-flash")) }, false, false),
    ] {
        let mut bench = Bench::online();
        bench.ask_spawn_of(request.clone());
        let al = bench.run("al");
        let body = bench.flights[&al].body.clone();
        let mut parts: Vec<&str> = body.split("\n\n").collect();
        assert_eq!(parts.pop(), Some("the task"), "{request:?}: {body}");
        let hint = parts.pop_if(|part| part.contains("MCP tools") && !part.contains('\n'));
        assert_eq!((parts.len(), hint.is_some()), (usize::from(workers), tools), "{request:?}: {body}");
        let note = parts.pop().unwrap_or_default();
        assert_eq!(note.contains("add_agent") && note.contains("remove_agent"), workers, "{body}");
    }
    // Whether a program can post is what it is told, and it is told its token or that it has none.
    for skips in [false, true] {
        let mut bench = Bench::online();
        bench.ask_spawn_of(SpawnRequest { skip_relay_prompt: skips, ..with("codex", None) });
        bench.prepared("al");
        bench.registered("al");
        let seen = bench.take();
        let has_token = seen.environment().iter().any(|(key, _)| key == "RELAY_AGENT_TOKEN");
        let told = seen.0.iter().any(|effect| {
            matches!(effect, Effect::Agent { command: AgentCommand::Start { pre_registered: true, .. }, .. })
        });
        assert_eq!((has_token, told), (!skips, !skips));
    }
    // Without a task there is nothing to put it before.
    let mut bench = Bench::online();
    bench.ask_spawn_of(SpawnRequest { task: Some(" ".into()), ..with("gemini", None) });
    let al = bench.run("al");
    assert!(!bench.flights.contains_key(&al));
}
