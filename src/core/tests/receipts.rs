//! What became of a message, asked for by its id.

use super::*;

impl Bench {
    fn receipt(&mut self, delivery_id: &str) -> Value {
        let answer = self.ask(ApiCall::Receipt { delivery_id: delivery_id.into() });
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    #[track_caller]
    fn state(&mut self, delivery_id: &str, expected: &str) {
        assert_eq!(self.receipt(delivery_id)["state"], expected, "{}", self.receipt(delivery_id));
    }
}

fn id_in_flight(bench: &Bench, generation: Generation) -> String {
    bench.flights[&generation].delivery_id.clone()
}

#[test]
fn a_receipt_follows_its_message_with_the_times() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    let id = id_in_flight(&bench, al);
    bench.state(&id, "queued");
    bench.pass(10);
    bench.note(al, AgentNote::Waiting { delivery_id: id.clone() });
    bench.state(&id, "waiting");
    assert_eq!(bench.receipt(&id)["reason"], "human_draft");
    bench.pass(10);
    bench.note(al, AgentNote::Typed { delivery_id: id.clone() });
    bench.state(&id, "typed");
    bench.pass(10);
    bench.note(al, AgentNote::Read { delivery_id: id.clone() });
    bench.state(&id, "read");
    bench.pass(10);
    bench.note(al, AgentNote::Verified { delivery_id: id.clone(), echo: true });
    bench.state(&id, "echoed");
    bench.pass(10);
    bench.note(al, AgentNote::TurnStarted { delivery_id: id.clone() });
    bench.state(&id, "turn_started");
    let receipt = bench.receipt(&id);
    let times = ["queued_at", "waiting_since", "typed_at", "read_at", "verified_at", "turn_started_at"];
    let times: Vec<u64> = times.iter().map(|key| receipt[key].as_u64().expect(key)).collect();
    assert!(times.windows(2).all(|pair| pair[1] == pair[0] + 10), "{receipt}");
    let shown = [&receipt["name"], &receipt["event_id"], &receipt["verification"], &receipt["reason"]];
    assert_eq!(shown, [&json!("al"), &json!("m1"), &json!("echo"), &Value::Null], "{receipt}");
    let told = bench.take();
    assert_eq!(told.event("delivery_turn_started")[0]["timestamp"], times[5]);
    assert_eq!(told.event("delivery_verified")[0]["timestamp"], times[4]);
    assert_eq!(told.event("delivery_waiting")[0]["reason"], "human_draft");
}

#[test]
fn a_receipt_takes_its_facts_in_any_order() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.send_to("al", "hello");
    let id = id_in_flight(&bench, al);
    // The program answers and its terminal echoes before the kernel's proof is looked at.
    bench.note(al, AgentNote::Typed { delivery_id: id.clone() });
    bench.note(al, AgentNote::Verified { delivery_id: id.clone(), echo: false });
    bench.state(&id, "typed");
    bench.note(al, AgentNote::TurnStarted { delivery_id: id.clone() });
    bench.state(&id, "turn_started");
    bench.note(al, AgentNote::Read { delivery_id: id.clone() });
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["verification"]), (&json!("turn_started"), &json!("timeout_fallback")));
    assert!(receipt["read_at"].is_u64(), "{receipt}");
    // Nobody's turn is nobody's event.
    bench.take();
    bench.note(al, AgentNote::TurnStarted { delivery_id: "unknown".into() });
    assert!(bench.take().events().is_empty());
}

#[test]
fn held_retried_and_dead_messages_say_so() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.deliver(message("al", 1, "m1"));
    let id = "del_m1".to_string();
    let known = bench.ask(ApiCall::Receipt { delivery_id: id.clone() }).status == 200;
    let id = if known { id } else { bench.broker.roster.named("al").unwrap().queue[0].delivery_id.clone() };
    bench.state(&id, "held");
    bench.ask(ApiCall::Flush { name: "al".into() });
    bench.state(&id, "queued");
    bench.inject_failed(al);
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["attempts"]), (&json!("queued"), &json!(1)), "{receipt}");
    bench.release("al");
    bench.exited(al);
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["reason"]), (&json!("dead"), &json!("agent_released")), "{receipt}");
    assert!(receipt["failed_at"].is_u64(), "{receipt}");
    // Without a recipient there was no queue, and there is a receipt.
    bench.deliver(message("nobody", 1, "m7"));
    let dead = bench.take().event("dead_letter_added");
    let last = dead.last().expect("a dead letter")["delivery_id"].as_str().expect("an id").to_string();
    bench.state(&last, "dead");
}

#[test]
fn receipts_are_bounded_and_an_unknown_id_is_named() {
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    let first = id_in_flight(&bench, al);
    bench.read(al);
    let most = crate::core::receipts::RECEIPTS_MAX as u64;
    for seq in 2..=most {
        bench.deliver(message("al", seq, &format!("m{seq}")));
        bench.read(al);
    }
    assert_eq!(bench.receipt(&first)["state"], "read");
    bench.deliver(message("al", most + 1, "one more"));
    let answer = bench.ask(ApiCall::Receipt { delivery_id: first.clone() });
    assert_eq!((answer.status, &answer.body["code"]), (404, &json!("delivery_not_found")));
    let text = answer.body["message"].as_str().expect("a text");
    assert!(text.contains(&first) && text.contains("2048"), "{text}");
}

#[test]
fn a_receipt_of_a_message_that_returns_to_the_queue_starts_again() {
    let fresh = ["waiting_since", "typed_at", "read_at", "verified_at", "turn_started_at"];
    // Typed and echoed, never proved read: the next life gets it, so it is typed no more.
    let mut bench = Bench::online();
    let first = bench.with_policy("al", crate::wire::fleet::RestartPolicy::default());
    bench.deliver(message("al", 1, "m1"));
    let id = id_in_flight(&bench, first);
    bench.note(first, AgentNote::Typed { delivery_id: id.clone() });
    bench.note(first, AgentNote::Verified { delivery_id: id.clone(), echo: true });
    bench.note(first, AgentNote::TurnStarted { delivery_id: id.clone() });
    bench.state(&id, "turn_started");
    bench.killed(first);
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["attempts"]), (&json!("queued"), &json!(1)), "{receipt}");
    assert!(fresh.iter().all(|key| receipt[*key].is_null()) && receipt["queued_at"].is_u64(), "{receipt}");
    assert_eq!(receipt["reason"], "the program ended before it was proved to have read it");
    let second = bench.again("al");
    while id_in_flight(&bench, second) != id {
        bench.read(second);
    }
    bench.read(second);
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["reason"]), (&json!("read"), &Value::Null), "{receipt}");

    // It waited for a draft, and then the human took the terminal: held, and afterwards queued, not waiting.
    let mut bench = Bench::online();
    let al = bench.spawn_running("al");
    bench.deliver(message("al", 1, "m1"));
    let id = id_in_flight(&bench, al);
    bench.note(al, AgentNote::Waiting { delivery_id: id.clone() });
    bench.set_mode("al", InboundMode::ManualFlush);
    bench.state(&id, "waiting");
    bench.note(al, AgentNote::GivenBack { delivery_id: id.clone() });
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["reason"]), (&json!("held"), &Value::Null), "{receipt}");
    bench.set_mode("al", InboundMode::AutoInject);
    bench.state(&id, "queued");

    // A failed try says why.
    bench.inject_failed(al);
    let receipt = bench.receipt(&id);
    assert_eq!((&receipt["state"], &receipt["reason"]), (&json!("queued"), &json!("EIO")), "{receipt}");
}
