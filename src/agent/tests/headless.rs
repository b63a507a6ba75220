//! Agents without terminal: one message, one run, one end.

use super::*;
use std::os::unix::fs::PermissionsExt;

/// An agent whose `claude` or `opencode` is this script. The directory goes with the scratch.
fn start(scratch: &Scratch, cli: &str, script: &str, args: &[&str]) -> Stage {
    let path = scratch.file(cli);
    // A child that is forked meanwhile would hold it open for writing, and nobody could execute it.
    let guard = super::super::spawn_lock();
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a program");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    drop(guard);
    let launch = Launch { headless: true, skip_relay_prompt: true, ..launch_of(&path.to_string_lossy(), args) };
    let mut stage = Stage::prepare(launch, Timing::default(), None);
    stage.until("prepared", |note| *note == AgentNote::Prepared);
    let identity = [("RELAY_AGENT_TOKEN", "at_live_x"), ("RELAY_AGENT_NAME", "alice"), ("KEPT", "yes")];
    stage.order(&identity, &[]);
    stage.until("serving", |note| *note == AgentNote::Serving { pid: None });
    stage.until("ready", |note| *note == AgentNote::Ready);
    stage
}

fn end(stage: &mut Stage) -> AgentNote {
    stage.until("exit", |note| matches!(note, AgentNote::Exited { .. }))
}

/// The lines of one stream.
fn lines(stage: &Stage, of: &str) -> Vec<String> {
    let line = |note: &AgentNote| match note {
        AgentNote::Line { stream, chunk, .. } if *stream == of => Some(chunk.clone()),
        _ => None,
    };
    stage.seen.iter().filter_map(|(_, note)| line(note)).collect()
}

fn finished(stage: &Stage) -> Vec<Result<(), String>> {
    let result = |note: &AgentNote| match note {
        AgentNote::Finished { delivery_id, result } if delivery_id == "d1" => Some(result.clone()),
        _ => None,
    };
    stage.seen.iter().filter_map(|(_, note)| result(note)).collect()
}

