//! How much of its context window a CLI says it has left: `Context 9% left`, in any case.

/// The end of what was looked at, in which a cut text may begin.
const CARRY: usize = 48;

#[derive(Debug, Default)]
pub struct ContextScan {
    carried: String,
    last: Option<u8>,
}

impl ContextScan {
    /// New output, stripped of escape sequences. The percentage that was said last in it, when it is another than before.
    pub fn push(&mut self, stripped: &str) -> Option<u8> {
        if stripped.is_empty() {
            return None;
        }
        // Most output has no sign of it, and there is much of it.
        if stripped.len() >= CARRY && !stripped.contains('%') && !self.carried.contains('%') {
            let from = (stripped.len() - CARRY..).find(|at| stripped.is_char_boundary(*at)).unwrap_or(stripped.len());
            self.carried.clear();
            self.carried.push_str(&stripped[from..]);
            return None;
        }
        let text = std::mem::take(&mut self.carried) + stripped;
        let (found, end) = last_match(&text);
        let mut from = text.len().saturating_sub(CARRY).max(end);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        self.carried = text[from..].to_string();
        let said = found.filter(|said| self.last != Some(*said))?;
        self.last = Some(said);
        Some(said)
    }

    /// What is shown is, or may be, our own text.
    pub fn reset(&mut self) {
        self.carried.clear();
    }
}

/// The last percentage, at most 100, and where its text ends.
fn last_match(text: &str) -> (Option<u8>, usize) {
    const WORD: &str = "context";
    let lower = text.to_ascii_lowercase();
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (mut found, mut end) = (None, 0);
    for (at, _) in lower.match_indices(WORD) {
        if is_word(lower[..at].chars().next_back()) {
            continue;
        }
        let rest = &lower[at + WORD.len()..];
        let said = rest.trim_start();
        let digits = said.len() - said.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let Some(left) = said[digits..].strip_prefix('%') else { continue };
        let behind = left.trim_start().strip_prefix("left");
        let blanks = said.len() < rest.len() && left.trim_start().len() < left.len();
        if let Some(behind) = behind
            && blanks
            && (1..=3).contains(&digits)
            && !is_word(behind.chars().next())
        {
            found = said[..digits].parse::<u16>().ok().map(|said| said.min(100) as u8);
            end = lower.len() - behind.len();
        }
    }
    (found, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_told_when_it_changes() {
        for (parts, told) in [
            (&["Context 9% left"][..], &[9][..]),
            (&["Context 9% left", "Context 9% left"], &[9]),
            (&["context 12% left, CONTEXT  8%  LEFT."], &[8]),
            (&["Con", "text 7", "% le", "ft\n", "Context 8% left"], &[7, 8]),
            (&["Context 250% left"], &[100]),
            (
                &["context 1234% left", "context % left", "context 9 % left", "context9% left", "context 9% leftover"],
                &[],
            ),
            (&["subcontext 9% left", "9% left"], &[]),
            (&["Context 9% left", "all other text, long enough to carry nothing of the former over", "x"], &[9]),
        ] {
            let mut scan = ContextScan::default();
            let seen: Vec<u8> = parts.iter().filter_map(|part| scan.push(part)).collect();
            assert_eq!(seen, told, "{parts:?}");
        }
    }

    #[test]
    fn cut_texts_do_not_cross_our_own() {
        let mut scan = ContextScan::default();
        scan.push("Context 9%");
        scan.reset();
        assert_eq!(scan.push(" left"), None);
    }
}
