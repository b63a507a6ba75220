//! `engine --listen 127.0.0.1:8787 [--data DIR] [--faults]`: the embedded engine as a process of its own.
//!
//! One line on stdout says where it listens; it runs until SIGTERM or SIGINT.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Failure;
use crate::daemon::Fatal;
use crate::local::{Options, Server};

pub const HELP: &str = "\
Runs a relaycast engine on this machine.

Usage: agent-relay-broker engine [--listen ADDR:PORT] [--data DIR] [--faults]

  --listen ADDR:PORT  where to listen (default 127.0.0.1:8787; port 0 takes a free one)
  --data DIR          keep everything in DIR; without it a restart forgets all
  --faults            serve POST /__faults, which breaks things on request (for tests)
";

/// How long a stop may take.
const STOP: Duration = Duration::from_secs(4);

fn read(mut parser: lexopt::Parser) -> Result<Options, Failure> {
    let mut options = Options { listen: ("127.0.0.1".into(), 8787), data: None, faults: false };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => options.listen = listen(&parser.value()?.string()?).map_err(Failure::Usage)?,
            Long("data") => options.data = Some(PathBuf::from(parser.value()?)),
            Long("faults") => options.faults = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// `ADDR:PORT`, an IPv6 address in brackets.
fn listen(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("invalid --listen '{text}': expected ADDR:PORT, for example 127.0.0.1:8787");
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if address.is_empty() {
        return Err(wrong());
    }
    Ok((address.to_string(), port.parse().map_err(|_| wrong())?))
}

fn explain(error: &io::Error, options: &Options) -> String {
    let (address, port) = &options.listen;
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} on {address} is in use: stop what listens there, or choose another with --listen {address}:PORT"
        ),
        io::ErrorKind::PermissionDenied if options.data.is_none() => {
            format!("may not listen on {address}:{port}: {error}; choose a port above 1023")
        }
        _ => format!("cannot start on {address}:{port}: {error}"),
    }
}

/// Runs the engine until it is told to stop.
///
/// # Errors
/// A wrong command line, or what kept it from listening.
pub fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let options = read(parser)?;
    // Before the first thread, so that no signal is missed.
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Fatal::new("the engine cannot listen for signals").because(error))?;
    let server = Server::start(options.clone()).map_err(|error| Fatal::new(explain(&error, &options)))?;
    let mut out = io::stdout().lock();
    // Nobody reading stdout is no reason not to serve.
    let _ = writeln!(out, "[relaycast-engine] listening on {}", server.url()).and_then(|()| out.flush());
    drop(out);
    signals.forever().next();
    server.stop(STOP);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            ("127.0.0.1:8787", Some(("127.0.0.1", 8787))),
            ("[::1]:0", Some(("::1", 0))),
            ("localhost:80", Some(("localhost", 80))),
            ("8787", None),
            (":8787", None),
            ("host:port", None),
            ("host:70000", None),
        ] {
            assert_eq!(listen(text).ok(), expected.map(|(a, p)| (a.to_string(), p)), "{text}");
        }
    }

    #[test]
    fn a_port_in_use_is_named_with_the_remedy() {
        let first = Server::start(Options { listen: ("127.0.0.1".into(), 0), data: None, faults: false }).unwrap();
        let port = first.local_addr().port();
        let options = Options { listen: ("127.0.0.1".into(), port), data: None, faults: false };
        let error = Server::start(options.clone()).err().expect("the port is taken");
        let text = explain(&error, &options);
        assert!(text.contains(&port.to_string()) && text.contains("--listen"), "{text}");
        assert!(first.stop(Duration::from_secs(5)));
    }
}
