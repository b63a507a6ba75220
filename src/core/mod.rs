//! The pure broker. It reads no clock, file, socket or random source: time and ids arrive with the [`ports::Input`], what
//! should happen leaves as [`ports::Effect`]s.
pub mod ports;
