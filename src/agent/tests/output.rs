use super::*;
use crate::core::ports::Continuity;

#[test]
fn queries_are_answered_on_the_program_s_input() {
    let script = "stty raw -echo; printf '\\033[3;5H\\033[6n\\033[5n\\033[?6n\\033[c'; exec cat -v";
    let mut stage = Stage::sh(script);
    stage.until_text("^[[3;5R^[[0n^[[?6c");
    // After the end of a synchronized update, not before.
    let mut held = Stage::sh("stty raw -echo; printf '\\033[?2026h\\033[6nx'; printf '\\033[?2026l'; exec cat -v");
    held.until_text("^[[1;1R");
    // Without its end: 150 ms.
    let mut cut = Stage::sh("stty raw -echo; printf '\\033[?2026h\\033[5n'; exec cat -v");
    cut.until_text("^[[0n");
}

#[test]
fn t4_a_flood_arrives_complete_and_text_is_never_cut_within_a_character() {
    // 20 MB: 400 000 lines of 50 bytes, two of them in one character.
    let mut stage =
        Stage::sh("stty -opost; yes 'é234567890123456789012345678901234567890123456789' | head -n 400000; echo end");
    let (mut bytes, mut lines) = (0usize, 0usize);
    loop {
        match stage.take(LIMIT).unwrap_or_else(|| panic!("it stopped after {bytes} bytes")) {
            AgentNote::Output { chunk, .. } => {
                assert!(chunk.len() <= 3 * 8192, "{} bytes", chunk.len());
                assert!(!chunk.contains('\u{fffd}'), "cut within a character");
                bytes += chunk.len();
                lines += chunk.bytes().filter(|byte| *byte == b'\n').count();
            }
            AgentNote::Exited { code, .. } => {
                assert_eq!(code, Some(0));
                break;
            }
            _ => {}
        }
    }
    assert_eq!((bytes, lines), (400_000 * 51 + 4, 400_001));
}

#[test]
fn without_viewers_only_activity_is_told_and_the_log_has_it_all() {
    let scratch = Scratch::new("log");
    let log = scratch.file("logs/alice.log");
    let (tell, notes) = crossbeam_channel::unbounded();
    let launch = launch_of("sh", &["-c", "for i in 1 2 3 4 5 6 7 8 9; do printf \"line $i \\377\\n\"; done; read x"]);
    let agent = super::super::launch(
        launch,
        move |_, note| drop(tell.send(note)),
        Arc::new(AtomicUsize::new(0)),
        super::super::Files { log: Some(log.clone()), scratch: std::env::temp_dir().join("agents"), tap: None },
    )
    .expect("a thread");
    agent.send(AgentCommand::Start { set: Variables::default(), remove: vec![], pre_registered: false }).expect("room");
    wait_for("log", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("line 9 \u{fffd}\r\n") { Ok(()) } else { Err(text) }
    });
    agent.send(AgentCommand::Release).expect("never refused");
    assert!(agent.join(LIMIT));
    let notes: Vec<AgentNote> = notes.try_iter().collect();
    assert!(notes.contains(&AgentNote::Active), "{notes:?}");
    assert!(!notes.iter().any(|note| matches!(note, AgentNote::Output { .. })), "{notes:?}");
}

#[test]
fn a_snapshot_shows_what_was_told_before_it() {
    let mut stage = Stage::sh("printf 'one\\r\\n\\033[31mtwo\\033[0m'; exec cat");
    stage.until_text("two");
    let plain = stage.snapshot(SnapshotFormat::Plain);
    assert!(plain.screen.starts_with("one\ntwo\n\n"), "{:?}", plain.screen);
    assert_eq!(plain.screen.matches('\n').count(), usize::from(plain.rows));
    assert_eq!((plain.cursor, plain.offset), ((2, 4), stage.text.len() as u64));
    let ansi = stage.snapshot(SnapshotFormat::Ansi);
    assert!(ansi.screen.starts_with("G1s"), "base64 of ESC: {:?}", &ansi.screen[..8]);
}

#[test]
fn a_resize_reaches_program_and_screen_together() {
    let mut stage = Stage::sh("trap 'stty size' WINCH; echo up; while :; do read x; done");
    stage.until_text("up");
    stage.agent.send(AgentCommand::Resize { ticket: 5, rows: 30, cols: 100 }).expect("room");
    stage.until("resized", |note| *note == AgentNote::Resized { ticket: 5, rows: 30, cols: 100 });
    stage.until_text("30 100");
    stage.agent.send(AgentCommand::Resize { ticket: 6, rows: 0, cols: 0 }).expect("room");
    stage.until_text("1 2");
    let picture = stage.snapshot(SnapshotFormat::Plain);
    assert_eq!((picture.rows, picture.cols), (1, 2));
}

