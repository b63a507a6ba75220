//! The event hub: numbers durable events, keeps the last of them, and feeds `/ws`.
//!
//! One mutex guards it, held for a push or a pull and never across I/O, so that the loop that publishes never waits for a
//! client. An event becomes text once, whatever the number of clients.
//!
//! A client has no queue of durable events: it has a cursor into the ring, so that a slow one costs nothing and misses
//! only what the ring itself has lost; that is reported in one gap frame. Ephemeral events (terminal output) are queued per
//! client, bounded; when the queue is full its oldest go. Each remembers the durable event that it followed, which keeps
//! both kinds in the order in which they were published.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::http::{Outgoing, Session, Waker};
use crate::wire::api::replay_gap;
use crate::wire::events::Event;

use super::health::{Counted, Health};

/// Durable events that can be replayed.
const RING: usize = 1000;
/// Bytes of them: bodies of messages can be long. The newest event is kept whatever its size.
const RING_BYTES: usize = 32 << 20;
/// Ephemeral events that wait for one client.
const EPHEMERAL: usize = 512;
const EPHEMERAL_BYTES: usize = 4 << 20;

/// What `GET /api/events/replay` is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// JSON texts, oldest first.
    pub events: Vec<Arc<str>>,
    pub gap: bool,
    /// First seq still held; the first that will be, when there was no event.
    pub oldest: u64,
    /// Seq of the newest event, 0 without one.
    pub newest: u64,
    /// Events that the asker has missed for good.
    pub dropped: u64,
}

#[derive(Default)]
struct Ring {
    /// Consecutive numbers; the last is `newest`.
    events: VecDeque<Arc<str>>,
    bytes: usize,
    newest: u64,
}

impl Ring {
    fn oldest(&self) -> u64 {
        self.newest + 1 - self.events.len() as u64
    }

    fn get(&self, seq: u64) -> Option<&Arc<str>> {
        self.events.get(usize::try_from(seq.checked_sub(self.oldest())?).ok()?)
    }

    fn push(&mut self, text: Arc<str>) {
        self.newest += 1;
        self.bytes += text.len();
        self.events.push_back(text);
        while self.events.len() > 1 && (self.events.len() > RING || self.bytes > RING_BYTES) {
            self.bytes -= self.events.pop_front().map_or(0, |text| text.len());
        }
    }

    /// Where a client that has seen `since` starts, and the gap frame it must see before (requested, oldest, dropped).
    fn start(&self, since: u64) -> (u64, Option<(u64, u64, u64)>) {
        let oldest = self.oldest();
        if since > self.newest {
            // A client of an earlier life of the broker: everything is new to it.
            return (oldest - 1, Some((since, oldest, oldest - 1)));
        }
        if since.saturating_add(1) < oldest {
            return (oldest - 1, Some((since, oldest, oldest - 1 - since)));
        }
        (since, None)
    }
}

struct Ephemeral {
    /// The newest durable event when this one was published.
    after: u64,
    text: Arc<str>,
}

struct Client {
    id: u64,
    waker: Waker,
    /// The last durable event that it was given.
    cursor: u64,
    /// To be sent before anything else.
    gap: Option<Arc<str>>,
    ephemeral: VecDeque<Ephemeral>,
    ephemeral_bytes: usize,
    /// It is losing ephemeral events: so many since it last had half of its queue free.
    lost: u64,
}

impl Client {
    fn push(&mut self, after: u64, text: Arc<str>) {
        self.ephemeral_bytes += text.len();
        self.ephemeral.push_back(Ephemeral { after, text });
        while self.ephemeral.len() > EPHEMERAL || (self.ephemeral_bytes > EPHEMERAL_BYTES && self.ephemeral.len() > 1) {
            self.ephemeral_bytes -= self.ephemeral.pop_front().map_or(0, |lost| lost.text.len());
            if self.lost == 0 {
                log::warn!("event client {} is slow: terminal output is being dropped for it", self.id);
            }
            self.lost += 1;
        }
    }

