//! How fast a program in a terminal can print while one viewer watches over `/ws`, and how much of it the viewer gets.

use std::borrow::Cow;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Deserialize;
use tungstenite::{Message, WebSocket};

use super::Run;
use crate::broker::Broker;
use crate::clock::{Deadline, millis};
use crate::probe::Report;

/// How long the program may take for its output.
const LIMIT: Duration = Duration::from_secs(120);
/// A viewer that has got nothing for so long has got everything.
const QUIET: Duration = Duration::from_millis(700);

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    chunk: Cow<'a, str>,
}

/// Counts the bytes of `worker_stream` events, on a thread of its own.
pub struct Viewer {
    seen: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Viewer {
    pub fn open(broker: &Broker) -> Result<Viewer, String> {
        let mut socket = broker.socket("/ws")?;
        let short = Some(Duration::from_millis(100));
        socket.get_mut().set_read_timeout(short).map_err(|e| format!("viewer: {e}"))?;
        let (seen, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (seen.clone(), ended.clone());
        let thread = std::thread::Builder::new()
            .name("viewer".into())
            .spawn(move || watch(&mut socket, &count, &end))
            .map_err(|e| format!("viewer: {e}"))?;
        Ok(Viewer { seen, ended, thread: Some(thread) })
    }

    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Waits until nothing has come for [`QUIET`], or all of `expected`.
    pub fn settle(&self, expected: u64) -> u64 {
        loop {
            let before = self.seen();
            if before >= expected {
                return before;
            }
            std::thread::sleep(QUIET);
            if self.seen() == before {
                return before;
            }
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(socket: &mut WebSocket<TcpStream>, seen: &AtomicU64, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match socket.read() {
            Ok(Message::Text(text)) => {
                if let Ok(event) = serde_json::from_str::<Event<'_>>(&text)
                    && event.kind == "worker_stream"
                {
                    seen.fetch_add(event.chunk.len() as u64, Ordering::Relaxed);
                }
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

pub fn flood(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    let viewer = Viewer::open(&broker)?;
    broker.spawn_flood("flood", 0, run.settings.flood_megabytes)?;
    let deadline = Deadline::after(LIMIT);
    let mut began = None;
    let (ended, bytes) = loop {
        let sighting = broker.sightings.next(deadline).ok_or("the output did not end in time")?;
        match sighting.report {
            Report::FloodBegins => began = Some(sighting.at),
            Report::FloodEnds(bytes) => break (sighting.at, bytes),
            Report::Up | Report::Read(_) => {}
        }
    };
    let seconds = millis(began.ok_or("an end without a beginning")?, ended) / 1000.0;
    run.samples.add("flood_mb_per_s", bytes as f64 / 1e6 / seconds);
    run.samples.add("flood_seen_percent", viewer.settle(bytes) as f64 * 100.0 / bytes as f64);
    Ok(())
}
