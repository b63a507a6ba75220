//! The scripted engine: just enough of a relaycast engine for one broker to start, enrol, register agents and be sent
//! messages, with exact times. It accepts any credentials and never fails on purpose.
//!
//! Threads: `engine-accept`, and `engine-peer` for each connection; all end with the [`Engine`].

mod link;
mod routes;

use std::io::{self, BufReader};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

pub use link::{Book, Sent};

use crate::clock::Deadline;
use crate::http;

/// What the threads of one engine share.
struct Shared {
    book: Mutex<Book>,
    changed: Condvar,
    ended: AtomicBool,
    /// One per connection, to shut it down at the end.
    peers: Mutex<Vec<TcpStream>>,
}

impl Shared {
    /// A thread that panicked has reported itself; the book stays readable.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(&self, how: impl FnOnce(&mut Book)) {
        how(&mut self.book());
        self.changed.notify_all();
    }
}

pub struct Engine {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Engine {
    /// Listens on a free loopback port.
    pub fn start() -> io::Result<Engine> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            book: Mutex::default(),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            peers: Mutex::default(),
        });
        let for_peers = shared.clone();
        let accepting = std::thread::Builder::new().name("engine-accept".into()).spawn(move || {
            accept(&listener, &for_peers);
        })?;
        Ok(Engine { address, shared, accepting: Some(accepting) })
    }

    /// The base URL to give to a broker.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends one message to `agent` and returns its number and the time just before the first byte left.
    ///
    /// # Errors
    /// When the agent never registered or the broker is not connected.
    pub fn deliver(&self, agent: &str, text: &str) -> Result<Sent, String> {
        let (socket, sent, frame) = self.shared.book().address(agent, text)?;
        let at = link::send_text(&socket, &frame).map_err(|e| format!("cannot send a deliver frame: {e}"))?;
        Ok(Sent { at, ..sent })
    }

    /// Waits until `answer` finds something in the book.
    pub fn wait<T>(&self, limit: Duration, answer: impl Fn(&Book) -> Option<T>) -> Option<T> {
        let deadline = Deadline::after(limit);
        let mut book = self.shared.book();
        loop {
            if let Some(found) = answer(&book) {
                return Some(found);
            }
            let left = deadline.left()?;
            book = self.shared.changed.wait_timeout(book, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// Looks into the book.
    pub fn look<T>(&self, at: impl FnOnce(&Book) -> T) -> T {
        at(&self.shared.book())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the accept thread, which then sees the flag.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        for peer in self.shared.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).drain(..) {
            let _ = peer.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut peers = Vec::new();
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(Duration::from_secs(20)));
        if let Ok(handle) = stream.try_clone() {
            shared.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(handle);
        }
        let shared = shared.clone();
        let peer = std::thread::Builder::new().name("engine-peer".into()).spawn(move || {
            // An error here is the broker going away; what that means is seen in the book.
            let _ = serve(stream, &shared);
        });
        peers.extend(peer.ok());
    }
    for peer in peers {
        let _ = peer.join();
    }
}

/// Serves one connection: requests until it ends or becomes the node socket.
fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(head) = http::read_head(&mut reader)? {
        let mut words = head.start.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some(key) = head.field("sec-websocket-key") {
            return if path == "/v1/node/ws" {
                link::serve(writer, key, shared)
            } else {
                http::answer(&mut writer, 404, &routes::refusal("not_found"))
            };
        }
        let body = http::read_body(&mut reader, &head)?;
        let body = serde_json::from_slice(&body).unwrap_or(serde_json::Value::Null);
        let (status, answer) = shared.book().ids.route(method, path, &body);
        http::answer(&mut writer, status, &answer)?;
    }
    Ok(())
}