    fn pull(&mut self, ring: &Ring) -> Option<Arc<str>> {
        if let Some(gap) = self.gap.take() {
            return Some(gap);
        }
        if self.ephemeral.front().is_some_and(|next| next.after <= self.cursor) {
            let next = self.ephemeral.pop_front()?;
            self.ephemeral_bytes -= next.text.len();
            if self.lost > 0 && self.ephemeral.len() <= EPHEMERAL / 2 && self.ephemeral_bytes <= EPHEMERAL_BYTES / 2 {
                log::warn!("event client {} has caught up; {} events were dropped", self.id, self.lost);
                self.lost = 0;
            }
            return Some(next.text);
        }
        if self.cursor >= ring.newest {
            return None;
        }
        match ring.get(self.cursor + 1) {
            Some(text) => {
                self.cursor += 1;
                Some(text.clone())
            }
            None => {
                let (cursor, gap) = ring.start(self.cursor);
                self.cursor = cursor;
                gap.map(gap_frame)
            }
        }
    }
}

fn gap_frame((requested, oldest, dropped): (u64, u64, u64)) -> Arc<str> {
    replay_gap(requested, oldest, dropped).to_string().into()
}

#[derive(Default)]
struct State {
    ring: Ring,
    clients: Vec<Client>,
    last_client: u64,
}

/// The events of one life of the broker and those who watch them.
#[derive(Default)]
pub struct EventHub {
    state: Mutex<State>,
    watchers: Arc<AtomicUsize>,
}

impl EventHub {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half-way: pushes and pops of whole entries.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Gives a durable event the next number and hands the event to every client. Called by one thread, whose order is the
    /// order of the numbers.
    pub fn publish(&self, event: &Event) {
        let durable = event.is_durable();
        if !durable && self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Ok(mut text) = serde_json::to_string(event) else {
            log::error!("an event cannot be written as JSON");
            return;
        };
        let mut state = self.state();
        let State { ring, clients, .. } = &mut *state;
        if durable {
            // The event is an object with a `kind`, so it ends in a brace and is not empty.
            text.pop();
            text.push_str(&format!(",\"seq\":{}}}", ring.newest + 1));
            ring.push(text.into());
        } else {
            let text: Arc<str> = text.into();
            clients.iter_mut().for_each(|client| client.push(ring.newest, text.clone()));
        }
        clients.iter().for_each(|client| client.waker.wake());
    }

    /// How many clients watch; 0 = terminal output interests nobody. The counter itself, so that a terminal's thread can
    /// look without a lock.
    pub fn watchers(&self) -> Arc<AtomicUsize> {
        self.watchers.clone()
    }

    /// The retained events after `since`, by the rules of a new client.
    pub fn replay(&self, since: u64) -> Replay {
        let state = self.state();
        let ring = &state.ring;
        let (cursor, gap) = ring.start(since);
        Replay {
            events: (cursor + 1..=ring.newest).filter_map(|seq| ring.get(seq).cloned()).collect(),
            gap: gap.is_some(),
            oldest: ring.oldest(),
            newest: ring.newest,
            dropped: gap.map_or(0, |(_, _, dropped)| dropped),
        }
    }

    fn subscribe(&self, since: u64, waker: Waker) -> u64 {
        let mut state = self.state();
        state.last_client += 1;
        let id = state.last_client;
        let (cursor, gap) = state.ring.start(since);
        waker.wake();
        state.clients.push(Client {
            id,
            waker,
            cursor,
            gap: gap.map(gap_frame),
            ephemeral: VecDeque::new(),
            ephemeral_bytes: 0,
            lost: 0,
        });
        self.watchers.store(state.clients.len(), Ordering::Relaxed);
        id
    }

    fn unsubscribe(&self, id: u64) {
        let mut state = self.state();
        state.clients.retain(|client| client.id != id);
        self.watchers.store(state.clients.len(), Ordering::Relaxed);
    }

