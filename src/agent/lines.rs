//! The one command that an agent gives by printing it: `/exit` on a line of its own.

use std::time::{Duration, Instant};

const COMMAND: &str = "/exit";
/// More of a line is not kept: it cannot be the command any more.
const MAX_LINE: usize = 64;

/// Assembles lines of stripped output. A line counts when it is ended, or when it stands unchanged for a moment.
#[derive(Debug, Default)]
pub struct ExitLine {
    line: String,
    unchanged_since: Option<Instant>,
}

impl ExitLine {
    /// New output. `true`: the command was given.
    pub fn push(&mut self, stripped: &str, now: Instant) -> bool {
        for c in stripped.chars() {
            match c {
                '\n' | '\r' => {
                    if self.line.trim() == COMMAND {
                        self.reset();
                        return true;
                    }
                    self.line.clear();
                }
                // Leading blanks do not count, so that a wide margin cannot fill the buffer.
                c if c.is_whitespace() && self.line.is_empty() => {}
                c if self.line.len() < MAX_LINE => self.line.push(c),
                _ => {}
            }
        }
        self.unchanged_since = (self.line.trim() == COMMAND).then_some(now);
        false
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
        let mut lines = ExitLine::default();
        lines.push("/exit", now);
        assert!(!lines.tick(now + quiet / 2, quiet));
        assert_eq!(lines.deadline(quiet), Some(now + quiet));
        lines.push("ing", now);
        assert_eq!(lines.deadline(quiet), None);
    }
}
