//! The fleet sidecar: what it declares, what it is asked, how it comes and goes.

use super::*;
use crate::core::ports::{SidecarCommand, SidecarGeneration, SidecarNote};
use crate::core::sidecar::{HANDLER_MS, IN_FLIGHT_MAX};
use crate::wire::fleet::{Manifest, Supervision};
use crate::wire::node::{ActionOutcome, Capability, NodeHeartbeat, NodeRegister};

pub(super) fn manifest() -> Manifest {
    Manifest {
        name: " fleet ".into(),
        node_id: None,
        capabilities: vec![capability("deploy"), Capability { kind: Some("spawn".into()), ..capability("spawn:x") }],
        max_agents: 4,
        tags: vec!["gpu".into(), " ".into()],
        version: Some("side/1".into()),
    }
}

pub(super) fn capability(name: &str) -> Capability {
    Capability { name: name.into(), kind: None, metadata: None }
}

impl Bench {
    pub(super) fn attach(&mut self, generation: SidecarGeneration) {
        self.step(Input::Sidecar { generation, note: SidecarNote::Attached });
    }

    pub(super) fn gone(&mut self, generation: SidecarGeneration) {
        self.step(Input::Sidecar { generation, note: SidecarNote::Gone { reason: "reset".into() } });
    }

    pub(super) fn register_node(&mut self, sidecar: SidecarGeneration, supervision: Option<Supervision>) -> ApiAnswer {
        self.ask(ApiCall::RegisterNode { sidecar, manifest: manifest(), supervision })
    }

    fn handlers(&mut self, sidecar: SidecarGeneration, names: &[&str]) -> ApiAnswer {
        let names = names.iter().map(|name| name.to_string()).collect();
        self.ask(ApiCall::RegisterHandlers { sidecar, names })
    }

    fn result(&mut self, sidecar: SidecarGeneration, id: &str, outcome: Result<Value, &str>) -> ApiAnswer {
        let outcome = match outcome {
            Ok(output) => ActionOutcome::Output(output),
            Err(error) => ActionOutcome::Error(error.into()),
        };
        self.ask(ApiCall::HandlerResult { sidecar, invocation_id: id.into(), outcome })
    }

    /// An online broker with sidecar 1 and these handlers, and nothing to take.
    fn with_handlers(names: &[&str]) -> Bench {
        let mut bench = Bench::online();
        bench.attach(1);
        bench.register_node(1, None);
        bench.accept();
        bench.handlers(1, names);
        bench.out.clear();
        bench
    }

    /// A sidecar's `spawn_agent` of an agent, for an invocation.
    fn spawn_agent(&mut self, sidecar: SidecarGeneration, name: &str, invocation: Option<&str>) -> Ticket {
        self.ask_spawn_of(SpawnRequest {
            name: name.into(),
            cli: "codex".into(),
            session_ref: Some("s1".into()),
            sidecar: Some(sidecar),
            invocation_id: invocation.map(str::to_string),
            ..SpawnRequest::default()
        })
    }
}

impl Seen {
    /// Connection, invocation and handler name of each `invoke_handler`.
    fn invoked(&self) -> Vec<(SidecarGeneration, String, String)> {
        self.each(|effect| match effect {
            Effect::Sidecar { generation, command: SidecarCommand::Invoke { invocation_id, name, .. } } => {
                Some((*generation, invocation_id.clone(), name.clone()))
            }
            _ => None,
        })
    }

    fn closed(&self) -> Vec<(SidecarGeneration, &'static str)> {
        self.each(|effect| match effect {
            Effect::Sidecar { generation, command: SidecarCommand::Close { reason } } => Some((*generation, *reason)),
            _ => None,
        })
    }

    pub(super) fn node_registers(&self) -> Vec<NodeRegister> {
        self.frames()
            .into_iter()
            .filter_map(|frame| match frame {
                ToEngine::NodeRegister(frame) => Some(frame),
                _ => None,
            })
            .collect()
    }

    pub(super) fn heartbeats(&self) -> Vec<NodeHeartbeat> {
        self.frames()
            .into_iter()
            .filter_map(|frame| match frame {
                ToEngine::NodeHeartbeat(frame) => Some(frame),
                _ => None,
            })
            .collect()
    }

