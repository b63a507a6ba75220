//! The journal: one JSON line per [`Record`], appended and synced before the ack that depends on it leaves.
//!
//! A crash can tear the last line; it is cut off at the next start. A line that is damaged anywhere else means that the
//! file was written by something else: the whole file is set aside, what can be read of it is kept. When the file has
//! doubled since its last rewrite (and is over 1 MiB) it is rewritten without what no longer counts.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::compaction::compact;
use super::secrets;
use crate::core::ports::Record;
use crate::sys::kernel;

/// Below this size a file is never rewritten.
const SMALLEST_REWRITE: u64 = 1 << 20;

/// The open journal. One process writes it: the lock of the state directory sees to that.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Up to here the file holds whole, synced lines.
    length: u64,
    /// A failed append left bytes behind that could not be cut off yet.
    dirty: bool,
    /// Rewritten when it grows past this.
    rewrite_at: u64,
}

/// What a start found in the journal.
#[derive(Debug, Default, PartialEq)]
pub struct Loaded {
    pub records: Vec<Record>,
    /// There was none.
    pub is_new: bool,
    /// Bytes of a torn last line that were cut off.
    pub torn_bytes: u64,
    /// Where a damaged file went, and its size.
    pub set_aside: Option<(PathBuf, u64)>,
}

impl Journal {
    /// Opens the journal, or makes it, 0600, and reads what it holds, without what no longer counts. Damage is logged at
    /// error with its size and never ends the start.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn open(path: &Path) -> io::Result<(Journal, Loaded)> {
        let mut loaded = Loaded::default();
        let content = match read_all(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                loaded.is_new = true;
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let parsed = parse(&content);
        if parsed.damaged_lines > 0 {
            // The damaged file stays under its own name until the rewrite below replaces it: a crash between loses nothing.
            let aside = secrets::keep_aside(path)?;
            log::error!(
                "{} is damaged: {} of its {} bytes cannot be read; it is kept as {}",
                path.display(),
                parsed.damaged_bytes,
                content.len(),
                aside.display()
            );
            loaded.set_aside = Some((aside, content.len() as u64));
        } else if parsed.torn_bytes > 0 {
            log::warn!("{}: {} bytes of a torn last record are cut off", path.display(), parsed.torn_bytes);
            loaded.torn_bytes = parsed.torn_bytes;
        }
        let before = parsed.records.len();
        loaded.records = compact(parsed.records);
        // A new file, a damaged one and one with something to leave out are written anew; so the file that is appended to
        // has the right mode and is no link.
        let unchanged = loaded.set_aside.is_none() && loaded.torn_bytes == 0 && before == loaded.records.len();
        let journal = if unchanged && !content.is_empty() {
            Journal::append_to(path, content.len() as u64)?
        } else {
            Journal::rewritten(path, &loaded.records)?
        };
        Ok((journal, loaded))
    }

    fn append_to(path: &Path, length: u64) -> io::Result<Journal> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = OpenOptions::new()
            .append(true)
            .custom_flags(flags.bits() as i32)
            .open(path)
            .map_err(|error| secrets::naming("failed to open", path, &error))?;
        Ok(Journal {
            path: path.to_path_buf(),
            file,
            length,
            dirty: false,
            rewrite_at: (length * 2).max(SMALLEST_REWRITE),
        })
    }

    fn rewritten(path: &Path, records: &[Record]) -> io::Result<Journal> {
        let content = lines(records)?;
        let file = secrets::replace_open(path, &content)?;
        let length = content.len() as u64;
        Ok(Journal {
            path: path.to_path_buf(),
            file,
            length,
            dirty: false,
            rewrite_at: (length * 2).max(SMALLEST_REWRITE),
        })
    }

    /// Writes the records and syncs them once. After `Ok` they survive a crash of the process and of the machine.
    ///
    /// # Errors
    /// The system's (also a full disk), naming the file: none of the records counts as written, and the next call starts
    /// from a clean end.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let fail = |path: &Path, error: &io::Error| secrets::naming("failed to write", path, error);
        if self.dirty {
            self.file.set_len(self.length).map_err(|error| fail(&self.path, &error))?;
            self.dirty = false;
        }
        let content = lines(records)?;
        let written = self.file.write_all(&content).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.dirty = self.file.set_len(self.length).is_err();
            return Err(fail(&self.path, &error));
        }
        self.length += content.len() as u64;
        if self.length >= self.rewrite_at {
            self.rewrite();
        }
        Ok(())
    }

    /// Leaves out what no longer counts. A failure costs nothing but space: the old file goes on.
    fn rewrite(&mut self) {
        let rewritten =
            read_all(&self.path).and_then(|content| Journal::rewritten(&self.path, &compact(parse(&content).records)));
        // What the whole file took up in memory would stay with the process while traffic goes on: the loop gives memory back
        // only when it is at rest.
        kernel::trim_memory();
        match rewritten {
            Ok(journal) => *self = journal,
            Err(error) => {
                log::warn!("the journal is not compacted: {error}");
                self.rewrite_at = self.length * 2;
            }
        }
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// The journal is not read through [`secrets::read`]: it may be larger than what that takes.
fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    let fail = |error: io::Error| secrets::naming("failed to read", path, &error);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(fail)?;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if file.metadata().map_err(fail)?.mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(fail)?;
    Ok(content)
}

fn lines(records: &[Record]) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(records.len() * 160);
    for record in records {
        serde_json::to_writer(&mut content, record).map_err(io::Error::other)?;
        content.push(b'\n');
    }
    Ok(content)
}

