//! The user's terminal in raw mode, and back.

use std::sync::{Mutex, PoisonError};

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios};

/// The user's terminal as it was found.
#[derive(Default)]
pub struct Raw(Mutex<Found>);

#[derive(Default)]
enum Found {
    /// Not touched yet.
    #[default]
    Nothing,
    /// The settings to go back to: it is raw.
    Settings(Box<Termios>),
    /// It was given back, for good: whoever comes late must not take it again.
    GivenBack,
}

impl Raw {
    /// Every key goes to the program as it is, and its output to the terminal as it is; unless stdin is no terminal.
    pub fn enter(&self) {
        let Ok(before) = rustix::termios::tcgetattr(stdio::stdin()) else { return };
        let mut raw = before.clone();
        raw.make_raw();
        let mut found = self.found();
        if !matches!(*found, Found::Nothing) {
            return;
        }
        match rustix::termios::tcsetattr(stdio::stdin(), OptionalActions::Now, &raw) {
            Ok(()) => *found = Found::Settings(Box::new(before)),
            Err(error) => log::warn!("the terminal cannot be set to raw mode: {error}"),
        }
    }

    /// As it was; a second call finds nothing to do. Never waits for output: a terminal that takes none is restored too.
    pub fn restore(&self) {
        if let Found::Settings(before) = std::mem::replace(&mut *self.found(), Found::GivenBack)
            && let Err(error) = rustix::termios::tcsetattr(stdio::stdin(), OptionalActions::Now, &before)
        {
            log::warn!("the terminal cannot be restored: {error}");
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows and columns of the user's terminal, whichever of its ends is one.
pub fn size() -> Option<(u16, u16)> {
    let sizes = [rustix::termios::tcgetwinsize(stdio::stdout()), rustix::termios::tcgetwinsize(stdio::stdin())];
    let size = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0)?;
    Some((size.ws_row, size.ws_col))
}
