//! Takes a chunked body apart: pure, fed with whatever has arrived.

/// Longest line of a chunk's size with its extensions, and longest trailer line, with its end.
const LINE: usize = 1 << 10;
/// Most bytes of trailers.
const TRAILERS: usize = 8 << 10;

/// Why a body cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    TooLarge,
    Malformed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    /// The line end after a chunk's data.
    DataEnd,
    Trailers,
    Done,
}

/// Collects the data of a chunked body up to a limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    limit: usize,
    trailers: usize,
    pub data: Vec<u8>,
}

impl Chunked {
    pub fn new(limit: usize) -> Chunked {
        Chunked { state: State::Size, limit, trailers: 0, data: Vec::new() }
    }

    /// Takes what it can from the front of `bytes` and removes it. `true`: the body is complete, the rest is the next
    /// request's.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> Result<bool, BodyError> {
        let mut used = 0;
        let outcome = loop {
            let rest = &bytes[used..];
            match self.step(rest) {
                Ok(Some(step)) => used += step,
                Ok(None) => break Ok(self.state == State::Done),
                Err(error) => break Err(error),
            }
        };
        bytes.drain(..used);
        outcome
    }

    /// Bytes consumed by one step; `None` when it needs more, or is done.
    fn step(&mut self, rest: &[u8]) -> Result<Option<usize>, BodyError> {
        match self.state {
            State::Size => match httparse::parse_chunk_size(rest) {
                // The parser takes an empty size for zero.
                Ok(httparse::Status::Complete(_)) if !rest[0].is_ascii_hexdigit() => Err(BodyError::Malformed),
                // Too long is too long, also when it has arrived at once.
                Ok(httparse::Status::Complete((used, _))) if used > LINE => Err(BodyError::Malformed),
                Ok(httparse::Status::Complete((_, size))) if size > self.room() => Err(BodyError::TooLarge),
                Ok(httparse::Status::Complete((used, size))) => {
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                    Ok(Some(used))
                }
                Ok(httparse::Status::Partial) if rest.len() < LINE => Ok(None),
                _ => Err(BodyError::Malformed),
            },
            State::Data(_) if rest.is_empty() => Ok(None),
            State::Data(left) => {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                self.data.extend_from_slice(&rest[..take]);
                self.state = match left - take as u64 {
                    0 => State::DataEnd,
                    left => State::Data(left),
                };
                Ok(Some(take))
            }
            State::DataEnd => match rest {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(BodyError::Malformed),
            },
            State::Trailers => match rest.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.trailers += end + 1;
                    let line = rest[..end].strip_suffix(b"\r").ok_or(BodyError::Malformed)?;
                    if self.trailers > TRAILERS || end >= LINE {
                        return Err(BodyError::Malformed);
                    }
                    // Trailers carry nothing that any handler wants.
                    if line.is_empty() {
                        self.state = State::Done;
                    }
                    Ok(Some(end + 1))
                }
                None if rest.len() >= LINE => Err(BodyError::Malformed),
                None => Ok(None),
            },
            State::Done => Ok(None),
        }
    }

    fn room(&self) -> u64 {
        self.limit.saturating_sub(self.data.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `piece` bytes; gives the data and what is left over.
    fn fed(text: &str, piece: usize, limit: usize) -> Result<(String, String), BodyError> {
        let mut chunked = Chunked::new(limit);
        let mut buffer = Vec::new();
        let mut done = false;
        for bytes in text.as_bytes().chunks(piece) {
            buffer.extend_from_slice(bytes);
            done = done || chunked.take(&mut buffer)?;
        }
        assert!(done, "incomplete: {chunked:?}");
        Ok((String::from_utf8(chunked.data).unwrap(), String::from_utf8(buffer).unwrap()))
    }

    #[test]
    fn chunks_come_apart_wherever_they_are_cut() {
        let text =
            "4;ext=\"a;b\"\r\nWiki\r\n5 \r\npedia\r\nA\r\n in\r\nparts\r\n0\r\nExpires: never\r\nX: y\r\n\r\nGET /";
        for piece in 1..text.len() {
            let (data, rest) = fed(text, piece, 100).expect("well-formed");
            assert_eq!(data, "Wikipedia in\r\nparts");
            assert_eq!(rest, "GET /", "pieces of {piece}");
        }
    }

    #[test]
    fn limits_and_malformed_chunks() {
        assert_eq!(fed("5\r\nabcde\r\n0\r\n\r\n", 99, 5), Ok(("abcde".into(), String::new())));
        assert_eq!(fed("5\r\nabcde\r\n1\r\nf\r\n0\r\n\r\n", 99, 5), Err(BodyError::TooLarge));
        assert_eq!(fed("fffffffffffffff\r\n", 99, 5), Err(BodyError::TooLarge));
        assert_eq!(fed("ffffffffffffffffff\r\n", 99, 5), Err(BodyError::Malformed));
        assert_eq!(fed("\r\n", 99, 5), Err(BodyError::Malformed));
        assert_eq!(fed("zz\r\n", 99, 5), Err(BodyError::Malformed));
        assert_eq!(fed("1\r\nab\r\n", 99, 5), Err(BodyError::Malformed));
        assert_eq!(fed(&format!("1;{}", "x".repeat(2000)), 64, 5), Err(BodyError::Malformed));
        // Where it is cut does not decide what is too long.
        for length in [LINE - 1, LINE, LINE + 1] {
            let extension = format!("1{}\r\na\r\n0\r\n\r\n", ";".repeat(length - 3));
            let trailer = format!("0\r\n{}\r\n\r\n", "t".repeat(length - 2));
            for text in [extension, trailer] {
                let accepted = fed(&text, 9000, 5).map(|_| ());
                assert_eq!(accepted.is_ok(), length <= LINE, "{length}");
                assert_eq!(fed(&text, 1, 5).map(|_| ()), accepted, "{length}");
            }
        }
        assert_eq!(fed(&format!("0\r\n{}", "A: b\r\n".repeat(2000)), 64, 5), Err(BodyError::Malformed));
        assert_eq!(fed(&format!("0\r\nA: {}", "x".repeat(2000)), 64, 5), Err(BodyError::Malformed));
    }
}
