//! The families of CLIs and how each is started: one row per family. What a family needs beyond a row (configuration
//! files for its MCP server, say) belongs in [`arguments`], between the model and the caller's own arguments.

/// What the broker knows about one family of CLIs.
#[derive(Debug)]
pub struct Harness {
    pub family: Family,
    /// File names of the executable, lower case.
    names: &'static [&'static str],
    /// The flags that stop the CLI from asking for permissions, always added unless present.
    bypass: &'static [&'static str],
    /// Arguments that say the same as the bypass flags.
    bypassed_by: &'static [Present],
    /// How a known session is resumed.
    resume: Resume,
    /// Window in which the echo of a message is expected, seconds.
    pub echo_window_secs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Claude,
    Codex,
    Gemini,
    Droid,
    Opencode,
    Grok,
    Cursor,
    Other,
}

#[derive(Debug)]
enum Present {
    Is(&'static str),
    Contains(&'static str),
}

#[derive(Debug)]
enum Resume {
    None,
    /// `--resume ID`, unless one of the flags already says which session.
    Flag,
    /// `resume ID` as the last words.
    Words,
}

const PLAIN: Harness = Harness {
    family: Family::Other,
    names: &[],
    bypass: &[],
    bypassed_by: &[],
    resume: Resume::None,
    echo_window_secs: 5,
};

static OTHER: Harness = PLAIN;

static HARNESSES: &[Harness] = &[
    Harness {
        family: Family::Claude,
        names: &["claude"],
        bypass: &["--dangerously-skip-permissions"],
        bypassed_by: &[Present::Contains("dangerously-skip-permissions")],
        resume: Resume::Flag,
        ..PLAIN
    },
    Harness {
        family: Family::Codex,
        names: &["codex"],
        bypass: &["--dangerously-bypass-approvals-and-sandbox"],
        bypassed_by: &[Present::Contains("dangerously-bypass"), Present::Contains("full-auto")],
        resume: Resume::Words,
        ..PLAIN
    },
    Harness {
        family: Family::Gemini,
        names: &["gemini"],
        bypass: &["--yolo"],
        bypassed_by: &[Present::Is("--yolo"), Present::Is("-y")],
        ..PLAIN
    },
    Harness {
        family: Family::Grok,
        names: &["grok"],
        bypass: &["--always-approve"],
        bypassed_by: &[Present::Is("--always-approve")],
        ..PLAIN
    },
    Harness { family: Family::Droid, names: &["droid"], echo_window_secs: 3, ..PLAIN },
    Harness { family: Family::Opencode, names: &["opencode"], ..PLAIN },
    Harness { family: Family::Cursor, names: &["cursor-agent", "agent", "cursor"], ..PLAIN },
];

/// Flags of cursor, put first in this order, each only when absent.
const CURSOR_FLAGS: [&str; 2] = ["--force", "--approve-mcps"];

/// The family of an executable, by its file name: `/usr/bin/claude` is claude, `claude:opus` too.
pub fn of_executable(executable: &str) -> &'static Harness {
    let name = executable.rsplit(['/', '\\']).next().unwrap_or_default().to_lowercase();
    let name = if name.starts_with("claude:") { "claude" } else { name.as_str() };
    HARNESSES.iter().find(|harness| harness.names.contains(&name)).unwrap_or(&OTHER)
}

/// The executable to look for, and the inline words that stay: `cursor` is the editor, its agent is `cursor-agent`.
pub fn rename(executable: String, mut inline: Vec<String>) -> (String, Vec<String>) {
    if executable.eq_ignore_ascii_case("cursor") {
        if inline.first().is_some_and(|word| word == "agent") {
            inline.remove(0);
        }
        return ("cursor-agent".into(), inline);
    }
    (executable, inline)
}

/// The arguments of the CLI: bypass flags, `--model M`, then what the caller gave (inline words first), then the session.
pub fn arguments(
    harness: &Harness,
    inline: Vec<String>,
    args: &[String],
    model: Option<&str>,
    session: Option<&str>,
) -> Vec<String> {
    let given: Vec<String> = inline.into_iter().chain(args.iter().cloned()).collect();
    let mut argv = Vec::with_capacity(given.len() + 6);
    if harness.family == Family::Cursor {
        argv.extend(CURSOR_FLAGS.iter().filter(|flag| !given.iter().any(|arg| arg == *flag)).map(|f| f.to_string()));
    }
    if !given.iter().any(|arg| harness.bypassed_by.iter().any(|present| present.matches(arg))) {
        argv.extend(harness.bypass.iter().map(|flag| flag.to_string()));
    }
    let model = model.map(str::trim).filter(|model| !model.is_empty());
    if let Some(model) = model
        && !given.iter().any(|arg| names_a_model(arg))
    {
        argv.extend(["--model".to_string(), model.to_string()]);
    }
    let resume = session.map(str::trim).filter(|session| !session.is_empty());
    let resume = resume.and_then(|session| resume_words(harness, &given, session));
    argv.extend(given);
    argv.extend(resume.into_iter().flatten());
    argv
}

fn names_a_model(arg: &str) -> bool {
    matches!(arg, "--model" | "-m") || arg.starts_with("--model=") || arg.starts_with("-m=")
}

fn resume_words(harness: &Harness, given: &[String], session: &str) -> Option<[String; 2]> {
    let chosen = |flags: &[&str]| {
        given.iter().any(|arg| flags.iter().any(|flag| arg == flag || arg.starts_with(&format!("{flag}="))))
    };
    match harness.resume {
        Resume::None => None,
        Resume::Flag if chosen(&["--resume", "-r", "--continue", "-c", "--session-id"]) => None,
        Resume::Flag => Some(["--resume".into(), session.into()]),
        Resume::Words if chosen(&["resume", "fork", "exec"]) => None,
        Resume::Words => Some(["resume".into(), session.into()]),
    }
}

impl Present {
    fn matches(&self, arg: &str) -> bool {
        match self {
            Present::Is(flag) => arg == *flag,
            Present::Contains(part) => arg.contains(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(cli: &str, args: &[&str], model: Option<&str>, session: Option<&str>) -> Vec<String> {
        let mut words = shell_words::split(cli).expect("words");
        let (executable, inline) = rename(words.remove(0), words);
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        arguments(of_executable(&executable), inline, &args, model, session)
    }

    #[test]
    fn bypass_flags_are_added_once() {
        assert_eq!(argv("claude", &[], None, None), ["--dangerously-skip-permissions"]);
        assert_eq!(argv("claude", &["--dangerously-skip-permissions"], None, None), ["--dangerously-skip-permissions"]);
        assert_eq!(argv("codex --full-auto", &["x"], None, None), ["--full-auto", "x"]);
        assert_eq!(argv("gemini", &["-y"], None, None), ["-y"]);
        assert_eq!(argv("grok", &[], None, None), ["--always-approve"]);
        assert_eq!(argv("cat", &["-u"], None, None), ["-u"]);
    }

    #[test]
    fn the_model_stands_before_the_callers_arguments() {
        assert_eq!(
            argv("claude --verbose", &["--foo"], Some(" sonnet "), None),
            ["--dangerously-skip-permissions", "--model", "sonnet", "--verbose", "--foo"]
        );
        assert_eq!(argv("goose", &["--model=x"], Some("m"), None), ["--model=x"]);
        assert_eq!(argv("goose", &[], Some("  "), None), Vec::<String>::new());
    }

    #[test]
    fn cursor_is_renamed_and_gets_its_flags_once() {
        let words = vec!["agent".to_string(), "x".to_string()];
        assert_eq!(rename("cursor".into(), words), ("cursor-agent".into(), vec!["x".into()]));
        assert_eq!(argv("cursor agent x", &["--force"], None, None), ["--approve-mcps", "x", "--force"]);
        assert_eq!(argv("/opt/agent", &[], None, None), ["--force", "--approve-mcps"]);
    }

    #[test]
    fn sessions_are_resumed_the_way_of_the_family() {
        let codex = argv("codex", &["--profile", "p"], None, Some("thr"));
        assert_eq!(codex[codex.len() - 2..], ["resume", "thr"]);
        assert_eq!(argv("codex resume a", &[], None, Some("thr")).iter().filter(|word| *word == "resume").count(), 1);
        assert!(argv("claude", &[], None, Some("s1")).ends_with(&["--resume".into(), "s1".into()]));
        assert!(!argv("claude", &["-c"], None, Some("s1")).contains(&"--resume".to_string()));
        assert_eq!(argv("cat", &[], None, Some("s1")), Vec::<String>::new());
    }
}