    /// What the one heartbeat says of the handlers.
    #[track_caller]
    fn handlers_live(&self) -> bool {
        let heartbeats = self.heartbeats();
        assert_eq!(heartbeats.len(), 1, "one heartbeat, at once:\n{self:?}");
        heartbeats[0].handlers_live
    }
}

fn unavailable(id: &str) -> (String, Result<Value, String>) {
    (id.into(), Err("handler_unavailable".into()))
}

pub(super) fn names(capabilities: &[Capability]) -> Vec<&str> {
    capabilities.iter().map(|capability| capability.name.as_str()).collect()
}

// ------------------------------------------------------------------------------------------------------------ handlers

#[test]
fn handlers_are_trimmed_replaced_and_told_at_once() {
    let mut bench = Bench::online();
    bench.attach(1);
    assert!(!bench.take().handlers_live(), "attached, but nothing handled");
    for (given, kept) in [
        (&[" deploy ", "", "  "][..], &["deploy"][..]),
        (&["test", "build"][..], &["build", "test"][..]),
        (&[" "][..], &[][..]),
    ] {
        let answer = bench.handlers(1, given);
        assert_eq!(answer.body, json!({"handlers_live": !kept.is_empty()}), "{given:?}");
        assert_eq!(bench.take().handlers_live(), !kept.is_empty(), "{given:?}");
        assert_eq!(bench.status()["sidecar"]["handlers"], json!(kept), "{given:?}");
        bench.take();
    }
}

#[test]
fn f30_a_declared_spawner_is_asked_and_what_it_does_not_handle_is_the_brokers() {
    for (action, asked) in
        [("spawn:x", true), ("spawn", true), ("spawn:codex", false), ("spawn:X", false), ("spawn:x ", false)]
    {
        let mut bench = Bench::with_handlers(&["spawn:x", "spawn"]);
        bench.invoke("i1", action, json!({"name": "al", "cli": "codex"}));
        let seen = bench.take();
        let invoked = if asked { vec![(1, "i1".to_string(), action.to_string())] } else { Vec::new() };
        assert_eq!(seen.invoked(), invoked, "{action}:\n{seen:?}");
        assert_eq!(seen.launches().len(), usize::from(!asked), "{action}:\n{seen:?}");
    }
    // Twin: declared in the manifest, but not live.
    let mut bench = Bench::with_handlers(&[]);
    bench.invoke("i1", "spawn:x", json!({"name": "al"}));
    let launches = bench.take().launches();
    assert_eq!((launches[0].name.as_str(), launches[0].cli.as_str()), ("al", "x"), "f1: the cli of the action");
}

#[test]
fn an_action_goes_to_its_handler_and_a_release_never_does() {
    let mut bench = Bench::with_handlers(&["deploy", "release"]);
    bench.invoke("i1", "deploy", json!({"to": "prod"}));
    let seen = bench.take();
    let command =
        SidecarCommand::Invoke { invocation_id: "i1".into(), name: "deploy".into(), input: json!({"to": "prod"}) };
    assert!(seen.0.contains(&Effect::Sidecar { generation: 1, command }), "{seen:?}");
    assert!(seen.results().is_empty());
    bench.frame(FromEngine::ActionInvoke(ActionInvoke {
        invocation_id: "i2".into(),
        action: "deploy".into(),
        input: Value::Null,
        agent_id: Some("id-al".into()),
        agent_name: None,
    }));
    assert_eq!(bench.take().invoked().len(), 1, "hosted by an agent, handled by the sidecar");
    bench.invoke("i3", "release", json!({"name": "ghost"}));
    let seen = bench.take();
    assert!(seen.invoked().is_empty(), "{seen:?}");
    assert!(seen.results()[0].1.as_ref().is_err_and(|error| error.starts_with("release_failed")), "f29:\n{seen:?}");
    bench.invoke("i4", "test", json!({}));
    assert_eq!(bench.take().results(), [unavailable("i4")]);
}

