//! What sessions leave for their successors: one file per name, the last session's.

use std::io;
use std::path::Path;

use super::secrets;
use crate::core::ports::Session;
use crate::wire::names::agent_name_fault;

/// Writes the session's file in `directory`, 0600; a name that is no file name has none.
///
/// # Errors
/// The system's, naming the file.
pub fn leave(directory: &Path, session: &Session) -> io::Result<()> {
    if agent_name_fault(&session.agent_name).is_some() {
        return Ok(());
    }
    secrets::make_dir(directory)?;
    let mut text = serde_json::to_string_pretty(session).map_err(io::Error::other)?;
    text.push('\n');
    // The loop writes it, which must not wait for a disk.
    secrets::replace_unsynced(&directory.join(format!("{}.json", session.agent_name)), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn d17_the_file_has_the_shape_of_9_1_6_and_only_its_owner_reads_it() {
        let scratch = Scratch::new();
        let directory = scratch.join("continuity");
        let mut session = Session { agent_name: "ann".into(), cli: "codex".into(), ..Session::default() };
        session.summary = "half done".into();
        leave(&directory, &session).unwrap();
        let read = || serde_json::from_slice::<Value>(&std::fs::read(directory.join("ann.json")).unwrap()).unwrap();
        let mut shape = json!({"agent_name": "ann", "cli": "codex", "initial_task": null, "released_at": null,
                               "lifetime_seconds": null, "message_history": [], "summary": "half done"});
        assert_eq!(read(), shape);
        (session.released_at, session.lifetime_seconds) = (Some(7), Some(5));
        leave(&directory, &session).unwrap();
        (shape["released_at"], shape["lifetime_seconds"]) = (json!(7), json!(5));
        assert_eq!(read(), shape);
        assert_eq!(mode(&directory.join("ann.json")), 0o600);
        session.agent_name = "../ann".into();
        leave(&directory, &session).unwrap();
        assert!(!scratch.join("ann.json").exists());
    }
}
