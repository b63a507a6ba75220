//! Proof that a program has taken a message from its terminal: asked of the kernel, quickly at first, then twice a second
//! while something is outstanding, never otherwise.

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
    typed: Instant,
    probes: usize,
    next: Instant,
    stall: Option<Instant>,
}

impl Receipts {
    /// A message was completely written; `stall` from now it counts as stalled.
    pub fn typed(&mut self, delivery_id: String, now: Instant, stall: Duration) {
        let next = now + Duration::from_millis(PROBES_MS[0]);
        self.open.push(Receipt { delivery_id, typed: now, probes: 0, next, stall: Some(now + stall) });
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
        receipts.typed("d1".into(), start, Duration::from_secs(5));
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
}
