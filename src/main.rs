//! Hands argv to `cli` and its exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(command) if command == "engine" => agent_relay_broker::cli::engine::run(args),
        _ => ExitCode::FAILURE,
    }
}
