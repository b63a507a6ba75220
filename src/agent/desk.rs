//! What the typist works at: the terminal, its screen, and the reasons to wait before a message is typed.

use std::io;
use std::time::Instant;

use super::Timing;
use super::echo::{self, EchoWatch};
use super::receipts::Receipts;
use super::responder::Responder;
use super::screen::Screen;
use super::terminal::Terminal;
use super::typist::{Desk, Gate};
use super::wording::{self, Voice};
use crate::core::ports::Injection;
use crate::wire::node::DeliveryMode;

/// Longest line that is written to a terminal in line mode: the kernel keeps 4095 bytes of a line and drops the rest
/// without a word.
const LINE_LIMIT: usize = 4_000;
/// So much of the end of a message is looked for in front of the cursor.
const TAIL_CHARS: usize = 32;

/// The working place of one agent.
pub struct LiveDesk {
    pub terminal: Terminal,
    pub screen: Screen,
    pub voice: Voice,
    pub echo: EchoWatch,
    pub receipts: Receipts,
    pub responder: Responder,
    pub timing: Timing,
    pub started: Instant,
    /// Raw bytes of output so far.
    pub output: u64,
    /// Messages wait for readiness.
    pub holds_until_ready: bool,
    pub ready: bool,
    /// The composer shows a suggestion that typed text would be appended to.
    pub suggestion: bool,
    /// Message whose Enter may have been swallowed: when to look, and how its text ends.
    pub second_enter: Option<(Instant, String)>,
    /// End of the last message composed.
    tail: String,
    /// Messages that a keystroke threw away unread.
    pub discarded: Vec<String>,
}

impl LiveDesk {
    pub fn new(terminal: Terminal, screen: Screen, voice: Voice, timing: Timing, now: Instant) -> LiveDesk {
        LiveDesk {
            terminal,
            screen,
            voice,
            echo: EchoWatch::default(),
            receipts: Receipts::default(),
            responder: Responder::default(),
            timing,
            started: now,
            output: 0,
            holds_until_ready: false,
            ready: false,
            suggestion: false,
            second_enter: None,
            tail: String::new(),
            discarded: Vec::new(),
        }
    }

    /// The message is completely written: look once, later, whether its Enter was taken.
    pub fn expect_submission(&mut self, now: Instant) {
        self.second_enter = Some((now + self.timing.second_enter, std::mem::take(&mut self.tail)));
    }

    /// Whether Enter is to be pressed once more: the program has read the message, reads key by key, and the end of the
    /// message still stands right in front of the cursor.
    ///
    /// In line mode Enter cannot be swallowed, and what stands there may be an echo. A cursor at the start of a row, as
    /// after any output that ends in a line feed, is no composer either.
    pub fn wants_second_enter(&self, tail: &str) -> bool {
        if !self.receipts.is_empty() || self.terminal.line_discipline().is_none_or(|mode| mode.canonical) {
            return false;
        }
        unsubmitted(&self.screen, tail)
    }

    /// A line that the kernel would cut. The hint's lines are short; what a sender supplies is counted.
    fn has_long_line(injection: &Injection) -> bool {
        let head = injection.from.len() + injection.target.len() + injection.event_id.len() + 64;
        let head = head + injection.workspace.as_ref().map_or(0, String::len);
        injection.body.split(['\n', '\r']).enumerate().any(|(index, line)| {
            let head = if index == 0 { head } else { 0 };
            head + line.len() > LINE_LIMIT
        })
    }
}

/// Whether the screen shows `tail` (compact) right in front of the cursor, or the placeholder of a pasted text.
pub fn unsubmitted(screen: &Screen, tail: &str) -> bool {
    let left = echo::compact(&screen.before_cursor());
    if left.is_empty() || tail.is_empty() {
        return false;
    }
    let (row, _) = screen.cursor();
    let above: String = (row.saturating_sub(6)..row).map(|row| echo::compact(&screen.row(row))).collect();
    let shown = above + &left;
    // Composers fold a long paste into a placeholder.
    let pasted = shown.rfind("[Pastedtext#").is_some_and(|at| shown[at..].find(']') == Some(shown.len() - at - 1));
    pasted || shown.ends_with(tail)
}

