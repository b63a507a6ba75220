//! What must not outlive the process.

use std::path::PathBuf;
use std::sync::Mutex;

use crate::store::{self, StateDir};

/// What must not outlive the process, whichever way it ends.
#[derive(Default)]
pub struct Leavings(Mutex<Vec<Leaving>>);

pub enum Leaving {
    Connection(PathBuf),
    Pid(PathBuf),
    State(StateDir),
}

impl Leavings {
    pub fn add(&self, leaving: Leaving) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(leaving);
    }

    /// Removes everything, newest first; a second call finds nothing.
    pub fn remove(&self) {
        let leavings = std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for leaving in leavings.into_iter().rev() {
            let outcome = match &leaving {
                Leaving::Connection(path) => store::connection::remove_if_ours(path, std::process::id()),
                Leaving::Pid(path) => store::pid::remove_if_ours(path, std::process::id()),
                Leaving::State(dir) => dir.remove_if_ephemeral(),
            };
            if let Err(error) = outcome {
                log::warn!("{error}");
            }
        }
    }
}
