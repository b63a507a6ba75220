//! Who this node is: a seed per machine, an id per machine and directory.
//!
//! The seed is written once and never replaced; whatever keeps it from being read ends the start, because a made-up
//! identity would enrol a second node beside the real one.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::secrets;
use crate::sys::ids;

/// How long a blank seed file may be locked by another broker that is filling it.
const FILL_LIMIT: Duration = Duration::from_secs(2);

/// The seed of this machine and the directory that the id is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    seed: String,
    cwd: String,
}

impl Identity {
    /// Reads the seed, or makes it. `cwd` is the answer to the question for the current directory; it is canonicalised if
    /// that works.
    ///
    /// # Errors
    /// In words for the operator, naming the file concerned.
    pub fn load(data_dir: Option<&Path>, cwd: io::Result<PathBuf>) -> Result<Identity, String> {
        let cwd = cwd.map_err(|error| format!("failed to read current working directory for node id: {error}"))?;
        let cwd = std::fs::canonicalize(&cwd).unwrap_or(cwd).to_string_lossy().into_owned();
        Ok(Identity { seed: seed(data_dir)?, cwd })
    }

    /// For a seed and a directory that are known already.
    pub fn of(seed: &str, cwd: &str) -> Identity {
        Identity { seed: seed.trim().to_string(), cwd: cwd.to_string() }
    }

    /// `node_` and 32 digits of SHA-256(seed, 0, directory).
    pub fn node_id(&self) -> String {
        digest(&[&self.seed, &self.cwd])
    }

    /// For an engine that has the former in another workspace: SHA-256(seed, 0, directory, 0, workspace).
    pub fn node_id_in(&self, workspace_id: &str) -> String {
        digest(&[&self.seed, &self.cwd, workspace_id])
    }

    /// The identity number `place` beside this one: of the broker `kept`, or of any that leaves nothing behind.
    pub(super) fn beside(&self, kept: Option<&str>, place: usize) -> Identity {
        let (kind, name) = kept.map_or(("passing", ""), |name| ("broker", name));
        Identity { seed: self.seed.clone(), cwd: [&self.cwd, kind, name, &place.to_string()].join("\0") }
    }

    /// With a token from the operator the id is the seed text itself.
    pub fn pinned_id(&self) -> &str {
        &self.seed
    }
}

fn digest(parts: &[&str]) -> String {
    let hash = Sha256::digest(parts.join("\0").as_bytes());
    format!("node_{}", &ids::hex(&hash)[..32])
}

/// The node's name: the first that is not blank of the flag, the explicit instance name and the host name.
pub fn node_name(name_flag: Option<&str>, instance_name: Option<&str>, host_name: Option<&str>) -> String {
    [name_flag, instance_name, host_name]
        .into_iter()
        .flatten()
        .map(str::trim)
        .find(|name| !name.is_empty())
        .unwrap_or("relay-node")
        .to_string()
}

/// `<data>/agent-relay/machine-id`.
pub fn seed_file(data_dir: &Path) -> PathBuf {
    data_dir.join("agent-relay").join("machine-id")
}

fn seed(data_dir: Option<&Path>) -> Result<String, String> {
    let data_dir = data_dir.ok_or("no data directory for the node id file: neither XDG_DATA_HOME nor HOME is set")?;
    let path = seed_file(data_dir);
    match read_seed(&path)? {
        Found::Seed(seed) => return Ok(seed),
        Found::Blank => fill(&path)?,
        Found::Missing => {
            let dir = data_dir.join("agent-relay");
            secrets::make_private_dir(&dir).map_err(|error| writing(&path, &error))?;
            // Whoever loses this race reads the winner's seed.
            secrets::create_new(&path, fresh().as_bytes()).map_err(|error| writing(&path, &error))?;
        }
    }
    match read_seed(&path)? {
        Found::Seed(seed) => Ok(seed),
        _ => Err(writing(&path, &io::Error::other("it does not stay"))),
    }
}

