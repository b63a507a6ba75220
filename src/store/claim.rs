//! Which node a broker is when several run in one directory. The node id is the directory's, and an engine has one
//! connection for a node: a second broker under the same id would take the first one's place, and be put out by it in turn.
//!
//! So a node is claimed by a lock that the kernel gives back whatever the end: the first broker has the directory's own
//! identity, every further one an identity beside it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::identity::Identity;
use super::lock::{Lock, attempt};
use super::secrets;

/// Brokers of one directory and workspace that can run at a time.
const PLACES: usize = 32;
/// What a broker that was killed has started may hold its lock for a moment longer.
const GRACE: Duration = Duration::from_millis(300);

/// An identity that no other broker of this machine uses in the workspace, as long as this lives.
#[derive(Debug)]
pub struct Claim {
    pub identity: Identity,
    /// Another broker has the directory's own.
    pub is_beside: bool,
    /// `None`: there is no place for lock files; the engine has to tell.
    _lock: Option<Lock>,
}

impl Claim {
    /// `kept` is the name of a broker whose state outlives it: it is given the same identity again as far as possible,
    /// because the engine keeps messages for the agents of a node.
    ///
    /// # Errors
    /// In words, when all places are taken.
    pub fn take(data_dir: &Path, own: &Identity, workspace_id: &str, kept: Option<&str>) -> Result<Claim, String> {
        let dir = data_dir.join("agent-relay").join("node-locks");
        let file = |identity: &Identity| dir.join(format!("{}.lock", identity.node_id_in(workspace_id)));
        let unlocked = |error: &dyn std::fmt::Display| {
            log::warn!("no other broker is kept from being the same node: {error}");
            Claim { identity: own.clone(), is_beside: false, _lock: None }
        };
        if let Err(error) = secrets::make_private_dir(&dir) {
            return Ok(unlocked(&error));
        }
        let mut places: Vec<Identity> = (1..PLACES).map(|place| own.beside(kept, place)).collect();
        // A kept broker that once was beside another stays there.
        let at = usize::from(kept.is_some() && file(&places[0]).exists());
        places.insert(at, own.clone());
        for identity in places {
            match within(GRACE, || attempt(&file(&identity))) {
                Ok(Some(lock)) => return Ok(Claim { is_beside: identity != *own, identity, _lock: Some(lock) }),
                Ok(None) => {}
                Err(error) => return Ok(unlocked(&error)),
            }
        }
        Err(format!("{PLACES} brokers of this directory run already"))
    }
}

/// Tries for a while.
fn within<T, E>(limit: Duration, attempt: impl Fn() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    #[test]
    fn of_brokers_in_one_directory_each_is_another_node() {
        let scratch = Scratch::new();
        let own = Identity::of("seed", "/d");
        let claim = |workspace: &str, kept| Claim::take(&scratch, &own, workspace, kept).unwrap();
        let claims = [claim("7", Some("a")), claim("7", Some("b")), claim("7", None), claim("7", None)];
        let mut ids: Vec<String> = claims.iter().map(|claim| claim.identity.node_id()).collect();
        assert_eq!(ids[0], own.node_id(), "the first is the directory's node");
        assert_eq!(claims.iter().map(|claim| claim.is_beside).collect::<Vec<_>>(), [false, true, true, true]);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 4);
        assert_eq!(mode(&scratch.join("agent-relay/node-locks")), 0o700);
        // Another workspace or directory is another matter.
        assert!(!claim("8", Some("b")).is_beside);
        let other = Claim::take(&scratch, &Identity::of("seed", "/e"), "7", None).unwrap();
        assert!(!other.is_beside);
    }

    #[test]
    fn a_kept_broker_gets_its_node_again_and_a_free_one_is_taken() {
        let scratch = Scratch::new();
        let own = Identity::of("seed", "/d");
        let claim = |kept| Claim::take(&scratch, &own, "7", kept).unwrap();
        let first = claim(Some("a"));
        let beside = claim(Some("b")).identity;
        drop(first);
        // In whatever order they start again.
        let second = claim(Some("b"));
        let first = claim(Some("a"));
        assert_eq!((&second.identity, &first.identity), (&beside, &own));
        drop((first, second));
        // A broker that leaves nothing behind has nothing to come back to; one that was alone is the directory's.
        for kept in [None, Some("c"), Some("a")] {
            assert!(!claim(kept).is_beside, "{kept:?}");
        }
        let (first, passing) = (claim(None), claim(None));
        drop((first, passing));
        assert!(!claim(None).is_beside);
    }

    #[test]
    fn without_a_place_for_locks_the_directory_is_one_node() {
        let scratch = Scratch::new();
        std::fs::write(scratch.join("agent-relay"), "").unwrap();
        let own = Identity::of("seed", "/d");
        let claim = Claim::take(&scratch, &own, "7", None).unwrap();
        assert_eq!((claim.identity, claim.is_beside), (own, false));
    }
}
