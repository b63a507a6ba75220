//! The one constructor of threads, and the register from which the thread report is written.
//!
//! Every thread has a fixed name (at most 15 bytes, the kernel's limit), an explicit stack and an owner that joins it. A
//! panic ends only its thread: it is caught at the root, told as `file:line` ([`install_panic_hook`]) and handed to the hook
//! of [`on_panic`]. Each thread says what it is doing with [`doing`]; the report adds what the kernel knows.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::clock;

/// Half a MiB: the deepest stack measured (a TLS request in a debug build) needs 192 KiB. Address space only: what is not
/// touched costs no memory.
pub const STACK: usize = if cfg!(debug_assertions) { 1 << 20 } else { 512 << 10 };

/// What a thread last said about itself.
#[derive(Clone)]
struct Entry {
    name: String,
    tid: i32,
    doing: &'static str,
    since_ms: u64,
    queue: Option<Arc<dyn Fn() -> usize + Send + Sync>>,
}

#[derive(Default)]
struct Register {
    entries: BTreeMap<i32, Entry>,
}

fn register() -> &'static Mutex<Register> {
    static REGISTER: OnceLock<Mutex<Register>> = OnceLock::new();
    REGISTER.get_or_init(Mutex::default)
}

fn with_register<T>(f: impl FnOnce(&mut Register) -> T) -> T {
    // A poisoned register still holds whole entries: each is inserted or removed in one call.
    f(&mut register().lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

type PanicHook = Box<dyn Fn(&str) + Send + Sync>;

static PANIC_HOOK: OnceLock<PanicHook> = OnceLock::new();

/// Sets what is told the name of a thread that panicked. Only the first call counts.
pub fn on_panic(hook: impl Fn(&str) + Send + Sync + 'static) {
    let _ = PANIC_HOOK.set(Box::new(hook));
}

/// Makes a panic tell its thread and its place, and nothing of its message: that may hold what a peer or a terminal sent,
/// and it would pass by the redaction of the log. To stderr and to the log.
///
/// Process-wide; for the start of `main`, before the first thread.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map_or("?".to_string(), |at| format!("{}:{}", at.file(), at.line()));
        let line = format!("thread {} panicked at {place}", thread.name().unwrap_or("?"));
        log::error!("{line}");
        // A closed stderr is no reason for a second panic.
        let _ = writeln!(std::io::stderr(), "{line}");
    }));
}

/// A running thread, to be joined by its owner.
#[derive(Debug)]
pub struct Thread {
    name: String,
    handle: JoinHandle<()>,
    done: Receiver<()>,
}

impl Thread {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.done.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
    }

    /// Waits at most `limit` for the thread's end. `false`: it still runs and is left to the process's exit.
    pub fn join(self, limit: Duration) -> bool {
        // The sender is dropped when the thread's function returns, so a disconnect is the end.
        if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = self.done.recv_timeout(limit) {
            log::warn!("thread {} did not end within {limit:?}", self.name);
            return false;
        }
        let _ = self.handle.join();
        true
    }
}

/// Starts a thread. Names longer than 15 bytes are cut at a character boundary, as the kernel would cut them anyway.
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
    let name = short_name(name);
    let (alive, done) = crossbeam_channel::bounded::<()>(0);
    let thread_name = name.clone();
    let handle = std::thread::Builder::new().name(name.clone()).stack_size(STACK).spawn(move || {
        let _alive = alive;
        enter(&thread_name);
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(body));
        leave();
        if outcome.is_err()
            && let Some(hook) = PANIC_HOOK.get()
        {
            hook(&thread_name);
        }
    })?;
    Ok(Thread { name, handle, done })
}

/// Does `work` for every item, each on a thread of its own, and waits for all; the outcomes are in the order of the items.
/// One item, or one that gets no thread, is worked on here. For work that has a deadline itself, on a few items.
pub fn side_by_side<T: Sync, R: Send>(name: &str, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let Some((first, others)) = items.split_first() else { return Vec::new() };
    std::thread::scope(|scope| {
        let work = &work;
        let begun: Vec<_> = others
            .iter()
            .zip(2..)
            .map(|(item, number)| {
                let name = short_name(&format!("{name}-{number}"));
                let thread = std::thread::Builder::new().name(name.clone()).stack_size(STACK);
                thread.spawn_scoped(scope, move || {
                    enter(&name);
                    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| work(item)));
                    leave();
                    outcome
                })
            })
            .collect();
        let mut outcomes = vec![work(first)];
        for (thread, item) in begun.into_iter().zip(others) {
            outcomes.push(match thread.map(|thread| thread.join().flatten()) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_) => work(item),
            });
        }
        outcomes
    })
}

/// The first 15 bytes of `name` at a character boundary, without NUL.
pub fn short_name(name: &str) -> String {
    let clean: String = name.chars().filter(|c| *c != '\0').collect();
    let mut end = clean.len().min(15);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean[..end].to_string()
}

fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Enters the calling thread into the register; for threads that `spawn` did not make (the main thread).
pub fn enter(name: &str) {
    let entry =
        Entry { name: name.to_string(), tid: own_tid(), doing: "starting", since_ms: clock::now().mono, queue: None };
    with_register(|r| r.entries.insert(entry.tid, entry));
}

