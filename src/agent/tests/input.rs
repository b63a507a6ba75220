use super::*;

use rustix::process::Signal;

/// Copies its raw input to its output: what is typed shows byte for byte, `cat -v` style.
const RECORDER: &str = "stty raw -echo; printf ready; exec cat -v";

fn is_typed(note: &AgentNote) -> bool {
    matches!(note, AgentNote::Typed { .. })
}

pub fn is_read(note: &AgentNote) -> bool {
    matches!(note, AgentNote::Read { .. })
}

pub fn count(stage: &Stage, is: impl Fn(&AgentNote) -> bool) -> usize {
    stage.seen.iter().filter(|(_, note)| is(note)).count()
}

#[test]
fn l13_enter_follows_body_after_50_ms_once_each() {
    // Output is shown at once, so that it can be timed.
    let timing = Timing { flush_every: Duration::ZERO, ..Timing::default() };
    let mut stage = Stage::sh_timed(RECORDER, timing);
    stage.until_text("ready");
    stage.inject(message("d1", "hello\nthere"));
    stage.until("typed", is_typed);
    stage.until("read", is_read);
    stage.until_text("^M");
    let text = stage.text.clone();
    assert!(text.ends_with("</system-reminder>\nRelay message from bob [m_d1]: hello\nthere^M"), "{text:?}");
    assert_eq!(text.matches("hello").count(), 1, "{text:?}");
    let chunk_with =
        |part: &str| stage.when(|note| matches!(note, AgentNote::Output { chunk, .. } if chunk.contains(part)));
    let (body, enter) = (chunk_with("there").expect("body"), chunk_with("^M").expect("enter"));
    assert!(enter - body >= Duration::from_millis(35), "{:?} apart", enter - body);
    // The second message has the short hint.
    stage.inject(message("d2", "again"));
    stage.until_text("again^M");
    assert!(stage.text.contains("^M<system-reminder>Reply via Agent Relay MCP"), "{}", stage.text);
}

#[test]
fn t5_bracketed_paste_is_used_when_the_program_asked_for_it() {
    let mut stage = Stage::sh("stty raw -echo; printf '\\033[?2004hready'; exec cat -v");
    stage.until_text("ready");
    stage.inject(message("d1", "pasted \x1b[201~ text"));
    stage.until_text("^M");
    assert!(stage.text.contains("ready^[[200~<system-reminder>"), "{}", stage.text);
    assert!(stage.text.ends_with("pasted [201~ text^[[201~^M"), "{}", stage.text);
}

#[test]
fn d10_t1_a_remote_sender_cannot_press_keys() {
    let mut stage = Stage::sh(RECORDER);
    stage.until_text("ready");
    let all: String = (0u32..0x20).chain(0x7f..0xa0).filter_map(char::from_u32).collect();
    let injection =
        Injection { from: all.clone(), target: all.clone(), workspace: Some(all.clone()), ..message("d1", &all) };
    stage.inject(injection);
    stage.until_text("^M");
    let typed = stage.text.strip_prefix("ready").expect("first").strip_suffix("^M").expect("last");
    assert!(!typed.contains('^') && !typed.contains("M-"), "{typed:?}");
}

#[test]
fn a_steer_presses_escape_twice_first_and_overtakes() {
    let mut stage = Stage::sh(RECORDER);
    stage.until_text("ready");
    stage.inject(Injection { mode: DeliveryMode::Steer, ..message("d1", "stop") });
    stage.until_text("stop^M");
    assert!(stage.text.starts_with("ready^[^[<system-reminder>"), "{}", stage.text);
    // A suggestion in the composer holds a waiting message, not a steer.
    let timing = Timing { suggestion_hold: Duration::from_millis(1500), ..Timing::default() };
    let mut stage =
        Stage::sh_timed("stty raw -echo; printf '\\033[7mT\\033[27m\\033[2mry it\\033[0m'; exec cat -v", timing);
    stage.until_text("ry it");
    let queued = Instant::now();
    stage.inject(message("d1", "waits"));
    stage.inject(Injection { mode: DeliveryMode::Steer, ..message("d2", "steers") });
    // The steer's own echo takes the suggestion off the screen, so the message follows at once.
    stage.until_text("waits^M");
    assert!(stage.text.find("steers^M") < stage.text.find("waits"), "{}", stage.text);
    assert!(queued.elapsed() < Duration::from_millis(1500), "{:?}", queued.elapsed());
}