fn fresh() -> String {
    format!("node_{}\n", ids::uuid_hex())
}

fn writing(path: &Path, error: &io::Error) -> String {
    format!("failed to write node id file {}: {error}", path.display())
}

fn reading(path: &Path, error: &io::Error) -> String {
    format!("failed to read node id file {}: {error}", path.display())
}

enum Found {
    Missing,
    Blank,
    Seed(String),
}

fn read_seed(path: &Path) -> Result<Found, String> {
    let content = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        other => other.map_err(|error| reading(path, &error))?,
    };
    let text = String::from_utf8(content)
        .map_err(|_| reading(path, &io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8")))?;
    Ok(match text.trim() {
        "" => Found::Blank,
        seed => Found::Seed(seed.to_string()),
    })
}

/// Fills a blank seed file. Brokers that find it blank at the same time take turns at its lock; only the first fills it.
fn fill(path: &Path) -> Result<(), String> {
    let blank = File::open(path).map_err(|error| reading(path, &error))?;
    let deadline = Instant::now() + FILL_LIMIT;
    loop {
        match blank.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(writing(path, &error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(writing(path, &io::Error::other("another process holds it")));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    match read_seed(path)? {
        Found::Seed(_) => Ok(()),
        _ => secrets::replace(path, fresh().as_bytes()).map_err(|error| writing(path, &error)),
    }
}

/// `identity-debug.txt`: who the broker turned out to be, for a person who looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debug<'a> {
    pub agent_name: &'a str,
    pub requested: &'a str,
    pub agent_id: &'a str,
    pub default_workspace: &'a str,
    pub workspace_count: usize,
    pub timestamp: &'a str,
}

/// Writes the file, one `key='value'` a line.
///
/// # Errors
/// The system's, naming the file.
pub fn write_debug(path: &Path, debug: &Debug<'_>) -> io::Result<()> {
    let text = format!(
        "agent_name='{}'\nrequested='{}'\nagent_id='{}'\ndefault_workspace='{}'\nworkspace_count='{}'\ntimestamp='{}'\n",
        debug.agent_name,
        debug.requested,
        debug.agent_id,
        debug.default_workspace,
        debug.workspace_count,
        debug.timestamp
    );
    secrets::replace(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    #[test]
    fn node_ids_agree_with_recorded_ones() {
        for (seed, cwd, id) in [
            ("node_seed123", "/home/u/proj/a", "node_9f268473d300175687c1bf41d7940a33"),
            ("node_seed123", "/home/u/proj/b", "node_4f76a1ba3988c272a0966cfec5226c81"),
            ("node_seed123", "/private/var/x y", "node_b7c4c1a9794e96416422218fc7705359"),
            ("seed-a", "/home/u/proj/a", "node_85190afe9a05838f75d51412c7dd57eb"),
            ("node_0123456789abcdef0123456789abcdef", "/srv/böker/π", "node_3af087ac595b146557a3d9aae9bf5eb9"),
        ] {
            assert_eq!(Identity::of(&format!(" {seed}\n"), cwd).node_id(), id, "{seed} {cwd}");
        }
    }

    #[test]
    fn l17_the_fallback_id_depends_on_the_workspace() {
        let identity = Identity::of("s", "/d");
        let expected = format!("node_{}", &ids::hex(&Sha256::digest(b"s\0/d\0w1"))[..32]);
        assert_eq!(identity.node_id_in("w1"), expected);
        assert_ne!(identity.node_id_in("w1"), identity.node_id_in("w2"));
        assert_eq!(identity.pinned_id(), "s");
    }

    #[test]
    fn a_missing_or_blank_seed_is_made_once() {
        let scratch = Scratch::new();
        let here = || Ok(scratch.to_path_buf());
        let first = Identity::load(Some(&scratch), here()).unwrap();
        let path = seed_file(&scratch);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("node_") && text.len() == 38 && text.ends_with('\n'), "{text:?}");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(Identity::load(Some(&scratch), here()).unwrap(), first);
        std::fs::write(&path, " \n").unwrap();
        let second = Identity::load(Some(&scratch), here()).unwrap();
        assert_ne!(second, first);
        assert_eq!(Identity::load(Some(&scratch), here()).unwrap(), second);
        std::fs::write(&path, "anything goes \n").unwrap();
        assert_eq!(Identity::load(Some(&scratch), here()).unwrap().pinned_id(), "anything goes");
    }

    #[test]
    fn of_many_makers_one_wins() {
        for start in [None, Some("\n")] {
            let scratch = Scratch::new();
            if let Some(content) = start {
                secrets::make_dir(&scratch.join("agent-relay")).unwrap();
                std::fs::write(seed_file(&scratch), content).unwrap();
            }
            let barrier = std::sync::Barrier::new(16);
            let seeds: Vec<Result<String, String>> = std::thread::scope(|scope| {
                let makers: Vec<_> = (0..16)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            seed(Some(&scratch))
                        })
                    })
                    .collect();
                makers.into_iter().map(|maker| maker.join().unwrap()).collect()
            });
            let first = seeds[0].clone().unwrap();
            assert!(seeds.iter().all(|seed| seed.as_ref() == Ok(&first)), "{start:?}: {seeds:?}");
        }
    }

    #[test]
    fn f21_what_cannot_be_read_is_an_error_and_stays_untouched() {
        let scratch = Scratch::new();
        let path = seed_file(&scratch);
        std::fs::create_dir_all(&path).unwrap();
        let shown = format!("failed to read node id file {}", path.display());
        let error = seed(Some(&scratch)).unwrap_err();
        assert!(error.starts_with(&shown), "{error}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, b"\xff").unwrap();
        let error = seed(Some(&scratch)).unwrap_err();
        assert!(error.starts_with(&shown), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"\xff");

        std::fs::write(scratch.join("file"), "").unwrap();
        let error = seed(Some(&scratch.join("file"))).unwrap_err();
        assert!(error.contains("node id file") && error.contains("machine-id"), "{error}");
        assert!(seed(None).is_err());

        let gone = Identity::load(Some(&scratch), Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert!(gone.starts_with("failed to read current working directory for node id"), "{gone}");
    }

    #[test]
    fn links_in_the_directory_are_resolved_and_a_strange_one_is_taken_raw() {
        let scratch = Scratch::new();
        let real = scratch.join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, scratch.join("link")).unwrap();
        let through = Identity::load(Some(&scratch), Ok(scratch.join("link"))).unwrap();
        let direct = Identity::load(Some(&scratch), Ok(real)).unwrap();
        assert_eq!(through.node_id(), direct.node_id());
        let raw = Identity::load(Some(&scratch), Ok("/no/such/dir".into())).unwrap();
        assert_eq!(raw.cwd, "/no/such/dir");
    }

    #[test]
    fn names_fall_through_blanks() {
        assert_eq!(node_name(Some(" n "), Some("i"), Some("h")), "n");
        assert_eq!(node_name(Some(" "), Some("i"), Some("h")), "i");
        assert_eq!(node_name(None, None, Some("h\n")), "h");
        assert_eq!(node_name(None, None, Some("")), "relay-node");
    }

    #[test]
    fn the_debug_file_has_six_lines() {
        let scratch = Scratch::new();
        let path = scratch.join("identity-debug.txt");
        let debug = Debug {
            agent_name: "a-1",
            requested: "a",
            agent_id: "17",
            default_workspace: "w",
            workspace_count: 1,
            timestamp: "t",
        };
        write_debug(&path, &debug).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "agent_name='a-1'\nrequested='a'\nagent_id='17'\ndefault_workspace='w'\nworkspace_count='1'\ntimestamp='t'\n"
        );
    }
}
