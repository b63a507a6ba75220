//! A channel whose receiver waits by parking its thread, without turning round first.
//!
//! A blocking receive of the channel library yields the processor several times before it parks. For a thread that wakes
//! twelve seconds apart those yields are most of what it does: they were three quarters of the context switches of a broker
//! at rest. A bell wakes exactly one thread; a ring before the wait is kept, so none is lost.

use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvError, SendError, SendTimeoutError, Sender, TryRecvError, TrySendError};

/// Wakes the thread that waits at it.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<OnceLock<Thread>>);

impl Bell {
    /// Before its thread has come to wait there is nobody to wake: it looks at its channels first.
    pub fn ring(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }

    /// Waits for a ring, until `until` at the latest. May return without one.
    pub fn wait(&self, until: Option<Instant>) {
        self.claim();
        match until {
            Some(until) => std::thread::park_timeout(until.saturating_duration_since(Instant::now())),
            None => std::thread::park(),
        }
    }

    /// Makes the calling thread the one that is woken. Before the last look at the channels, or a ring in between is lost.
    pub fn claim(&self) {
        let thread = self.0.get_or_init(std::thread::current);
        debug_assert_eq!(thread.id(), std::thread::current().id(), "a bell wakes one thread");
    }
}

/// The sending side of a bounded channel with a bell at its other end.
#[derive(Debug)]
pub struct Caller<T> {
    /// Taken only by the drop, so that the receiver is woken when the last one has gone.
    sender: Option<Sender<T>>,
    bell: Bell,
}

/// A bounded channel; many of them may share one bell.
pub fn channel<T>(bound: usize, bell: &Bell) -> (Caller<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(bound);
    (Caller::new(sender, bell), receiver)
}

/// The next of one channel, however long it takes.
///
/// # Errors
/// All callers are gone and the channel is empty.
pub fn next<T>(receiver: &Receiver<T>, bell: &Bell) -> Result<T, RecvError> {
    bell.claim();
    loop {
        match receiver.try_recv() {
            Ok(item) => return Ok(item),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
            Err(TryRecvError::Empty) => bell.wait(None),
        }
    }
}

impl<T> Caller<T> {
    pub fn new(sender: Sender<T>, bell: &Bell) -> Caller<T> {
        Caller { sender: Some(sender), bell: bell.clone() }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.sender().len()
    }

    pub fn is_empty(&self) -> bool {
        self.sender().is_empty()
    }

    fn sender(&self) -> &Sender<T> {
        self.sender.as_ref().unwrap_or_else(|| unreachable!("only the drop takes it"))
    }

    /// # Errors
    /// The receiver is gone.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        self.sender().send(item)?;
        self.bell.ring();
        Ok(())
    }

    /// # Errors
    /// The channel is full, or the receiver is gone.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        self.sender().try_send(item)?;
        self.bell.ring();
        Ok(())
    }

    /// # Errors
    /// The channel stays full until `until`, or the receiver is gone.
    pub fn send_deadline(&self, item: T, until: Instant) -> Result<(), SendTimeoutError<T>> {
        self.sender().send_deadline(item, until)?;
        self.bell.ring();
        Ok(())
    }
}

impl<T> Clone for Caller<T> {
    fn clone(&self) -> Self {
        Caller { sender: self.sender.clone(), bell: self.bell.clone() }
    }
}

impl<T> Drop for Caller<T> {
    fn drop(&mut self) {
        drop(self.sender.take());
        self.bell.ring();
    }
}

/// A channel whose receiver waits by the channel's own means.
impl<T> From<Sender<T>> for Caller<T> {
    fn from(sender: Sender<T>) -> Self {
        Caller::new(sender, &Bell::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nothing_is_missed_and_the_end_is_seen() {
        let bell = Bell::default();
        let (numbers, numbers_in) = channel::<u32>(4, &bell);
        let (words, words_in) = channel::<&str>(4, &bell);
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (numbers, words) = (numbers.clone(), words.clone());
                std::thread::spawn(move || {
                    for number in 0..1_000 {
                        numbers.send(number).unwrap();
                        words.send_deadline("word", Instant::now() + Duration::from_secs(20)).unwrap();
                    }
                })
            })
            .collect();
        drop((numbers, words));
        let (mut got, until) = (0, Instant::now() + Duration::from_secs(20));
        bell.claim();
        while got < 8_000 {
            let found = numbers_in.try_iter().count() + words_in.try_iter().count();
            got += found;
            if found == 0 {
                bell.wait(Some(until));
                assert!(Instant::now() < until, "{got} came");
            }
        }
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        assert_eq!(next(&numbers_in, &bell), Err(RecvError));
    }

    #[test]
    fn the_last_caller_wakes_a_receiver_that_waits_for_ever() {
        let bell = Bell::default();
        let (caller, receiver) = channel::<u32>(1, &bell);
        let other = caller.clone();
        let waiter = std::thread::spawn(move || {
            let first = next(&receiver, &bell);
            (first, next(&receiver, &bell))
        });
        caller.try_send(7).unwrap();
        drop((caller, other));
        let (first, _) = waiter.join().unwrap();
        assert_eq!(first, Ok(7));
    }
}
