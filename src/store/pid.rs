//! The pid file: which process holds the lock, for tools that look there. Nothing here reads it to decide anything.

use std::io;
use std::path::Path;

use super::secrets;

/// Writes the file. Not synced, because it stands before the line that clients wait for: after a crash of the machine its
/// content means nothing anyway.
///
/// # Errors
/// The system's, naming the file.
pub fn write(path: &Path, pid: u32) -> io::Result<()> {
    std::fs::write(path, format!("{pid}\n")).map_err(|error| secrets::naming("failed to write", path, &error))
}

/// Removes the file if it still names `pid`.
///
/// # Errors
/// The system's, naming the file.
pub fn remove_if_ours(path: &Path, pid: u32) -> io::Result<()> {
    let ours = secrets::read(path).is_ok_and(|content| content.trim_ascii() == pid.to_string().as_bytes());
    if ours { secrets::remove(path) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;

    #[test]
    fn it_is_decimal_and_only_ours_is_removed() {
        let scratch = Scratch::new();
        let path = scratch.join("broker-b.pid");
        remove_if_ours(&path, 7).unwrap();
        write(&path, 71).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim().parse(), Ok(71));
        remove_if_ours(&path, 7).unwrap();
        assert!(path.exists());
        remove_if_ours(&path, 71).unwrap();
        assert!(!path.exists());
    }
}
