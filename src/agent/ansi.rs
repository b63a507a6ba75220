//! Takes the escape sequences out of terminal output, for matching only: what viewers get is untouched.

/// A streaming scanner: a sequence cut by the end of one read goes on in the next. Of the sequence in progress only the
/// beginning is kept, so one that never ends costs no memory.
#[derive(Debug, Default)]
pub struct Stripper {
    state: State,
    /// First parameter of the CSI sequence in progress, saturating.
    number: u16,
    first_parameter: bool,
    /// Characters so far of the string (OSC, DCS …) in progress.
    string_len: usize,
    unfinished: String,
}

/// Bytes kept of a sequence in progress.
const UNFINISHED_MAX: usize = 4 << 10;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escape,
    /// One more character belongs to the sequence (`ESC ( B`).
    OneMore,
    Csi,
    /// OSC, DCS, SOS, PM, APC: up to ST, OSC also to BEL.
    Text {
        osc: bool,
    },
    TextEscape {
        osc: bool,
    },
}

/// A cursor jump to the right counts as that many spaces, at most a wide row of them.
const MAX_JUMP: u16 = 512;

/// Outside of sequences everything else is visible text; most of what is printed is.
fn is_special(byte: u8) -> bool {
    byte.is_ascii_control() && !matches!(byte, b'\n' | b'\r' | b'\t')
}

/// Where the first special byte is. A flood is searched in words of eight: byte by byte that takes as long as to draw it.
fn first_special(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const TOPS: u64 = ONES * 0x80;
    // Of each byte the top bit: set if it is below `n`, which is 0x80 at most (and for some bytes above, which costs a look).
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & TOPS;
    let mut at = 0;
    for word in text.chunks(8) {
        let plain = <[u8; 8]>::try_from(word).is_ok_and(|word| {
            let word = u64::from_ne_bytes(word);
            below(word, 0x20) == 0 && below(word ^ (ONES * 0x7f), 1) == 0
        });
        if !plain && let Some(found) = word.iter().position(|byte| is_special(*byte)) {
            return Some(at + found);
        }
        at += word.len();
    }
    None
}

impl Stripper {
    /// Appends the visible text of `input` to `out`. Line feeds, carriage returns and tabs stay, other controls go.
    pub fn push(&mut self, input: &str, out: &mut String) {
        let mut rest = input;
        while !rest.is_empty() {
            if self.state == State::Ground {
                let plain = first_special(rest.as_bytes()).unwrap_or(rest.len());
                out.push_str(&rest[..plain]);
                rest = &rest[plain..];
            }
            let Some(c) = rest.chars().next() else { return };
            rest = &rest[c.len_utf8()..];
            self.step(c, out);
            if self.state == State::Ground {
                self.unfinished.clear();
            } else if self.unfinished.len() < UNFINISHED_MAX && (c == '\u{1b}' || !c.is_ascii_control()) {
                // Other controls were carried out at once.
                self.unfinished.push(c);
            }
        }
    }

    /// The beginning of the sequence in progress.
    pub fn unfinished(&self) -> &str {
        &self.unfinished
    }

    /// Whether a string sequence is running for more than `limit` characters: the emulator must not be fed with it, it
    /// would keep every byte.
    pub fn inside_long_string(&self, limit: usize) -> bool {
        matches!(self.state, State::Text { .. } | State::TextEscape { .. }) && self.string_len > limit
    }

    fn step(&mut self, c: char, out: &mut String) {
        if matches!(c, '\u{18}' | '\u{1a}') {
            self.state = State::Ground;
            return;
        }
        match self.state {
            // Text was taken as a whole.
            State::Ground => {
                if c == '\u{1b}' {
                    self.state = State::Escape;
                }
            }
            State::Escape => {
                self.state = match c {
                    '[' => {
                        (self.number, self.first_parameter) = (0, true);
                        State::Csi
                    }
                    ']' => self.string(true),
                    'P' | 'X' | '^' | '_' => self.string(false),
                    ' '..='/' => State::OneMore,
                    '\u{1b}' => State::Escape,
                    _ => State::Ground,
                }
            }
            State::OneMore => self.state = if c == '\u{1b}' { State::Escape } else { State::Ground },
            State::Csi => match c {
                '0'..='9' if self.first_parameter => {
                    self.number = self.number.saturating_mul(10).saturating_add(c as u16 - '0' as u16);
                }
                ' '..='?' => self.first_parameter &= c.is_ascii_digit(),
                '@'..='~' => {
                    self.state = State::Ground;
                    if c == 'C' {
                        let jump = self.number.clamp(1, MAX_JUMP);
                        out.extend(std::iter::repeat_n(' ', jump.into()));
                    }
                }
                '\u{1b}' => self.state = State::Escape,
                // Control characters inside a sequence are carried out as if they stood before it.
                '\n' | '\r' | '\t' => out.push(c),
                _ => {}
            },
            State::Text { osc } => {
                self.string_len = self.string_len.saturating_add(1);
                match c {
                    '\u{7}' if osc => self.state = State::Ground,
                    '\u{1b}' => self.state = State::TextEscape { osc },
                    _ => {}
                }
            }
            State::TextEscape { .. } => {
                // ESC ends the string whatever follows; `ESC \` is the proper end.
                self.state = State::Escape;
                if c == '\\' {
                    self.state = State::Ground;
                } else {
                    self.step(c, out);
                }
            }
        }
    }

    fn string(&mut self, osc: bool) -> State {
        self.string_len = 0;
        State::Text { osc }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(parts: &[&str]) -> String {
        let (mut stripper, mut out) = (Stripper::default(), String::new());
        for part in parts {
            stripper.push(part, &mut out);
        }
        out
    }

    #[test]
    fn the_first_special_byte_is_found_wherever_it_stands() {
        for length in 0..40 {
            let plain: Vec<u8> = (0..length).map(|at| b"a \n\xc3\xa9~\t\xff\x80!"[at % 10]).collect();
            assert_eq!(first_special(&plain), None, "{plain:?}");
            for at in 0..length {
                for special in (0..=0x7f).filter(|byte| is_special(*byte)) {
                    let mut text = plain.clone();
                    text[at] = special;
                    assert_eq!(first_special(&text), Some(at), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn t8_sequences_are_dropped_at_every_split() {
        let text = "a\x1b[1;31mb\x1b]0;title\x07c\x1b]8;;x\x1b\\d\x1b(Be\x1b[3Cf\x1bP1$r\x1b\\g\x1b7h\r\ni";
        let want = "abcde   fgh\r\ni";
        assert_eq!(stripped(&[text]), want);
        for (cut, _) in text.char_indices() {
            let (left, right) = text.split_at(cut);
            assert_eq!(stripped(&[left, right]), want, "cut at {cut}");
        }
    }

    #[test]
    fn t9_a_huge_jump_is_bounded() {
        assert_eq!(stripped(&["\x1b[99999999Cx"]).len(), MAX_JUMP as usize + 1);
        assert_eq!(stripped(&["\x1b[Cx\x1b[1;5Cy"]), " x y");
    }

    #[test]
    fn an_endless_string_is_noticed_and_ends() {
        let (mut stripper, mut out) = (Stripper::default(), String::new());
        stripper.push("\x1b]52;c;", &mut out);
        stripper.push(&"A".repeat(100), &mut out);
        assert!(stripper.inside_long_string(64));
        stripper.push("\x07ok", &mut out);
        assert!(!stripper.inside_long_string(64));
        assert_eq!(out, "ok");
    }
}
