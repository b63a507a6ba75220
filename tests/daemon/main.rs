//! The daemon as its users meet it: the real binary, an engine beside it, programs in real terminals. Each test is named
//! by what must be true; the numbers are those of the known faults of brokers.
//!
//! Nothing here waits for a fixed time: tests look until a condition holds, and show what was seen when it does not.

mod bare_workers;
mod broker;
mod client;
mod engine;
mod fleet;
mod house;
mod process;
mod pty;
#[allow(dead_code)]
mod scripted;
mod storm;
mod terminal;
mod until;

// The bench's HTTP messages and the answers of its scripted engine, which are those of the real one.
#[allow(dead_code)]
#[path = "../bench/engine/routes.rs"]
mod routes;
#[allow(dead_code)]
#[path = "../bench/http.rs"]
mod wire;

mod absences;
mod channels;
mod crashes;
mod deliveries;
mod hardness;
mod headless;
mod identity;
mod link;
mod liveness;
mod lives;
mod matrix;
mod neighbours;
mod receipts;
mod refusals;
mod road;
mod screens;
mod shortages;
mod sidecar;
mod soak;
mod stops;
mod workspaces;
mod wrap;
