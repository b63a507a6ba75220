//! Where the text of a terminal goes: viewers, activity marks, the log file.
//!
//! Nothing is lost on the way to a viewer: handing over may block, and then the program's own writes block in the kernel.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::Timing;
use crate::core::ports::AgentNote;

/// A buffer of this size is handed over at once.
const FLUSH_BYTES: usize = 4096;
/// So much text goes to the log file in one write: of a flood, writes of single reads cost a quarter of the time.
const LOG_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub struct Outlet {
    /// How many viewers there are.
    watched: Arc<AtomicUsize>,
    log: Log,
    /// Not in the log file yet: what came since [`Outlet::write_log`].
    unlogged: String,
    buffer: String,
    /// Bytes of text so far, those in `buffer` included.
    offset: u64,
    last_flush: Option<Instant>,
    flush_at: Option<Instant>,
    last_active: Option<Instant>,
    active_at: Option<Instant>,
}

/// The log file of an agent: opened with the first output, given up at the first error.
#[derive(Debug)]
pub enum Log {
    Off,
    Closed(PathBuf),
    Open(File, PathBuf),
}

impl Outlet {
    pub fn new(watched: Arc<AtomicUsize>, log_file: Option<PathBuf>) -> Outlet {
        Outlet {
            watched,
            log: Log::to(log_file),
            unlogged: String::new(),
            buffer: String::new(),
            offset: 0,
            last_flush: None,
            flush_at: None,
            last_active: None,
            active_at: None,
        }
    }

    /// Bytes of text so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The log file, if there is output in it.
    pub fn log_path(&self) -> Option<String> {
        self.log.path()
    }

    /// Takes new text. Returns what is to be told now, at most one note.
    pub fn push(&mut self, text: String, now: Instant, timing: &Timing) -> Option<AgentNote> {
        if text.is_empty() {
            return None;
        }
        if self.unlogged.is_empty() && text.len() < FLUSH_BYTES / 2 {
            // No flood.
            self.log.append(&text);
        } else if !matches!(self.log, Log::Off) {
            self.unlogged.push_str(&text);
            if self.unlogged.len() >= LOG_BYTES {
                self.write_log();
            }
        }
        self.offset += text.len() as u64;
        if self.watched.load(Ordering::Relaxed) == 0 && self.buffer.is_empty() {
            let due = self.last_active.map(|last| last + timing.active_every).filter(|due| now < *due);
            self.active_at = due;
            return due.is_none().then(|| self.activity(now));
        }
        self.active_at = None;
        if self.buffer.is_empty() {
            // Of a flood each read is a chunk as it is.
            self.buffer = text;
        } else {
            self.buffer.push_str(&text);
        }
        let due = self.last_flush.map(|last| last + timing.flush_every).filter(|due| now < *due);
        if self.buffer.len() >= FLUSH_BYTES || due.is_none() {
            return self.flush(now);
        }
        self.flush_at.get_or_insert(due.unwrap_or(now));
        None
    }

    /// To be called when nothing more is to be read for now.
    pub fn write_log(&mut self) {
        if !self.unlogged.is_empty() {
            // Not cleared: what a flood needed is not kept by an agent that has become quiet.
            self.log.append(&std::mem::take(&mut self.unlogged));
        }
    }

    fn activity(&mut self, now: Instant) -> AgentNote {
        (self.last_active, self.active_at) = (Some(now), None);
        AgentNote::Active
    }

    /// Hands over what is buffered.
    pub fn flush(&mut self, now: Instant) -> Option<AgentNote> {
        self.flush_at = None;
        if self.buffer.is_empty() {
            return None;
        }
        self.last_flush = Some(now);
        Some(AgentNote::Output { chunk: std::mem::take(&mut self.buffer), offset: self.offset })
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.flush_at.into_iter().chain(self.active_at).min()
    }

    /// What is due by time.
    pub fn tick(&mut self, now: Instant) -> Option<AgentNote> {
        if self.active_at.is_some_and(|at| at <= now) {
            return Some(self.activity(now));
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            return self.flush(now);
        }
        None
    }
}

impl Log {
    pub fn to(file: Option<PathBuf>) -> Log {
        file.map_or(Log::Off, Log::Closed)
    }

