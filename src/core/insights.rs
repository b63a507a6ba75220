//! How agents ended against their will, for the operator: the last crashes, what they have in common, a score.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ports::Ms;
use super::{Broker, answers};
use crate::core::ports::ApiAnswer;
use crate::wire::api::{CrashInsightsBody, CrashPattern, CrashRecord, MetricsBody, MetricsOfAgent, MetricsOfBroker};
use crate::wire::events::Ending;

/// The oldest is dropped beyond this, also on load.
pub const CRASHES_MAX: usize = 500;
/// So many are listed and looked at.
const RECENT: usize = 20;
const SCORED: usize = 50;
const HOUR_S: u64 = 3_600;

/// Category and description of an end by code or signal; `None` for a clean one.
fn category(code: Option<i32>, signal: Option<i32>) -> Option<(&'static str, String)> {
    Some(match (code, signal) {
        (_, Some(9)) => ("oom", "Killed by signal 9 (possible OOM)".into()),
        (Some(137), _) => ("oom", "Exit code 137 (likely OOM killed)".into()),
        (_, Some(11)) => ("segfault", "Segmentation fault (signal 11)".into()),
        (Some(139), _) => ("segfault", "Exit code 139 (segmentation fault)".into()),
        (_, Some(signal)) => ("signal", format!("Killed by signal {signal}")),
        (Some(0), None) => return None,
        (Some(code), None) => ("error", format!("Exited with code {code}")),
        (None, None) => ("unknown", "Unknown exit status".into()),
    })
}

#[derive(Debug, Default)]
pub(super) struct Crashes {
    records: VecDeque<CrashRecord>,
}

impl Crashes {
    fn push(&mut self, record: CrashRecord) {
        if self.records.len() >= CRASHES_MAX {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    fn patterns(&self) -> Vec<CrashPattern> {
        let mut found: BTreeMap<&str, (u64, BTreeSet<&str>)> = BTreeMap::new();
        for record in &self.records {
            let (count, agents) = found.entry(&record.category).or_default();
            *count += 1;
            agents.insert(&record.agent_name);
        }
        let mut patterns: Vec<CrashPattern> = found
            .into_iter()
            .map(|(category, (count, agents))| CrashPattern {
                category: category.to_string(),
                count,
                agents: agents.into_iter().map(str::to_string).collect(),
            })
            .collect();
        patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.count));
        patterns
    }

    /// 100 less 10 for each of the last [`SCORED`] that is younger than an hour.
    fn score(&self, now_s: u64) -> u64 {
        let recent = self.records.iter().rev().take(SCORED);
        let young = recent.filter(|record| now_s.saturating_sub(record.timestamp) < HOUR_S).count() as u64;
        100u64.saturating_sub(10 * young)
    }
}

impl Broker {
    /// An agent ended by itself; a clean end is no crash.
    pub(super) fn note_crash(&mut self, name: &str, end: &Ending) {
        let signal = end.signal.as_ref().and_then(|signal| signal.parse().ok());
        let Some((category, description)) = category(end.code, signal) else { return };
        let record = CrashRecord {
            agent_name: name.to_string(),
            exit_code: end.code,
            signal: end.signal.clone(),
            timestamp: self.now.unix / 1000,
            uptime_secs: end.uptime_secs,
            category: category.to_string(),
            description,
            reason: end.reason.clone(),
            cli: end.cli.clone(),
            output: end.output.clone(),
        };
        self.counters.crashes += 1;
        self.crashes.push(record);
    }

    /// What an earlier life has kept, oldest first.
    pub fn recall_crashes(&mut self, records: Vec<CrashRecord>) {
        records.into_iter().for_each(|record| self.crashes.push(record));
    }

    /// To be kept for the next life.
    pub fn crashes(&self) -> impl Iterator<Item = &CrashRecord> {
        self.crashes.records.iter()
    }

    pub(super) fn crash_insights(&self) -> ApiAnswer {
        let records = &self.crashes.records;
        answers::whole(&CrashInsightsBody {
            total_crashes: records.len() as u64,
            recent: records.iter().skip(records.len().saturating_sub(RECENT)).cloned().collect(),
            patterns: self.crashes.patterns(),
            health_score: self.crashes.score(self.now.unix / 1000),
        })
    }

