//! What a picture shows, and that a viewer can go on from it.

use super::super::ansi::Stripper;
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
    let picture = take(&mut painted("one  \r\n 日x\r\n> "), SnapshotFormat::Plain, 9, "");
    assert_eq!(picture.screen, "one\n 日x\n>\n");
    assert_eq!((picture.rows, picture.cols, picture.cursor, picture.offset), (3, 12, (3, 3), 9));
}

#[test]
fn an_ansi_picture_paints_cells_styles_and_cursor() {
    let text = ansi(&mut painted("\x1b[1;31mA\x1b[0mb\x1b[38;5;200;48;2;1;2;3mC\x1b[94mD\x1b[0m\x1b[2;5H"));
    assert!(text.starts_with(&format!("\x1b[?1049l{CLEAN}\x1b[1;1H\x1b[0;1;31mA\x1b[0mb")), "{text:?}");
    assert!(text.contains("\x1b[0;38;5;200;48;2;1;2;3mC\x1b[0;94;48;2;1;2;3mD\x1b[2;1H\x1b[0m "), "{text:?}");
    assert!(text.ends_with("\x1b[2;5H"), "{text:?}");
}

#[test]
fn a_row_is_written_to_its_end_and_to_the_cursor_and_no_further() {
    let text = ansi(&mut painted("one  \r\n\x1b[41m \x1b[0m\tx\x1b[K\r\nask> "));
    assert!(
        text.contains("\x1b[1;1Hone\x1b[2;1H\x1b[0;41m \x1b[0m       x\x1b[3;1Hask> \x1b[1;1H\x1b7\x1b[?"),
        "{text:?}"
    );
    let text = ansi(&mut painted("\x1b[2;4H"));
    assert!(text.contains("\x1b[1;1H\x1b[2;1H   \x1b[3;1H\x1b[1;1H\x1b7\x1b[?"), "{text:?}");
}

#[test]
fn an_ansi_picture_repaints_the_same_screen() {
    let source =
        "\x1b[?1049h\x1b[?2004h\x1b[?1002h\x1b[?25l\x1b[7m日本\x1b[0m e\u{301}\r\nlast cell 12\x1b[3;2H\x1b[4mx";
    let mut first = painted(source);
    // The viewer's own state must not show through.
    let mut second = painted("\x1b[?6h\x1b[?7l\x1b[?1003hold text\r\nmore");
    second.feed(ansi(&mut first).as_bytes());
    assert_eq!(second.text(), first.text());
    assert_eq!(second.cursor(), first.cursor());
    assert_eq!(second.mode(), first.mode());
    assert_eq!(ansi(&mut second), ansi(&mut first));
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn pick<'a>(&mut self, among: &[&'a str]) -> &'a str {
        among[self.below(among.len() as u64) as usize]
    }
}

/// What programs write: text of every width, moves, edits, looks, margins, modes. `stays`: never changes the screen, whose
/// other one no picture shows.
fn babble(dice: &mut Dice, rows: u16, pieces: usize, stays: bool) -> String {
    const TEXT: &[&str] =
        &["x", "lqk", "word ", "日本", "ä", "e\u{301}", "🦀", "\t", "\r\n", "\n", "\u{8}", "a\u{300}\u{301}"];
    const MODES: &[&str] =
        &["?25", "?1", "?7", "?6", "?1000", "?1002", "?1003", "?1004", "?1005", "?1006", "?1007", "?2004", "4", "20"];
    const EDITS: &[&str] =
        &["@", "A", "B", "C", "D", "E", "F", "G", "I", "J", "K", "L", "M", "P", "S", "T", "X", "Z", "d"];
    const LOOKS: &[&str] = &[
        "0",
        "1",
        "2",
        "3",
        "4",
        "7",
        "8",
        "9",
        "21",
        "22",
        "24",
        "27",
        "4:3",
        "31",
        "44",
        "97",
        "102",
        "39",
        "49",
        "38;5;200",
        "48;2;1;2;3",
        "58;5;9",
        "59",
        "1;4;35",
    ];
    const OTHERS: &[&str] = &[
        "\x1b7",
        "\x1b8",
        "\x1bM",
        "\x1bD",
        "\x1bE",
        "\x1b(0",
        "\x1b(B",
        "\x1b)0",
        "\x1b=",
        "\x1b>",
        "\x1b[r",
        "\x1b]0;title\x07",
        "\x1bP1$r\x1b\\",
        "\x1b[?2026h",
        "\x1b[?2026l",
    ];
    let (mut text, rows) = (String::new(), u64::from(rows));
    for _ in 0..pieces {
        let number = dice.below(15);
        let _ = match dice.below(12) {
            0..=4 => write!(text, "{}", dice.pick(TEXT)),
            5 => write!(text, "\x1b[{};{}H", number, dice.below(15)),
            6 => write!(text, "\x1b[{}{}", number % 4, dice.pick(EDITS)),
            7 => write!(text, "\x1b[{}m", dice.pick(LOOKS)),
            8 => write!(text, "\x1b[{}{}", dice.pick(MODES), dice.pick(&["h", "l"])),
            9 => {
                let top = 1 + dice.below(rows);
                write!(text, "\x1b[{top};{}r", top + 1 + dice.below(rows))
            }
            10 if !stays => write!(text, "\x1b[?1049{}", dice.pick(&["h", "l"])),
            _ => write!(text, "{}", dice.pick(OTHERS)),
        };
    }
    text
}

