//! The journal: one JSON line per accepted fact, appended; at start it is replayed and rewritten compactly.
//!
//! Invariants
//! - [`Journal::append`] has handed the lines to the kernel when it returns; [`Journal::sync_to`] has them on disk.
//! - A torn last line is what a crash leaves: it was answered to nobody, and is cut off. A bad line before the last one
//!   is damage, and refuses the start: nothing is thrown away silently.
//! - The rewrite goes to another file that replaces the old one only when it is on disk.
//! - One engine per directory: the lock file is held as long as the journal lives.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::state::rows::Row;

const FILE: &str = "journal.jsonl";
const HEADER: &str = r#"{"journal":"relaycast-engine","version":1}"#;
/// Rewritten when so many bytes were appended since the last time, and twice as many as it had then.
const REWRITE_BYTES: u64 = 64 << 20;

/// The appending half, under the engine's lock; the syncing half beside it.
pub struct Journal {
    dir: PathBuf,
    file: Mutex<Tail>,
    /// Lines handed to the kernel.
    written: AtomicU64,
    /// Lines known to be on disk. Whoever holds it syncs for all that wait.
    synced: Mutex<u64>,
    broken: AtomicBool,
    _lock: File,
}

struct Tail {
    file: File,
    /// Size after the last rewrite, and what was appended since.
    base: u64,
    appended: u64,
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

fn damaged(line: usize, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} is damaged at line {line}: {why}"))
}

impl Journal {
    /// Opens the journal of `dir`, which is made if need be, and hands every row to `replay`.
    ///
    /// # Errors
    /// The system's; `InvalidData` when the journal is damaged before its end; `WouldBlock` when another engine has it.
    pub fn open(dir: &Path, replay: impl FnMut(Row)) -> io::Result<Journal> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = private(OpenOptions::new().write(true).create(true).truncate(false)).open(dir.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, format!("another engine uses {}", dir.display())))?;
        let path = dir.join(FILE);
        match File::open(&path) {
            Ok(file) => read(file, replay)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = private(OpenOptions::new().append(true).create(true)).open(&path)?;
        Ok(Journal {
            dir: dir.to_path_buf(),
            file: Mutex::new(Tail { file, base: 0, appended: 0 }),
            written: AtomicU64::new(0),
            synced: Mutex::new(0),
            broken: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Writes all that counts into a fresh file and puts it in the place of the old one.
    ///
    /// # Errors
    /// The system's; the old file is untouched then.
    pub fn rewrite(&self, rows: impl Iterator<Item = Row>) -> io::Result<()> {
        let mut tail = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (path, fresh) = (self.dir.join(FILE), self.dir.join("journal.new"));
        let file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(&fresh)?;
        let mut out = BufWriter::new(&file);
        writeln!(out, "{HEADER}")?;
        for row in rows {
            serde_json::to_writer(&mut out, &row)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        drop(out);
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(&self.dir)?.sync_all()?;
        *tail = Tail { file: OpenOptions::new().append(true).open(&path)?, base: file.metadata()?.len(), appended: 0 };
        Ok(())
    }

    /// Whether a rewrite would pay.
    pub fn is_long(&self) -> bool {
        let tail = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tail.appended > REWRITE_BYTES && tail.appended > 2 * tail.base
    }

    /// Appends lines; returns the number to give to [`Journal::sync_to`]. After a failure the journal is broken for good,
    /// because what the engine knows and what is written no longer agree.
    pub fn append(&self, lines: &[String]) -> u64 {
        if !lines.is_empty() && !self.is_broken() {
            let mut text = lines.join("\n");
            text.push('\n');
            let mut tail = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match tail.file.write_all(text.as_bytes()) {
                Ok(()) => {
                    tail.appended += text.len() as u64;
                    self.written.fetch_add(lines.len() as u64, Ordering::SeqCst);
                }
                Err(error) => self.fail(&error),
            }
        }
        self.written.load(Ordering::SeqCst)
    }

    /// Returns when line `number` is on disk. `false`: it may not be.
    pub fn sync_to(&self, number: u64) -> bool {
        let mut synced = self.synced.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *synced < number && !self.is_broken() {
            let written = self.written.load(Ordering::SeqCst);
            let tail = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).file.try_clone();
            // Appends go on meanwhile; they are the next caller's.
            match tail.and_then(|file| file.sync_data()) {
                Ok(()) => *synced = written,
                Err(error) => self.fail(&error),
            }
        }
        !self.is_broken()
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    fn fail(&self, error: &io::Error) {
        log::error!("the engine's journal cannot be written, nothing is accepted any more: {error}");
        self.broken.store(true, Ordering::SeqCst);
    }
}

/// Replays all whole lines.
fn read(file: File, mut replay: impl FnMut(Row)) -> io::Result<()> {
    let mut reader = BufReader::new(file);
    let (mut line, mut number) = (Vec::new(), 0);
    let mut torn: Option<(usize, String)> = None;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        number += 1;
        if let Some((at, why)) = torn {
            return Err(damaged(at, why));
        }
        if number == 1 && line.starts_with(br#"{"journal""#) {
            if line.trim_ascii_end() != HEADER.as_bytes() {
                return Err(damaged(1, "unknown version"));
            }
            continue;
        }
        if line.last() != Some(&b'\n') {
            torn = Some((number, "it has no end".into()));
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(row) => replay(row),
            Err(error) => torn = Some((number, error.to_string())),
        }
    }
    if let Some((at, why)) = torn {
        log::warn!("the engine's journal ends in a torn line ({at}: {why}); it is left out");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> PathBuf {
        std::env::temp_dir().join(format!("engine-journal-{}", crate::sys::ids::uuid_hex()))
    }

    fn gone(id: u64) -> Row {
        Row::AgentGone { id }
    }

    fn rows(dir: &Path) -> io::Result<Vec<Row>> {
        let mut rows = Vec::new();
        Journal::open(dir, |row| rows.push(row)).map(|_| rows)
    }

    #[test]
    fn what_was_written_is_read_without_the_torn_tail() {
        let dir = dir();
        let journal = Journal::open(&dir, |_| {}).unwrap();
        journal.rewrite([gone(1)].into_iter()).unwrap();
        let line = |row: &Row| serde_json::to_string(row).unwrap();
        let number = journal.append(&[line(&gone(2)), line(&gone(3))]);
        assert!(journal.sync_to(number));
        assert_eq!(rows(&dir).unwrap_err().kind(), io::ErrorKind::WouldBlock, "one engine per directory");
        drop(journal);
        assert_eq!(rows(&dir).unwrap(), [gone(1), gone(2), gone(3)]);
        let path = dir.join(FILE);
        let whole = fs::read(&path).unwrap();
        for torn in [&b"{\"agent_go"[..], b"{\"row\":1}\n"] {
            fs::write(&path, [&whole[..], torn].concat()).unwrap();
            assert_eq!(rows(&dir).unwrap(), [gone(1), gone(2), gone(3)]);
        }
        fs::write(&path, [&b"nonsense\n"[..], &whole[..]].concat()).unwrap();
        assert_eq!(rows(&dir).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::remove_dir_all(&dir).unwrap();
    }
}
