//! What workers of every kind share: lines in, lines out, signals. One channel brings everything to the worker's own thread,
//! which alone speaks.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::agent;
use crate::daemon::Fatal;
use crate::sys::threads;
use crate::wire::worker::{self, FromWorker, Inbound, MAX_LINE_BYTES, Rejected};

/// Things that wait for the worker; more make who brings them wait.
const HEARD: usize = 64;
/// From a signal to the end, whatever the worker is doing.
const END: Duration = Duration::from_secs(5);

/// Messages that were handed over, by their ids: one that its caller repeats is not handed over again.
#[derive(Debug, Default)]
pub struct HandedOver(VecDeque<String>);

impl HandedOver {
    /// So many are known, the youngest.
    const KNOWN: usize = 1024;

    pub fn add(&mut self, delivery_id: &str) {
        if self.0.len() >= Self::KNOWN {
            self.0.pop_front();
        }
        self.0.push_back(delivery_id.to_string());
    }

    pub fn has(&self, delivery_id: &str) -> bool {
        self.0.iter().any(|known| known == delivery_id)
    }
}

/// What a worker hears of.
#[derive(Debug)]
pub enum Heard<T> {
    Frame(Result<Inbound, Rejected>),
    /// Nobody asks anything more.
    Closed,
    /// Of the work itself.
    News(T),
    Signal(i32),
}

/// The worker's end of the channel, and one for those who bring news.
pub type Ears<T> = (Receiver<Heard<T>>, Sender<Heard<T>>);

/// Begins to listen to stdin (`worker-in`) and for signals (`worker-sig`).
///
/// # Errors
/// No thread or no signal can be had.
pub fn listen<T: Send + 'static>() -> Result<Ears<T>, Fatal> {
    let failed = |error: io::Error| Fatal::new("the worker cannot listen").because(error);
    let (tell, heard) = bounded(HEARD);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD]).map_err(failed)?;
    let (lines, of_signals) = (tell.clone(), tell.clone());
    threads::spawn("worker-in", move || read_lines(&mut io::stdin().lock(), |frame| lines.send(frame).is_ok()))
        .map_err(failed)?;
    threads::spawn("worker-sig", move || {
        threads::doing("waiting for signals");
        for signal in signals.forever() {
            if signal == SIGCHLD {
                agent::reap_orphans();
            } else {
                let _ = of_signals.send_timeout(Heard::Signal(signal), END);
                // A caller that does not read holds the worker up: then the terminal goes with this process.
                let _ = threads::spawn("worker-end", move || {
                    std::thread::park_timeout(END);
                    die_of(signal);
                });
            }
        }
    })
    .map_err(failed)?;
    Ok((heard, tell))
}

/// Ends this process as the signal would have.
pub fn die_of(signal: i32) {
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}

/// Hands every line on, until there is none or nobody wants it.
fn read_lines<T>(from: &mut impl BufRead, give: impl Fn(Heard<T>) -> bool) {
    threads::doing("waiting for a frame");
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        let frame = if line.len() > MAX_LINE_BYTES && line.last() != Some(&b'\n') {
            let rest = skip_line(from);
            let message = format!("the line is longer than {MAX_LINE_BYTES} bytes");
            if rest.is_err() {
                break;
            }
            Err(Rejected { request_id: None, code: "invalid_frame", message })
        } else {
            worker::read(line.trim_ascii())
        };
        if !give(Heard::Frame(frame)) {
            return;
        }
    }
    give(Heard::Closed);
}

fn skip_line(from: &mut impl BufRead) -> io::Result<()> {
    loop {
        let part = from.fill_buf()?;
        let (taken, ends) = match part.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (part.len(), part.is_empty()),
        };
        from.consume(taken);
        if ends {
            return Ok(());
        }
    }
}

/// Says a frame. A caller that does not read makes the worker wait, and with it the program.
///
/// # Errors
/// The caller has gone.
pub fn say(frame: &FromWorker, request_id: Option<&str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(frame.line(request_id).as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::worker::ToWorker;

    #[test]
    fn lines_are_frames_and_one_that_never_ends_is_none() {
        let ping = |id: u8| format!("{{\"v\":2,\"type\":\"ping\",\"request_id\":\"{id}\",\"payload\":{{}}}}");
        let mut text = format!("{}\n\nnonsense\n{}\r\n", ping(1), ping(2)).into_bytes();
        text.extend(std::iter::repeat_n(b'x', MAX_LINE_BYTES + 5));
        text.extend(format!("\n{}", ping(3)).into_bytes());
        let seen = std::cell::RefCell::new(Vec::new());
        read_lines::<()>(&mut text.as_slice(), |heard| {
            seen.borrow_mut().push(match heard {
                Heard::Frame(Ok(Inbound { request_id: Some(id), asked: ToWorker::Ping { .. } })) => id,
                Heard::Frame(Err(rejected)) => rejected.code.to_string(),
                Heard::Closed => "closed".into(),
                other => panic!("{other:?}"),
            });
            true
        });
        let bad = "invalid_frame";
        assert_eq!(*seen.borrow(), ["1", bad, bad, "2", bad, "3", "closed"]);
    }
}
