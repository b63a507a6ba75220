//! `swarm`: the list of patterns. Running one is not offered: the release that this broker stands in for never could
//! either, and a clear refusal is better than a wait for ever.

use lexopt::prelude::*;

use super::Failure;
use crate::daemon::Fatal;

pub const HELP: &str = "\
List the patterns in which a swarm of agents can work

Usage: agent-relay-broker swarm --list

Options:
  --list               Print the patterns
  --pattern <PATTERN>  Pattern of a run [default: fan-out]
  --task <TASK>        Task of a run
  --teams <N>          Number of teams [default: 2]
  --timeout <TIME>     Limit of a run: seconds, or a number with s, m or h [default: 300s]
  --cli <CLI>          Harness of the teams [default: codex]
  --broker-bin, --broker-name, --channels, --project-dir, --broker-runtime-dir
                       Taken, without effect
  -h, --help           Print help

Running a swarm is not supported: spawn agents through the broker's API instead.
";

/// Identifier and description, in the order in which they are listed.
const PATTERNS: [(&str, &str); 24] = [
    ("fan-out", "The same task goes to every team at once"),
    ("pipeline", "Each team works on what the one before has made"),
    ("competitive", "Teams work against each other, the best result wins"),
    ("hub-spoke", "One team in the middle hands out work and collects it"),
    ("consensus", "Teams talk until they agree on one result"),
    ("mesh", "Every team may talk to every other"),
    ("handoff", "One team works at a time and passes the work on"),
    ("cascade", "A result goes on to the next team until one is good enough"),
    ("dag", "Work with stated dependencies, in their order"),
    ("debate", "Teams argue for and against, a judge decides"),
    ("hierarchical", "Leads divide the task among their own teams"),
    ("map-reduce", "The task is cut into pieces, the results are put together"),
    ("scatter-gather", "Questions go to all teams, their answers to one"),
    ("supervisor", "One team watches the others and steps in"),
    ("reflection", "A team works, looks at its result and works again"),
    ("red-team", "One team builds, another tries to break it"),
    ("verifier", "Every result is checked by another team"),
    ("auction", "Teams bid for work, the best offer gets it"),
    ("escalation", "What a team cannot do goes to a stronger one"),
    ("saga", "Steps with a way back: a failure undoes what went before"),
    ("circuit-breaker", "After repeated failures no more work goes to a team"),
    ("blackboard", "Teams share one board and add what they know"),
    ("swarm", "Teams follow simple rules without a lead"),
    ("review-loop", "Work and review alternate until nothing is left to say"),
];

/// # Errors
/// A wrong command line or value; a run, which is not supported.
pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut list, mut teams) = (false, 2u32);
    let (mut task, mut timeout, mut pattern) = (None, "300s".to_string(), "fan-out".to_string());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("list") => list = true,
            Long("pattern") => pattern = parser.value()?.string()?,
            Long("task") => task = Some(parser.value()?.string()?),
            Long("teams") => teams = parser.value()?.parse()?,
            Long("timeout") => timeout = parser.value()?.string()?,
            Long("cli" | "broker-bin" | "broker-name" | "channels" | "project-dir" | "broker-runtime-dir") => {
                parser.value()?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if list {
        return super::show(listed().as_bytes());
    }
    Err(refusal(teams, task.as_deref(), &timeout, &pattern).into())
}

fn listed() -> String {
    let lines = PATTERNS.iter().map(|(id, about)| format!("- {id:<15} {about}\n"));
    std::iter::once("Available swarm patterns:\n".to_string()).chain(lines).collect()
}

/// Why nothing is run: the first thing that is wrong, in the order in which a run would look.
fn refusal(teams: u32, task: Option<&str>, timeout: &str, pattern: &str) -> Fatal {
    let ids: Vec<&str> = PATTERNS.iter().map(|(id, _)| *id).collect();
    let known = ids.contains(&pattern.trim().to_ascii_lowercase().as_str());
    Fatal::new(if teams < 1 {
        "--teams must be at least 1".to_string()
    } else if task.is_none_or(|task| task.trim().is_empty()) {
        "--task is required unless --list is used".into()
    } else if seconds(timeout).is_none() {
        format!("invalid --timeout '{timeout}': expected seconds, or a number with s, m or h, above 0")
    } else if !known {
        format!("unknown pattern '{}': expected one of {}", pattern.trim(), ids.join(", "))
    } else {
        "running a swarm is not supported; spawn the agents through the broker's API, or see swarm --list".into()
    })
}

fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let (number, unit) =
        units.iter().find_map(|(end, unit)| Some((text.strip_suffix(end)?, *unit))).unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_a_heading_and_padded_names() {
        let text = listed();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines.len()), ("Available swarm patterns:", 25));
        assert!(lines[1].starts_with("- fan-out         The"), "{}", lines[1]);
        assert!(lines[24].starts_with("- review-loop     "), "{}", lines[24]);
    }

    #[test]
    fn what_is_wrong_is_told_in_order() {
        let table = [
            ((0, None, "x", "x"), "--teams must be at least 1"),
            ((1, Some(" "), "x", "x"), "--task is required unless --list is used"),
            ((1, Some("t"), "0s", "x"), "invalid --timeout '0s'"),
            ((1, Some("t"), "2m", "x"), "unknown pattern 'x'"),
            ((1, Some("t"), "7", " DAG "), "running a swarm is not supported"),
        ];
        for ((teams, task, timeout, pattern), part) in table {
            let report = refusal(teams, task, timeout, pattern).report();
            assert!(report.contains(part), "{report}");
        }
        let timeouts = ["300s", "2m", "1h", "9", "0", "", "s", "1d", "-1s", "99999999999999999999h"];
        let read = timeouts.map(seconds);
        assert_eq!(read, [Some(300), Some(120), Some(3600), Some(9), None, None, None, None, None, None]);
    }
}
