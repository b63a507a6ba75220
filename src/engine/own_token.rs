//! The current token of the broker's own agent, and who may rotate it: one thread at a time, while the others wait for
//! its outcome until their own deadline. The token itself is locked only to be copied or replaced, never during a call.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::client::no_answer;
use crate::core::ports::{EngineError, Secret};

#[derive(Default)]
pub(super) struct OwnToken {
    state: Mutex<State>,
    /// A rotation has ended, well or not.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    token: Secret,
    rotating: bool,
}

impl OwnToken {
    pub fn new(token: Secret) -> OwnToken {
        OwnToken { state: Mutex::new(State { token, rotating: false }), ended: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each access is one assignment: a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self) -> Secret {
        self.lock().token.clone()
    }

    fn set(&self, token: Secret) {
        self.lock().token = token;
    }

    /// A token other than `used`: the one that another thread got meanwhile, or what `rotate` gives. After a rotation that
    /// failed the next in line tries its own.
    ///
    /// # Errors
    /// Those of `rotate`, or none in time.
    pub fn renew(
        &self,
        used: &Secret,
        deadline: Instant,
        rotate: impl FnOnce() -> Result<Secret, EngineError>,
    ) -> Result<Secret, EngineError> {
        let mut state = self.lock();
        loop {
            if state.token != *used {
                return Ok(state.token.clone());
            }
            if !state.rotating {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(no_answer("transport", "no answer in time: the token is being rotated"));
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.rotating = true;
        drop(state);
        let _turn = Turn(self);
        let fresh = rotate()?;
        self.set(fresh.clone());
        Ok(fresh)
    }
}

/// Ends a rotation on every way out, a panic too.
struct Turn<'a>(&'a OwnToken);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().rotating = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_rotation_that_hangs_keeps_nobody_beyond_their_deadline() {
        let own = OwnToken::default();
        own.set(Secret::new("old"));
        let old = own.get();
        let (begun, begins) = crossbeam_channel::bounded::<()>(0);
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        std::thread::scope(|scope| {
            let own = &own;
            let (first_old, late_old) = (old.clone(), old.clone());
            let first = scope.spawn(move || {
                own.renew(&first_old, Instant::now() + LONG, || {
                    begun.send(()).expect("the test waits");
                    gate.recv().expect("the test lets it go on");
                    Ok(Secret::new("new"))
                })
            });
            begins.recv().expect("it rotates");
            // The token can be read, and a second caller gives up at its own deadline.
            assert_eq!(own.get(), old);
            let asked = Instant::now();
            let error = own.renew(&old, asked + Duration::from_millis(50), || panic!("one at a time")).unwrap_err();
            assert_eq!((error.status, &*error.code), (0, "transport"));
            assert!(
                asked.elapsed() >= Duration::from_millis(50) && asked.elapsed() < LONG / 2,
                "{:?}",
                asked.elapsed()
            );
            // One with more time gets what the first got.
            let late = scope.spawn(move || own.renew(&late_old, Instant::now() + LONG, || panic!("one is enough")));
            go.send(()).expect("it waits");
            assert_eq!(first.join().expect("no panic"), Ok(Secret::new("new")));
            assert_eq!(late.join().expect("no panic"), Ok(Secret::new("new")));
        });
    }

    #[test]
    fn after_a_failed_rotation_the_next_tries_its_own() {
        let own = OwnToken::default();
        let used = own.get();
        let failed = own.renew(&used, Instant::now() + LONG, || Err(no_answer("transport", "lost")));
        assert_eq!(failed.unwrap_err().message, "lost");
        assert_eq!(own.renew(&used, Instant::now() + LONG, || Ok(Secret::new("new"))), Ok(Secret::new("new")));
    }
}
