//! Names that come from outside and end up in file names, threads and terminals.

/// What is wrong with an agent's name, if anything, with the remedy.
pub fn agent_name_fault(name: &str) -> Option<String> {
    if name.trim().is_empty() {
        return Some("the agent's name is blank; give it one".into());
    }
    if name.chars().any(char::is_control) {
        return Some("the agent's name holds a control character; remove it".into());
    }
    if name.contains(['/', '\\']) || name == "." || name == ".." {
        return Some(format!("agent name '{name}' cannot be used: it must not hold '/' or '\\' nor be '.' or '..'"));
    }
    if name.len() > 255 {
        return Some("the agent's name is longer than 255 bytes; shorten it".into());
    }
    None
}

/// The file name of an executable, lower case: by it CLIs are told apart.
pub fn program_name(executable: &str) -> String {
    executable.rsplit(['/', '\\']).next().unwrap_or_default().to_lowercase()
}

/// The words of a command line; one that is ill quoted is one word.
pub fn command_words(cli: &str) -> Vec<String> {
    let cli = cli.trim();
    shell_words::split(cli).ok().filter(|words| !words.is_empty()).unwrap_or_else(|| vec![cli.to_string()])
}

/// The name of a command line's executable.
pub fn family_name(cli: &str) -> String {
    program_name(&command_words(cli)[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_paths_are_refused() {
        for bad in ["", "  ", "a/b", "a\\b", ".", "..", "a\u{7}b", "a\0"] {
            assert!(agent_name_fault(bad).is_some(), "{bad:?}");
        }
        for good in ["alice", "a b", "böker", "a.b", "-x", "...a"] {
            assert_eq!(agent_name_fault(good), None, "{good:?}");
        }
    }
}
