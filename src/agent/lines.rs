//! The one command that an agent gives by printing it: `/exit` on a line of its own.

use std::time::{Duration, Instant};

/// The command.
pub const COMMAND: &str = "/exit";
/// More of a line is not kept: it cannot be the command any more.
const MAX_LINE: usize = 64;

/// Assembles lines of stripped output. A line counts when it is ended, or when it stands unchanged for a moment.
#[derive(Debug, Default)]
pub struct ExitLine {
    line: String,
    /// Text follows what is kept of it.
    too_long: bool,
    unchanged_since: Option<Instant>,
}

impl ExitLine {
    /// New output. `true`: the command was given.
    pub fn push(&mut self, stripped: &str, now: Instant) -> bool {
        if stripped.is_empty() {
            // A title, a colour: the line is as it was.
            return false;
        }
        for piece in stripped.split_inclusive(['\n', '\r']) {
            let ended = piece.ends_with(['\n', '\r']);
            self.keep(piece.trim_end_matches(['\n', '\r']));
            if ended {
                if self.is_command() {
                    self.reset();
                    return true;
                }
                self.line.clear();
                self.too_long = false;
            }
        }
        self.unchanged_since = self.is_command().then_some(now);
        false
    }

    fn keep(&mut self, piece: &str) {
        // Blanks at both ends do not count, so that a wide margin cannot fill the buffer.
        let piece = if self.line.is_empty() { piece.trim_start() } else { piece };
        let room = MAX_LINE.saturating_sub(self.line.len());
        let cut = piece.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= room).last();
        let (kept, beyond) = piece.split_at(cut.unwrap_or(0));
        self.line.push_str(kept);
        self.too_long |= !beyond.trim().is_empty();
    }

    fn is_command(&self) -> bool {
        !self.too_long && self.line.trim() == COMMAND
    }

    /// Forgets the line in progress: it is, or may be, our own text.
    pub fn reset(&mut self) {
        *self = ExitLine::default();
    }

    pub fn deadline(&self, quiet: Duration) -> Option<Instant> {
        self.unchanged_since.map(|since| since + quiet)
    }

    /// Whether an unended line has stood long enough to be the command.
    pub fn tick(&mut self, now: Instant, quiet: Duration) -> bool {
        let given = self.deadline(quiet).is_some_and(|at| at <= now);
        if given {
            self.reset();
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d15_only_a_whole_line_is_the_command() {
        let (now, quiet) = (Instant::now(), Duration::from_millis(200));
        let given = |parts: &[&str]| {
            let mut lines = ExitLine::default();
            parts.iter().any(|part| lines.push(part, now)) || lines.tick(now + quiet, quiet)
        };
        for parts in [&["/exit\n"][..], &["  /ex", "it \r\n"], &["text\n/exit"], &["x\r/exit\r"]] {
            assert!(given(parts), "{parts:?}");
        }
        for parts in [&["type /exit now\n"][..], &["type ", "/exit", " now\n"], &["/exit ", "now"], &["> /exit\n"]] {
            assert!(!given(parts), "{parts:?}");
        }
        let (margin, blanks) = (" ".repeat(200), " ".repeat(100));
        assert!(given(&[&format!("{margin}/exit{blanks}\n")]));
        assert!(!given(&[&format!("/exit{blanks}is a word\n")]), "text beyond what is kept");
        assert!(!given(&["/exit", &blanks, "is a word", "\n"]));
        assert!(!given(&[&format!("{}/exit\n", "ä".repeat(40))]));
        let mut lines = ExitLine::default();
        lines.push("/exit", now);
        assert!(!lines.tick(now + quiet / 2, quiet));
        assert_eq!(lines.deadline(quiet), Some(now + quiet));
        lines.push("", now + quiet / 2);
        assert_eq!(lines.deadline(quiet), Some(now + quiet), "what is not seen changes no line");
        lines.push("ing", now);
        assert_eq!(lines.deadline(quiet), None);
    }
}