#[test]
fn a_suggestion_is_cleared_by_one_escape_after_its_time() {
    let timing = Timing { suggestion_hold: Duration::from_millis(300), ..Timing::default() };
    let mut stage =
        Stage::sh_timed("stty raw -echo; printf '\\033[7mT\\033[27m\\033[2mry it\\033[0m'; exec cat -v", timing);
    stage.until_text("ry it");
    let queued = Instant::now();
    stage.inject(message("d1", "text"));
    stage.until_text("text^M");
    assert!(queued.elapsed() >= Duration::from_millis(450), "{:?}", queued.elapsed());
    assert!(stage.text.contains("^[<system-reminder>") && !stage.text.contains("^[^["), "{}", stage.text);
}

#[test]
fn keys_wait_behind_a_message_and_come_in_order() {
    let mut stage = Stage::sh(RECORDER);
    stage.until_text("ready");
    stage.inject(message("d1", "unit"));
    let tickets: Vec<u64> = ["a", "b", "c"].iter().map(|key| stage.type_keys(key.as_bytes())).collect();
    stage.until_text("unit^Mabc");
    for ticket in tickets {
        let done = AgentNote::TypeDone { ticket, result: Ok(1) };
        if !stage.seen.iter().any(|(_, note)| *note == done) {
            stage.until("done", |note| *note == done);
        }
    }
}

#[test]
fn a_message_is_read_only_when_the_program_reads_it() {
    for script in [RECORDER, "printf ready; exec cat"] {
        let mut stage = Stage::sh(script);
        stage.until_text("ready");
        signal(stage.pid(), Signal::STOP);
        stage.inject(message("d1", "wait for it"));
        stage.until("typed", is_typed);
        stage.settle(Duration::from_millis(700));
        assert_eq!(count(&stage, is_read), 0, "{script}: {}", stage.story());
        signal(stage.pid(), Signal::CONT);
        let note = stage.until("read", is_read);
        assert_eq!(note, AgentNote::Read { delivery_id: "d1".into() });
    }
}

#[test]
fn l1_an_exit_is_no_proof_of_reading() {
    let mut stage = Stage::sh(RECORDER);
    stage.until_text("ready");
    signal(stage.pid(), Signal::STOP);
    stage.inject(message("d1", "never read"));
    stage.until("typed", is_typed);
    signal(stage.pid(), Signal::KILL);
    assert_eq!(stage.until_exited(), (None, Some(9)));
    assert_eq!(count(&stage, is_read), 0, "{}", stage.story());
}

#[test]
fn l1_what_was_read_before_a_release_is_proved_although_it_follows_at_once() {
    let scratch = Scratch::new("at-once");
    for round in 0..8 {
        let file = scratch.file(&round.to_string());
        let mut stage = Stage::sh(&format!("stty raw -echo; printf ready; exec cat > '{}'", file.display()));
        stage.until_text("ready");
        stage.inject(message("d1", "read and then released"));
        // Watched without a pause: the release shall come before the first look at the terminal.
        let deadline = Instant::now() + LIMIT;
        while !std::fs::read(&file).is_ok_and(|bytes| bytes.ends_with(b"\r")) {
            assert!(Instant::now() < deadline, "{}", stage.story());
            std::thread::yield_now();
        }
        if round % 2 == 0 {
            stage.release();
        } else {
            stage.agent.kill_now();
            stage.until_exited();
        }
        assert_eq!(count(&stage, is_read), 1, "round {round}: {}", stage.story());
    }
}