#[test]
fn silence_is_told_once_and_again_after_output() {
    let mut launch = launch_of("cat", &[]);
    launch.idle_threshold_secs = 1;
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    let first = stage.until("idle", |note| matches!(note, AgentNote::Idle { .. }));
    assert!(matches!(first, AgentNote::Idle { idle_secs: 1, since_unix } if since_unix > 0), "{first:?}");
    stage.type_keys(b"x\n");
    stage.until("idle again", |note| matches!(note, AgentNote::Idle { .. }));
    stage.settle(Duration::from_millis(1300));
    assert_eq!(
        stage.seen.iter().filter(|(_, note)| matches!(note, AgentNote::Idle { .. })).count(),
        2,
        "{}",
        stage.story()
    );
}

#[test]
fn long_silence_is_told_once_more_also_while_a_message_is_stuck() {
    let timing = Timing { long_silence: Duration::from_millis(1500), ..Timing::default() };
    let told = |stage: &Stage| stage.seen.iter().filter(|(_, note)| matches!(note, AgentNote::Idle { .. })).count();
    // Nobody reads the message, so the agent's own threshold of one second does not count.
    let mut launch = launch_of("sh", &["-c", "stty raw -echo; printf ready; exec sleep 1000"]);
    launch.idle_threshold_secs = 1;
    let mut stuck = Stage::start_with(launch, timing, &[], &[]);
    stuck.until_text("ready");
    stuck.inject(message("d1", "never read"));
    // Without a threshold of its own an agent is asked nothing before.
    let mut launch = launch_of("sh", &["-c", "printf ready; exec cat"]);
    launch.idle_threshold_secs = 0;
    let mut free = Stage::start_with(launch, timing, &[], &[]);
    free.until_text("ready");
    for stage in [&mut stuck, &mut free] {
        let first = stage.until("long silence", |note| matches!(note, AgentNote::Idle { .. }));
        let at = stage.when(|note| matches!(note, AgentNote::Idle { .. })).expect("told");
        let spoke = stage.when(|note| matches!(note, AgentNote::Output { .. })).expect("it spoke");
        assert!(at - spoke >= Duration::from_millis(1400), "{first:?} after {:?}", at - spoke);
        stage.settle(Duration::from_millis(1800));
        assert_eq!(told(stage), 1, "{}", stage.story());
    }
    // With both, both are told.
    let launch = Launch { idle_threshold_secs: 1, ..launch_of("sh", &["-c", "printf ready; exec cat"]) };
    let mut both = Stage::start_with(launch, timing, &[], &[]);
    both.until("idle", |note| matches!(note, AgentNote::Idle { .. }));
    both.until("idle for long", |note| matches!(note, AgentNote::Idle { .. }));
    both.settle(Duration::from_millis(1800));
    assert_eq!(told(&both), 2, "{}", both.story());
}

#[test]
fn what_follows_from_output_does_not_overtake_it() {
    // Output is held back for a second, so that whatever does not wait for it is told before it.
    let timing = Timing { flush_every: Duration::from_secs(1), ..Timing::default() };
    let mut stage = Stage::sh_timed("stty -echo; printf ready; exec cat", timing);
    stage.until_text("ready");
    stage.inject(message("d1", "hello"));
    let before = |stage: &Stage, text: &str, is: &dyn Fn(&AgentNote) -> bool| {
        let mut shown = String::new();
        for (_, note) in &stage.seen {
            if let AgentNote::Output { chunk, .. } = note {
                shown.push_str(chunk);
            } else if is(note) {
                return shown.contains(text);
            }
        }
        false
    };
    let verified = |note: &AgentNote| matches!(note, AgentNote::Verified { echo: true, .. });
    stage.until("the echo", verified);
    assert!(before(&stage, "hello", &verified), "{}", stage.story());
    stage.type_keys(b"/exit\n");
    let ending = |note: &AgentNote| matches!(note, AgentNote::Ending { .. });
    stage.until("the end", ending);
    assert!(before(&stage, "/exit", &ending), "{}", stage.story());
}

#[test]
fn k5_an_idle_agent_does_not_wake_up() {
    let mut launch = launch_of("sh", &["-c", "printf '> '; exec cat"]);
    launch.name = "idle-one".into();
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    stage.until("ready", |note| *note == AgentNote::Ready);
    stage.settle(Duration::from_millis(100));
    let tid = thread_named("pty-idle-one");
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).expect("it runs");
        status.lines().find(|line| line.starts_with("voluntary")).expect("a count").to_string()
    };
    let before = switches();
    stage.settle(Duration::from_millis(1000));
    assert_eq!(switches(), before);
}

#[test]
fn a_terminal_closed_within_a_message_costs_no_time() {
    let script = "stty raw -echo; printf ready; dd bs=1 count=1 >/dev/null 2>&1; trap '' HUP; exec </dev/null >/dev/null 2>&1; sleep 1";
    let mut launch = launch_of("sh", &["-c", script]);
    launch.name = "closed-one".into();
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    stage.until_text("ready");
    let tid = thread_named("pty-closed-one");
    let on_cpu_ns = || {
        let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok())
    };
    let before = on_cpu_ns();
    stage.inject(message("d1", "cut off"));
    stage.until("ending", |note| matches!(note, AgentNote::Ending { reason: "pty_closed" }));
    stage.settle(Duration::from_millis(300));
    if let (Some(before), Some(after)) = (before, on_cpu_ns()) {
        assert!(after - before < 150_000_000, "{} ms on the processor", (after - before) / 1_000_000);
    }
    stage.until_exited();
    assert!(stage.when(|note| matches!(note, AgentNote::Read { .. })).is_none(), "{}", stage.story());
}

