//! The broker is killed at each step of a delivery, with a journal and without. What nobody has read is read in the next
//! life, what was acknowledged is not typed again, and no program ever reads anything twice.
//!
//! The steps are held open from outside: a stopped broker takes no frame and sends no ack, a stopped program reads nothing.

use std::process::Command;
use std::sync::Arc;

use rustix::process::{Resource, Signal};
use serde_json::json;

use crate::broker::{Broker, Start};
use crate::engine::Engine;
use crate::house::House;
use crate::process::{Process, has_ended, state};
use crate::road::signal;
use crate::scripted::Scripted;
use crate::shortages::limit;
use crate::until::{LONG, look};

const TEXT: &str = "the one that counts";

/// A broker with one agent, and one message for it on its way.
struct Delivery {
    house: Arc<House>,
    engine: Engine,
    broker: Broker,
    pid: u32,
    token: String,
    bob: String,
    persist: bool,
}

fn start(house: &Arc<House>, engine: &Engine, persist: bool) -> Broker {
    let start = Start::on(house, engine);
    if persist { start.arg("--persist").online() } else { start.online() }
}

impl Delivery {
    fn to(persist: bool, program: impl FnOnce(&House) -> String) -> Delivery {
        let house = House::new();
        let engine = Engine::start(&house);
        let bob = engine.stranger("bob");
        let broker = start(&house, &engine, persist);
        let cli = program(&house);
        let pid = broker.spawn_program("ann", &cli);
        let token = engine_token(&broker, pid);
        Delivery { house, engine, broker, pid, token, bob, persist }
    }

    fn to_reader(persist: bool) -> Delivery {
        let delivery = Delivery::to(persist, House::agent);
        delivery.broker.until("the program", || delivery.house.read_by_life("ann", delivery.pid));
        delivery
    }

    fn send(&self) {
        self.engine.dm(&self.bob, "ann", TEXT);
    }

    /// Stops the broker, every thread of it: one that is inside the kernel stops only when it comes back.
    fn hold(&self) {
        self.broker.process.signal(Signal::STOP);
        let stopped = |task: std::fs::DirEntry| state(&task.path().join("stat")) == Some('T');
        let tasks = format!("/proc/{}/task", self.broker.process.pid());
        let all = || std::fs::read_dir(&tasks).ok()?.flatten().all(stopped).then_some(());
        assert!(look(LONG, all).is_some(), "the broker does not stop");
    }

    fn until_unacked(&self, count: usize) {
        self.broker
            .until(&format!("{count} without an ack"), || (self.engine.unacked(&self.token) == count).then_some(()));
    }

    /// Kills the broker as it is, and has the next life read the message so and so often.
    #[track_caller]
    fn killed(mut self, read_in_the_next_life: usize) {
        let before = self.house.read_by("ann");
        assert!(before.matches(TEXT).count() <= 1, "typed twice: {before}");
        self.broker.process.signal(Signal::KILL);
        self.broker.process.wait(LONG);
        // One that was stopped ends only when its terminal has gone with the broker.
        assert!(look(LONG, || has_ended(self.pid)).is_some(), "the program outlived its terminal");
        let broker = start(&self.house, &self.engine, self.persist);
        let pid = broker.spawn("ann");
        let token = broker.token_of("ann");
        let read = || self.house.read_by_life("ann", pid).unwrap_or_default();
        let until_read = |text: &str| broker.until(text, || read().contains(text).then_some(()));
        self.engine.dm(&self.bob, "ann", "what follows");
        until_read("what follows");
        // A new connection makes the engine repeat whatever it holds to be open.
        self.engine.data("POST", "/__faults/drop", "", None);
        self.engine.dm(&self.bob, "ann", "what comes last");
        until_read("what comes last");
        for (text, count) in [(TEXT, read_in_the_next_life), ("what follows", 1), ("what comes last", 1)] {
            assert_eq!(read().matches(text).count(), count, "{text:?}, journal: {}, in:\n{}", self.persist, read());
        }
        broker.until("all acks", || (self.engine.unacked(&token) == 0).then_some(()));
        assert_eq!(broker.ok("GET", "/api/dead-letters", None)["count"], 0);
        let total = self.house.read_by("ann").matches(TEXT).count();
        assert!(total >= 1 || read_in_the_next_life == 0, "lost");
    }
}

