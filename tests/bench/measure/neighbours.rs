//! What a bad neighbour costs: a program that prints without end while somebody watches, one that never reads its terminal,
//! and a gigabyte through one terminal.

use std::time::Duration;

use super::output::Viewer;
use super::{Run, latency};
use crate::broker::Broker;
use crate::clock::Deadline;
use crate::probe::Report;
use crate::processes;

/// More than can be printed while this is measured.
const ENDLESS_MB: u64 = 1 << 30;
/// Messages for the program that reads none: more than its terminal takes.
const UNREAD: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(100);
/// The part of the output after which everything has its working size.
const WARM: u64 = 20;

/// Messages to a silent agent beside one that prints as fast as it can.
pub fn loud(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    let _viewer = Viewer::open(&broker)?;
    broker.spawn_probe("solo", 0)?;
    broker.spawn_flood("loud", 1, ENDLESS_MB)?;
    let deadline = Deadline::after(LIMIT);
    while broker.sightings.next(deadline).ok_or("the other agent does not print")?.report != Report::FloodBegins {}
    latency::solo(run, &broker, "loud")
}

/// Messages to an agent beside one whose program never reads, with more typed for it than its terminal takes.
pub fn deaf(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    broker.spawn_probe("solo", 0)?;
    broker.spawn("deaf", "sh -c 'stty raw -echo; exec sleep 600'")?;
    for _ in 0..UNREAD {
        broker.engine.deliver("deaf", &"nobody reads this. ".repeat(200))?;
    }
    latency::solo(run, &broker, "deaf")
}

/// Memory while one terminal prints much, with a viewer that takes it all.
pub fn gigabyte(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    let viewer = Viewer::open(&broker)?;
    let total = run.settings.long_flood_megabytes;
    broker.spawn_flood("flood", 0, total)?;
    let deadline = Deadline::after(LIMIT);
    let (mut warm, mut most) = (None, 0.0_f64);
    let bytes = loop {
        if deadline.passed() {
            return Err("the output did not end in time".into());
        }
        let look = Deadline::after(LOOK);
        let ended = broker.sightings.next(look).and_then(|sighting| match sighting.report {
            Report::FloodEnds(bytes) => Some(bytes),
            _ => None,
        });
        let rss = processes::cost(broker.pid())?.rss as f64 * 1024.0 / 1e6;
        if warm.is_some() || viewer.seen() >= total * 1_000_000 / WARM {
            most = most.max(rss - *warm.get_or_insert(rss));
        }
        if let Some(bytes) = ended {
            break bytes;
        }
    };
    run.samples.add("long_flood_rss_mb", most);
    run.samples.add("long_flood_seen_percent", viewer.settle(bytes) as f64 * 100.0 / bytes as f64);
    Ok(())
}
