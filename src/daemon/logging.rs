//! The log: one line per fact, to a daily file or stderr, with every secret cut short.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::env::Env;
pub use crate::sys::redact::redact;
use crate::sys::threads::{self, Thread};

/// Where the log goes, by `AGENT_RELAY_BROKER_LOG`.
enum Target {
    Nowhere,
    Stderr,
    File(Daily),
}

/// Starts the log of this process under `id`. A directory that cannot be made means no log and no error (9.1.6).
pub fn start(env: &Env, id: &str) {
    let target = match env.get("AGENT_RELAY_BROKER_LOG").map(str::to_ascii_lowercase).as_deref() {
        Some("off" | "none" | "0" | "false" | "no") => Target::Nowhere,
        Some("stderr" | "print") => Target::Stderr,
        _ => match log_dir(env).and_then(|dir| Daily::open(dir, id).ok()) {
            Some(daily) => Target::File(daily),
            None => Target::Nowhere,
        },
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Info);
    if let Some(filter) = env.get("RUST_LOG") {
        builder.parse_filters(filter);
    }
    builder.format(|out, record| {
        writeln!(
            out,
            "{} {} {} {}",
            out.timestamp_micros(),
            record.level(),
            record.target(),
            redact(&record.args().to_string())
        )
    });
    builder.write_style(env_logger::WriteStyle::Never);
    let _ = match target {
        Target::Nowhere => return,
        Target::Stderr => builder.target(pipe(Box::new(io::stderr()))).try_init(),
        Target::File(daily) => builder.target(pipe(Box::new(daily))).try_init(),
    };
}

/// Lines that may wait for the disk or for whoever reads stderr; further ones are dropped and counted, because a log must
/// never hold up the broker.
const LINES: usize = 256;

/// The thread `log` and the way to it.
struct Writer {
    lines: Mutex<Option<Sender<Vec<u8>>>>,
    dropped: AtomicU64,
    thread: Mutex<Option<Thread>>,
}

static WRITER: OnceLock<Writer> = OnceLock::new();

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pipe(mut sink: Box<dyn Write + Send>) -> env_logger::Target {
    let (sender, lines) = bounded::<Vec<u8>>(LINES);
    let started = threads::spawn("log", move || {
        threads::drains(lines.clone());
        threads::doing("waiting for a line");
        for line in lines {
            let dropped = WRITER.get().map_or(0, |writer| writer.dropped.swap(0, Ordering::Relaxed));
            if dropped > 0 {
                let _ = writeln!(sink, "{dropped} lines were dropped: the log could not be written fast enough");
            }
            let _ = sink.write_all(&line);
        }
    });
    let writer = Writer {
        lines: Mutex::new(started.is_ok().then_some(sender)),
        dropped: AtomicU64::new(0),
        thread: Mutex::new(started.ok()),
    };
    let _ = WRITER.set(writer);
    env_logger::Target::Pipe(Box::new(Mouth))
}

/// Gives each record to the writer, or drops it.
struct Mouth;