    pub fn append(&mut self, text: &str) {
        if let Log::Closed(path) = self {
            if let Some(directory) = path.parent() {
                // An existing directory is success; any other failure shows at the open.
                let _ = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            }
            match OpenOptions::new().append(true).create(true).mode(0o600).open(&path) {
                Ok(file) => *self = Log::Open(file, std::mem::take(path)),
                Err(error) => self.give_up(error),
            }
        }
        if let Log::Open(file, _) = self
            && let Err(error) = file.write_all(text.as_bytes())
        {
            self.give_up(error);
        }
    }

    /// The file, if there is output in it.
    pub fn path(&self) -> Option<String> {
        match self {
            Log::Open(_, path) => Some(path.display().to_string()),
            _ => None,
        }
    }

    fn give_up(&mut self, error: std::io::Error) {
        log::warn!("the log file of an agent is given up: {error}");
        *self = Log::Off;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outlet(viewers: usize) -> (Outlet, Arc<AtomicUsize>) {
        let watched = Arc::new(AtomicUsize::new(viewers));
        (Outlet::new(watched.clone(), None), watched)
    }

    fn output(chunk: &str, offset: u64) -> Option<AgentNote> {
        Some(AgentNote::Output { chunk: chunk.into(), offset })
    }

    #[test]
    fn chunks_leave_at_once_after_silence_and_are_coalesced_within_16_ms() {
        let ((mut outlet, _), timing, start) = (outlet(1), Timing::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(outlet.push("a".into(), at(0), &timing), output("a", 1));
        assert_eq!(outlet.push("b".into(), at(3), &timing), None);
        assert_eq!(outlet.push("c".into(), at(9), &timing), None);
        assert_eq!(outlet.deadline(), Some(at(16)));
        assert_eq!(outlet.tick(at(15)), None);
        assert_eq!(outlet.tick(at(16)), output("bc", 3));
        assert_eq!(outlet.deadline(), None);
        let long = "x".repeat(FLUSH_BYTES);
        assert_eq!(outlet.push(long.clone(), at(17), &timing), output(&long, 3 + FLUSH_BYTES as u64));
        assert_eq!(outlet.push("d".into(), at(40), &timing), output("d", 4 + FLUSH_BYTES as u64));
    }

    #[test]
    fn without_viewers_only_activity_is_told_and_rarely() {
        let ((mut outlet, watched), timing, start) = (outlet(0), Timing::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(outlet.push("a".into(), at(0), &timing), Some(AgentNote::Active));
        assert_eq!(outlet.deadline(), None, "nothing happened since");
        assert_eq!(outlet.push("b".into(), at(10), &timing), None);
        assert_eq!(outlet.deadline(), Some(at(250)));
        assert_eq!(outlet.tick(at(250)), Some(AgentNote::Active));
        assert_eq!(outlet.push("c".into(), at(300), &timing), None);
        watched.store(1, Ordering::Relaxed);
        assert_eq!(outlet.push("d".into(), at(301), &timing), output("d", 4));
        assert_eq!(outlet.deadline(), None);
    }

    #[test]
    fn the_log_gets_everything_and_is_given_up_on_error() {
        let directory = std::env::temp_dir().join(format!("broker-outlet-{}", crate::sys::ids::uuid_hex()));
        let path = directory.join("team/worker-logs/a.log");
        let (watched, timing) = (Arc::new(AtomicUsize::new(0)), Timing::default());
        for text in ["one ", "two"] {
            let mut outlet = Outlet::new(watched.clone(), Some(path.clone()));
            outlet.push(text.into(), Instant::now(), &timing);
        }
        assert_eq!(std::fs::read_to_string(&path).expect("a log"), "one two");
        // A flood does not wait for its end, nor is much of it kept.
        let mut outlet = Outlet::new(watched.clone(), Some(path.clone()));
        for _ in 0..40 {
            outlet.push("x".repeat(FLUSH_BYTES), Instant::now(), &timing);
            assert!(outlet.unlogged.len() < LOG_BYTES);
        }
        assert_eq!(std::fs::read(&path).expect("a log").len(), 7 + 2 * LOG_BYTES);
        outlet.write_log();
        assert_eq!(std::fs::read(&path).expect("a log").len(), 7 + 40 * FLUSH_BYTES);
        assert_eq!(outlet.unlogged.capacity(), 0);
        let mut outlet = Outlet::new(watched, Some("/proc/no/such.log".into()));
        assert_eq!(outlet.push("x".into(), Instant::now(), &timing), Some(AgentNote::Active));
        assert!(matches!(outlet.log, Log::Off));
        std::fs::remove_dir_all(directory).expect("cleanup");
    }
}
