//! The simulated journal: lines on a disk that may lose the tail of the last append.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay_broker::core::ports::Record;

#[derive(Default)]
pub struct Disk {
    /// One JSON line per record, as the file holds them.
    lines: Vec<String>,
    /// Per agent id: the number up to which the journal says that everything is disposed.
    pub cursors: BTreeMap<String, u64>,
    /// Delivery ids of dead letters on disk.
    pub dead: BTreeSet<String>,
    /// Records that the daemon keeps while the disk refuses them.
    pub waiting: Vec<Record>,
    pub broken: bool,
    /// Keys of frames that the engine will not repeat, still open.
    pub unrepeated: BTreeSet<(String, String)>,
    /// What was answered to invocations, and in which life.
    pub answers: BTreeMap<String, (u32, String)>,
}

impl Disk {
    /// Appends, and reads back what was written as a restart would.
    pub fn append(&mut self, record: &Record, life: u32) -> Result<(), String> {
        let line = serde_json::to_string(record).map_err(|e| e.to_string())?;
        let back: Record = serde_json::from_str(&line).map_err(|e| format!("{line}: {e}"))?;
        // An output of `null` and none at all are one answer.
        let nothing = |record: &Record| match record {
            Record::Invocation { output, error: None, .. } => output.as_ref().is_none_or(serde_json::Value::is_null),
            _ => false,
        };
        if back != *record && !(nothing(&back) && nothing(record)) {
            return Err(format!("{record:?} comes back as {back:?}"));
        }
        self.lines.push(line);
        match record {
            Record::Disposed { agent_id, seq, .. } => {
                let cursor = self.cursors.entry(agent_id.clone()).or_default();
                *cursor = (*cursor).max(*seq);
            }
            Record::DeadLetter(letter) => {
                self.dead.insert(letter.delivery_id.clone());
            }
            Record::Unrepeated { agent_id, key, .. } => {
                self.unrepeated.insert((agent_id.clone(), key.clone()));
            }
            Record::UnrepeatedRead { .. } => {}
            Record::UnrepeatedDone { agent_id, key } => {
                self.unrepeated.remove(&(agent_id.clone(), key.clone()));
            }
            Record::Invocation { invocation_id, output, error, .. } => {
                let said = answer_text(output.as_ref(), error.as_deref());
                self.answers.entry(invocation_id.clone()).or_insert((life, said));
            }
            Record::Redelivered { delivery_id } => {
                self.dead.remove(delivery_id);
            }
            Record::Gone { .. } => {}
        }
        Ok(())
    }

    /// What a new broker is born with.
    pub fn restore(&self) -> Vec<Record> {
        self.lines.iter().map(|line| serde_json::from_str(line).expect("a line that was read back before")).collect()
    }

    pub fn cursor(&self, agent_id: &str) -> u64 {
        self.cursors.get(agent_id).copied().unwrap_or_default()
    }
}

/// An answer to an invocation as one comparable text.
pub fn answer_text(output: Option<&serde_json::Value>, error: Option<&str>) -> String {
    match error {
        Some(error) => format!("error {error}"),
        None => format!("output {}", output.unwrap_or(&serde_json::Value::Null)),
    }
}
