//! Which session of its CLI an agent works in: known from the arguments, chosen here, or left to the CLI.

/// How a family names its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    None,
    Claude,
    Codex,
}

/// What the arguments say about the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This one; nothing has to be added.
    Known(String),
    /// A new one is to be named (claude) or made (codex).
    New,
    /// Left to the CLI, which does not tell.
    Open,
}

impl Sessions {
    /// Reads the arguments that the caller gave.
    pub fn of(self, args: &[String]) -> Choice {
        match self {
            Sessions::None => Choice::Open,
            Sessions::Claude => claude(args),
            Sessions::Codex => codex(args),
        }
    }

    /// The arguments that resume a session, to be put last.
    pub fn resume(self, session: &str) -> Vec<String> {
        match self {
            Sessions::None => Vec::new(),
            Sessions::Claude => vec!["--resume".into(), session.into()],
            Sessions::Codex => vec!["resume".into(), session.into()],
        }
    }
}

/// The value of an argument: what does not look like a flag.
fn value(arg: Option<&String>) -> Option<String> {
    arg.filter(|value| !value.is_empty() && !value.starts_with('-')).cloned()
}

fn claude(args: &[String]) -> Choice {
    for (at, arg) in args.iter().enumerate() {
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_string())),
            None => (arg.as_str(), None),
        };
        let next = || inline.clone().filter(|value| !value.is_empty()).or_else(|| value(args.get(at + 1)));
        match flag {
            "--session-id" | "--resume" | "-r" => return next().map_or(Choice::Open, Choice::Known),
            "--continue" | "-c" => return Choice::Open,
            _ => {}
        }
    }
    Choice::New
}

/// Flags of codex that take a value: the word after them is not a positional one.
const CODEX_VALUE_FLAGS: [&str; 11] = [
    "--model",
    "-m",
    "--profile",
    "--config",
    "-c",
    "--sandbox",
    "-s",
    "--ask-for-approval",
    "--approval-policy",
    "--cd",
    "--cwd",
];

fn codex(args: &[String]) -> Choice {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if CODEX_VALUE_FLAGS.contains(&arg.as_str()) {
            if rest.next().is_none() {
                return Choice::Open;
            }
        } else if matches!(arg.as_str(), "resume" | "fork") {
            return value(rest.next()).map_or(Choice::Open, Choice::Known);
        } else if arg == "--" || !arg.starts_with('-') {
            return Choice::Open;
        }
    }
    Choice::New
}

/// The arguments that also hold for the process that makes a codex thread.
pub fn codex_passthrough(args: &[String]) -> Vec<String> {
    let takes_value = |flag: &str| CODEX_VALUE_FLAGS[2..].contains(&flag);
    let mut kept = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let flag = arg.split_once('=').map_or(arg.as_str(), |(flag, _)| flag);
        if arg == "--" {
            break;
        } else if takes_value(arg) {
            kept.push(arg.clone());
            kept.extend(rest.next().cloned());
        } else if (flag != arg && takes_value(flag))
            || matches!(arg.as_str(), "--dangerously-bypass-approvals-and-sandbox" | "--full-auto")
        {
            kept.push(arg.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn claude_sessions_by_its_arguments() {
        let known = |id: &str| Choice::Known(id.into());
        for (line, choice) in [
            ("", Choice::New),
            ("--verbose x", Choice::New),
            ("--session-id a", known("a")),
            ("--session-id=a", known("a")),
            ("--session-id", Choice::Open),
            ("--session-id --x", Choice::Open),
            ("--resume a", known("a")),
            ("-r a", known("a")),
            ("--resume=a", known("a")),
            ("--resume", Choice::Open),
            ("-r -x", Choice::Open),
            ("--continue", Choice::Open),
            ("-c", Choice::Open),
        ] {
            assert_eq!(Sessions::Claude.of(&args(line)), choice, "{line}");
        }
    }

    #[test]
    fn codex_sessions_by_its_arguments() {
        let known = |id: &str| Choice::Known(id.into());
        for (line, choice) in [
            ("", Choice::New),
            ("--full-auto -m x --config a=b", Choice::New),
            ("resume t", known("t")),
            ("--profile p fork t", known("t")),
            ("resume --last", Choice::Open),
            ("resume", Choice::Open),
            ("exec do", Choice::Open),
            ("--", Choice::Open),
            ("--model", Choice::Open),
        ] {
            assert_eq!(Sessions::Codex.of(&args(line)), choice, "{line}");
        }
        let line = "--full-auto -m x --config a=b --sandbox=ro --verbose -s rw -- --cd /";
        assert_eq!(codex_passthrough(&args(line)), args("--full-auto --config a=b --sandbox=ro -s rw"));
    }
}
