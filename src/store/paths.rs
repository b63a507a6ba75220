//! Where things lie: the state directory in its three kinds, the data directory, and names that are safe as file names.

use std::io;
use std::path::{Path, PathBuf};

use super::secrets;
use crate::sys::ids;

/// How the state directory is chosen, and what outlives the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// `--persist`: `<cwd>/.agentworkforce/relay`.
    Persist,
    /// `--state-dir DIR`.
    Dir(PathBuf),
    /// Neither: a directory of this process, removed at its end.
    Ephemeral,
}

/// The state directory of one broker and the names of the files in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
    keep: Keep,
    safe: String,
}

impl StateDir {
    /// `name` is the broker's name, `tmp` the system's directory for temporary files.
    pub fn choose(keep: Keep, name: &str, cwd: &Path, tmp: &Path) -> StateDir {
        let safe = safe_name(name);
        let path = match &keep {
            Keep::Persist => kept_dir(cwd),
            Keep::Dir(dir) => cwd.join(dir),
            Keep::Ephemeral => {
                tmp.join(format!("agent-relay-ephemeral-{}-{safe}-{}", std::process::id(), ids::uuid_hex()))
            }
        };
        StateDir { path, keep, safe }
    }

    /// Makes the directory, 0700. An existing one is tightened unless the user named it: that one may be shared on
    /// purpose, and the files in it protect themselves.
    ///
    /// # Errors
    /// The directory's name and the system's words.
    pub fn create(&self) -> io::Result<()> {
        match self.keep {
            Keep::Dir(_) => secrets::make_dir(&self.path),
            _ => secrets::make_private_dir(&self.path),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// State, journal and lock are kept.
    pub fn is_durable(&self) -> bool {
        self.keep != Keep::Ephemeral
    }

    pub fn connection(&self) -> PathBuf {
        self.path.join("connection.json")
    }

    pub fn lock(&self) -> PathBuf {
        self.path.join(format!("broker-{}.lock", self.safe))
    }

    pub fn state(&self) -> PathBuf {
        match self.is_durable() {
            true => self.path.join(format!("state-{}.json", self.safe)),
            false => self.path.join("state.json"),
        }
    }

    /// The messages on their way, as a view of the journal.
    pub fn pending(&self) -> PathBuf {
        self.path.join(format!("pending-{}.json", self.safe))
    }

    pub fn pid(&self) -> PathBuf {
        self.path.join(format!("broker-{}.pid", self.safe))
    }

    pub fn journal(&self) -> PathBuf {
        self.path.join(format!("journal-{}.jsonl", self.safe))
    }

    /// How agents ended, over the lives of the broker.
    pub fn crash_insights(&self) -> PathBuf {
        self.path.join("crash-insights.json")
    }

    /// Directory of what ended sessions have left: `<agent>.json`.
    pub fn continuity(&self) -> PathBuf {
        self.path().join("continuity")
    }

    pub fn identity_debug(&self) -> PathBuf {
        self.path.join("identity-debug.txt")
    }

    /// Removes an ephemeral directory with everything in it; leaves the others.
    ///
    /// # Errors
    /// The system's, naming the directory.
    pub fn remove_if_ephemeral(&self) -> io::Result<()> {
        if self.is_durable() {
            return Ok(());
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(secrets::naming("failed to remove", &self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

/// `<cwd>/.agentworkforce/relay`.
pub fn kept_dir(cwd: &Path) -> PathBuf {
    cwd.join(".agentworkforce").join("relay")
}

/// State files of earlier `--persist` runs in this project, sorted: an ephemeral run warns about them.
pub fn prior_state_files(cwd: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(kept_dir(cwd)) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("state-") && name.ends_with(".json"))
        })
        .collect();
    found.sort();
    found
}

/// Characters that are neither alphanumeric nor `-` become `-`; an empty name is `broker`.
pub fn safe_name(name: &str) -> String {
    if name.is_empty() {
        return "broker".into();
    }
    name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

/// `$XDG_DATA_HOME` if absolute, else `<home>/.local/share`. `None` without either.
pub fn data_dir(xdg_data_home: Option<&str>, home: Option<&Path>) -> Option<PathBuf> {
    match xdg_data_home.map(Path::new) {
        Some(dir) if dir.is_absolute() => Some(dir.to_path_buf()),
        _ => home.filter(|home| home.is_absolute()).map(|home| home.join(".local").join("share")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    #[test]
    fn three_kinds_of_state_directory() {
        let (cwd, tmp) = (Path::new("/home/u/p"), Path::new("/tmp"));
        let kept = StateDir::choose(Keep::Persist, "my broker", cwd, tmp);
        assert_eq!(kept.path(), Path::new("/home/u/p/.agentworkforce/relay"));
        assert_eq!(kept.lock(), Path::new("/home/u/p/.agentworkforce/relay/broker-my-broker.lock"));
        assert_eq!(kept.state(), Path::new("/home/u/p/.agentworkforce/relay/state-my-broker.json"));
        assert!(kept.is_durable());
        let named = StateDir::choose(Keep::Dir("s".into()), "b", cwd, tmp);
        assert_eq!(named.path(), Path::new("/home/u/p/s"));
        assert!(named.is_durable());
        let passing = StateDir::choose(Keep::Ephemeral, "b", cwd, tmp);
        let name = passing.path().file_name().unwrap().to_str().unwrap().to_string();
        assert!(name.starts_with(&format!("agent-relay-ephemeral-{}-b-", std::process::id())), "{name}");
        assert_eq!(name.rsplit('-').next().unwrap().len(), 32);
        assert!(!passing.is_durable());
        assert_eq!(passing.state().file_name().unwrap(), "state.json");
    }

    #[test]
    fn directories_are_private_and_only_the_ephemeral_one_is_removed() {
        let scratch = Scratch::new();
        let loose = scratch.join(".agentworkforce/relay");
        std::fs::create_dir_all(&loose).unwrap();
        secrets::set_mode(&loose, 0o755).unwrap();
        let kept = StateDir::choose(Keep::Persist, "b", &scratch, &scratch);
        kept.create().unwrap();
        assert_eq!(mode(kept.path()), 0o700);
        kept.remove_if_ephemeral().unwrap();
        assert!(kept.path().exists());

        let shared = scratch.join("shared");
        std::fs::create_dir(&shared).unwrap();
        secrets::set_mode(&shared, 0o755).unwrap();
        StateDir::choose(Keep::Dir(shared.clone()), "b", &scratch, &scratch).create().unwrap();
        assert_eq!(mode(&shared), 0o755);
        let fresh = StateDir::choose(Keep::Dir(scratch.join("a/b")), "b", &scratch, &scratch);
        fresh.create().unwrap();
        assert_eq!(mode(fresh.path()), 0o700);

        let passing = StateDir::choose(Keep::Ephemeral, "b", &scratch, &scratch);
        passing.create().unwrap();
        assert_eq!(mode(passing.path()), 0o700);
        std::fs::write(passing.connection(), "x").unwrap();
        passing.remove_if_ephemeral().unwrap();
        passing.remove_if_ephemeral().unwrap();
        assert!(!passing.path().exists());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let scratch = Scratch::new();
        std::fs::write(scratch.join("f"), "x").unwrap();
        let dir = StateDir::choose(Keep::Dir(scratch.join("f/x")), "b", &scratch, &scratch);
        let error = dir.create().unwrap_err().to_string();
        assert!(error.contains("/f/x"), "{error}");
    }

    #[test]
    fn names() {
        for (name, safe) in [("", "broker"), ("a b/c", "a-b-c"), ("grün-1", "grün-1"), ("..", "--"), ("a_b", "a-b")] {
            assert_eq!(safe_name(name), safe);
        }
    }

    #[test]
    fn data_directories() {
        let home = Path::new("/home/u");
        assert_eq!(data_dir(Some("/x"), Some(home)), Some("/x".into()));
        assert_eq!(data_dir(Some("x"), Some(home)), Some("/home/u/.local/share".into()));
        assert_eq!(data_dir(Some(""), Some(home)), Some("/home/u/.local/share".into()));
        assert_eq!(data_dir(None, Some(Path::new(""))), None);
        assert_eq!(data_dir(None, None), None);
    }

    #[test]
    fn earlier_state_files_are_found() {
        let scratch = Scratch::new();
        assert!(prior_state_files(&scratch).is_empty());
        let dir = kept_dir(&scratch);
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["state-b.json", "state-a.json", "state.json", "pending-a.json"] {
            std::fs::write(dir.join(name), "{}").unwrap();
        }
        assert_eq!(prior_state_files(&scratch), [dir.join("state-a.json"), dir.join("state-b.json")]);
    }
}
