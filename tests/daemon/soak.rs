//! Long lives under load: what a broker has must not grow, and whatever end its agents meet must be told once and truly.
//!
//! The short form of the storm runs with the other tests; `make soak MINUTES=n` runs both in full.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::storm::{Rig, entries, resident, thread_names};
use crate::until::LONG;

/// Starts again this often; the next end is final.
const RESTARTS: u64 = 2;
/// Memory may settle that much after the warm-up, in KiB and in parts of a hundred.
const GROWTH: (u64, u64) = (3 << 10, 10);

/// Reads like any agent, has a child in its session and one outside, and ends with 7 when it is told by USR1.
const PROGRAM: &str = r#"#!/bin/sh
trap 'exit 7' USR1
seen="$DAEMON_TEST_HOUSE/seen/$RELAY_AGENT_NAME"
mkdir -p "$seen"
sleep 1000 & setsid sleep 1000 &
# Process ids come again in a long storm: what an earlier life under this one has read stays.
[ -e "$seen/read.$$" ] && cat "$seen/read.$$" >> "$seen/read.0"
: > "$seen/read.$$"
echo '->pty:ready'
while :; do IFS= read -r line && printf '%s\n' "$line" >> "$seen/read.$$"; done
"#;

/// Small, seeded numbers: which agent, which end, when.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

/// What became of one name.
#[derive(Default)]
struct Fate {
    supervised: bool,
    /// The life that was last brought to its end.
    killed: Option<u32>,
    /// Ends since it was last asked for.
    ends: u64,
    asked_for: u64,
    /// Code and signal of every end, in order.
    expected: Vec<(Value, Value)>,
}

impl Fate {
    /// It does not come back by itself.
    fn is_over(&self) -> bool {
        self.ends > if self.supervised { RESTARTS } else { 0 }
    }
}

fn running(broker: &Broker) -> BTreeMap<String, u32> {
    let rows = broker.ok("GET", "/api/spawned", None)["agents"].take();
    let row = |row: &Value| Some((row["name"].as_str()?.to_string(), u32::try_from(row["pid"].as_u64()?).ok()?));
    rows.as_array().into_iter().flatten().filter_map(row).collect()
}

fn zombies_of(broker: &Broker) -> Vec<String> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mark = format!(") Z {} ", broker.process.pid());
    let stats = all.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&mark)).collect()
}

/// What a broker has at one moment.
#[derive(Debug)]
struct Sample {
    /// KiB.
    resident: u64,
    descriptors: usize,
    threads: usize,
    /// Lengths by the name of the thread that drains it, agents' own as one; and what waits for all agents together.
    queues: BTreeMap<String, u64>,
}

/// Of the thread report, and of the status.
fn queues(broker: &Broker) -> BTreeMap<String, u64> {
    let report = broker.call("GET", "/api/debug/threads", None).text;
    let mut found = BTreeMap::new();
    for line in report.lines() {
        // Id, name, state, kernel, since, queue, what it does.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, name, _, _, _, queue, ..] = words[..] else { continue };
        let Ok(length) = queue.parse::<u64>() else { continue };
        let name = if name.starts_with("pty-") { "pty-*" } else { name };
        *found.entry(name.to_string()).or_default() += length;
    }
    assert!(!found.is_empty(), "no queue in the report:\n{report}");
    found.insert("messages".into(), broker.status()["pending_delivery_count"].as_u64().expect("a count"));
    found
}

