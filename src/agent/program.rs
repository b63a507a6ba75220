//! From a command line to the program that is executed: words, look-up, working directory, environment.
//!
//! Everything that can be known to be wrong is found here, before a terminal exists. Error texts name the program and the
//! remedy; they go to the caller of the spawn.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::harness::{self, Harness};
use crate::core::ports::Launch;

/// A program that exists and can be executed.
#[derive(Debug)]
pub struct Program {
    /// The executable as the caller named it.
    pub executable: String,
    /// Absolute. The path that was found, not what it links to: programs that serve several commands go by their name.
    pub path: PathBuf,
    /// The caller's arguments: the inline words of the command line, then the request's.
    pub given: Vec<String>,
    pub cwd: PathBuf,
    pub harness: &'static Harness,
}

/// Where programs are looked for when `PATH` is unset or empty. `~` is the home directory.
const DEFAULT_PATH: [&str; 7] =
    ["~/.local/bin", "~/.opencode/bin", "~/.claude/local", "/usr/local/bin", "/usr/bin", "/bin", "/opt/homebrew/bin"];

/// Finds the program of a launch.
///
/// # Errors
/// A sentence for the caller: empty or ill-quoted command, unusable working directory, missing or non-executable program.
pub fn resolve(launch: &Launch, path: Option<&OsStr>) -> Result<Program, String> {
    let invalid = |why: &str| format!("invalid CLI command '{}': {why}", launch.cli);
    let mut words =
        shell_words::split(launch.cli.trim()).map_err(|_| invalid("invalid CLI command syntax (check quoting)"))?;
    if words.first().is_none_or(|word| word.is_empty()) {
        return Err(invalid("CLI command cannot be empty"));
    }
    let (executable, inline) = harness::rename(words.remove(0), words);
    if [&executable].into_iter().chain(&inline).chain(&launch.args).any(|word| word.contains('\0')) {
        return Err(format!("command '{}' contains a NUL character", executable.replace('\0', "")));
    }
    let cwd = working_directory(launch.cwd.as_deref())?;
    let harness = harness::of_executable(&executable);
    let path = find(&executable, path, &cwd).map_err(|why| match launch.bare || launch.skip_relay_prompt {
        true => why,
        false => harness.not_found(&executable, why),
    })?;
    let given = inline.into_iter().chain(launch.args.iter().cloned()).collect();
    Ok(Program { executable, path, given, cwd, harness })
}

fn working_directory(asked: Option<&str>) -> Result<PathBuf, String> {
    let Some(asked) = asked else {
        return std::env::current_dir().map_err(|error| format!("the broker's own directory is unusable: {error}"));
    };
    let path = PathBuf::from(asked);
    if !path.is_absolute() {
        return Err(format!("working directory '{asked}' is not an absolute path: give the full path"));
    }
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => Ok(path),
        Ok(_) => Err(format!("working directory '{asked}' is not a directory")),
        Err(error) => Err(format!("working directory '{asked}' cannot be used ({error}): create it first")),
    }
}

pub(super) fn find(executable: &str, path: Option<&OsStr>, cwd: &Path) -> Result<PathBuf, String> {
    if executable.contains(['/', '\\']) || executable.starts_with('.') {
        let found = cwd.join(executable);
        return match std::fs::metadata(&found) {
            Ok(meta) if !meta.is_file() => Err(format!("program '{executable}' is not a file")),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err(not_executable(executable)),
            Ok(_) => runnable(found, executable),
            Err(error) => {
                Err(format!("program '{executable}' cannot be started ({error}): check the path or install it"))
            }
        };
    }
    let mut refused = None;
    for directory in search_path(path) {
        let candidate = directory.join(executable);
        let Ok(meta) = std::fs::metadata(&candidate) else { continue };
        if !meta.is_file() {
            continue;
        }
        if meta.permissions().mode() & 0o111 != 0 {
            return runnable(candidate, executable);
        }
        refused.get_or_insert(candidate);
    }
    Err(match refused {
        Some(found) => not_executable(&found.display().to_string()),
        None => format!("program '{executable}' was not found on PATH: install it, or give its full path"),
    })
}

fn not_executable(program: &str) -> String {
    format!("program '{program}' is not executable: run chmod +x on it")
}

/// Refuses a script whose interpreter is missing: the kernel would say so only after the fork, with no usable error.
fn runnable(path: PathBuf, executable: &str) -> Result<PathBuf, String> {
    let mut head = [0u8; 256];
    let read = std::fs::File::open(&path).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let line = head[..read].strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
    if let Some(interpreter) = line.and_then(|line| std::str::from_utf8(line).ok()?.split_whitespace().next())
        && !Path::new(interpreter).exists()
    {
        return Err(format!("program '{executable}' needs the interpreter '{interpreter}', which is not installed"));
    }
    Ok(path)
}

fn search_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    match path.filter(|path| !path.is_empty()) {
        Some(path) => std::env::split_paths(path)
            .filter(|directory| !directory.as_os_str().is_empty())
            .map(|directory| base.join(directory))
            .collect(),
        None => {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            DEFAULT_PATH
                .iter()
                .filter_map(|directory| match directory.strip_prefix("~/") {
                    Some(rest) => home.as_ref().map(|home| home.join(rest)),
                    None => Some(PathBuf::from(directory)),
                })
                .collect()
        }
    }
}

