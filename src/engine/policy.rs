//! When a call is made again: pure rules, and the pauses that a rate limit imposes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Attempts of one call, the first included.
pub const ATTEMPTS: u32 = 4;
/// Pause after a 429 that does not say how long.
const DEFAULT_PAUSE: Duration = Duration::from_secs(60);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// What may be done twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The second time changes nothing (or carries an idempotency key).
    Always,
    /// Only after an answer: a request without one may have been carried out.
    Answered,
    /// Only if the first certainly was not carried out: it was not sent, or was turned away by the rate limit.
    Unsent,
}

/// Calls that the engine limits together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    Workspace,
    Agent,
    Node,
    Channel,
    Message,
    Presence,
}

/// How an attempt ended, as far as repeating it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Unsent,
    NoAnswer,
    Status {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// 409 `idempotency_in_progress`: the first copy of this message is still at work.
    InProgress,
}

/// Whether and when to try again after attempt number `attempt` (from 1). `jitter` is in 0..1, `left` what remains of the
/// call's time. `None`: this ending is the result.
pub fn pause_before_repeat(
    ending: Ending,
    repeat: Repeat,
    attempt: u32,
    attempts: u32,
    left: Duration,
    jitter: f64,
) -> Option<Duration> {
    if attempt >= attempts {
        return None;
    }
    let back_off = Duration::from_millis(200 << (attempt - 1).min(4)).mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0));
    let wait = match ending {
        Ending::Unsent => back_off,
        Ending::NoAnswer if repeat == Repeat::Always => back_off,
        Ending::InProgress if repeat == Repeat::Always => back_off,
        Ending::Status { status: 429, retry_after } => retry_after?,
        Ending::Status { status: 500 | 502 | 503 | 504, retry_after } if repeat != Repeat::Unsent => {
            retry_after.unwrap_or_default().max(back_off)
        }
        _ => return None,
    };
    (wait < left).then_some(wait)
}

/// Until when calls of a class with one key must wait.
#[derive(Debug, Default)]
pub struct Pauses(HashMap<(Class, u64), Instant>);

impl Pauses {
    /// The engine said 429.
    pub fn impose(&mut self, class: Class, key: u64, retry_after: Option<Duration>, now: Instant) {
        // Bounded by the keys limited within one pause.
        self.0.retain(|_, until| *until > now);
        let until = now + retry_after.unwrap_or(DEFAULT_PAUSE).min(LONGEST_PAUSE);
        self.0.insert((class, key), until);
    }

    /// What is left of a pause.
    pub fn left(&self, class: Class, key: u64, now: Instant) -> Option<Duration> {
        self.0.get(&(class, key)).and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(100);

    fn status(status: u16) -> Ending {
        Ending::Status { status, retry_after: None }
    }

    fn repeats(ending: Ending, repeat: Repeat) -> bool {
        pause_before_repeat(ending, repeat, 1, ATTEMPTS, LONG, 0.5).is_some()
    }

    #[test]
    fn the_table_of_repeats() {
        use Repeat::{Always, Answered, Unsent};
        for (ending, always, answered, unsent) in [
            (Ending::Unsent, true, true, true),
            (Ending::NoAnswer, true, false, false),
            (Ending::InProgress, true, false, false),
            (status(500), true, true, false),
            (status(502), true, true, false),
            (status(503), true, true, false),
            (status(504), true, true, false),
            (status(501), false, false, false),
            (status(400), false, false, false),
            (status(401), false, false, false),
            (status(404), false, false, false),
            (status(409), false, false, false),
            (status(302), false, false, false),
            (status(429), false, false, false),
            (Ending::Status { status: 429, retry_after: Some(Duration::from_secs(1)) }, true, true, true),
        ] {
            let seen = (repeats(ending, Always), repeats(ending, Answered), repeats(ending, Unsent));
            assert_eq!(seen, (always, answered, unsent), "{ending:?}");
        }
    }

    #[test]
    fn back_off_grows_and_stays_within_its_fifth() {
        for (attempt, nominal) in [(1, 200), (2, 400), (3, 800)] {
            for (jitter, factor) in [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)] {
                let wait = pause_before_repeat(status(503), Repeat::Always, attempt, ATTEMPTS, LONG, jitter).unwrap();
                let expected = f64::from(nominal) * factor;
                assert!((wait.as_secs_f64() * 1000.0 - expected).abs() < 0.001, "{attempt} {jitter}: {wait:?}");
            }
        }
        assert_eq!(pause_before_repeat(status(503), Repeat::Always, 4, ATTEMPTS, LONG, 0.5), None);
    }

    #[test]
    fn nothing_is_repeated_past_the_deadline() {
        let limited = Ending::Status { status: 429, retry_after: Some(Duration::from_secs(3)) };
        let wait = |left| pause_before_repeat(limited, Repeat::Always, 1, ATTEMPTS, left, 0.5);
        assert_eq!(wait(Duration::from_secs(4)), Some(Duration::from_secs(3)));
        assert_eq!(wait(Duration::from_secs(3)), None);
        assert_eq!(
            pause_before_repeat(status(503), Repeat::Always, 1, ATTEMPTS, Duration::from_millis(100), 0.5),
            None
        );
    }

    #[test]
    fn pauses_are_per_class_and_key_and_capped() {
        let now = Instant::now();
        let mut pauses = Pauses::default();
        pauses.impose(Class::Message, 1, None, now);
        pauses.impose(Class::Agent, 1, Some(Duration::from_secs(500)), now);
        assert_eq!(pauses.left(Class::Message, 1, now), Some(DEFAULT_PAUSE));
        assert_eq!(pauses.left(Class::Agent, 1, now), Some(LONGEST_PAUSE));
        assert_eq!(pauses.left(Class::Message, 2, now), None);
        assert_eq!(pauses.left(Class::Node, 1, now), None);
        assert_eq!(pauses.left(Class::Message, 1, now + DEFAULT_PAUSE), None);
        pauses.impose(Class::Node, 1, None, now + LONGEST_PAUSE);
        assert_eq!(pauses.0.len(), 1);
    }
}
