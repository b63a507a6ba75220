//! The screen of an agent: what its terminal shows, and the answers to its terminal queries.
//!
//! An emulator without scroll-back: only the visible grid is ever asked for. The queries it answers by itself are exactly
//! those that CLIs get answered elsewhere; everything else (colours, clipboard, pixel sizes, kitty and xterm extensions)
//! stays unanswered on purpose, because an answer would change how a CLI behaves.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use alacritty_terminal::Term;
use alacritty_terminal::event::{Event, EventListener};
use alacritty_terminal::grid::{Cursor, Dimensions};
use alacritty_terminal::index::{Column, Line};
use alacritty_terminal::term::cell::{Cell, Flags};
use alacritty_terminal::term::{Config, MIN_COLUMNS, TermMode};
use alacritty_terminal::vte::ansi::{Handler, NamedPrivateMode, PrivateMode, Processor};

/// Largest screen: two grids of 24 bytes a cell have to fit in memory whatever a client asks for.
const MAX_ROWS: u16 = 500;
const MAX_COLS: u16 = 1000;

/// Combining marks that a cell may keep.
const MAX_MARKS: usize = 32;

/// Rows and columns. The emulator needs one row and two columns (a wide character has to fit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub cols: u16,
}

impl Size {
    /// The nearest size that the emulator can have.
    pub fn clamped(rows: u16, cols: u16) -> Size {
        Size { rows: rows.clamp(1, MAX_ROWS), cols: cols.clamp(MIN_COLUMNS as u16, MAX_COLS) }
    }
}

impl Dimensions for Size {
    fn total_lines(&self) -> usize {
        self.rows.into()
    }

    fn screen_lines(&self) -> usize {
        self.rows.into()
    }

    fn columns(&self) -> usize {
        self.cols.into()
    }
}

/// Collects the emulator's answers; every other event concerns a window that we do not have.
#[derive(Clone, Default)]
pub struct Answers(Rc<RefCell<String>>);

impl EventListener for Answers {
    fn send_event(&self, event: Event) {
        if let Event::PtyWrite(text) = event {
            self.0.borrow_mut().push_str(&text);
        }
    }
}

/// The emulated terminal. Not `Send`: it lives and dies on its agent's thread.
pub struct Screen {
    term: Term<Answers>,
    parser: Processor,
    answers: Answers,
}

impl Screen {
    pub fn new(size: Size) -> Screen {
        let answers = Answers::default();
        let config = Config { scrolling_history: 0, ..Config::default() };
        Screen { term: Term::new(config, &size, answers.clone()), parser: Processor::new(), answers }
    }