#[test]
fn d3_t10_a_program_that_never_reads_stalls_only_its_message() {
    let timing = Timing { stall: Duration::from_millis(600), ..Timing::default() };
    let mut stage = Stage::sh_timed("stty raw -echo; printf ready; exec sleep 1000", timing);
    stage.until_text("ready");
    stage.inject(message("d1", "small"));
    stage.until("stalled", |note| *note == AgentNote::Stalled { delivery_id: "d1".into() });
    let typed = stage.when(is_typed).expect("typed");
    let stalled = stage.when(|note| matches!(note, AgentNote::Stalled { .. })).expect("stalled");
    assert!(stalled - typed >= Duration::from_millis(450), "{:?}, the first note may be taken late", stalled - typed);
    // More than the terminal takes: the rest stays with us, and everything else goes on.
    stage.inject(message("d2", &"x\n".repeat(20_000)));
    stage.settle(Duration::from_millis(300));
    let asked = Instant::now();
    stage.snapshot(SnapshotFormat::Plain);
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    assert_eq!((count(&stage, is_typed), count(&stage, is_read)), (1, 0), "{}", stage.story());
    let first_stalled = AgentNote::Stalled { delivery_id: "d1".into() };
    assert_eq!(count(&stage, |note| *note == first_stalled), 1, "{}", stage.story());
    let released = Instant::now();
    assert_eq!(stage.release(), (None, Some(1)));
    assert!(released.elapsed() < Duration::from_secs(1), "{:?}", released.elapsed());
}

#[test]
fn t3_a_long_message_is_complete_once_the_program_reads() {
    let scratch = Scratch::new("long");
    let go = scratch.file("go");
    let script =
        format!("stty raw -echo; printf ready; while [ ! -e '{}' ]; do sleep 0.05; done; exec cat", go.display());
    let mut stage = Stage::sh(&script);
    stage.until_text("ready");
    let body: String = (0..6000).map(|line| format!("{line}\n")).collect();
    stage.inject(message("d1", &body));
    let ticket = stage.type_keys(b"after");
    stage.settle(Duration::from_millis(300));
    assert_eq!(count(&stage, is_typed), 0, "{}", stage.story());
    std::fs::write(&go, "").expect("a file");
    stage.until_text("after");
    assert!(stage.text.contains(&format!("]: {body}\rafter")), "complete and in one piece");
    if count(&stage, |note| matches!(note, AgentNote::TypeDone { .. })) == 0 {
        stage.until("done", |note| *note == AgentNote::TypeDone { ticket, result: Ok(5) });
    }
}

#[test]
fn keys_beyond_the_bound_are_refused() {
    let mut stage = Stage::sh("stty raw -echo; printf ready; exec sleep 1000");
    stage.until_text("ready");
    // Three times the queue's limit of a MiB, of which the terminal itself takes 20 KiB.
    for _ in 0..6 {
        stage.type_keys(&vec![b'x'; 512 << 10]);
    }
    let refused = stage.until("refusal", |note| matches!(note, AgentNote::TypeDone { result: Err(_), .. }));
    assert!(format!("{refused:?}").contains("pty_write_queue_full"), "{refused:?}");
}

#[test]
fn t2_a_line_that_the_kernel_would_cut_is_not_typed() {
    let long = "x".repeat(8000);
    let timing = Timing {
        ready_limit: Duration::from_millis(300),
        line_mode_hold: Duration::from_millis(300),
        ..Timing::default()
    };
    let mut stage = Stage::sh_timed("printf ready; exec cat", timing);
    stage.until_text("ready");
    stage.inject(message("d1", &long));
    let failed = stage.until("failure", |note| matches!(note, AgentNote::InjectFailed { .. }));
    assert!(format!("{failed:?}").contains("line mode"), "{failed:?}");
    assert!(!stage.text.contains('x'), "{}", stage.text);
    // Many short lines of the same length go through.
    stage.inject(message("d2", &"short line\n".repeat(800)));
    stage.until("read", is_read);
    // A program that leaves line mode in time gets the long line whole.
    let mut stage = Stage::sh("printf ready; read x; stty raw -echo; printf raw; exec cat");
    stage.until_text("ready");
    stage.inject(message("d3", &long));
    stage.type_keys(b"go\n");
    stage.until_text("raw");
    stage.until_text(&format!("{long}\r"));
}

