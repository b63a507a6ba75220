//! Somebody outside looks at the terminal and misses nothing.

use rustix::event::PollFlags;

use super::Pump;
use crate::agent::tap::Tap;

impl Pump<'_> {
    /// While the viewer is behind the terminal is not read: its program waits, and nothing else does.
    pub(super) fn full_tap(&self) -> Option<&Tap> {
        self.tap.as_ref().filter(|tap| tap.is_full())
    }

    pub(super) fn wanted_of_terminal(&self) -> PollFlags {
        let read = if self.full_tap().is_some() { PollFlags::empty() } else { PollFlags::IN };
        let write = if self.typist.is_blocked() { PollFlags::OUT } else { PollFlags::empty() };
        read | write
    }

    pub(super) fn show_outside(&self, bytes: &[u8]) {
        if let Some(tap) = &self.tap {
            tap.push(bytes);
        }
    }

    /// The program hears of its terminal from the one outside, whose answers come as keystrokes: a second answer would be
    /// input that nobody asked for.
    pub(super) fn is_answered_outside(&self) -> bool {
        self.tap.as_ref().is_some_and(Tap::answers_queries)
    }
}
