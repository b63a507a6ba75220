//! How long a message takes: from the `deliver` frame leaving the engine to the first byte that the program reads, to the
//! Enter that it reads last, to the `delivery.ack` back at the engine. The Enter follows the body after 50 ms by contract,
//! so `deliver → ack` says little where acks are honest; `last byte read → ack` says what the broker adds.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::Duration;

use super::Run;
use crate::broker::Broker;
use crate::clock::{Deadline, millis};
use crate::engine::Sent;
use crate::probe::{Report, Sighting};

/// How long one message may take before the measurement gives up.
const LIMIT: Duration = Duration::from_secs(15);
/// Between two messages to one agent, so that each finds an idle broker.
const PAUSE: Duration = Duration::from_millis(15);

/// One message under way, as the program sees it.
struct Flight {
    sent: Sent,
    marker: String,
    read: Vec<u8>,
    first: Option<u64>,
}

/// Times of a message that was read to its Enter.
struct Landing {
    sent: Sent,
    first: u64,
    enter: u64,
}

impl Flight {
    /// Takes one sighting; the landing if it was the Enter of this message.
    fn see(&mut self, at: u64, bytes: &[u8]) -> Option<Landing> {
        let first = *self.first.get_or_insert(at);
        self.read.extend_from_slice(bytes);
        let whole = self.read.ends_with(b"\r") && contains(&self.read, self.marker.as_bytes());
        whole.then(|| Landing { sent: self.sent.clone(), first, enter: at })
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn launch(broker: &Broker, agent: &str, number: usize) -> Result<Flight, String> {
    let marker = format!("message {number} ends here");
    let text = format!("please look at the failing test in the parser; {marker}");
    Ok(Flight { sent: broker.engine.deliver(agent, &text)?, marker, read: Vec::new(), first: None })
}

/// Waits for the ack and notes the times.
fn note(run: &mut Run<'_>, broker: &Broker, series: &str, landing: &Landing) -> Result<(), String> {
    let Sent { agent, seq, at } = &landing.sent;
    let acked = broker
        .engine
        .wait(LIMIT, |book| book.acked_at(agent, *seq))
        .ok_or_else(|| format!("message {seq} of {agent} was read but not acknowledged"))?;
    run.samples.add(format!("{series}_first_byte_ms"), millis(*at, landing.first));
    run.samples.add(format!("{series}_ack_ms"), millis(*at, acked));
    run.samples.add(format!("{series}_enter_ack_ms"), millis(landing.enter, acked));
    Ok(())
}

fn next(broker: &Broker, deadline: Deadline) -> Option<(u16, u64, Vec<u8>)> {
    while let Some(Sighting { at, probe, report }) = broker.sightings.next(deadline) {
        if let Report::Read(bytes) = report {
            return Some((probe, at, bytes));
        }
    }
    None
}

/// One agent, one message at a time.
pub fn one(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    broker.spawn_probe("solo", 0)?;
    solo(run, &broker, "one")
}

/// One message at a time to the agent `solo`, probe 0, whatever else the broker does meanwhile.
pub fn solo(run: &mut Run<'_>, broker: &Broker, series: &str) -> Result<(), String> {
    for number in 0..run.share(run.settings.single) {
        broker.sightings.clear();
        let mut flight = launch(broker, "solo", number)?;
        let deadline = Deadline::after(LIMIT);
        let landing = loop {
            let (_, at, bytes) = next(broker, deadline).ok_or_else(|| late(&flight))?;
            if let Some(landing) = flight.see(at, &bytes) {
                break landing;
            }
        };
        note(run, broker, series, &landing)?;
        sleep(PAUSE);
    }
    Ok(())
}

fn late(flight: &Flight) -> String {
    let read = String::from_utf8_lossy(&flight.read);
    format!("message {} of {} was not read to its Enter; read: {read:?}", flight.sent.seq, flight.sent.agent)
}

/// Many agents in turn: one message each 10 ms, so each agent has one each 10 ms × agents; an agent that still has one
/// under way is waited for.
pub fn crowd(run: &mut Run<'_>) -> Result<(), String> {
    let agents = run.settings.crowd;
    let mut broker = Broker::start(run.binary)?;
    let names: Vec<String> = (0..agents).map(|number| format!("crowd-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        broker.spawn_probe(name, number as u16)?;
    }
    let total = run.share(run.settings.crowd_deliveries);
    let mut flights: HashMap<u16, Flight> = HashMap::new();
    let mut landings = Vec::new();
    let mut sent = 0;
    let mut turn = Deadline::after(Duration::ZERO);
    let mut deadline = Deadline::after(LIMIT);
    while landings.len() < total {
        let probe = (sent % agents) as u16;
        if sent < total && turn.passed() && !flights.contains_key(&probe) {
            flights.insert(probe, launch(&broker, &names[usize::from(probe)], sent)?);
            sent += 1;
            turn = Deadline::after(Duration::from_millis(10));
        }
        let until = if sent < total && !turn.passed() { turn } else { Deadline::after(Duration::from_millis(5)) };
        let Some((probe, at, bytes)) = next(&broker, until) else {
            if deadline.passed() {
                return Err(flights.values().next().map_or("no progress".into(), late));
            }
            continue;
        };
        if let Some(landing) = flights.get_mut(&probe).and_then(|flight| flight.see(at, &bytes)) {
            flights.remove(&probe);
            landings.push(landing);
            deadline = Deadline::after(LIMIT);
        }
    }
    for landing in &landings {
        note(run, &broker, "crowd", landing)?;
    }
    Ok(())
}
