//! `connection.json`: where local clients find this broker and its key.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::secrets;
use crate::core::ports::Secret;

/// What the file says. Its keys stand in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub api_key: Secret,
    pub pid: u32,
    pub port: u16,
    pub url: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    api_key: &'a str,
    pid: u32,
    port: u16,
    url: &'a str,
}

/// Writes the file, 0600.
///
/// # Errors
/// The system's, naming the file.
pub fn write(path: &Path, connection: &Connection) -> io::Result<()> {
    let shown = Shown {
        api_key: connection.api_key.expose(),
        pid: connection.pid,
        port: connection.port,
        url: &connection.url,
    };
    let mut text = serde_json::to_string_pretty(&shown).map_err(io::Error::other)?;
    text.push('\n');
    secrets::replace(path, text.as_bytes())
}

/// The pid that the file names, if it can be read and names one.
pub fn read_pid(path: &Path) -> Option<u32> {
    let value: Value = serde_json::from_slice(&secrets::read(path).ok()?).ok()?;
    value.get("pid")?.as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// Removes the file if it still names `pid`: with two brokers in one directory the last writer owns it.
///
/// # Errors
/// The system's, naming the file.
pub fn remove_if_ours(path: &Path, pid: u32) -> io::Result<()> {
    if read_pid(path) == Some(pid) { secrets::remove(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    #[test]
    fn keys_in_order_and_only_for_us() {
        let scratch = Scratch::new();
        let path = scratch.join("connection.json");
        let connection =
            Connection { api_key: Secret::new("br_1"), pid: 7, port: 3889, url: "http://127.0.0.1:3889".into() };
        write(&path, &connection).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\n  \"api_key\": \"br_1\",\n  \"pid\": 7,\n  \"port\": 3889,\n  \"url\": \"http://127.0.0.1:3889\"\n}\n"
        );
        assert!(!format!("{connection:?}").contains("br_1"));
    }

    #[test]
    fn only_our_own_file_is_removed() {
        let scratch = Scratch::new();
        let path = scratch.join("connection.json");
        remove_if_ours(&path, 7).unwrap();
        for (content, stays) in [(r#"{"pid":8}"#, true), ("{", true), (r#"{"pid":7}"#, false)] {
            std::fs::write(&path, content).unwrap();
            remove_if_ours(&path, 7).unwrap();
            assert_eq!(path.exists(), stays, "{content}");
        }
    }
}
