//! Beginning and end of a broker, and the local requests between.

use super::Run;
use crate::broker::Broker;
use crate::clock::{millis, now};

/// From exec to the listening line, to the node's registration, to the serving API.
pub fn start(run: &mut Run<'_>) -> Result<(), String> {
    let broker = Broker::start(run.binary)?;
    run.samples.add("start_listening_ms", millis(broker.started, broker.listening));
    run.samples.add("start_registered_ms", millis(broker.started, broker.registered));
    run.samples.add("start_ready_ms", millis(broker.started, broker.ready));
    broker.stop().map(drop)
}

/// SIGTERM to the end of the process, with two agents that end when their terminal does.
pub fn stop(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    broker.spawn("first", "cat")?;
    broker.spawn("second", "cat")?;
    let took = broker.stop()?;
    run.samples.add("stop_ms", took);
    Ok(())
}

/// Round trips of two routes on one kept connection.
pub fn requests(run: &mut Run<'_>) -> Result<(), String> {
    let mut broker = Broker::start(run.binary)?;
    broker.spawn("first", "cat")?;
    broker.spawn("second", "cat")?;
    for _ in 0..run.share(run.settings.requests) {
        ask(run, &mut broker, "")?;
    }
    Ok(())
}

/// Each of the two routes once.
pub fn ask(run: &mut Run<'_>, broker: &mut Broker, prefix: &str) -> Result<(), String> {
    for (path, series) in [("/health", "health_ms"), ("/api/spawned", "spawned_ms")] {
        let asked = now();
        broker.call("GET", path, None)?;
        run.samples.add(format!("{prefix}{series}"), millis(asked, now()));
    }
    Ok(())
}
