//! What CLIs print, and what is to be made of it: the recordings in `fixtures/terminals`, fed in pieces of several sizes
//! through the parts that look at a terminal. The format is described there.

use std::fmt::Write as _;
use std::path::Path;

use super::super::ansi::Stripper;
use super::super::context::ContextScan;
use super::super::decoder::Decoder;
use super::super::desk::{SuggestionScan, unsubmitted};
use super::super::lines::ExitLine;
use super::super::readiness::Readiness;
use super::super::responder::Responder;
use super::super::screen::{Screen, Size};
use super::*;

/// Sizes of the pieces in which output arrives; the last is all at once.
const PIECES: [usize; 6] = [1, 2, 3, 7, 61, usize::MAX];

/// What looks at a terminal, at a time of its own.
struct Watch {
    screen: Screen,
    readiness: Readiness,
    responder: Responder,
    decoder: Decoder,
    stripper: Stripper,
    suggestion: SuggestionScan,
    suggests: bool,
    context: ContextScan,
    left: Option<u8>,
    exit_line: ExitLine,
    exit: bool,
    /// A message may still be on its way to the screen.
    typing: bool,
    now: Instant,
    keys: Vec<u8>,
    answers: Vec<u8>,
}

impl Watch {
    fn new(program: &str, args: &[String], size: Size) -> Watch {
        Watch {
            screen: Screen::new(size),
            readiness: Readiness::new(Path::new(program), args),
            responder: Responder::default(),
            decoder: Decoder::default(),
            stripper: Stripper::default(),
            suggestion: SuggestionScan::default(),
            suggests: false,
            context: ContextScan::default(),
            left: None,
            exit_line: ExitLine::default(),
            exit: false,
            typing: false,
            now: Instant::now(),
            keys: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// As the pump does with what it reads.
    fn show(&mut self, bytes: &[u8]) {
        let (mut text, mut stripped) = (String::new(), String::new());
        self.decoder.push(bytes, &mut text);
        self.stripper.push(&text, &mut stripped);
        self.screen.feed(bytes);
        self.answers.extend(self.screen.take_answers().into_iter().flatten());
        let visible = stripped.chars().any(|c| !c.is_whitespace());
        self.suggests = self.suggestion.push(bytes, visible, self.now).unwrap_or(self.suggests);
        self.readiness.push(&stripped, bytes.len());
        self.left = self.context.push(&stripped).or(self.left);
        self.exit |= self.exit_line.push(&stripped, self.now);
        self.look();
    }

    fn look(&mut self) {
        self.responder.look(&self.screen.text(), self.typing, self.now);
    }

    /// Time passes without output; what is due is pressed.
    fn wait(&mut self, time: Duration) {
        self.typing = false;
        let end = self.now + time;
        while let Some(at) = self.responder.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            while let Some(keys) = self.responder.next_keys(self.now) {
                self.keys.extend(keys);
            }
            self.look();
        }
        self.now = end;
        self.exit |= self.exit_line.tick(self.now, Timing::default().exit_line_quiet);
    }
}

/// `\e \r \n \t \\` and `\xHH`.
fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (kind, more) = rest.split_first().expect("something behind a backslash");
        rest = more;
        bytes.push(match kind {
            b'e' => 0x1b,
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'\\' => b'\\',
            b'x' => {
                let (digits, more) = rest.split_at(2);
                rest = more;
                u8::from_str_radix(std::str::from_utf8(digits).expect("digits"), 16).expect("two digits")
            }
            other => panic!("unknown escape {:?}", char::from(*other)),
        });
    }
    bytes
}

fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        match byte {
            0x1b => out.push_str("\\e"),
            b'\r' => out.push_str("\\r"),
            b'\n' => out.push_str("\\n"),
            b'\\' => out.push_str("\\\\"),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => write!(out, "\\x{byte:02x}").expect("a string"),
        }
        out
    })
}

fn yes(said: bool) -> String {
    if said { "yes" } else { "no" }.into()
}

