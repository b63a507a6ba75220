//! The bytes below the WebSocket: a non-blocking TCP socket, plain or under TLS, that two threads use under one lock.
//!
//! Rustls' own stream type is not used: its `write` may read from the socket, so that the reading thread would sleep on
//! an empty socket with data pending, and a full TLS buffer comes out as `Ok(0)`, which means "reset" one layer up. Here
//! reading reads, writing never does, and "full" is `WouldBlock`.
//!
//! During the handshake phase the stream has [`Patience`]: it waits inside `read` and `write`, up to one deadline for
//! the whole phase, and stops at once when the dial is cancelled.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::wait::{For, Wake, wait};

/// How long the handshake phase may take, and what ends it early.
#[derive(Clone)]
pub struct Patience {
    pub deadline: Instant,
    pub wake: Arc<Wake>,
    pub cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Patience {
    /// Waits for the socket.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `ConnectionAborted` when cancelled.
    pub fn wait(&self, socket: &TcpStream, what: For) -> io::Result<()> {
        loop {
            let woken = wait(Some((socket.as_fd(), what)), Some(&self.wake), Some(self.deadline))?;
            if woken.signal {
                self.wake.clear();
            }
            self.check()?;
            if woken.socket {
                return Ok(());
            }
        }
    }

    /// # Errors
    /// As [`Patience::wait`].
    pub fn check(&self) -> io::Result<()> {
        if (self.cancelled)() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "given up"));
        }
        if Instant::now() >= self.deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        Ok(())
    }
}

/// A connected socket with the counters that its liveness rules need.
pub struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    patience: Option<Patience>,
    last_inbound: Instant,
    written: u64,
}

impl Stream {
    /// Takes a connected non-blocking socket; with `tls` the handshake is done before this returns.
    ///
    /// # Errors
    /// A bad server name, a refused certificate, the socket's errors, the end of `patience`.
    pub fn open(socket: TcpStream, tls: Option<(Arc<ClientConfig>, &str)>, patience: Patience) -> io::Result<Stream> {
        let mut stream =
            Stream { socket, tls: None, patience: Some(patience), last_inbound: Instant::now(), written: 0 };
        if let Some((config, host)) = tls {
            let name = ServerName::try_from(host.to_string())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host} is no TLS server name")))?;
            let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
            stream.tls = Some(Box::new(connection));
            stream.handshake()?;
        }
        Ok(stream)
    }

    /// From here on `read` and `write` never wait.
    pub fn end_patience(&mut self) {
        self.patience = None;
    }

    /// When the last byte came in.
    pub fn last_inbound(&self) -> Instant {
        self.last_inbound
    }

    /// Bytes that the kernel took so far: grows only while the peer reads.
    pub fn written(&self) -> u64 {
        self.written
    }

    fn handshake(&mut self) -> io::Result<()> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking() || tls.wants_write()) {
            let wants_write = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
            let step = if wants_write { self.push_records() } else { self.pull_records().map(|_| ()) };
            match step {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.be_patient(if wants_write { For::Output } else { For::Input }, error)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Waits if it still has patience, else passes `would_block` on.
    fn be_patient(&self, what: For, would_block: io::Error) -> io::Result<()> {
        match &self.patience {
            Some(patience) => patience.wait(&self.socket, what),
            None => Err(would_block),
        }
    }

    /// Writes TLS records until none waits.
    fn push_records(&mut self) -> io::Result<()> {
        let Stream { socket, tls: Some(tls), written, .. } = self else {
            return Ok(());
        };
        while tls.wants_write() {
            match tls.write_tls(&mut Counted { socket, written }) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Best effort: what the socket does not take now goes with the next write or flush.
    fn push_records_if_possible(&mut self) -> io::Result<()> {
        match self.push_records() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Reads TLS records once and works on them. `false` at the end of the stream.
    fn pull_records(&mut self) -> io::Result<bool> {
        let Stream { socket, tls: Some(tls), last_inbound, .. } = self else {
            return Ok(false);
        };
        let count = match tls.read_tls(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        if count > 0 {
            *last_inbound = Instant::now();
        }
        if let Err(error) = tls.process_new_packets() {
            // The alert tells the peer why; whether it arrives changes nothing.
            let _ = self.push_records();
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}")));
        }
        if count == 0 && tls.is_handshaking() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed during the TLS handshake"));
        }
        Ok(count > 0)
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            let count = self.socket.read(buffer)?;
            if count > 0 {
                self.last_inbound = Instant::now();
            }
            return Ok(count);
        }
        loop {
            if let Some(tls) = &mut self.tls {
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
            }
            let more = self.pull_records();
            self.push_records_if_possible()?;
            if !more? {
                // A peer that leaves without a TLS close: the WebSocket layer judges whether that was orderly.
                return Ok(0);
            }
        }
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            let count = self.socket.write(bytes)?;
            self.written += count as u64;
            return Ok(count);
        }
        self.push_records_if_possible()?;
        let accepted = match &mut self.tls {
            Some(tls) => tls.writer().write(bytes)?,
            None => 0,
        };
        if accepted == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.push_records_if_possible()?;
        Ok(accepted)
    }

    fn flush_now(&mut self) -> io::Result<()> {
        self.push_records()
    }
}

/// Counts what the kernel takes from rustls.
struct Counted<'a> {
    socket: &'a mut TcpStream,
    written: &'a mut u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.socket.write(bytes)?;
        *self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read_now(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.be_patient(For::Input, error)?,
                other => return other,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.write_now(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.be_patient(For::Output, error)?,
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.flush_now() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.be_patient(For::Output, error)?,
                other => return other,
            }
        }
    }
}
