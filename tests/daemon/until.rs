//! Waiting for a condition, with a deadline, and with everything that was seen when it passes.

use std::time::{Duration, Instant};

/// For what has no deadline of its own; long, because the machine may be busy.
pub const LONG: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is something, at most `limit`.
pub fn look<T>(limit: Duration, mut at: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = at() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`look`]; panics with what was awaited and what was seen instead.
#[track_caller]
pub fn until<T>(limit: Duration, what: &str, seen: impl Fn() -> String, at: impl FnMut() -> Option<T>) -> T {
    match look(limit, at) {
        Some(found) => found,
        None => panic!("not within {limit:?}: {what}\n{}", seen()),
    }
}
