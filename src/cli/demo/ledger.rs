//! The messages of the demo and what is known of each. Pure: events in, lines out.
//!
//! Receipts come as events; sender and text are read from the terminal's echo, which is what the agent itself sees.

use std::collections::HashMap;

use crate::wire::events::Event;

/// Message ids of the engine are snowflakes: milliseconds since 2025-01-01T00:00Z in the bits above this.
const SNOWFLAKE_SHIFT: u32 = 22;
const SNOWFLAKE_EPOCH_MS: u64 = 1_735_689_600_000;
/// A message whose text did not show on its terminal for so long is told without it.
const TEXT_WAIT_MS: u64 = 1000;
/// Unfinished terminal lines longer than this are no message lines.
const LINE_MAX: usize = 16 << 10;
/// Messages kept: a demo that runs for days must not grow.
const KEPT: usize = 256;

#[derive(Debug)]
struct Message {
    id: String,
    to: String,
    /// When the engine stored it, or the broker took it over its own API.
    stored: u64,
    /// It came through the engine, as the n-th one for this agent.
    through_engine: Option<u64>,
    from: Option<String>,
    text: String,
    typed: Option<u64>,
    read: Option<u64>,
    acked: Option<u64>,
    told: bool,
}

impl Message {
    /// Everything that happens to it has happened.
    fn arrived_at(&self) -> Option<u64> {
        if self.through_engine.is_some() { self.acked } else { self.read }
    }

    fn after(&self, at: Option<u64>) -> String {
        at.map_or("not yet".into(), |at| format!("+{} ms", at.saturating_sub(self.stored)))
    }

