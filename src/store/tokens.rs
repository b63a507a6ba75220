//! Minted node tokens, one file per node id below `<data>/agent-relay/node-tokens`. A token from the operator is never
//! stored here.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::secrets;
use crate::core::ports::Secret;

/// The token cache of this machine.
#[derive(Debug, Clone)]
pub struct Tokens {
    dir: PathBuf,
}

/// What a cached token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use<'a> {
    pub node_id: &'a str,
    pub workspace_id: &'a str,
    /// The effective engine base; trailing slashes do not matter.
    pub base_url: &'a str,
}

#[derive(Serialize, Deserialize)]
struct File {
    node_id: String,
    workspace_id: String,
    /// Absent in files of earlier versions for the default engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    token: String,
}

impl Tokens {
    pub fn new(data_dir: &Path) -> Tokens {
        Tokens { dir: data_dir.join("agent-relay").join("node-tokens") }
    }

    /// The file of a node id: characters outside `[A-Za-z0-9_-]` become `_`.
    pub fn file(&self, node_id: &str) -> PathBuf {
        let stem: String =
            node_id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect();
        let stem = if stem.is_empty() { "node" } else { &stem };
        self.dir.join(format!("{stem}.json"))
    }

    /// The cached token, if node, workspace and (where the file has one) engine are the same. What cannot be read counts
    /// as absent.
    pub fn load(&self, wanted: Use<'_>) -> Option<Secret> {
        let path = self.file(wanted.node_id);
        let content = match secrets::read(&path) {
            Ok(content) => content,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("node token cache: {error}");
                }
                return None;
            }
        };
        let Ok(file) = serde_json::from_slice::<File>(&content) else {
            log::warn!("node token cache: {} is damaged and not used", path.display());
            return None;
        };
        let same_base = file.base_url.is_none_or(|base| trimmed(&base) == trimmed(wanted.base_url));
        let fits = file.node_id == wanted.node_id && file.workspace_id == wanted.workspace_id && same_base;
        let token = file.token.trim();
        (fits && !token.is_empty()).then(|| Secret::new(token))
    }

    /// Stores a minted token, 0600 in a directory of 0700.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn store(&self, wanted: Use<'_>, token: &Secret) -> io::Result<()> {
        if let Some(parent) = self.dir.parent() {
            secrets::make_private_dir(parent)?;
        }
        secrets::make_private_dir(&self.dir)?;
        let file = File {
            node_id: wanted.node_id.into(),
            workspace_id: wanted.workspace_id.into(),
            base_url: Some(trimmed(wanted.base_url).into()),
            token: token.expose().trim().into(),
        };
        let mut text = serde_json::to_string_pretty(&file).map_err(io::Error::other)?;
        text.push('\n');
        secrets::replace(&self.file(wanted.node_id), text.as_bytes())
    }

    /// Forgets a token that the engine refused.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn forget(&self, node_id: &str) -> io::Result<()> {
        secrets::remove(&self.file(node_id))
    }
}

fn trimmed(base_url: &str) -> &str {
    base_url.trim().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    const USE: Use<'_> = Use { node_id: "node_1", workspace_id: "w1", base_url: "http://e/" };

    #[test]
    fn f18_a_stored_token_is_private_also_over_a_loose_file() {
        let scratch = Scratch::new();
        let tokens = Tokens::new(&scratch);
        std::fs::create_dir_all(&tokens.dir).unwrap();
        secrets::set_mode(&tokens.dir, 0o755).unwrap();
        std::fs::write(tokens.file("node_1"), "{}").unwrap();
        secrets::set_mode(&tokens.file("node_1"), 0o644).unwrap();
        tokens.store(USE, &Secret::new(" nt_live_1 ")).unwrap();
        assert_eq!(mode(&tokens.file("node_1")), 0o600);
        assert_eq!(mode(&tokens.dir), 0o700);
        assert_eq!(tokens.load(USE), Some(Secret::new("nt_live_1")));
        tokens.forget("node_1").unwrap();
        tokens.forget("node_1").unwrap();
        assert_eq!(tokens.load(USE), None);
    }

    #[test]
    fn f19_a_token_is_reused_only_where_it_fits() {
        let scratch = Scratch::new();
        let tokens = Tokens::new(&scratch);
        tokens.store(USE, &Secret::new("nt_live_1")).unwrap();
        let text = std::fs::read_to_string(tokens.file("node_1")).unwrap();
        assert!(text.contains("\"base_url\": \"http://e\""), "{text}");
        assert!(tokens.load(Use { base_url: "http://e", ..USE }).is_some());
        assert!(tokens.load(Use { base_url: "http://other", ..USE }).is_none());
        assert!(tokens.load(Use { workspace_id: "w2", ..USE }).is_none());
        let copied = tokens.file("node_2");
        std::fs::copy(tokens.file("node_1"), copied).unwrap();
        assert!(tokens.load(Use { node_id: "node_2", ..USE }).is_none());
    }

    #[test]
    fn f19_a_file_without_an_engine_is_reused_and_damage_is_absence() {
        let scratch = Scratch::new();
        let tokens = Tokens::new(&scratch);
        std::fs::create_dir_all(&tokens.dir).unwrap();
        for (content, usable) in [
            (r#"{"node_id":"node_1","workspace_id":"w1","token":"nt_live_1","extra":1}"#, true),
            (r#"{"node_id":"node_1","workspace_id":"w1","base_url":null,"token":"nt_live_1"}"#, true),
            (r#"{"node_id":"node_1","workspace_id":"w1","token":" "}"#, false),
            (r#"{"node_id":"node_1","workspace_id":"w1"}"#, false),
            ("{", false),
            ("", false),
        ] {
            std::fs::write(tokens.file("node_1"), content).unwrap();
            assert_eq!(tokens.load(USE).is_some(), usable, "{content}");
        }
    }

    #[test]
    fn f20_names_of_files() {
        let tokens = Tokens::new(Path::new("/d"));
        for (id, stem) in [("../../etc/passwd", "______etc_passwd"), ("", "node"), ("node_a-1", "node_a-1"), ("é", "_")]
        {
            assert_eq!(tokens.file(id), Path::new("/d/agent-relay/node-tokens").join(format!("{stem}.json")));
        }
    }
}
