//! Where the node socket lives: the engine's base URL turned into the WebSocket address.

use std::io;

use tungstenite::http::Uri;

/// The path below the engine's base.
const PATH: &str = "/v1/node/ws";

/// Proxy variables, in the order in which HTTP clients look at them. The node socket goes direct.
const PROXY_VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// A parsed address of the node socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `ws://…/v1/node/ws` or `wss://…`.
    pub url: String,
    pub tls: bool,
    /// Without brackets if it is an IPv6 address.
    pub host: String,
    pub port: u16,
    /// Host and port as the `Host` header says them.
    pub authority: String,
}

impl Address {
    /// Strips trailing slashes, maps `https` to `wss` and `http` to `ws`, keeps a path of the base.
    ///
    /// # Errors
    /// `InvalidInput` when the result is no `ws` or `wss` address with a host.
    pub fn of_base(base_url: &str) -> io::Result<Address> {
        let invalid =
            |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("engine base URL {base_url:?}: {why}"));
        let base = base_url.trim().trim_end_matches('/');
        let mapped = if let Some(rest) = strip_scheme(base, "https://") {
            format!("wss://{rest}")
        } else if let Some(rest) = strip_scheme(base, "http://") {
            format!("ws://{rest}")
        } else {
            base.to_string()
        };
        let url = format!("{mapped}{PATH}");
        let uri: Uri = url.parse().map_err(|_| invalid("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return Err(invalid("its scheme must be http, https, ws or wss")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it must not carry a user name"));
        }
        if uri.query().is_some() {
            return Err(invalid("it must not carry a query"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        if host.is_empty() {
            return Err(invalid("no host"));
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().ends_with(':') || !authority.as_str().ends_with(authority.host()) => {
                return Err(invalid("its port is no number up to 65535"));
            }
            None if tls => 443,
            None => 80,
        };
        Ok(Address { url: url.clone(), tls, port, authority: authority.to_string(), host })
    }

    /// The host is this machine by its name or number.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The proxy variable that other clients of this address would honour and the node socket does not.
    pub fn ignored_proxy(&self, environment: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
        if self.is_loopback() {
            return None;
        }
        PROXY_VARIABLES
            .into_iter()
            .filter(|name| self.tls || !name.eq_ignore_ascii_case("HTTPS_PROXY"))
            .find(|name| environment(name).is_some_and(|value| !value.trim().is_empty()))
    }
}

fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    url.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme)).map(|_| &url[scheme.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_become_socket_addresses() {
        for (base, url, host, port, tls) in [
            ("https://cast.example", "wss://cast.example/v1/node/ws", "cast.example", 443, true),
            ("http://127.0.0.1:8787///", "ws://127.0.0.1:8787/v1/node/ws", "127.0.0.1", 8787, false),
            ("http://[::1]:9/relay/", "ws://[::1]:9/relay/v1/node/ws", "::1", 9, false),
            ("wss://h", "wss://h/v1/node/ws", "h", 443, true),
            (" ws://h:1 ", "ws://h:1/v1/node/ws", "h", 1, false),
        ] {
            let address = Address::of_base(base).unwrap_or_else(|e| panic!("{base}: {e}"));
            assert_eq!(
                (address.url.as_str(), address.host.as_str(), address.port, address.tls),
                (url, host, port, tls),
                "{base}"
            );
        }
    }

    #[test]
    fn other_bases_are_refused_with_words() {
        for base in
            ["", "cast.example", "ftp://h", "http://", "http://h:99999", "http://u:p@h", "http://h?x=1", "http://a b"]
        {
            let error = Address::of_base(base).expect_err(base);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{base}");
        }
    }

    #[test]
    fn an_ignored_proxy_is_named_unless_the_engine_is_local() {
        let set = |name: &str| (name == "HTTPS_PROXY").then(|| "http://proxy:3128".to_string());
        assert_eq!(Address::of_base("https://cast.example").unwrap().ignored_proxy(set), Some("HTTPS_PROXY"));
        assert_eq!(Address::of_base("http://cast.example").unwrap().ignored_proxy(set), None);
        assert_eq!(Address::of_base("https://localhost").unwrap().ignored_proxy(set), None);
        assert_eq!(Address::of_base("https://cast.example").unwrap().ignored_proxy(|_| Some(" ".into())), None);
    }
}
