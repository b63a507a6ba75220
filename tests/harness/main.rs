//! How harnesses are told of the relay's MCP server, against recorded runs of 9.1.6 (`fixtures/harness`): the arguments, the
//! files, the commands that are run, byte for byte. Where a recording shows a defect, [`differences`] says what holds instead.

mod leftovers;
mod mcp_args;
mod scene;
mod secrets;
mod shortages;
mod spawns;
mod stub;

use serde_json::Value;

/// The recorded runs of one kind.
pub fn vectors(kind: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/harness/mcp-args-vectors.json");
    let text = std::fs::read_to_string(path).expect("the recordings");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all[kind].as_array().expect("recordings of this kind").clone()
}