    /// Shows `bytes`. Sequences may be cut anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        let Size { rows, cols } = self.size();
        let cells = usize::from(rows) * usize::from(cols);
        let mut rest = bytes;
        // A few bytes may ask for 65535 characters. What goes beyond the grid changes nothing but the column.
        while let Some((place, number)) = long_repeat(rest, cells + usize::from(cols)) {
            self.parser.advance(&mut self.term, &rest[..place.start]);
            let count = cells + number % usize::from(cols);
            self.parser.advance(&mut self.term, format!("\x1b[{count}b").as_bytes());
            rest = &rest[place.end..];
        }
        self.parser.advance(&mut self.term, rest);
        self.shed_marks();
    }

    /// A flood of combining marks all lands in the cell before the cursor, which would keep every one of them.
    fn shed_marks(&mut self) {
        let point = self.term.grid().cursor.point;
        for col in point.column.0.saturating_sub(2)..=point.column.0 {
            let cell = &mut self.term.grid_mut()[point.line][Column(col)];
            if cell.zerowidth().is_some_and(|marks| marks.len() > MAX_MARKS) {
                cell.extra = None;
            }
        }
    }

    /// When the synchronized update in progress (`CSI ? 2026 h`) is shown even though its end did not come: 150 ms.
    pub fn sync_deadline(&self) -> Option<Instant> {
        self.parser.sync_timeout().sync_timeout()
    }

    /// Shows what a synchronized update has held back.
    pub fn end_sync(&mut self) {
        if self.sync_deadline().is_some() {
            self.parser.stop_sync(&mut self.term);
        }
    }

    /// Answers to terminal queries since the last call.
    pub fn take_answers(&mut self) -> Option<Vec<u8>> {
        let mut answers = self.answers.0.borrow_mut();
        (!answers.is_empty()).then(|| std::mem::take(&mut *answers).into_bytes())
    }

    pub fn resize(&mut self, size: Size) {
        self.term.resize(size);
    }

    pub fn size(&self) -> Size {
        Size { rows: self.term.screen_lines() as u16, cols: self.term.columns() as u16 }
    }

    /// The program asked for pastes in brackets (`CSI ? 2004 h`).
    pub fn takes_bracketed_paste(&self) -> bool {
        self.mode().contains(TermMode::BRACKETED_PASTE)
    }

    pub fn mode(&self) -> TermMode {
        *self.term.mode()
    }

    /// The cursor with what it writes by: colours, character sets, whether it hangs behind the last column.
    pub fn pen(&self) -> &Cursor<Cell> {
        &self.term.grid().cursor
    }

    /// The cursor as the program has last saved it.
    pub fn saved_pen(&self) -> &Cursor<Cell> {
        &self.term.grid().saved_cursor
    }

    /// First and last row of the scrolling region, from 0. The emulator does not tell; the cursor in origin mode does.
    pub fn margins(&mut self) -> (usize, usize) {
        let origin = PrivateMode::Named(NamedPrivateMode::Origin);
        let (cursor, had_origin) = (self.pen().clone(), self.mode().contains(TermMode::ORIGIN));
        self.term.set_private_mode(origin);
        let (top, _) = self.cursor();
        self.term.goto(i32::from(self.size().rows), 0);
        let (bottom, _) = self.cursor();
        if !had_origin {
            self.term.unset_private_mode(origin);
        }
        self.term.grid_mut().cursor = cursor;
        (top, bottom)
    }

    /// Row and column of the cursor, from 0.
    pub fn cursor(&self) -> (usize, usize) {
        let point = self.term.grid().cursor.point;
        (point.line.0.max(0) as usize, point.column.0)
    }

    /// One cell of the visible grid.
    pub fn cell(&self, row: usize, col: usize) -> &Cell {
        &self.term.grid()[Line(row as i32)][Column(col)]
    }

    /// A row as text, trailing blanks trimmed. On the cursor's row blanks left of the cursor stay: `> ` with the cursor
    /// behind it is a prompt, and the blank is part of it.
    pub fn row(&self, row: usize) -> String {
        let mut text = self.untrimmed(row, self.term.columns());
        let (cursor_row, cursor_col) = self.cursor();
        let keep = if row == cursor_row { self.untrimmed(row, cursor_col).len() } else { 0 };
        text.truncate(text.trim_end().len().max(keep));
        text
    }

    /// The part of the cursor's row that stands before the cursor.
    pub fn before_cursor(&self) -> String {
        let (row, col) = self.cursor();
        self.untrimmed(row, col)
    }

    /// The visible grid, one line per row.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in 0..self.term.screen_lines() {
            text.push_str(&self.row(row));
            text.push('\n');
        }
        text
    }

    fn untrimmed(&self, row: usize, until: usize) -> String {
        let mut text = String::with_capacity(until);
        for col in 0..until.min(self.term.columns()) {
            let cell = self.cell(row, col);
            if cell.flags.intersects(Flags::WIDE_CHAR_SPACER | Flags::LEADING_WIDE_CHAR_SPACER) {
                continue;
            }
            // The emulator keeps a tab character in the cell it started from.
            text.push(if cell.c == '\t' { ' ' } else { cell.c });
            text.extend(cell.zerowidth().into_iter().flatten());
        }
        text
    }
}

