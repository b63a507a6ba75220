use super::*;
use crate::core::ports::Verdict;

#[test]
fn a_program_leads_its_session_and_has_the_keyboard_of_a_24x80_terminal() {
    let scratch = Scratch::new("facts");
    let directory = scratch.0.canonicalize().expect("a path");
    let mut launch = launch_of("sh", &[]);
    launch.args = vec![
        "-c".into(),
        "echo size=$(stty size); echo pid=$$; cut -d' ' -f5-8 /proc/$$/stat; pwd; echo term=$TERM keep=$KEEP gone=${GONE-unset}; \
         ls /proc/$$/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status; echo mark=${#AGENT_RELAY_AGENT_MARK}; echo done; exec cat"
            .into(),
    ];
    launch.cwd = Some(directory.to_string_lossy().into_owned());
    let set = [("TERM", "dumb"), ("KEEP", "yes"), ("GONE", "x")];
    let mut stage = Stage::start_with(launch, Timing::default(), &set, &["GONE"]);
    stage.until_text("done");
    let pid = stage.pid();
    let has = |part: &str| assert!(stage.text.contains(part), "{part:?} in {}", stage.text);
    if std::fs::File::open("/dev/tty").is_err() {
        has("size=24 80");
    }
    has(&format!("pid={pid}\r\n"));
    // Group, session and foreground group; the terminal's number stands between.
    let facts: Vec<&str> = stage.text.lines().nth(2).expect("facts").split(' ').collect();
    assert_eq!(
        (facts[0], facts[1], facts[3]),
        (&*pid.to_string(), &*pid.to_string(), &*pid.to_string()),
        "{}",
        stage.text
    );
    has(&format!("{}\r\n", directory.display()));
    has("term=xterm-256color keep=yes gone=unset");
    has("0 1 2 ");
    has("SigBlk:\t0000000000000000");
    has("mark=32");
    assert_eq!(stage.release(), (None, Some(1)));
    assert!(stage.agent.join(LIMIT));
}

#[test]
fn d2_what_cannot_be_started_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new("refused");
    let garbage = scratch.file("garbage");
    std::fs::write(&garbage, "#!/dev/null\n").expect("a file");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    for (cli, part) in [("no-such-program-here", "was not found on PATH"), ("'", "check quoting")] {
        let mut stage = Stage::prepare(launch_of(cli, &[]), Timing::default(), None);
        let note = stage.until("refusal", |note| matches!(note, AgentNote::Refused { .. }));
        assert!(format!("{note:?}").contains(part), "{note:?}");
        assert!(stage.agent.join(LIMIT));
    }
    // An exec that fails shows only after the fork.
    let mut stage = Stage::prepare(launch_of(&garbage.to_string_lossy(), &[]), Timing::default(), None);
    stage.until("prepared", |note| matches!(note, AgentNote::Prepared));
    stage.order(&[], &[]);
    let note = stage.until("refusal", |note| !matches!(note, AgentNote::Prepared));
    assert!(matches!(&note, AgentNote::Refused { error } if error.contains("cannot be executed")), "{note:?}");
    assert!(stage.agent.join(LIMIT));
}

#[test]
fn a_release_before_the_start_ends_the_thread() {
    let mut stage = Stage::prepare(launch_of("cat", &[]), Timing::default(), None);
    stage.until("prepared", |note| matches!(note, AgentNote::Prepared));
    stage.inject(message("d1", "early"));
    assert_eq!(stage.release(), (None, None));
    assert!(stage.when(|note| matches!(note, AgentNote::InjectFailed { .. })).is_some(), "{}", stage.story());
    assert!(stage.agent.join(LIMIT));
}

#[test]
fn a_dropped_handle_releases_the_agent() {
    let stage = Stage::sh("exec cat");
    let pid = stage.pid();
    drop(stage.agent);
    wait_for("end", || if exists(pid) { Err("it lives".into()) } else { Ok(()) });
}

#[test]
fn readiness_is_told_once_and_by_time_if_nothing_shows_it() {
    let mut stage = Stage::sh("printf '> '; exec cat");
    stage.until("ready", |note| matches!(note, AgentNote::Ready));
    let timing = Timing { ready_limit: Duration::from_millis(300), ..Timing::default() };
    let mut silent = Stage::sh_timed("exec cat", timing);
    silent.until("ready", |note| matches!(note, AgentNote::Ready));
    let started = silent.when(|note| matches!(note, AgentNote::Started { .. })).expect("started");
    let ready = silent.when(|note| matches!(note, AgentNote::Ready)).expect("ready");
    assert!(ready - started >= Duration::from_millis(290), "{:?}", ready - started);
    stage.type_keys(b"> more\n");
    stage.until_text("more");
    stage.settle(Duration::from_millis(100));
    assert_eq!(stage.seen.iter().filter(|(_, note)| *note == AgentNote::Ready).count(), 1);
}

#[test]
fn d7_a_known_harness_gets_its_messages_when_it_is_ready() {
    let scratch = Scratch::new("codex");
    // Named by its directory, as readiness does; a shell in disguise.
    let directory = scratch.file("codex");
    std::fs::create_dir(&directory).expect("a directory");
    std::os::unix::fs::symlink("/bin/sh", directory.join("run")).expect("a link");
    let launch = launch_of(
        &directory.join("run").to_string_lossy(),
        &["-c", "stty raw -echo; echo booting; read x; printf '\\r\\n› '; exec cat"],
    );
    let mut stage = Stage::start_with(launch, Timing::default(), &[], &[]);
    stage.until_text("booting");
    stage.inject(message("d1", "hold me"));
    // A human can type before readiness: keys pass a waiting message.
    stage.settle(Duration::from_millis(100));
    assert!(!stage.text.contains("hold me"), "{}", stage.text);
    stage.type_keys(b"x\n");
    stage.until("typed", |note| matches!(note, AgentNote::Typed { .. }));
    let ready = stage.when(|note| *note == AgentNote::Ready).expect("ready first");
    assert!(ready <= stage.when(|note| matches!(note, AgentNote::Typed { .. })).expect("typed"));
}

