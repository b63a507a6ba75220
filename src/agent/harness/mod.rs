//! The families of CLIs: how each is started, and how it is told of the relay's MCP server. One file per family, with one
//! row of facts; this file holds what the rows are made of, and what is done with them.

mod claude;
mod codex;
mod commands;
mod config_file;
mod cursor;
mod droid;
mod gemini;
mod grok;
mod opencode;
mod server;
mod session;
mod thread;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::program;
pub use crate::wire::names::family_name;
use crate::wire::names::{command_words as words, program_name};

pub use claude::CONFIG_FLAG;
pub use commands::Running;
pub use config_file::InUse;
pub use server::{Facts, Server};
pub use session::{Choice, Sessions};
pub use thread::fall_back;

/// Makes a codex thread that can be resumed; `given` = the caller's arguments. Every failure is a start without one.
pub fn make_thread(site: &Site<'_>, given: &[String], version: &str) -> Option<String> {
    thread::make(site, &session::codex_passthrough(given), version)
}

/// What the broker knows about one family of CLIs.
pub struct Harness {
    pub family: Family,
    /// File names of the executable, lower case.
    names: &'static [&'static str],
    /// Flags that come first, each only when absent.
    first: &'static [&'static str],
    /// The flags that stop the CLI from asking for permissions, always added unless present.
    bypass: &'static [&'static str],
    /// Arguments that say the same as the bypass flags.
    bypassed_by: &'static [Present],
    /// How the CLI names its sessions.
    pub sessions: Sessions,
    /// How the CLI is told of the relay's server.
    relay: Relay,
    /// Window in which the echo of a message is expected, seconds.
    pub echo_window_secs: u64,
}

impl std::fmt::Debug for Harness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Harness").field(&self.family).finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

