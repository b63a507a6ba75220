//! A human's unsent text: messages wait for it, and nothing is answered meanwhile. And what counts as a program's answer.

use super::input::{count, is_read};
use super::*;

/// Types the first message of a stage into a terminal in which half a line stands.
fn with_a_draft(script: &str, timing: Timing, draft: &[u8]) -> Stage {
    let mut stage = Stage::sh_timed(script, timing);
    stage.until_text("ready");
    stage.type_keys(draft);
    stage.inject(message("d1", "hello there"));
    stage
}

fn is_waiting(note: &AgentNote) -> bool {
    matches!(note, AgentNote::Waiting { .. })
}

/// A composer: raw, in pastes, redraws its line at each read, prints and clears it at Enter.
const COMPOSER: &str = r#"exec python3 -c '
import os, sys, tty
tty.setraw(0)
line = b""
os.write(1, b"ready\r\n\x1b[?2004h> ")
while True:
    data = os.read(0, 65536)
    if not data: break
    for byte in data.replace(b"\x1b[200~", b"").replace(b"\x1b[201~", b""):
        if byte == 13:
            os.write(1, b"\r\x1b[Kgot " + line.replace(b"\n", b"|") + b"\r\n")
            line = b""
        elif byte == 127: line = line[:-1]
        elif byte == 21: line = b""
        else: line += bytes([byte])
    os.write(1, b"\r\x1b[K> " + line.split(b"\n")[-1])
'"#;

#[test]
fn t11_a_message_is_not_glued_to_a_line_that_the_kernel_keeps() {
    let mut stage = with_a_draft("printf ready; exec cat", Timing::default(), b"half a li");
    stage.until("waiting", is_waiting);
    stage.settle(Duration::from_millis(500));
    assert!(!stage.text.contains("hello there"), "{}", stage.text);
    stage.type_keys(b"ne\n");
    stage.until("read", is_read);
    let (line, message) = (stage.text.find("half a line\r\n"), stage.text.find("hello there"));
    assert!(line.is_some() && line < message, "{}", stage.text);
    assert_eq!(count(&stage, is_waiting), 1, "{}", stage.story());
}

#[test]
fn t11_a_message_waits_for_the_draft_in_a_composer_and_never_submits_it() {
    let mut stage = with_a_draft(COMPOSER, Timing::default(), b"dear agent");
    stage.until("waiting", is_waiting);
    // Longer than keys without an echo would be waited for.
    stage.settle(Duration::from_millis(3_500));
    assert!(!stage.text.contains("got"), "{}", stage.text);
    stage.type_keys(b" go\r");
    stage.until("read", is_read);
    stage.until_text("hello there\r\n");
    let (draft, got) = (stage.text.find("got dear agent go\r\n"), stage.text.rfind("got "));
    assert!(draft.is_some() && draft < got, "{}", stage.text);
    // A steer is no exception: its escapes would clear the line.
    stage.type_keys(b"again");
    stage.until_text("> again");
    stage.inject(Injection { mode: DeliveryMode::Steer, ..message("d2", "urgent") });
    stage.until("waiting", |note| *note == AgentNote::Waiting { delivery_id: "d2".into() });
    // Taken back with the keys, it holds nothing up.
    stage.type_keys(&[0x7f; 5]);
    stage.until("read", |note| *note == AgentNote::Read { delivery_id: "d2".into() });
}

#[test]
fn t11_the_wait_for_a_draft_is_bounded_and_can_be_switched_off() {
    let timing = Timing { draft_hold: Duration::from_millis(400), ..Timing::default() };
    let mut stage = with_a_draft(COMPOSER, timing, b"forgotten");
    let failed = stage.until("failed", |note| matches!(note, AgentNote::InjectFailed { .. }));
    let error = "a human's unsent text stands in the composer".to_string();
    assert_eq!(failed, AgentNote::InjectFailed { delivery_id: "d1".into(), error });
    assert!(!stage.text.contains("got forgotten"), "{}", stage.text);

    let launch = Launch { ignores_drafts: true, ..launch_of("sh", &["-c", COMPOSER]) };
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    stage.until_text("ready");
    stage.type_keys(b"forgotten");
    stage.inject(message("d1", "hello there"));
    stage.until("read", is_read);
    assert_eq!(count(&stage, is_waiting), 0, "{}", stage.story());
}

