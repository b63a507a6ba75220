//! placeholder
mod ansi;
mod decoder;
mod harness;
mod picture;
mod program;
mod screen;
