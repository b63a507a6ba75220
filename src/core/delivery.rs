//! The one inbound road: frame → book → the agent's queue → mode gate → terminal → proof → acknowledgement.

use log::Level;

use super::Broker;
use super::book::{Cursor, Verdict};
use super::mutants::{Mutant, planted};
use super::payload::{self, Class};
use super::ports::{Generation, Ms};
use super::roster::{Agent, Delivery, Source};
use super::timers::Timer;
use crate::wire::events::Event;
use crate::wire::node::Deliver;

/// Cursors kept of agents that are not here.
const STRANGERS_MAX: usize = 256;
/// Frames kept of agents that are still registering or starting; more stay at the engine.
const EARLY_MAX: usize = 256;
/// Frames of an earlier life kept until the first inventory has settled.
const STRAYS_MAX: usize = 64;
/// Agents whose messages were left with the engine.
const LEFT_BEHIND_MAX: usize = 1024;
/// An engine that answers no inventory does not keep strays waiting longer.
const STRAYS_MS: Ms = 900;

/// Cursors are kept by identity; by name only while the engine gives none.
pub(super) fn book_key(agent_id: &str, name: &str) -> String {
    if agent_id.is_empty() { format!("name:{name}") } else { agent_id.to_string() }
}

/// Whom a frame is for.
enum Recipient {
    /// A life of the agent, and the key of its cursor.
    Here(Generation, String),
    /// Registering or starting: its frames wait for the registration.
    Coming(Generation),
    /// Name and identity contradict what is bound here.
    Foreign(String),
    Nobody(String),
}

impl Broker {
    pub(super) fn cursor(&mut self, key: &str, name: &str) -> &mut Cursor {
        self.book.entry(key.to_string()).or_insert_with(|| Cursor::new(name))
    }

    /// The engine names this identity: no other one is acknowledged under its name any more.
    pub(super) fn bears_name(&mut self, key: &str) {
        let Some(cursor) = self.book.get_mut(key) else { return };
        if std::mem::replace(&mut cursor.bears_name, true) {
            return;
        }
        let name = cursor.agent.clone();
        for (other, cursor) in self.book.iter_mut().filter(|(_, cursor)| cursor.agent == name) {
            cursor.bears_name = other == key;
        }
    }

    pub(super) fn keep_stranger(&mut self, key: String) {
        if let Some(cursor) = self.book.get_mut(&key) {
            cursor.of_earlier_life = false;
        }
        self.bound_strangers(key);
    }

    /// Of too many cursors without an agent the oldest is dropped.
    pub(super) fn bound_strangers(&mut self, key: String) {
        self.strangers.retain(|known| *known != key);
        self.strangers.push_back(key);
        if self.strangers.len() > STRANGERS_MAX
            && let Some(oldest) = self.strangers.pop_front()
            && self.recipient_of(&oldest).is_none()
        {
            self.timers.cancel(&Timer::Gap(oldest.clone()));
            self.book.remove(&oldest);
        }
    }

    fn recipient(&mut self, frame: &Deliver) -> Recipient {
        let bound = if frame.agent_id.is_empty() { None } else { self.roster.with_id(&frame.agent_id) };
        if let Some(agent) = bound
            && agent.name != frame.agent
        {
            return Recipient::Foreign(format!(
                "agent id {} is bound here to '{}', the frame says '{}'",
                frame.agent_id, agent.name, frame.agent
            ));
        }
        let Some(agent) = self.roster.named(&frame.agent) else {
            return Recipient::Nobody(book_key(&frame.agent_id, &frame.agent));
        };
        let generation = agent.generation;
        if !agent.ran || agent.looking_up {
            return Recipient::Coming(generation);
        }
        match agent.agent_id.as_deref() {
            Some(id) if !frame.agent_id.is_empty() && id != frame.agent_id && !planted(Mutant::ForeignTyped) => {
                Recipient::Foreign(format!(
                    "'{}' is bound here as {id}, the frame says {}",
                    frame.agent, frame.agent_id
                ))
            }
            Some(id) => Recipient::Here(generation, id.to_string()),
            None if !frame.agent_id.is_empty() => {
                // An agent with a supplied token: the engine tells us who it is.
                if let Some(agent) = self.roster.get_mut(generation) {
                    agent.agent_id = Some(frame.agent_id.clone());
                }
                self.owes_inventory = true;
                self.adopt_restored(generation);
                Recipient::Here(generation, frame.agent_id.clone())
            }
            None => Recipient::Here(generation, book_key("", &frame.agent)),
        }
    }

