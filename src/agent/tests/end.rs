use super::*;

use rustix::process::Signal;

use crate::core::ports::LastWords;

fn ending(stage: &Stage) -> Vec<&'static str> {
    let reason = |note: &AgentNote| match note {
        AgentNote::Ending { reason } => Some(*reason),
        _ => None,
    };
    stage.seen.iter().filter_map(|(_, note)| reason(note)).collect()
}

#[test]
fn d18_an_exit_is_told_with_its_true_cause_within_a_second() {
    for (script, end) in [
        ("exit 0", (Some(0), None)),
        ("printf 'last words'; exit 3", (Some(3), None)),
        ("kill -9 $$", (None, Some(9))),
        ("kill -11 $$", (None, Some(11))),
    ] {
        let started = Instant::now();
        let mut stage = Stage::sh(script);
        assert_eq!(stage.until_exited(), end, "{script}");
        assert!(started.elapsed() < Duration::from_secs(1), "{script}: {:?}", started.elapsed());
        assert_eq!(ending(&stage).len(), 1, "{}", stage.story());
        assert!(!script.contains("last") || stage.text == "last words", "{}", stage.text);
        assert!(matches!(stage.seen.last(), Some((_, AgentNote::Exited { .. }))), "{}", stage.story());
        let pid = stage.pid();
        assert!(stage.agent.join(LIMIT));
        assert!(!exists(pid), "a zombie is left");
    }
}

#[test]
fn k3_a_grandchild_that_holds_the_terminal_does_not_hide_the_exit() {
    super::super::become_subreaper().expect("allowed");
    let scratch = Scratch::new("grandchild");
    let file = scratch.file("pid");
    for keep in ["setsid sleep 1000 &", "setsid sh -c 'trap : HUP TERM; while :; do sleep 1; done' &", "(sleep 1000 &)"]
    {
        let script = format!("{keep} echo $! > '{}'; sleep 0.2; exit 4", file.display());
        let script = if keep.starts_with('(') {
            format!("(sleep 1000 & echo $! > '{}'); sleep 0.2; exit 4", file.display())
        } else {
            script
        };
        let mut stage = Stage::sh(&script);
        let grandchild = number_in(&file);
        assert!(is_alive(grandchild));
        assert_eq!(stage.until_exited(), (Some(4), None), "{keep}");
        assert!(!exists(grandchild), "{keep}: {grandchild} is left");
        std::fs::remove_file(&file).expect("the file");
    }
}

#[test]
fn d19_release_is_polite_first() {
    let scratch = Scratch::new("polite");
    let saved = scratch.file("saved");
    let script = format!(
        "trap 'sleep 0.3; echo saved > \"{}\"; exit 5' HUP; echo up; while :; do sleep 0.05; done",
        saved.display()
    );
    let mut stage = Stage::sh(&script);
    stage.until_text("up");
    assert_eq!(stage.release(), (Some(5), None));
    assert!(saved.exists(), "it had the time to save");
    assert_eq!(ending(&stage), Vec::<&str>::new(), "a released agent announces no end");
}

#[test]
fn d19_release_ends_what_ignores_signals_and_what_left_the_session() {
    super::super::become_subreaper().expect("allowed");
    let scratch = Scratch::new("stubborn");
    let files: Vec<PathBuf> = (0..4).map(|index| scratch.file(&index.to_string())).collect();
    let deaf =
        |file: &PathBuf| format!("trap '' HUP TERM INT; echo $$ > '{}'; while :; do sleep 0.1; done", file.display());
    let script = format!(
        "trap '' HUP TERM; sh -c \"{}\" & setsid sh -c \"{}\" & env -i PATH=\"$PATH\" setsid sh -c \"{}\" & \
         (setsid sh -c \"{}\" &); echo up; while :; do sleep 0.1; done",
        deaf(&files[0]).replace('$', "\\$"),
        deaf(&files[1]).replace('$', "\\$"),
        deaf(&files[2]).replace('$', "\\$"),
        deaf(&files[3]).replace('$', "\\$"),
    );
    let mut stage = Stage::sh(&script);
    stage.until_text("up");
    let descendants: Vec<i32> = files.iter().map(|file| number_in(file)).collect();
    let asked = Instant::now();
    assert_eq!(stage.release(), (None, Some(9)));
    let took = asked.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(3)).contains(&took), "{took:?}");
    for pid in descendants {
        assert!(!exists(pid), "{pid} is left");
    }
}

#[test]
fn a_kill_ends_a_deaf_tree_at_once_even_within_a_release() {
    super::super::become_subreaper().expect("allowed");
    for asked_before in [false, true] {
        let scratch = Scratch::new("kill");
        let file = scratch.file("pid");
        let script = format!(
            "trap '' HUP TERM; setsid sh -c 'echo $$ > \"{}\"; while :; do sleep 0.1; done' & echo up; \
             while :; do sleep 0.1; done",
            file.display()
        );
        let mut stage = Stage::sh(&script);
        stage.until_text("up");
        let descendant = number_in(&file);
        if asked_before {
            stage.agent.send(AgentCommand::Release).expect("never refused");
            let ticket = stage.type_keys(b"k");
            stage.until("refusal", |note| matches!(note, AgentNote::TypeDone { ticket: t, .. } if *t == ticket));
        }
        let asked = Instant::now();
        stage.agent.kill_now();
        assert_eq!(stage.until_exited(), (None, Some(9)));
        assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
        assert!(!exists(descendant), "{descendant} is left");
        assert_eq!(ending(&stage), Vec::<&str>::new());
    }
    // Before the start there is nothing to kill.
    let mut stage = Stage::prepare(launch_of("cat", &[]), Timing::default(), None);
    stage.agent.kill_now();
    assert_eq!(stage.until_exited(), (None, None));
}