/// Plays a recording in pieces of `piece` bytes. How often something was checked.
fn play(recording: &str, piece: usize) -> Result<u32, String> {
    let (mut program, mut args, mut size) = (String::new(), Vec::new(), Size { rows: 24, cols: 80 });
    let (mut watch, mut row, mut checks, mut key_by_key) = (None::<Watch>, 0, 0, false);
    for (number, line) in recording.lines().enumerate() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" => continue,
            "raw" => key_by_key = true,
            _ if word.starts_with('#') => continue,
            "program" => program = rest.into(),
            "arg" => args.push(rest.to_string()),
            "size" => {
                let (rows, cols) = rest.split_once('x').ok_or("a size is ROWSxCOLS")?;
                let read = |text: &str| text.parse().map_err(|_| "a size is ROWSxCOLS");
                size = Size { rows: read(rows)?, cols: read(cols)? };
            }
            _ => {
                let watch = watch.get_or_insert_with(|| Watch::new(&program, &args, size));
                let seen = match word {
                    "out" => {
                        unescape(rest).chunks(piece).for_each(|bytes| watch.show(bytes));
                        continue;
                    }
                    "typed" => {
                        watch.responder.quote(&String::from_utf8_lossy(&unescape(rest)));
                        watch.typing = true;
                        continue;
                    }
                    "wait" => {
                        watch.wait(Duration::from_millis(rest.parse().map_err(|_| "wait is in milliseconds")?));
                        continue;
                    }
                    "screen" => {
                        row = 0;
                        continue;
                    }
                    "end" => (row..size.rows.into()).map(|row| watch.screen.row(row)).collect(),
                    _ if word.starts_with('|') => {
                        row += 1;
                        format!("|{}", watch.screen.row(row - 1))
                    }
                    "cursor" => format!("{},{}", watch.screen.cursor().0, watch.screen.cursor().1),
                    "ready" => yes(watch.readiness.verdict(&watch.screen, &watch.screen.text())),
                    "settled" => yes(watch.readiness.almost(&watch.screen, &watch.screen.text(), key_by_key)),
                    "asked" => {
                        let asked = watch.responder.asked(&watch.screen.text(), watch.now);
                        asked.map_or("none", |dialog| dialog.name()).into()
                    }
                    "keys" => escape(&std::mem::take(&mut watch.keys)),
                    "answers" => escape(&std::mem::take(&mut watch.answers)),
                    "suggestion" => yes(watch.suggests),
                    "paste" => yes(watch.screen.takes_bracketed_paste()),
                    "context" => watch.left.map_or("none".into(), |left| left.to_string()),
                    "exit" => yes(watch.exit),
                    "unsubmitted" => yes(unsubmitted(&watch.screen, "[m_1]:hellothere")),
                    _ => return Err(format!("line {}: unknown word {word:?}", number + 1)),
                };
                checks += 1;
                // A row keeps what follows its bar.
                let expected = if word.starts_with('|') { line } else { rest };
                if seen != expected {
                    let text = watch.screen.text();
                    let shown = text.trim_end();
                    let line = number + 1;
                    return Err(format!("line {line}: {word}\nexpected {expected:?}\n    seen {seen:?} on\n{shown}"));
                }
            }
        }
    }
    Ok(checks)
}

#[test]
fn recordings_of_terminals_are_understood_in_pieces_of_every_size() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/terminals");
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(directory).expect("recordings").map(|entry| entry.expect("an entry").path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "rec"));
    names.sort();
    let mut faults = Vec::new();
    for path in &names {
        let recording = std::fs::read_to_string(path).expect("a recording");
        for piece in &PIECES {
            let fault = match play(&recording, *piece) {
                Ok(0) => "checks nothing".to_string(),
                Ok(_) => continue,
                Err(fault) => fault,
            };
            faults.push(format!("{} in pieces of {piece}: {fault}", path.display()));
            break;
        }
    }
    assert!(names.len() >= 20, "recordings are missing: {names:?}");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn a_recording_that_expects_something_else_fails() {
    for (recording, said) in [
        ("program /bin/x\nout hello\nscreen\n|hell", "line 4"),
        ("out hello\nscreen\n|hello\nend\nout \\nworld\nend", "line 6"),
        ("out $ \nready no", "line 2"),
        ("out a\ncolour red", "unknown word"),
    ] {
        let fault = play(recording, 1).expect_err(recording);
        assert!(fault.contains(said), "{fault}");
    }
}

#[test]
fn r3_what_is_not_on_the_visible_grid_is_not_there() {
    let question = r"\e[2J\e[HDo you trust the files in this folder?\r\n❯ 1. Yes, proceed\r\n  2. No, exit\r\n";
    let play = |after: &str, then: &str| {
        let recording =
            format!("program /usr/local/bin/claude\nout {question}\nasked claude_trust\nout {after}\n{then}\n");
        for piece in PIECES {
            play(&recording, piece).unwrap_or_else(|error| panic!("{after} in pieces of {piece}: {error}"));
        }
    };
    let gone = "asked none\nwait 5000\nkeys";
    play(&r"and on it goes\r\n".repeat(30), gone);
    play(r"\e[2J", gone);
    play(r"\e[?1049h\e[Hsomething else", gone);
    // Twins: still to be seen, and to be seen again.
    let open = "asked claude_trust\nwait 5000\nkeys \\r";
    play(&r"and on it goes\r\n".repeat(19), open);
    play(r"\e[?1049h\e[Hsomething else\e[?1049l", open);
    // Nor does a greeting above the grid make a CLI ready.
    let away = r"\r\n".repeat(30);
    for (after, verdict) in [("", "yes"), (away.as_str(), "no")] {
        let recording =
            format!("program /usr/local/bin/claude\nout Welcome to Claude Code\\r\\n{after}> \nready {verdict}\n");
        super::recordings::play(&recording, usize::MAX).unwrap_or_else(|error| panic!("{verdict}: {error}"));
    }
}
