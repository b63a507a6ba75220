//! Messages that invoke actions.

use super::*;

fn posted(w: &mut World, by: u64, channel: &str, text: &str) -> Vec<Value> {
    w.frames();
    w.data(Engine::post_to_channel, by, &[channel], json!({"text": text}));
    w.frames().into_iter().map(|(_, f)| f).filter(|f| f["type"] == "action.invoke").collect()
}

#[test]
fn a_trigger_is_made_shown_changed_and_deleted() {
    let mut w = World::new();
    let made =
        w.data(Engine::create_trigger, 0, &[], json!({"channel": "#dev", "pattern": "[Ss]hip", "action_name": "x"}));
    let id = made["id"].as_str().unwrap().to_string();
    for (key, value) in [("channel", json!("#dev")), ("mention", Value::Null), ("enabled", json!(true))] {
        assert_eq!(made[key], value, "{key}");
    }
    let changed =
        w.data(Engine::update_trigger, 0, &[&id], json!({"pattern": null, "mention": true, "enabled": false}));
    assert_eq!(
        (&changed["pattern"], &changed["mention"], &changed["enabled"]),
        (&Value::Null, &json!(true), &json!(false))
    );
    let mut w = w.restart();
    assert_eq!(w.data(Engine::list_triggers, 0, &[], json!({})), json!([changed]), "as it was before the restart");
    assert_eq!(w.data(Engine::get_trigger, 0, &[&id], json!({})), changed);
    let rows: Vec<Row> = w.engine.snapshot().collect();
    assert!(rows.iter().any(|row| matches!(row, Row::Trigger(_))), "compaction keeps it");
    w.data(Engine::delete_trigger, 0, &[&id], json!({}));
    assert_eq!(w.call(Engine::get_trigger, 0, &[&id], json!({})).unwrap_err().code, "trigger_not_found");
    for bad in [
        json!({"action_name": "x", "pattern": "("}),
        json!({"action_name": "x", "pattern": "x".repeat(1_001)}),
        json!({"action_name": "x", "mention": 1}),
        json!({"action_name": "x", "enabled": "yes"}),
        json!({"pattern": "x"}),
    ] {
        assert_eq!(w.call(Engine::create_trigger, 0, &[], bad.clone()).unwrap_err().code, "invalid_request", "{bad}");
    }
}

#[test]
fn a_message_that_fits_invokes_the_action() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([{"name": "deploy"}, {"name": "help"}]));
    w.beat(link);
    let bob = w.agent("bob");
    w.agent("al");
    w.data(Engine::create_channel, bob, &[], json!({"name": "dev"}));
    let made = w.data(
        Engine::create_trigger,
        0,
        &[],
        json!({"channel": "#dev", "pattern": "^[Ss]hip (\\d+\\.)+\\d+", "action_name": "deploy"}),
    );
    w.data(Engine::create_trigger, 0, &[], json!({"mention": "@al", "action_name": "help"}));
    w.data(Engine::create_trigger, 0, &[], json!({"action_name": "nobody-has-it"}));
    assert_eq!(posted(&mut w, bob, "dev", "not now"), Vec::<Value>::new());
    assert_eq!(posted(&mut w, bob, "general", "ship 1.2.3"), Vec::<Value>::new(), "another channel");
    let invokes = posted(&mut w, bob, "dev", "ship 1.2.3");
    assert_eq!(invokes.len(), 1, "{invokes:?}");
    let input = &invokes[0]["input"];
    assert_eq!((&invokes[0]["action"], &input["trigger_id"]), (&json!("deploy"), &made["id"]));
    assert_eq!((&input["channel"], &input["message"]["text"]), (&json!("dev"), &json!("ship 1.2.3")));
    assert_eq!(input["message"]["agent_name"], "bob");
    let row = w.data(Engine::get_trigger, 0, &[made["id"].as_str().unwrap()], json!({}));
    assert!(row["last_triggered_at"].is_string(), "{row}");
    let invokes = posted(&mut w, bob, "general", "can you, @al?");
    assert_eq!((invokes.len(), &invokes[0]["action"]), (1, &json!("help")));
    w.dm(bob, "al", "ship 1.2.3 @al");
    assert_eq!(w.invokes(), [], "a direct message is nobody else's business");
    w.data(Engine::update_trigger, 0, &[made["id"].as_str().unwrap()], json!({"enabled": false}));
    assert_eq!(posted(&mut w, bob, "dev", "ship 1.2.3"), Vec::<Value>::new());
}
