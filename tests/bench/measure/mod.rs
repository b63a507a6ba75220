//! The measurements. A section measures one binary once; the runs of the binaries alternate, round by round, so that what
//! else the machine does meanwhile falls on all of them.

mod idle;
mod keys;
mod latency;
mod lifetime;
pub mod load;
mod neighbours;
mod output;
mod viewers;

use std::path::Path;

use crate::samples::Samples;
use crate::settings::Settings;

/// What a section works with.
pub struct Run<'a> {
    pub settings: &'a Settings,
    pub binary: &'a Path,
    pub samples: &'a mut Samples,
    /// How many rounds share the work.
    pub rounds: usize,
}

impl Run<'_> {
    /// This round's part of `total`.
    pub fn share(&self, total: usize) -> usize {
        total.div_ceil(self.rounds)
    }
}

struct Section {
    name: &'static str,
    about: &'static str,
    rounds: fn(&Settings) -> usize,
    run: fn(&mut Run<'_>) -> Result<(), String>,
}

/// Latency is measured in several rounds only for the sake of alternation.
fn halves(settings: &Settings) -> usize {
    if settings.quick { 1 } else { 2 }
}

const SECTIONS: &[Section] = &[
    Section { name: "start", about: "start-up", rounds: |s| s.starts, run: lifetime::start },
    Section { name: "stop", about: "orderly stop", rounds: |s| s.stops, run: lifetime::stop },
    Section { name: "requests", about: "local requests", rounds: halves, run: lifetime::requests },
    Section { name: "busy", about: "local requests while agents print", rounds: halves, run: viewers::busy },
    Section { name: "keys", about: "keystrokes", rounds: halves, run: keys::keys },
    Section { name: "one", about: "latency, one agent", rounds: halves, run: latency::one },
    Section { name: "crowd", about: "latency, many agents", rounds: halves, run: latency::crowd },
    Section { name: "load", about: "many deliveries at once", rounds: |_| 1, run: load::load },
    Section { name: "output", about: "terminal output", rounds: |s| s.floods, run: output::flood },
    Section { name: "loud", about: "latency beside a printing agent", rounds: halves, run: neighbours::loud },
    Section { name: "deaf", about: "latency beside an agent that never reads", rounds: halves, run: neighbours::deaf },
    Section { name: "long", about: "much output of one terminal", rounds: |_| 1, run: neighbours::gigabyte },
    Section { name: "viewers", about: "many viewers", rounds: |s| s.viewings, run: viewers::viewers },
    Section { name: "idle", about: "idle footprint", rounds: |_| 1, run: idle::idle },
];

/// Runs all wanted sections; one [`Samples`] per subject, in their order. A section that fails is noted and the others run.
pub fn all(settings: &Settings, progress: &mut dyn FnMut(&str)) -> Vec<Samples> {
    let mut samples: Vec<Samples> = settings.subjects.iter().map(|_| Samples::default()).collect();
    for (subject, samples) in settings.subjects.iter().zip(&mut samples) {
        match std::fs::metadata(&subject.binary) {
            Ok(file) => samples.add("binary_mb", file.len() as f64 / 1e6),
            Err(error) => samples.failures.push(format!("{}: {error}", subject.binary.display())),
        }
    }
    for section in SECTIONS.iter().filter(|section| settings.wants(section.name)) {
        progress(section.about);
        let rounds = (section.rounds)(settings);
        for _ in 0..rounds {
            for (subject, samples) in settings.subjects.iter().zip(&mut samples) {
                let mut run = Run { settings, binary: &subject.binary, samples, rounds };
                if let Err(why) = (section.run)(&mut run) {
                    progress(&format!("{} of {} failed: {why}", section.about, subject.title));
                    samples.failures.push(format!("{}: {why}", section.name));
                }
            }
        }
    }
    samples
}
