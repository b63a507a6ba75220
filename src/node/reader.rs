//! Thread `node-reader`: dials, reads, reports. It alone speaks to the core, so the order of the notes is the order of
//! the facts: every `Connect` is answered by one `Opened` or one `Refused`, every `Opened` ends in one `Closed`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

use super::connection::{Connection, is_would_block, words};
use super::dial::dial;
use super::stream::Patience;
use super::wait::{For, wait};
use super::{Control, Shared, writer};
use crate::core::ports::{LinkGeneration, NodeNote, Refusal, Secret};
use crate::sys::threads;
use crate::wire::node::FromEngine;

/// Messages read under one hold of the lock, so that the writer gets its turn in a flood.
const BATCH: usize = 64;

/// The thread's body. Ends with [`Control::Stop`].
#[inline(never)]
pub fn run(shared: &Arc<Shared>, notes: &dyn Fn(NodeNote)) {
    loop {
        threads::doing("waiting for a connect");
        let Ok(control) = shared.controls.recv() else {
            return;
        };
        let mut next = Some(control);
        while let Some(control) = next.take() {
            match control {
                Control::Stop => return,
                Control::Connect { generation, token } => {
                    next = connect(shared, notes, generation, &token);
                }
            }
        }
    }
}

/// One connection from the dial to its end. Gives back the control that ended it early, if one did.
fn connect(
    shared: &Arc<Shared>,
    notes: &dyn Fn(NodeNote),
    generation: LinkGeneration,
    token: &Secret,
) -> Option<Control> {
    threads::doing("dialling the engine");
    let asked = shared.clone();
    let patience = Patience {
        deadline: Instant::now() + shared.options.connect_limit,
        wake: shared.wake.clone(),
        cancelled: Arc::new(move || asked.is_cancelled(generation)),
    };
    let (socket, raw) = match dial(&shared.address, token, shared.options.trust.as_ref(), patience) {
        Ok(open) => open,
        Err(why) => {
            let why = match why {
                Refusal::Io(_) if shared.is_cancelled(generation) => Refusal::Io("given up".into()),
                why => why,
            };
            notes(NodeNote::Refused { generation, why });
            return None;
        }
    };
    let connection = Arc::new(Connection::new(generation, socket, raw));
    *shared.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(connection.clone());
    notes(NodeNote::Opened { generation });
    // A Close that came while we dialled found no connection to close.
    if shared.closed.load(Ordering::SeqCst) == generation {
        writer::close(shared, &connection);
    }
    let control = read_until_the_end(shared, notes, &connection);
    *shared.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    notes(NodeNote::Closed { generation, reason: connection.reason() });
    control
}

fn read_until_the_end(shared: &Shared, notes: &dyn Fn(NodeNote), connection: &Connection) -> Option<Control> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        threads::doing("reading the node socket");
        #[cfg(test)]
        shared.turns.fetch_add(1, Ordering::SeqCst);
        // The socket is drained before anybody sleeps: TLS may hold decrypted bytes with nothing on the wire.
        let read = read_batch(connection, &mut batch);
        for message in batch.drain(..) {
            dispatch(notes, connection.generation, &message);
        }
        match read.end {
            End::Not => {}
            End::Over => return None,
        }
        if connection.is_over() {
            return None;
        }
        if let Ok(control) = shared.controls.try_recv() {
            connection.end(match control {
                Control::Stop => "the link was stopped",
                Control::Connect { .. } => "replaced by a newer connection",
            });
            return Some(control);
        }
        if !read.drained {
            continue;
        }
        let now = Instant::now();
        let silent_at = read.last_inbound + shared.options.silence;
        let deadline = connection.close_by().map_or(silent_at, |at| at.min(silent_at));
        if now >= deadline {
            connection.end(if connection.close_by().is_some_and(|at| now >= at) {
                "the engine did not answer the close".to_string()
            } else {
                format!("no byte from the engine for {:.1} s", shared.options.silence.as_secs_f64())
            });
            return None;
        }
        threads::doing("waiting for the engine");
        let what = if read.reply_waits { For::Both } else { For::Input };
        match wait(Some((connection.descriptor(), what)), Some(&shared.wake), Some(deadline)) {
            Ok(woken) if woken.signal => shared.wake.clear(),
            Ok(_) => {}
            Err(error) => connection.end(format!("poll: {error}")),
        }
    }
}

enum End {
    Not,
    Over,
}

struct Read {
    end: End,
    /// Nothing is left to read, in the socket or in TLS.
    drained: bool,
    /// An automatic pong or close reply did not fit into the socket.
    reply_waits: bool,
    last_inbound: Instant,
}

/// Reads what is there, at most [`BATCH`] messages, and sends the automatic replies.
fn read_batch(connection: &Connection, batch: &mut Vec<String>) -> Read {
    let mut socket = connection.lock();
    let mut read = Read { end: End::Not, drained: false, reply_waits: false, last_inbound: Instant::now() };
    // Pings count too: they are work for the writer's lock like any other message.
    for _ in 0..BATCH {
        match socket.read() {
            Ok(Message::Text(text)) => batch.push(text.as_str().to_string()),
            Ok(Message::Close(frame)) => {
                let by_us = connection.close_by().is_some();
                connection.because(close_reason(frame.as_ref()));
                connection.closing();
                if by_us {
                    // Both sides have said it: nothing is left to wait for.
                    connection.end("closed");
                    read.end = End::Over;
                    break;
                }
            }
            // Binary has no meaning here; pongs only prove life, and their bytes did so already.
            Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            Err(error) if is_would_block(&error) => {
                read.drained = true;
                break;
            }
            Err(error) => {
                connection.end(words(&error));
                read.end = End::Over;
                break;
            }
        }
    }
    if matches!(read.end, End::Not) {
        match socket.flush() {
            Ok(()) => {}
            Err(error) if is_would_block(&error) => read.reply_waits = true,
            Err(error) => {
                connection.end(words(&error));
                read.end = End::Over;
            }
        }
    }
    read.last_inbound = socket.get_ref().last_inbound();
    read
}

/// The engine's words (`superseded`), or its code when it gives none.
fn close_reason(frame: Option<&CloseFrame>) -> String {
    match frame {
        Some(frame) if !frame.reason.trim().is_empty() => frame.reason.trim().to_string(),
        Some(frame) => format!("closed by the engine ({})", u16::from(frame.code)),
        None => "closed by the engine".to_string(),
    }
}

fn dispatch(notes: &dyn Fn(NodeNote), generation: LinkGeneration, text: &str) {
    notes(match FromEngine::decode(text) {
        Ok(frame) => NodeNote::Frame { generation, frame },
        Err(error) => NodeNote::Garbage { generation, error },
    });
}
