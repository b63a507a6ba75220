//! How long a keystroke takes: from its frame on the input stream to the ack that the terminal has it. Clients predict the
//! echo of what takes longer than 30 ms, so on one machine they must never have to.

use std::thread::sleep;
use std::time::Duration;

use tungstenite::Message;

use super::Run;
use crate::broker::Broker;
use crate::clock::{millis, now};

/// Between two keystrokes, so that each finds an idle broker.
const PAUSE: Duration = Duration::from_millis(5);

pub fn keys(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    broker.spawn_probe("typed", 0)?;
    let mut stream = broker.socket("/api/input/typed/stream")?;
    let hear = |socket: &mut tungstenite::WebSocket<std::net::TcpStream>, wanted: &str| loop {
        match socket.read().map_err(|error| format!("{wanted}: {error}"))? {
            Message::Text(text) if text.contains(wanted) => return Ok(()),
            Message::Text(text) => return Err(format!("instead of {wanted}: {text}")),
            _ => {}
        }
    };
    hear(&mut stream, "pty_input_ready")?;
    for _ in 0..run.share(run.settings.single) {
        sleep(PAUSE);
        let sent = now();
        stream.send(Message::text("k")).map_err(|error| format!("a keystroke: {error}"))?;
        hear(&mut stream, "pty_input_ack")?;
        run.samples.add("key_ack_ms", millis(sent, now()));
    }
    Ok(())
}
