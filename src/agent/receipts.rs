//! Proof that a program has taken a message from its terminal: asked of the kernel, quickly at first, then twice a second
//! while something is outstanding, never otherwise.
//!
//! The proof is an empty input queue, so it holds only while nothing was thrown out of that queue unread. A message that
//! was outstanding when that happened is given up: it may have been taken or lost, so it is neither proved (an
//! acknowledgement could lose it) nor typed again (it could arrive twice): it is told as lost, and goes on record.

use std::time::{Duration, Instant};

/// When to ask, counted from the moment the message was completely written.
const PROBES_MS: [u64; 8] = [1, 2, 5, 10, 20, 50, 100, 250];
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// The typed messages that are not known to be read.
#[derive(Debug, Default)]
pub struct Receipts {
    open: Vec<Receipt>,
}

#[derive(Debug)]
struct Receipt {
    delivery_id: String,
    /// How much had been written to the terminal before its first byte.
    from: u64,
    typed: Instant,
    probes: usize,
    next: Instant,
    stall: Option<Instant>,
}

impl Receipts {
    /// A message was completely written; `stall` from now it counts as stalled. `from`: bytes written before its first.
    pub fn typed(&mut self, delivery_id: String, from: u64, now: Instant, stall: Duration) {
        let next = now + Duration::from_millis(PROBES_MS[0]);
        self.open.push(Receipt { delivery_id, from, typed: now, probes: 0, next, stall: Some(now + stall) });
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// When to ask next.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.iter().flat_map(|receipt| receipt.stall.into_iter().chain([receipt.next])).min()
    }

    /// The program has read everything: all are proven.
    pub fn settle(&mut self) -> Vec<String> {
        std::mem::take(&mut self.open).into_iter().map(|receipt| receipt.delivery_id).collect()
    }

    /// Unread input was thrown away: nothing can be proved any more. Returns what is lost with it.
    pub fn give_up(&mut self) -> Vec<String> {
        self.settle()
    }

    /// Takes out the messages of which nothing was read: of `written` bytes, `unread` are still there, the last ones.
    pub fn take_untouched(&mut self, written: u64, unread: u64) -> Vec<String> {
        let untouched = self.open.extract_if(.., |receipt| unread >= written - receipt.from);
        untouched.map(|receipt| receipt.delivery_id).collect()
    }

    /// The program has not read everything. Returns what stalls now, each message once.
    pub fn postpone(&mut self, now: Instant) -> Vec<String> {
        let mut stalled = Vec::new();
        for receipt in &mut self.open {
            if receipt.next <= now {
                receipt.probes += 1;
                receipt.next = match PROBES_MS.get(receipt.probes) {
                    Some(after) => (receipt.typed + Duration::from_millis(*after)).max(now),
                    None => now + PROBE_EVERY,
                };
            }
            if receipt.stall.is_some_and(|stall| stall <= now) {
                receipt.stall = None;
                stalled.push(receipt.delivery_id.clone());
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_dense_at_first_and_a_stall_is_told_once() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        receipts.typed("d1".into(), 0, start, Duration::from_secs(5));
        let (mut asked, mut stalled) = (Vec::new(), Vec::new());
        while asked.len() < 30 {
            let at = receipts.deadline().expect("one is open");
            asked.push((at - start).as_millis() as u64);
            stalled.extend(receipts.postpone(at).into_iter().map(|id| (id, *asked.last().expect("just pushed"))));
        }
        assert_eq!(asked[..8], PROBES_MS);
        assert_eq!(asked[8..11], [750, 1250, 1750]);
        assert_eq!(stalled, [("d1".to_string(), 5000)]);
        assert_eq!(receipts.settle(), ["d1"]);
        assert_eq!(receipts.deadline(), None);
    }

    #[test]
    fn only_a_message_of_which_nothing_was_read_is_untouched() {
        let stall = Duration::from_secs(5);
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        receipts.typed("d1".into(), 0, start, stall);
        receipts.typed("d2".into(), 100, start, stall);
        // 150 bytes written, of which one was read.
        assert_eq!(receipts.take_untouched(150, 149), ["d2"]);
        assert_eq!(receipts.take_untouched(150, 149), [""; 0]);
        assert_eq!(receipts.give_up(), ["d1"]);
        assert!(receipts.is_empty());
        receipts.typed("d3".into(), 150, start, stall);
        assert_eq!(receipts.take_untouched(200, 50), ["d3"]);
        receipts.typed("d4".into(), 200, start, stall);
        assert_eq!(receipts.postpone(start + stall), ["d4"]);
        assert_eq!(receipts.give_up(), ["d4"]);
        assert_eq!(receipts.give_up(), [""; 0], "told once");
    }
}