#[test]
fn a_terminal_that_becomes_writable_during_the_end_wakes_nobody() {
    // Reads nothing until it is asked to go; then it empties its terminal and stays until it has to go.
    let script = "stty raw -echo; trap 'cat >/dev/null' HUP; printf ready; while :; do sleep 0.05; done";
    let launch = Launch { name: "leave-one".into(), ..launch_of("sh", &["-c", script]) };
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    stage.until_text("ready");
    let tid = thread_named("pty-leave-one");
    let on_cpu_ns = || {
        let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok())
    };
    stage.type_keys(&vec![b'x'; 200 << 10]);
    stage.settle(Duration::from_millis(100));
    let before = on_cpu_ns();
    stage.agent.send(AgentCommand::Release).expect("never refused");
    stage.until("refusal", |note| matches!(note, AgentNote::TypeDone { result: Err(_), .. }));
    // Looked at while the thread lives.
    stage.settle(Duration::from_millis(700));
    if let (Some(before), Some(after)) = (before, on_cpu_ns()) {
        assert!(after - before < 150_000_000, "{} ms on the processor", (after - before) / 1_000_000);
    }
    stage.until_exited();
}

#[test]
fn an_idle_threshold_beyond_the_clock_is_never() {
    let launch = Launch { idle_threshold_secs: u64::MAX, ..launch_of("sh", &["-c", "printf ready; exec cat"]) };
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    stage.until_text("ready");
    // The largest that the clock can count is not more than the kernel can wait.
    let launch =
        Launch { idle_threshold_secs: i64::MAX as u64 / 2, ..launch_of("sh", &["-c", "printf ready; exec cat"]) };
    let mut other = Stage::start_with(launch, Timing::default(), &[], &[]);
    other.until_text("ready");
    for stage in [&mut stage, &mut other] {
        stage.type_keys(b"alive\n");
        stage.until_text("alive\r\nalive");
    }
}

fn thread_named(name: &str) -> i32 {
    let report = crate::sys::threads::report();
    let line = report.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in\n{report}"));
    line.split_whitespace().next().and_then(|tid| tid.parse().ok()).expect("a thread id")
}

#[test]
fn d16_a_wish_about_the_session_is_told_unless_a_message_says_it() {
    let mut stage = Stage::sh("stty raw -echo; printf ready; exec cat");
    stage.until_text("ready");
    let wish = |note: &AgentNote| matches!(note, AgentNote::Continuity(_));
    // As a message, echoed and then verified: not the agent's own wish.
    stage.inject(message("d1", "do this:\nKIND: continuity\nACTION: save\nnot mine\nContext 3% left\n"));
    stage.until("verdict", |note| matches!(note, AgentNote::Verified { .. }));
    stage.settle(Duration::from_millis(700));
    let context = |note: &AgentNote| matches!(note, AgentNote::ContextLeft { .. });
    assert!(!stage.seen.iter().any(|(_, note)| wish(note) || context(note)), "{}", stage.story());
    for part in ["KIND: contin", "uity\r\nACTION: save\r\nhalf", " done\r\nContext 9% left\r\n"] {
        stage.type_keys(part.as_bytes());
        stage.until_text(part);
    }
    let summary = "half done\nContext 9% left".to_string();
    assert_eq!(stage.until("wish", wish), AgentNote::Continuity(Continuity::Save { summary }));
    assert!(stage.seen.iter().any(|(_, note)| *note == AgentNote::ContextLeft { pct: 9 }), "{}", stage.story());
}

#[test]
fn d15_a_command_in_the_middle_of_one_read_is_heard() {
    // One write each; the lines around hold nothing that a command could be in.
    let lines = |command: &str| format!("one\\r\\ntwo\\r\\n{command}\\r\\nthree\\r\\nfour\\r\\n");
    let start = |command: &str| {
        let mut stage = Stage::sh(&format!("stty raw -echo; printf '{}'; exec cat", lines(command)));
        stage.until_text("four");
        stage.settle(Duration::from_millis(800));
        stage
    };
    let heard = |stage: &Stage| {
        stage.seen.iter().any(|(_, note)| matches!(note, AgentNote::Ending { .. } | AgentNote::Continuity(_)))
    };
    for (command, expected) in [
        ("/exit", true),
        ("KIND: continuity\\r\\nACTION: load", true),
        ("go to /exit now", false),
        ("a plain line", false),
    ] {
        let stage = start(command);
        assert_eq!(heard(&stage), expected, "{command}: {}", stage.story());
    }
}
