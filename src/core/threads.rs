//! `GET /api/threads`: conversations, made from the last messages that this broker has passed on.

use std::collections::{HashMap, VecDeque};

use super::ports::Ms;
use crate::wire::api::ThreadRow;
use crate::wire::time::rfc3339;

/// Messages remembered for it.
const KEPT: usize = 1_000;
/// Bytes of a message that are shown.
const PREVIEW: usize = 200;

#[derive(Debug)]
struct Said {
    thread: String,
    name: String,
    preview: String,
    at_unix: Ms,
}

#[derive(Debug, Default)]
pub(super) struct Threads {
    said: VecDeque<Said>,
}

/// At most `limit` bytes, cut between characters.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// Which conversation a message belongs to, and how it is called.
fn thread_of(from: &str, to: &str, thread_id: Option<&str>) -> (String, String) {
    if let Some(id) = thread_id.map(str::trim).filter(|id| !id.is_empty()) {
        return (id.to_string(), to.to_string());
    }
    if to.starts_with('#') {
        return (to.to_string(), to.to_string());
    }
    let to = to.strip_prefix('@').unwrap_or(to);
    let mut pair = [from.to_lowercase(), to.to_lowercase()];
    pair.sort();
    (format!("direct:{}:{}", pair[0], pair[1]), to.to_string())
}

impl Threads {
    pub fn note(&mut self, from: &str, to: &str, thread_id: Option<&str>, text: &str, at_unix: Ms) {
        let (thread, name) = thread_of(from, to, thread_id);
        if self.said.len() >= KEPT {
            self.said.pop_front();
        }
        self.said.push_back(Said { thread, name, preview: cut(text, PREVIEW).to_string(), at_unix });
    }

    /// Newest first. Nobody marks anything as read here, so nothing counts as unread.
    pub fn rows(&self) -> Vec<ThreadRow> {
        let mut seen: HashMap<&str, ()> = HashMap::new();
        let newest = self.said.iter().rev().filter(|said| seen.insert(&said.thread, ()).is_none());
        newest
            .map(|said| ThreadRow {
                thread_id: said.thread.clone(),
                name: said.name.clone(),
                unread_count: 0,
                last_message: Some(said.preview.clone()),
                last_message_at: Some(rfc3339(said.at_unix)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_belong_to_threads_channels_or_pairs() {
        let table = [
            ("Ann", "bob", None, "direct:ann:bob"),
            ("bob", "@ANN", None, "direct:ann:bob"),
            ("ann", "#general", None, "#general"),
            ("ann", "#general", Some(" t1 "), "t1"),
            ("ann", "bob", Some("  "), "direct:ann:bob"),
        ];
        for (from, to, thread, expected) in table {
            assert_eq!(thread_of(from, to, thread).0, expected, "{from} {to} {thread:?}");
        }
    }

    #[test]
    fn the_newest_comes_first_and_a_preview_is_cut_between_characters() {
        let mut threads = Threads::default();
        threads.note("a", "b", None, "old", 1_000);
        threads.note("a", "#c", None, &"ä".repeat(150), 2_000);
        threads.note("b", "a", None, "new", 3_000);
        let rows = threads.rows();
        let ids: Vec<&str> = rows.iter().map(|row| row.thread_id.as_str()).collect();
        assert_eq!(ids, ["direct:a:b", "#c"]);
        assert_eq!(rows[0].last_message.as_deref(), Some("new"));
        assert_eq!(rows[1].last_message.as_deref().map(str::len), Some(200));
        (0..2 * KEPT).for_each(|n| threads.note("a", &n.to_string(), None, "x", 4_000));
        assert_eq!(threads.rows().len(), KEPT);
    }
}
