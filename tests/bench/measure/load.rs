//! Many messages at once: all frames leave the engine as fast as the broker takes them, in turn for each agent. The
//! programs count what they read: missing, doubled, out of order. Each agent takes less than 20 messages a second, because
//! 50 ms lie between a body and its Enter.

use std::time::Duration;

use super::Run;
use crate::broker::Broker;
use crate::clock::{Deadline, millis, now};
use crate::probe::{Report, Sighting};
use crate::processes;

/// Without any new message for so long, the rest is lost.
const STALLED: Duration = Duration::from_secs(15);
/// After the last message, doubles are waited for.
const AFTERMATH: Duration = Duration::from_millis(500);

/// What one program has read, message by message.
#[derive(Default)]
pub struct Reading {
    tail: Vec<u8>,
    /// Times that each message was read, by its number.
    seen: Vec<u32>,
    highest: Option<usize>,
    pub misordered: usize,
}

const OPEN: &[u8] = b"<load ";
const CLOSE: u8 = b'>';

/// The text that makes message `number` of an agent recognisable.
pub fn marker(number: usize) -> String {
    format!("<load {number}>")
}

impl Reading {
    pub fn expect(count: usize) -> Reading {
        Reading { seen: vec![0; count], ..Reading::default() }
    }

    /// Takes what was read; markers may be cut anywhere. Returns how many messages were seen for the first time.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        self.tail.extend_from_slice(bytes);
        let mut fresh = 0;
        let mut done = 0;
        while let Some(start) = find(&self.tail[done..], OPEN).map(|at| done + at) {
            let Some(length) = self.tail[start..].iter().position(|byte| *byte == CLOSE) else { break };
            let digits = &self.tail[start + OPEN.len()..start + length];
            let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
            if let Some(count) = number.and_then(|number| self.seen.get_mut(number)) {
                *count += 1;
                fresh += usize::from(*count == 1);
                self.misordered += usize::from(*count == 1 && self.highest > number);
                self.highest = self.highest.max(number);
            }
            done = start + length;
        }
        // Only the end may hold the beginning of a marker.
        let keep =
            find(&self.tail[done..], OPEN).map_or(self.tail.len().saturating_sub(OPEN.len()).max(done), |at| done + at);
        self.tail.drain(..keep);
        fresh
    }

    pub fn lost(&self) -> usize {
        self.seen.iter().filter(|count| **count == 0).count()
    }

    pub fn doubled(&self) -> u64 {
        self.seen.iter().map(|count| u64::from(count.saturating_sub(1))).sum()
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

pub fn load(run: &mut Run<'_>) -> Result<(), String> {
    let agents = run.settings.load_agents;
    let each = run.settings.load_deliveries.div_ceil(agents);
    let total = each * agents;
    let mut broker = Broker::start(run.binary)?;
    let names: Vec<String> = (0..agents).map(|number| format!("load-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        broker.spawn_probe(name, number as u16)?;
    }
    let mut readings: Vec<Reading> = (0..agents).map(|_| Reading::expect(each)).collect();
    let began = now();
    let sending = std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<(), String> {
            for number in 0..each {
                for name in &names {
                    broker.engine.deliver(name, &marker(number))?;
                }
            }
            Ok(())
        });
        let mut missing = total;
        let mut deadline = Deadline::after(STALLED);
        while let Some(Sighting { probe, report, .. }) = broker.sightings.next(deadline) {
            let Report::Read(bytes) = report else { continue };
            let fresh = readings.get_mut(usize::from(probe)).map_or(0, |reading| reading.take(&bytes));
            missing -= fresh;
            if missing == 0 {
                deadline = Deadline::after(AFTERMATH);
                missing = usize::MAX;
            } else if fresh > 0 && missing <= total {
                deadline = Deadline::after(STALLED);
            }
        }
        sender.join().map_err(|_| "the sending thread ended badly".to_string())?
    });
    sending?;
    let unacked = broker.engine.wait(STALLED, |book| (book.unacked() == 0).then_some(0));
    let unacked = unacked.unwrap_or_else(|| broker.engine.look(|book| book.unacked()));
    let ended = broker.engine.look(|book| book.last_ack()).ok_or("nothing was acknowledged")?;
    let seconds = millis(began, ended) / 1000.0;
    run.samples.add("load_s", seconds);
    run.samples.add("load_per_s", total as f64 / seconds);
    let lost = readings.iter().map(Reading::lost).sum::<usize>();
    let doubled = readings.iter().map(Reading::doubled).sum::<u64>();
    let misordered = readings.iter().map(|reading| reading.misordered).sum::<usize>();
    run.samples.add("load_lost", lost as f64);
    run.samples.add("load_doubled", doubled as f64);
    run.samples.add("load_misordered", misordered as f64);
    run.samples.add("load_unacked", unacked as f64);
    run.samples.add("load_peak_mb", processes::peak(broker.pid()) as f64 * 1024.0 / 1e6);
    std::thread::sleep(run.settings.load_rest);
    run.samples.add("load_rest_mb", processes::cost(broker.pid())?.rss as f64 * 1024.0 / 1e6);
    // A figure where it is measured, a failure where it is tested.
    if run.settings.smoke && (lost, doubled, misordered, unacked) != (0, 0, 0, 0) {
        return Err(format!("{lost} lost, {doubled} doubled, {misordered} out of order, {unacked} never acknowledged"));
    }
    Ok(())
}
