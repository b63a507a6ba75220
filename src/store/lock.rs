//! One broker per name and directory: `flock` on the lock file, held for life, released by the kernel whatever the end.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::connection;
use super::paths::StateDir;
use super::secrets::naming;

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Clients match these words.
const TAKEN: &str = "another broker instance is already running in this directory";

impl Lock {
    /// Takes the lock of `state`.
    ///
    /// # Errors
    /// In words for the operator: the running broker's pid if `connection.json` names a live one, or the file that
    /// cannot be opened.
    pub fn take(state: &StateDir) -> Result<Lock, String> {
        if let Some(lock) = attempt(&state.lock())? {
            return Ok(lock);
        }
        if let Some(pid) = connection::read_pid(&state.connection()).filter(|pid| is_alive(*pid)) {
            return Err(format!("{TAKEN} (pid: {pid}, {})", state.path().display()));
        }
        // The holder may be on its last steps, or the file may have been deleted under it.
        match attempt(&state.lock())? {
            Some(lock) => Ok(lock),
            None => Err(format!("{TAKEN} ({})", state.path().display())),
        }
    }
}

/// `None`: somebody else has it.
pub(super) fn attempt(path: &Path) -> Result<Option<Lock>, String> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(|error| naming("failed to open lock file", path, &error).to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(naming("failed to lock", path, &error).to_string()),
    }
}

/// Whether a process of this id exists; one that we may not signal does.
pub fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw) else {
        return false;
    };
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::super::paths::Keep;
    use super::super::scratch::Scratch;
    use super::*;

    fn state(scratch: &Scratch, name: &str) -> StateDir {
        let state = StateDir::choose(Keep::Dir(scratch.to_path_buf()), name, scratch, scratch);
        state.create().unwrap();
        state
    }

    #[test]
    fn h16_a_second_broker_is_refused_with_the_words_clients_match() {
        let scratch = Scratch::new();
        let state = state(&scratch, "b");
        let lock = Lock::take(&state).unwrap();
        let dir = scratch.display();
        let plain = format!("another broker instance is already running in this directory ({dir})");
        assert_eq!(Lock::take(&state).unwrap_err(), plain, "no connection file");
        std::fs::write(state.connection(), "{").unwrap();
        assert_eq!(Lock::take(&state).unwrap_err(), plain, "an unreadable one");
        std::fs::write(state.connection(), r#"{"pid":999999999}"#).unwrap();
        assert_eq!(Lock::take(&state).unwrap_err(), plain, "a dead pid");
        std::fs::write(state.connection(), format!(r#"{{"pid":{}}}"#, std::process::id())).unwrap();
        let with_pid = format!(
            "another broker instance is already running in this directory (pid: {}, {dir})",
            std::process::id()
        );
        assert_eq!(Lock::take(&state).unwrap_err(), with_pid);
        drop(lock);
        Lock::take(&state).expect("free as soon as the holder is gone");
    }

    #[test]
    fn two_names_in_one_directory_run_side_by_side() {
        let scratch = Scratch::new();
        let _a = Lock::take(&state(&scratch, "a")).unwrap();
        let _b = Lock::take(&state(&scratch, "b")).unwrap();
    }

    #[test]
    fn a_lock_file_that_cannot_be_opened_is_named() {
        let scratch = Scratch::new();
        let state = state(&scratch, "b");
        std::fs::create_dir(state.lock()).unwrap();
        let error = Lock::take(&state).unwrap_err();
        assert!(error.contains("broker-b.lock"), "{error}");
    }

    #[test]
    fn liveness() {
        assert!(is_alive(std::process::id()));
        assert!(is_alive(1), "a process that may not be signalled is alive");
        assert!(!is_alive(0) && !is_alive(u32::MAX));
    }
}
