//! The machine below us: threads with names, random ids, clocks and the few calls of the C library that nothing wraps safely.
pub mod bell;
pub mod clock;
pub mod descriptors;
pub mod ids;
pub mod kernel;
pub mod names;
pub mod outgoing;
pub mod redact;
pub mod threads;
pub mod tls;
