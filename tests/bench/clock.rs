//! The clock shared by the bench and its probe programs: `CLOCK_MONOTONIC`, which is one scale for all processes of a
//! machine, in nanoseconds.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Nanoseconds on the machine-wide monotonic scale.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Milliseconds from `from` to `to`; negative when `to` came first.
pub fn millis(from: u64, to: u64) -> f64 {
    (to as i128 - from as i128) as f64 / 1e6
}

/// A point in time up to which something may be waited for.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(limit: Duration) -> Deadline {
        Deadline(Instant::now() + limit)
    }

    /// What is left of it; `None` once it has passed.
    pub fn left(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    pub fn passed(self) -> bool {
        self.left().is_none()
    }
}
