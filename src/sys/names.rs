//! Name look-ups with an end. The system's resolver blocks for as long as its own configuration says, so it runs on a
//! thread of its own (`dns`) and whoever asked stops waiting at a deadline. At most [`MAX_PENDING`] look-ups hang at a
//! time; the next is refused. Addresses written as numbers need no thread.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::threads;

/// Look-ups that may be under way at once in this process.
pub const MAX_PENDING: usize = 8;

static PENDING: AtomicUsize = AtomicUsize::new(0);

/// The answer of one look-up, at most one.
pub type Answer = Receiver<io::Result<Vec<SocketAddr>>>;

/// Starts a look-up of `host` (a name, an address, or an IPv6 address in brackets). `done` is called once the answer
/// lies in the channel, from the look-up's thread or at once from the caller's.
///
/// # Errors
/// When no thread can be started or too many look-ups hang already.
pub fn start(host: &str, port: u16, done: impl FnOnce() + Send + 'static) -> io::Result<Answer> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        let (tx, rx) = crossbeam_channel::bounded(1);
        let _ = tx.send(Ok(vec![SocketAddr::new(address, port)]));
        done();
        return Ok(rx);
    }
    let name = bare.to_string();
    start_with(move || (name.as_str(), port).to_socket_addrs().map(Iterator::collect), done)
}

/// [`start`] with the resolver that may block.
fn start_with(
    resolve: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    done: impl FnOnce() + Send + 'static,
) -> io::Result<Answer> {
    let (tx, rx) = crossbeam_channel::bounded(1);
    if PENDING.fetch_add(1, Ordering::SeqCst) >= MAX_PENDING {
        PENDING.fetch_sub(1, Ordering::SeqCst);
        return Err(io::Error::other(format!("{MAX_PENDING} name look-ups are already without an answer")));
    }
    let started = threads::spawn("dns", move || {
        let pending = Pending;
        threads::doing("looking up a name");
        let answer = resolve();
        drop(pending);
        let _ = tx.send(answer);
        done();
    });
    match started {
        // Not joined: a look-up that outlives its caller ends with the resolver's own time-out.
        Ok(_) => Ok(rx),
        Err(error) => {
            PENDING.fetch_sub(1, Ordering::SeqCst);
            Err(error)
        }
    }
}

/// Gives the place back also when the resolver panics.
struct Pending;

impl Drop for Pending {
    fn drop(&mut self) {
        PENDING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The addresses of `host`, at least one.
///
/// # Errors
/// When the name is unknown, nothing was found, or `deadline` passed (`TimedOut`).
pub fn lookup(host: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    await_answer(host, &start(host, port, || ())?, deadline)
}

fn await_answer(host: &str, answer: &Answer, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    match answer.recv_deadline(deadline) {
        Ok(found) => usable(host, found),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer to the name look-up of {host}"))),
    }
}

/// An empty list of addresses is an error.
///
/// # Errors
/// That one, or the look-up's own.
pub fn usable(host: &str, found: io::Result<Vec<SocketAddr>>) -> io::Result<Vec<SocketAddr>> {
    match found {
        Ok(addresses) if addresses.is_empty() => Err(io::Error::other(format!("{host} has no address"))),
        Ok(addresses) => Ok(addresses),
        Err(error) => Err(io::Error::new(error.kind(), format!("name look-up of {host} failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_need_no_resolver() {
        let deadline = Instant::now() + Duration::from_secs(5);
        assert_eq!(lookup("127.0.0.1", 80, deadline).unwrap(), ["127.0.0.1:80".parse().unwrap()]);
        assert_eq!(lookup("[::1]", 80, deadline).unwrap(), ["[::1]:80".parse().unwrap()]);
    }

    #[test]
    fn localhost_is_found_on_a_thread() {
        let found = lookup("localhost", 7, Instant::now() + Duration::from_secs(10)).unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 7), "{found:?}");
    }

    #[test]
    fn a_missed_deadline_is_a_time_out() {
        // A resolver that answers only when this test lets it.
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        let answer = start_with(move || gate.recv().map(|()| Vec::new()).map_err(io::Error::other), || ()).unwrap();
        let asked = Instant::now();
        let error = await_answer("silent.example", &answer, asked + Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "no answer to the name look-up of silent.example");
        assert!(asked.elapsed() >= Duration::from_millis(50));
        // It ends when its resolver does, and its late answer goes nowhere.
        drop(go);
        assert!(answer.recv_timeout(Duration::from_secs(5)).unwrap().is_err());
    }
}
