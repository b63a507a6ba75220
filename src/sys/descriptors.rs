//! How many descriptors the process may have: each agent, viewer and call takes some, and the usual soft limit of 1024 is no
//! decision of anybody's. Programs that are started get the limit that was there before: some of them walk up to it.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// As it was when the process started.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub fn raise_limit() {
    let before = BEFORE.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files stays at {:?}: {error}", before.current);
    }
}

/// The limit for a program that is about to be executed in this process.
///
/// # Errors
/// The system's.
pub fn restore_limit() -> std::io::Result<()> {
    // Async-signal-safe: the lock has been taken before, or never will be, and the rest is one system call.
    BEFORE.get().map_or(Ok(()), |before| Ok(setrlimit(Resource::Nofile, *before)?))
}

/// The same for a program that has just been started.
pub fn restore_limit_of(pid: Pid) {
    if let Some(before) = BEFORE.get() {
        // One that has ended needs none.
        let _ = prlimit(Some(pid), Resource::Nofile, *before);
    }
}