type Look = (char, String, String);

/// All that can be seen of the grid: halves of wide characters that stand alone are blanks.
fn looks(screen: &Screen) -> Vec<Vec<Look>> {
    let size = screen.size();
    let row = |row: usize| {
        (0..usize::from(size.cols)).map(move |col| {
            let cell = screen.cell(row, col);
            let second_half =
                cell.flags.contains(Flags::WIDE_CHAR_SPACER) && col > 0 && starts_wide(screen, row, col - 1);
            let mut glyph = String::new();
            write_glyph(screen, row, col, &mut glyph);
            if second_half {
                glyph.clear();
            }
            (glyph.chars().next().unwrap_or_default(), glyph, rendition(cell))
        })
    };
    (0..usize::from(size.rows)).map(|number| row(number).collect()).collect()
}

#[track_caller]
fn assert_same(seen: &mut Screen, want: &mut Screen, what: &str) {
    assert_eq!(looks(seen), looks(want), "cells: {what}");
    assert_eq!(seen.mode(), want.mode(), "modes: {what}");
    assert_eq!(seen.margins(), want.margins(), "margins: {what}");
    assert_eq!(seen.pen(), want.pen(), "cursor: {what}");
    assert_eq!(seen.saved_pen(), want.saved_pen(), "saved cursor: {what}");
}

fn blank(dice: &mut Dice) -> Screen {
    Screen::new(Size { rows: 2 + dice.below(6) as u16, cols: 3 + dice.below(11) as u16 })
}

/// What the emulator gets into and no sequence does: in origin mode a cursor outside the margins (it was restored there),
/// and one that hangs elsewhere than behind the last column (a tab backwards leaves it hanging).
fn is_out_of_reach(screen: &mut Screen) -> bool {
    let ((top, bottom), (row, _), last) = (screen.margins(), screen.cursor(), usize::from(screen.size().cols) - 1);
    let outside = screen.mode().contains(TermMode::ORIGIN) && !(top..=bottom).contains(&row);
    outside || [screen.pen(), screen.saved_pen()].iter().any(|pen| pen.input_needs_wrap && pen.point.column.0 != last)
}

#[test]
fn a_picture_in_a_fresh_terminal_is_the_terminal() {
    for seed in 1..=3_000 {
        let mut dice = Dice(seed);
        let mut screen = blank(&mut dice);
        let pieces = dice.below(120) as usize;
        screen.feed(babble(&mut dice, screen.size().rows, pieces, false).as_bytes());
        screen.end_sync();
        if is_out_of_reach(&mut screen) {
            continue;
        }
        let picture = ansi(&mut screen);
        let mut fresh = Screen::new(screen.size());
        fresh.feed(picture.as_bytes());
        assert_same(&mut fresh, &mut screen, &format!("seed {seed}, fresh: {picture:?}"));
        // Whatever the viewer has shown before.
        let mut used = Screen::new(screen.size());
        used.feed(babble(&mut dice, screen.size().rows, 60, false).as_bytes());
        used.end_sync();
        used.feed(b"\x18");
        used.feed(picture.as_bytes());
        assert_same(&mut used, &mut screen, &format!("seed {seed}, used: {picture:?}"));
    }
}

#[test]
fn who_goes_on_from_a_picture_sees_what_the_terminal_shows() {
    for seed in 1..=3_000 {
        let mut dice = Dice(seed);
        let mut screen = blank(&mut dice);
        let pieces = dice.below(60) as usize;
        let before = babble(&mut dice, screen.size().rows, pieces, false);
        let after = babble(&mut dice, screen.size().rows, 40, true);
        let whole = format!("{before}{after}");
        // Anywhere, also inside a sequence.
        let cut = (0..=before.len() - dice.below(before.len() as u64 + 1) as usize).rev();
        let cut = cut.clone().find(|at| whole.is_char_boundary(*at)).unwrap_or(0);
        let after_cut = &whole[cut..];
        screen.feed(whole[..cut].as_bytes());
        screen.end_sync();
        let mut stripper = Stripper::default();
        stripper.push(&whole[..cut], &mut String::new());
        if format!("{}{after_cut}", stripper.unfinished()).contains("\x1b[?1049") || is_out_of_reach(&mut screen) {
            continue;
        }
        let picture = ansi(&mut screen) + stripper.unfinished();
        let mut viewer = Screen::new(screen.size());
        viewer.feed(picture.as_bytes());
        for side in [&mut viewer, &mut screen] {
            side.feed(after_cut.as_bytes());
            side.end_sync();
        }
        assert_same(&mut viewer, &mut screen, &format!("seed {seed}, cut at {cut} of {whole:?}"));
    }
}
