//! A program in the user's own terminal, as an agent of the workspace.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::engine::Engine;
use crate::house::House;
use crate::process::{Process, has_ended};
use crate::terminal::Terminal;
use crate::until::{LONG, look, until};

fn command(house: &Arc<House>, url: &str, key: &str, words: &[&str]) -> Command {
    let mut command = house.command(&house.path("work"));
    command.env("RELAY_BASE_URL", url).env("RELAY_WORKSPACE_KEY", key).env("AGENT_RELAY_BROKER_LOG", "file");
    command.arg("wrap").args(words);
    command
}

struct Scene {
    house: Arc<House>,
    engine: Engine,
}

impl Scene {
    fn new() -> Scene {
        let house = House::new();
        let engine = Engine::start(&house);
        Scene { house, engine }
    }

    fn command(&self, words: &[&str]) -> Command {
        command(&self.house, &self.engine.url(), &self.engine.key, words)
    }

    /// `sh -c script` in a terminal, once it is the program's.
    #[track_caller]
    fn wrap(&self, script: &str) -> Terminal {
        let terminal = Terminal::start(&self.command(&["sh", "-c", script]));
        terminal.until("raw mode", || terminal.is_raw().then_some(()));
        terminal
    }

    /// The same as the agent `ann`.
    #[track_caller]
    fn ann(&self, script: &str) -> Terminal {
        let mut command = self.command(&["sh", "-c", script]);
        let terminal = Terminal::start(command.env("RELAY_AGENT_NAME", "ann"));
        terminal.until("raw mode", || terminal.is_raw().then_some(()));
        terminal
    }

    /// Nothing runs here but the engine.
    #[track_caller]
    fn is_quiet(&self) {
        let others = || self.house.processes().into_iter().filter(|(_, line)| !line.contains(" engine ")).collect();
        let left = look(LONG, || Some(others()).filter(Vec::is_empty));
        assert!(left.is_some(), "still there: {:?}", others());
    }
}

/// Says its process id in a line of its own, then that it is ready.
const HELLO: &str = "echo pid=$$.; echo here;";

fn pid_of(terminal: &Terminal) -> u32 {
    terminal.until("a process id", || terminal.text().split("pid=").nth(1)?.split_once('.')?.0.parse().ok())
}

#[test]
fn every_byte_passes_both_ways_and_the_exit_code_too() {
    let scene = Scene::new();
    // Echoes what it reads, byte by byte as numbers; then every byte there is.
    let script = format!(
        "{HELLO} stty raw -echo; echo raw-now; dd bs=1 count=7 2>/dev/null | od -An -tu1; printf '\\001\\200\\377\\033[31m\\nend'; exit 7"
    );
    let mut terminal = scene.wrap(&script);
    terminal.shows("raw-now");
    terminal.press([3, 13, 10, 255, 0, 17, 19]);
    assert_eq!(terminal.wait(), 7, "{}", terminal.text());
    terminal.shows("  3  13  10 255   0  17  19");
    let bytes = terminal.bytes();
    let rest = b"\x01\x80\xff\x1b[31m\nend";
    assert!(bytes.windows(rest.len()).any(|part| part == rest), "{:?}", String::from_utf8_lossy(&bytes));
    assert_eq!(terminal.settings(), terminal.before, "as it was");
    terminal.shows("[agent-relay] session ended");
    for line in ["[agent-relay] wrapping sh (agent: sh, channels: [\"general\"])", "[agent-relay] ready"] {
        terminal.shows(line);
    }
    scene.is_quiet();
}

