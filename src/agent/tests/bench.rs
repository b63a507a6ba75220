//! What agents leave behind, what they cost, and how fast a message is.

use super::*;

#[test]
fn k1_fifty_agents_leave_no_process_descriptor_or_thread() {
    let own = std::process::id();
    let children = |name: &str| {
        let entries = std::fs::read_dir("/proc").expect("proc").flatten();
        let stat = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let ours = format!(" {own} ");
        entries
            .filter(|entry| {
                let stat = stat(&entry.file_name().to_string_lossy());
                stat.contains(&format!("({name})")) && stat.contains(&ours)
            })
            .count()
    };
    let scratch = Scratch::new("fifty");
    let program = scratch.file("fifty-cat");
    std::fs::copy("/bin/cat", &program).expect("a copy");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut stages: Vec<Stage> = (0..50)
        .map(|index| {
            let mut launch = launch_of(&program.to_string_lossy(), &[]);
            launch.name = format!("fifty-{index}");
            Stage::start_with(launch, Timing::default(), &[], &[])
        })
        .collect();
    assert_eq!(children("fifty-cat"), 50);
    let threads = |report: &str| report.lines().filter(|line| line.contains("pty-fifty-")).count();
    assert_eq!(threads(&crate::sys::threads::report()), 50);
    let pids: Vec<i32> = stages.iter().map(Stage::pid).collect();
    for stage in &mut stages {
        stage.agent.send(AgentCommand::Release).expect("never refused");
    }
    for mut stage in stages {
        stage.until_exited();
        assert!(stage.agent.join(LIMIT));
    }
    assert_eq!(children("fifty-cat"), 0);
    assert_eq!(threads(&crate::sys::threads::report()), 0);
    for pid in pids {
        assert!(!exists(pid), "{pid} is left");
    }
}

#[test]
fn a_message_reaches_the_program_within_milliseconds() {
    let mut stage = Stage::sh("stty raw -echo; printf ready; exec cat");
    stage.until_text("ready");
    let mut took: Vec<Duration> = (0..21)
        .map(|round| {
            let id = format!("d{round}");
            // After silence, output is shown at once.
            stage.settle(Duration::from_millis(20));
            let asked = Instant::now();
            stage.inject(message(&id, "x"));
            let before = stage.text.len();
            while stage.text.len() == before {
                stage.take(LIMIT).expect("output");
            }
            let elapsed = asked.elapsed();
            stage.until("read", |note| *note == AgentNote::Read { delivery_id: id.clone() });
            elapsed
        })
        .collect();
    took.sort();
    // To the program and back through the viewers' path; the machine may be busy.
    assert!(took[10] < Duration::from_millis(20), "median {:?}, all {took:?}", took[10]);
    println!("inject to echo: median {:?}, worst {:?}", took[10], took[20]);
}
