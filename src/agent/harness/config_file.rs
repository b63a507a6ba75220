//! A JSON file in the working directory that a harness reads: our entry is merged into it, and taken out again with the
//! last agent that uses it.
//!
//! The file belongs to the user. What was in it stays, byte for byte when nobody else has written to it meanwhile. It holds
//! keys, so a file of ours is 0600; the mode of the user's own file is kept.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::server::Server;
use super::{Trouble, pretty};
use crate::sys::ids;

/// What a harness wants in which file.
pub struct ConfigFile {
    /// Relative to the working directory.
    pub path: &'static str,
    /// Whether missing directories above it are made.
    pub makes_directories: bool,
    /// What goes to the command line with it.
    pub arguments: &'static [&'static str],
    /// The flag by which the caller says that he has his own.
    pub opt_out: Option<&'static str>,
    /// Where what is ours lies, each from the outermost key; also what has to go for it.
    pub entries: Entries,
    /// The content with our entry, or why the file must not be touched.
    pub merge: Merge,
}

/// Places in a file.
pub type Entries = &'static [&'static [&'static str]];

/// The content of a file with our entry in it.
pub type Merge = fn(Parsed<'_>, &Server) -> Result<Map<String, Value>, String>;

/// A file as it was found.
pub enum Parsed<'a> {
    Absent,
    Object(Map<String, Value>),
    /// Not JSON, or no object: why.
    Unusable(&'a str),
}

/// The object under `key`; anything else there is replaced by an empty one.
pub fn object_at<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(inner) => inner,
        _ => unreachable!("it has just been made an object"),
    }
}

/// A file that agents of this process use, and what it would be without them.
struct Shared {
    /// `None`: it would not exist.
    original: Option<Vec<u8>>,
    /// The outermost directory that was made for it.
    made: Option<PathBuf>,
    written: Vec<u8>,
    entries: Entries,
    users: usize,
}

/// Held while a file is read, merged and written: agents that start at once in one directory must not lose each other's
/// entries, and the last one to end puts back what was there before the first.
fn shared() -> MutexGuard<'static, BTreeMap<PathBuf, Shared>> {
    static FILES: Mutex<BTreeMap<PathBuf, Shared>> = Mutex::new(BTreeMap::new());
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One agent's use of a file. Dropping it gives the use up.
#[derive(Debug)]
pub struct InUse(PathBuf);

impl ConfigFile {
    pub fn is_opted_out(&self, existing: &[String]) -> bool {
        let Some(flag) = self.opt_out else { return false };
        existing.iter().any(|arg| arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
    }

    /// Writes our entry into the file of `cwd`.
    ///
    /// # Errors
    /// The file cannot be read as an object (opencode), or not be written. It is as it was then.
    pub fn join(&self, cwd: &Path, server: &Server) -> Result<InUse, Trouble> {
        let path = cwd.join(self.path);
        let trouble = |cause: String| {
            let name = Path::new(self.path).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let place = path.display();
            Trouble::new(format!(
                "failed to write {name} for Agent Relay MCP. Please configure the agent-relay server in {place} by hand"
            ))
            .because(cause)
        };
        let mut files = shared();
        let before = match std::fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => None,
            Err(error) => return Err(trouble(format!("{}: {error}", path.display()))),
        };
        let unusable;
        let parsed = match before.as_deref().map(serde_json::from_slice::<Value>) {
            None => Parsed::Absent,
            Some(Ok(Value::Object(object))) => Parsed::Object(object),
            Some(Ok(_)) => {
                unusable = format!("{} does not hold a JSON object", path.display());
                Parsed::Unusable(&unusable)
            }
            Some(Err(error)) => {
                unusable = format!("{} is not JSON: {error}", path.display());
                Parsed::Unusable(&unusable)
            }
        };
        let copies = matches!(parsed, Parsed::Unusable(_));
        let merged = (self.merge)(parsed, server).map_err(trouble)?;
        if copies {
            keep_copy(&path, before.as_deref().unwrap_or_default());
        }
        let content = pretty(&Value::Object(merged)).into_bytes();
        let made = if self.makes_directories { first_missing(path.parent()) } else { None };
        if let Some(directory) = path.parent().filter(|_| self.makes_directories) {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|error| trouble(format!("{}: {error}", directory.display())))?;
        }
        write(&path, &content).map_err(|error| trouble(format!("{}: {error}", path.display())))?;
        let file = files.entry(path.clone()).or_insert_with(|| Shared {
            original: before.clone(),
            made,
            written: before.clone().unwrap_or_default(),
            entries: self.entries,
            users: 0,
        });
        // What somebody wrote since the last agent is theirs, like what the first one found.
        if before.as_ref() != Some(&file.written) {
            file.original = file.without_ours(before);
        }
        file.written = content;
        file.users += 1;
        Ok(InUse(path))
    }
}

impl InUse {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves the file as it is, for a process that outlives this one.
    pub fn keep(self) {
        shared().remove(&self.0);
        std::mem::forget(self);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut files = shared();
        let Some(file) = files.get_mut(&self.0) else { return };
        file.users -= 1;
        if file.users > 0 {
            return;
        }
        if let Some(file) = files.remove(&self.0)
            && let Err(error) = file.put_back(&self.0)
        {
            log::warn!("'{}' still holds the entry of an agent that is gone: {error}", self.0.display());
        }
    }
}

