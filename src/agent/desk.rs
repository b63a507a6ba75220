//! What the typist works at: the terminal, its screen, and the reasons to wait before a message is typed.

use std::io;
use std::time::{Duration, Instant};

use alacritty_terminal::term::TermMode;
use memchr::memmem;

use super::Timing;
use super::draft::Draft;
use super::echo::{self, EchoWatch};
use super::receipts::Receipts;
use super::responder::Responder;
use super::screen::Screen;
use super::terminal::Terminal;
use super::turn::Turn;
use super::typist::{Desk, Gate};
use super::wording::{self, Voice};
use super::words::OwnWords;
use crate::core::ports::{AgentNote, Injection};
use crate::wire::node::DeliveryMode;

/// Longest line that is written to a terminal in line mode: the kernel keeps 4095 bytes of a line and drops the rest
/// without a word.
const LINE_LIMIT: usize = 4_000;
/// So much of the end of a message is looked for in front of the cursor.
const TAIL_CHARS: usize = 32;
/// How long a message waits for the kernel to have thrown away what an interrupt key found unread; usually microseconds.
/// Begun earlier, it could not be told from what was lost.
const FLUSH_WAIT: Duration = Duration::from_millis(50);

/// The working place of one agent.
pub struct LiveDesk {
    pub terminal: Terminal,
    pub screen: Screen,
    pub voice: Voice,
    pub echo: EchoWatch,
    pub receipts: Receipts,
    pub responder: Responder,
    pub words: OwnWords,
    pub timing: Timing,
    pub started: Instant,
    /// Raw bytes of output so far.
    pub output: u64,
    /// A human works at the terminal.
    pub held: bool,
    /// What a human has typed and not sent.
    draft: Draft,
    /// Messages are typed all the same.
    pub ignores_drafts: bool,
    /// Messages wait for readiness.
    pub holds_until_ready: bool,
    pub ready: bool,
    /// The composer shows a suggestion that typed text would be appended to.
    pub suggestion: bool,
    /// Message whose Enter may have been swallowed: when to look, and how its text ends.
    pub second_enter: Option<(Instant, String)>,
    /// End of the last message composed.
    tail: String,
    /// The same, until the next one.
    last_tail: String,
    /// Whether the program has begun to answer.
    pub turn: Turn,
    /// How long an echo is waited for.
    echo_window: Duration,
    /// Bytes written to the terminal so far.
    written: u64,
    /// The message that is being written.
    begun: Option<Begun>,
    /// An interrupt key was written, and the kernel has not yet said that it threw input away.
    flush_due: Option<Instant>,
    /// What is known of messages and not yet told.
    pub verdicts: Vec<AgentNote>,
}

/// A message of which not everything is written.
struct Begun {
    /// Bytes written before its first.
    from: u64,
    /// Unread input was thrown away since.
    flushed: bool,
}

impl LiveDesk {
    pub fn new(
        terminal: Terminal,
        screen: Screen,
        voice: Voice,
        timing: Timing,
        echo_window: Duration,
        now: Instant,
    ) -> LiveDesk {
        LiveDesk {
            terminal,
            screen,
            voice,
            echo: EchoWatch::default(),
            receipts: Receipts::default(),
            responder: Responder::default(),
            words: OwnWords::default(),
            timing,
            started: now,
            output: 0,
            held: false,
            draft: Draft::default(),
            ignores_drafts: false,
            holds_until_ready: false,
            ready: false,
            suggestion: false,
            second_enter: None,
            tail: String::new(),
            last_tail: String::new(),
            turn: Turn::default(),
            echo_window,
            written: 0,
            begun: None,
            flush_due: None,
            verdicts: Vec::new(),
        }
    }