impl Write for Mouth {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(writer) = WRITER.get()
            && let Some(lines) = locked(&writer.lines).as_ref()
            && lines.try_send(bytes.to_vec()).is_err()
        {
            writer.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what waits, for at most 200 ms; what is logged later is lost.
pub fn finish() {
    let Some(writer) = WRITER.get() else { return };
    drop(locked(&writer.lines).take());
    if let Some(thread) = locked(&writer.thread).take() {
        thread.join(Duration::from_millis(200));
    }
}

fn log_dir(env: &Env) -> Option<PathBuf> {
    let base = env
        .get("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env.get("HOME").map(|home| Path::new(home).join(".local/state")))?;
    Some(base.join("agentworkforce/relay/logs"))
}

/// Bytes of log kept per id, and days.
const KEPT_BYTES: u64 = 50 << 20;
const KEPT_DAYS: u64 = 7;

/// One file per UTC day: `<id>.log.YYYY-MM-DD`.
struct Daily {
    dir: PathBuf,
    id: String,
    day: u64,
    written: u64,
    file: Option<File>,
}

impl Daily {
    fn open(dir: PathBuf, id: &str) -> io::Result<Daily> {
        std::fs::create_dir_all(&dir)?;
        let id = id.chars().map(|c| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
        let mut daily = Daily { dir, id, day: 0, written: 0, file: None };
        daily.turn(today())?;
        Ok(daily)
    }

    fn turn(&mut self, day: u64) -> io::Result<()> {
        self.day = day;
        self.prune();
        let path = self.dir.join(format!("{}.log.{}", self.id, crate::wire::time::date(day)));
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        self.written = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        self.file = Some(file);
        Ok(())
    }

    /// Removes what is older than a week, and the oldest while there is too much. An id with the process's own number has
    /// files of other numbers beside it, which nobody else would remove.
    fn prune(&self) {
        let family = self.id.strip_suffix(&format!("-{}", std::process::id()));
        let is_ours = |name: &str| {
            let Some((id, _)) = name.split_once(".log.") else { return false };
            let number = family.and_then(|family| id.strip_prefix(family)?.strip_prefix('-'));
            id == self.id
                || number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let day_of = |name: &str| name.rsplit('.').next().unwrap_or_default().to_string();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let mut files: Vec<(String, u64)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let size = entry.metadata().ok()?.len();
                is_ours(&name).then_some((name, size))
            })
            .collect();
        files.sort_by_key(|(name, _)| day_of(name));
        let oldest_kept = crate::wire::time::date(self.day.saturating_sub(KEPT_DAYS - 1));
        let mut total: u64 = files.iter().map(|(_, size)| size).sum();
        for (name, size) in files {
            if day_of(&name) < oldest_kept || total > KEPT_BYTES {
                let _ = std::fs::remove_file(self.dir.join(&name));
                total -= size;
            }
        }
    }
}

fn today() -> u64 {
    crate::sys::clock::unix_ms() / 86_400_000
}

impl Write for Daily {
    /// Never fails upward: a full disk must not stop the broker. What exceeds the day's bound is dropped.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let day = today();
        if day != self.day {
            let _ = self.turn(day);
        }
        if self.written < KEPT_BYTES
            && let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.written += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One message on stderr. Whoever read it may have gone: that is no reason to fail, as `eprintln!` would.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A message for the operator, whatever the log setting. Standard output stays clean.
pub fn operator(text: &str) {
    say(&format!("[agent-relay] {}", redact(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_and_fifty_megabytes_are_kept_of_each_id() {
        let dir = std::env::temp_dir().join(format!("logs-{}", crate::sys::ids::uuid_hex()));
        let day = today();
        let name = |id: &str, back: u64| format!("{id}.log.{}", crate::wire::time::date(day - back));
        std::fs::create_dir_all(&dir).expect("a directory");
        let put = |name: String, bytes: u64| {
            File::create(dir.join(name)).and_then(|file| file.set_len(bytes)).expect("a file");
        };
        for back in [1, 2, 6, 7, 30] {
            put(name("vm", back), 10);
        }
        put(name("vm-2", 30), 10);
        let listed = || {
            let mut names: Vec<String> = std::fs::read_dir(&dir)
                .expect("the directory")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
                .collect();
            names.sort();
            names
        };
        Daily::open(dir.clone(), "vm").expect("a log");
        let mut expected: Vec<String> = [0, 1, 2, 6].map(|back| name("vm", back)).into();
        expected.push(name("vm-2", 30));
        expected.sort();
        assert_eq!(listed(), expected, "the other id is not ours");
        // The oldest go until the rest is small enough.
        put(name("vm", 2), 40 << 20);
        put(name("vm", 1), 11 << 20);
        let mut daily = Daily::open(dir.clone(), "vm").expect("a log");
        expected.retain(|file| *file != name("vm", 6) && *file != name("vm", 2));
        assert_eq!(listed(), expected);
        // A day's file has a bound too, and what exceeds it is no error.
        daily.written = KEPT_BYTES;
        assert_eq!(daily.write(b"too much\n").expect("never an error"), 9);
        assert_eq!(std::fs::metadata(dir.join(name("vm", 0))).expect("a file").len(), 0);
        // With the number of a process in their ids.
        let own = format!("wrap-x-{}", std::process::id());
        for (id, back) in [("wrap-x-1", 8), ("wrap-x-1", 2), ("wrap-x-y-1", 30)] {
            put(name(id, back), 10);
        }
        Daily::open(dir.clone(), &own).expect("a log");
        let left: Vec<String> = listed().into_iter().filter(|file| file.starts_with("wrap")).collect();
        let mut expected = [name(&own, 0), name("wrap-x-1", 2), name("wrap-x-y-1", 30)].to_vec();
        expected.sort();
        assert_eq!(left, expected);
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