impl Shared {
    /// What remains of a file that somebody else has written to, when all goes from it that is still as we wrote it.
    fn without_ours(&self, now: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let (Some(found), Some(ours)) = (object_of(now.as_deref()?), object_of(&self.written)) else { return now };
        let before = self.original.as_deref().and_then(object_of).unwrap_or_default();
        let mut left = found.clone();
        self.entries.iter().for_each(|entry| take_back(&mut left, entry, &ours, &before));
        if left == found {
            return now;
        }
        let was_ours_alone = left.is_empty() && self.original.is_none();
        (!was_ours_alone).then(|| pretty(&Value::Object(left)).into_bytes())
    }

    /// Nobody uses the file any more.
    fn put_back(&self, path: &Path) -> io::Result<()> {
        let now = match std::fs::read(path) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let left = if now == self.written { self.original.clone() } else { self.without_ours(Some(now.clone())) };
        match left {
            Some(left) if left == now => Ok(()),
            Some(left) => write(path, &left),
            None => {
                std::fs::remove_file(path)?;
                self.remove_directories(path);
                Ok(())
            }
        }
    }

    /// Directories that were made for the file go as far as they are empty.
    fn remove_directories(&self, path: &Path) {
        let Some(outermost) = &self.made else { return };
        for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(outermost)) {
            if std::fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}

fn object_of(bytes: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(bytes).ok()
}

/// Makes one place in `left` what it was before us, if it still is what we made of it.
fn take_back(left: &mut Map<String, Value>, keys: &[&str], ours: &Map<String, Value>, before: &Map<String, Value>) {
    let Some((key, rest)) = keys.split_first() else { return };
    let was = before.get(*key);
    if rest.is_empty() {
        if ours.get(*key) == was || left.get(*key) != ours.get(*key) {
            return;
        }
    } else {
        let (Some(Value::Object(inner)), Some(Value::Object(ours))) = (left.get_mut(*key), ours.get(*key)) else {
            return;
        };
        let none = Map::new();
        take_back(inner, rest, ours, was.and_then(Value::as_object).unwrap_or(&none));
        // Made for our entry, or put in the place of something else.
        if !inner.is_empty() || was.is_some_and(Value::is_object) {
            return;
        }
    }
    match was {
        Some(value) => left.insert(key.to_string(), value.clone()),
        None => left.remove(*key),
    };
}

fn first_missing(directory: Option<&Path>) -> Option<PathBuf> {
    directory?.ancestors().take_while(|directory| !directory.exists()).last().map(Path::to_path_buf)
}

/// Replaces the content, or leaves the file as it was: what is new takes its place when it is complete, because a disk can
/// be full. A link to it and the mode of an existing file stay; a new file is 0600.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let target = match path.canonicalize() {
        Ok(target) => target,
        // Through a link that leads nowhere yet.
        Err(_) if path.is_symlink() => return write_in_place(path, content),
        Err(_) => path.to_path_buf(),
    };
    let before = std::fs::metadata(&target).ok();
    if before.as_ref().is_some_and(|before| !before.is_file()) {
        return write_in_place(path, content);
    }
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}", ids::uuid_hex()));
    let beside = target.with_file_name(name);
    let written = write_beside(&beside, content, before.as_ref()).and_then(|()| std::fs::rename(&beside, &target));
    let Err(error) = written else { return Ok(()) };
    let _ = std::fs::remove_file(&beside);
    match error.kind() {
        // A directory or an owner that are not ours, a mount of the file alone: nothing can take its place.
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::ResourceBusy => {
            write_in_place(path, content)
        }
        _ => Err(error),
    }
}

fn write_beside(beside: &Path, content: &[u8], before: Option<&Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(content)?;
    if let Some(before) = before {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
            std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.set_permissions(before.permissions())?;
    }
    // Some file systems find out only here that there is no room.
    file.sync_all()
}

fn write_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let before = std::fs::read(path);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content).inspect_err(|_| {
        // The room that it took is still there, as a rule.
        if let Ok(before) = before {
            let _ = std::fs::write(path, before);
        }
    })
}

/// Keeps bytes that are about to be replaced in `<path>.unreadable`, or the first free name after it.
pub fn keep_copy(path: &Path, bytes: &[u8]) {
    let names = std::iter::once(String::new()).chain((2..100).map(|number| format!("-{number}")));
    for suffix in names {
        let copy = PathBuf::from(format!("{}.unreadable{suffix}", path.display()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy) {
            Ok(mut file) => {
                match file.write_all(bytes) {
                    Ok(()) => log::warn!("'{}' could not be read; a copy is in '{}'", path.display(), copy.display()),
                    Err(error) => log::warn!("'{}' could not be copied: {error}", path.display()),
                }
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Of an earlier agent.
                if std::fs::read(&copy).is_ok_and(|kept| kept == bytes) {
                    return;
                }
            }
            Err(error) => return log::warn!("'{}' could not be copied: {error}", path.display()),
        }
    }
    log::warn!("'{}' could not be copied: there are too many copies of it already", path.display());
}

#[cfg(test)]
mod tests;
