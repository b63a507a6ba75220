//! The only clock of the daemon: milliseconds since its start, and the wall clock beside them.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time on both clocks, in milliseconds. Plain data: the pure core is handed one with every input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Monotonic, since the process started.
    pub mono: u64,
    /// Wall clock, since 1970. May step in either direction.
    pub unix: u64,
}

static START: OnceLock<Instant> = OnceLock::new();

/// The instant that counts as zero: the first call in this process.
pub fn start() -> Instant {
    *START.get_or_init(Instant::now)
}

/// Both clocks at once, in milliseconds.
pub fn now() -> Now {
    Now { mono: start().elapsed().as_millis() as u64, unix: unix_ms() }
}

/// Wall clock, milliseconds since 1970; 0 if the system clock stands before that.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or(0)
}

/// The `Instant` of a point on the monotonic millisecond scale of [`now`].
pub fn instant_of(mono_ms: u64) -> Instant {
    start() + Duration::from_millis(mono_ms)
}
