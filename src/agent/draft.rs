//! What a human has typed at an agent's terminal and not sent: a message typed now would be glued to it.
//!
//! Fed with the keys, not with the screen; whether the text still stands in a composer is asked of the terminal by the desk.
//! Pure: the time comes as an argument.

use std::time::Instant;

/// More of a draft is not kept; its end is what stands before the cursor.
const KEEP: usize = 4 << 10;

const PASTE_BEGINS: &[u8] = b"200~";
const PASTE_ENDS: &[u8] = b"201~";

#[derive(Debug, Default)]
pub struct Draft {
    /// What is typed since the last Enter.
    text: Vec<u8>,
    scan: Scan,
    /// Parameters and final byte of the sequence in progress.
    sequence: Vec<u8>,
    /// Inside of a pasted text, where Enter is part of it.
    pasting: bool,
    last_key: Option<Instant>,
    /// It was typed while the kernel itself kept the line until Enter.
    in_line_mode: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Scan {
    #[default]
    Ground,
    /// Behind an escape.
    Escape,
    Csi,
    /// One byte belongs to it (`ESC O A`).
    OneMore,
    /// An answer of a viewer's terminal, up to its end (`ESC ] … BEL`, `ESC P … ESC \`).
    String,
    /// Behind an escape that may end it.
    StringEnd,
}

impl Draft {
    /// Keys that are written to the terminal. `in_line_mode`: the kernel keeps the line until Enter.
    pub fn keys(&mut self, bytes: &[u8], in_line_mode: bool, now: Instant) {
        let mut pressed = false;
        if std::mem::replace(&mut self.in_line_mode, in_line_mode) != in_line_mode && in_line_mode {
            // What a program has taken key by key is in no line of the kernel's.
            self.submitted();
        }
        if matches!(self.scan, Scan::String | Scan::StringEnd) {
            // Such an answer comes in one piece; a human's Alt and `]` is no beginning of one.
            self.scan = Scan::Ground;
        }
        if self.scan == Scan::Escape && !matches!(bytes.first(), Some(b'[' | b'O')) {
            // A human's Escape comes alone; what follows later is another key.
            self.scan = Scan::Ground;
        }
        for byte in bytes {
            pressed |= self.step(*byte);
        }
        if self.text.len() > KEEP {
            let mut from = self.text.len() - KEEP;
            while self.text.get(from).is_some_and(|byte| byte & 0xC0 == 0x80) {
                from += 1;
            }
            self.text.drain(..from);
        }
        if pressed {
            self.last_key = Some(now);
        }
    }

    /// `false`: part of a sequence, or what a viewer's terminal reports by itself.
    fn step(&mut self, byte: u8) -> bool {
        match self.scan {
            Scan::Ground => {
                if byte == 0x1b {
                    self.scan = Scan::Escape;
                } else {
                    self.key(byte);
                }
                return byte != 0x1b;
            }
            Scan::Escape => {
                self.scan = match byte {
                    b'[' => Scan::Csi,
                    b'O' => Scan::OneMore,
                    b']' | b'P' | b'_' | b'^' => Scan::String,
                    // A key with Alt. Alt and Enter is a line break inside of a composer.
                    _ => Scan::Ground,
                };
                if matches!(byte, b'\r' | b'\n') {
                    self.text.push(b'\n');
                }
                self.sequence.clear();
                return self.scan == Scan::Ground;
            }
            Scan::OneMore => self.scan = Scan::Ground,
            Scan::String => {
                match byte {
                    0x07 => self.scan = Scan::Ground,
                    0x1b => self.scan = Scan::StringEnd,
                    _ => {}
                }
                return false;
            }
            Scan::StringEnd => {
                self.scan = if byte == b'\\' { Scan::Ground } else { Scan::String };
                return false;
            }
            Scan::Csi => {
                if self.sequence.len() < 32 {
                    self.sequence.push(byte);
                }
                if !(0x40..=0x7e).contains(&byte) {
                    return false;
                }
                self.scan = Scan::Ground;
                match self.sequence.as_slice() {
                    PASTE_BEGINS => self.pasting = true,
                    PASTE_ENDS => self.pasting = false,
                    // Shift, Alt or Control with Enter, as far as a viewer tells them apart: no submission.
                    [b'1', b'3', b';', .., b'u'] => self.text.push(b'\n'),
                    _ => {}
                }
                // Positions, attributes, modes, sizes, focus.
                return !matches!(byte, b'R' | b'c' | b'n' | b't' | b'y' | b'I' | b'O');
            }
        }
        true
    }

