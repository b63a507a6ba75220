//! Messages on their way to agents.

use super::*;

#[test]
fn seq_survives_release_registration_and_restart() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let (bob, al) = (w.agent("bob"), w.located(link, "al"));
    w.dm(bob, "al", "one");
    w.dm(bob, "al", "two");
    assert_eq!(w.seqs(), [1, 2]);
    w.ack(link, "al", 2);
    w.hear(link, json!({"type": "agent.deregister", "v": 1, "agent_id": al.to_string()}));
    w.dm(bob, "al", "three");
    assert_eq!(w.seqs(), Vec::<u64>::new(), "nobody has it");
    let mut w = w.restart();
    let token = w.mint("n", "node_1");
    let link = w.open(&token);
    w.register(link, "n", "node_1", json!([]));
    w.hear(link, json!({"type": "agent.register", "v": 1, "id": "ar", "name": "al"}));
    assert_eq!(w.seqs(), [3], "the backlog follows the reply");
    w.dm(bob, "al", "four");
    assert_eq!(w.seqs(), [4]);
}

#[test]
fn an_ack_is_cumulative_and_by_name_at_this_node() {
    let mut w = World::new();
    let (one, two) = (w.node("n1", "node_1", json!([])), w.node("n2", "node_2", json!([])));
    let bob = w.agent("bob");
    w.located(one, "al");
    for text in ["a", "b", "c"] {
        w.dm(bob, "al", text);
    }
    assert_eq!(w.seqs(), [1, 2, 3]);
    let replay = |w: &mut World| {
        w.register(one, "n1", "node_1", json!([]));
        w.seqs()
    };
    w.ack(two, "al", 3);
    assert_eq!(replay(&mut w), [1, 2, 3], "an ack of another node is no news");
    w.ack(one, "nobody", 3);
    w.ack(one, "al", 2);
    assert_eq!(replay(&mut w), [3]);
    w.ack(one, "al", 1);
    assert_eq!(replay(&mut w), [3], "a lower ack takes nothing back");
    w.ack(one, "al", 3);
    assert_eq!(replay(&mut w), Vec::<u64>::new());
    let inbox = w.data(Engine::list_deliveries, 0, &[], json!({}));
    assert_eq!(inbox, json!([]));
}

#[test]
fn an_ack_marks_the_message_read() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    let al = w.located(link, "al");
    let sent = w.dm(bob, "al", "hi");
    assert_eq!(w.data(Engine::inbox, al, &[], json!({}))["unread_dms"][0]["unread_count"], 1);
    w.ack(link, "al", 1);
    assert_eq!(w.data(Engine::inbox, al, &[], json!({}))["unread_dms"], json!([]));
    let readers = w.data(Engine::readers, bob, &[sent["message"]["id"].as_str().unwrap()], json!({}));
    assert_eq!(readers[0]["agent_name"], "al");
}

#[test]
fn payloads_have_the_keys_of_their_type() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    w.located(link, "al");
    let payload = |w: &mut World| {
        let frame = w.frames().remove(0).1;
        let mut keys: Vec<String> = frame["payload"]["data"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        (frame["payload"]["type"].as_str().unwrap().to_string(), keys.join(" "), frame)
    };
    let posted = w.data(Engine::post_to_channel, bob, &["general"], json!({"text": "hi @al", "mode": "steer"}));
    let (kind, keys, frame) = payload(&mut w);
    assert_eq!(kind, "message.created");
    assert_eq!(
        keys,
        "agent_id agent_name attachments blocks channel_id channel_name created_at from_name id injection_mode mentions metadata text thread_id"
    );
    assert_eq!((&frame["mode"], &frame["payload"]["data"]["mentions"]), (&json!("steer"), &json!(["al"])));
    let id = posted["id"].as_str().unwrap();
    w.data(Engine::reply, bob, &[id], json!({"text": "re"}));
    let (kind, keys, frame) = payload(&mut w);
    assert_eq!((kind.as_str(), &frame["payload"]["data"]["thread_id"]), ("thread.reply", &posted["id"]));
    assert!(!keys.contains("attachments"), "{keys}");
    w.dm(bob, "al", "psst");
    let (kind, keys, frame) = payload(&mut w);
    assert_eq!(kind, "dm.received");
    assert_eq!(keys, "agent_id attachments conversation_id created_at from_name id injection_mode message text to");
    assert_eq!(
        frame["delivery_id"],
        format!("del_{}_{}", frame["msg_id"].as_str().unwrap(), frame["agent_id"].as_str().unwrap())
    );
    let group = w.data(Engine::create_group, bob, &[], json!({"participants": ["al"]}))["id"].clone();
    w.data(Engine::post_to_conversation, bob, &[group.as_str().unwrap()], json!({"text": "all"}));
    let (kind, keys, _) = payload(&mut w);
    assert_eq!(kind, "group_dm.received");
    assert!(!keys.contains("to ") && !keys.ends_with(" to"), "{keys}");
    w.data(Engine::react, bob, &[id], json!({"emoji": "+1"}));
    let (kind, _, frame) = payload(&mut w);
    assert_eq!((kind.as_str(), &frame["seq"], &frame["msg_id"]), ("message.reacted", &json!(0), &posted["id"]));
}

