//! The shapes that cross a boundary, as serde types and nothing else: node frames, engine HTTP, the local API, events.
pub mod api;
pub mod engine;
pub mod events;
pub mod fleet;
pub mod names;
pub mod node;
pub mod time;
pub mod worker;
