//! What a process tree costs, read from `/proc`. A tree is the broker and its descendants that run the broker's own
//! program (a broker may keep one process per agent); the programs of the agents are left out.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// Memory in KiB, and numbers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cost {
    pub rss: u64,
    pub private: u64,
    pub threads: u64,
    pub processes: u64,
}

/// Context switches of a thread since its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// It waited for something.
    pub voluntary: u64,
    /// It yielded, or was made to.
    pub involuntary: u64,
}

/// The counters of all threads, keyed by process and thread.
pub type Switches = HashMap<(i32, i32), Count>;

fn proc_file(pid: i32, rest: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{rest}"))
}

/// Parent of each process that can be seen.
fn parents() -> HashMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, parent_of(&std::fs::read_to_string(proc_file(pid, "stat")).ok()?)?)))
        .collect()
}

/// Field 4 of `stat`; the name in field 2 may hold blanks and brackets.
pub fn parent_of(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// `root` and its descendants.
pub fn descendants(root: i32, parents: &HashMap<i32, i32>) -> Vec<i32> {
    let mut found = vec![root];
    let mut known = HashSet::from([root]);
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        for (child, of) in parents {
            if *of == parent && known.insert(*child) {
                found.push(*child);
            }
        }
        next += 1;
    }
    found
}

/// The broker's own processes: `root` and its descendants with the same program.
pub fn of_broker(root: i32) -> Vec<i32> {
    let program = |pid| std::fs::read_link(proc_file(pid, "exe")).ok();
    let own = program(root);
    descendants(root, &parents()).into_iter().filter(|pid| program(*pid) == own).collect()
}

/// Sum of the values (KiB, or plain numbers) of the lines that start with one of `names`.
pub fn kibibytes(text: &str, names: &[&str]) -> u64 {
    text.lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn tasks(pid: i32) -> Vec<i32> {
    std::fs::read_dir(proc_file(pid, "task"))
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default()
}

/// What the broker at `root` costs now.
pub fn cost(root: i32) -> Result<Cost, String> {
    let mut sum = Cost::default();
    for pid in of_broker(root) {
        let path = proc_file(pid, "smaps_rollup");
        let memory = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        sum.rss += kibibytes(&memory, &["Rss:"]);
        sum.private += kibibytes(&memory, &["Private_Clean:", "Private_Dirty:"]);
        sum.threads += tasks(pid).len() as u64;
        sum.processes += 1;
    }
    Ok(sum)
}

/// The most memory (KiB, resident) that the process `root` has had so far.
pub fn peak(root: i32) -> u64 {
    std::fs::read_to_string(proc_file(root, "status")).map_or(0, |status| kibibytes(&status, &["VmHWM:"]))
}

/// The counters in the `status` of a thread.
pub fn switches_of(status: &str) -> Count {
    Count {
        voluntary: kibibytes(status, &["voluntary_ctxt_switches:"]),
        involuntary: kibibytes(status, &["nonvoluntary_ctxt_switches:"]),
    }
}

/// The counters of all threads of the broker at `root`.
pub fn switches(root: i32) -> Switches {
    let mut counters = Switches::new();
    for pid in of_broker(root) {
        for task in tasks(pid) {
            if let Ok(status) = std::fs::read_to_string(proc_file(pid, &format!("task/{task}/status"))) {
                counters.insert((pid, task), switches_of(&status));
            }
        }
    }
    counters
}

/// Switches between two readings; a thread that is new counts from zero.
pub fn switched(before: &Switches, after: &Switches) -> Count {
    let mut sum = Count::default();
    for (thread, count) in after {
        let from = before.get(thread).copied().unwrap_or_default();
        sum.voluntary += count.voluntary.saturating_sub(from.voluntary);
        sum.involuntary += count.involuntary.saturating_sub(from.involuntary);
    }
    sum
}