    /// Rows without `memory_bytes`: the API room asks the system for it.
    pub(super) fn metrics(&self, wanted: Option<&str>) -> ApiAnswer {
        let since = |then: Ms| self.now.unix.saturating_sub(then) / 1000;
        let mut agents: Vec<MetricsOfAgent> = self
            .roster
            .iter()
            .filter(|agent| wanted.is_none_or(|name| agent.name == name))
            .filter_map(|agent| {
                Some(MetricsOfAgent {
                    name: agent.name.clone(),
                    pid: agent.pid?,
                    memory_bytes: 0,
                    uptime_secs: since(agent.started_at_unix),
                })
            })
            .collect();
        if let Some(name) = wanted.filter(|_| agents.is_empty()) {
            return answers::code(404, "agent_not_found", &format!("unknown worker '{name}'"));
        }
        agents.sort_by(|a, b| a.name.cmp(&b.name));
        answers::whole(&MetricsBody {
            agents,
            broker: MetricsOfBroker {
                uptime_secs: self.now.mono / 1000,
                total_agents_spawned: self.counters.spawned,
                total_crashes: self.counters.crashes,
                total_restarts: self.counters.restarts,
                active_agents: self.roster.active() as u64,
            },
        })
    }
}

/// The file's text, as 9.1.6 has it.
pub fn crash_file<'a>(records: impl Iterator<Item = &'a CrashRecord>) -> serde_json::Value {
    let records: Vec<&CrashRecord> = records.collect();
    serde_json::json!({"records": records, "max_records": CRASHES_MAX})
}

/// The records of such a file; damaged ones are left out.
pub fn crashes_of_file(text: &str) -> Vec<CrashRecord> {
    let Ok(file) = serde_json::from_str::<serde_json::Value>(text) else { return Vec::new() };
    let records = file.get("records").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    records.into_iter().filter_map(|record| serde_json::from_value(record).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_their_category() {
        let table = [
            (Some(0), None, None),
            (Some(1), None, Some(("error", "Exited with code 1"))),
            (Some(137), None, Some(("oom", "Exit code 137 (likely OOM killed)"))),
            (None, Some(9), Some(("oom", "Killed by signal 9 (possible OOM)"))),
            (Some(139), None, Some(("segfault", "Exit code 139 (segmentation fault)"))),
            (None, Some(11), Some(("segfault", "Segmentation fault (signal 11)"))),
            (None, Some(15), Some(("signal", "Killed by signal 15"))),
            (None, None, Some(("unknown", "Unknown exit status"))),
        ];
        for (code, signal, expected) in table {
            let found = category(code, signal);
            let found = found.as_ref().map(|(name, text)| (*name, text.as_str()));
            assert_eq!(found, expected, "{code:?} {signal:?}");
        }
    }

    fn record(n: u64, at: u64) -> CrashRecord {
        CrashRecord {
            agent_name: format!("a{}", n % 3),
            exit_code: Some(1),
            signal: None,
            timestamp: at,
            uptime_secs: n,
            category: "error".into(),
            description: String::new(),
            reason: String::new(),
            cli: String::new(),
            output: String::new(),
        }
    }

    #[test]
    fn the_last_500_are_kept_and_the_young_ones_cost_points() {
        let mut crashes = Crashes::default();
        assert_eq!(crashes.score(10_000), 100);
        (0..600).for_each(|n| crashes.push(record(n, 1_000)));
        assert_eq!((crashes.records.len(), crashes.records[0].uptime_secs), (500, 100));
        assert_eq!(crashes.score(1_000 + HOUR_S), 100, "an hour ago");
        assert_eq!(crashes.score(1_000 + HOUR_S - 1), 0);
        (0..3).for_each(|n| crashes.push(record(n, 9_000)));
        assert_eq!(crashes.score(9_000), 70);
        let patterns = crashes.patterns();
        assert_eq!((patterns[0].count, patterns[0].agents.len()), (500, 3));
    }

    #[test]
    fn a_file_is_read_as_far_as_it_is_whole() {
        let records = [record(1, 2), record(2, 3)];
        let text = crash_file(records.iter()).to_string();
        assert_eq!(crashes_of_file(&text), records);
        assert_eq!(crashes_of_file("{\"records\":[{\"agent_name\":1}, 7]}"), []);
        assert_eq!(crashes_of_file("{"), []);
    }
}
