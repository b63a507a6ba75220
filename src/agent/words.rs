//! Commands that a message quotes: the terminal may show them long after the message was typed, and they are not the
//! agent's.
//!
//! A program shows a message while it is typed, again in its history, and whenever it draws that history anew. A command
//! on a line of its own that follows the same words as in a message is therefore the message's.

use std::collections::VecDeque;

use super::echo::compact;
use super::{continuity, lines};

/// Commands remembered, of the last messages.
const MOST: usize = 32;
/// So much of what stands before a command is compared.
const BEFORE: usize = 64;
/// A longer line is no command, and only its end is kept.
const MAX_LINE: usize = 256;

#[derive(Debug, Default)]
pub struct OwnWords {
    /// What stands before a command, and the command, both compact.
    quoted: VecDeque<(String, String)>,
    /// The line in progress, whether its beginning is left out, and the last one that is not blank.
    line: String,
    cut: bool,
    previous: String,
}

impl OwnWords {
    /// A message is about to be typed.
    pub fn quote(&mut self, text: &str) {
        // What the hint says of commands stands within its lines.
        let hinted = text.starts_with("<system-reminder>").then(|| text.split_once("</system-reminder>\n")).flatten();
        let text = hinted.map_or(text, |(_, message)| message);
        let mut before = String::new();
        for line in text.lines() {
            if continuity::opens(line) {
                self.remember(&before, line);
            }
            for word in line.split_whitespace() {
                // Within a line too: a narrow screen breaks it.
                if word == lines::COMMAND {
                    self.remember(&before, word);
                }
                before.push_str(&compact(word));
            }
        }
    }

    fn remember(&mut self, before: &str, command: &str) {
        if before.is_empty() {
            return;
        }
        self.quoted.push_back((end_of(before).to_string(), compact(command)));
        if self.quoted.len() > MOST {
            self.quoted.pop_front();
        }
    }

    /// Whether no message has said a command yet: there is nothing to watch the output for.
    pub fn is_empty(&self) -> bool {
        self.quoted.is_empty()
    }

    /// New output, stripped of escape sequences, at most up to the end of one line. `true`: the line as it stands now is
    /// a command that a message said.
    pub fn push(&mut self, piece: &str) -> bool {
        self.line.push_str(piece);
        if self.line.len() > MAX_LINE {
            let from = self.line.len() - MAX_LINE;
            let from = (from..).find(|at| self.line.is_char_boundary(*at)).unwrap_or(self.line.len());
            self.line.drain(..from);
            self.cut = true;
        }
        let quoted = !self.cut && self.is_quoted();
        if piece.ends_with(['\n', '\r']) {
            self.cut = false;
            if !self.line.trim().is_empty() {
                std::mem::swap(&mut self.previous, &mut self.line);
            }
            self.line.clear();
        }
        quoted
    }

    fn is_quoted(&self) -> bool {
        let line = compact(&self.line);
        let mut same = self.quoted.iter().filter(|(_, command)| *command == line).peekable();
        if same.peek().is_none() {
            return false;
        }
        let previous = compact(&self.previous);
        let shown = end_of(&previous);
        // Either may be cut: by a narrow screen, or by what the program puts in front, which may be a mark on each row.
        let bare = Some(shown.trim_start_matches(|c: char| !c.is_alphanumeric())).filter(|bare| !bare.is_empty());
        !shown.is_empty()
            && same.any(|(before, _)| before.ends_with(bare.unwrap_or(shown)) || shown.ends_with(before.as_str()))
    }
}

fn end_of(text: &str) -> &str {
    let from = text.char_indices().rev().nth(BEFORE - 1).map_or(0, |(at, _)| at);
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a command of a message is seen in what is printed.
    fn quoted(message: &str, printed: &str) -> bool {
        let mut words = OwnWords::default();
        words
            .quote(&format!("<system-reminder>never /exit</system-reminder>\nRelay message from bob [m_1]: {message}"));
        printed.split_inclusive('\n').any(|line| words.push(line))
    }

    #[test]
    fn t7_a_command_is_the_message_s_behind_the_same_words() {
        for (message, printed) in [
            ("please print\n/exit\nnow", "please print\r\n/exit\r\n"),
            ("please print\n/exit\nnow", "> Relay message from bob [m_1]: please print\n\n  /exit"),
            ("please\n\n  /exit", "* please\n│ /exit │\n"),
            ("please print /exit now", "please\nprint\n/exit\nnow\n"),
            ("\n/exit", "Relay message from bob [m_1]:\n/exit\n"),
            ("say\nKIND: continuity\nACTION: save\nx", "say\nKIND: continuity\nACTION: save\n"),
            (&format!("{}\n/exit", "long ".repeat(200)), &format!("{}\n/exit\n", "long ".repeat(200))),
        ] {
            assert!(quoted(message, printed), "{message:?} in {printed:?}");
        }
        for (message, printed) in [
            ("please print\n/exit\nnow", "/exit\n"),
            ("please print\n/exit\nnow", "Good bye\n/exit\n"),
            ("please print\n/exit\nnow", "please print\nGood bye\n/exit\n"),
            ("please print\n/exit\nnow", "please print\n/exit now\n"),
            ("never", "never\n/exit\n"),
            ("say\nKIND: continuity\n", "done\nKIND: continuity\n"),
        ] {
            assert!(!quoted(message, printed), "{message:?} in {printed:?}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut words = OwnWords::default();
        words.quote(&"word /exit ".repeat(10_000));
        assert_eq!(words.quoted.len(), MOST);
        assert!(words.quoted.iter().all(|(before, _)| before.chars().count() <= BEFORE));
        for _ in 0..100 {
            words.push(&"é".repeat(1_000));
            assert!(words.line.len() <= MAX_LINE);
        }
        assert!(!words.push("/exit\n"), "the end of a long line");
    }
}
