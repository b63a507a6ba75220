//! A full disk, and a reader who has gone.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::scene::Scene;

const BROKER: &str = env!("CARGO_BIN_EXE_agent-relay-broker");

/// `program` with the environment of the scene.
fn command(scene: &Scene, program: &str) -> Command {
    let mut command = Command::new(program);
    let path = format!("{}:/usr/bin:/bin", scene.path("{BIN}").display());
    command.env_clear().env("HOME", scene.path("{HOME}")).env("PATH", path).env("FAKE_CALLS", scene.calls_file());
    command.env("AGENT_RELAY_BROKER_LOG", "off").current_dir(scene.path("{CWD}")).stdin(Stdio::null());
    command
}

/// The broker where no file can grow beyond a kilobyte: the same as a full disk, for this process alone.
fn cramped(scene: &Scene, args: &[&str]) -> Output {
    let mut command = command(scene, "/bin/sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"", BROKER]).args(args);
    command.output().expect("a shell")
}

#[test]
fn a_full_disk_leaves_the_users_files_as_they_were() {
    let scene = Scene::new("full");
    scene.fake("gemini");
    let own = json!({"theme": "dark", "notes": "x".repeat(4000)});
    let text = serde_json::to_string(&own).expect("JSON");
    let (direct, target) = (scene.path("{CWD}/opencode.json"), scene.path("{HOME}/mine.json"));
    let list = scene.path("{HOME}/.gemini/trustedFolders.json");
    std::fs::create_dir(scene.path("{HOME}/.gemini")).expect("a directory");
    for path in [&direct, &target, &list] {
        std::fs::write(path, &text).expect("a file");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).expect("a mode");
    }
    let opencode = ["mcp-args", "--cli", "opencode", "--agent-name", "a"];
    let names = |place: &str| {
        let mut names: Vec<_> = std::fs::read_dir(scene.path(place)).expect("a directory").flatten().collect();
        names.sort_by_key(|entry| entry.file_name());
        names.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    for linked in [false, true] {
        if linked {
            std::fs::remove_file(&direct).expect("a file");
            std::os::unix::fs::symlink(&target, &direct).expect("a link");
        }
        let refused = cramped(&scene, &opencode);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&direct).expect("a file"), text, "linked: {linked}");
        assert_eq!((names("{CWD}"), names("{HOME}").len()), (vec!["opencode.json".to_string()], 2));

        let written = command(&scene, BROKER).args(opencode).output().expect("the binary runs");
        assert!(written.status.success(), "{written:?}");
        let now: Value = serde_json::from_str(&std::fs::read_to_string(&direct).expect("a file")).expect("JSON");
        assert_eq!(now["theme"], "dark");
        assert!(now["mcp"]["agent-relay"].is_object());
        assert_eq!(direct.is_symlink(), linked, "a link stays one");
        assert_eq!(std::fs::metadata(&direct).expect("a file").mode() & 0o777, 0o640);
    }
    // What cannot be written here is no reason not to start.
    let started = cramped(&scene, &["mcp-args", "--cli", "gemini", "--agent-name", "a"]);
    assert!(started.status.success(), "{started:?}");
    assert_eq!(std::fs::read_to_string(&list).expect("a file"), text);
}

/// A broker that shows one screen, once per connection.
fn shows_a_screen() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut out = stream.try_clone().expect("a second handle");
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let body = json!({"screen": "a screen"}).to_string();
            let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        }
    });
    url
}

#[test]
fn a_stdout_that_takes_nothing_is_an_error_or_the_end_and_no_panic() {
    let scene = Scene::new("stdout");
    let url = shows_a_screen();
    let lines: [&[&str]; 8] = [
        &["--version"],
        &["--help"],
        &["help"],
        &["help", "init"],
        &["init", "--help"],
        &["swarm", "--list"],
        &["mcp-args", "--cli", "aider", "--agent-name", "a"],
        &["dump-pty", "a", "--broker-url", &url],
    ];
    for args in lines {
        let run = |stdout: Stdio| {
            let mut command = command(&scene, BROKER);
            let ended = command.args(args).stdout(stdout).stderr(Stdio::piped()).output().expect("the binary runs");
            (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
        };
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
        let (code, said) = run(full.into());
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.starts_with("Error: stdout cannot be written\n"), "{args:?}: {said}");
        assert!(said.contains("No space left"), "{args:?}: {said}");

        let (reader, gone) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert_eq!(run(gone.into()), (Some(0), String::new()), "{args:?}");
    }
    // Without a command the help goes to stderr, which may be closed too.
    let (reader, gone) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = command(&scene, BROKER).stderr(gone).status().expect("the binary runs");
    assert_eq!(status.code(), Some(2));
}
