//! Identifiers, credentials and times as the engine writes them.

use sha2::{Digest, Sha256};

use crate::sys::ids;

/// 2025-01-01T00:00:00Z in milliseconds since 1970: the zero of snowflakes.
pub const SNOWFLAKE_EPOCH_MS: u64 = 1_735_689_600_000;
const WORKER: u64 = 1;
const SEQUENCE_BITS: u64 = 12;
const WORKER_BITS: u64 = 10;

/// Makes strictly growing ids: milliseconds since 2025 << 22 | worker << 12 | sequence.
///
/// Never repeats and never falls, also when the clock steps back or the sequence of a millisecond is used up: then it
/// runs ahead of the clock.
#[derive(Debug, Default)]
pub struct Snowflakes {
    last: u64,
}

impl Snowflakes {
    /// Takes note of an id made by an earlier life.
    pub fn seen(&mut self, id: u64) {
        self.last = self.last.max(id);
    }

    pub fn next(&mut self, unix_ms: u64) -> u64 {
        let floor = unix_ms.saturating_sub(SNOWFLAKE_EPOCH_MS) << (WORKER_BITS + SEQUENCE_BITS);
        let fresh = floor | (WORKER << SEQUENCE_BITS);
        self.last = if fresh > self.last {
            fresh
        } else if (self.last & ((1 << SEQUENCE_BITS) - 1)) == (1 << SEQUENCE_BITS) - 1 {
            // The millisecond is full: the first id of the next one.
            let next_ms = (self.last >> (WORKER_BITS + SEQUENCE_BITS)) + 1;
            next_ms << (WORKER_BITS + SEQUENCE_BITS) | (WORKER << SEQUENCE_BITS)
        } else {
            self.last + 1
        };
        self.last
    }
}

/// SHA-256 in hex. Tables and journal hold digests of credentials only.
pub fn digest(secret: &str) -> String {
    ids::hex(&Sha256::digest(secret.as_bytes()))
}

/// `rk_live_` + 32 hex.
pub fn workspace_key() -> String {
    format!("rk_live_{}", ids::hex(&ids::random_bytes::<16>()))
}

/// `at_live_` + 32 hex.
pub fn agent_token() -> String {
    format!("at_live_{}", ids::hex(&ids::random_bytes::<16>()))
}

/// `nt_live_` + 48 hex.
pub fn node_token() -> String {
    format!("nt_live_{}", ids::hex(&ids::random_bytes::<24>()))
}

/// `2025-01-31T12:00:00.000Z`.
pub fn iso(unix_ms: u64) -> String {
    let (secs, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, day_secs) = (secs / 86_400, secs % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z",
        day_secs / 3600,
        day_secs / 60 % 60,
        day_secs % 60
    )
}

/// Date of a count of days since 1970-01-01, by walking 400-year eras that begin on the 1st of March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Milliseconds since 1970 of `YYYY-MM-DDTHH:MM:SS[.fff]Z`; `None` for anything else.
pub fn parse_iso(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let number = |part: &str| part.parse::<u64>().ok();
    let mut date = date.split('-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next().unwrap_or(Some(0))?);
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let millis: u64 = format!("{:0<3}", fraction).get(..3)?.parse().ok()?;
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, year_of_era) = (y / 400, y % 400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * m + 2) / 5 + day - 1;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snowflakes_grow_whatever_the_clock_does() {
        let mut flakes = Snowflakes::default();
        let mut last = 0;
        for ms in [SNOWFLAKE_EPOCH_MS + 5000, SNOWFLAKE_EPOCH_MS + 5000, SNOWFLAKE_EPOCH_MS, SNOWFLAKE_EPOCH_MS + 5001]
        {
            for _ in 0..5000 {
                let id = flakes.next(ms);
                assert!(id > last, "{id} after {last}");
                last = id;
            }
        }
        flakes.seen(last + (1 << 40));
        assert!(flakes.next(SNOWFLAKE_EPOCH_MS) > last + (1 << 40));
        let today = Snowflakes::default().next(1_764_000_000_000);
        assert_eq!(today.to_string().len(), 18);
    }

    #[test]
    fn times_are_written_and_read() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (SNOWFLAKE_EPOCH_MS, "2025-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_772_323_199_999, "2026-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(iso(ms), text);
            assert_eq!(parse_iso(text), Some(ms), "{text}");
        }
        for bad in ["", "yesterday", "2025-13-01T00:00:00Z", "2025-01-01T00:00:00", "2025-01-01T25:00:00Z"] {
            assert_eq!(parse_iso(bad), None, "{bad}");
        }
    }

    #[test]
    fn credentials_have_their_lengths() {
        assert_eq!(workspace_key().len(), "rk_live_".len() + 32);
        assert_eq!(agent_token().len(), "at_live_".len() + 32);
        assert_eq!(node_token().len(), "nt_live_".len() + 48);
    }
}