#[test]
fn a_question_at_the_start_is_answered_and_holds_messages_meanwhile() {
    let ask = "printf 'Do you trust this folder?\\r\\n> 1. Yes, I trust it\\r\\n  2. No, exit\\r\\n'";
    let script = format!(
        "stty raw -echo; {ask}; dd bs=1 count=1 2>/dev/null | od -An -c; printf '\\033[2J\\033[Hready'; exec cat -v"
    );
    let mut stage = Stage::sh(&script);
    stage.until_text("No, exit");
    stage.inject(message("d1", "after the question"));
    stage.until_text("after the question^M");
    let answered = stage.text.find("\\r").expect("the answer is shown");
    assert!(answered < stage.text.find("ready").expect("then it is ready"), "{}", stage.text);
    assert!(stage.text.contains("ready<system-reminder>"), "{}", stage.text);
}

#[test]
fn commands_sent_together_with_the_start_are_carried_out() {
    for _ in 0..20 {
        let mut stage = Stage::prepare(launch_of("sh", &["-c", "stty raw -echo; exec cat"]), Timing::default(), None);
        stage.until("prepared", |note| matches!(note, AgentNote::Prepared));
        stage.order(&[], &[]);
        let ticket = stage.type_keys(b"keys");
        stage.until("done", |note| *note == AgentNote::TypeDone { ticket, result: Ok(4) });
    }
}

#[test]
fn r1_claude_is_ready_by_its_terminal_without_any_greeting() {
    let scratch = Scratch::new("quiet-prompt");
    let directory = scratch.file("claude");
    std::fs::create_dir(&directory).expect("a directory");
    std::os::unix::fs::symlink("/bin/sh", directory.join("run")).expect("a link");
    let program = directory.join("run").to_string_lossy().into_owned();
    let start = |script: &str| Stage::start_with(launch_of(&program, &["-c", script]), Timing::default(), &[], &[]);
    let mut stage = start("stty raw -echo; printf '\\033[?2004hHello, stranger\\r\\n> '; exec cat");
    stage.until("verdict", |note| *note == AgentNote::Judged(Verdict::Ready));
    assert!(stage.when(|note| *note == AgentNote::Ready).is_some(), "{}", stage.story());
    // Twin: what still moves is not ready, nor is what does not take pastes.
    let mut moving = start("stty raw -echo; while :; do printf '\\033[?2004h\\r\\033[Kx\\r\\033[K> '; sleep 0.2; done");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        moving.take(Duration::from_millis(100));
    }
    let mut plain = start("stty raw -echo; printf 'Hello, stranger\\r\\n> '; exec cat");
    plain.settle(Duration::from_millis(1_500));
    for stage in [&moving, &plain] {
        assert!(stage.when(|note| *note == AgentNote::Ready).is_none(), "{}", stage.story());
    }
}

#[test]
fn r2_a_question_without_the_wanted_choice_blocks_and_is_not_typed_into() {
    let ask = "printf 'codex has a new model\\r\\n> Try it\\r\\n  the existing one is gone\\r\\n'";
    let script = format!("stty raw -echo; {ask}; dd bs=1 count=1 2>/dev/null; printf '\\033[2J\\033[H'; exec cat -v");
    let timing = Timing { dialog_hold: Duration::from_millis(700), ..Timing::default() };
    let mut stage = Stage::sh_timed(&script, timing);
    stage.until("verdict", |note| *note == AgentNote::Judged(Verdict::Blocked("codex_model")));
    stage.inject(message("d1", "hello"));
    let failed = stage.until("failed", |note| matches!(note, AgentNote::InjectFailed { .. }));
    let error = "a question of the CLI stands on the screen".to_string();
    assert_eq!(failed, AgentNote::InjectFailed { delivery_id: "d1".into(), error });
    // Somebody answers it.
    stage.type_keys(b"\r");
    stage.until("verdict", |note| matches!(note, AgentNote::Judged(v) if *v != Verdict::Blocked("codex_model")));
    stage.inject(message("d2", "hello"));
    stage.until("read", |note| *note == AgentNote::Read { delivery_id: "d2".into() });
}

#[test]
fn k8_the_broker_may_have_more_files_and_its_programs_as_many_as_before() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    // A little less than what is allowed: the other tests of this process do not feel it.
    let before = Rlimit { current: Some(most.map_or(1 << 20, |most| most - 1)), maximum: most };
    setrlimit(Resource::Nofile, before).expect("a lower limit");
    crate::sys::descriptors::raise_limit();
    assert_eq!(getrlimit(Resource::Nofile).current, most);
    let expected = before.current.expect("a number").to_string();
    let mut stage = Stage::sh("sleep 0.2; ulimit -Sn; exec cat");
    stage.until_text(&expected);
    let mut command = std::process::Command::new("/bin/sh");
    crate::sys::kernel::lead_session(&mut command);
    let output = command.args(["-c", "ulimit -Sn"]).output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
}
