//! HTTP to somebody else: how connections are made, and why there is no answer.
//!
//! ureq carries it, with three parts of ours: the look-up of names (ureq's own would start an unnamed thread per look-up
//! as soon as a total time limit is set), TLS with the roots of [`super::tls`], and no redirects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, TcpConnector,
    Transport as UreqTransport, TransportAdapter,
};

use super::{names, tls};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const BUFFER: usize = 16 << 10;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    /// Nothing of the request can have reached the engine.
    pub unsent: bool,
    pub words: String,
}

/// Whether the host of a URL is this machine.
pub fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A client whose every status is an answer. `local`: no proxy of the environment is used. Clones share the connections.
pub fn client(local: bool, user_agent: &str, trust: Option<Arc<ClientConfig>>) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .input_buffer_size(BUFFER)
        .output_buffer_size(BUFFER)
        .max_idle_connections(2)
        .max_idle_connections_per_host(2)
        .max_idle_age(Duration::from_secs(10))
        .timeout_connect(Some(CONNECT_LIMIT))
        .user_agent(user_agent);
    let config = if local { config.proxy(None) } else { config }.build();
    let connector =
        ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default()).chain(TlsConnector(trust));
    ureq::Agent::with_parts(config, connector, BoundedResolver)
}

/// What a failed exchange means.
pub fn lost(error: ureq::Error) -> Lost {
    use std::io::ErrorKind;
    use ureq::{Error, Timeout};
    let unsent = match &error {
        Error::HostNotFound | Error::ConnectionFailed | Error::Tls(_) | Error::Rustls(_) | Error::BadUri(_) => true,
        Error::Http(_) | Error::InvalidProxyUrl | Error::ConnectProxyFailed(_) => true,
        Error::Timeout(Timeout::Connect | Timeout::Resolve) => true,
        Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable
        ),
        Error::Other(error) => error.is::<LookUpFailed>(),
        _ => false,
    };
    let words = match error {
        Error::Timeout(Timeout::Connect) => "no connection in time".to_string(),
        Error::Timeout(_) => "no answer in time".to_string(),
        Error::Io(error) => error.to_string(),
        Error::Other(error) => error.to_string(),
        other => other.to_string(),
    };
    Lost { unsent, words }
}

#[derive(Debug)]
struct LookUpFailed(String);

impl std::fmt::Display for LookUpFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LookUpFailed {}

/// Name look-ups on a named thread, with an end.
#[derive(Debug)]
struct BoundedResolver;

impl Resolver for BoundedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or_else(|| ureq::Error::BadUri("no host".into()))?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let limit = (*timeout.after).min(CONNECT_LIMIT);
        let found = names::lookup(host, port, Instant::now() + limit)
            .map_err(|error| ureq::Error::Other(Box::new(LookUpFailed(error.to_string()))))?;
        let mut addresses = self.empty();
        for address in config.ip_family().keep_wanted(found.into_iter()).take(16) {
            addresses.push(address);
        }
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

/// Puts TLS around the connection when the URL asks for it. The configuration is loaded at the first such URL.
#[derive(Debug)]
struct TlsConnector(Option<Arc<ClientConfig>>);

impl<In: UreqTransport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails, below: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(below) = below else {
            return Err(ureq::Error::ConnectionFailed);
        };
        if !details.needs_tls() || below.is_tls() {
            return Ok(Some(Either::A(below)));
        }
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
        let name = ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the host is no TLS server name"))?;
        let config = self.0.clone().unwrap_or_else(tls::client_config);
        let mut session = ClientConnection::new(config, name)?;
        let mut socket = TransportAdapter::new(below.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        while session.is_handshaking() {
            session.complete_io(&mut socket).map_err(tls_error)?;
        }
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned::new(session, socket) })))
    }
}

/// rustls hands its own errors out inside I/O errors.
fn tls_error(error: std::io::Error) -> ureq::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => ureq::Error::Rustls(inner.clone()),
        None => error.into(),
    }
}

struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl UreqTransport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        use std::io::Write;
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(self.stream.flush()?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        use std::io::Read;
        self.stream.sock.set_timeout(timeout);
        let count = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