#[test]
fn an_interrupt_key_that_discards_a_message_is_no_reading() {
    let mut stage = Stage::sh("trap : INT; printf ready; while :; do sleep 1000; done");
    stage.until_text("ready");
    stage.inject(message("d1", "in line mode, unread"));
    stage.until("typed", is_typed);
    stage.settle(Duration::from_millis(50));
    stage.type_keys(b"\x03");
    let failed = stage.until("failure", |note| matches!(note, AgentNote::InjectFailed { .. }));
    assert!(format!("{failed:?}").contains("interrupt key"), "{failed:?}");
    stage.settle(Duration::from_millis(600));
    assert_eq!(count(&stage, is_read), 0, "{}", stage.story());
    // A second try of the same message has a verdict of its own.
    stage.inject(message("d1", "again"));
    stage.until("verdict", |note| matches!(note, AgentNote::Verified { .. }));
}

#[test]
fn an_interrupt_key_after_a_part_was_read_types_nothing_twice() {
    let scratch = Scratch::new("part");
    let seen = scratch.file("seen");
    // One line is taken, the rest lies unread.
    let script = format!(
        "stty -echo; trap : INT; printf ready; read -r x; echo \"$x\" >> '{0}'; printf took; \
         while :; do sleep 1000; done",
        seen.display()
    );
    let mut stage = Stage::sh(&script);
    stage.until_text("ready");
    stage.inject(message("d1", "first\nsecond\nthird"));
    stage.until("typed", is_typed);
    stage.until_text("took");
    stage.type_keys(b"\x03");
    let stalled = stage.until("stalled", |note| matches!(note, AgentNote::Lost { .. }));
    assert_eq!(stalled, AgentNote::Lost { delivery_id: "d1".into() });
    let typed = stage.when(is_typed).expect("typed");
    let told = stage.when(|note| matches!(note, AgentNote::Lost { .. })).expect("stalled");
    assert!(told - typed < Duration::from_secs(4), "by the key, not by time: {:?}", told - typed);
    stage.settle(Duration::from_millis(700));
    let again = |note: &AgentNote| matches!(note, AgentNote::InjectFailed { .. } | AgentNote::Read { .. });
    assert_eq!(count(&stage, again), 0, "{}", stage.story());
    assert_eq!(count(&stage, |note| matches!(note, AgentNote::Lost { .. })), 1, "{}", stage.story());
}

#[test]
fn a_message_right_behind_an_interrupt_key_is_proved() {
    let mut stage = Stage::sh("stty -echo; trap '' INT; printf ready; exec cat");
    stage.until_text("ready");
    for round in 0..10 {
        let id = format!("d{round}");
        stage.type_keys(b"\x03");
        stage.inject(message(&id, "behind the key"));
        stage.until("read", |note| *note == AgentNote::Read { delivery_id: id.clone() });
    }
    assert_eq!(count(&stage, |note| matches!(note, AgentNote::Stalled { .. })), 0, "{}", stage.story());
}

/// Names what the next function does with its terminal, and the file whose appearance lets it go on.
const SWITCH: &str = "BROKER_TEST_SWITCH";
const SWITCH_GO: &str = "BROKER_TEST_SWITCH_GO";