#[test]
fn a_stopped_program_is_released_too() {
    let mut stage = Stage::sh("exec cat");
    signal(stage.pid(), Signal::STOP);
    let asked = Instant::now();
    assert_eq!(stage.release(), (None, Some(1)));
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

#[test]
fn a_program_that_closes_its_terminal_ends() {
    let mut stage = Stage::sh("echo up; exec </dev/null >/dev/null 2>&1; sleep 1000");
    stage.until_exited();
    assert_eq!(ending(&stage), ["pty_closed"]);
    // Opened again within the moment of grace, it goes on.
    let mut stage =
        Stage::sh("echo up; exec </dev/null >/dev/null 2>&1; sleep 0.1; exec </dev/tty >/dev/tty; echo back; exec cat");
    stage.until_text("back");
    stage.type_keys(b"still here\n");
    stage.until_text("still here\r\nstill here");
    assert_eq!(ending(&stage), Vec::<&str>::new());
}

#[test]
fn probing_does_not_look_like_a_closed_terminal() {
    let timing = Timing { hang_up_grace: Duration::from_millis(50), ..Timing::default() };
    let mut stage = Stage::sh_timed("stty raw -echo; printf ready; exec sleep 1000", timing);
    stage.until_text("ready");
    stage.inject(message("d1", "unread, so it is probed for long"));
    stage.settle(Duration::from_millis(1200));
    assert_eq!(ending(&stage), Vec::<&str>::new(), "{}", stage.story());
}

#[test]
fn waiting_work_is_told_as_undone_at_the_end() {
    let mut stage = Stage::sh("stty raw -echo; printf ready; exec sleep 1000");
    stage.until_text("ready");
    let ticket = stage.type_keys(&vec![b'x'; 200 << 10]);
    stage.inject(message("d1", "behind the keys"));
    stage.settle(Duration::from_millis(100));
    stage.release();
    assert!(
        stage
            .seen
            .iter()
            .any(|(_, note)| matches!(note, AgentNote::TypeDone { ticket: t, result: Err(_) } if *t == ticket)),
        "{}",
        stage.story()
    );
    assert!(
        stage.when(|note| matches!(note, AgentNote::InjectFailed { delivery_id, .. } if delivery_id == "d1")).is_some(),
        "{}",
        stage.story()
    );
}

#[test]
fn k2_orphans_that_ended_earlier_are_reaped() {
    super::super::become_subreaper().expect("allowed");
    let scratch = Scratch::new("orphan");
    let file = scratch.file("pid");
    let mut stage =
        Stage::sh(&format!("(setsid sh -c 'echo $$ > \"{}\"; exec sleep 0.1' &); echo up; exec cat", file.display()));
    stage.until_text("up");
    let orphan = number_in(&file);
    wait_for("reaped orphan", || {
        super::super::reap_orphans();
        if exists(orphan) { Err(format!("{orphan} is there")) } else { Ok(()) }
    });
}

fn last_words(stage: &Stage) -> Vec<&LastWords> {
    stage
        .seen
        .iter()
        .filter_map(|(_, note)| if let AgentNote::LastWords(words) = note { Some(words) } else { None })
        .collect()
}

#[test]
fn r14_what_a_program_showed_last_is_told_before_its_end() {
    let scratch = Scratch::new("last-words");
    let log = scratch.file("alice.log");
    let script = "i=0; while [ $i -lt 90 ]; do i=$((i+1)); echo \"line $i\"; done; printf '\\033[31mno such model\\033[0m\\n'; exit 3";
    let mut stage = Stage::prepare(launch_of("sh", &["-c", script]), Timing::default(), Some(log.clone()));
    stage.until("prepared", |note| *note == AgentNote::Prepared);
    stage.order(&[], &[]);
    assert_eq!(stage.until_exited(), (Some(3), None));
    let words = last_words(&stage);
    assert_eq!(words.len(), 1, "{}", stage.story());
    assert!(words[0].output.ends_with("line 89\nline 90\nno such model"), "{words:?}");
    assert!(!words[0].output.contains("line 60\n"), "what has scrolled away is in the log: {words:?}");
    assert_eq!(words[0].log.as_deref(), log.to_str());
    assert!(std::fs::read_to_string(&log).expect("a log").contains("line 1\r\n"));
    let before = &stage.seen[stage.seen.len() - 2].1;
    assert!(matches!(before, AgentNote::LastWords(_)), "{}", stage.story());
    // Twin: nothing said, nothing to name.
    let mut stage = Stage::sh("exit 3");
    stage.until_exited();
    assert_eq!(last_words(&stage), [&LastWords::default()], "{}", stage.story());
}