#[test]
fn t11_an_empty_composer_holds_nothing_up() {
    // Keys as commands, keys taken back, a line that was sent, a terminal's own reports.
    for (script, keys) in [
        (COMPOSER, &b"gone\x15"[..]),
        (COMPOSER, b"sent\r"),
        (COMPOSER, b"ab\x7f\x7f"),
        (COMPOSER, b"\x1b[24;80R\x1b[I"),
        ("printf ready; exec cat", b"sent\n"),
        ("printf ready; exec cat", b"   "),
    ] {
        let mut stage = with_a_draft(script, Timing::default(), keys);
        stage.until("read", is_read);
        assert_eq!(count(&stage, is_waiting), 0, "{keys:?}: {}", stage.story());
    }
    // What no composer shows is waited for a moment only.
    let timing = Timing { draft_unseen: Duration::from_millis(300), ..Timing::default() };
    let mut stage = with_a_draft("stty raw -echo; printf ready; exec cat >/dev/null", timing, b"jjk");
    stage.until("waiting", is_waiting);
    stage.until("read", is_read);
}

#[test]
fn t11_text_in_a_composer_that_nobody_typed_here_is_waited_for() {
    let timing = Timing { draft_hold: Duration::from_millis(500), ..Timing::default() };
    let script = r"stty raw -echo; printf 'ready\r\n\033[?2004h> from a history'; exec cat";
    let mut stage = Stage::sh_timed(script, timing);
    stage.until_text("from a history");
    stage.inject(message("d1", "hello"));
    stage.until("waiting", is_waiting);
    stage.until("failed", |note| matches!(note, AgentNote::InjectFailed { .. }));
    assert!(!stage.text.contains("hello"), "{}", stage.text);
    // Twins: an empty prompt, and a prompt in a program without a composer.
    for line in [r"\033[?2004h> ", "> not a composer"] {
        let mut stage = Stage::sh_timed(&format!("stty raw -echo; printf 'ready\\r\\n{line}'; exec cat"), timing);
        stage.until_text("ready");
        stage.inject(message("d1", "hello"));
        stage.until("read", is_read);
        assert_eq!(count(&stage, is_waiting), 0, "{line}: {}", stage.story());
    }
}

#[test]
fn t11_no_question_is_answered_while_a_human_types() {
    let ask = "printf 'Do you trust the files in this folder?\\r\\n 1. Yes, I trust it\\r\\n 2. No, exit\\r\\n'";
    let timing = Timing { draft_unseen: Duration::from_millis(1_500), ..Timing::default() };
    let script = format!("stty raw -echo; printf ready; dd bs=1 count=1 2>/dev/null; {ask}; exec cat -v");
    let mut stage = Stage::sh_timed(&script, timing);
    stage.until_text("ready");
    stage.type_keys(b"g");
    stage.until_text("No, exit");
    // The human moves in the menu: our Enter would take what they have not chosen yet.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_200) {
        stage.type_keys(b"\x1b[B");
        stage.settle(Duration::from_millis(200));
    }
    assert!(!stage.text.contains("^M"), "{}", stage.text);
    // Once they leave it, it is answered.
    stage.until_text("^M");
}

#[test]
fn a_turn_starts_when_the_program_shows_more_than_the_message() {
    let is_turn = |note: &AgentNote| matches!(note, AgentNote::TurnStarted { .. });
    let mut stage = Stage::sh(
        "stty raw -echo; printf ready; while [ \"$(dd bs=1 count=1 2>/dev/null | od -An -c | tr -d ' ')\" != '\\r' ]; do :; done; printf working; exec cat",
    );
    stage.until_text("ready");
    stage.inject(message("d1", "hello"));
    stage.until("turn", is_turn);
    let at = |stage: &Stage, is: &dyn Fn(&AgentNote) -> bool| stage.seen.iter().position(|(_, note)| is(note));
    let typed = at(&stage, &|note| matches!(note, AgentNote::Typed { .. }));
    let output = at(&stage, &|note| matches!(note, AgentNote::Output { chunk, .. } if chunk.contains("working")));
    let turn = at(&stage, &is_turn);
    assert!(output < turn && (typed < turn), "{}", stage.story());
    // Twins: a verbatim echo, and no output at all.
    for script in ["stty raw -echo; printf ready; exec cat", "stty -echo; printf ready; exec cat >/dev/null"] {
        let timing = Timing { stall: Duration::from_millis(200), ..Timing::default() };
        let mut stage = Stage::sh_timed(script, timing);
        stage.until_text("ready");
        stage.inject(message("d1", "hello"));
        let is_verdict = |note: &AgentNote| matches!(note, AgentNote::Verified { .. });
        stage.until("proof or verdict", |note| is_read(note) || is_verdict(note));
        stage.until("both", |note| is_read(note) || is_verdict(note));
        assert_eq!(count(&stage, is_turn), 0, "{script}: {}", stage.story());
    }
}
