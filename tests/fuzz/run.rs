//! One run over a target: inputs by number, a watchdog, a count of what became of them, memory before and after.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::mutator::mutated;
use crate::rng::Rng;

/// Inputs of a target in a test run.
const COUNT: u64 = 1_000_000;
/// Nothing takes milliseconds; this allows for a machine that stands still.
const ONE_INPUT: Duration = Duration::from_secs(20);
const ALL_INPUTS: Duration = Duration::from_secs(400);
/// What the process may have grown by after the first tenth of a run: some 18 bytes for each of the other inputs. The
/// targets share a process, so it leaves room for the corpus of the other.
const GROWTH: u64 = 16 << 20;
/// What it may have needed more at any time: an announced length that is believed costs far more.
const PEAK: u64 = 32 << 20;

/// What became of an input.
#[derive(Clone, Copy)]
pub enum Verdict {
    Accepted,
    Refused,
    /// More was waited for.
    Unfinished,
}

pub struct Target<'a> {
    pub name: &'a str,
    pub corpus: Vec<Vec<u8>>,
    pub words: &'a [&'a [u8]],
    /// At least this many of 100 inputs must be accepted, and as many refused: both sides are looked at.
    pub share: u64,
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}

impl Target<'_> {
    fn input(&self, seed: u64, number: u64) -> (Vec<u8>, Rng) {
        let mut rng = Rng::of(seed, number);
        (mutated(&mut rng, &self.corpus, self.words), rng)
    }

    fn describe(&self, seed: u64, number: u64) -> String {
        format!(
            "input {number}: {}\nagain: SEED={seed} FIRST={number} COUNT=1 cargo test --test fuzz {}",
            self.input(seed, number).0.escape_ascii(),
            self.name
        )
    }

    /// Gives each input to `read`, with a source of chance that belongs to it.
    pub fn run(&self, read: impl Fn(&[u8], &mut Rng) -> Verdict) {
        let (seed, first, count) = (setting("SEED", 1), setting("FIRST", 0), setting("COUNT", COUNT));
        let at = AtomicU64::new(first);
        let began = Instant::now();
        let mut verdicts = [0u64; 3];
        let mut warm = (0, 0);
        std::thread::scope(|scope| {
            let (alive, ends) = channel::<()>();
            let at = &at;
            scope.spawn(move || {
                let mut seen = (first, Instant::now());
                while ends.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                    let number = at.load(Ordering::Relaxed);
                    if number != seen.0 {
                        seen = (number, Instant::now());
                    } else if seen.1.elapsed() > ONE_INPUT {
                        eprintln!("no end after {ONE_INPUT:?}: {}", self.describe(seed, number));
                        std::process::exit(101);
                    }
                }
            });
            for number in first..first + count {
                at.store(number, Ordering::Relaxed);
                let (input, mut rng) = self.input(seed, number);
                match catch_unwind(AssertUnwindSafe(|| read(&input, &mut rng))) {
                    Ok(verdict) => verdicts[verdict as usize] += 1,
                    Err(panic) => {
                        eprintln!("{}", self.describe(seed, number));
                        resume_unwind(panic);
                    }
                }
                if number - first == count / 10 {
                    warm = memory();
                }
                assert!(began.elapsed() < ALL_INPUTS, "{} of {count} inputs in {ALL_INPUTS:?}", number - first);
            }
            drop(alive);
        });
        let (resident, peak) = memory();
        let [accepted, refused, unfinished] = verdicts;
        println!(
            "{}: {count} inputs in {:?}: {accepted} accepted, {refused} refused, {unfinished} unfinished; \
             {} KiB resident, {} KiB after a tenth, {} KiB at most",
            self.name,
            began.elapsed(),
            resident >> 10,
            warm.0 >> 10,
            peak >> 10
        );
        assert!(resident <= warm.0 + GROWTH, "grew from {} to {resident} bytes", warm.0);
        assert!(peak <= warm.0 + PEAK, "needed {peak} bytes at a time");
        if count >= 10_000 {
            let least = count * self.share / 100;
            assert!(accepted >= least && refused >= least, "the inputs have become too alike");
        }
    }
}

/// Resident memory of this process in bytes, now and at most.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process has a status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of the status");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}