    fn line(&self) -> String {
        let way = format!("{} -> {}", self.from.as_deref().unwrap_or("?"), self.to);
        let stored = if self.through_engine.is_some() { "stored" } else { "taken" };
        let mut line = format!(
            "{way:<14} {:<12} {stored}  typed {:<8} read {:<8}",
            self.text,
            self.after(self.typed),
            self.after(self.read)
        );
        if self.through_engine.is_some() {
            line.push_str(&format!(" acked {}", self.after(self.acked)));
        }
        line.trim_end().to_string()
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    messages: Vec<Message>,
    /// Messages through the engine that arrived, also those not kept any more.
    arrived: usize,
    /// Messages through the engine so far, by agent.
    counts: HashMap<String, u64>,
    /// The unfinished last line of each terminal.
    open_lines: HashMap<String, String>,
}

impl Ledger {
    /// Takes note of an event. `false`: it says nothing about a message.
    pub fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::DeliveryQueued { name, event_id, timestamp: Some(timestamp), .. } => {
                self.queued(name, event_id, *timestamp)
            }
            Event::DeliveryInjected { name, event_id, timestamp, .. } => {
                self.mark(name, event_id, |message| message.typed = Some(*timestamp))
            }
            Event::DeliveryRead { name, event_id, timestamp, .. } => {
                self.mark(name, event_id, |message| message.read = Some(*timestamp))
            }
            Event::DeliveryAcked { name, up_to_seq, timestamp } => self.acked(name, *up_to_seq, *timestamp),
            Event::WorkerStream { name, chunk, .. } => self.shown(name, chunk),
            _ => false,
        }
    }

    fn queued(&mut self, name: &str, event_id: &str, timestamp: u64) -> bool {
        if event_id.starts_with("init_") {
            return false; // the agent's task, no message
        }
        let stored = stored_at(event_id);
        let through_engine = stored.map(|_| {
            let count = self.counts.entry(name.to_string()).or_default();
            *count += 1;
            *count
        });
        if self.messages.len() == KEPT {
            self.messages.remove(0);
        }
        self.messages.push(Message {
            id: event_id.to_string(),
            to: name.to_string(),
            stored: stored.unwrap_or(timestamp),
            through_engine,
            from: None,
            text: String::new(),
            typed: None,
            read: None,
            acked: None,
            told: false,
        });
        true
    }

    fn mark(&mut self, name: &str, event_id: &str, note: impl FnOnce(&mut Message)) -> bool {
        let found = self.messages.iter_mut().rev().find(|message| message.id == event_id && message.to == name);
        found.map(note).is_some()
    }

    /// Acknowledgements are cumulative, and never run ahead of what was read.
    fn acked(&mut self, name: &str, up_to_seq: u64, timestamp: u64) -> bool {
        let mut any = false;
        for message in self.messages.iter_mut().filter(|message| message.to == name && message.acked.is_none()) {
            if message.through_engine.is_some_and(|n| n <= up_to_seq) && message.read.is_some() {
                message.acked = Some(timestamp);
                self.arrived += 1;
                any = true;
            }
        }
        any
    }

    /// Terminal output: `Relay message from alice [demo / 123]: ping 1/6` names sender and text of message 123.
    fn shown(&mut self, name: &str, chunk: &str) -> bool {
        let open = self.open_lines.entry(name.to_string()).or_default();
        open.push_str(chunk);
        let (whole, rest) = match open.rfind('\n') {
            Some(end) => open.split_at(end + 1),
            None => ("", open.as_str()),
        };
        let lines: Vec<(String, String, String)> = whole.lines().filter_map(message_line).collect();
        *open = if rest.len() > LINE_MAX { String::new() } else { rest.to_string() };
        let mut any = false;
        for (from, id, text) in lines {
            any |= self.mark(name, &id, |message| {
                message.from = Some(from);
                message.text = text;
            });
        }
        any
    }

    /// Messages through the engine of which the engine was told that they arrived.
    pub fn arrived(&self) -> usize {
        self.arrived
    }

    /// Arrived messages whose line is still to come.
    pub fn untold(&self) -> bool {
        self.messages.iter().any(|message| message.arrived_at().is_some() && !message.told)
    }

    /// The lines of messages that have arrived since the last call.
    pub fn lines(&mut self, now: u64) -> Vec<String> {
        let mut lines = Vec::new();
        for message in self.messages.iter_mut().filter(|message| !message.told) {
            let Some(at) = message.arrived_at() else { continue };
            if message.from.is_some() || now.saturating_sub(at) >= TEXT_WAIT_MS {
                message.told = true;
                lines.push(message.line());
            }
        }
        lines
    }

    /// How far the others came.
    pub fn waiting(&self) -> Vec<String> {
        let waiting = self.messages.iter().filter(|message| message.arrived_at().is_none());
        waiting.map(|message| format!("message {}: {}", message.id, message.line())).collect()
    }

    /// One sentence about all messages through the engine.
    pub fn summary(&self) -> String {
        let through = || self.messages.iter().filter(|message| message.through_engine.is_some());
        let slowest = |receipt: fn(&Message) -> Option<u64>| {
            through().filter_map(|message| Some(receipt(message)?.saturating_sub(message.stored))).max().unwrap_or(0)
        };
        format!(
            "{} of {} messages arrived; the slowest was typed after {} ms, read after {} ms, acknowledged after {} ms.\n\
             50 ms of each lie between the text and its Enter, on purpose: programs take an Enter that comes with the text for a part of a paste.",
            self.arrived,
            through().count(),
            slowest(|message| message.typed),
            slowest(|message| message.read),
            slowest(|message| message.acked),
        )
    }
}

/// Milliseconds since 1970 at which the engine made this id; `None` for ids made elsewhere.
fn stored_at(event_id: &str) -> Option<u64> {
    let id: u64 = event_id.parse().ok()?;
    (event_id.len() >= 15).then_some((id >> SNOWFLAKE_SHIFT) + SNOWFLAKE_EPOCH_MS)
}