#[test]
fn the_end_by_a_signal_is_the_exit_code_and_the_terminal_is_as_it_was() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene.command(&["sh", "-c", "kill -9 $$"]));
    assert_eq!(terminal.wait(), 128 + 9, "{}", terminal.text());
    assert_eq!(terminal.settings(), terminal.before);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut terminal = scene.wrap(&format!("{HELLO} sleep 1000 & exec cat"));
        let pid = pid_of(&terminal);
        terminal.signal(signal);
        assert_eq!(terminal.wait(), 128 + signal.as_raw() as u32, "{}", terminal.text());
        assert_eq!(terminal.settings(), terminal.before, "{signal:?}");
        assert!(has_ended(pid).is_some());
        scene.is_quiet();
    }
    // The window is closed.
    let mut terminal = scene.wrap(&format!("{HELLO} exec cat"));
    let pid = pid_of(&terminal);
    terminal.hang_up();
    assert_eq!(terminal.wait(), 128 + 1, "{}", terminal.text());
    assert!(has_ended(pid).is_some());
    scene.is_quiet();
    // Without a chance to do anything: the kernel hangs the program's terminal up.
    let mut terminal = scene.wrap(&format!("{HELLO} exec cat"));
    terminal.signal(Signal::KILL);
    terminal.wait();
    scene.is_quiet();
}

#[test]
fn a_program_that_is_missing_leaves_nothing_behind() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene.command(&["no-such-program"]));
    assert_eq!(terminal.wait(), 1);
    terminal.shows("Error: 'no-such-program' cannot be started");
    terminal.shows("install it, or give its full path");
    assert_eq!(terminal.settings(), terminal.before);
    assert!(!terminal.text().contains("ready"));
    assert!(scene.engine.agent("no-such-program").is_none(), "it was registered");
    scene.is_quiet();
}

#[test]
fn without_an_engine_or_with_a_refused_key_no_program_is_started() {
    let house = House::new();
    let engine = Engine::start(&house);
    let mark = house.path("ran");
    let script = format!("touch {}", mark.display());
    for (url, key) in [("http://127.0.0.1:9", "rk_live_x"), (&*engine.url(), "rk_live_wrong")] {
        let mut command = command(&house, url, key, &["sh", "-c", &script]);
        let mut terminal = Terminal::start(command.env("AGENT_RELAY_HANDSHAKE_TIMEOUT_MS", "3000"));
        assert_eq!(terminal.wait(), 1, "{}", terminal.text());
        terminal.shows("Error: failed to initialize relaycast session");
        assert_eq!(terminal.settings(), terminal.before);
        assert!(!mark.exists());
    }
}

#[test]
fn the_program_has_its_user_from_its_first_moment() {
    let scene = Scene::new();
    // Not only when it counts as started for good.
    let shown = || {
        let terminal = Terminal::start(&scene.command(&["sh", "-c", "echo at=$(date +%s%N).; exec cat"]));
        let at = || terminal.text().split("at=").nth(1)?.split_once('.')?.0.parse::<u128>().ok();
        let at = terminal.until("its start", at);
        terminal.until("raw mode", || terminal.is_raw().then_some(()));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_nanos().saturating_sub(at) / 1_000_000
    };
    // A machine that is busy may be late some of the times.
    let mut took = Vec::new();
    while took.len() < 8 && took.iter().all(|ms| *ms >= 150) {
        took.push(shown());
    }
    assert!(took.iter().any(|ms| *ms < 150), "shown after {took:?} ms");
}

#[test]
fn a_new_size_reaches_the_program() {
    let scene = Scene::new();
    let terminal = scene.wrap("stty size; trap 'stty size' WINCH; while :; do sleep 0.05; done");
    terminal.shows("24 80");
    terminal.resize(31, 97);
    terminal.shows("31 97");
}

#[test]
fn a_message_waits_for_half_a_line_and_is_not_glued_to_it() {
    let scene = Scene::new();
    let seen = scene.house.path("seen/lines");
    let script = format!("{HELLO} while IFS= read -r line; do printf '%s\\n' \"$line\" >> {}; done", seen.display());
    let terminal = scene.ann(&script);
    terminal.shows("here");
    let bob = scene.engine.stranger("bob");
    let read = || std::fs::read_to_string(&seen).unwrap_or_default();
    terminal.press("half a ");
    terminal.shows("half a ");
    scene.engine.dm(&bob, "ann", "to whom it concerns");
    let row = scene.engine.agent("ann").expect("an agent");
    assert_eq!(row["status"], "online");
    terminal.press("line\r");
    until(LONG, "the message", read, || read().contains("to whom it concerns\n").then_some(()));
    let (line, message) = (read().find("half a line\n"), read().find("to whom it concerns"));
    assert!(line.is_some_and(|at| at == 0 || read().as_bytes()[at - 1] == b'\n') && line < message, "{}", read());
    assert_eq!(read().matches("to whom it concerns").count(), 1, "{}", read());
}

