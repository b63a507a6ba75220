//! What a restart, a repeat and a compaction find.

use super::*;

#[test]
fn an_idempotency_key_has_one_effect() {
    let mut w = World::new();
    let bob = w.agent("bob");
    w.agent("al");
    let call = |w: &World| Call { ws: w.ws, agent: bob, ..Call::default() };
    let code = |claim: Result<idempotency::Claim, Fail>| claim.err().map(|fail| fail.code);
    let asking = call(&w);
    assert_eq!(w.engine.claim_key(&asking, "k", "r1"), Ok(idempotency::Claim::Fresh));
    assert_eq!(code(w.engine.claim_key(&asking, "k", "r1")), Some("idempotency_in_progress"));
    assert_eq!(code(w.engine.claim_key(&asking, "k", "r2")), Some("idempotency_key_reused"));
    w.engine.remember(&asking, "k", 201, json!({"ok": true}));
    let mut w = w.restart();
    let again = w.engine.claim_key(&asking, "k", "r1").unwrap();
    assert!(matches!(again, idempotency::Claim::Replay(known) if known.status == 201), "survives a restart");
    assert_eq!(code(w.engine.claim_key(&asking, "k", "r2")), Some("idempotency_key_reused"));
    assert_eq!(code(w.engine.claim_key(&asking, "", "r")), Some("invalid_request"));
    assert_eq!(code(w.engine.claim_key(&asking, "a b", "r")), Some("invalid_request"));
    w.mono += idempotency::REMEMBERED_MS + 1;
    let now = w.now();
    assert_eq!(w.engine.at(now).claim_key(&asking, "k", "r2"), Ok(idempotency::Claim::Fresh), "24 h later");
}

#[test]
fn a_replayed_journal_is_the_same_state() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([{"name": "work"}]));
    let bob = w.agent("bob");
    w.located(link, "al");
    let posted = w.data(Engine::post_to_channel, bob, &["general"], json!({"text": "hi"}));
    w.data(Engine::react, bob, &[posted["id"].as_str().unwrap()], json!({"emoji": "x"}));
    w.dm(bob, "al", "a");
    w.ack(link, "al", 1);
    w.engine.close_link(link);
    let before: Vec<String> = w.engine.snapshot().map(|row| serde_json::to_string(&row).unwrap()).collect();
    let w = w.restart();
    let mut after: Vec<String> = w.engine.snapshot().map(|row| serde_json::to_string(&row).unwrap()).collect();
    // `delivered` is a fact of the connection, and `Acked` sets it back to nothing either way.
    let undelivered = |line: &String| !line.contains("\"delivered\"") && !line.contains("\"queued\"");
    let mut before: Vec<String> = before.into_iter().filter(undelivered).collect();
    after.retain(undelivered);
    before.iter_mut().chain(after.iter_mut()).for_each(|line| {
        // How often a row was handed out is not kept.
        *line = line.replace("\"attempts\":1", "\"attempts\":0");
    });
    before.sort();
    after.sort();
    assert_eq!(before, after);
}

#[test]
fn compaction_keeps_seq_and_cursor_beyond_the_kept_rows() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    let al = w.located(link, "al");
    const SENT: u64 = tables::CLOSED_KEPT as u64 + 50;
    for _ in 0..SENT {
        w.dm(bob, "al", "x");
    }
    w.ack(link, "al", SENT);
    assert_eq!(w.engine.t.mailboxes[&al].rows.len(), tables::CLOSED_KEPT);
    let mut fresh = Engine::new(true);
    // As if every kept row had gone, too.
    w.engine.snapshot().filter(|row| !matches!(row, Row::Delivery(_))).for_each(|row| fresh.replay(row));
    let mut w = World { engine: fresh, ..w };
    let now = w.now();
    w.engine.wake(now);
    w.dm(bob, "al", "y");
    let mailbox = &w.engine.t.mailboxes[&al];
    assert_eq!((mailbox.last_seq, mailbox.acked, mailbox.open), (SENT + 1, SENT, 1));
}