/// No test but a program: started by the tests below, it changes the settings of its terminal in ways that `stty` has not,
/// then copies its input to its output.
#[test]
fn a_program_that_switches_its_terminal() {
    use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};
    let (Some(how), Some(go)) = (std::env::var_os(SWITCH), std::env::var_os(SWITCH_GO)) else { return };
    let terminal = std::io::stdin();
    println!("ready");
    wait_for("sign to go on", || std::fs::metadata(&go).map_err(|error| error.to_string()));
    let mut settings = tcgetattr(&terminal).expect("a terminal");
    settings.make_raw();
    match how.to_str() {
        Some("flush") => tcsetattr(&terminal, OptionalActions::Flush, &settings),
        Some("discard") => tcflush(&terminal, QueueSelector::IFlush),
        _ => tcsetattr(&terminal, OptionalActions::Now, &settings),
    }
    .expect("its own terminal");
    println!("switched");
    std::io::copy(&mut terminal.lock(), &mut std::io::stdout()).expect("its terminal");
}

/// That program, waiting for its sign.
fn switching(how: &str, go: &std::path::Path, timing: Timing) -> Stage {
    let own = std::env::current_exe().expect("our own path");
    let name = "agent::tests::input::a_program_that_switches_its_terminal";
    let launch = launch_of(&format!("'{}'", own.display()), &["--exact", name, "--nocapture"]);
    let set = [(SWITCH, how), (SWITCH_GO, go.to_str().expect("text"))];
    let mut stage = Stage::start_with(launch, timing, &set, &[]);
    stage.until_text("ready");
    stage
}

#[test]
fn l1_input_thrown_away_by_a_change_of_settings_is_no_reading() {
    for how in ["flush", "discard"] {
        let scratch = Scratch::new("flush");
        let mut stage = switching(how, &scratch.file("go"), Timing::default());
        stage.inject(message("d1", "typed too early"));
        stage.until("typed", is_typed);
        stage.settle(Duration::from_millis(100));
        std::fs::write(scratch.file("go"), "").expect("a file");
        stage.until("stalled", |note| *note == AgentNote::Lost { delivery_id: "d1".into() });
        let (typed, told) = (stage.when(is_typed), stage.when(|note| matches!(note, AgentNote::Lost { .. })));
        assert!(told.zip(typed).is_some_and(|(told, typed)| told - typed < Duration::from_secs(4)), "by the flush");
        stage.until_text("switched");
        // It is told once, and what comes after is proved as ever.
        stage.inject(message("d2", "in time"));
        stage.until("read", is_read);
        stage.settle(Duration::from_millis(700));
        let read = AgentNote::Read { delivery_id: "d2".into() };
        assert!(
            stage.seen.iter().filter(|(_, note)| is_read(note)).all(|(_, note)| *note == read),
            "{}",
            stage.story()
        );
        assert_eq!(count(&stage, |note| matches!(note, AgentNote::Lost { .. })), 1, "{}", stage.story());
        assert_eq!(count(&stage, |note| matches!(note, AgentNote::InjectFailed { .. })), 0, "{}", stage.story());
    }
}

#[test]
fn l1_a_change_of_settings_that_keeps_the_input_is_proved_when_it_is_read() {
    let scratch = Scratch::new("keep");
    let mut stage = switching("keep", &scratch.file("go"), Timing::default());
    stage.inject(message("d1", "typed too early"));
    stage.until("typed", is_typed);
    stage.settle(Duration::from_millis(100));
    assert_eq!(count(&stage, is_read), 0, "{}", stage.story());
    std::fs::write(scratch.file("go"), "").expect("a file");
    stage.until("read", is_read);
    stage.until_text("switched");
    assert_eq!(count(&stage, |note| matches!(note, AgentNote::Stalled { .. })), 0, "{}", stage.story());
}

#[test]
fn l1_a_body_thrown_away_before_its_enter_is_no_reading() {
    let scratch = Scratch::new("between");
    let timing = Timing { before_enter: Duration::from_millis(1500), ..Timing::default() };
    let mut stage = switching("flush", &scratch.file("go"), timing);
    stage.inject(message("d1", "without its Enter"));
    stage.until_text("without its Enter");
    std::fs::write(scratch.file("go"), "").expect("a file");
    stage.until_text("switched");
    assert_eq!(count(&stage, is_typed), 0, "{}", stage.story());
    stage.until("typed", is_typed);
    stage.until("stalled", |note| *note == AgentNote::Lost { delivery_id: "d1".into() });
    stage.settle(Duration::from_millis(700));
    assert_eq!(count(&stage, is_read), 0, "{}", stage.story());
}