/// The environment of the CLI: the broker's, overlaid with `set`, without `remove`; a usable `TERM` and a `SHELL` are
/// filled in. A name that no process can have (empty, `=`, NUL) is left out.
pub fn environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    set: &[(String, String)],
    remove: &[String],
    shell: impl FnOnce() -> OsString,
) -> Vec<(OsString, OsString)> {
    let mut env: std::collections::BTreeMap<OsString, OsString> = inherited.collect();
    for (name, value) in set {
        if !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') {
            env.insert(name.into(), value.into());
        }
    }
    for name in remove {
        env.remove(OsStr::new(name));
    }
    let unusable = |term: &OsString| matches!(term.to_string_lossy().trim(), "" | "dumb");
    if env.get(OsStr::new("TERM")).is_none_or(unusable) {
        env.insert("TERM".into(), "xterm-256color".into());
    }
    if !env.contains_key(OsStr::new("SHELL")) {
        env.insert("SHELL".into(), shell());
    }
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(cli: &str) -> Launch {
        Launch {
            generation: 1,
            name: "a".into(),
            cli: cli.into(),
            args: vec![],
            model: None,
            session_ref: None,
            resumes: false,
            cwd: None,
            skip_relay_prompt: false,
            idle_threshold_secs: 0,
            ignores_drafts: false,
            headless: false,
            app_server: None,
            bare: false,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("broker-program-{name}-{}", crate::sys::ids::uuid_hex()));
        std::fs::create_dir_all(&directory).expect("a directory");
        directory
    }

    fn file(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).expect("a file");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    }

    #[test]
    fn command_lines_are_split_like_a_shell_does() {
        for (cli, error) in [
            ("  ", "invalid CLI command '  ': CLI command cannot be empty"),
            ("''", "invalid CLI command '''': CLI command cannot be empty"),
            ("a 'b", "invalid CLI command 'a 'b': invalid CLI command syntax (check quoting)"),
        ] {
            assert_eq!(resolve(&launch(cli), None).unwrap_err(), error);
        }
        let program = resolve(&launch("sh -c 'exit 3' \"a b\""), Some(OsStr::new("/usr/bin:/bin"))).expect("sh exists");
        assert_eq!(program.given, ["-c", "exit 3", "a b"]);
        assert!(program.path.is_absolute());
    }

    #[test]
    fn d1_the_path_found_is_kept_and_not_its_target() {
        let directory = scratch("d1");
        std::os::unix::fs::symlink("/bin/sh", directory.join("tool")).expect("a link");
        let found = resolve(&launch("tool"), Some(directory.as_os_str())).expect("the link counts");
        assert_eq!(found.path, directory.join("tool"));
        std::fs::remove_dir_all(directory).expect("cleanup");
    }

    #[test]
    fn d2_what_cannot_be_executed_is_refused_by_name() {
        let directory = scratch("d2");
        file(&directory.join("plain"), "x", 0o644);
        file(&directory.join("script"), "#!/no/such/interpreter\n", 0o755);
        let path = Some(directory.as_os_str());
        for (cli, part) in [
            ("nothere", "'nothere' was not found on PATH"),
            ("plain", "is not executable: run chmod +x"),
            ("script", "'/no/such/interpreter', which is not installed"),
            ("./nothere", "'./nothere' cannot be started"),
            ("/tmp", "'/tmp' is not a file"),
        ] {
            let error = resolve(&launch(cli), path).unwrap_err();
            assert!(error.contains(part), "{cli}: {error}");
        }
        // Only what would be told of the server speaks of that.
        let speaks = |launch| resolve(&launch, path).unwrap_err().contains("could not run `gemini mcp add`");
        assert!(speaks(launch("gemini")));
        assert!(!speaks(Launch { skip_relay_prompt: true, ..launch("gemini") }));
        assert!(!speaks(Launch { bare: true, ..launch("gemini") }));
        // A later directory on PATH serves when an earlier one holds only an unusable file of that name.
        let second = scratch("d2b");
        file(&second.join("plain"), "#!/bin/sh\n", 0o755);
        let both = std::env::join_paths([&directory, &second]).expect("a path");
        assert_eq!(resolve(&launch("plain"), Some(&both)).expect("found").path, second.join("plain"));
        std::fs::remove_dir_all(directory).expect("cleanup");
        std::fs::remove_dir_all(second).expect("cleanup");
    }

    #[test]
    fn s12_the_working_directory_must_be_absolute_and_exist() {
        for (cwd, part) in
            [("relative", "not an absolute path"), ("/no/such", "cannot be used"), ("/dev/null", "not a directory")]
        {
            let error = resolve(&Launch { cwd: Some(cwd.into()), ..launch("sh") }, None).unwrap_err();
            assert!(error.contains(part), "{cwd}: {error}");
        }
        assert_eq!(
            resolve(&Launch { cwd: Some("/tmp".into()), ..launch("sh") }, None).expect("sh").cwd,
            Path::new("/tmp")
        );
    }

    #[test]
    fn the_environment_is_overlaid_and_terminal_names_are_repaired() {
        let inherited = || {
            [("TERM", "dumb"), ("KEEP", "1"), ("GONE", "1"), ("OVER", "old")]
                .map(|(k, v)| (k.into(), v.into()))
                .into_iter()
        };
        let set = [("OVER".to_string(), "new".to_string()), ("A=B".to_string(), "x".to_string())];
        let env = environment(inherited(), &set, &["GONE".to_string()], || "/bin/zsh".into());
        let get =
            |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_string_lossy().into_owned());
        assert_eq!(get("TERM").as_deref(), Some("xterm-256color"));
        assert_eq!((get("KEEP").as_deref(), get("GONE"), get("OVER").as_deref()), (Some("1"), None, Some("new")));
        assert_eq!(get("SHELL").as_deref(), Some("/bin/zsh"));
        assert_eq!(get("A=B"), None);
    }
}
