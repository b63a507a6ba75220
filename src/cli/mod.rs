//! The command line: which subcommand, its exit code, and how errors look. One file per subcommand.
//!
//! Exit codes: 0 done, 1 the subcommand failed (`Error: …` on stderr), 2 usage; `wrap` has that of its program.

mod app_server;
mod bare_worker;
mod demo;
mod dump_pty;
mod engine;
mod headless;
mod init;
mod mcp_args;
mod pty;
mod swarm;
mod worker;
mod wrap;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::daemon::Fatal;
use crate::sys::redact::redact;

/// What a subcommand ends with when it does not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong: message on stderr, exit 2.
    Usage(String),
    /// `Error: …` and its causes on stderr, exit 1.
    Fatal(Fatal),
    /// What was run for the user has ended with this code, which is ours too.
    Ended(u8),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Failure {
        Failure::Usage(error.to_string())
    }
}

impl From<Fatal> for Failure {
    fn from(fatal: Fatal) -> Failure {
        Failure::Fatal(fatal)
    }
}

type Run = fn(lexopt::Parser) -> Result<(), Failure>;

struct Subcommand {
    name: &'static str,
    about: &'static str,
    help: &'static str,
    run: Run,
}

const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand { name: "init", about: "Run the broker", help: init::HELP, run: init::run },
    Subcommand {
        name: "mcp-args",
        about: "Print how a harness is told of the relay's MCP server",
        help: mcp_args::HELP,
        run: mcp_args::run,
    },
    Subcommand { name: "dump-pty", about: "Print the screen of an agent", help: dump_pty::HELP, run: dump_pty::run },
    Subcommand { name: "swarm", about: "List the patterns of a swarm", help: swarm::HELP, run: swarm::run },
    Subcommand {
        name: "pty",
        about: "Run one program in a terminal, for a caller that speaks frames",
        help: pty::HELP,
        run: pty::run,
    },
    Subcommand {
        name: "headless",
        about: "Run a provider once without a terminal, for a caller that speaks frames",
        help: headless::HELP,
        run: headless::run,
    },
    Subcommand {
        name: "app-server",
        about: "Hand messages to a session of a running server, for a caller that speaks frames",
        help: app_server::HELP,
        run: app_server::run,
    },
    Subcommand { name: "wrap", about: "Run a program in this terminal as an agent", help: wrap::HELP, run: wrap::run },
    Subcommand { name: "engine", about: "Run the embedded engine by itself", help: engine::HELP, run: engine::run },
    Subcommand { name: "demo", about: "Show two agents talking", help: demo::HELP, run: demo::run },
];

fn overview() -> String {
    let mut text = String::from(
        "Keeps coding-agent CLIs alive in terminals and delivers messages between them\n\nUsage: agent-relay-broker <COMMAND>\n\nCommands:\n",
    );
    for subcommand in SUBCOMMANDS {
        text.push_str(&format!("  {:<10} {}\n", subcommand.name, subcommand.about));
    }
    text.push_str("  help       Print this, or the help of a command\n\nOptions:\n  -h, --help     Print help\n  -V, --version  Print version\n");
    text
}

/// Runs the command line `argv` (program name first).
pub fn main(argv: Vec<OsString>) -> ExitCode {
    crate::sys::threads::install_panic_hook();
    crate::sys::kernel::pin_name_service();
    crate::sys::kernel::tune_allocator();
    match dispatch(argv) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            crate::daemon::say(&redact(&format!("error: {message}\n\nFor more information, try '--help'.")));
            ExitCode::from(2)
        }
        Err(Failure::Fatal(fatal)) => {
            crate::daemon::say(&fatal.report());
            ExitCode::FAILURE
        }
        Err(Failure::Ended(code)) => ExitCode::from(code),
    }
}

fn dispatch(argv: Vec<OsString>) -> Result<(), Failure> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_iter(argv);
    let Some(first) = parser.next()? else {
        crate::daemon::say(overview().trim_end());
        return Err(Failure::Usage("a command is needed".into()));
    };
    match first {
        Short('V') | Long("version") => {
            show(concat!("agent-relay-broker ", env!("CARGO_PKG_VERSION"), "\n").as_bytes())
        }
        Short('h') | Long("help") => show(overview().as_bytes()),
        Value(name) => {
            let name = name.string()?;
            if name == "help" {
                return help(parser);
            }
            let subcommand = find(&name)?;
            if asks_for_help(&parser, name == "wrap") {
                return show(subcommand.help.as_bytes());
            }
            (subcommand.run)(parser)
        }
        other => Err(other.unexpected().into()),
    }
}

fn find(name: &str) -> Result<&'static Subcommand, Failure> {
    SUBCOMMANDS
        .iter()
        .find(|subcommand| subcommand.name == name)
        .ok_or_else(|| Failure::Usage(format!("unrecognized subcommand '{name}'")))
}

fn help(mut parser: lexopt::Parser) -> Result<(), Failure> {
    match parser.next()? {
        Some(lexopt::Arg::Value(name)) => show(find(&name.to_string_lossy())?.help.as_bytes()),
        _ => show(overview().as_bytes()),
    }
}

/// Writes to stdout what was asked for. A reader who has gone has read all that he wanted: that is no failure.
fn show(content: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(content).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fatal::new("stdout cannot be written").because(error).into())
        }
        _ => Ok(()),
    }
}

/// `-h` or `--help` anywhere before `--`; of a command that passes its arguments on, only in front of them.
fn asks_for_help(parser: &lexopt::Parser, passes_on: bool) -> bool {
    let mut rest = parser.clone();
    let Ok(arguments) = rest.raw_args() else { return false };
    for argument in arguments {
        if argument == "--" {
            return false;
        }
        if argument == "-h" || argument == "--help" {
            return true;
        }
        if passes_on {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The long flags that the source of a subcommand reads.
    fn flags_of(source: &str) -> Vec<String> {
        let arms = source.split("Long(").skip(1).filter_map(|rest| rest.split(')').next());
        let flags = arms.flat_map(|arm| arm.split('|')).map(|name| name.trim().trim_matches('"').to_string());
        flags.filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')).collect()
    }

    #[test]
    fn the_help_of_every_subcommand_names_every_flag() {
        let sources = [
            ("init", include_str!("init.rs")),
            ("engine", include_str!("engine.rs")),
            ("demo", include_str!("demo.rs")),
            ("mcp-args", include_str!("mcp_args.rs")),
            ("dump-pty", include_str!("dump_pty.rs")),
            ("swarm", include_str!("swarm.rs")),
            ("pty", include_str!("pty.rs")),
            ("headless", include_str!("headless.rs")),
            ("app-server", include_str!("app_server.rs")),
            ("wrap", include_str!("wrap.rs")),
        ];
        assert_eq!(sources.len(), SUBCOMMANDS.len());
        for (name, source) in sources {
            let help = find(name).expect("a subcommand").help;
            let flags = flags_of(source);
            assert_eq!(flags.is_empty(), name == "wrap", "{name} reads no flag");
            for flag in flags {
                assert!(help.contains(&format!("--{flag}")), "--{flag} is not in the help of {name}:\n{help}");
            }
            assert!(overview().contains(name), "{name} is not in the overview");
        }
    }
}