#[test]
fn a_full_mailbox_buries_its_oldest() {
    let mut w = World::new();
    let bob = w.agent("bob");
    let al = w.agent("al");
    w.engine.durable = false;
    for _ in 0..MAILBOX_OPEN + 3 {
        w.dm(bob, "al", "x");
    }
    let mailbox = &w.engine.t.mailboxes[&al];
    assert_eq!((mailbox.open, mailbox.last_seq), (MAILBOX_OPEN, MAILBOX_OPEN as u64 + 3));
    assert_eq!(mailbox.rows[&3].status, rows::DeliveryStatus::DeadLettered);
    assert!(mailbox.rows[&4].status.open());
}

#[test]
fn a_broker_keeps_an_agent_that_also_connects_by_itself() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    let al = w.located(link, "al");
    let made = w.data(Engine::direct_node_token, al, &[], json!({}));
    let own = w.open(made["token"].as_str().unwrap());
    w.register(own, made["node_name"].as_str().unwrap(), made["node_id"].as_str().unwrap(), json!([]));
    w.frames();
    w.dm(bob, "al", "hi");
    assert_eq!(w.frames()[0].0, link);
    w.data(Engine::agent_disconnect, al, &[], json!({}));
    assert_eq!(w.status("al"), "online", "it follows its node");
    w.engine.close_link(own);
    assert_eq!(w.status("al"), "online");
}

#[test]
fn old_messages_go_and_bury_their_deliveries() {
    let mut w = World::new();
    w.engine.durable = false;
    let (bob, al) = (w.agent("bob"), w.agent("al"));
    let big = "x".repeat(MESSAGE_BYTES_KEPT / 4 + 1);
    for _ in 0..4 {
        w.dm(bob, "al", &big);
    }
    assert_eq!(w.engine.t.messages.len(), 3);
    let statuses: Vec<&str> = w.engine.t.mailboxes[&al].rows.values().map(|row| row.status.as_str()).collect();
    assert_eq!(statuses, ["dead_lettered", "queued", "queued", "queued"]);
}

#[test]
fn a_mailbox_gives_up_after_its_days_and_tells_the_author() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let (bob, al) = (w.located(link, "bob"), w.agent("al"));
    let beating = |w: &mut World, ms: u64| {
        for _ in 0..ms / 40_000 {
            w.beat(link);
            w.pass(40_000);
        }
        w.beat(link);
        w.pass(ms % 40_000);
        w.frames().into_iter().filter(|(_, f)| f["type"] == "deliver").map(|(_, f)| f).collect::<Vec<_>>()
    };
    let sent = w.dm(bob, "al", "are you there?");
    beating(&mut w, 3_600_000);
    w.dm(bob, "al", "later");
    w.data(Engine::post_to_channel, bob, &["general"], json!({"text": "all"}));
    w.frames();
    assert_eq!(beating(&mut w, MAILBOX_TTL_MS - 3_600_001), Vec::<Value>::new());
    let told = beating(&mut w, 1);
    assert_eq!(told.len(), 1, "{told:?}");
    let data = &told[0]["payload"]["data"];
    assert_eq!((&told[0]["payload"]["type"], &data["from_name"]), (&json!("dm.received"), &json!("relaycast")));
    let text = data["text"].as_str().unwrap();
    let id = sent["message"]["id"].as_str().unwrap();
    assert!(text.contains(id) && text.contains("to al ") && text.contains("are you there?"), "{text}");
    let rows: Vec<_> = w.engine.t.mailboxes[&al].rows.values().map(|row| (row.seq, row.status.as_str())).collect();
    assert_eq!(rows, [(1, "dead_lettered"), (2, "queued"), (3, "queued")]);
    let told = beating(&mut w, 3_600_000);
    assert_eq!(told.len(), 1, "the channel post expires silently: {told:?}");
    assert!(!w.engine.timers.iter().any(|(_, timer)| *timer == Timer::Mailbox(al)), "nothing is due any more");
    w.ack(link, "bob", 2);
    let general = w.data(Engine::list_members, 0, &["general"], json!({}));
    assert!(!general.to_string().contains("relaycast"), "the postmaster reads no channel: {general}");
    assert_eq!(w.dm(bob, "al", "next")["message"]["text"], "next");
    assert_eq!(w.engine.t.mailboxes[&al].last_seq, 4);
}

#[test]
fn an_author_who_is_away_finds_it_later_and_a_postmasters_own_message_comes_back_to_nobody() {
    let mut w = World::new();
    w.agent("al");
    let bob = w.agent("bob");
    w.dm(bob, "al", "x");
    assert_eq!(w.engine.expire_all(), 1);
    let mut w = w.restart();
    let unread = w.data(Engine::inbox, bob, &[], json!({}))["unread_dms"].clone();
    assert_eq!(unread[0]["from"], "relaycast", "{unread}");
    w.dm(bob, "relaycast", "thanks");
    assert_eq!(w.engine.expire_all(), 2, "the note itself and the answer to it");
    assert_eq!(w.engine.expire_all(), 0, "no note about a note");
}

#[test]
fn a_delivery_that_was_acknowledged_does_not_expire() {
    let mut w = World::new();
    let link = w.node("n", "node_1", json!([]));
    let bob = w.agent("bob");
    w.located(link, "al");
    w.dm(bob, "al", "x");
    w.ack(link, "al", 1);
    w.pass(MAILBOX_TTL_MS);
    assert_eq!(w.engine.expire_all(), 0);
}