/// Agents meet their ends at random times while they are written to.
fn ends(agents: usize, time: Duration) {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_0fe4_d501);
    println!("SEED={seed}");
    let mut dice = Dice(seed);
    let mut rig = Rig::started(|start| start.arg("--persist"));
    std::fs::write(rig.broker.house.path("soak.sh"), PROGRAM).expect("the program");
    let cli = format!("/bin/sh {}", rig.broker.house.path("soak.sh").display());
    let broker = &rig.broker;
    let names: Vec<String> = (0..agents).map(|number| format!("a{number}")).collect();
    let mut fates: BTreeMap<&str, Fate> = BTreeMap::new();
    for (number, name) in names.iter().enumerate() {
        fates.insert(name, Fate { supervised: number % 3 != 0, ..Fate::default() });
    }
    let policy = json!({"cooldown_ms": 200, "max_restarts": RESTARTS, "max_consecutive_failures": 100});
    let ask_for = |name: &str, fate: &mut Fate| {
        let policy = fate.supervised.then_some(&policy);
        let answer = broker.spawn_with(&json!({"name": name, "cli": cli, "restartPolicy": policy}));
        if answer.status == 200 {
            (fate.ends, fate.asked_for) = (0, fate.asked_for + 1);
        } else {
            // Its end is under way.
            assert!(answer.text.contains("already exists"), "{}\n{}", answer.text, broker.seen());
        }
        answer.status == 200
    };
    for (name, fate) in &mut fates {
        assert!(ask_for(name, fate), "{name}");
    }
    let mut sent: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut kills = 0u64;
    let until = Instant::now() + time;
    while Instant::now() < until {
        let here = running(broker);
        let name = &names[dice.roll(agents)];
        let text = format!("message {}.", sent.len());
        let answer = broker.call("POST", "/api/send", Some(&json!({"to": name, "message": text})));
        if answer.status == 200 && answer.json()["local"] == true {
            let event_id = answer.json()["event_id"].as_str().expect("an event id").to_string();
            sent.insert(event_id, (name.clone(), text));
        }
        // Often enough that ends meet messages, seldom enough that messages are read.
        if dice.roll(4) > 0 {
            continue;
        }
        let name = names[dice.roll(agents)].as_str();
        let fate = fates.get_mut(name).expect("a fate");
        match here.get(name).filter(|pid| fate.killed != Some(**pid)) {
            Some(pid) => {
                // USR1 means an end only to a program that has come so far as to say so.
                let is_up = broker.house.read_by_life(name, *pid).is_some();
                let (signal, code) =
                    [(Signal::KILL, None), (Signal::TERM, None), (Signal::SEGV, None), (Signal::USR1, Some(7))]
                        [dice.roll(if is_up { 4 } else { 3 })];
                kill_process(Pid::from_raw(*pid as i32).expect("an id"), signal).expect("only the storm ends it");
                let expected = match code {
                    Some(code) => (json!(code), Value::Null),
                    None => (Value::Null, json!(signal.as_raw().to_string())),
                };
                fate.expected.push(expected);
                (fate.killed, fate.ends, kills) = (Some(*pid), fate.ends + 1, kills + 1);
            }
            None if fate.is_over() => drop(ask_for(name, fate)),
            None => {}
        }
    }
    // Calm: whoever comes back does, whoever has ended is gone.
    broker.until("every agent as its policy has it", || {
        let here = running(broker);
        let settled = fates.iter().all(|(name, fate)| match here.get(*name) {
            Some(pid) => fate.killed != Some(*pid),
            None => fate.is_over(),
        });
        settled.then_some(())
    });
    broker.until("nothing on its way", || (broker.status()["pending_delivery_count"] == 0).then_some(()));
    let ended: u64 = fates.values().map(|fate| fate.asked_for - u64::from(!fate.is_over())).sum();
    let lives = fates.values().filter(|fate| fate.supervised);
    let for_good: u64 = lives.map(|fate| fate.asked_for - u64::from(!fate.is_over())).sum();
    let count = |events: &[Value], kind: &str| events.iter().filter(|event| event["kind"] == kind).count() as u64;
    let events = broker.until("every end in the events", || {
        let events = broker.events();
        let told = (count(&events, "agent_exited"), count(&events, "agent_permanently_dead"));
        (told == (ended, for_good)).then_some(events)
    });
    for (name, fate) in &fates {
        let ends = events.iter().filter(|event| {
            event["name"] == *name && ["agent_exited", "agent_restarting"].iter().any(|kind| event["kind"] == *kind)
        });
        let told: Vec<(Value, Value)> = ends.map(|end| (end["code"].clone(), end["signal"].clone())).collect();
        assert_eq!(told, fate.expected, "{name}: one true record of each end");
    }
    assert_eq!(count(&events, "agent_restarted"), kills - ended, "{}", broker.seen());
    let metrics = broker.ok("GET", "/api/metrics", None)["broker"].take();
    assert_eq!((&metrics["total_crashes"], &metrics["total_restarts"]), (&json!(kills), &json!(kills - ended)));
    let dead: BTreeMap<&str, &str> = events
        .iter()
        .filter(|event| event["kind"] == "dead_letter_added")
        .filter_map(|event| Some((event["event_id"].as_str()?, event["reason"].as_str()?)))
        .collect();
    let read: BTreeMap<&str, String> = names.iter().map(|name| (name.as_str(), broker.house.read_by(name))).collect();
    // The kernel proves what a program has taken; one that is killed at that moment has no time to write it down.
    let died_of_it = |event_id: &str, name: &str| {
        let own = || events.iter().filter(|event| event["name"] == name);
        let mut after =
            own().skip_while(|event| event["kind"] != "delivery_read" || event["event_id"] != event_id).skip(1);
        let next = ["delivery_read", "agent_exited", "agent_restarting"];
        let next = after.find(|event| next.iter().any(|kind| event["kind"] == *kind));
        next.is_some_and(|event| event["kind"] != "delivery_read")
    };
    let lost: Vec<_> = sent
        .iter()
        .filter(|(event_id, (name, text))| {
            !read[name.as_str()].contains(text)
                && dead.get(event_id.as_str()).is_none_or(|reason| reason.is_empty())
                && !died_of_it(event_id, name)
        })
        .collect();
    // What was told of the lost ones and of the lives that they were in.
    let story = |name: &str| -> String {
        let own = events.iter().filter(|event| event["name"] == name && event["kind"] != "worker_stream");
        own.map(|event| format!("{event}\n")).collect()
    };
    let stories: String =
        lost.iter().map(|(_, (name, _))| name).collect::<BTreeSet<_>>().into_iter().map(|name| story(name)).collect();
    assert!(lost.is_empty(), "neither read nor on record: {lost:?}\n{stories}\n{}", broker.seen());
    let dead = sent.keys().filter(|event_id| dead.contains_key(event_id.as_str())).count();
    println!("{} messages, {dead} of them dead; {kills} ends, {ended} of them final", sent.len());
    assert!(dead < sent.len(), "nothing was read");
    assert!(kills as usize >= agents / 2 && !sent.is_empty(), "a storm, not {kills} ends");

    for name in running(broker).into_keys() {
        broker.ok("DELETE", &format!("/api/spawned/{name}"), None);
    }
    let survivors = || {
        let all = broker.house.processes().into_iter().map(|(_, line)| line);
        all.filter(|line| line.contains("soak.sh") || line == "sleep 1000").collect::<BTreeSet<_>>()
    };
    broker.until("the end of every tree", || survivors().is_empty().then_some(()));
    broker.until("no zombie", || zombies_of(broker).is_empty().then_some(()));
    rig.as_before();
}