    pub(super) fn on_deliver(&mut self, frame: Deliver) {
        if self.stopping.is_some() {
            // A numbered one stays unacknowledged: the next life gets it. The others come only once.
            if frame.seq == 0 {
                self.bury_unrepeated(frame);
            }
            return;
        }
        match self.recipient(&frame) {
            Recipient::Here(generation, key) => self.take_over(frame, key, Some(generation)),
            Recipient::Coming(generation) => {
                let Some(agent) = self.roster.get_mut(generation) else { return };
                if agent.early.len() < EARLY_MAX {
                    agent.early.push_back(frame);
                } else if frame.seq == 0 {
                    self.bury_unrepeated(frame);
                } else {
                    agent.early_overflowed = true;
                }
            }
            Recipient::Foreign(why) => {
                self.counters.foreign_frames += 1;
                if self.logged_kinds.len() < 64 && self.logged_kinds.insert(format!("foreign {why}")) {
                    self.log(Level::Warn, format!("delivery refused without an acknowledgement: {why}"));
                }
                // The engine keeps the others for whom they are meant.
                if frame.seq == 0 {
                    self.bury_unrepeated(frame);
                }
            }
            Recipient::Nobody(key) => {
                let left = self.left_behind.contains_key(&key);
                if frame.seq > 0 && !self.link.ever_settled() && (left || self.is_stray(&key)) {
                    self.leave_behind(&frame);
                    self.link.keep_stray(frame, STRAYS_MAX);
                    if !self.timers.is_set(&Timer::Strays) {
                        self.timers.set(Timer::Strays, self.now.mono + STRAYS_MS);
                    }
                    return;
                }
                if frame.seq > 0 && left {
                    // Perhaps lower than all before.
                    self.leave_behind(&frame);
                    return;
                }
                self.take_over(frame, key.clone(), None);
                self.keep_stranger(key);
            }
        }
    }

    /// Before the first inventory of a life has settled, the engine repeats what agents of the life before left open.
    /// Those may come back under their names, so their messages are not dead.
    fn is_stray(&self, key: &str) -> bool {
        self.book.get(key).is_none_or(|cursor| cursor.of_earlier_life)
            || !self.strangers.iter().any(|stranger| stranger == key)
    }

    /// The inventory is settled: what came for nobody stays with the engine, for the agent's next life.
    pub(super) fn release_strays(&mut self) {
        self.timers.cancel(&Timer::Strays);
        let strays = self.link.take_strays();
        if !strays.is_empty() {
            let names: std::collections::BTreeSet<String> = strays.into_iter().map(|frame| frame.agent).collect();
            let names: Vec<String> = names.into_iter().collect();
            self.log(
                Level::Info,
                format!("messages for agents of an earlier life stay with the engine: {}", names.join(", ")),
            );
        }
    }

    /// The engine keeps this message and what follows it, for the next life of its agent. That life has to begin with it:
    /// a later number must not pass for the first, its acknowledgement would cover this one.
    pub(super) fn leave_behind(&mut self, frame: &Deliver) {
        let key = book_key(&frame.agent_id, &frame.agent);
        if let Some(cursor) = self.book.get_mut(&key) {
            // So does what was held behind it: left here, this one would be given up as missing.
            cursor.disconnected();
            self.timers.cancel(&Timer::Gap(key.clone()));
        }
        if self.left_behind.len() >= LEFT_BEHIND_MAX && !self.left_behind.contains_key(&key) {
            return;
        }
        let first = self.left_behind.entry(key).or_insert(frame.seq);
        *first = frame.seq.min(*first);
    }

    /// No answer to the inventory in time: treat them as messages for nobody.
    pub(super) fn bury_strays(&mut self) {
        self.link.settle_once();
        for frame in self.link.take_strays() {
            self.left_behind.remove(&book_key(&frame.agent_id, &frame.agent));
            self.on_deliver(frame);
        }
    }

