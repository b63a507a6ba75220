//! The embedded engine: relaycast 5.0.x for one machine, over the same HTTP and WebSocket wire. The broker gets no
//! shortcut: it talks to this engine as to any other.
//!
//! # Floors
//! [`state`] is the engine as a state machine; `journal` keeps it on disk; `server` owns the lock around both, the
//! deadlines and the queues of the node sockets; `front` and `link` are the HTTP and WebSocket skins; `faults` breaks
//! things on request.
//!
//! # Threads
//! Those of the listener (`eng-accept`, `eng-N` per connection) and `eng-timer`, which sleeps until the earliest deadline
//! and for ever when there is none. An engine without connections makes no wake-ups; a connected node costs one per 45 s.
//!
//! # Durability
//! With a data directory every accepted fact is a line of `journal.jsonl`: written before the call returns (it survives
//! the end of the process), on disk before the answer or frame leaves (it survives the end of the machine). One
//! `fdatasync` serves all callers that wait at the same time. Without a directory everything is memory.
//!
//! # Placing a spawn
//! `POST /v1/agents/spawn {name, cli, task, …}` and the action `spawn` with the same input go to a node with the capability
//! `spawn:<cli>`, live handlers and room; a node that declares a bare `spawn` takes every spawn. A broker declares
//! nothing, so a caller that wants one names it: `"node": "<node name or id>"` (or `target`). See
//! [`state::invocations`].
//!
//! # What is not served
//! Files, webhooks, subscriptions, observer tokens, A2A, directory, routing, certification, console: 404
//! `not_found`. `/v1/ws` refuses every credential with 401. There are no rate limits; 429 comes from `faults` only.

mod faults;
mod front;
mod journal;
mod link;
mod routes;
mod server;
pub mod state;

#[cfg(test)]
mod tests;

pub use server::{Options, Server};