    /// Looks whether unread input was thrown away. Then an empty input queue is no proof for what was written before: it
    /// stays unproved. To be asked after each look at that queue and before a message begins.
    pub fn notice_flush(&mut self) {
        if !self.terminal.take_flush() {
            return;
        }
        self.flush_due = None;
        if let Some(begun) = self.begun.as_mut().filter(|begun| begun.from < self.written) {
            begun.flushed = true;
        }
        self.give_up();
    }

    fn give_up(&mut self) {
        if !self.receipts.is_empty() {
            // Its end may stand on the screen because nobody has read it.
            self.second_enter = None;
        }
        let lost = self.receipts.give_up().into_iter().map(|delivery_id| AgentNote::Lost { delivery_id });
        self.verdicts.extend(lost);
    }

    /// An interrupt key is about to throw away what is unread: decides about every message not yet proved.
    fn before_interrupt(&mut self) {
        let (proved, unread) = (self.terminal.all_read(), self.terminal.unread());
        self.notice_flush();
        if proved {
            let read = self.receipts.settle().into_iter().map(|delivery_id| AgentNote::Read { delivery_id });
            self.verdicts.extend(read);
        }
        // Only a message that is lost as a whole is typed again; of any other the program has a part already.
        for delivery_id in self.receipts.take_untouched(self.written, unread.unwrap_or(0)) {
            self.echo.forget(&delivery_id);
            let error = "an interrupt key threw it away before the program read it".to_string();
            self.verdicts.push(AgentNote::InjectFailed { delivery_id, error });
        }
        self.give_up();
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

    /// Until when a human is at work: their keys may be on their way to a question or into a composer.
    pub fn human_until(&self) -> Option<Instant> {
        Some(self.draft.last_key()? + self.timing.draft_unseen)
    }

    /// Whether a human's unsent text stands in the composer, as far as is known.
    fn drafted(&self, now: Instant) -> Drafted {
        let Some(mode) = self.terminal.line_discipline() else { return Drafted::Nothing };
        if mode.canonical {
            // The kernel itself keeps the line until Enter.
            let stands = self.draft.is_in_line_mode() && !self.draft.is_empty();
            return if stands { Drafted::Standing } else { Drafted::Nothing };
        }
        let typed = echo::compact(&self.draft.text());
        if typed.is_empty() && !self.draft.is_pasting() {
            // Nobody typed it here: recalled from a history, or typed at another terminal.
            let foreign = self.screen.takes_bracketed_paste()
                && self.screen.mode().contains(TermMode::SHOW_CURSOR)
                && composer_text(&self.screen.before_cursor());
            return if foreign && !unsubmitted(&self.screen, &self.last_tail) {
                Drafted::Guessed
            } else {
                Drafted::Nothing
            };
        }
        if !typed.is_empty() && shows_draft(&self.screen, &typed) {
            return Drafted::Standing;
        }
        // A program that takes keys as commands shows none of them, and one that is pasted to may wait for the end.
        match self.human_until() {
            Some(until) if now < until => Drafted::Unseen { until },
            _ => Drafted::Nothing,
        }
    }

    /// Whether the kernel would cut a line of it: only a terminal in line mode does.
    fn would_be_cut(&self, injection: &Injection) -> bool {
        self.terminal.line_discipline().is_none_or(|mode| mode.canonical)
            && self.voice.has_line_beyond(injection, LINE_LIMIT)
    }
}

/// What is known of a human's unsent text.
enum Drafted {
    Nothing,
    /// Typed here, and still there.
    Standing,
    /// Typed here and not shown.
    Unseen {
        until: Instant,
    },
    /// Shown, and typed by nobody here.
    Guessed,
}

/// Whether the end of a draft (compact) stands on the cursor's row, or right before the cursor over several rows.
fn shows_draft(screen: &Screen, typed: &str) -> bool {
    let skip = typed.chars().count().saturating_sub(TAIL_CHARS / 2);
    let tail: String = typed.chars().skip(skip).collect();
    let (row, _) = screen.cursor();
    unsubmitted(screen, &tail) || echo::compact(&screen.row(row)).contains(&tail)
}

/// Whether what stands before the cursor is a composer's prompt with text behind it.
fn composer_text(before_cursor: &str) -> bool {
    let row = before_cursor.trim_start_matches(|c: char| c.is_whitespace() || "│┃|".contains(c));
    ["❯", "›", ">"]
        .iter()
        .any(|glyph| row.strip_prefix(glyph).is_some_and(|text| text.starts_with(' ') && !text.trim().is_empty()))
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
        if let Some(until) = self.flush_due.filter(|until| now < *until) {
            return Gate::Closed { until };
        }
        let ready_limit = self.started + self.timing.ready_limit;
        if self.holds_until_ready && !self.ready && now < ready_limit {
            return Gate::Closed { until: ready_limit };
        }
        if self.responder.asked(&self.screen.text(), now).is_some() {
            let limit = queued + self.timing.dialog_hold;
            if now < limit {
                // It may close without a change of the screen, so it is asked again in between.
                return Gate::Closed { until: limit.min(now + self.timing.dialog_look) };
            }
            // Typed now, it would answer a question of trust or permission (R2).
            return Gate::Never("a question of the CLI stands on the screen");
        }
        if !self.ignores_drafts {
            let limit = queued + self.timing.draft_hold;
            match self.drafted(now) {
                Drafted::Standing | Drafted::Guessed if now < limit => {
                    // It may leave the screen without a key of ours.
                    return Gate::Drafted { until: limit.min(now + self.timing.line_mode_look) };
                }
                Drafted::Standing | Drafted::Guessed => {
                    return Gate::Never("a human's unsent text stands in the composer");
                }
                Drafted::Unseen { until } if now < limit => return Gate::Drafted { until: until.min(limit) },
                Drafted::Unseen { .. } | Drafted::Nothing => {}
            }
        }
        if self.would_be_cut(injection) {
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
        self.notice_flush();
        self.begun = Some(Begun { from: self.written, flushed: false });
        let text = self.voice.text(injection, now, self.output);
        let removed = wording::removed(injection);
        if removed > 0 {
            log::warn!("{removed} control characters of message {:?} are not typed", injection.event_id);
        }
        self.echo.begin(&injection.delivery_id, &wording::echo_mark(&text));
        self.responder.quote(&text);
        self.words.quote(&text);
        self.suggestion = false;
        self.second_enter = None;
        let compact = echo::compact(&text);
        let skip = compact.chars().count().saturating_sub(TAIL_CHARS);
        self.tail = compact.chars().skip(skip).collect();
        self.last_tail.clone_from(&self.tail);
        self.turn.begin(&injection.delivery_id, compact);
        if self.screen.takes_bracketed_paste() {
            return [b"\x1b[200~", text.as_bytes(), b"\x1b[201~"].concat();
        }
        text.into_bytes()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.terminal.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn typed(&mut self, delivery_id: &str, now: Instant) {
        self.notice_flush();
        self.echo.typed(delivery_id, now + self.echo_window);
        self.turn.typed(delivery_id);
        // If there was one, it went with the message.
        self.draft.submitted();
        let tail = std::mem::take(&mut self.tail);
        match self.begun.take() {
            Some(Begun { from, flushed: false }) => {
                self.receipts.typed(delivery_id.into(), from, now, self.timing.stall);
                // Look once, later, whether its Enter was taken.
                self.second_enter = Some((now + self.timing.second_enter, tail));
            }
            _ => self.verdicts.push(AgentNote::Lost { delivery_id: delivery_id.into() }),
        }
    }

    fn before_keys(&mut self, bytes: &[u8], now: Instant) {
        self.second_enter = None;
        let mode = self.terminal.line_discipline();
        self.draft.keys(bytes, mode.as_ref().is_some_and(|mode| mode.canonical), now);
        let flushing = mode.map_or([0; 3], |mode| mode.flushing);
        if bytes.iter().any(|byte| *byte != 0 && flushing.contains(byte)) {
            self.before_interrupt();
            self.flush_due = Some(now + FLUSH_WAIT);
        }
    }
}

/// Watches the raw output for a suggestion in the composer: inverse video directly followed by dim text, or a send hint.
///
/// A program draws it with much else, and how that is cut into reads says nothing: what comes within [`REDRAW`] belongs
/// together, later text has replaced it.
#[derive(Debug, Default)]
pub struct SuggestionScan {
    /// The end of the piece before: a sequence may be cut.
    tail: Vec<u8>,
    /// When its parts, and when all of it came last.
    inverse: Option<Instant>,
    dim: Option<Instant>,
    shown: Option<Instant>,
}

/// One drawing of a screen takes no longer.
const REDRAW: Duration = Duration::from_millis(100);

impl SuggestionScan {
    /// What a piece of output says about a suggestion; `None`: nothing.
    pub fn push(&mut self, bytes: &[u8], visible: bool, now: Instant) -> Option<bool> {
        const KEEP: usize = 8;
        let seam = [&self.tail, &bytes[..bytes.len().min(KEEP)]].concat();
        let ends_here = |needle: &[u8]| {
            let over_the_seam = &seam[self.tail.len().saturating_sub(needle.len() - 1)..];
            memmem::find(over_the_seam, needle).is_some() || memmem::find(bytes, needle).is_some()
        };
        let recent = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < REDRAW);
        let (inverse, dim) = (ends_here(b"\x1b[7m"), ends_here(b"\x1b[27m\x1b[2m"));
        let hint = ends_here("↵ send".as_bytes());
        let end = if bytes.len() < KEEP { &seam } else { bytes };
        self.tail = end[end.len().saturating_sub(KEEP)..].to_vec();
        self.inverse = if inverse { Some(now) } else { self.inverse };
        self.dim = if dim { Some(now) } else { self.dim };
        if hint || ((inverse || dim) && recent(self.inverse) && recent(self.dim)) {
            self.shown = Some(now);
            return Some(true);
        }
        (visible && !recent(self.shown)).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::screen::Size;
    use super::*;

    #[test]
    fn a_suggestion_is_seen_and_cleared_by_later_text() {
        let (mut scan, start) = (SuggestionScan::default(), Instant::now());
        assert_eq!(scan.push(b"\x1b[7mT\x1b[27m\x1b[2mry this", true, start), Some(true));
        assert_eq!(scan.push(b"\x1b[1;1H", false, start + REDRAW), None);
        assert_eq!(scan.push(b"other", true, start + REDRAW), Some(false));
        assert_eq!(scan.push("\u{21b5} se".as_bytes(), true, start + REDRAW), Some(false));
        assert_eq!(scan.push(b"nd", true, start + REDRAW), Some(true));
        assert_eq!(scan.push(b"other", true, start + 2 * REDRAW), Some(false), "the hint is not seen twice");
        // A mark of one drawing and dim text of another are no suggestion.
        assert_eq!(scan.push(b"\x1b[7mT\x1b[27m", true, start + 3 * REDRAW), Some(false));
        assert_eq!(scan.push(b"x\x1b[27m\x1b[2mry", true, start + 4 * REDRAW), Some(false));
    }

    #[test]
    fn t8_a_suggestion_is_seen_at_every_split() {
        for drawn in ["\x1b[2K> \x1b[7mT\x1b[27m\x1b[2mry this\x1b[0m\r\n? for help", "> \u{21b5} send\r\n? for help"] {
            for cut in 0..=drawn.len() {
                let (mut scan, start) = (SuggestionScan::default(), Instant::now());
                let (left, right) = drawn.as_bytes().split_at(cut);
                let mut shown = false;
                for (piece, at) in [(left, start), (right, start + REDRAW / 2)] {
                    shown = scan.push(piece, true, at).unwrap_or(shown);
                }
                assert!(shown, "cut at {cut}");
            }
        }
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
