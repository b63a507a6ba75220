//! Whether the terminal showed a message that was typed. Decides events, never an acknowledgement: a cooked terminal
//! echoes what no program has read, and a full-screen program may never show what it has taken.

use std::time::Instant;

/// Output kept for the search: cut to `KEEP` when it passes `MOST`.
const MOST: usize = 16_000;
const KEEP: usize = 12_000;

/// The messages whose echo is awaited, and the output since the first of them began.
#[derive(Debug, Default)]
pub struct EchoWatch {
    watches: Vec<Watch>,
    /// Compact output (see [`compact`]) since the oldest watch began.
    output: String,
}

#[derive(Debug)]
struct Watch {
    delivery_id: String,
    mark: String,
    /// Where in `output` its search goes on.
    from: usize,
    seen: bool,
    /// Set when the message is completely typed.
    until: Option<Instant>,
}

impl EchoWatch {
    /// The first byte of a message is about to be written. An earlier watch of the same message ends without a verdict.
    pub fn begin(&mut self, delivery_id: &str, mark: &str) {
        self.forget(delivery_id);
        self.watches.push(Watch {
            delivery_id: delivery_id.into(),
            mark: compact(mark),
            from: self.output.len(),
            seen: false,
            until: None,
        });
    }

    /// The message will not show.
    pub fn forget(&mut self, delivery_id: &str) {
        self.watches.retain(|watch| watch.delivery_id != delivery_id);
        if self.watches.is_empty() {
            self.output = String::new();
        }
    }

    /// The message is completely typed: its window starts.
    pub fn typed(&mut self, delivery_id: &str, until: Instant) {
        if let Some(watch) = self.watches.iter_mut().find(|watch| watch.delivery_id == delivery_id) {
            watch.until = Some(until);
        }
    }

    /// From the first byte of a message until its verdict. What the terminal shows meanwhile may be our own text.
    pub fn is_active(&self) -> bool {
        !self.watches.is_empty()
    }

    /// New output, stripped of escape sequences.
    pub fn push(&mut self, stripped: &str) {
        if self.watches.is_empty() {
            return;
        }
        self.output.push_str(&compact(stripped));
        for watch in self.watches.iter_mut().filter(|watch| !watch.seen) {
            watch.seen = self.output[watch.from..].contains(&watch.mark);
            // The mark may be cut by the end of this piece.
            let mut next = self.output.len().saturating_sub(watch.mark.len()).max(watch.from);
            while !self.output.is_char_boundary(next) {
                next -= 1;
            }
            watch.from = next.max(watch.from);
        }
        if self.output.len() > MOST {
            let mut cut = self.output.len() - KEEP;
            while !self.output.is_char_boundary(cut) {
                cut -= 1;
            }
            self.output.drain(..cut);
            self.watches.iter_mut().for_each(|watch| watch.from = watch.from.saturating_sub(cut));
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.watches.iter().filter_map(|watch| watch.until).min()
    }

    /// The verdicts that have fallen: seen after it was typed, or not seen until its window ended.
    pub fn settle(&mut self, now: Instant) -> Vec<(String, bool)> {
        let settled = self
            .watches
            .extract_if(.., |watch| watch.until.is_some_and(|until| watch.seen || until <= now))
            .map(|watch| (watch.delivery_id, watch.seen))
            .collect();
        if self.watches.is_empty() {
            self.output = String::new();
        }
        settled
    }
}

/// Without white space, and without the frames that full-screen programs draw around text: both come from wrapping.
pub fn compact(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && !('\u{2500}'..='\u{259f}').contains(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WINDOW: Duration = Duration::from_secs(5);

    #[test]
    fn an_echo_counts_once_the_message_is_typed() {
        let (mut watch, now) = (EchoWatch::default(), Instant::now());
        watch.push("Relay message from bob: hi");
        watch.begin("d1", "Relay message from bob: hi");
        assert!(watch.is_active());
        watch.push("│ Relay mess");
        watch.push("age │\r\n│ from bob: hi │");
        assert_eq!(watch.settle(now), []);
        watch.typed("d1", now + WINDOW);
        assert_eq!(watch.settle(now), [("d1".to_string(), true)]);
        assert!(!watch.is_active());
    }

    #[test]
    fn a_message_that_begins_again_has_one_watch() {
        let (mut watch, now) = (EchoWatch::default(), Instant::now());
        watch.begin("d1", "some text");
        watch.push("some text");
        watch.begin("d1", "some text");
        watch.typed("d1", now + WINDOW);
        assert_eq!(watch.settle(now), [], "the first showing was of the first try");
        assert_eq!(watch.settle(now + WINDOW), [("d1".to_string(), false)]);
        assert!(!watch.is_active());
    }

    #[test]
    fn d14_output_from_before_the_message_does_not_count() {
        let (mut watch, now) = (EchoWatch::default(), Instant::now());
        watch.begin("d1", "same text");
        watch.push("same text");
        watch.begin("d2", "same text");
        watch.typed("d1", now + WINDOW);
        watch.typed("d2", now + WINDOW);
        assert_eq!(watch.settle(now), [("d1".to_string(), true)]);
        assert_eq!(watch.settle(now + WINDOW), [("d2".to_string(), false)]);
    }

    #[test]
    fn a_flood_keeps_the_search_bounded_and_right() {
        let (mut watch, now) = (EchoWatch::default(), Instant::now());
        watch.begin("d1", "needle é needle");
        for _ in 0..100 {
            watch.push(&"é─x ".repeat(500));
            assert!(watch.output.len() <= MOST + 4000);
        }
        watch.push("needle é ne");
        watch.push("edle");
        watch.typed("d1", now);
        assert_eq!(watch.settle(now), [("d1".to_string(), true)]);
    }
}
