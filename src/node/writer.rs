//! Thread `node-writer`: takes what is queued, in order, and gives it to the socket of its generation. What belongs to a
//! connection that is gone is dropped silently: the core says everything anew on the next one.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message};

use super::connection::{Connection, is_would_block, words};
use super::wait::{For, wait};
use super::{Outbound, Shared};
use crate::sys::bell::{self, Bell};
use crate::sys::threads;
use crate::wire::node::MAX_FRAME_BYTES;

/// The peer must take at least one byte in this time while something waits to be written.
pub const STALL_LIMIT: Duration = Duration::from_secs(10);

/// The thread's body. Ends when the link drops its end of the queue and the queue is empty.
#[inline(never)]
pub fn run(shared: &Shared, queue: &Receiver<Outbound>, bell: &Bell) {
    threads::drains(queue.clone());
    loop {
        threads::doing("waiting for a frame");
        let Ok(item) = bell::next(queue, bell) else {
            return;
        };
        threads::doing("writing the node socket");
        let Some(connection) = shared.current(item.generation()) else {
            continue;
        };
        match item {
            Outbound::Frame { frame, .. } => {
                let text = frame.encode();
                if text.len() > MAX_FRAME_BYTES {
                    // The engine would close the connection over it, again and again.
                    log::error!(
                        "a {} frame of {} bytes is over the engine's limit of {MAX_FRAME_BYTES}; it is not sent",
                        frame.kind(),
                        text.len()
                    );
                    continue;
                }
                push(shared, &connection, Message::text(text));
            }
            Outbound::Ping { .. } => push(shared, &connection, Message::Ping(Default::default())),
            Outbound::Close { .. } => close(shared, &connection),
        }
    }
}

/// Sends Close 1000 and gives the peer its second to answer; the reader sees the answer or the end of that second.
pub fn close(shared: &Shared, connection: &Connection) {
    connection.because("closed by the broker");
    connection.closing();
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    push(shared, connection, Message::Close(Some(frame)));
    shared.wake.signal();
}

/// Writes one message and everything that waited before it. Waits for the socket outside the lock; ends the connection
/// when the peer takes nothing for [`STALL_LIMIT`].
fn push(shared: &Shared, connection: &Connection, message: Message) {
    let mut message = Some(message);
    let mut progress = (u64::MAX, Instant::now());
    loop {
        if connection.is_over() {
            return;
        }
        let (step, written) = {
            let mut socket = connection.lock();
            let step = match message.take() {
                Some(message) => socket.send(message),
                None => socket.flush(),
            };
            (step, socket.get_ref().written())
        };
        match step {
            Ok(()) => return,
            // It is in the buffer already: flushing is all that is left.
            Err(error) if is_would_block(&error) => {}
            // Back-pressure: the replies to a flood of pings fill the buffer. The message comes back.
            Err(Error::WriteBufferFull(back)) => message = Some(*back),
            // A frame behind our own Close, or behind the peer's.
            Err(Error::Protocol(tungstenite::error::ProtocolError::SendAfterClosing)) => return,
            Err(error) => {
                connection.end(words(&error));
                shared.wake.signal();
                return;
            }
        }
        if progress.0 != written {
            progress = (written, Instant::now());
        }
        let deadline = progress.1 + shared.options.stall;
        if Instant::now() >= deadline {
            connection.end(format!("the engine took no byte for {:.1} s", shared.options.stall.as_secs_f64()));
            shared.wake.signal();
            return;
        }
        threads::doing("waiting for the engine to read");
        if let Err(error) = wait(Some((connection.descriptor(), For::Output)), None, Some(deadline)) {
            connection.end(format!("poll: {error}"));
            shared.wake.signal();
            return;
        }
    }
}