/// Twenty agents that are written to and read; what the broker has afterwards is what it had.
fn flat(agents: usize, time: Duration) {
    let mut rig = Rig::started(|start| start.arg("--persist"));
    let broker = &rig.broker;
    let names: Vec<String> = (0..agents).map(|number| format!("a{number}")).collect();
    for name in &names {
        broker.spawn(name);
    }
    let began = Instant::now();
    let sample = || {
        broker.until("nothing on its way", || (broker.status()["pending_delivery_count"] == 0).then_some(()));
        let steady = |name: &&String| !["engine-", "http-"].iter().any(|kind| name.starts_with(kind));
        let threads = thread_names(broker).iter().filter(steady).count();
        Sample { resident: resident(broker), descriptors: entries(broker, "fd").len(), threads, queues: queues(broker) }
    };
    let mut start = None;
    let mut number = 0usize;
    while began.elapsed() < time {
        if start.is_none() && began.elapsed() > time / 5 {
            // Warm by now.
            start = Some(sample());
        }
        let body = json!({"to": names[number % agents], "message": format!("message {number}.")});
        broker.ok("POST", "/api/send", Some(&body));
        number += 1;
        if number.is_multiple_of(10) {
            // About as much as people and their agents write.
            std::thread::sleep(Duration::from_millis(250));
        }
    }
    let (start, end) = (start.expect("a sample"), sample());
    println!("{number} messages\nat the start: {start:?}\nat the end:   {end:?}");
    for (at, name) in names.iter().enumerate() {
        let read = broker.house.read_by(name);
        for number in (at..number).step_by(agents) {
            assert_eq!(read.matches(&format!(": message {number}.")).count(), 1, "message {number} of {name}");
        }
    }
    let settled = start.resident + (start.resident * GROWTH.1 / 100).max(GROWTH.0);
    assert!(end.resident <= settled, "memory grows: {start:?} {end:?}");
    assert!(end.descriptors <= start.descriptors + 4 && end.threads <= start.threads, "{start:?} {end:?}");
    assert!(end.queues.values().all(|length| *length <= 2), "something is left in a queue: {end:?}");
    names.iter().for_each(|name| drop(broker.ok("DELETE", &format!("/api/spawned/{name}"), None)));
    rig.as_before();
}

/// The time of the long runs.
fn minutes() -> Duration {
    let minutes = std::env::var("MINUTES").ok().and_then(|minutes| minutes.parse().ok()).unwrap_or(10);
    Duration::from_secs(60 * minutes).max(LONG)
}

#[test]
fn agents_that_are_killed_under_traffic_are_accounted_for() {
    ends(15, Duration::from_secs(8));
}

#[test]
#[ignore = "make soak"]
fn soak_of_ends() {
    ends(50, Duration::from_secs(120).min(minutes()));
}

#[test]
#[ignore = "make soak"]
fn soak_of_traffic() {
    flat(20, minutes());
}
