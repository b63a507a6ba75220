//! What a sidecar declares of the node, and what becomes of it on this and later connections.

use super::sidecars::{capability, manifest, names};
use super::*;
use crate::wire::fleet::Manifest;

#[test]
fn f30_without_a_sidecar_the_node_claims_nothing() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.open();
    let seen = bench.take();
    let (register, heartbeat) = (&seen.node_registers()[0], &seen.heartbeats()[0]);
    assert!(register.capabilities.is_empty() && heartbeat.capabilities.is_empty(), "{seen:?}");
    assert_eq!((register.max_agents, heartbeat.handlers_live, heartbeat.load), (0, false, 0.0));
}

#[test]
fn a_manifest_is_what_the_node_says_of_itself_on_this_and_every_later_connection() {
    let mut bench = Bench::online();
    bench.attach(1);
    bench.take();
    let answer = bench.register_node(1, None);
    assert_eq!((answer.status, answer.body), (200, json!({"registered": true})));
    for what in ["at once", "after a reconnect"] {
        if what == "after a reconnect" {
            bench.reconnect();
        }
        let seen = bench.take();
        let (register, heartbeat) = (&seen.node_registers()[0], &seen.heartbeats()[0]);
        assert_eq!((register.name.as_str(), register.node_id.as_str()), ("fleet", "node_0123456789abcdef"), "{what}");
        assert_eq!(names(&register.capabilities), ["deploy", "spawn:x"], "{what}");
        assert_eq!((register.max_agents, register.version.as_str()), (4, "side/1"), "{what}");
        assert_eq!(register.tags, ["gpu"], "{what}");
        assert_eq!((heartbeat.name.as_str(), heartbeat.max_agents), ("fleet", 4), "{what}");
        assert_eq!(names(&heartbeat.capabilities), ["deploy", "spawn:x"], "{what}");
        assert!(!heartbeat.handlers_live, "no handler yet, {what}");
        bench.accept();
    }
    assert_eq!(bench.status()["node"]["name"], "fleet");
}

#[test]
fn a_manifest_declared_offline_goes_with_the_next_connection() {
    let mut bench = Bench::new();
    bench.step(Input::Start);
    bench.attach(1);
    assert_eq!(bench.register_node(1, None).status, 200);
    assert!(bench.take().frames().is_empty());
    bench.open();
    let seen = bench.take();
    assert_eq!((seen.node_registers().len(), seen.node_registers()[0].name.as_str()), (1, "fleet"), "{seen:?}");
}

#[test]
fn the_engine_is_asked_for_tokens_by_the_name_that_it_knows() {
    let asked = |seen: &Seen| {
        seen.calls()
            .into_iter()
            .find_map(|call| match call {
                EngineCall::MintNodeToken { node_name } => Some(node_name),
                _ => None,
            })
            .expect("a mint")
    };
    for accepted in [true, false] {
        let mut bench = Bench::online();
        bench.attach(1);
        bench.register_node(1, None);
        if accepted {
            bench.accept();
        }
        bench.close("reset");
        bench.wait_connect();
        bench.take();
        bench.refuse(Refusal::Unauthorized);
        assert_eq!(asked(&bench.take()), if accepted { "fleet" } else { "box" }, "accepted: {accepted}");
    }
}

#[test]
fn what_a_manifest_leaves_blank_or_gets_wrong_stays_ours() {
    let mut bench = Bench::online();
    bench.attach(1);
    bench.take();
    let blank = Manifest { name: " ".into(), version: Some(" ".into()), ..Manifest::default() };
    bench.ask(ApiCall::RegisterNode { sidecar: 1, manifest: blank, supervision: None });
    let seen = bench.take();
    let register = &seen.node_registers()[0];
    assert_eq!((register.name.as_str(), register.version.as_str()), ("box", "relay-broker/9.1.6"));
    assert!(seen.logs(log::Level::Warn).is_empty(), "{seen:?}");
    let foreign = Manifest {
        node_id: Some("node_other".into()),
        capabilities: vec![capability("  "), capability(" a ")],
        ..Manifest::default()
    };
    bench.ask(ApiCall::RegisterNode { sidecar: 1, manifest: foreign, supervision: None });
    let seen = bench.take();
    let register = &seen.node_registers()[0];
    assert_eq!(register.node_id, "node_0123456789abcdef");
    assert_eq!(names(&register.capabilities), ["a"], "a blank name would lose the whole frame");
    assert!(seen.logs(log::Level::Warn)[0].contains("node_other"), "{seen:?}");
}

