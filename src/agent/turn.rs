//! Whether a program has begun to answer a message: output beyond the message's own echo, after its Enter.
//!
//! One echo is granted: a terminal in line mode and a composer both show what is typed. What is shown more, be it the
//! message once again, comes from the program. Frames and spinners without a letter or digit say nothing.

#[derive(Debug, Default)]
pub struct Turn {
    /// The message that is watched.
    delivery_id: Option<String>,
    /// Its text without white space, and how much of it was shown.
    echo: String,
    shown: usize,
    /// Its Enter is written.
    typed: bool,
}

impl Turn {
    /// The first byte of a message is about to be written. `text`: all of it, without white space.
    pub fn begin(&mut self, delivery_id: &str, text: String) {
        *self = Turn { delivery_id: Some(delivery_id.into()), echo: text, shown: 0, typed: false };
    }

    /// Body and Enter are written.
    pub fn typed(&mut self, delivery_id: &str) {
        self.typed = self.delivery_id.as_deref() == Some(delivery_id);
    }

    /// New output, stripped of escape sequences. The message that is being answered, once.
    pub fn push(&mut self, stripped: &str) -> Option<String> {
        self.delivery_id.as_ref()?;
        for c in stripped.chars().filter(|c| !c.is_whitespace()) {
            if self.echo[self.shown..].starts_with(c) {
                self.shown += c.len_utf8();
            } else if self.typed && c.is_alphanumeric() {
                let turn = std::mem::take(self);
                return turn.delivery_id;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown before the Enter and after it: whether that is an answer.
    fn answers(before: &[&str], after: &[&str]) -> bool {
        let mut turn = Turn::default();
        turn.begin("d1", "Relaymessage:hello".into());
        assert!(before.iter().all(|text| turn.push(text).is_none()), "{before:?}");
        turn.typed("d1");
        after.iter().any(|text| turn.push(text).as_deref() == Some("d1"))
    }

    #[test]
    fn a_turn_starts_with_output_beyond_the_echo() {
        assert!(!answers(&[], &[]));
        assert!(!answers(&["Relay message: hello"], &["\r\n"]));
        assert!(!answers(&[], &["Relay mess", "age: hello\r\n"]), "a late echo");
        assert!(
            !answers(&["> Relay message: he"], &["llo", "\r\n\u{2502} \u{2570}\u{2500}\u{2500}\u{256f}"]),
            "a frame"
        );
        assert!(answers(&["Relay message: hello"], &["\r\nRelay message: hello"]), "the program prints it");
        assert!(answers(&[], &["Relay message: hello\r\n", "* Thinking"]));
        assert!(answers(&["Relay message: hello"], &["ok"]));
        assert!(answers(&[], &["done"]), "without an echo");
    }

    #[test]
    fn a_turn_is_told_once_and_belongs_to_the_last_message() {
        let mut turn = Turn::default();
        assert_eq!(turn.push("anything"), None);
        turn.begin("d1", "one".into());
        turn.typed("d1");
        turn.begin("d2", "two".into());
        assert_eq!(turn.push("one more"), None, "the second is not sent yet");
        turn.typed("d2");
        assert_eq!(turn.push("an answer").as_deref(), Some("d2"));
        assert_eq!(turn.push("and more"), None);
    }
}
