//! Measures a broker binary from outside, through its public surface: footprint, latency, throughput.
//!
//! ```text
//! cargo bench --bench figures          the figures
//! cargo test  --bench figures          the same steps, shortened, as a smoke test
//! ```
//!
//! Environment: `BROKER_BIN` our binary (default: the one built beside this program), `BROKER` another one to compare with,
//! `DELIVERIES` of the load section (2,000), `IDLE_SECONDS` of the idle window (24), `ONLY` some sections
//! (`start,stop,requests,busy,one,crowd,load,output,viewers,idle`), `QUICK=1` a short run, `BENCH_JSON` where the JSON goes
//! (`target/bench.json`).
//!
//! Latencies and context switches depend on what else the machine does: on a busy one the broker's threads, which yield a
//! few times before they sleep, are counted as switched out. The voluntary switches are its own.
//!
//! Exit code 0 when everything could be measured, whatever the bars say; 1 when something could not.

mod broker;
mod clock;
mod engine;
mod figures;
mod http;
mod measure;
mod probe;
mod processes;
mod samples;
mod settings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use settings::Settings;

const SMOKE: &str = "figures_smoke";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--probe", socket, number] => program(Path::new(socket), number, &[]),
        ["--flood", socket, number, megabytes] => program(Path::new(socket), number, &[megabytes]),
        ["--print", socket, number, bytes, rate] => program(Path::new(socket), number, &[bytes, rate]),
        _ if words.contains(&"--list") => {
            println!("{SMOKE}: test");
            ExitCode::SUCCESS
        }
        _ if words.contains(&"--bench") => report(&Settings::from_env(false)),
        // Run by `cargo test`, perhaps with the name of a test that is none of ours.
        _ => match words.iter().find(|word| !word.starts_with('-')) {
            Some(filter) if !SMOKE.contains(filter) => ExitCode::SUCCESS,
            _ => smoke(),
        },
    }
}

/// Being an agent.
fn program(socket: &Path, number: &str, amounts: &[&str]) -> ExitCode {
    let Ok(number) = number.parse() else { return ExitCode::from(2) };
    let Ok(amounts) = amounts.iter().map(|word| word.parse()).collect::<Result<Vec<u64>, _>>() else {
        return ExitCode::from(2);
    };
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let ending = match amounts[..] {
        [] => probe::watch(&input, output, socket, number),
        [megabytes] => probe::flood(&input, output, socket, number, megabytes * 1_000_000),
        [bytes, rate, ..] => probe::print(&input, output, socket, number, bytes, rate),
    };
    // The end of the terminal or of the bench is the ordinary end.
    if ending.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The test: every step works.
fn smoke() -> ExitCode {
    let outcome = report(&Settings::from_env(true));
    let failed = u8::from(outcome != ExitCode::SUCCESS);
    println!("{} passed, {failed} failed", 1 - failed);
    outcome
}

fn report(settings: &Settings) -> ExitCode {
    for subject in &settings.subjects {
        eprintln!("{}: {}", subject.title, subject.binary.display());
    }
    let samples = measure::all(settings, &mut |step| eprintln!("  {step} …"));
    let figures = figures::all(settings);
    let rows = figures::rows(&figures, &samples, settings.only.is_empty());
    let titles: Vec<&str> = settings.subjects.iter().map(|subject| subject.title.as_str()).collect();
    print!("{}", figures::table(&rows, &titles));
    if settings.load_deliveries < 10_000 && settings.wants("load") {
        println!("\nThe load section sent {} deliveries; DELIVERIES=10000 for the long run.", settings.load_deliveries);
    }
    let missed: Vec<&str> =
        rows.iter().filter(|row| row.passes() == Some(false)).map(|row| row.figure.title.as_str()).collect();
    let barred = rows.iter().filter(|row| row.passes().is_some()).count();
    println!("\nBars: {} of {barred} held.", barred - missed.len());
    for title in missed {
        println!("  missed: {title}");
    }
    let document = figures::document(&rows, settings, &samples);
    if let Err(error) = write(&settings.json, &document.to_string()) {
        eprintln!("cannot write {}: {error}", settings.json.display());
        return ExitCode::FAILURE;
    }
    for (subject, samples) in settings.subjects.iter().zip(&samples) {
        for failure in &samples.failures {
            println!("not measured for {}: {failure}", subject.title);
        }
    }
    if samples.iter().all(|samples| samples.failures.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(path: &PathBuf, text: &str) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, text)
}
