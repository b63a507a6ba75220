//! What codex is asked before it starts: whether it knows a model, and for a thread that it can resume.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Site;
use super::commands::{Errand, command};
use crate::sys::threads;

const THREAD_LIMIT: Duration = Duration::from_secs(15);
const MODELS_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
/// A line of an answer is never longer.
const LINE: u64 = 1 << 20;

/// Makes a thread that codex can resume; its id. Every failure is a start without one.
pub fn make(site: &Site<'_>, passthrough: &[String], version: &str) -> Option<String> {
    let mut args: Vec<String> = ["app-server", "--listen", "stdio://"].map(String::from).into();
    args.extend(passthrough.iter().cloned());
    let initialize = json!({"clientInfo": {"name": "agent-relay", "version": version},
        "capabilities": {"experimentalApi": true, "suppressNotifications": []}});
    let start = json!({"cwd": site.cwd, "ephemeral": false});
    let inject = |thread: &str| {
        json!({"threadId": thread, "items": [{"type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": ""}]}]})
    };
    let made = talk(site, &args, THREAD_LIMIT, |ask| {
        ask("initialize", initialize)?;
        let thread = ask("thread/start", start)?;
        let id = thread.pointer("/thread/id").and_then(Value::as_str).filter(|id| !id.is_empty())?.to_string();
        // Without an item the thread cannot be resumed.
        ask("thread/inject_items", inject(&id))?;
        Some(id)
    });
    if made.is_none() {
        log::warn!("codex made no thread to resume; it starts without a session");
    }
    made
}

/// Starts a JSON-RPC server on its stdio, holds a conversation, and ends it.
fn talk<T>(
    site: &Site<'_>,
    args: &[String],
    limit: Duration,
    conversation: impl FnOnce(&mut dyn FnMut(&str, Value) -> Option<Value>) -> Option<T>,
) -> Option<T> {
    let deadline = site.until(limit);
    let mut command = command(site);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut errand = Errand::start(command).ok()?;
    let child = &mut errand.running.child;
    let (mut input, output) = (child.stdin.take()?, child.stdout.take()?);
    let (lines, reader) = read_lines(output)?;
    let mut number = 0u64;
    let mut ask = |method: &str, params: Value| {
        number += 1;
        let request = json!({"jsonrpc": "2.0", "id": number, "method": method, "params": params});
        // Far below what a pipe holds: it does not block.
        input.write_all(format!("{request}\n").as_bytes()).ok()?;
        loop {
            let line = next_line(&lines, deadline, site.cancelled)?;
            let Ok(answer) = serde_json::from_str::<Value>(&line) else { continue };
            if answer.get("id").and_then(Value::as_u64) == Some(number) {
                return answer.get("result").cloned();
            }
        }
    };
    let outcome = conversation(&mut ask);
    drop(errand);
    drop(lines);
    reader.join(Duration::from_secs(1));
    outcome
}

fn read_lines(
    output: impl std::io::Read + Send + 'static,
) -> Option<(crossbeam_channel::Receiver<String>, threads::Thread)> {
    let (give, take) = crossbeam_channel::bounded(16);
    let reader = threads::spawn("pty-ask", move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            line.clear();
            match std::io::Read::take(&mut output, LINE).read_until(b'\n', &mut line) {
                Ok(read) if read > 0 => {}
                _ => return,
            }
            if give.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    Some((take, reader.ok()?))
}

fn next_line(
    lines: &crossbeam_channel::Receiver<String>,
    deadline: Instant,
    cancelled: &dyn Fn() -> bool,
) -> Option<String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || cancelled() {
            return None;
        }
        match lines.recv_timeout(left.min(LOOK)) {
            Ok(line) => return Some(line),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// The model that is asked for when codex may not know it, and the one that takes its place then.
const NEWEST_MODEL: (&str, &str) = ("gpt-5.5", "gpt-5.4");

/// Puts the older model in the place of one that this codex does not know yet, in `model` and in `args`.
pub fn fall_back(site: &Site<'_>, model: &mut Option<String>, args: &mut [String]) {
    let (newest, older) = NEWEST_MODEL;
    let inline =
        |arg: &String| arg == newest || ["--model=", "-m="].iter().any(|flag| *arg == format!("{flag}{newest}"));
    let named = model.as_deref().map(str::trim) == Some(newest);
    if !named && !args.iter().any(inline) {
        return;
    }
    let Some(listed) = models(site) else { return };
    if knows(&listed, newest) != Some(false) {
        return;
    }
    log::info!("codex does not offer {newest} yet; {older} is used");
    *model = Some(older.into());
    for arg in args.iter_mut().filter(|arg| inline(arg)) {
        *arg = arg.replace(newest, older);
    }
}

fn models(site: &Site<'_>) -> Option<Value> {
    let mut command = command(site);
    command.args(["debug", "models"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let deadline = site.until(MODELS_LIMIT);
    let mut errand = Errand::start(command).ok()?;
    let (lines, reader) = read_lines(errand.running.child.stdout.take()?)?;
    let mut text = String::new();
    while let Some(line) = next_line(&lines, deadline, site.cancelled) {
        text.push_str(&line);
        if text.len() as u64 > LINE {
            break;
        }
    }
    drop(errand);
    drop(lines);
    reader.join(Duration::from_secs(1));
    serde_json::from_str(&text).ok()
}

/// Whether a model is offered as it is; `None`: the list is not readable.
fn knows(list: &Value, model: &str) -> Option<bool> {
    let entries = list.get("models")?.as_array()?;
    let named =
        |entry: &Value| ["slug", "id", "model"].iter().any(|key| entry.get(key).and_then(Value::as_str) == Some(model));
    let current = |entry: &Value| entry.get("upgrade").is_none_or(Value::is_null);
    Some(entries.iter().any(|entry| named(entry) && current(entry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_unless_it_is_missing_or_to_be_upgraded() {
        let list = json!({"models": [{"slug": "a"}, {"id": "b", "upgrade": null}, {"model": "c", "upgrade": "d"}]});
        assert_eq!(
            ["a", "b", "c", "x"].map(|model| knows(&list, model)),
            [Some(true), Some(true), Some(false), Some(false)]
        );
        assert_eq!(knows(&json!({"x": 1}), "a"), None);
    }
}