#[test]
fn the_load_is_the_share_of_the_declared_room() {
    let mut bench = Bench::online();
    bench.attach(1);
    bench.register_node(1, None);
    let load = |bench: &mut Bench| {
        bench.take();
        bench.pass(12_000);
        let heartbeats = bench.take().heartbeats();
        (heartbeats[0].load, heartbeats[0].active_agents)
    };
    for (n, expected) in [0.25, 0.5, 0.75, 1.0, 1.0].into_iter().enumerate() {
        bench.spawn_running(&format!("a{n}"));
        bench.accept();
        assert_eq!(load(&mut bench), (expected, n as u64 + 1));
    }
    // Twin: without a limit there is no load.
    let unlimited = Manifest { max_agents: 0, ..manifest() };
    bench.ask(ApiCall::RegisterNode { sidecar: 1, manifest: unlimited, supervision: None });
    bench.accept();
    assert_eq!(load(&mut bench), (0.0, 5));
}

#[test]
fn a_refused_manifest_leaves_the_previous_one_and_the_node_online() {
    for (code, known_id) in [("node_name_conflict", true), ("invalid_manifest", true), ("invalid_message", false)] {
        let mut bench = Bench::online();
        bench.attach(1);
        let answer = bench.register_node(1, None);
        assert_eq!(answer.status, 200, "answered before the engine does");
        bench.take();
        let id = if known_id { bench.node_register.clone() } else { "elsewhere".into() };
        bench.error(&id, code);
        let seen = bench.take();
        assert_eq!(seen.node_registers()[0].name, "box", "{code}:\n{seen:?}");
        assert!(seen.node_registers()[0].capabilities.is_empty(), "{code}:\n{seen:?}");
        assert_eq!((seen.closes(), seen.calls().len()), (0, 0), "{code}: neither closed nor minted:\n{seen:?}");
        assert!(seen.logs(log::Level::Error)[0].contains(code), "{seen:?}");
        bench.accept();
        assert_eq!(bench.link_state(), "online", "{code}");
    }
    // Twin: one that was accepted is what comes back.
    let mut bench = Bench::online();
    bench.attach(1);
    bench.register_node(1, None);
    bench.accept();
    let other = Manifest { name: "taken".into(), ..Manifest::default() };
    bench.ask(ApiCall::RegisterNode { sidecar: 1, manifest: other, supervision: None });
    bench.take();
    let id = bench.node_register.clone();
    bench.error(&id, "node_name_conflict");
    let seen = bench.take();
    assert_eq!(seen.node_registers()[0].name, "fleet", "{seen:?}");
    assert_eq!(names(&seen.node_registers()[0].capabilities), ["deploy", "spawn:x"]);
    // Its name has become another's: the node keeps the rest, then its own name with the suffix.
    for expected in ["box", "box-01234567"] {
        let id = bench.node_register.clone();
        bench.error(&id, "node_name_conflict");
        let seen = bench.take();
        assert_eq!(seen.node_registers()[0].name, expected, "{seen:?}");
        assert_eq!(names(&seen.node_registers()[0].capabilities), ["deploy", "spawn:x"]);
    }
}

#[test]
fn a_refused_identity_is_no_fault_of_the_manifest() {
    let mut bench = Bench::online();
    bench.attach(1);
    bench.register_node(1, None);
    bench.take();
    let id = bench.node_register.clone();
    bench.error(&id, "node_id_mismatch");
    let seen = bench.take();
    assert_eq!((seen.closes(), seen.node_registers().len()), (1, 0), "{seen:?}");
    bench.engine(is_mint, Ok(json!({"token": "nt_live_2"})));
    bench.wait_connect();
    bench.open();
    assert_eq!(bench.take().node_registers()[0].name, "fleet", "said again");
}