/// Sender, id and text of a message line, whatever stands before it.
fn message_line(line: &str) -> Option<(String, String, String)> {
    let (_, rest) = line.split_once("Relay message from ")?;
    let (head, text) = rest.split_once("]: ")?;
    let (from, context) = head.split_once(" [")?;
    let from = from.split_once(" in #").map_or(from, |(name, _)| name);
    let id = context.rsplit_once(" / ").map_or(context, |(_, id)| id);
    Some((from.to_string(), id.to_string(), text.trim_end().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "113246208004194304";

    fn at(ms: u64) -> u64 {
        stored_at(ID).expect("a snowflake") + ms
    }

    fn injected(ms: u64) -> Event {
        Event::DeliveryInjected { name: "bob".into(), delivery_id: "d".into(), event_id: ID.into(), timestamp: at(ms) }
    }

    fn read(ms: u64) -> Event {
        Event::DeliveryRead { name: "bob".into(), delivery_id: "d".into(), event_id: ID.into(), timestamp: at(ms) }
    }

    fn acked(up_to_seq: u64, ms: u64) -> Event {
        Event::DeliveryAcked { name: "bob".into(), up_to_seq, timestamp: at(ms) }
    }

    fn output(name: &str, chunk: &str) -> Event {
        Event::WorkerStream { name: name.into(), stream: "stdout".into(), chunk: chunk.into(), offset: 0 }
    }

    #[test]
    fn a_message_is_told_when_the_engine_knows_that_it_arrived() {
        let mut ledger = Ledger::default();
        assert!(ledger.take(&Event::queued("bob", "d", ID, at(1))));
        assert!(!ledger.take(&output("bob", "x\r\nRelay message from ali")));
        assert!(ledger.take(&output("bob", &format!("ce [demo / {ID}]: ping 1/6\r\n> "))));
        assert!(ledger.take(&injected(52)));
        assert!(!ledger.take(&acked(1, 53)), "an ack without a read is not about this message");
        assert!(ledger.take(&read(53)));
        assert_eq!(ledger.lines(at(60)), [""; 0]);
        assert_eq!(ledger.waiting().len(), 1);
        assert!(ledger.take(&acked(1, 54)));
        assert_eq!(ledger.arrived(), 1);
        assert_eq!(
            ledger.lines(at(60)),
            ["alice -> bob   ping 1/6     stored  typed +52 ms   read +53 ms   acked +54 ms"]
        );
        assert!(ledger.lines(at(70)).is_empty() && !ledger.untold() && ledger.waiting().is_empty());
        assert!(ledger.summary().starts_with("1 of 1 messages arrived; the slowest was typed after 52 ms"));
    }

    #[test]
    fn a_terminal_without_echo_delays_the_line_and_does_not_swallow_it() {
        let mut ledger = Ledger::default();
        for event in [Event::queued("bob", "d", ID, at(1)), injected(52), read(53), acked(1, 54)] {
            ledger.take(&event);
        }
        assert!(ledger.lines(at(60)).is_empty() && ledger.untold());
        assert_eq!(ledger.lines(at(1054)).len(), 1);
    }

    #[test]
    fn tasks_are_no_messages_and_local_sends_need_no_ack() {
        let mut ledger = Ledger::default();
        assert!(!ledger.take(&Event::queued("bob", "d", "init_1", 5)));
        assert!(ledger.take(&Event::queued("bob", "d", "http_1", 1000)));
        ledger.take(&output("bob", "Relay message from demo [http_1]: hello\r\n"));
        let read = Event::DeliveryRead {
            name: "bob".into(),
            delivery_id: "d".into(),
            event_id: "http_1".into(),
            timestamp: 1050,
        };
        ledger.take(&read);
        assert_eq!(ledger.lines(1060), ["demo -> bob    hello        taken  typed not yet  read +50 ms"]);
        assert_eq!(ledger.arrived(), 0);
    }

    #[test]
    fn message_lines_are_taken_apart() {
        let part = |line| message_line(line).map(|(from, id, text)| format!("{from}|{id}|{text}"));
        assert_eq!(part("Relay message from al [ws / 12]: a [b]: c").as_deref(), Some("al|12|a [b]: c"));
        assert_eq!(part("> Relay message from al in #dev [12]: a\r").as_deref(), Some("al|12|a"));
        assert_eq!(part("Relay message from al"), None);
        assert_eq!(stored_at("12"), None);
        assert_eq!(stored_at("http_113246208004194304"), None);
    }
}
