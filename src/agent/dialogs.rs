//! Questions that CLIs are known to ask on their own: approvals, trust, model menus. While one is on the screen a typed
//! message would answer it, so nothing is typed and the CLI does not count as ready.

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

/// The questions in the visible text of a screen. Both halves of each are needed: title and choices.
pub fn find_all(screen: &str) -> Vec<Dialog> {
    // Claude's status line says this all the time; it asks nothing.
    let lower = screen.to_lowercase().replace("bypass permissions on", "");
    let any = |parts: &[&str]| parts.iter().any(|part| screen.contains(part));
    let all_low = |parts: &[&str]| parts.iter().all(|part| lower.contains(part));
    let rules: [(Dialog, bool); 8] = [
        (
            Dialog::McpApproval,
            any(&["MCP Server Approval Required", "MCP server approval"])
                && any(&["[a] Approve all servers", "Approve all", "[a]"]),
        ),
        (
            Dialog::BypassPermissions,
            (all_low(&["bypass", "permission"]) || all_low(&["dangerously"]))
                && (lower.contains("(yes/no)")
                    || lower.contains("(y/n)")
                    || all_low(&["proceed", "yes"])
                    || all_low(&["accept", "risk"])
                    || all_low(&["accept", "no,", "exit"])),
        ),
        (
            Dialog::CodexModel,
            (all_low(&["codex", "upgrade"])
                || all_low(&["codex", "new", "model"])
                || all_low(&["just", "got", "upgrade"]))
                && all_low(&["try", "existing"]),
        ),
        (
            Dialog::ExecuteApproval,
            screen.contains("EXECUTE") && screen.contains("impact:") && any(&["Yes, allow", "Yes, and always allow"]),
        ),
        (Dialog::GeminiAction, screen.contains("Action Required") && any(&["Allow once", "Allow for this session"])),
        (Dialog::GeminiUntrusted, screen.contains("folder is untrusted") && screen.contains("/permissions")),
        (
            Dialog::GeminiTrust,
            screen.contains("Modify Trust Level") && any(&["Trust this folder", "Trust parent folder"]),
        ),
        (Dialog::ClaudeTrust, all_low(&["trust", "folder"]) && all_low(&["yes", "trust", "no,", "exit"])),
    ];
    rules.into_iter().filter_map(|(dialog, shown)| shown.then_some(dialog)).collect()
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
        let working = "● I accept the risk and proceed, yes.\n❯\n  ⏵⏵ bypass permissions on (shift+tab to cycle)";
        assert_eq!(find(working), None, "a status line is no question");
    }
}