#[test]
fn a_message_is_typed_at_once_where_nobody_has_begun_a_line() {
    let scene = Scene::new();
    let seen = scene.house.path("seen/lines");
    let script = format!("{HELLO} while IFS= read -r line; do printf '%s\\n' \"$line\" >> {}; done", seen.display());
    let terminal = scene.ann(&script);
    terminal.shows("here");
    terminal.press("a line\r");
    let read = || std::fs::read_to_string(&seen).unwrap_or_default();
    until(LONG, "the line", read, || read().contains("a line\n").then_some(()));
    let bob = scene.engine.stranger("bob");
    scene.engine.dm(&bob, "ann", "to whom it concerns");
    until(LONG, "the message", read, || read().contains("to whom it concerns\n").then_some(()));
    terminal.shows("to whom it concerns");
}

#[test]
fn what_the_program_has_not_read_comes_to_its_next_life_once() {
    let scene = Scene::new();
    let seen = scene.house.path("seen/lines");
    let reader = format!("{HELLO} while IFS= read -r line; do printf '%s\\n' \"$line\" >> {}; done", seen.display());
    let read = || std::fs::read_to_string(&seen).unwrap_or_default();
    let bob = scene.engine.stranger("bob");
    // It reads nothing, and ends by itself when it is told to.
    let go = scene.house.path("go");
    let deaf = format!("{HELLO} until test -e {}; do sleep 0.05; done", go.display());
    let mut terminal = scene.ann(&deaf);
    terminal.shows("here");
    scene.engine.dm(&bob, "ann", "first");
    scene.engine.dm(&bob, "ann", "second");
    terminal.shows("first");
    std::fs::write(&go, "").expect("a file");
    assert_eq!(terminal.wait(), 0, "{}", terminal.text());
    let mut terminal = scene.ann(&reader);
    until(LONG, "both messages", read, || read().contains("second").then_some(()));
    terminal.signal(Signal::TERM);
    terminal.wait();
    assert_eq!((read().matches("first").count(), read().matches("second").count()), (1, 1), "{}", read());
    // Read is read: a third life gets nothing.
    let mut terminal = scene.ann(&reader);
    terminal.shows("here");
    scene.engine.dm(&bob, "ann", "third");
    until(LONG, "the third", read, || read().contains("third").then_some(()));
    assert_eq!(read().matches("second").count(), 1, "{}", read());
    terminal.signal(Signal::TERM);
    terminal.wait();
    scene.is_quiet();
}

