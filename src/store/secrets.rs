//! Files that only their owner may read, written so that a crash leaves the old content or the new one.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::sys::ids;

/// Nothing that is read back whole is larger.
const READ_LIMIT: u64 = 16 << 20;

/// The system's error with the file it is about.
pub fn naming(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// # Errors
/// The system's, naming the file.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| naming("failed to set the mode of", path, &error))
}

/// Makes a directory with its parents; what is new is 0700, what exists stays as it is.
///
/// # Errors
/// The system's, naming the directory.
pub fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| naming("failed to create directory", path, &error))
}

/// As [`make_dir`], and tightens an existing directory to 0700.
///
/// # Errors
/// The system's, naming the directory.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    make_dir(path)?;
    let found = std::fs::metadata(path).map_err(|error| naming("failed to read", path, &error))?;
    if found.mode() & 0o077 != 0 {
        set_mode(path, 0o700)?;
    }
    Ok(())
}

/// Replaces a file's content, 0600. A symbolic link in its place is replaced, not followed.
///
/// # Errors
/// The system's (also a full disk), naming the file; the old content is intact then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_open(path, content).map(drop)
}

/// As [`replace`]; gives back the new file, open for appending.
///
/// # Errors
/// As [`replace`].
pub fn replace_open(path: &Path, content: &[u8]) -> io::Result<File> {
    let fail = |error: io::Error| naming("failed to write", path, &error);
    let (temporary, file) = write_temporary(path, content, true).map_err(fail)?;
    if let Err(error) = std::fs::rename(&temporary, path) {
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(error));
    }
    sync_dir_of(path).map_err(fail)?;
    Ok(file)
}

/// As [`replace`], but without waiting for the disk: after a crash of the machine it may be the old file, or none.
///
/// # Errors
/// As [`replace`].
pub fn replace_unsynced(path: &Path, content: &[u8]) -> io::Result<()> {
    let fail = |error: io::Error| naming("failed to write", path, &error);
    let (temporary, _) = write_temporary(path, content, false).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        fail(error)
    })
}

/// Creates a file that must not exist yet, complete from the first moment on. `false`: somebody else was faster.
///
/// # Errors
/// The system's, naming the file.
pub fn create_new(path: &Path, content: &[u8]) -> io::Result<bool> {
    let fail = |error: io::Error| naming("failed to write", path, &error);
    let (temporary, _) = write_temporary(path, content, true).map_err(fail)?;
    let linked = std::fs::hard_link(&temporary, path);
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => sync_dir_of(path).map_err(fail).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

/// Reads a file that may hold a secret, and tightens it to 0600 if others could read it. Follows no symbolic link.
///
/// # Errors
/// The system's, naming the file; also when it is no regular file or larger than 16 MiB.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let fail = |error: io::Error| naming("failed to read", path, &error);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(fail)?;
    let found = file.metadata().map_err(fail)?;
    if !found.is_file() {
        return Err(fail(io::Error::other("not a regular file")));
    }
    if found.mode() & 0o077 != 0
        && let Err(error) = file.set_permissions(Permissions::from_mode(0o600))
    {
        // Somebody else's file: readable, but not ours to change.
        log::warn!("{} can be read by others and cannot be tightened: {error}", path.display());
    }
    let mut content = Vec::new();
    (&file).take(READ_LIMIT + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > READ_LIMIT {
        return Err(fail(io::Error::other("larger than 16 MiB")));
    }
    Ok(content)
}

/// Removes a file; one that is not there is no error.
///
/// # Errors
/// The system's, naming the file.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(naming("failed to remove", path, &error)),
        _ => Ok(()),
    }
}

/// Keeps a damaged file under a second name beside itself, so that the first can be rewritten; says which.
///
/// # Errors
/// The system's, naming the file.
pub fn keep_aside(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".damaged-{}", &ids::uuid_hex()[..8]));
    let aside = path.with_file_name(name);
    std::fs::hard_link(path, &aside).map_err(|error| naming("failed to set aside", path, &error))?;
    Ok(aside)
}

/// A complete, synced file with an unguessable name beside `path`, open for appending.
fn write_temporary(path: &Path, content: &[u8], synced: bool) -> io::Result<(PathBuf, File)> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", ids::uuid_hex()));
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits() as i32)
        .open(&temporary)?;
    // The umask may have taken more than was meant, never less.
    let written = file.write_all(content).and_then(|()| if synced { file.sync_all() } else { Ok(()) });
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok((temporary, file))
}

/// Makes a rename or a link survive a power loss.
pub fn sync_dir_of(path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    #[test]
    fn f18_s1_files_are_0600_also_over_a_looser_one() {
        let scratch = Scratch::new();
        let path = scratch.join("token.json");
        std::fs::write(&path, "old").unwrap();
        set_mode(&path, 0o644).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        set_mode(&path, 0o644).unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read_dir(&*scratch).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn s1_no_symbolic_link_is_followed() {
        let scratch = Scratch::new();
        let victim = scratch.join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let path = scratch.join("token.json");
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(read(&path).is_err());
        replace(&path, b"secret").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(!std::fs::symlink_metadata(&path).unwrap().is_symlink());
    }

    #[test]
    fn create_new_never_overwrites() {
        let scratch = Scratch::new();
        let path = scratch.join("id");
        assert!(create_new(&path, b"first").unwrap());
        assert!(!create_new(&path, b"second").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read_dir(&*scratch).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_file_and_odd_files_do_not_block() {
        let scratch = Scratch::new();
        let path = scratch.join("missing/x.json");
        for error in [replace(&path, b"").unwrap_err(), read(&path).unwrap_err(), create_new(&path, b"").unwrap_err()] {
            assert!(error.to_string().contains("missing/x.json"), "{error}");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
        assert!(read(&scratch).is_err());
        let pipe = scratch.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(read(&pipe).is_err(), "a pipe must not block the reader");
        remove(&path).unwrap();
    }

    #[test]
    fn h17_a_full_disk_leaves_the_old_content_and_names_the_file() {
        // /dev/full refuses every byte: the same answer as a full disk, without one.
        let error = naming("failed to write", Path::new("/s/state-b.json"), &io::Error::from_raw_os_error(28));
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("failed to write /s/state-b.json: No space left"), "{error}");
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(full.write_all(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_damaged_file_is_kept_beside_its_replacement() {
        let scratch = Scratch::new();
        let path = scratch.join("j");
        std::fs::write(&path, "??").unwrap();
        let aside = keep_aside(&path).unwrap();
        replace(&path, b"good").unwrap();
        assert_eq!(std::fs::read(aside).unwrap(), b"??");
        assert_eq!(std::fs::read(path).unwrap(), b"good");
    }
}
