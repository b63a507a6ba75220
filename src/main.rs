//! Hands argv to `cli` and its exit code to the system.

fn main() -> std::process::ExitCode {
    agent_relay_broker::cli::main(std::env::args_os().collect())
}