#[test]
fn f32_a_result_goes_to_the_engine_verbatim_once_and_again_when_asked() {
    for outcome in [Ok(json!({"k": [1, null]})), Ok(Value::Null), Ok(json!(false)), Err("it burns: 7"), Err("")] {
        let mut bench = Bench::with_handlers(&["deploy"]);
        bench.invoke("i1", "deploy", json!({}));
        bench.invoke("i1", "deploy", json!({}));
        let seen = bench.take();
        assert_eq!((seen.invoked().len(), seen.results().len()), (1, 0), "asked twice while open: silence:\n{seen:?}");
        let answer = bench.result(1, "i1", outcome.clone());
        assert_eq!((answer.status, answer.body), (200, json!({"completed": true})));
        let expected = [("i1".to_string(), outcome.clone().map_err(str::to_string))];
        let seen = bench.take();
        assert_eq!(seen.results(), expected);
        let record = seen.at("the record", |effect| matches!(effect, Effect::Journal(Record::Invocation { .. })));
        assert!(record < seen.at("the result", seen::sends("action.result")), "{seen:?}");
        bench.invoke("i1", "deploy", json!({}));
        let seen = bench.take();
        assert_eq!((seen.results(), seen.invoked().len()), (expected.to_vec(), 0), "f32: a repeated id:\n{seen:?}");
        // Also after the broker's restart.
        let records = vec![Record::Invocation {
            invocation_id: "i1".into(),
            output: outcome.clone().ok(),
            error: outcome.clone().err().map(str::to_string),
            at_unix: UNIX,
        }];
        let mut bench = Bench::born(config(), records).go_online();
        bench.invoke("i1", "deploy", json!({}));
        assert_eq!(bench.take().results(), expected);
    }
}

#[test]
fn a_result_that_nobody_waits_for_is_refused() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    bench.invoke("i1", "deploy", json!({}));
    bench.invoke("s1", "spawn:codex", json!({"name": "al"}));
    bench.result(1, "i1", Ok(json!(1)));
    bench.take();
    for id in ["i1", "ghost", "s1"] {
        let answer = bench.result(1, id, Ok(json!(2)));
        assert_eq!((answer.status, &answer.body["code"]), (404, &json!("unknown_invocation")), "{id}");
        assert!(bench.take().results().is_empty(), "{id}");
    }
}

#[test]
fn a_handler_that_never_answers_is_given_up() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    bench.invoke("slow", "deploy", json!({}));
    bench.invoke("quick", "deploy", json!({}));
    bench.result(1, "quick", Ok(json!(1)));
    bench.take();
    let mut left = HANDLER_MS - 1;
    while left > 0 {
        let step = left.min(10_000);
        bench.pass(step);
        bench.accept();
        left -= step;
    }
    assert!(bench.take().results().is_empty(), "not yet");
    bench.pass(1);
    let results = bench.take().results();
    assert_eq!(results.len(), 1, "{results:?}");
    assert_eq!(results[0].0, "slow");
    assert!(results[0].1.as_ref().is_err_and(|error| error.starts_with("handler_timeout: ")), "{results:?}");
    assert_eq!(bench.result(1, "slow", Ok(json!(1))).status, 404, "too late");
    bench.take();
    bench.invoke("slow", "deploy", json!({}));
    assert_eq!(bench.take().results(), results, "asked again");
}

#[test]
fn the_number_of_waiting_invocations_is_bounded() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    for n in 0..IN_FLIGHT_MAX {
        bench.invoke(&format!("i{n}"), "deploy", json!({}));
    }
    let seen = bench.take();
    assert_eq!((seen.invoked().len(), seen.results().len()), (IN_FLIGHT_MAX, 0));
    bench.invoke("more", "deploy", json!({}));
    let seen = bench.take();
    assert!(seen.invoked().is_empty(), "{seen:?}");
    // Not `handler_unavailable`: the handlers live.
    assert!(seen.results()[0].1.as_ref().is_err_and(|error| error.starts_with("handler_overloaded: ")), "{seen:?}");
    bench.result(1, "i0", Ok(json!(1)));
    bench.take();
    bench.invoke("next", "deploy", json!({}));
    assert_eq!(bench.take().invoked().len(), 1, "one has left");
}

// ------------------------------------------------------------------------------------------------------ coming and going