/// Until the program of this command line has written nothing for half a second, or is there no more.
#[track_caller]
pub fn until_stuck_or_gone(house: &House, line: &str) {
    let mut last = (String::new(), Instant::now());
    until(LONG, "a program that waits, or has ended", String::new, || {
        let Some((pid, _)) = house.processes().into_iter().find(|(_, of)| of.contains(line)) else { return Some(()) };
        let written = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        if written != last.0 {
            last = (written, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
}

/// About twelve megabytes of lines.
const LINES: usize = 1_500_000;

#[test]
fn a_terminal_that_nobody_looks_at_loses_nothing_and_holds_no_message_up() {
    let scene = Scene::new();
    let seen = scene.house.path("seen/lines");
    // Far more than what fits between the program and the terminal; meanwhile it reads.
    let script = format!(
        "stty -echo; {HELLO} seq 1 {LINES} & while IFS= read -r line; do printf '%s\\n' \"$line\" >> {}; \
         case $line in *dark*) break;; esac; done; wait; echo all.",
        seen.display()
    );
    let mut terminal = scene.ann(&script);
    terminal.shows("\n1000\r\n");
    let unseen = terminal.look_away();
    let bob = scene.engine.stranger("bob");
    let read = || std::fs::read_to_string(&seen).unwrap_or_default();
    scene.engine.dm(&bob, "ann", "into the dark");
    until(LONG, "the message", read, || read().contains("into the dark").then_some(()));
    until_stuck_or_gone(&scene.house, "seq ");
    drop(unseen);
    assert_eq!(terminal.wait(), 0, "{} bytes shown", terminal.text().len());
    terminal.shows("all.");
    let text = terminal.text();
    let numbers: Vec<usize> = text.lines().filter_map(|line| line.trim_end().parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=LINES), "{} of {LINES}", numbers.len());
}

#[test]
fn a_terminal_that_is_stalled_does_not_hold_the_end_up_for_ever() {
    let scene = Scene::new();
    let mut terminal = scene.wrap(&format!("{HELLO} exec yes"));
    terminal.shows("y\r\ny\r\n");
    let (signal, pid) = (Signal::TERM, pid_of(&terminal));
    {
        let _unseen = terminal.look_away();
        until_stuck_or_gone(&scene.house, "yes");
        assert!(has_ended(pid).is_none(), "it waits");
        terminal.signal(signal);
        until(LONG, "the end of the program", String::new, || has_ended(pid));
        until(LONG, "the end of the wrap", String::new, || has_ended(terminal.pid().as_raw_nonzero().get() as u32));
        assert_eq!(terminal.settings(), terminal.before);
    }
    assert_eq!(terminal.wait(), 128 + 15);
}

#[test]
fn a_closed_stdout_ends_the_program() {
    let scene = Scene::new();
    let mut process = Process::start(scene.command(&["sh", "-c", &format!("{HELLO} exec yes")]));
    process.says("[agent-relay] ready", LONG);
    until(LONG, "output", || process.seen(), || process.out().contains("here").then_some(()));
    // Whoever reads goes.
    let mut shell = Command::new("sh");
    let line = "\"$0\" wrap sh -c 'echo pid=$$.; exec yes' | head -n 1";
    let wrapped = scene.command(&[]);
    shell.args(["-c", line]).arg(wrapped.get_program()).env_clear().current_dir(scene.house.dir("elsewhere"));
    for (name, value) in wrapped.get_envs() {
        shell.env(name, value.expect("a value"));
    }
    let mut piped = Process::start(shell);
    assert_eq!(piped.wait(LONG).0, Some(0), "{}", piped.seen());
    let pid: u32 = piped.out().split("pid=").nth(1).expect("a pid").split('.').next().unwrap().parse().expect("a pid");
    until(LONG, "the end of the program", || piped.seen(), || has_ended(pid));
    process.signal(Signal::TERM);
    assert_eq!(process.wait(LONG).0, Some(128 + 15));
    scene.is_quiet();
}

/// Asks where the cursor is and shows the first six bytes that come.
const QUERY: &str = "stty raw -echo; printf 'ask\\033[6n'; dd bs=1 count=6 2>/dev/null | od -An -c";

#[test]
fn queries_are_answered_by_the_terminal_outside_and_only_by_it() {
    let scene = Scene::new();
    let mut terminal = scene.wrap(QUERY);
    terminal.shows("ask\u{1b}[6n");
    terminal.press("\u{1b}[5;6R");
    assert_eq!(terminal.wait(), 0);
    terminal.shows("033   [   5   ;   6   R");
}

#[test]
fn without_a_terminal_outside_queries_are_answered_here() {
    let scene = Scene::new();
    let mut process = Process::start(scene.command(&["sh", "-c", QUERY]));
    assert_eq!(process.wait(LONG).0, Some(0), "{}", process.seen());
    assert!(process.out().contains("033   [   1   ;   4   R"), "{}", process.seen());
}

/// Shows its arguments and its identity, and then what it reads.
const CLAUDE: &str = "#!/bin/sh\nprintf 'args=<%s>' \"$@\"; echo \" $RELAY_AGENT_NAME $RELAY_CHANNELS ${RELAY_AGENT_TOKEN%%_*}.\"\n\
    echo \"result=<$AGENT_RELAY_RESULT_URL> key=<$RELAY_BROKER_API_KEY>\"; echo '->pty:ready'\nstty -echo; exec cat\n";

#[test]
fn the_program_gets_its_identity_and_the_arguments_of_its_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let claude = scene.house.path("claude");
    std::fs::write(&claude, CLAUDE).expect("a program");
    std::fs::set_permissions(&claude, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let words = [&*claude.to_string_lossy(), "--", "-x", "two words"];
    for (skip, hinted) in [("", true), ("yes", false)] {
        let mut command = scene.command(&words);
        command
            .env("RELAY_CHANNELS", "general, ops")
            .env("RELAY_BROKER_API_KEY", "br_x")
            .env("RELAY_SKIP_PROMPT", skip);
        let mut terminal = Terminal::start(&command);
        terminal.shows("(agent: claude, channels: [\"general\", \"ops\"])");
        terminal.shows("args=<-x>args=<two words> claude general,ops at.");
        terminal.shows("result=<> key=<>");
        terminal.shows("->pty:ready");
        let sender = scene.engine.stranger(&format!("bob{skip}"));
        scene.engine.dm(&sender, "claude", "hello you");
        terminal.shows("]: hello you");
        assert_eq!(terminal.text().contains("<system-reminder>"), hinted, "{}", terminal.text());
        terminal.signal(Signal::TERM);
        terminal.wait();
    }
}

#[test]
fn a_second_wrap_of_the_name_is_refused_here_and_renamed_elsewhere() {
    let scene = Scene::new();
    let first = scene.ann(&format!("{HELLO} exec cat"));
    first.shows("here");
    let mut same = Terminal::start(scene.command(&["cat"]).env("RELAY_AGENT_NAME", "ann"));
    assert_eq!(same.wait(), 1);
    same.shows("another broker instance is already running in this directory");
    let elsewhere = scene.house.dir("elsewhere");
    let other = Terminal::start(scene.command(&["cat"]).env("RELAY_AGENT_NAME", "ann").current_dir(&elsewhere));
    other.shows("(requested 'ann', which is active elsewhere)");
    other.until("raw mode", || other.is_raw().then_some(()));
    // The first is still who it was.
    let bob = scene.engine.stranger("bob");
    scene.engine.dm(&bob, "ann", "still here");
    first.shows("still here");
}

#[test]
fn a_strict_name_is_taken_over() {
    let scene = Scene::new();
    let first = scene.ann(&format!("{HELLO} exec cat"));
    first.shows("here");
    let mut command = scene.command(&["sh", "-c", "echo at=$RELAY_AGENT_NAME.; exec cat"]);
    command
        .env("RELAY_AGENT_NAME", "ann")
        .env("RELAY_STRICT_AGENT_NAME", "1")
        .current_dir(scene.house.dir("elsewhere"));
    let second = Terminal::start(&command);
    second.shows("at=ann.");
    assert!(!second.text().contains("WARNING"), "{}", second.text());
    let bob = scene.engine.stranger("bob");
    scene.engine.dm(&bob, "ann", "to the second");
    second.shows("to the second");
    assert!(!first.text().contains("to the second"), "{}", first.text());
}

#[test]
fn no_spawn_or_release_is_declared() {
    let scene = Scene::new();
    let terminal = scene.ann(&format!("{HELLO} exec cat"));
    terminal.shows("here");
    let actions = scene.engine.data("GET", "/v1/actions", &scene.engine.key, None);
    assert_eq!(actions.as_array().map(Vec::len), Some(0), "{actions}");
    let nodes = scene.engine.data("GET", "/v1/nodes", &scene.engine.key, None);
    assert_eq!(nodes[0]["capabilities"], json!([]), "{nodes}");
}
