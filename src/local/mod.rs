//! The embedded engine.
pub mod state;
