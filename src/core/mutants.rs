//! Deliberate defects of the core, so that the simulator can be shown to bite. Without the feature `mutants` every
//! question is answered `false` at compile time.

/// A defect that the simulator must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A delivery counts as disposed when it is handed to the agent's thread.
    AckAtHandOff,
    /// No id is ever recognised as seen.
    NoDedup,
    /// Restored cursors and rings are ignored.
    CursorLostOnRestart,
    /// A frame beyond a gap is dropped instead of held.
    GapDropped,
    /// What a dead agent leaves behind is acknowledged without a dead letter.
    DeadAgentNotRecorded,
    /// The handlers of a sidecar outlive its connection.
    HandlersOutliveSidecar,
    /// A deregistered sidecar's capabilities stay claimed.
    CapabilitiesOutliveSidecar,
    /// An invocation that is asked again goes to its handler again.
    HandlerAskedAgain,
    /// A delivery for another identity of a known name is typed.
    ForeignTyped,
    /// A node that another broker has taken is taken back at once.
    SupersededInHaste,
}

#[cfg(feature = "mutants")]
mod active {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Plants a defect in every broker of this thread, or none.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    pub(in crate::core) fn planted(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub(super) use active::planted;
#[cfg(feature = "mutants")]
pub use active::set;

#[cfg(not(feature = "mutants"))]
pub(super) const fn planted(_mutant: Mutant) -> bool {
    false
}