#[test]
fn f34_the_newest_sidecar_wins_and_the_node_stays() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    let al = bench.spawn_running("al");
    bench.invoke("i1", "deploy", json!({}));
    bench.take();
    bench.attach(2);
    let seen = bench.take();
    assert_eq!(seen.closed(), [(1, "superseded")], "{seen:?}");
    assert_eq!(seen.results(), [unavailable("i1")], "{seen:?}");
    assert!(!seen.handlers_live(), "the handlers were the old one's");
    assert_eq!(seen.closes(), 0, "the node's socket stays:\n{seen:?}");
    // Nothing of the old one counts any more.
    bench.handlers(2, &["deploy"]);
    bench.invoke("i1", "deploy", json!({}));
    assert_eq!(bench.take().invoked(), [(2, "i1".to_string(), "deploy".to_string())], "brought here again");
    for answer in [
        bench.result(1, "i1", Ok(json!("old"))),
        bench.handlers(1, &["other"]),
        bench.register_node(1, None),
        bench.ask(ApiCall::DeregisterNode { sidecar: 1 }),
    ] {
        assert_eq!((answer.status, &answer.body["code"]), (409, &json!("frame_failed")), "{}", answer.body);
    }
    let spawn = bench.spawn_agent(1, "bo", None);
    bench.gone(1);
    bench.attach(1);
    let seen = bench.take();
    assert_eq!(seen.outcome(spawn).0, 500, "{seen:?}");
    assert!(seen.frames().is_empty() && seen.closed().is_empty() && seen.launches().is_empty(), "{seen:?}");
    bench.result(2, "i1", Ok(json!("new")));
    assert_eq!(bench.take().results(), [("i1".to_string(), Ok(json!("new")))]);
    // The node is where it was.
    bench.deliver(message("al", 1, "m1"));
    assert_eq!(bench.take().typed(), ["m1"]);
    bench.read(al);
    assert_eq!(bench.take().acked("al"), [1]);
    // Only the end of the new one counts.
    bench.gone(2);
    let seen = bench.take();
    assert!(!seen.handlers_live());
    assert_eq!(bench.status()["sidecar"]["attached"], false);
}

#[test]
fn an_unclean_end_answers_what_waits_and_keeps_the_manifest() {
    let mut bench = Bench::with_handlers(&["deploy", "spawn:x"]);
    bench.invoke("i1", "deploy", json!({}));
    bench.invoke("i2", "spawn:x", json!({"name": "al"}));
    bench.take();
    bench.gone(1);
    let seen = bench.take();
    assert_eq!(seen.results(), [unavailable("i1"), unavailable("i2")]);
    let heartbeats = seen.heartbeats();
    assert_eq!((heartbeats.len(), heartbeats[0].handlers_live), (1, false), "{seen:?}");
    assert_eq!((heartbeats[0].name.as_str(), names(&heartbeats[0].capabilities).len()), ("fleet", 2));
    assert!(seen.node_registers().is_empty() && seen.closed().is_empty(), "{seen:?}");
    assert!(seen.journal().is_empty(), "the engine brings it again, it is not finished:\n{seen:?}");
    bench.invoke("i3", "deploy", json!({}));
    assert_eq!(bench.take().results(), [unavailable("i3")]);
    // Back again, it gets what the engine brings again.
    bench.attach(2);
    bench.handlers(2, &["deploy"]);
    bench.take();
    bench.invoke("i1", "deploy", json!({}));
    assert_eq!(bench.take().invoked().len(), 1, "not the old refusal");
    bench.gone(1);
    assert!(bench.take().0.is_empty(), "a late end of the first changes nothing");
}

#[test]
fn f34_a_clean_end_takes_back_the_manifest_and_nothing_else() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    let al = bench.spawn_running("al");
    bench.invoke("i1", "deploy", json!({}));
    bench.take();
    let answer = bench.ask(ApiCall::DeregisterNode { sidecar: 1 });
    assert_eq!((answer.status, answer.body), (200, json!({"deregistered": true})));
    let seen = bench.take();
    assert_eq!(seen.results(), [unavailable("i1")]);
    let register = &seen.node_registers()[0];
    assert_eq!((register.name.as_str(), register.capabilities.len(), register.max_agents), ("box", 0, 0));
    assert!(!seen.handlers_live());
    assert_eq!((seen.count("node.deregister"), seen.closes()), (0, 0), "the node stays:\n{seen:?}");
    assert_eq!(seen.closed(), [(1, "deregistered")]);
    let answered = seen.at("the answer", |effect| matches!(effect, Effect::Reply { .. }));
    let close = |effect: &Effect| matches!(effect, Effect::Sidecar { command: SidecarCommand::Close { .. }, .. });
    assert!(answered < seen.at("the close", close), "answered first:\n{seen:?}");
    bench.gone(1);
    assert!(bench.take().0.is_empty(), "the end that was asked for");
    bench.accept();
    bench.take();
    bench.deliver(message("al", 1, "m1"));
    assert_eq!(bench.take().typed(), ["m1"]);
    bench.read(al);
    assert_eq!(bench.take().acked("al"), [1]);
    bench.reconnect();
    assert_eq!(bench.take().node_registers()[0].name, "box");
}

