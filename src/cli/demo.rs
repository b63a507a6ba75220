//! `demo`: a broker with its own engine, two scripted agents, and their messages with every receipt.
//!
//! Owns the play: who is started, what is waited for and how long. The broker process is `stage`, the messages are
//! `ledger`. No thread: one loop over the event socket, which wakes ten times a second for signals and deadlines.
//! Whatever ends the demo, the broker is stopped and the temporary directory removed.

mod ledger;
mod stage;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Failure;
use crate::daemon::Fatal;
use crate::sys::clock;
use ledger::Ledger;
use stage::Stage;

pub const HELP: &str = "\
Show two agents talking: a broker with an engine inside, no account and no network

Usage: agent-relay-broker demo [OPTIONS]

Options:
  --once          End when the talk is over: 0 if every message arrived, 1 if one did not
  --agents <DIR>  Take pingpong.sh from DIR instead of the built-in one
  -h, --help      Print help
";

const AGENT: &str = include_str!("../../fixtures/agents/pingpong.sh");
const AGENT_FILE: &str = "pingpong.sh";
/// Messages of the talk.
const MESSAGES: usize = 6;
/// Nothing new for so long means that a message is stuck.
const SILENCE: Duration = Duration::from_secs(10);
/// Renews the owner lease of the broker (120 s) well before its end. If the demo is killed outright, the lease is what
/// ends the broker.
const RENEW: Duration = Duration::from_secs(60);

/// Why the play stops before its end.
#[derive(Debug)]
enum Stop {
    /// A signal, or nobody reads our output any more.
    Asked,
    Failed(Fatal),
}

impl From<Fatal> for Stop {
    fn from(fatal: Fatal) -> Stop {
        Stop::Failed(fatal)
    }
}

/// The signals that end the demo; the handlers stay for the life of the process.
struct Signals(signal_hook::iterator::Signals);

impl Signals {
    fn listen() -> Result<Signals, Fatal> {
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map(Signals)
            .map_err(|error| Fatal::new("cannot listen for signals").because(error))
    }

    fn check(&mut self) -> Result<(), Stop> {
        if self.0.pending().next().is_some() { Err(Stop::Asked) } else { Ok(()) }
    }
}

pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    use lexopt::prelude::*;
    let (mut once, mut agents) = (false, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("once") => once = true,
            Long("agents") => agents = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let script = match &agents {
        Some(dir) => read_script(&dir.join(AGENT_FILE))?,
        None => AGENT.to_string(),
    };
    let mut signals = Signals::listen()?;
    let mut stage = Stage::open()?;
    let outcome = play(&mut stage, &mut signals, &script, once);
    stage.close();
    // A call that a signal broke off has failed because of the signal.
    match outcome.or_else(|stop| signals.check().and(Err(stop))) {
        Ok(()) => Ok(()),
        Err(Stop::Asked) if once => Err(Fatal::new("interrupted before the talk was over").into()),
        Err(Stop::Asked) => {
            // Nobody may be reading any more: then there is nobody to tell.
            let _ = tell("\nThe broker and both agents are stopped; nothing was left behind.");
            Ok(())
        }
        Err(Stop::Failed(fatal)) => Err(fatal.into()),
    }
}

fn read_script(path: &Path) -> Result<String, Fatal> {
    std::fs::read_to_string(path).map_err(|error| Fatal::new(format!("cannot read {}", path.display())).because(error))
}

fn tell(line: &str) -> Result<(), Stop> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|_| Stop::Asked)
}

fn play(stage: &mut Stage, signals: &mut Signals, script: &str, once: bool) -> Result<(), Stop> {
    tell(
        "A broker with its own message engine starts here, and two small scripts, alice and bob, run in terminals that it keeps.\n\
         Every line below is one message: stored by the engine, typed into the terminal, read by the program there, acknowledged.\n",
    )?;
    let started = Instant::now();
    stage.start_broker(signals)?;
    tell(&format!("broker ready after {} ms: {} (pid {})", started.elapsed().as_millis(), stage.url(), stage.pid()))?;
    let script = stage.write(AGENT_FILE, script)?;
    let mut feed = stage.events()?;
    spawn(stage, "bob", &script, None)?;
    spawn(stage, "alice", &script, Some(&format!("start a talk with bob: {MESSAGES} messages")))?;
    tell("alice and bob run; alice's task is to start a talk with bob\n")?;

    let mut ledger = Ledger::default();
    let mut last_news = Instant::now();
    while ledger.arrived() < MESSAGES {
        signals.check()?;
        if let Some(event) = feed.next(stage)? {
            if ledger.take(&event) {
                last_news = Instant::now();
            }
        } else if last_news.elapsed() > SILENCE {
            return Err(stuck(stage, &ledger).into());
        }
        print(&mut ledger)?;
    }
    while ledger.untold() && last_news.elapsed() < SILENCE {
        if let Some(event) = feed.next(stage)? {
            ledger.take(&event);
        }
        print(&mut ledger)?;
    }
    tell(&format!("\n{}", ledger.summary()))?;
    if once {
        return Ok(());
    }
    tell(&next_steps(stage)?)?;
    let mut renewed = Instant::now();
    loop {
        signals.check()?;
        if renewed.elapsed() > RENEW {
            stage.post("/api/session/renew", &json!({}))?;
            renewed = Instant::now();
        }
        if let Some(event) = feed.next(stage)? {
            ledger.take(&event);
        }
        print(&mut ledger)?;
    }
}

fn print(ledger: &mut Ledger) -> Result<(), Stop> {
    ledger.lines(clock::unix_ms()).iter().try_for_each(|line| tell(line))
}

fn spawn(stage: &Stage, name: &str, script: &Path, task: Option<&str>) -> Result<(), Fatal> {
    let request = json!({
        "name": name,
        "cli": "bash",
        "args": [script.to_string_lossy()],
        "channels": ["general"],
        "task": task,
    });
    stage.post("/api/spawn", &request).map(|_| ())
}

/// What is known when a message does not arrive: how far each came, and what both terminals and the broker say.
fn stuck(stage: &Stage, ledger: &Ledger) -> Fatal {
    let mut fatal = Fatal::new(format!(
        "{} of {MESSAGES} messages arrived, and for {} s nothing more did",
        ledger.arrived(),
        SILENCE.as_secs()
    ));
    for line in ledger.waiting() {
        fatal = fatal.because(line);
    }
    for name in ["alice", "bob"] {
        let screen = match stage.get(&format!("/api/spawned/{name}/snapshot?format=plain")) {
            Ok(picture) => picture["screen"].as_str().unwrap_or_default().trim_end().to_string(),
            Err(error) => error.report(),
        };
        fatal = fatal.because(format!("{name}'s terminal:\n{screen}"));
    }
    fatal.because(stage.last_words())
}

fn next_steps(stage: &Stage) -> Result<String, Fatal> {
    let env = stage.write("env", &format!("URL='{}'\nKEY='{}'\n", stage.url(), stage.key()))?;
    Ok(format!(
        "\nIn another terminal, while this one stays open (Ctrl-C ends everything):\n\n\
         \x20 . {}\n\
         \x20 curl -H \"X-API-Key: $KEY\" $URL/api/spawned\n\
         \x20 curl -H \"X-API-Key: $KEY\" \"$URL/api/spawned/bob/snapshot?format=plain\"\n\
         \x20 curl -H \"X-API-Key: $KEY\" -H 'Content-Type: application/json' -d '{{\"to\":\"bob\",\"message\":\"hello\"}}' $URL/api/send\n\n\
         For your own agents: `agent-relay-broker init --local --persist` in the directory of your project.\n",
        env.display()
    ))
}
