//! What agents leave behind, what they cost, and how fast a message is.

use super::*;

/// Runs `body` alone in a process of its own, so that what it counts is its own. `name`: of the calling test.
#[track_caller]
fn alone(name: &str, body: impl FnOnce()) {
    const ALONE: &str = "BROKER_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let test = std::env::current_exe().expect("a test binary");
    let output = std::process::Command::new(test)
        .args(["--exact", &format!("agent::tests::bench::{name}"), "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    print!("{text}");
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("proc").count()
}

fn children() -> Vec<String> {
    let parent = format!(" {} ", std::process::id());
    let stats = std::fs::read_dir("/proc").expect("proc").flatten();
    stats
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest[1..].starts_with(&parent)))
        .collect()
}

fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn k1_fifty_agents_leave_nothing_and_cost_little() {
    alone("k1_fifty_agents_leave_nothing_and_cost_little", || {
        crate::sys::kernel::tune_allocator();
        super::super::become_subreaper().expect("allowed");
        let agent = || Stage::sh("printf '> '; exec cat");
        // The first one pays for what is loaded once.
        let mut first = agent();
        first.until("ready", |note| *note == AgentNote::Ready);
        first.release();
        assert!(first.agent.join(LIMIT));
        let before = (descriptors(), threads(), children());
        let resident = resident_kib();
        let mut stages: Vec<Stage> = (0..50).map(|_| agent()).collect();
        for stage in &mut stages {
            stage.until("ready", |note| *note == AgentNote::Ready);
        }
        assert_eq!((threads(), children().len()), (before.1 + 50, 50));
        assert!(descriptors() <= before.0 + 150, "three a piece: {} before, {}", before.0, descriptors());
        let grown = resident_kib().saturating_sub(resident);
        println!("50 idle agents: {grown} KiB, {} KiB each", grown / 50);
        assert!(grown < 12 << 10, "{grown} KiB");
        let asked = Instant::now();
        for stage in &stages {
            stage.agent.send(AgentCommand::Release).expect("never refused");
        }
        for mut stage in stages {
            stage.until_exited();
            assert!(stage.agent.join(LIMIT));
        }
        println!("50 released in {:?}", asked.elapsed());
        assert_eq!((descriptors(), threads(), children()), before);
    });
}

#[test]
fn t12_a_message_reaches_the_program_within_milliseconds() {
    let mut stage = Stage::sh("stty raw -echo; printf ready; exec cat");
    stage.until_text("ready");
    let mut took: Vec<Duration> = (0..21)
        .map(|round| {
            let id = format!("d{round}");
            // After silence, output is shown at once.
            stage.settle(Duration::from_millis(20));
            let before = stage.text.len();
            let asked = Instant::now();
            stage.inject(message(&id, "x"));
            while stage.text.len() == before {
                stage.take(LIMIT).expect("output");
            }
            let elapsed = asked.elapsed();
            let read = AgentNote::Read { delivery_id: id };
            if !stage.seen.iter().any(|(_, note)| *note == read) {
                stage.until("read", |note| *note == read);
            }
            elapsed
        })
        .collect();
    took.sort();
    // To the program and back through the viewers' path; the machine may be busy.
    assert!(took[10] < Duration::from_millis(20), "median {:?}, all {took:?}", took[10]);
    println!("inject to echo: median {:?}, worst {:?}", took[10], took[20]);
}