    fn pull(&self, id: u64) -> Option<Arc<str>> {
        let mut state = self.state();
        let State { ring, clients, .. } = &mut *state;
        clients.iter_mut().find(|client| client.id == id)?.pull(ring)
    }
}

/// One client of `/ws`. What it sends carries no meaning.
pub(super) struct Feed {
    hub: Arc<EventHub>,
    health: Arc<Health>,
    since: u64,
    open: Option<(u64, Counted)>,
}

impl Feed {
    pub fn new(hub: Arc<EventHub>, health: Arc<Health>, since: u64) -> Feed {
        Feed { hub, health, since, open: None }
    }
}

impl Session for Feed {
    fn opened(&mut self, waker: Waker) {
        self.open = Some((self.hub.subscribe(self.since, waker), self.health.count_websocket()));
    }

    fn text(&mut self, _text: String) {}

    fn binary(&mut self, _bytes: Vec<u8>) {}

    fn next(&mut self) -> Outgoing {
        let event = self.open.as_ref().and_then(|(id, _)| self.hub.pull(*id));
        event.map_or(Outgoing::Nothing, Outgoing::Message)
    }

    fn closed(&mut self) {
        self.unsubscribe();
    }
}

impl Feed {
    fn unsubscribe(&mut self) {
        if let Some((id, _)) = self.open.take() {
            self.hub.unsubscribe(id);
        }
    }
}

impl Drop for Feed {
    /// Also when its thread panicked.
    fn drop(&mut self) {
        self.unsubscribe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn durable(n: usize) -> Event {
        Event::AgentReleased { name: format!("a{n}") }
    }

    fn output(n: usize) -> Event {
        Event::WorkerStream { name: "a".into(), stream: "stdout".into(), chunk: format!("c{n}"), offset: n as u64 }
    }

    struct Reader<'a>(&'a EventHub, u64);

    impl<'a> Reader<'a> {
        fn new(hub: &'a EventHub, since: u64) -> Reader<'a> {
            Reader(hub, hub.subscribe(since, Waker::new().expect("a descriptor")))
        }

        /// What is there now, in short: `7` a durable event by its number, `c1` output, `gap N O dropped S`.
        fn take(&self, most: usize) -> Vec<String> {
            let mut seen = Vec::new();
            while let Some(text) = (seen.len() < most).then(|| self.0.pull(self.1)).flatten() {
                let value: Value = serde_json::from_str(&text).expect("JSON");
                seen.push(match value["kind"].as_str().expect("a kind") {
                    "replay_gap" => format!(
                        "gap {} {} {} {}",
                        value["requestedSinceSeq"], value["oldestAvailable"], value["droppedCount"], value["seq"]
                    ),
                    "worker_stream" => {
                        assert!(value.get("seq").is_none());
                        value["chunk"].as_str().unwrap().into()
                    }
                    _ => value["seq"].to_string(),
                });
            }
            seen
        }

        fn all(&self) -> Vec<String> {
            self.take(usize::MAX)
        }
    }

    fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
        range.map(|n| n.to_string()).collect()
    }

    fn hub_with(events: usize) -> EventHub {
        let hub = EventHub::default();
        (0..events).for_each(|n| hub.publish(&durable(n)));
        hub
    }

    #[test]
    fn l23_a_fresh_client_sees_no_gap_while_nothing_is_lost() {
        assert_eq!(Reader::new(&hub_with(0), 0).all(), [""; 0]);
        assert_eq!(Reader::new(&hub_with(3), 0).all(), numbers(1..=3));
        assert_eq!(Reader::new(&hub_with(1000), 0).all(), numbers(1..=1000));
        let mut expected = vec!["gap 0 2 1 1".to_string()];
        expected.extend(numbers(2..=1001));
        assert_eq!(Reader::new(&hub_with(1001), 0).all(), expected);
    }

    #[test]
    fn replay_starts_after_what_was_seen() {
        let hub = hub_with(1100);
        assert_eq!(Reader::new(&hub, 1098).all(), numbers(1099..=1100));
        assert_eq!(Reader::new(&hub, 1100).all(), [""; 0]);
        assert_eq!(Reader::new(&hub, 100).all(), numbers(101..=1100), "the next one is still there");
        assert_eq!(Reader::new(&hub, 99).take(2), ["gap 99 101 1 100", "101"]);
    }

