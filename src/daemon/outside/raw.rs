//! The user's terminal in raw mode, and back.

use std::sync::{Mutex, PoisonError};

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios};

/// The settings to go back to, while the terminal is raw.
#[derive(Default)]
pub struct Raw(Mutex<Option<Termios>>);

impl Raw {
    /// Every key goes to the program as it is, and its output to the terminal as it is; unless stdin is no terminal.
    pub fn enter(&self) {
        let Ok(before) = rustix::termios::tcgetattr(stdio::stdin()) else { return };
        let mut raw = before.clone();
        raw.make_raw();
        let mut kept = self.kept();
        match rustix::termios::tcsetattr(stdio::stdin(), OptionalActions::Now, &raw) {
            Ok(()) => {
                kept.get_or_insert(before);
            }
            Err(error) => log::warn!("the terminal cannot be set to raw mode: {error}"),
        }
    }

    /// As it was; a second call finds nothing to do. Never waits for output: a terminal that takes none is restored too.
    pub fn restore(&self) {
        if let Some(before) = self.kept().take()
            && let Err(error) = rustix::termios::tcsetattr(stdio::stdin(), OptionalActions::Now, &before)
        {
            log::warn!("the terminal cannot be restored: {error}");
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Termios>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows and columns of the user's terminal, whichever of its ends is one.
pub fn size() -> Option<(u16, u16)> {
    let sizes = [rustix::termios::tcgetwinsize(stdio::stdout()), rustix::termios::tcgetwinsize(stdio::stdin())];
    let size = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0)?;
    Some((size.ws_row, size.ws_col))
}
