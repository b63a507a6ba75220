//! Pictures of a screen for clients: plain text, or the escape sequences that paint it on an empty terminal.

use std::fmt::Write;

use alacritty_terminal::term::TermMode;
use alacritty_terminal::term::cell::{Cell, Flags};
use alacritty_terminal::vte::ansi::{Color, NamedColor};

use super::screen::Screen;
use crate::core::ports::{Snapshot, SnapshotFormat};

/// Takes the picture. `offset` = bytes of output that the screen shows.
pub fn take(screen: &Screen, format: SnapshotFormat, offset: u64) -> Snapshot {
    let size = screen.size();
    let (row, col) = screen.cursor();
    Snapshot {
        rows: size.rows,
        cols: size.cols,
        cursor: (row as u16 + 1, col as u16 + 1),
        screen: match format {
            SnapshotFormat::Plain => plain(screen),
            SnapshotFormat::Ansi => base64(ansi(screen).as_bytes()),
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
const MODES: [(TermMode, &str); 11] = [
    (TermMode::SHOW_CURSOR, "25"),
    (TermMode::APP_CURSOR, "1"),
    (TermMode::LINE_WRAP, "7"),
    (TermMode::ORIGIN, "6"),
    (TermMode::MOUSE_REPORT_CLICK, "1000"),
    (TermMode::MOUSE_DRAG, "1002"),
    (TermMode::MOUSE_MOTION, "1003"),
    (TermMode::FOCUS_IN_OUT, "1004"),
    (TermMode::UTF8_MOUSE, "1005"),
    (TermMode::SGR_MOUSE, "1006"),
    (TermMode::BRACKETED_PASTE, "2004"),
];

fn ansi(screen: &Screen) -> String {
    let size = screen.size();
    let mode = screen.mode();
    let mut out = String::with_capacity(usize::from(size.rows) * usize::from(size.cols) + 512);
    // The alternate screen is chosen before the paint: switching clears it or brings another picture back.
    out.push_str(if mode.contains(TermMode::ALT_SCREEN) { "\x1b[?1049h" } else { "\x1b[?1049l" });
    // A viewer in origin mode would place the rows elsewhere.
    out.push_str("\x1b[?6l\x1b[0m\x1b[H\x1b[2J");
    let mut style = String::new();
    for row in 0..usize::from(size.rows) {
        let _ = write!(out, "\x1b[{};1H", row + 1);
        for col in 0..written(screen, row) {
            let cell = screen.cell(row, col);
            if cell.flags.intersects(Flags::WIDE_CHAR_SPACER | Flags::LEADING_WIDE_CHAR_SPACER) {
                continue;
            }
            let wanted = rendition(cell);
            if wanted != style {
                let _ = write!(out, "\x1b[0{wanted}m");
                style = wanted;
            }
            out.push(if cell.c.is_control() { ' ' } else { cell.c });
            out.extend(cell.zerowidth().into_iter().flatten());
        }
    }
    if !style.is_empty() {
        out.push_str("\x1b[0m");
    }
    for (flag, number) in MODES.iter().filter(|(flag, _)| !mode.contains(*flag)) {
        let _ = (flag, write!(out, "\x1b[?{number}l"));
    }
    for (flag, number) in MODES.iter().filter(|(flag, _)| mode.contains(*flag)) {
        let _ = (flag, write!(out, "\x1b[?{number}h"));
    }
    out.push_str(if mode.contains(TermMode::ALTERNATE_SCROLL) { "\x1b[?1007h" } else { "\x1b[?1007l" });
    out.push_str(if mode.contains(TermMode::APP_KEYPAD) { "\x1b=" } else { "\x1b>" });
    let (row, col) = screen.cursor();
    let _ = write!(out, "\x1b[{};{}H", row + 1, col + 1);
    out
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

/// The parameters of SGR after the `0`, empty for a plain cell.
fn rendition(cell: &Cell) -> String {
    let mut style = String::new();
    for (flag, parameter) in [(Flags::BOLD, ";1"), (Flags::ALL_UNDERLINES, ";4"), (Flags::INVERSE, ";7")] {
        if cell.flags.intersects(flag) {
            style.push_str(parameter);
        }
    }
    color(&mut style, cell.fg, 30, NamedColor::Foreground);
    color(&mut style, cell.bg, 40, NamedColor::Background);
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
fn base64(bytes: &[u8]) -> String {
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
mod tests {
    use super::super::screen::Size;
    use super::*;

    fn painted(input: &str) -> Screen {
        let mut screen = Screen::new(Size { rows: 3, cols: 12 });
        screen.feed(input.as_bytes());
        screen
    }

    #[test]
    fn base64_is_the_standard_one() {
        for (text, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(text.as_bytes()), coded);
        }
    }

    #[test]
    fn plain_rows_are_trimmed_and_ended() {
        let picture = take(&painted("one  \r\n 日x\r\n> "), SnapshotFormat::Plain, 9);
        assert_eq!(picture.screen, "one\n 日x\n>\n");
        assert_eq!((picture.rows, picture.cols, picture.cursor, picture.offset), (3, 12, (3, 3), 9));
    }

    #[test]
    fn an_ansi_picture_paints_cells_styles_and_cursor() {
        let text = ansi(&painted("\x1b[1;31mA\x1b[0mb\x1b[38;5;200;48;2;1;2;3mC\x1b[94mD\x1b[0m\x1b[2;5H"));
        assert!(text.starts_with("\x1b[?1049l\x1b[?6l\x1b[0m\x1b[H\x1b[2J\x1b[1;1H\x1b[0;1;31mA\x1b[0mb"), "{text:?}");
        assert!(text.contains("\x1b[0;38;5;200;48;2;1;2;3mC\x1b[0;94;48;2;1;2;3mD\x1b[2;1H\x1b[0m "), "{text:?}");
        assert!(text.ends_with("\x1b[2;5H"), "{text:?}");
    }

    #[test]
    fn a_row_is_written_to_its_end_and_to_the_cursor_and_no_further() {
        let text = ansi(&painted("one  \r\n\x1b[41m \x1b[0m\tx\x1b[K\r\nask> "));
        assert!(text.contains("\x1b[1;1Hone\x1b[2;1H\x1b[0;41m \x1b[0m       x\x1b[3;1Hask> \x1b[?"), "{text:?}");
        let text = ansi(&painted("\x1b[2;4H"));
        assert!(text.contains("\x1b[1;1H\x1b[2;1H   \x1b[3;1H\x1b[?"), "{text:?}");
    }

    #[test]
    fn an_ansi_picture_repaints_the_same_screen() {
        let source =
            "\x1b[?1049h\x1b[?2004h\x1b[?1002h\x1b[?25l\x1b[7m日本\x1b[0m e\u{301}\r\nlast cell 12\x1b[3;2H\x1b[4mx";
        let first = painted(source);
        // The viewer's own state must not show through.
        let mut second = painted("\x1b[?6h\x1b[?7l\x1b[?1003hold text\r\nmore");
        second.feed(ansi(&first).as_bytes());
        assert_eq!(second.text(), first.text());
        assert_eq!(second.cursor(), first.cursor());
        assert_eq!(second.mode(), first.mode());
        assert_eq!(ansi(&second), ansi(&first));
    }
}