    #[test]
    fn a_client_of_an_earlier_life_gets_everything_after_a_gap() {
        assert_eq!(Reader::new(&hub_with(2), 500).all(), ["gap 500 1 0 0", "1", "2"]);
        assert_eq!(Reader::new(&hub_with(0), 500).all(), ["gap 500 1 0 0"]);
        assert_eq!(Reader::new(&hub_with(1002), u64::MAX).take(2), [format!("gap {} 3 2 2", u64::MAX), "3".into()]);
    }

    #[test]
    fn both_kinds_keep_their_order() {
        let hub = hub_with(1);
        let reader = Reader::new(&hub, 0);
        hub.publish(&output(1));
        hub.publish(&durable(2));
        hub.publish(&output(2));
        hub.publish(&output(3));
        hub.publish(&durable(3));
        assert_eq!(reader.all(), ["1", "c1", "2", "c2", "c3", "3"]);
        assert_eq!(Reader::new(&hub, 0).all(), ["1", "2", "3"], "output is not replayed");
    }

    #[test]
    fn l22_a_slow_client_loses_output_first_and_durable_events_only_with_the_ring() {
        let hub = EventHub::default();
        let reader = Reader::new(&hub, 0);
        for n in 1..=600 {
            hub.publish(&output(n));
            hub.publish(&durable(n));
        }
        let seen = reader.all();
        let durable_seen: Vec<_> = seen.iter().filter(|line| !line.starts_with('c')).cloned().collect();
        assert_eq!(durable_seen, numbers(1..=600));
        assert_eq!(seen.len(), 600 + EPHEMERAL);
        assert_eq!(seen.iter().find(|line| line.starts_with('c')).unwrap(), "c89", "the oldest output went");
        (0..1500).for_each(|n| hub.publish(&durable(n)));
        let seen = reader.all();
        assert_eq!(seen[0], "gap 600 1101 500 1100");
        assert_eq!(seen[1..], numbers(1101..=2100));
    }

    #[test]
    fn queues_are_bounded_in_bytes() {
        let hub = EventHub::default();
        let reader = Reader::new(&hub, 0);
        let chunk = "x".repeat(1 << 20);
        for offset in 0..10 {
            hub.publish(&Event::WorkerStream {
                name: "a".into(),
                stream: "stdout".into(),
                chunk: chunk.clone(),
                offset,
            });
            hub.publish(&Event::AgentReleased { name: "n".repeat(4 << 20) });
        }
        let state = hub.state();
        assert!(state.ring.bytes <= RING_BYTES, "{}", state.ring.bytes);
        assert!(state.clients[0].ephemeral_bytes <= EPHEMERAL_BYTES, "{}", state.clients[0].ephemeral_bytes);
        drop(state);
        assert!(!reader.all().is_empty());
    }

    #[test]
    fn watchers_are_counted_and_output_without_any_costs_nothing() {
        let hub = EventHub::default();
        let watchers = hub.watchers();
        hub.publish(&output(1));
        let reader = Reader::new(&hub, 0);
        assert_eq!(watchers.load(Ordering::Relaxed), 1);
        assert_eq!(reader.all(), [""; 0]);
        hub.unsubscribe(reader.1);
        assert_eq!(watchers.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn replay_over_http_says_the_same() {
        let hub = hub_with(1002);
        let replay = hub.replay(0);
        assert_eq!((replay.gap, replay.oldest, replay.newest, replay.dropped), (true, 3, 1002, 2));
        assert_eq!(replay.events.len(), 1000);
        let replay = hub.replay(1001);
        assert_eq!((replay.gap, replay.events.len(), replay.dropped), (false, 1, 0));
        assert!(replay.events[0].contains("\"seq\":1002"), "{}", replay.events[0]);
    }
}
