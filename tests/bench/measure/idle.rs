//! What a broker costs that has nothing to do: memory, threads and context switches, with so many `cat` agents. The brokers
//! of one binary wait side by side; they are asked only before and after the window.

use std::thread::sleep;

use super::Run;
use crate::broker::Broker;
use crate::clock::{millis, now};
use crate::processes::{self, Switches};

struct Waiting {
    agents: usize,
    broker: Broker,
    before: (u64, Switches),
}

pub fn idle(run: &mut Run<'_>) -> Result<(), String> {
    let mut waiting = Vec::new();
    for agents in &run.settings.idle_agents {
        let mut broker = Broker::start(run.binary)?;
        for number in 0..*agents {
            broker.spawn(&format!("cat-{number}"), "cat")?;
        }
        // A kept connection would cost the broker a thread.
        broker.api.hang_up();
        waiting.push(Waiting { agents: *agents, broker, before: Default::default() });
    }
    sleep(run.settings.idle_settle);
    for broker in &mut waiting {
        broker.before = (now(), processes::switches(broker.broker.pid()));
    }
    sleep(run.settings.idle_window);
    for Waiting { agents, broker, before } in &waiting {
        let pid = broker.pid();
        let seconds = millis(before.0, now()) / 1000.0;
        let switched = processes::switched(&before.1, &processes::switches(pid));
        let cost = processes::cost(pid)?;
        let mut add = |what: &str, value: f64| run.samples.add(format!("idle_{agents}_{what}"), value);
        add("switches_per_s", (switched.voluntary + switched.involuntary) as f64 / seconds);
        add("voluntary_per_s", switched.voluntary as f64 / seconds);
        add("rss_mb", cost.rss as f64 * 1024.0 / 1e6);
        add("private_mb", cost.private as f64 * 1024.0 / 1e6);
        add("processes", cost.processes as f64);
        add("threads", cost.threads as f64);
    }
    Ok(())
}