fn leave() {
    with_register(|r| r.entries.remove(&own_tid()));
}

/// Says what the calling thread does from now on, in two or three words.
pub fn doing(what: &'static str) {
    let (tid, now) = (own_tid(), clock::now().mono);
    with_register(|r| {
        if let Some(entry) = r.entries.get_mut(&tid) {
            entry.doing = what;
            entry.since_ms = now;
        }
    });
}

/// Names the queue that the calling thread drains; the report shows its length.
pub fn drains<T: Send + 'static>(queue: Receiver<T>) {
    let tid = own_tid();
    with_register(|r| {
        if let Some(entry) = r.entries.get_mut(&tid) {
            entry.queue = Some(Arc::new(move || queue.len()));
        }
    });
}

/// Waits at most `limit` until no thread of ours whose name begins with `prefix` is left. For ends that have no owner any
/// more: it looks again every 20 ms.
pub fn wait_for_end_of(prefix: &str, limit: Duration) -> bool {
    let until = std::time::Instant::now() + limit;
    loop {
        if !with_register(|r| r.entries.values().any(|entry| entry.name.starts_with(prefix))) {
            return true;
        }
        if std::time::Instant::now() >= until {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The threads of this process, one line each: name, kernel state and wait channel, what it does and since when, queue
/// length. A field the kernel does not give (hidden `/proc`) is shown as `-`.
pub fn report() -> String {
    let entries = with_register(|r| r.entries.values().cloned().collect::<Vec<_>>());
    let now = clock::now().mono;
    let mut lines = vec![format!(
        "{:<8} {:<16} {:<3} {:<22} {:>9} {:>5}  {}",
        "TID", "NAME", "ST", "KERNEL", "SINCE", "QUEUE", "DOING"
    )];
    let mut seen = Vec::new();
    for entry in &entries {
        seen.push(entry.tid);
        let (state, wait) = kernel_view(entry.tid);
        lines.push(format!(
            "{:<8} {:<16} {:<3} {:<22.22} {:>8.1}s {:>5}  {}",
            entry.tid,
            entry.name,
            state,
            wait,
            (now.saturating_sub(entry.since_ms)) as f64 / 1000.0,
            entry.queue.as_ref().map_or("-".to_string(), |len| len().to_string()),
            entry.doing
        ));
    }
    for tid in foreign_tids(&seen) {
        let (state, wait) = kernel_view(tid);
        let name = std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")).unwrap_or_default();
        lines.push(format!("{tid:<8} {:<16} {state:<3} {wait:<22.22} {:>9} {:>5}  (not ours)", name.trim(), "-", "-"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn foreign_tids(known: &[i32]) -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok())
        .filter(|tid| !known.contains(tid))
        .collect()
}

fn kernel_view(tid: i32) -> (String, String) {
    let state = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.chars().take(1).collect::<String>()))
        .unwrap_or_else(|| "-".into());
    let wait = std::fs::read_to_string(format!("/proc/self/task/{tid}/wchan"))
        .ok()
        .filter(|wait| !wait.is_empty() && wait != "0")
        .unwrap_or_else(|| "-".into());
    (state, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_the_kernel_does() {
        assert_eq!(short_name("pty-a-very-long-agent-name"), "pty-a-very-long");
        assert_eq!(short_name("pty-böööööööööö"), "pty-bööööö");
    }

    #[test]
    fn the_report_shows_a_thread_and_its_queue_until_it_ends() {
        let (tx, rx) = crossbeam_channel::bounded::<u8>(4);
        let (ready_tx, ready) = crossbeam_channel::bounded::<()>(0);
        let thread = spawn("probe", move || {
            drains(rx.clone());
            doing("waiting for a byte");
            let _ = ready_tx.send(());
            let _ = rx.recv();
        })
        .expect("a thread");
        ready.recv().expect("the thread starts");
        assert!(report().contains("probe"), "{}", report());
        assert!(report().contains("waiting for a byte"), "{}", report());
        tx.send(1).expect("it listens");
        assert!(thread.join(Duration::from_secs(5)));
        assert!(!report().contains("waiting for a byte"), "{}", report());
    }

    #[test]
    fn a_panic_ends_only_its_thread() {
        let thread = spawn("panics", || panic!("on purpose")).expect("a thread");
        assert!(thread.join(Duration::from_secs(5)));
    }

    /// Set in the child process of the next test: the hook belongs to a whole process.
    const CHILD: &str = "PANIC_HOOK_CHILD";

    #[test]
    fn a_panic_tells_its_place_and_not_its_message() {
        if std::env::var_os(CHILD).is_some() {
            install_panic_hook();
            let secret = std::hint::black_box("rk_live_secret");
            let thread = spawn("leaks", move || panic!("cannot use {secret}")).expect("a thread");
            assert!(thread.join(Duration::from_secs(5)));
            return;
        }
        let own = std::env::current_exe().expect("our own path");
        let output = std::process::Command::new(own)
            .args(["--exact", "sys::threads::tests::a_panic_tells_its_place_and_not_its_message", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("it runs again");
        let (told, shown) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{told}{shown}");
        assert!(told.contains("thread leaks panicked at src/sys/threads.rs:"), "{told}");
        assert!(!told.contains("rk_live_secret") && !shown.contains("rk_live_secret"), "{told}{shown}");
    }
}
