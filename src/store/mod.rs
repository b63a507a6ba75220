//! What the broker keeps on disk: where it lies, who may read it, how it is written.
//!
//! Invariants: a file that holds a secret is 0600 from the moment it exists and its directory 0700; every rewrite is a
//! temporary file, fsync, rename, fsync of the directory, so that a crash leaves the old content or the new one; the
//! journal only grows between rewrites and tolerates a torn tail; no symbolic link is followed to a file that is
//! written. Every error names its file.
//!
//! No threads; every call is bounded by the disk.

pub mod connection;
pub mod continuity;
pub mod identity;
pub mod journal;
pub mod lock;
pub mod paths;
pub mod pending;
pub mod pid;
pub mod secrets;
pub mod state;
pub mod tokens;

mod claim;
mod compaction;

pub use claim::Claim;
pub use identity::Identity;
pub use journal::Journal;
pub use lock::Lock;
pub use paths::{Keep, StateDir};

#[cfg(test)]
pub(crate) mod scratch {
    //! A directory of one test, removed at its end.
    use std::path::{Path, PathBuf};

    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new() -> Scratch {
            let path = std::env::temp_dir().join(format!("store-test-{}", crate::sys::ids::uuid_hex()));
            std::fs::create_dir(&path).expect("a scratch directory");
            Scratch(path)
        }
    }

    impl std::ops::Deref for Scratch {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt;
        std::fs::symlink_metadata(path).expect("it exists").permissions().mode() & 0o7777
    }
}
