//! `wrap`: a program in the user's own terminal, as an agent of the workspace.

use super::Failure;
use crate::daemon::{self, Wrapped};

pub const HELP: &str = "\
Run a program in this terminal as an agent: messages for it are typed while you work with it

Usage: agent-relay-broker wrap <CLI> [ARGS]...

Everything behind CLI goes to the program, but for a first `--`. It ends with the program's exit code, with 128 and the
number of the signal that ended the program or this command, or with 1 when the program was not started.

Options:
  -h, --help  Print help (in front of CLI)

Environment: RELAY_AGENT_NAME, RELAY_AGENT_TOKEN, RELAY_CHANNELS, RELAY_SKIP_PROMPT, RELAY_STRICT_AGENT_NAME, and where
to find the workspace as for init
";

fn read(mut parser: lexopt::Parser) -> Result<Wrapped, Failure> {
    use lexopt::prelude::*;
    let cli = match parser.next()? {
        Some(Value(cli)) => cli.string()?,
        Some(other) => return Err(other.unexpected().into()),
        None => return Err(Failure::Usage("the following required arguments were not provided: <CLI>".into())),
    };
    let mut args = Vec::new();
    for (at, arg) in parser.raw_args()?.enumerate() {
        if at > 0 || arg != "--" {
            args.push(arg.string()?);
        }
    }
    Ok(Wrapped { cli, args })
}

/// # Errors
/// A wrong command line; what kept the program from being started; its own exit code, unless that is 0.
pub fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    match daemon::wrap(read(parser)?)? {
        0 => Ok(()),
        code => Err(Failure::Ended(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_behind_the_program_is_the_programs() {
        for (line, cli, args) in [
            (&["claude"][..], "claude", &[][..]),
            (&["claude", "--help", "-x"], "claude", &["--help", "-x"]),
            (&["claude", "--", "-x", "--", "y"], "claude", &["-x", "--", "y"]),
            (&["--", "claude", "x"], "claude", &["x"]),
        ] {
            let parser = lexopt::Parser::from_args(line);
            let wrapped = read(parser).expect("a command line");
            assert_eq!(
                (&*wrapped.cli, wrapped.args),
                (cli, args.iter().map(|arg| arg.to_string()).collect()),
                "{line:?}"
            );
        }
        for line in [&[][..], &["--local", "claude"], &["-x"]] {
            assert!(matches!(read(lexopt::Parser::from_args(line)), Err(Failure::Usage(_))), "{line:?}");
        }
    }
}
