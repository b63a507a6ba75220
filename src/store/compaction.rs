//! What a journal must still say: the rules by which old records are left out when the file is rewritten.
//!
//! Kept, in their order: of each agent the last 512 disposed frames (its cursor and its ring of seen ids), what was not
//! repeated and is not done, the newest 500 dead letters (16 MiB of text), the newest 1024 invocations, the newest 1024
//! gone agents. Of a gone agent the last 32 frames are kept: its last acknowledgement may have been lost with the process. The cursors of those
//! that are gone longer go with their mark. What was not repeated stays all the same, until it is done.

use std::collections::{HashMap, HashSet};

use crate::core::dead::DEAD_BYTES_MAX;
use crate::core::ports::Record;

const RING: usize = 512;
const DEAD_LETTERS: usize = 500;
const INVOCATIONS: usize = 1024;
const GONE: usize = 1024;
const GONE_RING: usize = 32;

/// The records without which the broker would remember the same.
pub fn compact(records: Vec<Record>) -> Vec<Record> {
    let mut keep = vec![false; records.len()];
    // Newest first: whether a record counts is decided by what came after it.
    let mut gone_ids: HashSet<&str> = HashSet::new();
    let mut forgotten: HashSet<&str> = HashSet::new();
    let mut gone_names: HashSet<&str> = HashSet::new();
    let mut ring: HashMap<&str, usize> = HashMap::new();
    let mut highest: HashMap<&str, (u64, usize)> = HashMap::new();
    let mut done: HashSet<(&str, &str)> = HashSet::new();
    let mut read: HashSet<(&str, &str)> = HashSet::new();
    let mut invocations: HashSet<&str> = HashSet::new();
    let mut redelivered: HashSet<&str> = HashSet::new();
    let (mut dead, mut dead_bytes) = (0, 0);
    for (at, record) in records.iter().enumerate().rev() {
        keep[at] = match record {
            Record::Disposed { agent_id, .. } if forgotten.contains(agent_id.as_str()) => false,
            Record::Disposed { agent_id, seq, .. } => {
                let top = highest.entry(agent_id).or_insert((*seq, at));
                if *seq > top.0 {
                    *top = (*seq, at);
                }
                let seen = ring.entry(agent_id).or_default();
                *seen += 1;
                *seen <= if gone_ids.contains(agent_id.as_str()) { GONE_RING } else { RING }
            }
            Record::Redelivered { delivery_id } => {
                redelivered.insert(delivery_id);
                false
            }
            // What was put back on its way later has a record of its own.
            Record::DeadLetter(letter) if redelivered.contains(letter.delivery_id.as_str()) => false,
            Record::DeadLetter(letter) => {
                dead += 1;
                dead_bytes += letter.body.len();
                dead == 1 || (dead <= DEAD_LETTERS && dead_bytes <= DEAD_BYTES_MAX)
            }
            Record::UnrepeatedDone { agent_id, key } => {
                done.insert((agent_id, key));
                false
            }
            Record::UnrepeatedRead { agent_id, key } => {
                !done.contains(&(agent_id.as_str(), key.as_str())) && read.insert((agent_id, key))
            }
            Record::Unrepeated { agent_id, key, .. } => done.insert((agent_id, key)),
            Record::Invocation { invocation_id, .. } => {
                invocations.len() < INVOCATIONS && invocations.insert(invocation_id)
            }
            Record::Gone { agent_id, agent } => {
                let keeps = gone_names.len() < GONE && gone_names.insert(agent);
                // Not if it has come back since: then this is only an older end of the same agent.
                if !keeps && !gone_ids.contains(agent_id.as_str()) && !ring.contains_key(agent_id.as_str()) {
                    forgotten.insert(agent_id);
                }
                gone_ids.insert(agent_id);
                keeps
            }
        };
    }
    // A cursor never falls, even if its frame is older than the ring.
    for (_, at) in highest.into_values() {
        keep[at] = true;
    }
    let mut keep = keep.into_iter();
    records.into_iter().filter(|_| keep.next().unwrap_or(true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ports::{DeadLetter, StoredDelivery};

    fn disposed(agent: &str, seq: u64) -> Record {
        Record::Disposed { agent_id: agent.into(), agent: agent.into(), seq, msg_id: format!("m{seq}") }
    }

    fn unrepeated(agent: &str, key: &str) -> Record {
        let delivery = StoredDelivery {
            delivery_id: "d".into(),
            event_id: "e".into(),
            from: "f".into(),
            target: "t".into(),
            body: "b".into(),
            thread_id: None,
            priority: 2,
            mode: Default::default(),
            queued_at_ms: 0,
        };
        Record::Unrepeated { agent_id: agent.into(), agent: agent.into(), key: key.into(), delivery }
    }

    fn done(agent: &str, key: &str) -> Record {
        Record::UnrepeatedDone { agent_id: agent.into(), key: key.into() }
    }

    fn gone(agent: &str) -> Record {
        Record::Gone { agent_id: agent.into(), agent: agent.into() }
    }

    #[test]
    fn f28_a_ring_keeps_512_and_the_highest_cursor() {
        let mut records = vec![disposed("a", 9000)];
        records.extend((1..=600).map(|seq| disposed("a", seq)));
        records.push(disposed("b", 1));
        let kept = compact(records);
        assert_eq!(kept.len(), 514);
        assert_eq!(kept[0], disposed("a", 9000));
        assert_eq!(kept[1], disposed("a", 89));
        assert_eq!(kept[513], disposed("b", 1));
    }

    #[test]
    fn a_gone_agent_leaves_one_tombstone_and_the_end_of_its_cursor() {
        let mut records: Vec<Record> = (1..=40).map(|seq| disposed("a", seq)).collect();
        records.extend([gone("a"), unrepeated("a", "k"), gone("a")]);
        let kept = compact(records);
        assert_eq!(kept.len(), 34);
        assert_eq!(kept[0], disposed("a", 9));
        assert_eq!(kept[32..], [unrepeated("a", "k"), gone("a")]);
    }

    #[test]
    fn of_an_agent_whose_end_is_forgotten_no_cursor_stays() {
        let mut records: Vec<Record> = Vec::new();
        for n in 0..1030 {
            let name = format!("a{n}");
            records.extend([disposed(&name, 1), disposed(&name, 2), gone(&name)]);
        }
        // It came back: what follows its end is a new cursor.
        records.push(disposed("a0", 3));
        let kept = compact(records);
        let of =
            |name: &str| kept.iter().filter(|r| matches!(r, Record::Disposed { agent, .. } if agent == name)).count();
        assert_eq!((of("a5"), of("a6")), (0, 2));
        assert!(of("a0") > 0, "it lives");
        assert!(kept.len() <= 1024 * 3 + 3, "{}", kept.len());
    }

    #[test]
    fn what_is_done_is_left_out() {
        let records = vec![unrepeated("a", "k1"), unrepeated("a", "k2"), done("a", "k1"), done("b", "k2")];
        assert_eq!(compact(records), [unrepeated("a", "k2")]);
        let read = |key: &str| Record::UnrepeatedRead { agent_id: "a".into(), key: key.into() };
        let records = vec![unrepeated("a", "k1"), unrepeated("a", "k2"), read("k1"), read("k2"), done("a", "k1")];
        assert_eq!(compact(records), [unrepeated("a", "k2"), read("k2")]);
    }

    #[test]
    fn bounded_kinds_keep_the_newest() {
        let dead = |n: usize| {
            Record::DeadLetter(DeadLetter {
                delivery_id: n.to_string(),
                worker_name: "w".into(),
                event_id: "e".into(),
                from: "f".into(),
                to: "t".into(),
                body: "b".into(),
                attempts: 1,
                reason: "r".into(),
                queued_at_ms: 0,
                failed_at_ms: 0,
            })
        };
        let invocation = |n: usize| Record::Invocation {
            invocation_id: n.to_string(),
            output: None,
            error: Some("e".into()),
            at_unix: 0,
        };
        let mut records: Vec<Record> = (0..501).map(dead).collect();
        records.extend((0..1025).map(invocation));
        records.push(invocation(5));
        let kept = compact(records);
        assert_eq!(kept[0], dead(1));
        assert_eq!(kept.iter().filter(|r| matches!(r, Record::Invocation { .. })).count(), 1024);
        assert_eq!(kept.iter().filter(|r| **r == invocation(5)).count(), 1);
        assert!(!kept.contains(&invocation(0)));
        assert_eq!(compact(kept.clone()), kept, "compacting twice changes nothing");
    }
}
