//! When a CLI takes input: judged from what its terminal shows, after each piece of output; 25 s at the latest.
//!
//! No tick: the screen changes by output only, and output wakes the thread.

use std::path::Path;

use super::dialogs;
use super::menu;
use super::screen::Screen;

/// Stripped output kept for matching until the verdict falls: cut to `KEEP` when it passes `MOST`.
const MOST: usize = 12_000;
const KEEP: usize = 8_000;
/// A CLI without a known prompt is ready after this much output.
const READY_BYTES: u64 = 500;
/// How far a codex prompt may stand from the end of the output, and the server's name from the start of its marker.
const PROMPT_WINDOW: usize = 800;
const MARKER_SPAN: usize = 200;
const AUTH_WINDOW: usize = 2_000;

/// The rule that applies to one CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Claude,
    Gemini,
    /// Codex that starts our MCP server: its prompt counts only after the server's boot line.
    CodexWithServer,
    Codex,
    Other,
}

/// The verdict in the making.
#[derive(Debug)]
pub struct Readiness {
    rule: Rule,
    stripped: String,
    bytes: u64,
    marked: bool,
}

impl Readiness {
    /// The rule follows from words in the path of the program: directories count.
    pub fn new(program: &Path, args: &[String]) -> Readiness {
        let path = program.to_string_lossy().to_lowercase();
        let is_codex = program.file_name().is_some_and(|name| name.eq_ignore_ascii_case("codex"));
        let has_server =
            |arg: &String| arg.contains("mcp_servers.agent-relay") || arg.contains("mcp_servers.relaycast");
        let rule = if path.contains("claude") {
            Rule::Claude
        } else if path.contains("gemini") {
            Rule::Gemini
        } else if is_codex && args.iter().any(has_server) {
            Rule::CodexWithServer
        } else if path.contains("codex") {
            Rule::Codex
        } else {
            Rule::Other
        };
        Readiness { rule, stripped: String::new(), bytes: 0, marked: false }
    }

    /// Claude, codex and gemini swallow what is typed while they boot, and show reliably when they have: their messages
    /// wait for the verdict. All others take messages at any time.
    pub fn knows_its_prompt(&self) -> bool {
        self.rule != Rule::Other
    }

    /// New output: its stripped text and its length in raw bytes.
    pub fn push(&mut self, stripped: &str, bytes: usize) {
        self.bytes += bytes as u64;
        // The mark may be cut by the end of a piece: look once more at what it can overlap.
        const MARK: &str = "->pty:ready";
        let from = floor(&self.stripped, self.stripped.len().saturating_sub(MARK.len()));
        self.stripped.push_str(stripped);
        self.marked |= self.stripped[from..].contains(MARK);
        if self.stripped.len() > MOST {
            let cut = floor(&self.stripped, self.stripped.len() - KEEP);
            self.stripped.drain(..cut);
        }
    }

    /// Whether the screen shows that the CLI takes input now.
    ///
    /// `text`: that of the screen, which its callers have at hand.
    pub fn verdict(&self, screen: &Screen, text: &str) -> bool {
        if self.marked {
            return true;
        }
        if dialogs::find(text).is_some() || menu::is_open(text) {
            return false;
        }
        match self.rule {
            Rule::Claude => (text.contains("Welcome back") || text.contains("Welcome to ")) && at_prompt(screen),
            Rule::Gemini => {
                let waits = |text: &str| text.to_lowercase().contains("waiting for auth");
                text.contains("Type your message or @path/to/file")
                    && !waits(text)
                    && !waits(tail(&self.stripped, AUTH_WINDOW))
            }
            Rule::CodexWithServer => {
                self.after_boot().is_some_and(codex_prompt)
                    && ["codex> ", "›", "❯", "> "].iter().any(|p| text.contains(p))
            }
            Rule::Codex => self.bytes > READY_BYTES || text.contains("codex> ") || prompt(text),
            Rule::Other => self.bytes > READY_BYTES || prompt(text),
        }
    }

    /// Whether everything but a greeting says so: the CLI reads key by key, takes pastes, and its prompt is under the cursor.
    /// Counts once it has been quiet for a while; the words of a greeting are no contract (R1).
    pub fn almost(&self, screen: &Screen, text: &str, key_by_key: bool) -> bool {
        self.rule == Rule::Claude
            && key_by_key
            && screen.takes_bracketed_paste()
            && at_prompt(screen)
            && dialogs::find(text).is_none()
            && !menu::is_open(text)
    }

    /// The output after the line in which codex starts our server.
    fn after_boot(&self) -> Option<&str> {
        // Lower-casing ASCII only keeps every byte position.
        let lower = self.stripped.to_ascii_lowercase();
        let named = ["agent-relay", "relaycast"];
        let booting = named.iter().filter_map(|name| {
            let marker = format!("booting mcp server: {name}");
            lower.rfind(&marker).map(|at| at + marker.len())
        });
        let starting = lower.rmatch_indices("starting mcp server").filter_map(|(at, marker)| {
            let from = at + marker.len();
            let span = &lower[from..floor(&lower, (from + MARKER_SPAN).min(lower.len()))];
            named.iter().filter_map(|name| span.find(name).map(|offset| from + offset + name.len())).min()
        });
        let end = booting.chain(starting).max()?;
        Some(&self.stripped[end..])
    }
}

/// The cursor's row holds claude's prompt and nothing else.
fn at_prompt(screen: &Screen) -> bool {
    let (row, _) = screen.cursor();
    matches!(screen.row(row).trim(), "❯" | ">")
}