#[test]
fn the_echo_is_seen_or_its_window_ends() {
    let mut stage = Stage::sh("printf ready; exec cat");
    stage.until_text("ready");
    stage.inject(message("d1", "two\nlines"));
    let note = stage.until("verdict", |note| matches!(note, AgentNote::Verified { .. }));
    assert_eq!(note, AgentNote::Verified { delivery_id: "d1".into(), echo: true });
    let mut sink = Stage::sh("stty raw -echo; printf ready; exec cat >/dev/null");
    sink.until_text("ready");
    sink.inject(message("d2", "unseen"));
    sink.until("read", is_read);
    let note = sink.until("verdict", |note| matches!(note, AgentNote::Verified { .. }));
    assert_eq!(note, AgentNote::Verified { delivery_id: "d2".into(), echo: false });
    let typed = sink.when(is_typed).expect("typed");
    let window = sink.when(|note| matches!(note, AgentNote::Verified { .. })).expect("verdict") - typed;
    assert!((Duration::from_millis(4950)..Duration::from_millis(5600)).contains(&window), "{window:?}");
}

#[test]
fn d5_enter_is_pressed_once_more_only_for_unsubmitted_text() {
    let timing = Timing { second_enter: Duration::from_millis(300), ..Timing::default() };
    let mut stage = Stage::sh_timed("stty raw -echo; printf ready; exec cat", timing);
    stage.until_text("ready");
    stage.inject(message("d1", "taken"));
    stage.until_text("taken\r");
    stage.settle(Duration::from_millis(600));
    assert!(stage.text.ends_with("taken\r"), "the cursor went to the start of the row: {:?}", stage.text);

    let scratch = Scratch::new("enter");
    let seen = scratch.file("seen");
    // Shows all it reads but CRs, which it swallows; keeps a record. One read at a time, so that nothing is buffered.
    let script = format!(
        "stty raw -echo; printf ready; while :; do dd bs=4096 count=1 2>/dev/null | tee -a '{}' | tr -d '\\r'; done",
        seen.display()
    );
    let mut stage = Stage::sh_timed(&script, timing);
    stage.until_text("ready");
    stage.inject(message("d2", "swallowed"));
    stage.until_text("swallowed");
    let typed_twice = || {
        let bytes = std::fs::read(&seen).unwrap_or_default();
        let count = bytes.iter().filter(|byte| **byte == b'\r').count();
        if count == 2 { Ok(()) } else { Err(format!("{count} CR")) }
    };
    wait_for("second Enter", typed_twice);
    // Once, and never after a human typed.
    stage.settle(Duration::from_millis(700));
    typed_twice().expect("exactly one more");
    stage.inject(message("d3", "human"));
    stage.until("typed", |note| *note == AgentNote::Typed { delivery_id: "d3".into() });
    stage.type_keys(b"k");
    stage.settle(Duration::from_millis(700));
    let bytes = std::fs::read(&seen).expect("the record");
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\r').count(), 3);
}

#[test]
fn d15_exit_on_its_own_line_ends_the_agent_but_not_within_a_message() {
    let mut stage = Stage::sh("stty -echo; printf ready; exec cat");
    stage.until_text("ready");
    stage.inject(message("d1", "please print\n/exit\nnow"));
    stage.until("verdict", |note| matches!(note, AgentNote::Verified { .. }));
    stage.type_keys(b"type /exit now\n");
    stage.until_text("type /exit now");
    stage.settle(Duration::from_millis(300));
    assert_eq!(count(&stage, |note| matches!(note, AgentNote::Ending { .. })), 0, "{}", stage.story());
    stage.type_keys(b"/exit\n");
    let ending = stage.until("ending", |note| matches!(note, AgentNote::Ending { .. }));
    assert_eq!(ending, AgentNote::Ending { reason: "agent_requested" });
    assert_eq!(stage.until_exited(), (None, Some(1)));
    assert_eq!(count(&stage, |note| matches!(note, AgentNote::Ending { .. })), 1);
}