    /// Nobody is here for a frame that the engine does not repeat.
    pub(super) fn bury_unrepeated(&mut self, frame: Deliver) {
        let key = book_key(&frame.agent_id, &frame.agent);
        self.take_over_unrepeated(frame, key.clone(), None);
        self.keep_stranger(key);
    }

    fn take_over(&mut self, frame: Deliver, key: String, recipient: Option<Generation>) {
        if frame.seq == 0 {
            self.take_over_unrepeated(frame, key.clone(), recipient);
            self.bears_name(&key);
            return;
        }
        let now = self.now.mono;
        let full = recipient.and_then(|generation| self.roster.get(generation)).is_some_and(Agent::is_full);
        let left_behind = self.left_behind.remove(&key);
        let cursor = self.cursor(&key, &frame.agent);
        if let Some(first) = left_behind {
            cursor.begin_with(first);
        }
        cursor.agent.clone_from(&frame.agent);
        if recipient.is_some() {
            cursor.take_up();
        }
        self.bears_name(&key);
        let cursor = self.cursor(&key, &frame.agent);
        // Nobody's queue is never full.
        cursor.refusing &= recipient.is_some();
        if cursor.refuses(&frame, full) {
            return;
        }
        let verdict = cursor.accept(&frame, now);
        self.surface(frame, &key, recipient, verdict);
        self.drain_held(&key, recipient);
    }

    pub(super) fn drain_held(&mut self, key: &str, recipient: Option<Generation>) {
        let now = self.now.mono;
        while let Some((frame, verdict)) = self.book.get_mut(key).and_then(|cursor| cursor.next_held(now)) {
            self.surface(frame, key, recipient, verdict);
        }
        if self.book.get_mut(key).is_some_and(Cursor::take_overflow) && self.link.is_open() {
            self.send_register();
        }
        self.set_gap_timer(key);
    }

    pub(super) fn set_gap_timer(&mut self, key: &str) {
        let answers = self.link.answers_register;
        match self.book.get(key).and_then(|cursor| cursor.gap_deadline(answers)) {
            Some(at) => self.timers.set(Timer::Gap(key.to_string()), at),
            None => self.timers.cancel(&Timer::Gap(key.to_string())),
        }
    }

    pub(super) fn on_gap_due(&mut self, key: &str) {
        if !self.link.is_open() {
            // Nothing can fill it now: the wait goes on with the next connection.
            return;
        }
        let now = self.now.mono;
        let answers = self.link.answers_register;
        let coming = |name: &str| self.roster.named(name).is_some_and(|agent| !agent.ran || agent.looking_up);
        if self.book.get(key).is_some_and(|cursor| coming(&cursor.agent)) {
            // What is missing may be among what waits for the start.
            self.timers.set(Timer::Gap(key.to_string()), now + super::book::GAP_REPLAY_MS);
            return;
        }
        let Some(cursor) = self.book.get_mut(key) else { return };
        if cursor.wants_resync(now, answers) {
            self.log(Level::Info, format!("a message for {key} is missing; asking the engine to repeat what is open"));
            self.send_register();
        } else if cursor.gap_is_over(now, answers) {
            self.give_up_gap(key);
        }
        let recipient = self.recipient_of(key);
        self.drain_held(key, recipient);
    }

    /// The engine repeats what is open: only from now on is a hole that stays one.
    pub(super) fn replay_begins(&mut self) {
        let now = self.now.mono;
        let answers = self.link.answers_register;
        for (key, cursor) in &mut self.book {
            cursor.replay_begins(now);
            if let Some(at) = cursor.gap_deadline(answers) {
                self.timers.set(Timer::Gap(key.clone()), at);
            }
        }
    }

    /// The connection is gone, and with it everything that waited behind a hole: the next one repeats it.
    pub(super) fn forget_gaps(&mut self) {
        for (key, cursor) in &mut self.book {
            cursor.disconnected();
            self.timers.cancel(&Timer::Gap(key.clone()));
        }
        // So does what waits for a start: the first number of the next connection must be the lowest that is open.
        for generation in self.roster.generations() {
            if let Some(agent) = self.roster.get_mut(generation) {
                agent.early.retain(|frame| frame.seq == 0);
                agent.early_overflowed = false;
            }
        }
    }

