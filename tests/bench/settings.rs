//! What is measured how often, from the environment. `QUICK=1` keeps every step and shortens it.

use std::path::PathBuf;
use std::time::Duration;

/// One binary to measure.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Column title.
    pub title: String,
    pub binary: PathBuf,
}

pub struct Settings {
    pub quick: bool,
    /// Run as a test: what is wrong is a failure, not a figure.
    pub smoke: bool,
    /// Ours first; the one to compare with second, if any.
    pub subjects: Vec<Subject>,
    /// Where the JSON goes.
    pub json: PathBuf,
    /// Names of the sections to run; empty = all.
    pub only: Vec<String>,
    /// Starts per binary.
    pub starts: usize,
    /// How many `cat` agents the idle brokers have, one broker for each number.
    pub idle_agents: Vec<usize>,
    /// From the last spawn to the idle window: past the 25 s ready fallback and the 30 s idle notice of each agent.
    pub idle_settle: Duration,
    /// Length of the idle window.
    pub idle_window: Duration,
    /// Deliveries, one after the other, to one agent.
    pub single: usize,
    /// Agents and deliveries of the round-robin.
    pub crowd: usize,
    pub crowd_deliveries: usize,
    /// Agents and deliveries of the load section.
    pub load_agents: usize,
    pub load_deliveries: usize,
    /// From its last ack to "at rest again".
    pub load_rest: Duration,
    /// Megabytes printed by the flooding agent, and how often.
    pub flood_megabytes: u64,
    pub floods: usize,
    /// Megabytes of the run that shows whether memory grows with the output.
    pub long_flood_megabytes: u64,
    /// Agents that print 1 MB/s together, viewers of that, how long they do, and how often it is measured.
    pub printers: usize,
    pub viewers: usize,
    pub print_seconds: u64,
    pub viewings: usize,
    /// Orderly stops per binary.
    pub stops: usize,
    /// Requests per local route.
    pub requests: usize,
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.trim().parse().ok()
}

fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Settings {
    /// Reads the environment. `smoke` forces the short form, and keeps the JSON of the last true run.
    pub fn from_env(smoke: bool) -> Settings {
        let quick = smoke || std::env::var("QUICK").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
        let own = path("BROKER_BIN").unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_agent-relay-broker")));
        let mut subjects = vec![Subject { title: "ours".into(), binary: own }];
        subjects.extend(path("BROKER").map(|binary| Subject { title: "other".into(), binary }));
        let pick = |short: usize, long: usize| if quick { short } else { long };
        Settings {
            quick,
            smoke,
            subjects,
            json: path("BENCH_JSON").unwrap_or_else(|| {
                let name = if smoke { "bench-smoke.json" } else { "bench.json" };
                PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target").join(name)
            }),
            only: std::env::var("ONLY")
                .map(|list| list.split(',').map(|name| name.trim().to_string()).filter(|n| !n.is_empty()).collect())
                .unwrap_or_default(),
            starts: pick(2, 11),
            idle_agents: if quick { vec![0, 2] } else { vec![0, 1, 10, 20, 50] },
            idle_settle: Duration::from_millis(pick(300, 33_000) as u64),
            idle_window: Duration::from_millis(
                number("IDLE_SECONDS").map_or(pick(700, 24_000), |s: usize| s * 1000) as u64
            ),
            single: pick(6, 240),
            crowd: pick(4, 20),
            crowd_deliveries: pick(12, 600),
            load_agents: pick(4, 10),
            load_deliveries: number("DELIVERIES").unwrap_or(pick(40, 2000)),
            load_rest: Duration::from_millis(pick(100, 26_000) as u64),
            flood_megabytes: pick(2, 64) as u64,
            floods: pick(1, 3),
            long_flood_megabytes: pick(2, 1000) as u64,
            printers: pick(3, 20),
            viewers: pick(5, 100),
            print_seconds: pick(1, 6) as u64,
            viewings: pick(1, 3),
            stops: pick(1, 5),
            requests: pick(20, 500),
        }
    }

    pub fn wants(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == section)
    }
}