/// The first sequence that repeats a character (`CSI n b`) more than `most` times, and its number as the emulator reads it.
/// One that is cut by the end of a read is not found: there is at most one in each.
fn long_repeat(bytes: &[u8], most: usize) -> Option<(Range<usize>, usize)> {
    let mut from = 0;
    loop {
        let end = from + bytes[from..].iter().position(|byte| *byte == b'b')?;
        let is_parameter = |byte: &&u8| byte.is_ascii_digit() || **byte == b';';
        let start = end - bytes[from..end].iter().rev().take_while(is_parameter).count();
        if bytes[..start].ends_with(b"\x1b[") {
            let first = bytes[start..end].iter().take_while(|byte| byte.is_ascii_digit());
            let number = first.fold(0, |number, digit| (number * 10 + usize::from(digit - b'0')).min(u16::MAX.into()));
            if number > most {
                return Some((start - 2..end + 1, number));
            }
        }
        from = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(input: &str) -> String {
        let mut screen = Screen::new(Size { rows: 24, cols: 80 });
        screen.feed(input.as_bytes());
        String::from_utf8(screen.take_answers().unwrap_or_default()).expect("ASCII")
    }

    #[test]
    fn queries_are_answered_byte_for_byte() {
        for (query, answer) in [
            ("\x1b[5n", "\x1b[0n"),
            ("\x1b[6n", "\x1b[1;1R"),
            ("\x1b[7;12H\x1b[6n", "\x1b[7;12R"),
            ("\x1b[c", "\x1b[?6c"),
            ("\x1b[0c", "\x1b[?6c"),
            ("\x1bZ", "\x1b[?6c"),
            ("\x1b[>c", "\x1b[>0;2600;1c"),
            ("\x1b[>0c", "\x1b[>0;2600;1c"),
            ("\x1b[18t", "\x1b[8;24;80t"),
            ("\x1b[?25$p", "\x1b[?25;1$y"),
            ("\x1b[?25l\x1b[?25$p", "\x1b[?25;2$y"),
            ("\x1b[?2004h\x1b[?2004$p", "\x1b[?2004;1$y"),
            ("\x1b[?1049$p", "\x1b[?1049;2$y"),
            ("\x1b[?2026$p", "\x1b[?2026;2$y"),
            ("\x1b[?2027$p", "\x1b[?2027;0$y"),
            ("\x1b[?2031$p", "\x1b[?2031;0$y"),
            ("\x1b[4$p", "\x1b[4;2$y"),
            ("\x1b[4h\x1b[4$p", "\x1b[4;1$y"),
            ("\x1b[20$p", "\x1b[20;2$y"),
        ] {
            assert_eq!(answers(query), answer, "{query:?}");
        }
    }

    #[test]
    fn other_queries_stay_unanswered() {
        for query in [
            "\x1b[?6n",
            "\x1b[=c",
            "\x1b[>q",
            "\x1b[>0q",
            "\x1b[?u",
            "\x1b[?4m",
            "\x1b]4;1;?\x07",
            "\x1b]10;?\x1b\\",
            "\x1b]11;?\x07",
            "\x1b]12;?\x07",
            "\x1b]52;c;?\x07",
            "\x1b[14t",
            "\x1b[16t",
            "\x1b[19t",
            "\x1b[21t",
            "\x1b[11t",
            "\x1bP$qm\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
            "\x1b[x",
            "\x1b[1x",
            "\x05",
            "\x1b[?996n",
        ] {
            assert_eq!(answers(query), "", "{query:?}");
        }
    }

    #[test]
    fn a_synchronized_update_holds_grid_and_answers_until_its_end() {
        let mut screen = Screen::new(Size { rows: 4, cols: 20 });
        screen.feed(b"\x1b[?2026hhidden\x1b[6n");
        assert!(screen.sync_deadline().is_some());
        assert_eq!((screen.row(0), screen.take_answers()), (String::new(), None));
        screen.feed(b"\x1b[?2026l");
        assert_eq!(screen.row(0), "hidden");
        assert_eq!(screen.take_answers().as_deref(), Some(&b"\x1b[1;7R"[..]));
        screen.feed(b"\x1b[?2026h more");
        screen.end_sync();
        assert_eq!((screen.row(0).as_str(), screen.sync_deadline()), ("hidden more", None));
    }

    #[test]
    fn d5_a_blank_left_of_the_cursor_belongs_to_the_prompt() {
        let mut screen = Screen::new(Size { rows: 3, cols: 20 });
        screen.feed("first   \r\n> ".as_bytes());
        assert_eq!(screen.text(), "first\n> \n\n");
        assert_eq!(screen.before_cursor(), "> ");
    }

    #[test]
    fn wide_and_combining_characters_read_as_typed() {
        let mut screen = Screen::new(Size { rows: 2, cols: 20 });
        screen.feed("日本 e\u{301}\tx".as_bytes());
        assert_eq!(screen.row(0), "日本 e\u{301}  x");
    }

    #[test]
    fn a_flood_of_combining_marks_costs_no_memory() {
        let mut screen = Screen::new(Size { rows: 2, cols: 20 });
        for _ in 0..100 {
            screen.feed("e\u{301}".as_bytes());
            screen.feed("\u{301}".repeat(1000).as_bytes());
        }
        assert!((0..2).all(|row| screen.row(row).len() < 20 * 80), "{}", screen.text().len());
    }

    #[test]
    fn t9_no_number_makes_a_sequence_dear() {
        let mut slow = Vec::new();
        for last in '@'..='~' {
            let mut screen = Screen::new(Size { rows: 24, cols: 80 });
            screen.feed(b"\x1b[3;20r\x1b[5;5Hx");
            let begun = Instant::now();
            screen.feed(format!("\x1b[99999999{last}").repeat(400).as_bytes());
            screen.feed(format!("\x1b[99999999;99999999{last}").repeat(400).as_bytes());
            slow.push((begun.elapsed(), last));
        }
        slow.sort();
        // As much as one read of a terminal may hold, twice; the dearest take a few milliseconds.
        assert!(slow.last().is_some_and(|(took, _)| took.as_millis() < 300), "{:?}", &slow[slow.len() - 4..]);
    }

    #[test]
    fn t9_a_long_repetition_shows_what_it_would_have_shown() {
        for number in [1, 79, 1_999, 2_000, 2_001, 5_000, 12_345, 65_535] {
            let shown = |input: String| {
                let mut screen = Screen::new(Size { rows: 24, cols: 80 });
                screen.feed(input.as_bytes());
                (screen.text(), screen.cursor())
            };
            let (short, long) = (format!("b1b\x1b[mx\x1b[{number}by"), format!("b1b\x1b[mx{}y", "x".repeat(number)));
            assert_eq!(shown(short), shown(long), "{number}");
        }
    }

    #[test]
    fn every_size_is_survivable() {
        let mut screen = Screen::new(Size::clamped(0, 0));
        screen.feed("日本\x1b[?7l日本\r\n".as_bytes());
        for (rows, cols) in [(1, 1), (65535, 65535), (3, 7), (24, 80)] {
            screen.resize(Size::clamped(rows, cols));
            screen.feed("日x本\x1b[99999999Cé\x1b[65535b".as_bytes());
        }
        assert_eq!(screen.size(), Size { rows: 24, cols: 80 });
    }
}
