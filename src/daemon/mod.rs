//! The imperative shell: builds threads and channels, runs the select loop, carries out what the core decides.
//!
//! Threads of a running broker: the main thread (signals), `broker` (the loop), `node-reader`, `node-writer`,
//! `http-accept`, one `http-N` per local connection, one `pty-<agent>` per agent, and `engine-N` while engine calls run
//! (at most four, gone after 30 s without work), `sidecar` while the broker runs one, `state-files` where state is kept,
//! and `log` where there is one; `term-in` and `term-out` where the broker wraps a program. With `--local` the engine adds `eng-accept`, `eng-timer` and one `eng-N`
//! per connection.

mod doors;
mod effects;
mod enrolment;
mod env;
mod fatal;
mod logging;
mod outside;
mod select;
mod startup;
mod state_files;
mod supervisor;

use std::path::PathBuf;

pub use fatal::Fatal;
pub use logging::say;
pub use outside::Wrapped;

/// The command line of `init`, as typed.
#[derive(Debug, Clone)]
pub struct Options {
    pub name: Option<String>,
    pub instance_name: Option<String>,
    pub workspace_key: Option<String>,
    pub channels: Vec<String>,
    pub api_port: u16,
    pub api_bind: String,
    /// Further host names that a request to a loopback API may carry.
    pub api_hosts: Vec<String>,
    pub persist: bool,
    pub state_dir: Option<PathBuf>,
    /// An engine inside this process.
    pub local: bool,
    pub data: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            name: None,
            instance_name: None,
            workspace_key: None,
            channels: vec!["general".into()],
            api_port: 0,
            api_bind: "127.0.0.1".into(),
            api_hosts: Vec::new(),
            persist: false,
            state_dir: None,
            local: false,
            data: None,
        }
    }
}

/// Runs the broker until it is told to stop.
///
/// # Errors
/// What kept it from becoming ready. Nothing it made stays behind.
pub fn run(options: Options) -> Result<(), Fatal> {
    startup::run(options)
}

/// Runs a program in the user's own terminal, as the one agent of a node: its exit code, 128 and the number of the signal
/// that ended it or us.
///
/// # Errors
/// What kept it from being started.
pub fn wrap(wrapped: Wrapped) -> Result<u8, Fatal> {
    startup::wrap(wrapped)
}

/// Opens the log of a process that is no broker.
pub fn open_log(id: &str) {
    logging::start(&env::Env::of_process(), id);
}

/// Writes what waits for the log, shortly.
pub fn close_log() {
    logging::finish();
}