impl Desk for LiveDesk {
    fn gate(&self, injection: &Injection, queued: Instant, now: Instant) -> Gate {
        let ready_limit = self.started + self.timing.ready_limit;
        if self.holds_until_ready && !self.ready && now < ready_limit {
            return Gate::Closed { until: ready_limit };
        }
        let dialog_limit = queued + self.timing.dialog_hold;
        if now < dialog_limit && self.responder.is_asked(&self.screen.text(), now) {
            // It may close without a change of the screen, so it is asked again in between.
            return Gate::Closed { until: dialog_limit.min(now + self.timing.dialog_look) };
        }
        if Self::has_long_line(injection) && self.terminal.line_discipline().is_none_or(|mode| mode.canonical) {
            let limit = ready_limit.max(queued + self.timing.line_mode_hold);
            if now < limit {
                // A program switches its terminal without a sign, so this one is asked from time to time.
                return Gate::Closed { until: limit.min(now + self.timing.line_mode_look) };
            }
            return Gate::Never("the terminal is in line mode and would cut a line of more than 4000 bytes");
        }
        if self.suggestion && injection.mode == DeliveryMode::Wait {
            let limit = queued + self.timing.suggestion_hold;
            return if now < limit { Gate::Closed { until: limit } } else { Gate::AfterEscape };
        }
        Gate::Open
    }

    fn compose(&mut self, injection: &Injection, now: Instant) -> Vec<u8> {
        let text = self.voice.text(injection, now, self.output);
        self.echo.begin(&injection.delivery_id, &wording::echo_mark(&text));
        self.responder.quote(&text);
        self.suggestion = false;
        self.second_enter = None;
        let compact = echo::compact(&text);
        let skip = compact.chars().count().saturating_sub(TAIL_CHARS);
        self.tail = compact.chars().skip(skip).collect();
        if self.screen.takes_bracketed_paste() {
            return [b"\x1b[200~", text.as_bytes(), b"\x1b[201~"].concat();
        }
        text.into_bytes()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.terminal.write(bytes)
    }

    fn before_keys(&mut self, bytes: &[u8]) {
        self.second_enter = None;
        if self.receipts.is_empty() {
            return;
        }
        // An interrupt key makes the kernel throw away what the program has not read. Afterwards an empty terminal would
        // look like a read message.
        let flushing = self.terminal.line_discipline().map_or([0; 3], |mode| mode.flushing);
        if bytes.iter().any(|byte| *byte != 0 && flushing.contains(byte)) && !self.terminal.all_read() {
            self.discarded.extend(self.receipts.settle());
        }
    }
}

/// Watches the raw output for a suggestion in the composer: inverse video directly followed by dim text, or a send hint.
#[derive(Debug, Default)]
pub struct SuggestionScan {
    /// The end of the piece before: a sequence may be cut.
    tail: Vec<u8>,
}

impl SuggestionScan {
    /// What a piece of output says about a suggestion; `None`: nothing visible, so nothing.
    pub fn push(&mut self, bytes: &[u8], visible: bool) -> Option<bool> {
        const KEEP: usize = 8;
        let joined = [&self.tail, bytes].concat();
        self.tail = joined[joined.len().saturating_sub(KEEP)..].to_vec();
        let has = |needle: &[u8]| joined.contains(&needle[0]) && super::terminal::contains(&joined, needle);
        let shown = (has(b"\x1b[7m") && has(b"\x1b[27m\x1b[2m")) || has("↵ send".as_bytes());
        (shown || visible).then_some(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::super::screen::Size;
    use super::*;

    #[test]
    fn a_suggestion_is_seen_and_cleared_by_other_text() {
        let mut scan = SuggestionScan::default();
        assert_eq!(scan.push(b"\x1b[7mT\x1b[27m\x1b[2mry this", true), Some(true));
        assert_eq!(scan.push(b"\x1b[1;1H", false), None);
        assert_eq!(scan.push(b"other", true), Some(false));
        assert_eq!(scan.push("\u{21b5} se".as_bytes(), true), Some(false));
        assert_eq!(scan.push(b"nd", true), Some(true));
    }

    #[test]
    fn d5_only_text_in_front_of_the_cursor_is_unsubmitted() {
        let shows = |input: &str| {
            let mut screen = Screen::new(Size { rows: 6, cols: 20 });
            screen.feed(input.as_bytes());
            unsubmitted(&screen, "[m_1]:hellothere")
        };
        assert!(shows("> x [m_1]: hello there"));
        assert!(shows("│ x [m_1]: hello    │\r\n│ there"), "wrapped and framed");
        assert!(shows("> [Pasted text #1 +5 lines]"));
        assert!(!shows("> [Pasted text #1 +5 lines] and"));
        assert!(!shows("> x [m_1]: hello there\r\n"), "submitted: the cursor stands on a new row");
        assert!(!shows("> x [m_1]: hello there\r\n> "));
        assert!(!shows("> x [m_1]: hello there, and more"));
        assert!(!shows(""));
    }
}
