//! Pictures of a screen for clients: plain text, or the escape sequences that paint it on an empty terminal.

use std::fmt::Write;

use alacritty_terminal::grid::Cursor;
use alacritty_terminal::term::TermMode;
use alacritty_terminal::term::cell::{Cell, Flags};
use alacritty_terminal::vte::ansi::{CharsetIndex, Color, NamedColor, StandardCharset};

use super::screen::Screen;
use crate::core::ports::{Snapshot, SnapshotFormat};

/// Takes the picture. `offset` = bytes of output that the screen shows; `unfinished` = the sequence that these have begun: who
/// goes on with the output that follows needs its beginning.
pub fn take(screen: &mut Screen, format: SnapshotFormat, offset: u64, unfinished: &str) -> Snapshot {
    let size = screen.size();
    let (row, col) = screen.cursor();
    Snapshot {
        rows: size.rows,
        cols: size.cols,
        cursor: (row as u16 + 1, col as u16 + 1),
        screen: match format {
            SnapshotFormat::Plain => plain(screen),
            SnapshotFormat::Ansi => base64((ansi(screen) + unfinished).as_bytes()),
        },
        offset,
    }
}

/// Every row right-trimmed and ended by a line feed.
fn plain(screen: &Screen) -> String {
    screen.text().split_inclusive('\n').fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// Private modes that a viewer needs in order to show and feed the terminal as the program left it. Written in both
/// directions, so that a viewer's earlier state does not shine through.
const MODES: [(TermMode, &str); 13] = [
    (TermMode::SHOW_CURSOR, "?25"),
    (TermMode::APP_CURSOR, "?1"),
    (TermMode::LINE_WRAP, "?7"),
    (TermMode::ORIGIN, "?6"),
    (TermMode::MOUSE_REPORT_CLICK, "?1000"),
    (TermMode::MOUSE_DRAG, "?1002"),
    (TermMode::MOUSE_MOTION, "?1003"),
    (TermMode::FOCUS_IN_OUT, "?1004"),
    (TermMode::UTF8_MOUSE, "?1005"),
    (TermMode::SGR_MOUSE, "?1006"),
    (TermMode::ALTERNATE_SCROLL, "?1007"),
    (TermMode::BRACKETED_PASTE, "?2004"),
    (TermMode::LINE_FEED_NEW_LINE, "20"),
];

/// What must not show through from the viewer's earlier state while the rows are painted: origin and insert mode, margins,
/// line-drawing characters, colours.
const CLEAN: &str = "\x1b[?6l\x1b[4l\x1b[r\x1b(B\x1b)B\x1b*B\x1b+B\x0f\x1b[0m\x1b[H\x1b[2J";

/// The sequences that bring an empty terminal to where the screen is, so that it can go on with the output that follows:
/// cells, saved cursor, margins, modes, cursor, pen.
fn ansi(screen: &mut Screen) -> String {
    let size = screen.size();
    let (top, bottom) = screen.margins();
    let (cursor, saved) = (screen.pen().clone(), screen.saved_pen().clone());
    let mode = screen.mode();
    let mut out = String::with_capacity(usize::from(size.rows) * usize::from(size.cols) + 512);
    // The alternate screen is chosen before the paint: switching clears it or brings another picture back.
    out.push_str(if mode.contains(TermMode::ALT_SCREEN) { "\x1b[?1049h" } else { "\x1b[?1049l" });
    out.push_str(CLEAN);
    paint(screen, &mut out);
    place(screen, &saved, 0, &mut out);
    let special = pick_up(&saved, &mut out);
    out.push_str("\x1b7");
    if special {
        out.push_str("\x1b(B\x1b)B\x1b*B\x1b+B");
    }
    if !rendition(&saved.template).is_empty() {
        out.push_str("\x1b[0m");
    }
    if (top, bottom) != (0, usize::from(size.rows) - 1) {
        // One row alone can be told only as one that ends beyond the screen.
        let _ = write!(out, "\x1b[{};{}r", top + 1, if top == bottom { bottom + 2 } else { bottom + 1 });
    }
    for (flag, number) in MODES.iter().filter(|(flag, _)| !mode.contains(*flag)) {
        let _ = (flag, write!(out, "\x1b[{number}l"));
    }
    for (flag, number) in MODES.iter().filter(|(flag, _)| mode.contains(*flag)) {
        let _ = (flag, write!(out, "\x1b[{number}h"));
    }
    out.push_str(if mode.contains(TermMode::APP_KEYPAD) { "\x1b=" } else { "\x1b>" });
    // In origin mode rows are counted from the upper margin.
    let from = if mode.contains(TermMode::ORIGIN) { top } else { 0 };
    place(screen, &cursor, from, &mut out);
    if mode.contains(TermMode::INSERT) {
        out.push_str("\x1b[4h");
    }
    pick_up(&cursor, &mut out);
    out
}

/// Puts the cursor there, with rows counted from `from`.
fn place(screen: &Screen, cursor: &Cursor<Cell>, from: usize, out: &mut String) {
    let (row, col) = (cursor.point.line.0.max(0) as usize, cursor.point.column.0);
    // Behind the last cell of a row hangs only who has just written that cell.
    let hangs = cursor.input_needs_wrap && col + 1 == usize::from(screen.size().cols);
    let start = if hangs && starts_wide(screen, row, col.saturating_sub(1)) { col - 1 } else { col };
    let _ = write!(out, "\x1b[{};{}H", row.saturating_sub(from) + 1, start + 1);
    if hangs {
        let _ = write!(out, "\x1b[0{}m", rendition(screen.cell(row, start)));
        write_glyph(screen, row, start, out);
        out.push_str("\x1b[0m");
    }
}

/// Colours and character sets of a cursor, on top of the plain ones. `true`: not all sets are plain.
fn pick_up(cursor: &Cursor<Cell>, out: &mut String) -> bool {
    let style = rendition(&cursor.template);
    if !style.is_empty() {
        let _ = write!(out, "\x1b[0{style}m");
    }
    let sets = [CharsetIndex::G0, CharsetIndex::G1, CharsetIndex::G2, CharsetIndex::G3];
    let mut special = false;
    for (index, letter) in sets.into_iter().zip("()*+".chars()) {
        if cursor.charsets[index] == StandardCharset::SpecialCharacterAndLineDrawing {
            special = true;
            let _ = write!(out, "\x1b{letter}0");
        }
    }
    special
}

fn paint(screen: &Screen, out: &mut String) {
    let size = screen.size();
    let mut style = String::new();
    for row in 0..usize::from(size.rows) {
        let _ = write!(out, "\x1b[{};1H", row + 1);
        let (mut col, end) = (0, written(screen, row));
        while col < end {
            let wanted = rendition(screen.cell(row, col));
            if wanted != style {
                let _ = write!(out, "\x1b[0{wanted}m");
                style = wanted;
            }
            write_glyph(screen, row, col, out);
            col += if starts_wide(screen, row, col) { 2 } else { 1 };
        }
    }
    if !style.is_empty() {
        out.push_str("\x1b[0m");
    }
}

/// How many cells of a row are written: blanks behind the last visible one are left as the clearing of the screen has made
/// them, except before the cursor. Predictive echo asks the viewer's terminal whether the cursor stands at the end of what
/// was written in its row, and predicts nothing elsewhere.
fn written(screen: &Screen, row: usize) -> usize {
    let blank = |cell: &Cell| {
        (cell.c == ' ' || cell.c.is_control()) && cell.zerowidth().is_none() && rendition(cell).is_empty()
    };
    let seen = (0..usize::from(screen.size().cols)).rev().find(|col| !blank(screen.cell(row, *col)));
    let (cursor_row, cursor_col) = screen.cursor();
    seen.map_or(0, |last| last + 1).max(if row == cursor_row { cursor_col } else { 0 })
}

/// A wide character with its second half beside it. Editing a line can leave one half alone; that shows as a blank.
fn starts_wide(screen: &Screen, row: usize, col: usize) -> bool {
    screen.cell(row, col).flags.contains(Flags::WIDE_CHAR)
        && col + 1 < usize::from(screen.size().cols)
        && screen.cell(row, col + 1).flags.contains(Flags::WIDE_CHAR_SPACER)
}

fn write_glyph(screen: &Screen, row: usize, col: usize, out: &mut String) {
    let cell = screen.cell(row, col);
    let half = cell.flags.intersects(Flags::WIDE_CHAR | Flags::WIDE_CHAR_SPACER) && !starts_wide(screen, row, col);
    if half || cell.c.is_control() {
        out.push(' ');
        return;
    }
    out.push(cell.c);
    out.extend(cell.zerowidth().into_iter().flatten());
}

/// Each look of a cell and its parameter.
const LOOKS: [(Flags, &str); 11] = [
    (Flags::BOLD, ";1"),
    (Flags::DIM, ";2"),
    (Flags::ITALIC, ";3"),
    (Flags::UNDERLINE, ";4"),
    (Flags::DOUBLE_UNDERLINE, ";4:2"),
    (Flags::UNDERCURL, ";4:3"),
    (Flags::DOTTED_UNDERLINE, ";4:4"),
    (Flags::DASHED_UNDERLINE, ";4:5"),
    (Flags::INVERSE, ";7"),
    (Flags::HIDDEN, ";8"),
    (Flags::STRIKEOUT, ";9"),
];

/// The parameters of SGR after the `0`, empty for a plain cell.
fn rendition(cell: &Cell) -> String {
    let mut style = String::new();
    for (flag, parameter) in LOOKS {
        if cell.flags.contains(flag) {
            style.push_str(parameter);
        }
    }
    color(&mut style, cell.fg, 30, NamedColor::Foreground);
    color(&mut style, cell.bg, 40, NamedColor::Background);
    if let Some(line) = cell.underline_color() {
        color(&mut style, line, 50, NamedColor::Foreground);
    }
    style
}

/// Colours 0-7 at `base`, 8-15 at `base` + 60, the rest by index or value at `base` + 8.
fn color(style: &mut String, color: Color, base: usize, default: NamedColor) {
    let _ = match color {
        Color::Named(name) if name == default => Ok(()),
        Color::Named(name) => match name as usize {
            index @ 0..=7 => write!(style, ";{}", base + index),
            index @ 8..=15 => write!(style, ";{}", base + 52 + index),
            _ => Ok(()),
        },
        Color::Indexed(index) => write!(style, ";{};5;{index}", base + 8),
        Color::Spec(rgb) => write!(style, ";{};2;{};{};{}", base + 8, rgb.r, rgb.g, rgb.b),
    };
}

/// Base64 with padding, the standard alphabet.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            text.push(if position <= chunk.len() {
                ALPHABET[(group >> (18 - 6 * position) & 63) as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests;
