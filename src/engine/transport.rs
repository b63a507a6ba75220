//! One HTTP exchange with the engine: an attempt with a time limit, an answer or the reason why there is none.
//!
//! ureq carries it, with three parts of ours: the look-up of names (ureq's own would start an unnamed thread per look-up
//! as soon as a total time limit is set), TLS with the roots of [`crate::sys::tls`], and no redirects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use ureq::http::{HeaderValue, Method, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, TcpConnector,
    Transport as UreqTransport, TransportAdapter,
};

use super::retry_after;
use crate::core::ports::Secret;
use crate::sys::{names, tls};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const BUFFER: usize = 16 << 10;
const BODY_LIMIT: u64 = 16 << 20;

/// One request. `path` starts with `/v1/`; its variable segments are encoded already.
#[derive(Debug)]
pub struct Request<'a> {
    pub post: bool,
    pub path: &'a str,
    pub bearer: Option<&'a Secret>,
    /// `None`: neither a body nor a content type.
    pub body: Option<&'a [u8]>,
    pub idempotency_key: Option<&'a str>,
}

/// What the engine answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    /// Nothing of the request can have reached the engine.
    pub unsent: bool,
    pub words: String,
}

/// The way to one engine. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Transport {
    agent: ureq::Agent,
    base: String,
    version: String,
}

impl Transport {
    /// `base` is the engine's URL; trailing slashes are stripped, a path is kept. Proxies are taken from the environment
    /// unless the engine is on this machine.
    ///
    /// # Errors
    /// In words, when the base is no `http` or `https` URL with a host.
    pub fn new(base: &str, version: &str, trust: Option<Arc<ClientConfig>>) -> Result<Transport, String> {
        let base = base.trim().trim_end_matches('/').to_string();
        let uri: Uri = base.parse().map_err(|_| format!("engine base URL {base:?} is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(format!("engine base URL {base:?} must start with http:// or https:// and name a host"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
        let local = host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
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
            .user_agent(format!("agent-relay-broker/{version}"));
        let config = if local { config.proxy(None) } else { config }.build();
        let connector =
            ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default()).chain(TlsConnector(trust));
        Ok(Transport {
            agent: ureq::Agent::with_parts(config, connector, BoundedResolver),
            base,
            version: version.to_string(),
        })
    }

    /// One attempt, over within `limit` whatever the peer does.
    ///
    /// # Errors
    /// [`Lost`] when no whole answer came.
    pub fn send(&self, request: &Request<'_>, limit: Duration) -> Result<Answer, Lost> {
        let never_sent = |words: String| Lost { unsent: true, words };
        let mut builder = ureq::http::Request::builder()
            .method(if request.post { Method::POST } else { Method::GET })
            .uri(format!("{}{}", self.base, request.path))
            .header("X-SDK-Version", &self.version)
            .header("X-Relaycast-Origin-Client", "agent-relay-broker")
            .header("X-Relaycast-Origin-Version", &self.version);
        if let Some(bearer) = request.bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose().trim()))
                .map_err(|_| never_sent("the token holds characters that no header can carry".into()))?;
            value.set_sensitive(true);
            builder = builder.header("Authorization", value).header("X-Relaycast-Origin-Actor", "agent-relay-cli/cli");
        }
        if let Some(key) = request.idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        if request.body.is_some() {
            builder = builder.header("Content-Type", "application/json");
        }
        let answer = if request.post {
            // A POST without a body says so with a length of 0; ureq would announce chunks otherwise.
            builder.body(request.body.unwrap_or_default()).map_err(ureq::Error::from).and_then(|built| {
                self.agent.run(self.agent.configure_request(built).timeout_global(Some(limit)).build())
            })
        } else {
            builder.body(()).map_err(ureq::Error::from).and_then(|built| {
                self.agent.run(self.agent.configure_request(built).timeout_global(Some(limit)).build())
            })
        };
        let answer = answer.map_err(lost)?;
        let status = answer.status().as_u16();
        let now = crate::sys::clock::unix_ms() / 1000;
        let retry_after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| retry_after::parse(text, now));
        let body = answer.into_body().into_with_config().limit(BODY_LIMIT).read_to_vec();
        // The head came, so the engine has the request; a body that broke off is no answer.
        let body = body.map_err(|error| Lost { unsent: false, ..lost(error) })?;
        Ok(Answer { status, retry_after, body })
    }

    /// Breaks off what is under way, from another thread; later requests fail at once.
    pub fn shut_down(&self) {
        self.agent.clone().shutdown();
    }
}

/// A JSON value as the bytes of a body.
pub fn json_body(value: &impl serde::Serialize) -> Vec<u8> {
    // Bodies are structs of text: nothing in them can fail.
    serde_json::to_vec(value).unwrap_or_else(|_| Value::Null.to_string().into_bytes())
}

fn lost(error: ureq::Error) -> Lost {
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
