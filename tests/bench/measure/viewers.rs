//! What viewers of `/ws` cost the agents that they watch, and the broker's memory; and local requests meanwhile. The agents
//! print 1 MB/s together, at a steady pace: an agent is slowed when its terminal does not take that in time.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::json;

use super::output::Viewer;
use super::{Run, lifetime};
use crate::broker::Broker;
use crate::clock::{Deadline, millis};
use crate::probe::Report;
use crate::processes;

const TOGETHER: u64 = 1_000_000;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(250);

/// The agents of one broker.
struct Printers {
    names: Vec<String>,
    seconds: u64,
}

impl Printers {
    fn start(broker: &mut Broker, count: usize, seconds: u64) -> Result<Printers, String> {
        let rate = TOGETHER / count as u64;
        let names: Vec<String> = (0..count).map(|number| format!("printer-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            broker.spawn_printer(name, number as u16, rate * seconds, rate)?;
        }
        Ok(Printers { names, seconds })
    }

    fn go(&self, broker: &mut Broker) -> Result<(), String> {
        broker.sightings.clear();
        for name in &self.names {
            broker.call("POST", &format!("/api/input/{name}"), Some(&json!({"data": "g"})))?;
        }
        Ok(())
    }

    /// All print once: milliseconds that each took, and the most memory (MB) that the broker had meanwhile.
    fn print(&self, broker: &mut Broker) -> Result<(Vec<f64>, f64), String> {
        self.go(broker)?;
        let limit = Deadline::after(Duration::from_secs(self.seconds * 5 + 30));
        let mut began = vec![None; self.names.len()];
        let mut took = vec![None; self.names.len()];
        let mut most: f64 = 0.0;
        let mut look = Deadline::after(LOOK);
        while took.iter().any(Option::is_none) {
            if limit.passed() {
                return Err("the agents do not come to the end of their output".into());
            }
            if look.passed() {
                most = most.max(megabytes(broker)?);
                look = Deadline::after(LOOK);
            }
            let Some(sighting) = broker.sightings.next(look) else { continue };
            let number = usize::from(sighting.probe);
            match sighting.report {
                Report::FloodBegins => began[number] = Some(sighting.at),
                Report::FloodEnds(_) => took[number] = began[number].map(|began| millis(began, sighting.at)),
                Report::Up | Report::Read(_) => {}
            }
        }
        Ok((took.into_iter().flatten().collect(), most.max(megabytes(broker)?)))
    }
}

fn megabytes(broker: &Broker) -> Result<f64, String> {
    Ok(processes::cost(broker.pid())?.rss as f64 * 1024.0 / 1e6)
}

/// How much longer (percent) the agent took that was slowed most.
fn slowed(before: &[f64], after: &[f64]) -> f64 {
    before.iter().zip(after).map(|(before, after)| (after / before - 1.0) * 100.0).fold(f64::MIN, f64::max)
}

/// Viewers that read as fast as can be, all on one thread: they are to cost the broker, not this machine.
struct Crowd {
    seen: Arc<Vec<AtomicU64>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    fn open(broker: &Broker, count: usize) -> Result<Crowd, String> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let stream = broker.socket("/ws")?.get_ref().try_clone().map_err(|e| format!("viewer: {e}"))?;
            stream.set_nonblocking(true).map_err(|e| format!("viewer: {e}"))?;
            streams.push(stream);
        }
        let seen: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        let ended = Arc::new(AtomicBool::new(false));
        let (count, end) = (seen.clone(), ended.clone());
        let thread = std::thread::Builder::new()
            .name("viewers".into())
            .spawn(move || drain(&streams, &count, &end))
            .map_err(|e| format!("viewers: {e}"))?;
        Ok(Crowd { seen, ended, thread: Some(thread) })
    }

    /// What the one that saw least saw of what the one that saw most did, in percent, once nothing more comes.
    fn least(&self) -> f64 {
        let sums = || self.seen.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect::<Vec<u64>>();
        let mut before = sums();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = sums();
            if now == before {
                let (least, most) = (now.iter().min().copied(), now.iter().max().copied());
                return least.unwrap_or(0) as f64 * 100.0 / most.unwrap_or(0).max(1) as f64;
            }
            before = now;
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Counts what comes, frames and all: every viewer is sent the same ones.
fn drain(streams: &[TcpStream], seen: &[AtomicU64], ended: &AtomicBool) {
    let mut buffer = vec![0; 256 << 10];
    let mut fds: Vec<PollFd<'_>> = streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while !ended.load(Ordering::Relaxed) {
        let _ = poll(&mut fds, Some(&timeout));
        for (number, mut stream) in streams.iter().enumerate() {
            if fds[number].revents().is_empty() {
                continue;
            }
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => drop(seen[number].fetch_add(count as u64, Ordering::Relaxed)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return,
            }
        }
    }
}

/// Round trips of the two routes while agents print and one viewer watches.
pub fn busy(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    // They print as long as it takes.
    let printers = Printers::start(&mut broker, run.settings.printers, 3600)?;
    let viewer = Viewer::open(&broker)?;
    printers.go(&mut broker)?;
    let deadline = Deadline::after(Duration::from_secs(10));
    while viewer.seen() < TOGETHER / 10 {
        if deadline.passed() {
            return Err("no output comes".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..run.share(run.settings.requests) {
        lifetime::ask(run, &mut broker, "busy_")?;
        // Spread over the pieces that the agents print, not between two of them.
        std::thread::sleep(Duration::from_millis(3));
    }
    Ok(())
}

/// The same output without viewers, with many, and with one that never reads.
pub fn viewers(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    let printers = Printers::start(&mut broker, run.settings.printers, run.settings.print_seconds)?;
    let (alone, _) = printers.print(&mut broker)?;
    let before = megabytes(&broker)?;

    let crowd = Crowd::open(&broker, run.settings.viewers)?;
    let (watched, most) = printers.print(&mut broker)?;
    run.samples.add("viewers_slowed_percent", slowed(&alone, &watched));
    run.samples.add("viewers_rss_mb", most - before);
    run.samples.add("viewers_seen_percent", crowd.least());
    drop(crowd);
    std::thread::sleep(run.settings.load_rest);
    run.samples.add("viewers_left_mb", megabytes(&broker)? - before);

    let before = megabytes(&broker)?;
    let mute = broker.socket("/ws")?;
    set_socket_recv_buffer_size(mute.get_ref(), 4096).map_err(|e| format!("mute viewer: {e}"))?;
    let (watched, most) = printers.print(&mut broker)?;
    run.samples.add("mute_slowed_percent", slowed(&alone, &watched));
    run.samples.add("mute_rss_mb", most - before);
    drop(mute);
    Ok(())
}