/// The token of a program, whatever it writes down.
fn engine_token(broker: &Broker, pid: u32) -> String {
    broker.until("the token", || {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let token = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"RELAY_AGENT_TOKEN="))?;
        String::from_utf8(token.to_vec()).ok()
    })
}

#[test]
fn f35_killed_before_the_frame_is_read() {
    for persist in [true, false] {
        let delivery = Delivery::to_reader(persist);
        delivery.hold();
        delivery.send();
        delivery.killed(1);
    }
}

#[test]
fn f35_killed_while_the_message_waits_in_the_queue() {
    for persist in [true, false] {
        let delivery = Delivery::to_reader(persist);
        delivery.broker.ok("PUT", "/api/spawned/ann/delivery-mode", Some(&json!({"mode": "manual_flush"})));
        delivery.send();
        let pending = || delivery.broker.ok("GET", "/api/spawned/ann/pending", None);
        delivery.broker.until("it in the queue", || (pending()["pending"].as_array()?.len() == 1).then_some(()));
        delivery.killed(1);
    }
}

#[test]
fn f35_killed_between_the_body_and_its_enter() {
    for persist in [true, false] {
        // Takes every byte as it comes.
        let delivery = Delivery::to(persist, |house| {
            let script = "stty raw -echo; echo '->pty:ready'; exec cat > \"$0\"";
            format!("/bin/sh -c {} {}", shell_words::quote(script), house.path("raw").display())
        });
        let raw = || std::fs::read(delivery.house.path("raw")).unwrap_or_default();
        let has = |text: &str| raw().windows(text.len()).any(|window| window == text.as_bytes());
        // There are 50 ms for it, which a busy machine may miss.
        let hit = (0..20).any(|number| {
            let text = if number == 0 { TEXT.into() } else { format!("{TEXT} again, {number}") };
            let enters = || raw().iter().filter(|byte| **byte == b'\r').count();
            let before = enters();
            delivery.engine.dm(&delivery.bob, "ann", &text);
            delivery.broker.until("the body", || has(&text).then_some(()));
            delivery.hold();
            let hit = enters() == before && delivery.engine.unacked(&delivery.token) == 1;
            if !hit {
                delivery.broker.process.signal(Signal::CONT);
                delivery.until_unacked(0);
            }
            hit
        });
        assert!(hit, "never between body and Enter");
        delivery.killed(1);
    }
}

#[test]
fn f35_killed_when_all_is_written_and_nothing_read() {
    for persist in [true, false] {
        let delivery = Delivery::to_reader(persist);
        signal(delivery.pid, Signal::STOP);
        delivery.send();
        delivery.broker.until_told("delivery_injected", "ann");
        assert_eq!(delivery.engine.unacked(&delivery.token), 1);
        delivery.killed(1);
    }
}

#[test]
fn f35_killed_when_it_was_read_and_not_acknowledged() {
    for persist in [true, false] {
        let delivery = Delivery::to_reader(persist);
        signal(delivery.pid, Signal::STOP);
        delivery.send();
        delivery.broker.until_told("delivery_injected", "ann");
        delivery.hold();
        signal(delivery.pid, Signal::CONT);
        delivery.broker.until_read("ann", TEXT);
        assert_eq!(delivery.engine.unacked(&delivery.token), 1);
        // Nobody but the dead program knows that it was read: once more, into another one.
        delivery.killed(1);
    }
}