    fn give_up_gap(&mut self, key: &str) {
        let Some(cursor) = self.book.get_mut(key) else { return };
        if let Some((from_seq, to_seq)) = cursor.give_up_gap() {
            let name = cursor.agent.clone();
            self.event(Event::DeliveryGap { name, from_seq, to_seq });
        }
    }

    fn recipient_of(&self, key: &str) -> Option<Generation> {
        match key.strip_prefix("name:") {
            Some(name) => self.roster.generation_of(name),
            None => self.roster.with_id(key).map(|agent| agent.generation),
        }
    }

    fn surface(&mut self, frame: Deliver, key: &str, recipient: Option<Generation>, verdict: Verdict) {
        let kind = payload::kind(&frame.payload);
        let class = payload::class(kind);
        match verdict {
            Verdict::Duplicate | Verdict::Held => return,
            Verdict::Copy => {
                // Its id enters the journal with the first one, when that is disposed.
                self.dispose(key, frame.seq, "");
                return;
            }
            Verdict::Surface | Verdict::SurfaceLate => {}
        }
        if class != Class::Inject {
            self.note_unknown(kind, class);
            self.dispose(key, frame.seq, &frame.msg_id);
            return;
        }
        let source = if verdict == Verdict::Surface {
            Source::Numbered { book: key.to_string(), seq: frame.seq, msg_id: frame.msg_id.clone() }
        } else {
            Source::Late { book: key.to_string(), seq: frame.seq, msg_id: frame.msg_id.clone() }
        };
        let delivery = self.delivery(&frame, source);
        self.enqueue_engine(delivery, &frame.agent, recipient);
    }

    fn take_over_unrepeated(&mut self, frame: Deliver, key: String, recipient: Option<Generation>) {
        let kind = payload::kind(&frame.payload);
        let class = payload::class(kind);
        let identity = payload::unrepeated_key(&frame);
        let suppressible = kind != "action.denied";
        let fresh = self.cursor(&key, &frame.agent).accept_unrepeated(&identity, suppressible);
        if !fresh {
            return;
        }
        if class != Class::Inject {
            self.note_unknown(kind, class);
            return;
        }
        let unique = self.ids.fresh(&format!("{identity}|"));
        let delivery = self.delivery(&frame, Source::Unrepeated { book: key, key: unique });
        self.enqueue_engine(delivery, &frame.agent, recipient);
    }

    fn note_unknown(&mut self, kind: &str, class: Class) {
        if class == Class::AckUnknown {
            self.counters.unknown_payloads += 1;
            if self.logged_kinds.len() < 64 && self.logged_kinds.insert(format!("payload {kind}")) {
                self.log(Level::Warn, format!("payloads of type {kind:?} are not known here: acknowledged, not shown"));
            }
        }
    }

    fn delivery(&mut self, frame: &Deliver, source: Source) -> Delivery {
        let message = payload::message(frame);
        let delivery_id = if frame.delivery_id.is_empty() { &frame.msg_id } else { &frame.delivery_id };
        Delivery {
            delivery_id: delivery_id.clone(),
            event_id: frame.msg_id.clone(),
            priority: message.priority.unwrap_or(if message.target.starts_with('#') { 3 } else { 2 }),
            from: message.from,
            target: message.target,
            body: message.body,
            thread_id: message.thread_id,
            mode: frame.mode,
            workspace: Some(self.config.home().shown().to_string()),
            source,
            queued_at_unix: self.now.unix,
            attempts: 0,
            last_error: None,
            exempt: false,
        }
    }

    fn enqueue_engine(&mut self, delivery: Delivery, name: &str, recipient: Option<Generation>) {
        let Some(generation) = recipient.filter(|generation| self.roster.get(*generation).is_some()) else {
            self.bury(delivery, name, "recipient gone");
            return;
        };
        if !delivery.target.starts_with('#') {
            // Of what the engine brings, conversations of two are listed.
            let thread = delivery.thread_id.as_deref();
            self.threads.note(&delivery.from, &delivery.target, thread, &delivery.body, self.now.unix);
        }
        self.store(name, &delivery);
        self.enqueue(generation, delivery);
    }
}
