//! What an agent prints to keep its session for a successor, or to have its predecessor's back.
//!
//! ```text
//! KIND: continuity
//! ACTION: save | load | uncertain
//! what is to be kept, up to the next KIND: or a moment of silence
//! ```

use std::time::{Duration, Instant};

use crate::core::ports::Continuity;

/// More of a block is cut off.
const MAX_BODY: usize = 16 << 10;
/// Longer lines hold no keyword.
const MAX_LINE: usize = 4 << 10;

#[derive(Debug, Default)]
pub struct ContinuityScan {
    /// The line in progress.
    line: String,
    state: State,
    /// Of the last output while a block is open.
    since: Option<Instant>,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Outside,
    /// Behind `KIND: continuity`.
    Kind,
    Body {
        action: String,
        body: String,
    },
}

impl ContinuityScan {
    /// New output, stripped of escape sequences. The blocks that it ends.
    pub fn push(&mut self, stripped: &str, now: Instant) -> Vec<Continuity> {
        let mut done = Vec::new();
        for piece in stripped.split_inclusive('\n') {
            let room = MAX_LINE.saturating_sub(self.line.len());
            let text = piece.trim_end_matches('\n');
            if text.len() <= room {
                self.line.push_str(text);
            } else {
                self.line.extend(text.chars().take(room));
            }
            if text.len() < piece.len() {
                let line = std::mem::take(&mut self.line);
                done.extend(self.take_line(&line));
            }
        }
        self.since = (self.state != State::Outside).then_some(now);
        done
    }

    fn take_line(&mut self, line: &str) -> Option<Continuity> {
        // A line that was begun anew shows its last form.
        let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        let trimmed = line.trim();
        if let Some(kind) = value(trimmed, "KIND") {
            let ended = self.end();
            if kind.eq_ignore_ascii_case("continuity") {
                self.state = State::Kind;
            }
            return ended;
        }
        match &mut self.state {
            State::Outside => {}
            State::Kind if trimmed.is_empty() => {}
            State::Kind => {
                let action = value(trimmed, "ACTION").map(str::to_ascii_lowercase);
                self.state = match action.filter(|action| ["save", "load", "uncertain"].contains(&action.as_str())) {
                    Some(action) => State::Body { action, body: String::new() },
                    None => State::Outside,
                };
            }
            State::Body { body, .. } => {
                let room = MAX_BODY.saturating_sub(body.len());
                body.extend(line.trim_end().chars().take(room));
                if body.len() < MAX_BODY {
                    body.push('\n');
                }
            }
        }
        None
    }

    fn end(&mut self) -> Option<Continuity> {
        match std::mem::take(&mut self.state) {
            State::Body { action, body } if action == "save" => Some(Continuity::Save { summary: body.trim().into() }),
            State::Body { action, .. } if action == "load" => Some(Continuity::Load),
            // An agent that is not sure keeps nothing and asks for nothing.
            _ => None,
        }
    }

    /// No block is open.
    pub fn is_outside(&self) -> bool {
        self.state == State::Outside
    }

    pub fn deadline(&self, quiet: Duration) -> Option<Instant> {
        self.since.map(|since| since + quiet)
    }

    /// Ends a block after which nothing more comes.
    pub fn tick(&mut self, now: Instant, quiet: Duration) -> Option<Continuity> {
        self.deadline(quiet).filter(|at| *at <= now)?;
        self.since = None;
        let line = std::mem::take(&mut self.line);
        self.take_line(&line).or_else(|| self.end())
    }

    /// What is shown is, or may be, our own text.
    pub fn reset(&mut self) {
        *self = ContinuityScan::default();
    }
}

/// Whether a line begins a block.
pub fn opens(line: &str) -> bool {
    value(line.trim(), "KIND").is_some_and(|kind| kind.eq_ignore_ascii_case("continuity"))
}

/// What follows `KEY:`, the key in any case.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (found, value) = line.split_once(':')?;
    found.trim().eq_ignore_ascii_case(key).then(|| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(500);

    fn seen(parts: &[&str]) -> Vec<Continuity> {
        let now = Instant::now();
        let mut scan = ContinuityScan::default();
        let mut all: Vec<Continuity> = parts.iter().flat_map(|part| scan.push(part, now)).collect();
        assert_eq!(scan.tick(now + QUIET / 2, QUIET), None, "{parts:?}: too early");
        all.extend(scan.tick(now + QUIET, QUIET));
        all
    }

    #[test]
    fn d16_a_block_ends_with_the_next_or_with_silence() {
        let save = |summary: &str| Continuity::Save { summary: summary.into() };
        for (parts, expected) in [
            (&["KIND: continuity\nACTION: save\nhalf done\n"][..], &[save("half done")][..]),
            (&["kind:Continuity\r\n\r\naction: SAVE\r\nhalf done\r\n  and more"], &[save("half done\n  and more")]),
            (&["KIND: conti", "nuity\nACTION: sa", "ve\nhalf ", "done\n", "\nrest\n"], &[save("half done\n\nrest")]),
            (
                &["KIND: continuity\nACTION: save\none\nKIND: continuity\nACTION: load\n"],
                &[save("one"), Continuity::Load],
            ),
            (&["KIND: continuity\nACTION: save\none\nKIND: status\nmore\n"], &[save("one")]),
            (&["KIND: continuity\nACTION: load"], &[Continuity::Load]),
            (&["KIND: continuity\nACTION: uncertain\nx\n"], &[]),
            (&["KIND: continuity\nACTION: burn\nx\n", "KIND: continuity\nnot now\nACTION: save\nx\n"], &[]),
            (&["a KIND: continuity\nACTION: save\nx\n", "ACTION: load\n"], &[]),
        ] {
            assert_eq!(seen(parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn a_block_is_bounded() {
        let long = format!("KIND: continuity\nACTION: save\n{}\n", "x".repeat(1 << 20));
        let [Continuity::Save { summary }] = &seen(&[&long])[..] else { panic!("no save") };
        assert!(summary.len() <= MAX_BODY, "{}", summary.len());
        let lines = format!("KIND: continuity\nACTION: save\n{}", "line of text\n".repeat(10_000));
        let [Continuity::Save { summary }] = &seen(&[&lines])[..] else { panic!("no save") };
        assert!(summary.len() <= MAX_BODY, "{}", summary.len());
    }
}