#[test]
fn f34_a_refused_bootstrap_manifest_does_not_bring_the_sidecars_back() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    bench.ask(ApiCall::DeregisterNode { sidecar: 1 });
    bench.take();
    let id = bench.node_register.clone();
    bench.error(&id, "node_name_conflict");
    let seen = bench.take();
    assert_eq!(seen.node_registers()[0].name, "box-01234567", "{seen:?}");
    assert!(seen.node_registers()[0].capabilities.is_empty(), "{seen:?}");
}

#[test]
fn what_ends_offline_is_told_on_the_next_connection() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    bench.invoke("i1", "deploy", json!({}));
    bench.invoke("i2", "deploy", json!({}));
    bench.close("reset");
    bench.result(1, "i1", Ok(json!(1)));
    bench.gone(1);
    assert!(bench.take().frames().is_empty());
    bench.wait_connect();
    bench.open();
    let seen = bench.take();
    assert_eq!(seen.results(), [("i1".to_string(), Ok(json!(1))), unavailable("i2")]);
    assert!(!seen.handlers_live());
}

#[test]
fn a_stop_answers_and_closes_the_sidecar() {
    let mut bench = Bench::with_handlers(&["deploy"]);
    bench.invoke("i1", "deploy", json!({}));
    let spawn = bench.spawn_agent(1, "al", None);
    bench.take();
    bench.step(Input::Stop { reason: "SIGTERM" });
    let seen = bench.take();
    assert_eq!(seen.results(), [("i1".to_string(), Err("node_shutting_down".to_string()))]);
    let answered = seen.at("the answer", |effect| matches!(effect, Effect::Reply { ticket, .. } if *ticket == spawn));
    let close = |effect: &Effect| matches!(effect, Effect::Sidecar { command: SidecarCommand::Close { .. }, .. });
    assert!(answered < seen.at("the close", close), "{seen:?}");
    assert_eq!(bench.result(1, "i1", Ok(json!(1))).status, 503);
    bench.attach(2);
    assert_eq!(bench.take().closed(), [(2, "the broker is shutting down")]);
}

// ------------------------------------------------------------------------------------------------------------ its spawns

#[test]
fn f36_a_sidecars_spawn_carries_its_invocation() {
    let mut bench = Bench::with_handlers(&["spawn:x"]);
    bench.invoke("i1", "spawn:x", json!({"name": "al"}));
    bench.take();
    let ticket = bench.spawn_agent(1, "al", Some("i1"));
    bench.prepared("al");
    let frames = bench.take().frames();
    let Some(ToEngine::AgentRegister(frame)) = frames.first() else { panic!("{frames:?}") };
    assert_eq!((frame.invocation_id.as_deref(), frame.session_ref.as_deref()), (Some("i1"), Some("s1")), "f36");
    assert_eq!(frame.resumable, Some(true));
    bench.registered("al");
    let al = bench.started("al");
    let seen = bench.take();
    let answer = seen.answer(ticket).expect("an answer");
    assert_eq!((answer.status, &answer.body["sessionId"]), (200, &json!("s1")), "as by the API: {}", answer.body);
    assert_eq!(seen.inventories()[0][0].invocation_id.as_deref(), Some("i1"));
    assert!(seen.results().is_empty(), "the handler answers:\n{seen:?}");
    assert_eq!(seen.event("agent_spawned")[0]["source"], "http_api");
    // The inventory makes the engine ask again what it has open.
    bench.invoke("i1", "spawn:x", json!({"name": "al"}));
    assert!(bench.take().0.is_empty(), "in flight: silence");
    bench.result(1, "i1", Ok(json!({"agent": "al"})));
    let first = bench.take().results();
    bench.invoke("i1", "spawn:x", json!({"name": "al"}));
    assert_eq!(bench.take().results(), first);
    bench.reconnect();
    assert_eq!(bench.take().inventories()[0][0].invocation_id.as_deref(), Some("i1"));
    // Its agent outlives it.
    bench.gone(1);
    assert!(bench.take().releases().is_empty());
    assert_eq!(bench.agents(), ["al"]);
    bench.exited(al);
    // Twin: without an invocation there is none.
    bench.attach(2);
    bench.spawn_agent(2, "bo", Some(" "));
    bench.take();
    bench.prepared("bo");
    let frames = bench.take().frames();
    let Some(ToEngine::AgentRegister(frame)) = frames.first() else { panic!("{frames:?}") };
    assert_eq!(frame.invocation_id, None);
}