/// One message that a program has read while the journal could not be written.
fn read_without_a_journal() -> Delivery {
    let house = House::new();
    let engine = Engine::start(&house);
    let bob = engine.stranger("bob");
    let start = Start::on(&house, &engine).arg("--persist");
    // The signal that comes with the limit would end it.
    let inner = start.command();
    let mut outer = Command::new("/bin/sh");
    outer.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
    outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer.current_dir(inner.get_current_dir().expect("a directory"));
    let mut broker = start.of(Process::start(outer));
    broker.until_ready();
    broker.until_online();
    let pid = broker.spawn("ann");
    let token = broker.token_of("ann");
    let journal = std::fs::read_dir(broker.cwd.join(".agentworkforce/relay")).unwrap().find_map(|entry| {
        let path = entry.ok()?.path();
        (path.extension()? == "jsonl").then_some(path)
    });
    let length = std::fs::metadata(journal.expect("a journal")).unwrap().len();
    // No file grows beyond this any more: what a full disk looks like.
    limit(&broker, Resource::Fsize, Some(length));
    let delivery = Delivery { house, engine, broker, pid, token, bob, persist: true };
    delivery.send();
    delivery.broker.until_read("ann", TEXT);
    let refused = || delivery.broker.process.err().contains("the journal cannot be written").then_some(());
    delivery.broker.until("a word of it in the log", refused);
    assert_eq!(delivery.engine.unacked(&delivery.token), 1, "acknowledged without a journal");
    delivery
}

#[test]
fn f35_killed_when_it_was_read_and_the_disk_is_full() {
    read_without_a_journal().killed(1);
}

#[test]
fn a_full_disk_holds_back_the_ack_until_it_has_room() {
    let delivery = read_without_a_journal();
    // It goes on serving and typing meanwhile.
    delivery.engine.dm(&delivery.bob, "ann", "on a full disk");
    delivery.broker.until_read("ann", "on a full disk");
    assert_eq!(delivery.engine.unacked(&delivery.token), 2);
    limit(&delivery.broker, Resource::Fsize, None);
    delivery.until_unacked(0);
    delivery.killed(0);
}

#[test]
fn f35_killed_after_the_ack() {
    for persist in [true, false] {
        let delivery = Delivery::to_reader(persist);
        delivery.send();
        delivery.broker.until_read("ann", TEXT);
        delivery.until_unacked(0);
        delivery.killed(0);
    }
}

#[test]
fn f35_killed_while_the_ack_is_on_its_way() {
    for persist in [true, false] {
        let house = House::new();
        let engine = Scripted::start();
        let start = || {
            let start = Start::at(&house, &engine.url(), "rk_live_given").arg("--name").arg("b");
            if persist { start.arg("--persist").online() } else { start.online() }
        };
        let acks =
            |up_to: u64| engine.log().frames_of("delivery.ack").iter().filter(|ack| ack["up_to_seq"] == up_to).count();
        let mut broker = start();
        let first = broker.spawn("ann");
        engine.send(&engine.message("ann", 1, TEXT));
        // It left; that the engine forgets it is what a loss on the way would be.
        broker.until("the ack", || (acks(1) == 1).then_some(()));
        let read_by = |pid, text: &str| house.read_by_life("ann", pid).filter(|read| read.contains(text));
        broker.until("the text", || read_by(first, TEXT));
        broker.process.signal(Signal::KILL);
        broker.process.wait(LONG);

        let broker = start();
        let second = broker.spawn("ann");
        engine.send(&engine.message("ann", 1, TEXT));
        engine.send(&engine.message("ann", 2, "what follows"));
        broker.until("the next ack", || (acks(2) == 1).then_some(()));
        let read = broker.until("what follows", || read_by(second, "what follows"));
        assert_eq!(read.matches("what follows").count(), 1, "{read}");
        // The journal knows; without one it is typed again, but never into the program that had read it.
        assert_eq!(read.matches(TEXT).count(), usize::from(!persist), "journal: {persist}, in:\n{read}");
        assert_eq!(broker.told("delivery_gap", "ann").len(), 0);
    }
}
