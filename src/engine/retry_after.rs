//! The `Retry-After` header: whole seconds, or an HTTP date.

use std::time::Duration;

/// How long to wait from `now_unix` (seconds since 1970) on. A date in the past is no wait; anything else that cannot be
/// read is `None`.
pub fn parse(text: &str, now_unix: u64) -> Option<Duration> {
    let text = text.trim();
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    Some(Duration::from_secs(unix_of(text)?.saturating_sub(now_unix)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that senders may make.
fn unix_of(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = date.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next()? != "GMT" || !(1970..10_000).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 of a civil date, with years that begin in March so that the leap day comes last.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates() {
        let at = |text: &str, now: u64| parse(text, now).map(|wait| wait.as_secs());
        assert_eq!(at(" 7 ", 0), Some(7));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777 - 5), Some(5));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777 + 5), Some(0));
        assert_eq!(at("Tue, 29 Feb 2028 00:00:00 GMT", 0), Some(1_835_395_200));
        for bad in
            ["", "soon", "-1", "1.5", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994", "99999999999999999999"]
        {
            assert_eq!(at(bad, 0), None, "{bad:?}");
        }
    }
}
