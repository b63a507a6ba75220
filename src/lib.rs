//! `agent-relay-broker`: one daemon that keeps coding-agent CLIs alive in terminals and carries messages between them
//! and a relaycast engine.
//!
//! Rooms and floors (a room imports only rooms on floors below it):
//!
//! ```text
//! floor 4   main.rs
//! floor 3   cli        one file per subcommand
//! floor 2   daemon     threads, channels, the select loop, carrying out effects
//! floor 1   node  engine  api  agent  store  local     they do not know each other
//! floor 0   core       the pure broker: (Input, now) -> effects
//! ground    wire       serde types        sys   threads, kernel calls, ids        http   listener, WebSocket pump
//! ```
//!
//! `sys` and `http` stand on the ground beside `wire` because two rooms of floor 1 (`api` and `local`) serve HTTP and all
//! of them start threads; a copy in each room would be the alternative.
#![deny(unsafe_code)]

pub mod agent;
pub mod api;
#[cfg(test)]
mod checks;
pub mod cli;
pub mod core;
pub mod daemon;
pub mod engine;
pub mod http;
pub mod local;
pub mod node;
pub mod store;
pub mod sys;
pub mod wire;