enum Present {
    Is(&'static str),
    Contains(&'static str),
}

/// The ways of telling a CLI of a server.
enum Relay {
    /// Not at all: messages reach it through its terminal only.
    None,
    /// By arguments alone.
    Arguments(fn(&Server, &[String]) -> Vec<String>),
    /// By a file in its working directory.
    File(&'static config_file::ConfigFile),
    /// By commands of its own.
    Commands(&'static commands::Adder),
}

const PLAIN: Harness = Harness {
    family: Family::Other,
    names: &[],
    first: &[],
    bypass: &[],
    bypassed_by: &[],
    sessions: Sessions::None,
    relay: Relay::None,
    echo_window_secs: 5,
};

static OTHER: Harness = PLAIN;

static HARNESSES: [&Harness; 7] = [
    &claude::HARNESS,
    &codex::HARNESS,
    &gemini::HARNESS,
    &grok::HARNESS,
    &droid::HARNESS,
    &opencode::HARNESS,
    &cursor::HARNESS,
];

/// Why a harness could not be told of the server.
#[derive(Debug)]
pub struct Trouble {
    pub message: String,
    pub cause: Option<String>,
}

impl Trouble {
    fn new(message: impl Into<String>) -> Trouble {
        Trouble { message: message.into(), cause: None }
    }

    fn because(self, cause: String) -> Trouble {
        Trouble { cause: Some(cause), ..self }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

/// Where a harness is set up.
pub struct Site<'a> {
    /// The executable as the caller wrote it, for messages.
    pub executable: &'a str,
    /// The program that was found.
    pub program: &'a Path,
    /// Absolute.
    pub cwd: &'a Path,
    pub home: Option<&'a Path>,
    /// The environment of its commands; `None`: that of this process.
    pub env: Option<&'a [(OsString, OsString)]>,
    /// Nobody waits longer for the harness; `None`: somebody does, whatever it takes.
    pub deadline: Option<Instant>,
    /// Asked while something is waited for: the agent has been given up.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl Site<'_> {
    /// The end of something that may take so long.
    fn until(&self, limit: Duration) -> Instant {
        let end = Instant::now() + limit;
        self.deadline.map_or(end, |deadline| deadline.min(end))
    }
}

/// A harness that knows the server.
#[derive(Default)]
pub struct Told {
    /// Arguments that belong to it.
    pub args: Vec<String>,
    /// Files that were touched (or looked at, for gemini).
    pub files: Vec<PathBuf>,
    /// The use of a file that is put back with the last agent.
    pub in_use: Option<InUse>,
}

/// Tells a harness of the server. `existing` = the caller's own arguments, which may opt out.
///
/// # Errors
/// A file or command of the harness fails; nothing may be started then.
pub fn tell(harness: &Harness, site: &Site<'_>, existing: &[String], server: &Server) -> Result<Told, Trouble> {
    match &harness.relay {
        Relay::None => Ok(Told::default()),
        Relay::Arguments(arguments) => Ok(Told { args: arguments(server, existing), ..Told::default() }),
        Relay::File(file) if file.is_opted_out(existing) => Ok(Told::default()),
        Relay::File(file) => {
            let in_use = file.join(site.cwd, server)?;
            let args = file.arguments.iter().map(|word| word.to_string()).collect();
            Ok(Told { args, files: vec![in_use.path().to_path_buf()], in_use: Some(in_use) })
        }
        Relay::Commands(adder) => {
            let files = adder.join(harness.family, site, server)?;
            Ok(Told { files, ..Told::default() })
        }
    }
}

/// [`tell`] outside a broker, with the environment of this process. Inline words of `cli` are not looked at.
///
/// # Errors
/// Those of [`tell`].
pub fn tell_alone(cli: &str, cwd: &Path, existing: &[String], facts: &Facts) -> Result<Told, Trouble> {
    let executable = words(cli).remove(0);
    let harness = of_executable(&executable);
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
    let program = match harness.relay {
        Relay::Commands(_) => {
            // One that is missing is told of by the attempt to run it.
            let found = program::find(&executable, std::env::var_os("PATH").as_deref(), cwd);
            found.unwrap_or_else(|_| PathBuf::from(&executable))
        }
        _ => PathBuf::new(),
    };
    let site = Site {
        executable: &executable,
        program: &program,
        cwd,
        home: home.as_deref(),
        env: None,
        deadline: None,
        cancelled: &|| false,
    };
    let server = Server::new(facts, var("AGENT_RELAY_MCP_COMMAND").as_deref());
    tell(harness, &site, existing, &server)
}

/// A harness that is told by commands of its own, and cannot be run.
fn cannot_add(executable: &str, why: &str) -> Trouble {
    Trouble::new(format!(
        "failed to configure Agent Relay MCP for {executable}: could not run `{executable} mcp add`: {why}"
    ))
}

impl Harness {
    /// The words for a program of this harness that cannot be found.
    pub fn not_found(&self, executable: &str, why: String) -> String {
        match self.relay {
            Relay::Commands(_) => cannot_add(executable, &why).message,
            _ => why,
        }
    }
}

/// JSON as it stands in files: two spaces, a newline at the end.
fn pretty(value: &serde_json::Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

/// The family of an executable, by its file name: `/usr/bin/claude` is claude, `claude:opus` too.
pub fn of_executable(executable: &str) -> &'static Harness {
    let name = program_name(executable);
    let name = if name.starts_with("claude:") { "claude" } else { name.as_str() };
    HARNESSES.iter().copied().find(|harness| harness.names.contains(&name)).unwrap_or(&OTHER)
}

/// Of nothing in particular: no flags are added.
pub fn plain() -> &'static Harness {
    &OTHER
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

fn first(harness: &Harness, given: &[String]) -> Vec<String> {
    harness.first.iter().filter(|flag| !given.iter().any(|arg| arg == *flag)).map(|flag| flag.to_string()).collect()
}

/// What its user typed, and what a CLI of this family cannot do without.
pub fn normal(harness: &Harness, given: Vec<String>) -> Vec<String> {
    let mut argv = first(harness, &given);
    argv.extend(given);
    argv
}

/// The arguments of the CLI: bypass flags, `--model M`, the server's, then what the caller gave (inline words first).
pub fn arguments(harness: &Harness, given: Vec<String>, model: Option<&str>, relay: Vec<String>) -> Vec<String> {
    let mut argv = first(harness, &given);
    if !given.iter().any(|arg| harness.bypassed_by.iter().any(|present| present.matches(arg))) {
        argv.extend(harness.bypass.iter().map(|flag| flag.to_string()));
    }
    let model = model.map(str::trim).filter(|model| !model.is_empty());
    if let Some(model) = model
        && !given.iter().any(|arg| names_a_model(arg))
    {
        argv.extend(["--model".to_string(), model.to_string()]);
    }
    argv.extend(relay);
    argv.extend(given);
    argv
}

fn names_a_model(arg: &str) -> bool {
    matches!(arg, "--model" | "-m") || arg.starts_with("--model=") || arg.starts_with("-m=")
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

    fn argv(cli: &str, args: &[&str], model: Option<&str>) -> Vec<String> {
        let mut words = shell_words::split(cli).expect("words");
        let (executable, mut given) = rename(words.remove(0), words);
        given.extend(args.iter().map(|arg| arg.to_string()));
        arguments(of_executable(&executable), given, model, Vec::new())
    }

    #[test]
    fn bypass_flags_are_added_once() {
        assert_eq!(argv("claude", &[], None), ["--dangerously-skip-permissions"]);
        assert_eq!(argv("claude", &["--dangerously-skip-permissions"], None), ["--dangerously-skip-permissions"]);
        assert_eq!(argv("codex --full-auto", &["x"], None), ["--full-auto", "x"]);
        assert_eq!(argv("gemini", &["-y"], None), ["-y"]);
        assert_eq!(argv("grok", &[], None), ["--always-approve"]);
        assert_eq!(argv("cat", &["-u"], None), ["-u"]);
    }

    #[test]
    fn the_model_stands_before_the_callers_arguments() {
        assert_eq!(
            argv("claude --verbose", &["--foo"], Some(" sonnet ")),
            ["--dangerously-skip-permissions", "--model", "sonnet", "--verbose", "--foo"]
        );
        assert_eq!(argv("goose", &["--model=x"], Some("m")), ["--model=x"]);
        assert_eq!(argv("goose", &[], Some("  ")), Vec::<String>::new());
    }

    #[test]
    fn cursor_is_renamed_and_gets_its_flags_once() {
        let words = vec!["agent".to_string(), "x".to_string()];
        assert_eq!(rename("cursor".into(), words), ("cursor-agent".into(), vec!["x".into()]));
        assert_eq!(argv("cursor agent x", &["--force"], None), ["--approve-mcps", "x", "--force"]);
        assert_eq!(argv("/opt/agent", &[], None), ["--force", "--approve-mcps"]);
    }
}
