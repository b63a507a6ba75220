//! From a well-formed input to one that is not quite: a few changes, one after the other.

use std::ops::Range;

use crate::rng::Rng;

/// No input is longer.
const LONGEST: usize = 8 << 10;

const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "00",
    "+1",
    "1e3",
    "1e308",
    "1e-400",
    "1E999",
    "0.1",
    "127",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999",
    "ffffffffffffffff",
    "fffffffffffffffff",
    "0x10",
    " 5",
    "5 ",
    "5, 5",
];

const BYTES: &[u8] = b"\0\t\n\r \"%&+,-./0:;<=>?@[\\]{}\x7f\x80\xc0\xed\xf4\xff";

/// What is no UTF-8, or only just.
const ODD_TEXT: &[&[u8]] = &[
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xff\xfe",
    b"\xe2\x82",
    b"\xef\xbb\xbf",
    "\u{202e}".as_bytes(),
    "\u{10ffff}".as_bytes(),
    br"\ud800",
    br"\udc00\ud800",
    br"\u0000",
    b"\\",
];

/// Mutates one of `corpus` with pieces of the others and words of `words`.
pub fn mutated(rng: &mut Rng, corpus: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = some(rng, corpus).clone();
    // Half of the inputs are changed once only, so that much of them still makes sense.
    let changes = if rng.below(2) == 0 { 1 } else { 2 + rng.below(5) };
    for _ in 0..changes {
        change(rng, &mut input, corpus, words);
        input.truncate(LONGEST);
    }
    input
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]]) {
    let at = rng.below(input.len() + 1);
    match rng.below(16) {
        0 if at < input.len() => input[at] ^= 1 << rng.below(8),
        1 if at < input.len() => input[at] = rng.pick(BYTES),
        2 => insert(input, at, &[rng.pick(BYTES)]),
        3 => input.truncate(at),
        4 => drop(input.drain(stretch(rng, input.len(), 40))),
        5 => {
            let copy = input[stretch(rng, input.len(), 80)].to_vec();
            insert(input, at, &copy);
        }
        6 => {
            let other = some(rng, corpus);
            let piece = other[stretch(rng, other.len(), 200)].to_vec();
            insert(input, at, &piece);
        }
        7 => {
            input.truncate(at);
            let other = some(rng, corpus);
            input.extend_from_slice(&other[rng.below(other.len())..]);
        }
        8 | 9 => insert(input, at, rng.pick(words)),
        10 => replace_number(rng, input, at),
        11 => insert(input, at, rng.pick(ODD_TEXT)),
        // Floods and deep nests.
        12 => {
            let times = [3, 20, 130, 1500][rng.below(4)];
            insert(input, at, &rng.pick(words).repeat(times).into_iter().take(LONGEST).collect::<Vec<u8>>());
        }
        13 => repeat_line(rng, input, at),
        14 => alter_line_end(rng, input, at),
        _ => replace_word(rng, input, words),
    }
}

fn some<'a>(rng: &mut Rng, corpus: &'a [Vec<u8>]) -> &'a Vec<u8> {
    &corpus[rng.below(corpus.len())]
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

fn stretch(rng: &mut Rng, length: usize, longest: usize) -> Range<usize> {
    let start = rng.below(length);
    start..length.min(start + rng.below(longest + 1))
}

/// Replaces the run of digits that follows `at`.
fn replace_number(rng: &mut Rng, input: &mut Vec<u8>, at: usize) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|offset| at + offset) else { return };
    let end =
        input[start..].iter().position(|byte| !byte.is_ascii_digit()).map_or(input.len(), |length| start + length);
    input.splice(start..end, rng.pick(NUMBERS).bytes());
}

/// Puts the line around `at` somewhere else once more.
fn repeat_line(rng: &mut Rng, input: &mut Vec<u8>, at: usize) {
    let start = input[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let end = input[at..].iter().position(|byte| *byte == b'\n').map_or(input.len(), |length| at + length + 1);
    let line = input[start..end].to_vec();
    let ends: Vec<usize> = (0..input.len()).filter(|place| input[*place] == b'\n').map(|place| place + 1).collect();
    let to = if ends.is_empty() { start } else { rng.pick(&ends) };
    insert(input, to, &line);
}

fn alter_line_end(rng: &mut Rng, input: &mut Vec<u8>, at: usize) {
    let Some(start) = input[at..].windows(2).position(|pair| pair == b"\r\n").map(|offset| at + offset) else { return };
    const ENDS: &[&[u8]] =
        &[b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b"\0\r\n", b" \r\n", b""];
    input.splice(start..start + 2, rng.pick(ENDS).iter().copied());
}

/// Exchanges a word that stands in the input for another.
fn replace_word(rng: &mut Rng, input: &mut Vec<u8>, words: &[&[u8]]) {
    let from = rng.pick(words);
    if let Some(start) = input.windows(from.len()).position(|window| window == from) {
        input.splice(start..start + from.len(), rng.pick(words).iter().copied());
    }
}