#[test]
fn the_first_message_is_the_prompt_of_the_only_run() {
    let scratch = Scratch::new("headless");
    let script = r#"for word; do echo "$word"; done; env | grep -E "^(RELAY_AGENT|KEPT|OPENCODE_PERM)"
cat; echo oops >&2; printf "no end""#;
    for (cli, first) in [("claude", &["-p", "--dangerously-skip-permissions"][..]), ("opencode", &["run"])] {
        let mut stage = start(&scratch, cli, script, &["--x"]);
        stage.inject(message("d1", "a body of\ttwo words"));
        stage.inject(message("d2", "never run"));
        assert_eq!(end(&mut stage), AgentNote::Exited { code: Some(0), signal: None });
        let mut expected: Vec<&str> = [first, &["--x", "a body of\ttwo words", "KEPT=yes"]].concat();
        if cli == "opencode" {
            expected.push(r#"OPENCODE_PERMISSION={"*":"allow","external_directory":{"*":"allow"}}"#);
        }
        let mut said = lines(&stage, "stdout");
        assert_eq!(said.pop().as_deref(), Some("no end"), "{}", stage.story());
        said.sort();
        expected.sort();
        assert_eq!(said, expected, "{}", stage.story());
        assert_eq!(lines(&stage, "stderr"), ["oops"]);
        assert_eq!(finished(&stage), [Ok(())]);
        let taken = |id: &str| {
            stage.seen.iter().any(|(_, n)| matches!(n, AgentNote::Taken { delivery_id, .. } if delivery_id == id))
        };
        assert!(taken("d1") && !taken("d2"), "{}", stage.story());
    }
}

#[test]
fn a_bad_end_and_a_failed_start_are_told_apart() {
    let scratch = Scratch::new("headless");
    let mut stage = start(&scratch, "claude", "exit 7", &[]);
    stage.inject(message("d1", "x"));
    assert_eq!(end(&mut stage), AgentNote::Exited { code: Some(7), signal: None });
    let reason = finished(&stage).pop().expect("a result").expect_err("a reason");
    assert!(reason.ends_with("claude exited with code 7"), "{reason}");

    let mut stage = start(&scratch, "claude", "exit 0", &[]);
    // More than the kernel takes as one argument.
    stage.inject(message("d1", &"x".repeat(200 << 10)));
    assert_eq!(end(&mut stage), AgentNote::Exited { code: Some(1), signal: None });
    let reason = finished(&stage).pop().expect("a result").expect_err("a reason");
    assert!(reason.starts_with("failed to spawn "), "{reason}");
    assert!(!stage.seen.iter().any(|(_, note)| matches!(note, AgentNote::Taken { .. })), "{}", stage.story());
}

#[test]
fn a_message_is_no_option_of_the_program() {
    let scratch = Scratch::new("headless");
    let mut stage = start(&scratch, "claude", r#"for word; do echo "$word"; done"#, &[]);
    stage.inject(message("d1", "--help"));
    end(&mut stage);
    assert_eq!(lines(&stage, "stdout"), ["-p", "--dangerously-skip-permissions", "--", "--help"]);
}

#[test]
fn long_lines_come_in_pieces_of_whole_characters() {
    let scratch = Scratch::new("headless");
    let script = r#"printf a; i=0; while [ $i -lt 20000 ]; do printf '\303\244'; i=$((i+1)); done; printf '\r\nend\n'"#;
    let mut stage = start(&scratch, "claude", script, &[]);
    stage.inject(message("d1", "x"));
    end(&mut stage);
    let mut said = lines(&stage, "stdout");
    assert_eq!(said.pop().as_deref(), Some("end"));
    assert!(said.len() > 1 && said.iter().all(|piece| piece.len() <= (16 << 10) + 4), "{}", said.len());
    assert_eq!(said.concat(), format!("a{}", "ä".repeat(20_000)));
}

#[test]
fn a_release_ends_the_whole_tree_of_the_program() {
    let scratch = Scratch::new("headless");
    let (child, far) = (scratch.file("child"), scratch.file("far"));
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; setsid sh -c 'trap \"\" TERM; echo $$ > {}; sleep 1000 & wait' & wait; wait",
        child.display(),
        far.display()
    );
    let mut stage = start(&scratch, "claude", &script, &[]);
    stage.inject(message("d1", "x"));
    let pids = [number_in(&child), number_in(&far)];
    stage.release();
    for pid in pids {
        assert!(!is_alive(pid), "{pid} lives; {}", stage.story());
    }
    // The end says it; the run neither succeeded nor failed by itself.
    assert_eq!(finished(&stage), []);
}

#[test]
fn a_release_before_the_first_message_runs_nothing() {
    let scratch = Scratch::new("headless");
    let mut stage = start(&scratch, "claude", "exit 7", &[]);
    assert_eq!(stage.release(), (None, None));
}

#[test]
fn what_outlives_a_good_end_is_ended_with_the_agent() {
    let scratch = Scratch::new("headless");
    let left = scratch.file("left");
    let mut stage = start(&scratch, "claude", &format!("setsid sleep 1000 & echo $! > {}", left.display()), &[]);
    stage.inject(message("d1", "x"));
    assert_eq!(end(&mut stage), AgentNote::Exited { code: Some(0), signal: None });
    assert!(!is_alive(number_in(&left)), "{}", stage.story());
    assert_eq!(finished(&stage), [Ok(())]);
}

#[test]
fn r14_the_last_lines_are_told_before_the_end() {
    let scratch = Scratch::new("headless");
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; echo no credit; exit 7";
    let mut stage = start(&scratch, "claude", script, &[]);
    stage.inject(message("d1", "x"));
    end(&mut stage);
    let words: Vec<_> = stage
        .seen
        .iter()
        .filter_map(|(_, note)| if let AgentNote::LastWords(words) = note { Some(words) } else { None })
        .collect();
    assert_eq!(words.len(), 1, "{}", stage.story());
    let output = &words[0].output;
    assert!(output.contains("line 2999\nline 3000") && output.contains("no credit"), "{output}");
    assert!(output.len() <= 2_048 && output.len() > 1_500, "{}", output.len());
}
