//! What the other files leave of the list of things that a scripted CLI can show (pty-workers §14), by its numbers.

use super::*;
use crate::core::ports::Verdict;

#[test]
fn s14_5_without_any_sign_a_cli_counts_as_ready_after_its_time() {
    let timing = Timing { ready_limit: Duration::from_millis(600), ..Timing::default() };
    let begun = Instant::now();
    let mut stage = Stage::sh_timed("stty raw -echo; exec cat", timing);
    stage.until("verdict", |note| *note == AgentNote::Judged(Verdict::Unrecognised));
    assert!(begun.elapsed() >= Duration::from_millis(600), "{}", stage.story());
    let ready = stage.seen.iter().filter(|(_, note)| *note == AgentNote::Ready).count();
    assert_eq!(ready, 1, "{}", stage.story());
    assert_eq!(Timing::default().ready_limit, Duration::from_secs(25));
    // Twin: one that ends first never was.
    let timing = Timing { ready_limit: Duration::from_millis(600), ..Timing::default() };
    let mut stage = Stage::sh_timed("exit 3", timing);
    assert_eq!(stage.until_exited(), (Some(3), None));
    stage.settle(Duration::from_millis(800));
    assert!(stage.when(|note| *note == AgentNote::Ready).is_none(), "{}", stage.story());
}

#[test]
fn s14_9_what_is_not_shown_falls_back_after_its_window() {
    let scratch = Scratch::new("window");
    std::os::unix::fs::symlink("/bin/sh", scratch.file("droid")).expect("a link");
    let script = "stty raw -echo; printf ready; exec cat >/dev/null";
    for (program, secs) in [("sh".to_string(), 5), (scratch.file("droid").to_string_lossy().into_owned(), 3)] {
        let launch = launch_of(&program, &["-c", script]);
        let mut stage = Stage::start_with(Launch { skip_relay_prompt: true, ..launch }, Timing::default(), &[], &[]);
        stage.until_text("ready");
        stage.inject(message("d1", "unseen"));
        stage.until("verdict", |note| *note == AgentNote::Verified { delivery_id: "d1".into(), echo: false });
        let at = |is: fn(&AgentNote) -> bool| stage.when(is).expect("a time");
        let typed = at(|note| matches!(note, AgentNote::Typed { .. }));
        let told = at(|note| matches!(note, AgentNote::Verified { .. }));
        let window = told - typed;
        let most = Duration::from_millis(secs * 1_000 + 2_500);
        assert!(window >= Duration::from_millis(secs * 1_000 - 100) && window <= most, "{program}: {window:?}");
        // Read all the same, and long before.
        assert!(at(|note| matches!(note, AgentNote::Read { .. })) < told, "{}", stage.story());
    }
}

#[test]
fn d6_a_menu_that_is_drawn_in_two_pieces_was_never_a_prompt() {
    let timing = Timing { ready_settle: Duration::from_millis(400), ..Timing::default() };
    let draw = "printf 'Pick one:\\r\\n> '; sleep 0.1; printf '1. Red\\r\\n  2. Blue\\r\\n'";
    let mut stage = Stage::sh_timed(&format!("stty raw -echo; {draw}; exec cat"), timing);
    stage.until_text("Blue");
    stage.settle(Duration::from_millis(900));
    assert!(stage.when(|note| *note == AgentNote::Ready).is_none(), "{}", stage.story());
    // Twin: a prompt that stays.
    let mut stage = Stage::sh_timed("stty raw -echo; printf 'Hello\\r\\n> '; exec cat", timing);
    stage.until("ready", |note| *note == AgentNote::Ready);
}
