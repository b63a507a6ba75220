//! `dump-pty` and `swarm`: small commands beside a running broker.

use std::process::Output;

use crate::broker::{KEY, Start};
use crate::engine::Engine;
use crate::house::House;

fn run(house: &House, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = house.command(&house.path("work"));
    let Output { status, stdout, stderr } =
        command.args(args).envs(env.iter().copied()).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn dump_pty_shows_the_screen_of_an_agent() {
    let house = House::new();
    let engine = Engine::start(&house);
    let broker = Start::on(&house, &engine).arg("--persist").online();
    broker.spawn_program("al ice", r#"sh -c "stty -echo; printf '\\033[1mhello\\033[0m'; exec cat""#);
    broker.until("the text on its screen", || {
        let (code, out, err) = run(&house, &["dump-pty", "al ice"], &[]);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        out.starts_with("hello\n").then_some(())
    });
    // Blank values are no values; the file knows better.
    let blank = [("RELAY_BROKER_URL", " "), ("RELAY_BROKER_API_KEY", "")];
    let (code, out, _) = run(&house, &["dump-pty", "al ice", "--format=ansi", "--broker-url", " "], &blank);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("\x1b[") && out.contains("\x1b[0;1mhello"), "{out:?}");
    let url = format!("http://{}", broker.address);
    let flags = ["dump-pty", "al ice", "--broker-url", &url, "--api-key", KEY];
    assert_eq!(run(&house, &flags, &[]).0, Some(0));

    let fails = |args: &[&str], env: &[(&str, &str)], code: i32, part: &str| {
        let seen = run(&house, args, env);
        assert_eq!((seen.0, seen.1.as_str()), (Some(code), ""), "{seen:?}");
        assert!(seen.2.contains(part), "{part:?} in {seen:?}");
    };
    fails(&["dump-pty"], &[], 2, "required arguments");
    fails(&["dump-pty", "x", "--format", "gif"], &[], 2, "invalid value 'gif'");
    fails(&["dump-pty", "nobody"], &[], 1, "Error: broker returned 404: ");
    fails(&["dump-pty", "al ice"], &[("RELAY_BROKER_API_KEY", "wrong")], 1, "Error: broker returned 401: ");
    fails(&["dump-pty", "x", "--broker-url", "http://127.0.0.1:9"], &[], 1, "does not answer");
    let elsewhere = house.dir("elsewhere");
    fails(&["dump-pty", "x", "--state-dir", &elsewhere.to_string_lossy()], &[], 1, "no broker is known");
}

#[test]
fn swarm_lists_its_patterns_and_runs_nothing() {
    let house = House::new();
    let (code, out, err) = run(&house, &["swarm", "--list"], &[]);
    assert_eq!((code, out.lines().count(), err.as_str()), (Some(0), 25, ""));
    let (code, out, err) = run(&house, &["swarm", "--task", "do"], &[]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("Error: running a swarm is not supported"), "{err}");
}
