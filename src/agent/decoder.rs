//! Bytes of a terminal to text, without losing or splitting a character.

/// A streaming UTF-8 decoder. The incomplete tail of one read (at most 3 bytes) waits for the next one; every invalid
/// sequence becomes one U+FFFD.
#[derive(Debug, Default)]
pub struct Decoder {
    tail: Vec<u8>,
}

impl Decoder {
    /// Appends the text of `bytes` to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.tail.is_empty() {
            self.decode(bytes, out);
        } else {
            let mut joined = std::mem::take(&mut self.tail);
            joined.extend_from_slice(bytes);
            self.decode(&joined, out);
        }
    }

    /// The stream ended: an incomplete tail is one invalid sequence.
    pub fn finish(&mut self, out: &mut String) {
        if !self.tail.is_empty() {
            self.tail = Vec::new();
            out.push('\u{fffd}');
        }
    }

    fn decode(&mut self, mut bytes: &[u8], out: &mut String) {
        loop {
            let error = match std::str::from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            out.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(len) => {
                    out.push('\u{fffd}');
                    bytes = &rest[len..];
                }
                None => {
                    self.tail = rest.to_vec();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(parts: &[&[u8]]) -> String {
        let (mut decoder, mut out) = (Decoder::default(), String::new());
        for part in parts {
            decoder.push(part, &mut out);
        }
        decoder.finish(&mut out);
        out
    }

    #[test]
    fn t8_a_character_survives_every_split() {
        let text = "aé€𝄞z";
        for cut in 0..=text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            assert_eq!(decoded(&[left, right]), text, "cut at {cut}");
        }
        let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(decoded(&single), text);
    }

    #[test]
    fn invalid_bytes_and_a_cut_tail_become_replacement_characters() {
        assert_eq!(decoded(&[b"a\xffb"]), "a\u{fffd}b");
        assert_eq!(decoded(&[b"a\xe2\x82"]), "a\u{fffd}");
        assert_eq!(decoded(&[b"\xe2", b"X"]), "\u{fffd}X");
        assert_eq!(decoded(&[b"\xf0\x9f", b"\xff"]), "\u{fffd}\u{fffd}");
    }
}