#[test]
fn d13_a_hold_leaves_the_terminal_to_the_human() {
    let mut stage = Stage::sh("stty raw -echo; printf ready; exec cat -v");
    stage.until_text("ready");
    let hold = |stage: &Stage, held| stage.agent.send(AgentCommand::Hold(held)).expect("room");
    let given_back = AgentNote::GivenBack { delivery_id: "d1".into() };
    hold(&stage, true);
    stage.inject(message("d1", "has to wait"));
    stage.until("given back", |note| *note == given_back);
    stage.inject(Injection { exempt: true, ..message("d2", "may pass") });
    stage.until("read", |note| *note == AgentNote::Read { delivery_id: "d2".into() });
    // A human's keys pass too.
    stage.type_keys(b"k\r");
    stage.until_text("may pass^Mk^M");
    stage.settle(Duration::from_millis(300));
    assert!(!stage.text.contains("has to wait"), "{}", stage.text);
    hold(&stage, false);
    stage.inject(message("d1", "has to wait"));
    stage.until_text("has to wait^M");

    // What waits at its gate when the human comes is given back as well: what an earlier flush let through passes no new hold.
    let timing = Timing { line_mode_hold: Duration::from_secs(600), ..Timing::default() };
    let mut stage = Stage::sh_timed("printf ready; exec sleep 1000", timing);
    stage.until_text("ready");
    // Longer than the kernel's line: it waits for a raw terminal.
    let long = "x".repeat(5_000);
    stage.inject(Injection { exempt: true, ..message("d2", &long) });
    stage.inject(message("d1", &long));
    stage.settle(Duration::from_millis(100));
    hold(&stage, true);
    stage.until("given back", |note| *note == given_back);
    assert_eq!(count(&stage, |note| matches!(note, AgentNote::GivenBack { .. })), 2, "{}", stage.story());
    // And to something that goes first.
    stage.inject(Injection { exempt: true, ..message("d3", &long) });
    stage.agent.send(AgentCommand::Yield).expect("room");
    let given_back = AgentNote::GivenBack { delivery_id: "d3".into() };
    stage.until("given back", |note| *note == given_back);
    // A question on the screen: no key during the hold, its answer afterwards.
    let ask = "printf 'Do you trust the files in this folder?\\r\\n 1. Yes, I trust it\\r\\n 2. No, exit\\r\\n'";
    let mut stage =
        Stage::sh(&format!("stty raw -echo; printf ready; dd bs=1 count=1 2>/dev/null; {ask}; exec cat -v"));
    stage.until_text("ready");
    hold(&stage, true);
    stage.type_keys(b"g");
    stage.until_text("No, exit");
    stage.settle(Duration::from_millis(600));
    assert!(!stage.text.contains("^M"), "{}", stage.text);
    hold(&stage, false);
    stage.until_text("^M");
}

#[test]
fn d13_no_second_enter_during_a_hold() {
    let timing = Timing { second_enter: Duration::from_millis(300), ..Timing::default() };
    // Swallows CRs, so that every message looks unsubmitted; counts them.
    let scratch = Scratch::new("held-enter");
    let seen = scratch.file("seen");
    let script = format!(
        "stty raw -echo; printf ready; while :; do dd bs=4096 count=1 2>/dev/null | tee -a '{}' | tr -d '\\r'; done",
        seen.display()
    );
    let mut stage = Stage::sh_timed(&script, timing);
    stage.until_text("ready");
    stage.agent.send(AgentCommand::Hold(true)).expect("room");
    stage.inject(Injection { exempt: true, ..message("d1", "swallowed") });
    stage.until("read", is_read);
    stage.settle(Duration::from_millis(700));
    let bytes = std::fs::read(&seen).expect("the record");
    assert_eq!(bytes.iter().filter(|byte| **byte == b'\r').count(), 1);
}
