//! What a session has left for its successor: a file of the state directory, as a block for the successor's first task.

use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

/// A larger file is no summary.
const FILE_BYTES: u64 = 256 << 10;

/// The block of the session of that name; none without a usable file, which is no reason not to start.
pub fn block(directory: &Path, name: &str) -> Option<String> {
    let path = directory.join(format!("{name}.json"));
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(FILE_BYTES).read_to_string(&mut text));
    let left = read.map_err(|error| error.to_string()).and_then(|_| {
        let value = serde_json::from_str::<Value>(&text).map_err(|error| error.to_string())?;
        if value.is_object() { Ok(value) } else { Err("it is no object".into()) }
    });
    match left {
        Ok(left) => Some(written(name, &left)),
        Err(why) => {
            log::warn!(
                "an agent starts without the session '{name}' that it should continue: {}: {why}",
                path.display()
            );
            None
        }
    }
}

fn written(name: &str, left: &Value) -> String {
    let text = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(str::to_string)
    };
    let mut block = format!("## Continuity Context (from previous session as '{name}')");
    for (title, key) in [("Previous task", "initial_task"), ("Session summary", "summary")] {
        if let Some(text) = text(left, key) {
            let _ = write!(block, "\n{title}: {text}");
        }
    }
    let messages = left.get("message_history").and_then(Value::as_array).into_iter().flatten();
    let messages: Vec<String> = messages
        .filter_map(|message| {
            let said = text(message, "text").or_else(|| text(message, "body"))?;
            Some(format!("\n  - {}: {said}", text(message, "from")?))
        })
        .collect();
    if !messages.is_empty() {
        block.push_str("\nRecent messages:");
        messages.iter().for_each(|line| block.push_str(line));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_leaves_a_block_and_anything_else_leaves_none() {
        let directory = std::env::temp_dir().join(format!("broker-continuity-{}", crate::sys::ids::uuid_hex()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let put = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a file");
        put(
            "ann.json",
            r#"{"agent_name":"ann","initial_task":" build it ","released_at":null,"summary":"half done",
                "message_history":[{"from":"bob","text":"hi"},{"from":"cy"},7,{"from":"di","body":"ho"}]}"#,
        );
        put("bare.json", r#"{"initial_task":null,"message_history":[],"summary":" "}"#);
        put("list.json", "[]");
        put("torn.json", r#"{"summary":"#);
        let whole = "## Continuity Context (from previous session as 'ann')\nPrevious task: build it\nSession summary: \
                     half done\nRecent messages:\n  - bob: hi\n  - di: ho";
        assert_eq!(block(&directory, "ann").as_deref(), Some(whole));
        let bare = block(&directory, "bare");
        assert_eq!(bare.as_deref(), Some("## Continuity Context (from previous session as 'bare')"));
        for name in ["list", "torn", "nobody"] {
            assert_eq!(block(&directory, name), None, "{name}");
        }
        std::fs::remove_dir_all(directory).expect("cleanup");
    }
}