#[derive(Default)]
struct Parsed {
    records: Vec<Record>,
    torn_bytes: u64,
    damaged_lines: usize,
    damaged_bytes: u64,
}

/// A last line without its newline is torn, whatever it holds: the newline is written with it and synced with it.
/// Zeros at the end are torn too: some file systems leave them where a crash came between length and content.
fn parse(content: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = content;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        match serde_json::from_slice(line) {
            Ok(record) => parsed.records.push(record),
            Err(_) => {
                parsed.damaged_lines += 1;
                parsed.damaged_bytes += line.len() as u64 + 1;
            }
        }
        rest = after;
    }
    parsed.torn_bytes = rest.len() as u64;
    parsed
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{Scratch, mode};
    use super::*;

    fn record(seq: u64) -> Record {
        Record::Disposed { agent_id: "a1".into(), agent: "al".into(), seq, msg_id: format!("m{seq}") }
    }

    fn open(path: &Path) -> (Journal, Loaded) {
        Journal::open(path).expect("a journal")
    }

    #[test]
    fn l24_what_was_appended_is_there_after_a_restart() {
        let scratch = Scratch::new();
        let path = scratch.join("journal-b.jsonl");
        let (mut journal, loaded) = open(&path);
        assert_eq!(loaded, Loaded { is_new: true, ..Loaded::default() });
        assert_eq!(mode(&path), 0o600);
        journal.append(&[record(1), record(2)]).unwrap();
        journal.append(&[]).unwrap();
        journal.append(&[record(3)]).unwrap();
        drop(journal);
        secrets::set_mode(&path, 0o644).unwrap();
        let (mut journal, loaded) = open(&path);
        assert_eq!((loaded.records, loaded.is_new), (vec![record(1), record(2), record(3)], false));
        assert_eq!(mode(&path), 0o600);
        journal.append(&[record(4)]).unwrap();
        assert_eq!(open(&path).1.records.len(), 4);
    }

    #[test]
    fn l24_a_torn_tail_is_cut_at_every_offset() {
        let scratch = Scratch::new();
        let path = scratch.join("j");
        let whole = lines(&[record(1)]).unwrap();
        let second = lines(&[record(2)]).unwrap();
        for cut in 1..second.len() {
            std::fs::write(&path, [&whole[..], &second[..cut]].concat()).unwrap();
            let (mut journal, loaded) = open(&path);
            assert_eq!(loaded.records, [record(1)], "cut at {cut}");
            assert_eq!((loaded.torn_bytes, loaded.set_aside.clone()), (cut as u64, None));
            journal.append(&[record(3)]).unwrap();
            assert_eq!(open(&path).1.records, [record(1), record(3)], "cut at {cut}");
        }
    }

    #[test]
    fn l25_garbage_is_set_aside_and_what_is_readable_kept() {
        let scratch = Scratch::new();
        let path = scratch.join("j");
        let mut content = lines(&[record(1)]).unwrap();
        content.extend_from_slice(b"\xff\xfe not a record\n");
        content.extend(lines(&[record(2)]).unwrap());
        std::fs::write(&path, &content).unwrap();
        let (_, loaded) = open(&path);
        assert_eq!(loaded.records, [record(1), record(2)]);
        let (aside, bytes) = loaded.set_aside.expect("set aside");
        assert_eq!(bytes, content.len() as u64);
        assert_eq!(std::fs::read(aside).unwrap(), content);
        let (_, again) = open(&path);
        assert_eq!((again.records, again.set_aside), (vec![record(1), record(2)], None));
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let scratch = Scratch::new();
        let path = scratch.join("j");
        let (mut journal, _) = open(&path);
        let mut seq = 0;
        let mut largest = 0;
        while seq < 60_000 {
            let batch: Vec<Record> = (seq..seq + 500).map(record).collect();
            seq += 500;
            journal.append(&batch).unwrap();
            largest = largest.max(journal.len());
        }
        assert!(largest < 2 * SMALLEST_REWRITE, "{largest}");
        assert_eq!(journal.len(), std::fs::metadata(&path).unwrap().len());
        let (_, loaded) = open(&path);
        assert_eq!(loaded.records.len(), 512);
        assert_eq!(loaded.records.last(), Some(&record(59_999)));
        assert_eq!(std::fs::read_dir(&*scratch).unwrap().count(), 1);
    }

    #[test]
    fn h17_a_failed_append_names_the_file_and_leaves_a_clean_end() {
        let scratch = Scratch::new();
        let path = scratch.join("j");
        let (mut journal, _) = open(&path);
        journal.append(&[record(1)]).unwrap();
        let good = std::mem::replace(&mut journal.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        let error = journal.append(&[record(2)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        // Half a line went out before the disk was full; the next append starts behind the last whole one.
        (&good).write_all(br#"{"disp"#).unwrap();
        journal.file = good;
        journal.dirty = true;
        journal.append(&[record(3)]).unwrap();
        assert_eq!(open(&path).1.records, [record(1), record(3)]);
    }

    #[test]
    fn a_link_or_a_directory_in_its_place_is_an_error() {
        let scratch = Scratch::new();
        let path = scratch.join("j");
        std::os::unix::fs::symlink(scratch.join("elsewhere"), &path).unwrap();
        assert!(Journal::open(&path).unwrap_err().to_string().contains("/j"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(Journal::open(&path).is_err());
    }
}