/// A codex prompt near the end of `output`, or alone on one of its last six lines.
fn codex_prompt(output: &str) -> bool {
    let near = tail(output, PROMPT_WINDOW);
    ["codex> ", "›", "❯"].iter().any(|glyph| near.contains(glyph))
        || near.lines().rev().take(6).any(|line| matches!(line.trim(), ">" | "codex>"))
}

fn prompt(screen: &str) -> bool {
    ["> ", "$ ", ">>> ", "›", "❯"].iter().any(|prompt| screen.contains(prompt))
}

fn tail(text: &str, bytes: usize) -> &str {
    &text[floor(text, text.len().saturating_sub(bytes))..]
}

/// The last character boundary at or before `at`.
fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::super::ansi::Stripper;
    use super::super::screen::Size;
    use super::*;

    fn verdict(program: &str, args: &[&str], outputs: &[&str]) -> bool {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let mut readiness = Readiness::new(Path::new(program), &args);
        let (mut screen, mut stripper) = (Screen::new(Size { rows: 24, cols: 80 }), Stripper::default());
        for output in outputs {
            let mut stripped = String::new();
            stripper.push(output, &mut stripped);
            screen.feed(output.as_bytes());
            readiness.push(&stripped, output.len());
        }
        readiness.verdict(&screen, &screen.text())
    }

    #[test]
    fn the_ready_mark_counts_for_everyone_even_cut_in_two() {
        assert!(verdict("/bin/claude", &[], &["x ->pty:\x1b[1mready"]));
        assert!(verdict("/bin/x", &[], &["->pty:r", "eady"]));
    }

    #[test]
    fn claude_needs_its_greeting_and_a_prompt_under_the_cursor() {
        let long = "x".repeat(900);
        assert!(verdict("/opt/claude/bin/run", &[], &["Welcome back!\r\n\r\n❯ "]));
        assert!(verdict("/bin/claude", &[], &["Welcome to Claude\r\n> "]));
        assert!(!verdict("/bin/claude", &[], &["❯ "]));
        assert!(!verdict("/bin/claude", &[], &["Welcome back!\r\n❯ 1. Yes"]));
        assert!(!verdict("/bin/claude", &[], &["Welcome back!\r\n", &long]));
    }

    #[test]
    fn gemini_waits_for_its_login() {
        let prompt = "> Type your message or @path/to/file";
        assert!(verdict("/bin/gemini", &[], &[prompt]));
        assert!(!verdict("/bin/gemini", &[], &["Waiting for Auth...\r\n", prompt]));
        assert!(!verdict("/bin/gemini", &[], &["WAITING FOR AUTH\x1b[2J\x1b[H", prompt]));
    }

    #[test]
    fn codex_with_our_server_needs_its_boot_line_first() {
        let args = ["--config", "mcp_servers.agent-relay.command=\"npx\""];
        let boot = "Booting MCP server: agent-relay\r\n";
        assert!(!verdict("/bin/codex", &args, &["› type here"]));
        assert!(verdict("/bin/codex", &args, &[boot, "› type here"]));
        assert!(!verdict("/bin/codex", &args, &["› type here\r\n", boot]));
        assert!(verdict("/bin/codex", &args, &["Starting MCP servers (0/1): relaycast\r\n", "❯ "]));
        assert!(!verdict("/bin/codex", &args, &["Starting MCP servers (0/1): other\r\n", "❯ "]));
        assert!(verdict("/bin/codex", &[], &["codex> "]));
    }

    #[test]
    fn others_need_a_prompt_or_500_bytes() {
        assert!(!verdict("/bin/sh", &[], &["starting"]));
        assert!(verdict("/bin/sh", &[], &["$ "]), "d5: the blank left of the cursor is part of the prompt");
        assert!(verdict("/bin/sh", &[], &[">>> "]));
        assert!(verdict("/bin/sh", &[], &[&"x".repeat(501)]));
        assert!(!verdict("/bin/sh", &[], &[&"x".repeat(500)]));
    }

    #[test]
    fn d6_a_menu_is_no_prompt() {
        for program in ["/bin/codex", "/bin/aider", "/bin/claude"] {
            assert!(!verdict(program, &[], &["Pick one:\r\n> 1. Red\r\n  2. Blue\r\n"]), "{program}");
            assert!(!verdict(program, &[], &[&"x".repeat(600), "\r\n❯ 1. Red\r\n  2. Blue\r\n"]), "{program}");
        }
        assert!(verdict("/bin/aider", &[], &["1. Red\r\n2. Blue\r\n> "]));
    }

    #[test]
    fn r1_no_greeting_is_necessary() {
        let almost = |output: &str, key_by_key| {
            let readiness = Readiness::new(Path::new("/bin/claude"), &[]);
            let mut screen = Screen::new(Size { rows: 24, cols: 80 });
            screen.feed(output.as_bytes());
            readiness.almost(&screen, &screen.text(), key_by_key)
        };
        assert!(almost("\x1b[?2004hHello, stranger\r\n❯ ", true));
        assert!(!almost("\x1b[?2004hHello, stranger\r\n❯ ", false), "line mode");
        assert!(!almost("Hello, stranger\r\n❯ ", true), "no pastes");
        assert!(!almost("\x1b[?2004h❯ \r\nstill loading", true), "the cursor is elsewhere");
    }

    #[test]
    fn d6_a_question_on_the_screen_is_not_ready() {
        let question = "Do you trust this folder?\r\n> 1. Yes, I trust it\r\n  2. No, exit\r\n";
        assert!(!verdict("/bin/sh", &[], &[question]));
        assert!(verdict("/bin/sh", &[], &[question, "\x1b[2J\x1b[H> "]));
    }
}
