//! Questions that CLIs are known to ask on their own: approvals, trust, model menus. While one is on the screen a typed
//! message would answer it, so nothing is typed and the CLI does not count as ready.

use super::menu;

/// A question on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialog {
    McpApproval,
    BypassPermissions,
    CodexModel,
    ExecuteApproval,
    GeminiAction,
    GeminiUntrusted,
    GeminiTrust,
    ClaudeTrust,
}

/// The first question in the visible text of a screen.
pub fn find(screen: &str) -> Option<Dialog> {
    find_all(screen).first().copied()
}

/// Rows from a question's title to its last choice, at most.
const HEIGHT: usize = 16;

/// The questions in the visible text of a screen. Both halves of each are needed, title and choices, close to each other.
pub fn find_all(screen: &str) -> Vec<Dialog> {
    let mut found = in_text(screen, screen);
    if !found.is_empty() {
        let rows: Vec<&str> = screen.lines().collect();
        found.retain(|dialog| {
            rows.windows(HEIGHT.min(rows.len())).any(|window| in_text(&window.join("\n"), screen).contains(dialog))
        });
    }
    found
}

/// `screen` tells where the cursor's prompt is: at the end of what is shown.
fn in_text(text: &str, screen: &str) -> Vec<Dialog> {
    // Claude's status line says this all the time; it asks nothing.
    let lower = text.to_lowercase().replace("bypass permissions on", "");
    let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let all_low = |parts: &[&str]| parts.iter().all(|part| lower.contains(part));
    let choice = |start: &str| lower.lines().any(|line| menu::row(line).label.starts_with(start));
    let mut rows = screen.lines().rev().map(|line| line.trim_matches(is_frame)).filter(|line| !line.is_empty());
    // A row that asks is none, whatever else it says.
    let is_hint =
        |line: &str| !line.contains(['?', '(']) && HINTS.iter().any(|hint| line.to_lowercase().contains(hint));
    let last = rows.find(|line| !is_hint(line)).unwrap_or_default();
    let last = if text.contains(last) { last.to_lowercase() } else { String::new() };
    let asks = |part: &str| last.contains(part);
    let rules: [(Dialog, bool); 8] = [
        (Dialog::McpApproval, any(MCP_TITLES) && any(&["[a] Approve all servers", "Approve all", "[a]"])),
        (
            Dialog::BypassPermissions,
            (all_low(&["bypass", "permission"]) || all_low(&["dangerously"]))
                && (asks("(yes/no)")
                    || asks("(y/n)")
                    || asks("proceed")
                    || (asks("accept") && asks("risk"))
                    || (choice("yes") && (lower.contains("accept") || lower.contains("proceed")))
                    || (choice("no,") && all_low(&["accept", "exit"]))),
        ),
        (
            Dialog::CodexModel,
            (all_low(&["codex", "upgrade"])
                || all_low(&["codex", "new", "model"])
                || all_low(&["just", "got", "upgrade"]))
                && choice("try")
                && lower.contains("existing"),
        ),
        (
            Dialog::ExecuteApproval,
            text.contains("EXECUTE") && text.contains("impact:") && any(&["Yes, allow", "Yes, and always allow"]),
        ),
        (Dialog::GeminiAction, text.contains("Action Required") && any(&["Allow once", "Allow for this session"])),
        (Dialog::GeminiUntrusted, text.contains("folder is untrusted") && text.contains("/permissions")),
        (
            Dialog::GeminiTrust,
            text.contains("Modify Trust Level") && any(&["Trust this folder", "Trust parent folder"]),
        ),
        (Dialog::ClaudeTrust, all_low(&["trust", "folder", "no,", "exit"]) && choice("yes") && choice("no")),
    ];
    rules.into_iter().filter_map(|(dialog, shown)| shown.then_some(dialog)).collect()
}

/// What a CLI draws below the row in which it asks.
const HINTS: &[&str] = &["enter to ", "esc to ", "ctrl-c to ", "ctrl+c to "];

/// Part of a frame around a question.
fn is_frame(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{2500}'..='\u{257f}' | '|')
}

const MCP_TITLES: &[&str] = &["MCP Server Approval Required", "MCP server approval"];

/// The title of the approval of servers, without its choices: a cut screen. Answered only after it has stood for a while.
pub fn shows_mcp_title(screen: &str) -> bool {
    MCP_TITLES.iter().any(|title| screen.contains(title))
}

impl Dialog {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Dialog::McpApproval => "mcp_approval",
            Dialog::BypassPermissions => "bypass_permissions",
            Dialog::CodexModel => "codex_model",
            Dialog::ExecuteApproval => "execute_approval",
            Dialog::GeminiAction => "gemini_action",
            Dialog::GeminiUntrusted => "gemini_untrusted",
            Dialog::GeminiTrust => "gemini_trust",
            Dialog::ClaudeTrust => "claude_trust",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_is_known_and_half_of_it_is_not() {
        for (screen, dialog) in [
            ("MCP Server Approval Required\n [a] Approve all servers", Dialog::McpApproval),
            ("WARNING: Bypass Permissions mode\n 1. No, exit\n 2. Yes, I accept", Dialog::BypassPermissions),
            ("Codex just got an upgrade\n Try new model\n Use existing model", Dialog::CodexModel),
            ("EXECUTE (rm, impact: high)\n> Yes, allow", Dialog::ExecuteApproval),
            ("Action Required\n 1. Allow once", Dialog::GeminiAction),
            ("This folder is untrusted, see /permissions", Dialog::GeminiUntrusted),
            ("Modify Trust Level\n 1. Trust this folder", Dialog::GeminiTrust),
            ("Do you trust the files in this folder?\n 1. Yes, I trust\n 2. No, exit", Dialog::ClaudeTrust),
        ] {
            assert_eq!(find(screen), Some(dialog), "{screen}");
            let first = screen.lines().next().unwrap_or_default();
            if screen.contains('\n') {
                assert_eq!(find(first), None, "{first}");
            }
        }
        assert_eq!(find("[a] Approve all\n> "), None);
        // Words of a question that are strewn over the screen ask nothing.
        let far = format!("the bypass permissions were dangerously wide (y/n){}> ", "\nsome other text".repeat(3));
        assert_eq!(find(&far), None, "not where input is awaited");
        for (above, below) in [
            ("╭──────╮\n│ ", " │\n╰──────╯\n"),
            ("", "\n  Enter to confirm · Esc to exit\n"),
            ("Enter to proceed. ", "\n\n"),
        ] {
            let framed = format!("WARNING: Bypass Permissions mode\n{above}Do you want to go on? (y/n){below}");
            assert_eq!(find(&framed), Some(Dialog::BypassPermissions), "{framed}");
        }
        let apart = format!("Do you trust the files in this folder?{}1. Yes\n2. No, exit", "\n".repeat(20));
        assert_eq!(find(&apart), None, "far from each other");
        assert_eq!(find("I trust this folder, yes or no, and exit"), None, "no choices");
        let working = "● I accept the risk and proceed, yes.\n❯\n  ⏵⏵ bypass permissions on (shift+tab to cycle)";
        assert_eq!(find(working), None, "a status line is no question");
    }
}
