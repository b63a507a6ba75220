//! Who may speak to the API: the key, and the names by which a loopback listener may be called.

use std::net::IpAddr;

use crate::core::ports::Secret;
use crate::http::Request;

/// Whether a request carries the key. A non-blank `X-API-Key` wins even if it is wrong; there is no query form.
pub(super) fn has_key(request: &Request, key: &Secret) -> bool {
    let header = request.header("x-api-key").map(str::trim).filter(|value| !value.is_empty());
    match header.or_else(|| request.bearer()) {
        Some(given) => key.is(given),
        None => false,
    }
}

/// Which `Host` headers are answered. A web page can make a browser send requests to a loopback port under the page's own
/// host name (DNS rebinding); such a name is none of ours. A listener on other addresses is meant to be reached by names we
/// cannot know: no rule there.
#[derive(Debug, Clone)]
pub(super) struct HostRule {
    /// `None`: every host.
    allowed: Option<Vec<String>>,
}

impl HostRule {
    /// `bind` is the address bound to, as given; `names` are those of `--api-host`.
    pub fn new(bind: &str, names: &[String]) -> HostRule {
        let bind = bare(bind);
        let allowed = is_loopback(&bind).then(|| {
            let mut allowed: Vec<String> = names.iter().map(|name| bare(name)).collect();
            allowed.push(bind);
            allowed
        });
        HostRule { allowed }
    }

    /// Requests without a `Host` come from no browser.
    pub fn allows(&self, request: &Request) -> bool {
        let Some(allowed) = &self.allowed else {
            return true;
        };
        request.header_values("host").all(|host| {
            let host = bare(host);
            is_loopback(&host) || allowed.contains(&host)
        })
    }
}

/// Lower case, without port, brackets and final dot.
fn bare(host: &str) -> String {
    let host = host.trim().to_ascii_lowercase();
    if host.parse::<IpAddr>().is_ok() {
        return host;
    }
    if let Some(inner) = host.strip_prefix('[') {
        return inner.split(']').next().unwrap_or_default().to_string();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => &host,
    };
    name.trim_end_matches('.').to_string()
}

fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.to_ipv4_mapped().is_some_and(|address| address.is_loopback())
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[(&str, &str)]) -> Request {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Request { headers, ..Request::default() }
    }

    #[test]
    fn the_key_matrix() {
        let table: [(&[(&str, &str)], bool); 12] = [
            (&[], false),
            (&[("X-API-Key", "br_1")], true),
            (&[("x-api-key", "  br_1 ")], true),
            (&[("X-API-Key", "br_2")], false),
            (&[("X-API-Key", "br_11")], false),
            (&[("X-API-Key", "br_")], false),
            (&[("Authorization", "Bearer br_1")], true),
            (&[("authorization", "bearer   br_1  ")], true),
            (&[("Authorization", "Basic br_1")], false),
            (&[("Authorization", "br_1")], false),
            (&[("X-API-Key", " "), ("Authorization", "Bearer br_1")], true),
            (&[("X-API-Key", "wrong"), ("Authorization", "Bearer br_1")], false),
        ];
        for (headers, expected) in table {
            assert_eq!(has_key(&with(headers), &Secret::new("br_1")), expected, "{headers:?}");
        }
        let given = with(&[("X-API-Key", "x")]);
        assert!(!has_key(&given, &Secret::new(" ")), "no key opens nothing");
        assert!(has_key(&given, &Secret::new("x\n")), "a header cannot carry the blanks around a key");
    }

    #[test]
    fn hosts_on_a_loopback_listener() {
        let rule = HostRule::new("127.0.0.1", &["Dev.Example:80".into()]);
        let table = [
            ("127.0.0.1:3889", true),
            ("127.9.9.9", true),
            ("localhost:1", true),
            ("LOCALHOST.", true),
            ("[::1]:3889", true),
            ("::1", true),
            ("dev.example", true),
            ("evil.example", false),
            ("evil.example:3889", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("", false),
        ];
        for (host, expected) in table {
            assert_eq!(rule.allows(&with(&[("Host", host)])), expected, "{host:?}");
        }
        assert!(rule.allows(&with(&[])));
        assert!(!rule.allows(&with(&[("Host", "localhost"), ("Host", "evil.example")])));
        assert!(HostRule::new("0.0.0.0", &[]).allows(&with(&[("Host", "evil.example")])));
        assert!(HostRule::new("localhost", &[]).allows(&with(&[("Host", "localhost")])));
        assert!(!HostRule::new("[::1]", &[]).allows(&with(&[("Host", "evil.example")])));
    }
}