#[test]
fn a_sidecars_spawn_does_not_fall_back_to_http() {
    let refused: fn(&mut Bench) = |bench| {
        bench.prepared("al");
        let id = bench.register_id("al");
        bench.error(&id, "node_capacity_exceeded");
    };
    let offline: fn(&mut Bench) = |bench| {
        bench.close("reset");
        bench.prepared("al");
        // Within the grace for a connection that is about to come.
        bench.broker.timers.cancel(&crate::core::timers::Timer::Reconnect);
        bench.pass(2_000);
    };
    let silent: fn(&mut Bench) = |bench| {
        bench.prepared("al");
        bench.pass(10_000);
    };
    for (how, break_it, error) in [
        ("refused", refused, "node_capacity_exceeded: because"),
        ("offline", offline, "node_control_disconnected"),
        ("silent", silent, "agent_register_timeout"),
    ] {
        let mut bench = Bench::with_handlers(&["spawn:x"]);
        let ticket = bench.spawn_agent(1, "al", Some("i1"));
        break_it(&mut bench);
        let seen = bench.take();
        assert_eq!(seen.outcome(ticket), (500, error.to_string()), "{how}");
        assert!(!seen.calls().iter().any(is_register), "{how}:\n{seen:?}");
        assert!(seen.deregistered().is_empty(), "{how}: nothing was registered:\n{seen:?}");
        bench.nothing_left(how);
    }
    // Twin: the API's does.
    let mut bench = Bench::with_handlers(&["spawn:x"]);
    bench.ask_spawn("al");
    refused(&mut bench);
    assert!(bench.take().calls().iter().any(is_register));
}

#[test]
fn a_spawn_that_its_sidecar_does_not_live_to_see_leaves_nothing() {
    for phase in ["preparing", "registering", "starting"] {
        for end in ["gone", "superseded", "deregistered"] {
            let mut bench = Bench::with_handlers(&["spawn:x"]);
            bench.invoke("i1", "spawn:x", json!({"name": "al"}));
            bench.spawn_agent(1, "al", Some("i1"));
            if phase != "preparing" {
                bench.prepared("al");
            }
            if phase == "starting" {
                bench.registered("al");
            }
            bench.take();
            match end {
                "gone" => bench.gone(1),
                "superseded" => bench.attach(2),
                _ => {
                    bench.ask(ApiCall::DeregisterNode { sidecar: 1 });
                }
            }
            let seen = bench.take();
            assert_eq!(seen.results(), [unavailable("i1")], "{phase}, {end}:\n{seen:?}");
            assert_eq!(seen.releases().len(), 1, "{phase}, {end}:\n{seen:?}");
            assert_eq!(seen.deregistered().len(), usize::from(phase == "starting"), "{phase}, {end}:\n{seen:?}");
            bench.nothing_left(end);
        }
    }
    // Twin: what runs has been told to the engine as the end of the invocation.
    let mut bench = Bench::with_handlers(&["spawn:x"]);
    bench.invoke("i1", "spawn:x", json!({"name": "al"}));
    bench.spawn_agent(1, "al", Some("i1"));
    bench.run("al");
    bench.gone(1);
    let seen = bench.take();
    assert_eq!(seen.results(), [("i1".to_string(), Ok(json!({"spawned": true, "name": "al"})))]);
    assert!(seen.releases().is_empty(), "{seen:?}");
}
