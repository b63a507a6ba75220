//! The simulation: the pure core in a world of seeded faults, with invariants checked after every step.
//!
//! `SEEDS=n` sets how many histories run, `FROM=n` where they begin, `SEED=n` replays one with a trace; `SURVEY=1` does not
//! stop at the first failure but counts them. A failure prints the line that replays it. With the feature `mutants`, each
//! planted defect must be caught (`MUTANT=name` picks one).

mod acts;
mod agenda;
mod desk;
mod disk;
mod engine;
mod faults;
mod http;
mod invocations;
mod link;
mod rng;
mod rows;
mod schema;
mod settle;
mod sidecar;
mod site;
mod terminal;
mod told;
mod turn;
mod watch;
mod weather;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use world::{Violation, World};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.trim().parse().ok()
}

/// One history. A panic of the core is a broken invariant like any other.
fn history(seed: u64, trace: bool) -> (Option<Violation>, u64, usize) {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, trace).run())).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_default();
        (Some(Violation { invariant: "panic", text }), 0, 0)
    })
}

/// Runs seeds on all processors and tells what became of each, until `enough` says so. `prepare` runs in each thread.
fn run_all<T: Send>(
    from: u64,
    count: u64,
    prepare: impl Fn() + Sync,
    look: impl Fn(u64, Option<Violation>) -> Option<T> + Sync,
    enough: impl Fn(&[T]) -> bool + Sync,
) -> (Vec<T>, usize) {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let found: Mutex<Vec<T>> = Mutex::new(Vec::new());
    let turns = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                prepare();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        break;
                    }
                    let (violation, _, made) = history(seed, false);
                    turns.fetch_add(made as u64, Ordering::Relaxed);
                    if let Some(one) = look(seed, violation) {
                        let mut found = found.lock().expect("no worker panics while it holds this");
                        found.push(one);
                        stop.fetch_or(enough(&found), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    (found.into_inner().expect("all workers have ended"), turns.into_inner() as usize)
}

/// Runs seeds until one fails; the lowest failing one found wins.
fn first_failure(from: u64, count: u64, prepare: impl Fn() + Sync) -> (Option<(u64, Violation)>, usize) {
    let failed = |seed, violation: Option<Violation>| violation.map(|violation| (seed, violation));
    let (mut found, turns) = run_all(from, count, prepare, failed, |_| true);
    found.sort_by_key(|(seed, _)| *seed);
    (found.into_iter().next(), turns)
}

#[test]
fn histories_keep_every_invariant() {
    if let Some(seed) = number("SEED") {
        let (violation, _, turns) = history(seed, true);
        println!("seed {seed}: {turns} turns");
        if let Some(violation) = violation {
            panic!("{}: {}", violation.invariant, violation.text);
        }
        return;
    }
    let seeds = number("SEEDS").unwrap_or(2_000);
    let began = Instant::now();
    if std::env::var_os("SURVEY").is_some() {
        return survey(seeds);
    }
    let (failure, turns) = first_failure(number("FROM").unwrap_or(1), seeds, || {});
    if let Some((seed, violation)) = failure {
        println!("replay: SEED={seed} cargo test --test sim histories -- --nocapture");
        panic!("seed {seed}: {}: {}", violation.invariant, violation.text);
    }
    println!("{seeds} histories, {turns} turns, {:.1} s", began.elapsed().as_secs_f64());
}

/// Counts which invariants break in how many seeds, with examples: for work on the core.
fn survey(seeds: u64) {
    let began = Instant::now();
    let failed =
        |seed, violation: Option<Violation>| violation.map(|violation| (violation.invariant, seed, violation.text));
    let (mut found, turns) = run_all(number("FROM").unwrap_or(1), seeds, || {}, failed, |_| false);
    found.sort();
    for group in found.chunk_by(|one, other| one.0 == other.0) {
        println!("{:>5} {}", group.len(), group[0].0);
        for (_, seed, text) in group.iter().take(6) {
            println!("          SEED={seed} {}", text.chars().take(300).collect::<String>());
        }
    }
    let (failures, time) = (found.len(), began.elapsed().as_secs_f64());
    println!("{seeds} histories, {turns} turns, {failures} broken invariants, {time:.1} s");
    assert_eq!(failures, 0, "see above");
}

#[test]
fn one_seed_is_one_history() {
    for seed in 1..=10 {
        let (first, second) = (history(seed, false), history(seed, false));
        assert_eq!((first.1, first.2), (second.1, second.2), "seed {seed} does not replay");
    }
}

/// Nothing but timestamps may depend on the wall clock: with clocks that jump and with clocks that do not, a seed is the same
/// history, word for word.
#[test]
fn wall_clocks_decide_nothing() {
    let mut stepped = 0;
    for seed in 1..=60 {
        let [(jumping, _), (steady, steps)] = [false, true].map(|steady| {
            let mut world = World::new(seed, false);
            (world.steady, world.deep) = (steady, true);
            let (violation, digest, turns, steps) = world.run_through();
            assert!(violation.is_none(), "seed {seed}: {violation:?}");
            ((digest, turns), steps)
        });
        assert_eq!(jumping, steady, "seed {seed}: the wall clock makes a difference");
        stepped += steps;
    }
    assert!(stepped > 20, "only {stepped} steps of a clock: this proves nothing");
}

#[cfg(feature = "mutants")]
#[test]
fn every_mutant_is_caught() {
    use agent_relay_broker::core::mutants::{Mutant, set};
    let all = [
        ("ack_at_hand_off", Mutant::AckAtHandOff),
        ("no_dedup", Mutant::NoDedup),
        ("cursor_lost_on_restart", Mutant::CursorLostOnRestart),
        ("gap_dropped", Mutant::GapDropped),
        ("dead_agent_not_recorded", Mutant::DeadAgentNotRecorded),
        ("handlers_outlive_sidecar", Mutant::HandlersOutliveSidecar),
        ("capabilities_outlive_sidecar", Mutant::CapabilitiesOutliveSidecar),
        ("handler_asked_again", Mutant::HandlerAskedAgain),
        ("foreign_typed", Mutant::ForeignTyped),
        ("superseded_in_haste", Mutant::SupersededInHaste),
    ];
    let wanted = std::env::var("MUTANT").ok();
    let mut survivors = Vec::new();
    for (name, mutant) in all.into_iter().filter(|(name, _)| wanted.as_deref().is_none_or(|one| one == *name)) {
        match first_failure(1, number("SEEDS").unwrap_or(2_000), || set(Some(mutant))).0 {
            Some((seed, violation)) => {
                println!("{name}: caught by seed {seed}, invariant {}: {}", violation.invariant, violation.text);
            }
            None => survivors.push(name),
        }
    }
    set(None);
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}