    fn key(&mut self, byte: u8) {
        match byte {
            b'\r' | b'\n' if self.pasting => self.text.push(b'\n'),
            // Enter; Control with C, D, U.
            b'\r' | b'\n' | 0x03 | 0x04 | 0x15 => self.text.clear(),
            0x7f | 0x08 => while self.text.pop().is_some_and(|byte| byte & 0xC0 == 0x80) {},
            // The last word, by Control with W.
            0x17 => {
                let blank = |byte: &u8| byte.is_ascii_whitespace();
                let end = self.text.iter().rposition(|byte| !blank(byte)).map_or(0, |at| at + 1);
                let start = self.text[..end].iter().rposition(blank).map_or(0, |at| at + 1);
                self.text.truncate(start);
            }
            b'\t' | 0x20..=0x7e | 0x80.. => self.text.push(byte),
            _ => {}
        }
    }

    /// The draft as it was typed; blank when there is none.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.text)
    }

    /// Whether the kernel keeps it, and not a program.
    pub fn is_in_line_mode(&self) -> bool {
        self.in_line_mode
    }

    /// A pasted text has begun and not ended.
    pub fn is_pasting(&self) -> bool {
        self.pasting
    }

    pub fn is_empty(&self) -> bool {
        self.text.iter().all(u8::is_ascii_whitespace)
    }

    /// When a key was pressed last.
    pub fn last_key(&self) -> Option<Instant> {
        self.last_key
    }

    /// Somebody else has pressed Enter.
    pub fn submitted(&mut self) {
        self.text = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(parts: &[&[u8]]) -> String {
        let mut draft = Draft::default();
        parts.iter().for_each(|part| draft.keys(part, false, Instant::now()));
        draft.text().into_owned()
    }

    #[test]
    fn a_draft_is_what_stands_since_the_last_enter() {
        for (keys, left) in [
            (&[&b"hello"[..]][..], "hello"),
            (&[b"sent\rnext"], "next"),
            (&[b"sent\n"], ""),
            (&[b"abc\x7f\x7f"], "a"),
            (&["ä€".as_bytes(), b"\x7f"], "ä"),
            (&[b"\x7f\x7f"], ""),
            (&[b"gone\x15"], ""),
            (&[b"gone\x03new"], "new"),
            (&[b"two words\x17"], "two "),
            (&[b"two  \x17"], ""),
            (&[b"a\x1b[Db\x1b[1;5Cc"], "abc"),
            (&[b"a\x1bOBb"], "ab"),
            (&[b"a", b"\x1b", b"b"], "ab"),
            (&[b"a", b"\x1b", b"[Ab"], "ab"),
            (&[b"a\x1b\rb"], "a\nb"),
            (&[b"a\x1b[13;2ub"], "a\nb"),
            (&[b"\x1b[200~one\rtwo\x1b[201~"], "one\ntwo"),
            (&[b"\x1b[200~one\rtwo\x1b[201~", b"\r"], ""),
            (&[b"\x1b[20", b"0~a\r", b"b\x1b[201~c"], "a\nbc"),
            (&[b"\x1b[?62;4c\x1b[12;40R\x1b[I"], ""),
        ] {
            assert_eq!(draft(keys), left, "{keys:?}");
        }
    }

    #[test]
    fn what_a_terminal_reports_by_itself_is_no_key() {
        let now = Instant::now();
        let colour = &b"\x1b]11;rgb:00/00/00\x07"[..];
        let version = b"\x1bP>|viewer 1.0\x1b\\";
        for report in [&b"\x1b[12;40R"[..], b"\x1b[?62c", b"\x1b[0n", b"\x1b[I", b"\x1b[O", colour, version] {
            let mut draft = Draft::default();
            draft.keys(report, false, now);
            assert_eq!((draft.last_key(), draft.is_empty()), (None, true), "{report:?}");
        }
        for key in [&b"y"[..], b"\x1b[A", b"\r", b"\x1bx"] {
            let mut draft = Draft::default();
            draft.keys(key, false, now);
            assert_eq!(draft.last_key(), Some(now), "{key:?}");
        }
    }

    #[test]
    fn what_a_program_has_taken_key_by_key_stands_in_no_line_of_the_kernel() {
        let mut draft = Draft::default();
        draft.keys(b"jjq", false, Instant::now());
        assert!(!draft.is_in_line_mode() && !draft.is_empty());
        draft.keys(b"ls", true, Instant::now());
        assert_eq!((draft.text().as_ref(), draft.is_in_line_mode()), ("ls", true));
        // Typed ahead for a program that takes keys: it will see them.
        draft.keys(b" -l", false, Instant::now());
        assert_eq!(draft.text(), "ls -l");
        // A human's Alt and `]` is a key like others.
        draft.keys(b"\x1b]", false, Instant::now());
        draft.keys(b"x", false, Instant::now());
        assert_eq!(draft.text(), "ls -lx");
    }

    #[test]
    fn a_long_draft_keeps_its_end() {
        let mut draft = Draft::default();
        draft.keys("ä".repeat(10_000).as_bytes(), false, Instant::now());
        draft.keys(b"end", false, Instant::now());
        assert!(draft.text().len() <= KEEP + 3);
        assert!(draft.text().ends_with("ääend") && !draft.text().contains('\u{fffd}'));
    }
}
