//! Making one connection: name, TCP, TLS, upgrade, all within one deadline and stopped at once when it is cancelled.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustls::ClientConfig;
use tungstenite::handshake::client::generate_key;
use tungstenite::http::{HeaderValue, Request};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, HandshakeError, WebSocket};

use super::address::Address;
use super::stream::{Patience, Stream};
use super::wait::{For, wait};
use crate::core::ports::{Refusal, Secret};
use crate::sys::{names, tls};
use crate::wire::node::MAX_FRAME_BYTES;

/// The WebSocket's own limits. The read buffer is zero-filled at every read, so it is small; nothing is held back on
/// writing; one whole frame and the automatic replies fit into the write buffer.
fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_FRAME_BYTES + (1 << 20))
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES))
}

/// Connects. The socket that comes back never blocks.
///
/// # Errors
/// Why the handshake did not end in 101.
pub fn dial(
    address: &Address,
    token: &Secret,
    trust: Option<&Arc<ClientConfig>>,
    patience: Patience,
) -> Result<(WebSocket<Stream>, TcpStream), Refusal> {
    let words = |stage: &'static str| move |error: io::Error| Refusal::Io(format!("{stage}: {error}"));
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose().trim()))
        .map_err(|_| Refusal::Io("the node token holds characters that no header can carry".into()))?;
    bearer.set_sensitive(true);
    let request = Request::builder()
        .uri(address.url.as_str())
        .header("Host", address.authority.as_str())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .header("Authorization", bearer)
        .body(())
        .map_err(|error| Refusal::Io(error.to_string()))?;

    let addresses = resolve(address, &patience).map_err(words("connect"))?;
    let socket = connect_any(&addresses, &patience).map_err(words("connect"))?;
    let second = socket.try_clone().map_err(words("connect"))?;
    let config;
    let security = match (address.tls, trust) {
        (false, _) => None,
        (true, Some(given)) => Some((given.clone(), address.host.as_str())),
        (true, None) => {
            config = tls::client_config();
            Some((config, address.host.as_str()))
        }
    };
    let stream = Stream::open(socket, security, patience).map_err(words("TLS"))?;
    match tungstenite::client::client_with_config(request, stream, Some(limits())) {
        Ok((mut socket, _)) => {
            socket.get_mut().end_patience();
            Ok((socket, second))
        }
        Err(HandshakeError::Interrupted(_)) => Err(Refusal::Io("upgrade: interrupted".into())),
        Err(HandshakeError::Failure(Error::Http(answer))) => Err(match answer.status().as_u16() {
            401 => Refusal::Unauthorized,
            status => Refusal::Status(status),
        }),
        Err(HandshakeError::Failure(Error::Io(error))) => Err(words("upgrade")(error)),
        Err(HandshakeError::Failure(error)) => Err(Refusal::Io(format!("upgrade: {error}"))),
    }
}

fn resolve(address: &Address, patience: &Patience) -> io::Result<Vec<SocketAddr>> {
    let wake = patience.wake.clone();
    let answer = names::start(&address.host, address.port, move || wake.signal())?;
    loop {
        if let Ok(found) = answer.try_recv() {
            return names::usable(&address.host, found);
        }
        if wait(None, Some(&patience.wake), Some(patience.deadline))?.signal {
            patience.wake.clear();
        }
        // The answer may have come together with the end of patience; the end wins.
        patience.check()?;
    }
}

/// Tries the addresses in order; each gets an equal share of what time is left, so that one dead address does not use up
/// the time of the others.
fn connect_any(addresses: &[SocketAddr], patience: &Patience) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    for (tried, address) in addresses.iter().enumerate() {
        patience.check()?;
        let left = patience.deadline.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - tried) as u32;
        match connect(*address, &Patience { deadline: Instant::now() + share, ..patience.clone() }) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    patience.check()?;
    Err(last)
}

fn connect(address: SocketAddr, patience: &Patience) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let descriptor = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&descriptor, &address) {
        Ok(()) => {}
        Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from(descriptor);
    patience.wait(&socket, For::Output)?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nodelay(true)?;
    Ok(socket)
}
