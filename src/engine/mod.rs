//! The engine's HTTP API: a client with deadlines, repeats and pauses, the calls of the start, and a small pool of
//! threads for the calls of the running broker.
//!
//! Owns the connections to the engine, the tokens of the broker's own agents (the only ones that it may rotate) and the
//! pauses that rate limits impose. Every call has a deadline that covers its attempts and the waits between them; what
//! may be repeated is a table ([`policy`]). The last status, code and message survive into the error.
//!
//! Threads: `engine-1` to `engine-4`, started when there is work and ended after 30 s without ([`pool`]); `dns` for
//! the time of one name look-up. Start-up calls run on the caller's thread.

mod calls;
mod client;
mod join;
mod node_token;
mod own_token;
mod policy;
mod pool;
mod retry_after;
mod transport;
mod workspaces;

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;

pub use client::{CallError, Client, Enrolment, OwnAgent, Settings};
pub use join::{JoinRequest, Membership, Session, StartError};
pub use node_token::{NodeEnrolment, NodeIdentity, fatal_config};
pub use pool::Pool;
pub use workspaces::{DEFAULT_BASE, base_url};
