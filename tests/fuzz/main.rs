//! A million mutated inputs for each reader of foreign bytes: frames on the node socket and of sidecars,
//! requests at the listener.
//!
//! Every input is a pure function of a seed and its number, so a failure names the one command that repeats it:
//! `SEED=… FIRST=… COUNT=1 cargo test --test fuzz TARGET`. For each input: no panic, an end (a watchdog prints an input
//! that has none), and the reading makes sense. For each run: no growth, by the resident memory of the process.

mod corpus;
mod frames;
mod http;
mod mutator;
mod rng;
mod run;
