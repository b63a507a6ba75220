//! From the bytes of a connection to requests: pure, fed with whatever has arrived. What it makes of a stream does not
//! depend on where the stream was cut.

use super::body::{BodyError, Chunked};
use super::head::{Parsed, parse};
use super::{Limits, Response};

pub use super::head::{Framing, Head};

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Step<T> {
    /// Complete; its bytes are gone from the buffer.
    Done(T),
    More,
    /// To be answered so, and then closed.
    Refused(Response),
}

/// Takes the head of a request from the front of `buffer`.
pub fn take_head(buffer: &mut Vec<u8>, limits: &Limits) -> Step<Head> {
    match parse(buffer, limits.max_headers) {
        Parsed::Complete(head, used) if used <= limits.head_bytes => {
            buffer.drain(..used);
            Step::Done(*head)
        }
        Parsed::Partial if buffer.len() < limits.head_bytes => Step::More,
        Parsed::Complete(..) | Parsed::Partial => Step::Refused(Response::text(431, "request head too large")),
        Parsed::Refused(response) => Step::Refused(response),
    }
}

/// A body that is being read.
#[derive(Debug, PartialEq, Eq)]
pub struct Body(Reading);

#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Length(u64),
    Chunked(Chunked),
}

impl Body {
    /// A body of at most `limit` bytes.
    ///
    /// # Errors
    /// The answer to a longer one, when the head announces its length.
    pub fn new(framing: Framing, limit: usize) -> Result<Body, Response> {
        match framing {
            Framing::Length(length) if length > limit as u64 => Err(Response::text(413, "body too large")),
            Framing::Length(length) => Ok(Body(Reading::Length(length))),
            Framing::Chunked => Ok(Body(Reading::Chunked(Chunked::new(limit)))),
        }
    }

    /// Takes what it can from the front of `buffer`.
    pub fn take(&mut self, buffer: &mut Vec<u8>) -> Step<Vec<u8>> {
        match &mut self.0 {
            Reading::Length(length) if buffer.len() as u64 >= *length => {
                let rest = buffer.split_off(*length as usize);
                Step::Done(std::mem::replace(buffer, rest))
            }
            Reading::Length(_) => Step::More,
            Reading::Chunked(chunked) => match chunked.take(buffer) {
                Ok(true) => Step::Done(std::mem::take(&mut chunked.data)),
                Ok(false) => Step::More,
                Err(BodyError::TooLarge) => Step::Refused(Response::text(413, "body too large")),
                Err(BodyError::Malformed) => Step::Refused(Response::text(400, "malformed chunked body")),
            },
        }
    }
}
